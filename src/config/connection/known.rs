//! The parameters of a connection string: libpq's, and those that frameworks add to their URLs.

use std::collections::BTreeMap;

use super::text::Pairs;
use crate::error::{Error, Result};

/// What becomes of a parameter.
enum Meaning {
    /// `Connection` reads it.
    Used,
    /// It means nothing here and asks for nothing that would then be missing.
    Ignored,
    /// Leaving it out would quietly do less than was asked, so only these values pass; the text says what to do.
    Only(&'static [&'static str], &'static str),
}

use Meaning::{Ignored, Only, Used};

/// Name, libpq's environment variable for it, and what becomes of it.
const LIBPQ: &[(&str, &str, Meaning)] = &[
    ("host", "PGHOST", Used),
    ("hostaddr", "PGHOSTADDR", Used),
    ("port", "PGPORT", Used),
    ("user", "PGUSER", Used),
    ("dbname", "PGDATABASE", Used),
    ("password", "PGPASSWORD", Used),
    ("passfile", "PGPASSFILE", Used),
    ("sslmode", "PGSSLMODE", Used),
    ("sslrootcert", "PGSSLROOTCERT", Used),
    ("sslcert", "PGSSLCERT", Used),
    ("sslkey", "PGSSLKEY", Used),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Used),
    ("channel_binding", "PGCHANNELBINDING", Used),
    ("options", "PGOPTIONS", Used),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Used),
    ("keepalives", "", Used),
    ("keepalives_idle", "", Used),
    ("keepalives_interval", "", Used),
    ("keepalives_count", "", Used),
    ("tcp_user_timeout", "", Used),
    ("service", "PGSERVICE", Only(&[], "write out host, port, user and database in main.url")),
    ("sslcrl", "PGSSLCRL", Only(&[], "tenantd reads no revocation lists: leave it out if that is acceptable")),
    ("sslcrldir", "PGSSLCRLDIR", Only(&[], "tenantd reads no revocation lists: leave it out if that is acceptable")),
    ("sslpassword", "", Only(&[], "decrypt the key once: openssl pkcs8 -in KEY -out NEW-KEY")),
    ("require_auth", "PGREQUIREAUTH", Only(&[], "use channel_binding=require, which allows SCRAM over TLS alone")),
    ("requirepeer", "PGREQUIREPEER", Only(&[], "keep the socket in a folder that only the server may write to")),
    ("sslnegotiation", "PGSSLNEGOTIATION", Only(&["postgres"], "leave it out")),
    (
        "sslcertmode",
        "PGSSLCERTMODE",
        Only(&["allow"], "leave it out; sslcert alone decides which certificate is shown"),
    ),
    ("gssencmode", "PGGSSENCMODE", Only(&["disable", "allow", "prefer"], "tenantd encrypts with TLS only")),
    ("replication", "", Only(&["false", "off", "no", "0"], "leave it out")),
    ("scram_client_key", "", Only(&[], "give the password itself")),
    ("scram_server_key", "", Only(&[], "give the password itself")),
    ("application_name", "", Ignored), // tenantd's own says which part of it is connected
    ("fallback_application_name", "", Ignored),
    ("client_encoding", "", Ignored), // always UTF-8
    ("load_balance_hosts", "", Ignored),
    ("servicefile", "", Ignored),
    ("sslcompression", "", Ignored),
    ("sslsni", "", Ignored),
    ("ssl_max_protocol_version", "", Ignored),
    ("min_protocol_version", "", Ignored),
    ("max_protocol_version", "", Ignored),
    ("krbsrvname", "", Ignored),
    ("gsslib", "", Ignored),
    ("gssdelegation", "", Ignored),
];

/// What frameworks and their poolers write into the same URL.
const OF_FRAMEWORKS: &[&str] = &[
    "ApplicationName",
    "checkout_timeout",
    "connection_limit",
    "currentSchema",
    "default_query_exec_mode",
    "encoding",
    "idle_timeout",
    "pgbouncer",
    "pool",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conns",
    "pool_min_conns",
    "pool_mode",
    "pool_size",
    "pool_timeout",
    "prepareThreshold",
    "prepared_statements",
    "reaping_frequency",
    "schema",
    "socket_timeout",
    "sslaccept",
    "sslidentity",
    "statement_cache_capacity",
    "statement_cache_mode",
    "statement_cache_size",
    "supa",
    "uselibpqcompat",
];

