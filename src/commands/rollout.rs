//! `tenantd rollout`: how the newest migrations go through the fleet, and a person's word on it.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::given::Given;
use super::{ExitStatus, output};
use crate::error::{Error, Result};
use crate::provision::Context;
use crate::registry::canaries::Canaries;
use crate::registry::rollouts::{Rollout, RolloutState};
use crate::sweep::rollout::estimate;

/// `tenantd rollout`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd rollout                           how it stands, and what is left
  tenantd rollout pause --why 'bank holiday'
  tenantd rollout resume && tenantd migrate")]
pub struct Arguments {
    /// What to do with it [default: show]
    #[command(subcommand)]
    pub order: Option<Order>,
}

/// A person's word on the rollout of the migrations that this tenantd carries. Whoever drives it hears of it within a second, and ends after
/// the tenants in hand.
#[derive(Debug, Clone, Subcommand)]
pub enum Order {
    /// Show how it stands
    Show,
    /// No further tenant gets them until it is resumed; also before it began
    Pause {
        /// For whoever reads it
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        why: String,
    },
    /// Go on, also where every canary failed: the next sweep does
    Resume,
    /// Give it up: tenants that do not have them stay as they are
    Abort {
        /// The rollout to this version, whoever carries its migrations, instead of that of the ones here
        #[arg(long, value_name = "VERSION")]
        version: Option<i64>,
        /// For whoever reads it
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        why: String,
    },
}

/// A rollout, and how the fleet stands to it.
struct Shown {
    rollout: Option<Rollout>,
    version: i64,
    canaries: Option<Canaries>,
    left: i64,
    lanes: usize,
}

/// Carries the order out, and shows how the rollout stands. [`ExitStatus::Findings`] when it is paused.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage) for an order that it is under already, or when it is done. The main database cannot be reached.
pub async fn run(given: &Given, arguments: &Arguments, out: &mut impl Write) -> Result<ExitStatus> {
    let context = given.context().await?;
    if let Some(Order::Abort { version: Some(version), why }) = &arguments.order {
        return abort_other(&context, *version, why, given.json, out).await;
    }
    let order = match arguments.order.clone() {
        None | Some(Order::Show) => None,
        Some(Order::Pause { why }) => Some((RolloutState::Paused, why)),
        Some(Order::Resume) => Some((RolloutState::Running, String::new())),
        Some(Order::Abort { why, .. }) => Some((RolloutState::Aborted, why)),
    };
    if let Some((to, why)) = order {
        context.registry.order_rollout(&context.set, to, &why).await?;
    }
    let shown = look(&context).await?;
    if given.json {
        output::object(out, &shown.object())?;
    } else {
        output::text(out, &shown.text())?;
    }
    let paused = shown.rollout.as_ref().is_some_and(|rollout| rollout.state == RolloutState::Paused);
    Ok(if paused { ExitStatus::Findings } else { ExitStatus::Well })
}

/// Gives up a rollout of migrations that need not be among those here: they may have been withdrawn.
async fn abort_other(
    context: &Context,
    version: i64,
    why: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    if context.registry.abort_rollouts_to(version, why).await? == 0 {
        return Err(Error::usage(format!("no rollout to version {version} is running or paused"))
            .hint("`tenantd status` names the one that is"));
    }
    if json {
        output::object(out, &json!({ "version": version, "state": RolloutState::Aborted.word(), "why": why }))?;
    } else {
        output::text(
            out,
            &format!("rollout to version {version}: {}: {}\n", RolloutState::Aborted, output::line(why)),
        )?;
    }
    Ok(ExitStatus::Well)
}

async fn look(context: &Context) -> Result<Shown> {
    let (registry, id) = (&context.registry, context.set.id());
    let behind: Vec<String> = context.relations.behind.keys().cloned().collect();
    let rollout = registry.rollout(&id).await?;
    let canaries = match rollout.as_ref().and_then(|rollout| rollout.canaries.as_ref()) {
        Some(chosen) => Some(registry.canaries(&id, &behind, chosen).await?),
        None => None,
    };
    Ok(Shown {
        rollout,
        version: context.set.newest_version(),
        canaries,
        left: registry.count_behind(&behind).await?,
        lanes: context.config.sweep.parallel,
    })
}

impl Shown {
    /// What the rest will take, by what the canaries took.
    fn estimate(&self) -> Option<Duration> {
        let (average, _) = self.rollout.as_ref()?.took?;
        Some(estimate(average, self.left, self.lanes))
    }

    fn text(&self) -> String {
        let Some(rollout) = &self.rollout else {
            return format!("no rollout: every tenant gets version {} by the way\n", self.version);
        };
        let why = rollout.why.as_ref().map(|why| format!(": {}", output::line(why))).unwrap_or_default();
        let mut text = format!("rollout to version {}: {}{why}\n", rollout.version, rollout.state);
        text.push_str(&format!(
            "began {} for {}\n",
            output::moment(rollout.started_at),
            output::line(&rollout.started_by)
        ));
        if let Some(driver) = &rollout.driver {
            text.push_str(&format!("driven by {}\n", output::line(driver)));
        }
        match (&self.canaries, rollout.passed) {
            _ if rollout.state == RolloutState::Aborted => {
                text.push_str("given up: new tenants get the version before, where its template is there yet\n");
            }
            _ if rollout.state == RolloutState::Overtaken => text.push_str("tenants get those migrations instead\n"),
            (_, true) => text.push_str("canaries: passed; new tenants get it\n"),
            (Some(stand), false) => text.push_str(&format!(
                "canaries: {} have it, {} failed, {} are left; new tenants get the version before\n",
                stand.migrated, stand.failed, stand.left
            )),
            (None, false) => text.push_str("canaries: not chosen yet; new tenants get the version before\n"),
        }
        text.push_str(&format!("behind: {} of {} tenants\n", self.left, rollout.behind.max(self.left)));
        if let (Some((average, longest)), Some(left)) = (rollout.took, self.estimate())
            && self.left > 0
            && matches!(rollout.state, RolloutState::Running | RolloutState::Paused)
        {
            text.push_str(&format!(
                "estimate: {} for the rest with {} lanes; a canary took {} on average and {} at most, and no lock was held longer\n",
                output::duration(left),
                self.lanes,
                output::duration(average),
                output::duration(longest)
            ));
        }
        text
    }

    fn object(&self) -> Value {
        let rollout = self.rollout.as_ref();
        json!({
            "version": self.version,
            "state": rollout.map(|rollout| rollout.state.word()),
            "why": rollout.and_then(|rollout| rollout.why.clone()),
            "passed": rollout.is_none_or(|rollout| rollout.passed),
            "canaries": rollout.and_then(|rollout| rollout.canaries.clone()),
            "canaries_migrated": self.canaries.map(|stand| stand.migrated),
            "canaries_failed": self.canaries.map(|stand| stand.failed),
            "behind": self.left,
            "driver": rollout.and_then(|rollout| rollout.driver.clone()),
            "started_at": rollout.map(|rollout| rollout.started_at.to_string()),
            "started_by": rollout.map(|rollout| rollout.started_by.clone()),
            "estimate_seconds": self.estimate().map(|left| left.as_secs_f64()),
            "longest_seconds": rollout.and_then(|rollout| rollout.took).map(|(_, longest)| longest.as_secs_f64()),
        })
    }
}
