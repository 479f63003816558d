//! Every background task of the crate: named, tracked, stopped together.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks by name and waits for them. Clones share the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Cancelled when the daemon must end now; tasks that can stop on their own listen to it.
    cancel: CancellationToken,
    /// Name and number of the tasks still alive; written by spawn and by each task's end.
    alive: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Counts a task as alive for as long as it exists, also when it panics or is aborted.
struct Alive(&'static str, Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Drop for Alive {
    fn drop(&mut self) {
        let mut alive = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = alive.get_mut(self.0) {
            *count -= 1;
            if *count == 0 {
                alive.remove(self.0);
            }
        }
    }
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `task` under `name`. The only place of the crate that spawns.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        let alive = Alive(name, Arc::clone(&self.alive));
        tokio::spawn(self.tracker.track_future(async move {
            let _alive = alive;
            task.await
        }))
    }

    /// As [`Tasks::spawn`], for a task that is dropped when everything must end now. The end is looked at before the task: what breaks with it,
    /// a connection say, shall not look like a failure to the task.
    pub fn spawn_until_cancelled(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let cancelled = self.cancelled();
        self.spawn(name, async move {
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Cancelled when everything must end now.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Tells all tasks to end, waits until they have or `deadline` has passed, and returns the names of those still alive.
    pub async fn stop(&self, deadline: Duration) -> Vec<&'static str> {
        self.cancel.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stop_names_what_is_still_alive() {
        let tasks = Tasks::new();
        let cancelled = tasks.cancelled();
        tasks.spawn("polite", async move { cancelled.cancelled().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        let ending = tasks.cancelled();
        let broken = tasks.spawn_until_cancelled("broken with the end", async move {
            ending.cancelled().await;
            panic!("polled after the end");
        });
        assert_eq!(tasks.stop(Duration::from_secs(1)).await, vec!["stubborn"]);
        assert!(broken.await.is_ok());
    }
}
