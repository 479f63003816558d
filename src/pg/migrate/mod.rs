//! Runs migrations, for the registry and for tenants alike. What to run is decided by `migrations::compare`; this is where it happens.

mod account;
mod among;
mod back;
mod baseline;
mod failure;
mod found;
mod history;
pub mod measure;
mod statements;

use std::borrow::Borrow;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::pg::quote;
use futures_util::StreamExt;
use futures_util::future::join;
use tokio_postgres::{Client, SimpleQueryMessage};

pub use self::account::Account;
pub use self::among::Among;
use self::failure::{Script, of_ours, of_sql};
pub use self::history::{AppliedRow, History};
use self::statements::Run;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::migrations::compare::{Recorded, compare};
use crate::migrations::split::{Statement, split};
use crate::migrations::{Migration, MigrationSet, Mode};
use crate::pg::Doing;

/// How long a migration waits for a lock, ours or a table's, before it gives way and is tried again later.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one statement of a migration may take: longer than any honest one, so that a stuck one ends.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_hours(1);

/// Time between two tries for the lock.
const PAUSE: Duration = Duration::from_millis(25);

/// Gives back what a file may have set for the session. Not DISCARD ALL: that forgets the statements the driver keeps prepared, too.
const RESET: &str = "reset session authorization; reset role; reset all; unlisten *; discard temp;";

/// Brings one schema to a migration set.
///
/// # Flow
/// One transaction for each migration holds the lock of the schema, another look at what is applied, the file and its history row. A file
/// without a transaction runs statement by statement on a connection of its own, closed on every exit.
///
/// # Guarantees
/// Of several executors on one schema one applies a migration, and none waits for another's lock in the server, so that none can deadlock
/// with CREATE INDEX CONCURRENTLY. A migration that fails leaves nothing, unless it is one without a transaction: that one goes on at the
/// next call where it stood. A second call does nothing but read the history.
///
/// # Caveats
/// When the future is dropped before its end, the client may be inside a transaction: close it.
#[derive(Debug, Clone)]
pub struct Executor<'a> {
    /// What the schema shall have.
    pub set: &'a MigrationSet,
    /// Where its history is; the schema must exist.
    pub history: History,
    /// The role that runs the migrations and owns what they make, the history too; `None`: the role that connected.
    pub owner: Option<&'a str>,
    /// Where the schema is one of many in its database; `None`: whatever a file names is the tenant's own.
    pub among: Option<Among>,
    /// Roles that default privileges may have given more of the history than reading.
    pub protect_from: Vec<String>,
    /// See [`LOCK_TIMEOUT`].
    pub lock_timeout: Duration,
    /// See [`STATEMENT_TIMEOUT`].
    pub statement_timeout: Duration,
    /// Who does it, for the history.
    pub applied_by: String,
    /// Whether a version below the newest applied is applied.
    pub out_of_order: bool,
    /// The schema was made a moment ago and holds no history: it is not looked for, which would leave an ERROR in the server's log.
    pub fresh: bool,
}

/// A transaction that was begun.
struct Begun {
    /// What is applied.
    rows: Vec<AppliedRow>,
    /// How many extensions the database has, where it is shared.
    extensions: String,
}

/// What a call of [`Executor::apply`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The version that the schema has now.
    pub version: i64,
    /// What this call ran, in order.
    pub ran: Vec<Ran>,
}

/// A migration that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its version.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// How long it took.
    pub duration: Duration,
}

impl Ran {
    fn of(migration: &Migration, started: Instant) -> Self {
        Ran { version: migration.version, name: migration.name.clone(), duration: started.elapsed() }
    }
}

