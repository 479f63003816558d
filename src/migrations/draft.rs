//! A new migration: the two files to be written into, named with the next version.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;

use super::Mode;
use super::source::parse_name;
use crate::error::{Error, Result};

/// Digits of a version that tells a moment: year to second.
const MOMENT: usize = 14;

/// Digits of a version in a folder that holds none yet.
const DIGITS: usize = 4;

/// The two files of a new migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its version.
    pub version: i64,
    /// What applies it.
    pub up: PathBuf,
    /// What takes it back.
    pub down: PathBuf,
}

/// Writes the files of a new migration called `name` into `folder`, each with a comment and nothing else: until it holds a statement the set
/// is refused. The version is the next one, as many digits wide as the newest, or the moment `now` where the folder counts so or `by_moment` is
/// asked for. No file is ever overwritten.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage): the name cannot be one, the folder cannot be read or written to.
pub fn draft(folder: &Path, name: &str, mode: Mode, by_moment: bool, now: DateTime) -> Result<Draft> {
    if parse_name(&format!("1_{name}.up.sql")).is_err() || name.contains('.') {
        return Err(Error::usage(format!("{name:?} cannot name a migration: letters, digits, _ and - can"))
            .hint("write it like add_level_to_message"));
    }
    let (version, digits) = next(&names(folder)?, by_moment, now)?;
    let stem = format!("{version:0digits$}_{name}");
    let directive = if mode == Mode::Statements { "-- tenantd: no-transaction\n" } else { "" };
    let how = match mode {
        Mode::Transaction => "It runs in a transaction of its own: no BEGIN or COMMIT here.",
        Mode::Statements => "Each statement is sent by itself; cut off, it goes on at the first that was not done.",
    };
    let up = write(
        folder,
        &format!("{stem}.up.sql"),
        &format!("{directive}-- {name}: what it changes, and why.\n-- {how}\n\n"),
    )?;
    let back = format!("{directive}-- Takes {name} back. `tenantd lint` tries whether all is as before then.\n\n");
    let down = write(folder, &format!("{stem}.down.sql"), &back)?;
    Ok(Draft { version, up, down })
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().map_err(|error| {
        Error::usage(format!("read the folder {}", folder.display())).because(error).hint("make it, or name another")
    })
}

/// The next version and how many digits it is written with. Files of other names are nobody's business here.
fn next(names: &[String], by_moment: bool, now: DateTime) -> Result<(i64, usize)> {
    let digits = |name: &String| name.bytes().take_while(u8::is_ascii_digit).count();
    let versions = names.iter().filter_map(|name| Some((parse_name(name).ok()?.version, digits(name))));
    let newest = versions.max();
    let moment: i64 = now.strftime("%Y%m%d%H%M%S").to_string().parse().unwrap_or(0);
    let after = match newest {
        None if by_moment => return Ok((moment, MOMENT)),
        None => return Ok((1, DIGITS)),
        Some((version, digits)) if digits == MOMENT || by_moment => {
            (version.checked_add(1).map(|next| next.max(moment)), MOMENT)
        }
        Some((version, digits)) => (version.checked_add(1), digits),
    };
    match after {
        (Some(version), digits) => Ok((version, digits)),
        (None, _) => Err(Error::usage("no higher version is left in the folder")),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let written = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Error::usage(format!("write {}", path.display())).because(error))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn now() -> DateTime {
        jiff::civil::date(2026, 3, 1).at(12, 30, 5, 0)
    }

    fn names_of(draft: &Draft) -> [String; 2] {
        [&draft.up, &draft.down].map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
    }

    #[test]
    fn versions_go_on_as_the_folder_counts() {
        let table: [(&[&str], bool, i64, usize); 9] = [
            (&[], false, 1, 4),
            (&[], true, 20_260_301_123_005, 14),
            (&["0001_a.up.sql", "0002_b.sql", "README.md", "x.txt"], false, 3, 4),
            (&["1_a.sql", "9_b.sql"], false, 10, 1),
            (&["001_a.sql", "002_b.up.sql", "002_b.down.sql"], false, 3, 3),
            (&["20260101000000_a.sql"], false, 20_260_301_123_005, 14),
            (&["20991231235959_a.sql"], false, 20_991_231_235_960, 14),
            (&["0007_a.sql"], true, 20_260_301_123_005, 14),
            (&["0003_only.down.sql"], false, 4, 4),
        ];
        for (names, by_moment, version, digits) in table {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(next(&names, by_moment, now()).unwrap(), (version, digits), "{names:?}");
        }
        assert!(next(&[format!("{}_a.sql", i64::MAX)], false, now()).is_err());
    }

    #[test]
    fn both_files_say_what_they_are_for_and_are_refused_until_they_do_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = draft(folder.path(), "first", Mode::Transaction, false, now()).unwrap();
        assert_eq!(names_of(&first), ["0001_first.up.sql", "0001_first.down.sql"]);
        let text = fs::read_to_string(&first.up).unwrap();
        assert!(text.starts_with("-- first: what it changes, and why.\n"), "{text}");
        let refused = source::folder(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("0001_first.up.sql holds no statement"), "{refused}");
        assert!(refused.contains("0001_first.down.sql holds no statement"), "{refused}");

        let second = draft(folder.path(), "second", Mode::Statements, false, now()).unwrap();
        for path in [&first.up, &first.down, &second.up, &second.down] {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"select 1;\n").unwrap();
        }
        let set = source::folder(folder.path()).unwrap();
        let modes: Vec<_> =
            set.migrations().iter().map(|one| (one.version, one.mode, one.down.as_ref().unwrap().mode)).collect();
        assert_eq!(modes, [(1, Mode::Transaction, Mode::Transaction), (2, Mode::Statements, Mode::Statements)]);
    }

    #[test]
    fn odd_names_and_folders_are_refused_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "add level", "a.down", "../a", "ä"] {
            let error = draft(folder.path(), name, Mode::Transaction, false, now()).unwrap_err();
            assert!(error.to_string().contains("cannot name a migration"), "{name:?}: {error}");
        }
        assert!(draft(&folder.path().join("missing"), "a", Mode::Transaction, false, now()).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let path = write(folder.path(), "0001_a.up.sql", "mine").unwrap();
        assert!(write(folder.path(), "0001_a.up.sql", "another's").is_err());
        assert_eq!(fs::read_to_string(path).unwrap(), "mine");
    }
}
