//! Migrations as they are on disk or in the binary, and what follows from comparing them with what was applied. All pure, but for
//! `source`, which reads a folder, and `draft`, which writes into one.

pub mod alone;
pub mod back;
pub mod compare;
pub mod draft;
pub mod embedded;
pub mod lint;
pub mod place;
pub mod source;
pub mod split;
mod tokens;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::tenant::hex;

/// One migration: what brings a schema to `version` from the version before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// From 1 on, compared as a number.
    pub version: i64,
    /// What stands between the version and the suffix in the file's name.
    pub name: String,
    /// SHA-256 of the file's bytes in lower-case hex.
    pub checksum: String,
    /// The file as errors show it.
    pub file: String,
    /// The file's text.
    pub sql: String,
    /// What takes it back, where the set has that.
    pub down: Option<Down>,
    /// How it is sent.
    pub mode: Mode,
    /// Whether an older tenantd can work with the result: on every main migration, on no tenant migration.
    pub breaking: Option<Breaking>,
}

/// What takes a migration back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// The file as errors show it.
    pub file: String,
    /// The file's text.
    pub sql: String,
    /// How it is sent.
    pub mode: Mode,
}

/// How a migration is sent to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As one message in a transaction of ours, which holds its history row too.
    Transaction,
    /// Statement by statement without a transaction: `-- tenantd: no-transaction`.
    Statements,
}

/// Whether a daemon that does not know a migration of the registry can work beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaking {
    /// It cannot.
    pub breaking: bool,
    /// Why, in the author's words.
    pub why: String,
}

/// What tells one migration from another: this is what a registry or a history keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The migration's version.
    pub version: i64,
    /// The migration's name.
    pub name: String,
    /// SHA-256 of the file's bytes in lower-case hex.
    pub checksum: String,
}

/// The ordered migrations that a daemon carries: at least one, no version twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationSet {
    source: String,
    migrations: Vec<Migration>,
}

impl Migration {
    /// What is kept of it.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry { version: self.version, name: self.name.clone(), checksum: self.checksum.clone() }
    }
}

impl MigrationSet {
    /// The set of `migrations`, in any order; `source` is where they came from, as people are told it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] when there is none, or a version stands twice.
    pub fn new(source: impl Into<String>, mut migrations: Vec<Migration>) -> Result<Self> {
        let source = source.into();
        migrations.sort_by_key(|migration| migration.version);
        if migrations.is_empty() {
            return Err(Error::usage(format!("{source} holds no migration"))
                .hint("put files named like 0001_name.up.sql there, or name another folder"));
        }
        if let Some(pair) = migrations.windows(2).find(|pair| pair[0].version == pair[1].version) {
            let (first, second) = (&pair[0].file, &pair[1].file);
            return Err(Error::usage(format!("{first} and {second} have the same version {}", pair[0].version)));
        }
        Ok(MigrationSet { source, migrations })
    }

    /// The set without `versions`; `None` when nothing would be left.
    #[must_use]
    pub fn without(&self, versions: &[i64]) -> Option<MigrationSet> {
        let kept = self.migrations.iter().filter(|migration| !versions.contains(&migration.version));
        let migrations: Vec<Migration> = kept.cloned().collect();
        (!migrations.is_empty()).then(|| MigrationSet { source: self.source.clone(), migrations })
    }

    /// Where the set came from: `embedded`, or the folder.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The migrations by version, the oldest first.
    #[must_use]
    pub fn migrations(&self) -> &[Migration] {
        &self.migrations
    }

    /// The migration of a version.
    #[must_use]
    pub fn get(&self, version: i64) -> Option<&Migration> {
        let found = self.migrations.binary_search_by_key(&version, |migration| migration.version);
        found.ok().map(|index| &self.migrations[index])
    }

    /// The migration of a version that a person named.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] when there is none, with those around it.
    pub fn known(&self, version: i64) -> Result<&Migration> {
        self.get(version).ok_or_else(|| {
            let next = self.migrations.partition_point(|migration| migration.version < version);
            let around = self.migrations[next.saturating_sub(1)..(next + 1).min(self.migrations.len())].iter();
            let around: Vec<_> = around.map(|one| format!("{} \"{}\"", one.version, one.name)).collect();
            Error::usage(format!("{} holds no migration of version {version}", self.source))
                .hint(format!("the nearest: {}", around.join(", ")))
        })
    }

