//! Reconcile: bring one claimed tenant from what is observed to what is desired. The only way a tenant ever changes.

mod context;
pub mod expected;
mod failure;
pub mod foresight;
pub mod fresh;
pub mod rollback;
pub mod scratch;
pub mod spare;
mod step;
mod supply;
pub mod template;
pub mod trial;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tracing::Instrument;

pub use self::context::{Context, Gate};
use self::failure::{Failure, at, fail, of_tenant, panicked};
use self::step::step;
pub use self::supply::{RoomLeft, Supply};
use crate::backup::Backups;
use crate::config::Isolation as Kept;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::{AnyIsolation, Isolation};
use crate::migrations::MigrationSet;
use crate::plan::{Desired, Step, plan};
use crate::registry::Registry;
use crate::registry::claim::{Claim, Done};
use crate::registry::spares::Serving;
use crate::tenant::Marker;

/// Looks until nothing is left to do. A closed database takes one look to open and one for the inside; more is a loop.
const LOOKS: usize = 4;

/// How a reconcile ended.
#[derive(Debug)]
pub enum Outcome {
    /// The tenant is as it should be.
    Ready {
        /// Whether its database was made by this reconcile.
        made: bool,
        /// Which migrations ran.
        migrated: Vec<i64>,
    },
    /// The tenant's own failure, recorded with it.
    Failed {
        /// Why.
        error: Error,
        /// Whether it is out of tries.
        parked: bool,
    },
    /// Nothing was recorded: the lease went to somebody else, the tenant is newer than we are, or the brakes or a missing template hold it back.
    Left(Error),
    /// The server's failure: no tenant is to blame, and every other would meet it too.
    Server(Error),
}

/// A reconcile that has come to its end.
#[derive(Debug)]
pub struct Ended {
    /// The tenant's key.
    pub key: String,
    /// How.
    pub outcome: Outcome,
    /// How old the signup was when its tenant was claimed.
    pub age: Duration,
    /// How long the work took.
    pub took: Duration,
}

/// What [`bring`] came to.
#[derive(Debug)]
pub enum Brought {
    /// To its end, which the registry knows.
    Ended(Ended),
    /// To what is desired, which [`record`] has still to say.
    Unrecorded(Box<Unrecorded>),
}

/// A tenant that is as it should be, which the registry does not know yet.
#[derive(Debug)]
pub struct Unrecorded {
    claim: Claim,
    done: Done,
    made: bool,
    migrated: Vec<i64>,
    began: Instant,
}

/// How the work on a tenant came to its end, short of a failure.
enum Worked {
    /// The step that ended it has recorded it, too.
    Recorded(Outcome),
    /// Nothing is left to do but to record it.
    Unrecorded {
        /// Whether it was made.
        made: bool,
        /// Which migrations ran.
        migrated: Vec<i64>,
    },
}

/// Brings the claimed tenant to what is desired, and records how it ended: [`bring`] and [`record`].
///
/// # Flow
/// Observe, plan, apply each step, until the plan is empty; then record. The lease is renewed as long as this runs.
///
/// # Guarantees
/// Every write names the claim's attempt: after the lease is lost nothing is written and no step begins. A crash between any two steps
/// leaves a state that the next reconcile of the tenant goes on from; the real name never shows a half-made database.
///
/// # Assumptions
/// The claim was taken by this process just now.
///
/// # Caveats
/// Dropping the future stops no statement that the server runs already.
pub async fn reconcile(context: &Context, claim: Claim) -> Ended {
    match bring(context, claim).await {
        Brought::Ended(ended) => ended,
        Brought::Unrecorded(unrecorded) => {
            record(context, vec![*unrecorded]).await.pop().expect("one was to be recorded, and one ended")
        }
    }
}

/// The same as [`reconcile`] short of the last record, which several tenants may share.
///
/// What is not recorded within the lease may be done once more by somebody else, who finds nothing to do.
pub async fn bring(context: &Context, claim: Claim) -> Brought {
    let began = Instant::now();
    let span = tracing::info_span!("reconcile", key = claim.key, attempt = claim.attempt);
    let until = Mutex::new(claim.until);
    async {
        let (target, worked) = tokio::select! {
            worked = work_towards_target(context, &claim, &until) => worked,
            error = keep_lease(&context.registry, &claim, &until) => (Arc::clone(&context.set), Err(at("renew")(error))),
        };
        let outcome = match worked {
            Ok(Worked::Unrecorded { made, migrated }) => {
                let done = Done {
                    version: Some(target.newest_version()),
                    migration_set: target.id(),
                    access: context.access(),
                    migrated: made || !migrated.is_empty(),
                };
                return Brought::Unrecorded(Box::new(Unrecorded { claim, done, made, migrated, began }));
            }
            Ok(Worked::Recorded(outcome)) => outcome,
            Err(failure) => fail(context, &claim, failure).await,
        };
        Brought::Ended(end(context, &claim, outcome, began))
    }
    .instrument(span)
    .await
}

