//! The fleet at a glance: what status and metrics read. Nothing here changes anything.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel, Row};

use super::claim::damaged;
use super::doorbell::HELD;
use super::{Registry, answered, field};
use crate::error::Result;
use crate::pg::Doing;

/// How many problems are read in full; the rest are counted.
const PROBLEMS: i64 = 50;

/// How the tenants of one registry stand.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// When it was read, by the server's clock.
    pub at: Timestamp,
    /// Number of tenants by state and work.
    pub counts: Vec<Count>,
    /// Number of ready tenants by the newest migration they have, newest first.
    pub versions: Vec<VersionCount>,
    /// How long the longest waiting of the requested tenants that are due has waited since its signup.
    pub oldest_waiting: Option<Duration>,
    /// How long the longest overdue tenant, of those that never failed, is due without anybody working on it.
    pub overdue: Option<Duration>,
    /// Tenants that are being worked on now.
    pub leased: i64,
    /// Tenants that are being deleted and whose keys signed up again.
    pub again: i64,
    /// Spares that wait for a signup.
    pub at_hand: i64,
    /// Databases that are being made, for a tenant or as a spare.
    pub making: i64,
    /// Databases under a random name that nobody is making any more: the next sweep drops them.
    pub strays: i64,
    /// The newest rollout that runs or is paused.
    pub rollout: Option<Going>,
    /// Parked and failing tenants, parked first, the longest waiting first; not more than fifty.
    pub problems: Vec<Problem>,
    /// The daemons that are connected, by the name they give their connections (`host:pid:random`).
    pub daemons: Vec<String>,
    /// Who holds the doorbell's lock: a daemon that sleeps, or somebody who should not.
    pub bell: Option<BellHolder>,
    /// How full the server's queue of notifications is, from 0 to 1.
    pub notification_queue: f64,
}

/// A rollout that is not through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Going {
    /// Its migration set's id.
    pub migration_set: String,
    /// The version it goes to.
    pub version: i64,
    /// Whether it is paused.
    pub paused: bool,
    /// Why.
    pub why: Option<String>,
}

/// Tenants of one state and work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The state's word.
    pub state: String,
    /// The work's word.
    pub work: String,
    /// How many.
    pub tenants: i64,
}

/// Ready tenants that have the same newest migration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionCount {
    /// The version, when it is known.
    pub version: Option<i64>,
    /// The migration's name, when a recorded set has it.
    pub name: Option<String>,
    /// How many tenants have it.
    pub tenants: i64,
    /// When a migration ran in one of them last.
    pub migrated_at: Option<Timestamp>,
    /// The ids of the migration sets that they have; more than one where daemons carried different sets up to this version.
    pub sets: Vec<String>,
}

/// A tenant that does not go on by itself, or not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The tenant's key.
    pub key: String,
    /// The name of its database, when it has one.
    pub name: Option<String>,
    /// What the application relies on.
    pub state: String,
    /// `failing` or `parked`.
    pub work: String,
    /// Failures in a row.
    pub failures: i32,
    /// The word of the last error's kind.
    pub kind: Option<String>,
    /// The last error in full.
    pub text: Option<String>,
    /// Its SQLSTATE.
    pub sqlstate: Option<String>,
    /// The step that failed.
    pub step: Option<String>,
    /// When it is tried next; for a parked one, since when it is parked.
    pub due_at: Timestamp,
}

/// Who holds the doorbell's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BellHolder {
    /// Its role.
    pub role: String,
    /// The name it gave its connection.
    pub application_name: String,
    /// Its backend's process id; 0 for a prepared transaction, which has none.
    pub pid: i32,
    /// Whether it is a daemon: ours by role and by name.
    pub daemon: bool,
}

/// Signups that are still to be taken in are tenants too.
const COUNTS: &str = "
select state, work, count(*) as tenants from (
    select state::text, work::text from tenantd.tenant union all select 'requested', 'due' from tenantd.signup
) t group by 1, 2 order by 1, 2";

const VERSIONS: &str = "
select version, max(migrated_at) as migrated_at, count(*) as tenants,
       (select max(s.name) from tenantd.migration_set s where s.version = t.version) as name,
       array_remove(array_agg(distinct migration_set), null) as sets
from tenantd.tenant t where state = 'ready' group by version order by version desc nulls last";

const GAUGES: &str = "
with unmade as (
    select s.name, coalesce(s.maker = (select keeper from tenantd.registry where keeper_until > now()), false)
           or exists (select from tenantd.tenant t where t.key = s.key and t.attempt = s.attempt and t.leased_until > now())
           or coalesce(s.scratch_until > now(), false) as lives
    from tenantd.spare s where s.made_at is null
)
select now() as at,
       (select count(*) from tenantd.tenant where leased_until > now()) as leased,
       (select count(*) from tenantd.tenant where state = 'deleting' and again_at is not null) as again,
       (select count(*) from tenantd.spares_at_hand) as at_hand,
       (select count(*) from unmade where lives) as making,
       (select count(*) from unmade join tenantd.place d on d.name = unmade.name where not lives) as strays,
       extract(epoch from now() - least(
           (select min(created_at) from tenantd.tenant where state = 'requested' and work in ('due', 'failing')), new.since))::float8 as waiting,
       extract(epoch from now() - least(
           (select min(due_at) from tenantd.tenant
            where work = 'due' and due_at <= now() and (leased_until is null or leased_until <= now())), new.since))::float8 as overdue,
       pg_notification_queue_usage() as queue,
       r.migration_set as rollout_set, r.version as rollout_version, r.state = 'paused' as rollout_paused, r.why as rollout_why
