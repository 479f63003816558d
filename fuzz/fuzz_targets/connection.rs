//! Any connection string is understood, or refused without its password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::config::connection::{Connection, DEFAULT_CONNECT_TIMEOUT, Parts};
use tenantd::error::Kind;

fuzz_target!(|text: &str| {
    let parts = Parts {
        url: Some(text),
        environment: &|name| (name == "USER").then(|| "os".to_owned()),
        password_file: None,
        password_command: None,
        sslmode: None,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        connect_timeout: DEFAULT_CONNECT_TIMEOUT,
    };
    match Connection::from_parts(&parts) {
        Ok(connection) => assert!(connection.user().len() <= 63 && connection.database().len() <= 63),
        Err(error) => assert_eq!(error.kind(), Kind::Usage),
    }
});
