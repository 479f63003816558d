//! Any text comes apart into statements in their order, with nothing between them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::migrations::place;
use tenantd::migrations::split::{names, psql_command, split};

fuzz_target!(|sql: &str| {
    let mut at = 0;
    for statement in split(sql) {
        assert!(statement.offset >= at && !statement.text.is_empty());
        assert!(split(&sql[at..statement.offset]).is_empty());
        at = statement.offset + statement.text.len();
        assert_eq!(&sql[statement.offset..at], statement.text);
        let _ = (statement.words().count(), place::at_byte(sql, statement.offset));
    }
    assert!(split(&sql[at..]).is_empty());
    let _ = (names(sql).count(), psql_command(sql));
});
