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
        self.put(&format!("\n{}", self.painted("1", text)));
    }

    /// Something that happens or is seen.
    pub(crate) fn line(&self, text: &str) {
        self.put(&wrapped(text, "  "));
    }

    /// Something that went as it should after something in its way.
    pub(crate) fn trouble(&self, text: &str) {
        self.put(&self.painted("33", &wrapped(text, "  ")));
    }

    /// A command as a person would type it.
    pub(crate) fn command(&self, text: &str) {
        self.put(&self.painted("36", &wrapped(&format!("$ {text}"), "  ")));
    }

    /// What a program or the server said, as it is but for the ends of lines.
    pub(crate) fn quote(&self, text: &str) {
        for line in text.lines() {
            self.put(&wrapped(line, "    "));
        }
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

/// `text` in lines that fit, each behind `margin`; a word that does not fit stays whole, and so does the space within a line that does.
fn wrapped(text: &str, margin: &str) -> String {
    let room = WIDTH - margin.len();
    if text.chars().count() <= room {
        return format!("{margin}{text}").trim_end().to_owned();
    }
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one at least");
        let further = if line.is_empty() { 0 } else { line.chars().count() + 1 };
        // All but the first line stand two further in.
        if line.is_empty() {
            line.push_str(word);
        } else if further + word.chars().count() <= room - 2 {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    format!("{margin}{}", lines.join(&format!("\n{margin}  ")))
}

/// `0.84 ms`, `61 ms`, `2.4 s`.
pub(crate) fn time(length: Duration) -> String {
    let milliseconds = length.as_secs_f64() * 1000.0;
    match milliseconds {
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", length.as_secs_f64()),
    }
}
