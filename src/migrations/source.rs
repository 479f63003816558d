//! Reads a folder of migrations in the native layout: `NNNN_name.sql`, or `NNNN_name.up.sql` and `NNNN_name.down.sql`.
//!
//! Nothing is skipped in silence: whatever breaks a rule is refused by name, all of it at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use sha2::{Digest, Sha256};

use super::split::{psql_command, split};
use super::tokens::{TokenKind, tokens};
use super::{Breaking, Down, Migration, MigrationSet, Mode, place};
use crate::error::{Error, Result};
use crate::tenant::hex;

/// Whom a set of migrations is for; the registry's own must say whether they break older daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Tenant,
    Main,
}

/// A file as found.
pub(super) struct File {
    pub(super) name: String,
    /// Its bytes, or why they could not be had.
    pub(super) content: io::Result<Vec<u8>>,
}

/// Reads the tenant migrations of `folder`. Dot-files and `README*` are ignored.
///
/// # Errors
/// [`crate::error::Kind::Usage`] with every file that breaks a rule and which; also for a folder that cannot be read or holds no migration.
pub fn folder(folder: &Path) -> Result<MigrationSet> {
    read_folder(folder, Audience::Tenant)
}

/// The tenant migrations in `files`, each a name and its bytes, as if they lay in a folder.
///
/// # Errors
/// As for [`folder`].
pub fn of_files(files: Vec<(String, Vec<u8>)>) -> Result<MigrationSet> {
    let files = files.into_iter().map(|(name, bytes)| File { name, content: Ok(bytes) });
    read_files("files", "", files.collect(), Audience::Tenant)
}

pub(super) fn read_folder(folder: &Path, audience: Audience) -> Result<MigrationSet> {
    let shown = folder.display().to_string();
    let files = list(folder).map_err(|error| {
        Error::usage(format!("read the migrations in {shown}"))
            .because(error)
            .hint("tenant.migrations must name a folder that tenantd may read")
    })?;
    read_files(&shown, &shown, files, audience)
}

fn list(folder: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Not even opened: an editor's swap file may be unreadable, and the folders of a mounted config map begin with a dot.
        if !is_ignored(&name) {
            files.push(File { name, content: fs::read(entry.path()) });
        }
    }
    Ok(files)
}

/// The set made of `files`, shown in errors as files of `folder`.
pub(super) fn read_files(source: &str, folder: &str, mut files: Vec<File>, audience: Audience) -> Result<MigrationSet> {
    files.retain(|file| !is_ignored(&file.name));
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let mut reader = Reader { folder, audience, problems: Vec::new(), ups: BTreeMap::new(), downs: BTreeMap::new() };
    for file in files {
        reader.take(file);
    }
    reader.finish(source)
}

fn is_ignored(name: &str) -> bool {
    name.starts_with('.') || name.starts_with("README")
}

/// What a file's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) version: i64,
    name: String,
    is_down: bool,
}

/// Reads `^[0-9]+_[A-Za-z0-9_-]+(\.up|\.down)?\.sql$`.
pub(super) fn parse_name(file: &str) -> Result<Parts, String> {
    const FORM: &str = "is not named like 0001_name.sql, 0001_name.up.sql or 0001_name.down.sql";
    let stem = file.strip_suffix(".sql").ok_or(FORM)?;
    let (stem, is_down) = match stem.strip_suffix(".down") {
        Some(stem) => (stem, true),
        None => (stem.strip_suffix(".up").unwrap_or(stem), false),
    };
    let (digits, name) = stem.split_once('_').ok_or(FORM)?;
    let name_fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FORM.to_owned());
    }
    if name.is_empty() || !name.bytes().all(name_fits) {
        return Err(FORM.to_owned());
    }
    let version = digits.parse().ok().filter(|&version: &i64| version >= 1);
    let version = version.ok_or_else(|| format!("has version {digits}; versions go from 1 to {}", i64::MAX))?;
    Ok(Parts { version, name: name.to_owned(), is_down })
}

/// A file whose name is right, and its text if that is right too.
struct Read {
    file: String,
    name: String,
    text: Option<Text>,
}

struct Text {
    sql: String,
    checksum: String,
    directives: Directives,
}

