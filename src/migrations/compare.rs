//! Our set beside what was applied: the rules of behind, newer and diverged, in one place for a tenant's history and a recorded set.

use std::collections::BTreeMap;
use std::fmt;

use super::{Entry, Migration, MigrationSet};
use crate::error::{Error, Kind, Result};

/// A migration as a history or a recorded set has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Which one.
    pub entry: Entry,
    /// False for a migration without a transaction that was begun and has not come to its end.
    pub finished: bool,
    /// Whether taking it back, without a transaction, was begun and has not come to its end.
    pub half_undone: bool,
}

impl From<Entry> for Recorded {
    fn from(entry: Entry) -> Self {
        Recorded { entry, finished: true, half_undone: false }
    }
}

/// How theirs stands to ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// They are the same.
    Current,
    /// Ours holds all of theirs and more: what is to be applied, in order. An unfinished one is among it.
    Behind(Vec<&'a Migration>),
    /// Theirs holds all of ours and more: what it has more, in order.
    Newer(Vec<Entry>),
    /// Anything else; why.
    Diverged(Vec<Finding>),
}

/// One reason why two sets do not go together. Its text is a full sentence that names both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The file is not the one that was applied.
    Changed {
        /// Our file.
        file: String,
        /// Its version.
        version: i64,
        /// The checksum of our file.
        ours: String,
        /// The checksum that was applied.
        theirs: String,
    },
    /// The same bytes were applied under another name.
    Renamed {
        /// Our file.
        file: String,
        /// Its version.
        version: i64,
        /// The name that was applied.
        theirs: String,
    },
    /// Applied, and not among ours.
    Vanished {
        /// What was applied.
        entry: Entry,
        /// Where ours come from.
        source: String,
    },
    /// Ours, not applied, and older than what is.
    OutOfOrder {
        /// Our file.
        file: String,
        /// The newest version that was applied.
        newest_applied: i64,
        /// The file name that would mend it; `None` when no higher version is left.
        suggestion: Option<String>,
    },
    /// Taking it back was begun and has not come to its end.
    HalfUndone(Entry),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Changed { file, version, ours, theirs } => write!(
                f,
                "{file} was changed after version {version} was applied: its checksum is {}, applied was {}.",
                short(ours),
                short(theirs)
            ),
            Finding::Renamed { file, version, theirs } => {
                write!(f, "{file} was renamed after version {version} was applied under the name \"{theirs}\".")
            }
            Finding::Vanished { entry, source } => write!(
                f,
                "Migration {} \"{}\" was applied, and {source} holds no such file (checksum {}).",
                entry.version,
                entry.name,
                short(&entry.checksum)
            ),
            Finding::OutOfOrder { file, newest_applied, suggestion } => {
                write!(f, "{file} was not applied and is older than version {newest_applied}, which was")?;
                match suggestion {
                    Some(name) => write!(f, ": rename it to {name}, or set tenant.out_of_order = true."),
                    None => f.write_str(": set tenant.out_of_order = true."),
                }
            }
            Finding::HalfUndone(Entry { version, name, .. }) => {
                write!(f, "Taking migration {version} \"{name}\" back was begun and has not come to its end.")
            }
        }
    }
}

/// Enough of a checksum to tell two apart by eye.
fn short(checksum: &str) -> &str {
    checksum.get(..12).unwrap_or(checksum)
}

impl<'a> Verdict<'a> {
    /// What is to be applied, in order; nothing when current.
    ///
    /// # Errors
    /// [`Kind::Newer`] or [`Kind::Drift`] with every reason.
    pub fn pending(self) -> Result<Vec<&'a Migration>> {
        match self {
            Verdict::Current => Ok(Vec::new()),
            Verdict::Behind(pending) => Ok(pending),
            Verdict::Newer(more) => {
                let more: Vec<_> = more.iter().map(|entry| format!("{} \"{}\"", entry.version, entry.name)).collect();
                let message = format!("applied are migrations that this tenantd does not carry: {}", more.join(", "));
                Err(Error::new(Kind::Newer, message).hint("run the tenantd that carries them"))
            }
            Verdict::Diverged(findings) => {
                let half_undone = findings.iter().any(|finding| matches!(finding, Finding::HalfUndone(_)));
                let findings: Vec<_> = findings.iter().map(Finding::to_string).collect();
                let hint = if half_undone {
                    "`tenantd rollback` goes on where it stood"
                } else {
                    "put the files back as they were applied, and make each change a new migration"
                };
                Err(Error::new(Kind::Drift, findings.join(" ")).hint(hint))
            }
        }
    }
}

