//! Records: what became of a claimed tenant. Each is fenced by the claim's attempt and by who claimed.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::claim::{Again, Claim, Done, WITHOUT_FSYNC, fenced};
use super::{Registry, field};
use crate::error::{Error, Result};
use crate::tenant::Work;

/// Each row is fenced by itself: one that somebody else has by now is left out, and the others are written.
const RECORD_DONE: &str = "
update tenantd.tenant t set state = 'ready', work = 'idle', failures = 0, leased_until = null, leased_by = null,
migrated_from = case when d.migrated then t.version else t.migrated_from end,
version = d.version, migration_set = d.migration_set, access = d.access,
migrated_at = case when d.migrated then now() else t.migrated_at end,
verified_at = now(), ready_at = coalesce(t.ready_at, now()),
error_kind = null, error_text = null, error_sqlstate = null, error_step = null
from without_fsync, unnest($2::text[], $3::int8[], $4::int8[], $5::text[], $6::text[], $7::bool[])
    as d (key, attempt, version, migration_set, access, migrated)
where t.key = d.key and t.attempt = d.attempt and t.leased_by = $1 returning t.key";

/// Whether a process that died left its lease on the tenant `t`, which no sweep looks at by itself.
pub(super) const LEFT: &str = "t.leased_until <= now() and (t.work = 'held' or t.state in ('deleting', 'deleted'))";

impl Registry {
    /// Records in one statement that the claimed tenants are as they should be, and gives their leases back. What became of each, in their
    /// order: [`Kind::LeaseLost`](crate::error::Kind::LeaseLost) for one that somebody else has by now, of which nothing was written.
    ///
    /// # Errors
    /// The main database cannot be reached: of none is it known whether it was recorded.
    pub async fn record_done(&self, done: &[(&Claim, &Done)]) -> Result<Vec<Result<()>>> {
        let keys: Vec<&str> = done.iter().map(|(claim, _)| claim.key.as_str()).collect();
        let attempts: Vec<i64> = done.iter().map(|(claim, _)| claim.attempt).collect();
        let versions: Vec<Option<i64>> = done.iter().map(|(_, done)| done.version).collect();
        let sets: Vec<&str> = done.iter().map(|(_, done)| done.migration_set.as_str()).collect();
        let accesses: Vec<&str> = done.iter().map(|(_, done)| done.access.as_str()).collect();
        let migrated: Vec<bool> = done.iter().map(|(_, done)| done.migrated).collect();
        let rows = self
            .query(
                &format!("{WITHOUT_FSYNC}{RECORD_DONE}"),
                &[
                    (&self.worker, Type::TEXT),
                    (&keys, Type::TEXT_ARRAY),
                    (&attempts, Type::INT8_ARRAY),
                    (&versions, Type::INT8_ARRAY),
                    (&sets, Type::TEXT_ARRAY),
                    (&accesses, Type::TEXT_ARRAY),
                    (&migrated, Type::BOOL_ARRAY),
                ],
                || match keys.as_slice() {
                    [_] => "record that the tenant is ready".to_owned(),
                    several => format!("record that {} tenants are ready", several.len()),
                },
            )
            .await?;
        let recorded = rows.iter().map(|row| field(row, "key")).collect::<Result<BTreeSet<String>>>()?;
        Ok(done.iter().map(|(claim, _)| fenced(u64::from(recorded.contains(&claim.key)), claim)).collect())
    }

    /// Records that `step` failed, counts the failure, and gives the lease back. `version`: the migration that the tenant has all the same, where
    /// that may have changed.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`](crate::error::Kind::LeaseLost) when somebody else has the tenant by now: nothing was written.
    pub async fn record_failure(
        &self,
        claim: &Claim,
        error: &Error,
        step: &str,
        again: Again,
        version: Option<i64>,
    ) -> Result<()> {
        let (work, delay) = match again {
            Again::After(delay) => (Work::Failing, delay),
            Again::Parked => (Work::Parked, Duration::ZERO),
        };
        let text = error.with_advice();
        let recorded = self.execute(
                "update tenantd.tenant set work = $3, failures = failures + 1, due_at = now() + $4 * interval '1 second',
                 leased_until = null, leased_by = null, error_kind = $5, error_text = $6, error_sqlstate = $7, error_step = $8,
                 migrated_at = case when $9 > version then now() else migrated_at end, version = coalesce($9, version)
                 where key = $1 and attempt = $2 and leased_by = $10",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&work.word(), Type::TEXT),
                    (&delay.as_secs_f64(), Type::FLOAT8),
                    (&error.kind().word(), Type::TEXT),
                    (&text, Type::TEXT),
                    (&error.code(), Type::TEXT),
                    (&step, Type::TEXT),
                    (&version, Type::INT8),
                    (&self.worker, Type::TEXT),
                ], || "record the failure".to_owned()).await?;
        fenced(recorded, claim)
    }

    /// Gives the tenant back, no failure counted: it was no fault of its own. If it is due, then not before `after`, so that others come first.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`](crate::error::Kind::LeaseLost) when somebody else has the tenant by now.
    pub async fn release(&self, claim: &Claim, after: Duration) -> Result<()> {
        let released = self
            .execute(
                "update tenantd.tenant set leased_until = null, leased_by = null,
                 due_at = case when work in ('due', 'failing') then now() + $3 * interval '1 second' else due_at end
                 where key = $1 and attempt = $2 and leased_by = $4",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&after.as_secs_f64(), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                ],
                || "give the tenant back".to_owned(),
            )
            .await?;
        fenced(released, claim)
    }

    /// Takes away the leases that have ended on tenants that no sweep looks at: held ones, and those that are deleted or being deleted.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_dead_leases(&self) -> Result<u64> {
        let sql = format!("update tenantd.tenant t set leased_until = null, leased_by = null where {LEFT}");
        self.execute(&sql, &[], || "take away leases that have ended".to_owned()).await
    }
}
