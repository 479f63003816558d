//! Whether the daemon's loops still turn. Each tells when it has turned; one that does not for too long is late.
//!
//! Read by `/healthz` and by what feeds systemd's watchdog, so that a stuck loop gets the daemon restarted. No database is asked: one that is
//! out of reach must not count as a stuck daemon. Time is monotonic.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::fail_points::is_wedged;

/// How long a loop that a test wedges may take.
const WEDGED_ALLOWANCE: Duration = Duration::from_secs(1);

/// The heartbeats of one daemon. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Loops>>);

#[derive(Debug, Default)]
struct Loops {
    next: u64,
    /// Written by [`Beat`]s, read by [`Heartbeats::late`].
    loops: BTreeMap<u64, Loop>,
}

#[derive(Debug)]
struct Loop {
    name: &'static str,
    allowance: Duration,
    turned: Instant,
}

/// One loop's own heartbeat, held for as long as the loop lives.
///
/// Dropped, the loop is no longer counted; unless the drop is part of a panic: then the loop ended without meaning to, and becomes late.
#[derive(Debug)]
#[must_use = "a dropped heartbeat is no longer counted"]
pub struct Beat {
    id: u64,
    name: &'static str,
    heartbeats: Heartbeats,
}

impl Heartbeats {
    /// Without any loop: nothing is late.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts the loop `name` from now on. It must turn at least once within each `allowance`, the first time starting now.
    pub fn register(&self, name: &'static str, allowance: Duration) -> Beat {
        let mut loops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = loops.next;
        loops.next += 1;
        // A test that wedges a loop does not wait for its allowance.
        let allowance = if is_wedged(name) { allowance.min(WEDGED_ALLOWANCE) } else { allowance };
        loops.loops.insert(id, Loop { name, allowance, turned: Instant::now() });
        Beat { id, name, heartbeats: self.clone() }
    }

    /// The names of the loops that have not turned within their allowance, each once, in the order of the alphabet.
    #[must_use]
    pub fn late(&self) -> Vec<&'static str> {
        let loops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = loops.loops.values().filter(|one| one.turned.elapsed() > one.allowance);
        let mut names: Vec<_> = late.map(|one| one.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Beat {
    /// The loop has turned just now. Returns at once, unless a test wedges the loop here.
    pub async fn turned(&self) {
        if let Some(one) = self.heartbeats.0.lock().unwrap_or_else(PoisonError::into_inner).loops.get_mut(&self.id) {
            one.turned = Instant::now();
        }
        if is_wedged(self.name) {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.heartbeats.0.lock().unwrap_or_else(PoisonError::into_inner).loops.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_late_until_it_turns_again() {
        let heartbeats = Heartbeats::new();
        let listener = heartbeats.register("listener", 2 * SECOND);
        let _controller = heartbeats.register("controller", 10 * SECOND);
        advance(2 * SECOND).await;
        assert!(heartbeats.late().is_empty(), "the allowance itself is allowed");
        advance(Duration::from_millis(1)).await;
        assert_eq!(heartbeats.late(), ["listener"]);
        listener.turned().await;
        assert!(heartbeats.late().is_empty());
        advance(11 * SECOND).await;
        assert_eq!(heartbeats.late(), ["controller", "listener"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_ended_is_not_late() {
        let heartbeats = Heartbeats::new();
        let first = heartbeats.register("lane", SECOND);
        let second = heartbeats.register("lane", SECOND);
        advance(2 * SECOND).await;
        assert_eq!(heartbeats.late(), ["lane"], "each name once");
        drop(first);
        assert_eq!(heartbeats.late(), ["lane"]);
        drop(second);
        assert!(heartbeats.late().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panicked_becomes_late() {
        let heartbeats = Heartbeats::new();
        let beat = heartbeats.register("controller", SECOND);
        let task = crate::tasks::Tasks::new().spawn("controller", async move {
            beat.turned().await;
            panic!("a bug");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert!(heartbeats.late().is_empty());
        advance(2 * SECOND).await;
        assert_eq!(heartbeats.late(), ["controller"]);
    }
}