/// Compares what `ours` carries with what was applied. `out_of_order`: a version below the newest applied may still be applied.
///
/// A file that vanished from the end of ours cannot be told from a newer set, and is called newer; with `out_of_order` the same goes for any other
/// place, as long as nothing of ours is missing.
#[must_use]
pub fn compare<'a>(ours: &'a MigrationSet, theirs: &[Recorded], out_of_order: bool) -> Verdict<'a> {
    let by_version: BTreeMap<i64, &Recorded> =
        theirs.iter().map(|recorded| (recorded.entry.version, recorded)).collect();
    let newest_applied = by_version.last_key_value().map_or(0, |(version, _)| *version);
    let mut findings = Vec::new();
    let mut pending = Vec::new();
    let mut newest = newest_applied.max(ours.newest_version());
    let mut missing = false;
    for migration in ours.migrations() {
        if let Some(recorded) = by_version.get(&migration.version) {
            findings.extend(difference(migration, &recorded.entry));
            findings.extend(recorded.half_undone.then(|| Finding::HalfUndone(recorded.entry.clone())));
            if !recorded.finished {
                pending.push(migration);
            }
            continue;
        }
        missing = true;
        pending.push(migration);
        if migration.version < newest_applied && !out_of_order {
            let suggestion = newest.checked_add(1).map(|next| renumbered(migration, next));
            newest = newest.saturating_add(1);
            findings.push(Finding::OutOfOrder { file: migration.file.clone(), newest_applied, suggestion });
        }
    }
    let mut more = Vec::new();
    for (version, recorded) in &by_version {
        if ours.get(*version).is_none() {
            let newer = !missing && (out_of_order || *version > ours.newest_version());
            if newer {
                more.push(recorded.entry.clone());
            } else {
                findings.push(Finding::Vanished { entry: recorded.entry.clone(), source: ours.source().to_owned() });
            }
        }
    }
    if !findings.is_empty() {
        Verdict::Diverged(findings)
    } else if !more.is_empty() {
        Verdict::Newer(more)
    } else if !pending.is_empty() {
        Verdict::Behind(pending)
    } else {
        Verdict::Current
    }
}

pub(super) fn difference(ours: &Migration, theirs: &Entry) -> Option<Finding> {
    let (file, version) = (ours.file.clone(), ours.version);
    if ours.checksum != theirs.checksum {
        Some(Finding::Changed { file, version, ours: ours.checksum.clone(), theirs: theirs.checksum.clone() })
    } else if ours.name != theirs.name {
        Some(Finding::Renamed { file, version, theirs: theirs.name.clone() })
    } else {
        None
    }
}

