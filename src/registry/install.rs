//! Installing: schema, tables, trigger, grants. Run by `tenantd setup` and at each start of the daemon, again and again without harm.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::identity::{self, Identity, Moved, Source};
use super::signup::{self, Function, Table};
use super::{Registry, Worker, departure, field, grants, locks, parts, schema, shared, signup_triggers, triggers};
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::migrations::embedded;
use crate::pg::{Doing, Executor, History, Server, Session, migrate};

/// What the installation is asked to do besides installing.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// Make the users from before due.
    pub backfill: bool,
    /// What to do with a registry that was made for another database.
    pub moved: Moved,
}

/// What became of the databases that belong to no tenant when the registry was removed, by name.
#[derive(Debug)]
pub struct Removed {
    /// Templates and spares, which were dropped.
    pub dropped: Vec<String>,
    /// What was set aside of tenants that were dropped, reset or replaced. It stays, and nothing knows it any more.
    pub set_aside: Vec<String>,
}

/// What was found and done, for `setup` to print and the daemon to log.
#[derive(Debug)]
pub struct Installed {
    /// The signup table.
    pub table: Table,
    /// Whether signups may ring.
    pub notify: bool,
    /// What was changed, one sentence each.
    pub changes: Vec<String>,
    /// What a person should know, one sentence each.
    pub notes: Vec<String>,
}

impl Registry {
    /// Installs what is missing and opens the registry for `worker`.
    ///
    /// # Guarantees
    /// Signups never wait for it longer than a tenth of a second. A crash in the middle leaves something that the next call completes.
    /// Any number of daemons may install at once.
    ///
    /// # Errors
    /// [`Kind::Usage`] for settings that do not fit the database; [`Kind::Rights`]; [`Kind::RegistryNewer`]; [`Kind::Locked`].
    pub async fn install(
        server: &Server,
        config: &Config,
        wishes: Wishes,
        worker: &Worker,
    ) -> Result<(Registry, Installed)> {
        let mut session = server.connect(None, &worker.application_name).await?;
        let mut changes = Vec::new();
        let mut notes = Vec::new();
        // Behind a pooler the lock takes a session of its own.
        let more = if session.is_shared() { Some(server.connect(None, &worker.application_name).await?) } else { None };
        lock_installation(more.as_ref().unwrap_or(&session)).await?;
        let table = Box::pin(signup::inspect(&session, &config.signup, &config.tenant.names)).await?;
        grants::check_roles(&session, config, &mut notes).await?;
        schema::make(&session, &mut changes).await?;
        let identity = make_registry(server, &mut session, wishes.moved, &mut changes, &mut notes).await?;
        identity::isolate(&session, &config.tenant).await?;
        Box::pin(shared::prepare(server, &session, config, &mut changes, &mut notes)).await?;
        let registry = worker.registry(server, identity.id)?;
        registry.see_all(false).await?;
        let source = identity::point_at(&session, &table).await?;
        if identity.users_held {
            tell_source(source, &table, &mut notes);
        }
        let notify = decide_notify(&session, config, &mut notes).await?;
        if !is_newer(&session).await? {
            Box::pin(put_triggers(&session, &table, config, notify, &mut changes, &mut notes)).await?;
        }
        if !identity.users_held || source != Source::Same {
            Box::pin(hold_users(&mut session, &table, config, &mut changes, &mut notes)).await?;
        }
        grants::grant(&session, config, &mut changes, &mut notes).await?;
        if wishes.backfill {
            backfill(&session, &mut changes).await?;
        }
        count_held(&session, config, &mut notes).await?;
        close(session, more).await;
        Ok((registry, Installed { table, notify, changes, notes }))
    }

