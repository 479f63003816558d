//! A database per tenant.
//!
//! A database is made under a random name and gets its real one only when it is whole; see `registry::hand_over`.

use super::entry::enter;
use super::{Isolation, executor, look, observed, roles_that_enter};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::migrate::AppliedRow;
use crate::pg::{Doing, Executor, History, Server, Session, admin, quote};
use crate::plan::{Desired, Observed, Step};
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::hand_over::{Handed, Naming, grant_connect};
use crate::registry::spares::{Serving, Taken};
use crate::tenant::spare_name;

/// Where the history of a tenant's migrations is.
const SCHEMA: &str = "public";

/// So many spares are tried for one tenant before it gets the one that is made for it.
const SPARES_TRIED: usize = 3;

/// One tenant's database under work.
pub struct DatabaseIsolation<'a> {
    server: &'a Server,
    registry: &'a Registry,
    settings: &'a config::Tenant,
    /// Whether it was looked at from outside.
    looked: bool,
    /// The connection to the tenant's database, from the look inside to the last step.
    inside: Option<Session>,
    /// Its history as the look inside found it, until something is applied.
    history: Option<Vec<AppliedRow>>,
    /// Which template is cloned.
    serving: Serving<'a>,
    /// The database that is to become the tenant's.
    spare: Option<Making>,
}

/// A database under a random name.
struct Making {
    name: String,
    /// Whether it is made: it could serve another as well.
    whole: bool,
    /// Whether the server may be making it still, since it gave no answer.
    unsure: bool,
}

impl<'a> DatabaseIsolation<'a> {
    /// Begins work on one tenant.
    #[must_use]
    pub fn new(server: &'a Server, registry: &'a Registry, settings: &'a config::Tenant, serving: Serving<'a>) -> Self {
        DatabaseIsolation {
            server,
            registry,
            settings,
            serving,
            looked: false,
            inside: None,
            history: None,
            spare: None,
        }
    }

    /// The random name of the database that [`Step::Make`] got, which is to become the tenant's.
    #[must_use]
    pub(crate) fn made(&self) -> Option<&str> {
        self.spare.as_ref().map(|making| making.name.as_str())
    }

    async fn session(&mut self, claim: &Claim, name: &str) -> Result<&mut Session> {
        if self.inside.is_none() {
            self.inside = Some(enter(self.server, name, &format!("tenantd:{}", claim.key)).await?);
        }
        Ok(self.inside.as_mut().expect("connected above"))
    }

    /// Gets a database under a random name: a spare at hand, or a clone made on demand.
    async fn make(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let name = spare_name();
        let from = match self.registry.take_spare(claim, &name, desired.owner, &self.serving).await? {
            Taken::Spare(name) => {
                self.spare = Some(Making { name, whole: true, unsure: false });
                return Ok(());
            }
            Taken::Name(from) => from,
        };
        reach(Point::Announced).await;
        let session = self.registry.session().await?;
        let making = self.spare.insert(Making { name, whole: false, unsure: false });
        let create = admin::Create {
            name: &making.name,
            owner: desired.owner,
            template: &from.template,
            bytes: from.bytes,
            strategy: self.settings.strategy,
            server_version: from.server_version,
        };
        let connect = grant_connect(&making.name, roles_that_enter(self.settings));
        let created = admin::create_database(&session, &create, &connect).await;
        making.unsure = created.as_ref().is_err_and(|error| error.kind() == Kind::Unreachable);
        if let Err(error) = created {
            drop(session);
            return Err(doubt_template(self.registry, &from.template, error).await);
        }
        session.left_in_order();
        making.whole = true;
        reach(Point::Made).await;
        Ok(())
    }

    /// Lets the roles that use the tenant work on what its owner makes, and on what it has made already.
    async fn grant(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let sql = grants(desired.owner, &self.settings.use_roles);
        let connect = grant_connect(desired.name, roles_that_enter(self.settings));
        let session = self.session(claim, desired.name).await?;
        session.batch_execute(&sql).await.doing(|| "give the roles of tenant.use their rights".to_owned())?;
        self.registry.mend_database(claim, desired.name, &connect).await?;
        reach(Point::Granted).await;
        Ok(())
    }

