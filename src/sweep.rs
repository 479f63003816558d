//! A sweep: choose every tenant that is missing, due, behind or unverified, and reconcile each. Periodic and by hand are the same code.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::provision::spare::drop_strays;
use crate::provision::{Context, Ended, Outcome, reconcile, template};
use crate::registry::sets::Relations;
use crate::registry::signup::Table;
use crate::registry::sweep::{Candidate, Expected};
use crate::retry::WAIT;
use crate::tasks::Tasks;

/// So many failures of the server in a row end a sweep: it is not one tenant's database that is refused.
const SERVER_FAILURES: usize = 5;

/// The longest that a question to the main database may take, with a large signup table to be read. More is no answer any more.
const ANSWER: Duration = Duration::from_mins(10);

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Report {
    /// Users without a tenant that were found in the signup table.
    pub requested: u64,
    /// Why the signup table could not be read whole, if so.
    pub unread: Option<Error>,
    /// Tenants that needed a look.
    pub chosen: usize,
    /// Databases made.
    pub made: usize,
    /// Tenants in which migrations ran.
    pub migrated: usize,
    /// Tenants that were looked at and are as they should be now, those made and migrated among them.
    pub ready: usize,
    /// Tenants that failed, each with why.
    pub failed: Vec<Failed>,
    /// Tenants that somebody else is working on.
    pub busy: usize,
    /// Tenants that have migrations which this tenantd does not carry: left alone.
    pub newer: i64,
    /// Requested tenants that the brakes (`tenant.max`, `tenant.max_per_hour`) hold back.
    pub braked: usize,
    /// Why no tenant could be made of the newest migrations, for want of their template, if so.
    pub template: Option<Error>,
    /// Half-made databases that nobody was making, dropped.
    pub strays: u64,
    /// The server's failure that ended the sweep early.
    pub server: Option<Error>,
    /// Tenants that were chosen and not reached, because the sweep ended early.
    pub unreached: usize,
    /// How long it took.
    pub took: Duration,
}

/// A tenant that a sweep could not bring to what is desired.
#[derive(Debug)]
pub struct Failed {
    /// Its key.
    pub key: String,
    /// Why.
    pub error: Error,
    /// Whether it is out of tries.
    pub parked: bool,
}

/// How a sweep runs.
#[derive(Debug, Clone)]
pub struct Run {
    /// A person asked: failing and parked tenants are tried now.
    pub by_hand: bool,
    /// Ends the sweep after the tenants in hand.
    pub stop: CancellationToken,
}

impl Report {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty()
            && self.server.is_none()
            && self.unreached == 0
            && self.newer == 0
            && self.unread.is_none()
            && self.braked == 0
            && self.template.is_none()
    }

    fn count(&mut self, key: String, outcome: Outcome) {
        match outcome {
            Outcome::Ready { made, migrated } => {
                self.ready += 1;
                self.made += usize::from(made);
                self.migrated += usize::from(!made && !migrated.is_empty());
            }
            Outcome::Failed { error, parked } => self.failed.push(Failed { key, error, parked }),
            Outcome::Left(error) if error.kind() == Kind::Newer => self.newer += 1,
            Outcome::Left(error) if error.kind() == Kind::Braked => self.braked += 1,
            Outcome::Left(_) => self.busy += 1,
            Outcome::Server(error) => self.failed.push(Failed { key, error, parked: false }),
        }
    }
}

/// What a lane tells about one tenant.
struct Told {
    key: String,
    /// `None`: somebody else works on it.
    ended: Option<Ended>,
}

/// Sweeps the fleet. `tell` hears of each tenant's end (`None`: somebody else works on it), with the number ended and the number chosen.
///
/// # Guarantees
/// Goes on past failures: one tenant's failure never holds up another. Safe beside running daemons: every tenant is claimed.
/// With nothing to do it is four queries on the main database and no connection to a tenant.
///
/// # Errors
/// The main database cannot be reached, or the migration set is refused as a whole: then no tenant was touched.
pub async fn sweep(
    context: &Arc<Context>,
    table: &Table,
    tasks: &Tasks,
    run: &Run,
    mut tell: impl FnMut(Option<&Ended>, usize, usize),
) -> Result<Report> {
    let began = Instant::now();
    let mut report = Report::default();
    // Anew: a newer tenantd may have come since this one began, and its tenants are not to be looked at one by one.
    let relations = in_time(context.registry.relate(&context.set, context.config.tenant.out_of_order)).await?;
    if !relations.refused.is_empty() {
        return Err(Error::new(Kind::Drift, relations.refused.join(" "))
            .context("the migration set is refused, no tenant is touched"));
    }
    match in_time(context.registry.request_missing(table, &context.config.tenant.prefix)).await {
        Ok(missing) => report.requested = if missing.held { 0 } else { missing.users },
        Err(error) if matches!(error.kind(), Kind::Rights | Kind::Usage) => report.unread = Some(error),
        Err(error) => return Err(error),
    }
    report.strays = in_time(drop_strays(&context.registry)).await?;
    let candidates = in_time(context.registry.candidates(&expected(context, &relations, run.by_hand))).await?;
    report.newer =
        if relations.newer.is_empty() { 0 } else { in_time(context.registry.count_newer(&relations.newer)).await? };
    let (busy, candidates): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|candidate| candidate.busy);
    report.busy = busy.len();
    let candidates = leave_out_what_cannot_be_made(context, candidates, &mut report).await?;
    let keys = brake(context, candidates, &mut report).await?;
    report.chosen = keys.len();
    run_lanes(context, tasks, run, keys, &mut report, &mut tell).await;
    report.took = began.elapsed();
    Ok(report)
}

