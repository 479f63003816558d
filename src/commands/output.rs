//! What commands write: data to stdout, talk to stderr, both through what they are given.
//!
//! Nothing here is ever coloured, so `NO_COLOR` has nothing to switch off. What people or other programs chose (keys, names of roles and
//! connections, the server's words) loses its control characters first, so that it cannot command the terminal that shows it.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::migrations::Mode;

/// Text for people is no wider, unless a single word is.
pub const WIDTH: usize = 100;

/// Writes text. A reader that went away (`| head`) is no failure.
///
/// # Errors
/// The text could not be written.
pub fn text(out: &mut impl Write, text: &str) -> Result<()> {
    more(out, text).map(drop)
}

/// Writes text of which there is more to come. Returns whether anybody reads it.
///
/// # Errors
/// The text could not be written.
pub fn more(out: &mut impl Write, text: &str) -> Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(|error| Error::new(Kind::Other, "write the output").because(error)),
    }
}

/// Writes one JSON object with `"format": 1`.
///
/// # Errors
/// The text could not be written.
pub fn object(out: &mut impl Write, object: &Value) -> Result<()> {
    let mut whole = json!({ "format": 1 });
    if let (Value::Object(whole), Value::Object(object)) = (&mut whole, object) {
        whole.extend(object.clone());
    }
    text(out, &format!("{whole:#}\n"))
}

/// An error as a JSON object: kind, text, SQLSTATE and what to do.
#[must_use]
pub fn error(error: &Error) -> Value {
    json!({ "kind": error.kind().word(), "text": error.chain(), "sqlstate": error.code(), "advice": error.advice() })
}

/// Rows below a head, without lines; a column whose cells are all numbers stands to the right.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.force_no_tty().load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::try_from(WIDTH).unwrap_or(u16::MAX));
    let number = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column));
        cells.all(|cell| !cell.is_empty() && cell.chars().all(|letter| letter.is_ascii_digit()))
    };
    let cell = |(column, text): (usize, &str)| {
        let alignment = if number(column) { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(line(text)).set_alignment(alignment)
    };
    table.set_header(head.iter().copied().enumerate().map(cell));
    for row in rows {
        table.add_row(row.iter().map(String::as_str).enumerate().map(cell));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// `text` in lines that fit, each moved in by `indent` spaces. Its own ends of line stay; a word that does not fit stays whole.
#[must_use]
pub fn paragraph(text: &str, indent: usize) -> String {
    let mut whole = String::new();
    for part in text.lines() {
        let clean = line(part);
        // What stands further in is shown so: a line of SQL below the error about it.
        let own = clean.chars().take_while(|letter| *letter == ' ').count();
        let mut column = 0;
        for word in clean.split_whitespace() {
            let length = word.chars().count();
            if column > 0 && column + 1 + length > WIDTH {
                whole.push('\n');
                column = 0;
            }
            let space = if column == 0 { indent + own } else { 1 };
            whole.push_str(&" ".repeat(space));
            whole.push_str(word);
            column += space + length;
        }
        whole.push('\n');
    }
    whole
}

/// `text` in one line and without control characters.
#[must_use]
pub fn line(text: &str) -> String {
    let plain = |letter: char| match letter {
        '\t' => " ".to_owned(),
        letter if letter.is_control() => letter.escape_default().to_string(),
        letter => letter.to_string(),
    };
    text.lines().map(|part| part.chars().map(plain).collect::<String>()).collect::<Vec<_>>().join("  ")
}

/// SQL as it would be run, below the name of its file.
#[must_use]
pub fn script(file: &str, mode: Mode, sql: &str) -> String {
    let how = match mode {
        Mode::Transaction => "in a transaction",
        Mode::Statements => "without a transaction",
    };
    let lines: Vec<String> = sql.trim_end().lines().map(line).collect();
    format!("\n-- {}, {how}\n{}\n", line(file), lines.join("\n"))
}

/// A length of time in its two largest units: `340 ms`, `2.1 s`, `42 s`, `3 m 20 s`, `2 h 5 m`, `4 d 3 h`.
#[must_use]
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        1..10 => format!("{:.1} s", length.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} m {} s", seconds % 60),
        3600..86400 => format!("{hours} h {} m", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A size as people read it: `512 bytes`, `7.3 MB`, `1.2 GB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit behind the point")]
    let of = |unit: f64| bytes as f64 / unit;
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", of(1e3)),
        1_000_000..1_000_000_000 => format!("{:.1} MB", of(1e6)),
        _ => format!("{:.1} GB", of(1e9)),
    }
}

/// A moment as people read it, to the second.
#[must_use]
pub fn moment(at: Timestamp) -> String {
    at.strftime("%F %T UTC").to_string()
}

/// `no tenant`, `1 tenant`, `2 tenants`.
#[must_use]
pub fn counted(number: i64, one: &str) -> String {
    match number {
        0 => format!("no {one}"),
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}

/// `no tenant is`, `1 tenant is`, `2 tenants are`.
#[must_use]
pub fn counted_are(number: i64, one: &str) -> String {
    format!("{} {}", counted(number, one), if number <= 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        assert!(object(&mut Failing(ErrorKind::BrokenPipe), &json!({})).is_ok());
        let error = text(&mut Failing(ErrorKind::StorageFull), "x").unwrap_err();
        assert!(error.chain().starts_with("write the output: "), "{}", error.chain());
    }

    #[test]
    fn an_object_bears_its_format() {
        let mut out = Vec::new();
        object(&mut out, &json!({ "ok": true })).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json!({ "format": 1, "ok": true }));
    }

    #[test]
    fn lengths_of_time_are_short_to_read() {
        let table = [
            (0.0, "0 ms"),
            (0.34, "340 ms"),
            (2.13, "2.1 s"),
            (42.9, "42 s"),
            (200.0, "3 m 20 s"),
            (7_500.0, "2 h 5 m"),
            (356_400.0, "4 d 3 h"),
        ];
        for (seconds, shown) in table {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), shown);
        }
    }

    #[test]
    fn sizes_are_short_to_read() {
        for (size, shown) in
            [(0, "0 bytes"), (999, "999 bytes"), (7_340_000, "7.3 MB"), (1_250, "1.2 kB"), (12_000_000_000, "12.0 GB")]
        {
            assert_eq!(bytes(size), shown);
        }
    }

    #[test]
    fn tables_have_numbers_to_the_right_and_no_space_at_the_end() {
        let rows = [vec!["ready".to_owned(), "7".to_owned()], vec!["x\u{1b}[2J".to_owned(), "512".to_owned()]];
        assert_eq!(
            table(&["STATE", "TENANTS"], &rows),
            "STATE       TENANTS\nready             7\nx\\u{1b}[2J      512\n"
        );
    }

    #[test]
    fn paragraphs_fit_and_keep_their_lines() {
        let long = paragraph(&"word ".repeat(50), 4);
        assert!(
            long.lines().count() > 2 && long.lines().all(|line| line.len() <= WIDTH && line.starts_with("    word"))
        );
        assert_eq!(paragraph("a\n   12 | b\u{7}", 2), "  a\n     12 | b\\u{7}\n");
        let url = "x".repeat(120);
        assert_eq!(paragraph(&format!("see {url} now"), 2), format!("  see\n  {url}\n  now\n"));
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(line("a\nall is well\u{1b}[0m"), "a  all is well\\u{1b}[0m");
    }
}
