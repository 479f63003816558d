//! A key gives a name that fits, and gives the key back where it is no hash, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::naming::{Algorithm, Names, Rule};
use tenantd::tenant::MAX_IDENTIFIER_BYTES;

fuzz_target!(|key: &str| {
    for (rule, prefix) in
        [(Rule::Uuid, "tenant_"), (Rule::Key, ""), (Rule::Key, "customer_"), (Rule::Hash(Algorithm::Md5, 10), "tid_")]
    {
        let names = Names::new(rule, prefix, "app");
        if let Ok(name) = names.of(key) {
            assert!(name.len() <= MAX_IDENTIFIER_BYTES);
            assert!(names.may_meet() || names.key_of(&name).as_deref() == Some(key));
        }
    }
});