    async fn migrate(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let server = self.server;
        let application_name = format!("tenantd:{}", claim.key);
        let executor = Executor {
            out_of_order: desired.out_of_order,
            ..executor(desired.name, desired.set, self.settings, &self.registry.worker)
        };
        let seen = self.history.take();
        let session = self.session(claim, desired.name).await?;
        let connect_again = || server.connect_again(desired.name, &application_name);
        match seen {
            Some(rows) => executor.go_on(session, Some(rows), connect_again).await?,
            None => executor.apply(session, connect_again).await?,
        };
        reach(Point::Migrated).await;
        Ok(())
    }

    async fn roll_back(&mut self, claim: &Claim, desired: &Desired<'_>, to: i64) -> Result<()> {
        let (server, application_name) = (self.server, format!("tenantd:{}", claim.key));
        let executor = executor(desired.name, desired.set, self.settings, &self.registry.worker);
        self.history = None;
        let session = self.session(claim, desired.name).await?;
        executor.roll_back(session, to, || server.connect_again(desired.name, &application_name)).await?;
        reach(Point::RolledBack).await;
        Ok(())
    }

    /// Names the database in the making. A spare that somebody is in costs a bounded wait; then another is tried, at last one made on demand.
    async fn hand_over(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        for _ in 0..SPARES_TRIED {
            match self.name(claim, desired).await {
                Err(error) if error.kind() == Kind::InUse => {
                    let busy = self.spare.take().expect("a plan hands over only what it made");
                    tracing::warn!(
                        spare = busy.name,
                        error = error.chain(),
                        "a spare could not be handed over; it is passed over for a while"
                    );
                    self.registry.pass_over_spare(&busy.name).await?;
                    self.make(claim, desired).await?;
                }
                named => return named,
            }
        }
        self.name(claim, desired).await
    }

    async fn name(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let spare = self.spare.as_ref().expect("a plan hands over only what it made").name.clone();
        let naming = Naming { claim, name: desired.name.to_owned() };
        let handed = self.registry.hand_over(&[naming], desired.owner, Some(&spare)).await?;
        match handed.into_iter().next() {
            Some(Handed::Ready) => {
                self.spare = None;
                Ok(())
            }
            Some(Handed::Failed(_, error)) => Err(error),
            Some(Handed::NoSpare) => {
                Err(Error::new(Kind::InUse, format!("the spare {spare:?} went to another before the hand-over")))
            }
            _ => Err(Error::new(
                Kind::LeaseLost,
                format!("attempt {} of tenant {} lost its lease before the hand-over", claim.attempt, claim.key),
            )),
        }
    }