    /// Puts back what a running daemon finds missing of function, trigger and grants; a new partition gets its trigger. Changes nothing else.
    ///
    /// # Errors
    /// [`Kind::Registry`] when the registry is gone or another one stands in its place: the next start installs. Else as [`Registry::install`].
    pub async fn mend(&self, config: &Config) -> Result<Installed> {
        // A session of its own, closed on every exit: it holds the lock of the installation.
        let mut session = self.session().await?.discard();
        let more = if session.is_shared() { Some(self.session().await?.discard()) } else { None };
        let identity = identity::read(&session).await?.filter(|identity| identity.id == self.id).ok_or_else(|| {
            Error::new(Kind::Registry, "the registry was dropped or replaced while tenantd ran").hint(
                "restart tenantd: it installs the registry anew and holds the users until `tenantd setup --backfill`",
            )
        })?;
        identity::check(&identity, embedded::main()?.newest_version())?;
        let (mut changes, mut notes) = (Vec::new(), Vec::new());
        let table = Box::pin(signup::inspect(&session, &config.signup, &config.tenant.names)).await?;
        let notify = decide_notify(&session, config, &mut notes).await?;
        // Who installs already does all of it; and what a newer tenantd put there is not ours to take back.
        if try_lock_installation(more.as_ref().unwrap_or(&session)).await? && !is_newer(&session).await? {
            // By a reload, or the columns that the condition reads have changed.
            let source = identity::point_at(&session, &table).await?;
            tell_source(source, &table, &mut notes);
            Box::pin(put_triggers(&session, &table, config, notify, &mut changes, &mut notes)).await?;
            if !identity.users_held || source != Source::Same {
                Box::pin(hold_users(&mut session, &table, config, &mut changes, &mut notes)).await?;
            }
            grants::check_roles(&session, config, &mut notes).await?;
            grants::grant(&session, config, &mut changes, &mut notes).await?;
        }
        close(session, more).await;
        Ok(Installed { table, notify, changes, notes })
    }

    /// Opens a registry that is installed already, without changing anything.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is none, or it belongs to another database; [`Kind::RegistryNewer`].
    pub async fn open(server: &Server, worker: &Worker) -> Result<Registry> {
        let none = || Error::usage("there is no registry in the main database").hint("`tenantd setup` installs it");
        let session = server.connect(None, &worker.application_name).await?;
        let there = session
            .query_typed_one("select to_regclass('tenantd.registry') is not null as there", &[])
            .await
            .doing(|| "look for the registry".to_owned())?;
        if !field::<bool>(&there, "there")? {
            return Err(none());
        }
        let identity = identity::read(&session).await?.ok_or_else(none)?;
        identity::check(&identity, embedded::main()?.newest_version())?;
        identity::matches(&identity, worker.isolation, worker.tenants_in.as_deref())?;
        session.close().await;
        worker.registry(server, identity.id)
    }

    /// Takes the registry, the function and with it the triggers away, then templates and spares. The tenants' databases stay, and so does what was
    /// set aside of them.
    ///
    /// # Errors
    /// [`Kind::Locked`] when the signup table could not be had between long transactions: nothing was removed. Those of a DROP DATABASE: the
    /// error names the databases that are left, which nothing knows any more.
    pub async fn remove(server: &Server) -> Result<Removed> {
        let session = server.connect(None, "tenantd:setup").await?;
        // Of a registry that was made for another database they are not ours.
        let whole = parts::missing(&session).await?.is_empty();
        let identity = if whole { identity::read(&session).await? } else { None };
        let at_home = identity.filter(|identity| identity.at_home);
        let made = if at_home.is_some() { parts::made_by_us(&session).await? } else { Vec::new() };
        let set_aside = if at_home.is_some() { parts::set_aside(&session).await? } else { Vec::new() };
        triggers::without_queueing(&session, "drop schema if exists tenantd cascade")
            .await
            .map_err(|error| error.context("remove schema tenantd"))?;
        // Nobody can be given one any more. One that was a moment ago has another name by now.
        if let Some(identity) = at_home.filter(|_| !made.is_empty()) {
            parts::drop_made(server, &session, &identity, &made).await?;
        }
        Ok(Removed { dropped: made, set_aside })
    }
}

