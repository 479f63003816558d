//! `tenantd check`: the health of the fleet, tenant by tenant, from outside and from within; and what of it can be put right without a person.

mod fleet;
mod inside;
mod mend;
mod outside;
mod text;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use self::inside::Expectations;
use self::mend::Mended;
use super::doctor::{self, Check as Asked};
use super::given::{Filters, Given};
use super::{ExitStatus, output, progress};
use crate::error::{Error, Result};
use crate::pg::catalogue::{Change, Difference};
use crate::provision::Context;
use crate::registry::check::Outside;
use crate::registry::lookup::Filter;
use crate::shutdown::Requests;
use crate::tenant::words;

/// So many tenants are read from the registry at a time.
const PAGE: i64 = 500;

/// `tenantd check`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd check                         the whole fleet, and what on the server belongs to no tenant
  tenantd check 3f2504e0 --json         one tenant, by the beginning of its key
  tenantd check --behind                only tenants without the newest migrations
  tenantd check --fix --dry-run         what could be put right without a person
  tenantd check --fix                   put that right

Exit codes: 0 all well, or all put right; 1 something is wrong.")]
pub struct Check {
    /// Only these tenants: keys, names of databases, or beginnings of them
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Which of all
    #[command(flatten)]
    pub filters: Filters,
    /// Put right what is safe: shut PUBLIC out, owner, rights, closed databases, missing migrations, leases that ran out, half-made databases
    #[arg(long)]
    pub fix: bool,
    /// With --fix: say what would be done, and change nothing
    #[arg(long, requires = "fix")]
    pub dry_run: bool,
    /// So many tenants at a time, instead of sweep.parallel
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: Option<u16>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ill {
    /// The database is gone.
    Missing,
    /// Another database stands in its place.
    Replaced,
    /// The database does not bear our marker.
    Conflict,
    /// The database is not whole.
    Invalid,
    /// The tenant is ready and has no name.
    Nameless,
    /// The database takes no connections.
    Closed,
    /// PUBLIC can connect.
    Public,
    /// Another role owns it.
    Owner,
    /// Its rights are those of other settings.
    Access,
    /// A role that should be able to connect cannot.
    Connect,
    /// The server refuses us this database.
    Refused,
    /// It lacks migrations.
    Behind,
    /// It has migrations that we do not carry.
    Newer,
    /// What was applied contradicts our files.
    Drift,
    /// An object is not as its migrations made it.
    Changed,
    /// An index is invalid.
    Index,
    /// Somebody let a lease run out.
    Lease,
    /// The tenant is parked or failing, and none of the others says why.
    Failing,
    /// A database bears our marker and belongs to no tenant.
    Orphan,
    /// A database is only named as a tenant would be.
    Stranger,
    /// Two databases say that they are the same tenant.
    Duplicate,
    /// A database under a random name that nobody is making.
    Stray,
    /// A role of the settings is not there.
    Role,
    /// Tenants were not compared with what they should hold.
    Uncompared,
}

words!(Ill {
    Missing => "missing", Replaced => "replaced", Conflict => "conflict", Invalid => "invalid", Nameless => "nameless",
    Closed => "closed", Public => "public", Owner => "owner", Access => "access", Connect => "connect", Refused => "refused",
    Behind => "behind", Newer => "newer", Drift => "drift", Changed => "changed", Index => "index", Lease => "lease",
    Failing => "failing", Orphan => "orphan", Stranger => "stranger", Duplicate => "duplicate", Stray => "stray",
    Role => "role", Uncompared => "uncompared",
});

impl Ill {
    /// What `--fix` does about it; `None`: it is a person's.
    #[must_use]
    pub fn cure(self) -> Option<&'static str> {
        Some(match self {
            Ill::Closed => "open it",
            Ill::Public => "shut PUBLIC out",
            Ill::Owner => "give it to its owner",
            Ill::Access | Ill::Connect => "grant again what the settings say",
            Ill::Behind => "apply what it lacks",
            Ill::Lease => "free the lease",
            Ill::Stray => "drop it",
            _ => return None,
        })
    }

    /// Whether whoever reconciles the tenant would meet it first, so that nothing else of it can be put right.
    fn bars(self) -> bool {
        matches!(
            self,
            Ill::Missing
                | Ill::Replaced
                | Ill::Conflict
                | Ill::Invalid
                | Ill::Nameless
                | Ill::Refused
                | Ill::Newer
                | Ill::Drift
        )
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The tenant; `None`: the fleet as a whole.
    pub key: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// What is wrong.
    pub ill: Ill,
    /// The same in a sentence.
    pub text: String,
    /// What to do.
    pub advice: String,
    /// The objects that it is about.
    pub objects: Vec<Difference>,
    /// What became of it, where somebody wanted it put right.
    pub mended: Mended,
}

impl Finding {
    fn of(outside: &Outside, ill: Ill, text: impl Into<String>, advice: impl Into<String>) -> Finding {
        let (key, database) = (Some(outside.key.clone()), outside.name.clone());
        let (text, advice) = (text.into(), advice.into());
        Finding { key, database, ill, text, advice, objects: Vec::new(), mended: Mended::NotAsked }
    }

    fn of_fleet(database: Option<String>, ill: Ill, text: impl Into<String>, advice: impl Into<String>) -> Finding {
        let (text, advice) = (text.into(), advice.into());
        Finding { key: None, database, ill, text, advice, objects: Vec::new(), mended: Mended::NotAsked }
    }
}

/// What a check came to.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    /// Tenants that were looked at.
    looked_at: usize,
    /// Tenants that somebody works on: not looked at.
    busy: usize,
    /// Whether it was ended before its end.
    cut_off: bool,
    took: Duration,
}

