//! Rollback: takes migrations of one tenant back, and holds it where it is then, so that no sweep brings it up again.

use std::time::Duration;

use super::failure::of_tenant;
use super::{Context, under_lease};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::{AnyIsolation, Isolation};
use crate::migrations::back::Target;
use crate::migrations::compare::Recorded;
use crate::migrations::{Migration, MigrationSet};
use crate::plan::{Back, Desired, Observed, plan_back};
use crate::registry::claim::Claim;
use crate::registry::rollback::RolledBack;
use crate::registry::spares::Serving;
use crate::tenant::{Marker, Work};

/// What a rollback of the tenant would do. Nothing is changed; `claim` may be a [glance](crate::registry::Registry::glance).
///
/// # Errors
/// As for [`plan_back`]; the tenant cannot be connected to.
pub async fn look(context: &Context, claim: &Claim, target: Target) -> Result<Back> {
    let tenant = Tenant::of(context, claim)?;
    let (mut isolation, desired) = (tenant.isolation(), tenant.desired());
    Box::pin(observe(&mut isolation, claim, &desired, target)).await.map(|(_, back)| back)
}

/// Takes migrations of the claimed tenant back, and gives the claim back. Returns what was taken back; `before` is done once it is known that
/// something is, and before anything is touched.
///
/// # Flow
/// Observe, plan; `before`; hold the tenant; take back; record version, set and event. The lease is renewed as long as this runs.
///
/// # Guarantees
/// Each migration is taken back whole or not at all; one without a transaction goes on at the next call. After a crash in the middle the tenant
/// is held, and nothing brings it up again until a person lets it go: the next call goes on from where it stands. A failure before anything
/// was taken back leaves the tenant as it was; a later one leaves it held, with the version that it has then and why.
///
/// # Errors
/// As for [`plan_back`] and [`roll_back`](crate::pg::Executor::roll_back); what `before` says; [`Kind::LeaseLost`].
pub async fn roll_back(
    context: &Context,
    claim: &Claim,
    target: Target,
    before: impl AsyncFnOnce() -> Result<()>,
) -> Result<Back> {
    let done = under_lease(&context.registry, claim, Box::pin(work(context, claim, target, before))).await;
    context.registry.put_down(claim);
    done
}

async fn work(
    context: &Context,
    claim: &Claim,
    target: Target,
    before: impl AsyncFnOnce() -> Result<()>,
) -> Result<Back> {
    let tenant = Tenant::of(context, claim)?;
    let (desired, mut isolation) = (tenant.desired(), tenant.isolation());
    let prepared = async {
        let (seen, back) = observe(&mut isolation, claim, &desired, target).await?;
        if back.step().is_some() {
            before().await?;
            if claim.work != Work::Held {
                let detail = format!("to be rolled back from {} to {}", back.from, back.to);
                context.registry.hold_for_rollback(claim, &detail).await?;
            }
            reach(Point::RollbackBegun).await;
        }
        Ok((seen, back))
    };
    let (seen, back, step) = match prepared.await.map(|(seen, back)| (back.step(), seen, back)) {
        Ok((Some(step), seen, back)) => (seen, back, step),
        // A rollback that died before it could say so.
        Ok((None, seen, back)) if claim.work == Work::Held && claim.version != Some(back.from) => {
            record(context, claim, claim.version.unwrap_or(0), back.from, &seen).await?;
            return Ok(back);
        }
        otherwise => {
            give_back(context, context.registry.release(claim, Duration::ZERO).await);
            return otherwise.map(|(.., back)| back);
        }
    };
    if let Err(error) = isolation.apply(claim, &desired, &step).await {
        let error = of_tenant(error);
        isolation.give_up().await;
        let now = isolation.observe(claim, &desired).await.ok();
        give_back(context, stopped(context, claim, &back, (&seen, now.as_ref()), &error).await);
        return Err(error);
    }
    record(context, claim, back.from, back.to, &seen).await?;
    Ok(back)
}

async fn record(context: &Context, claim: &Claim, from: i64, to: i64, seen: &Observed) -> Result<()> {
    let detail = format!("from {from} to {to}");
    let rolled_back = rolled_back(context, (to, applied(seen).unwrap_or_default()), &detail, None).await?;
    context.registry.record_rollback(claim, &rolled_back).await
}

