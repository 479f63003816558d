//! The notice `tenantd_ready`: a hint to the application that a tenant became ready, sent apart from all work.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, Server, Session};
use crate::provision::{Ended, Outcome};
use crate::registry::Worker;
use crate::registry::hand_over::notify_ready;
use crate::tasks::Tasks;

/// Keys sent in one transaction.
const AT_ONCE: usize = 100;

/// A notice that comes later than this is of no use.
const SENT_WITHIN: Duration = Duration::from_secs(15);

/// How long a command's last notices may take; they are hints, and a stuck NOTIFY must not keep it from its end.
const LAST_NOTICES: Duration = Duration::from_secs(5);

/// The notices of a command, sent while it works.
pub struct Notices {
    ready: mpsc::UnboundedSender<String>,
    sending: JoinHandle<()>,
}

impl Notices {
    /// Begins to send what is told from now on.
    #[must_use]
    pub fn begin(server: &Server, worker: &Worker, tasks: &Tasks) -> Notices {
        let (ready, keys) = mpsc::unbounded_channel();
        let sending = send(server.clone(), worker.application_name.clone(), keys, tasks.cancelled());
        Notices { ready, sending: tasks.spawn("notices", sending) }
    }

    /// As [`tell_made`].
    pub fn tell_made(&self, ended: &Ended) {
        tell_made(&self.ready, ended);
    }

    /// Returns when all are sent, or after five seconds.
    pub async fn end(self) {
        drop(self.ready);
        if tokio::time::timeout(LAST_NOTICES, self.sending).await.is_err() {
            tracing::debug!("the last notices were not sent in time");
        }
    }
}

/// Hands the key on to [`send`], if its tenant was made: whichever way it came in, by a ring, a retry or a sweep.
pub fn tell_made(ready: &mpsc::UnboundedSender<String>, Ended { key, outcome, .. }: &Ended) {
    if let Outcome::Ready { made: true, .. } = outcome {
        // The receiver is gone only while the process ends; the notice is a hint.
        let _ = ready.send(key.clone());
    }
}

/// Sends a notice for each key that comes, until stopped or all senders are gone. A notice that cannot be sent is dropped: whoever waits
/// looks at the view.
pub async fn send(
    server: Server,
    application_name: String,
    mut ready: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
) {
    let mut session = None;
    loop {
        let mut keys = Vec::new();
        tokio::select! {
            received = ready.recv_many(&mut keys, AT_ONCE) => if received == 0 { return },
            () = stop.cancelled() => return,
        }
        let mut sent = in_time(send_once(&server, &application_name, &mut session, &keys)).await;
        if sent.as_ref().is_err_and(|error| error.kind() == Kind::ReadOnly) {
            session = None;
            sent = in_time(send_once(&server, &application_name, &mut session, &keys)).await;
        }
        if let Err(error) = sent {
            tracing::debug!(error = error.chain(), "a notice was dropped");
            session = None;
        }
    }
}

async fn in_time(sending: impl Future<Output = Result<()>>) -> Result<()> {
    let sent = tokio::time::timeout(SENT_WITHIN, sending).await;
    sent.unwrap_or_else(|_| Err(Error::new(Kind::Unreachable, format!("not sent within {SENT_WITHIN:?}"))))
}

async fn send_once(
    server: &Server,
    application_name: &str,
    session: &mut Option<Session>,
    keys: &[String],
) -> Result<()> {
    if session.as_ref().is_none_or(Session::is_closed) {
        let fresh = server.connect(None, application_name).await?;
        // The lock that all commits with a NOTIFY share: a stuck one must not keep our connection for ever, nor may a notice that waits for
        // a standby be the one that keeps it. What the notice is about has been committed before.
        fresh
            .batch_execute("set lock_timeout = '1s'; set synchronous_commit = off")
            .await
            .doing(|| "prepare the connection for notices".to_owned())?;
        *session = Some(fresh);
    }
    let session = session.as_ref().expect("connected above");
    notify_ready(session, keys).await
}
