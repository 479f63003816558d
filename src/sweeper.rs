//! The daemon's periodic sweep: finds what the trigger missed and what changed behind our back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Conditions, MIGRATION_SET, REGISTRY};
use crate::error::{Error, Kind, Result};
use crate::heartbeat::Beat;
use crate::lanes::tell_outcome;
use crate::notices;
use crate::provision::{Context, Ended};
use crate::registry::signup::Table;
use crate::retry::WAIT;
use crate::sweep::{Report, Run, sweep};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// The loop turns at least this often, so that the watchdog sees it alive.
const TURN: Duration = Duration::from_secs(5);

/// A sweep that could not be done is tried again after this time, unless sweeps come more often anyway.
const AGAIN: Duration = Duration::from_secs(30);

/// What looking at the installation and mending it may take.
const MENDED_WITHIN: Duration = Duration::from_secs(30);

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
    /// Ends it after the tenants in hand; cancelled by itself when the daemon may not go on.
    pub stop: CancellationToken,
    /// Why the daemon may not go on: written here, read when it has ended.
    pub ended_by: Arc<Mutex<Option<Error>>>,
}

impl Sweeper {
    /// Sweeps now, then periodically, until stopped.
    pub async fn run(mut self) {
        let (mut failures, mut unread, mut busy) = (0, false, 0);
        while !self.stop.is_cancelled() {
            let context = self.context.borrow_and_update().clone();
            match self.sweep_while_beating(&context).await {
                Ok(report) => {
                    failures = 0;
                    self.tell(&report, unread);
                    unread = report.unread.is_some();
                    busy = if report.busy > 0 { busy + 1 } else { 0 };
                }
                Err(error) if error.kind() == Kind::Drift => self.conditions.set(MIGRATION_SET, error.chain()),
                Err(error) => {
                    failures += 1;
                    // A daemon that ends closes its connections under whoever still uses them.
                    if failures == 1 && !self.stop.is_cancelled() {
                        tracing::warn!(
                            error = error.chain(),
                            hint = error.advice(),
                            "the sweep could not be done; tried again"
                        );
                    }
                }
            }
            let every = context.config.sweep.every;
            self.wait(match (failures, busy) {
                (0, 0) => every,
                // Whoever had them may be dead, or may have made them of a template that was the newest when it began.
                (0, busy) => every.min(WAIT.delay(busy)),
                _ => every.min(AGAIN),
            })
            .await;
        }
    }

    async fn sweep_while_beating(&mut self, context: &Arc<Context>) -> Result<Report> {
        self.mend_installation(context).await;
        let run = Run { by_hand: false, stop: self.stop.child_token(), only: None };
        let (ready, metrics) = (self.ready.clone(), self.metrics.clone());
        let tell = |ended: Option<&Ended>, _: usize, _: usize| {
            if let Some(ended) = ended {
                metrics.reconciled(ended);
                tell_outcome(&ended.key, &ended.outcome);
                notices::tell_made(&ready, ended);
            }
        };
        let mut context_in_force = self.context.clone();
        let mut sweeping = std::pin::pin!(sweep(context, &self.table, &self.tasks, &run, tell));
        loop {
            self.beat.turned().await;
            tokio::select! {
                report = &mut sweeping => return report,
                // Thousands of tenants are not brought to what nobody wants any more: the next sweep, which is asked for, knows better.
                Ok(()) = context_in_force.changed() => run.stop.cancel(),
                () = tokio::time::sleep(TURN) => {}
            }
        }
    }

    /// The trigger may have gone with an old signup table, or a partition may be new.
    async fn mend_installation(&mut self, context: &Context) {
        let mending = tokio::time::timeout(MENDED_WITHIN, Box::pin(context.registry.mend(&context.config))).await;
        let no_answer = || Error::new(Kind::Unreachable, format!("no answer within {MENDED_WITHIN:?}"));
        match mending.unwrap_or_else(|_| Err(no_answer())) {
            Ok(installed) => {
                for change in &installed.changes {
                    tracing::info!(change, "installation mended");
                }
                self.table = installed.table;
                self.conditions.clear(REGISTRY);
            }
            // A newer tenantd has installed what this one does not know: waiting changes nothing.
            Err(error) if error.kind() == Kind::RegistryNewer => {
                self.ended_by.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.stop.cancel();
            }
            // Nothing is known of the installation. The sweep, which comes next, says so.
            Err(error) if error.kind().is_out_of_reach() => {
                tracing::debug!(error = error.chain(), "the installation could not be looked at");
            }
            Err(error) => {
                if !self.conditions.unmet().contains_key(REGISTRY) {
                    tracing::error!(
                        error = error.chain(),
                        hint = error.advice(),
                        "the installation is not as it should be"
                    );
                }
                self.conditions.set(REGISTRY, error.chain());
            }
        }
    }

    /// `known`: the sweep before could not read the signup table either, and said so.
    fn tell(&self, report: &Report, known: bool) {
        self.metrics.swept(report);
        if let Some(error) = report.unread.as_ref().filter(|_| !known) {
            tracing::warn!(error = error.chain(), hint = error.advice(), "the sweep could not read the signup table");
        }
        if report.chosen > 0 || report.requested > 0 || report.strays > 0 || report.purged + report.departed > 0 {
            tracing::info!(
                requested = report.requested,
                chosen = report.chosen,
                made = report.made,
                migrated = report.migrated,
                failed = report.failures,
                busy = report.busy,
                unreached = report.unreached,
                strays = report.strays,
                departed = report.departed,
                purged = report.purged,
                seconds = report.took.as_secs_f64(),
                "sweep done"
            );
        }
    }

    async fn wait(&self, length: Duration) {
        let until = tokio::time::Instant::now() + length;
        while tokio::time::Instant::now() < until && !self.stop.is_cancelled() {
            self.beat.turned().await;
            tokio::select! {
                () = tokio::time::sleep_until(until.min(tokio::time::Instant::now() + TURN)) => {}
                () = self.now.notified() => return,
                () = self.stop.cancelled() => return,
            }
        }
    }
}
