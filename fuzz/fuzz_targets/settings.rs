//! Any variable of ours is a value, or refused by name.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tenantd::config::{Sources, load};
use tenantd::error::Kind;

/// Sources with these variables and nothing else but whom to connect to.
fn sources(settings: impl Iterator<Item = (String, String)>) -> Sources {
    let ours = settings.map(|(name, text)| (format!("TENANTD_{name}"), text));
    let host = ("PGHOST".to_owned(), "localhost".to_owned());
    let user = ("PGUSER".to_owned(), "tenantd".to_owned());
    let mut sources = Sources::of(ours.chain([host, user]));
    sources.default_file = "/nowhere/tenantd.toml".into();
    sources
}

/// Every key as the end of a variable's name, since hardly one is hit by chance.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let loaded = load(&sources(std::iter::empty())).expect("what is built in");
    loaded.settings().iter().map(|setting| setting.key.replace('.', "__").to_uppercase()).collect()
});

fuzz_target!(|settings: (Vec<(u8, String)>, Vec<(String, String)>)| {
    let (known, unknown) = settings;
    let known = known.into_iter().map(|(number, text)| (KEYS[usize::from(number) % KEYS.len()].clone(), text));
    if let Err(error) = load(&sources(known.chain(unknown))) {
        assert_eq!(error.kind(), Kind::Usage);
    }
});
