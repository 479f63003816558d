//! When a failure is tried again: from the number of failures and the class of the last, never from what a process remembers.
//!
//! The only importer of `backoff`, which is unmaintained; the exit is this one file (see deny.toml).

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

use crate::error::Class;

const MULTIPLIER: f64 = 2.0;
/// Part of the delay that is left to chance, so that a crowd that failed together does not come back together.
const JITTER: f64 = 0.25;

/// What follows a tenant's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another try after this time.
    After(Duration),
    /// A person should look.
    Park,
}

/// The schedule of `[retry]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
    /// Failures in a row after which a tenant is parked.
    pub attempts: u32,
}

impl Schedule {
    /// What follows the `failures`th failure in a row (counted from 1), which was of `class`.
    ///
    /// With the built-in settings the delays are about 1, 2, 4, 8, 16, 32, 64, 128, 256 seconds, each a quarter more or less; the
    /// tenth failure parks. Locks and sessions in the way ([`Class::Soon`]) come back in a quarter of the time.
    #[must_use]
    pub fn next(&self, failures: u32, class: Class) -> Next {
        if class == Class::Park || failures >= self.attempts {
            return Next::Park;
        }
        let delay = self.delay(failures);
        Next::After(if class == Class::Soon { delay / 4 } else { delay })
    }

    /// The delay before try `failures + 1`, never longer than `max`: `backoff` adds its jitter after its own cap.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let steps = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX).min(64);
        let grown = (self.first.as_secs_f64() * MULTIPLIER.powi(steps)).min(self.max.as_secs_f64());
        let mut backoff = ExponentialBackoff {
            current_interval: Duration::from_secs_f64(grown),
            randomization_factor: JITTER,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        backoff.next_backoff().unwrap_or(self.max).min(self.max)
    }
}

/// The pause of a daemon that cannot reach what it needs: grows from a quarter second to eight seconds, so that it goes on within ten
/// after what it needs has come back.
pub const WAIT: Schedule =
    Schedule { first: Duration::from_millis(250), max: Duration::from_secs(8), attempts: u32::MAX };

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Schedule = Schedule { first: Duration::from_secs(1), max: Duration::from_mins(10), attempts: 10 };

    #[test]
    fn delays_double_within_their_jitter_and_park_at_the_end() {
        for (failures, expected) in (1..10).zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]) {
            let Next::After(delay) = DEFAULT.next(failures, Class::Later) else { panic!("parked after {failures}") };
            let ratio = delay.as_secs_f64() / expected;
            assert!((0.75..=1.25).contains(&ratio), "{failures}: {delay:?}");
        }
        assert_eq!(DEFAULT.next(10, Class::Later), Next::Park);
        assert_eq!(DEFAULT.next(1, Class::Park), Next::Park);
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        for failures in [1, 11, 100, u32::MAX] {
            assert!(DEFAULT.delay(failures) <= DEFAULT.max);
        }
        assert!(DEFAULT.delay(u32::MAX) >= DEFAULT.max.mul_f64(0.75));
    }

    #[test]
    fn locks_come_back_sooner() {
        let Next::After(delay) = DEFAULT.next(3, Class::Soon) else { panic!("parked") };
        assert!(delay <= Duration::from_secs_f64(1.25), "{delay:?}");
    }
}
