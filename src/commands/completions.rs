//! `tenantd completions`: what a shell needs to complete tenantd's words.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{ExitStatus, output};
use crate::cli::Cli;
use crate::error::Result;

/// `tenantd completions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd completions bash > /etc/bash_completion.d/tenantd
  tenantd completions zsh > /usr/local/share/zsh/site-functions/_tenantd
  tenantd completions fish > ~/.config/fish/completions/tenantd.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Writes the script for one shell. Needs neither settings nor a database.
///
/// # Errors
/// `out` cannot be written to.
pub fn run(arguments: &Completions, out: &mut impl Write) -> Result<ExitStatus> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "tenantd", &mut script);
    output::text(out, &String::from_utf8_lossy(&script))?;
    Ok(ExitStatus::Well)
}
