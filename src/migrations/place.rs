//! From the server's position to a line that a person can look at.

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line itself, without its end.
    pub text: &'a str,
}

/// The place of the server's `position` in `text`: it counts characters from 1. A position past the end is the end.
#[must_use]
pub fn at_character(text: &str, position: u32) -> Place<'_> {
    let nth = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1);
    at_byte(text, text.char_indices().nth(nth).map_or(text.len(), |(offset, _)| offset))
}

/// The place of a byte of `text`; blank lines at the end count for nothing, so that "at end of input" shows the last line written.
#[must_use]
pub fn at_byte(text: &str, offset: usize) -> Place<'_> {
    let mut offset = offset.min(text.trim_end().len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let (before, after) = text.split_at(offset);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let end = after.find('\n').map_or(text.len(), |at| offset + at);
    Place {
        line: before.matches('\n').count() + 1,
        column: before[start..].chars().count() + 1,
        text: text[start..end].trim_end_matches('\r'),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        let text = "-- äöü\r\nselect ä from öx;\r\n";
        let position = u32::try_from(text.chars().position(|c| c == 'x').unwrap()).unwrap();
        assert_eq!(at_character(text, position), Place { line: 2, column: 15, text: "select ä from öx;" });
        assert_eq!(at_character(text, 1), Place { line: 1, column: 1, text: "-- äöü" });
    }

    #[test]
    fn past_the_end_is_the_last_line_written() {
        assert_eq!(at_character("select (\n\n", 11), Place { line: 1, column: 9, text: "select (" });
        assert_eq!(at_character("", 7), Place { line: 1, column: 1, text: "" });
    }

    proptest! {
        #[test]
        fn any_position_is_taken(text in "[ä\r\n a]{0,30}", position: u32) {
            let place = at_character(&text, position);
            prop_assert!(place.line >= 1 && place.column >= 1);
        }
    }
}
