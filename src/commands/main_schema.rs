//! The application's own schema in the main database: `tenantd migrate main`, `tenantd rollback main`, and how it stands. By the same executor as
//! tenants, with the same history table; there is no claim, since the executor's lock is enough for one database.

use std::io::Write;

use serde_json::{Value, json};

use super::given::{Consent, Given};
use super::{ExitStatus, output};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::migrations::back::{Target, back};
use crate::migrations::compare::{Recorded, compare};
use crate::migrations::{Migration, MigrationSet, Mode, source};
use crate::pg::migrate::{self, AppliedRow, Ran};
use crate::pg::{Executor, History, Session};
use crate::registry::Registry;
use crate::registry::events::What;

/// How far the main schema has come.
#[derive(Debug)]
pub struct Reached {
    /// Its newest migration; 0: it has none.
    pub version: i64,
    /// What it lacks, in order.
    pub pending: Vec<(i64, String)>,
}

/// The migrations in the folder `main.migrations`.
///
/// # Errors
/// [`Kind::Usage`] when none is set, or a file in it breaks a rule.
pub fn set(config: &Config) -> Result<MigrationSet> {
    let folder = config.main_schema.migrations.as_ref().ok_or_else(|| {
        Error::usage("main.migrations names no folder, so tenantd leaves the main schema alone")
            .hint("set main.migrations, in the settings file or as TENANTD_MAIN__MIGRATIONS")
    })?;
    source::folder(folder)
}

/// How the main schema stands. Only reads.
///
/// # Errors
/// As for [`set`]; [`Kind::Drift`] and [`Kind::Newer`] when what was applied contradicts the folder; it cannot be read.
pub async fn standing(registry: &Registry, config: &Config) -> Result<Reached> {
    let set = set(config)?;
    let rows = history().read(&*registry.session().await?).await?;
    let recorded = recorded(&rows);
    let pending = compare(&set, &recorded, config.tenant.out_of_order).pending()?;
    let pending = pending.iter().map(|migration| (migration.version, migration.name.clone())).collect();
    Ok(Reached { version: newest(&recorded), pending })
}

/// Applies what the main schema lacks, up to version `to` if that is given, or prints it. Works before `tenantd setup` too: the signup table may
/// be in it.
///
/// # Errors
/// As for [`Executor::apply`]; those before the one that failed are applied.
pub async fn migrate(given: &Given, to: Option<i64>, dry_run: bool, out: &mut impl Write) -> Result<ExitStatus> {
    let set = set(&given.config)?;
    let set = match to {
        Some(version) => set.up_to(set.known(version)?.version).unwrap_or(set),
        None => set,
    };
    let (mut session, before) = begin(given).await?;
    let from = newest(&before);
    let pending = match compare(&set, &before, given.config.tenant.out_of_order).pending() {
        Err(error) if error.kind() == Kind::Newer && to.is_some() => {
            let hint = "`tenantd rollback main` takes migrations back";
            return Err(Error::usage(format!("the main schema is at version {from} already"))
                .because(error)
                .hint(hint));
        }
        pending => pending?,
    };
    if dry_run {
        let scripts = pending.iter().map(|migration| Script::up(migration)).collect::<Vec<_>>();
        return would(given, (from, pending.last().map_or(from, |last| last.version)), &scripts, out);
    }
    let connect = || given.server.connect(None, &given.worker.application_name);
    let applied = executor(given, &set).apply(&mut session, connect).await;
    let ran = applied.map(|applied| applied.ran).map_err(allowed);
    end(given, &session, (from, What::Migrated), ran, out).await
}

/// Takes migrations of the main schema back, or prints which. `target` is found out from the set.
///
/// # Errors
/// As for [`Executor::roll_back`]; [`Kind::Usage`] without consent.
pub async fn roll_back(
    given: &Given,
    target: impl FnOnce(&MigrationSet) -> Result<Target>,
    dry_run: bool,
    consent: Consent,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let set = set(&given.config)?;
    let target = target(&set)?;
    let (mut session, before) = begin(given).await?;
    let (from, to) = (newest(&before), target.version(&before));
    let found = back(&set, &before, to)?;
    if dry_run {
        let scripts = found.iter().map(|(migration, down)| Script {
            sql: &down.sql,
            file: &down.file,
            mode: down.mode,
            migration,
        });
        return would(given, (from, to.min(from)), &scripts.collect::<Vec<_>>(), out);
    }
    if !found.is_empty() {
        let migrations = output::counted(i64::try_from(found.len()).unwrap_or(i64::MAX), "migration");
        let main = given.config.main.describe();
        consent.ask(
            &format!(
                "This takes {migrations} of the main schema in {main} back: what they made goes, with the data in it."
            ),
            "yes",
        )?;
    }
    let connect = || given.server.connect(None, &given.worker.application_name);
    let ran = executor(given, &set).roll_back(&mut session, to, connect).await;
    end(given, &session, (from, What::RolledBack), ran.map_err(allowed), out).await
}

