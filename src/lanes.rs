//! The lanes: tenants under work at the same time, and what their ends mean for the daemon.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::error::Kind;
use crate::notices;
use crate::provision::{Context, Ended, Outcome, reconcile};
use crate::registry::claim::Claim;
use crate::tasks::Tasks;
use crate::telemetry::{Metrics, tell_once};

/// Failures of the server in a row, over all lanes.
#[derive(Debug, Default)]
struct ServerFailures {
    /// How many. A tenant that alone meets them again and again counts once: if it is only its database that fails, the others must not
    /// wait longer and longer.
    count: u32,
    /// The tenant that met the first.
    first: Option<String>,
    /// Whether another met one too.
    several: bool,
    /// When the last was met.
    at: Option<Instant>,
}

impl ServerFailures {
    /// Counts one that `key` met. True for the first.
    fn add(&mut self, key: &str) -> bool {
        let first = self.count == 0;
        self.at = Some(Instant::now());
        self.several |= self.first.get_or_insert_with(|| key.to_owned()) != key;
        if first || self.several {
            self.count = self.count.saturating_add(1);
        }
        first
    }

    /// Whether what succeeded after `took` was begun after the last failure, so that it says that the server works again.
    fn are_over(&self, took: Duration) -> bool {
        self.count > 0 && self.at.is_some_and(|at| at.elapsed() >= took)
    }
}

/// Reconciles claimed tenants, as many at a time as `work.parallel` says. Clones share the lanes.
#[derive(Clone)]
pub struct Lanes {
    permits: Arc<Semaphore>,
    parallel: usize,
    freed: Arc<Notify>,
    server_failures: Arc<Mutex<ServerFailures>>,
    /// Whether a lane tries a tenant after the server failed others.
    trying: Arc<AtomicBool>,
    /// Keys that became ready, for the notice.
    ready: mpsc::UnboundedSender<String>,
    metrics: Metrics,
    tasks: Tasks,
}

impl Lanes {
    /// So many lanes; `ready` hears of each key that became ready.
    #[must_use]
    pub fn new(parallel: usize, ready: mpsc::UnboundedSender<String>, metrics: Metrics, tasks: Tasks) -> Self {
        Lanes {
            permits: Arc::new(Semaphore::new(parallel)),
            parallel,
            freed: Arc::new(Notify::new()),
            server_failures: Arc::default(),
            trying: Arc::default(),
            ready,
            metrics,
            tasks,
        }
    }

    /// How many tenants may be started now. After the server failed one it is one at a time, until one succeeds; what was under work before
    /// does not count, since a long migration must not hold up everybody.
    #[must_use]
    pub fn free(&self) -> usize {
        let free = self.permits.available_permits();
        match (self.server_failures(), self.trying.load(Ordering::Relaxed)) {
            (0, _) => free,
            (_, false) => free.min(1),
            (_, true) => 0,
        }
    }

    /// Returns when a lane has become free.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Returns when no lane works any more. Nothing may be started meanwhile.
    pub async fn empty(&self) {
        let all = u32::try_from(self.parallel).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        drop(self.permits.acquire_many(all).await);
    }

    /// Failures of the server in a row.
    #[must_use]
    pub fn server_failures(&self) -> u32 {
        self.failures().count
    }

    fn failures(&self) -> MutexGuard<'_, ServerFailures> {
        self.server_failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the work on a claimed tenant. A lane is free; nobody else takes them.
    fn start(&self, context: &Arc<Context>, claim: Claim) {
        let permit =
            Arc::clone(&self.permits).try_acquire_owned().expect("the intake claims no more than there are free lanes");
        let (lanes, context) = (self.clone(), Arc::clone(context));
        let trying = self.server_failures() > 0;
        if trying {
            self.trying.store(true, Ordering::Relaxed);
        }
        let work = async move {
            lanes.work(&context, claim).await;
            if trying {
                lanes.trying.store(false, Ordering::Relaxed);
            }
            drop(permit);
            lanes.freed.notify_one();
        };
        // What is broken off at the end failed nobody: it is taken up by the next daemon, and not told.
        self.tasks.spawn_until_cancelled("lane", work);
    }

