//! `tenantd show`: one tenant in full, from the registry, from the server's catalogue and from within.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::given::Given;
use super::output::{counted, duration, line, moment};
use super::{ExitStatus, events, list, output};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::isolation::{enter, schema_of};
use crate::migrations::MigrationSet;
use crate::pg::History;
use crate::pg::migrate::Account;
use crate::plan::Database;
use crate::registry::Registry;
use crate::registry::databases::Use;
use crate::registry::events::Event;
use crate::registry::sets::Standing;
use crate::registry::tenants::Tenant;
use crate::tenant::Marker;

/// What looking into the tenant may take once it is connected to: somebody may hold a lock on its history.
const LOOK: Duration = Duration::from_secs(5);

/// So many of its events are shown.
const EVENTS: i64 = 20;

/// `tenantd show`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd show 6f9619ff                         by the beginning of its key
  tenantd show tenant_6f9619ff_8b86_d011_b42d_00c04fc964ff --json | jq .history")]
pub struct Show {
    /// The tenant: a key, a database's name, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: String,
}

/// Everything that is known of one tenant.
struct Shown<'a> {
    tenant: Tenant,
    standing: Standing,
    set: &'a MigrationSet,
    isolation: Isolation,
    /// What stands there under its name; `None`: nothing.
    database: Option<(Database, Use)>,
    /// Its migrations, or why they could not be read; `None`: there is nothing that may be looked into.
    history: Option<Result<Vec<Account>>>,
    /// The newest events, the newest last.
    events: Vec<Event>,
}

/// Writes one tenant in full, as text or as one object. Only reads. That the tenant itself cannot be looked into is shown, and is no failure.
///
/// # Errors
/// No tenant is called so, or several are; the main database cannot be reached, or there is no registry; `out` cannot be written to.
pub async fn run(given: &Given, arguments: &Show, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let key = registry.find(&arguments.key).await?;
    let gone = || Error::usage(format!("tenant {key} went away while it was looked for"));
    let tenant = registry.tenant(&key).await?.ok_or_else(gone)?;
    let relations = registry.relate(&given.set, given.config.tenant.out_of_order).await?;
    let standing = relations.standing(&given.set.id(), &tenant.migration_set);
    let database = look(&registry, &tenant).await?;
    let history = match &database {
        Some((seen, _)) if seen.ours && seen.valid && seen.open => Some(look_inside(given, &tenant).await),
        _ => None,
    };
    let mut events = registry.events(Some(&key), EVENTS).await?;
    events.reverse();
    let shown = Shown { tenant, standing, set: &given.set, isolation: registry.isolation, database, history, events };
    if given.json {
        output::object(out, &shown.object())?;
    } else {
        output::text(out, &shown.text())?;
    }
    Ok(ExitStatus::Well)
}

/// Looks at the tenant's database from outside.
async fn look(registry: &Registry, tenant: &Tenant) -> Result<Option<(Database, Use)>> {
    let Some(name) = &tenant.name else { return Ok(None) };
    let marker = Marker::of(registry.id, &tenant.key).to_string();
    let Some(seen) = registry.look(name, &marker).await? else { return Ok(None) };
    let used = registry.measure(name, seen.oid).await?;
    Ok(Some((seen, used)))
}

async fn look_inside(given: &Given, tenant: &Tenant) -> Result<Vec<Account>> {
    let (name, settings) = (tenant.name.as_deref().unwrap_or_default(), &given.config.tenant);
    let session = enter(&given.server, settings, name, &format!("tenantd:{}", tenant.key)).await?;
    let history = History::tenant(schema_of(settings, name));
    let history = tokio::time::timeout(LOOK, history.account(&session)).await;
    session.close().await;
    history.unwrap_or_else(|_| {
        let locked = Error::new(Kind::Locked, format!("its history could not be read within {LOOK:?}"));
        Err(locked.hint("somebody may hold a lock on it: look into pg_locks there"))
    })
}

