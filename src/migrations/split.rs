//! Cuts SQL text into its statements, so that each can be sent as a message of its own.

use super::tokens::{Token, TokenKind, tokens};

/// One statement, without the comments before it and without its semicolon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Where it begins in the whole text, in bytes.
    pub offset: usize,
    /// Its text, with the comments inside it.
    pub text: &'a str,
}

impl<'a> Statement<'a> {
    /// Its key words and unquoted names in lower case, in order.
    pub fn words(&self) -> impl Iterator<Item = String> + use<'a> {
        tokens(self.text).filter(|token| token.kind == TokenKind::Word).map(|token| token.text.to_lowercase())
    }
}

/// Cuts `sql` at the semicolons that end a statement: none inside quotes, comments, parentheses (`CREATE RULE … DO (…; …)`) or a
/// function's body `BEGIN ATOMIC … END`. Pieces that hold nothing but comments are dropped.
#[must_use]
pub fn split(sql: &str) -> Vec<Statement<'_>> {
    let mut statements = Vec::new();
    let mut piece = Piece::default();
    for token in tokens(sql).filter(|token| !token.is_comment_or_blank()) {
        if token.kind == TokenKind::Sign(b';') && piece.may_end() {
            statements.extend(std::mem::take(&mut piece).statement(sql));
        } else {
            piece.take(&token);
        }
    }
    statements.extend(piece.statement(sql));
    statements
}

/// Where the first command of `psql` stands, in bytes, and its name (`\connect`). The server knows none of them.
#[must_use]
pub fn psql_command(sql: &str) -> Option<(usize, &str)> {
    let start = tokens(sql).find(|token| token.kind == TokenKind::Sign(b'\\'))?.start;
    let length = sql[start..].find(char::is_whitespace).unwrap_or(sql.len() - start);
    Some((start, &sql[start..start + length]))
}

/// The names that occur in `sql`, as the catalogue would spell them.
pub fn names(sql: &str) -> impl Iterator<Item = String> {
    tokens(sql).filter_map(|token| match token.kind {
        TokenKind::Word => Some(token.text.to_lowercase()),
        TokenKind::QuotedName => Some(token.text[1..].strip_suffix('"').unwrap_or_default().replace("\"\"", "\"")),
        _ => None,
    })
}

/// The statement being read.
#[derive(Default)]
struct Piece {
    /// Begin and end, in bytes; `None` before the first token.
    span: Option<(usize, usize)>,
    parentheses: usize,
    /// Whether it begins with CREATE: nothing else has a body.
    creates: bool,
    /// Inside `BEGIN ATOMIC … END`.
    in_body: bool,
    /// Inside so many CASE of a body.
    cases: usize,
    /// The last word in lower case, or the last sign; empty after anything else.
    last: String,
}

impl Piece {
    fn may_end(&self) -> bool {
        self.parentheses == 0 && !self.in_body
    }

    fn take(&mut self, token: &Token<'_>) {
        let end = token.start + token.text.len();
        let is_first = self.span.is_none();
        self.span = Some((self.span.map_or(token.start, |(start, _)| start), end));
        match token.kind {
            TokenKind::Sign(b'(') => self.parentheses += 1,
            TokenKind::Sign(b')') => self.parentheses = self.parentheses.saturating_sub(1),
            _ => {}
        }
        match token.kind {
            TokenKind::Word => self.take_word(token.text.to_lowercase(), is_first),
            TokenKind::Sign(_) => token.text.clone_into(&mut self.last),
            _ => self.last.clear(),
        }
    }

    fn take_word(&mut self, word: String, is_first: bool) {
        let is_label = matches!(self.last.as_str(), "as" | ".");
        match word.as_str() {
            "create" if is_first => self.creates = true,
            "atomic" if self.creates && self.last == "begin" => self.in_body = true,
            "case" if self.in_body && !is_label => self.cases += 1,
            "end" if self.cases > 0 && !is_label => self.cases -= 1,
            // Elsewhere it is a label, which needs no AS.
            "end" if matches!(self.last.as_str(), ";" | "atomic") => self.in_body = false,
            _ => {}
        }
        self.last = word;
    }

