//! What is to be taken back of what was applied, and whether it can be.

use super::compare::{Recorded, difference};
use super::{Down, Migration, MigrationSet};
use crate::error::{Error, Kind, Result};

/// How far to go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Until nothing newer than this version is left; 0: nothing at all.
    To(i64),
    /// So many migrations, the newest first.
    Steps(usize),
}

impl Target {
    /// The newest version of `theirs` that stays.
    #[must_use]
    pub fn version(self, theirs: &[Recorded]) -> i64 {
        match self {
            Target::To(version) => version,
            Target::Steps(steps) => {
                let mut versions: Vec<i64> = theirs.iter().map(|recorded| recorded.entry.version).collect();
                versions.sort_unstable();
                versions.iter().rev().nth(steps).copied().unwrap_or(0)
            }
        }
    }
}

/// What is taken back from `theirs`, the newest first, so that nothing newer than `to` is left, each with how. One that was half undone is
/// among it.
///
/// # Errors
/// Before anything is touched, with every reason: [`Kind::Drift`] when something applied is not among ours as it was applied;
/// [`Kind::Usage`] when one has no down file.
pub fn back<'a>(ours: &'a MigrationSet, theirs: &[Recorded], to: i64) -> Result<Vec<(&'a Migration, &'a Down)>> {
    let (mut found, mut drifted, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for Recorded { entry, half_undone, .. } in theirs {
        let Some(migration) = ours.get(entry.version) else {
            let source = ours.source();
            drifted.push(format!(
                "Migration {} \"{}\" was applied, and {source} holds no such file.",
                entry.version, entry.name
            ));
            continue;
        };
        drifted.extend(difference(migration, entry).map(|finding| finding.to_string()));
        match &migration.down {
            _ if entry.version <= to && !half_undone => {}
            Some(down) => found.push((migration, down)),
            None => without.push(migration),
        }
    }
    if !drifted.is_empty() {
        return Err(Error::new(Kind::Drift, drifted.join(" "))
            .hint("put the files back as they were applied, or take the tenantd that carries them"));
    }
    refuse_without_down(without)?;
    found.sort_by_key(|(migration, _)| std::cmp::Reverse(migration.version));
    Ok(found)
}

/// Refuses to take `migrations` back where one has no down file.
///
/// # Errors
/// [`Kind::Usage`], naming each that has none.
pub fn refuse_without_down<'a>(migrations: impl IntoIterator<Item = &'a Migration>) -> Result<()> {
    let without = migrations.into_iter().filter(|migration| migration.down.is_none());
    let without: Vec<_> = without.map(|migration| format!("{} has no down file", migration.file)).collect();
    if without.is_empty() {
        return Ok(());
    }
    Err(Error::usage(without.join("; ")).hint("what takes 0001_name.up.sql back is 0001_name.down.sql beside it"))
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::super::tests::migration;
    use super::*;

    /// Versions from 1 on; those in `without` have no down file.
    fn set(count: i64, without: &[i64]) -> MigrationSet {
        let one = |version| {
            let down =
                Down { file: format!("{version}.down.sql"), sql: "select 1".to_owned(), mode: Mode::Transaction };
            let down = (!without.contains(&version)).then_some(down);
            Migration { down, ..migration(version, &format!("m{version}"), "") }
        };
        MigrationSet::new("folder", (1..=count).map(one).collect()).unwrap()
    }

    fn applied(set: &MigrationSet) -> Vec<Recorded> {
        set.entries().into_iter().map(Recorded::from).collect()
    }

    fn versions(back: &[(&Migration, &Down)]) -> Vec<i64> {
        back.iter().map(|(migration, _)| migration.version).collect()
    }

    #[test]
    fn the_newest_comes_first_down_to_the_version_that_stays() {
        let set = set(4, &[]);
        let theirs = applied(&set);
        for (to, expected) in [(4, vec![]), (9, vec![]), (3, vec![4]), (1, vec![4, 3, 2]), (0, vec![4, 3, 2, 1])] {
            assert_eq!(versions(&back(&set, &theirs, to).unwrap()), expected, "to {to}");
        }
        assert_eq!(versions(&back(&set, &theirs[..2], 0).unwrap()), [2, 1], "what was never applied is not taken back");
    }

    #[test]
    fn a_half_undone_one_is_taken_back_in_any_case() {
        let set = set(2, &[]);
        let mut theirs = applied(&set);
        theirs[1].half_undone = true;
        assert_eq!(versions(&back(&set, &theirs, 2).unwrap()), [2]);
    }

    #[test]
    fn missing_down_files_are_all_named_and_only_where_they_matter() {
        let set = set(4, &[1, 3, 4]);
        let theirs = applied(&set);
        let error = back(&set, &theirs, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(error.to_string(), "folder/0003_m3.up.sql has no down file; folder/0004_m4.up.sql has no down file");
        assert_eq!(versions(&back(&set, &theirs[..2], 1).unwrap()), [2]);
    }

    #[test]
    fn what_was_applied_otherwise_is_refused_wherever_it_stands() {
        let set = set(3, &[]);
        let mut theirs = applied(&set);
        theirs[0].entry.checksum = "0123456789abcdef".to_owned();
        theirs.push(Recorded::from(super::super::Entry {
            version: 9,
            name: "later".to_owned(),
            checksum: String::new(),
        }));
        let error = back(&set, &theirs, 2).unwrap_err();
        assert_eq!(error.kind(), Kind::Drift);
        let text = error.to_string();
        assert!(text.starts_with("folder/0001_m1.up.sql was changed after version 1 was applied"), "{text}");
        assert!(text.ends_with("Migration 9 \"later\" was applied, and folder holds no such file."), "{text}");
    }
}
