//! What was set aside goes for good: taken away from everyone, dropped, forgotten.

use tokio_postgres::types::Type;

use super::dropped::{Dropped, SELECT, read};
use super::events::What;
use super::{Registry, field, locks};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::Session;
use crate::tenant::Marker;

/// What the tenant's row is when its database is gone for good: forgotten, or asked for anew where the key signed up again meanwhile. In one update
/// with the row of the database: a signup that comes at this moment waits for it, and sees what came of it.
const PURGED: &str = "
with gone as (
    delete from tenantd.dropped where name = $1 and condemned_at is not null returning *
), told as (
    insert into tenantd.event (key, what, who, detail) select key, $2, $3, name_before || ', set aside as ' || name from gone
), forgotten as (
    update tenantd.tenant t
    set state = case when t.again_at is null then 'deleted' else 'requested' end, work = case when t.again_at is null then 'idle' else 'due' end,
        due_at = now(), created_at = coalesce(t.again_at, t.created_at), again_at = null, failures = 0, name = null, version = null, migrated_at = null,
        migration_set = null, access = null, database_oid = null, verified_at = null, ready_at = null,
        error_kind = null, error_text = null, error_sqlstate = null, error_step = null
    from gone where t.key = gone.key and t.state = 'deleting' and t.database_oid = gone.database_oid
)
select count(*) as gone from gone";

impl Registry {
    /// Those whose time of grace is over, or that somebody began to drop for good, the longest over first.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn to_purge(&self) -> Result<Vec<Dropped>> {
        let sql = format!(
            "{SELECT} where d.purge_after <= now() or d.condemned_at is not null order by d.purge_after, d.name"
        );
        self.query(&sql, &[], || "look for what is to be purged".to_owned()).await?.iter().map(read).collect()
    }

    /// Takes what was set aside as `name` away from everyone, so that it can be dropped for good: where its time of grace is over, or `now`. False:
    /// somebody was quicker and took it back.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when the database bears another marker than the tenant's: it is not to be touched. The main database cannot be reached.
    pub async fn condemn(&self, dropped: &Dropped, now: bool) -> Result<bool> {
        let marker = Marker::of(self.id, &dropped.key).to_string();
        self.see(&[&dropped.name]).await?;
        let rows = self
            .query(
                "with condemned as (
                     update tenantd.dropped d set condemned_at = coalesce(condemned_at, now())
                     where name = $1 and (purge_after <= now() or condemned_at is not null or $3)
                     and not exists (select from tenantd.place p where p.name = $1 and p.marker is distinct from $2)
                     returning 1
                 )
                 select exists (select from condemned) as condemned,
                        exists (select from tenantd.place p where p.name = $1 and p.marker is distinct from $2) as foreign",
                &[(&dropped.name, Type::TEXT), (&marker, Type::TEXT), (&now, Type::BOOL)],
                || format!("take the {} {:?} away", self.isolation, dropped.name),
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "an answer came back without a row"))?;
        if field(row, "foreign")? {
            return Err(super::databases::not_ours(self.isolation, &dropped.name));
        }
        let condemned = field(row, "condemned")?;
        if condemned {
            reach(Point::Condemned).await;
        }
        Ok(condemned)
    }

    /// Forgets what was dropped for good. Its tenant, if it waited for that, is deleted, or requested anew where the key signed up meanwhile.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn purged(&self, name: &str) -> Result<()> {
        let parameters: super::Parameters<'_> =
            &[(&name, Type::TEXT), (&What::Purged.word(), Type::TEXT), (&self.who, Type::TEXT)];
        self.query(PURGED, parameters, || format!("forget the {} {name:?}", self.isolation)).await.map(drop)
    }

    /// The lock of whoever drops databases for good, one at a time for all: a session that has it until it is closed. `None`: another has it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn lock_purges(&self) -> Result<Option<Session>> {
        let session = self.session().await?.discard();
        Ok(locks::hold(&session, 3, "the purge").await?.then_some(session))
    }
}
