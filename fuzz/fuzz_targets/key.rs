//! A key gives a name that gives the key back and fits, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::tenant::{MAX_IDENTIFIER_BYTES, database_name};

fuzz_target!(|key: &str| {
    if let Ok(name) = database_name("tenant_", key) {
        assert_eq!(name.strip_prefix("tenant_").map(|rest| rest.replace('_', "-")).as_deref(), Some(key));
        assert!(name.len() <= MAX_IDENTIFIER_BYTES);
    }
});
