//! The daemon's periodic sweep: finds what the trigger missed and what changed behind our back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::conditions::Conditions;
use crate::error::{Kind, Result};
use crate::heartbeat::Beat;
use crate::lanes::tell_outcome;
use crate::notices;
use crate::provision::{Context, Outcome};
use crate::registry::signup::Table;
use crate::sweep::{Report, Run, sweep};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// The loop turns at least this often, so that the watchdog sees it alive.
const TURN: Duration = Duration::from_secs(5);

/// Sweeps every `sweep.every`, and at once when asked.
pub struct Sweeper {
    /// Settings and migration set in force.
    pub context: watch::Receiver<Arc<Context>>,
    /// The signup table.
    pub table: Table,
    /// Asks for a sweep now: after a reload.
    pub now: Arc<Notify>,
    /// Hears of each key that became ready, for the notice.
    pub ready: mpsc::UnboundedSender<String>,
    /// What readiness depends on.
    pub conditions: Conditions,
    /// Counts sweeps.
    pub metrics: Metrics,
    /// Shows that the loop turns.
    pub beat: Beat,
    /// For the lanes.
    pub tasks: Tasks,
    /// Ends it after the tenants in hand.
    pub stop: CancellationToken,
}

impl Sweeper {
    /// Sweeps now, then periodically, until stopped.
    pub async fn run(mut self) {
        while !self.stop.is_cancelled() {
            let context = self.context.borrow_and_update().clone();
            match self.sweep_while_beating(&context).await {
                Ok(report) => self.tell(&report),
                Err(error) if error.kind() == Kind::Drift => self.conditions.set("migration_set", error.chain()),
                Err(error) => {
                    tracing::warn!(error = error.chain(), hint = error.advice(), "the sweep could not be done");
                }
            }
            self.wait(context.config.sweep.every).await;
        }
    }

    async fn sweep_while_beating(&mut self, context: &Arc<Context>) -> Result<Report> {
        self.mend_installation(context).await;
        let run = Run { by_hand: false, stop: self.stop.child_token() };
        let ready = self.ready.clone();
        let tell = |key: &str, outcome: Option<&Outcome>, _: usize, _: usize| {
            if let Some(outcome) = outcome {
                tell_outcome(key, outcome);
                notices::tell_made(&ready, key, outcome);
            }
        };
        let mut sweeping = std::pin::pin!(sweep(context, &self.table, &self.tasks, &run, tell));
        loop {
            self.beat.turned();
            tokio::select! {
                report = &mut sweeping => return report,
                () = tokio::time::sleep(TURN) => {}
            }
        }
    }

    /// The trigger may have gone with an old signup table, or a partition may be new.
    async fn mend_installation(&mut self, context: &Context) {
        match context.registry.mend(&context.config).await {
            Ok(installed) => {
                for change in &installed.changes {
                    tracing::info!(change, "installation mended");
                }
                self.table = installed.table;
                self.conditions.clear("registry");
            }
            Err(error) => {
                if !self.conditions.unmet().contains_key("registry") {
                    tracing::error!(
                        error = error.chain(),
                        hint = error.advice(),
                        "the installation is not as it should be"
                    );
                }
                self.conditions.set("registry", error.chain());
            }
        }
    }

    fn tell(&self, report: &Report) {
        self.metrics.swept(report);
        if let Some(error) = &report.unread {
            tracing::warn!(error = error.chain(), hint = error.advice(), "the sweep could not read the signup table");
        }
        if report.chosen > 0 || report.requested > 0 || report.strays > 0 {
            tracing::info!(
                requested = report.requested,
                chosen = report.chosen,
                made = report.made,
                migrated = report.migrated,
                failed = report.failed.len(),
                busy = report.busy,
                strays = report.strays,
                seconds = report.took.as_secs_f64(),
                "sweep done"
            );
        }
    }

    async fn wait(&self, length: Duration) {
        let until = tokio::time::Instant::now() + length;
        while tokio::time::Instant::now() < until && !self.stop.is_cancelled() {
            self.beat.turned();
            tokio::select! {
                () = tokio::time::sleep_until(until.min(tokio::time::Instant::now() + TURN)) => {}
                () = self.now.notified() => return,
                () = self.stop.cancelled() => return,
            }
        }
    }
}
