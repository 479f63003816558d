//! The settings as they are meant: checked, with every default filled in.
//!
//! What may be written where, and with which default, stands in `config/default.toml`.

pub mod connection;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use connection::Connection;

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[main]`: the main database and how to reach it.
    pub main: Connection,
    /// `[signup]`
    pub signup: Signup,
    /// `[tenant]`
    pub tenant: Tenant,
    /// `[work]`
    pub work: Work,
    /// `[sweep]`
    pub sweep: Sweep,
    /// `[retry]`
    pub retry: Retry,
    /// `[http]`: where to listen; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// `[log]`
    pub log: Log,
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
    /// Whether signups may ring; `None`: decided from the server's `max_prepared_transactions`.
    pub notify: Option<bool>,
    /// The slow poll that is always on.
    pub poll: Duration,
    /// Whether users from before the installation are made due.
    pub backfill: bool,
}

/// `[tenant]`: what a tenant's database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Begins the name of every tenant's database.
    pub prefix: String,
    /// The folder of the tenant migrations; `None`: the embedded ones.
    pub migrations: Option<PathBuf>,
    /// The role that owns every tenant; `None`: tenantd's own.
    pub owner: Option<String>,
    /// Roles that work in the tenants.
    pub use_roles: Vec<String>,
    /// Roles that may connect to the tenants, and no more.
    pub connect_roles: Vec<String>,
    /// Whether a version below a tenant's newest is applied.
    pub out_of_order: bool,
    /// The most tenants on one server.
    pub max: u32,
    /// The most tenants made in an hour; 0 for no such limit.
    pub max_per_hour: u32,
}

/// `[work]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Tenants made or mended at the same time by signups and retries.
    pub parallel: usize,
    /// How long a claim lasts without renewal.
    pub lease: Duration,
    /// How long a stop waits for the work in hand.
    pub shutdown: Duration,
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
