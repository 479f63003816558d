//! What went wrong, in words an operator can act on.
//!
//! One type for the whole crate. Each level says what was being done to what (`create database "x"`); the cause follows through
//! `source()`; [`Kind`] decides what happens next, never the text. The type knows no driver: `pg::sqlstate` translates.

use std::error::Error as StdError;
use std::fmt;

/// What happened, as far as anything depends on it. The word of each kind stands in the registry (`error_kind`), logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No connection, or it broke: SQLSTATE classes 08 and 57P, a name that does not resolve, a timeout of our own.
    Unreachable,
    /// The server takes no writes (25006): a standby, or the old primary after a failover.
    ReadOnly,
    /// Every connection slot is taken (53300).
    TooManyConnections,
    /// The server's disk is full (53100).
    DiskFull,
    /// Another shortage on the server (class 53).
    Shortage,
    /// The server refused the login (class 28), or the password could not be had.
    Login,
    /// TLS was refused, or the certificate did not pass.
    Tls,
    /// A right is missing (42501) for something that is not a migration's own SQL.
    Rights,
    /// A lock of ours was not had in time, outside a migration.
    Locked,
    /// The registry is damaged, unreadable, or belongs to another database.
    Registry,
    /// The registry was written by a newer, incompatible tenantd.
    RegistryNewer,
    /// SQL of a tenant migration failed.
    Migration,
    /// A tenant migration did not get a lock in time (55P03, 40P01, 40001).
    MigrationLocked,
    /// A migration of the tenant broke the connection time and again: it may be what brings the server down.
    Breaks,
    /// Somebody is connected where nobody may be (55006).
    InUse,
    /// The key cannot name a tenant, or its name is taken by another key.
    BadKey,
    /// A database of the tenant's name exists and is not ours.
    Conflict,
    /// An applied migration's file changed or vanished, or versions stand out of order.
    Drift,
    /// The tenant has migrations that this daemon does not carry.
    Newer,
    /// The database of a tenant that was ready is gone.
    Missing,
    /// Another database stands under the name of a tenant that was ready.
    Replaced,
    /// The server refuses this tenant's database alone: its CONNECTION LIMIT, its owner, a line of `pg_hba.conf`.
    Refused,
    /// `tenant.max` or `tenant.max_per_hour` is reached: no database may be made now.
    Braked,
    /// No template serves, or the one that did cannot be cloned just now.
    Template,
    /// The lease was lost: somebody else works on the tenant, or did.
    LeaseLost,
    /// Wrong use, or a setting that cannot be.
    Usage,
    /// A failure that no other kind describes.
    Other,
}

/// What the failure calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing of one tenant: the daemon waits as a whole, and no tenant's failures are counted.
    Server,
    /// Tried again soon: a lock, a connection in the way.
    Soon,
    /// Tried again with growing delays, then parked.
    Later,
    /// Parked at once: only a person, or a new migration set, changes anything.
    Park,
    /// Nothing is recorded: the tenant is somebody else's, newer than we are, or has to wait for room or a template.
    Leave,
}

impl Kind {
    /// Every kind, for tests and for reading the registry.
    pub const ALL: [Kind; 27] = [
        Kind::Unreachable,
        Kind::ReadOnly,
        Kind::TooManyConnections,
        Kind::DiskFull,
        Kind::Shortage,
        Kind::Login,
        Kind::Tls,
        Kind::Rights,
        Kind::Locked,
        Kind::Registry,
        Kind::RegistryNewer,
        Kind::Migration,
        Kind::MigrationLocked,
        Kind::Breaks,
        Kind::InUse,
        Kind::BadKey,
        Kind::Conflict,
        Kind::Drift,
        Kind::Newer,
        Kind::Missing,
        Kind::Replaced,
        Kind::Refused,
        Kind::Braked,
        Kind::Template,
        Kind::LeaseLost,
        Kind::Usage,
        Kind::Other,
    ];

