//! Databases as a whole: looking, making, dropping. What cannot be undone is only ever sent for a random name.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::{Doing, quote};
use crate::config::Strategy;
use crate::error::{Error, Kind, Result};
use crate::tenant::{DROPPED_PREFIX, SPARE_PREFIX, TEMPLATE_PREFIX};

/// CREATE DATABASE waits for whoever is in the template, and for the disk; more than this is no waiting any more. A large template gets more.
const CREATE_TIMEOUT: Duration = Duration::from_mins(1);

/// What even a slow disk copies in a second.
const BYTES_A_SECOND: i64 = 10_000_000;

/// From this size on a copy of the files costs the server less than writing every block to its log.
const LARGE: i64 = 256 * 1024 * 1024;

/// What templates are made of: the server's own.
const SERVERS_OWN: &str = "template0";

/// What to do where it cannot be copied: its collations are of another version than the machine's, which are new.
const REFRESH: &str = "as an administrator: alter database template0 refresh collation version (it holds no data); tenantd doctor names the other databases";

/// The first server that copies by its log without known faults: before, a template that had changed was copied wrong, and a base backup
/// taken meanwhile could not be restored.
const SOUND_WAL_LOG: i32 = 150_006;

/// Whether the database `name` has a CONNECTION LIMIT and as many sessions: false where it has none, or is gone.
///
/// # Errors
/// The server cannot be asked.
pub async fn is_full(client: &Client, name: &str) -> Result<bool> {
    let doing = || format!("count the sessions in the database {name:?}");
    let row = client
        .query_typed_opt(
            "select datconnlimit >= 0 and pg_stat_get_db_numbackends(oid) >= datconnlimit as \"full\" from pg_database where datname = $1",
            &[(&name, Type::TEXT)],
        )
        .await
        .doing(doing)?;
    row.map_or(Ok(false), |row| row.try_get("full")).doing(doing)
}

/// A database to be made.
#[derive(Debug, Clone, Copy)]
pub struct Create<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its owner.
    pub owner: &'a str,
    /// The database that it is a copy of.
    pub template: &'a str,
    /// The size of that in bytes.
    pub bytes: i64,
    /// How it is copied.
    pub strategy: Strategy,
    /// The server's version as a number: 150018 for 15.18.
    pub server_version: i32,
}

impl Create<'_> {
    /// What making it may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        CREATE_TIMEOUT + Duration::from_secs(u64::try_from(self.bytes / BYTES_A_SECOND).unwrap_or(0))
    }

    fn sql(&self) -> String {
        format!(
            "create database {} owner {} template {} allow_connections false{}",
            quote::identifier(self.name),
            quote::identifier(self.owner),
            quote::identifier(self.template),
            self.strategy()
        )
    }

    /// Servers before 15 know one way only, the copy of files.
    fn strategy(&self) -> &'static str {
        let by_log = match self.strategy {
            Strategy::WalLog => true,
            Strategy::FileCopy => false,
            Strategy::Auto => self.server_version >= SOUND_WAL_LOG && self.bytes < LARGE,
        };
        match self.server_version {
            ..150_000 => "",
            _ if by_log => " strategy wal_log",
            _ => " strategy file_copy",
        }
    }
}

/// Makes a database, closed to connections and shut to PUBLIC, and runs `then` on it from outside.
///
/// All is sent at once, so that the answers come in one round trip more than the copy takes.
///
/// # Errors
/// [`Kind::Rights`] without CREATEDB; [`Kind::DiskFull`]; [`Kind::Template`] when somebody is in the template, or it cannot be copied.
pub async fn create_database(client: &Client, create: &Create<'_>, then: &str) -> Result<()> {
    let limit = format!("set statement_timeout = {}", create.patience().as_millis());
    let sql = create.sql();
    let shut = format!("revoke connect, temporary on database {} from public; {then}", quote::identifier(create.name));
    // CREATE DATABASE must be a message of its own. What follows a message that failed fails too, and does nothing.
    let (limited, created, unlimited, shut) = tokio::join!(
        client.batch_execute(&limit),
        client.batch_execute(&sql),
        client.batch_execute("set statement_timeout to default"),
        client.batch_execute(&shut),
    );
    limited.and(created).doing(|| format!("create database {:?}", create.name)).map_err(|error| {
        let of_template = matches!(error.code(), Some("55006" | "3D000" | "XX000" | "57014"));
        match error.kind() {
            Kind::Rights => {
                error.hint("as an administrator: alter role … createdb, and make it a member of tenant.owner")
            }
            _ if of_template => {
                let servers_own = create.template == SERVERS_OWN && error.code() == Some("XX000");
                let error =
                    error.with_kind(Kind::Template).context(format!("clone the template {:?}", create.template));
                if servers_own { error.hint(REFRESH) } else { error }
            }
            _ => error,
        }
    })?;
    unlimited.and(shut).doing(|| format!("shut PUBLIC out of database {:?}", create.name))
}

