//! `tenantd create`: tenants without a signup, a default one or one for tests.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::given::{Given, duration};
use super::wait::{Waited, until_ready, why_not};
use super::{ExitStatus, output, tell_failure};
use crate::error::{Error, Kind, Result};
use crate::isolation::libpq;
use crate::notices::Notices;
use crate::pg;
use crate::plan::{Desired, Observed, plan};
use crate::provision::{Context, Outcome, reconcile, template};
use crate::registry::Registry;
use crate::registry::tenants::Tenant;
use crate::tenant::{Marker, State};

/// A tenant that somebody else works on, or that has to wait, is tried for again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// `tenantd create`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd create $(uuidgen)                                              a tenant for tests
  tenantd create 00000000-0000-4000-8000-000000000000 --if-missing       a default tenant, again and again without harm
  tenantd create 00000000-0000-4000-8000-000000000000 --dry-run
  tenantd create default_tenant                                          with tenant.naming = \"hash\" or \"key\"")]
pub struct Create {
    /// The new tenants' keys, as the signup table has ids; with tenant.naming = "uuid" as Postgres prints a uuid
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// Wait for those that exist and are not ready, instead of refusing
    #[arg(long)]
    pub if_missing: bool,
    /// How long to wait for each tenant: "30s", "5m"
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
    /// Say what would be made, and how, and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Makes tenants and waits until each is ready: it makes them itself where no daemon was quicker. Writes the URL of each, without a password. A
/// key that has a ready tenant already is told, and well; one whose tenant is not ready is refused, before any is made, unless `--if-missing`.
///
/// A first SIGINT or SIGTERM ends it after the tenant in hand; what was asked for stays asked for, for a daemon or a sweep.
///
/// # Errors
/// A key is none, or has a tenant that is not ready; the main database cannot be reached, or there is no registry; no template can be had; `out`
/// cannot be written to.
pub async fn run(given: &Given, arguments: &Create, out: &mut impl Write) -> Result<ExitCode> {
    given.heeding_signals(|stop| create(given, arguments, stop, out)).await
}

/// What became of one key.
struct Ended {
    key: String,
    created: bool,
    /// The database's name and its URL.
    made: Result<(String, String)>,
}

async fn create(
    given: &Given,
    arguments: &Create,
    stop: CancellationToken,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let mut keys: Vec<String> = Vec::new();
    for key in &arguments.keys {
        given.config.tenant.names.of(key).map_err(|error| error.with_kind(Kind::Usage))?;
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let registry = given.registry().await?;
    let (missing, waiting) = missing(&registry, &keys, arguments.if_missing).await?;
    if arguments.dry_run {
        return dry_run(given, &keys, &missing, out).await;
    }
    registry.take_all_in().await?;
    let created = registry.request_by_hand(&missing).await?;
    let maker = Maker::begin(given, arguments.timeout, stop, waiting || !created.is_empty()).await?;
    let mut ended = Vec::new();
    for key in &keys {
        if maker.stop.is_cancelled() {
            break;
        }
        let made = maker.one(key).await;
        match &made {
            Ok((_, url)) if !given.json => output::text(out, &format!("{url}\n"))?,
            Ok(_) => {}
            Err(error) => tell_failure(error),
        }
        ended.push(Ended { key: key.clone(), created: created.contains(key), made });
    }
    maker.notices.end().await;
    tell(given.json, &keys, &ended, out)
}

/// Those of `keys` that have no tenant, and whether another has one that is not ready.
async fn missing(registry: &Registry, keys: &[String], if_missing: bool) -> Result<(Vec<String>, bool)> {
    let (mut missing, mut waiting) = (Vec::new(), false);
    for key in keys {
        match registry.tenant(key).await? {
            Some(tenant) if tenant.state == State::Deleted.word() => missing.push(key.clone()),
            Some(tenant) if tenant.is_ready() => {
                output::text(&mut std::io::stderr(), &format!("tenant {key} is there already, and ready\n"))?;
            }
            Some(tenant) if !if_missing => return Err(exists(&tenant)),
            Some(_) => waiting = true,
            None => missing.push(key.clone()),
        }
    }
    Ok((missing, waiting))
}

fn exists(tenant: &Tenant) -> Error {
    let Tenant { key, state, work, .. } = tenant;
    Error::usage(format!("tenant {key} is there already, and not ready: {state}, its work {work}"))
        .hint("--if-missing waits until it is ready; `tenantd show` says what keeps it")
}

/// Makes tenants, one after the other.
struct Maker<'a> {
    given: &'a Given,
    context: Arc<Context>,
    notices: Notices,
    patience: Duration,
    stop: CancellationToken,
}

impl Maker<'_> {
    async fn begin(given: &Given, patience: Duration, stop: CancellationToken, makes: bool) -> Result<Maker<'_>> {
        let context = given.context().await?;
        if makes && let Err(error) = template::ensure(&context).await {
            // The last good one may serve.
            if error.kind().is_out_of_reach() || !context.supply.is_served() {
                return Err(error);
            }
            tracing::warn!(error = error.chain(), hint = error.advice(), "made of an older template");
        }
        let notices = Notices::begin(&given.server, &given.worker, &given.tasks);
        Ok(Maker { given, context, notices, patience, stop })
    }

    /// The name and the URL of the tenant's database, once it is ready.
    async fn one(&self, key: &str) -> Result<(String, String)> {
        let tenant = self.ready(key).await.map_err(|error| error.context(format!("make tenant {key}")))?;
        let name = tenant
            .name
            .ok_or_else(|| Error::usage(format!("tenant {key} has no {}", self.given.config.tenant.isolation)))?;
        let given = self.given;
        let libpq = libpq(&given.server, &given.config.tenant, &name, "").await?;
        let url = pg::url(&libpq, given.server.connection().user(), None);
        Ok((name, url))
    }

    /// Makes the tenant, or waits for whoever does.
    async fn ready(&self, key: &str) -> Result<Tenant> {
        let (registry, deadline) = (&self.context.registry, Instant::now() + self.patience);
        let mut left = None;
        loop {
            let is_ready = registry.tenant(key).await?.is_some_and(|tenant| tenant.is_ready());
            if !is_ready {
                left = self.make(key).await?.or(left);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            let waiting = until_ready(self.given, registry, key, rest.min(AGAIN));
            let waited = self.stop.run_until_cancelled(Box::pin(waiting)).await;
            let waited = waited.unwrap_or_else(|| Err(Error::new(Kind::Other, "interrupted before it was ready")))?;
            match (why_not(key, self.patience, &waited), waited) {
                (None, Waited::Ready(tenant)) => return Ok(tenant),
                (Some(error), Waited::Parked(_)) => return Err(error),
                (Some(error), _) if Instant::now() >= deadline => {
                    return Err(left.into_iter().fold(error, Error::because));
                }
                _ => {}
            }
        }
    }

    /// Reconciles the tenant, if nobody else has it. Returns why it had to be left.
    async fn make(&self, key: &str) -> Result<Option<Error>> {
        let lease = self.context.config.work.lease;
        let Some(claim) = self.context.registry.claim_keys(&[key.to_owned()], lease).await?.pop() else {
            return Ok(None);
        };
        let ended = reconcile(&self.context, claim).await;
        self.notices.tell_made(&ended);
        match ended.outcome {
            Outcome::Ready { .. } => Ok(None),
            Outcome::Left(error) => Ok(Some(error)),
            Outcome::Failed { error, .. } | Outcome::Server(error) => Err(error),
        }
    }
}

