//! Any connection string is understood, or refused without its password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantd::config::connection::{Connection, DEFAULT_CONNECT_TIMEOUT, Parts};
use tenantd::error::{Error, Kind};

/// A password that stands in no message by chance.
const PASSWORD: &str = "c4n4ry-w0rd";

/// Why `text` is refused, if it is.
fn refused(text: &str) -> Option<Error> {
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
        Ok(connection) => {
            assert!(connection.user().len() <= 63 && connection.database().len() <= 63);
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::Usage);
            Some(error)
        }
    }
}

fuzz_target!(|text: &str| {
    refused(text);
    for start in ["postgresql://os:", "host=localhost password="] {
        if let Some(error) = refused(&format!("{start}{PASSWORD}{text}")) {
            let said = format!("{} {} {error:?}", error.chain(), error.advice().unwrap_or_default());
            assert!(!said.contains(PASSWORD), "{said}");
        }
    }
});
