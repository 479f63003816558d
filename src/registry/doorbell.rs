//! How the trigger wakes a sleeping daemon, seen from the daemon's side: the channel, the lock that arms the bell, the ping.
//!
//! Three connections that stand or fall together: one only listens and is always drained, one holds or waits for the lock (a blocked
//! backend delivers no notifications), one sends the pings, so that a stuck NOTIFY cannot keep the bell armed.
//! The policy, when to arm and when to poll, is `intake`'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::field;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, Notifications, Server, Session};
use crate::tasks::Tasks;

/// Fixed among daemons of all versions.
pub const CHANNEL: &str = "tenantd_doorbell";

/// A waiting statement pins the oldest snapshot of the whole database, so the wait for the lock is cut into slices.
const SLICE: Duration = Duration::from_secs(5);

/// Behind another that holds the lock it is tried for so often.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Which row of `pg_locks l` is the lock's, held alone: signups that are under way share it.
pub(super) const HELD: &str =
    "l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = 20250 and l.objid = 1 and l.objsubid = 2 and l.mode = 'ExclusiveLock' and l.granted";

/// After this time without its own ping, or without an answer to what never waits, the bell is not trusted.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The doorbell's connections, listening.
pub struct Doorbell {
    listening: Session,
    lock: Session,
    ping: Session,
    /// Rung once for any number of rings since the last look.
    rings: Arc<Notify>,
    /// The ping under way: its payload, and whether it came back. The draining task compares, so that no payload but this one counts.
    pinged: Arc<watch::Sender<(String, bool)>>,
    /// Cancelled when the bell is not to be used any more; ends whatever waits on it.
    given_up: CancellationToken,
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
    /// The main database cannot be reached, or does not let us LISTEN; or a pooler is in between, behind which LISTEN would be somebody else's.
    pub async fn open(server: &Server, application_name: &str, rings: Arc<Notify>, tasks: &Tasks) -> Result<Doorbell> {
        let (listening, notifications) = server.connect_listening(application_name).await?;
        if listening.is_shared() {
            return Err(pooled());
        }
        in_time(&format!("listen on channel {CHANNEL}"), listening.batch_execute(&format!("listen {CHANNEL}"))).await?;
        let lock = server.connect(None, application_name).await?;
        let ping = server.connect(None, application_name).await?;
        let limit = format!("set lock_timeout = '{}ms'", SLICE.as_millis());
        in_time("prepare the doorbell's lock", lock.batch_execute(&limit)).await?;
        let pinged = Arc::new(watch::Sender::new((String::new(), false)));
        tasks.spawn("doorbell", drain(notifications, Arc::clone(&rings), Arc::clone(&pinged)));
        Ok(Doorbell { listening, lock, ping, rings, pinged, given_up: CancellationToken::new() })
    }

    /// Tries to arm the bell without waiting. Look at the registry once more after success, before sleeping.
    ///
    /// # Errors
    /// The bell fell, or the server did not answer.
    pub async fn try_arm(&self) -> Result<bool> {
        let tried = self.lock.query_typed_one("select pg_try_advisory_lock(20250, 1) as armed", &[]);
        field(&self.unless_fallen(in_time("try for the doorbell's lock", tried)).await?, "armed")
    }

    /// Waits one slice for the lock. While the request is queued, every new signup rings already.
    ///
    /// # Errors
    /// The bell fell.
    pub async fn wait_to_arm(&self) -> Result<Waited> {
        let waited = async {
            let taken = self.lock.batch_execute("select pg_advisory_lock(20250, 1)").await;
            taken.doing(|| "wait for the doorbell's lock".to_owned())
        };
        match self.unless_fallen(waited).await {
            Ok(()) => Ok(Waited::Armed),
            Err(error) if error.kind() == Kind::Locked => Ok(Waited::StillTaken),
            Err(error) => Err(error),
        }
    }

    /// Waits behind another that holds the lock, as long as a slice, and does not stand in line: every signup rings already, and each CREATE INDEX
    /// CONCURRENTLY in the database would wait for whoever does, until the slice is over.
    ///
    /// # Errors
    /// The bell fell, or the server did not answer.
    pub async fn wait_behind(&self) -> Result<Waited> {
        let until = tokio::time::Instant::now() + SLICE;
        loop {
            self.unless_fallen(async {
                tokio::time::sleep(TRY_AGAIN).await;
                Ok(())
            })
            .await?;
            if self.try_arm().await? {
                return Ok(Waited::Armed);
            }
            if tokio::time::Instant::now() >= until || !self.is_held().await? {
                return Ok(Waited::StillTaken);
            }
        }
    }

