//! `tenantd --sweep-once` and `tenantd sync`: one sweep by hand, beside whatever daemons run.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use super::given::Given;
use super::{progress, report};
use crate::error::Result;
use crate::notices::Notices;
use crate::provision::{Context, Supply};
use crate::registry::Registry;
use crate::registry::identity::Moved;
use crate::registry::install::Wishes;
use crate::registry::lookup::Filter;
use crate::shutdown::Requests;
use crate::sweep::{Run, sweep};

/// Installs what is missing, sweeps once, `only` some tenants or all, and reports. A first SIGINT or SIGTERM ends it after the tenants in hand, a
/// second at once.
///
/// # Errors
/// The main database cannot be reached, or the migration set is refused as a whole.
pub async fn run(given: &Given, only: Option<Filter>, out: &mut impl Write) -> Result<ExitCode> {
    let Given { server, config, set, worker, tasks, json } = given;
    let wishes = Wishes { backfill: config.signup.backfill, moved: Moved::Refuse };
    let (registry, installed) = Registry::install(server, config, wishes, worker).await?;
    let (config, set) = (Arc::clone(config), Arc::clone(set));
    let context = Arc::new(Context::prepare(server.clone(), registry, config, set, Supply::default()).await?);
    if only.is_none() {
        context.registry.retry_drifted().await?;
    }
    let requests = Requests::of_process(tasks)?;
    let run = Run { by_hand: true, stop: requests.stop.clone(), only };
    let bar = progress::Bar::new();
    let notices = Notices::begin(server, worker, tasks);
    let sweeping = sweep(&context, &installed.table, tasks, &run, |ended, through, chosen| {
        bar.ended(ended.map(|ended| &ended.outcome), through, chosen);
        if let Some(ended) = ended {
            notices.tell_made(ended);
        }
    });
    let swept = tokio::select! {
        swept = sweeping => swept,
        code = requests.forced() => return Ok(code.into()),
    };
    bar.finish();
    notices.end().await;
    // What the sweep did is told in any case.
    if let Err(error) = context.registry.release_all().await {
        tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
    }
    Ok(report::print(&swept?, context.config.tenant.isolation, *json, out)?.into())
}
