//! How far a sweep has come: a bar on stderr, where that is a terminal.

use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::provision::Outcome;

/// No colours; what does not fit the terminal is cut off.
const TEMPLATE: &str = "{prefix} [{bar:40}] {pos} of {len}{msg}, {eta} to go";

/// The bar of one sweep, or of another command that goes from tenant to tenant. It appears with the first tenant that ended and leaves nothing behind.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    failed: AtomicUsize,
}

impl Bar {
    /// A sweep's bar, drawn on stderr if that is a terminal, and never otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::of("sweep")
    }

    /// The same for the command called `word`.
    #[must_use]
    pub fn of(word: &'static str) -> Self {
        let bar = Self::drawn_on(ProgressDrawTarget::stderr());
        bar.bar.set_prefix(word);
        bar
    }

    fn drawn_on(target: ProgressDrawTarget) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is right").progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style);
        Bar { bar, failed: AtomicUsize::new(0) }
    }

    /// Takes what [`sweep`](crate::sweep::sweep) tells of one tenant: how it ended, how many have, and how many were chosen.
    pub fn ended(&self, outcome: Option<&Outcome>, ended: usize, chosen: usize) {
        self.count(matches!(outcome, Some(Outcome::Failed { .. } | Outcome::Server(_))), ended, chosen);
    }

    /// Takes that one more tenant came to its end: whether it failed, how many have, and how many were chosen.
    pub fn count(&self, failed: bool, ended: usize, chosen: usize) {
        if failed {
            let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
            self.bar.set_message(format!(", {failed} failed"));
        }
        self.bar.set_length(u64::try_from(chosen).unwrap_or(u64::MAX));
        self.bar.set_position(u64::try_from(ended).unwrap_or(u64::MAX));
    }

    /// `through` of `all` tenants were looked at, and `found` things found.
    pub fn looked(&self, through: usize, all: usize, found: usize) {
        if found > 0 {
            self.bar.set_message(format!(", {found} found"));
        }
        self.bar.set_length(u64::try_from(all).unwrap_or(u64::MAX));
        self.bar.set_position(u64::try_from(through).unwrap_or(u64::MAX));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    #[test]
    fn it_counts_what_ended_and_what_failed() {
        let bar = Bar::drawn_on(ProgressDrawTarget::hidden());
        let error = || Error::new(Kind::Other, "x");
        let outcomes = [
            Some(Outcome::Ready { made: true, migrated: vec![1] }),
            Some(Outcome::Failed { error: error(), parked: false }),
            Some(Outcome::Left(error())),
            Some(Outcome::Server(error())),
            None,
        ];
        for (index, outcome) in outcomes.iter().enumerate() {
            bar.ended(outcome.as_ref(), index + 1, 7);
        }
        assert_eq!((bar.bar.position(), bar.bar.length()), (5, Some(7)));
        assert_eq!(bar.bar.message(), ", 2 failed");
        bar.looked(6, 8, 3);
        assert_eq!((bar.bar.position(), bar.bar.length(), bar.bar.message()), (6, Some(8), ", 3 found".to_owned()));
        bar.finish();
        assert!(bar.bar.is_finished());
    }
}
