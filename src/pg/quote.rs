//! The one place where names and texts become SQL.

/// `name` as a quoted identifier. A name that is too long is not cut here: the caller checks [`MAX_IDENTIFIER_BYTES`].
///
/// [`MAX_IDENTIFIER_BYTES`]: crate::tenant::MAX_IDENTIFIER_BYTES
#[must_use]
pub fn identifier(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// `text` as a quoted literal, for statements that take no parameters.
#[must_use]
pub fn literal(text: &str) -> String {
    // The escaping of a text with backslashes begins with a space, which keeps it apart from whatever stands before it.
    postgres_protocol::escape::escape_literal(text).trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_backslashes_stay_backslashes() {
        for (name, quoted) in [("a", "\"a\""), ("A b", "\"A b\""), ("x\"; drop", "\"x\"\"; drop\""), ("", "\"\"")] {
            assert_eq!(identifier(name), quoted);
        }
        for (text, quoted) in [("a", "'a'"), ("it's", "'it''s'"), ("a\\'b", "E'a\\\\''b'"), ("", "''")] {
            assert_eq!(literal(text), quoted);
        }
    }
}
