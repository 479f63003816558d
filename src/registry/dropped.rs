//! Databases that were set aside: each under a random name and closed, until it is taken back or its time of grace is over.
//!
//! Whatever changes a tenant here is one transaction, fenced by the claim, that checks the marker of each database it touches.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};

use super::claim::{Claim, damaged, fenced};
use super::events::What;
use super::hand_over::RENAME_TIMEOUT;
use super::{Registry, field};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::{Doing, PooledSession, admin, quote};
use crate::tenant::{Marker, dropped_name};

/// A database that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Its random name.
    pub name: String,
    /// The tenant it was of.
    pub key: String,
    /// The name it had.
    pub name_before: String,
    /// The newest migration in it.
    pub version: Option<i64>,
    /// The word of why: `dropped`, `reset` or `restored`.
    pub what: String,
    /// Who did it.
    pub who: String,
    /// The file of its backup.
    pub backup: Option<String>,
    /// Since when.
    pub dropped_at: Timestamp,
    /// When its time of grace is over.
    pub purge_after: Timestamp,
    /// Whether it is being dropped for good, so that it cannot be taken back any more.
    pub condemned: bool,
    /// Whether its tenant waits for its end: `deleting`.
    pub of_deleting: bool,
}

/// How a database is set aside.
#[derive(Debug, Clone, Copy)]
pub struct Aside<'a> {
    /// Why: [`What::Dropped`], [`What::Reset`] or [`What::Restored`].
    pub what: What,
    /// The file of its backup.
    pub backup: Option<&'a str>,
    /// How long it can be taken back.
    pub grace: Duration,
}

pub(super) const SELECT: &str = "
select d.name, d.key, d.name_before, d.version, d.what, d.who, d.backup, d.dropped_at, d.purge_after, d.condemned_at is not null as condemned,
       coalesce(t.state = 'deleting' and t.database_oid = d.database_oid, false) as of_deleting
from tenantd.dropped d left join tenantd.tenant t on t.key = d.key";

const TAKEN_BACK: &str = "
with back as (delete from tenantd.dropped where name = $2 returning *),
told as (insert into tenantd.event (key, what, who, detail) select key, $4, $5, 'taken back as ' || name_before from back)
update tenantd.tenant t
set state = 'ready', work = 'due', due_at = now(), failures = 0, leased_until = null, leased_by = null, again_at = null,
    name = b.name_before, database_oid = b.database_oid, version = b.version, migration_set = b.migration_set, access = b.access,
    migrated_at = b.migrated_at, ready_at = coalesce(b.ready_at, now()), verified_at = null,
    error_kind = null, error_text = null, error_sqlstate = null, error_step = null
from back b where t.key = $1 and t.attempt = $3";

