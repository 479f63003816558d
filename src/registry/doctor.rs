//! What `tenantd doctor` asks the main database's server. It needs no registry, and changes nothing.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Client;

use super::field;
use crate::error::Result;
use crate::pg::Doing;

/// What the server says of itself and of the session that asks.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The role that logged in.
    pub me: String,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Whether the session came in through a socket.
    pub by_socket: bool,
    /// The TLS protocol and cipher; `None`: not encrypted.
    pub tls: Option<String>,
    /// The server's version as a number: 150018 for 15.18.
    pub version: i32,
    /// The same as the server writes it.
    pub version_text: String,
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether transactions only read unless they say otherwise.
    pub read_only: bool,
    /// `wal_level`
    pub wal_level: String,
    /// The standbys that each commit waits for; empty: none.
    pub synchronous_standbys: String,
    /// `max_prepared_transactions`
    pub prepared_transactions: i32,
    /// How full the queue of notifications is, from 0 to 1.
    pub queue: f64,
    /// `autovacuum`
    pub autovacuum: bool,
    /// The time in which autovacuum means to come to each database once.
    pub naptime: Duration,
    /// How many databases there are, templates included.
    pub databases: i64,
    /// Dead and live rows of the catalogue of databases.
    pub catalogue_rows: (i64, i64),
    /// Where the data are, if we may know.
    pub data_directory: Option<String>,
    /// The connections that ordinary roles may have, all together.
    pub connections: i64,
    /// Those that are in use by others than tenantd.
    pub connections_used: i64,
    /// The fewest that our role, or the main database, may have; `None`: no limit of their own.
    pub connections_limit: Option<i64>,
    /// The server's clock.
    pub clock: Timestamp,
}

/// A database whose collations are of another version than the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collation {
    /// The database.
    pub database: String,
    /// The version that it was made with.
    pub recorded: String,
    /// The version that the server has.
    pub actual: String,
}

const FACTS: &str = "
select current_user::text as me, (select rolsuper from pg_roles where rolname = current_user) as superuser,
       inet_server_addr() is null as by_socket,
       (select concat_ws(', ', s.version, s.cipher) from pg_stat_ssl s where s.pid = pg_backend_pid() and s.ssl) as tls,
       current_setting('server_version_num')::int as version, current_setting('server_version') as version_text,
       pg_is_in_recovery() as standby, current_setting('default_transaction_read_only')::bool as read_only,
       current_setting('wal_level') as wal_level, current_setting('synchronous_standby_names') as synchronous_standbys,
       current_setting('max_prepared_transactions')::int as prepared_transactions, pg_notification_queue_usage() as queue,
       current_setting('autovacuum')::bool as autovacuum,
       (select setting::float8 from pg_settings where name = 'autovacuum_naptime') as naptime,
       (select count(*) from pg_database) as databases,
       coalesce((select n_dead_tup from pg_stat_all_tables where relid = 'pg_database'::regclass), 0) as dead,
       coalesce((select n_live_tup from pg_stat_all_tables where relid = 'pg_database'::regclass), 0) as live,
       (select setting from pg_settings where name = 'data_directory') as data_directory,
       current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
           - coalesce(current_setting('reserved_connections', true)::int8, 0) as connections,
       (select count(*) from pg_stat_activity
        where datid is not null and usesysid is not null
          and not (usename = current_user and application_name like 'tenantd:%')) as connections_used,
       (select min(own)::int8 from (select rolconnlimit from pg_roles where rolname = current_user
                                    union all select datconnlimit from pg_database where datname = current_database()) l (own)
        where own >= 0) as connections_limit,
       clock_timestamp() as clock";

/// Servers before 15 keep no version.
const COLLATIONS: &str = "
select datname::text as database, datcollversion as recorded, pg_database_collation_actual_version(oid) as actual
from pg_database where datcollversion <> pg_database_collation_actual_version(oid) and datconnlimit <> -2 order by 1";

/// Asks for everything at once.
///
/// # Errors
/// The server did not answer.
pub async fn facts(client: &Client) -> Result<Facts> {
    let row = client.query_typed_one(FACTS, &[]).await.doing(|| "ask the server about itself".to_owned())?;
    Ok(Facts {
        me: field(&row, "me")?,
        superuser: field(&row, "superuser")?,
        by_socket: field(&row, "by_socket")?,
        tls: field(&row, "tls")?,
        version: field(&row, "version")?,
        version_text: field(&row, "version_text")?,
        standby: field(&row, "standby")?,
        read_only: field(&row, "read_only")?,
        wal_level: field(&row, "wal_level")?,
        synchronous_standbys: field(&row, "synchronous_standbys")?,
        prepared_transactions: field(&row, "prepared_transactions")?,
        queue: field(&row, "queue")?,
        autovacuum: field(&row, "autovacuum")?,
        naptime: Duration::from_secs_f64(field::<f64>(&row, "naptime")?.max(0.0)),
        databases: field(&row, "databases")?,
        catalogue_rows: (field(&row, "dead")?, field(&row, "live")?),
        data_directory: field(&row, "data_directory")?,
        connections: field(&row, "connections")?,
        connections_used: field(&row, "connections_used")?,
        connections_limit: field(&row, "connections_limit")?,
        clock: field(&row, "clock")?,
    })
}

/// The databases whose collations are of another version than the server's. For servers from 15 on.
///
/// # Errors
/// The server did not answer.
pub async fn collations(client: &Client) -> Result<Vec<Collation>> {
    let rows = client.query_typed(COLLATIONS, &[]).await.doing(|| "compare collation versions".to_owned())?;
    let read = |row| {
        Ok(Collation {
            database: field(row, "database")?,
            recorded: field(row, "recorded")?,
            actual: field(row, "actual")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The process that serves the session now: another one each time where a pooler shares its connections out.
///
/// # Errors
/// The server did not answer.
pub async fn backend(client: &Client) -> Result<i32> {
    let row = client.query_typed_one("select pg_backend_pid() as pid", &[]).await;
    field(&row.doing(|| "ask which process serves the session".to_owned())?, "pid")
}
