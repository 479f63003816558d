//! `tenantd lint`: migrations tried on a scratch database before any tenant gets them, and what in them may hurt.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::given::Given;
use super::{ExitStatus, output};
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::migrations::lint::{Finding, Level, text};
use crate::migrations::{Migration, MigrationSet};
use crate::pg::catalogue::{Change, Difference};
use crate::pg::migrate::measure::{How, Touched};
use crate::provision::trial::{Tried, try_out};

/// Of a catalogue that differs so many objects are named.
const NAMED: usize = 10;

/// What breaks the walls between tenants that have a schema each.
const HARMS_OTHERS: [&str; 3] = ["names_schema", "search_path", "extension"];

/// `tenantd lint`
#[derive(Debug, Args)]
#[command(
    after_help = "Each migration runs up, down and up again on a scratch database: the down file must leave the catalogue as it was,
and the second time must make the same as the first. Locks and rewritten tables are measured there.

Examples:
  tenantd lint                  the migrations that no tenant has yet
  tenantd lint --all --strict   all of them; warnings count, too: for a build"
)]
pub struct Arguments {
    /// Also those that tenants have already
    #[arg(long)]
    pub all: bool,
    /// Exit code 1 for warnings, too
    #[arg(long)]
    pub strict: bool,
}

/// Tries and reads the migrations, and prints what was found: exit code 1 for errors, with `--strict` for warnings too. The first SIGINT or
/// SIGTERM ends it after the migration in hand.
///
/// # Errors
/// The main database cannot be reached, or no database be made there.
pub async fn run(given: &Given, arguments: &Arguments, out: &mut impl Write) -> Result<ExitCode> {
    let context = given.looking().await?;
    let applied = context.registry.applied_versions().await?;
    let all = given.set.migrations().iter().map(|migration| migration.version);
    let versions: Vec<i64> = all.filter(|version| arguments.all || !applied.contains(version)).collect();
    given
        .heeding_signals(async |stop| {
            let tried = Box::pin(try_out(&context, &versions, &stop)).await?;
            let findings = findings(given.config.tenant.isolation, &given.set, &versions, &tried);
            let report = Report { chosen: versions.len(), tried: tried.len(), strict: arguments.strict, findings };
            print(&report, given.json, out)?;
            Ok(if report.is_well() { ExitStatus::Well } else { ExitStatus::Findings })
        })
        .await
}

struct Report {
    /// How many migrations were to be tried.
    chosen: usize,
    /// How many were.
    tried: usize,
    /// Whether warnings count.
    strict: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    fn is_well(&self) -> bool {
        self.tried == self.chosen && self.count(Level::Error) == 0 && !(self.strict && self.count(Level::Warning) > 0)
    }
}

/// What the text shows and what the trial showed, by file and line.
fn findings(isolation: Isolation, set: &MigrationSet, versions: &[i64], tried: &[Tried]) -> Vec<Finding> {
    let mut all = Vec::new();
    for migration in versions.iter().filter_map(|version| set.get(*version)) {
        let mut found = text(migration);
        if isolation == Isolation::Schema {
            found
                .iter_mut()
                .filter(|finding| HARMS_OTHERS.contains(&finding.rule))
                .for_each(|finding| finding.level = Level::Error);
        }
        if let Some(tried) = tried.iter().find(|tried| tried.version == migration.version) {
            found.extend(tried.failed.iter().map(|error| failed(migration, error)));
            found.extend(tried.touched.iter().map(|touched| measured(migration, touched)));
            let after = [
                (&tried.after_down, "down", "its down file does not take all back"),
                (&tried.after_up_again, "up_again", "applied again after its down file it makes something else"),
            ];
            for (differences, rule, what) in after {
                found.extend((!differences.is_empty()).then(|| differs(migration, differences, rule, what)));
            }
        }
        found.sort_by_key(|finding| (finding.line, finding.level));
        all.extend(found);
    }
    all
}