impl Shown<'_> {
    fn object(&self) -> Value {
        let Shown { tenant, standing, set, database, history, events, .. } = self;
        let named = |version: &i64| json!({ "version": version, "name": set.get(*version).map(|ours| &ours.name) });
        let mut object = list::object(tenant, false);
        let more = json!({
            "attempt": tenant.attempt,
            "due_at": tenant.due_at.to_string(),
            "lease_lasts_seconds": tenant.lease_lasts.map(|length| length.as_secs_f64()),
            "verified_at": tenant.verified_at.map(|at| at.to_string()),
            "migration_set": tenant.migration_set,
            "standing": standing.word(),
            "pending": standing.pending().map(|versions| versions.iter().map(named).collect::<Vec<_>>()),
            "database": database.as_ref().map(|(seen, used)| json!({
                "owner": seen.owner,
                "ours": seen.ours,
                "in_its_place": self.in_its_place(seen),
                "valid": seen.valid,
                "open": seen.open,
                "public_may_connect": seen.public,
                "bytes": used.bytes,
                "connections": used.connections,
            })),
            "history": history.as_ref().and_then(|history| history.as_ref().ok()).map(|rows| rows.iter().map(account).collect::<Vec<_>>()),
            "history_error": history.as_ref().and_then(|history| history.as_ref().err()).map(output::error),
            "events": events.iter().map(events::object).collect::<Vec<_>>(),
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }

    fn text(&self) -> String {
        let tenant = &self.tenant;
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<11}{}", line(&value));
        };
        row("Tenant", tenant.key.clone());
        row("State", format!("{}, its work {}", tenant.state, tenant.work));
        row(if self.isolation == Isolation::Schema { "Schema" } else { "Database" }, self.about_database());
        row("Version", self.about_version());
        row("Signed up", format!("{}, {} ago", moment(tenant.created_at), duration(tenant.age)));
        if let Some(at) = tenant.ready_at {
            let took = Duration::try_from(at.duration_since(tenant.created_at)).unwrap_or_default();
            row("Ready", format!("{}, {} after the signup", moment(at), duration(took)));
        }
        if let Some(at) = tenant.verified_at {
            row("Looked at", moment(at));
        }
        row("In work", self.about_lease());
        if tenant.failures > 0 {
            let failures = counted(i64::from(tenant.failures), "failure");
            row("Failures", format!("{failures} in a row; due {}", moment(tenant.due_at)));
        }
        text + &self.last_error() + &self.about_history() + &self.about_events()
    }

    /// Whether another database than ours stands under the name.
    fn in_its_place(&self, seen: &Database) -> bool {
        self.tenant.database_oid.is_some_and(|oid| oid != seen.oid)
    }

    fn about_database(&self) -> String {
        let Some(name) = &self.tenant.name else { return "none yet".to_owned() };
        let Some((seen, used)) = &self.database else {
            return format!("{name}: no {} of this name is there", self.isolation);
        };
        let mut facts = vec![name.clone()];
        facts.extend(used.bytes.map(output::bytes));
        facts.push(format!("owner {}", seen.owner));
        facts.push(if seen.open { "open" } else { "closed to connections" }.to_owned());
        facts.push(if seen.public { "PUBLIC may enter" } else { "shut to PUBLIC" }.to_owned());
        facts.extend(used.connections.map(|connections| counted(connections, "connection")));
        facts.extend((!seen.valid).then(|| "not whole: a CREATE or DROP was interrupted".to_owned()));
        facts.extend((!seen.ours).then(|| "without our marker: not touched".to_owned()));
        facts.extend(self.in_its_place(seen).then(|| "in the place of ours: not touched".to_owned()));
        facts.join(", ")
    }

    fn about_version(&self) -> String {
        let migration = |version: i64| match self.set.get(version) {
            Some(migration) => format!("{version} {}", migration.name),
            None => version.to_string(),
        };
        let has = self.tenant.version.map_or_else(|| "none".to_owned(), migration);
        match &self.standing {
            Standing::Current => format!("{has}, the newest"),
            Standing::Behind(versions) => {
                format!(
                    "{has}; still lacking {}",
                    versions.iter().map(|version| migration(*version)).collect::<Vec<_>>().join(", ")
                )
            }
            Standing::Newer => format!("{has}, newer than this tenantd"),
            Standing::Diverged => format!("{has}, which contradicts our files"),
            Standing::Unknown => has,
        }
    }

    fn about_lease(&self) -> String {
        match (&self.tenant.leased_by, self.tenant.lease_lasts) {
            (Some(by), Some(lasts)) => format!("by {by}, for {} unless renewed", duration(lasts)),
            _ => format!("no, {} until now", counted(self.tenant.attempt, "claim")),
        }
    }

    fn last_error(&self) -> String {
        let Some(error) = &self.tenant.error else { return String::new() };
        let step = error.step.as_ref().map(|step| format!(" at step {step}")).unwrap_or_default();
        let code = error.sqlstate.as_ref().map(|code| format!(", SQLSTATE {code}")).unwrap_or_default();
        let head = line(&format!("{}{step}{code}", error.kind.replace('_', " ")));
        format!("\nLast error: {head}\n{}", output::paragraph(&error.text, 4))
    }

    fn about_history(&self) -> String {
        match &self.history {
            None => String::new(),
            Some(Err(error)) => {
                format!("\nMigrations could not be read:\n{}", output::paragraph(&error.with_advice(), 4))
            }
            Some(Ok(rows)) if rows.is_empty() => "\nNo migration applied.\n".to_owned(),
            Some(Ok(rows)) => {
                let row = |row: &Account| {
                    vec![
                        row.version.to_string(),
                        row.name.clone(),
                        row.applied_at.map_or_else(|| "unfinished".to_owned(), moment),
                        row.took.map_or_else(|| "-".to_owned(), duration),
                        row.applied_by.clone(),
                    ]
                };
                let rows: Vec<_> = rows.iter().map(row).collect();
                format!("\n{}", output::table(&["VERSION", "MIGRATION", "APPLIED", "TOOK", "BY"], &rows))
            }
        }
    }

    fn about_events(&self) -> String {
        if self.events.is_empty() { String::new() } else { format!("\nEvents:\n{}", events::lines(&self.events)) }
    }
}

fn account(account: &Account) -> Value {
    json!({
        "version": account.version,
        "name": account.name,
        "applied_at": account.applied_at.map(|at| at.to_string()),
        "duration_seconds": account.took.map(|took| took.as_secs_f64()),
        "applied_by": account.applied_by,
    })
}