/// The statement that opens the database `name` to connections, or closes it.
#[must_use]
pub fn open(name: &str, open: bool) -> String {
    format!("alter database {} with allow_connections {open};", quote::identifier(name))
}

/// Drops the database `name` with whoever is in it, if it is there. Only ever called for a random name.
///
/// # Errors
/// [`Kind::InUse`] when a prepared transaction or a replication slot holds it; [`Kind::Rights`] when somebody is in it whom our role may not end.
pub async fn drop_database(client: &Client, name: &str) -> Result<()> {
    if ![SPARE_PREFIX, TEMPLATE_PREFIX, DROPPED_PREFIX].iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Error::new(Kind::Registry, format!("{name:?} is no random name of ours: it is not dropped"))
            .hint("somebody wrote a row into tenantd.spare, tenantd.template or tenantd.dropped: delete it"));
    }
    let drop = format!("drop database if exists {}", quote::identifier(name));
    let by_force = format!("{drop} with (force)");
    let mut dropped = client.batch_execute(&by_force).await;
    // FORCE ends autovacuum's workers as it ends a role's sessions, and only a superuser may end theirs. Without FORCE the server ends them by
    // itself, and waits a few seconds for what it does not: with that nobody else is left but those whom FORCE is for.
    if dropped.as_ref().is_err_and(|error| error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)) {
        dropped = client.batch_execute(&drop).await;
        if dropped.as_ref().is_err_and(|error| error.code() == Some(&SqlState::OBJECT_IN_USE)) {
            dropped = client.batch_execute(&by_force).await;
        }
    }
    dropped.doing(|| format!("drop database {name:?}")).map_err(|error: Error| match error.kind() {
        Kind::InUse => error.hint("a prepared transaction or a replication slot in it must end first"),
        Kind::Rights => error.hint(format!(
            "tenantd's role must be a member of its owner, and whoever is in it and not ours to end must end first: \
             select pid, usename from pg_stat_activity where datname = {}",
            quote::literal(name)
        )),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strategy_follows_version_and_size() {
        let create = |strategy, server_version, bytes| Create {
            name: "a",
            owner: "b",
            template: "c",
            bytes,
            strategy,
            server_version,
        };
        for (strategy, version, bytes, clause) in [
            (Strategy::Auto, 140_012, 1, ""),
            (Strategy::Auto, 150_002, 1, " strategy file_copy"),
            (Strategy::Auto, 150_005, 1, " strategy file_copy"),
            (Strategy::Auto, 150_006, 1, " strategy wal_log"),
            (Strategy::Auto, 170_001, 7_500_000, " strategy wal_log"),
            (Strategy::Auto, 170_001, LARGE, " strategy file_copy"),
            (Strategy::WalLog, 150_002, LARGE, " strategy wal_log"),
            (Strategy::WalLog, 140_012, 1, ""),
            (Strategy::FileCopy, 170_001, 1, " strategy file_copy"),
        ] {
            assert_eq!(create(strategy, version, bytes).strategy(), clause, "{strategy:?} {version} {bytes}");
        }
        let sql = create(Strategy::Auto, 150_018, 1).sql();
        assert_eq!(sql, "create database \"a\" owner \"b\" template \"c\" allow_connections false strategy wal_log");
    }

    #[test]
    fn a_large_template_gets_more_time() {
        let create = Create {
            name: "a",
            owner: "b",
            template: "c",
            bytes: 10_000_000_000,
            strategy: Strategy::Auto,
            server_version: 150_018,
        };
        assert_eq!(create.patience(), Duration::from_secs(60 + 1000));
        assert_eq!(Create { bytes: 0, ..create }.patience(), Duration::from_mins(1));
    }
}
