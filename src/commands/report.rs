//! The report of a sweep, as text and as JSON.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::{Value, json};

use super::{ExitStatus, output};
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::registry::rollouts::RolloutState;
use crate::sweep::{Failed, Report, Waiting};

/// Writes what a sweep did: the tenants that failed, the first hundred of them with why, then the totals; or one object.
///
/// Returns [`ExitStatus::Well`] when every tenant is as it should be, [`ExitStatus::Unreachable`] when the main database was lost on the
/// way, else [`ExitStatus::Findings`].
///
/// # Errors
/// `out` cannot be written to.
pub fn print(report: &Report, kind: Isolation, json: bool, out: &mut impl Write) -> Result<ExitStatus> {
    if json {
        output::object(out, &object(report))?;
    } else {
        output::text(out, &lines(report, kind))?;
    }
    Ok(exit_status(report))
}

fn exit_status(report: &Report) -> ExitStatus {
    match &report.server {
        Some(error) if ExitStatus::from(error) == ExitStatus::Unreachable => ExitStatus::Unreachable,
        _ if report.is_clean() => ExitStatus::Well,
        _ => ExitStatus::Findings,
    }
}

fn object(report: &Report) -> Value {
    let failed =
        |failed: &Failed| json!({ "key": failed.key, "parked": failed.parked, "error": output::error(&failed.error) });
    json!({
        "ok": report.is_clean(),
        "chosen": report.chosen,
        "ready": report.ready,
        "made": report.made,
        "migrated": report.migrated,
        "failures": report.failures,
        "failed": report.failed.iter().map(failed).collect::<Vec<_>>(),
        "parked": report.parked,
        "busy": report.busy,
        "newer": report.newer,
        "braked": report.braked,
        "unreached": report.unreached,
        "strays_dropped": report.strays,
        "departed": report.departed,
        "purged": report.purged,
        "undropped": report.undropped.iter().map(|(key, error)| json!({ "key": key, "error": output::error(error) })).collect::<Vec<_>>(),
        "users_without_tenant": report.requested,
        "users_unread": report.unread.as_ref().map(output::error),
        "template_failure": report.template.as_ref().map(output::error),
        "rollout": report.rollout.as_ref().map(|rollout| json!({
            "state": rollout.state.word(),
            "version": rollout.version,
            "waiting": rollout.tenants,
            "why": rollout.why,
        })),
        "server_failure": report.server.as_ref().map(output::error),
        "duration_seconds": report.took.as_secs_f64(),
    })
}

fn lines(report: &Report, kind: Isolation) -> String {
    let took = output::duration(report.took);
    let worked = report.chosen > 0 || report.requested > 0 || report.strays > 0 || report.purged + report.departed > 0;
    let idle = !worked && report.rollout.is_none();
    if idle && report.is_clean() {
        let which =
            if report.restricted { "none of these tenants needs a look" } else { "every tenant is as it should be" };
        return format!("nothing to do: {which} ({took})\n");
    }
    let mut text = String::new();
    for Failed { key, error, parked } in &report.failed {
        let word = if *parked { "parked" } else { "failed" };
        let _ = writeln!(text, "{} {word}: {}", output::line(key), in_full(error));
    }
    let Report { chosen, ready, made, migrated, failures, parked, failed, .. } = report;
    let more = failures.saturating_sub(failed.len());
    if more > 0 {
        let _ = writeln!(text, "{more} more failed: `tenantd status` and the view tenantd.tenants say why");
    }
    let _ = writeln!(
        text,
        "swept in {took}: {chosen} chosen, {ready} ready ({made} made, {migrated} migrated), {failures} failed ({parked} of them parked)"
    );
    text + &besides(report, kind)
}

