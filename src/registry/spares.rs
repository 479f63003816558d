//! Spares in the registry: databases under a random name, each written down before it is made, until it becomes a tenant's or is dropped.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::claim::{Claim, fenced};
use super::{Registry, field};
use crate::error::{Error, Kind, Result};

/// A spare that somebody was in is left alone for so long.
const BUSY: Duration = Duration::from_secs(10);

/// A spare that was made for anyone, or is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spare {
    /// Its database's name.
    pub name: String,
    /// The template it is a clone of.
    pub template: String,
    /// How it stands.
    pub standing: Standing,
    /// The time since it was written down.
    pub age: Duration,
}

/// How a spare stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Somebody makes it.
    Making,
    /// Waiting for a name.
    AtHand,
    /// Somebody was in it a moment ago; it is tried again later.
    Busy,
    /// Not as it was made: opened, gone, given to another owner.
    Broken,
}

/// What a tenant gets its database from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// This spare.
    Spare(String),
    /// A clone that is to be made under the name that was written down.
    Name(Source),
}

/// The template that a database is to be cloned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub template: String,
    /// Its size in bytes.
    pub bytes: i64,
    /// The server's version as a number: 150018 for 15.18.
    pub server_version: i32,
}

/// A random name that nobody is making a database under any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The name.
    pub name: String,
    /// Whether it was written down long ago.
    pub old: bool,
    /// Whether there is a database of that name.
    pub there: bool,
}

/// The template that serves: of the set asked for, or of a newer one, before those behind it, which were good once. One of a set whose
/// canaries have not passed yet, or that was given up, comes last.
const SERVING: &str = "
select p.name, p.migration_set, p.version, p.access, p.bytes
from tenantd.template p join pg_database d on d.datname = p.name and d.oid = p.database_oid
left join tenantd.rollout r on r.migration_set = p.migration_set
where p.completed_at is not null and p.retired_at is null and d.datconnlimit = -1
order by (r.migration_set is null or r.passed_at is not null and r.state <> 'aborted') desc, p.migration_set = any ($1) desc, p.migration_set = $2 desc, p.shape = $3 desc, p.completed_at desc limit 1";

/// Whether the spare `s` is whole, and was taken for an attempt that has died.
pub(super) const RELEASED: &str = "s.made_at is not null and s.key is not null
    and not exists (select from tenantd.tenant t where t.key = s.key and t.attempt = s.attempt and t.leased_until > now())";

/// Whether nobody is making the spare `s` any more.
pub(super) const STRAY: &str = "s.made_at is null
    and (s.maker is null or s.maker is distinct from (select keeper from tenantd.registry where keeper_until > now()))
    and (s.scratch_until is null or s.scratch_until <= now())
    and not exists (select from tenantd.tenant t where t.key = s.key and t.attempt = s.attempt and t.leased_until > now())";

