//! What a sweep needs to know: users without a tenant, and tenants that are missing, due, behind, unverified or not as they were made.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::claim::damaged;
use super::events::EVENTS_KEPT;
use super::lookup::{Filter, Values};
use super::record::LEFT;
use super::sets::Relations;
use super::signup::{self, Table, request_missing_sql};
use super::spares::{RELEASED, STRAY};
use super::{Registry, field, when};
use crate::error::{Error, Kind, Result};
use crate::naming::Names;
use crate::pg::Doing;

/// What a tenant should be, as far as the main database shows it.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The id of the migration set it should have.
    pub migration_set: String,
    /// Ids of sets that are newer than ours: such tenants are left alone.
    pub newer: Vec<String>,
    /// Ids of sets that are behind ours, while a rollout decides when their tenants are up; else empty.
    pub waiting: Vec<String>,
    /// Ids of all sets of which it is known how they compare with ours.
    pub known: Vec<String>,
    /// The role that should own it; `None`: tenantd's own.
    pub owner: Option<String>,
    /// The fingerprint of owner and grants.
    pub access: String,
    /// How long a verification is good for.
    pub verify_every: Duration,
    /// The time between two sweeps, over which the verifications are spread.
    pub every: Duration,
    /// A person asked: failing and parked tenants are tried now.
    pub by_hand: bool,
    /// How many candidates a page has at the most.
    pub page: usize,
    /// Only these tenants; `None`: all.
    pub only: Option<Box<Filter>>,
}

impl Expected {
    /// Takes over how our set compares with those that tenants have.
    pub fn know(&mut self, Relations { newer, known, .. }: &Relations) {
        self.newer.clone_from(newer);
        self.known.clone_from(known);
    }
}

/// A tenant that needs a look, and that nobody works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub key: String,
    /// Whether its database is still to be made, so that the brakes are about it.
    pub making: bool,
}

/// What one query tells at the start of a sweep, the first page of candidates with it.
#[derive(Debug, Clone)]
pub struct Start {
    /// Users without a tenant, who have a due row now. They are not among the candidates yet.
    pub requested: i64,
    /// Whether there are signups to be taken in; see [`Registry::take_all_in`].
    pub signups: bool,
    /// Whether some tenant has a set that is not among the known ones.
    pub unknown: bool,
    /// Tenants that have a set newer than ours.
    pub newer: i64,
    /// Whether there are spares that nobody is making, or was taken in vain.
    pub strays: bool,
    /// Whether something that was set aside is to be dropped for good, a dead process left a tenant that no sweep looks at, or old events
    /// are to be forgotten.
    pub over: bool,
    /// Whether users were deleted whose tenants may go.
    pub departures: bool,
    /// How many tenants need a look, and nobody works on them.
    pub needing: usize,
    /// How many more there are that somebody works on.
    pub busy: usize,
    /// Whom this sweep verifies; see [`Cut`].
    pub cut: Cut,
    /// The first page, by key.
    pub candidates: Vec<Candidate>,
}

/// Up to which tenant, in the order of the last verification and then of the key, this sweep verifies; both `None`: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    at: Option<Timestamp>,
    key: Option<String>,
}

/// What the brakes `tenant.max` and `tenant.max_per_hour` are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Tenants that have a database, or are getting one now.
    pub tenants: i64,
    /// Of these, made within the last hour.
    pub last_hour: i64,
}

/// A lease that ran out tells of work that was broken off, also where nothing was due.
const NEEDING: &str = "
from tenantd.tenant t left join tenantd.place d on d.name = t.name
where t.state in ('requested', 'ready') and t.work <> 'held'
and case
    when t.work in ('due', 'failing') then t.due_at <= now() or $7
    when t.leased_until <= now() then true
    when t.work = 'parked' then $7 or t.due_at <= now() - $6 * interval '1 second'
    else (t.migration_set is null or t.migration_set <> all ($3)) and (
        t.migration_set is distinct from $2 and (t.migration_set is null or t.migration_set <> all ($13))
        or t.access is distinct from $5
        or d.oid is distinct from t.database_oid or not d.valid or not d.open or d.public
        or d.owner <> (select oid from pg_roles where rolname = coalesce($4, current_user))
        or (coalesce(t.verified_at, 'epoch'), t.key) <= ({cut}))
    end";

