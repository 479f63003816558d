//! `tenantd doctor`: what keeps a fleet from being made or kept, found before the first signup meets it.

mod examine;
mod rules;
mod text;

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use self::examine::Patient;
use super::given::Given;
use super::{ExitStatus, output};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pg::Server;
use crate::registry::Worker;
use crate::tasks::Tasks;
use crate::tenant::words;

/// `tenantd doctor`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd doctor                look at everything; makes a scratch database and drops it again
  tenantd doctor --quick        only what makes no database
  tenantd doctor --json | jq '.checks[] | select(.verdict == \"wrong\")'

It needs no registry, so it can be run before `tenantd setup`. Exit codes: 0 nothing is wrong; 1 something is;
3 the main database is out of reach.")]
pub struct Doctor {
    /// Only what makes no database
    #[arg(long)]
    pub quick: bool,
}

/// Something that doctor looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Whether the main database lets us in.
    Connection,
    /// Whether the connection is encrypted, and the server known by its certificate.
    Tls,
    /// Whether the server's version is one to trust.
    Server,
    /// Whether the server takes writes, and whom a commit waits for.
    Writes,
    /// Whether roles and rights are there.
    Rights,
    /// Whether the signup table can serve.
    Signup,
    /// Whether the registry is whole, and this database's.
    Registry,
    /// Whether the tenant migrations load.
    Migrations,
    /// Whether notifications come through.
    Listen,
    /// Whether signups may notify.
    Notify,
    /// Whether databases can be made, and how fast.
    Clone,
    /// Whether collations are of the server's version.
    Collation,
    /// Whether there are connections enough.
    Connections,
    /// Whether there is room for more tenants.
    Room,
    /// Whether there is disk for them.
    Disk,
    /// Whether the clocks agree.
    Clock,
    /// Whether autovacuum can keep up.
    Autovacuum,
    /// Whether backups can be made.
    PgDump,
}

words!(Check {
    Connection => "connection", Tls => "tls", Server => "server", Writes => "writes", Rights => "rights", Signup => "signup",
    Registry => "registry", Migrations => "migrations", Listen => "listen", Notify => "notify", Clone => "clone",
    Collation => "collation", Connections => "connections", Room => "room", Disk => "disk", Clock => "clock",
    Autovacuum => "autovacuum", PgDump => "pg_dump",
});

/// How what was looked at stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and a person should know.
    Warning,
    /// It keeps tenantd from its work.
    Wrong,
    /// It could not be looked at.
    Unknown,
}

words!(Verdict { Ok => "ok", Warning => "warning", Wrong => "wrong", Unknown => "unknown" });

/// What was found where doctor looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What was looked at.
    pub check: Check,
    /// How it stands.
    pub verdict: Verdict,
    /// What is, in a sentence.
    pub text: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Diagnosis {
    fn new(check: Check, verdict: Verdict, text: impl Into<String>) -> Self {
        Diagnosis { check, verdict, text: text.into(), advice: None }
    }

    fn ok(check: Check, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, text)
    }

    fn warning(check: Check, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Diagnosis { advice: Some(advice.into()), ..Self::new(check, Verdict::Warning, text) }
    }

    fn wrong(check: Check, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Diagnosis { advice: Some(advice.into()), ..Self::new(check, Verdict::Wrong, text) }
    }

    fn of(check: Check, verdict: Verdict, error: &Error) -> Self {
        Diagnosis { advice: error.advice().map(str::to_owned), ..Self::new(check, verdict, error.chain()) }
    }
}

/// Looks at everything, and writes what it found.
///
/// Returns [`ExitStatus::Findings`] when something is wrong, [`ExitStatus::Unreachable`] when the main database could not be connected to.
///
/// # Errors
/// `out` cannot be written to.
pub async fn run(
    server: &Server,
    config: &Config,
    worker: &Worker,
    tasks: &Tasks,
    arguments: &Doctor,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let checks: Vec<Check> =
        Check::ALL.iter().copied().filter(|check| !arguments.quick || *check != Check::Clone).collect();
    let found = Patient { server, config, worker, tasks }.examine(&checks).await;
    if json {
        output::object(out, &object(&found))?;
    } else {
        output::text(out, &text::whole(&found))?;
    }
    Ok(exit_status(&found))
}

/// Refuses to go on where one of `checks` finds something wrong: for the head of a command that would fail half-way, or do harm.
///
/// What is only to be known, or cannot be looked at, is no hindrance.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage), with all that is wrong. The main database's, when it cannot be connected to.
pub async fn before(given: &Given, checks: &[Check]) -> Result<()> {
    let Given { server, config, worker, tasks, .. } = given;
    // Whoever cannot connect is told so with the exit code that this has.
    server.connect(None, &worker.application_name).await?.close().await;
    let found = Patient { server, config, worker, tasks }.examine(checks).await;
    let wrong: Vec<&Diagnosis> = found.iter().filter(|found| found.verdict == Verdict::Wrong).collect();
    let Some(first) = wrong.first() else { return Ok(()) };
    let all = wrong.iter().map(|wrong| format!("{}: {}", wrong.check, wrong.text)).collect::<Vec<_>>().join("; ");
    let error = Error::usage(format!("not begun, since something is wrong: {all}"));
    Err(match &first.advice {
        Some(advice) => error.hint(advice.clone()),
        None => error.hint("`tenantd doctor` says more"),
    })
}

fn exit_status(found: &[Diagnosis]) -> ExitStatus {
    let wrong = |check: Option<Check>| {
        found.iter().any(|found| found.verdict == Verdict::Wrong && check.is_none_or(|check| found.check == check))
    };
    match (wrong(Some(Check::Connection)), wrong(None)) {
        (true, _) => ExitStatus::Unreachable,
        (_, true) => ExitStatus::Findings,
        _ => ExitStatus::Well,
    }
}

fn object(found: &[Diagnosis]) -> Value {
    let one = |found: &Diagnosis| {
        json!({
            "check": found.check.word(),
            "verdict": found.verdict.word(),
            "text": found.text,
            "advice": found.advice,
        })
    };
    json!({
        "ok": exit_status(found) == ExitStatus::Well,
        "checks": found.iter().map(one).collect::<Vec<_>>(),
    })
}
