//! Databases as a whole: looking, making, dropping. What cannot be undone is only ever sent for a random name.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{Doing, quote};
use crate::error::{Error, Kind, Result};
use crate::plan::Database;
use crate::tenant::SPARE_PREFIX;

/// CREATE DATABASE waits for whoever is in the template, and for the disk; more than this is no waiting any more.
const CREATE_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a connection of ours may take to vanish from a database that is about to be renamed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the database `name` from outside: `ours` if its comment is `marker`. `None` when there is none.
///
/// # Errors
/// The server cannot be asked.
pub async fn look(client: &Client, name: &str, marker: &str) -> Result<Option<Database>> {
    let doing = || format!("look for the database {name:?}");
    let row = client
        .query_typed_opt(
            "select d.oid, pg_get_userbyid(d.datdba)::text as owner, d.datconnlimit <> -2 as valid, d.datallowconn as open,
                    has_database_privilege('public', d.oid, 'connect') as public,
                    coalesce(shobj_description(d.oid, 'pg_database') = $2, false) as ours
             from pg_database d where d.datname = $1",
            &[(&name, Type::TEXT), (&marker, Type::TEXT)],
        )
        .await
        .doing(doing)?;
    let read = |row: &tokio_postgres::Row| -> std::result::Result<Database, tokio_postgres::Error> {
        Ok(Database {
            oid: row.try_get("oid")?,
            owner: row.try_get("owner")?,
            ours: row.try_get("ours")?,
            valid: row.try_get("valid")?,
            open: row.try_get("open")?,
            public: row.try_get("public")?,
            applied: None,
        })
    };
    row.as_ref().map(read).transpose().doing(doing)
}

/// Makes the empty database `name` from template0 (template1 holds local junk and is often in use), closed to connections.
///
/// # Errors
/// [`Kind::Rights`] without CREATEDB; [`Kind::DiskFull`]; [`Kind::InUse`] when the template was in use for too long.
pub async fn create_database(client: &Client, name: &str, owner: &str) -> Result<()> {
    let create = format!(
        "create database {} owner {} template template0 allow_connections false",
        quote::identifier(name),
        quote::identifier(owner)
    );
    let limit = format!("set statement_timeout = {}", CREATE_TIMEOUT.as_millis());
    // Sent one behind the other without waiting: CREATE DATABASE must be a message of its own.
    let (limited, created, unlimited) = tokio::join!(
        client.batch_execute(&limit),
        client.batch_execute(&create),
        client.batch_execute("set statement_timeout to default")
    );
    limited.and(created).and(unlimited).doing(|| format!("create database {name:?}")).map_err(|error| {
        match error.kind() {
            Kind::Rights => {
                error.hint("as an administrator: alter role … createdb, and make it a member of tenant.owner")
            }
            _ => error,
        }
    })
}

/// Drops the database `name` with whoever is in it, if it is there. Only ever called for a random name.
///
/// # Errors
/// [`Kind::InUse`] when a prepared transaction or a replication slot holds it.
pub async fn drop_database(client: &Client, name: &str) -> Result<()> {
    if !name.starts_with(SPARE_PREFIX) {
        return Err(Error::new(Kind::Registry, format!("{name:?} is no random name of ours: it is not dropped"))
            .hint("somebody wrote a row into tenantd.spare: delete it"));
    }
    client
        .batch_execute(&format!("drop database if exists {} with (force)", quote::identifier(name)))
        .await
        .doing(|| format!("drop database {name:?}"))
        .map_err(|error: Error| match error.kind() {
            Kind::InUse => error.hint("a prepared transaction or a replication slot in it must end first"),
            _ => error,
        })
}

/// Waits until nobody is connected to the database `name`, which is closed to connections.
///
/// RENAME looks for other sessions once and then sleeps a tenth of a second: waiting here until ours is gone is quicker.
///
/// # Errors
/// [`Kind::InUse`] when somebody stays.
pub async fn wait_until_empty(client: &Client, name: &str) -> Result<()> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    loop {
        let there = client
            .query_typed_opt("select from pg_stat_activity where datname = $1 limit 1", &[(&name, Type::TEXT)])
            .await
            .doing(|| format!("look for sessions in database {name:?}"))?;
        if there.is_none() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                Kind::InUse,
                format!("somebody is connected to the database {name:?} in the making"),
            )
            .hint("a monitoring agent that connects to every database? exclude names that begin with tenantd_spare_"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