const MAKING: &str = "t.state = 'requested' and t.database_oid is null as making";
const BUSY: &str = "coalesce(t.leased_until > now(), false)";

/// Verifications are spread: a periodic sweep takes those that are older than half of `sweep.verify_every`, and of these, the longest
/// unverified first, only so many that twice the number would get through all tenants in that time. So all are looked at in time, and no two
/// sweeps need differ much even where all were verified at one moment. By hand it takes all that are overdue.
const CUT: &str = "
cut as (
    select at, key from (
        select coalesce(verified_at, 'epoch') as at, key from tenantd.tenant
        where state = 'ready' and work = 'idle' and (migration_set is null or migration_set <> all ($3))
        and coalesce(verified_at, 'epoch') < now() - $6 * case when $7 then 1 else 0.5 end * interval '1 second'
        order by 1, 2
        limit case when not $7 then
            (2 * ceil((select count(*) from tenantd.tenant where state = 'ready') * $10 / $6))::bigint end
    ) longest order by 1 desc, 2 desc limit 1
)";

/// Tenants that can get a newer set: ready, and nothing else to be done for them.
pub(super) const BEHIND: &str =
    "from tenantd.tenant t where t.state = 'ready' and t.work = 'idle' and t.migration_set = any ($1)
    and coalesce(t.leased_until <= now(), true)";

/// The first parameter behind those that every sweep has.
const BEHIND_OURS: usize = 15;

/// The conditions on `tenantd.tenant t` of a sweep over some tenants alone.
fn among(expected: &Expected) -> String {
    if expected.only.is_some() { Filter::sql_from(BEHIND_OURS) } else { "true".to_owned() }
}

/// In one statement with everything else that a sweep asks at its start, so that one with nothing to do asks nothing more.
fn start_sql(table: Option<&Table>, among: &str) -> String {
    let (missing, requested) = match table {
        Some(table) => (
            format!("{}, ", request_missing_sql(table)),
            "case when exists (select from held) then 0 else (select count(*) from missing) end",
        ),
        None => (String::new(), "0::bigint"),
    };
    format!(
        "with {missing} {CUT},
         needing as materialized (select t.key, {MAKING}, {BUSY} as busy {needing} and {among})
         select s.*, c.key, c.making from (
             select {requested} as requested, exists (select from tenantd.signup) as signups,
                 exists (select from tenantd.tenant where migration_set <> all ($11) and state <> 'deleted') as unknown,
                 (select count(*) from tenantd.tenant t where migration_set = any ($3) and state = 'ready' and {among}) as newer,
                 exists (select from tenantd.spare s where {STRAY} or {RELEASED}) as strays,
                 exists (select from tenantd.dropped where purge_after <= now() or condemned_at is not null)
                     or exists (select from tenantd.tenant t where {LEFT})
                     or exists (select from tenantd.event where id <= (select max(id) from tenantd.event) - {EVENTS_KEPT}) as over,
                 exists (select from tenantd.departure) as departures,
                 (select count(*) from needing where not busy) as needing,
                 (select count(*) from needing where busy) as busy,
                 (select at from cut) as cut_at, (select key from cut) as cut_key
         ) s left join (select key, making from needing where not busy order by key limit $12) c on true
         order by c.key",
        needing = NEEDING.replace("{cut}", "select at, key from cut"),
    )
}

fn page_sql(among: &str) -> String {
    let needing = NEEDING.replace("{cut}", "$8, $9");
    format!("select t.key, {MAKING} {needing} and {among} and not {BUSY} and t.key > $14 order by t.key limit $12")
}

impl Registry {
    /// Inserts a row for each user without a tenant: what the trigger missed, due at once. Users from before, who could not be read until
    /// now, are held.
    ///
    /// # Errors
    /// The signup table cannot be read whole; see [`signup::request_missing`].
    pub async fn request_missing(&self, table: &Table, names: &Names) -> Result<signup::Missing> {
        signup::request_missing(&mut *self.session().await?, table, names).await
    }

