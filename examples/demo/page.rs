//! Where the story is written: stdout, 100 columns, colour only on a terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

const WIDTH: usize = 100;

/// The page that is being written.
#[derive(Debug)]
pub(crate) struct Page {
    colour: bool,
}

impl Page {
    /// Looks whether somebody reads in colour.
    pub(crate) fn open() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Page { colour: wanted && std::io::stdout().is_terminal() }
    }

    /// What the next lines are about.
    pub(crate) fn heading(&self, text: &str) {
        self.put(&format!("\n{}", self.painted("1", &format!("== {text}"))));
    }

    /// Something that happens or is seen.
    pub(crate) fn line(&self, text: &str) {
        self.put(&wrapped(text));
    }

    /// Something that went wrong, as it should here.
    pub(crate) fn trouble(&self, text: &str) {
        self.put(&self.painted("33", &wrapped(text)));
    }

    /// A command as a person would type it, and what it said.
    pub(crate) fn command(&self, text: &str, said: &str) {
        self.put(&self.painted("36", &format!("$ {text}")));
        self.quote(said);
    }

    /// What somebody else said or wrote: each of its lines as it is, but for those that are too long.
    pub(crate) fn quote(&self, text: &str) {
        self.put(&wrapped(text));
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    #[expect(clippy::unused_self, reason = "whoever writes has a page")]
    fn put(&self, text: &str) {
        // A reader that went away is no failure: what is shown is still checked.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Each line of `text` in lines that fit.
fn wrapped(text: &str) -> String {
    text.lines().map(fitted).collect::<Vec<_>>().join("\n")
}

/// A line that fits stays as it is; else all but its first are moved in by two, and a word that does not fit stays whole.
fn fitted(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    let mut whole = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            whole.push_str("\n ");
            column = 1;
        }
        if column > 0 {
            whole.push(' ');
            column += 1;
        }
        whole.push_str(word);
        column += length;
    }
    whole
}

/// `0.8 ms`, `61 ms`, `2.4 s`.
pub(crate) fn time(length: Duration) -> String {
    let milliseconds = length.as_secs_f64() * 1000.0;
    match milliseconds {
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", length.as_secs_f64()),
    }
}
