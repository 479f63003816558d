//! Reconcile: bring one claimed tenant from what is observed to what is desired. The only way a tenant ever changes.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use tracing::Instrument;

use crate::config::Config;
use crate::error::{Class, Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::{DatabaseIsolation, Isolation};
use crate::migrations::MigrationSet;
use crate::pg::Server;
use crate::plan::{Desired, Step, plan};
use crate::registry::Registry;
use crate::registry::claim::{Again, Claim, Done};
use crate::registry::hand_over::Stray;
use crate::registry::sets::Relations;
use crate::registry::sweep::Room;
use crate::retry::{Next, Schedule, WAIT};
use crate::tenant::{Marker, database_name, hex};

/// Looks until nothing is left to do. A closed database takes one look to open and one for the inside; more is a loop.
const LOOKS: usize = 4;

/// So often in a row the connection may break under a tenant's migration before the migration is taken for the cause.
const BREAKS: u32 = 3;

/// Others come first after the server failed one tenant: it may be this tenant's database alone that the server refuses.
const AFTER_SERVER_FAILURE: Duration = Duration::from_secs(2);

/// A tenant that the brakes stopped comes back after about this time, left to chance so that two that stopped each other do not meet again.
const AFTER_BRAKE: Schedule =
    Schedule { first: Duration::from_secs(2), max: Duration::from_secs(3), attempts: u32::MAX };

/// After this time a CREATE DATABASE that outlived its daemon cannot still be running: it has a `statement_timeout` of a minute.
const FORGET_SPARES_AFTER: Duration = Duration::from_mins(15);

/// Everything a reconcile needs, the same for every tenant.
#[derive(Clone)]
pub struct Context {
    /// The server that the tenants' databases are on.
    pub server: Server,
    /// Where the truth is.
    pub registry: Registry,
    /// The settings in force.
    pub config: Arc<Config>,
    /// The migrations every tenant should have.
    pub set: Arc<MigrationSet>,
    /// How the set compares with those that tenants have.
    pub relations: Relations,
}

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
    /// Nothing was recorded: the lease went to somebody else, the tenant is newer than we are, or the brakes hold it back.
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

/// A failure, and the step it happened at.
struct Failure {
    error: Error,
    step: &'static str,
    /// The newest migration that the tenant has all the same, where that may have changed.
    version: Option<i64>,
}

/// The failure of `step`.
fn at(step: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Failure { error, step, version: None }
}

impl Context {
    /// Puts a context together: writes the set down in the registry and compares it with the sets that tenants have.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn prepare(
        server: Server,
        registry: Registry,
        config: Arc<Config>,
        set: Arc<MigrationSet>,
    ) -> Result<Context> {
        registry.keep_set(&set).await?;
        let relations = registry.relate(&set, config.tenant.out_of_order).await?;
        Ok(Context { server, registry, config, set, relations })
    }

    /// The role that owns every tenant.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.config.tenant.owner.as_deref().unwrap_or_else(|| self.config.main.user())
    }

    /// The fingerprint of owner and grants: when a setting of them changes, every tenant is behind.
    #[must_use]
    pub fn access(&self) -> String {
        let as_set = |roles: &[String]| roles.iter().cloned().collect::<BTreeSet<_>>();
        let text = format!(
            "{:?}",
            (self.owner(), as_set(&self.config.tenant.use_roles), as_set(&self.config.tenant.connect_roles))
        );
        hex(&Sha256::digest(text.as_bytes()))
    }

    /// How many more tenants the brakes let be made.
    #[must_use]
    pub fn room(&self, counted: Room) -> i64 {
        let of_server = i64::from(self.config.tenant.max) - counted.tenants;
        let per_hour = i64::from(self.config.tenant.max_per_hour);
        let room = if per_hour == 0 { of_server } else { of_server.min(per_hour - counted.last_hour) };
        room.max(0)
    }

    fn schedule(&self) -> Schedule {
        let retry = &self.config.retry;
        Schedule { first: retry.first, max: retry.max, attempts: retry.attempts }
    }
}

