//! `tenantd status`: the fleet at a glance, and what of it needs a person.

mod findings;
mod json;
#[cfg(test)]
mod tests;
mod text;

use std::io::Write;

use uuid::Uuid;

use super::given::Given;
use super::main_schema::{self, Reached};
use super::{ExitStatus, output};
use crate::config::{Config, OnDelete};
use crate::error::{Kind, Result};
use crate::migrations::MigrationSet;
use crate::registry::fleet::{Fleet, VersionCount};
use crate::registry::sets::{Relations, Standing};
use crate::registry::signup::{self, Table};
use crate::registry::sweep::Room;
use crate::registry::triggers::Trigger;
use crate::registry::{Registry, departure, signup_triggers};

/// Everything that status shows.
struct Status<'a> {
    config: &'a Config,
    /// The registry's own id.
    registry: Uuid,
    fleet: Fleet,
    template_failure: Option<String>,
    room: Room,
    /// How signups are noticed, or why they cannot be.
    signup: Result<Signup>,
    set: &'a MigrationSet,
    relations: Relations,
    /// Tenants that have migrations which this tenantd does not carry.
    newer: i64,
    /// How the application's own schema stands, or why that cannot be said; `None`: tenantd does not migrate it.
    main_schema: Option<Result<Reached>>,
}

/// The signup table and its triggers.
struct Signup {
    table: Table,
    /// Each table that needs a trigger, with how that stands.
    triggers: Vec<(String, Trigger)>,
    /// The same of the triggers on updates that make signups; none where every row counts as one.
    updates: Vec<(String, Trigger)>,
    /// The same of the triggers that follow deleted users; none where these are not followed.
    departures: Vec<(String, Trigger)>,
}

/// Writes how the fleet stands, as text or as one JSON object. Only reads; no tenant is connected to.
///
/// Returns [`ExitStatus::Findings`] when a tenant is failing, though it is tried again by itself, or when something needs a person, each told
/// with what to do:
/// - a tenant is parked;
/// - a rollout is paused, or the template of the migrations could not be built;
/// - the migration set is refused, contradicts what was applied, or is older than what tenants have;
/// - the application's own schema contradicts its folder;
/// - the signup table cannot serve, its trigger is missing, wrong or switched off, or row level security hides users from sweeps; the same of the
///   trigger that follows deleted users;
/// - tenants wait and no daemon is there, or one is there and nobody has worked on them for five minutes;
/// - the brakes hold tenants back: `tenant.max` is reached, or `tenant.max_per_hour` while tenants wait;
/// - somebody other than a daemon holds the doorbell's lock, or the server's queue of notifications is half full.
///
/// Else [`ExitStatus::Well`]: held users wait for a decision that may stay open.
///
/// # Errors
/// The main database cannot be reached, there is no registry, it is damaged, newer, or belongs to another database; `out` cannot be
/// written to.
pub async fn run(given: &Given, out: &mut impl Write) -> Result<ExitStatus> {
    let status = Status::read(&given.registry().await?, &given.config, &given.set).await?;
    if given.json {
        output::object(out, &json::object(&status))?;
    } else {
        output::text(out, &text::whole(&status))?;
    }
    Ok(if status.is_well() { ExitStatus::Well } else { ExitStatus::Findings })
}

impl<'a> Status<'a> {
    async fn read(registry: &Registry, config: &'a Config, set: &'a MigrationSet) -> Result<Status<'a>> {
        let relations = registry.relate(set, config.tenant.out_of_order).await?;
        let newer = if relations.newer.is_empty() { 0 } else { registry.count_newer(&relations.newer).await? };
        Ok(Status {
            config,
            registry: registry.id,
            fleet: registry.fleet().await?,
            template_failure: registry.template_failure(&set.id()).await?,
            room: registry.room().await?,
            signup: read_signup(registry, config).await?,
            set,
            relations,
            newer,
            main_schema: match config.main_schema.migrations {
                Some(_) => Some(main_schema::standing(registry, config).await),
                None => None,
            },
        })
    }

    /// Nothing failed, and nothing needs a person.
    fn is_well(&self) -> bool {
        self.needs_person().is_empty() && self.with_work("failing") == 0
    }

    /// Tenants that have something to be done: due or failing.
    fn waiting(&self) -> i64 {
        self.with_work("due") + self.with_work("failing")
    }

    fn with(&self, state: &str, work: &str) -> i64 {
        let counts = self.fleet.counts.iter().filter(|count| count.state == state && count.work == work);
        counts.map(|count| count.tenants).sum()
    }

    fn with_work(&self, work: &str) -> i64 {
        self.fleet.counts.iter().filter(|count| count.work == work).map(|count| count.tenants).sum()
    }

    fn standing(&self, version: &VersionCount) -> Standing {
        self.relations.standing(&self.set.id(), &version.sets)
    }

    /// A migration of ours, as in `2 add_index`.
    fn migration(&self, version: i64) -> String {
        match self.set.get(version) {
            Some(migration) => format!("{version} {}", migration.name),
            None => version.to_string(),
        }
    }
}

/// A table that cannot serve is something to show; a database that cannot be asked is a failure.
async fn read_signup(registry: &Registry, config: &Config) -> Result<Result<Signup>> {
    let session = registry.session().await?;
    let table = match signup::inspect(&session, &config.signup, &config.tenant.names).await {
        Ok(table) => table,
        Err(error) if matches!(error.kind(), Kind::Usage | Kind::Rights) => return Ok(Err(error)),
        Err(error) => return Err(error),
    };
    let (mut triggers, mut updates, mut departures) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in signup_triggers::wanted(&table) {
        let found = if wanted.name == signup_triggers::ON_UPDATE { &mut updates } else { &mut triggers };
        found.push((wanted.on.to_owned(), wanted.stands(&session).await?));
    }
    for on in &table.triggers_on {
        if config.signup.on_delete == OnDelete::Drop {
            departures.push((on.clone(), departure::trigger(&session, on, table.by_row).await?));
        }
    }
    Ok(Ok(Signup { table, triggers, updates, departures }))
}
