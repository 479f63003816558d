//! The subcommands: one file each, writing their data to what they are given.

pub mod adopt;
pub mod backup;
pub mod check;
pub mod completions;
pub mod config;
pub mod create;
pub mod doctor;
pub mod drop;
pub mod events;
pub mod given;
pub mod hold;
pub mod lint;
pub mod list;
pub mod main_schema;
pub mod man;
pub mod migrate;
pub mod new;
pub mod output;
pub mod progress;
pub mod psql;
pub mod release_lock;
mod reload;
pub mod report;
pub mod reset;
pub mod restore;
pub mod retry;
pub mod rollback;
pub mod rollout;
pub mod serve;
pub mod setup;
pub mod show;
pub mod status;
pub mod sweep;
pub mod sync;
pub mod url;
pub mod wait;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use self::given::Given;
use crate::cli::{Cli, Command, ConfigCommand};
use crate::config::{Config, Sources, load};
use crate::error::{Error, Kind, Result};
use crate::migrations::{MigrationSet, embedded, source};
use crate::pg::Server;
use crate::registry::Worker;
use crate::tasks::Tasks;

/// How a command ended, as scripts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// All well.
    Well = 0,
    /// Some tenant failed, or something was found.
    Findings = 1,
    /// Wrong use, wrong settings, or refused by a safety rule.
    Usage = 2,
    /// The main database is out of reach.
    Unreachable = 3,
    /// The registry is newer than this tenantd.
    RegistryNewer = 4,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        ExitCode::from(status as u8)
    }
}

impl From<&Error> for ExitStatus {
    fn from(error: &Error) -> Self {
        match error.kind() {
            Kind::Usage => ExitStatus::Usage,
            Kind::RegistryNewer => ExitStatus::RegistryNewer,
            kind if kind.is_out_of_reach() => ExitStatus::Unreachable,
            _ => ExitStatus::Findings,
        }
    }
}

/// Prints a failure with what to do about it, and gives its exit code.
#[must_use]
pub fn failed(error: &Error) -> ExitCode {
    tell_failure(error);
    ExitStatus::from(error).into()
}

/// Prints a failure with what to do about it.
fn tell_failure(error: &Error) {
    let mut talk = format!("tenantd: {}\n", error.chain());
    if let Some(advice) = error.advice() {
        talk.push_str(&format!("hint: {advice}\n"));
    }
    // Nobody is left to tell when stderr is gone.
    let _ = output::text(&mut std::io::stderr(), &talk);
}

