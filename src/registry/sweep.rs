//! What a sweep needs to know: users without a tenant, and tenants that are missing, due, behind, unverified or not as they were made.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::claim::damaged;
use super::{Registry, field, signup};
use crate::error::{Error, Kind, Result};
use crate::pg::Doing;

/// What a tenant should be, as far as the main database shows it.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The id of the migration set it should have.
    pub migration_set: String,
    /// Ids of sets that are newer than ours: such tenants are left alone.
    pub newer: Vec<String>,
    /// The role that should own it; `None`: tenantd's own.
    pub owner: Option<String>,
    /// The fingerprint of owner and grants.
    pub access: String,
    /// How long a verification is good for.
    pub verify_every: Duration,
    /// A person asked: failing and parked tenants are tried now.
    pub by_hand: bool,
}

/// A tenant that needs a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub key: String,
    /// Whether its database is still to be made, so that the brakes are about it.
    pub making: bool,
    /// Whether somebody works on it now.
    pub busy: bool,
}

/// What the brakes `tenant.max` and `tenant.max_per_hour` are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Tenants that have a database, or are getting one now.
    pub tenants: i64,
    /// Of these, made within the last hour.
    pub last_hour: i64,
}

/// One query over registry and `pg_database`: 12 ms at 10,000 rows, and no connection to any tenant. A lease that ran out tells of work that was
/// broken off, also where nothing was due.
const CANDIDATES: &str = "
select t.key, t.state = 'requested' and t.database_oid is null as making, coalesce(t.leased_until > now(), false) as busy
from tenantd.tenant t left join pg_database d on d.datname = t.name
where t.state in ('requested', 'ready') and t.work <> 'held'
and case
    when t.work in ('due', 'failing') then t.due_at <= now() or $6
    when t.leased_until <= now() then true
    when t.work = 'parked' then $6 or t.due_at <= now() - $5 * interval '1 second'
    else (t.migration_set is null or t.migration_set <> all ($2)) and (
        t.migration_set is distinct from $1 or t.access is distinct from $4
        or d.oid is distinct from t.database_oid or d.datconnlimit = -2 or not d.datallowconn
        or d.datdba <> (select oid from pg_roles where rolname = coalesce($3, current_user))
        or has_database_privilege('public', d.oid, 'connect')
        or t.verified_at is null or t.verified_at < now() - $5 * interval '1 second')
    end
order by t.verified_at nulls first, t.created_at";

impl Registry {
    /// Inserts a row for each user without a tenant: what the trigger missed, due at once. Users from before, who could not be read until
    /// now, are held. `prefix` begins the names of tenants' databases.
    ///
    /// # Errors
    /// The signup table cannot be read whole; see [`signup::request_missing`].
    pub async fn request_missing(&self, table: &signup::Table, prefix: &str) -> Result<signup::Missing> {
        let mut session = self.session().await?;
        signup::request_missing(&mut session, table, prefix).await
    }

    /// All tenants that need a look, those looked at longest ago first.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn candidates(&self, expected: &Expected) -> Result<Vec<Candidate>> {
        let rows = self
            .session()
            .await?
            .query_typed(
                CANDIDATES,
                &[
                    (&expected.migration_set, Type::TEXT),
                    (&expected.newer, Type::TEXT_ARRAY),
                    (&expected.owner, Type::TEXT),
                    (&expected.access, Type::TEXT),
                    (&expected.verify_every.as_secs_f64(), Type::FLOAT8),
                    (&expected.by_hand, Type::BOOL),
                ],
            )
            .await
            .doing(|| "look for tenants that need work".to_owned())
            .map_err(damaged)?;
        rows.iter()
            .map(|row| {
                Ok(Candidate { key: field(row, "key")?, making: field(row, "making")?, busy: field(row, "busy")? })
            })
            .collect()
    }

    /// How many tenants have a migration set newer than ours.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn count_newer(&self, newer: &[String]) -> Result<i64> {
        let row = self
            .session()
            .await?
            .query_typed_one(
                "select count(*) as tenants from tenantd.tenant where migration_set = any ($1) and state = 'ready'",
                &[(&newer, Type::TEXT_ARRAY)],
            )
            .await
            .doing(|| "count tenants newer than this tenantd".to_owned())?;
        field(&row, "tenants")
    }

    /// Counts what the brakes are about.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn room(&self) -> Result<Room> {
        let rows = self
            .query(
                "select count(*) as tenants,
                        count(*) filter (where database_oid is null or ready_at > now() - interval '1 hour') as last_hour
                 from tenantd.tenant
                 where database_oid is not null or (state = 'requested' and leased_until > now())",
                &[],
                || "count tenants".to_owned(),
            )
            .await
            .map_err(damaged)?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a count came back without a row"))?;
        Ok(Room { tenants: field(row, "tenants")?, last_hour: field(row, "last_hour")? })
    }
}
