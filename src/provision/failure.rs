//! What follows when a reconcile fails: whose failure it is, and what is recorded of it.

use std::time::{Duration, Instant};

use super::{Context, Outcome};
use crate::error::{Class, Error, Kind, Result};
use crate::plan::Step;
use crate::registry::claim::{Again, Claim};
use crate::retry::{Next, Schedule, WAIT};

/// So often in a row the connection may break under a tenant's migration before the migration is taken for the cause.
const BREAKS: u32 = 3;

/// Others come first after the server failed one tenant: it may be this tenant's database alone that the server refuses.
const AFTER_SERVER_FAILURE: Duration = Duration::from_secs(2);

/// A tenant that the brakes stopped comes back after about this time, left to chance so that two that stopped each other do not meet again.
const AFTER_BRAKE: Schedule =
    Schedule { first: Duration::from_secs(2), max: Duration::from_secs(3), attempts: u32::MAX };

/// A tenant whose template could not be cloned comes back when another may have been built.
const AFTER_TEMPLATE: Duration = Duration::from_millis(250);

/// A failure, and the step it happened at.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) step: &'static str,
    /// The newest migration that the tenant has all the same, where that may have changed.
    pub(super) version: Option<i64>,
}

/// The failure of `step`.
pub(super) fn at(step: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Failure { error, step, version: None }
}

/// A panic is a fault of ours: it counts against the tenant, so that it is not tried for ever, and takes nothing else down.
pub(super) fn panicked() -> Failure {
    let error = Error::new(Kind::Other, "the work panicked")
        .hint("this is a fault of tenantd: report it with the trace on stderr");
    at("panic")(error)
}

/// A right that is missing on a database that stands is this tenant's matter: somebody changed its owner or its rights; so is a lock that
/// somebody holds on it. What is missing to make one is missing for all.
pub(super) fn of_tenant(error: Error) -> Error {
    match error.kind() {
        Kind::Rights => error.with_kind(Kind::Refused),
        Kind::Locked => error.with_kind(Kind::InUse),
        _ => error,
    }
}

/// Records a failure as its class demands.
pub(super) async fn fail(context: &Context, claim: &Claim, Failure { error, step, version }: Failure) -> Outcome {
    let error =
        if step == Step::Migrate(Vec::new()).word() { blame_for_breaking(context, &claim.key, error) } else { error };
    let next = match error.class() {
        Class::Server => {
            give_back(context, claim, AFTER_SERVER_FAILURE).await;
            return Outcome::Server(error.context(step));
        }
        Class::Leave => {
            match error.kind() {
                Kind::Newer => give_back(context, claim, context.config.sweep.every).await,
                Kind::Braked => give_back(context, claim, AFTER_BRAKE.delay(1)).await,
                Kind::Template => {
                    context.supply.want();
                    give_back(context, claim, AFTER_TEMPLATE).await;
                }
                _ => {}
            }
            return Outcome::Left(error);
        }
        class => context.schedule().next(claim.failures + 1, class),
    };
    let again = match next {
        Next::After(delay) => Again::After(delay),
        Next::Park => Again::Parked,
    };
    match record(context, claim, &error, step, again, version).await {
        Ok(()) => Outcome::Failed { error, parked: next == Next::Park },
        Err(unrecorded) if unrecorded.class() == Class::Leave => Outcome::Left(unrecorded),
        Err(unrecorded) => {
            context.registry.owe();
            Outcome::Server(unrecorded)
        }
    }
}

/// A connection that breaks is the server's matter, until it breaks under the migrations of the same tenant, or template, again and again: a migration that brings
/// the server down must not be tried for ever.
pub(super) fn blame_for_breaking(context: &Context, migrated: &str, error: Error) -> Error {
    if error.kind() != Kind::Unreachable || context.registry.broke(migrated) < BREAKS {
        return error;
    }
    error
        .context(format!("the connection broke {BREAKS} times in a row during the migrations"))
        .with_kind(Kind::Breaks)
        .hint("look into the server's log: the migration may be what brings the server down")
}

/// Records the failure. One that may have brought the server down is recorded once it is up again, or the next try would do the same.
async fn record(
    context: &Context,
    claim: &Claim,
    error: &Error,
    step: &str,
    again: Again,
    version: Option<i64>,
) -> Result<()> {
    let patience = Instant::now() + claim.lease;
    let mut tries = 0;
    loop {
        let recorded = context.registry.record_failure(claim, error, step, again, version).await;
        let unreachable = recorded.as_ref().is_err_and(|unrecorded| unrecorded.class() == Class::Server);
        if !unreachable || error.kind() != Kind::Breaks || Instant::now() > patience {
            return recorded;
        }
        tries += 1;
        tokio::time::sleep(WAIT.delay(tries)).await;
    }
}

/// A lease that cannot be given back now is owed, and ends by itself at the latest.
async fn give_back(context: &Context, claim: &Claim, after: Duration) {
    if let Err(error) = context.registry.release(claim, after).await {
        context.registry.owe();
        tracing::debug!(error = error.chain(), "the lease was not given back yet");
    }
}