impl Registry {
    /// The databases that are set aside, those of the tenant `key` or all, the newest first.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn dropped(&self, key: Option<&str>) -> Result<Vec<Dropped>> {
        let sql = format!("{SELECT} where $1::text is null or d.key = $1 order by d.dropped_at desc, d.name");
        let rows = self.query(&sql, &[(&key, Type::TEXT)], || "read what was dropped".to_owned()).await?;
        rows.iter().map(read).collect()
    }

    /// Closes the tenant's database to connections, so that whoever leaves it does not come back. Whatever befalls us then, the next look at the
    /// tenant opens it again.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn shut(&self, claim: &Claim, name: &str) -> Result<()> {
        if self.isolation == Isolation::Database {
            self.mend_database(claim, name, &admin::open(name, false)).await?;
        }
        reach(Point::Shut).await;
        Ok(())
    }

    /// Sets the tenant's database `name` aside, and the tenant is `deleting`: nobody works on it, and the lease is given back. Returns the random
    /// name.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours; [`Kind::InUse`]. Then nothing was changed.
    pub async fn drop_softly(&self, claim: &Claim, name: &str, aside: Aside<'_>) -> Result<String> {
        self.see(&[name]).await?;
        let mut session = self.session().await?;
        let transaction = self.begin(&mut session, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        let random = self.set_this_aside(&transaction, claim, aside).await?;
        let dropped = transaction
            .execute_typed(
                "with told as (insert into tenantd.event (key, what, who, detail) values ($1, $3, $4, $5))
                 update tenantd.tenant set state = 'deleting', work = 'held', leased_until = null, leased_by = null, again_at = null, failures = 0,
                 error_kind = null, error_text = null, error_sqlstate = null, error_step = null where key = $1 and attempt = $2",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&aside.what.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                    (&detail(name, &random, aside.backup), Type::TEXT),
                ],
            )
            .await
            .doing(|| format!("record that tenant {} is dropped", claim.key))?;
        fenced(dropped, claim)?;
        transaction.commit().await.doing(|| format!("drop tenant {}", claim.key))?;
        self.finish_moves().await?;
        reach(Point::Dropped).await;
        Ok(random)
    }

    /// The tenant, of which no database is there, is deleted at once.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`].
    pub async fn drop_without_database(&self, claim: &Claim) -> Result<()> {
        let dropped = self
            .execute(
                "with gone as (
                     update tenantd.tenant
                     set state = 'deleted', work = 'idle', leased_until = null, leased_by = null, failures = 0, name = null, version = null,
                         migrated_at = null, migration_set = null, access = null, database_oid = null, verified_at = null, ready_at = null,
                         error_kind = null, error_text = null, error_sqlstate = null, error_step = null
                     where key = $1 and attempt = $2 and leased_by = $3 returning key
                 ) insert into tenantd.event (key, what, who, detail) select key, $4, $5, 'it had no database' from gone",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&self.worker, Type::TEXT),
                    (&What::Dropped.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                ],
                || format!("record that tenant {} is deleted", claim.key),
            )
            .await?;
        fenced(dropped, claim)
    }

    /// Makes the spare `spare` the tenant's database `name`, and sets the one that it had aside, if `aside` says how. The lease is given back; the
    /// tenant is due for a look.
    ///
    /// # Guarantees
    /// It all happens or nothing does: under the real name there is the one or the other.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours, or another database has the name; [`Kind::InUse`].
    pub async fn exchange(
        &self,
        claim: &Claim,
        name: &str,
        spare: &str,
        aside: Option<Aside<'_>>,
        what: What,
        from: &str,
    ) -> Result<()> {
        let mut session = self.session().await?;
        let transaction = self.begin(&mut session, claim, if aside.is_some() { name } else { spare }).await?;
        if let Some(aside) = aside {
            self.must_be_ours(&transaction, claim, name).await?;
            self.set_this_aside(&transaction, claim, aside).await?;
        }
        let marker = Marker::of(self.id, &claim.key).to_string();
        transaction
            .execute_typed(
                "select tenantd.name_spare($1, $2, $3, $4)",
                &[(&spare, Type::TEXT), (&claim.key, Type::TEXT), (&name, Type::TEXT), (&marker, Type::TEXT)],
            )
            .await
            .doing(|| format!("hand the database {spare:?} over as {name:?}"))
            .map_err(taken)?;
        let exchanged = transaction
            .execute_typed(
                "with told as (insert into tenantd.event (key, what, who, detail) values ($1, $3, $4, $5))
                 update tenantd.tenant set work = 'due', due_at = now(), again_at = null
                 where key = $1 and attempt = $2 and state = 'ready' and database_oid is not null",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&what.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                    (&from, Type::TEXT),
                ],
            )
            .await
            .doing(|| format!("record that tenant {} is {what}", claim.key))?;
        fenced(exchanged, claim)?;
        transaction.commit().await.doing(|| format!("hand the database {spare:?} over as {name:?}"))?;
        reach(Point::Exchanged).await;
        Ok(())
    }

    /// Makes what was set aside as `dropped` the tenant's database again, under the name that it had; the one that the tenant has now, if any, is set
    /// aside as `aside` says. The lease is given back; the tenant is due for a look.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is being dropped for good; [`Kind::LeaseLost`]; [`Kind::Conflict`] when a marker is not ours, or another database
    /// has the name; [`Kind::InUse`]. Then nothing was changed.
    pub async fn take_dropped_back(&self, claim: &Claim, dropped: &Dropped, aside: Option<Aside<'_>>) -> Result<()> {
        let (random, name) = (&dropped.name, &dropped.name_before);
        let current = claim.name.as_deref().unwrap_or(name);
        self.see(&[random, name, current]).await?;
        let mut session = self.session().await?;
        let transaction = self.begin(&mut session, claim, random).await?;
        let there = transaction
            .query_typed_opt(
                "select from tenantd.dropped where name = $1 and key = $2 and condemned_at is null for update",
                &[(random, Type::TEXT), (&claim.key, Type::TEXT)],
            )
            .await
            .doing(|| format!("look for the {} {random:?}", self.isolation))?;
        if there.is_none() {
            return Err(Error::usage(format!("the {} {random:?} is being dropped for good", self.isolation)));
        }
        self.must_be_ours(&transaction, claim, random).await?;
        if let Some(aside) = aside {
            self.must_be_ours(&transaction, claim, current).await?;
            self.set_this_aside(&transaction, claim, aside).await?;
        }
        let rename = format!("select tenantd.move({}, {});", quote::literal(random), quote::literal(name));
        let open = if self.isolation == Isolation::Database { admin::open(name, true) } else { String::new() };
        transaction
            .batch_execute(&(rename + &open))
            .await
            .doing(|| format!("rename the {} {random:?} to {name:?}", self.isolation))
            .map_err(taken)?;
        let back = transaction
            .execute_typed(
                TAKEN_BACK,
                &[
                    (&claim.key, Type::TEXT),
                    (random, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&What::Restored.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                ],
            )
            .await
            .doing(|| format!("record that tenant {} is back", claim.key))?;
        fenced(back, claim)?;
        transaction.commit().await.doing(|| format!("take tenant {} back", claim.key))?;
        self.finish_moves().await?;
        reach(Point::Restored).await;
        Ok(())
    }

    /// Begins a fenced transaction about the database `name`, in which no rename waits for long.
    async fn begin<'a>(&self, session: &'a mut PooledSession, claim: &Claim, name: &str) -> Result<Transaction<'a>> {
        let transaction = session.transaction().await.doing(|| format!("begin work on tenant {}", claim.key))?;
        let limit = format!("set local statement_timeout = {}", RENAME_TIMEOUT.as_millis());
        transaction.batch_execute(&limit).await.doing(|| "set statement_timeout".to_owned())?;
        self.fence(&transaction, claim, name).await?;
        Ok(transaction)
    }

    /// Returns the random name.
    pub(super) async fn set_this_aside(
        &self,
        transaction: &Transaction<'_>,
        claim: &Claim,
        aside: Aside<'_>,
    ) -> Result<String> {
        let random = dropped_name();
        transaction
            .execute_typed(
                "select tenantd.set_aside($1, $2, $3, $4, $5, $6)",
                &[
                    (&claim.key, Type::TEXT),
                    (&random, Type::TEXT),
                    (&aside.what.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                    (&aside.backup, Type::TEXT),
                    (&aside.grace.as_secs_f64(), Type::FLOAT8),
                ],
            )
            .await
            .doing(|| format!("set the {} of tenant {} aside", self.isolation, claim.key))
            .map_err(damaged)?;
        Ok(random)
    }
}

fn detail(name: &str, random: &str, backup: Option<&str>) -> String {
    let backup = backup.map_or_else(|| "without a backup".to_owned(), |file| format!("backup {file}"));
    format!("{name}, set aside as {random}, {backup}")
}

/// A name that another database has.
fn taken(error: Error) -> Error {
    match error.code() {
        Some("42P04" | "42P06") => {
            error.with_kind(Kind::Conflict).hint("something else has the tenant's name: rename it out of the way")
        }
        _ => error,
    }
}

pub(super) fn read(row: &Row) -> Result<Dropped> {
    Ok(Dropped {
        name: field(row, "name")?,
        key: field(row, "key")?,
        name_before: field(row, "name_before")?,
        version: field(row, "version")?,
        what: field(row, "what")?,
        who: field(row, "who")?,
        backup: field(row, "backup")?,
        dropped_at: field(row, "dropped_at")?,
        purge_after: field(row, "purge_after")?,
        condemned: field(row, "condemned")?,
        of_deleting: field(row, "of_deleting")?,
    })
}