    fn statement(self, sql: &str) -> Option<Statement<'_>> {
        self.span.map(|(start, end)| Statement { offset: start, text: &sql[start..end] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        split(sql).iter().map(|statement| statement.text).collect()
    }

    #[test]
    fn semicolons_end_statements_and_comments_alone_are_none() {
        assert_eq!(texts("select 1; ;-- c\n/* d */ select 2 -- e;\n; -- f"), ["select 1", "select 2"]);
        assert_eq!(texts(" -- only\n/* this; */ ;;"), [""; 0]);
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn offsets_point_into_the_text() {
        let sql = "-- ä\nselect 'ö;';\n select 2";
        for statement in split(sql) {
            assert_eq!(&sql[statement.offset..statement.offset + statement.text.len()], statement.text);
        }
        assert_eq!(split(sql)[1].offset, sql.find("select 2").unwrap());
    }

    #[test]
    fn bodies_stay_whole() {
        for sql in [
            "create function f() returns int begin atomic select 1; select case when true then 2 end; end",
            "create function f() returns int begin atomic select 1 as end; select 2 as case; end",
            "create procedure p() language sql as $body$ begin; end; $body$",
            "create procedure p() begin atomic insert into t select 1 end; select t.end, case t.case when 1 then t.end end; end",
            "create procedure p() begin atomic end",
            "do $$ begin perform 1; end $$",
            "create rule r as on insert to t do also (insert into u values (1); insert into v values (2))",
            "select (select \"end\" from \"begin atomic;\")",
        ] {
            assert_eq!(texts(&format!("{sql}; select 9")), [sql, "select 9"]);
        }
    }

    #[test]
    fn begin_without_atomic_and_end_of_a_transaction_are_ordinary() {
        assert_eq!(texts("begin; select 1; end; select 2"), ["begin", "select 1", "end", "select 2"]);
        assert_eq!(texts("select t.begin atomic from t; select 2"), ["select t.begin atomic from t", "select 2"]);
    }

    #[test]
    fn commands_of_psql_are_found_outside_quotes_only() {
        assert_eq!(psql_command("select 1;\n\\connect other\n"), Some((10, "\\connect")));
        assert_eq!(psql_command(r"select '\d', E'\'' -- \x"), None);
    }

    #[test]
    fn names_are_spelled_as_in_the_catalogue() {
        let found: Vec<_> = names("create index Idx on \"T\"\"x\" (a) -- gone\n where b = 'c'").collect();
        assert_eq!(found, ["create", "index", "idx", "on", "T\"x", "a", "where", "b"]);
    }

    proptest! {
        #[test]
        fn what_lies_between_statements_is_nothing(sql in r#"([a-z$'"\\;/*\-( )\n]|\$\$|begin atomic|end|E'|--|/\*|\*/){0,60}"#) {
            let mut at = 0;
            for statement in split(&sql) {
                prop_assert!(statement.offset >= at);
                prop_assert!(split(&sql[at..statement.offset]).is_empty());
                at = statement.offset + statement.text.len();
            }
            prop_assert!(split(&sql[at..]).is_empty());
        }

        #[test]
        fn joined_statements_come_apart_again(
            picked in proptest::collection::vec(
                proptest::sample::select(vec![
                    "select 1", "select ';'", "do $x$ a;b $x$", "select E'\\';'", "select \";\"",
                    "create function f() returns int begin atomic select 1; end", "select /* ; */ 2", "select (1)",
                ]),
                0..8,
            ),
        ) {
            let sql = format!("-- c;\n{}", picked.join(" ;-- c;\n"));
            prop_assert_eq!(texts(&sql), picked);
        }
    }
}
