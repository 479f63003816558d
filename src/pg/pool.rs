//! Sessions kept for the next who needs one, on the main database as a rule.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::{Doing, Server, Session};
use crate::error::{Error, Kind, Result};

/// A session that was left in order is taken to stand still for so long; an older one is asked first. A daemon that polls pays for no
/// question.
const RECENT: Duration = Duration::from_secs(10);

/// How long a session that comes back may take to answer before it is thrown away.
const ANSWER: Duration = Duration::from_secs(1);

/// A lock on the main database that is not had in this time is somebody else's for long. Waiting for it in the server would heap up
/// statements whose callers have gone.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Leaves no transaction open. BEGIN comes first since a lone ROLLBACK outside a transaction writes a warning into the server's
/// log; a transaction that had failed refuses the BEGIN, and the session is thrown away. Then: whether the server still takes writes.
const CLEAN: &str = "begin; rollback; show transaction_read_only";

/// Whether the server still takes writes.
const READ_ONLY: &str = "show transaction_read_only";

/// A bounded number of sessions on the main database. Clones share them.
///
/// A session is handed out only if it was left in order a moment ago, or answers and has no transaction open; one whose statement still runs
/// is thrown away, and so is one whose server takes no writes any more: another host may. What outlives a transaction (SET, session locks,
/// LISTEN) does not belong here: such a session comes from [`Server::connect`].
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Maker>,
    patience: Duration,
}

/// A session on loan; use it as the driver's client. It goes back when dropped.
///
/// Its own methods send one statement and leave the session in order when they come to their end. Used as the driver's client in any other
/// way it may be left in a transaction, or with a statement running: then it is asked before the next gets it.
pub struct PooledSession(Object<Maker>);

/// A session of the pool, and whether it was left in order.
struct Kept {
    session: Session,
    in_order: AtomicBool,
}

/// A value for a statement, with its type.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// What the driver answers.
type Answer<T> = std::result::Result<T, tokio_postgres::Error>;

/// How a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// The most sessions it may have.
    pub limit: usize,
    /// Sessions that it has.
    pub size: usize,
    /// Those on loan.
    pub in_use: usize,
}

impl Pool {
    /// A pool of at most `size` sessions, at least one. None is opened before it is needed.
    #[must_use]
    pub fn new(server: Server, size: usize, application_name: impl Into<String>) -> Pool {
        let maker = Maker { server, application_name: application_name.into(), database: None, wiped: false };
        Self::made(maker, size)
    }

    /// A pool as by [`Pool::new`] on another database of the server.
    #[must_use]
    pub fn elsewhere(
        server: Server,
        size: usize,
        application_name: impl Into<String>,
        database: impl Into<String>,
    ) -> Pool {
        let (application_name, database) = (application_name.into(), Some(database.into()));
        Self::made(Maker { server, application_name, database, wiped: false }, size)
    }

    /// A pool for the work in tenants that share the database `database`: nothing that one left in a session reaches the next.
    #[must_use]
    pub fn of_tenants(server: Server, size: usize, database: impl Into<String>) -> Pool {
        let application_name = "tenantd:tenants".to_owned();
        Self::made(Maker { server, application_name, database: Some(database.into()), wiped: true }, size)
    }

    fn made(maker: Maker, size: usize) -> Pool {
        let patience = maker.server.connection().connect_timeout;
        let sessions = managed::Pool::builder(maker)
            .max_size(size.max(1))
            // The last one used first: what is not needed stays idle at the far end.
            .queue_mode(QueueMode::Lifo)
            // Creating has the deadline of every connect.
            .timeouts(Timeouts { wait: Some(patience), create: None, recycle: Some(ANSWER) })
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with a runtime may have timeouts");
        Pool { sessions, patience }
    }

    /// A session, once one is free; waits no longer than a connect may take.
    ///
    /// # Errors
    /// [`Kind::TooManyConnections`]: all are in use. [`Kind::Unreachable`]: the pool is closed. Those of [`Server::connect`].
    pub async fn get(&self) -> Result<PooledSession> {
        match self.sessions.get().await {
            Ok(session) => Ok(PooledSession(session)),
            Err(PoolError::Backend(error)) => Err(error),
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                let limit = self.status().limit;
                Err(Error::new(
                    Kind::TooManyConnections,
                    format!("all {limit} sessions of the pool were in use for {:?}", self.patience),
                )
                .hint("a statement on the main database hangs, or work.parallel asks for more than the pool holds"))
            }
            Err(error) => Err(Error::new(Kind::Unreachable, error.to_string())),
        }
    }

    /// Closes the sessions that are not on loan, and those on loan as they come back. Nobody gets one from now on.
    pub fn close(&self) {
        self.sessions.close();
    }

    /// Closes the sessions that are not on loan; whoever asks next gets new ones.
    pub fn drop_idle(&self) {
        self.sessions.retain(|_, _| false);
    }

    /// How it stands at this moment.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let status = self.sessions.status();
        PoolStatus { limit: status.max_size, size: status.size, in_use: status.size.saturating_sub(status.available) }
    }
}

impl PooledSession {
    /// Takes the session out of the pool, which makes room for a new one: for a session in which something was left that
    /// outlives a transaction, or a statement that was given up.
    #[must_use = "dropping the session closes it; close() waits until it is"]
    pub fn discard(self) -> Session {
        Object::take(self.0).session
    }

