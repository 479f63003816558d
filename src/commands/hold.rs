//! `tenantd hold` and `tenantd release`: tenants kept as they are, and given back to the daemons.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::given::{Given, Patience};
use super::{ExitStatus, output};
use crate::error::Result;
use crate::tenant::State;

/// `tenantd hold`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd hold 7cba0a6c --why 'support case 4711'     no migration, no sweep touches it
  tenantd release 7cba0a6c                            and it is brought up to date")]
pub struct Hold {
    /// The tenants: keys, names of databases, or the beginning of one
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// The reason, for its history
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// Say what would be held, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For whoever works on it
    #[command(flatten)]
    pub patience: Patience,
}

/// `tenantd release`
#[derive(Debug, Args)]
#[command(after_help = "Example:
  tenantd release 7cba0a6c     the daemon looks at it next, and migrates what it lacks")]
pub struct Release {
    /// The tenants: keys, names of databases, or the beginning of one
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// Say what would be released, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Holds tenants, each after whoever works on it has come to an end.
///
/// # Errors
/// As [`claim_by_hand`](crate::registry::Registry::claim_by_hand)'s: those before it are held.
pub async fn hold(given: &Given, arguments: &Hold, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let keys = registry.resolve(&arguments.keys).await?;
    for key in &keys {
        if !arguments.dry_run {
            let states = [State::Requested, State::Ready];
            let claim = registry.claim_by_hand(key, &states, arguments.patience.timeout).await?;
            registry.hold(&claim, arguments.why.as_deref()).await?;
        }
        if !given.json {
            let held = if arguments.dry_run { "would be held" } else { "is held" };
            output::text(out, &format!("{} {held}\n", output::line(key)))?;
        }
    }
    if given.json {
        output::object(out, &json!({ "dry_run": arguments.dry_run, "held": keys }))?;
    }
    Ok(ExitStatus::Well)
}

/// Releases tenants. One that is not held is told, and is no failure.
///
/// # Errors
/// The main database cannot be reached; an unknown key.
pub async fn release(given: &Given, arguments: &Release, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let (mut released, mut others) = (Vec::new(), Vec::new());
    for key in registry.resolve(&arguments.keys).await? {
        let is_held =
            if arguments.dry_run { registry.is_held(&key).await? } else { registry.release_held(&key).await? };
        if is_held { released.push(key) } else { others.push(key) }
    }
    if given.json {
        let object = json!({ "dry_run": arguments.dry_run, "released": released, "not_held": others });
        output::object(out, &object)?;
        return Ok(ExitStatus::Well);
    }
    let mut text = String::new();
    for key in &released {
        let how = if arguments.dry_run { "would be released" } else { "is released: the daemon looks at it next" };
        text.push_str(&format!("{} {how}\n", output::line(key)));
    }
    for key in &others {
        text.push_str(&format!("{} is not held\n", output::line(key)));
    }
    output::text(out, &text)?;
    Ok(ExitStatus::Well)
}
