//! The daemon: puts its parts together, reloads, and ends in order.
//!
//! ```text
//! signup ─▶ registry ─▶ intake ─▶ provision::fresh ─────────────▶ ready ─▶ notices
//!              ▲        ▲ bell │      ▲ spares                      ▲
//!              │               │    keeper                          │
//!              │               └─▶ lanes ─▶ provision::reconcile ───┤
//!              └────── sweeper ───────────▶ provision::reconcile ───┘
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bell::BellKeeper;
use crate::conditions::{Conditions, MAIN_DATABASE, MIGRATION_SET};
use crate::config::{Config, Signup};
use crate::error::{Error, Kind, Result};
use crate::heartbeat::Heartbeats;
use crate::intake::Intake;
use crate::keeper::Keeper;
use crate::lanes::Lanes;
use crate::migrations::MigrationSet;
use crate::notices;
use crate::pg::Server;
use crate::provision::{Context, Supply};
use crate::registry::identity::Moved;
use crate::registry::install::{Installed, Wishes};
use crate::registry::{Registry, Worker};
use crate::retry::WAIT;
use crate::sweeper::Sweeper;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// A loop that has not turned for so long hangs: twice the longest wait that a loop has on its way.
const TURN_ALLOWANCE: Duration = Duration::from_mins(1);

/// Installing beside very many users takes longer than systemd waits for a start, and than its watchdog waits for a turn.
const TURN: Duration = Duration::from_secs(5);

/// What the notices of the last tenants may take. Whoever waits for one looks at the view, too.
const LAST_NOTICES: Duration = Duration::from_secs(1);

/// What the daemon's parts share.
#[derive(Clone)]
pub struct Shared {
    /// The main database's server.
    pub server: Server,
    /// This process.
    pub worker: Worker,
    /// What readiness depends on.
    pub conditions: Conditions,
    /// Whether the loops turn.
    pub heartbeats: Heartbeats,
    /// What is counted.
    pub metrics: Metrics,
    /// What is known of spares and of room for tenants.
    pub supply: Supply,
    /// Every task.
    pub tasks: Tasks,
    /// Cancelled when no new work is to be taken.
    pub stop: CancellationToken,
    /// Why the daemon may not go on, when it ends by itself.
    pub ended_by: Arc<Mutex<Option<Error>>>,
}

/// The daemon at work.
pub struct Controller {
    shared: Shared,
    context: watch::Sender<Arc<Context>>,
    lanes: Lanes,
    sweep_now: Arc<Notify>,
    /// The loops that take work; they end by themselves after the stop.
    loops: Vec<JoinHandle<()>>,
    /// Ends by itself when no lane is left that could have something to tell.
    notices: JoinHandle<()>,
}

impl Shared {
    /// Installs as soon as the main database can be reached; until then it waits and says so. Safe to drop at any moment.
    ///
    /// # Errors
    /// What waiting does not mend: [`Kind::Usage`], [`Kind::RegistryNewer`].
    pub async fn install(&self, config: &Config, mut waiting: impl FnMut(&Error)) -> Result<(Registry, Installed)> {
        let wishes = Wishes { backfill: config.signup.backfill, moved: Moved::Refuse };
        let beat = self.heartbeats.register("install", TURN_ALLOWANCE + config.main.connect_timeout);
        let mut failures = 0;
        loop {
            let mut installing = std::pin::pin!(Registry::install(&self.server, config, wishes, &self.worker));
            let installed = loop {
                beat.turned().await;
                tokio::select! {
                    installed = &mut installing => break installed,
                    () = tokio::time::sleep(TURN) => waiting(&Error::new(Kind::Locked, "the installation is not through yet")),
                }
            };
            match installed {
                Ok(installed) => {
                    self.conditions.clear(MAIN_DATABASE);
                    return Ok(installed);
                }
                Err(error) if matches!(error.kind(), Kind::Usage | Kind::RegistryNewer) => return Err(error),
                Err(error) => {
                    failures += 1;
                    self.conditions.set(MAIN_DATABASE, error.chain());
                    if failures == 1 {
                        crate::telemetry::tell_once(&error, "tenantd cannot begin yet and tries again; signups go on");
                    }
                    waiting(&error);
                }
            }
            tokio::time::sleep(WAIT.delay(failures)).await;
        }
    }

