//! Why settings were refused, all of them at once, each with its key, its place and the way out.

use std::fmt;

use figment::error::{Actual, Kind};

use super::raw::Raw;
use crate::error::Error;

/// How much two names must be alike (0 to 1) for one to be offered for the other.
const ALIKE: f64 = 0.85;

/// One setting that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The key, or whatever the operator wrote in its place.
    pub(super) key: String,
    /// Where it was written.
    pub(super) place: String,
    /// What is wrong and what would be right. Never holds a password.
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, place: impl Into<String>, reason: impl Into<String>) -> Self {
        Problem { key: key.into(), place: place.into(), reason: reason.into() }
    }

    /// What figment found at `path`.
    pub(super) fn of(path: &[String], place: String, kind: &Kind) -> Self {
        let key = path.join(".");
        let reason = match kind {
            Kind::UnknownField(..) => {
                let thing = if path.len() == 1 { "table or key" } else { "key" };
                match nearest(&key) {
                    Some(known) => format!("no such {thing}; did you mean {known}?"),
                    None => format!("no such {thing}"),
                }
            }
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                // `main = "postgresql://…"` must not show the password it holds.
                let secret = path.first().is_some_and(|table| table == "main");
                format!("found {}, expected {}", found(actual, secret), wanted(expected))
            }
            Kind::Message(text) => text.clone(),
            other => other.to_string(),
        };
        Problem { key, place, reason }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.place, self.reason)
    }
}

/// All problems as one error of kind usage, a line each when there are several.
pub(super) fn refused(problems: &[Problem]) -> Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let message = match lines.as_slice() {
        [only] => format!("setting refused: {only}"),
        many => format!("{} settings refused:\n  {}", many.len(), many.join("\n  ")),
    };
    Error::usage(message).hint("config/default.toml describes every key and the values it takes.")
}

/// The known key or table that `written` most likely means.
fn nearest(written: &str) -> Option<String> {
    let keys = Raw::keys();
    if !written.contains('.') {
        let tables = Raw::built_in();
        let table = most_alike(tables.keys(), |table| strsim::jaro_winkler(written, table));
        if let Some(table) = table {
            return Some(format!("[{table}]"));
        }
    }
    // A key may be misspelt, or stand in the wrong table.
    let likeness =
        |known: &String| strsim::jaro_winkler(written, known).max(strsim::jaro_winkler(last(written), last(known)));
    most_alike(keys.iter(), likeness).cloned()
}

/// The nearest of `known` to `written`, for words that are no keys.
pub(super) fn nearest_word<'a>(written: &str, known: &'a [&'a str]) -> Option<&'a str> {
    most_alike(known.iter(), |word| strsim::jaro_winkler(&written.to_lowercase(), word)).copied()
}

fn most_alike<'a, T: ?Sized>(known: impl Iterator<Item = &'a T>, likeness: impl Fn(&T) -> f64) -> Option<&'a T> {
    known
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn found(actual: &Actual, secret: bool) -> String {
    match actual {
        Actual::Str(_) if secret => "text".into(),
        Actual::Str(text) => format!("{text:?}"),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Bool(value) => value.to_string(),
        Actual::Seq => "a list".into(),
        Actual::Map => "a table".into(),
        other => other.to_string(),
    }
}

fn wanted(expected: &str) -> &str {
    match expected {
        "u32" => "a whole number of 0 or more",
        "a boolean" => "true or false",
        "a string" | "path string" => "text in quotes",
        "a sequence" => "a list, such as [\"app\"]",
        table if table.starts_with("struct ") => "a table",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_or_misplaced_key_finds_its_like() {
        for (written, meant) in [
            ("signup.tabel", "signup.table"),
            ("main.pasword_file", "main.password_file"),
            ("sweeep.every", "sweep.every"),
            ("work.poll", "signup.poll"),
            ("url", "main.url"),
            ("tenant.uses", "tenant.use"),
            ("sigup", "[signup]"),
        ] {
            assert_eq!(nearest(written).as_deref(), Some(meant), "{written}");
        }
        assert_eq!(nearest("zebras.zzz"), None);
    }

    #[test]
    fn one_problem_is_one_line_and_several_are_a_list() {
        let problem = Problem::new("work.lease", "variable X", "too short");
        assert_eq!(
            refused(std::slice::from_ref(&problem)).to_string(),
            "setting refused: work.lease (variable X): too short"
        );
        assert_eq!(refused(&[problem.clone(), problem]).to_string().lines().count(), 3);
    }
}
