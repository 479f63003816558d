//! A sweep: choose every tenant that is missing, due, behind or unverified, and reconcile each. Periodic and by hand are the same code.

mod feed;
mod lanes;
pub mod rollout;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::feed::Feed;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::life::departures::follow;
use crate::life::purge::purge_due;
use crate::provision::spare::drop_strays;
use crate::provision::{Context, Ended, Outcome};
use crate::registry::lookup::Filter;
use crate::registry::rollouts::RolloutState;
use crate::registry::sets::Relations;
use crate::registry::signup::Table;
use crate::registry::sweep::{Candidate, Expected, Start};
use crate::tasks::Tasks;

/// So many of the tenants that failed are kept with their reasons; thousands may fail at the same migration.
const FAILED_KEPT: usize = 100;

/// So many candidates are read at a time for each lane: enough that a page is small work beside its tenants.
const PAGE_OF_LANE: usize = 32;

/// The longest that a question to the main database may take, with a large signup table to be read. More is no answer any more.
const ANSWER: Duration = Duration::from_mins(10);

/// A sweep that nobody waits for leaves half-made databases to the next one after so long: each DROP DATABASE waits for a checkpoint, and while a
/// daemon drops them it finds nobody whom the trigger missed.
const LONGEST_STRAYS: Duration = Duration::from_mins(1);

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether it was about some tenants alone.
    pub restricted: bool,
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
    /// How many tenants failed.
    pub failures: usize,
    /// Of these, those that are out of tries.
    pub parked: usize,
    /// The first hundred of them, each with why.
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
    /// Tenants that were dropped, since their users were deleted.
    pub departed: u64,
    /// Databases that were set aside and whose time of grace was over, dropped for good.
    pub purged: u64,
    /// Tenants that were to go, for a time of grace or for good, and could not, by key, each with why.
    pub undropped: Vec<(String, Error)>,
    /// The server's failure that ended the sweep early.
    pub server: Option<Error>,
    /// Tenants that were chosen and not reached, because the sweep ended early.
    pub unreached: usize,
    /// How the rollout of the set stands that some tenants wait for, if any do.
    pub rollout: Option<Waiting>,
    /// How long it took.
    pub took: Duration,
}

/// A rollout that is not through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// How it stands.
    pub state: RolloutState,
    /// The version that it goes to.
    pub version: i64,
    /// How many tenants wait for it.
    pub tenants: i64,
    /// Why it is paused.
    pub why: Option<String>,
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
    /// Only these tenants: then nothing else is looked for, users without a tenant and what is left of broken work neither, and a rollout is left to
    /// others. `None`: all.
    pub only: Option<Filter>,
}

impl Report {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failures == 0
            && self.server.is_none()
            && self.unreached == 0
            && self.newer == 0
            && self.unread.is_none()
            && self.braked == 0
            && self.template.is_none()
            && self
                .rollout
                .as_ref()
                .is_none_or(|rollout| matches!(rollout.state, RolloutState::Aborted | RolloutState::Overtaken))
            && self.undropped.is_empty()
    }

    fn count(&mut self, key: String, outcome: Outcome) {
        match outcome {
            Outcome::Ready { made, migrated } => {
                self.ready += 1;
                self.made += usize::from(made);
                self.migrated += usize::from(!made && !migrated.is_empty());
            }
            Outcome::Failed { error, parked } => self.fail(Failed { key, error, parked }),
            Outcome::Left(error) if error.kind() == Kind::Newer => self.newer += 1,
            Outcome::Left(error) if error.kind() == Kind::Braked => self.braked += 1,
            Outcome::Left(_) => self.busy += 1,
            Outcome::Server(error) => self.fail(Failed { key, error, parked: false }),
        }
    }

    fn fail(&mut self, failed: Failed) {
        self.failures += 1;
        self.parked += usize::from(failed.parked);
        if self.failed.len() < FAILED_KEPT {
            self.failed.push(failed);
        }
    }
}

