//! Any folder of migrations is a set in order, or refused as a whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::error::Kind;
use tenantd::migrations::source::of_files;

/// What the names of migrations end in.
const ENDS: [&str; 3] = [".sql", ".up.sql", ".down.sql"];

fuzz_target!(|files: (Vec<(u8, u8, String, String)>, Vec<(String, Vec<u8>)>)| {
    let (numbered, others) = files;
    // Names that are hardly hit by chance.
    let numbered = numbered.into_iter().map(|(version, end, name, sql)| {
        (format!("{version:03}_a{name}{}", ENDS[usize::from(end) % ENDS.len()]), sql.into_bytes())
    });
    match of_files(numbered.chain(others).collect()) {
        Ok(set) => assert!(set.migrations().is_sorted_by_key(|migration| migration.version)),
        Err(error) => assert_eq!(error.kind(), Kind::Usage),
    }
});
