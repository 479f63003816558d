//! Any variable of ours is a value, or refused by name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::config::{Sources, load};
use tenantd::error::Kind;

fuzz_target!(|settings: Vec<(String, String)>| {
    let ours = settings.into_iter().map(|(name, text)| (format!("TENANTD_{name}"), text));
    let host = ("PGHOST".to_owned(), "localhost".to_owned());
    let user = ("PGUSER".to_owned(), "tenantd".to_owned());
    let mut sources = Sources::of(ours.chain([host, user]));
    sources.default_file = "/nowhere/tenantd.toml".into();
    if let Err(error) = load(&sources) {
        assert_eq!(error.kind(), Kind::Usage);
    }
});
