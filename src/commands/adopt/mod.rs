//! `tenantd adopt`: databases that are there already become tenants: made by hand, found as orphans, restored over ours, or a whole fleet that
//! another tool kept a table of.

mod carry;
mod choose;
mod judge;
mod text;

use std::io::Write;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use self::choose::Candidate;
use self::judge::Plan;
use super::doctor::{self, Check as Asked};
use super::given::{Consent, Given, Patience};
use super::{ExitStatus, output};
use crate::error::{Error, Result};
use crate::provision::under_lease;
use crate::registry::Registry;
use crate::shutdown::Requests;
use crate::tenant::State;

/// `tenantd adopt`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["key", "orphans", "from_table"]).required(true))]
#[command(after_help = "Examples:
  tenantd adopt 3f2504e0                          its database was restored under its name: take it as it stands
  tenantd adopt acme --database customer_acme     a database made by hand, under the name that it has
  tenantd adopt --orphans --dry-run               what databases without a tenant would become
  tenantd adopt --from-table ops.customers --name-column database --key-column id --version 12
                                                  a whole fleet that has migrations up to 12 from elsewhere
  tenantd adopt 3f2504e0 --empty                  its database is lost for good: it gets an empty one

A database that bears another registry's marker is refused. Owner, rights and missing migrations are left to the
next look of a daemon or sweep.")]
pub struct Adopt {
    /// The tenant: its key, or the beginning of one that is known
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// The database, if it is not the one under the tenant's name
    #[arg(long, value_name = "NAME", requires = "key")]
    pub database: Option<String>,
    /// Every database that bears our marker, or a tenant's name, and belongs to no tenant
    #[arg(long)]
    pub orphans: bool,
    /// A table of the main database that says whose each database is
    #[arg(long, value_name = "SCHEMA.TABLE", requires_all = ["name_column", "key_column"])]
    pub from_table: Option<String>,
    /// With --from-table: the column with the database's name
    #[arg(long, value_name = "COLUMN", requires = "from_table")]
    pub name_column: Option<String>,
    /// With --from-table: the column with the tenant's key
    #[arg(long, value_name = "COLUMN", requires = "from_table")]
    pub key_column: Option<String>,
    /// What a database without a history of ours has: migrations up to this one are written down as applied; 0: none is
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(0..))]
    pub version: Option<i64>,
    /// The tenant's database is lost for good: have an empty one made
    #[arg(long, requires = "key", conflicts_with_all = ["database", "version"])]
    pub empty: bool,
    /// Say what would be recorded, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For what is recorded
    #[command(flatten)]
    pub consent: Consent,
    /// For whoever is in the way
    #[command(flatten)]
    pub patience: Patience,
}

/// What a run comes to.
#[derive(Debug, Default)]
struct Report {
    plans: Vec<Plan>,
    /// Databases that are their tenants' already.
    already: Vec<String>,
    /// Those that cannot be adopted, with why.
    refused: Vec<(Candidate, Error)>,
    /// Those that could not be, when it was tried: key, and why.
    failed: Vec<(String, Error)>,
    /// The keys of those that were.
    adopted: Vec<String>,
    dry_run: bool,
    cut_off: bool,
}

