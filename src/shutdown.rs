//! Signals: the first SIGTERM or SIGINT asks the daemon to end in order, the second to end now; SIGHUP asks it to read its settings again.
//!
//! They are installed in one place and handed on as tokens, so that everything below runs in a test without any signal.

use std::sync::Arc;

use futures_util::stream::{Stream, StreamExt, poll_fn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::fail_points;
use crate::tasks::Tasks;

/// A signal that tenantd heeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: systemd's.
    Terminate,
    /// SIGINT: a person's.
    Interrupt,
    /// SIGHUP: read the settings again.
    HangUp,
}

impl Signal {
    /// The exit code of a process that such a signal ended: 128 and the signal's number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Signal::Terminate => 143,
            Signal::Interrupt => 130,
            Signal::HangUp => 129,
        }
    }
}

/// What was asked of the daemon from outside. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// Cancelled by the first SIGTERM or SIGINT: take no new work, finish what is in hand.
    pub stop: CancellationToken,
    /// The second one's exit code.
    forced: Arc<watch::Sender<Option<u8>>>,
    /// Holds one request at most: several SIGHUPs in a row are one.
    reload: Arc<Notify>,
}

impl Requests {
    /// Nothing asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Heeds the process's signals until `tasks` are told to end. For the commands that run long, once each: the process never gets its old
    /// ways back.
    ///
    /// # Errors
    /// The signals cannot be had.
    pub fn of_process(tasks: &Tasks) -> Result<Self> {
        let streams = [
            (SignalKind::terminate(), Signal::Terminate),
            (SignalKind::interrupt(), Signal::Interrupt),
            (SignalKind::hangup(), Signal::HangUp),
        ];
        let mut signals = futures_util::stream::SelectAll::new();
        for (kind, meaning) in streams {
            let mut stream =
                signal(kind).map_err(|error| Error::new(Kind::Other, "listen to signals").because(error))?;
            signals.push(poll_fn(move |context| stream.poll_recv(context)).map(move |()| meaning));
        }
        let requests = Requests::new();
        let (heeding, ended) = (requests.clone(), tasks.cancelled());
        tasks.spawn("signals", async move { ended.run_until_cancelled(heeding.heed(signals)).await });
        Ok(requests)
    }

    /// Turns `signals` into requests until there are no more.
    pub async fn heed(&self, signals: impl Stream<Item = Signal>) {
        let mut signals = std::pin::pin!(signals);
        while let Some(signal) = signals.next().await {
            match signal {
                Signal::HangUp => self.reload.notify_one(),
                _ if self.stop.is_cancelled() => {
                    tracing::warn!(
                        ?signal,
                        "a second signal: ending now, the work in hand is taken up again after its lease"
                    );
                    self.forced.send_replace(Some(signal.exit_code()));
                }
                _ => {
                    tracing::info!(?signal, "ending: no new work, finishing what is in hand");
                    self.stop.cancel();
                    fail_points::ending();
                }
            }
        }
    }

    /// Returns when somebody does not want to wait any longer, with the exit code to end with: 143 or 130.
    pub async fn forced(&self) -> u8 {
        let mut forced = self.forced.subscribe();
        loop {
            if let Some(code) = *forced.borrow_and_update() {
                return code;
            }
            // `self` holds the sender.
            let _ = forced.changed().await;
        }
    }

    /// Returns when a reload was asked for since the last return. For one waiting task.
    pub async fn reload(&self) {
        self.reload.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream::iter;

    use super::*;

    async fn after(signals: &[Signal]) -> Requests {
        let requests = Requests::new();
        requests.heed(iter(signals.to_vec())).await;
        requests
    }

    #[tokio::test]
    async fn the_first_signal_stops_and_the_second_forces() {
        for (first, second, code) in [
            (Signal::Terminate, Signal::Terminate, 143),
            (Signal::Interrupt, Signal::Interrupt, 130),
            (Signal::Terminate, Signal::Interrupt, 130),
        ] {
            let requests = after(&[first]).await;
            assert!(requests.stop.is_cancelled());
            assert_eq!(requests.forced().now_or_never(), None);
            requests.heed(iter([second])).await;
            assert_eq!(requests.forced().now_or_never(), Some(code));
        }
    }

    #[tokio::test]
    async fn a_hang_up_reloads_and_stops_nothing() {
        let requests = after(&[Signal::HangUp, Signal::HangUp]).await;
        assert!(!requests.stop.is_cancelled());
        assert!(requests.reload().now_or_never().is_some());
        assert!(requests.reload().now_or_never().is_none(), "two in a row are one");
        requests.heed(iter([Signal::HangUp])).await;
        assert!(requests.reload().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_hang_up_between_the_two_does_not_force() {
        let requests = after(&[Signal::Terminate, Signal::HangUp]).await;
        assert_eq!(requests.forced().now_or_never(), None);
    }
}