/// What is told only where there is something to tell.
fn besides(report: &Report, kind: Isolation) -> String {
    let mut text = String::new();
    let counted = |number: usize, one: &str| output::counted(i64::try_from(number).unwrap_or(i64::MAX), one);
    let mut tell = |tells: bool, line: String| {
        if tells {
            text.push_str(&line);
            text.push('\n');
        }
    };
    let Report { requested, busy, newer, braked, strays, unreached, .. } = report;
    tell(*requested > 0, format!("{requested} of them for users that had no tenant"));
    tell(*busy > 0, format!("{} left to the daemon that works on them", counted(*busy, "tenant")));
    tell(
        *newer > 0,
        format!(
            "{} left alone with migrations that this tenantd does not carry: run the tenantd that carries them",
            output::counted(*newer, "tenant")
        ),
    );
    tell(
        *braked > 0,
        format!(
            "{} held back by tenant.max or tenant.max_per_hour: `tenantd status` says which",
            counted(*braked, "tenant")
        ),
    );
    tell(
        *strays > 0,
        format!(
            "{} dropped",
            output::counted(i64::try_from(*strays).unwrap_or(i64::MAX), &format!("half-made {kind}"))
        ),
    );
    if let Some(error) = &report.unread {
        tell(true, format!("users without a tenant were not looked for: {}", in_full(error)));
    }
    if let Some(error) = &report.template {
        tell(
            true,
            format!("no tenant was made of the newest migrations, for want of their template: {}", in_full(error)),
        );
    }
    if let Some(waiting) = &report.rollout {
        tell(true, rollout(waiting));
    }
    if let Some(error) = &report.server {
        tell(true, format!("ended early by the server: {}", in_full(error)));
    }
    tell(*unreached > 0, format!("{} not reached, because the sweep ended early", counted(*unreached, "tenant")));
    text + &gone(report, kind)
}

/// What went with its user, or for good.
fn gone(report: &Report, kind: Isolation) -> String {
    let mut text = String::new();
    let counted = |number: u64, one: &str| output::counted(i64::try_from(number).unwrap_or(i64::MAX), one);
    if report.departed > 0 {
        let _ = writeln!(text, "{} dropped, since their users were deleted", counted(report.departed, "tenant"));
    }
    if report.purged > 0 {
        let purged = counted(report.purged, kind.word());
        let _ = writeln!(text, "{purged} dropped for good: their time of grace was over");
    }
    for (key, error) in &report.undropped {
        let _ = writeln!(text, "{} could not be dropped: {}", output::line(key), in_full(error));
    }
    text
}

fn rollout(Waiting { state, version, tenants, why }: &Waiting) -> String {
    let why = why.as_ref().map(|why| format!(": {}", output::line(why))).unwrap_or_default();
    let counted = output::counted(*tenants, "tenant");
    let wait = match (state, tenants) {
        (RolloutState::Overtaken, _) => "still without it, left to whoever carries the later one",
        (_, ..=1) => "waits for it",
        _ => "wait for it",
    };
    let mut told = format!("the rollout to version {version} is {state}{why}; {counted} {wait}");
    if *state == RolloutState::Paused {
        told.push_str("\n    hint: mend the migration or the tenants; `tenantd rollout resume` goes on, `tenantd rollout abort` gives it up");
    }
    told
}

