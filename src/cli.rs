//! The command line's words. No defaults and no meaning: those are the settings' and the commands'.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::adopt::Adopt;
use crate::commands::check::Check;
use crate::commands::completions::Completions;
use crate::commands::create::Create;
use crate::commands::doctor::Doctor;
use crate::commands::events::Events;
use crate::commands::list::List;
use crate::commands::man::Man;
use crate::commands::psql::Psql;
use crate::commands::show::Show;
use crate::commands::sync::Sync;
use crate::commands::url::Url;
use crate::commands::wait::Wait;
use crate::commands::{lint, migrate, new, rollback, rollout};

/// Makes and migrates one Postgres database per signup, beside the application.
///
/// Without a command it runs as the daemon: it installs what is missing in the main database, then turns each signup into a database.
#[derive(Debug, Parser)]
#[command(name = "tenantd", version, max_term_width = 110, args_conflicts_with_subcommands = false)]
#[command(after_help = "Examples:
  tenantd setup                 install registry and trigger, say what is missing
  tenantd                       run the daemon
  tenantd --sweep-once          bring every tenant to the latest migration now, then exit
  tenantd status                the fleet at a glance

Exit codes: 0 all well; 1 some tenant failed, or something was found; 2 wrong use or settings;
3 the main database is out of reach; 4 the registry is newer than this tenantd; 130, 143 second signal.")]
pub struct Cli {
    /// One sweep now, then exit: also tries failing and parked tenants, without waiting for their time
    #[arg(long)]
    pub sweep_once: bool,

    /// The settings file [default: `$TENANTD_CONFIG`, else /etc/tenantd/tenantd.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A file of variables (.env), weaker than those of the environment
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,

    /// The main database, instead of main.url
    #[arg(long, global = true, value_name = "URL")]
    pub url: Option<String>,

    /// error, warn, info, debug or trace, instead of log.level
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Print JSON: one object with "format": 1
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do instead of running the daemon
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install registry, trigger and grants in the main database; again and again without harm
    #[command(after_help = "Examples:
  tenantd setup                 install, and say how many users from before are held
  tenantd setup --backfill      make the users from before due: each gets a database
  tenantd setup --print-sql     print the SQL instead, with the roles to create")]
    Setup(Setup),
    /// The fleet at a glance: states, versions, who waits, who failed and why
    #[command(after_help = "Example:
  tenantd status --json | jq .parked")]
    Status,
    /// Make tenants without a signup
    Create(Create),
    /// The tenants, filtered and sorted
    List(List),
    /// One tenant in full: state, database, last error, migrations, events
    Show(Show),
    /// A tenant's connection URL
    Url(Url),
    /// A shell in a tenant's database
    Psql(Psql),
    /// Wait until a tenant is ready
    Wait(Wait),
    /// Bring tenants to the newest migrations: canaries first, then the others in waves
    Migrate(migrate::Migrate),
    /// How the newest migrations go through the fleet: show, pause, resume or abort
    Rollout(rollout::Arguments),
    /// Take migrations of tenants back by their down files, and hold the tenants there
    Rollback(rollback::Arguments),
    /// A new migration and its down file, with the next version
    New(new::Arguments),
    /// Try migrations on a scratch database, and say what in them may hurt
    Lint(lint::Arguments),
    /// The health of the fleet: databases, rights, migrations, objects, and what belongs to no tenant
    Check(Check),
    /// Take databases that are there already into the registry, after showing what would be recorded
    Adopt(Adopt),
    /// A sweep now, of all tenants or of some
    Sync(Sync),
    /// Make failing and parked tenants due at once
    Retry(crate::commands::retry::Retry),
    /// Take a tenant away: after a backup, and for a time of grace
    Drop(crate::commands::drop::Drop),
    /// Take a tenant back, in its time of grace or from a backup
    Restore(crate::commands::restore::Restore),
    /// Empty tenants, and migrate them anew
    Reset(crate::commands::reset::Reset),
    /// Write tenants to files, as `pg_dump` does
    Backup(crate::commands::backup::Backup),
    /// Keep tenants as they are: out of sweeps and migrations
    Hold(crate::commands::hold::Hold),
    /// Give held tenants back to the daemons
    Release(crate::commands::hold::Release),
    /// Show who holds tenants and locks, and free what dead processes left
    ReleaseLock(crate::commands::release_lock::ReleaseLock),
    /// What keeps a fleet from being made or kept, found before the first signup meets it
    Doctor(Doctor),
    /// What was done to tenants, when and by whom
    Events(Events),
    /// Check or show the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What a shell needs to complete tenantd's words
    Completions(Completions),
    /// The manual, a page for each command
    Man(Man),
}

