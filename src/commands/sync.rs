//! `tenantd sync`: a sweep now, of all tenants or of some.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::given::{Filters, Given};
use super::{ExitStatus, output, sweep};
use crate::error::Result;
use crate::registry::lookup::Filter;
use crate::sweep::{Run, choose};

/// `tenantd sync`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd sync                      all that need it, as tenantd --sweep-once
  tenantd sync 6f9619ff             this one alone
  tenantd sync --work parked        those that are out of tries, once more
  tenantd sync --state requested --dry-run")]
pub struct Sync {
    /// Only these tenants: keys, databases' names, or beginnings of them
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Which tenants
    #[command(flatten)]
    pub filters: Filters,
    /// Say which tenants would be looked at, and look at none
    #[arg(long)]
    pub dry_run: bool,
}

/// Sweeps as `tenantd --sweep-once` does, and reports the same. With keys or filters only tenants that fit are looked at, users without a tenant
/// are not looked for, and a rollout is left to others. A first SIGINT or SIGTERM ends it after the tenants in hand.
///
/// # Errors
/// A key means no tenant or several; as for a sweep.
pub async fn run(given: &Given, arguments: &Sync, out: &mut impl Write) -> Result<ExitCode> {
    let mut filter = arguments.filters.filter(&given.set.id());
    if !arguments.keys.is_empty() {
        let registry = given.registry().await?;
        for word in &arguments.keys {
            filter.keys.push(registry.find(word).await?);
        }
    }
    let only = Some(filter).filter(|filter| *filter != Filter::default());
    if arguments.dry_run {
        return dry_run(given, only, out).await.map(ExitCode::from);
    }
    sweep::run(given, only, out).await
}

async fn dry_run(given: &Given, only: Option<Filter>, out: &mut impl Write) -> Result<ExitStatus> {
    let run = Run { by_hand: true, stop: CancellationToken::new(), only };
    let mut chosen = Vec::new();
    choose(given.looking().await?.as_ref(), &run, |candidate| chosen.push(candidate)).await?;
    if given.json {
        let chosen: Vec<_> = chosen.iter().map(|one| json!({ "key": one.key, "making": one.making })).collect();
        output::object(out, &json!({ "chosen": chosen }))?;
    } else {
        let line = |making: bool| if making { "would be made" } else { "would be looked at" };
        let lines = chosen.iter().map(|one| format!("{} {}\n", output::line(&one.key), line(one.making)));
        let total = i64::try_from(chosen.len()).unwrap_or(i64::MAX);
        output::text(out, &format!("{}{}\n", lines.collect::<String>(), output::counted(total, "tenant")))?;
    }
    Ok(ExitStatus::Well)
}