/// Records in one statement that all of `unrecorded` are as they should be. Each is fenced by itself: one that somebody else has by now is
/// left out, and ends so.
pub async fn record(context: &Context, unrecorded: Vec<Unrecorded>) -> Vec<Ended> {
    if unrecorded.is_empty() {
        return Vec::new();
    }
    reach(Point::Looked).await;
    let done: Vec<_> = unrecorded.iter().map(|tenant| (&tenant.claim, &tenant.done)).collect();
    let recorded = step("record", context.registry.record_done(&done)).await;
    let outcomes: Vec<Outcome> = match recorded {
        Ok(recorded) => {
            let outcome = |(tenant, recorded): (&Unrecorded, Result<()>)| match recorded {
                Ok(()) => Outcome::Ready { made: tenant.made, migrated: tenant.migrated.clone() },
                Err(lost) => Outcome::Left(lost),
            };
            unrecorded.iter().zip(recorded).map(outcome).collect()
        }
        Err(error) => {
            context.registry.owe();
            done.iter().map(|_| Outcome::Server(copy(&error).context("record"))).collect()
        }
    };
    let ends = unrecorded.iter().zip(outcomes);
    ends.map(|(tenant, outcome)| end(context, &tenant.claim, outcome, tenant.began)).collect()
}

/// One failure that several tenants met together.
fn copy(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.chain());
    let copy = error.code().map(str::to_owned).into_iter().fold(copy, Error::sqlstate);
    error.advice().map(str::to_owned).into_iter().fold(copy, Error::hint)
}

fn end(context: &Context, claim: &Claim, outcome: Outcome, began: Instant) -> Ended {
    if matches!(outcome, Outcome::Ready { .. } | Outcome::Failed { .. }) {
        context.registry.unbroken(&claim.key);
    }
    context.registry.put_down(claim);
    Ended { key: claim.key.clone(), outcome, age: claim.age, took: began.elapsed() }
}

/// Brings the tenant to the set that it is up for, and tells which that is.
async fn work_towards_target(
    context: &Context,
    claim: &Claim,
    until: &Mutex<Instant>,
) -> (Arc<MigrationSet>, std::result::Result<Worked, Failure>) {
    let work = async |target: &MigrationSet| {
        let worked = AssertUnwindSafe(work(context, target, claim.clone(), until)).catch_unwind().await;
        worked.unwrap_or_else(|_| Err(panicked()))
    };
    let target = context.target(claim);
    let worked = work(&target).await;
    // It holds more than the registry knew, as after a restored backup of the main database: then it has been up before.
    let has_more = worked.as_ref().is_err_and(|failure| failure.error.kind() == Kind::Newer);
    if has_more && !Arc::ptr_eq(&target, &context.set) {
        return (Arc::clone(&context.set), work(&context.set).await);
    }
    (target, worked)
}

async fn work(
    context: &Context,
    target: &MigrationSet,
    mut claim: Claim,
    until: &Mutex<Instant>,
) -> std::result::Result<Worked, Failure> {
    reach(Point::Claimed).await;
    let name = step("name", name(context, &mut claim)).await.map_err(at("name"))?;
    let access = context.access();
    let marker = Marker::of(context.registry.id, &claim.key).to_string();
    let desired = Desired {
        isolation: context.config.tenant.isolation,
        name: &name,
        marker: &marker,
        owner: context.owner(),
        access: &access,
        set: target,
        out_of_order: context.config.tenant.out_of_order,
    };
    let (own_set, shape) = (context.set.id(), context.shape());
    let serving = Serving { newer: &context.relations.newer, migration_set: &own_set, shape: &shape };
    let mut isolation =
        AnyIsolation::new(&context.server, &context.registry, &context.config.tenant, &context.tenants, serving);
    let result = approach(context, &mut isolation, &mut claim, &desired, until).await;
    if result.is_err() {
        isolation.give_up().await;
    }
    result
}

/// The name of the tenant's database: given once, kept also when the settings change that it was made by.
async fn name(context: &Context, claim: &mut Claim) -> Result<String> {
    if let Some(name) = &claim.name {
        return Ok(name.clone());
    }
    let names = &context.config.tenant.names;
    let name = names.of(&claim.key)?;
    let given = context.registry.give_name(claim, &name).await.map_err(|error| match error.kind() {
        Kind::BadKey => error.hint(names.advice()),
        Kind::Locked if names.may_meet() => error
            .with_kind(Kind::InUse)
            .hint("another key that comes to this name signs up in a transaction that is still open"),
        _ => error,
    });
    claim.seen = Some(given?);
    claim.name = Some(name.clone());
    reach(Point::Named).await;
    Ok(name)
}

