//! What doctor found as text for people: one paragraph each, what is wrong last counted.

use super::{Diagnosis, Verdict};
use crate::commands::output::{counted, line, paragraph};

/// The text begins in this column.
const INDENT: usize = 22;

pub(super) fn whole(found: &[Diagnosis]) -> String {
    let mut text: String = found.iter().map(one).collect();
    let count = |verdict| found.iter().filter(|found| found.verdict == verdict).count();
    let number = |verdict| i64::try_from(count(verdict)).unwrap_or(i64::MAX);
    let warnings = counted(number(Verdict::Warning), "warning");
    text.push_str(&match (count(Verdict::Wrong), count(Verdict::Unknown)) {
        (0, 0) => format!("\nNothing is wrong; {warnings}.\n"),
        (0, unknown) => format!("\nNothing is wrong as far as can be seen; {warnings}, {unknown} unknown.\n"),
        (wrong, unknown) => format!("\n{wrong} wrong; {warnings}, {unknown} unknown.\n"),
    });
    text
}

fn one(found: &Diagnosis) -> String {
    let mut text = paragraph(&line(&found.text), INDENT);
    if let Some(advice) = &found.advice {
        text.push_str(&paragraph(&line(advice), INDENT));
    }
    format!("{:<8} {:<12} {}", found.verdict.word(), found.check.word(), text.trim_start())
}