/// The file's name with `version` in place of its own, as many digits wide.
fn renumbered(migration: &Migration, version: i64) -> String {
    let file = migration.file.rsplit('/').next().unwrap_or_default();
    let (digits, rest) = file.split_once('_').unwrap_or(("", file));
    format!("{version:0width$}_{rest}", width = digits.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::migrations::tests::migration;

    fn set(versions: &[i64]) -> MigrationSet {
        let migrations =
            versions.iter().map(|&version| migration(version, &format!("m{version}"), &version.to_string()));
        MigrationSet::new("folder", migrations.collect()).unwrap()
    }

    fn applied(versions: &[i64]) -> Vec<Recorded> {
        if versions.is_empty() { Vec::new() } else { set(versions).entries().into_iter().map(Recorded::from).collect() }
    }

    /// The verdict in short: the versions it names, or the findings' texts.
    fn verdict(ours: &[i64], theirs: &[i64], out_of_order: bool) -> (&'static str, Vec<i64>) {
        let ours = set(ours);
        match compare(&ours, &applied(theirs), out_of_order) {
            Verdict::Current => ("current", vec![]),
            Verdict::Behind(pending) => ("behind", pending.iter().map(|migration| migration.version).collect()),
            Verdict::Newer(more) => ("newer", more.iter().map(|entry| entry.version).collect()),
            Verdict::Diverged(findings) => (
                "diverged",
                findings
                    .iter()
                    .map(|finding| match finding {
                        Finding::Vanished { entry, .. } | Finding::HalfUndone(entry) => -entry.version,
                        Finding::OutOfOrder { file, .. } => file[7..11].parse().unwrap(),
                        Finding::Changed { version, .. } | Finding::Renamed { version, .. } => *version,
                    })
                    .collect(),
            ),
        }
    }

    /// Ours, theirs, `out_of_order`, the verdict and the versions it names.
    type Case = (&'static [i64], &'static [i64], bool, &'static str, &'static [i64]);

    #[test]
    fn verdicts_by_table() {
        let table: &[Case] = &[
            (&[1, 2], &[1, 2], false, "current", &[]),
            (&[1, 2], &[], false, "behind", &[1, 2]),
            (&[1, 2, 3], &[1], false, "behind", &[2, 3]),
            (&[1, 2], &[1, 2, 3], false, "newer", &[3]),
            (&[1, 2, 3], &[1, 3], false, "diverged", &[2]),
            (&[1, 2, 3], &[1, 3], true, "behind", &[2]),
            (&[1, 3], &[1, 2, 3], false, "diverged", &[-2]),
            (&[1, 3], &[1, 2, 3], true, "newer", &[2]),
            (&[1, 2, 4], &[1, 2, 3], false, "diverged", &[-3]),
            (&[1, 2, 4], &[1, 2, 3], true, "diverged", &[-3]),
            (&[1, 3], &[1, 2], true, "diverged", &[-2]),
            (&[1, 2, 3, 4], &[1, 2, 4, 5], false, "diverged", &[3, -5]),
            (&[5], &[7], false, "diverged", &[5, -7]),
        ];
        for (ours, theirs, out_of_order, word, versions) in table {
            assert_eq!(
                verdict(ours, theirs, *out_of_order),
                (*word, versions.to_vec()),
                "{ours:?} {theirs:?} {out_of_order}"
            );
        }
    }

    #[test]
    fn changed_and_renamed_name_both_sides() {
        let ours = set(&[1, 2]);
        let mut theirs = applied(&[1, 2]);
        theirs[0].entry.checksum = "0123456789abcdef".to_owned();
        theirs[1].entry.name = "other".to_owned();
        let error = compare(&ours, &theirs, false).pending().unwrap_err();
        assert_eq!(error.kind(), Kind::Drift);
        assert_eq!(
            error.to_string(),
            "folder/0001_m1.up.sql was changed after version 1 was applied: its checksum is 6b86b273ff34, applied was 0123456789ab. \
             folder/0002_m2.up.sql was renamed after version 2 was applied under the name \"other\"."
        );
    }

    #[test]
    fn vanished_out_of_order_and_newer_say_what_to_do() {
        let error = compare(&set(&[1, 2, 3, 9]), &applied(&[1, 4, 5]), false).pending().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("folder/0002_m2.up.sql was not applied and is older than version 5, which was: rename it to 0010_m2.up.sql, or"), "{text}");
        assert!(text.contains("rename it to 0011_m3.up.sql"), "{text}");
        assert!(
            text.contains("Migration 4 \"m4\" was applied, and folder holds no such file (checksum 4b227777d4dd)."),
            "{text}"
        );
        let error = compare(&set(&[1]), &applied(&[1, 2]), false).pending().unwrap_err();
        assert_eq!(error.kind(), Kind::Newer);
        assert!(error.to_string().ends_with("2 \"m2\""));
    }

    #[test]
    fn an_unfinished_one_is_pending_and_held_to_its_checksum() {
        let ours = set(&[1, 2, 3]);
        let mut theirs = applied(&[1, 2]);
        theirs[1].finished = false;
        let versions: Vec<_> = compare(&ours, &theirs, false).pending().unwrap().iter().map(|m| m.version).collect();
        assert_eq!(versions, [2, 3]);
        theirs[1].entry.checksum = "x".to_owned();
        assert!(matches!(compare(&ours, &theirs, true), Verdict::Diverged(_)));
    }

    #[test]
    fn a_half_undone_one_is_nothing_to_apply() {
        let ours = set(&[1, 2, 3]);
        let mut theirs = applied(&[1, 2]);
        theirs[1].half_undone = true;
        let error = compare(&ours, &theirs, false).pending().unwrap_err();
        assert_eq!(error.to_string(), "Taking migration 2 \"m2\" back was begun and has not come to its end.");
        assert_eq!(error.advice(), Some("`tenantd rollback` goes on where it stood"));
    }

    #[test]
    fn without_a_higher_version_there_is_no_new_name() {
        let text = compare(&set(&[1, 2]), &applied(&[1, i64::MAX]), false).pending().unwrap_err().to_string();
        assert!(text.contains("which was: set tenant.out_of_order = true."), "{text}");
    }

    proptest! {
        #[test]
        fn applying_what_is_pending_makes_it_current(
            ours in proptest::collection::btree_set(1_i64..12, 1..8),
            theirs in proptest::collection::btree_set(1_i64..12, 0..8),
            out_of_order: bool,
        ) {
            let (ours, theirs): (Vec<_>, Vec<_>) = (ours.into_iter().collect(), theirs.into_iter().collect());
            let (word, named) = verdict(&ours, &theirs, out_of_order);
            let covers = theirs.iter().all(|version| ours.contains(version));
            let covered = ours.iter().all(|version| theirs.contains(version));
            match word {
                "current" => prop_assert!(covers && covered),
                "behind" => {
                    prop_assert!(covers && !covered);
                    let mut after = theirs.clone();
                    after.extend(&named);
                    after.sort_unstable();
                    prop_assert_eq!(verdict(&ours, &after, out_of_order).0, "current");
                }
                "newer" => prop_assert!(covered && !covers),
                _ => prop_assert!(!out_of_order || (!covers && !covered)),
            }
        }
    }
}
