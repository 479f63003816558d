//! How the trigger wakes a sleeping daemon, seen from the daemon's side: the channel, the lock that arms the bell, the ping.
//!
//! Three connections that stand or fall together: one only listens and is always drained, one holds or waits for the lock (a blocked
//! backend delivers no notifications), one sends the pings, so that a stuck NOTIFY cannot keep the bell armed.
//! The policy, when to arm and when to poll, is `intake`'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::field;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, Notifications, Server, Session};
use crate::tasks::Tasks;

/// Fixed among daemons of all versions.
pub const CHANNEL: &str = "tenantd_doorbell";

/// A waiting statement pins the oldest snapshot of the whole database, so the wait for the lock is cut into slices.
const SLICE: Duration = Duration::from_secs(5);

/// After this time without its own ping the bell is not trusted.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The doorbell's connections, listening.
pub struct Doorbell {
    listening: Session,
    lock: Session,
    ping: Session,
    /// Rung once for any number of rings since the last look.
    rings: Arc<Notify>,
    /// The payload of the last ping that came back; written by the draining task, read by `ping`.
    heard: watch::Receiver<String>,
}

/// How a wait for the bell's lock ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The bell is armed: every signup from now on rings.
    Armed,
    /// Somebody else still has the lock; the request must be queued again.
    StillTaken,
}

impl Doorbell {
    /// Connects and listens. `rings` is notified whenever a signup rang.
    ///
    /// What rang before is lost: look at the registry afterwards.
    ///
    /// # Errors
    /// The main database cannot be reached, or does not let us LISTEN.
    pub async fn open(server: &Server, application_name: &str, rings: Arc<Notify>, tasks: &Tasks) -> Result<Doorbell> {
        let (listening, notifications) = server.connect_listening(application_name).await?;
        listening.batch_execute(&format!("listen {CHANNEL}")).await.doing(|| format!("listen on channel {CHANNEL}"))?;
        let lock = server.connect(None, application_name).await?;
        let ping = server.connect(None, application_name).await?;
        lock.batch_execute(&format!("set lock_timeout = '{}ms'", SLICE.as_millis()))
            .await
            .doing(|| "prepare the doorbell's lock".to_owned())?;
        let (heard_sender, heard) = watch::channel(String::new());
        tasks.spawn("doorbell", drain(notifications, Arc::clone(&rings), heard_sender));
        Ok(Doorbell { listening, lock, ping, rings, heard })
    }

    /// Tries to arm the bell without waiting. Look at the registry once more after success, before sleeping.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn try_arm(&self) -> Result<bool> {
        let row = self
            .lock
            .query_typed_one("select pg_try_advisory_lock(20250, 1) as armed", &[])
            .await
            .doing(|| "try for the doorbell's lock".to_owned())?;
        field(&row, "armed")
    }

    /// Waits one slice for the lock. While the request is queued, every new signup rings already.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn wait_to_arm(&self) -> Result<Waited> {
        match self
            .lock
            .batch_execute("select pg_advisory_lock(20250, 1)")
            .await
            .doing(|| "wait for the doorbell's lock".to_owned())
        {
            Ok(()) => Ok(Waited::Armed),
            Err(error) if error.kind() == Kind::Locked => Ok(Waited::StillTaken),
            Err(error) => Err(error),
        }
    }

    /// Lets signups run without ringing.
    ///
    /// # Errors
    /// The connection broke, and the lock with it.
    pub async fn disarm(&self) -> Result<()> {
        self.lock
            .batch_execute("select pg_advisory_unlock(20250, 1)")
            .await
            .doing(|| "give the doorbell's lock back".to_owned())
    }

    /// Sends a ping through the channel and returns when it has come back.
    ///
    /// # Errors
    /// It did not come back in time: NOTIFY is stuck, or something between us and the server swallows LISTEN. The ping is cancelled on
    /// the server, since a stuck one would hold up every commit that notifies.
    pub async fn ping(&self) -> Result<()> {
        let nonce = Uuid::new_v4().simple().to_string();
        let mut heard = self.heard.clone();
        let round = async {
            self.ping
                .execute_typed("select pg_notify($1, $2)", &[(&CHANNEL, Type::TEXT), (&nonce, Type::TEXT)])
                .await
                .doing(|| "ping through the doorbell's channel".to_owned())?;
            heard
                .wait_for(|last| *last == nonce)
                .await
                .map(drop)
                .map_err(|_| Error::new(Kind::Unreachable, "the listening connection ended"))
        };
        match tokio::time::timeout(PING_TIMEOUT, round).await {
            Ok(result) => result,
            Err(_) => {
                if let Err(error) = self.ping.cancel().await {
                    tracing::debug!(error = error.chain(), "the ping was not cancelled and ends with its connection");
                }
                Err(Error::new(Kind::Unreachable, format!("the doorbell's own ping did not come back within {PING_TIMEOUT:?}")).hint(
                    "NOTIFY is stuck (a synchronous standby that is gone?) or a pooler swallows LISTEN (main.url must reach the server directly)",
                ))
            }
        }
    }

    /// Waits for the next ring. Rings since the last call count as one.
    pub async fn rung(&self) {
        self.rings.notified().await;
    }

    /// Ends a wait for the lock at once: the server would hold a dead client's place in the queue until the slice is over.
    pub async fn abandon(&self) {
        if let Err(error) = self.lock.cancel().await {
            tracing::debug!(error = error.chain(), "the wait for the doorbell's lock ends by itself");
        }
    }

    /// Whether all three connections still stand.
    #[must_use]
    pub fn stands(&self) -> bool {
        !(self.listening.is_closed() || self.lock.is_closed() || self.ping.is_closed())
    }
}

/// Empties the listening connection, always: a listener that does not read fills the queue of the whole server.
///
/// A ring has no payload; a payload is our own ping or nothing at all, so that nobody can cause anything by what they send.
async fn drain(mut notifications: Notifications, rings: Arc<Notify>, heard: watch::Sender<String>) {
    while let Some((channel, payload)) = notifications.recv().await {
        if channel != CHANNEL {
            continue;
        }
        if payload.is_empty() {
            rings.notify_one();
        } else {
            heard.send_replace(payload);
        }
    }
}