/// Shows what would be recorded, asks, and records it, one fenced transaction for each tenant. A first SIGINT or SIGTERM ends it after the
/// tenant in hand.
///
/// Returns [`ExitStatus::Findings`] when some databases were refused or failed.
///
/// # Errors
/// The only database that was asked for cannot be adopted; nobody agreed; the main database cannot be reached.
pub async fn run(given: &Given, arguments: &Adopt, out: &mut impl Write) -> Result<ExitCode> {
    doctor::before(given, &[Asked::Writes, Asked::Rights]).await?;
    let registry = given.registry().await?;
    if arguments.empty {
        return anew(given, &registry, arguments, out).await.map(ExitCode::from);
    }
    let mut report = Report { dry_run: arguments.dry_run, ..Report::default() };
    for candidate in choose::candidates(&registry, &given.config, arguments).await? {
        match judge::plan(given, &registry, &candidate, arguments.version).await {
            Ok(Some(plan)) => report.plans.push(plan),
            Ok(None) => report.already.push(candidate.name),
            // The one that was asked for.
            Err(error) if arguments.key.is_some() => return Err(error),
            Err(error) => report.refused.push((candidate, error)),
        }
    }
    if !given.json {
        output::text(out, &text::plans(&report, registry.isolation))?;
    }
    if !report.plans.is_empty() && !arguments.dry_run {
        let databases =
            output::counted(i64::try_from(report.plans.len()).unwrap_or(i64::MAX), registry.isolation.word());
        let what = format!("This records {databases} as tenants, and marks them as this registry's by their COMMENT.");
        arguments.consent.ask(&what, "yes")?;
        let requests = Requests::of_process(&given.tasks)?;
        let plans = std::mem::take(&mut report.plans);
        let carrying = carry::all(given, &registry, plans, arguments, &requests, &mut report);
        let forced = tokio::select! {
            () = carrying => None,
            code = requests.forced() => Some(code),
        };
        if let Some(code) = forced {
            return Ok(code.into());
        }
    }
    if given.json {
        output::object(out, &object(&report))?;
    } else {
        output::text(out, &text::outcome(&report))?;
    }
    let well = report.refused.is_empty() && report.failed.is_empty() && !report.cut_off;
    Ok(if well { ExitStatus::Well } else { ExitStatus::Findings }.into())
}

/// `--empty`
async fn anew(given: &Given, registry: &Registry, arguments: &Adopt, out: &mut impl Write) -> Result<ExitStatus> {
    let words: Vec<String> = arguments.key.iter().cloned().collect();
    let keys = registry.resolve(&words).await?;
    let key = keys.first().ok_or_else(|| Error::usage("no tenant is named"))?;
    let database = registry.database_of(key).await?;
    if !registry.databases_named(std::slice::from_ref(&database)).await?.is_empty() {
        return Err(Error::usage(format!("the {} {database:?} of tenant {key} is there", registry.isolation)).hint(format!(
            "--empty is for one that is lost; `tenantd adopt {key}` takes the one that is there, `tenantd reset` empties it"
        )));
    }
    if !arguments.dry_run {
        let what = format!(
            "Tenant {key} gets an empty {} in the place of {database}; what that held is given up.",
            registry.isolation
        );
        arguments.consent.ask(&what, "yes")?;
        let claim = registry.claim_by_hand(key, &[State::Ready], arguments.patience.timeout).await?;
        under_lease(registry, &claim, registry.begin_anew(&claim)).await?;
    }
    if given.json {
        output::object(out, &json!({ "dry_run": arguments.dry_run, "key": key, "empty": database }))?;
    } else {
        let done = if arguments.dry_run { "would get" } else { "gets" };
        output::text(
            out,
            &format!(
                "tenant {} {done} an empty {} {}\n",
                output::line(key),
                registry.isolation,
                output::line(&database)
            ),
        )?;
    }
    Ok(ExitStatus::Well)
}

fn object(report: &Report) -> Value {
    let plan = |plan: &Plan| plan.object();
    let refused = |(candidate, error): &(Candidate, Error)| json!({ "key": candidate.key, "database": candidate.name, "error": output::error(error) });
    let failed = |(key, error): &(String, Error)| json!({ "key": key, "error": output::error(error) });
    json!({
        "dry_run": report.dry_run,
        "cut_off": report.cut_off,
        "plans": report.plans.iter().map(plan).collect::<Vec<_>>(),
        "adopted": report.adopted,
        "already": report.already,
        "refused": report.refused.iter().map(refused).collect::<Vec<_>>(),
        "failed": report.failed.iter().map(failed).collect::<Vec<_>>(),
    })
}
