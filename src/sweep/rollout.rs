//! A rollout: a new migration set goes to a few tenants of different size first, then to the others in waves, and pauses before it does harm.
//!
//! ```text
//! canaries ─one succeeds─▶ waves ─all reached─▶ done
//!    │                       │
//!    └──every one fails──▶ paused ◀── too many fail alike, or a person says so
//! ```
//!
//! Where the canaries of a later set pass, the rollouts that it leaves behind are overtaken: a set that was mended, or one that more was added to.
//!
//! One process drives it at a time, under a lease; where it stood is in the registry, so that another goes on from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::feed::Feed;
use super::{Report, Run, Waiting, lanes};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::provision::{Context, Ended, Outcome};
use crate::registry::lookup::Filter;
use crate::registry::rollouts::{Rollout, RolloutState};
use crate::tasks::Tasks;

/// Whoever drives says so again, and hears what a person ordered, this often.
const BEAT: Duration = Duration::from_secs(1);

/// How long a dead process keeps others from driving.
const LEASE: Duration = Duration::from_secs(15);

/// Another's rollout is looked at again after this.
const ANOTHER_DRIVES: Duration = Duration::from_millis(250);

/// So many tenants may always fail alike.
const FORGIVEN: usize = 3;

/// Goes on with the rollout of the context's set, as far as it may. What is left is told in the report.
///
/// # Guarantees
/// A migration that fails everywhere reaches the canaries only. A crash leaves a rollout that the next sweep goes on with.
///
/// # Errors
/// The main database cannot be reached.
pub(super) async fn drive(
    context: &Arc<Context>,
    tasks: &Tasks,
    run: &Run,
    report: &mut Report,
    tell: &mut impl FnMut(Option<&Ended>, usize, usize),
) -> Result<()> {
    let registry = &context.registry;
    let Some(rollout) = registry.rollout_of(&context.set, &context.relations.behind).await? else {
        context.gate.set(None);
        return Ok(());
    };
    let behind: Vec<String> = context.relations.behind.keys().cloned().collect();
    let stop = run.stop.child_token();
    let mut drive = Drive {
        context,
        tasks,
        run: Run { stop: stop.clone(), ..run.clone() },
        behind,
        failed: BTreeMap::new(),
        all: 0,
        through: 0,
    };
    if !context.gate.is_open() && drive.take(&rollout).await? {
        let driven = tokio::select! {
            driven = drive.go_on(report, tell) => driven,
            () = stay(context, &rollout.migration_set, &stop) => Ok(()),
        };
        registry.stop_driving(&rollout.migration_set).await?;
        driven?;
    }
    let now = registry.rollout(&rollout.migration_set).await?;
    context.gate.set(now.as_ref());
    if let Some(rollout) = now.filter(|rollout| !rollout.is_open()) {
        let tenants = registry.count_behind(&drive.behind).await?;
        report.rollout = Some(Waiting { state: rollout.state, version: rollout.version, tenants, why: rollout.why });
    }
    Ok(())
}

/// How the rollout stands that some of `only` wait for, of a sweep that leaves it to others; `None`: none of them does.
pub(super) async fn waiting(context: &Context, only: &Filter) -> Result<Option<Waiting>> {
    let behind: Vec<String> = context.relations.behind.keys().cloned().collect();
    let tenants = context.registry.count_waiting(&behind, only).await?;
    if tenants == 0 {
        return Ok(None);
    }
    let rollout = context.registry.rollout_of(&context.set, &context.relations.behind).await?;
    Ok(rollout.map(|rollout| Waiting { state: rollout.state, version: rollout.version, tenants, why: rollout.why }))
}

/// Keeps the lease, and stops the work when a person paused the rollout, or another process has it. Never returns.
async fn stay(context: &Context, id: &str, stop: &tokio_util::sync::CancellationToken) {
    loop {
        tokio::time::sleep(BEAT).await;
        match context.registry.drive_rollout(id, LEASE).await {
            Ok(Some(RolloutState::Running)) => {}
            Ok(_) => stop.cancel(),
            Err(error) => {
                tracing::debug!(error = error.chain(), "the rollout's lease could not be renewed; tried again");
            }
        }
    }
}

struct Drive<'a> {
    context: &'a Arc<Context>,
    tasks: &'a Tasks,
    run: Run,
    /// Ids of the sets that tenants have who lack ours.
    behind: Vec<String>,
    /// How many tenants failed alike in this run.
    failed: BTreeMap<Alike, usize>,
    /// Tenants that were reached in this run.
    through: usize,
    /// Tenants that were behind when the canaries were chosen.
    all: usize,
}

/// Tenants with the same of these failed alike: the migration's file and the SQLSTATE.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    file: Option<String>,
    sqlstate: Option<String>,
}

