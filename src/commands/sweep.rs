//! `tenantd --sweep-once`: one sweep by hand, beside whatever daemons run.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use super::{progress, report};
use crate::config::Config;
use crate::error::Result;
use crate::migrations::MigrationSet;
use crate::pg::Server;
use crate::provision::Context;
use crate::registry::identity::Moved;
use crate::registry::install::Wishes;
use crate::registry::{Registry, Worker};
use crate::shutdown::Requests;
use crate::sweep::{Run, sweep};
use crate::tasks::Tasks;

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
    let context = Arc::new(Context::prepare(server.clone(), registry, Arc::new(config.clone()), Arc::new(set)).await?);
    context.registry.retry_drifted().await?;
    let requests = Requests::of_process(tasks)?;
    let run = Run { by_hand: true, stop: requests.stop.clone() };
    let bar = progress::Bar::new();
    let sweeping = sweep(&context, &installed.table, tasks, &run, |key, outcome, ended, chosen| {
        bar.ended(key, outcome, ended, chosen);
    });
    let swept = tokio::select! {
        swept = sweeping => swept,
        code = requests.forced() => return Ok(code.into()),
    };
    bar.finish();
    context.registry.release_all().await?;
    Ok(report::print(&swept?, json, out)?.into())
}