/// Brings the claimed tenant to what is desired, and records how it ended.
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
    let began = Instant::now();
    let span = tracing::info_span!("reconcile", key = claim.key, attempt = claim.attempt);
    let until = Mutex::new(claim.until);
    async {
        let worked = tokio::select! {
            worked = AssertUnwindSafe(work(context, claim.clone(), &until)).catch_unwind() => worked.unwrap_or_else(|_| Err(panicked())),
            error = keep_lease(&context.registry, &claim, &until) => Err(at("renew")(error)),
        };
        let outcome = match worked {
            Ok(outcome) => outcome,
            Err(failure) => fail(context, &claim, failure).await,
        };
        if matches!(outcome, Outcome::Ready { .. } | Outcome::Failed { .. }) {
            context.registry.unbroken(&claim);
        }
        context.registry.put_down(&claim);
        Ended { key: claim.key.clone(), outcome, age: claim.age, took: began.elapsed() }
    }
    .instrument(span)
    .await
}

/// A panic is a fault of ours: it counts against the tenant, so that it is not tried for ever, and takes nothing else down.
fn panicked() -> Failure {
    let error = Error::new(Kind::Other, "the work panicked")
        .hint("this is a fault of tenantd: report it with the trace on stderr");
    at("panic")(error)
}

async fn work(context: &Context, mut claim: Claim, until: &Mutex<Instant>) -> std::result::Result<Outcome, Failure> {
    reach(Point::Claimed);
    let name = name(context, &mut claim).await.map_err(at("name"))?;
    let access = context.access();
    let marker = Marker::of(context.registry.id, &claim.key).to_string();
    let desired = Desired {
        name: &name,
        marker: &marker,
        owner: context.owner(),
        access: &access,
        set: &context.set,
        out_of_order: context.config.tenant.out_of_order,
    };
    let mut isolation = DatabaseIsolation::new(&context.server, &context.registry, &context.config.tenant);
    let result = approach(context, &mut isolation, &mut claim, &desired, until).await;
    if result.is_err() {
        isolation.give_up().await;
    }
    result
}

/// The name of the tenant's database: given once, kept also when `tenant.prefix` changes.
async fn name(context: &Context, claim: &mut Claim) -> Result<String> {
    if let Some(name) = &claim.name {
        return Ok(name.clone());
    }
    let name = database_name(&context.config.tenant.prefix, &claim.key)?;
    context.registry.give_name(claim, &name).await?;
    claim.name = Some(name.clone());
    reach(Point::Named);
    Ok(name)
}

/// Observe, plan, apply, until nothing is left to do.
async fn approach(
    context: &Context,
    isolation: &mut impl Isolation,
    claim: &mut Claim,
    desired: &Desired<'_>,
    until: &Mutex<Instant>,
) -> std::result::Result<Outcome, Failure> {
    let mut migrated = Vec::new();
    for _ in 0..LOOKS {
        let observed = isolation.observe(claim, desired).await.map_err(of_tenant).map_err(at("observe"))?;
        let here = observed.database.is_some();
        let steps = plan(desired, &observed).map_err(at("plan"))?;
        let done = Done {
            version: Some(desired.set.newest_version()),
            migration_set: desired.set.id(),
            access: desired.access.to_owned(),
            migrated: !migrated.is_empty(),
        };
        if steps.is_empty() {
            reach(Point::Looked);
            context.registry.record_done(claim, &done).await.map_err(at("record"))?;
            return Ok(Outcome::Ready { made: false, migrated });
        }
        for step in &steps {
            still_leased(claim, until).map_err(at(step.word()))?;
            let span = tracing::debug_span!("step", step = step.word());
            if *step == Step::Make {
                brake(context).await.map_err(at(step.word()))?;
            }
            let applied = isolation.apply(claim, desired, step, &done).instrument(span).await;
            if let Err(error) = applied {
                // Of several migrations the first may be in, and usable.
                let version = if here && matches!(step, Step::Migrate(_)) { isolation.version().await } else { None };
                return Err(Failure { error: if here { of_tenant(error) } else { error }, step: step.word(), version });
            }
            match step {
                Step::Migrate(versions) => migrated.extend(versions),
                Step::HandOver => return Ok(Outcome::Ready { made: true, migrated }),
                Step::Grant => claim.access = Some(desired.access.to_owned()),
                Step::TakeBack => claim.database_oid = observed.database.as_ref().map(|database| database.oid),
                Step::DropInvalid => claim.database_oid = None,
                Step::Make | Step::Close | Step::Own | Step::Open => {}
            }
        }
    }
    Err(at("plan")(Error::new(
        Kind::Other,
        format!("the tenant does not come to rest: after {LOOKS} looks there is still something to do"),
    )))
}