impl Drive<'_> {
    /// Becomes the driver. False: another is, and this is not a sweep by hand, which waits for that one's end.
    async fn take(&self, rollout: &Rollout) -> Result<bool> {
        let id = &rollout.migration_set;
        loop {
            if self.context.registry.drive_rollout(id, LEASE).await?.is_some() {
                return Ok(true);
            }
            let ended =
                self.context.registry.rollout(id).await?.is_none_or(|rollout| rollout.state != RolloutState::Running);
            if ended || !self.run.by_hand || self.run.stop.is_cancelled() {
                return Ok(false);
            }
            tokio::time::sleep(ANOTHER_DRIVES).await;
        }
    }

    async fn go_on(&mut self, report: &mut Report, tell: &mut impl FnMut(Option<&Ended>, usize, usize)) -> Result<()> {
        let id = self.context.set.id();
        let Some(rollout) = self.context.registry.rollout(&id).await? else { return Ok(()) };
        let goes_on = match rollout.state {
            RolloutState::Running => true,
            RolloutState::Paused => rollout.by_canaries,
            RolloutState::Aborted | RolloutState::Done | RolloutState::Overtaken => false,
        };
        if !goes_on || !rollout.passed && !self.canaries(&rollout, report, tell).await? {
            return Ok(());
        }
        let Some(rollout) = self.context.registry.rollout(&id).await? else { return Ok(()) };
        self.waves(&rollout, report, tell).await
    }

    /// Tries the set on the canaries. True: the others may follow.
    async fn canaries(
        &mut self,
        rollout: &Rollout,
        report: &mut Report,
        tell: &mut impl FnMut(Option<&Ended>, usize, usize),
    ) -> Result<bool> {
        let (registry, id) = (&self.context.registry, &rollout.migration_set);
        let chosen = match &rollout.canaries {
            Some(canaries) => canaries.clone(),
            None => registry.choose_canaries(id, &self.behind, self.context.config.rollout.canary).await?,
        };
        reach(Point::CanariesChosen).await;
        self.all = usize::try_from(registry.count_behind(&self.behind).await?.max(rollout.behind)).unwrap_or(0);
        let feed = Feed::of_rollout(Arc::clone(self.context), self.behind.clone(), Some(chosen.clone()), None);
        let mut took = Vec::new();
        let (all, mut listen) = (chosen.len(), |ended: Option<&Ended>, through: usize, all: usize| {
            took.extend(ended.filter(|ended| matches!(ended.outcome, Outcome::Ready { .. })).map(|ended| ended.took));
            tell(ended, through, all);
        });
        self.reach(feed, all, report, &mut listen).await?;
        if self.run.stop.is_cancelled() {
            return Ok(false);
        }
        let stand = registry.canaries(id, &self.behind, &chosen).await?;
        let took = summary(&took);
        if stand.migrated > 0 || stand.failed + stand.left == 0 {
            registry.pass_canaries(id, took).await?;
            reach(Point::CanariesPassed).await;
            self.overtake().await?;
            self.context.supply.want();
            let (left, lanes) = (registry.count_behind(&self.behind).await?, self.context.config.sweep.parallel);
            let estimate = took.map(|(average, _)| estimate(average, left, lanes).as_secs_f64());
            tracing::info!(
                version = rollout.version,
                canaries = stand.migrated,
                left,
                estimate_seconds = estimate,
                longest_lock_seconds = took.map(|(_, longest)| longest.as_secs_f64()),
                "the canaries of the rollout have passed"
            );
            return Ok(true);
        }
        if stand.left > 0 || stand.broken < stand.failed {
            // Locked, or in somebody's hands: that says nothing about the set.
            report.busy += usize::try_from(stand.left).unwrap_or(0).max(1);
            return Ok(false);
        }
        if rollout.state == RolloutState::Running {
            let why = format!("every canary failed ({})", chosen.join(", "));
            self.pause(&why, true).await?;
        }
        Ok(false)
    }

    /// Goes through all others, wave by wave.
    async fn waves(
        &mut self,
        rollout: &Rollout,
        report: &mut Report,
        tell: &mut impl FnMut(Option<&Ended>, usize, usize),
    ) -> Result<()> {
        let registry = &self.context.registry;
        let all = usize::try_from(rollout.behind).unwrap_or(0);
        self.all = all;
        let waves = self.context.config.rollout.waves.clone();
        for (nth, wave) in waves.iter().enumerate() {
            let left = usize::try_from(registry.count_behind(&self.behind).await?).unwrap_or(0);
            // The last wave takes whoever came after the count, too.
            let most = (nth + 1 < waves.len()).then(|| wave.of(all).saturating_sub(all.saturating_sub(left)));
            if left == 0 || most == Some(0) {
                continue;
            }
            let feed = Feed::of_rollout(Arc::clone(self.context), self.behind.clone(), None, most);
            self.reach(feed, most.unwrap_or(left), report, tell).await?;
            reach(Point::WaveEnded).await;
            if self.run.stop.is_cancelled() || report.server.is_some() {
                break;
            }
        }
        if registry.count_behind(&self.behind).await? == 0 {
            // Whoever began an older one meanwhile did so for nobody.
            self.overtake().await?;
            registry.end_rollout(&rollout.migration_set).await?;
            reach(Point::RolloutDone).await;
            tracing::info!(version = rollout.version, "rollout done");
        }
        Ok(())
    }

    /// Has all that `feed` gives brought to the set, until too many fail alike.
    async fn reach(
        &mut self,
        feed: Feed,
        size: usize,
        report: &mut Report,
        tell: &mut impl FnMut(Option<&Ended>, usize, usize),
    ) -> Result<()> {
        let limit = FORGIVEN.max(self.context.config.rollout.max_failures.of(self.all));
        let (before, mut too_many) = (self.through, None);
        let (failed, stop) = (&mut self.failed, self.run.stop.clone());
        let mut listen = |ended: Option<&Ended>, through: usize| {
            tell(ended, before + through, before + size.max(through));
            let Some(Ended { outcome: Outcome::Failed { error, .. }, .. }) = ended else { return };
            if !matches!(error.kind(), Kind::Migration | Kind::Breaks) {
                return;
            }
            let count = failed.entry(Alike::of(error)).or_default();
            *count += 1;
            if *count > limit && too_many.is_none() {
                let first = error.chain().lines().next().unwrap_or_default().to_owned();
                too_many = Some(format!("{count} tenants failed alike: {first}"));
                stop.cancel();
            }
        };
        let unreached = report.unreached;
        self.through += lanes::run(self.context, self.tasks, &self.run, feed, size, report, &mut listen).await;
        if let Some(why) = too_many {
            // They wait for the rollout, which is told by itself.
            let waiting = report.unreached - unreached;
            (report.unreached, report.chosen) = (unreached, report.chosen - waiting);
            // Where nobody is left there is nothing to pause for: those that failed are told as such.
            if self.context.registry.count_behind(&self.behind).await? > 0 {
                self.pause(&why, false).await?;
            }
        }
        Ok(())
    }

    /// Ends the rollouts that this one leaves behind.
    async fn overtake(&self) -> Result<()> {
        let Context { registry, set, config, .. } = &**self.context;
        let relations = registry.relate(set, config.tenant.out_of_order).await?;
        registry.overtake_rollouts(&relations.overtaken, set.newest_version()).await
    }

    async fn pause(&self, why: &str, by_canaries: bool) -> Result<()> {
        let id = self.context.set.id();
        self.context.registry.pause_rollout(&id, why, by_canaries).await?;
        reach(Point::RolloutPaused).await;
        tracing::error!(
            version = self.context.set.newest_version(),
            why,
            hint = "mend the migration or the tenants; `tenantd rollout resume` goes on, `tenantd rollout abort` gives it up",
            "rollout paused: the other tenants keep what they have"
        );
        Ok(())
    }
}