impl Command {
    /// The command's name, as its connections to the main database bear it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Command::Setup(_) => "setup",
            Command::Status => "status",
            Command::Create(_) => "create",
            Command::List(_) => "list",
            Command::Show(_) => "show",
            Command::Url(_) => "url",
            Command::Psql(_) => "psql",
            Command::Wait(_) => "wait",
            Command::Migrate(_) => "migrate",
            Command::Rollout(_) => "rollout",
            Command::Rollback(_) => "rollback",
            Command::New(_) => "new",
            Command::Lint(_) => "lint",
            Command::Check(_) => "check",
            Command::Adopt(_) => "adopt",
            Command::Sync(_) => "sync",
            Command::Retry(_) => "retry",
            Command::Drop(_) => "drop",
            Command::Restore(_) => "restore",
            Command::Reset(_) => "reset",
            Command::Backup(_) => "backup",
            Command::Hold(_) => "hold",
            Command::Release(_) => "release",
            Command::ReleaseLock(_) => "release-lock",
            Command::Doctor(_) => "doctor",
            Command::Events(_) => "events",
            Command::Config(_) => "config",
            Command::Completions(_) => "completions",
            Command::Man(_) => "man",
        }
    }
}

/// `tenantd setup`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("moved").args(["adopt_registry", "new_registry"]))]
pub struct Setup {
    /// Print all SQL that setup stands for, and change nothing
    #[arg(long)]
    pub print_sql: bool,
    /// Make the users from before the installation due
    #[arg(long)]
    pub backfill: bool,
    /// Remove registry, function and trigger; the tenants' databases stay
    #[arg(long, conflicts_with_all = ["print_sql", "backfill", "moved"])]
    pub remove: bool,
    /// Do not ask before removing
    #[arg(long, requires = "remove")]
    pub yes: bool,
    /// The main database moved for good: keep its tenants
    #[arg(long)]
    pub adopt_registry: bool,
    /// This database is a copy: forget the tenants, which belong to the original
    #[arg(long)]
    pub new_registry: bool,
}

/// `tenantd config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the settings can be used, and what is wrong with them
    #[command(after_help = "Example:
  tenantd config check && systemctl reload tenantd")]
    Check,
    /// Print every setting, its value and where it comes from
    #[command(after_help = "Example:
  tenantd config show --json | jq '.settings[\"tenant.use\"]'")]
    Show,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The examples in a command's help.
    fn examples(command: &clap::Command) -> String {
        let help = command.clone().render_long_help().to_string();
        help.split_once("Example").map(|(_, examples)| examples.to_owned()).unwrap_or_default()
    }

    /// The commands below `command`, each with the words that lead to it, that no example of its own or of `command` shows.
    fn without_example(command: &clap::Command, words: &str) -> Vec<String> {
        let above = examples(command);
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        below
            .flat_map(|below| {
                let own = format!("{words} {}", below.get_name());
                // What a command does without a word of those below it is shown with it.
                let shown = examples(below).contains(&own) || words != "tenantd" && above.contains(words);
                let mut without = without_example(below, &own);
                without.extend((!shown && !below.has_subcommands()).then_some(own));
                without
            })
            .collect()
    }

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_has_an_example_in_its_help() {
        assert_eq!(without_example(&Cli::command(), "tenantd"), Vec::<String>::new());
        let bare = clap::Command::new("tenantd").subcommand(clap::Command::new("odd"));
        assert_eq!(without_example(&bare, "tenantd"), ["tenantd odd"]);
    }
}
