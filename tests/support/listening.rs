//! A client that keeps what the server says unasked: notifications, warnings.

use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, poll_fn};
use tenantd::tasks::Tasks;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client};

use super::server::TestServer;

/// What the server said unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A NOTIFY on a channel that this client listens to.
    Notification {
        /// The channel.
        channel: String,
        /// Its payload.
        payload: String,
    },
    /// A notice or a warning.
    Notice {
        /// `WARNING`, `NOTICE`, …
        severity: String,
        /// Its text.
        message: String,
    },
}

/// A connection over TLS, verified in full, that hears.
#[derive(Debug)]
pub struct Listener {
    /// For statements, LISTEN among them.
    pub client: Client,
    said: mpsc::UnboundedReceiver<(Instant, Said)>,
}

impl Listener {
    /// Connects to `database` of `server`.
    ///
    /// # Panics
    /// When the server refuses it.
    #[expect(clippy::disallowed_methods, reason = "tests connect by themselves, to see the server from outside")]
    pub async fn connect(server: &TestServer, role: &str, password: &str, database: &str) -> Self {
        let (config, tls) = server.verified(role, password, database);
        let (client, mut connection) = config.connect(tls).await.expect("connect over TLS");
        let (hear, said) = mpsc::unbounded_channel();
        Tasks::new().spawn("listening connection of a test", async move {
            let mut messages = poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                let message = match message {
                    AsyncMessage::Notification(heard) => {
                        Said::Notification { channel: heard.channel().into(), payload: heard.payload().into() }
                    }
                    AsyncMessage::Notice(notice) => {
                        Said::Notice { severity: notice.severity().into(), message: notice.message().into() }
                    }
                    _ => continue,
                };
                // Nobody hears any more once the listener is dropped.
                let _ = hear.send((Instant::now(), message));
            }
        });
        Self { client, said }
    }

    /// What was said next, and when it came; `None` when nothing comes within `patience`.
    pub async fn next(&mut self, patience: Duration) -> Option<(Instant, Said)> {
        tokio::time::timeout(patience, self.said.recv()).await.ok().flatten()
    }

    /// What has come and was not taken yet.
    pub fn so_far(&mut self) -> Vec<Said> {
        std::iter::from_fn(|| self.said.try_recv().ok()).map(|(_, said)| said).collect()
    }
}