    /// Begins a sweep, in one query: inserts a row for each user of `table` without a tenant, as [`Registry::request_missing`] does, and
    /// tells what there is to do, with the first page of the tenants that need a look. It connects to no tenant; with nothing to do it writes
    /// nothing.
    ///
    /// # Errors
    /// The main database cannot be reached, or `table` cannot be read: without it the rest can be had.
    pub async fn begin_sweep(&self, table: Option<&Table>, names: &Names, expected: &Expected) -> Result<Start> {
        let (sql, naming) = (start_sql(table, &among(expected)), names.to_string());
        let rows = self.ask(&sql, table, &naming, expected, &Cut::default(), "").await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a count came back without a row"))?;
        let number = |name| field::<i64>(row, name).map(|number| usize::try_from(number).unwrap_or(0));
        let candidates = rows.iter().filter(|row| !matches!(row.try_get::<_, Option<String>>("key"), Ok(None)));
        Ok(Start {
            requested: field(row, "requested")?,
            signups: field(row, "signups")?,
            unknown: field(row, "unknown")?,
            newer: field(row, "newer")?,
            strays: field(row, "strays")?,
            over: field(row, "over")?,
            departures: field(row, "departures")?,
            needing: number("needing")?,
            busy: number("busy")?,
            cut: Cut { at: field(row, "cut_at")?, key: field(row, "cut_key")? },
            candidates: candidates.map(candidate).collect::<Result<_>>()?,
        })
    }

    /// The next page of the tenants that need a look: those whose keys come after `after`, so that none is met twice in one sweep.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn candidates_after(&self, after: &str, cut: &Cut, expected: &Expected) -> Result<Vec<Candidate>> {
        self.ask(&page_sql(&among(expected)), None, "", expected, cut, after).await?.iter().map(candidate).collect()
    }

    async fn ask(
        &self,
        sql: &str,
        table: Option<&Table>,
        naming: &str,
        expected: &Expected,
        cut: &Cut,
        after: &str,
    ) -> Result<Vec<Row>> {
        let page = i64::try_from(expected.page).unwrap_or(i64::MAX);
        let (verify_every, every) = (expected.verify_every.as_secs_f64(), expected.every.as_secs_f64());
        let ours: [(&(dyn ToSql + Sync), Type); BEHIND_OURS - 1] = [
            (&naming, Type::TEXT),
            (&expected.migration_set, Type::TEXT),
            (&expected.newer, Type::TEXT_ARRAY),
            (&expected.owner, Type::TEXT),
            (&expected.access, Type::TEXT),
            (&verify_every, Type::FLOAT8),
            (&expected.by_hand, Type::BOOL),
            (&cut.at, Type::TIMESTAMPTZ),
            (&cut.key, Type::TEXT),
            (&every, Type::FLOAT8),
            (&expected.known, Type::TEXT_ARRAY),
            (&page, Type::INT8),
            (&expected.waiting, Type::TEXT_ARRAY),
            (&after, Type::TEXT),
        ];
        let only = expected.only.as_deref().map(Filter::values);
        let parameters: Vec<_> = ours.into_iter().chain(only.iter().flat_map(Values::parameters)).collect();
        let doing = || "look for tenants that need work".to_owned();
        let mut session = self.session().await?;
        if let Some(table) = table.filter(|table| table.when.is_some()) {
            return Box::pin(when::read(&mut session, table, sql, &parameters, doing)).await.map_err(damaged);
        }
        session.query_typed(sql, &parameters).await.doing(doing).map_err(damaged)
    }

    /// How many of the tenants that fit `only` have one of the sets `behind`, and wait for a rollout.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn count_waiting(&self, behind: &[String], only: &Filter) -> Result<i64> {
        let sql = format!("select count(*) as tenants {BEHIND} and {}", Filter::sql_from(2));
        let values = only.values();
        let behind: (&(dyn ToSql + Sync), Type) = (&behind, Type::TEXT_ARRAY);
        let parameters: Vec<_> = std::iter::once(behind).chain(values.parameters()).collect();
        let rows = self.query(&sql, &parameters, || "count tenants that wait for a rollout".to_owned()).await?;
        rows.first().map_or(Ok(0), |row| field(row, "tenants"))
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

fn candidate(row: &Row) -> Result<Candidate> {
    Ok(Candidate { key: field(row, "key")?, making: field(row, "making")? })
}
