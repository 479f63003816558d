//! `tenantd reset`: tenants are emptied and migrated anew.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::doctor::{self, Check};
use super::given::{Consent, Filters, Given, Patience};
use super::{ExitStatus, output};
use crate::backup::Backups;
use crate::error::{Error, Result};
use crate::life::reset::{Resetting, prepare, reset};
use crate::provision::Context;
use crate::tenant::State;

/// `tenantd reset`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd reset 7cba0a6c                                       asks, backs it up, empties it
  tenantd reset 7cba0a6c --yes --skip-backup                   for a test tenant, in a script
  tenantd reset --all --yes --phrase 'reset 12 tenants of app' the whole fleet, in a script")]
pub struct Reset {
    /// The tenants: keys, names of databases, or the beginning of one
    #[arg(value_name = "KEY", required_unless_present = "all", conflicts_with = "all")]
    pub keys: Vec<String>,
    /// Every tenant that is ready, or those that the filters leave; asks for a whole phrase
    #[arg(long)]
    pub all: bool,
    /// Which of all
    #[command(flatten)]
    pub filters: Filters,
    /// The phrase that --all asks for, where there is no terminal to ask on; together with --yes
    #[arg(long, value_name = "TEXT", requires = "all")]
    pub phrase: Option<String>,
    /// Write no backups before
    #[arg(long)]
    pub skip_backup: bool,
    /// Say which tenants would be emptied, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For whoever is in the way
    #[command(flatten)]
    pub patience: Patience,
    /// For what destroys
    #[command(flatten)]
    pub consent: Consent,
}

/// What became of one tenant: the file of its backup.
struct Ended {
    key: String,
    outcome: Result<Option<String>>,
}

/// Empties tenants one by one, a line each. What they held is set aside for `drop.grace`. A first Ctrl-C lets the one in hand come to its end.
///
/// Returns [`ExitStatus::Findings`] when some could not be emptied.
///
/// # Errors
/// As [`prepare`]'s; wrong use; it was refused.
pub async fn run(given: &Given, arguments: &Reset, out: &mut impl Write) -> Result<ExitCode> {
    given.heeding_signals(|stop| reset_all(given, arguments, stop, out)).await
}

async fn reset_all(
    given: &Given,
    arguments: &Reset,
    stop: CancellationToken,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let context = given.context().await?;
    let registry = &context.registry;
    let mut filter = arguments.filters.filter(&given.set.id());
    if filter.states.is_empty() {
        filter.states.push(State::Ready);
    }
    let keys =
        if arguments.all { registry.all_keys(&filter).await? } else { registry.resolve(&arguments.keys).await? };
    if arguments.dry_run {
        return plan(given, &keys, out);
    }
    let checks = [Check::Writes, Check::Rights, Check::Connections, Check::Collation, Check::Disk];
    doctor::before(given, &checks).await?;
    consent(given, arguments, keys.len())?;
    let backups = if arguments.skip_backup {
        None
    } else {
        let opened = Backups::open(&given.server, registry, &given.config).await;
        Some(opened.map_err(|error| error.context("back the tenants up first; --skip-backup does without"))?)
    };
    prepare(&context).await?;
    let mut ended = Vec::new();
    for key in &keys {
        if stop.is_cancelled() {
            break;
        }
        let one = Ended { key: key.clone(), outcome: one(given, &context, backups.as_ref(), key, arguments).await };
        if !given.json {
            output::text(out, &line(&one))?;
        }
        ended.push(one);
    }
    if let Some(backups) = &backups {
        backups.prune()?;
    }
    finish(given, &ended, keys.len() - ended.len(), out)
}

/// Asks for it: for all, a phrase that nobody types by oversight.
fn consent(given: &Given, arguments: &Reset, tenants: usize) -> Result<()> {
    let counted = output::counted(i64::try_from(tenants).unwrap_or(i64::MAX), "tenant");
    let grace = output::duration(given.config.drop.grace);
    let what = format!("This empties {counted}; what they held can be taken back for {grace}.");
    if !arguments.all {
        return arguments.consent.ask(&what, "yes");
    }
    let phrase = format!("reset {counted} of {}", given.config.main.database());
    if arguments.consent.yes && arguments.phrase.as_deref() != Some(&phrase) {
        return Err(Error::usage(format!("{what} --yes alone is not enough for all of them"))
            .hint(format!("add --phrase '{phrase}' if that is what you mean")));
    }
    arguments.consent.ask(&what, &phrase)
}

async fn one(
    given: &Given,
    context: &Context,
    backups: Option<&Backups>,
    key: &str,
    arguments: &Reset,
) -> Result<Option<String>> {
    let patience = arguments.patience.timeout;
    let claim = context.registry.claim_by_hand(key, &[State::Ready], patience).await?;
    reset(context, &claim, Resetting { backups, grace: given.config.drop.grace, patience }).await
}

fn line(Ended { key, outcome }: &Ended) -> String {
    let key = output::line(key);
    match outcome {
        Ok(Some(backup)) => format!("{key} is empty; backup: {}\n", output::line(backup)),
        Ok(None) => format!("{key} is empty; no backup was written\n"),
        Err(error) => {
            let hint = error.advice().map(|advice| format!("\n  hint: {}", output::line(advice))).unwrap_or_default();
            format!("{key} failed: {}{hint}\n", output::line(&error.chain()))
        }
    }
}

fn finish(given: &Given, ended: &[Ended], unreached: usize, out: &mut impl Write) -> Result<ExitStatus> {
    let failed = ended.iter().filter(|one| one.outcome.is_err()).count();
    let well = failed + unreached == 0;
    if given.json {
        let one = |Ended { key, outcome }: &Ended| -> Value {
            match outcome {
                Ok(backup) => json!({ "key": key, "backup": backup }),
                Err(error) => json!({ "key": key, "error": output::error(error) }),
            }
        };
        let tenants: Vec<Value> = ended.iter().map(one).collect();
        output::object(out, &json!({ "ok": well, "tenants": tenants, "unreached": unreached }))?;
    } else if ended.len() + unreached > 1 {
        let counted = output::counted(i64::try_from(ended.len() - failed).unwrap_or(i64::MAX), "tenant");
        output::text(out, &format!("{counted} emptied, {failed} failed, {unreached} not begun\n"))?;
    }
    Ok(if well { ExitStatus::Well } else { ExitStatus::Findings })
}

fn plan(given: &Given, keys: &[String], out: &mut impl Write) -> Result<ExitStatus> {
    if given.json {
        output::object(out, &json!({ "dry_run": true, "tenants": keys }))?;
    } else {
        let mut text = String::new();
        for key in keys {
            text.push_str(&format!("{} would be emptied\n", output::line(key)));
        }
        output::text(out, &(text + "nothing was done\n"))?;
    }
    Ok(ExitStatus::Well)
}
