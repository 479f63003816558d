//! A schema per tenant, all of them in the main database.
//!
//! CREATE SCHEMA is undone with its transaction, so a tenant is made under its real name: marked, owned, and filled by one transaction wherever
//! its migrations allow it. Nobody but its owner may enter until the hand-over, which grants that.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Isolation, database_of, executor, look, observed, roles_that_enter};
use crate::config;
use crate::error::{Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::migrate::{Among, AppliedRow};
use crate::pg::{Doing, Executor, History, Pool, PooledSession, Server, quote, schemas};
use crate::plan::{Desired, Observed, Step};
use crate::registry::Registry;
use crate::registry::claim::Claim;

/// One tenant's schema under work.
pub struct SchemaIsolation<'a> {
    server: &'a Server,
    registry: &'a Registry,
    settings: &'a config::Tenant,
    tenants: &'a Pool,
    /// Whether it was looked at from outside.
    looked: bool,
    /// The session for the work in the tenant, from the look inside to the last step.
    inside: Option<PooledSession>,
    /// Its history as the look inside found it, until something is applied.
    history: Option<Vec<AppliedRow>>,
    /// Whose history that is.
    name: String,
}

impl<'a> SchemaIsolation<'a> {
    /// Begins work on one tenant; `tenants` are the sessions for the work in them.
    #[must_use]
    pub fn new(server: &'a Server, registry: &'a Registry, settings: &'a config::Tenant, tenants: &'a Pool) -> Self {
        SchemaIsolation {
            server,
            registry,
            settings,
            tenants,
            looked: false,
            inside: None,
            history: None,
            name: String::new(),
        }
    }

    async fn session(&mut self) -> Result<&mut PooledSession> {
        if self.inside.is_none() {
            self.inside = Some(self.tenants.get().await?);
        }
        Ok(self.inside.as_mut().expect("taken above"))
    }

    /// What migrates it, in a session that bears its name meanwhile.
    fn executor<'b>(&self, claim: &Claim, desired: &Desired<'b>) -> Executor<'b>
    where
        'a: 'b,
    {
        let executor = executor(desired.name, desired.set, self.settings, &self.registry.worker);
        let application_name = Some(format!("tenantd:{}", claim.key));
        let among = executor.among.map(|among| Among { application_name, ..among });
        Executor { out_of_order: desired.out_of_order, among, ..executor }
    }

    /// Makes the schema with all that a tenant begins with.
    async fn make(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let (server, settings) = (self.server, self.settings);
        let executor = self.executor(claim, desired);
        let create = create(desired.name, desired.owner, desired.marker, settings);
        let database = database_of(server, self.settings, desired.name);
        let session = self.session().await?;
        let name = format!("tenantd:{}", claim.key);
        let founded = executor.found(session, &create, || server.connect_again(database, &name)).await;
        founded.map_err(|error| match error.kind() {
            Kind::Rights => {
                let (database, user) = (quote::identifier(database), quote::identifier(server.connection().user()));
                error.hint(format!("as an administrator: grant create on database {database} to {user}"))
            }
            _ => error,
        })?;
        reach(Point::Made).await;
        Ok(())
    }

    async fn grant(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let sql = in_owner_role(desired, &grants(desired, self.settings));
        let session = self.session().await?;
        session.batch_execute(&sql).await.doing(|| "give the roles of tenant.use their rights".to_owned())?;
        self.registry.mend_database(claim, desired.name, &enter_roles(desired.name, self.settings)).await?;
        reach(Point::Granted).await;
        Ok(())
    }

    async fn migrate(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let (server, name) = (self.server, format!("tenantd:{}", claim.key));
        let executor = self.executor(claim, desired);
        let seen = self.history.take();
        let database = database_of(server, self.settings, desired.name);
        let session = self.session().await?;
        let connect_again = || server.connect_again(database, &name);
        match seen {
            Some(rows) => executor.go_on(session, Some(rows), connect_again).await?,
            None => executor.apply(session, connect_again).await?,
        };
        reach(Point::Migrated).await;
        Ok(())
    }

    async fn roll_back(&mut self, claim: &Claim, desired: &Desired<'_>, to: i64) -> Result<()> {
        let (server, name) = (self.server, format!("tenantd:{}", claim.key));
        let executor = self.executor(claim, desired);
        self.history = None;
        let database = database_of(server, self.settings, desired.name);
        let session = self.session().await?;
        executor.roll_back(session, to, || server.connect_again(database, &name)).await?;
        reach(Point::RolledBack).await;
        Ok(())
    }
}