/// Carries out what the command line asks for.
///
/// # Errors
/// See [`ExitStatus`].
pub async fn run(cli: Cli) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    match &cli.command {
        Some(Command::Completions(arguments)) => return Ok(completions::run(arguments, &mut out)?.into()),
        Some(Command::Man(arguments)) => return Ok(man::run(arguments, &mut out)?.into()),
        _ => {}
    }
    let sources = sources(&cli);
    let loaded = load(&sources)?;
    if let Some(Command::Config(command)) = &cli.command {
        match command {
            ConfigCommand::Check => config::check(&loaded, cli.json, &mut out)?,
            ConfigCommand::Show => config::show(&loaded, cli.json, &mut out)?,
        }
        return Ok(ExitStatus::Well.into());
    }
    // Before the migrations are read: a folder that cannot be used yet may be written into.
    if let Some(Command::New(arguments)) = &cli.command {
        new::run(&loaded.config, arguments, cli.json, &mut out)?;
        return Ok(ExitStatus::Well.into());
    }
    let log = crate::telemetry::init(&loaded.config.log, sources.stderr_is_journal(), std::io::stderr().is_terminal())?;
    let tasks = Tasks::new();
    let Some(command) = cli.command else {
        if !cli.sweep_once {
            let set = migration_set(&loaded.config)?;
            return serve::run(sources, loaded, set, log, tasks).await;
        }
        let given = Given::new(Arc::new(loaded.config), "sweep", tasks, cli.json)?;
        return sweep::run(&given, None, &mut out).await;
    };
    if let Command::Doctor(arguments) = &command {
        // What the others cannot begin with, migrations that do not load, is among what it looks for.
        let (config, worker) = (&loaded.config, worker(&loaded.config, command.word()));
        let server = Server::bounded(config.main.clone(), config.bounds(), tasks.clone());
        return Ok(doctor::run(&server, config, &worker, &tasks, arguments, cli.json, &mut out).await?.into());
    }
    let given = Given::new(Arc::new(loaded.config), command.word(), tasks, cli.json)?;
    let status = match &command {
        Command::Setup(arguments) => setup::run(&given, arguments, &mut out).await?,
        Command::Status => status::run(&given, &mut out).await?,
        Command::Migrate(arguments) => return migrate::run(given, arguments, &mut out).await,
        Command::Rollout(arguments) => rollout::run(&given, arguments, &mut out).await?,
        Command::Rollback(arguments) => return rollback::run(&given, arguments, &mut out).await,
        Command::Lint(arguments) => return lint::run(&given, arguments, &mut out).await,
        Command::Backup(arguments) => return backup::run(&given, arguments, &mut out).await,
        Command::Create(arguments) => return create::run(&given, arguments, &mut out).await,
        Command::List(arguments) => list::run(&given, arguments, &mut out).await?,
        Command::Show(arguments) => show::run(&given, arguments, &mut out).await?,
        Command::Url(arguments) => url::run(&given, arguments, &mut out).await?,
        Command::Psql(arguments) => psql::run(&given, arguments).await?,
        Command::Wait(arguments) => wait::run(&given, arguments, &mut out).await?,
        Command::Sync(arguments) => return sync::run(&given, arguments, &mut out).await,
        Command::Events(arguments) => events::run(&given, arguments, &mut out).await?,
        Command::Check(arguments) => return check::run(&given, arguments, &mut out).await,
        Command::Adopt(arguments) => return adopt::run(&given, arguments, &mut out).await,
        Command::Retry(arguments) => retry::run(&given, arguments, &mut out).await?,
        Command::Drop(arguments) => return drop::run(&given, arguments, &mut out).await,
        Command::Restore(arguments) => return restore::run(&given, arguments, &mut out).await,
        Command::Reset(arguments) => return reset::run(&given, arguments, &mut out).await,
        Command::Hold(arguments) => hold::hold(&given, arguments, &mut out).await?,
        Command::Release(arguments) => hold::release(&given, arguments, &mut out).await?,
        Command::ReleaseLock(arguments) => release_lock::run(&given, arguments, &mut out).await?,
        Command::New(_) | Command::Doctor(_) | Command::Config(_) | Command::Completions(_) | Command::Man(_) => {
            unreachable!("answered above")
        }
    };
    Ok(status.into())
}

fn sources(cli: &Cli) -> Sources {
    let mut sources = Sources::of_process();
    sources.file.clone_from(&cli.config);
    sources.env_file.clone_from(&cli.env_file);
    for (key, flag) in [("main.url", &cli.url), ("log.level", &cli.log_level)] {
        if let Some(value) = flag {
            sources.flags.insert(key.to_owned(), value.clone());
        }
    }
    sources
}

/// The tenant migrations that the settings name.
///
/// # Errors
/// A file in the folder breaks a rule; each is named.
pub fn migration_set(config: &Config) -> Result<MigrationSet> {
    match &config.tenant.migrations {
        Some(folder) => source::folder(folder),
        None => embedded::tenant(),
    }
}

/// This process, as it shows itself to the main database.
#[must_use]
pub fn worker(config: &Config, role: &str) -> Worker {
    Worker::new(role, &crate::config::user_name(), &crate::config::host_name(), config.bounds().pool, &config.tenant)
}