/// A session on the main database, and what is applied.
async fn begin(given: &Given) -> Result<(Session, Vec<Recorded>)> {
    let session = given.server.connect(None, &given.worker.application_name).await?;
    let rows = history().read(&session).await?;
    Ok((session, recorded(&rows)))
}

/// Tells what was done, also where it failed in the middle: as an event, if there is a registry, and to the caller.
async fn end(
    given: &Given,
    session: &Session,
    (from, what): (i64, What),
    ran: Result<Vec<Ran>>,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let to = history().read(session).await.map_or(from, |rows| newest(&recorded(&rows)));
    if from != to {
        // Without a registry there is nowhere to write it: it may be that the signup table was made just now.
        match given.registry().await {
            Ok(registry) => registry.tell(what, None, Some(&format!("the main schema from {from} to {to}"))).await?,
            Err(error) => tracing::debug!(error = error.chain(), "no event was written"),
        }
    }
    let ran = ran?;
    if given.json {
        let ran = ran.iter().map(
            |ran| json!({ "version": ran.version, "name": ran.name, "duration_seconds": ran.duration.as_secs_f64() }),
        );
        output::object(
            out,
            &json!({ "ok": true, "dry_run": false, "from": from, "to": to, "ran": ran.collect::<Vec<_>>() }),
        )?;
    } else if ran.is_empty() {
        output::text(out, &format!("nothing to do: the main schema is at version {to}\n"))?;
    } else {
        let names: Vec<String> = ran.iter().map(|ran| format!("{} {}", ran.version, ran.name)).collect();
        let took = output::duration(ran.iter().map(|ran| ran.duration).sum());
        let verb = if what == What::RolledBack { "taken back" } else { "applied" };
        output::text(
            out,
            &format!("the main schema went from {from} to {to} in {took}: {} {verb}\n", names.join(", ")),
        )?;
    }
    Ok(ExitStatus::Well)
}

/// A file that would be run.
struct Script<'a> {
    migration: &'a Migration,
    file: &'a str,
    sql: &'a str,
    mode: Mode,
}

impl<'a> Script<'a> {
    fn up(migration: &'a Migration) -> Self {
        Script { migration, file: &migration.file, sql: &migration.sql, mode: migration.mode }
    }
}

/// Prints what would be run, with the SQL.
fn would(given: &Given, (from, to): (i64, i64), scripts: &[Script<'_>], out: &mut impl Write) -> Result<ExitStatus> {
    if given.json {
        let script = |script: &Script<'_>| -> Value {
            let Script { migration, file, sql, mode } = script;
            let transaction = *mode == Mode::Transaction;
            json!({ "version": migration.version, "name": migration.name, "file": file, "transaction": transaction, "sql": sql })
        };
        let sql: Vec<Value> = scripts.iter().map(script).collect();
        output::object(out, &json!({ "ok": true, "dry_run": true, "from": from, "to": to, "sql": sql }))?;
        return Ok(ExitStatus::Well);
    }
    let mut text = match scripts {
        [] => format!("nothing to do: the main schema is at version {from}\n"),
        _ => format!("the main schema would go from {from} to {to}:\n"),
    };
    text.extend(scripts.iter().map(|script| output::script(script.file, script.mode, script.sql)));
    output::text(out, &text)?;
    Ok(ExitStatus::Well)
}

fn executor<'a>(given: &'a Given, set: &'a MigrationSet) -> Executor<'a> {
    let config = &given.config;
    Executor {
        set,
        history: history(),
        owner: config.main_schema.owner.as_deref(),
        among: None,
        protect_from: config.tenant.use_roles.clone(),
        lock_timeout: migrate::LOCK_TIMEOUT,
        statement_timeout: migrate::STATEMENT_TIMEOUT,
        applied_by: given.worker.name.clone(),
        out_of_order: config.tenant.out_of_order,
        fresh: false,
    }
}

fn history() -> History {
    History::tenant("public")
}

fn recorded(rows: &[AppliedRow]) -> Vec<Recorded> {
    rows.iter().map(AppliedRow::recorded).collect()
}

fn newest(recorded: &[Recorded]) -> i64 {
    recorded.iter().map(|recorded| recorded.entry.version).max().unwrap_or(0)
}

/// What to do about a right that is missing, and a lock that somebody holds.
fn allowed(error: Error) -> Error {
    match (error.kind(), error.code()) {
        (_, Some("42501")) => error.hint("name a role that may do it in main.owner, and make tenantd's a member of it"),
        (Kind::MigrationLocked, _) => error.hint("a long transaction holds what the migration needs: run it again"),
        _ => error,
    }
}