    /// As [`Client::query_typed`].
    ///
    /// # Errors
    /// The driver's.
    pub async fn query_typed(&self, sql: &str, parameters: &[Parameter<'_>]) -> Answer<Vec<Row>> {
        self.one_statement(self.0.session.query_typed(sql, parameters)).await
    }

    /// As [`Client::query_typed_one`].
    ///
    /// # Errors
    /// The driver's.
    pub async fn query_typed_one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Answer<Row> {
        self.one_statement(self.0.session.query_typed_one(sql, parameters)).await
    }

    /// As [`Client::query_typed_opt`].
    ///
    /// # Errors
    /// The driver's.
    pub async fn query_typed_opt(&self, sql: &str, parameters: &[Parameter<'_>]) -> Answer<Option<Row>> {
        self.one_statement(self.0.session.query_typed_opt(sql, parameters)).await
    }

    /// As [`Client::execute_typed`].
    ///
    /// # Errors
    /// The driver's.
    pub async fn execute_typed(&self, sql: &str, parameters: &[Parameter<'_>]) -> Answer<u64> {
        self.one_statement(self.0.session.execute_typed(sql, parameters)).await
    }

    /// Runs `statement`, one of this session's own, with `limit` as its `statement_timeout`. All is sent at once.
    ///
    /// # Errors
    /// The driver's; 57014 when the limit was reached.
    pub async fn within<T>(&self, limit: Duration, statement: impl Future<Output = Answer<T>>) -> Answer<T> {
        let limit = format!("set statement_timeout = {}", limit.as_millis());
        let client: &Client = &self.0.session;
        let all = async {
            let (limited, answer, unlimited) = tokio::join!(
                client.batch_execute(&limit),
                statement,
                client.batch_execute("set statement_timeout to default"),
            );
            limited.and(unlimited).and(answer)
        };
        self.one_statement(all).await
    }

    /// Given up before its end, the statement may still run. Where the server took no write, the session is asked before the next gets it.
    async fn one_statement<T>(&self, statement: impl Future<Output = Answer<T>>) -> Answer<T> {
        let before = self.0.in_order.swap(false, Ordering::Relaxed);
        let answer = statement.await;
        let refused = |error: &tokio_postgres::Error| error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        let in_order = before && !answer.as_ref().is_err_and(refused);
        self.0.in_order.store(in_order, Ordering::Relaxed);
        answer
    }

    /// Says that a use of the session as the driver's client has left it in order: outside a transaction, no statement running, its settings as
    /// they were.
    pub fn left_in_order(&self) {
        self.0.in_order.store(true, Ordering::Relaxed);
    }

    /// Asks the server to stop the statement that runs; see [`Session::cancel`].
    ///
    /// # Errors
    /// As for [`Session::cancel`].
    pub async fn cancel(&self) -> Result<()> {
        self.0.session.cancel().await
    }
}

impl Deref for PooledSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.0.in_order.store(false, Ordering::Relaxed);
        &self.0.session
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut Client {
        self.0.in_order.store(false, Ordering::Relaxed);
        &mut self.0.session
    }
}

impl fmt::Debug for PooledSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PooledSession").field(&self.0.session).finish()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// Makes the pool's sessions, through the one way to connect.
struct Maker {
    server: Server,
    application_name: String,
    /// `None`: the main database.
    database: Option<String>,
    /// Whether whoever has a session may leave in it what he likes: the next finds nothing of that.
    wiped: bool,
}

impl managed::Manager for Maker {
    type Type = Kept;
    type Error = Error;

    async fn create(&self) -> Result<Kept> {
        let session = self.server.connect(self.database.as_deref(), &self.application_name).await?;
        if self.wiped {
            return Ok(Kept { session, in_order: AtomicBool::new(true) });
        }
        let limit = format!("set lock_timeout = '{}ms'", LOCK_TIMEOUT.as_millis());
        match tokio::time::timeout(ANSWER * 5, session.batch_execute(&limit)).await {
            Ok(limited) => limited.doing(|| "prepare a pooled session".to_owned())?,
            Err(_) => return Err(Error::new(Kind::Unreachable, "no answer").context("prepare a pooled session")),
        }
        Ok(Kept { session, in_order: AtomicBool::new(true) })
    }

    async fn recycle(&self, kept: &mut Kept, metrics: &Metrics) -> RecycleResult<Error> {
        if kept.session.is_closed() {
            return Err(RecycleError::message("the connection has ended"));
        }
        if !self.wiped && kept.in_order.load(Ordering::Relaxed) && metrics.last_used() < RECENT {
            return Ok(());
        }
        let said = if self.wiped {
            // Refuses in a transaction that was left open, and in one with any other statement.
            let (wiped, said) =
                tokio::join!(kept.session.batch_execute("discard all"), kept.session.simple_query(READ_ONLY));
            wiped.and(said)
        } else {
            kept.session.simple_query(CLEAN).await
        };
        let said = said.doing(|| "clean a pooled session".to_owned())?;
        let read_only =
            |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on"));
        if self.server.connection().writable && said.iter().any(read_only) {
            return Err(RecycleError::message("the server takes no writes any more"));
        }
        kept.in_order.store(true, Ordering::Relaxed);
        Ok(())
    }
}
