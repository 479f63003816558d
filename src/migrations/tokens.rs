//! SQL text as the server's scanner sees it, as far as needed to tell words from quoted text and comments.

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// White space.
    Blank,
    /// `-- …` without its line end.
    LineComment,
    /// `/* … */`, nested ones within.
    BlockComment,
    /// A key word or an identifier without quotes.
    Word,
    /// `"…"`
    QuotedName,
    /// `'…'`, `E'…'` without its `E`, `$tag$…$tag$`.
    Text,
    /// One character of anything else: a digit, an operator, a parenthesis, a semicolon, a backslash.
    Sign(u8),
}

/// A piece of text and where it begins, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) text: &'a str,
}

impl Token<'_> {
    /// Whether the server would not see it.
    pub(super) fn is_comment_or_blank(&self) -> bool {
        matches!(self.kind, TokenKind::Blank | TokenKind::LineComment | TokenKind::BlockComment)
    }
}

/// Cuts `sql` into tokens, without loss. What is opened and never closed reaches to the end.
pub(super) fn tokens(sql: &str) -> Tokens<'_> {
    Tokens { sql, at: 0, escapes: false }
}

pub(super) struct Tokens<'a> {
    sql: &'a str,
    at: usize,
    /// The last word was the `E` of `E'…'`.
    escapes: bool,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.sql.as_bytes();
        let start = self.at;
        let first = *bytes.get(start)?;
        let rest = &bytes[start..];
        let escapes = std::mem::take(&mut self.escapes);
        let (kind, length) = if is_blank(first) {
            (TokenKind::Blank, run(rest, is_blank))
        } else if rest.starts_with(b"--") {
            (TokenKind::LineComment, run(rest, |byte| !is_line_end(byte)))
        } else if rest.starts_with(b"/*") {
            (TokenKind::BlockComment, block_comment(rest))
        } else if is_word_start(first) {
            (TokenKind::Word, run(rest, is_word))
        } else {
            match first {
                b'\'' => (TokenKind::Text, string(rest, escapes)),
                b'"' => (TokenKind::QuotedName, quoted(rest, b'"', false)),
                b'$' => match dollar_quoted(rest) {
                    Some(length) => (TokenKind::Text, length),
                    None => (TokenKind::Sign(first), 1),
                },
                _ => (TokenKind::Sign(first), 1),
            }
        };
        self.at = start + length;
        let text = &self.sql[start..self.at];
        self.escapes = kind == TokenKind::Word && text.eq_ignore_ascii_case("e");
        Some(Token { kind, start, text })
    }
}

fn run(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len())
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c')
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Bytes above ASCII all belong to words, as the server has it; so every token ends between two characters.
fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn block_comment(bytes: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The length of what begins with `quote`: a doubled quote does not end it, nor one behind a backslash where those escape.
fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            byte if byte == quote => {
                if bytes.get(at + 1) != Some(&quote) {
                    return at + 1;
                }
                at += 2;
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A string, with what continues it on a following line: there the backslash means what it meant before. Comments to the end of a line may stand
/// between.
fn string(bytes: &[u8], escapes: bool) -> usize {
    let mut length = quoted(bytes, b'\'', escapes);
    if !escapes {
        return length;
    }
    loop {
        let mut next = length;
        loop {
            next += run(&bytes[next..], is_blank);
            if !bytes[next..].starts_with(b"--") {
                break;
            }
            next += run(&bytes[next..], |byte| !is_line_end(byte));
        }
        if bytes.get(next) != Some(&b'\'') || !bytes[length..next].iter().copied().any(is_line_end) {
            return length;
        }
        length = next + quoted(&bytes[next..], b'\'', true);
    }
}

/// The length of `$tag$ … $tag$`; `None` when no such quote begins here.
fn dollar_quoted(bytes: &[u8]) -> Option<usize> {
    let tag = run(&bytes[1..], |byte| is_word(byte) && byte != b'$');
    if bytes[1..].first().is_some_and(u8::is_ascii_digit) || bytes.get(1 + tag) != Some(&b'$') {
        return None;
    }
    let open = &bytes[..tag + 2];
    let body = &bytes[open.len()..];
    let end = body.windows(open.len()).position(|window| window == open);
    Some(end.map_or(bytes.len(), |at| at + open.len() * 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds(sql: &str) -> Vec<(TokenKind, &str)> {
        tokens(sql).filter(|token| token.kind != TokenKind::Blank).map(|token| (token.kind, token.text)).collect()
    }

    #[test]
    fn quotes_of_every_sort_are_one_token() {
        for text in
            ["'a;b'", "'a''b;'", r"'a\'", "'two\nlines;'", "$$;$$", "$a$ $b$;$b$ $$ $a$", "$ä$;$ä$", "''", "$$$$"]
        {
            assert_eq!(kinds(text), [(TokenKind::Text, text)], "{text}");
        }
        assert_eq!(kinds("\"a;\"\"b\""), [(TokenKind::QuotedName, "\"a;\"\"b\"")]);
    }

    #[test]
    fn a_backslash_escapes_only_after_e() {
        assert_eq!(kinds(r"E'\';' x"), [(TokenKind::Word, "E"), (TokenKind::Text, r"'\';'"), (TokenKind::Word, "x")]);
        assert_eq!(kinds(r"e'\\';")[1].1, r"'\\'");
        assert_eq!(kinds("e'a'\n 'b\\';'")[1].1, "'a'\n 'b\\';'");
        assert_eq!(kinds("e'a' -- c'\n--d\n 'b\\';'")[1].1, "'a' -- c'\n--d\n 'b\\';'");
        assert_eq!(kinds("e'a' /* c\n */ 'b\\';'")[3].1, r"'b\'");
        assert_eq!(kinds(r"name'\';'")[1].1, r"'\'");
    }

    #[test]
    fn comments_nest_and_end_with_their_line() {
        assert_eq!(kinds("/* a /* ; */ ; */x")[0], (TokenKind::BlockComment, "/* a /* ; */ ; */"));
        assert_eq!(kinds("-- a;'\nx"), [(TokenKind::LineComment, "-- a;'"), (TokenKind::Word, "x")]);
    }

    #[test]
    fn a_dollar_within_a_word_or_a_parameter_opens_nothing() {
        assert_eq!(kinds("a$b$c"), [(TokenKind::Word, "a$b$c")]);
        assert_eq!(kinds("$1")[0], (TokenKind::Sign(b'$'), "$"));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(sql in r#"([a-zA-Zäé$'"\\;/*\-( )\n]|\$\$|begin|end|E'){0,60}"#) {
            let joined: String = tokens(&sql).map(|token| token.text).collect();
            prop_assert_eq!(joined, sql);
        }

        #[test]
        fn any_text_is_taken(sql in ".{0,80}") {
            prop_assert_eq!(tokens(&sql).map(|token| token.text.len()).sum::<usize>(), sql.len());
        }
    }
}