/// Sweeps the fleet. `tell` hears of each tenant's end (`None`: somebody else works on it), with the number ended and the number chosen.
///
/// # Guarantees
/// Goes on past failures: one tenant's failure never holds up another, and none is met twice. Safe beside running daemons: every tenant is
/// claimed. With nothing to do it is one query on the main database and no connection to a tenant. What it holds in memory does not grow
/// with the number of tenants.
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
    let mut report = Report { restricted: run.only.is_some(), ..Report::default() };
    let (start, expected) = begin(context, table, run, &mut report).await?;
    (report.newer, report.busy) = (start.newer, start.busy);
    let (needing, strays, over, departures) = (start.needing, start.strays, start.over, start.departures);
    if needing > 0 {
        let feed = Feed::new(Arc::clone(context), expected, start).await?;
        lanes::run(context, tasks, run, feed, needing, &mut report, &mut |ended, through| {
            tell(ended, through, needing);
        })
        .await;
    }
    if !context.gate.is_open() && report.server.is_none() && !run.stop.is_cancelled() {
        match &run.only {
            None => rollout::drive(context, tasks, run, &mut report, &mut tell).await?,
            Some(only) => report.rollout = rollout::waiting(context, only).await?,
        }
    }
    // A sweep of some drops nothing.
    if departures && run.only.is_none() {
        follow_departures(context, table, run, &mut report).await?;
    }
    if strays && run.only.is_none() {
        let swept = Instant::now();
        let enough = || run.stop.is_cancelled() || !run.by_hand && swept.elapsed() > LONGEST_STRAYS;
        report.strays = drop_strays(&context.registry, enough).await?;
    }
    if over && run.only.is_none() {
        purge(context, run, &mut report).await?;
    }
    report.took = began.elapsed();
    Ok(report)
}

/// Tells of each tenant that a sweep would look at now, in the order of their keys, and looks at none. Users without a tenant are not looked for,
/// and signups that are still to be taken in are not told.
///
/// # Errors
/// The main database cannot be reached.
pub async fn choose(context: &Context, run: &Run, mut tell: impl FnMut(Candidate)) -> Result<()> {
    let expected = asked(context, run);
    let start = in_time(context.registry.begin_sweep(None, &context.config.tenant.names, &expected)).await?;
    let mut page = start.candidates;
    while let Some(after) = page.last().map(|last| last.key.clone()) {
        page.into_iter().for_each(&mut tell);
        page = in_time(context.registry.candidates_after(&after, &start.cut, &expected)).await?;
    }
    Ok(())
}

/// What is expected of the tenants that `run` is about, as far as the context knows.
fn asked(context: &Context, run: &Run) -> Expected {
    let mut expected = expected(context, &context.relations, run);
    if !context.gate.is_open() {
        expected.waiting = context.relations.behind.keys().cloned().collect();
    }
    expected
}

/// Brings the tenants `keys` to the newest set, whatever a rollout says: a person named them. Otherwise as [`sweep`].
///
/// # Errors
/// The main database cannot be reached, or the migration set is refused as a whole: then no tenant was touched.
pub async fn migrate_named(
    context: &Arc<Context>,
    tasks: &Tasks,
    run: &Run,
    keys: Vec<String>,
    mut tell: impl FnMut(Option<&Ended>, usize, usize),
) -> Result<Report> {
    let (began, mut report, all) = (Instant::now(), Report::default(), keys.len());
    relate(context).await?;
    let feed = Feed::named(Arc::clone(context), keys);
    lanes::run(context, tasks, run, feed, all, &mut report, &mut |ended, through| tell(ended, through, all)).await;
    report.took = began.elapsed();
    Ok(report)
}

/// Drops the tenants of deleted users. That their users cannot be looked for, or no backup can be written, keeps the sweep from nothing else.
async fn follow_departures(context: &Context, table: &Table, run: &Run, report: &mut Report) -> Result<()> {
    let Context { server, registry, config, .. } = context;
    match Box::pin(follow(server, registry, config, table, run.by_hand, &run.stop)).await {
        Ok(followed) => {
            report.departed = followed.dropped;
            report.undropped.extend(followed.failed);
            Ok(())
        }
        Err(error) if error.kind().is_out_of_reach() => Err(error),
        Err(error) => {
            tracing::warn!(
                error = error.chain(),
                hint = error.advice(),
                "deleted users could not be followed; tried again"
            );
            report.undropped.push(("of deleted users".to_owned(), error));
            Ok(())
        }
    }
}

