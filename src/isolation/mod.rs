//! How tenants are kept apart. Registry, planner, executor, sweep and commands do not know which way.

mod any;
pub mod database;
mod entry;
pub mod schema;

use std::future::Future;
use std::time::{Duration, Instant};

pub use any::AnyIsolation;
pub use database::DatabaseIsolation;
pub use schema::SchemaIsolation;
pub(crate) use schema::{create, enter_roles};

use crate::config::{self, Isolation as Kept};
use crate::error::Result;
use crate::migrations::MigrationSet;
use crate::pg::migrate::{self, Among};
use crate::pg::{Executor, History, Libpq, Server, Session, admin, schemas};
use crate::plan::{Database, Desired, Observed, Step};
use crate::registry::Registry;
use crate::registry::claim::{Claim, Seen};

/// What a claim saw is not looked at again for so long.
const FRESH: Duration = Duration::from_secs(1);

/// One tenant under work: looked at, and changed step by step.
pub trait Isolation: Send {
    /// What the tenant is now. Nothing is changed.
    fn observe(&mut self, claim: &Claim, desired: &Desired<'_>) -> impl Future<Output = Result<Observed>> + Send;

    /// Carries `step` out.
    fn apply(&mut self, claim: &Claim, desired: &Desired<'_>, step: &Step) -> impl Future<Output = Result<()>> + Send;

    /// The newest migration that a tenant which stands has now; `None` when that cannot be told.
    fn version(&mut self) -> impl Future<Output = Option<i64>> + Send;

    /// Takes back what a failed attempt left: a whole spare is kept for another. Best effort: what stays is found by the next sweep.
    fn give_up(&mut self) -> impl Future<Output = ()> + Send;
}

/// The schema that a tenant of this name has its tables in, its history among them.
#[must_use]
pub fn schema_of<'a>(settings: &config::Tenant, name: &'a str) -> &'a str {
    match settings.isolation {
        Kept::Database => "public",
        Kept::Schema => name,
    }
}

/// The database that a tenant of this name is in.
#[must_use]
pub fn database_of<'a>(server: &'a Server, settings: &'a config::Tenant, name: &'a str) -> &'a str {
    match settings.isolation {
        Kept::Database => name,
        Kept::Schema => settings.database.as_deref().unwrap_or(&server.connection().database),
    }
}

/// Drops the database, or the schema, that has the random name `name`, if it is there.
///
/// # Errors
/// As for [`admin::drop_database`] and [`schemas::drop_schema`].
pub async fn drop_for_good(registry: &Registry, name: &str) -> Result<()> {
    match registry.isolation {
        Kept::Database => admin::drop_database(&*registry.session().await?, name).await,
        Kept::Schema => {
            registry.finish_moves().await?;
            schemas::drop_schema(&*registry.session_of_tenants().await?, name).await
        }
    }
}

/// What a program of Postgres's needs to work in the tenant `name`.
///
/// # Errors
/// As for [`Server::libpq`].
pub async fn libpq(server: &Server, settings: &config::Tenant, name: &str, application_name: &str) -> Result<Libpq> {
    let libpq = server.libpq(database_of(server, settings, name), application_name).await?;
    Ok(match settings.isolation {
        Kept::Database => libpq,
        Kept::Schema => {
            let shared = settings.shared_schemas.iter().map(String::as_str);
            libpq.searching(&std::iter::once(name).chain(shared).collect::<Vec<_>>())
        }
    })
}

/// A session where the tenant `name` is, for a look at it.
///
/// # Errors
/// As for [`Server::connect`].
pub async fn enter(server: &Server, settings: &config::Tenant, name: &str, application_name: &str) -> Result<Session> {
    server.connect(Some(database_of(server, settings, name)), application_name).await
}

/// What runs the migrations of `set` in the tenant `name`, or in a template.
pub(crate) fn executor<'a>(
    name: &str,
    set: &'a MigrationSet,
    settings: &'a config::Tenant,
    worker: &str,
) -> Executor<'a> {
    Executor {
        set,
        history: History::tenant(schema_of(settings, name)),
        owner: settings.owner.as_deref(),
        among: (settings.isolation == Kept::Schema)
            .then(|| Among { shared: settings.shared_schemas.clone(), application_name: None }),
        protect_from: settings.use_roles.clone(),
        lock_timeout: migrate::LOCK_TIMEOUT,
        statement_timeout: migrate::STATEMENT_TIMEOUT,
        applied_by: worker.to_owned(),
        out_of_order: false,
        fresh: false,
    }
}

/// The roles that may enter a tenant.
pub(crate) fn roles_that_enter(settings: &config::Tenant) -> impl Iterator<Item = &String> {
    settings.use_roles.iter().chain(&settings.connect_roles)
}

/// The tenant from outside: the first time what the claim saw, while that is fresh.
async fn look(
    looked: &mut bool,
    registry: &Registry,
    claim: &Claim,
    desired: &Desired<'_>,
) -> Result<Option<Database>> {
    let first = !std::mem::replace(looked, true) && registry.sees_tenants();
    let fresh = claim.until > Instant::now() + claim.lease.saturating_sub(FRESH);
    let named = claim.name.as_deref() == Some(desired.name);
    match claim.seen.clone().filter(|_| first && fresh && named) {
        Some(Seen(database)) => Ok(database),
        None => registry.look(desired.name, desired.marker).await,
    }
}

/// What the tenant is: by its claim, and as it was seen.
fn observed(claim: &Claim, database: Option<Database>) -> Observed {
    Observed { state: claim.state, recorded_oid: claim.database_oid, access: claim.access.clone(), database }
}