    /// Starts the work on `claims`. What finds no free lane goes back at once: a spare that was counted on was gone.
    pub async fn start_all(&self, context: &Arc<Context>, claims: Vec<Claim>) {
        for claim in claims {
            if self.free() > 0 {
                self.start(context, claim);
                continue;
            }
            if let Err(error) = context.registry.release(&claim, Duration::ZERO).await {
                context.registry.owe();
                tracing::debug!(error = error.chain(), "a claim was not given back yet");
            }
            context.registry.put_down(&claim);
        }
    }

    async fn work(&self, context: &Context, claim: Claim) {
        self.ended(&reconcile(context, claim).await);
    }

    /// Counts and tells how the work on a tenant ended.
    pub(crate) fn ended(&self, ended: &Ended) {
        self.metrics.reconciled(ended);
        self.tell(&ended.key, &ended.outcome, ended.took);
        notices::tell_made(&self.ready, ended);
    }

    /// Logs how the work ended, and counts failures of the server.
    fn tell(&self, key: &str, outcome: &Outcome, took: Duration) {
        if let Outcome::Server(error) = outcome {
            let first = self.failures().add(key);
            if first {
                tell_once(error, "the server fails; tenantd waits, and tries again with one tenant at a time");
            }
            return;
        }
        // A lease may be lost because the server does not answer.
        let says_nothing = matches!(outcome, Outcome::Left(error) if error.kind() == Kind::LeaseLost);
        let mut failures = self.failures();
        if !says_nothing && failures.are_over(took) {
            *failures = ServerFailures::default();
            tracing::info!("the server works again");
        }
        drop(failures);
        tell_outcome(key, outcome);
    }
}

/// One line for the end of one reconcile: INFO for a change, WARN for a failure that is tried again, ERROR for one that needs a person.
pub(crate) fn tell_outcome(key: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Ready { made: true, .. } => tracing::info!(key, "tenant ready"),
        Outcome::Ready { migrated, .. } if !migrated.is_empty() => tracing::info!(key, ?migrated, "tenant migrated"),
        Outcome::Ready { .. } => tracing::debug!(key, "tenant as it should be"),
        Outcome::Failed { error, parked: true } => tracing::error!(
            key,
            error = error.chain(),
            kind = error.kind().word(),
            sqlstate = error.code(),
            hint = error.advice(),
            "tenant parked"
        ),
        Outcome::Failed { error, parked: false } => tracing::warn!(
            key,
            error = error.chain(),
            kind = error.kind().word(),
            sqlstate = error.code(),
            hint = error.advice(),
            "tenant failing, tried again"
        ),
        Outcome::Left(error) if matches!(error.kind(), Kind::Braked | Kind::Template) => {
            tracing::debug!(key, error = error.chain(), "tenant held back");
        }
        Outcome::Left(error) => tracing::warn!(key, error = error.chain(), hint = error.advice(), "tenant left alone"),
        Outcome::Server(error) => {
            tracing::warn!(key, error = error.chain(), hint = error.advice(), "the server failed this tenant");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_fails_alone_counts_once() {
        let mut failures = ServerFailures::default();
        let mut counts = Vec::new();
        for key in ["a", "a", "a", "b", "a", "b"] {
            counts.push((failures.add(key), failures.count));
        }
        assert_eq!(counts, [(true, 1), (false, 1), (false, 1), (false, 2), (false, 3), (false, 4)]);
    }

    #[test]
    fn what_was_begun_before_a_failure_does_not_end_it() {
        let mut failures = ServerFailures::default();
        assert!(!failures.are_over(Duration::ZERO), "there is none");
        failures.add("a");
        assert!(failures.are_over(Duration::ZERO) && !failures.are_over(Duration::from_hours(1)));
    }
}
