//! The plans carried out, one tenant after the other.

use super::judge::Plan;
use super::{Adopt, Report};
use crate::commands::given::Given;
use crate::config::Isolation;
use crate::error::Result;
use crate::fail_points::{Point, reach};
use crate::isolation::{enter, executor};
use crate::migrations::MigrationSet;
use crate::provision::under_lease;
use crate::registry::Registry;
use crate::registry::adopt::Adoption;
use crate::shutdown::Requests;
use crate::tenant::State;

pub(super) async fn all(
    given: &Given,
    registry: &Registry,
    plans: Vec<Plan>,
    arguments: &Adopt,
    requests: &Requests,
    report: &mut Report,
) {
    for plan in plans {
        if requests.stop.is_cancelled() {
            report.cut_off = true;
            break;
        }
        match one(given, registry, &plan, arguments).await {
            Ok(()) => report.adopted.push(plan.key),
            Err(error) => report.failed.push((plan.key, error)),
        }
    }
    if let Err(error) = registry.release_all().await {
        tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
    }
}

/// The tenant is claimed where there is one. A crash before the last transaction leaves a database that was given to its owner, perhaps with
/// its history written down, and is adopted by the next try.
async fn one(given: &Given, registry: &Registry, plan: &Plan, arguments: &Adopt) -> Result<()> {
    let states = [State::Requested, State::Ready, State::Deleted];
    let claim = match &plan.tenant {
        Some(_) => Some(registry.claim_by_hand(&plan.key, &states, arguments.patience.timeout).await?),
        None => None,
    };
    let work = async {
        if let (true, Some(set)) = (plan.baseline, &plan.set) {
            baseline(given, registry, plan, set).await?;
        }
        let migration_set = plan.set.as_ref().map(MigrationSet::id);
        if let Some(set) = &plan.set {
            registry.keep_set(set).await?;
        }
        let detail = detail(registry.isolation, plan);
        let adoption = Adoption {
            key: &plan.key,
            database: &plan.database,
            version: plan.version,
            migration_set: migration_set.as_deref(),
            detail: &detail,
        };
        registry.adopt(claim.as_ref(), adoption).await?;
        reach(Point::Adopted).await;
        Ok(())
    };
    match &claim {
        Some(claim) => under_lease(registry, claim, work).await,
        None => work.await,
    }
}

fn detail(kind: Isolation, plan: &Plan) -> String {
    let version =
        plan.version.map_or_else(|| "without migrations".to_owned(), |version| format!("at version {version}"));
    let how = if plan.baseline { ", written down as applied" } else { "" };
    format!("the {kind} {} (oid {}) {version}{how}", plan.database.name, plan.database.oid)
}

/// Gives the database to its owner, whose the history is to be, and writes that.
async fn baseline(given: &Given, registry: &Registry, plan: &Plan, set: &MigrationSet) -> Result<()> {
    let settings = &given.config.tenant;
    let (name, owner) = (&plan.database.name, settings.owner.as_deref().unwrap_or_else(|| given.config.main.user()));
    if plan.database.owner != owner {
        registry.own_database(&plan.database, &plan.key, owner).await?;
        reach(Point::Owned).await;
    }
    let session = enter(&given.server, settings, name, &format!("tenantd:{}", plan.key)).await?;
    let executor = executor(name, set, settings, &registry.worker);
    let written = executor.baseline(&session).await;
    session.close().await;
    if written.is_ok() {
        reach(Point::Baselined).await;
    }
    written.map_err(|error| error.context(format!("write down what the {} {name:?} has", registry.isolation)))
}
