//! What systemd is told: ready, reloading, stopping, a status line, and that the daemon is alive.
//!
//! Where there is no systemd nothing is sent and nothing fails: the socket's name is in the environment, read by the crate `sd-notify`.

use std::future::Future;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::conditions::{Conditions, Unmet};
use crate::heartbeat::Heartbeats;

/// While draining systemd is asked for time this often,
const ASK_EVERY: Duration = Duration::from_secs(5);

/// and for this much more.
const ASK_FOR: Duration = Duration::from_secs(20);

/// A status line is cut here: it is one line of `systemctl status`.
const STATUS_LETTERS: usize = 300;

/// The service has started, or has read its settings again. A main database out of reach does not stop a service from starting.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The settings are being read again; [`ready`] must follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the clock for systemd could not be read"),
    }
}

/// The service is ending. Polls `work` to its end, asking for more time while it lasts, so that the unit's own time limit need not know
/// the setting `work.shutdown`.
pub async fn stopping<F: Future>(work: F) -> F::Output {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing the work in hand")]);
    let mut work = std::pin::pin!(work);
    loop {
        tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(ASK_FOR.as_micros()).unwrap_or(u32::MAX))]);
        tokio::select! {
            done = &mut work => return done,
            () = sleep(ASK_EVERY) => {}
        }
    }
}

/// Keeps systemd informed for as long as it is polled: the watchdog is fed twice in its time, only while no loop is late, and the status
/// line follows the conditions. `status` is the line while all are met.
///
/// # Guarantees
/// A daemon with a stuck loop is not fed, and so restarted by systemd. Without a watchdog only the status is sent.
pub async fn keep_informed(heartbeats: &Heartbeats, conditions: &Conditions, status: &str) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(Duration::from_secs(10), |watchdog| watchdog / 2);
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = conditions.changes();
    let mut late_since = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let late = heartbeats.late();
                note_late(&late, &mut late_since);
                if watchdog.is_some() && late.is_empty() {
                    tell(&[NotifyState::Watchdog]);
                }
            }
            // `conditions` holds the sender, so this never ends with an error.
            _ = changes.changed() => tell(&[NotifyState::Status(&status_line(&changes.borrow_and_update(), status))]),
        }
    }
}

/// One ERROR when loops become late, one line when they turn again.
fn note_late(late: &[&str], since: &mut Option<Instant>) {
    match (late.is_empty(), since.as_ref()) {
        (false, None) => {
            tracing::error!(
                loops = late.join(", "),
                "the daemon is stuck; systemd's watchdog, where it is on, is not fed"
            );
            *since = Some(Instant::now());
        }
        (true, Some(began)) => {
            tracing::info!(seconds = began.elapsed().as_secs(), "the daemon is no longer stuck");
            *since = None;
        }
        _ => {}
    }
}

/// `status` when all is met, else each unmet condition with its reason.
#[must_use]
pub fn status_line(unmet: &Unmet, status: &str) -> String {
    if unmet.is_empty() {
        return one_line(status);
    }
    let reasons: Vec<String> = unmet.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    one_line(&reasons.join("; "))
}

/// A new line would begin another message to systemd.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(STATUS_LETTERS).collect()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_names_what_is_unmet() {
        assert_eq!(status_line(&Unmet::new(), "12 tenants"), "12 tenants");
        let unmet = Unmet::from([("doorbell", "no ping".into()), ("main_database", "refused".into())]);
        assert_eq!(status_line(&unmet, "12 tenants"), "doorbell: no ping; main_database: refused");
    }

    #[test]
    fn a_reason_cannot_send_a_message_of_its_own() {
        let unmet = Unmet::from([("registry", "x\nSTOPPING=1\r\nWATCHDOG=trigger".into())]);
        let line = status_line(&unmet, "");
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(one_line(&"ü".repeat(9999)).chars().count(), STATUS_LETTERS);
    }
}