impl Registry {
    /// The spares that are kept for anyone or made for that, the oldest first. Those of another owner than `owner` count as broken.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn spares(&self, owner: &str) -> Result<Vec<Spare>> {
        let rows = self
            .query(
                "select s.name, s.template, extract(epoch from now() - s.created_at)::float8 as age, s.made_at is null as making,
                        coalesce(s.busy_until > now(), false) as busy, coalesce(h.owner = $1, false) as at_hand
                 from tenantd.spare s left join tenantd.spares_at_hand h on h.name = s.name
                 where s.template is not null and s.key is null
                 and (s.made_at is not null or s.maker = (select keeper from tenantd.registry where keeper_until > now()))
                 order by s.created_at",
                &[(&owner, Type::TEXT)],
                || "read the spares".to_owned(),
            )
            .await?;
        rows.iter().map(read).collect()
    }

    /// Takes a spare at hand for the claimed tenant; without one, writes down the random name `spare` before a clone of that name is made for it,
    /// and says of which template.
    ///
    /// The commit is not waited for: the one of CREATE DATABASE, or of the hand-over, comes later in the same log, and makes both last or neither.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when the claim is not ours any more; [`Kind::Template`] when no template serves: nothing may be made.
    pub async fn take_spare(&self, claim: &Claim, spare: &str, owner: &str, from: &Serving<'_>) -> Result<Taken> {
        let rows = self
            .query(
                &format!(
                    "with ours as (
                         select key, attempt, set_config('synchronous_commit', 'off', true) from tenantd.tenant
                         where key = $4 and attempt = $5 and leased_by = $6 and leased_until > now()
                     ), free as (
                         select s.name from tenantd.spare s join tenantd.spares_at_hand h on h.name = s.name
                         where s.key is null and s.made_at is not null and h.owner = $8 and exists (select from ours)
                         order by h.completed_at desc nulls last, h.made_at limit 1 for update of s skip locked
                     ), taken as (
                         update tenantd.spare s set key = ours.key, attempt = ours.attempt from free, ours where s.name = free.name
                         returning s.name
                     ), serving as ({SERVING}), written as (
                         insert into tenantd.spare (name, key, attempt, template, migration_set, version, access)
                         select $7, key, attempt, name, migration_set, version, access from ours, serving
                         where not exists (select from free)
                     )
                     select exists (select from ours) as leased, (select name from taken) as taken, s.name,
                            coalesce(s.bytes, 0) as bytes, current_setting('server_version_num')::int as version
                     from (select) one left join serving s on true"
                ),
                &[
                    (&from.newer, Type::TEXT_ARRAY),
                    (&from.migration_set, Type::TEXT),
                    (&from.shape, Type::TEXT),
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&self.worker, Type::TEXT),
                    (&spare, Type::TEXT),
                    (&owner, Type::TEXT),
                ],
                || "take a spare".to_owned(),
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "an answer came back without a row"))?;
        fenced(u64::from(field::<bool>(row, "leased")?), claim)?;
        if let Some(taken) = field(row, "taken")? {
            return Ok(Taken::Spare(taken));
        }
        let template = field::<Option<String>>(row, "name")?.ok_or_else(|| {
            Error::new(Kind::Template, "no template is ready to be cloned")
                .hint("`tenantd status` says why it could not be built")
        })?;
        Ok(Taken::Name(Source { template, bytes: field(row, "bytes")?, server_version: field(row, "version")? }))
    }

    /// Writes down the random name `spare` before a clone of `template` is made under it for anyone.
    ///
    /// # Errors
    /// [`Kind::Template`] when that template does not serve any more. The main database cannot be reached.
    pub async fn announce_kept_spare(&self, spare: &str, template: &str) -> Result<()> {
        let written = self
            .execute(
                "insert into tenantd.spare (name, template, migration_set, version, access, maker)
                 select $1, name, migration_set, version, access, $3 from tenantd.template
                 where name = $2 and completed_at is not null and retired_at is null",
                &[(&spare, Type::TEXT), (&template, Type::TEXT), (&self.worker, Type::TEXT)],
                || format!("write down the spare {spare:?}"),
            )
            .await?;
        if written == 1 {
            return Ok(());
        }
        Err(Error::new(Kind::Template, format!("the template {template:?} was retired")))
    }

    /// Writes down the random name `spare` before an empty database is made under it for the claimed tenant.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when the claim is not ours any more. The main database cannot be reached.
    pub async fn announce_for(&self, claim: &Claim, spare: &str) -> Result<()> {
        let written = self
            .execute(
                "insert into tenantd.spare (name, key, attempt) select $1, key, attempt from tenantd.tenant
                 where key = $2 and attempt = $3 and leased_by = $4 and leased_until > now()",
                &[
                    (&spare, Type::TEXT),
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&self.worker, Type::TEXT),
                ],
                || format!("write down the database {spare:?}"),
            )
            .await?;
        fenced(written, claim)
    }

    /// Writes down what the database `spare`, made for the claimed tenant, holds: its newest migration, and the set if that is known.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when it was taken for a stray meanwhile. The main database cannot be reached.
    pub async fn describe_spare(
        &self,
        claim: &Claim,
        spare: &str,
        version: Option<i64>,
        migration_set: Option<&str>,
    ) -> Result<()> {
        let written = self
            .execute(
                "update tenantd.spare set version = $4, migration_set = $5 where name = $1 and key = $2 and attempt = $3",
                &[
                    (&spare, Type::TEXT),
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&version, Type::INT8),
                    (&migration_set, Type::TEXT),
                ],
                || format!("write down what the database {spare:?} holds"),
            )
            .await?;
        fenced(written, claim)
    }

    /// Keeps a spare for anyone: one that was just made, or that the tenant it was meant for does not take. False: it was taken for a stray
    /// meanwhile.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn keep_spare(&self, spare: &str) -> Result<bool> {
        let kept = self
            .execute(
                "update tenantd.spare s set key = null, attempt = null, maker = null, database_oid = d.oid,
                        made_at = coalesce(s.made_at, now())
                 from pg_database d where s.name = $1 and d.datname = $1 and (s.key is not null or s.maker = $2)",
                &[(&spare, Type::TEXT), (&self.worker, Type::TEXT)],
                || format!("keep the spare {spare:?}"),
            )
            .await?;
        Ok(kept == 1)
    }

    /// Leaves a spare alone for a while: somebody is in it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn pass_over_spare(&self, spare: &str) -> Result<()> {
        self.execute(
            "update tenantd.spare set key = null, attempt = null, busy_until = now() + $2 * interval '1 second'
             where name = $1 and made_at is not null",
            &[(&spare, Type::TEXT), (&BUSY.as_secs_f64(), Type::FLOAT8)],
            || format!("leave the spare {spare:?} alone"),
        )
        .await
        .map(drop)
    }

    /// Takes a kept spare away from everyone, so that it can be dropped. False: somebody was quicker.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn withdraw_spare(&self, spare: &str) -> Result<bool> {
        let withdrawn = self
            .execute(
                "update tenantd.spare set made_at = null, maker = null
                 where name = (select name from tenantd.spare where name = $1 and key is null for update skip locked)",
                &[(&spare, Type::TEXT)],
                || format!("withdraw the spare {spare:?}"),
            )
            .await?;
        Ok(withdrawn == 1)
    }

    /// Forgets a spare that was dropped.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_spare(&self, spare: &str) -> Result<()> {
        self.execute("delete from tenantd.spare where name = $1", &[(&spare, Type::TEXT)], || {
            format!("forget the spare {spare:?}")
        })
        .await
        .map(drop)
    }

    /// Writes down the random name `scratch` of a scratch database before it is made. It is no stray for `lasts`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn announce_scratch(&self, scratch: &str, lasts: Duration) -> Result<()> {
        self.execute(
            "insert into tenantd.spare (name, maker, scratch_until) values ($1, $2, now() + $3 * interval '1 second')",
            &[(&scratch, Type::TEXT), (&self.worker, Type::TEXT), (&lasts.as_secs_f64(), Type::FLOAT8)],
            || format!("write down the scratch database {scratch:?}"),
        )
        .await
        .map(drop)
    }

    /// The random names that nobody makes a database under any more. Before, spares whose tenant's attempt has died are for anyone again.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn stray_spares(&self, old_after: Duration) -> Result<Vec<Stray>> {
        let rows = self
            .query(
                &format!(
                    "with released as (update tenantd.spare s set key = null, attempt = null where {RELEASED})
                     select s.name, s.created_at < now() - $1 * interval '1 second' as old,
                            exists (select from tenantd.place d where d.name = s.name) as there
                     from tenantd.spare s where {STRAY}"
                ),
                &[(&old_after.as_secs_f64(), Type::FLOAT8)],
                || "look for spares that nobody is making".to_owned(),
            )
            .await?;
        let read = |row| Ok(Stray { name: field(row, "name")?, old: field(row, "old")?, there: field(row, "there")? });
        rows.iter().map(read).collect()
    }
}

/// Which template serves best.
#[derive(Debug, Clone, Copy)]
pub struct Serving<'a> {
    /// Ids of the sets that are newer than ours.
    pub newer: &'a [String],
    /// The id of our set.
    pub migration_set: &'a str,
    /// The fingerprint of owner, grants and extensions.
    pub shape: &'a str,
}

fn read(row: &Row) -> Result<Spare> {
    let standing = match (field(row, "making")?, field(row, "busy")?, field(row, "at_hand")?) {
        (true, ..) => Standing::Making,
        (_, true, _) => Standing::Busy,
        (.., true) => Standing::AtHand,
        _ => Standing::Broken,
    };
    Ok(Spare {
        name: field(row, "name")?,
        template: field(row, "template")?,
        standing,
        age: Duration::from_secs_f64(field::<f64>(row, "age")?.max(0.0)),
    })
}
