//! `tenantd --sweep-once`: one sweep by hand, beside whatever daemons run.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{progress, report};
use crate::config::Config;
use crate::error::Result;
use crate::migrations::MigrationSet;
use crate::notices;
use crate::pg::Server;
use crate::provision::{Context, Supply};
use crate::registry::identity::Moved;
use crate::registry::install::Wishes;
use crate::registry::{Registry, Worker};
use crate::shutdown::Requests;
use crate::sweep::{Run, sweep};
use crate::tasks::Tasks;

/// How long the last notices may take; they are hints, and a stuck NOTIFY must not keep a sweep from its end.
pub(super) const LAST_NOTICES: Duration = Duration::from_secs(5);

/// Installs what is missing, sweeps once, and reports. A first SIGINT or SIGTERM ends it after the tenants in hand, a second at once.
///
/// # Errors
/// The main database cannot be reached, or the migration set is refused as a whole.
pub async fn run(
    server: &Server,
    config: &Config,
    set: MigrationSet,
    worker: &Worker,
    tasks: &Tasks,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitCode> {
    let wishes = Wishes { backfill: config.signup.backfill, moved: Moved::Refuse };
    let (registry, installed) = Registry::install(server, config, wishes, worker).await?;
    let context = Arc::new(
        Context::prepare(server.clone(), registry, Arc::new(config.clone()), Arc::new(set), Supply::default()).await?,
    );
    context.registry.retry_drifted().await?;
    let requests = Requests::of_process(tasks)?;
    let run = Run { by_hand: true, stop: requests.stop.clone() };
    let bar = progress::Bar::new();
    let (ready, ready_keys) = mpsc::unbounded_channel();
    let sending = notices::send(server.clone(), worker.application_name.clone(), ready_keys, tasks.cancelled());
    let noticing = tasks.spawn("notices", sending);
    let sweeping = sweep(&context, &installed.table, tasks, &run, |ended, through, chosen| {
        bar.ended(ended.map(|ended| &ended.outcome), through, chosen);
        if let Some(ended) = ended {
            notices::tell_made(&ready, ended);
        }
    });
    let swept = tokio::select! {
        swept = sweeping => swept,
        code = requests.forced() => return Ok(code.into()),
    };
    bar.finish();
    drop(ready);
    if tokio::time::timeout(LAST_NOTICES, noticing).await.is_err() {
        tracing::debug!("the last notices were not sent in time");
    }
    // What the sweep did is told in any case.
    if let Err(error) = context.registry.release_all().await {
        tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
    }
    Ok(report::print(&swept?, json, out)?.into())
}
