//! `tenantd backup`: tenants written to files, several at a time.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::doctor::{self, Check};
use super::given::{Filters, Given};
use super::{ExitStatus, output};
use crate::backup::{Backups, Written};
use crate::error::Result;
use crate::registry::Registry;
use crate::tenant::State;

/// `tenantd backup`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd backup 7cba0a6c                     one tenant, into backup.folder
  tenantd backup --all --parallel 4           every tenant that is ready
  tenantd backup --all --behind --dry-run     which ones would be, and how large they are")]
pub struct Backup {
    /// The tenants: keys, names of databases, or the beginning of one
    #[arg(value_name = "KEY", required_unless_present = "all", conflicts_with = "all")]
    pub keys: Vec<String>,
    /// Every tenant that is ready, or those that the filters leave
    #[arg(long)]
    pub all: bool,
    /// Which of all
    #[command(flatten)]
    pub filters: Filters,
    /// How many at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel: u16,
    /// Say which tenants would be backed up, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What became of one tenant.
struct Ended {
    key: String,
    outcome: Result<Written>,
}

/// Backs up the tenants that are asked for, one line each as it ends, then deletes what `backup.keep` calls old. A first Ctrl-C lets those in
/// hand come to their end.
///
/// Returns [`ExitStatus::Findings`] when some could not be backed up.
///
/// # Errors
/// As [`Backups::open`]'s and [`Registry::resolve`]'s; the main database cannot be reached.
pub async fn run(given: &Given, arguments: &Backup, out: &mut impl Write) -> Result<ExitCode> {
    given.heeding_signals(|stop| write_all(given, arguments, stop, out)).await
}

async fn write_all(
    given: &Given,
    arguments: &Backup,
    stop: CancellationToken,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let keys = tenants(given, &registry, arguments).await?;
    if arguments.dry_run {
        return plan(given, &registry, &keys, out).await;
    }
    doctor::before(given, &[Check::Connections]).await?;
    let backups = Backups::open(&given.server, &registry, &given.config).await?;
    let waiting = futures_util::stream::iter(&keys).take_until(stop.cancelled());
    let ending = waiting.map(|key| one(&registry, &backups, key)).buffer_unordered(arguments.parallel.into());
    let mut ending = std::pin::pin!(ending);
    let mut ended = Vec::new();
    while let Some(one) = ending.next().await {
        if !given.json {
            output::text(out, &line(&one))?;
        }
        ended.push(one);
    }
    let (pruned, unreached) = (backups.prune()?, keys.len() - ended.len());
    let failed = ended.iter().filter(|one| one.outcome.is_err()).count();
    if given.json {
        output::object(out, &object(&ended, &pruned, unreached))?;
    } else {
        let counted = |number: usize, one: &str| output::counted(i64::try_from(number).unwrap_or(i64::MAX), one);
        let mut text = format!("{} written to {}", counted(ended.len() - failed, "backup"), backups.folder().display());
        for (number, what) in
            [(failed, "failed"), (unreached, "not begun"), (pruned.len(), "deleted since they were old")]
        {
            if number > 0 {
                text.push_str(&format!(", {number} {what}"));
            }
        }
        output::text(out, &(text + "\n"))?;
    }
    Ok(if failed + unreached == 0 { ExitStatus::Well } else { ExitStatus::Findings })
}

fn object(ended: &[Ended], pruned: &[PathBuf], unreached: usize) -> Value {
    let one = |Ended { key, outcome }: &Ended| match outcome {
        Ok(Written { file, bytes, took }) => json!({
            "key": key, "file": file.display().to_string(), "bytes": bytes, "duration_seconds": took.as_secs_f64()
        }),
        Err(error) => json!({ "key": key, "error": output::error(error) }),
    };
    let pruned: Vec<String> = pruned.iter().map(|file| file.display().to_string()).collect();
    let well = unreached == 0 && ended.iter().all(|one| one.outcome.is_ok());
    json!({ "ok": well, "backups": ended.iter().map(one).collect::<Vec<_>>(), "pruned": pruned, "unreached": unreached })
}

/// The keys that are asked for.
async fn tenants(given: &Given, registry: &Registry, arguments: &Backup) -> Result<Vec<String>> {
    if !arguments.all {
        return registry.resolve(&arguments.keys).await;
    }
    let mut filter = arguments.filters.filter(&given.set.id());
    if filter.states.is_empty() {
        filter.states.push(State::Ready);
    }
    registry.all_keys(&filter).await
}

async fn one(registry: &Registry, backups: &Backups, key: &str) -> Ended {
    let outcome = async {
        let name = registry.database_of(key).await?;
        backups.write(key, &name).await
    };
    Ended { key: key.to_owned(), outcome: outcome.await }
}

fn line(Ended { key, outcome }: &Ended) -> String {
    let key = output::line(key);
    match outcome {
        Ok(Written { file, bytes, took }) => {
            format!("{key} {} ({}, {})\n", file.display(), output::bytes(*bytes), output::duration(*took))
        }
        Err(error) => match error.advice() {
            Some(advice) => format!("{key} failed: {}\n  hint: {advice}\n", output::line(&error.chain())),
            None => format!("{key} failed: {}\n", output::line(&error.chain())),
        },
    }
}

async fn plan(given: &Given, registry: &Registry, keys: &[String], out: &mut impl Write) -> Result<ExitStatus> {
    let mut tenants = Vec::new();
    for key in keys {
        let name = registry.database_of(key).await?;
        let bytes = u64::try_from(registry.database_size(key, &name).await?).unwrap_or(0);
        tenants.push((key, name, bytes));
    }
    let all: u64 = tenants.iter().map(|(.., bytes)| bytes).sum();
    if given.json {
        let one = |(key, name, bytes): &(&String, String, u64)| json!({ "key": key, "database": name, "bytes": bytes });
        let plan: Vec<_> = tenants.iter().map(one).collect();
        output::object(out, &json!({ "dry_run": true, "tenants": plan, "bytes": all }))?;
    } else {
        let mut text = String::new();
        for (key, name, bytes) in &tenants {
            text.push_str(&format!(
                "{} would be backed up: {}, {}\n",
                output::line(key),
                output::line(name),
                output::bytes(*bytes)
            ));
        }
        let tenants = output::counted(i64::try_from(tenants.len()).unwrap_or(i64::MAX), "tenant");
        output::text(
            out,
            &format!("{text}{tenants}, {} in their {}s; nothing was written\n", output::bytes(all), registry.isolation),
        )?;
    }
    Ok(ExitStatus::Well)
}