    /// Whether somebody holds the lock alone, so that every signup rings.
    ///
    /// # Errors
    /// The bell fell, or the server did not answer.
    pub async fn is_held(&self) -> Result<bool> {
        let look = format!("select exists (select from pg_locks l where {HELD}) as held");
        let held = self.lock.query_typed_one(&look, &[]);
        field(&self.unless_fallen(in_time("look who holds the doorbell's lock", held)).await?, "held")
    }

    /// Lets signups run without ringing.
    ///
    /// # Errors
    /// The bell fell, and the lock with it, or the server did not answer.
    pub async fn disarm(&self) -> Result<()> {
        let unlocked = self.lock.batch_execute("select pg_advisory_unlock(20250, 1)");
        self.unless_fallen(in_time("give the doorbell's lock back", unlocked)).await
    }

    /// Sends a ping through the channel and returns when it has come back.
    ///
    /// # Errors
    /// It did not come back in time: NOTIFY is stuck, or something between us and the server swallows LISTEN. The ping is cancelled on
    /// the server, since a stuck one would hold up every commit that notifies.
    pub async fn ping(&self) -> Result<()> {
        let nonce = Uuid::new_v4().simple().to_string();
        self.pinged.send_replace((nonce.clone(), false));
        let mut pinged = self.pinged.subscribe();
        let round = async {
            self.ping
                .execute_typed("select pg_notify($1, $2)", &[(&CHANNEL, Type::TEXT), (&nonce, Type::TEXT)])
                .await
                .doing(|| "ping through the doorbell's channel".to_owned())?;
            // The sender is our own, so this waits until the ping is back.
            let _ = pinged.wait_for(|(_, back)| *back).await;
            Ok(())
        };
        if let Ok(result) = tokio::time::timeout(TIMEOUT, self.unless_fallen(round)).await {
            result
        } else {
            if let Err(error) = self.ping.cancel().await {
                tracing::debug!(error = error.chain(), "the ping was not cancelled and ends with its connection");
            }
            Err(Error::new(Kind::Unreachable, format!("the doorbell's own ping did not come back within {TIMEOUT:?}")).hint(
                "NOTIFY is stuck (a synchronous standby that is gone?) or a pooler swallows LISTEN (main.url must reach the server directly)",
            ))
        }
    }

    /// Waits for the next ring. Rings since the last call count as one.
    pub async fn rung(&self) {
        self.rings.notified().await;
    }

    /// Says that the bell is not to be used any more: whatever waits on it ends, and its keeper makes another.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Returns when the bell has fallen: one of its connections ended, or it was given up.
    pub async fn fallen(&self) {
        tokio::select! {
            () = self.given_up.cancelled() => {}
            () = self.listening.ended() => {}
            () = self.lock.ended() => {}
            () = self.ping.ended() => {}
        }
    }

    /// Ends a wait for the lock at once: the server would hold a dead client's place in the queue until the slice is over.
    pub async fn abandon(&self) {
        if let Err(error) = self.lock.cancel().await {
            tracing::debug!(error = error.chain(), "the wait for the doorbell's lock ends by itself");
        }
    }

    /// Nothing may wait for a connection whose fellow has ended: the other half of a bell is none.
    async fn unless_fallen<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.fallen() => Err(Error::new(Kind::Unreachable, "a connection of the doorbell ended, or it was given up")),
        }
    }
}

/// Why nothing that lasts longer than a transaction can be had.
#[must_use]
pub fn pooled() -> Error {
    Error::new(
        Kind::Unreachable,
        "a pooler between tenantd and the server shares its connections out: LISTEN, and whatever else belongs to a session, does not last there",
    )
    .hint("main.url must reach the server directly, or a pool in session mode that lets the startup parameter options through")
}

/// For what the server answers at once, if it answers at all.
async fn in_time<T>(what: &str, statement: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, statement).await {
        Ok(done) => done.doing(|| what.to_owned()),
        Err(_) => Err(Error::new(Kind::Unreachable, format!("no answer within {TIMEOUT:?}")).context(what)),
    }
}

/// Empties the listening connection, always: a listener that does not read fills the queue of the whole server.
///
/// A ring has no payload; a payload is our own ping or nothing at all, so that nobody can cause anything by what they send.
async fn drain(mut notifications: Notifications, rings: Arc<Notify>, pinged: Arc<watch::Sender<(String, bool)>>) {
    while let Some((channel, payload)) = notifications.recv().await {
        if channel != CHANNEL {
            continue;
        }
        if payload.is_empty() {
            rings.notify_one();
        } else {
            pinged.send_if_modified(|(nonce, back)| {
                let ours = *nonce == payload;
                *back |= ours;
                ours
            });
        }
    }
}
