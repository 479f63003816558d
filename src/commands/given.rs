//! What every command that works on tenants is given, and what several of them share: filters, the wait for a busy tenant, the question before
//! something is destroyed.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::{ExitStatus, output};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::migrations::MigrationSet;
use crate::pg::Server;
use crate::provision::{Context, Supply};
use crate::registry::lookup::Filter;
use crate::registry::{Registry, Worker};
use crate::shutdown::Requests;
use crate::tasks::Tasks;
use crate::tenant::{State, Work};

/// What a command works with.
pub struct Given {
    /// The server of the main database and of the tenants.
    pub server: Server,
    /// The settings.
    pub config: Arc<Config>,
    /// The tenant migrations that the settings name.
    pub set: Arc<MigrationSet>,
    /// This process.
    pub worker: Worker,
    /// Whatever runs beside.
    pub tasks: Tasks,
    /// Whether the output is JSON.
    pub json: bool,
}

impl Given {
    /// For the command called `word`, which its connections are named after. Nothing is connected yet.
    ///
    /// # Errors
    /// A file in the folder of the tenant migrations breaks a rule; each is named.
    pub fn new(config: Arc<Config>, word: &str, tasks: Tasks, json: bool) -> Result<Given> {
        let server = Server::bounded(config.main.clone(), config.bounds(), tasks.clone());
        let (set, worker) = (Arc::new(super::migration_set(&config)?), super::worker(&config, word));
        Ok(Given { server, config, set, worker, tasks, json })
    }

    /// The registry, which must be installed already. Nothing is changed.
    ///
    /// # Errors
    /// As [`Registry::open`]'s.
    pub async fn registry(&self) -> Result<Registry> {
        Registry::open(&self.server, &self.worker).await
    }

    /// Everything that reconciling a tenant needs.
    ///
    /// # Errors
    /// As [`Registry::open`]'s; the migration set could not be written down.
    pub async fn context(&self) -> Result<Arc<Context>> {
        let registry = self.registry().await?;
        let (server, config, set) = (self.server.clone(), Arc::clone(&self.config), Arc::clone(&self.set));
        Ok(Arc::new(Context::prepare(server, registry, config, set, Supply::default()).await?))
    }

    /// The same for a command that looks first of all: nothing is written down, and no rollout begun.
    ///
    /// # Errors
    /// As [`Registry::open`]'s.
    pub async fn looking(&self) -> Result<Arc<Context>> {
        let registry = self.registry().await?;
        let (server, config, set) = (self.server.clone(), Arc::clone(&self.config), Arc::clone(&self.set));
        Ok(Arc::new(Context::looking(server, registry, config, set, Supply::default()).await?))
    }
}

impl Given {
    /// Carries out `work`, which gets a token that the first SIGINT or SIGTERM cancels: what it has in hand comes to its end. A second one ends it
    /// at once, with that signal's exit code; leases end by themselves then.
    ///
    /// # Errors
    /// Those of `work`; the signals cannot be had.
    pub async fn heeding_signals<Work>(&self, work: impl FnOnce(CancellationToken) -> Work) -> Result<ExitCode>
    where
        Work: Future<Output = Result<ExitStatus>>,
    {
        let requests = Requests::of_process(&self.tasks)?;
        tokio::select! {
            // On the heap: commands are large.
            status = Box::pin(work(requests.stop.clone())) => status.map(ExitCode::from),
            code = requests.forced() => Ok(code.into()),
        }
    }
}

/// `--timeout`
#[derive(Debug, Clone, Copy, Args)]
pub struct Patience {
    /// How long to wait for a tenant that somebody else works on: "30s", "5m"
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

/// `--yes`
#[derive(Debug, Clone, Copy, Args)]
pub struct Consent {
    /// Do not ask before destroying anything
    #[arg(long)]
    pub yes: bool,
}

impl Consent {
    /// Asks on the terminal whether to go on with `what`, a whole sentence, unless `--yes` was given. To say yes is to type `answer`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage): it was refused, or there is no terminal to ask on.
    pub fn ask(self, what: &str, answer: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Err(Error::usage(format!("{what} Without a terminal nothing is done unasked")).hint("add --yes"));
        }
        output::text(&mut std::io::stderr(), &format!("{what} Type {answer} to go on: "))?;
        let mut said = String::new();
        stdin.lock().read_line(&mut said).map_err(|error| Error::usage("read the answer").because(error))?;
        if said.trim() == answer { Ok(()) } else { Err(Error::usage("nothing was done")) }
    }
}

/// Which tenants, by how they stand.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    /// Only in this state: requested, ready, deleting or deleted; again for several
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Vec<State>,
    /// Only with this work: idle, due, failing, parked or held; again for several
    #[arg(long, value_name = "WORK", value_parser = work)]
    pub work: Vec<Work>,
    /// Only at this version
    #[arg(long, value_name = "VERSION")]
    pub version: Option<i64>,
    /// Only those whose key or name fits a pattern with * and ?
    #[arg(long, value_name = "PATTERN")]
    pub name: Option<String>,
    /// Only those that do not have the newest migrations
    #[arg(long)]
    pub behind: bool,
}

impl Filters {
    /// As the registry takes it. `newest`: the id of the migration set that tenants should have.
    #[must_use]
    pub fn filter(&self, newest: &str) -> Filter {
        Filter {
            keys: Vec::new(),
            states: self.state.clone(),
            works: self.work.clone(),
            version: self.version,
            pattern: self.name.clone(),
            not_at: self.behind.then(|| newest.to_owned()),
        }
    }
}

fn state(word: &str) -> std::result::Result<State, String> {
    State::from_word(word).ok_or_else(|| known("state", State::ALL.iter().map(|state| state.word())))
}

fn work(word: &str) -> std::result::Result<Work, String> {
    Work::from_word(word).ok_or_else(|| known("work", Work::ALL.iter().map(|work| work.word())))
}

fn known<'a>(what: &str, words: impl Iterator<Item = &'a str>) -> String {
    format!("a {what} is one of {}", words.collect::<Vec<_>>().join(", "))
}

/// A length of time as people write it: `30s`, `5m`, `1h 30m`.
///
/// # Errors
/// It is none, or a negative one.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let length: SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(length).map_err(|_| "a length of time is not negative".to_owned())
}
