//! Who holds what: tenants by leases, and locks of ours on the server. What a dead process left can be taken away.

use std::fmt;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::events::What;
use super::{Registry, field};
use crate::error::Result;
use crate::pg::{Doing, Session};

/// What one process at a time works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The tenant of this key.
    Tenant(String),
    /// Templates and spares, which one daemon keeps.
    Stock,
    /// A rollout, which one process drives.
    Rollout {
        /// The id of its migration set.
        set: String,
        /// The version that it leads to.
        version: i64,
    },
}

impl Held {
    /// The tenant's key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Held::Tenant(key) => Some(key),
            Held::Stock | Held::Rollout { .. } => None,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Held::Tenant(key) => f.write_str(key),
            Held::Stock => f.write_str("templates and spares"),
            Held::Rollout { version, .. } => write!(f, "the rollout to version {version}"),
        }
    }
}

/// A lease that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is on.
    pub held: Held,
    /// The process that has it, as `host:pid:random`.
    pub worker: String,
    /// The claim's number.
    pub attempt: i64,
    /// How long it lasts unless renewed.
    pub lasts: Duration,
    /// Whether a session of that process is there.
    pub alive: bool,
}

/// A lock of ours that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Of what: `the doorbell`, `migrations of tenant 7cba…`.
    pub what: String,
    /// The tenant, for the lock of its migrations.
    pub key: Option<String>,
    /// The session that holds it: role, name and process.
    pub holder: String,
    /// Its process on the server; `None` for a prepared transaction.
    pub pid: Option<i32>,
}

/// Whether a session of the process `worker` is there. Its name may have been cut off; then it counts for every process that it could be of.
const ALIVE: &str = "exists (
    select from pg_stat_activity a
    where a.usename = current_user and a.application_name like 'tenantd:% %'
    and split_part(a.application_name, ' ', 2) <> '' and starts_with(worker, split_part(a.application_name, ' ', 2)))";

const LOCKS: &str = "
select case when l.objsubid = 1 then 'migrations of tenant ' || t.key
            when l.objid = 1 then 'the doorbell' when l.objid = 2 then 'the installation' else 'the purge' end as what,
       case when l.objsubid = 1 then t.key end as key,
       coalesce(format('role %I (%s, pid %s)', a.usename, coalesce(nullif(a.application_name, ''), 'no name'), a.pid), 'a prepared transaction') as holder,
       a.pid
from pg_locks l join pg_database d on d.oid = l.database
left join tenantd.tenant t on t.state = 'ready' and case (select isolation from tenantd.registry)
    when 'database' then t.name = d.datname
         and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('tenantd.migrate:public', 0)
    else d.datname = current_database()
         and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('tenantd.migrate:' || t.name, 0) end
left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.mode = 'ExclusiveLock'
and (l.objsubid = 2 and d.datname = current_database() and l.classid = 20250 and l.objid in (1, 2, 3)
     or l.objsubid = 1 and t.key is not null)
and ($1::text is null or t.key = $1)
order by 1";

/// Tries for the lock (20250, `number`) of the main database, which the session has then until it is closed. Nobody waits in the server.
///
/// Behind a pooler a session's lock would stay with a connection that others use; there a transaction has it, which stays open and so keeps its
/// connection: such a session is good for nothing else.
///
/// # Errors
/// The main database cannot be reached.
pub(super) async fn hold(session: &Session, number: i32, what: &str) -> Result<bool> {
    let doing = || format!("lock {what}");
    let mut function = "pg_try_advisory_lock";
    if session.is_shared() {
        let begin = "begin; set local idle_in_transaction_session_timeout = 0;
                     select set_config('transaction_timeout', '0', true) where current_setting('server_version_num')::int >= 170000";
        session.batch_execute(begin).await.doing(doing)?;
        function = "pg_try_advisory_xact_lock";
    }
    let row = session.query_typed_one(&format!("select {function}(20250, {number}) as locked"), &[]).await;
    let locked: bool = field(&row.doing(doing)?, "locked")?;
    if session.is_shared() && !locked {
        session.batch_execute("rollback").await.doing(doing)?;
    }
    Ok(locked)
}

