//! `tenantd migrate`: brings the main schema to its newest migration.

use std::io::Write;

use clap::Args;

use super::given::Given;
use super::{ExitStatus, main_schema};
use crate::error::Result;

/// `tenantd migrate`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd migrate main             the application's own schema, from the folder main.migrations
  tenantd migrate main --dry-run   what would be applied, with its SQL")]
pub struct Arguments {
    /// What: the application's own schema in the main database
    #[arg(value_parser = ["main"])]
    pub what: String,
    /// Up to this version
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    pub to: Option<i64>,
    /// Print what would be applied and the SQL, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Applies what is missing, or prints it.
///
/// # Errors
/// As for [`main_schema::migrate`].
pub async fn run(given: &Given, arguments: &Arguments, out: &mut impl Write) -> Result<ExitStatus> {
    main_schema::migrate(given, arguments.to, arguments.dry_run, out).await
}