/// Refuses to make a database that the brakes do not allow.
///
/// Whoever claims looks at the brakes too, but a moment earlier: two daemons, or a sweep beside the intake, could see the same room. Here
/// each is counted among those being made, so that together they never go beyond; at worst both step back, and one is quicker next time.
async fn brake(context: &Context) -> Result<()> {
    let counted = context.registry.room().await?;
    let (max, per_hour) = (i64::from(context.config.tenant.max), i64::from(context.config.tenant.max_per_hour));
    if counted.tenants > max || per_hour > 0 && counted.last_hour > per_hour {
        return Err(Error::new(Kind::Braked, "tenant.max or tenant.max_per_hour is reached"));
    }
    Ok(())
}

/// A right that is missing on a database that stands is this tenant's matter: somebody changed its owner or its rights; so is a lock that
/// somebody holds on it. What is missing to make one is missing for all.
fn of_tenant(error: Error) -> Error {
    match error.kind() {
        Kind::Rights => error.with_kind(Kind::Refused),
        Kind::Locked => error.with_kind(Kind::InUse),
        _ => error,
    }
}

fn still_leased(claim: &Claim, until: &Mutex<Instant>) -> Result<()> {
    if Instant::now() < *until.lock().unwrap_or_else(PoisonError::into_inner) {
        return Ok(());
    }
    Err(Error::new(Kind::LeaseLost, format!("the lease on tenant {} ran out", claim.key)))
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

/// Records a failure as its class demands.
async fn fail(context: &Context, claim: &Claim, Failure { error, step, version }: Failure) -> Outcome {
    let error =
        if step == Step::Migrate(Vec::new()).word() { blame_for_breaking(context, claim, error) } else { error };
    let next = match error.class() {
        Class::Server => {
            give_back(context, claim, AFTER_SERVER_FAILURE).await;
            return Outcome::Server(error.context(step));
        }
        Class::Leave => {
            match error.kind() {
                Kind::Newer => give_back(context, claim, context.config.sweep.every).await,
                Kind::Braked => give_back(context, claim, AFTER_BRAKE.delay(1)).await,
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

/// A connection that breaks is the server's matter, until it breaks under the same tenant's migration again and again: a migration that brings
/// the server down must not be tried for ever.
fn blame_for_breaking(context: &Context, claim: &Claim, error: Error) -> Error {
    if error.kind() != Kind::Unreachable || context.registry.broke(claim) < BREAKS {
        return error;
    }
    error
        .context(format!("the connection broke {BREAKS} times in a row while this tenant was migrated"))
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

/// Drops databases under random names that no live claim is making: what died daemons left. Returns how many.
///
/// A young name is not forgotten: a CREATE DATABASE that outlived its daemon may still bring its database about.
///
/// # Errors
/// The main database cannot be reached. A spare that cannot be dropped now is tried again by the next sweep.
pub async fn drop_strays(registry: &Registry) -> Result<u64> {
    let mut dropped = 0;
    for Stray { name, old, there } in registry.stray_spares(FORGET_SPARES_AFTER).await? {
        if there {
            let session = registry.session().await?;
            if let Err(error) = crate::pg::admin::drop_database(&session, &name).await {
                tracing::warn!(
                    spare = name,
                    error = error.chain(),
                    hint = error.advice(),
                    "a half-made database could not be dropped"
                );
                continue;
            }
            dropped += 1;
        }
        if old {
            registry.forget_spare(&name).await?;
        }
    }
    Ok(dropped)
}
