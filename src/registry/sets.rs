//! The migration sets that ever ran, kept whole: how a tenant stands is decided from them, without a connection to the tenant.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::Type;

use super::claim::damaged;
use super::{Registry, field};
use crate::error::Result;
use crate::migrations::compare::{Finding, Recorded, Verdict, compare};
use crate::migrations::{Entry, MigrationSet};
use crate::pg::Doing;

/// How the sets that tenants have compare with the one this tenantd carries.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    /// What each set that is behind ours lacks of it, by the set's id, in the order it will be applied.
    pub behind: BTreeMap<String, Vec<i64>>,
    /// Ids of sets that hold all of ours and more, and that tenants have. What a template alone has may have been withdrawn.
    pub newer: Vec<String>,
    /// Why no tenant may be touched with our set: a version below the newest of a set that tenants have. Empty: it may.
    pub refused: Vec<String>,
    /// What else contradicts a set that tenants have: files that changed or vanished. It stops those tenants only.
    pub diverged: Vec<String>,
    /// Ids of sets with a rollout that is not through, and that ours leaves behind: it holds all of theirs and more, or contradicts them, and
    /// no tenant has them (they were mended).
    pub overtaken: Vec<String>,
    /// Ids of all sets that tenants have, and of ours: where a tenant has another, this is out of date.
    pub known: Vec<String>,
}

/// How what tenants have stands to the set that this tenantd carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// They have it.
    Current,
    /// They lack these versions of it.
    Behind(Vec<i64>),
    /// They have more.
    Newer,
    /// What they have contradicts it.
    Diverged,
    /// Nobody recorded what they have.
    Unknown,
}

impl Standing {
    /// The word for it in output.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Standing::Current => "current",
            Standing::Behind(_) => "behind",
            Standing::Newer => "newer",
            Standing::Diverged => "diverged",
            Standing::Unknown => "unknown",
        }
    }

    /// The versions that they lack; `None` where that cannot be told.
    #[must_use]
    pub fn pending(&self) -> Option<&[i64]> {
        match self {
            Standing::Current => Some(&[]),
            Standing::Behind(versions) => Some(versions),
            Standing::Newer | Standing::Diverged | Standing::Unknown => None,
        }
    }
}

impl Relations {
    /// How tenants that have the sets of the ids `sets`, all of them together, stand to ours, whose id is `ours`.
    #[must_use]
    pub fn standing<'a>(&self, ours: &str, sets: impl IntoIterator<Item = &'a String>) -> Standing {
        let (mut known, mut newer, mut lacking) = (false, false, Vec::new());
        for id in sets {
            known = true;
            match self.behind.get(id) {
                _ if id == ours => {}
                Some(pending) => lacking.extend(pending),
                None if self.newer.contains(id) => newer = true,
                None => return Standing::Diverged,
            }
        }
        lacking.sort_unstable();
        lacking.dedup();
        match (known, newer, lacking.is_empty()) {
            (false, ..) => Standing::Unknown,
            (_, true, _) => Standing::Newer,
            (_, _, false) => Standing::Behind(lacking),
            _ => Standing::Current,
        }
    }
}

