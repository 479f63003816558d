//! `tenantd rollback`: takes migrations of tenants back by their down files, and holds the tenants there.

mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use futures_util::{StreamExt, stream};

use self::report::{Report, Told};
use super::given::{Consent, Given, Patience};
use super::{ExitStatus, main_schema, output, progress};
use crate::backup::Backups;
use crate::error::{Error, Result};
use crate::migrations::back::{Target, refuse_without_down};
use crate::migrations::compare::Recorded;
use crate::migrations::{Migration, MigrationSet};
use crate::plan::Back;
use crate::provision::{Context, rollback};
use crate::registry::Registry;
use crate::registry::lookup::Filter;
use crate::shutdown::Requests;
use crate::tenant::State;

/// So many keys are read at a time.
const PAGE: i64 = 1000;

/// `tenantd rollback`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("who").args(["keys", "all"]).required(true))]
#[command(group = clap::ArgGroup::new("target").args(["to", "to_name", "steps"]).required(true))]
#[command(
    after_help = "Each tenant is held afterwards, so that no sweep brings it up again: `tenantd release KEY` lets it go on.
Refused before anything is touched where a down file is missing.

Examples:
  tenantd rollback 6b1d7c1e --steps 1                what would be lost is asked first
  tenantd rollback --all --to 12 --dry-run           each tenant's steps, and the SQL
  tenantd rollback --all --to-name add_level --yes   that migration stays, what came after it goes
  tenantd rollback main --steps 1                    the application's own schema in the main database"
)]
pub struct Arguments {
    /// Tenants by key, database name, or the beginning of one; or `main`, the application's own schema in the main database
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Every tenant that is ready
    #[arg(long)]
    pub all: bool,
    /// Back to this version, which stays; 0: nothing stays
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(0..))]
    pub to: Option<i64>,
    /// Back to the migration of this name, which stays
    #[arg(long, value_name = "NAME")]
    pub to_name: Option<String>,
    /// So many migrations back
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: Option<u16>,
    /// Write a backup of each tenant first, into the folder backup.folder
    #[arg(long)]
    pub backup: bool,
    /// Print each tenant's steps and the SQL, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// So many tenants at a time [default: sweep.parallel]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: Option<u16>,
    #[command(flatten)]
    /// How long to wait for a busy tenant.
    pub patience: Patience,
    #[command(flatten)]
    /// Whether to ask.
    pub consent: Consent,
}

/// Takes back, or prints what would be taken back. A failure of one tenant stops no other; the first SIGINT or SIGTERM ends it after the
/// tenants in hand, the second at once.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage), before anything is touched: an unknown key, version or name, a missing down file, no consent.
/// The main database cannot be reached.
pub async fn run(given: &Given, arguments: &Arguments, out: &mut impl Write) -> Result<ExitCode> {
    if arguments.keys == ["main"] {
        if arguments.backup {
            return Err(
                Error::usage("--backup is for tenants").hint("back the main database up by your own ways first")
            );
        }
        let target = |set: &MigrationSet| target(set, arguments);
        return main_schema::roll_back(given, target, arguments.dry_run, arguments.consent, out)
            .await
            .map(ExitStatus::into);
    }
    let target = target(&given.set, arguments)?;
    let context = given.looking().await?;
    let keys = choose(&context.registry, arguments).await?;
    let affected = affected(&given.set, target, &context.registry.versions(&keys).await?);
    refuse_without_down(affected.iter().copied())?;
    let backups = if arguments.backup && !arguments.dry_run {
        Some(Backups::open(&given.server, &context.registry, &given.config).await?)
    } else {
        None
    };
    if !arguments.dry_run && !keys.is_empty() {
        let tenants = output::counted(i64::try_from(keys.len()).unwrap_or(i64::MAX), "tenant");
        let what = format!("This takes migrations of {tenants} back: what they made goes, with the data in it.");
        arguments.consent.ask(&what, "yes")?;
    }
    let requests = Requests::of_process(&given.tasks)?;
    let all = All { context: &context, backups: backups.as_ref(), arguments, target };
    let rolling = roll(&all, keys, &requests);
    let report = tokio::select! {
        report = rolling => report,
        code = requests.forced() => return Ok(code.into()),
    };
    // What was done is told in any case.
    if let Err(error) = context.registry.release_all().await {
        tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
    }
    report::print(&report, &given.set, given.json, out).map(ExitStatus::into)
}

