//! `tenantd drop`: a tenant is taken away, for a time of grace or for good.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::given::{Consent, Given, Patience};
use super::{ExitStatus, output};
use crate::backup::Backups;
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::life::drop::{Dropping, Gone, drop_tenant};
use crate::life::purge::purge_now;
use crate::registry::Registry;
use crate::registry::dropped::Dropped;
use crate::tenant::State;

/// `tenantd drop`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd drop 7cba0a6c               after a backup; `tenantd restore 7cba0a6c` takes it back within drop.grace
  tenantd drop 7cba0a6c --dry-run     what would be done, and who is connected
  tenantd drop 7cba0a6c --now         for good, at once; asks before it does")]
pub struct Drop {
    /// The tenant: its key, the name of its database, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: String,
    /// For good and at once, without the time of grace
    #[arg(long)]
    pub now: bool,
    /// Write no backup before
    #[arg(long)]
    pub skip_backup: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For whoever is in the way
    #[command(flatten)]
    pub patience: Patience,
    /// For what destroys
    #[command(flatten)]
    pub consent: Consent,
}

/// Drops a tenant and says what became of it. A signal lets it come to its end; a second one breaks it off.
///
/// # Errors
/// As [`drop_tenant`]'s; wrong use; it was refused.
pub async fn run(given: &Given, arguments: &Drop, out: &mut impl Write) -> Result<ExitCode> {
    given.heeding_signals(|_| drop_one(given, arguments, out)).await
}

async fn drop_one(given: &Given, arguments: &Drop, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let key = registry.resolve(std::slice::from_ref(&arguments.key)).await?.remove(0);
    let (state, name) = registry.standing(&key).await?;
    if arguments.dry_run {
        return plan(given, &registry, &key, arguments, out).await;
    }
    if arguments.now {
        let database = name.as_deref().unwrap_or("which it has none of");
        let what = format!(
            "This drops tenant {} and its {} {} for good.",
            output::line(&key),
            registry.isolation,
            output::line(database)
        );
        arguments.consent.ask(&what, "yes")?;
    }
    if state == State::Deleting {
        return drop_dropped(given, &registry, &key, arguments, out).await;
    }
    let backups = if arguments.skip_backup || state != State::Ready {
        None
    } else {
        let opened = Backups::open(&given.server, &registry, &given.config).await;
        Some(opened.map_err(|error| error.context("back the tenant up first; --skip-backup does without"))?)
    };
    let patience = arguments.patience.timeout;
    let claim = registry.claim_by_hand(&key, &[State::Requested, State::Ready], patience).await?;
    let dropping = Dropping { backups: backups.as_ref(), grace: given.config.drop.grace, patience };
    let gone = drop_tenant(&registry, &claim, dropping).await?;
    if let Some(backups) = &backups {
        backups.prune()?;
    }
    let dropped = registry.dropped(Some(&key)).await?.into_iter().find(|dropped| dropped.of_deleting);
    match (&gone, dropped) {
        (Gone::SetAside { .. }, Some(dropped)) if arguments.now => {
            purge_now(&registry, &dropped, patience).await?;
            tell(given, &dropped, true, out)?;
        }
        (Gone::SetAside { .. }, Some(dropped)) => tell(given, &dropped, false, out)?,
        _ if given.json => output::object(out, &json!({ "key": key, "database": null, "dropped_for_good": true }))?,
        _ => output::text(out, &format!("{} is deleted: it had no {}\n", output::line(&key), registry.isolation))?,
    }
    Ok(ExitStatus::Well)
}

/// One that is in its time of grace already.
async fn drop_dropped(
    given: &Given,
    registry: &Registry,
    key: &str,
    arguments: &Drop,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let dropped = registry.dropped(Some(key)).await?.into_iter().find(|dropped| dropped.of_deleting);
    let dropped = dropped.ok_or_else(|| Error::usage(format!("tenant {key} is deleted")))?;
    if !arguments.now {
        let until = output::moment(dropped.purge_after);
        return Err(Error::usage(format!("tenant {key} is dropped already, and goes for good after {until}"))
            .hint("`tenantd restore` takes it back; with --now it goes at once"));
    }
    if !purge_now(registry, &dropped, arguments.patience.timeout).await? {
        return Err(Error::usage(format!("somebody took tenant {key} back a moment ago")));
    }
    tell(given, &dropped, true, out)?;
    Ok(ExitStatus::Well)
}

fn tell(given: &Given, dropped: &Dropped, for_good: bool, out: &mut impl Write) -> Result<()> {
    if given.json {
        return output::object(
            out,
            &json!({
                "key": dropped.key,
                "database": dropped.name_before,
                "set_aside_as": (!for_good).then_some(&dropped.name),
                "backup": dropped.backup,
                "purge_after": (!for_good).then(|| dropped.purge_after.to_string()),
                "dropped_for_good": for_good,
            }),
        );
    }
    let key = output::line(&dropped.key);
    let mut text = if for_good {
        format!("{key} is dropped for good\n")
    } else {
        let until = output::moment(dropped.purge_after);
        format!(
            "{key} is dropped: its {} is set aside as {}, and goes for good after {until}\n\
             `tenantd restore {key}` takes it back until then\n",
            given.config.tenant.isolation, dropped.name
        )
    };
    if let Some(backup) = &dropped.backup {
        text.push_str(&format!("backup: {}\n", output::line(backup)));
    }
    output::text(out, &text)
}

async fn plan(
    given: &Given,
    registry: &Registry,
    key: &str,
    arguments: &Drop,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let (state, name) = registry.standing(key).await?;
    let dropped = registry.dropped(Some(key)).await?.into_iter().find(|dropped| dropped.of_deleting);
    let mut steps = Vec::new();
    let mut occupants = Vec::new();
    match (state, &name, &dropped) {
        (State::Ready, Some(name), _) => {
            let bytes = u64::try_from(registry.database_size(key, name).await?).unwrap_or(0);
            if !arguments.skip_backup {
                steps.push(format!("back up {name}, {}", output::bytes(bytes)));
            }
            occupants = registry.occupants(name).await?;
            let sessions = output::counted(i64::try_from(occupants.len()).unwrap_or(i64::MAX), "session");
            if registry.isolation == Isolation::Database {
                steps.push(format!("close {name}, and end or wait for {sessions}"));
            }
            steps.push(format!("set {name} aside under a random name"));
            steps.push(if arguments.now {
                "drop it for good".to_owned()
            } else {
                format!("drop it for good by a sweep, {} later", output::duration(given.config.drop.grace))
            });
        }
        (State::Deleting, _, Some(dropped)) if arguments.now => steps.push(format!("drop {} for good", dropped.name)),
        (State::Deleting | State::Deleted, ..) => {}
        _ => steps.push(format!("record it deleted: it has no {}", registry.isolation)),
    }
    if given.json {
        let occupants: Vec<&str> = occupants.iter().map(|occupant| occupant.what.as_str()).collect();
        output::object(
            out,
            &json!({ "dry_run": true, "key": key, "state": state.word(), "steps": steps, "occupants": occupants }),
        )?;
        return Ok(ExitStatus::Well);
    }
    let mut text = format!("{} is {state}; would be done:\n", output::line(key));
    for step in &steps {
        text.push_str(&format!("  {}\n", output::line(step)));
    }
    for occupant in &occupants {
        let how = if occupant.ours_to_end { "would be ended" } else { "would be waited for" };
        text.push_str(&format!("  {}: {how}\n", output::line(&occupant.what)));
    }
    output::text(out, &(text + "nothing was done\n"))?;
    Ok(ExitStatus::Well)
}