    /// A context with the settings and the set, compared with what the tenants have; tells what contradicts.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn prepare(&self, registry: Registry, config: Arc<Config>, set: Arc<MigrationSet>) -> Result<Context> {
        let context = Context::prepare(self.server.clone(), registry, config, set, self.supply.clone()).await?;
        // All that can fail comes before the first word: this is repeated until it succeeds.
        let again = context.registry.retry_drifted().await?;
        tracing::info!(
            migrations = context.set.migrations().len(),
            source = context.set.source(),
            set = context.set.id(),
            "tenant migrations loaded"
        );
        let relations = &context.relations;
        if relations.refused.is_empty() {
            self.conditions.clear(MIGRATION_SET);
        } else {
            let reasons = relations.refused.join(" ");
            tracing::error!(reasons, "the migration set is refused: no tenant is made or migrated until it is mended");
            self.conditions.set(MIGRATION_SET, reasons);
        }
        if !relations.diverged.is_empty() {
            tracing::error!(
                reasons = relations.diverged.join(" "),
                "migration files contradict what tenants have; those tenants are not touched"
            );
        }
        if !relations.newer.is_empty() {
            tracing::warn!(sets = relations.newer.len(), "some tenants are newer than this tenantd and are left alone");
        }
        if again > 0 {
            tracing::info!(tenants = again, "tenants that were parked for their migrations are tried again");
        }
        Ok(context)
    }
}

impl Controller {
    /// Starts every loop.
    #[must_use]
    pub fn start(shared: Shared, context: Context, installed: &Installed) -> Controller {
        let config = Arc::clone(&context.config);
        let (context, receiver) = watch::channel(Arc::new(context));
        let (ready, ready_keys) = mpsc::unbounded_channel();
        let lanes = Lanes::new(config.work.parallel, ready.clone(), shared.metrics.clone(), shared.tasks.clone());
        let sweep_now = Arc::new(Notify::new());
        let (offer, bell) = watch::channel(None);
        let allowance = TURN_ALLOWANCE + config.main.connect_timeout;
        let beat = |name| shared.heartbeats.register(name, allowance);
        let intake = Intake::new(
            receiver.clone(),
            bell,
            lanes.clone(),
            shared.conditions.clone(),
            shared.metrics.clone(),
            beat("intake"),
            shared.stop.clone(),
        );
        let keeper = Keeper {
            context: receiver.clone(),
            supply: shared.supply.clone(),
            sweep_now: Arc::clone(&sweep_now),
            conditions: shared.conditions.clone(),
            metrics: shared.metrics.clone(),
            beat: beat("keeper"),
            stop: shared.stop.clone(),
        };
        let sweeper = Sweeper {
            context: receiver,
            table: installed.table.clone(),
            now: Arc::clone(&sweep_now),
            ready,
            conditions: shared.conditions.clone(),
            metrics: shared.metrics.clone(),
            beat: beat("sweep"),
            tasks: shared.tasks.clone(),
            stop: shared.stop.clone(),
            ended_by: Arc::clone(&shared.ended_by),
        };
        let name = shared.worker.application_name.clone();
        let sending = notices::send(shared.server.clone(), name.clone(), ready_keys, shared.tasks.cancelled());
        let notices = shared.tasks.spawn("notices", sending);
        let mut loops = vec![
            shared.tasks.spawn("intake", intake.run()),
            shared.tasks.spawn("keeper", keeper.run()),
            shared.tasks.spawn("sweep", sweeper.run()),
        ];
        if installed.notify {
            let keeper = BellKeeper {
                server: shared.server.clone(),
                application_name: name,
                offer,
                conditions: shared.conditions.clone(),
                metrics: shared.metrics.clone(),
                beat: beat("doorbell"),
                tasks: shared.tasks.clone(),
                stop: shared.stop.clone(),
            };
            loops.push(shared.tasks.spawn("doorbell keeper", keeper.run()));
        }
        Controller { shared, context, lanes, sweep_now, loops, notices }
    }

