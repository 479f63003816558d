//! `tenantd` without a command: the daemon.

use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::{ExitStatus, migration_set, worker};
use crate::conditions::{Conditions, DRAINING, MIGRATION_SET};
use crate::config::{Config, Loaded, Sources, load};
use crate::controller::{Controller, Shared};
use crate::error::{Class, Error, Kind, Result};
use crate::heartbeat::Heartbeats;
use crate::http::{self, HttpState};
use crate::migrations::MigrationSet;
use crate::pg::Server;
use crate::provision::Supply;
use crate::registry::Registry;
use crate::retry::WAIT;
use crate::shutdown::Requests;
use crate::systemd;
use crate::tasks::Tasks;
use crate::telemetry::{LogLevel, Metrics};

/// What systemd shows while all is well.
const STATUS: &str = "turning signups into databases";

/// What tasks may take to end after the work is done.
const END: Duration = Duration::from_secs(2);

/// Runs until a signal ends it. A main database out of reach makes it wait, at the start as later.
///
/// # Errors
/// Only what waiting does not mend: wrong settings, a newer registry.
pub async fn run(sources: Sources, loaded: Loaded, set: MigrationSet, log: LogLevel, tasks: Tasks) -> Result<ExitCode> {
    let requests = Requests::of_process(&tasks)?;
    let config = Arc::new(loaded.config);
    let conditions = Conditions::new();
    let shared = Shared {
        server: Server::bounded(config.main.clone(), config.bounds(), tasks.clone()),
        worker: worker(&config, "daemon"),
        metrics: Metrics::new(&conditions),
        conditions,
        heartbeats: Heartbeats::new(),
        supply: Supply::default(),
        tasks: tasks.clone(),
        stop: requests.stop.clone(),
        ended_by: Arc::default(),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), main = config.main.describe(), "tenantd starts");
    let (opened, registry) = watch::channel(None);
    if let Some(address) = config.http {
        let listener = http::bind(address).await?;
        let state = HttpState::new(
            shared.conditions.clone(),
            shared.heartbeats.clone(),
            shared.metrics.clone(),
            fleet_reader(registry),
        );
        tasks.spawn("http", http::serve(listener, state, tasks.cancelled()));
    }
    keep_systemd_informed(&shared);
    let controller = tokio::select! {
        controller = begin(&shared, &config, set, opened) => Some(controller?),
        () = shared.stop.cancelled() => None,
    };
    if let Some(controller) = &controller {
        let reloading = async {
            loop {
                requests.reload().await;
                let mut failures = 0;
                while !reload(&sources, controller, &shared, &log).await {
                    failures += 1;
                    tokio::select! {
                        () = requests.reload() => {}
                        () = tokio::time::sleep(WAIT.delay(failures)) => {}
                    }
                }
            }
        };
        tokio::select! {
            () = reloading => {}
            () = shared.stop.cancelled() => {}
        }
    }
    shared.conditions.set(DRAINING, "the daemon is ending");
    let forced = systemd::stopping(async {
        let mut forced = None;
        if let Some(controller) = controller {
            controller.finish(requests.forced().map(|code| forced = Some(code))).await;
        }
        forced
    })
    .await;
    let alive = tasks.stop(END).await;
    if !alive.is_empty() {
        tracing::debug!(?alive, "tasks that did not end in time");
    }
    tracing::info!("tenantd ended");
    if let Some(error) = shared.ended_by.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    Ok(forced.map_or(ExitStatus::Well.into(), ExitCode::from))
}

/// Waits for the main database, installs, and starts every loop.
async fn begin(
    shared: &Shared,
    config: &Arc<Config>,
    set: MigrationSet,
    opened: watch::Sender<Option<Registry>>,
) -> Result<Controller> {
    let (registry, installed) =
        shared.install(config, |error| systemd::ready(&format!("waiting: {}", error.chain()))).await?;
    for change in &installed.changes {
        tracing::info!(change, "installed");
    }
    for note in &installed.notes {
        tracing::info!(note, "to know");
    }
    opened.send_replace(Some(registry.clone()));
    // From here on nothing makes the start fail: what is missing now is waited for.
    tell_systemd(shared);
    let set = Arc::new(set);
    let mut failures = 0;
    let context = loop {
        match shared.prepare(registry.clone(), Arc::clone(config), Arc::clone(&set)).await {
            Ok(context) => break context,
            Err(error) => tracing::warn!(error = error.chain(), "the registry cannot be read; tried again"),
        }
        failures += 1;
        tokio::time::sleep(WAIT.delay(failures)).await;
    };
    let controller = Controller::start(shared.clone(), context, &installed);
    tell_systemd(shared);
    tracing::info!(notify = installed.notify, "tenantd is at work");
    Ok(controller)
}

/// Reads settings and migrations again, all or nothing: what does not load leaves the last good ones in force. Returns whether that is all:
/// false where the server failed, so that the same is to be tried again.
async fn reload(sources: &Sources, controller: &Controller, shared: &Shared, log: &LogLevel) -> bool {
    systemd::reloading();
    let reloaded = async {
        let config = load(sources)?.config;
        let set = migration_set(&config).inspect_err(|error| {
            shared.conditions.set(MIGRATION_SET, error.chain());
        })?;
        log.set(&config.log.level)?;
        controller.replace(config, set).await
    };
    let reloaded = reloaded.await;
    shared.metrics.reloaded(reloaded.is_ok());
    let done = match reloaded {
        Ok(()) => {
            tracing::info!("settings and migrations reloaded");
            true
        }
        Err(error) if error.class() == Class::Server => {
            tracing::warn!(
                error = error.chain(),
                hint = error.advice(),
                "nothing could be reloaded yet, and is tried again; the last good settings and migrations stay in force"
            );
            false
        }
        Err(error) => {
            tracing::error!(
                error = error.chain(),
                hint = error.advice(),
                "nothing was reloaded; the last good settings and migrations stay in force"
            );
            true
        }
    };
    tell_systemd(shared);
    done
}

fn tell_systemd(shared: &Shared) {
    systemd::ready(&systemd::status_line(&shared.conditions.unmet(), STATUS));
}

fn keep_systemd_informed(shared: &Shared) {
    let (heartbeats, conditions, ended) =
        (shared.heartbeats.clone(), shared.conditions.clone(), shared.tasks.cancelled());
    shared.tasks.spawn("systemd", async move {
        ended.run_until_cancelled(systemd::keep_informed(&heartbeats, &conditions, STATUS)).await
    });
}

fn fleet_reader(registry: watch::Receiver<Option<Registry>>) -> http::ReadFleet {
    Arc::new(move || {
        let registry = registry.borrow().clone();
        async move {
            match registry {
                Some(registry) => registry.fleet().await,
                None => Err(Error::new(Kind::Registry, "the registry is not open yet")),
            }
        }
        .boxed()
    })
}
