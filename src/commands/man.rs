//! `tenantd man`: the manual, a page for each command.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_mangen::{Man as Page, generate_to};

use super::{ExitStatus, output};
use crate::cli::Cli;
use crate::error::{Error, Kind, Result};

/// `tenantd man`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd man | man -l -                         read the first page
  tenantd man --out /usr/local/share/man/man1    install all of them")]
pub struct Man {
    /// Write a page for each command into this folder, which must be there
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// Writes the page of tenantd itself, or with `--out` those of all commands into a folder. Needs neither settings nor a database.
///
/// # Errors
/// The folder is not there or cannot be written to; `out` cannot be.
pub fn run(arguments: &Man, out: &mut impl Write) -> Result<ExitStatus> {
    if let Some(folder) = &arguments.out {
        let doing = || format!("write man pages into {}", folder.display());
        generate_to(Cli::command(), folder).map_err(|error| Error::usage(doing()).because(error))?;
        return Ok(ExitStatus::Well);
    }
    let mut page = Vec::new();
    let rendered = Page::new(Cli::command()).render(&mut page);
    rendered.map_err(|error| Error::new(Kind::Other, "write the man page").because(error))?;
    output::text(out, &String::from_utf8_lossy(&page))?;
    Ok(ExitStatus::Well)
}