/// Whether a parameter of this name means anything here, be it that it is refused.
pub(super) fn is_known(name: &str) -> bool {
    OF_FRAMEWORKS.contains(&name) || LIBPQ.iter().any(|(known, _, _)| *known == name)
}

/// Where a value was written, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Key,
    Text,
    Variable(&'static str),
}

/// A value and where it was written.
pub(super) struct Value {
    pub(super) text: String,
    origin: Origin,
}

/// Every parameter that `Connection` reads and somebody wrote; of several places the strongest.
#[derive(Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

impl Values {
    /// Adds the environment's values, then those of the connection string, then the explicit keys: each stronger than the ones before.
    ///
    /// # Errors
    /// Usage: a parameter that is unknown, or that asks for what tenantd does not do.
    pub(super) fn gather(
        environment: &dyn Fn(&str) -> Option<String>,
        text: Pairs,
        keys: Vec<(&'static str, Option<String>)>,
    ) -> Result<Values> {
        let mut values = Values::default();
        for (name, variable, _) in LIBPQ.iter().filter(|(_, variable, _)| !variable.is_empty()) {
            if let Some(text) = environment(variable) {
                values.add(name, text, Origin::Variable(variable))?;
            }
        }
        for (name, text) in text {
            values.add(&name, text, Origin::Text)?;
        }
        for (name, text) in keys {
            if let Some(text) = text {
                values.add(name, text, Origin::Key)?;
            }
        }
        Ok(values)
    }

    fn add(&mut self, name: &str, text: String, origin: Origin) -> Result<()> {
        // An empty value is libpq's way to say "the default".
        if OF_FRAMEWORKS.contains(&name) || text.is_empty() && LIBPQ.iter().any(|(known, _, _)| *known == name) {
            return Ok(());
        }
        let Some((known, _, meaning)) = LIBPQ.iter().find(|(known, _, _)| *known == name) else {
            return Err(unknown(name));
        };
        match meaning {
            Used => {
                if text.contains('\0') {
                    return Err(Error::usage(format!("{} holds a zero byte", place(known, origin))));
                }
                self.0.insert(known, Value { text, origin });
                Ok(())
            }
            Ignored => Ok(()),
            Only(allowed, _) if allowed.contains(&&*text) => Ok(()),
            Only(allowed, advice) => {
                let only = if allowed.is_empty() { "" } else { " with this value" };
                Err(Error::usage(format!("{} is not supported{only}", place(known, origin))).hint(*advice))
            }
        }
    }

    /// The value of `name`, if somebody wrote one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.text.as_str())
    }

    /// The value of `name` read by `read`; what it says is wrong comes back with the place.
    ///
    /// # Errors
    /// Usage.
    pub(super) fn parsed<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>> {
        self.get(name).map(|text| read(text).map_err(|wrong| self.wrong(name, &wrong))).transpose()
    }

    /// A usage error about the value of `name`.
    pub(super) fn wrong(&self, name: &str, wrong: &str) -> Error {
        let origin = self.0.get(name).map_or(Origin::Text, |value| value.origin);
        Error::usage(format!("{}: {wrong}", place(name, origin)))
    }
}

fn place(name: &str, origin: Origin) -> String {
    match origin {
        Origin::Key => format!("main.{name}"),
        Origin::Text => format!("parameter {name:?} of the connection string"),
        Origin::Variable(variable) => variable.to_owned(),
    }
}

fn unknown(name: &str) -> Error {
    let error = Error::usage(format!("unknown parameter {name:?} in the connection string"));
    let nearest = LIBPQ
        .iter()
        .filter(|(_, _, meaning)| matches!(meaning, Used))
        .map(|(known, _, _)| (strsim::jaro_winkler(name, known), *known))
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest {
        Some((likeness, known)) if likeness > 0.8 => error.hint(format!("perhaps {known:?} is meant")),
        _ => error.hint("leave it out, or see libpq's list of connection parameters"),
    }
}
