//! The files of backups: their names, how one is written whole, which are old.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, Kind, Result};

/// What of a database's name stays as it is in a file's.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// The moment within a file's name, in UTC and to the millisecond.
const MOMENT: &str = "%Y%m%dT%H%M%S.%3fZ";

const WHOLE: &str = ".dump";
const PART: &str = ".part";

/// What was being written so long ago is not being written any more.
const ABANDONED: Duration = Duration::from_hours(24);

/// The name of a backup of the database `name`, taken now.
pub(super) fn file_name(name: &str, now: Timestamp) -> String {
    format!("{}_{}{WHOLE}", utf8_percent_encode(name, ESCAPED), now.strftime(MOMENT))
}

/// What a file's name says, if it is that of a backup.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    /// The database's name, escaped.
    database: &'a str,
    at: Timestamp,
    whole: bool,
}

fn read_name(file_name: &str) -> Option<Named<'_>> {
    let (name, whole) = match file_name.strip_suffix(PART) {
        Some(name) => (name, false),
        None => (file_name, true),
    };
    let (database, at) = name.strip_suffix(WHOLE)?.rsplit_once('_')?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '%');
    // As many signs as we write, so that no other name is taken for one of ours.
    if database.is_empty() || !database.chars().all(plain) || at.len() != "20260301T120000.123Z".len() {
        return None;
    }
    let at = DateTime::strptime("%Y%m%dT%H%M%S.%fZ", at).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(Named { database, at, whole })
}

/// Makes the folder, for us alone, unless it is there.
pub(super) fn make(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        Error::usage(format!("make the folder for backups {}", folder.display()))
            .because(error)
            .hint("let tenantd's user write there, or name another folder in backup.folder")
    })
}