impl Report {
    fn is_well(&self) -> bool {
        !self.cut_off && self.findings.iter().all(|finding| finding.mended == Mended::Done)
    }
}

/// Looks at the tenants that are asked for, or all and the server, puts right what may be if that is asked for, and writes what it found.
///
/// Tenants that somebody works on are left out and counted. Returns [`ExitStatus::Findings`] when something is wrong still. A first SIGINT or
/// SIGTERM ends it after the tenants in hand, a second at once.
///
/// # Errors
/// A word that means no tenant. The main database cannot be reached. `out` cannot be written to.
pub async fn run(given: &Given, arguments: &Check, out: &mut impl Write) -> Result<ExitCode> {
    let mending = arguments.fix && !arguments.dry_run;
    if mending {
        doctor::before(given, &[Asked::Writes, Asked::Rights]).await?;
    }
    let context = given.looking().await?;
    let keys = context.registry.resolve(&arguments.keys).await?;
    let filter = Filter { keys, ..arguments.filters.filter(&context.set.id()) };
    let requests = Requests::of_process(&given.tasks)?;
    let began = Instant::now();
    context.registry.see_all(false).await?;
    let checking = async {
        let mut report = tenants(&context, &filter, arguments, &requests).await?;
        if filter == Filter::default() && !report.cut_off {
            report.findings.extend(fleet::look(&context).await?);
        }
        if arguments.fix && !report.cut_off {
            mend::all(&context, &mut report, arguments, &requests).await?;
        }
        Ok::<_, Error>(report)
    };
    let mut report = tokio::select! {
        report = checking => report?,
        code = requests.forced() => return Ok(code.into()),
    };
    report.took = began.elapsed();
    if given.json {
        output::object(out, &object(&report))?;
    } else {
        output::text(out, &text::whole(&report, given.config.tenant.isolation))?;
    }
    Ok(if report.is_well() { ExitStatus::Well } else { ExitStatus::Findings }.into())
}

fn parallel(context: &Context, arguments: &Check) -> usize {
    arguments.parallel.map_or(context.config.sweep.parallel, usize::from)
}

/// Looks at each tenant that fits, page by page, several at a time.
async fn tenants(context: &Arc<Context>, filter: &Filter, arguments: &Check, requests: &Requests) -> Result<Report> {
    let (mut report, mut after) = (Report::default(), String::new());
    let expectations = Expectations::new(context);
    let settings = &context.config.tenant;
    let roles: Vec<String> = settings.use_roles.iter().chain(&settings.connect_roles).cloned().collect();
    let bar = progress::Bar::of("check");
    loop {
        let page = context.registry.outside(filter, &after, PAGE, &roles).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.key);
        let (busy, page): (Vec<_>, Vec<_>) = page.into_iter().partition(|tenant| tenant.leased);
        report.busy += busy.len();
        let all = report.looked_at + page.len();
        let looks = stream::iter(page)
            .take_until(requests.stop.cancelled())
            .map(|tenant| one(context, &expectations, tenant))
            .buffer_unordered(parallel(context, arguments));
        let mut looks = Box::pin(looks);
        let mut found = Vec::new();
        while let Some(findings) = looks.next().await {
            report.looked_at += 1;
            found.extend(findings);
            bar.looked(report.looked_at, all, report.findings.len() + found.len());
        }
        found.sort_by(|one, other| (&one.key, one.ill).cmp(&(&other.key, other.ill)));
        report.findings.extend(found);
        if requests.stop.is_cancelled() {
            report.cut_off = true;
            break;
        }
    }
    bar.finish();
    report.findings.extend(expectations.failures());
    Ok(report)
}

/// Everything that is wrong with one tenant.
async fn one(context: &Context, expectations: &Expectations<'_>, tenant: Outside) -> Vec<Finding> {
    let mut found = outside::look(context, &tenant);
    if outside::may_be_entered(&tenant) {
        found.extend(inside::look(context, expectations, &tenant).await);
    }
    if found.is_empty() {
        found.extend(outside::failing(&tenant));
    }
    found
}

fn object(report: &Report) -> Value {
    let change = |difference: &Difference| {
        let (change, ours, theirs) = match &difference.change {
            Change::Missing => ("missing", None, None),
            Change::Extra => ("extra", None, None),
            Change::Changed { ours, theirs } => ("changed", Some(ours), Some(theirs)),
        };
        json!({
            "kind": difference.kind, "name": difference.name, "change": change,
            "in_the_migrations": ours, "in_the_tenant": theirs,
        })
    };
    let finding = |finding: &Finding| {
        json!({
            "key": finding.key,
            "database": finding.database,
            "kind": finding.ill.word(),
            "text": finding.text,
            "advice": finding.advice,
            "objects": finding.objects.iter().map(change).collect::<Vec<_>>(),
            "fix": finding.ill.cure(),
            "fixed": finding.mended == Mended::Done,
            "not_fixed": match &finding.mended { Mended::Failed(why) => Some(why), _ => None },
        })
    };
    json!({
        "ok": report.is_well(),
        "looked_at": report.looked_at,
        "busy": report.busy,
        "cut_off": report.cut_off,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "duration_seconds": report.took.as_secs_f64(),
    })
}
