//! The keeper: the loop that builds templates, makes spares and drops what is not needed any more. One daemon at a time does it for all,
//! one step at a time, since every clone slows the commits of the whole server a little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Conditions, TEMPLATE};
use crate::config::{Handover, Isolation};
use crate::error::{Error, Kind, Result};
use crate::heartbeat::Beat;
use crate::provision::spare::{discard_spare, make_spare};
use crate::provision::template::{build, drop_template};
use crate::provision::{Context, Supply};
use crate::registry::templates::Template;
use crate::retry::WAIT;
use crate::spares::{Action, Demand, SHARE, Stock, next};
use crate::telemetry::{Metrics, tell_once};

/// The loop turns at least this often, so that the watchdog sees it alive.
const TURN: Duration = Duration::from_secs(5);

/// What other daemons, or hands, may have changed is looked for so often.
const LOOK: Duration = Duration::from_secs(30);

/// Where the trigger hands spares over, nobody tells the keeper.
const LOOK_AT_COMMIT: Duration = Duration::from_millis(250);

/// Another daemon keeps; what it does is looked at again after this.
const ANOTHER_KEEPS: Duration = Duration::from_millis(250);

/// Looks that signups ask for come no quicker.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);

/// Signups that come together get their spares before the next clones slow the server: so long is waited for more of them, and for all so long.
const TOGETHER: Duration = Duration::from_millis(60);
const TOGETHER_AT_MOST: Duration = Duration::from_millis(250);

/// Without a signup for so long, it is a quiet moment.
const QUIET: Duration = Duration::from_millis(200);

/// Each DROP DATABASE makes the server write a checkpoint.
const BETWEEN_DROPS: Duration = Duration::from_secs(1);

/// What a clone is taken to cost before the first.
const A_CLONE: Duration = Duration::from_millis(100);

/// Keeps templates and spares for as long as the daemon runs.
pub struct Keeper {
    /// Settings and migration set in force.
    pub context: watch::Receiver<Arc<Context>>,
    /// What the intake tells.
    pub supply: Supply,
    /// Asks for a sweep: tenants were made of an older template while the newest was built, or got a spare of it after.
    pub sweep_now: Arc<Notify>,
    /// What readiness depends on.
    pub conditions: Conditions,
    /// Counts spares.
    pub metrics: Metrics,
    /// Shows that the loop turns.
    pub beat: Beat,
    /// Ends it.
    pub stop: CancellationToken,
}

/// What the loop remembers from turn to turn.
struct Memory {
    demand: Demand,
    /// Signups, this process's and those that only show by the spares that are gone.
    signups: u64,
    own_signups: u64,
    spares: usize,
    clone: Duration,
    /// Not before this is the next clone made, or the next database dropped, that can wait.
    not_before: Instant,
    keeps: bool,
    failures: u32,
    /// The set that the template in service is of.
    served: Option<String>,
    /// Whether there are spares of another template than that.
    outdated: bool,
}

impl Keeper {
    /// Looks, does one thing, looks again, until stopped.
    pub async fn run(mut self) {
        let now = Instant::now();
        let mut memory = Memory {
            demand: Demand::new(now, 0),
            signups: 0,
            own_signups: self.supply.signups(),
            spares: 0,
            clone: A_CLONE,
            not_before: now,
            keeps: false,
            failures: 0,
            served: None,
            outdated: false,
        };
        while !self.stop.is_cancelled() {
            self.beat.turned().await;
            let context = self.context.borrow_and_update().clone();
            let pause = match self.turn(&context, &mut memory).await {
                Ok(pause) => {
                    memory.failures = 0;
                    pause
                }
                Err(error) => {
                    memory.failures += 1;
                    let mends_itself = matches!(error.kind(), Kind::Template | Kind::LeaseLost);
                    if memory.failures == 1 && !error.kind().is_out_of_reach() && !mends_itself {
                        tell_once(&error, "no spares are made just now; tried again");
                    } else {
                        tracing::debug!(error = error.chain(), "templates and spares could not be kept; tried again");
                    }
                    WAIT.delay(memory.failures)
                }
            };
            self.wait(pause).await;
        }
        let context = self.context.borrow().clone();
        if memory.keeps
            && let Err(error) = context.registry.stop_keeping().await
        {
            tracing::debug!(error = error.chain(), "the keeper's lease ends by itself");
        }
    }