    /// The word for it in the registry, logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::ReadOnly => "read_only",
            Kind::TooManyConnections => "too_many_connections",
            Kind::DiskFull => "disk_full",
            Kind::Shortage => "shortage",
            Kind::Login => "login",
            Kind::Tls => "tls",
            Kind::Rights => "rights",
            Kind::Locked => "locked",
            Kind::Registry => "registry",
            Kind::RegistryNewer => "registry_newer",
            Kind::Migration => "migration",
            Kind::MigrationLocked => "migration_locked",
            Kind::Breaks => "breaks",
            Kind::InUse => "in_use",
            Kind::BadKey => "bad_key",
            Kind::Conflict => "conflict",
            Kind::Drift => "drift",
            Kind::Newer => "newer",
            Kind::Missing => "missing",
            Kind::Replaced => "replaced",
            Kind::Refused => "refused",
            Kind::Braked => "braked",
            Kind::Template => "template",
            Kind::LeaseLost => "lease_lost",
            Kind::Usage => "usage",
            Kind::Other => "other",
        }
    }

    /// Whether it says that the server cannot be worked with just now, and nothing about what is on it.
    #[must_use]
    pub fn is_out_of_reach(self) -> bool {
        matches!(self, Kind::Unreachable | Kind::ReadOnly | Kind::Login | Kind::Tls | Kind::TooManyConnections)
    }

    /// What the kind calls for. DESIGN's rule: what fails because of the server counts against no tenant.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Kind::Unreachable
            | Kind::ReadOnly
            | Kind::TooManyConnections
            | Kind::DiskFull
            | Kind::Shortage
            | Kind::Login
            | Kind::Tls
            | Kind::Rights
            | Kind::Locked
            | Kind::Registry
            | Kind::RegistryNewer => Class::Server,
            Kind::MigrationLocked | Kind::InUse => Class::Soon,
            Kind::Migration | Kind::Refused | Kind::Other | Kind::Usage => Class::Later,
            Kind::BadKey | Kind::Conflict | Kind::Drift | Kind::Missing | Kind::Replaced | Kind::Breaks => Class::Park,
            Kind::LeaseLost | Kind::Newer | Kind::Braked | Kind::Template => Class::Leave,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A failure: what was being done, its kind, why, and what to do.
///
/// `Display` prints this level alone; [`Error::chain`] prints all levels in one line.
#[derive(Debug)]
pub struct Error {
    // Boxed, so that a Result stays small.
    message: Box<str>,
    kind: Kind,
    sqlstate: Option<Box<str>>,
    hint: Option<Box<str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure without a deeper cause. `message` says what was found, or what was being done to what.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { message: message.into().into(), kind, sqlstate: None, hint: None, source: None }
    }

    /// Wrong use or a wrong setting: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Kind::Usage, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what to do about it: one full sentence. An earlier hint, nearer to the cause, is kept.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into().into());
        self
    }

    /// Adds the server's SQLSTATE.
    #[must_use]
    pub fn sqlstate(mut self, code: impl Into<String>) -> Self {
        self.sqlstate = Some(code.into().into());
        self
    }

    /// The same failure seen from one level up: `doing` is what was being done to what. Kind, SQLSTATE and hint stay.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        Error {
            message: doing.into().into(),
            kind: self.kind,
            sqlstate: self.sqlstate.clone(),
            hint: self.hint.clone(),
            source: Some(Box::new(self)),
        }
    }

    /// The same failure as another kind, where the place decides what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it calls for.
    #[must_use]
    pub fn class(&self) -> Class {
        self.kind.class()
    }

    /// The server's SQLSTATE, when the server said something.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// All levels in one line, joined by `: `, the outermost first.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// The chain, and on a line of its own what to do, where that is known: as the registry keeps it.
    #[must_use]
    pub fn with_advice(&self) -> String {
        match self.advice() {
            Some(advice) => format!("{}\nhint: {advice}", self.chain()),
            None => self.chain(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_level_once() {
        let error = Error::new(Kind::Rights, "permission denied to create database")
            .sqlstate("42501")
            .hint("alter role tenantd createdb")
            .context("create database \"tenant_x\"")
            .context("provision tenant x");
        assert_eq!(
            error.chain(),
            "provision tenant x: create database \"tenant_x\": permission denied to create database"
        );
        assert_eq!(error.code(), Some("42501"));
        assert_eq!(error.advice(), Some("alter role tenantd createdb"));
        assert_eq!(error.kind(), Kind::Rights);
    }

    #[test]
    fn the_hint_nearest_to_the_cause_wins() {
        let error = Error::new(Kind::Login, "a").hint("near").context("b").hint("far");
        assert_eq!(error.advice(), Some("near"));
    }

    #[test]
    fn words_are_unique() {
        let words: std::collections::HashSet<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
    }
}