struct Reader<'a> {
    folder: &'a str,
    audience: Audience,
    /// Each a file's name and what is wrong with it.
    problems: Vec<String>,
    ups: BTreeMap<i64, Read>,
    downs: BTreeMap<i64, Read>,
}

impl Reader<'_> {
    fn take(&mut self, file: File) {
        let name = match parse_name(&file.name) {
            Ok(name) => name,
            Err(reason) => return self.problems.push(format!("{} {reason}", file.name)),
        };
        let text = self.text(file.content, &name).map_err(|reasons| {
            self.problems.extend(reasons.into_iter().map(|reason| format!("{} {reason}", file.name)));
        });
        let files = if name.is_down { &mut self.downs } else { &mut self.ups };
        if let Some(other) = files.get(&name.version) {
            self.problems.push(format!("{} has the same version {} as {}", file.name, name.version, other.file));
        } else {
            files.insert(name.version, Read { file: file.name, name: name.name, text: text.ok() });
        }
    }

    fn text(&self, content: io::Result<Vec<u8>>, name: &Parts) -> Result<Text, Vec<String>> {
        let bytes = content.map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => vec!["is a folder".to_owned()],
            _ => vec![format!("cannot be read: {error}")],
        })?;
        let checksum = hex(&Sha256::digest(&bytes));
        let sql = String::from_utf8(bytes)
            .map_err(|error| vec![format!("is no UTF-8 text: byte {} is odd", error.utf8_error().valid_up_to() + 1)])?;
        let sql = sql.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(sql);
        let mut reasons = sql_problems(&sql);
        let directives = directives(&sql, &mut reasons);
        match (self.audience, name.is_down, &directives.breaking) {
            (Audience::Main, false, None) => {
                reasons.push("lacks \"-- tenantd: breaking = yes|no, <why>\" in its leading comment".to_owned());
            }
            (Audience::Main, false, Some(_)) | (_, _, None) => {}
            _ => reasons.push("must not say \"-- tenantd: breaking\": that is for the registry's own".to_owned()),
        }
        if reasons.is_empty() { Ok(Text { sql, checksum, directives }) } else { Err(reasons) }
    }

    fn finish(mut self, source: &str) -> Result<MigrationSet> {
        for (version, down) in &self.downs {
            if self.ups.get(version).is_none_or(|up| up.name != down.name) {
                self.problems.push(format!("{} takes back a migration that is not there", down.file));
            }
        }
        if !self.problems.is_empty() {
            let list = self.problems.join("\n  ");
            return Err(Error::usage(format!("the migrations in {} cannot be used:\n  {list}", self.folder)));
        }
        let folder = Path::new(self.folder);
        let shown = |file: &str| folder.join(file).display().to_string();
        let mut migrations = Vec::new();
        for (version, up) in self.ups {
            let Some(text) = up.text else { continue };
            let down = self.downs.remove(&version).and_then(|down| {
                let text = down.text?;
                Some(Down { file: shown(&down.file), sql: text.sql, mode: text.directives.mode })
            });
            migrations.push(Migration {
                version,
                name: up.name,
                checksum: text.checksum,
                file: shown(&up.file),
                sql: text.sql,
                down,
                mode: text.directives.mode,
                breaking: text.directives.breaking,
            });
        }
        MigrationSet::new(source, migrations)
    }
}

/// What no migration may hold, however it is sent.
fn sql_problems(sql: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    let line = |offset| place::at_byte(sql, offset).line;
    if let Some(at) = sql.find('\0') {
        reasons.push(format!("holds a NUL byte in line {}", line(at)));
    }
    // What psql's commands leave behind is not SQL, so nothing more is said about such a text.
    if let Some((at, command)) = psql_command(sql) {
        reasons.push(format!("holds the psql command {command} in line {}; the server knows none", line(at)));
        return reasons;
    }
    let statements = split(sql);
    if statements.is_empty() {
        reasons.push("holds no statement".to_owned());
    }
    for statement in statements {
        let words: Vec<_> = statement.words().collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let at = line(statement.offset);
        match words.as_slice() {
            ["rollback", rest @ ..] if rest.contains(&"to") => {}
            ["commit" | "rollback", "prepared", ..] => {}
            [word @ ("begin" | "start" | "commit" | "end" | "rollback" | "abort"), ..]
            | [word @ "prepare", "transaction", ..] => {
                let word = word.to_uppercase();
                reasons.push(format!("begins or ends a transaction itself ({word} in line {at}); tenantd does that"));
            }
            ["copy", rest @ ..] if rest.iter().any(|word| matches!(*word, "stdin" | "stdout")) => {
                reasons.push(format!("copies from or to the client in line {at}; a migration has no data beside it"));
            }
            _ => {}
        }
    }
    reasons
}

