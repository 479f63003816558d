//! Migrations without a transaction: statement by statement, each counted when done, so that a run that was cut off goes on where it stood.

use std::collections::HashSet;
use std::time::Instant;

use crate::pg::quote;
use tokio_postgres::Client;

use super::failure::{of_ours, of_sql};
use super::history::AppliedRow;
use super::{Executor, Ran, milliseconds};
use crate::error::Result;
use crate::migrations::Migration;
use crate::migrations::split::{Statement, names, split};
use crate::pg::Doing;

/// A statement that was done before its count was lost answers with one of these: table, object, and the other way round, gone.
const DONE_BEFORE: [&str; 3] = ["42P07", "42710", "42704"];

/// Where a run begins.
struct Begin {
    /// Statements that are done.
    done: usize,
    /// The first statement may be done too: its runner vanished before it could count or say that it failed, or what it left half made was dropped.
    maybe_one_more: bool,
}

impl Executor<'_> {
    /// Runs `migration` on a connection of its own, which the caller closes whatever comes back: that gives the lock and every setting back.
    /// `None`: another has applied it meanwhile, or something before it is missing.
    pub(super) async fn by_statement(&self, client: &Client, migration: &Migration) -> Result<Option<Ran>> {
        let settings = format!(
            "set lock_timeout = {}; set statement_timeout = {};",
            milliseconds(self.lock_timeout),
            milliseconds(self.statement_timeout)
        );
        client
            .batch_execute(&settings)
            .await
            .doing(|| "set the timeouts of a migration".to_owned())
            .map_err(of_ours)?;
        self.lock_session(client).await?;
        let rows = self.history.look(client).await?;
        let table_is_there = rows.is_some();
        let rows = rows.unwrap_or_default();
        if self.pending(&rows)?.first().is_none_or(|first| first.version != migration.version) {
            return Ok(None);
        }
        let started = Instant::now();
        let found = rows.into_iter().find(|row| row.entry.version == migration.version);
        let begin = self.begin(client, migration, found, table_is_there).await?;
        let result = self.run_from(client, migration, &begin, started).await;
        if result.is_err() {
            // Tells the next run that the statement failed by itself. Without this it is taken for cut off, so the cause is told in any case.
            let _ = client.batch_execute(&self.count(migration, None, started)).await;
        }
        result.map(|()| Some(Ran::of(migration, started)))
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
        migration: &Migration,
        found: Option<AppliedRow>,
        table_is_there: bool,
    ) -> Result<Begin> {
        // Before the role changes: what other backends build can be seen by the role that started them only.
        let left = if found.is_some() { self.invalid_indexes(client, migration).await? } else { Vec::new() };
        let mut sql = self.role("set role");
        if !table_is_there {
            sql.push_str(&self.history.create(&self.protect_from));
        }
        let (name, by, version) = (self.history.name(), quote::literal(&self.applied_by), migration.version);
        let write = if found.is_some() {
            format!("update {name} set duration_ms = null, applied_by = {by} where version = {version}")
        } else {
            format!(
                "insert into {name} (version, name, checksum, started_at, statements_done, applied_by)
                 values ({version}, {}, {}, pg_catalog.clock_timestamp(), 0, {by})",
                quote::literal(&migration.name),
                quote::literal(&migration.checksum)
            )
        };
        sql.push_str(&write);
        client.batch_execute(&sql).await.doing(|| format!("write {} into {name}", migration.file)).map_err(of_ours)?;
        for index in &left {
            let drop = format!("drop index concurrently if exists {index}");
            client.batch_execute(&drop).await.doing(|| format!("drop the invalid index {index}")).map_err(of_ours)?;
        }
        Ok(match found {
            Some(row) => {
                Begin { done: row.statements_done, maybe_one_more: row.duration_ms.is_none() || !left.is_empty() }
            }
            None => Begin { done: 0, maybe_one_more: false },
        })
    }

    /// Indexes that an earlier run left half built: invalid, named in the file, in a schema of the migration's, and nobody is building them.
    async fn invalid_indexes(&self, client: &Client, migration: &Migration) -> Result<Vec<String>> {
        // Only plain indexes: that of a partitioned table is rightly invalid until all its parts are attached.
        let select = "select n.nspname::text, c.relname::text
             from pg_catalog.pg_index i
             join pg_catalog.pg_class c on c.oid = i.indexrelid
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace
             where not i.indisvalid and c.relkind = 'i'
               and not exists (select from pg_catalog.pg_stat_progress_create_index p
                               where p.datname = pg_catalog.current_database() and p.index_relid = c.oid)";
        let rows = client.query(select, &[]).await.doing(|| "look for invalid indexes".to_owned()).map_err(of_ours)?;
        let names: HashSet<_> = names(&migration.sql).collect();
        let found = rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)));
        Ok(found
            .filter(|(schema, index)| {
                names.contains(index) && (schema == self.history.schema() || names.contains(schema))
            })
            .map(|(schema, index)| format!("{}.{}", quote::identifier(&schema), quote::identifier(&index)))
            .collect())
    }

    async fn run_from(&self, client: &Client, migration: &Migration, begin: &Begin, started: Instant) -> Result<()> {
        let statements = split(&migration.sql);
        for (index, statement) in statements.iter().enumerate() {
            // What a SET did ended with the session that was cut off.
            let is_setting = statement.words().next().is_some_and(|word| word == "set");
            if index < begin.done && !is_setting {
                continue;
            }
            let may_be_done = index == begin.done && begin.maybe_one_more;
            self.run_one(client, migration, *statement, may_be_done).await?;
            if index >= begin.done && index + 1 < statements.len() {
                let count = self.count(migration, Some(index + 1), started);
                client.batch_execute(&count).await.doing(|| count_of(migration)).map_err(of_ours)?;
            }
        }
        let finish = format!(
            "update {} set applied_at = pg_catalog.clock_timestamp(), statements_done = {}, duration_ms = {} where version = {}",
            self.history.name(),
            statements.len(),
            started.elapsed().as_millis(),
            migration.version
        );
        client.batch_execute(&finish).await.doing(|| count_of(migration)).map_err(of_ours)
    }

    async fn run_one(
        &self,
        client: &Client,
        migration: &Migration,
        statement: Statement<'_>,
        may_be_done: bool,
    ) -> Result<()> {
        match client.batch_execute(statement.text).await {
            Err(error) if may_be_done && error.code().is_some_and(|code| DONE_BEFORE.contains(&code.code())) => Ok(()),
            Err(error) => Err(of_sql(migration, &error, statement, Some(statement.offset))),
            Ok(()) => Ok(()),
        }
    }

    /// Counts `done` statements; without a number, writes down that the run ended.
    fn count(&self, migration: &Migration, done: Option<usize>, started: Instant) -> String {
        let what = match done {
            Some(done) => format!("statements_done = {done}"),
            None => format!("duration_ms = {}", started.elapsed().as_millis()),
        };
        format!("update {} set {what} where version = {}", self.history.name(), migration.version)
    }
}

fn count_of(migration: &Migration) -> String {
    format!("count the statements done of {}", migration.file)
}
