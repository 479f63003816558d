//! Migrations and down files without a transaction: statement by statement, each counted when done, so that a run that was cut off goes on where it stood.

use std::collections::HashSet;
use std::time::Instant;

use crate::pg::quote;
use tokio_postgres::Client;

use super::failure::{Script, of_ours, of_sql};
use super::history::AppliedRow;
use super::{Executor, Ran};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::migrations::split::{Statement, names, split};
use crate::migrations::{Down, Migration};
use crate::pg::Doing;
use crate::pg::attempt::IS_OWN;

/// A statement that was done before its count was lost answers with one of these: table, object, and the other way round, gone.
const DONE_BEFORE: [&str; 3] = ["42P07", "42710", "42704"];

/// The same of a statement that drops something: table, column, function gone.
const GONE_BEFORE: [&str; 3] = ["42P01", "42703", "42883"];

/// One file to be run.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    migration: &'a Migration,
    script: Script<'a>,
    /// Down to this version is taken back; `None`: the migration is applied.
    back_to: Option<i64>,
}

impl<'a> Run<'a> {
    pub(super) fn up(migration: &'a Migration) -> Self {
        Run { migration, script: migration.into(), back_to: None }
    }

    pub(super) fn back(migration: &'a Migration, down: &'a Down, to: i64) -> Self {
        Run { migration, script: down.into(), back_to: Some(to) }
    }

    /// The history's column that counts its statements.
    fn counter(&self) -> &'static str {
        if self.back_to.is_some() { "statements_undone" } else { "statements_done" }
    }

    /// How many statements `row` counts; `None`: the run was not begun.
    fn counted(&self, row: &AppliedRow) -> Option<usize> {
        if self.back_to.is_some() { row.statements_undone } else { Some(row.statements_done) }
    }
}

/// Where a run begins.
struct Begin {
    /// Statements that are done.
    done: usize,
    /// The first statement may be done too: its runner vanished before it could count or say that it failed, or what it left half made was dropped.
    maybe_one_more: bool,
}