/// A network that swallows packets without a word must not hold sweeps up for ever.
async fn in_time<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Unreachable, format!("the main database gave the sweep no answer within {ANSWER:?}")))
    })
}

fn expected(context: &Context, relations: &Relations, by_hand: bool) -> Expected {
    Expected {
        migration_set: context.set.id(),
        newer: relations.newer.clone(),
        owner: context.config.tenant.owner.clone(),
        access: context.access(),
        verify_every: context.config.sweep.verify_every,
        by_hand,
    }
}

/// Sees to it that there is a template, where tenants are to be made; the last good one will do, and without any they wait.
async fn leave_out_what_cannot_be_made(
    context: &Context,
    mut candidates: Vec<Candidate>,
    report: &mut Report,
) -> Result<Vec<Candidate>> {
    if !candidates.iter().any(|candidate| candidate.making) {
        return Ok(candidates);
    }
    match template::ensure(context).await {
        Ok(()) => {}
        Err(error) if error.kind().is_out_of_reach() => return Err(error),
        Err(error) => {
            report.template = Some(error);
            candidates.retain(|candidate| !candidate.making || context.supply.is_served());
        }
    }
    Ok(candidates)
}

/// Leaves out the tenants that may not be made now.
async fn brake(context: &Context, candidates: Vec<Candidate>, report: &mut Report) -> Result<Vec<String>> {
    let making = candidates.iter().filter(|candidate| candidate.making).count();
    let mut room = if making == 0 { 0 } else { context.room(context.registry.room().await?) };
    let keep = |candidate: &Candidate| {
        if !candidate.making {
            return true;
        }
        room -= 1;
        room >= 0
    };
    let (keys, braked): (Vec<_>, Vec<_>) = candidates.into_iter().partition(keep);
    report.braked = braked.len();
    Ok(keys.into_iter().map(|candidate| candidate.key).collect())
}

async fn run_lanes(
    context: &Arc<Context>,
    tasks: &Tasks,
    run: &Run,
    keys: Vec<String>,
    report: &mut Report,
    tell: &mut impl FnMut(Option<&Ended>, usize, usize),
) {
    let lanes = context.config.sweep.parallel.min(keys.len());
    let queue = Arc::new(Mutex::new(VecDeque::from(keys)));
    let (sender, mut told) = mpsc::channel(lanes.max(1));
    for _ in 0..lanes {
        let lane = lane(Arc::clone(context), Arc::clone(&queue), sender.clone(), run.stop.clone());
        tasks.spawn("sweep lane", tasks.cancelled().run_until_cancelled_owned(lane));
    }
    drop(sender);
    let (mut through, mut server_failures) = (0, 0);
    while let Some(Told { key, ended }) = told.recv().await {
        through += 1;
        tell(ended.as_ref(), through, report.chosen);
        match ended.map(|ended| ended.outcome) {
            None => report.busy += 1,
            Some(Outcome::Server(error)) => {
                server_failures += 1;
                if server_failures >= SERVER_FAILURES || error.kind() == Kind::Unreachable && server_failures > 1 {
                    run.stop.cancel();
                    report.server.get_or_insert(error);
                } else {
                    report.count(key, Outcome::Server(error));
                }
            }
            Some(outcome) => {
                server_failures = 0;
                report.count(key, outcome);
            }
        }
    }
    report.unreached = report.chosen - through;
}

/// Takes the next tenant when free, until none is left or the sweep ends.
async fn lane(
    context: Arc<Context>,
    queue: Arc<Mutex<VecDeque<String>>>,
    tell: mpsc::Sender<Told>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let Some(key) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
        let ended = match context.registry.claim_keys(std::slice::from_ref(&key), context.config.work.lease).await {
            Ok(claims) => match claims.into_iter().next() {
                Some(claim) => Some(reconcile(&context, claim).await),
                None => None,
            },
            Err(error) => Some(Ended {
                key: key.clone(),
                outcome: Outcome::Server(error),
                age: Duration::ZERO,
                took: Duration::ZERO,
            }),
        };
        let failed = ended.as_ref().is_some_and(|ended| matches!(ended.outcome, Outcome::Server(_)));
        if tell.send(Told { key, ended }).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(WAIT.delay(1)).await;
        }
    }
}
