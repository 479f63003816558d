//! A tenant is emptied: it gets a new database, migrated anew, and the one it had is set aside.

use std::time::Duration;

use super::{giving_back, in_place, look, vacated};
use crate::backup::Backups;
use crate::config::Isolation as Kept;
use crate::error::{Error, Kind, Result};
use crate::isolation::{DatabaseIsolation, Isolation};
use crate::plan::{Desired, Step};
use crate::provision::{Context, template};
use crate::registry::claim::Claim;
use crate::registry::dropped::Aside;
use crate::registry::events::What;
use crate::registry::spares::Serving;
use crate::tenant::Marker;

/// How a tenant is emptied.
#[derive(Debug, Clone, Copy)]
pub struct Resetting<'a> {
    /// Where a backup is written before; `None`: without one.
    pub backups: Option<&'a Backups>,
    /// How long what it held can be taken back.
    pub grace: Duration,
    /// How long to wait for sessions in it that our role may not end.
    pub patience: Duration,
}

/// Makes sure that there is a template to make new databases of. Before the first tenant is touched.
///
/// # Errors
/// [`Kind::Drift`] for a migration set that is refused; those of [`template::ensure`], unless an older template serves.
pub async fn prepare(context: &Context) -> Result<()> {
    if !context.relations.refused.is_empty() {
        return Err(
            Error::new(Kind::Drift, context.relations.refused.join(" ")).context("the migration set is refused")
        );
    }
    match template::ensure(context).await {
        Err(error) if !context.supply.is_served() => Err(error),
        _ => Ok(()),
    }
}

/// Gives the claimed tenant a new database, and sets its own aside. The claim is given back, however it ends.
///
/// # Flow
/// A backup; a clone of the template, or a spare; the present database closed and left by all; then one fenced transaction that sets it aside and
/// names the new one.
///
/// # Guarantees
/// Under the real name there is the one database or the other, whole. After a crash before the last step the tenant is as it was, at worst closed
/// until the next look at it.
///
/// # Errors
/// As for [`drop_tenant`](super::drop::drop_tenant); [`Kind::Template`] when no database can be made.
pub async fn reset(context: &Context, claim: &Claim, how: Resetting<'_>) -> Result<Option<String>> {
    let done = giving_back(&context.registry, claim, replace(context, claim, how)).await;
    done.map_err(|error| error.context(format!("reset tenant {}", claim.key)))
}

/// Returns the backup's file.
async fn replace(context: &Context, claim: &Claim, how: Resetting<'_>) -> Result<Option<String>> {
    let registry = &context.registry;
    let gone = || {
        Error::new(Kind::Missing, format!("tenant {} has no {}", claim.key, registry.isolation))
            .hint("`tenantd status` says why")
    };
    let name = claim.name.as_deref().ok_or_else(gone)?;
    look(registry, claim, name).await?.ok_or_else(gone)?;
    let backup = match how.backups {
        Some(backups) => Some(backups.write(&claim.key, name).await?.file.display().to_string()),
        None => None,
    };
    let (own_set, shape, access) = (context.set.id(), context.shape(), context.access());
    let marker = Marker::of(registry.id, &claim.key).to_string();
    let desired = Desired {
        isolation: registry.isolation,
        name,
        marker: &marker,
        owner: context.owner(),
        access: &access,
        set: &context.set,
        out_of_order: context.config.tenant.out_of_order,
    };
    if registry.isolation == Kept::Schema {
        let aside = Aside { what: What::Reset, backup: backup.as_deref(), grace: how.grace };
        in_place::reset(context, claim, &desired, aside).await?;
        return Ok(backup);
    }
    let serving = Serving { newer: &context.relations.newer, migration_set: &own_set, shape: &shape };
    let mut isolation = DatabaseIsolation::new(&context.server, registry, &context.config.tenant, serving);
    let done = async {
        isolation.apply(claim, &desired, &Step::Make).await?;
        let spare = isolation.made().expect("made above").to_owned();
        let aside = Aside { what: What::Reset, backup: backup.as_deref(), grace: how.grace };
        let detail = backup.as_deref().map_or_else(|| "without a backup".to_owned(), |file| format!("backup {file}"));
        let exchange = registry.exchange(claim, name, &spare, Some(aside), What::Reset, &detail);
        vacated(registry, claim, name, how.patience, exchange).await
    };
    let done = done.await;
    if done.is_err() {
        isolation.give_up().await;
    }
    done.map(|()| backup)
}
