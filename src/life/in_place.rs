//! Where tenants have schemas: one is emptied, or filled from a backup, under its own name. What it held steps aside before, and comes back if that fails.

use std::path::Path;

use crate::backup;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::{Isolation, SchemaIsolation, create, drop_for_good, enter, enter_roles};
use crate::migrations::id_of;
use crate::pg::{Doing, History, Server};
use crate::plan::{Desired, Step};
use crate::provision::Context;
use crate::registry::Registry;
use crate::registry::claim::{Claim, Done};
use crate::registry::dropped::Aside;
use crate::registry::events::What;
use crate::tenant::{Marker, Work, spare_name};

/// Gives the claimed tenant a new schema in the place of its own, which is set aside.
///
/// # Guarantees
/// After a crash in the middle the next sweep makes the new one. After a failure the tenant has its own again.
pub(super) async fn reset(context: &Context, claim: &Claim, desired: &Desired<'_>, aside: Aside<'_>) -> Result<()> {
    let (registry, name) = (&context.registry, desired.name);
    let random = registry.clear_name(claim, name, Some(aside), Work::Due).await?.expect("it was set aside");
    let mut isolation = SchemaIsolation::new(&context.server, registry, &context.config.tenant, &context.tenants);
    let made = async {
        isolation.apply(claim, desired, &Step::Make).await?;
        isolation.apply(claim, desired, &Step::HandOver).await
    };
    if let Err(error) = made.await {
        isolation.give_up().await;
        return Err(put_back(registry, claim, name, Some(&random), error).await);
    }
    let done = Done {
        version: Some(context.set.newest_version()),
        migration_set: context.set.id(),
        access: desired.access.to_owned(),
        migrated: true,
    };
    registry.record_done(&[(claim, &done)]).await?.into_iter().collect::<Result<Vec<()>>>()?;
    let detail = format!("{name}, set aside as {random}");
    registry.tell(What::Reset, Some(&claim.key), Some(&detail)).await
}

/// Fills the claimed tenant's schema from the backup `file`; what it held is set aside, if `aside` says how.
///
/// # Guarantees
/// After a crash in the middle the tenant is requested and held: nothing is put into the place of what it had, which can be restored. After a failure it has its own
/// again.
pub(super) async fn fill(
    server: &Server,
    registry: &Registry,
    config: &Config,
    claim: &Claim,
    (name, file): (&str, &Path),
    aside: Option<Aside<'_>>,
) -> Result<()> {
    backup::must_be_of(server, config, file, name).await?;
    let random = registry.clear_name(claim, name, aside, Work::Held).await?;
    let marker = Marker::of(registry.id, &claim.key).to_string();
    let owner = config.tenant.owner.as_deref().unwrap_or_else(|| config.main.user());
    let filled = async {
        let make = create(name, owner, &marker, &config.tenant);
        registry
            .session_of_tenants()
            .await?
            .batch_execute(&make)
            .await
            .doing(|| format!("make the schema {name:?}"))?;
        reach(Point::FillBegun).await;
        backup::restore(server, config, file, name, &claim.key).await?;
        reach(Point::Filled).await;
        registry.hand_over_made(claim, name, &enter_roles(name, &config.tenant)).await?;
        let session = enter(server, &config.tenant, name, &format!("tenantd:{}", claim.key)).await?;
        let rows = History::tenant(name).look(&session).await?.unwrap_or_default();
        session.close().await;
        let entries: Vec<_> = rows.iter().filter(|row| row.finished).map(|row| row.entry.clone()).collect();
        let whole = !entries.is_empty() && entries.len() == rows.len();
        let version = entries.last().map(|entry| entry.version);
        let from = format!("from {}", file.display());
        registry.filled(claim, version, whole.then(|| id_of(&entries)).as_deref(), &from).await
    };
    match filled.await {
        Ok(()) => Ok(()),
        Err(error) => Err(put_back(registry, claim, name, random.as_deref(), error).await),
    }
}

/// The tenant gets back what it had. What failed is told, and what kept it from that.
async fn put_back(registry: &Registry, claim: &Claim, name: &str, random: Option<&str>, error: Error) -> Error {
    let back = async {
        let half = spare_name();
        let marker = Marker::of(registry.id, &claim.key).to_string();
        if registry.look(name, &marker).await?.is_some_and(|schema| schema.ours) {
            registry.set_aside(claim, name, &half).await?;
            drop_for_good(registry, &half).await?;
            registry.forget_spare(&half).await?;
        }
        match random {
            Some(random) => registry.bring_back(claim, random).await,
            None => Ok(()),
        }
    };
    match back.await {
        Ok(()) => error,
        Err(kept) => {
            let advice = format!("what it held is set aside: `tenantd restore {}` takes it back", claim.key);
            error.context(format!("it could not be put back at once ({})", kept.chain())).hint(advice)
        }
    }
}
