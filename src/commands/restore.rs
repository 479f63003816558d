//! `tenantd restore`: a tenant is taken back, within its time of grace or from a backup.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::given::{Given, Patience};
use super::{ExitStatus, output};
use crate::backup::newest;
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::life::restore::{Restoring, from_file, take_back};
use crate::registry::Registry;
use crate::registry::dropped::Dropped;
use crate::tenant::State;

/// `tenantd restore`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd restore 7cba0a6c                              what was dropped, within its time of grace
  tenantd restore 7cba0a6c --replace                    what it held before a reset; its present database is set aside
  tenantd restore 7cba0a6c --from FILE                  from a backup, as `tenantd backup` writes them")]
pub struct Restore {
    /// The tenant: its key, the name of its database, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: String,
    /// The backup to make its database of
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Set the database aside that it has now
    #[arg(long)]
    pub replace: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For whoever is in the way
    #[command(flatten)]
    pub patience: Patience,
}

/// Takes a tenant back, and says from where. A signal lets it come to its end; a second one breaks it off.
///
/// # Errors
/// As [`take_back`]'s and [`from_file`]'s; [`Kind::Usage`](crate::error::Kind::Usage) when there is nothing to take back.
pub async fn run(given: &Given, arguments: &Restore, out: &mut impl Write) -> Result<ExitCode> {
    given.heeding_signals(|_| restore(given, arguments, out)).await
}

async fn restore(given: &Given, arguments: &Restore, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let key = registry.resolve(std::slice::from_ref(&arguments.key)).await?.remove(0);
    let (state, _) = registry.standing(&key).await?;
    let dropped = match &arguments.from {
        Some(_) => None,
        None => Some(choose(given, &registry, &key).await?),
    };
    let from = match (&arguments.from, &dropped) {
        (Some(file), _) => file.display().to_string(),
        (None, dropped) => dropped.as_ref().map(|dropped| dropped.name.clone()).unwrap_or_default(),
    };
    let how =
        Restoring { replace: arguments.replace, grace: given.config.drop.grace, patience: arguments.patience.timeout };
    if arguments.dry_run {
        return plan(given, &key, state, &from, arguments, out);
    }
    let claim = registry.claim_by_hand(&key, State::ALL, arguments.patience.timeout).await?;
    match (&arguments.from, &dropped) {
        (Some(file), _) => from_file(&given.server, &registry, &given.config, &claim, file, how).await?,
        (None, Some(dropped)) => take_back(&registry, &claim, dropped, how).await?,
        (None, None) => unreachable!("chosen above"),
    }
    let name = registry.database_of(&key).await?;
    if given.json {
        output::object(out, &json!({ "key": key, "database": name, "from": from }))?;
    } else {
        let (key, from) = (output::line(&key), output::line(&from));
        output::text(
            out,
            &format!("{key} is back: {} from {from}; the daemon looks at it next\n", output::line(&name)),
        )?;
    }
    Ok(ExitStatus::Well)
}

/// What was set aside last of the tenant.
async fn choose(given: &Given, registry: &Registry, key: &str) -> Result<Dropped> {
    let mut dropped = registry.dropped(Some(key)).await?.into_iter().filter(|dropped| !dropped.condemned);
    if let Some(newest) = dropped.next() {
        return Ok(newest);
    }
    let error = Error::usage(format!("nothing of tenant {key} is set aside"));
    let name = match registry.standing(key).await?.1 {
        Some(name) => Some(name),
        None => given.config.tenant.names.of(key).ok(),
    };
    let file = given.config.backup.folder.as_ref().zip(name).and_then(|(folder, name)| newest(folder, &name));
    Err(match file {
        Some(file) => error.hint(format!("its newest backup: --from {}", file.display())),
        None => error.hint("with --from FILE it is made of a backup"),
    })
}

fn plan(
    given: &Given,
    key: &str,
    state: State,
    from: &str,
    arguments: &Restore,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let kind = given.config.tenant.isolation;
    let aside = (state == State::Ready && arguments.replace).then(|| output::duration(given.config.drop.grace));
    let mut steps = Vec::new();
    match kind {
        Isolation::Database => {
            if arguments.from.is_some() {
                steps.push(format!("make an empty database under a random name, and read {from} into it"));
            }
            steps.extend(aside.map(|grace| format!("close its present database, and set it aside for {grace}")));
            let made = if arguments.from.is_some() { "the new one" } else { from };
            steps.push(format!("rename {made} to the tenant's name, open it, and look at it"));
        }
        Isolation::Schema => {
            steps.extend(aside.map(|grace| format!("set its present schema aside for {grace}")));
            steps.push(if arguments.from.is_some() {
                format!("make an empty schema, read {from} into it, and look at it")
            } else {
                format!("rename {from} to the tenant's name, and look at it")
            });
        }
    }
    if given.json {
        let object = json!({ "dry_run": true, "key": key, "state": state.word(), "from": from, "steps": steps });
        output::object(out, &object)?;
    } else {
        let mut text = format!("{} is {state}; would be done:\n", output::line(key));
        for step in &steps {
            text.push_str(&format!("  {}\n", output::line(step)));
        }
        if state == State::Ready && !arguments.replace {
            text.push_str(&format!("  refused without --replace: the tenant has a {kind}\n"));
        }
        output::text(out, &(text + "nothing was done\n"))?;
    }
    Ok(ExitStatus::Well)
}
