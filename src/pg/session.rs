//! One connection in use: the driver's client, the task that drives it, and what the server says on its own.

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use postgres_native_tls::MakeTlsConnector;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, CancelToken, Client, Connection, NoTls, Socket};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Doing;
use super::budget::Seat;
use crate::error::{Error, Kind, Result};
use crate::tasks::Tasks;

/// How long a dropped session may take to say goodbye, or to end the statement it still runs, before its socket is closed.
const GOODBYE: Duration = Duration::from_secs(1);

/// The longest that sending a cancel may take.
const CANCEL: Duration = Duration::from_secs(5);

/// A session on a server; use it as the driver's client.
///
/// Dropping it closes the connection, within a second also while a statement runs; the server is asked to stop that statement, since it
/// would not notice that nobody waits for it any more.
pub struct Session {
    client: Client,
    tls: Option<MakeTlsConnector>,
    connection: JoinHandle<()>,
    closing: DropGuard,
    /// Cancelled when the connection has ended, for whatever reason.
    ended: CancellationToken,
    shared: bool,
}

/// Notifications in the order they came, as (channel, payload).
///
/// They are taken off the connection whether or not anybody reads them here, since one listener that does not read
/// fills the queue of the whole server.
#[derive(Debug)]
pub struct Notifications(pub(super) UnboundedReceiver<(String, String)>);

impl Notifications {
    /// The next one; `None` once the connection has ended and all are read. Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<(String, String)> {
        self.0.recv().await
    }
}

impl Session {
    /// Starts driving `connection`, which has its `seat` until it is closed. Notifications go to `notify`, or nowhere.
    pub(super) fn start<S>(
        tasks: &Tasks,
        client: Client,
        connection: Connection<Socket, S>,
        tls: Option<MakeTlsConnector>,
        notify: Option<UnboundedSender<(String, String)>>,
        seat: Option<Arc<Seat>>,
    ) -> Session
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let (cancel, cancel_tls, guard) = (client.cancel_token(), tls.clone(), ended.clone().drop_guard());
        let driven = drive(connection, notify, closing.clone(), tasks.cancelled());
        let driven = async move {
            let (_guard, _seat) = (guard, seat);
            if driven.await == End::BrokenOff
                && let Err(error) = send_cancel(cancel, cancel_tls).await
            {
                tracing::debug!(error = error.chain(), "a statement that was broken off goes on in the server");
            }
        };
        Session {
            client,
            tls,
            connection: tasks.spawn("connection", driven),
            closing: closing.drop_guard(),
            ended,
            shared: false,
        }
    }

    /// The same, known to be shared.
    pub(super) fn shared(self) -> Session {
        Session { shared: true, ..self }
    }

    /// Whether a pooler stands between us and the server and gives its connections to others between our transactions: then LISTEN, SET and locks
    /// of a session reach somebody else's, and stay there. Known of sessions on the main database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Returns when the connection has ended, whoever ended it.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Closes the connection and waits until it is closed on our side, at most about a second.
    pub async fn close(self) {
        let Session { client, connection, closing, .. } = self;
        drop(client);
        drop(closing);
        // The task ends by itself in time. Whether it was cut off instead is of no interest any more.
        let _ = connection.await;
    }

    /// Asks the server to stop the statement that this session runs, over a connection of its own with the same TLS.
    ///
    /// There is no answer: the statement fails with 57014, or it had ended before.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] when the request could not be sent.
    pub async fn cancel(&self) -> Result<()> {
        send_cancel(self.client.cancel_token(), self.tls.clone()).await
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

impl Borrow<Client> for Session {
    fn borrow(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

async fn send_cancel(token: CancelToken, tls: Option<MakeTlsConnector>) -> Result<()> {
    let sent = async {
        match tls {
            Some(tls) => token.cancel_query(tls).await,
            None => token.cancel_query(NoTls).await,
        }
    };
    match tokio::time::timeout(CANCEL, sent).await {
        Ok(sent) => sent.doing(|| "cancel a statement".to_owned()),
        Err(_) => {
            Err(Error::new(Kind::Unreachable, format!("no answer within {CANCEL:?}")).context("cancel a statement"))
        }
    }
}

/// How the driving of a connection ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The connection is closed.
    Closed,
    /// It was closed by us while a statement may have run, which would go on in the server.
    BrokenOff,
}

/// Drives a connection to its end: its own, a second after its session was dropped, or that of all tasks.
async fn drive<S>(
    mut connection: Connection<Socket, S>,
    notify: Option<UnboundedSender<(String, String)>>,
    closing: CancellationToken,
    stop: CancellationToken,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let mut overdue = pin!(async {
        closing.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    });
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = &mut overdue => return End::BrokenOff,
            () = stop.cancelled() => return End::BrokenOff,
        };
        match message {
            Some(Ok(AsyncMessage::Notification(heard))) => {
                if let Some(notify) = &notify {
                    // A reader that is gone changes nothing: the connection is drained all the same.
                    let _ = notify.send((heard.channel().to_owned(), heard.payload().to_owned()));
                }
            }
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::debug!(
                    severity = notice.severity(),
                    code = notice.code().code(),
                    "server: {}",
                    notice.message()
                );
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let error = super::sqlstate::translate(&error);
                tracing::debug!(kind = error.kind().word(), "connection ended: {}", error.chain());
                return End::Closed;
            }
            None => return End::Closed,
        }
    }
}
