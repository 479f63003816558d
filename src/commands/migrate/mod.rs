//! `tenantd migrate`: brings tenants to the newest migrations, all of them by a rollout, or those that are named.

mod foreseen;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::doctor::{self, Check};
use super::given::Given;
use super::{ExitStatus, main_schema, progress, report};
use crate::config::{Rollout, Share};
use crate::error::{Error, Result};
use crate::notices::Notices;
use crate::provision::{Context, Ended, Outcome};
use crate::registry::events::What;
use crate::registry::signup;
use crate::shutdown::Requests;
use crate::sweep::{Report, Run, migrate_named, sweep};

/// `tenantd migrate`
#[derive(Debug, Args)]
#[command(
    after_help = "Without a KEY it is a sweep by hand: also what is missing or failing is seen to, and new migrations go out as a rollout,
canaries first (`tenantd rollout` shows how it stands). Tenants that are named get them at once.

Examples:
  tenantd migrate --dry-run                  each tenant's steps, and the SQL
  tenantd migrate --canary 5 --waves 1%,20%,100%
  tenantd migrate 6b1d7c1e --to 12           one tenant, not further than version 12
  tenantd migrate main                       the application's own schema, from the folder main.migrations"
)]
pub struct Migrate {
    /// Tenants by key, database name, or the beginning of one [default: every tenant]; or `main`, the application's own schema in the
    /// main database
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Not further than this version
    #[arg(long, value_name = "VERSION")]
    pub to: Option<i64>,
    /// Do without the backups that `backup.before_migrate` asks for
    #[arg(long)]
    pub skip_backup: bool,
    /// Print each tenant's steps and the SQL, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// So many tenants first [default: `rollout.canary`]
    #[arg(long, value_name = "N", conflicts_with = "keys")]
    pub canary: Option<u16>,
    /// How far each wave goes [default: `rollout.waves`]
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', conflicts_with = "keys")]
    pub waves: Vec<Share>,
    /// Pause when more than so many fail alike [default: `rollout.max_failures`]
    #[arg(long, value_name = "SHARE", conflicts_with = "keys")]
    pub max_failures: Option<Share>,
    /// So many tenants at a time [default: `sweep.parallel`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: Option<u16>,
}

/// Migrates, or prints what would be done. A failure of one tenant stops no other; the first SIGINT or SIGTERM ends it after the tenants in
/// hand, the second at once: the rollout goes on with the next sweep.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage): an unknown key or version. The main database cannot be reached, or the migration set is refused
/// as a whole.
pub async fn run(given: Given, arguments: &Migrate, out: &mut impl Write) -> Result<ExitCode> {
    if arguments.keys == ["main"] {
        let Migrate { to, dry_run, .. } = arguments;
        return main_schema::migrate(&given, *to, *dry_run, out).await.map(ExitStatus::into);
    }
    let given = with_arguments(given, arguments)?;
    let context = given.context().await?;
    let keys = context.registry.resolve(&arguments.keys).await?;
    if arguments.dry_run {
        return foreseen::print(&given, &context, keys, out).await.map(Into::into);
    }
    doctor::before(&given, &[Check::Writes, Check::Rights, Check::Connections]).await?;
    context.registry.retry_drifted().await?;
    let requests = Requests::of_process(&given.tasks)?;
    let run = Run { by_hand: true, stop: requests.stop.clone(), only: None };
    let bar = progress::Bar::of("migrate");
    let notices = Notices::begin(&given.server, &given.worker, &given.tasks);
    let (named, mut migrated) = (!keys.is_empty(), Vec::new());
    let tell = |ended: Option<&Ended>, through: usize, chosen: usize| {
        bar.ended(ended.map(|ended| &ended.outcome), through, chosen);
        let Some(ended) = ended else { return };
        notices.tell_made(ended);
        if named && matches!(&ended.outcome, Outcome::Ready { migrated, .. } if !migrated.is_empty()) {
            migrated.push(ended.key.clone());
        }
    };
    let done = tokio::select! {
        done = migrate(&context, &given, &run, keys, tell) => done,
        code = requests.forced() => return Ok(code.into()),
    };
    if !migrated.is_empty() {
        let detail = format!("to version {}", context.set.newest_version());
        context.registry.tell_of_each(What::Migrated, &migrated, &detail).await?;
    }
    bar.finish();
    notices.end().await;
    // What was done is told in any case.
    if let Err(error) = context.registry.release_all().await {
        tracing::warn!(error = error.chain(), "leases were not given back and end by themselves");
    }
    Ok(report::print(&done?, given.config.tenant.isolation, given.json, out)?.into())
}

async fn migrate(
    context: &Arc<Context>,
    given: &Given,
    run: &Run,
    keys: Vec<String>,
    tell: impl FnMut(Option<&Ended>, usize, usize),
) -> Result<Report> {
    if keys.is_empty() {
        let (settings, names) = (&given.config.signup, &given.config.tenant.names);
        let table = signup::inspect(&*context.registry.session().await?, settings, names).await?;
        return sweep(context, &table, &given.tasks, run, tell).await;
    }
    migrate_named(context, &given.tasks, run, keys, tell).await
}

/// The settings and the set as the arguments say.
fn with_arguments(mut given: Given, arguments: &Migrate) -> Result<Given> {
    if let Some(version) = arguments.to {
        given.set.known(version)?;
        given.set = Arc::new(given.set.up_to(version).expect("it holds that version"));
    }
    let config = Arc::make_mut(&mut given.config);
    if let Some(parallel) = arguments.parallel {
        config.sweep.parallel = parallel.into();
    }
    config.backup.before_migrate &= !arguments.skip_backup;
    let Rollout { canary, waves, max_failures } = &mut config.rollout;
    if let Some(number) = arguments.canary {
        *canary = number.into();
    }
    if let Some(last) = arguments.waves.last() {
        if *last != Share::Percent(100) {
            return Err(Error::usage("the last of --waves is 100%: a rollout ends with all tenants"));
        }
        waves.clone_from(&arguments.waves);
    }
    if let Some(share) = arguments.max_failures {
        *max_failures = share;
    }
    Ok(given)
}