from (select min(signed_up_at) as since from tenantd.signup) new
left join (
    select migration_set, version, state, why from tenantd.rollout
    where state in ('running', 'paused') order by version desc, started_at desc limit 1
) r on true";

const DAEMONS: &str = "
select distinct split_part(application_name, ' ', 2) as daemon from pg_stat_activity
where datname = current_database() and usename = current_user and application_name like 'tenantd:daemon %' order by 1";

const PROBLEM_ROWS: &str = "
select key, name, state, work, failures, error_kind, error_text, error_sqlstate, error_step, due_at from tenantd.tenant
where work in ('failing', 'parked') order by work desc, due_at limit $1";

/// A prepared transaction has no session of its own.
const BELL: &str = "
select coalesce(a.usename::text, 'unknown') as role, coalesce(a.application_name, 'a prepared transaction') as application_name,
       coalesce(a.pid, 0) as pid, coalesce(a.usename = current_user and a.application_name like 'tenantd:daemon %', false) as daemon
from pg_locks l left join pg_stat_activity a on a.pid = l.pid where ";

impl Registry {
    /// Reads how the fleet stands, all at one moment, and writes nothing.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn fleet(&self) -> Result<Fleet> {
        let doing = || "read how the fleet stands".to_owned();
        let mut session = self.session().await?;
        let snapshot = session.build_transaction().read_only(true).isolation_level(IsolationLevel::RepeatableRead);
        let snapshot = snapshot.start().await.doing(doing)?;
        let counts = snapshot.query_typed(COUNTS, &[]).await.doing(doing).map_err(damaged)?;
        let versions = snapshot.query_typed(VERSIONS, &[]).await.doing(doing).map_err(damaged)?;
        let gauges = snapshot.query_typed_one(GAUGES, &[]).await.doing(doing).map_err(damaged)?;
        let problems = snapshot.query_typed(PROBLEM_ROWS, &[(&PROBLEMS, Type::INT8)]).await.doing(doing)?;
        let daemons = snapshot.query_typed(DAEMONS, &[]).await.doing(doing)?;
        let bell = bell_holder(snapshot.client()).await?;
        snapshot.commit().await.doing(doing)?;
        let length = |name| {
            let seconds = field::<Option<f64>>(&gauges, name)?;
            Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
        };
        Ok(Fleet {
            at: field(&gauges, "at")?,
            counts: counts.iter().map(count).collect::<Result<_>>()?,
            versions: versions.iter().map(version).collect::<Result<_>>()?,
            oldest_waiting: length("waiting")?,
            overdue: length("overdue")?,
            leased: field(&gauges, "leased")?,
            again: field(&gauges, "again")?,
            at_hand: field(&gauges, "at_hand")?,
            making: field(&gauges, "making")?,
            strays: field(&gauges, "strays")?,
            rollout: going(&gauges)?,
            problems: problems.iter().map(problem).collect::<Result<_>>()?,
            daemons: daemons.iter().map(|row| field(row, "daemon")).collect::<Result<_>>()?,
            bell,
            notification_queue: field(&gauges, "queue")?,
        })
    }

    /// Who holds the doorbell's lock; anyone may take it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn bell_holder(&self) -> Result<Option<BellHolder>> {
        let session = self.session().await?;
        answered(&session, bell_holder(&session)).await
    }
}

async fn bell_holder(client: &Client) -> Result<Option<BellHolder>> {
    let row = client
        .query_typed_opt(&format!("{BELL}{HELD}"), &[])
        .await
        .doing(|| "look who holds the doorbell's lock".to_owned())?;
    row.map(|row| {
        Ok(BellHolder {
            role: field(&row, "role")?,
            application_name: field(&row, "application_name")?,
            pid: field(&row, "pid")?,
            daemon: field(&row, "daemon")?,
        })
    })
    .transpose()
}

fn going(gauges: &Row) -> Result<Option<Going>> {
    let Some(version) = field(gauges, "rollout_version")? else { return Ok(None) };
    Ok(Some(Going {
        migration_set: field(gauges, "rollout_set")?,
        version,
        paused: field(gauges, "rollout_paused")?,
        why: field(gauges, "rollout_why")?,
    }))
}

fn count(row: &Row) -> Result<Count> {
    Ok(Count { state: field(row, "state")?, work: field(row, "work")?, tenants: field(row, "tenants")? })
}

fn version(row: &Row) -> Result<VersionCount> {
    Ok(VersionCount {
        version: field(row, "version")?,
        name: field(row, "name")?,
        tenants: field(row, "tenants")?,
        migrated_at: field(row, "migrated_at")?,
        sets: field(row, "sets")?,
    })
}

fn problem(row: &Row) -> Result<Problem> {
    Ok(Problem {
        key: field(row, "key")?,
        name: field(row, "name")?,
        state: field(row, "state")?,
        work: field(row, "work")?,
        failures: field(row, "failures")?,
        kind: field(row, "error_kind")?,
        text: field(row, "error_text")?,
        sqlstate: field(row, "error_sqlstate")?,
        step: field(row, "error_step")?,
        due_at: field(row, "due_at")?,
    })
}