/// The error says its own place, which may be in the down file.
fn failed(migration: &Migration, error: &Error) -> Finding {
    let text = error.chain();
    let mut files = migration.down.iter().map(|down| &down.file).chain([&migration.file]);
    let place = |file: &String| {
        let line = text.split_once(&format!("{file}:"))?.1.split(':').next()?.parse().ok()?;
        Some((file.clone(), line))
    };
    let (file, line) = files.find_map(place).map_or((migration.file.clone(), None), |(file, line)| (file, Some(line)));
    let advice = error.advice().unwrap_or("mend it before any tenant gets it").to_owned();
    Finding { level: Level::Error, rule: "fails", file, line, text, advice }
}

fn measured(migration: &Migration, touched: &Touched) -> Finding {
    let table = &touched.table;
    let (level, rule, text, advice) = match touched.how {
        How::Rewritten => (
            Level::Warning,
            "rewrites",
            format!("writes all of {table} anew, and keeps everybody out meanwhile"),
            "for a large table: add a new column, fill it in parts, and put it in the place of the old one",
        ),
        How::Held => (
            Level::Note,
            "locks",
            format!("keeps others out of {table} from here to the end of the migration"),
            "what takes long belongs into a migration of its own",
        ),
    };
    Finding::at(migration, touched.offset, level, rule, text, advice)
}

fn differs(migration: &Migration, differences: &[Difference], rule: &'static str, what: &str) -> Finding {
    let mut text = what.to_owned();
    for Difference { kind, name, change } in differences.iter().take(NAMED) {
        let _ = match change {
            Change::Missing => write!(text, "\n{kind} {name} is missing"),
            Change::Extra => write!(text, "\n{kind} {name} is left"),
            Change::Changed { ours, theirs } => write!(text, "\n{kind} {name} was {ours}, and is {theirs}"),
        };
    }
    if differences.len() > NAMED {
        let _ = write!(text, "\nand {} more", differences.len() - NAMED);
    }
    let file = migration.down.as_ref().map_or(&migration.file, |down| &down.file).clone();
    let advice = "mend the down file: a rollback would leave tenants that no migration knows".to_owned();
    Finding { level: Level::Error, rule, file, line: None, text, advice }
}

fn print(report: &Report, json: bool, out: &mut impl Write) -> Result<()> {
    let [errors, warnings, notes] = [Level::Error, Level::Warning, Level::Note].map(|level| report.count(level));
    let Report { chosen, tried, findings, .. } = report;
    if json {
        let object = |finding: &Finding| -> Value {
            let Finding { level, rule, file, line, text, advice } = finding;
            json!({ "level": level.word(), "rule": rule, "file": file, "line": line, "text": text, "advice": advice })
        };
        let findings = findings.iter().map(object).collect::<Vec<_>>();
        let counts = json!({ "ok": report.is_well(), "chosen": chosen, "tried": tried, "errors": errors, "warnings": warnings, "notes": notes, "findings": findings });
        return output::object(out, &counts);
    }
    let mut text = String::new();
    for finding in findings {
        let Finding { level, file, line, text: said, advice, .. } = finding;
        let place = line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"));
        let mut said = said.lines();
        let first = said.next().unwrap_or_default();
        let first = first.strip_prefix(&format!("{place}:")).unwrap_or(first);
        let _ = writeln!(text, "{level}: {}: {}", output::line(&place), output::line(first));
        for more in said.chain([advice.as_str()]) {
            let _ = writeln!(text, "    {}", output::line(more));
        }
    }
    let counted = |number: usize, one: &str| output::counted(i64::try_from(number).unwrap_or(i64::MAX), one);
    let (errors, warnings, notes) = (counted(errors, "error"), counted(warnings, "warning"), counted(notes, "note"));
    let _ = match chosen {
        0 => writeln!(text, "nothing to try: tenants have every migration (--all tries them all the same)"),
        _ => writeln!(text, "{} tried: {errors}, {warnings}, {notes}", counted(*tried, "migration")),
    };
    if tried < chosen {
        let _ = writeln!(text, "{} not tried", counted(chosen - tried, "migration"));
    }
    output::text(out, &text)
}
