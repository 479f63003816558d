//! What a rollback did, or would do, as text and as JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::commands::report::in_full;
use crate::commands::{ExitStatus, output};
use crate::error::{Error, Kind, Result};
use crate::migrations::{Down, Migration, MigrationSet, Mode};
use crate::plan::Back;

/// What a rollback did, or would do.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Whether nothing was to be changed.
    pub(super) dry_run: bool,
    /// How many tenants were asked for.
    pub(super) chosen: usize,
    /// Those that were reached, by key.
    pub(super) tenants: Vec<Told>,
    /// How long it took.
    pub(super) took: Duration,
}

/// What became of a tenant.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) key: String,
    pub(super) done: Result<Back>,
}

impl Report {
    fn failures(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.tenants.iter().filter_map(|told| Some((told.key.as_str(), told.done.as_ref().err()?)))
    }

    fn rolled_back(&self) -> impl Iterator<Item = (&str, &Back)> {
        let done = self.tenants.iter().filter_map(|told| Some((told.key.as_str(), told.done.as_ref().ok()?)));
        done.filter(|(_, back)| !back.versions.is_empty())
    }

    fn unreached(&self) -> usize {
        self.chosen - self.tenants.len()
    }

    fn exit_status(&self) -> ExitStatus {
        let (mut failed, mut all_refused) = (false, true);
        for (_, error) in self.failures() {
            if error.kind().is_out_of_reach() {
                return ExitStatus::Unreachable;
            }
            (failed, all_refused) = (true, all_refused && error.kind() == Kind::Usage);
        }
        match (failed, all_refused && self.unreached() == 0) {
            (true, true) => ExitStatus::Usage,
            (false, true) => ExitStatus::Well,
            _ => ExitStatus::Findings,
        }
    }
}

/// Writes what was done: the tenants one by one where they are few, those that failed with why, then the totals; or one object.
///
/// # Errors
/// `out` cannot be written to.
pub(super) fn print(report: &Report, set: &MigrationSet, json: bool, out: &mut impl Write) -> Result<ExitStatus> {
    if json {
        output::object(out, &object(report, set))?;
    } else {
        output::text(out, &lines(report, set))?;
    }
    Ok(report.exit_status())
}

fn object(report: &Report, set: &MigrationSet) -> Value {
    let named =
        |version: &i64| json!({ "version": version, "name": set.get(*version).map(|migration| &migration.name) });
    let tenant = |(key, back): (&str, &Back)| json!({ "key": key, "from": back.from, "to": back.to, "steps": back.versions.iter().map(named).collect::<Vec<_>>() });
    let failed: Vec<_> =
        report.failures().map(|(key, error)| json!({ "key": key, "error": output::error(error) })).collect();
    let sql = |(migration, down): (&Migration, &Down)| {
        json!({
            "version": migration.version,
            "name": migration.name,
            "file": down.file,
            "transaction": down.mode == Mode::Transaction,
            "sql": down.sql,
        })
    };
    let mut object = json!({
        "ok": report.exit_status() == ExitStatus::Well,
        "dry_run": report.dry_run,
        "chosen": report.chosen,
        "rolled_back": report.rolled_back().map(tenant).collect::<Vec<_>>(),
        "failures": failed.len(),
        "failed": failed,
        "unchanged": report.tenants.len() - failed.len() - report.rolled_back().count(),
        "unreached": report.unreached(),
        "duration_seconds": report.took.as_secs_f64(),
    });
    if report.dry_run {
        object["sql"] = scripts(report, set).into_iter().map(sql).collect();
    }
    object
}

/// The down files that would be run, in that order.
fn scripts<'a>(report: &Report, set: &'a MigrationSet) -> Vec<(&'a Migration, &'a Down)> {
    let versions: BTreeSet<i64> = report.rolled_back().flat_map(|(_, back)| back.versions.iter().copied()).collect();
    let script = |version| {
        let migration = set.get(version)?;
        Some((migration, migration.down.as_ref()?))
    };
    versions.into_iter().rev().filter_map(script).collect()
}

fn lines(report: &Report, set: &MigrationSet) -> String {
    let mut text = String::new();
    let named = |version: &i64| match set.get(*version) {
        Some(migration) => format!("{version} {}", migration.name),
        None => version.to_string(),
    };
    for (key, back) in report.rolled_back() {
        let versions: Vec<String> = back.versions.iter().map(named).collect();
        let would = if report.dry_run { "would go" } else { "went" };
        let (key, taken) = (output::line(key), versions.join(", "));
        let _ = writeln!(text, "{key} {would} from {} to {}: {taken} taken back", back.from, back.to);
    }
    for (key, error) in report.failures() {
        let _ = writeln!(text, "{} failed: {}", output::line(key), in_full(error));
    }
    if report.dry_run {
        let scripts = scripts(report, set);
        text.extend(scripts.iter().map(|(_, down)| output::script(&down.file, down.mode, &down.sql)));
        if !scripts.is_empty() {
            text.push('\n');
        }
    }
    let (failed, done) = (report.failures().count(), report.rolled_back().count());
    let (would, unchanged) = (if report.dry_run { "to be " } else { "" }, report.tenants.len() - failed - done);
    let _ = writeln!(
        text,
        "{} chosen, {done} {would}rolled back, {unchanged} no newer than that, {failed} failed, in {}",
        output::counted(i64::try_from(report.chosen).unwrap_or(i64::MAX), "tenant"),
        output::duration(report.took)
    );
    if report.unreached() > 0 {
        let _ = writeln!(text, "{} not reached, because it ended early", report.unreached());
    }
    if done > 0 && !report.dry_run {
        text.push_str("what was rolled back is held: `tenantd release` lets the next sweep bring it up again\n");
    }
    text
}