impl Executor<'_> {
    /// Runs a file on a connection of its own, which the caller closes whatever comes back: that gives the lock and every setting back.
    /// `None`: another has done it meanwhile, or something is to be done before it.
    pub(super) async fn by_statement(&self, client: &Client, run: Run<'_>) -> Result<Option<Ran>> {
        let migration = run.migration;
        Self::must_be_own(client, run).await?;
        let settings = client.batch_execute(&self.timeouts("set")).await;
        settings.doing(|| "set the timeouts of a migration".to_owned()).map_err(of_ours)?;
        self.lock_session(client).await?;
        let rows = self.history.look(client).await?;
        let table_is_there = rows.is_some();
        let rows = rows.unwrap_or_default();
        let first = match run.back_to {
            None => self.pending(&rows)?.first().copied(),
            Some(to) => self.next_back(&rows, to)?.map(|(first, _)| first),
        };
        if first.is_none_or(|first| first.version != migration.version) {
            return Ok(None);
        }
        let started = Instant::now();
        let found = rows.into_iter().find(|row| row.entry.version == migration.version);
        let begin = self.begin(client, run, found, table_is_there).await?;
        let result = self.run_from(client, run, &begin, started).await;
        if result.is_err() {
            // Tells the next run that the statement failed by itself. Without this it is taken for cut off, so the cause is told in any case.
            let _ = client.batch_execute(&self.count(run, None, started)).await;
        }
        result.map(|()| Some(Ran::of(migration, started)))
    }

    /// Behind a pooler settings, role and lock would stay with a connection that others use.
    async fn must_be_own(client: &Client, run: Run<'_>) -> Result<()> {
        let answer = client.simple_query(IS_OWN).await.doing(|| "ask whose session it is".to_owned())?;
        if super::first_value(&answer, 0) == Some("on") {
            return Ok(());
        }
        let why = format!(
            "{}: a migration without a transaction needs a session of its own, and a pooler shares its connections out",
            run.script.file
        );
        Err(Error::new(Kind::Refused, why).hint("main.url must reach the server directly"))
    }

    async fn lock_session(&self, client: &Client) -> Result<()> {
        let ask = format!("select pg_catalog.pg_try_advisory_lock({})", self.history.lock());
        let started = Instant::now();
        loop {
            let answer = client.simple_query(&ask).await.doing(|| "ask for the lock of a migration".to_owned())?;
            if super::first_value(&answer, 0) == Some("t") {
                return Ok(());
            }
            self.pause(started).await?;
        }
    }

    /// Writes down that the migration is begun, or finds out how far it came.
    async fn begin(
        &self,
        client: &Client,
        run: Run<'_>,
        found: Option<AppliedRow>,
        table_is_there: bool,
    ) -> Result<Begin> {
        let (migration, counted) = (run.migration, found.as_ref().and_then(|row| run.counted(row)));
        // Before the role changes: what other backends build can be seen by the role that started them only.
        let left = if counted.is_some() { self.invalid_indexes(client, run.script.sql).await? } else { Vec::new() };
        let mut sql = self.enter("set");
        if !table_is_there {
            sql.push_str(&self.history.create(&self.protect_from));
        }
        let (name, by, version) = (self.history.name(), quote::literal(&self.applied_by), migration.version);
        let write = if found.is_some() {
            let (column, done) = (run.counter(), counted.unwrap_or(0));
            format!(
                "update {name} set {column} = {done}, duration_ms = null, applied_by = {by} where version = {version}"
            )
        } else {
            format!(
                "insert into {name} (version, name, checksum, started_at, statements_done, applied_by)
                 values ({version}, {}, {}, pg_catalog.clock_timestamp(), 0, {by})",
                quote::literal(&migration.name),
                quote::literal(&migration.checksum)
            )
        };
        sql.push_str(&write);
        client.batch_execute(&sql).await.doing(|| format!("write {} into {name}", run.script.file)).map_err(of_ours)?;
        for index in &left {
            let drop = format!("drop index concurrently if exists {index}");
            client.batch_execute(&drop).await.doing(|| format!("drop the invalid index {index}")).map_err(of_ours)?;
        }
        Ok(match (found, counted) {
            (Some(row), Some(done)) => Begin { done, maybe_one_more: row.duration_ms.is_none() || !left.is_empty() },
            _ => Begin { done: 0, maybe_one_more: false },
        })
    }

    /// Indexes that an earlier run left half built: invalid, named in the file, in a schema of the migration's, and nobody is building them.
    async fn invalid_indexes(&self, client: &Client, sql: &str) -> Result<Vec<String>> {
        // Only plain indexes: that of a partitioned table is rightly invalid until all its parts are attached.
        let select = "select n.nspname::text, c.relname::text
             from pg_catalog.pg_index i
             join pg_catalog.pg_class c on c.oid = i.indexrelid
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace
             where not i.indisvalid and c.relkind = 'i'
               and not exists (select from pg_catalog.pg_stat_progress_create_index p
                               where p.datname = pg_catalog.current_database() and p.index_relid = c.oid)";
        let rows = client.query(select, &[]).await.doing(|| "look for invalid indexes".to_owned()).map_err(of_ours)?;
        let names: HashSet<_> = names(sql).collect();
        let found = rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)));
        Ok(found
            .filter(|(schema, index)| {
                names.contains(index) && (schema == self.history.schema() || names.contains(schema))
            })
            .map(|(schema, index)| format!("{}.{}", quote::identifier(&schema), quote::identifier(&index)))
            .collect())
    }

    async fn run_from(&self, client: &Client, run: Run<'_>, begin: &Begin, started: Instant) -> Result<()> {
        let statements = split(run.script.sql);
        for (index, statement) in statements.iter().enumerate() {
            // What a SET did ended with the session that was cut off.
            let is_setting = statement.words().next().is_some_and(|word| word == "set");
            if index < begin.done && !is_setting {
                continue;
            }
            let may_be_done = index == begin.done && begin.maybe_one_more;
            Self::run_one(client, run, *statement, may_be_done).await?;
            reach(if run.back_to.is_some() { Point::StatementUndone } else { Point::StatementDone }).await;
            if index >= begin.done && index + 1 < statements.len() {
                let count = self.count(run, Some(index + 1), started);
                client.batch_execute(&count).await.doing(|| count_of(run)).map_err(of_ours)?;
            }
        }
        let (history, version) = (self.history.name(), run.migration.version);
        let finish = if run.back_to.is_some() {
            format!("delete from {history} where version = {version}")
        } else {
            format!(
                "update {history} set applied_at = pg_catalog.clock_timestamp(), statements_done = {}, duration_ms = {} where version = {version}",
                statements.len(),
                started.elapsed().as_millis()
            )
        };
        let finish = self.in_our_time(&finish);
        client.batch_execute(&finish).await.doing(|| count_of(run)).map_err(of_ours)
    }

    async fn run_one(client: &Client, run: Run<'_>, statement: Statement<'_>, may_be_done: bool) -> Result<()> {
        let Err(error) = client.batch_execute(statement.text).await else { return Ok(()) };
        let done_before = |code: &str| {
            DONE_BEFORE.contains(&code) || GONE_BEFORE.contains(&code) && statement.words().any(|word| word == "drop")
        };
        if may_be_done && error.code().is_some_and(|code| done_before(code.code())) {
            return Ok(());
        }
        Err(of_sql(run.script, &error, statement, Some(statement.offset)))
    }

    /// Counts `done` statements; without a number, writes down that the run ended.
    fn count(&self, run: Run<'_>, done: Option<usize>, started: Instant) -> String {
        let what = match done {
            Some(done) => format!("{} = {done}", run.counter()),
            None => format!("duration_ms = {}", started.elapsed().as_millis()),
        };
        self.in_our_time(&format!(
            "update {} set {what} where version = {}",
            self.history.name(),
            run.migration.version
        ))
    }

    /// `statement` in a transaction of its own, which takes its own time and leaves what the file may have set for its statements.
    fn in_our_time(&self, statement: &str) -> String {
        // What comes in one message is one transaction, of which SET LOCAL is.
        self.timeouts("set local") + statement
    }
}

fn count_of(run: Run<'_>) -> String {
    format!("count the statements done of {}", run.script.file)
}