impl Isolation for SchemaIsolation<'_> {
    async fn observe(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<Observed> {
        desired.name.clone_into(&mut self.name);
        let mut database = look(&mut self.looked, self.registry, claim, desired).await?;
        if let Some(seen) = &mut database
            && seen.ours
            && claim.database_oid.is_none_or(|oid| oid == seen.oid)
        {
            let session = self.session().await?;
            let rows = History::tenant(desired.name).look(session).await?;
            seen.applied = Some(rows.iter().flatten().map(AppliedRow::recorded).collect());
            self.history = rows;
        }
        Ok(observed(claim, database))
    }

    async fn apply(&mut self, claim: &Claim, desired: &Desired<'_>, step: &Step) -> Result<()> {
        let name = quote::identifier(desired.name);
        match step {
            Step::Make => self.make(claim, desired).await,
            Step::Grant => self.grant(claim, desired).await,
            Step::Migrate(_) => self.migrate(claim, desired).await,
            Step::RollBack { to, .. } => self.roll_back(claim, desired, *to).await,
            Step::HandOver => {
                self.registry.hand_over_made(claim, desired.name, &enter_roles(desired.name, self.settings)).await
            }
            Step::TakeBack => self.registry.take_back(claim, desired.name).await,
            Step::Close => {
                let close = format!("revoke all on schema {name} from public");
                self.registry.mend_database(claim, desired.name, &close).await
            }
            Step::Own => {
                let owner = quote::identifier(desired.owner);
                let own = format!("alter schema {name} owner to {owner}");
                self.registry.mend_database(claim, desired.name, &own).await
            }
            Step::DropInvalid | Step::Open => unreachable!("a schema is always whole and open"),
        }
    }

    async fn version(&mut self) -> Option<i64> {
        let rows = History::tenant(&self.name).read(self.inside.as_ref()?).await.ok()?;
        rows.iter().map(AppliedRow::recorded).filter(|row| row.finished).map(|row| row.entry.version).max()
    }

    async fn give_up(&mut self) {
        // What the work left in it is not for the next: the session is closed.
        if let Some(session) = self.inside.take() {
            drop(session.discard());
        }
    }
}

/// The statements that make the schema: marked as the tenant's, its owner's, with what the roles of `tenant.use` are to have in it.
pub(crate) fn create(name: &str, owner: &str, marker: &str, settings: &config::Tenant) -> String {
    let defaults = schemas::default_privileges(name, owner, &settings.use_roles);
    let (name, owner, marker) = (quote::identifier(name), quote::identifier(owner), quote::literal(marker));
    format!("create schema {name} authorization {owner}; comment on schema {name} is {marker}; {defaults}")
}

/// What the roles of `tenant.use` get inside: on everything the owner will make, and on what is there already.
fn grants(desired: &Desired<'_>, settings: &config::Tenant) -> String {
    schemas::default_privileges(desired.name, desired.owner, &settings.use_roles)
        + &schemas::privileges(desired.name, &settings.use_roles)
}

fn in_owner_role(desired: &Desired<'_>, sql: &str) -> String {
    format!("set local role {}; {sql}", quote::identifier(desired.owner))
}

/// Lets those who work in the tenant, or look at it, enter.
pub(crate) fn enter_roles(name: &str, settings: &config::Tenant) -> String {
    let roles: BTreeSet<&String> = roles_that_enter(settings).collect();
    let name = quote::identifier(name);
    roles.into_iter().fold(String::new(), |mut statements, role| {
        // Writing to a String cannot fail.
        let _ = write!(statements, "grant usage on schema {name} to {};", quote::identifier(role));
        statements
    })
}
