//! What a migration's text shows before it is run: statements that hold a table up for long, or break the application that runs beside. What can
//! be measured by running it is not guessed here; see `pg::migrate::measure`.

use super::split::{Statement, split};
use super::tokens::{TokenKind, tokens};
use super::{Migration, place};
use crate::tenant::words;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It does not work.
    Error,
    /// It works, and may hurt.
    Warning,
    /// Good to know.
    Note,
}

words!(Level { Error => "error", Warning => "warning", Note => "note" });

/// Something that was found in a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub level: Level,
    /// A word for programs; it never changes.
    pub rule: &'static str,
    /// The file.
    pub file: String,
    /// The line, from 1; `None`: the file as a whole.
    pub line: Option<usize>,
    /// What is, in a sentence without its end.
    pub text: String,
    /// What to do instead.
    pub advice: String,
}

impl Finding {
    /// One about the statement that begins at byte `offset` of `migration`.
    #[must_use]
    pub fn at(
        migration: &Migration,
        offset: usize,
        level: Level,
        rule: &'static str,
        text: String,
        advice: &str,
    ) -> Self {
        let line = Some(place::at_byte(&migration.sql, offset).line);
        Finding { level, rule, file: migration.file.clone(), line, text, advice: advice.to_owned() }
    }
}

/// What the text of `migration` shows. Tables that it makes itself are nobody's concern yet.
#[must_use]
pub fn text(migration: &Migration) -> Vec<Finding> {
    let mut found = Vec::new();
    if migration.down.is_none() {
        let text = "it has no down file, so it cannot be taken back".to_owned();
        let advice = "write what takes it back beside it, as in 0001_name.down.sql".to_owned();
        let (level, file) = (Level::Warning, migration.file.clone());
        found.push(Finding { level, rule: "no_down", file, line: None, text, advice });
    }
    let mut made = Vec::new();
    for statement in split(&migration.sql) {
        let words = Words::of(&statement);
        if words.is(0, "create")
            && (words.is(1, "table") || words.is(2, "table"))
            && let Some(table) = words.name_after("table")
        {
            made.push(table);
        }
        for (level, rule, text, advice) in rules(&words, &made) {
            found.push(Finding::at(migration, statement.offset, level, rule, text, advice));
        }
    }
    found
}

type Found = (Level, &'static str, String, &'static str);

fn rules(words: &Words, own_tables: &[String]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut warn = |rule, text: String, advice| found.push((Level::Warning, rule, text, advice));
    let own = |table: &Option<String>| table.as_ref().is_some_and(|table| own_tables.contains(table));
    match words.begin(2).as_slice() {
        ["alter", "table"] => {
            let table = words.name_after("table");
            if !own(&table) {
                alter_table(words, &table.unwrap_or_default(), &mut warn);
            }
        }
        ["drop", what @ ("table" | "view" | "column")] if !own(&words.name_after(what)) => warn(
            "drops",
            format!(
                "drops {what} {}, which the application that runs beside may still use",
                words.name_after(what).unwrap_or_default()
            ),
            "ship the application that does without it first",
        ),
        ["create", "index" | "unique"] if !words.has("concurrently") => {
            let table = words.name_after("on");
            if !own(&table) {
                let table = table.unwrap_or_default();
                warn("index_locks", format!("keeps writers out of {table} while the index is built"), CONCURRENTLY);
            }
        }
        ["lock", _] => warn("lock", "locks a table by hand".to_owned(), "leave it to the statements that need it"),
        ["truncate", _] if !own(&words.name_after("truncate")) => {
            warn(
                "truncate",
                "empties a table, which cannot be taken back".to_owned(),
                "is that meant for every tenant?",
            );
        }
        ["cluster", ..] | ["vacuum", "full"] => {
            warn(
                "rewrites",
                "writes whole tables anew and keeps everybody out meanwhile".to_owned(),
                "leave it to autovacuum",
            );
        }
        ["set", "search_path" | "local" | "session"] if words.has("search_path") => warn(
            "search_path",
            "sets the search path, by which tenantd says where a tenant's tables are".to_owned(),
            "name the schema where it matters",
        ),
        ["update" | "delete", _] if !words.has("where") => {
            let table = words.name_after(if words.is(0, "update") { "update" } else { "from" });
            if !own(&table) {
                let table = table.unwrap_or_default();
                warn(
                    "every_row",
                    format!("changes every row of {table} in one go"),
                    "a large table is better changed in parts",
                );
            }
        }
        _ => {}
    }
    if let ["create" | "drop" | "alter", "extension"] = words.begin(2).as_slice() {
        let text = "makes or changes an extension, which a schema per tenant would share with all".to_owned();
        found.push((Level::Note, "extension", text, "name it in tenant.extensions: tenants have it from the start"));
    }
    if words.qualified("public") {
        let text = "names the schema public: it could not run in a schema per tenant".to_owned();
        found.push((Level::Note, "names_schema", text, "leave the schema out: the search path finds it"));
    }
    found
}