/// The bytes that may still be written to the folder.
pub(super) fn room(folder: &Path) -> Result<u64> {
    let room = rustix::fs::statvfs(folder).map_err(|error| {
        Error::new(Kind::Other, format!("look how much room {} has", folder.display())).because(error)
    })?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// A file in the making, deleted when it is dropped before its end.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Part {
    /// For what is to become `file`: empty, and to be read by us alone.
    pub(super) fn create(file: &Path) -> Result<Part> {
        let path = PathBuf::from(format!("{}{PART}", file.display()));
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let opened = opened.map_err(|error| {
            Error::usage(format!("make the file {}", path.display()))
                .because(error)
                .hint("let tenantd's user write to backup.folder")
        })?;
        Ok(Part { path, file: opened, finished: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, once it is on disk. Returns its size in bytes.
    pub(super) fn finish(mut self, file: &Path) -> Result<u64> {
        let finished = || {
            self.file.sync_all()?;
            let bytes = self.file.metadata()?.len();
            fs::rename(&self.path, file)?;
            if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                File::open(folder)?.sync_all()?;
            }
            Ok::<u64, std::io::Error>(bytes)
        };
        let bytes = finished()
            .map_err(|error| Error::new(Kind::Other, format!("finish the file {}", file.display())).because(error))?;
        self.finished = true;
        Ok(bytes)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be deleted now is pruned later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Every file of the folder whose name is that of a backup.
fn backups(folder: &Path) -> Result<Vec<String>> {
    let unread = |error| Error::new(Kind::Other, format!("read the folder {}", folder.display())).because(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unread)? {
        let name = entry.map_err(unread)?.file_name();
        names.extend(name.to_str().filter(|name| read_name(name).is_some()).map(str::to_owned));
    }
    Ok(names)
}

/// The newest whole backup of the database `name` in `folder`, if there is one.
#[must_use]
pub fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    let wanted = utf8_percent_encode(name, ESCAPED).to_string();
    let files = backups(folder).ok()?;
    let of_name = files.iter().filter_map(|file| Some((file, read_name(file)?)));
    let whole = of_name.filter(|(_, named)| named.whole && named.database == wanted);
    whole.max_by_key(|(_, named)| named.at).map(|(file, _)| folder.join(file))
}

pub(super) fn prune(folder: &Path, keep: Option<Duration>, now: Timestamp) -> Result<Vec<PathBuf>> {
    let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
    let mut pruned = Vec::new();
    for file in backups(folder)? {
        let Some(named) = read_name(&file) else { continue };
        let old = if named.whole {
            keep.is_some_and(|keep| age(named.at) > keep)
        } else {
            age(named.at) > ABANDONED && untouched_for(&folder.join(&file)) > ABANDONED
        };
        if !old {
            continue;
        }
        let path = folder.join(&file);
        match fs::remove_file(&path) {
            Ok(()) => pruned.push(path),
            Err(error) => tracing::warn!(file = %path.display(), %error, "an old backup could not be deleted"),
        }
    }
    pruned.sort();
    Ok(pruned)
}

/// A large database may take longer than a day.
fn untouched_for(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|at| at.elapsed().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_reads_back() {
        let now = at("2026-03-01T12:00:01.25Z");
        let name = file_name("tenant_1", now);
        assert_eq!(name, "tenant_1_20260301T120001.250Z.dump");
        assert_eq!(read_name(&name), Some(Named { database: "tenant_1", at: now, whole: true }));
        assert!(!read_name(&format!("{name}.part")).unwrap().whole);
        assert_eq!(file_name("../Ä b", now), "%2E%2E%2F%C3%84%20b_20260301T120001.250Z.dump");
    }

    #[test]
    fn other_names_are_left_alone() {
        for name in [
            "tenant_1.dump",
            "notes.txt",
            "tenant_1_20260301.dump",
            "_20260301T120001.250Z.dump",
            "tenant_1_20260301T120001.250Z.sql",
            "tenant_1_20260301T120001.250Z.dump.gz",
            "tenant_1_20261301T120001.250Z.dump",
            "my backup_20260301T120001.250Z.dump",
            "tenant_1_20260301T120001Z.dump",
        ] {
            assert_eq!(read_name(name), None, "{name}");
        }
    }

    #[test]
    fn old_backups_go_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let (now, day) = (at("2026-03-31T12:00:00Z"), Duration::from_hours(24));
        let old = ["a_20260301T115959.000Z.dump", "a_20260228T000000.000Z.dump"];
        let part = "a_20260301T115959.000Z.dump.part";
        let kept = [
            "a_20260302T120000.000Z.dump",
            "a_20260301T115959.000Z.dump.txt",
            "mine.dump",
            "b_20260331T120000.000Z.dump.part",
        ];
        for name in old.iter().chain(&kept).chain([&part]) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(prune(folder.path(), None, now).unwrap(), Vec::<PathBuf>::new(), "kept for ever; parts are young");
        let long_ago = SystemTime::now() - 2 * day;
        File::open(folder.path().join(part)).unwrap().set_modified(long_ago).unwrap();
        let mut gone: Vec<_> = old.iter().chain([&part]).map(|name| folder.path().join(name)).collect();
        gone.sort();
        assert_eq!(prune(folder.path(), Some(30 * day), now).unwrap(), gone);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), kept.len());
    }

    #[test]
    fn the_newest_whole_one_of_a_database_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a_20260301T115959.000Z.dump",
            "a_20260302T115959.000Z.dump",
            "a_20260303T115959.000Z.dump.part",
            "a_a_20260304T115959.000Z.dump",
        ] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(newest(folder.path(), "a"), Some(folder.path().join("a_20260302T115959.000Z.dump")));
        assert_eq!(newest(folder.path(), "b"), None);
        assert_eq!(newest(Path::new("/nowhere"), "a"), None);
    }

    #[test]
    fn what_is_not_finished_goes_and_what_is_can_be_read_by_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a_20260301T115959.000Z.dump");
        drop(Part::create(&file).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let part = Part::create(&file).unwrap();
        assert!(Part::create(&file).is_err(), "two never write the same file");
        fs::write(part.path(), "abc").unwrap();
        assert_eq!(part.finish(&file).unwrap(), 3);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(room(folder.path()).unwrap() > 0);
    }
}
