//! Sessions on the main database, kept for the next who needs one.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use tokio_postgres::Client;

use super::{Doing, Server, Session};
use crate::error::{Error, Kind, Result};

/// A session used this long ago is taken to stand still; an older one is asked first. A daemon that polls pays for no question.
const RECENT: Duration = Duration::from_secs(10);

/// How long a session that comes back may take to answer before it is thrown away.
const ANSWER: Duration = Duration::from_secs(1);

/// A lock on the main database that is not had in this time is somebody else's for long. Waiting for it in the server would heap up
/// statements whose callers have gone.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Leaves no transaction open. BEGIN comes first since a lone ROLLBACK outside a transaction writes a warning into the server's
/// log; a transaction that had failed refuses the BEGIN, and the session is thrown away.
const CLEAN: &str = "begin; rollback";

/// A bounded number of sessions on the main database. Clones share them.
///
/// A session is handed out only if it was used a moment ago, or answers; one whose statement still runs then is thrown away. What outlives a transaction (SET, session locks, LISTEN) does not belong here: such a session comes from
/// [`Server::connect`].
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Maker>,
    patience: Duration,
}

/// A session on loan; use it as the driver's client. It goes back when dropped.
pub struct PooledSession(Object<Maker>);

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
        let patience = server.connection().connect_timeout;
        let maker = Maker { server, application_name: application_name.into() };
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
        Object::take(self.0)
    }

    /// Asks the server to stop the statement that runs; see [`Session::cancel`].
    ///
    /// # Errors
    /// As for [`Session::cancel`].
    pub async fn cancel(&self) -> Result<()> {
        self.0.cancel().await
    }
}

impl Deref for PooledSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}

impl fmt::Debug for PooledSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PooledSession").field(&*self.0).finish()
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
}

impl managed::Manager for Maker {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session> {
        let session = self.server.connect(None, &self.application_name).await?;
        let limit = format!("set lock_timeout = '{}ms'", LOCK_TIMEOUT.as_millis());
        match tokio::time::timeout(ANSWER * 5, session.batch_execute(&limit)).await {
            Ok(limited) => limited.doing(|| "prepare a pooled session".to_owned())?,
            Err(_) => return Err(Error::new(Kind::Unreachable, "no answer").context("prepare a pooled session")),
        }
        Ok(session)
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<Error> {
        if session.is_closed() {
            return Err(RecycleError::message("the connection has ended"));
        }
        // The driver rolls a transaction back by itself when it is dropped, so that a recent session is clean without asking.
        if metrics.last_used() < RECENT {
            return Ok(());
        }
        session.batch_execute(CLEAN).await.doing(|| "clean a pooled session".to_owned())?;
        Ok(())
    }
}
