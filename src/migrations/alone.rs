//! A file without a transaction, where nobody else can be: what it is kept out of a transaction for is then of no use, and costs much.
//!
//! CONCURRENTLY lets others go on writing to the table. For that it waits until every transaction in the database that began before is over, an
//! hour's report too. In a schema that is being made nobody writes, and whoever signed up waits.

use super::split::split;
use super::tokens::{TokenKind, tokens};

/// What SET may not set in a transaction that goes on with other files.
const NOT_SET: [&str; 5] = ["role", "session", "transaction", "local", "constraints"];

/// `sql` for a transaction, each statement where it was: indexes are made and dropped without CONCURRENTLY. `None`: it holds something else than
/// indexes, tables, comments and settings, for which it may have been kept out of a transaction.
#[must_use]
pub fn alone(sql: &str) -> Option<String> {
    let mut alone = sql.to_owned();
    for statement in split(sql) {
        let words = tokens(statement.text).filter(|token| token.kind == TokenKind::Word).take(4);
        let words: Vec<_> = words.map(|token| (token.start, token.text.to_lowercase())).collect();
        let word = |nth: usize| words.get(nth).map_or("", |(_, word)| word.as_str());
        let after_index = match (word(0), word(1), word(2)) {
            ("create" | "drop", "index", _) => 2,
            ("create", "unique", "index") => 3,
            ("create", "table", _) | ("create", "unlogged", "table") | ("comment", ..) => continue,
            ("set", what, _) if !NOT_SET.contains(&what) => continue,
            _ => return None,
        };
        if let Some((start, word)) = words.get(after_index).filter(|(_, word)| word == "concurrently") {
            let start = statement.offset + start;
            alone.replace_range(start..start + word.len(), &" ".repeat(word.len()));
        }
    }
    Some(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_made_and_dropped_in_place() {
        let cases = [
            ("create index concurrently i on t (a);", "create index              i on t (a);"),
            (
                "CREATE UNIQUE INDEX\nConcurrently if not exists i on t (a)",
                "CREATE UNIQUE INDEX\n             if not exists i on t (a)",
            ),
            ("drop index concurrently i; -- concurrently", "drop index              i; -- concurrently"),
            ("create /* an */ index concurrently on é (a)", "create /* an */ index              on é (a)"),
            ("create index \"concurrently\" on t (a)", "create index \"concurrently\" on t (a)"),
            ("create table t (a int); set lock_timeout = '1s'; comment on table t is 'concurrently'", ""),
        ];
        for (sql, expected) in cases {
            assert_eq!(alone(sql).as_deref(), Some(if expected.is_empty() { sql } else { expected }), "{sql}");
        }
    }

    #[test]
    fn anything_else_stays_out_of_a_transaction() {
        for sql in [
            "vacuum t",
            "create index concurrently i on t (a); update t set a = 1",
            "alter table t drop constraint to_shared",
            "alter type mood add value 'so so'",
            "do $$ begin commit; end $$",
            "begin; create table t (); commit",
            "set role other",
            "set local search_path = other",
            "reindex index concurrently i",
            "create database d",
        ] {
            assert_eq!(alone(sql), None, "{sql}");
        }
    }
}
