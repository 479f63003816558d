//! `tenantd new`: the files of a new migration.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::output;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::migrations::Mode;
use crate::migrations::draft::draft;

/// `tenantd new`
#[derive(Debug, Args)]
#[command(after_help = "Both files are refused until they hold a statement, so that none is shipped empty.

Examples:
  tenantd new add_level_to_message            0002_add_level_to_message.up.sql and .down.sql
  tenantd new index_level --no-transaction    for CREATE INDEX CONCURRENTLY and its like
  tenantd new --main add_plan_to_users        for the application's own schema in the main database")]
pub struct Arguments {
    /// What it does, in letters, digits, _ and -
    pub name: String,
    /// For the main database, in the folder main.migrations, instead of for the tenants
    #[arg(long)]
    pub main: bool,
    /// Its statements are sent one by one without a transaction
    #[arg(long)]
    pub no_transaction: bool,
    /// The moment as its version, 20260301123005, as a folder goes on that has such versions
    #[arg(long)]
    pub timestamp: bool,
}

/// Writes the two files and prints their paths. Needs no database; nothing is ever overwritten.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage): no folder is set, it cannot be written to, or the name cannot be one.
pub fn run(config: &Config, arguments: &Arguments, json: bool, out: &mut impl Write) -> Result<()> {
    let (key, folder) = if arguments.main {
        ("main.migrations", &config.main_schema.migrations)
    } else {
        ("tenant.migrations", &config.tenant.migrations)
    };
    let folder = folder.as_ref().ok_or_else(|| {
        let variable = format!("TENANTD_{}", key.to_uppercase().replace('.', "__"));
        Error::usage(format!("{key} names no folder to write a migration into")).hint(format!(
            "set {key}, in the settings file or as {variable}; it replaces migrations built into tenantd"
        ))
    })?;
    let mode = if arguments.no_transaction { Mode::Statements } else { Mode::Transaction };
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).datetime();
    let draft = draft(folder, &arguments.name, mode, arguments.timestamp, now)?;
    if json {
        let object = json!({ "version": draft.version, "name": arguments.name, "up": draft.up, "down": draft.down });
        return output::object(out, &object);
    }
    let shown = |path: &std::path::Path| output::line(&path.display().to_string());
    output::text(out, &format!("made {}\nmade {}\n", shown(&draft.up), shown(&draft.down)))
}