/// What a file says about itself in its leading comment.
struct Directives {
    mode: Mode,
    breaking: Option<Breaking>,
}

const DIRECTIVES: [&str; 2] = ["no-transaction", "breaking"];

fn directives(sql: &str, reasons: &mut Vec<String>) -> Directives {
    let mut found = Directives { mode: Mode::Transaction, breaking: None };
    let mut leading = true;
    for token in tokens(sql) {
        leading &= token.is_comment_or_blank();
        let comment = token.text.trim_start_matches('-').trim();
        let Some(directive) = comment.strip_prefix("tenantd:").filter(|_| token.kind == TokenKind::LineComment) else {
            continue;
        };
        let directive = directive.trim();
        if !leading {
            let line = place::at_byte(sql, token.start).line;
            reasons.push(format!(
                "says \"tenantd: {directive}\" in line {line}, after its first statement: move it to the top"
            ));
        } else if directive == "no-transaction" {
            found.mode = Mode::Statements;
        } else if let Some(said) = directive.strip_prefix("breaking") {
            match parse_breaking(said) {
                Some(breaking) if found.breaking.is_none() => found.breaking = Some(breaking),
                Some(_) => reasons.push("says twice whether it is breaking".to_owned()),
                None => reasons
                    .push(format!("says \"tenantd: {directive}\"; the form is \"tenantd: breaking = yes|no, <why>\"")),
            }
        } else {
            let word = directive.split([' ', '=']).next().unwrap_or_default();
            let nearest = DIRECTIVES.iter().min_by_key(|known| strsim::levenshtein(known, word)).unwrap_or(&"");
            reasons.push(format!("says \"tenantd: {directive}\", which means nothing; the nearest is \"{nearest}\""));
        }
    }
    found
}