impl Registry {
    /// Writes the set down, if it is not there yet.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn keep_set(&self, set: &MigrationSet) -> Result<()> {
        let positions: Vec<i32> = (0..).take(set.migrations().len()).collect();
        let versions: Vec<i64> = set.migrations().iter().map(|migration| migration.version).collect();
        let names: Vec<&str> = set.migrations().iter().map(|migration| migration.name.as_str()).collect();
        let checksums: Vec<&str> = set.migrations().iter().map(|migration| migration.checksum.as_str()).collect();
        self.session()
            .await?
            .execute_typed(
                "insert into tenantd.migration_set (id, position, version, name, checksum)
                 select $1, m.* from unnest($2::int4[], $3::int8[], $4::text[], $5::text[]) m
                 where not exists (select from tenantd.migration_set where id = $1) on conflict do nothing",
                &[
                    (&set.id(), Type::TEXT),
                    (&positions, Type::INT4_ARRAY),
                    (&versions, Type::INT8_ARRAY),
                    (&names, Type::TEXT_ARRAY),
                    (&checksums, Type::TEXT_ARRAY),
                ],
            )
            .await
            .doing(|| "write the migration set down".to_owned())?;
        Ok(())
    }

    /// Compares `set` with every set that a tenant or a template has, or that is being rolled out.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn relate(&self, set: &MigrationSet, out_of_order: bool) -> Result<Relations> {
        let rows = self
            .session()
            .await?
            .query_typed(
                "with used as (
                     select migration_set as id, true as lives, true as made, false as goes from tenantd.tenant
                     where state <> 'deleted' and migration_set is not null
                     union select migration_set, false, true, false from tenantd.template
                     union select migration_set, false, false, true from tenantd.rollout where state in ('running', 'paused')
                 )
                 select s.id, s.version, s.name, s.checksum, u.lives, u.made, u.goes
                 from (select id, bool_or(lives) as lives, bool_or(made) as made, bool_or(goes) as goes from used group by id) u
                 join tenantd.migration_set s on s.id = u.id
                 where s.id <> $1 order by s.id, s.position",
                &[(&set.id(), Type::TEXT)],
            )
            .await
            .doing(|| "read the migration sets that tenants have".to_owned())
            .map_err(damaged)?;
        let mut sets: BTreeMap<String, Known> = BTreeMap::new();
        for row in &rows {
            let known = sets.entry(field(row, "id")?).or_default();
            (known.lives, known.made, known.goes) = (field(row, "lives")?, field(row, "made")?, field(row, "goes")?);
            known.migrations.push(Recorded::from(Entry {
                version: field(row, "version")?,
                name: field(row, "name")?,
                checksum: field(row, "checksum")?,
            }));
        }
        Ok(relations(set, &sets, out_of_order))
    }

    /// The versions that some tenant has by the registry.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn applied_versions(&self) -> Result<BTreeSet<i64>> {
        let sql = "select distinct s.version from tenantd.migration_set s
                   where s.id in (select migration_set from tenantd.tenant where state <> 'deleted')";
        let rows = self.query(sql, &[], || "look which migrations tenants have".to_owned()).await?;
        rows.iter().map(|row| field(row, "version")).collect()
    }

    /// Makes tenants that were parked for their migrations due again: another set may mend them.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn retry_drifted(&self) -> Result<u64> {
        self.session()
            .await?
            .execute_typed(
                "update tenantd.tenant set work = 'due', due_at = now(), failures = 0
                 where work = 'parked' and error_kind in ('drift', 'migration', 'breaks')",
                &[],
            )
            .await
            .doing(|| "make tenants that were parked for their migrations due again".to_owned())
    }
}

/// A set that is in the registry.
#[derive(Default)]
struct Known {
    /// Whether a tenant has it, and not a template alone: an edit that was taken back leaves one behind, which contradicts nobody.
    lives: bool,
    /// Whether a tenant or a template has it.
    made: bool,
    /// Whether it has a rollout that is not through.
    goes: bool,
    migrations: Vec<Recorded>,
}

fn relations(set: &MigrationSet, sets: &BTreeMap<String, Known>, out_of_order: bool) -> Relations {
    let mut relations = Relations { known: vec![set.id()], ..Relations::default() };
    for (id, Known { lives, made, goes, migrations }) in sets {
        if *lives {
            relations.known.push(id.clone());
        }
        let verdict = compare(set, migrations, out_of_order);
        if *goes && matches!(verdict, Verdict::Behind(_)) || *goes && !lives && matches!(verdict, Verdict::Diverged(_))
        {
            relations.overtaken.push(id.clone());
        }
        match verdict {
            _ if !made => {}
            Verdict::Current => {}
            Verdict::Behind(pending) => {
                relations.behind.insert(id.clone(), pending.iter().map(|migration| migration.version).collect());
            }
            Verdict::Newer(_) if !lives => {}
            Verdict::Newer(_) => relations.newer.push(id.clone()),
            Verdict::Diverged(findings) => {
                for finding in findings.into_iter().filter(|_| *lives) {
                    let list = if matches!(finding, Finding::OutOfOrder { .. }) {
                        &mut relations.refused
                    } else {
                        &mut relations.diverged
                    };
                    let text = finding.to_string();
                    if !list.contains(&text) {
                        list.push(text);
                    }
                }
            }
        }
    }
    relations
}