impl Registry {
    /// The leases that have not ended: of the tenant `key`, or all.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn leases(&self, key: Option<&str>) -> Result<Vec<Lease>> {
        let sql = format!(
            "select key, set, version, worker, attempt, extract(epoch from ends - now())::float8 as lasts, {ALIVE} as alive from (
                 select key, null as set, null::bigint as version, leased_by as worker, attempt, leased_until as ends from tenantd.tenant
                 where leased_until > now() and ($1::text is null or key = $1)
                 union all select null, null, null, keeper, 0, keeper_until from tenantd.registry where keeper_until > now() and $1::text is null
                 union all select null, migration_set, version, leased_by, 0, leased_until from tenantd.rollout
                 where leased_until > now() and $1::text is null
             ) l order by key nulls first, version nulls first"
        );
        let rows = self.query(&sql, &[(&key, Type::TEXT)], || "look who holds tenants".to_owned()).await?;
        rows.iter()
            .map(|row| {
                let rollout = field::<Option<String>>(row, "set")?.zip(field(row, "version")?);
                let held = match (field(row, "key")?, rollout) {
                    (Some(key), _) => Held::Tenant(key),
                    (None, Some((set, version))) => Held::Rollout { set, version },
                    (None, None) => Held::Stock,
                };
                Ok(Lease {
                    held,
                    worker: field(row, "worker")?,
                    attempt: field(row, "attempt")?,
                    lasts: Duration::from_secs_f64(field::<f64>(row, "lasts")?.max(0.0)),
                    alive: field(row, "alive")?,
                })
            })
            .collect()
    }

    /// The locks of ours that somebody holds: of the tenant `key`, or all.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn locks(&self, key: Option<&str>) -> Result<Vec<Lock>> {
        let rows = self.query(LOCKS, &[(&key, Type::TEXT)], || "look who holds locks".to_owned()).await?;
        rows.iter()
            .map(|row| {
                Ok(Lock {
                    what: field(row, "what")?,
                    key: field(row, "key")?,
                    holder: field(row, "holder")?,
                    pid: field(row, "pid")?,
                })
            })
            .collect()
    }

    /// Takes a lease away: whoever works under it writes nothing any more. A tenant that was due is due at once. False: it had ended, or somebody
    /// else has it by now.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn free(&self, lease: &Lease) -> Result<bool> {
        let (update, id) = match &lease.held {
            Held::Tenant(key) => (
                "update tenantd.tenant set leased_until = null, leased_by = null,
                     due_at = case when work in ('due', 'failing') then now() else due_at end
                 where key = $1 and leased_by = $2 and attempt = $3",
                Some(key),
            ),
            Held::Stock => (
                "update tenantd.registry set keeper = null, keeper_until = null where keeper = $2 and $1::text is null and $3::int8 = 0",
                None,
            ),
            Held::Rollout { set, .. } => (
                "update tenantd.rollout set leased_until = null, leased_by = null where migration_set = $1 and leased_by = $2 and $3::int8 = 0",
                Some(set),
            ),
        };
        let sql = format!(
            "with freed as ({update} returning 1),
                 told as (insert into tenantd.event (key, what, who, detail) select $4, $5, $6, $7 from freed)
             select from freed"
        );
        let what = || format!("free a lease of {} on {}", lease.worker, lease.held);
        let detail = match &lease.held {
            Held::Tenant(_) => format!("a lease of {}", lease.worker),
            held => format!("a lease of {} on {held}", lease.worker),
        };
        let parameters: super::Parameters<'_> = &[
            (&id, Type::TEXT),
            (&lease.worker, Type::TEXT),
            (&lease.attempt, Type::INT8),
            (&lease.held.key(), Type::TEXT),
            (&What::Freed.word(), Type::TEXT),
            (&self.who, Type::TEXT),
            (&detail, Type::TEXT),
        ];
        Ok(!self.query(&sql, parameters, what).await?.is_empty())
    }

    /// Ends the session that holds `lock`, if our role may.
    ///
    /// # Errors
    /// [`Kind::Rights`](crate::error::Kind::Rights). The main database cannot be reached.
    pub async fn break_lock(&self, lock: &Lock) -> Result<()> {
        let Some(pid) = lock.pid else { return Ok(()) };
        let what = || format!("end the session that holds {}", lock.what);
        self.query("select pg_terminate_backend($1)", &[(&pid, Type::INT4)], what).await?;
        self.tell(What::Freed, lock.key.as_deref(), Some(&format!("{}, held by {}", lock.what, lock.holder))).await
    }
}