const CONCURRENTLY: &str = "create it concurrently, in a file that begins with \"-- tenantd: no-transaction\"";

fn alter_table(words: &Words, table: &str, warn: &mut impl FnMut(&'static str, String, &'static str)) {
    if words.follow(&["set", "not", "null"]) {
        let text = format!("reads all of {table} while nobody else can use it (SET NOT NULL)");
        warn(
            "scans",
            text,
            "before it: add constraint … check (… is not null) not valid, then validate it in a migration of its own",
        );
    }
    let index = words.has("unique") || words.has("primary") || words.has("exclude");
    let validated = words.has("check") || words.has("foreign") || words.has("references");
    if words.has("add") && index && !words.has("using") {
        let text = format!("builds an index while nobody else can use {table}");
        warn("scans", text, "create the unique index concurrently first, then: add constraint … unique using index");
    } else if words.has("add") && words.has("constraint") && validated && !words.follow(&["not", "valid"]) {
        let text = format!("reads all of {table} to check it, while others cannot write");
        warn("scans", text, "add it not valid, and validate it in a migration of its own");
    }
    let dropped =
        words.follow(&["drop"]) && !words.follow(&["drop", "constraint"]) && !words.follow(&["drop", "default"]);
    if dropped
        && !words.follow(&["drop", "not"])
        && !words.follow(&["drop", "identity"])
        && !words.follow(&["drop", "expression"])
    {
        let text = format!("drops a column of {table}, which the application that runs beside may still use");
        warn("drops", text, "ship the application that does without it first");
    }
    if words.follow(&["rename"]) && !words.follow(&["rename", "constraint"]) {
        let text = format!(
            "gives {table} or a column of it another name, by which the application that runs beside does not know it"
        );
        warn("renames", text, "add the new one, fill it, and drop the old one once nobody uses it");
    }
}

/// A statement as words, names and signs.
struct Words(Vec<(TokenKind, String)>);

impl Words {
    fn of(statement: &Statement<'_>) -> Words {
        let visible = tokens(statement.text).filter(|token| !token.is_comment_or_blank());
        Words(
            visible
                .map(|token| match token.kind {
                    TokenKind::Word => (token.kind, token.text.to_lowercase()),
                    TokenKind::QuotedName => (token.kind, token.text.trim_matches('"').replace("\"\"", "\"")),
                    kind => (kind, token.text.to_owned()),
                })
                .collect(),
        )
    }

    /// The first words, as many as `count`.
    fn begin(&self, count: usize) -> Vec<&str> {
        self.0.iter().take(count).map(|(_, text)| text.as_str()).collect()
    }

    fn is(&self, nth: usize, word: &str) -> bool {
        self.0.get(nth).is_some_and(|(kind, text)| *kind == TokenKind::Word && text == word)
    }

    fn has(&self, word: &str) -> bool {
        (0..self.0.len()).any(|nth| self.is(nth, word))
    }

    /// Whether `words` stand somewhere one after the other.
    fn follow(&self, words: &[&str]) -> bool {
        (0..self.0.len()).any(|start| words.iter().enumerate().all(|(nth, word)| self.is(start + nth, word)))
    }