/// Function and triggers, each compared with the catalogue first.
async fn put_triggers(
    client: &Client,
    table: &Table,
    config: &Config,
    notify: bool,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    if signup::install_function(client, table, Function::of(config, &table.id, notify)).await? {
        changes.push("made the function tenantd.signup()".to_owned());
    }
    signup_triggers::install(client, table, changes, notes).await?;
    changes.extend(departure::install(client, table, config.signup.on_delete).await?);
    Ok(())
}

/// What comes of another signup table, or another condition, than before.
fn tell_source(source: Source, table: &Table, notes: &mut Vec<String>) {
    match source {
        Source::Same => {}
        Source::AnotherTable => notes.push(format!(
            "signups come from {} now, and its users are held; the triggers on the table before stay: its owner may drop tenantd_signup and \
             tenantd_signup_update there",
            table.name
        )),
        Source::AnotherCondition => notes.push(format!(
            "{} counts as a signup from now on; whom that brings in of the users who are there is held",
            match &table.when {
                Some(when) => format!("a row of {} with {}", table.name, when.written),
                None => format!("every row of {}", table.name),
            }
        )),
    }
}

/// Whether a newer tenantd, with which this one can live, has installed here: its function and triggers are left as they are.
async fn is_newer(client: &Client) -> Result<bool> {
    let row = client
        .query_typed_one(
            "select coalesce(max(version), 0) > $1 as newer from tenantd.migration",
            &[(&embedded::main()?.newest_version(), Type::INT8)],
        )
        .await
        .doing(|| "compare the registry's version with ours".to_owned())?;
    field(&row, "newer")
}

async fn close(session: Session, more: Option<Session>) {
    session.close().await;
    if let Some(more) = more {
        more.close().await;
    }
}

async fn try_lock_installation(session: &Session) -> Result<bool> {
    locks::hold(session, 2, "the installation").await
}