/// Observe, plan, apply, until nothing is left to do.
async fn approach(
    context: &Context,
    isolation: &mut impl Isolation,
    claim: &mut Claim,
    desired: &Desired<'_>,
    until: &Mutex<Instant>,
) -> std::result::Result<Worked, Failure> {
    let mut migrated = Vec::new();
    for _ in 0..LOOKS {
        let observing = step("observe", isolation.observe(claim, desired));
        let observed = observing.await.map_err(of_tenant).map_err(at("observe"))?;
        let here = observed.database.is_some();
        let whole = observed.database.as_ref().is_some_and(|database| database.applied.is_some());
        let steps = plan(desired, &observed).map_err(at("plan"))?;
        if steps.is_empty() {
            return Ok(Worked::Unrecorded { made: false, migrated });
        }
        for next in &steps {
            still_leased(claim, until).map_err(at(next.word()))?;
            if *next == Step::Make {
                brake(context).await.map_err(at(next.word()))?;
            }
            if here && matches!(next, Step::Migrate(_)) && context.config.backup.before_migrate {
                step("back_up", back_up(context, &claim.key, desired.name)).await.map_err(at("back_up"))?;
            }
            let applied = step(next.word(), isolation.apply(claim, desired, next)).await;
            if let Err(error) = applied {
                // Of several migrations the first may be in, and usable.
                let version = if here && matches!(next, Step::Migrate(_)) { isolation.version().await } else { None };
                return Err(Failure { error: if here { of_tenant(error) } else { error }, step: next.word(), version });
            }
            match next {
                Step::Migrate(versions) => migrated.extend(versions),
                Step::HandOver if context.config.tenant.isolation == Kept::Schema => {
                    return Ok(Worked::Unrecorded { made: true, migrated });
                }
                Step::HandOver => return Ok(Worked::Recorded(Outcome::Ready { made: true, migrated })),
                Step::Grant => claim.access = Some(desired.access.to_owned()),
                Step::TakeBack => claim.database_oid = observed.database.as_ref().map(|database| database.oid),
                Step::DropInvalid => claim.database_oid = None,
                Step::Make | Step::Close | Step::Own | Step::Open | Step::RollBack { .. } => {}
            }
        }
        // What a look from outside and from within found missing is done with its steps; only what it could not see takes another.
        if whole {
            return Ok(Worked::Unrecorded { made: false, migrated });
        }
    }
    Err(at("plan")(Error::new(
        Kind::Other,
        format!("the tenant does not come to rest: after {LOOKS} looks there is still something to do"),
    )))
}

/// Refuses to make a database that the brakes do not allow.
///
/// Whoever claims looks at the brakes too, but a moment earlier: two daemons, or a sweep beside the intake, could see the same room. Near the end
/// each is counted among those being made, so that together they never go beyond; at worst both step back, and one is quicker next time.
async fn brake(context: &Context) -> Result<()> {
    if context.supply.room().is_some_and(|left| !left.near) {
        return Ok(());
    }
    let counted = context.registry.room().await?;
    let (max, per_hour) = (i64::from(context.config.tenant.max), i64::from(context.config.tenant.max_per_hour));
    if counted.tenants > max || per_hour > 0 && counted.last_hour > per_hour {
        return Err(Error::new(Kind::Braked, "tenant.max or tenant.max_per_hour is reached"));
    }
    Ok(())
}

async fn back_up(context: &Context, key: &str, name: &str) -> Result<()> {
    let backups = Backups::open(&context.server, &context.registry, &context.config).await?;
    backups.write(key, name).await.map(drop)
}

fn still_leased(claim: &Claim, until: &Mutex<Instant>) -> Result<()> {
    if Instant::now() < *until.lock().unwrap_or_else(PoisonError::into_inner) {
        return Ok(());
    }
    Err(Error::new(Kind::LeaseLost, format!("the lease on tenant {} ran out", claim.key)))
}

/// Does `work` under `claim`, whose lease is renewed meanwhile.
///
/// # Errors
/// Those of `work`; [`Kind::LeaseLost`]: then `work` was dropped where it stood, and nothing may be written any more.
pub async fn under_lease<T>(registry: &Registry, claim: &Claim, work: impl Future<Output = Result<T>>) -> Result<T> {
    let until = Mutex::new(claim.until);
    tokio::select! {
        done = work => done,
        lost = keep_lease(registry, claim, &until) => Err(lost),
    }
}

/// Renews the lease every third of its length, for as long as the work's own task lives. Returns only when the lease is lost.
async fn keep_lease(registry: &Registry, claim: &Claim, until: &Mutex<Instant>) -> Error {
    loop {
        tokio::time::sleep(claim.lease / 3).await;
        let end = *until.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that does not answer must not keep the work going beyond the lease.
        match tokio::time::timeout_at(end.into(), registry.renew(claim)).await {
            Ok(Ok(renewed)) => *until.lock().unwrap_or_else(PoisonError::into_inner) = renewed,
            Ok(Err(error)) if error.kind() == Kind::LeaseLost => return error,
            Ok(Err(error)) => {
                tracing::debug!(error = error.chain(), "the lease could not be renewed; tried again");
                if let Err(lost) = still_leased(claim, until) {
                    return lost.because(error);
                }
            }
            Err(_) => return Error::new(Kind::LeaseLost, format!("the lease on tenant {} ran out", claim.key)),
        }
    }
}