    /// The name that follows the word `word`, without its schema.
    fn name_after(&self, word: &str) -> Option<String> {
        let mut rest = self.0.iter().skip_while(|(kind, text)| !(*kind == TokenKind::Word && text == word)).skip(1);
        let mut name = None;
        loop {
            let (kind, text) = rest.next()?;
            match kind {
                TokenKind::Word
                    if name.is_none() && ["if", "not", "exists", "only", "table", "from"].contains(&text.as_str()) => {}
                TokenKind::Word | TokenKind::QuotedName => {
                    name = Some(text.clone());
                    // A dot after it: it was the schema.
                    match rest.clone().next() {
                        Some((TokenKind::Sign(b'.'), _)) => drop(rest.next()),
                        _ => return name,
                    }
                }
                _ => return name,
            }
        }
    }

    /// Whether something is named by the schema `schema`.
    fn qualified(&self, schema: &str) -> bool {
        let dotted = |pair: &[(TokenKind, String)]| pair[0].1 == schema && pair[1].0 == TokenKind::Sign(b'.');
        self.0.windows(2).any(dotted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::migration;
    use super::super::{Down, Mode};
    use super::*;

    fn found(sql: &str) -> Vec<(&'static str, Option<usize>)> {
        let down = Some(Down { file: String::new(), sql: String::new(), mode: Mode::Transaction });
        let migration = Migration { down, ..migration(1, "a", sql) };
        text(&migration).into_iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn each_rule_has_its_statement() {
        let table: [(&str, &[&str]); 32] = [
            ("alter table t add a int not null default 0", &[]),
            ("alter table t alter a set not null", &["scans"]),
            ("alter table t add constraint c check (a > 0)", &["scans"]),
            ("alter table t add constraint c check (a > 0) not valid", &[]),
            ("alter table t add constraint c foreign key (a) references u", &["scans"]),
            ("alter table t validate constraint c", &[]),
            ("alter table t add primary key (a)", &["scans"]),
            ("alter table t add constraint c unique using index i", &[]),
            ("alter table t drop column a", &["drops"]),
            ("alter table t drop a", &["drops"]),
            ("alter table t drop constraint c", &[]),
            ("alter table t alter a drop not null", &[]),
            ("alter table t rename a to b", &["renames"]),
            ("alter table if exists only public.\"T\" rename to u", &["renames", "names_schema"]),
            ("drop table t", &["drops"]),
            ("drop view v", &["drops"]),
            ("drop index i", &[]),
            ("create index on t (a)", &["index_locks"]),
            ("create unique index concurrently i on t (a)", &[]),
            ("vacuum full t", &["rewrites"]),
            ("cluster t", &["rewrites"]),
            ("lock table t", &["lock"]),
            ("truncate table t", &["truncate"]),
            ("update t set a = 1", &["every_row"]),
            ("update t set a = 1 where b", &[]),
            ("delete from only t", &["every_row"]),
            ("set search_path = x", &["search_path"]),
            ("set local search_path to x", &["search_path"]),
            ("set local statement_timeout = 1", &[]),
            ("create function f() returns int language sql set search_path = x as 'update t set a = 1'", &[]),
            ("create table public.t (a int)", &["names_schema"]),
            ("insert into t select 'drop table t' -- truncate t", &[]),
        ];
        for (sql, expected) in table {
            let rules: Vec<_> = found(sql).into_iter().map(|(rule, _)| rule).collect();
            assert_eq!(rules, expected, "{sql}");
        }
    }

    #[test]
    fn tables_of_its_own_are_left_alone() {
        let own = "create table if not exists app.t (a int);\ncreate index on app.t (a);\nalter table t alter a set not null;\nupdate app.t set a = 1;\ndrop table t;\ntruncate t;";
        assert_eq!(found(own), []);
        let other = "create unlogged table t (a int);\n\nalter table u rename to v";
        assert_eq!(found(other), [("renames", Some(3))]);
    }

    #[test]
    fn without_a_down_file_it_cannot_be_taken_back() {
        let found = text(&migration(1, "a", "select 1"));
        assert_eq!((found[0].rule, found[0].line, found[0].level), ("no_down", None, Level::Warning));
    }
}
