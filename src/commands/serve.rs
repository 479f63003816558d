//! `tenantd` without a command: the daemon.

use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::reload::Reloading;
use super::{ExitStatus, worker};
use crate::conditions::{Conditions, DRAINING};
use crate::config::{Config, Loaded, Sources};
use crate::controller::{Controller, Shared};
use crate::error::{Error, Kind, Result};
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
        let reloading = Reloading { sources: &sources, controller, shared: &shared, log: &log };
        tokio::select! {
            () = reloading.run(&requests) => {}
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
            Err(error) if failures == 0 => {
                tracing::warn!(error = error.chain(), "the registry cannot be read; tried again");
            }
            Err(error) => tracing::debug!(error = error.chain(), failures, "the registry still cannot be read"),
        }
        failures += 1;
        tokio::time::sleep(WAIT.delay(failures)).await;
    };
    let controller = Controller::start(shared.clone(), context, &installed);
    tell_systemd(shared);
    tracing::info!(notify = installed.notify, "tenantd is at work");
    Ok(controller)
}

pub(super) fn tell_systemd(shared: &Shared) {
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