    async fn drop_invalid(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<()> {
        let aside = spare_name();
        self.registry.set_aside(claim, desired.name, &aside).await?;
        admin::drop_database(&*self.registry.session().await?, &aside).await?;
        self.registry.forget_spare(&aside).await
    }
}

impl Isolation for DatabaseIsolation<'_> {
    async fn observe(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<Observed> {
        let mut database = look(&mut self.looked, self.registry, claim, desired).await?;
        if let Some(seen) = &mut database
            && seen.ours
            && seen.valid
            && seen.open
            && claim.database_oid.is_none_or(|oid| oid == seen.oid)
        {
            let session = self.session(claim, desired.name).await?;
            let rows = History::tenant(SCHEMA).look(session).await?;
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
            Step::HandOver => self.hand_over(claim, desired).await,
            Step::DropInvalid => self.drop_invalid(claim, desired).await,
            Step::TakeBack => self.registry.take_back(claim, desired.name).await,
            Step::Close => {
                self.registry
                    .mend_database(
                        claim,
                        desired.name,
                        &format!("revoke connect, temporary on database {name} from public"),
                    )
                    .await
            }
            Step::Own => {
                let owner = quote::identifier(desired.owner);
                self.registry
                    .mend_database(claim, desired.name, &format!("alter database {name} owner to {owner}"))
                    .await
            }
            Step::Open => {
                self.registry
                    .mend_database(claim, desired.name, &format!("alter database {name} with allow_connections true"))
                    .await
            }
        }
    }

    async fn version(&mut self) -> Option<i64> {
        let rows = History::tenant(SCHEMA).read(self.inside.as_ref()?).await.ok()?;
        rows.iter().map(AppliedRow::recorded).filter(|row| row.finished).map(|row| row.entry.version).max()
    }

    async fn give_up(&mut self) {
        // Nobody waits for the server's goodbye.
        self.inside = None;
        let Some(Making { name, whole, unsure }) = self.spare.take() else { return };
        let given_up = async {
            if whole && self.registry.keep_spare(&name).await? {
                return Ok(());
            }
            admin::drop_database(&*self.registry.session().await?, &name).await?;
            // Its name must stay written down as long as the database may still come about.
            if unsure { Ok(()) } else { self.registry.forget_spare(&name).await }
        };
        if let Err(error) = given_up.await {
            tracing::debug!(spare = name, error = error.chain(), "a half-made database stays until the next sweep");
        }
    }
}

/// A template that could not be cloned is taken out of service where a new one would help: somebody sits in it, it is gone, or its collations
/// are of another version than the server's.
pub(crate) async fn doubt_template(registry: &Registry, template: &str, error: Error) -> Error {
    if error.kind() != Kind::Template {
        return error;
    }
    if matches!(error.code(), Some("55006" | "3D000" | "XX000"))
        && let Err(unretired) = registry.retire_template(template).await
    {
        tracing::debug!(template, error = unretired.chain(), "a template that cannot be cloned stays in service");
    }
    error.hint("tenantd builds another template by itself; keep whatever connects to every database out of those that begin with tenantd_")
}

/// What the roles of `tenant.use` get inside: on everything the owner will make, and on what is there already.
pub(crate) fn grants(owner: &str, roles: &[String]) -> String {
    if roles.is_empty() {
        return String::new();
    }
    let owner = quote::identifier(owner);
    let roles = roles.iter().map(|role| quote::identifier(role)).collect::<Vec<_>>().join(", ");
    // First of all the search path, for this one message: an operator that somebody made in the tenant's public, where it fits the types better
    // than the catalogue's own, would run as us.
    format!(
        "set local search_path = pg_catalog, pg_temp;
         alter default privileges for role {owner} grant usage on schemas to {roles};
         alter default privileges for role {owner} grant select, insert, update, delete on tables to {roles};
         alter default privileges for role {owner} grant usage, select on sequences to {roles};
         set local tenantd.roles = {as_text};
         {ON_WHAT_IS_THERE}",
        as_text = quote::literal(&roles)
    )
}

/// What others made in the tenant is theirs to share: one table of an administrator's must not stop a GRANT on all of a schema.
const ON_WHAT_IS_THERE: &str = "
do $tenantd$
declare
    target record;
    roles constant text := current_setting('tenantd.roles');
begin
    for target in select nspname from pg_namespace
                  where nspname !~ '^pg_' and nspname <> 'information_schema' and pg_has_role(nspowner, 'usage')
    loop
        execute format('grant usage on schema %I to %s', target.nspname, roles);
    end loop;
    for target in select n.nspname, c.relname, c.relkind, c.oid = to_regclass('public.tenantd_migration') as history
                  from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
                    and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and pg_has_role(c.relowner, 'usage')
    loop
        if target.relkind = 'S' then
            execute format('grant usage, select on sequence %I.%I to %s', target.nspname, target.relname, roles);
        elsif target.history then
            execute format('grant select on %I.%I to %s', target.nspname, target.relname, roles);
        else
            execute format('grant select, insert, update, delete on %I.%I to %s', target.nspname, target.relname, roles);
        end if;
    end loop;
end
$tenantd$;";