/// Records how far a rollback came that failed: not at all, or to what it has `now`. Where that cannot be seen the lease ends by itself, and
/// the tenant stays held.
async fn stopped(
    context: &Context,
    claim: &Claim,
    back: &Back,
    (seen, now): (&Observed, Option<&Observed>),
    error: &Error,
) -> Result<()> {
    let Some(applied) = now.and_then(applied) else { return Ok(()) };
    if Some(applied) == self::applied(seen) {
        if claim.work == Work::Held {
            return context.registry.release(claim, Duration::ZERO).await;
        }
        let detail = format!("nothing was rolled back: {}", first_line(error));
        return context.registry.let_go_after_rollback(claim, &detail).await;
    }
    let whole = applied.iter().filter(|recorded| recorded.finished && !recorded.half_undone);
    let version = whole.map(|recorded| recorded.entry.version).max().unwrap_or(0);
    let detail = format!("from {} to {version}, not to {}: {}", back.from, back.to, first_line(error));
    context
        .registry
        .record_rollback(claim, &rolled_back(context, (version, applied), &detail, Some(error)).await?)
        .await
}

fn applied(observed: &Observed) -> Option<&[Recorded]> {
    observed.database.as_ref()?.applied.as_deref()
}

fn first_line(error: &Error) -> String {
    error.chain().lines().next().unwrap_or_default().to_owned()
}

/// What is recorded of a tenant that has what is `applied` up to `version`: a set of its own where it is not the beginning of ours, kept whole
/// like every set that ever ran.
async fn rolled_back<'a>(
    context: &Context,
    (version, applied): (i64, &[Recorded]),
    detail: &'a str,
    error: Option<&'a Error>,
) -> Result<RolledBack<'a>> {
    let has = |one: &&Migration| one.version <= version && applied.iter().any(|seen| seen.entry.version == one.version);
    let left: Vec<Migration> = context.set.migrations().iter().filter(has).cloned().collect();
    let left = if left.is_empty() { None } else { Some(MigrationSet::new(context.set.source(), left)?) };
    if let Some(left) = &left {
        context.registry.keep_set(left).await?;
    }
    Ok(RolledBack { version, migration_set: left.map(|left| left.id()), detail, error })
}

/// A lease that cannot be given back now ends by itself.
fn give_back(context: &Context, given: Result<()>) {
    if let Err(error) = given {
        context.registry.owe();
        tracing::debug!(error = error.chain(), "the lease of a rollback was not given back yet");
    }
}

async fn observe(
    isolation: &mut impl Isolation,
    claim: &Claim,
    desired: &Desired<'_>,
    target: Target,
) -> Result<(Observed, Back)> {
    let seen = isolation.observe(claim, desired).await.map_err(of_tenant)?;
    let back = plan_back(desired, &seen, target)?;
    Ok((seen, back))
}

/// What a tenant is looked at and changed with.
struct Tenant<'a> {
    context: &'a Context,
    name: String,
    marker: String,
    access: String,
    set: String,
    shape: String,
}

impl<'a> Tenant<'a> {
    fn of(context: &'a Context, claim: &Claim) -> Result<Tenant<'a>> {
        let name = claim.name.clone();
        let name = name.ok_or_else(|| {
            Error::new(Kind::Missing, format!("tenant {} has no {}", claim.key, context.registry.isolation))
        })?;
        let marker = Marker::of(context.registry.id, &claim.key).to_string();
        let (access, set, shape) = (context.access(), context.set.id(), context.shape());
        Ok(Tenant { context, name, marker, access, set, shape })
    }

    fn desired(&self) -> Desired<'_> {
        Desired {
            isolation: self.context.config.tenant.isolation,
            name: &self.name,
            marker: &self.marker,
            owner: self.context.owner(),
            access: &self.access,
            set: &self.context.set,
            out_of_order: self.context.config.tenant.out_of_order,
        }
    }

    fn isolation(&self) -> AnyIsolation<'_> {
        let newer = &self.context.relations.newer;
        let serving = Serving { newer, migration_set: &self.set, shape: &self.shape };
        let Context { server, registry, config, tenants, .. } = self.context;
        AnyIsolation::new(server, registry, &config.tenant, tenants, serving)
    }
}