    /// One look and at most one action. Returns the pause before the next.
    async fn turn(&self, context: &Context, memory: &mut Memory) -> Result<Duration> {
        if !context.relations.refused.is_empty() {
            self.supply.serve(false);
            return Ok(LOOK);
        }
        if context.config.tenant.isolation == Isolation::Schema {
            // A schema is made in one transaction, of nothing that could be kept.
            self.supply.serve(true);
            return Ok(LOOK);
        }
        let _keeping = self.supply.keeping().await;
        let stock = Stock {
            templates: context.registry.templates().await?,
            spares: context.registry.spares(context.owner()).await?,
        };
        self.tell(context, &stock, memory);
        memory.count(&self.supply, &stock);
        let (at_commit, mut wanted) = (context.config.signup.handover == Handover::Commit, context.wanted());
        let room = match context.supply.room() {
            Some(left) if !at_commit => left.tenants,
            _ => context.room(context.registry.room().await?),
        };
        let room = u32::try_from(room).unwrap_or(0);
        if at_commit {
            // The trigger knows no brakes: what is not there it cannot hand over.
            wanted.settings.max = wanted.settings.max.min(room);
        }
        let target = memory.demand.target(context.config.spares, memory.clone).min(usize::try_from(room).unwrap_or(0));
        let Some(action) = next(&wanted, &stock, target) else {
            if std::mem::take(&mut memory.keeps) {
                context.registry.stop_keeping().await?;
            }
            return Ok(if at_commit { LOOK_AT_COMMIT } else { LOOK });
        };
        let wait = self.patience(&action, memory);
        if !wait.is_zero() {
            return Ok(wait);
        }
        let kept = std::mem::replace(&mut memory.keeps, context.registry.keep(context.config.work.lease).await?);
        if !memory.keeps {
            return Ok(ANOTHER_KEEPS);
        }
        if !kept {
            // Whoever kept until a moment ago may have done this since we looked.
            return Ok(Duration::ZERO);
        }
        Box::pin(self.act(context, action, memory)).await?;
        Ok(Duration::ZERO)
    }

    /// How long the action has to wait: what is not urgent is done in quiet moments, and takes a small part of the time.
    fn patience(&self, action: &Action, memory: &Memory) -> Duration {
        let urgent = match action {
            Action::Build(_) => true,
            Action::Make { urgent, .. } => *urgent,
            Action::Discard(_) | Action::Drop(_) => false,
        };
        if urgent {
            return Duration::ZERO;
        }
        let noisy = self.supply.quiet_for().map_or(Duration::ZERO, |quiet| QUIET.saturating_sub(quiet));
        memory.not_before.saturating_duration_since(Instant::now()).max(noisy)
    }

