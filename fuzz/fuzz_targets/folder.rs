//! Any folder of migrations is a set in order, or refused as a whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::error::Kind;
use tenantd::migrations::source::of_files;

fuzz_target!(|files: Vec<(String, Vec<u8>)>| match of_files(files) {
    Ok(set) => assert!(set.migrations().is_sorted_by_key(|migration| migration.version)),
    Err(error) => assert_eq!(error.kind(), Kind::Usage),
});