/// The whole chain with its SQLSTATE; further lines of it, and the advice, stand below, indented.
pub(super) fn in_full(error: &Error) -> String {
    let chain = error.chain();
    let mut lines: Vec<String> = chain.lines().map(|line| output::line(line.trim())).collect();
    if let Some(code) = error.code().filter(|code| !chain.contains(&format!("SQLSTATE {code}"))) {
        let _ = write!(lines[0], " (SQLSTATE {code})");
    }
    lines.extend(error.advice().map(|advice| format!("hint: {}", output::line(advice))));
    lines.join("\n    ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Kind;

    fn shown(report: &Report) -> (String, ExitStatus) {
        let mut out = Vec::new();
        let status = print(report, Isolation::Database, false, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), status)
    }

    fn failing() -> Report {
        let migration = Error::new(
            Kind::Migration,
            "m/0002_b.sql:1:8: column \"x\" does not exist (SQLSTATE 42703)\n    1 | select x",
        )
        .sqlstate("42703")
        .hint("perhaps y");
        let conflict = Error::new(Kind::Conflict, "the database \"tenant_b\" exists").hint("rename it");
        let rights = Error::new(Kind::Rights, "permission denied").sqlstate("42501").context("create database \"x\"");
        Report {
            restricted: false,
            requested: 2,
            unread: None,
            template: None,
            chosen: 9,
            made: 1,
            migrated: 3,
            ready: 5,
            failures: 3,
            parked: 1,
            failed: vec![
                Failed { key: "a".to_owned(), error: migration, parked: false },
                Failed { key: "b\n\u{1b}[2J".to_owned(), error: conflict, parked: true },
                Failed { key: "c".to_owned(), error: rights, parked: false },
            ],
            busy: 1,
            newer: 1,
            braked: 2,
            strays: 1,
            departed: 0,
            purged: 0,
            undropped: Vec::new(),
            server: None,
            unreached: 0,
            rollout: Some(Waiting {
                state: RolloutState::Paused,
                version: 7,
                tenants: 12,
                why: Some("every canary failed (a)".to_owned()),
            }),
            took: Duration::from_millis(1234),
        }
    }

    #[test]
    fn nothing_to_do_is_one_line() {
        let report = Report { took: Duration::from_millis(12), ..Report::default() };
        assert_eq!(
            shown(&report),
            ("nothing to do: every tenant is as it should be (12 ms)\n".to_owned(), ExitStatus::Well)
        );
        let report = Report { restricted: true, ..report };
        assert_eq!(shown(&report).0, "nothing to do: none of these tenants needs a look (12 ms)\n");
    }

    #[test]
    fn failures_are_told_before_the_totals() {
        let expected = "\
a failed: m/0002_b.sql:1:8: column \"x\" does not exist (SQLSTATE 42703)
    1 | select x
    hint: perhaps y
b  \\u{1b}[2J parked: the database \"tenant_b\" exists
    hint: rename it
c failed: create database \"x\": permission denied (SQLSTATE 42501)
swept in 1.2 s: 9 chosen, 5 ready (1 made, 3 migrated), 3 failed (1 of them parked)
2 of them for users that had no tenant
1 tenant left to the daemon that works on them
1 tenant left alone with migrations that this tenantd does not carry: run the tenantd that carries them
2 tenants held back by tenant.max or tenant.max_per_hour: `tenantd status` says which
1 half-made database dropped
the rollout to version 7 is paused: every canary failed (a); 12 tenants wait for it
    hint: mend the migration or the tenants; `tenantd rollout resume` goes on, `tenantd rollout abort` gives it up
";
        assert_eq!(shown(&failing()), (expected.to_owned(), ExitStatus::Findings));
    }

    #[test]
    fn failures_that_are_not_kept_are_counted() {
        let report = Report { failures: 5, ..failing() };
        let (text, status) = shown(&report);
        let totals = text.lines().skip_while(|line| !line.contains("more")).take(2).collect::<Vec<_>>();
        assert_eq!(totals[0], "2 more failed: `tenantd status` and the view tenantd.tenants say why");
        assert!(totals[1].ends_with("5 failed (1 of them parked)"), "{text}");
        assert_eq!(status, ExitStatus::Findings);
    }

    #[test]
    fn a_clean_sweep_that_worked_is_well() {
        let report = Report { chosen: 3, ready: 3, made: 2, took: Duration::from_secs(75), ..Report::default() };
        let expected = "swept in 1 m 15 s: 3 chosen, 3 ready (2 made, 0 migrated), 0 failed (0 of them parked)\n";
        assert_eq!(shown(&report), (expected.to_owned(), ExitStatus::Well));
    }

    #[test]
    fn a_lost_server_is_told_and_is_the_exit_code() {
        let lost = |kind| Report {
            chosen: 8,
            unreached: 7,
            unread: Some(Error::new(Kind::Rights, "row level security").hint("bypassrls")),
            server: Some(Error::new(kind, "no answer")),
            ..Report::default()
        };
        let expected = "\
swept in 0 ms: 8 chosen, 0 ready (0 made, 0 migrated), 0 failed (0 of them parked)
users without a tenant were not looked for: row level security
    hint: bypassrls
ended early by the server: no answer
7 tenants not reached, because the sweep ended early
";
        assert_eq!(shown(&lost(Kind::Unreachable)), (expected.to_owned(), ExitStatus::Unreachable));
        assert_eq!(shown(&lost(Kind::DiskFull)), (expected.to_owned(), ExitStatus::Findings));
    }

    #[test]
    fn json_has_it_all() {
        let mut out = Vec::new();
        let status = print(&failing(), Isolation::Database, true, &mut out).unwrap();
        let shown: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((status, &shown["format"], &shown["ok"]), (ExitStatus::Findings, &json!(1), &json!(false)));
        assert_eq!(shown["failed"][0]["error"]["sqlstate"], "42703");
        assert_eq!(
            shown["failed"][1],
            json!({
                "key": "b\n\u{1b}[2J",
                "parked": true,
                "error": { "kind": "conflict", "text": "the database \"tenant_b\" exists", "sqlstate": null, "advice": "rename it" },
            })
        );
        let numbers = [
            "chosen",
            "ready",
            "made",
            "migrated",
            "failures",
            "parked",
            "busy",
            "newer",
            "braked",
            "unreached",
            "strays_dropped",
            "users_without_tenant",
        ]
        .map(|name| shown[name].as_i64().unwrap());
        assert_eq!(numbers, [9, 5, 1, 3, 3, 1, 1, 1, 2, 0, 1, 2]);
        assert_eq!(shown["duration_seconds"], 1.234);
        assert_eq!((&shown["server_failure"], &shown["users_unread"]), (&Value::Null, &Value::Null));
    }
}