/// What was asked for, as far as it is the same for every tenant.
fn target(set: &MigrationSet, arguments: &Arguments) -> Result<Target> {
    if let Some(steps) = arguments.steps {
        return Ok(Target::Steps(usize::from(steps)));
    }
    let version = match (&arguments.to_name, arguments.to) {
        (Some(name), _) => set.named(name)?.version,
        (None, Some(0)) => 0,
        (None, version) => set.known(version.unwrap_or_default())?.version,
    };
    Ok(Target::To(version))
}

/// The keys of the tenants that are asked for, in their order.
async fn choose(registry: &Registry, arguments: &Arguments) -> Result<Vec<String>> {
    if !arguments.all {
        return registry.resolve(&arguments.keys).await;
    }
    let filter = Filter { states: vec![State::Ready], ..Filter::default() };
    let mut keys: Vec<String> = Vec::new();
    loop {
        let page = registry.keys(&filter, keys.last().map_or("", String::as_str), PAGE).await?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

/// The migrations that are taken back of tenants at `versions`, as far as the registry tells: enough to refuse before anything is touched.
fn affected<'a>(set: &'a MigrationSet, target: Target, versions: &[i64]) -> Vec<&'a Migration> {
    let mut affected = BTreeMap::new();
    for version in versions {
        let has = |migration: &&Migration| migration.version <= *version;
        let applied: Vec<&Migration> = set.migrations().iter().filter(has).collect();
        let recorded: Vec<Recorded> = applied.iter().map(|migration| migration.entry().into()).collect();
        let to = target.version(&recorded);
        affected.extend(applied.into_iter().filter(|one| one.version > to).map(|one| (one.version, one)));
    }
    affected.into_values().collect()
}

/// What is the same for every tenant.
struct All<'a> {
    context: &'a Context,
    backups: Option<&'a Backups>,
    arguments: &'a Arguments,
    target: Target,
}

async fn roll(all: &All<'_>, keys: Vec<String>, requests: &Requests) -> Report {
    let All { context, arguments, .. } = all;
    let began = Instant::now();
    let mut report = Report { dry_run: arguments.dry_run, chosen: keys.len(), ..Report::default() };
    let bar = progress::Bar::of("rollback");
    let parallel = arguments.parallel.map_or(context.config.sweep.parallel, usize::from);
    let going_on = |_: &String| std::future::ready(!requests.stop.is_cancelled());
    let one = |key: String| async {
        let done = one(all, &key).await;
        Told { key, done }
    };
    let mut rolling = std::pin::pin!(stream::iter(keys).take_while(going_on).map(one).buffer_unordered(parallel));
    let mut ended = 0;
    while let Some(told) = rolling.next().await {
        ended += 1;
        bar.count(told.done.is_err(), ended, report.chosen);
        if told.done.as_ref().is_err_and(|error| error.kind().is_out_of_reach()) {
            requests.stop.cancel();
        }
        report.tenants.push(told);
    }
    bar.finish();
    report.tenants.sort_by(|one, other| one.key.cmp(&other.key));
    report.took = began.elapsed();
    report
}

async fn one(all: &All<'_>, key: &str) -> Result<Back> {
    let All { context, backups, arguments, target } = all;
    let registry = &context.registry;
    if arguments.dry_run {
        return rollback::look(context, &registry.glance(key, &[State::Ready]).await?, *target).await;
    }
    let claim = registry.claim_by_hand(key, &[State::Ready], arguments.patience.timeout).await?;
    let before = async || match (backups, &claim.name) {
        (Some(backups), Some(name)) => backups.write(key, name).await.map(drop),
        _ => Ok(()),
    };
    rollback::roll_back(context, &claim, *target, before).await
}
