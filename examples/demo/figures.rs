//! What was measured on the way.

use std::time::Duration;

/// Lengths of time of one kind.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
        self.0.sort();
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest that `percent` of all are no longer than: 50 is the median.
    pub(crate) fn quantile(&self, percent: usize) -> Duration {
        self.0[(self.count() * percent).div_ceil(100).max(1) - 1]
    }
}

/// All that the summary tells.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// From the commit of a signup to its tenant ready, nobody else signing up.
    pub(crate) ready: Times,
    /// A bare CREATE DATABASE on the same server.
    pub(crate) create: Times,
    /// The statement of a signup.
    pub(crate) signup: Times,
    /// From the commit of a statement with several signups to the last of its tenants ready, and how many they were.
    pub(crate) burst: (usize, Duration),
    /// The statement of a signup while the registry was locked.
    pub(crate) locked: Duration,
}