impl Alike {
    fn of(error: &Error) -> Alike {
        let chain = error.chain();
        let file = chain.split([' ', ':']).find(|word| word.rsplit('.').next() == Some("sql"));
        Alike { file: file.map(str::to_owned), sqlstate: error.code().map(str::to_owned) }
    }
}

/// What `left` tenants will take with so many lanes, where one takes `average`.
#[must_use]
pub fn estimate(average: Duration, left: i64, lanes: usize) -> Duration {
    let left = u32::try_from(left).unwrap_or(u32::MAX);
    average.saturating_mul(left) / u32::try_from(lanes).unwrap_or(u32::MAX).max(1)
}

/// What one took on average, and the longest.
fn summary(took: &[Duration]) -> Option<(Duration, Duration)> {
    let longest = took.iter().max()?;
    let number = u32::try_from(took.len()).unwrap_or(u32::MAX);
    Some((took.iter().sum::<Duration>() / number, *longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_alike_by_file_and_sqlstate() {
        let failure = |text: &str, code: &str| Alike::of(&Error::new(Kind::Migration, text).sqlstate(code));
        let one = failure("m/0002_b.up.sql:1:8: column \"x\" does not exist", "42703");
        assert_eq!(one, failure("m/0002_b.up.sql:7:1: column \"y\" does not exist", "42703"));
        assert_ne!(one, failure("m/0003_c.up.sql:1:8: column \"x\" does not exist", "42703"));
        assert_ne!(one, failure("m/0002_b.up.sql:1:8: no such table", "42P01"));
    }

    #[test]
    fn what_the_canaries_took_is_an_average_and_the_longest() {
        let seconds = Duration::from_secs;
        assert_eq!(summary(&[seconds(1), seconds(3)]), Some((seconds(2), seconds(3))));
        assert_eq!(summary(&[]), None);
    }
}
