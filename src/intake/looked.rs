//! What a look at the registry found, as far as it decides how the daemon sleeps.

use crate::registry::claim::Most;

/// What one look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing is due.
    Nothing,
    /// One tenant was claimed, and no more are due.
    One,
    /// Several were claimed, or as many as could be: more may be due already, whose signups have rung.
    Several,
    /// No lane is free any more: what else is due waits in the registry, unless there is a spare for it.
    Full,
    /// Nothing may be taken now: the brakes are on, no template serves, or the migration set is refused.
    Held,
}

impl Looked {
    /// What it means that so many of `most` were claimed, with so many lanes `free` now. Lanes that became free while it looked say nothing
    /// about what it left.
    pub(super) fn after(claimed: usize, most: Most, free: usize) -> Looked {
        match claimed {
            _ if free == 0 => Looked::Full,
            0 => Looked::Nothing,
            1 if most.lanes > 1 => Looked::One,
            _ => Looked::Several,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_looked_for_again() {
        let most = |lanes| Most { room: 100, making: lanes, by_spares: 0, lanes };
        assert_eq!(Looked::after(0, most(2), 2), Looked::Nothing);
        assert_eq!(Looked::after(1, most(2), 1), Looked::One);
        assert_eq!(Looked::after(2, most(4), 2), Looked::Several);
        assert_eq!(Looked::after(2, most(2), 0), Looked::Full);
        // One lane was free, and the other became so meanwhile: a burst left more than the one that was claimed.
        assert_eq!(Looked::after(1, most(1), 1), Looked::Several);
        assert_eq!(Looked::after(3, Most { by_spares: 50, ..most(0) }, 1), Looked::Several);
    }
}