impl Executor<'_> {
    /// Applies what is missing. `connect_again` makes one more connection to the same database, as the same role; it is called once for each
    /// file without a transaction.
    ///
    /// Afterwards, also after an error, the client stands outside a transaction with the settings that it was connected with.
    ///
    /// # Errors
    /// [`Kind::Drift`] and [`Kind::Newer`] before anything is touched; [`Kind::Migration`] for SQL that fails, with file, line and column;
    /// [`Kind::MigrationLocked`] when another migrates the schema, or a table is locked, for longer than `lock_timeout`; else by SQLSTATE.
    pub async fn apply<C, Connecting>(
        &self,
        client: &mut Client,
        // Not AsyncFn: that cannot say that its future may go to another thread, so that no task could apply anything.
        connect_again: impl Fn() -> Connecting,
    ) -> Result<Applied>
    where
        C: Borrow<Client>,
        Connecting: Future<Output = Result<C>>,
    {
        let rows = if self.fresh { None } else { self.history.look(client).await? };
        self.go_on(client, rows, connect_again).await
    }

    /// The same where the history was read a moment ago: `rows`, or `None` for no table. It is not read again but under the lock, where it
    /// counts.
    ///
    /// # Errors
    /// As for [`Executor::apply`].
    pub async fn go_on<C, Connecting>(
        &self,
        client: &mut Client,
        mut rows: Option<Vec<AppliedRow>>,
        connect_again: impl Fn() -> Connecting,
    ) -> Result<Applied>
    where
        C: Borrow<Client>,
        Connecting: Future<Output = Result<C>>,
    {
        let mut ran = Vec::new();
        let mut pending = self.pending(rows.as_deref().unwrap_or_default())?;
        while let Some(next) = pending.first() {
            let done = match next.mode {
                Mode::Transaction => self.in_transaction(client, next, rows.is_some()).await?,
                Mode::Statements => {
                    let own = connect_again().await?;
                    self.by_statement(own.borrow(), Run::up(next)).await?
                }
            };
            if let Some(done) = done {
                ran.push(done);
                pending.remove(0);
                rows.get_or_insert_default();
            } else {
                rows = self.history.look(client).await?;
                pending = self.pending(rows.as_deref().unwrap_or_default())?;
            }
        }
        Ok(Applied { version: self.set.newest_version(), ran })
    }

    fn pending(&self, rows: &[AppliedRow]) -> Result<Vec<&Migration>> {
        let recorded: Vec<Recorded> = rows.iter().map(AppliedRow::recorded).collect();
        compare(self.set, &recorded, self.out_of_order).pending()
    }

    /// `None`: what is to be applied first has changed meanwhile.
    async fn in_transaction(&self, client: &Client, next: &Migration, table_is_there: bool) -> Result<Option<Ran>> {
        let started = Instant::now();
        let done = whole(client, self.transaction(client, next, table_is_there).await).await?;
        Ok(done.then(|| Ran::of(next, started)))
    }

    async fn transaction(&self, client: &Client, next: &Migration, table_is_there: bool) -> Result<bool> {
        let Begun { mut rows, extensions } = self.begin_with_lock(client, "", table_is_there).await?;
        if !table_is_there {
            let create = self.history.create(&self.protect_from) + &self.history.select();
            let answer = client.simple_query(&create).await;
            let answer = answer.doing(|| format!("make the history {}", self.history.name())).map_err(of_ours)?;
            rows = history::rows(&answer)?;
        }
        if self.pending(&rows)?.first().is_none_or(|first| first.version != next.version) {
            return Ok(false);
        }
        reach(Point::MigrationBegun).await;
        self.send_and_commit(client, next.into(), &self.finish(next, &extensions)).await.map(|()| true)
    }

    /// Sends `script`, and `finish`, which writes the history and commits.
    async fn send_and_commit(&self, client: &Client, script: Script<'_>, finish: &str) -> Result<()> {
        // Both are on their way at once, the file first: if it fails, the second finds the transaction aborted and does nothing.
        let (file, finish) = join(send(client, script.sql), client.batch_execute(finish)).await;
        if let Err((error, done)) = file {
            let failed = split(script.sql).get(done).map(|statement| statement.offset);
            return Err(of_sql(script, &error, Statement { offset: 0, text: script.sql }, failed));
        }
        finish.map_err(|error| Self::at_the_end(script, &error))
    }

    /// Begins a transaction that holds the lock, runs `first` in it, and tells what is applied. Never waits in the server.
    async fn begin_with_lock(&self, client: &Client, first: &str, table_is_there: bool) -> Result<Begun> {
        let (count, remember) = match &self.among {
            Some(_) => {
                (", (select pg_catalog.count(*) from pg_catalog.pg_extension)", Among::remember(self.history.schema()))
            }
            None => ("", String::new()),
        };
        let mut begin = format!(
            "begin isolation level read committed;
             {}
             select pg_catalog.pg_try_advisory_xact_lock({}){count};
             {first} {remember} {}",
            self.timeouts("set local"),
            self.history.lock(),
            self.enter("set local")
        );
        if table_is_there {
            begin.push_str(&self.history.select());
        }
        begin.push_str("savepoint tenantd_migration;");
        let started = Instant::now();
        loop {
            let answer = client.simple_query(&begin).await;
            let answer = answer.doing(|| "begin a migration".to_owned()).map_err(of_ours)?;
            if first_value(&answer, 0) == Some("t") {
                let extensions =
                    self.among.as_ref().and_then(|_| first_value(&answer, 1)).unwrap_or_default().to_owned();
                return Ok(Begun { rows: history::rows(&answer)?, extensions });
            }
            client.batch_execute("rollback").await.doing(|| "end a try for a lock".to_owned())?;
            self.pause(started).await?;
        }
    }

    /// Waits before the next try for the lock, unless the time is up.
    async fn pause(&self, started: Instant) -> Result<()> {
        if started.elapsed() >= self.lock_timeout {
            let (schema, timeout) = (self.history.schema(), self.lock_timeout);
            let message = format!("another migrates the schema \"{schema}\": its lock was not had within {timeout:?}");
            return Err(Error::new(Kind::MigrationLocked, message));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Takes the owner's role, or whatever role connected, and finds the way to the tenant's schema; `how`: `set`, or `set local`.
    fn enter(&self, how: &str) -> String {
        let role = self.owner.map_or_else(|| "none".to_owned(), quote::identifier);
        match &self.among {
            Some(among) => {
                format!("{how} role {role}; {how} search_path = {};", among.search_path(self.history.schema()))
            }
            None => format!("{how} role {role};"),
        }
    }

    /// How long the statements that follow may take and wait; `how`: `set`, or `set local`.
    fn timeouts(&self, how: &str) -> String {
        let (lock, statement) = (milliseconds(self.lock_timeout), milliseconds(self.statement_timeout));
        let name = self.among.as_ref().map(Among::name_session).unwrap_or_default();
        format!("{how} lock_timeout = {lock}; {how} statement_timeout = {statement}; {name}")
    }

    /// What comes right after a file: it fails unless this is still the transaction that we began, and what follows takes its own time and not
    /// what the file may have set, up to [`RESET`], and also where that comes after the commit.
    ///
    /// A savepoint tells it, since it is the cheapest thing that ends with its transaction and that a file's own RESET leaves alone.
    fn after_file(&self) -> String {
        format!("release savepoint tenantd_migration; {}", self.timeouts("set"))
    }

    /// What is looked at before a commit.
    fn guard(&self, extensions: &str) -> String {
        self.among.as_ref().map_or_else(String::new, |_| Among::guard(self.history.schema(), extensions))
    }

    /// Writes the history row and commits, if this is still the transaction that we began.
    ///
    /// How long it took is not written: from `started_at` to `applied_at`. To compute it here would cost more than the rest of the row.
    fn finish(&self, migration: &Migration, extensions: &str) -> String {
        format!(
            "{} {} {} {} commit; {RESET}",
            self.after_file(),
            self.guard(extensions),
            self.enter("set local"),
            self.write_down(migration)
        )
    }

    /// The statement that writes down `migration` as applied whole, begun when the transaction began.
    fn write_down(&self, migration: &Migration) -> String {
        format!(
            "insert into {history} (version, name, checksum, started_at, applied_at, statements_done, applied_by)
             values ({version}, {name}, {checksum}, pg_catalog.now(), pg_catalog.clock_timestamp(), {statements}, {by});",
            history = self.history.name(),
            version = migration.version,
            name = quote::literal(&migration.name),
            checksum = quote::literal(&migration.checksum),
            statements = split(&migration.sql).len(),
            by = quote::literal(&self.applied_by),
        )
    }

    /// Why the history row could not be committed.
    fn at_the_end(script: Script<'_>, error: &tokio_postgres::Error) -> Error {
        let Script { file, sql } = script;
        if error.code().is_some_and(|code| code.code() == among::REFUSED) {
            let why = error.as_db_error().map_or("", tokio_postgres::error::DbError::message);
            return Error::new(Kind::Migration, format!("{file} is rolled back: {why}")).hint(
                "tenants' migrations name no schema and change what is the tenant's alone; what all share belongs in `tenantd migrate main` and tenant.extensions",
            );
        }
        // No such savepoint, or no transaction at all.
        if error.code().is_some_and(|code| ["3B001", "25P01"].contains(&code.code())) {
            let message =
                format!("{file} brings its own COMMIT or ROLLBACK: it is not recorded, what it committed itself stays");
            return Error::new(Kind::Migration, message)
                .hint(format!("take BEGIN and COMMIT out of {file}: tenantd runs it in a transaction"));
        }
        of_sql(script, error, Statement { offset: sql.len(), text: "" }, None)
    }
}

/// Leaves the transaction unless it was committed, and gives every setting back.
async fn whole(client: &Client, committed: Result<bool>) -> Result<bool> {
    if !matches!(committed, Ok(true)) {
        // On a broken connection this fails too, and the server rolls back by itself.
        let _ = client.batch_execute(&format!("rollback; {RESET}")).await;
    }
    committed
}

/// Sends `sql` as one message; with an error comes how many statements were done before it.
async fn send(client: &Client, sql: &str) -> Result<(), (tokio_postgres::Error, usize)> {
    let mut done = 0;
    let mut answers = pin!(client.simple_query_raw(sql).await.map_err(|error| (error, 0))?);
    while let Some(answer) = answers.next().await {
        if let SimpleQueryMessage::CommandComplete(_) = answer.map_err(|error| (error, done))? {
            done += 1;
        }
    }
    Ok(())
}

/// A column of the first row among the answers to one message.
fn first_value(answers: &[SimpleQueryMessage], column: usize) -> Option<&str> {
    answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row.get(column)),
        _ => None,
    })?
}

/// A duration as the server takes it: 0 would mean none, and it holds 31 bits.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