    /// Puts other settings and migrations in force for all work that begins from now on, and sweeps.
    ///
    /// # Errors
    /// The main database cannot be reached: the old ones stay in force.
    pub async fn replace(&self, mut config: Config, set: Arc<MigrationSet>) -> Result<()> {
        let old = self.context.borrow().clone();
        let unchanged = restart_needed(&old.config, &config);
        keep_until_restart(&old.config, &mut config);
        let context = self.shared.prepare(old.registry.clone(), Arc::new(config), set).await?;
        if !unchanged.is_empty() {
            tracing::warn!(keys = unchanged.join(", "), "settings that changed take effect at the next start only");
        }
        self.context.send_replace(Arc::new(context));
        self.sweep_now.notify_one();
        Ok(())
    }

    /// Ends in order: no new work, the work in hand until `work.shutdown`, leases given back, the last notices. `force` ends it at once.
    /// What still runs then ends with the tasks' end.
    pub async fn finish(self, force: impl Future<Output = ()>) {
        let context = self.context.borrow().clone();
        tokio::select! {
            () = self.finish_in_order(&context) => {}
            () = force => {}
        }
        // Before its tasks end: what still runs in a session that would go back there is broken off with it.
        context.tenants.close();
        context.registry.close();
    }

    async fn finish_in_order(self, context: &Context) {
        let Controller { lanes, loops, notices, .. } = self;
        let mut loops = loops;
        let drained = async {
            for ended in &mut loops {
                if let Err(error) = ended.await {
                    tracing::error!(%error, "a loop of the daemon had ended in a panic");
                }
            }
            lanes.empty().await;
        };
        if tokio::time::timeout(context.config.work.shutdown, drained).await.is_err() {
            tracing::warn!("work.shutdown is over; work in hand is broken off and taken up again later");
            // One that still ran would renew its leases on a rollout, or on templates and spares, after they were given back.
            loops.iter().for_each(JoinHandle::abort);
        }
        if let Err(error) = context.registry.release_all().await {
            tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
        }
        drop(lanes);
        if tokio::time::timeout(LAST_NOTICES, notices).await.is_err() {
            tracing::debug!("notices were dropped");
        }
    }
}

/// Settings whose change needs a new start, by the table they stand in.
fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let changed = [
        ("main.url", old.main.describe() != new.main.describe()),
        (
            "signup.table, signup.id_column, signup.notify, signup.handover, signup.on_delete",
            keeping(&new.signup, &old.signup) != old.signup,
        ),
        ("work.parallel", old.work.parallel != new.work.parallel),
        ("work.connections", old.work.connections != new.work.connections),
        ("http.listen", old.http != new.http),
        ("log.format", old.log.format != new.log.format),
    ];
    keys.extend(changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key));
    keys
}

/// `signup` with what a reload changes from `reloaded`.
fn keeping(signup: &Signup, reloaded: &Signup) -> Signup {
    Signup { poll: reloaded.poll, backfill: reloaded.backfill, when: reloaded.when.clone(), ..signup.clone() }
}

/// Puts the old values of [`restart_needed`] into `new`: half of a setting in force would, say, put the trigger on another table, and sweeps
/// would make a tenant of each of its rows.
fn keep_until_restart(old: &Config, new: &mut Config) {
    new.main = old.main.clone();
    new.signup = keeping(&old.signup, &new.signup);
    (new.work.parallel, new.work.connections) = (old.work.parallel, old.work.connections);
    new.http = old.http;
    new.log.format = old.log.format;
}