/// Reads ` = yes|no, <why>`.
fn parse_breaking(said: &str) -> Option<Breaking> {
    let (answer, why) = said.trim_start().strip_prefix('=')?.split_once(',')?;
    let breaking = match answer.trim() {
        "yes" => true,
        "no" => false,
        _ => return None,
    };
    let why = why.trim();
    (!why.is_empty()).then(|| Breaking { breaking, why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    fn read(audience: Audience, files: &[(&str, &[u8])]) -> Result<MigrationSet> {
        let files = files.iter().map(|(name, bytes)| File { name: (*name).to_owned(), content: Ok(bytes.to_vec()) });
        read_files("folder", "folder", files.collect(), audience)
    }

    fn problems(audience: Audience, files: &[(&str, &[u8])]) -> Vec<String> {
        let error = read(audience, files).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn names_are_read_as_numbers_and_suffixes() {
        let name = |version, name: &str, is_down| Ok(Parts { version, name: name.to_owned(), is_down });
        assert_eq!(parse_name("0001_a.sql"), name(1, "a", false));
        assert_eq!(parse_name("20250101120000_add-x_Y.up.sql"), name(20_250_101_120_000, "add-x_Y", false));
        assert_eq!(parse_name("7_a_b.down.sql"), name(7, "a_b", true));
        assert_eq!(parse_name("9223372036854775807_max.sql"), name(i64::MAX, "max", false));
        for odd in [
            "a.sql",
            "1a.sql",
            "_a.sql",
            "1_.sql",
            "1_a.txt",
            "1_a.SQL",
            "1_a.b.sql",
            "1_ä.sql",
            "1_a b.sql",
            "+1_a.sql",
            "1_a.up.down.sql",
            "1_a.sql.bak",
            "١_a.sql",
            "0_a.sql",
            "9223372036854775808_a.sql",
            "99999999999999999999999_a.sql",
        ] {
            assert!(parse_name(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_set_is_read_with_downs_modes_and_checksums() {
        let set = read(
            Audience::Tenant,
            &[
                (
                    "0010_later.sql",
                    b"\xef\xbb\xbf-- about\n--tenantd: no-transaction\ncreate index concurrently i on t (a);",
                ),
                ("0002_add.up.sql", b"select 1"),
                ("0002_add.down.sql", b"select 2"),
                ("README.md", b""),
                (".hidden", b"\xff"),
            ],
        )
        .unwrap();
        let [add, later] = set.migrations() else { panic!("{set:?}") };
        assert_eq!((add.version, add.file.as_str(), add.mode), (2, "folder/0002_add.up.sql", Mode::Transaction));
        assert_eq!(add.down.as_ref().unwrap().sql, "select 2");
        assert_eq!(add.checksum, "822ae07d4783158bc1912bb623e5107cc9002d519e1143a9c200ed6ee18b6d0f");
        assert_eq!((later.version, later.mode), (10, Mode::Statements));
        assert!(later.sql.starts_with("-- about"), "the byte order mark is gone");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let found = problems(
            Audience::Tenant,
            &[
                ("0001_a.up.sql", b"select 1"),
                ("01_b.sql", b" -- nothing\n/* here */ ;"),
                ("0002_c.sql", b"\xff\xfe"),
                ("0003_d.down.sql", b"select 1"),
                ("0001_other.down.sql", b"select 1"),
                ("0004_e.sql", b"select 1;\n\\connect x\n"),
                ("0005_f.sql", b"select '\0'"),
                ("0006_g.sql", b"-- tenantd: no-transactoin\nselect 1"),
                ("0007_h.sql", b"select 1;\n-- tenantd: no-transaction\n"),
                ("0008_i.sql", b"begin;\nselect 1; savepoint a; rollback work to savepoint a; commit;"),
                ("0009_j.sql", b"copy t from stdin;"),
                ("0010_k.sql", b"-- tenantd: breaking = no, it adds\nselect 1"),
                ("notes.txt", b"x"),
            ],
        );
        assert_eq!(
            found,
            [
                "0002_c.sql is no UTF-8 text: byte 1 is odd",
                "0004_e.sql holds the psql command \\connect in line 2; the server knows none",
                "0005_f.sql holds a NUL byte in line 1",
                "0006_g.sql says \"tenantd: no-transactoin\", which means nothing; the nearest is \"no-transaction\"",
                "0007_h.sql says \"tenantd: no-transaction\" in line 2, after its first statement: move it to the top",
                "0008_i.sql begins or ends a transaction itself (BEGIN in line 1); tenantd does that",
                "0008_i.sql begins or ends a transaction itself (COMMIT in line 2); tenantd does that",
                "0009_j.sql copies from or to the client in line 1; a migration has no data beside it",
                "0010_k.sql must not say \"-- tenantd: breaking\": that is for the registry's own",
                "01_b.sql holds no statement",
                "01_b.sql has the same version 1 as 0001_a.up.sql",
                "notes.txt is not named like 0001_name.sql, 0001_name.up.sql or 0001_name.down.sql",
                "0001_other.down.sql takes back a migration that is not there",
                "0003_d.down.sql takes back a migration that is not there",
            ]
        );
    }

    #[test]
    fn main_migrations_say_whether_they_break() {
        let set = read(
            Audience::Main,
            &[
                ("1_a.sql", b"-- tenantd: breaking = yes, the first\nselect 1"),
                ("2_b.sql", b"-- tenantd: breaking=no,adds, only\nselect 1"),
            ],
        )
        .unwrap();
        let said: Vec<_> = set.migrations().iter().filter_map(|migration| migration.breaking.clone()).collect();
        assert_eq!(
            said,
            [
                Breaking { breaking: true, why: "the first".to_owned() },
                Breaking { breaking: false, why: "adds, only".to_owned() }
            ]
        );
        for text in ["select 1", "-- tenantd: breaking = perhaps, x\nselect 1", "-- tenantd: breaking = yes\nselect 1"]
        {
            assert!(!problems(Audience::Main, &[("1_a.sql", text.as_bytes())]).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_folder_is_read_and_sub_folders_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(super::folder(folder.path()).unwrap_err().to_string().ends_with("holds no migration"));
        fs::write(folder.path().join("0001_a.sql"), "select 1").unwrap();
        fs::write(folder.path().join(".swp"), "").unwrap();
        let set = super::folder(folder.path()).unwrap();
        assert_eq!(set.migrations()[0].file, folder.path().join("0001_a.sql").display().to_string());
        fs::create_dir(folder.path().join("0002_b.sql")).unwrap();
        assert!(super::folder(folder.path()).unwrap_err().to_string().ends_with("0002_b.sql is a folder"));
        let missing = super::folder(&folder.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), Kind::Usage);
    }

    /// `^[0-9]+_[A-Za-z0-9_-]+(\.up|\.down)?\.sql$`, by hand and from the other end.
    fn fits(name: &str) -> bool {
        let Some(stem) = name.strip_suffix(".sql") else { return false };
        let stem = stem.strip_suffix(".up").or_else(|| stem.strip_suffix(".down")).unwrap_or(stem);
        let digits = stem.chars().take_while(char::is_ascii_digit).count();
        let rest: Vec<char> = stem.chars().skip(digits).collect();
        let plain = rest.iter().skip(1).all(|&c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let version = stem[..digits].trim_start_matches('0');
        let known = (1..=19).contains(&version.len()) && version.parse::<i64>().is_ok();
        digits > 0 && rest.len() > 1 && rest[0] == '_' && plain && known
    }

    proptest! {
        #[test]
        fn names_are_taken_by_their_form_alone(
            name in "[0-9]{0,20}_?[a-zA-Z_é.-]{0,6}(\\.up|\\.down)?(\\.sql)?|.{0,30}|[0-9]{1,3}_[a-z/\\n ]{1,5}\\.sql",
        ) {
            let read = parse_name(&name);
            prop_assert_eq!(read.is_ok(), fits(&name), "{:?}", name);
            if let Ok(parts) = read {
                let digits = name.split('_').next().unwrap_or_default();
                prop_assert_eq!(parts.version.to_string(), digits.trim_start_matches('0'));
                let middle = format!("_{}.", parts.name);
                prop_assert!(name.contains(&middle) && parts.is_down == name.contains(".down."), "{}", name);
            }
        }

        /// What is taken is whole: each file once, each text as it was, in order.
        #[test]
        fn any_folder_is_taken_whole_or_refused_by_name(
            files in proptest::collection::btree_map(
                "(0{0,2}[1-9]_(a|b)(\\.up|\\.down)?\\.sql|README|\\.x|.{0,8})",
                prop_oneof![
                    Just(b"select 1".to_vec()),
                    "(-- (tenantd: (no-transaction|breaking = no, x|oops))?\n)?(begin|select '.{0,3}'|copy t from stdin|;){1,2}".prop_map(String::into_bytes),
                    proptest::collection::vec(any::<u8>(), 0..20),
                ],
                0..5,
            ),
        ) {
            let given: Vec<_> = files.clone().into_iter().collect();
            match of_files(given) {
                Ok(set) => {
                    let mut taken = 0;
                    for migration in set.migrations() {
                        for (file, sql) in std::iter::once((&migration.file, &migration.sql))
                            .chain(migration.down.iter().map(|down| (&down.file, &down.sql)))
                        {
                            let bytes = &files[file.as_str()];
                            prop_assert!(bytes.ends_with(sql.as_bytes()) && bytes.len() - sql.len() <= 3, "{:?}", file);
                            taken += 1;
                        }
                    }
                    prop_assert_eq!(taken, files.keys().filter(|name| !is_ignored(name)).count());
                    prop_assert!(set.migrations().is_sorted_by_key(|migration| migration.version));
                }
                Err(error) => {
                    prop_assert_eq!(error.kind(), Kind::Usage);
                    let told = error.to_string();
                    let refused = files.keys().any(|name| !is_ignored(name) && told.contains(name.as_str()));
                    prop_assert!(refused || told.contains("holds no migration"), "{}", told);
                }
            }
        }
    }
}
