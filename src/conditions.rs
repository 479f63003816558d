//! What readiness depends on: named conditions, each met or unmet with a reason.
//!
//! Written by the daemon's loops, read by `/readyz`, the metrics and systemd's status line. A condition that nobody ever set is met.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The main database answers and takes writes.
pub const MAIN_DATABASE: &str = "main_database";
/// Signups are heard: the listening connection stands and its pings come back.
pub const DOORBELL: &str = "doorbell";
/// The migration set is loaded, in force, and refused by nothing.
pub const MIGRATION_SET: &str = "migration_set";
/// No tenant is held back by `tenant.max` or `tenant.max_per_hour`.
pub const BRAKES: &str = "brakes";
/// The registry is ours, undamaged and not newer than this tenantd.
pub const REGISTRY: &str = "registry";
/// Tenants can be made of the newest migrations: their template is built.
pub const TEMPLATE: &str = "template";
/// The daemon takes new work; unmet while it ends.
pub const DRAINING: &str = "draining";

/// Every condition, in the order of the alphabet.
pub const NAMES: [&str; 7] = [BRAKES, DOORBELL, DRAINING, MAIN_DATABASE, MIGRATION_SET, REGISTRY, TEMPLATE];

/// Unmet conditions by name, each with why it is unmet.
pub type Unmet = BTreeMap<&'static str, String>;

/// The conditions of one daemon. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Arc<watch::Sender<Unmet>>);

impl Conditions {
    /// All met.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The condition `name` is not met, for `reason`: a sentence for an operator, without secrets.
    /// The same reason again wakes no reader.
    pub fn set(&self, name: &'static str, reason: impl Into<String>) {
        let reason = reason.into();
        self.0.send_if_modified(|unmet| {
            let news = unmet.get(name) != Some(&reason);
            unmet.insert(name, reason);
            news
        });
    }

    /// The condition `name` is met.
    pub fn clear(&self, name: &'static str) {
        self.0.send_if_modified(|unmet| unmet.remove(name).is_some());
    }

    /// What is not met now; empty: ready.
    #[must_use]
    pub fn unmet(&self) -> Unmet {
        self.0.borrow().clone()
    }

    /// Hears of each change from now on; the present state is not a change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Unmet> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmet_conditions_are_named_with_their_reason() {
        let conditions = Conditions::new();
        assert!(conditions.unmet().is_empty(), "what nobody set is met");
        let other = conditions.clone();
        other.set(MAIN_DATABASE, "connection refused");
        conditions.set(DOORBELL, "no ping came back");
        let unmet = Unmet::from([(DOORBELL, "no ping came back".into()), (MAIN_DATABASE, "connection refused".into())]);
        assert_eq!(conditions.unmet(), unmet);
        conditions.clear(DOORBELL);
        assert_eq!(other.unmet().into_keys().collect::<Vec<_>>(), [MAIN_DATABASE]);
    }

    #[test]
    fn only_news_wakes_a_reader() {
        let conditions = Conditions::new();
        let mut changes = conditions.changes();
        let mut news = || {
            let news = changes.has_changed().unwrap();
            changes.mark_unchanged();
            news
        };
        conditions.clear(BRAKES);
        assert!(!news(), "it was met");
        conditions.set(BRAKES, "1 waits");
        assert!(news());
        conditions.set(BRAKES, "1 waits");
        assert!(!news(), "the same again");
        conditions.set(BRAKES, "2 wait");
        assert!(news(), "another reason");
        conditions.clear(BRAKES);
        assert!(news());
    }

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(NAMES.is_sorted_by(|a, b| a < b));
    }
}