/// One installation at a time. The lock ends with the session; it is tried for, never waited for.
async fn lock_installation(session: &Session) -> Result<()> {
    for _ in 0..600 {
        if try_lock_installation(session).await? {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Err(Error::new(Kind::Locked, "another tenantd has been installing for 30 s")
        .hint("look for a tenantd setup that hangs"))
}

/// Brings the registry's tables to our version and settles whose it is.
async fn make_registry(
    server: &Server,
    client: &mut Client,
    moved: Moved,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Identity> {
    let set = embedded::main()?;
    let missing = parts::missing(client).await?;
    if !missing.contains(&"registry".to_owned())
        && let Some(identity) = identity::read(client).await?
    {
        let at_home = identity.at_home || moved != Moved::Refuse;
        identity::check(&Identity { at_home, ..identity }, set.newest_version())?;
        if !identity.at_home {
            identity::settle(client, moved).await?;
            changes.push(match moved {
                Moved::New => "made the registry anew: the tenants of the original are forgotten here".to_owned(),
                _ => "took the registry over for this database".to_owned(),
            });
        }
    }
    if !missing.is_empty() {
        parts::forget_history(client, &missing).await?;
    }
    let executor = Executor {
        set: &set,
        history: History::main(),
        owner: None,
        among: None,
        protect_from: Vec::new(),
        lock_timeout: migrate::LOCK_TIMEOUT,
        statement_timeout: migrate::STATEMENT_TIMEOUT,
        applied_by: "setup".to_owned(),
        out_of_order: false,
        fresh: missing.contains(&"migration".to_owned()),
    };
    match executor.apply(client, || server.connect(None, "tenantd:setup")).await {
        Ok(applied) => changes
            .extend(applied.ran.iter().map(|ran| format!("applied registry migration {} {}", ran.version, ran.name))),
        // That none of what we do not know breaks us was checked above.
        Err(error) if error.kind() == Kind::Newer => notes.push(format!(
            "a newer tenantd has been here, and this one can work beside it; function and trigger are left to it: {}",
            error.chain()
        )),
        Err(error) => return Err(error),
    }
    identity::settle(client, Moved::Refuse).await?;
    let breaking = set
        .migrations()
        .iter()
        .filter(|migration| migration.breaking.as_ref().is_some_and(|mark| mark.breaking))
        .map(|migration| migration.version)
        .max();
    client
        .execute_typed(
            "update tenantd.registry set needs_version = $1 where needs_version < $1",
            &[(&breaking.unwrap_or(1), Type::INT8)],
        )
        .await
        .doing(|| "record which tenantd may use the registry".to_owned())?;
    identity::read(client).await?.ok_or_else(|| Error::new(Kind::Registry, "the registry's own row vanished"))
}

/// NOTIFY is refused in a two-phase commit, at PREPARE, where no load test finds it: the setting decides unless the owner did.
async fn decide_notify(client: &Client, config: &Config, notes: &mut Vec<String>) -> Result<bool> {
    if let Some(notify) = config.signup.notify {
        return Ok(notify);
    }
    let row = client
        .query_typed_one("select current_setting('max_prepared_transactions')::int as prepared", &[])
        .await
        .doing(|| "read max_prepared_transactions".to_owned())?;
    let prepared: i32 = field(&row, "prepared")?;
    if prepared > 0 {
        notes.push(format!(
            "signups do not ring, tenantd polls every 100 ms: max_prepared_transactions is {prepared}, and a two-phase commit that rang would fail; \
             signup.notify = true if the application prepares no transactions"
        ));
    }
    Ok(prepared == 0)
}

/// Users from before the trigger get held rows. After the trigger's own transaction and not in it: reading a large table while holding the
/// lock would make signups wait.
async fn hold_users(
    client: &mut Client,
    table: &Table,
    config: &Config,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    match signup::request_missing(client, table, &config.tenant.names).await {
        Ok(missing) if missing.users > 0 => changes.push(format!("held {} users from before", missing.users)),
        Ok(_) => {}
        Err(error) if error.kind() == Kind::Rights => {
            notes.push(format!("{}: {}", error.chain(), error.advice().unwrap_or_default()));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn backfill(client: &Client, changes: &mut Vec<String>) -> Result<()> {
    let due = client
        .execute_typed(
            "update tenantd.tenant set work = 'due', due_at = now() where work = 'held' and state = 'requested'",
            &[],
        )
        .await
        .doing(|| "make the held users due".to_owned())?;
    if due > 0 {
        changes.push(format!("made {due} held users due"));
    }
    Ok(())
}

/// Says how many users are held, and what making them due would take.
async fn count_held(client: &Client, config: &Config, notes: &mut Vec<String>) -> Result<()> {
    let row = client
        .query_typed_one(
            "select count(*) as held,
                    count(*) filter (where exists (select from tenantd.place d where d.name = tenantd.name_of(t.key, $1)::name)) as named
             from tenantd.tenant t where work = 'held' and state = 'requested'",
            &[(&config.tenant.names.to_string(), Type::TEXT)],
        )
        .await
        .doing(|| "count the held users".to_owned())?;
    let (held, named): (i64, i64) = (field(&row, "held")?, field(&row, "named")?);
    if held > 0 {
        // An empty database takes 7.3 MB and about 45 ms of CREATE DATABASE on Postgres 15, a schema with its history less than a tenth of a MB and
        // about 10 ms; migrations come on top.
        let kind = config.tenant.isolation;
        let (megabytes, milliseconds) = match kind {
            Isolation::Database => (held * 73 / 10, 45),
            Isolation::Schema => (held / 10 + 1, 10),
        };
        notes.push(format!(
            "{held} users from before are held; {named} {kind}s bear their names already; making them due would take about {megabytes} MB and {} s: \
             tenantd setup --backfill",
            held * milliseconds / 1000 + 1
        ));
    }
    Ok(())
}
