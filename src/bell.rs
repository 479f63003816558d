//! Keeps the doorbell standing: connects, listens, pings, and takes it away the moment it cannot be trusted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::conditions::Conditions;
use crate::error::{Error, Kind};
use crate::heartbeat::Beat;
use crate::pg::Server;
use crate::registry::doorbell::Doorbell;
use crate::retry::WAIT;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Time between two pings: what a half-open connection can cost at the most, together with the ping's own timeout.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The doorbell's supervisor. While it offers no bell, the intake polls.
pub struct BellKeeper {
    /// Where the main database is.
    pub server: Server,
    /// The name of the bell's connections.
    pub application_name: String,
    /// Where the bell is offered: written here only, read by the intake.
    pub offer: watch::Sender<Option<Arc<Doorbell>>>,
    /// What readiness depends on.
    pub conditions: Conditions,
    /// Counts pings and reconnects.
    pub metrics: Metrics,
    /// Shows that the loop turns.
    pub beat: Beat,
    /// For the task that drains the listening connection.
    pub tasks: Tasks,
    /// Ends it.
    pub stop: CancellationToken,
}

impl BellKeeper {
    /// Runs until stopped.
    pub async fn run(self) {
        let rings = Arc::new(Notify::new());
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            self.beat.turned().await;
            let open = Doorbell::open(&self.server, &self.application_name, Arc::clone(&rings), &self.tasks);
            let opened = tokio::select! {
                opened = open => opened,
                () = self.stop.cancelled() => return,
            };
            match opened {
                Ok(bell) => {
                    let (heard, error) = self.keep(Arc::new(bell)).await;
                    failures = if heard { 1 } else { failures + 1 };
                    self.tell(failures, error);
                }
                Err(error) => {
                    failures += 1;
                    self.tell(failures, Some(error));
                }
            }
            self.metrics.reconnected();
            self.pause(WAIT.delay(failures)).await;
        }
    }

    /// Offers the bell for as long as its pings come back. Returns whether one ever did, and why it ended.
    async fn keep(&self, bell: Arc<Doorbell>) -> (bool, Option<Error>) {
        let mut heard = false;
        let error = loop {
            self.beat.turned().await;
            if let Err(error) = bell.ping().await {
                self.metrics.ping_failed();
                break Some(error);
            }
            if !heard {
                heard = true;
                if self.conditions.unmet().contains_key("doorbell") {
                    tracing::info!("the doorbell is heard again");
                }
                self.conditions.clear("doorbell");
                self.offer.send_replace(Some(Arc::clone(&bell)));
            }
            tokio::select! {
                () = self.pause(PING_EVERY) => {}
                () = bell.fallen() => break Some(Error::new(Kind::Unreachable, "a connection of the doorbell ended")),
            }
            if self.stop.is_cancelled() {
                break None;
            }
        };
        // First, since the intake may be waiting for a connection that does not answer any more.
        bell.give_up();
        self.offer.send_replace(None);
        bell.abandon().await;
        (heard, error)
    }

    /// Once, where it begins: the intake polls meanwhile, so that nothing is lost.
    fn tell(&self, failures: u32, error: Option<Error>) {
        let Some(error) = error else { return };
        if failures == 1 {
            tracing::warn!(error = error.chain(), hint = error.advice(), "the doorbell is not heard; polling instead");
        }
        self.conditions.set("doorbell", error.chain());
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = self.stop.cancelled() => {}
        }
    }
}
