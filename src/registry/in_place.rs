//! A tenant's schema is emptied or filled under its own name: what it held is set aside before, and what came of it is recorded after.

use tokio_postgres::types::Type;

use super::Registry;
use super::claim::{Claim, fenced};
use super::dropped::Aside;
use super::events::What;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::Doing;
use crate::tenant::Work;

impl Registry {
    /// Sets what the tenant holds aside, if `aside` says how, so that its name is free: it is `requested`, and `work` says what becomes of it if we die. The
    /// claim is kept. Returns the random name.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours. Then nothing was changed.
    pub async fn clear_name(
        &self,
        claim: &Claim,
        name: &str,
        aside: Option<Aside<'_>>,
        work: Work,
    ) -> Result<Option<String>> {
        self.see(&[name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| format!("begin work on tenant {}", claim.key))?;
        let mut random = None;
        if let Some(aside) = aside {
            self.fence(&transaction, claim, name).await?;
            self.must_be_ours(&transaction, claim, name).await?;
            random = Some(self.set_this_aside(&transaction, claim, aside).await?);
        }
        let cleared = transaction
            .execute_typed(
                "update tenantd.tenant set state = 'requested', work = $3, due_at = now(), name = $5, database_oid = null, version = null, migration_set = null,
                 migrated_from = null, access = null, migrated_at = null, verified_at = null
                 where key = $1 and attempt = $2 and leased_by = $4 and leased_until > clock_timestamp()",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&work.word(), Type::TEXT),
                    (&self.worker, Type::TEXT),
                    (&name, Type::TEXT),
                ],
            )
            .await
            .doing(|| format!("clear the name of tenant {}", claim.key))?;
        fenced(cleared, claim)?;
        transaction.commit().await.doing(|| format!("clear the name of tenant {}", claim.key))?;
        self.finish_moves().await?;
        reach(Point::SetAside).await;
        Ok(random)
    }

    /// Brings back what [`Registry::clear_name`] set aside as `random`. The lease is given back.
    ///
    /// # Errors
    /// As for [`Registry::take_dropped_back`].
    pub async fn bring_back(&self, claim: &Claim, random: &str) -> Result<()> {
        let all = self.dropped(Some(&claim.key)).await?;
        let gone = || Error::new(Kind::Missing, format!("what was set aside as {random:?} is gone"));
        let dropped = all.iter().find(|dropped| dropped.name == random).ok_or_else(gone)?;
        self.take_dropped_back(claim, dropped, None).await
    }

    /// Records that the tenant holds what a backup held: it is ready, and due for a look. The lease is given back.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`].
    pub async fn filled(
        &self,
        claim: &Claim,
        version: Option<i64>,
        migration_set: Option<&str>,
        from: &str,
    ) -> Result<()> {
        let sql = "with filled as (
                update tenantd.tenant set state = 'ready', work = 'due', due_at = now(), failures = 0, leased_until = null, leased_by = null,
                    version = $4, migration_set = $5, access = null, ready_at = coalesce(ready_at, now()), again_at = null,
                    error_kind = null, error_text = null, error_sqlstate = null, error_step = null
                where key = $1 and attempt = $2 and leased_by = $3 returning key
            ) insert into tenantd.event (key, what, who, detail) select key, $6, $7, $8 from filled";
        let parameters: super::Parameters<'_> = &[
            (&claim.key, Type::TEXT),
            (&claim.attempt, Type::INT8),
            (&self.worker, Type::TEXT),
            (&version, Type::INT8),
            (&migration_set, Type::TEXT),
            (&What::Restored.word(), Type::TEXT),
            (&self.who, Type::TEXT),
            (&from, Type::TEXT),
        ];
        let filled = self.execute(sql, parameters, || format!("record that tenant {} is back", claim.key)).await?;
        fenced(filled, claim)?;
        reach(Point::Exchanged).await;
        Ok(())
    }
}