    async fn act(&self, context: &Context, action: Action, memory: &mut Memory) -> Result<()> {
        match action {
            Action::Build(begun) => self.build(context, begun.as_ref()).await,
            Action::Make { template, .. } => {
                let made = make_spare(context, &template).await;
                if made.as_ref().is_err_and(|error| error.kind() == Kind::DiskFull) {
                    give_back(context).await?;
                }
                let took = made?;
                tracing::debug!(template = template.name, seconds = took.as_secs_f64(), "spare made");
                memory.clone = (memory.clone + took) / 2;
                memory.not_before = Instant::now() + took * (SHARE - 1);
                memory.spares += 1;
                self.metrics.spare_made(took);
                Ok(())
            }
            Action::Discard(spare) => {
                memory.not_before = Instant::now() + BETWEEN_DROPS;
                memory.spares = memory.spares.saturating_sub(1);
                match self.unless_stopped(discard_spare(context, &spare)).await {
                    Err(error) if is_in_the_way(&error) => {
                        tracing::warn!(
                            spare,
                            error = error.chain(),
                            hint = error.advice(),
                            "a spare could not be dropped; sweeps try again"
                        );
                    }
                    dropped => dropped?,
                }
                Ok(())
            }
            Action::Drop(template) => {
                memory.not_before = Instant::now() + BETWEEN_DROPS;
                match self.unless_stopped(drop_template(context, &template)).await {
                    Ok(()) => tracing::info!(template = template.name, "template dropped: nothing needs it any more"),
                    Err(error) if error.kind() == Kind::Conflict => {
                        tracing::warn!(error = error.chain(), hint = error.advice(), "template forgotten");
                    }
                    Err(error) if is_in_the_way(&error) => {
                        memory.not_before = Instant::now() + LOOK;
                        tracing::debug!(
                            error = error.chain(),
                            "a template that nobody needs could not be dropped; tried again"
                        );
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
        }
    }

    /// A DROP DATABASE waits until every session of the server has taken notice, a hanging one too: the daemon's end does not wait for that. What is
    /// half dropped then goes by the next sweep.
    async fn unless_stopped(&self, dropping: impl Future<Output = Result<()>>) -> Result<()> {
        self.stop.run_until_cancelled(dropping).await.unwrap_or(Ok(()))
    }

    /// A failure that is recorded with the template is tried again when that says so; others by the loop.
    async fn build(&self, context: &Context, begun: Option<&Template>) -> Result<()> {
        let start = Instant::now();
        match build(context, begun).await {
            Ok(()) => {
                let seconds = start.elapsed().as_secs_f64();
                tracing::info!(set = context.set.id(), seconds, "template built");
                Ok(())
            }
            Err(error) if error.kind().is_out_of_reach() || error.kind() == Kind::LeaseLost => Err(error),
            Err(error) => {
                if !self.conditions.unmet().contains_key(TEMPLATE) {
                    tell_once(&error, "the template of the newest migrations could not be built");
                }
                Ok(())
            }
        }
    }

    /// Tells the intake whether databases can be made, and the operator whether they are of the newest set.
    fn tell(&self, context: &Context, stock: &Stock, memory: &mut Memory) {
        let wanted = context.wanted();
        let serving = wanted.serving(&stock.templates);
        self.supply.serve(serving.is_some());
        let failed = wanted.unfinished(&stock.templates).and_then(|template| template.error.as_deref());
        match (wanted.current(&stock.templates), failed) {
            (None, Some(error)) => {
                let meanwhile = match serving {
                    Some(_) => "new tenants are made of the last good one",
                    None => "new tenants wait",
                };
                self.conditions.set(
                    TEMPLATE,
                    format!("the template of the newest migrations cannot be built; {meanwhile}: {error}"),
                );
            }
            _ => self.conditions.clear(TEMPLATE),
        }
        let served = serving.map(|serving| serving.migration_set.clone());
        let outdated =
            serving.map_or(memory.outdated, |serving| stock.spares.iter().any(|spare| spare.template != serving.name));
        // Those that were made of the one before are behind, and so is who got one of its spares since.
        if memory.served.is_some() && served.is_some() && memory.served != served || memory.outdated && !outdated {
            self.sweep_now.notify_one();
        }
        memory.served = served.or(memory.served.take());
        memory.outdated = outdated;
    }

    async fn wait(&mut self, pause: Duration) {
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until && !self.stop.is_cancelled() {
            self.beat.turned().await;
            tokio::select! {
                () = tokio::time::sleep_until(until.min(tokio::time::Instant::now() + TURN)) => {}
                () = self.supply.wanted() => {
                    // A crowd of signups is one reason to look.
                    let asked = Instant::now();
                    tokio::time::sleep(AT_MOST_EVERY).await;
                    while self.supply.quiet_for().is_some_and(|quiet| quiet < TOGETHER) && asked.elapsed() < TOGETHER_AT_MOST {
                        tokio::time::sleep(AT_MOST_EVERY).await;
                    }
                    return;
                }
                Ok(()) = self.context.changed() => {
                    self.context.mark_changed();
                    return;
                }
                () = self.stop.cancelled() => return,
            }
        }
    }
}

impl Memory {
    /// Spares that are gone tell of signups too: those of other daemons, and those that the trigger served.
    fn count(&mut self, supply: &Supply, stock: &Stock) {
        let own = supply.signups();
        let gone = u64::try_from(self.spares.saturating_sub(stock.spares.len())).unwrap_or(0);
        self.signups += (own - self.own_signups).max(gone);
        (self.own_signups, self.spares) = (own, stock.spares.len());
        self.demand.note(Instant::now(), self.signups);
    }
}

/// Somebody is in a database that is to go, or owns it now: nothing else waits for that.
fn is_in_the_way(error: &Error) -> bool {
    matches!(error.kind(), Kind::InUse | Kind::Rights | Kind::Locked)
}

/// The disk is full: what is kept above the least is given back to the application, one each time.
async fn give_back(context: &Context) -> Result<()> {
    let spares = context.registry.spares(context.owner()).await?;
    let least = usize::try_from(context.config.spares.min).unwrap_or(usize::MAX);
    match spares.first().filter(|_| spares.len() > least) {
        Some(oldest) => discard_spare(context, &oldest.name).await,
        None => Ok(()),
    }
}