    /// The migration of a name that a person wrote.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] when there is none, with the nearest, or several.
    pub fn named(&self, name: &str) -> Result<&Migration> {
        let mut found = self.migrations.iter().filter(|migration| migration.name == name);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(one), Some(other)) => {
                Err(Error::usage(format!("{} and {} are both called \"{name}\"", one.file, other.file))
                    .hint("name the version instead"))
            }
            (None, _) => {
                let nearest = self.migrations.iter().min_by_key(|one| strsim::levenshtein(&one.name, name));
                let nearest = nearest.map(|one| one.name.as_str()).unwrap_or_default();
                Err(Error::usage(format!("{} holds no migration called \"{name}\"", self.source))
                    .hint(format!("the nearest: {nearest}")))
            }
        }
    }

    /// Those of a version up to `version`; `None` when there is none.
    #[must_use]
    pub fn up_to(&self, version: i64) -> Option<MigrationSet> {
        let count = self.migrations.partition_point(|migration| migration.version <= version);
        let migrations = self.migrations[..count].to_vec();
        (count > 0).then(|| MigrationSet { source: self.source.clone(), migrations })
    }

    /// The version that a schema has when the whole set is applied.
    #[must_use]
    pub fn newest_version(&self) -> i64 {
        self.migrations.last().map_or(0, |migration| migration.version)
    }

    /// What is kept of each migration, the oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.migrations.iter().map(Migration::entry).collect()
    }

    /// The set's id: SHA-256 in lower-case hex over version, name and checksum of each in order. Two daemons with the same id carry the same.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(&self.entries())
    }
}

/// The id of the set that consists of `entries`, the oldest first.
#[must_use]
pub fn id_of(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        // Names hold no space and no line end, so no two lists of entries have one text.
        hash.update(format!("{} {} {}\n", entry.version, entry.name, entry.checksum));
    }
    hex(&hash.finalize())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A migration in a transaction whose text is `sql`.
    pub(crate) fn migration(version: i64, name: &str, sql: &str) -> Migration {
        Migration {
            version,
            name: name.to_owned(),
            checksum: hex(&Sha256::digest(sql.as_bytes())),
            file: format!("folder/{version:04}_{name}.up.sql"),
            sql: sql.to_owned(),
            down: None,
            mode: Mode::Transaction,
            breaking: None,
        }
    }

    #[test]
    fn the_set_is_sorted_by_number() {
        let set = MigrationSet::new("x", vec![migration(10, "c", ""), migration(9, "b", ""), migration(1, "a", "")]);
        let set = set.unwrap();
        assert_eq!(set.entries().iter().map(|entry| entry.version).collect::<Vec<_>>(), [1, 9, 10]);
        assert_eq!(set.newest_version(), 10);
        assert_eq!(set.get(9).unwrap().name, "b");
        assert_eq!(set.get(2), None);
        assert_eq!(set.up_to(9).unwrap().entries(), set.entries()[..2]);
        assert_eq!(set.up_to(i64::MAX).unwrap(), set);
        assert_eq!(set.up_to(0), None);
    }

    #[test]
    fn what_people_name_is_found_or_the_nearest_is_told() {
        let of = |names: &[(i64, &str)]| {
            MigrationSet::new("x", names.iter().map(|(version, name)| migration(*version, name, "")).collect()).unwrap()
        };
        let set = of(&[(1, "users"), (4, "add_level"), (9, "again"), (12, "again")]);
        assert_eq!((set.known(4).unwrap().version, set.named("users").unwrap().version), (4, 1));
        for (version, nearest) in [(5, "4 \"add_level\", 9 \"again\""), (99, "12 \"again\""), (-1, "1 \"users\"")] {
            let error = set.known(version).unwrap_err();
            assert_eq!(error.to_string(), format!("x holds no migration of version {version}"));
            assert_eq!(error.advice(), Some(format!("the nearest: {nearest}").as_str()));
        }
        let error = set.named("add_levl").unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.advice()),
            ("x holds no migration called \"add_levl\"", Some("the nearest: add_level"))
        );
        let error = set.named("again").unwrap_err();
        assert_eq!(
            error.to_string(),
            "folder/0009_again.up.sql and folder/0012_again.up.sql are both called \"again\""
        );
    }

    #[test]
    fn a_set_without_some_has_the_id_of_the_others() {
        let all = MigrationSet::new("x", vec![migration(1, "a", ""), migration(2, "b", "")]).unwrap();
        let one = MigrationSet::new("y", vec![migration(1, "a", "")]).unwrap();
        assert_eq!(all.without(&[2]).unwrap().id(), one.id());
        assert_eq!(all.without(&[]).unwrap(), all);
        assert_eq!(all.without(&[1, 2]), None);
    }

    #[test]
    fn an_empty_set_and_a_version_twice_are_refused() {
        assert_eq!(MigrationSet::new("x", vec![]).unwrap_err().to_string(), "x holds no migration");
        let error = MigrationSet::new("x", vec![migration(1, "a", ""), migration(1, "b", "")]).unwrap_err();
        assert_eq!(error.to_string(), "folder/0001_a.up.sql and folder/0001_b.up.sql have the same version 1");
    }

    #[test]
    fn the_id_depends_on_version_name_and_checksum_but_not_on_the_source() {
        let id = |version, name, sql| MigrationSet::new("x", vec![migration(version, name, sql)]).unwrap().id();
        let ids = [id(1, "a", ""), id(2, "a", ""), id(1, "b", ""), id(1, "a", "x")];
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(MigrationSet::new("y", vec![migration(1, "a", "")]).unwrap().id(), ids[0]);
        assert_eq!(id_of(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