fn tell(as_json: bool, keys: &[String], ended: &[Ended], out: &mut impl Write) -> Result<ExitStatus> {
    let unreached = keys.len() - ended.len();
    if unreached > 0 {
        let unreached = output::counted(i64::try_from(unreached).unwrap_or(i64::MAX), "tenant");
        let told = format!("interrupted: {unreached} not waited for; a daemon or a sweep makes what was asked for\n");
        output::text(&mut std::io::stderr(), &told)?;
    }
    if as_json {
        let one = |Ended { key, created, made }: &Ended| match made {
            Ok((name, url)) => json!({ "key": key, "created": created, "name": name, "url": url }),
            Err(error) => json!({ "key": key, "created": created, "error": output::error(error) }),
        };
        let tenants: Vec<Value> = ended.iter().map(one).collect();
        output::object(out, &json!({ "tenants": tenants, "unreached": unreached }))?;
    }
    let failed = ended.iter().find_map(|one| one.made.as_ref().err());
    Ok(match failed.map(ExitStatus::from) {
        Some(ExitStatus::Unreachable) => ExitStatus::Unreachable,
        None if unreached == 0 => ExitStatus::Well,
        _ => ExitStatus::Findings,
    })
}

/// The same steps that making would carry out, as far as the server shows them from outside.
async fn dry_run(given: &Given, keys: &[String], missing: &[String], out: &mut impl Write) -> Result<ExitStatus> {
    let context = given.looking().await?;
    let (mut status, mut shown, mut text) = (ExitStatus::Well, Vec::new(), String::new());
    for key in keys {
        if !missing.contains(key) {
            shown.push(json!({ "key": key, "steps": [] }));
            text.push_str(&format!("{key}: nothing to make\n"));
            continue;
        }
        let name = context.config.tenant.names.of(key)?;
        match steps(&context, key, &name).await {
            Ok(steps) => {
                text.push_str(&format!("{key}: {} {name}: {}\n", context.registry.isolation, steps.join(", ")));
                shown.push(json!({ "key": key, "name": name, "steps": steps }));
            }
            Err(error) if error.kind().is_out_of_reach() => return Err(error),
            Err(error) => {
                tell_failure(&error);
                shown.push(json!({ "key": key, "name": name, "error": output::error(&error) }));
                status = ExitStatus::Findings;
            }
        }
    }
    if given.json {
        output::object(out, &json!({ "tenants": shown }))?;
    } else {
        output::text(out, &text)?;
    }
    Ok(status)
}

async fn steps(context: &Context, key: &str, name: &str) -> Result<Vec<String>> {
    let (marker, access) = (Marker::of(context.registry.id, key).to_string(), context.access());
    let desired = Desired {
        isolation: context.config.tenant.isolation,
        name,
        marker: &marker,
        owner: context.owner(),
        access: &access,
        set: &context.set,
        out_of_order: context.config.tenant.out_of_order,
    };
    let database = context.registry.look(name, &marker).await?;
    let observed = Observed { state: State::Requested, recorded_oid: None, access: None, database };
    Ok(plan(&desired, &observed)?.iter().map(ToString::to_string).collect())
}
