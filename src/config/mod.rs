//! The settings as they are meant: checked, with every default filled in.
//!
//! What may be written where, and with which default, stands in `config/default.toml`.

mod check;
pub mod connection;
mod layers;
mod load;
mod names;
mod problem;
mod raw;
mod rollout;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tenant::words;

pub use connection::Connection;
pub use load::{Loaded, Setting, load};
pub use rollout::{Rollout, Share};
pub use sources::{DEFAULT_FILE, Environment, Sources, host_name, secret_variables, user_name};

use crate::naming::Names;

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[main]`: the main database and how to reach it.
    pub main: Connection,
    /// `[main]`: the application's own schema in it.
    pub main_schema: MainSchema,
    /// `[signup]`
    pub signup: Signup,
    /// `[tenant]`
    pub tenant: Tenant,
    /// `[spares]`
    pub spares: Spares,
    /// `[backup]`
    pub backup: Backup,
    /// `[drop]`
    pub drop: Drop,
    /// `[work]`
    pub work: Work,
    /// `[sweep]`
    pub sweep: Sweep,
    /// `[rollout]`
    pub rollout: Rollout,
    /// `[retry]`
    pub retry: Retry,
    /// `[http]`: where to listen; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// `[log]`
    pub log: Log,
}

/// `[main]`: the application's own schema in the main database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainSchema {
    /// The folder of its migrations; `None`: tenantd does not migrate it.
    pub migrations: Option<PathBuf>,
    /// The role that its migrations run as; `None`: tenantd's own.
    pub owner: Option<String>,
}

/// `[signup]`: the application's table and how its inserts are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signup {
    /// Schema of the signup table.
    pub schema: String,
    /// Name of the signup table, without its schema.
    pub table: String,
    /// The column whose value, as text, is the tenant's key.
    pub id_column: String,
    /// The condition, as SQL over the table's columns, under which a row counts as a signup; `None`: each does. Nobody has parsed it.
    pub when: Option<String>,
    /// Whether signups may ring; `None`: decided from the server's `max_prepared_transactions`.
    pub notify: Option<bool>,
    /// The slow poll that is always on.
    pub poll: Duration,
    /// Who gives a new tenant its spare.
    pub handover: Handover,
    /// Whether users from before the installation are made due.
    pub backfill: bool,
    /// What becomes of a tenant whose user is deleted.
    pub on_delete: OnDelete,
}

/// What becomes of a tenant whose user is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDelete {
    /// It stays as it is.
    Keep,
    /// It is dropped, with its time of grace.
    Drop,
}

/// Who gives a new tenant its spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The daemon, after the signup's commit.
    Daemon,
    /// The trigger, in the signup's own transaction.
    Commit,
}

/// `[tenant]`: what a tenant's database is, or its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// How tenants are kept apart.
    pub isolation: Isolation,
    /// The database that the tenants' schemas are in; `None`: the main one.
    pub database: Option<String>,
    /// The schemas that every tenant sees behind its own, where each has a schema.
    pub shared_schemas: Vec<String>,
    /// How new tenants are named.
    pub names: Names,
    /// The folder of the tenant migrations; `None`: the embedded ones.
    pub migrations: Option<PathBuf>,
    /// The role that owns every tenant; `None`: tenantd's own.
    pub owner: Option<String>,
    /// Roles that work in the tenants.
    pub use_roles: Vec<String>,
    /// Roles that may connect to the tenants, and no more.
    pub connect_roles: Vec<String>,
    /// Extensions that every tenant has, made once in the template.
    pub extensions: Vec<String>,
    /// How the template is copied.
    pub strategy: Strategy,
    /// Whether a version below a tenant's newest is applied.
    pub out_of_order: bool,
    /// The most tenants on one server.
    pub max: u32,
    /// The most tenants made in an hour; 0 for no such limit.
    pub max_per_hour: u32,
}

/// How tenants are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A database for each.
    Database,
    /// A schema for each, in the main database.
    Schema,
}

words!(Isolation { Database => "database", Schema => "schema" });

/// How CREATE DATABASE copies a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// By the log where the server does that well and the template is small, else as files.
    Auto,
    /// Every block through the server's log: no checkpoint, more to write.
    WalLog,
    /// As files, between two checkpoints.
    FileCopy,
}

/// `[spares]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spares {
    /// So many are always wanted.
    pub min: u32,
    /// Never more, however many signups come; 0: none at all.
    pub max: u32,
}

/// `[backup]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Where backups are written; `None`: nowhere, and what needs one says so.
    pub folder: Option<PathBuf>,
    /// How long they are kept; `None`: for ever.
    pub keep: Option<Duration>,
    /// Whether a tenant that is there is backed up before migrations run in it.
    pub before_migrate: bool,
    /// The program that writes them, by its path or by its name in `PATH`.
    pub pg_dump: PathBuf,
}

/// `[drop]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drop {
    /// How long a tenant that was dropped can be taken back.
    pub grace: Duration,
}

/// `[work]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Tenants made or mended at the same time by signups and retries.
    pub parallel: usize,
    /// The most connections to the server, all together.
    pub connections: usize,
    /// How long a claim lasts without renewal.
    pub lease: Duration,
    /// How long a stop waits for the work in hand.
    pub shutdown: Duration,
}

