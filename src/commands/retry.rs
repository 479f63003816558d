//! `tenantd retry`: failing and parked tenants are due at once.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::given::{Filters, Given};
use super::{ExitStatus, output};
use crate::error::Result;

/// `tenantd retry`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd retry                      every failing and parked tenant
  tenantd retry --work parked        the parked ones
  tenantd retry 7cba0a6c --dry-run   whether this one would be")]
pub struct Retry {
    /// The tenants: keys, names of databases, or the beginning of one; without any, all that the filters leave
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Which of all
    #[command(flatten)]
    pub filters: Filters,
    /// Say which tenants would be tried again, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Makes tenants due, and says which. The work itself is the daemon's.
///
/// # Errors
/// The main database cannot be reached; an unknown key.
pub async fn run(given: &Given, arguments: &Retry, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let mut filter = arguments.filters.filter(&given.set.id());
    filter.keys = registry.resolve(&arguments.keys).await?;
    let retried = if arguments.dry_run { registry.to_retry(&filter).await? } else { registry.retry(&filter).await? };
    if given.json {
        output::object(out, &json!({ "dry_run": arguments.dry_run, "retried": retried }))?;
        return Ok(ExitStatus::Well);
    }
    let mut text = String::new();
    for key in &retried {
        let due = if arguments.dry_run { "would be due" } else { "is due" };
        text.push_str(&format!("{} {due}\n", output::line(key)));
    }
    for key in filter.keys.iter().filter(|key| !retried.contains(key)) {
        text.push_str(&format!("{} is neither failing nor parked, or somebody works on it\n", output::line(key)));
    }
    if text.is_empty() {
        text.push_str("no tenant is failing or parked\n");
    }
    output::text(out, &text)?;
    Ok(ExitStatus::Well)
}