/// Drops for good what is over. Last, since each DROP DATABASE slows the server for a moment.
async fn purge(context: &Context, run: &Run, report: &mut Report) -> Result<()> {
    in_time(context.registry.forget_dead_leases()).await?;
    in_time(context.registry.forget_old_events()).await?;
    let purged = purge_due(&context.registry, run.by_hand, &run.stop).await?;
    report.purged = purged.dropped;
    report.undropped.extend(purged.failed.into_iter().map(|(dropped, error)| (dropped.key, error)));
    Ok(())
}

/// Asks what there is to do: once, as long as nothing is found that changes the question.
async fn begin(context: &Context, table: &Table, run: &Run, report: &mut Report) -> Result<(Start, Expected)> {
    let names = &context.config.tenant.names;
    let table = run.only.is_none().then_some(table);
    let mut expected = asked(context, run);
    // What was refused when this context was made may have been mended.
    if !context.relations.refused.is_empty() {
        expected.know(&relate(context).await?);
    }
    in_time(context.registry.see_all(false)).await?;
    let mut start = match in_time(context.registry.begin_sweep(table, names, &expected)).await {
        Ok(start) => start,
        // A right that is missing, a table that is gone (42), a view in its place (0A000): of the signup table, or of the registry. Columns that
        // the condition reads and that have changed, a value that there is no more (22).
        Err(error)
            if error.code().map_or(error.kind() == Kind::Usage, |code| {
                ["42", "22", "0A000"].iter().any(|class| code.starts_with(class))
            }) =>
        {
            let Some(table) = table else { return Err(error) };
            report.unread = unread(context, table).await?;
            in_time(context.registry.begin_sweep(None, names, &expected)).await?
        }
        Err(error) => return Err(error),
    };
    report.requested = u64::try_from(start.requested).unwrap_or(0);
    if report.requested > 0 {
        reach(Point::Requested).await;
    }
    // A newer tenantd may have come since this one began, and its tenants are not to be looked at one by one.
    if start.unknown {
        expected.know(&relate(context).await?);
    }
    if start.signups {
        in_time(context.registry.take_all_in()).await?;
    }
    if start.unknown || start.signups || start.requested > 0 {
        start = in_time(context.registry.begin_sweep(None, names, &expected)).await?;
    }
    Ok((start, expected))
}

/// Why the signup table cannot be read, which keeps the sweep from nothing else.
async fn unread(context: &Context, table: &Table) -> Result<Option<Error>> {
    match in_time(context.registry.request_missing(table, &context.config.tenant.names)).await {
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), Kind::Rights | Kind::Usage) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

async fn relate(context: &Context) -> Result<Relations> {
    let relations = in_time(context.registry.relate(&context.set, context.config.tenant.out_of_order)).await?;
    if relations.refused.is_empty() {
        return Ok(relations);
    }
    Err(Error::new(Kind::Drift, relations.refused.join(" "))
        .context("the migration set is refused, no tenant is touched"))
}

/// A network that swallows packets without a word must not hold sweeps up for ever.
async fn in_time<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Unreachable, format!("the main database gave the sweep no answer within {ANSWER:?}")))
    })
}

fn expected(context: &Context, relations: &Relations, run: &Run) -> Expected {
    Expected {
        migration_set: context.set.id(),
        newer: relations.newer.clone(),
        waiting: Vec::new(),
        known: relations.known.clone(),
        owner: context.config.tenant.owner.clone(),
        access: context.access(),
        verify_every: context.config.sweep.verify_every,
        every: context.config.sweep.every,
        by_hand: run.by_hand,
        page: PAGE_OF_LANE * context.config.sweep.parallel,
        only: run.only.clone().map(Box::new),
    }
}