/// How `work.connections` is shared out, once and for all: parts that cannot take from each other cannot wait for each other either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections to the main database, those of the pool among them.
    pub main: usize,
    /// Connections in the pool.
    pub pool: usize,
    /// Connections to tenants' databases.
    pub tenants: usize,
}

/// Connections to the main database that are not of the pool: the doorbell's three, one for notices, and one for a look at the
/// installation, or to see whether the server lets anybody in.
const APART: usize = 5;

/// Connections of the pool besides one for each lane: for the intake, the keeper of spares, a sweep's own questions, metrics.
const BESIDES_LANES: usize = 4;

impl Config {
    /// How the connections are shared out. The pool gets one for each lane and a few more, but no more than half of what is left; tenants
    /// get the rest, and lanes without one wait.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let left = self.work.connections.saturating_sub(APART);
        let pool = (self.work.parallel + self.sweep.parallel + BESIDES_LANES).min(left / 2);
        Bounds { main: APART + pool, pool, tenants: left - pool }
    }
}

/// `[sweep]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// Time between two sweeps of the daemon.
    pub every: Duration,
    /// Tenants reconciled at the same time by a sweep.
    pub parallel: usize,
    /// Each tenant is looked at from within at least this often.
    pub verify_every: Duration,
}

/// `[retry]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
    /// Failures in a row after which a tenant is parked.
    pub attempts: u32,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How lines are written.
    pub format: LogFormat,
    /// What is written: a level, or directives as `tracing` takes them.
    pub level: String,
}

/// How log lines are written to stderr or the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal's fields under systemd, text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
    /// The journal's own fields.
    Journald,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use figment::value::{Dict, Value};

    use super::raw::Raw;
    use super::*;

    const DEFAULT: &str = include_str!("../../config/default.toml");
    const PRODUCTION: &str = include_str!("../../config/production.example.toml");

    fn keys_of(text: &str) -> BTreeSet<String> {
        let tables: toml::Table = text.parse().unwrap();
        let keys = |(table, keys): (&String, &toml::Value)| {
            keys.as_table().unwrap().keys().map(|key| format!("{table}.{key}")).collect::<Vec<_>>()
        };
        tables.iter().flat_map(keys).collect()
    }

    /// The examples switched on: `# key = value` becomes `key = value`.
    fn with_examples(text: &str) -> String {
        let example = |line: &str| {
            let (key, _) = line.strip_prefix("# ")?.split_once(" = ")?;
            key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then(|| line[2..].to_owned())
        };
        text.lines().map(|line| example(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
    }

    fn read(text: &str) -> Raw {
        let values: Dict = toml::from_str(text).unwrap();
        Value::from(values).deserialize().unwrap()
    }

    #[test]
    fn the_documented_keys_are_those_of_the_code() {
        assert_eq!(keys_of(&with_examples(DEFAULT)), Raw::keys().into_iter().collect());
        // Unknown keys and wrong types would be refused here, in the examples too.
        read(&with_examples(DEFAULT));
    }

    #[test]
    fn the_documented_values_are_those_of_the_code() {
        let set = |(table, keys): (String, Value)| {
            let keys = keys.into_dict().unwrap().into_iter().filter(|(_, value)| value.to_empty().is_none());
            keys.map(|(key, _)| format!("{table}.{key}")).collect::<Vec<_>>()
        };
        let set: BTreeSet<String> = Raw::built_in().into_iter().flat_map(set).collect();
        assert_eq!(keys_of(DEFAULT), set, "what has a value stands uncommented, what has none as an example");
        assert_eq!(Value::serialize(read(DEFAULT)).unwrap(), Value::from(Raw::built_in()));
    }

    #[test]
    fn every_documented_key_has_words_before_it() {
        let lines: Vec<String> = with_examples(DEFAULT).lines().map(str::to_owned).collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && line.contains('='))
        {
            let above = &lines[number - 1];
            assert!(above.starts_with("# ") || above.starts_with("sslcert"), "{line}");
        }
    }

    #[test]
    fn connections_are_shared_out_whole() {
        let bounds = |connections: &str, parallel: &str| {
            let mut sources = Sources::of([("PGHOST", "localhost"), ("PGUSER", "tenantd"), ("PGDATABASE", "app")]);
            sources.flags.insert("work.connections".to_owned(), connections.to_owned());
            sources.flags.insert("sweep.parallel".to_owned(), parallel.to_owned());
            load(&sources).map(|loaded| loaded.config.bounds())
        };
        let table =
            [("10", "8", 2, 3), ("11", "8", 3, 3), ("32", "8", 13, 14), ("100", "8", 16, 79), ("100", "80", 47, 48)];
        for (connections, parallel, pool, tenants) in table {
            let bounds = bounds(connections, parallel).unwrap();
            assert_eq!((bounds.pool, bounds.tenants, bounds.main), (pool, tenants, pool + APART), "{connections}");
            assert_eq!((bounds.main + bounds.tenants).to_string(), connections);
        }
        assert!(bounds("9", "8").is_err());
    }

    #[test]
    fn the_examples_can_be_loaded() {
        for (name, text) in [("default", DEFAULT), ("production", PRODUCTION)] {
            let folder = tempfile::tempdir().unwrap();
            let mut sources = Sources::of([("PGHOST", "localhost"), ("PGUSER", "tenantd"), ("PGDATABASE", "app")]);
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            sources.file = Some(path);
            let config = load(&sources).unwrap().config;
            assert_eq!(config.signup.table, "users");
        }
    }
}
