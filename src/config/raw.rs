//! The settings as they are written: names, types and built-in values, before anything is checked.
//!
//! These structs are the only list of keys. A key without a built-in value is an `Option`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::{Dict, Value};
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Deserialize as DeserializeDerive, Serialize, Serializer};

/// The whole file. It has no `Debug`, since URL and command may hold a password.
#[derive(Default, Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) main: Main,
    pub(super) signup: Signup,
    pub(super) tenant: Tenant,
    pub(super) spares: Spares,
    pub(super) backup: Backup,
    pub(super) drop: Drop,
    pub(super) work: Work,
    pub(super) sweep: Sweep,
    pub(super) rollout: Rollout,
    pub(super) retry: Retry,
    pub(super) http: Http,
    pub(super) log: Log,
}

impl Raw {
    /// The built-in values as figment sees them: every key, the unset ones empty.
    pub(super) fn built_in() -> Dict {
        Value::serialize(Raw::default()).ok().and_then(Value::into_dict).unwrap_or_default()
    }

    /// Every key with its table, `work.lease`, in the order of the alphabet.
    pub(super) fn keys() -> Vec<String> {
        let tables = Raw::built_in();
        let keys_of = |(table, keys): (&String, &Value)| {
            keys.as_dict()
                .map_or_else(Vec::new, |keys| keys.keys().map(|key| format!("{table}.{key}")).collect::<Vec<_>>())
        };
        tables.iter().flat_map(keys_of).collect()
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Main {
    pub(super) url: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) password_command: Option<String>,
    pub(super) sslmode: Option<String>,
    pub(super) sslrootcert: Option<String>,
    pub(super) sslcert: Option<PathBuf>,
    pub(super) sslkey: Option<PathBuf>,
    pub(super) connect_timeout: Interval,
    pub(super) migrations: Option<PathBuf>,
    pub(super) owner: Option<String>,
}

impl Default for Main {
    fn default() -> Self {
        Main {
            url: None,
            password_file: None,
            password_command: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Interval::built_in("10s"),
            migrations: None,
            owner: None,
        }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Signup {
    pub(super) table: String,
    pub(super) id_column: String,
    pub(super) when: Option<String>,
    pub(super) notify: Option<bool>,
    pub(super) poll: Interval,
    pub(super) handover: String,
    pub(super) backfill: bool,
    pub(super) on_delete: String,
}

impl Default for Signup {
    fn default() -> Self {
        Signup {
            table: "public.users".into(),
            id_column: "id".into(),
            when: None,
            notify: None,
            poll: Interval::built_in("2s"),
            handover: "daemon".into(),
            backfill: false,
            on_delete: "keep".into(),
        }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tenant {
    pub(super) isolation: String,
    pub(super) database: Option<String>,
    pub(super) shared_schemas: Vec<String>,
    pub(super) naming: String,
    pub(super) prefix: Option<String>,
    pub(super) hash: String,
    pub(super) hash_digits: u32,
    pub(super) migrations: Option<PathBuf>,
    pub(super) owner: Option<String>,
    #[serde(rename = "use")]
    pub(super) use_roles: Vec<String>,
    #[serde(rename = "connect")]
    pub(super) connect_roles: Vec<String>,
    pub(super) extensions: Vec<String>,
    pub(super) strategy: String,
    pub(super) out_of_order: bool,
    pub(super) max: u32,
    pub(super) max_per_hour: u32,
}

impl Default for Tenant {
    fn default() -> Self {
        Tenant {
            isolation: "database".into(),
            database: None,
            shared_schemas: Vec::new(),
            naming: "uuid".into(),
            prefix: None,
            hash: "md5".into(),
            hash_digits: 10,
            migrations: None,
            owner: None,
            use_roles: Vec::new(),
            connect_roles: Vec::new(),
            extensions: Vec::new(),
            strategy: "auto".into(),
            out_of_order: false,
            max: 2000,
            max_per_hour: 0,
        }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spares {
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Default for Spares {
    fn default() -> Self {
        Spares { min: 2, max: 32 }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Backup {
    pub(super) folder: Option<PathBuf>,
    pub(super) keep: Option<Interval>,
    pub(super) before_migrate: bool,
    pub(super) pg_dump: PathBuf,
}

impl Default for Backup {
    fn default() -> Self {
        Backup { folder: None, keep: None, before_migrate: false, pg_dump: "pg_dump".into() }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drop {
    pub(super) grace: Interval,
}

impl Default for Drop {
    fn default() -> Self {
        Drop { grace: Interval::built_in("7d") }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Work {
    pub(super) parallel: u32,
    pub(super) connections: u32,
    pub(super) lease: Interval,
    pub(super) shutdown: Interval,
}

impl Default for Work {
    fn default() -> Self {
        Work { parallel: 4, connections: 32, lease: Interval::built_in("30s"), shutdown: Interval::built_in("30s") }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sweep {
    pub(super) every: Interval,
    pub(super) parallel: u32,
    pub(super) verify_every: Interval,
}

impl Default for Sweep {
    fn default() -> Self {
        Sweep { every: Interval::built_in("5m"), parallel: 8, verify_every: Interval::built_in("24h") }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rollout {
    pub(super) canary: u32,
    pub(super) waves: Vec<String>,
    pub(super) max_failures: String,
}

impl Default for Rollout {
    fn default() -> Self {
        Rollout { canary: 3, waves: vec!["10%".into(), "100%".into()], max_failures: "2%".into() }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub(super) first: Interval,
    pub(super) max: Interval,
    pub(super) attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { first: Interval::built_in("1s"), max: Interval::built_in("10m"), attempts: 10 }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    pub(super) listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Http { listen: "127.0.0.1:9466".into() }
    }
}

#[derive(Serialize, DeserializeDerive)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: String,
    pub(super) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: "auto".into(), level: "info".into() }
    }
}

/// A duration together with the words it was written in, so that it can be shown again as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interval {
    text: String,
    pub(super) value: Duration,
}

impl Interval {
    fn built_in(text: &str) -> Self {
        Interval::parse(text).expect("a built-in duration is well written")
    }

    /// Reads `5m`, `1h 30m`, `250ms`, `1 day`; a day has 24 hours. The error is a sentence for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let span = SpanParser::new().parse_span(text).and_then(|span| {
            // Months and years have no fixed length and are refused here.
            span.to_duration(SpanRelativeTo::days_are_24_hours())
        });
        let unreadable = |_| format!("{text:?} is no duration: write it like \"250ms\", \"30s\", \"5m\" or \"1h 30m\"");
        let value = Duration::try_from(span.map_err(unreadable)?).map_err(|_| format!("{text:?} is negative"))?;
        Ok(Interval { text: text.to_owned(), value })
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Interval;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration in quotes, such as \"30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interval, E> {
                Interval::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("5m", 300.0), ("1h 30m", 5400.0), ("250ms", 0.25), ("24h", 86400.0), ("7 days", 604_800.0), ("0s", 0.0)]
        {
            assert!((Interval::parse(text).unwrap().value.as_secs_f64() - seconds).abs() < f64::EPSILON, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "soon", "5 minuets", "1 month", "1y", "-5s", "5s ago", "99999999999999999999s"] {
            assert!(Interval::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_key_has_a_table() {
        let keys = Raw::keys();
        assert!(keys.contains(&"tenant.use".to_owned()));
        assert!(keys.contains(&"main.url".to_owned()), "unset keys count too");
        assert!(keys.iter().all(|key| key.split('.').count() == 2));
    }
}
