//! Status as text for people: counts, facts, tenants in trouble, and last, where a terminal ends, what needs a person.

use std::fmt::Write as _;

use super::findings::Remark;
use super::{Signup, Standing, Status};
use crate::commands::main_schema::Reached;
use crate::commands::output::{counted, duration, line, moment, paragraph, table};
use crate::config::Isolation;
use crate::error::Result;
use crate::registry::fleet::{BellHolder, Problem};
use crate::registry::triggers::Trigger;

/// Pending migrations that are named; of more, the first and the last are.
const NAMED: usize = 3;

pub(super) fn whole(status: &Status<'_>) -> String {
    let mut text = paragraph(&format!("{} at {}", status.config.main.describe(), moment(status.fleet.at)), 0);
    text.push('\n');
    text.push_str(&counts(status));
    text.push_str(&versions(status));
    for (name, fact) in facts(status) {
        let fact = paragraph(&fact, 13);
        let _ = write!(text, "{name:12} {}", fact.trim_start());
    }
    text.push_str(&problems(status));
    let told = |remarks: &[Remark], mark: &dyn Fn(usize) -> String| -> String {
        remarks.iter().enumerate().map(|(index, remark)| remark_lines(remark, &mark(index))).collect()
    };
    let (needs, notes) = (status.needs_person(), status.good_to_know());
    if !notes.is_empty() {
        let _ = write!(text, "\nGood to know:\n{}", told(&notes, &|_| "-".to_owned()));
    }
    if status.is_well() {
        text.push_str("\nAll is well.\n");
    } else if needs.is_empty() {
        text.push_str("\nNothing needs a person now.\n");
    } else {
        let _ = write!(text, "\nNeeds a person:\n{}", told(&needs, &|index| format!("{}.", index + 1)));
    }
    text
}

fn counts(status: &Status<'_>) -> String {
    if status.fleet.counts.is_empty() {
        return "No tenants yet.\n\n".to_owned();
    }
    let mut rows: Vec<_> = status
        .fleet
        .counts
        .iter()
        .map(|count| vec![count.state.clone(), count.work.clone(), count.tenants.to_string()])
        .collect();
    let all: i64 = status.fleet.counts.iter().map(|count| count.tenants).sum();
    rows.push(vec!["all".to_owned(), String::new(), all.to_string()]);
    table(&["STATE", "WORK", "TENANTS"], &rows) + "\n"
}

fn versions(status: &Status<'_>) -> String {
    if status.fleet.versions.is_empty() {
        return String::new();
    }
    let row = |version: &crate::registry::fleet::VersionCount| {
        vec![
            version.version.map_or_else(|| "unknown".to_owned(), |version| version.to_string()),
            version.name.clone().unwrap_or_default(),
            version.migrated_at.map(moment).unwrap_or_default(),
            version.tenants.to_string(),
            pending(status, status.standing(version)),
        ]
    };
    let rows: Vec<_> = status.fleet.versions.iter().map(row).collect();
    table(&["VERSION", "LAST MIGRATION", "LAST APPLIED", "TENANTS", "STILL LACKING"], &rows) + "\n"
}

fn pending(status: &Status<'_>, standing: Standing) -> String {
    let named = |versions: &[i64]| versions.iter().map(|version| status.migration(*version)).collect::<Vec<_>>();
    match standing {
        Standing::Current => "nothing".to_owned(),
        Standing::Behind(versions) if versions.len() <= NAMED => named(&versions).join(", "),
        Standing::Behind(versions) => {
            let ends = named(&[versions[0], versions[versions.len() - 1]]);
            format!("{} migrations, {} to {}", versions.len(), ends[0], ends[1])
        }
        Standing::Newer => "newer than this tenantd".to_owned(),
        Standing::Diverged => "contradicts our files".to_owned(),
        Standing::Unknown => "unknown".to_owned(),
    }
}

fn facts(status: &Status<'_>) -> Vec<(&'static str, String)> {
    let fleet = &status.fleet;
    let mut waiting = counted(status.waiting(), "tenant");
    if let Some(oldest) = fleet.oldest_waiting {
        let _ = write!(
            waiting,
            ", the oldest signup without a {} for {}",
            status.config.tenant.isolation,
            duration(oldest)
        );
    }
    let daemons = if fleet.daemons.is_empty() { "none connected".to_owned() } else { fleet.daemons.join(", ") };
    let set = status.set;
    let max_per_hour = match status.config.tenant.max_per_hour {
        0 => String::new(),
        max => format!(" of {max}"),
    };
    let by_schema = status.config.tenant.isolation == Isolation::Schema;
    let spares = if by_schema {
        String::new()
    } else {
        format!("; {} at hand, {} in the making", counted(fleet.at_hand, "spare"), fleet.making)
    };
    let rollout = fleet.rollout.as_ref().map(|rollout| {
        let state = if rollout.paused { "paused" } else { "running" };
        let more = if rollout.migration_set == set.id() { "; `tenantd rollout` shows more" } else { "" };
        ("Rollout", format!("to version {}: {state}{more}", rollout.version))
    });
    let mut facts = vec![
        ("Waiting", waiting),
        ("In work", counted(fleet.leased, "tenant")),
        ("Daemons", daemons),
        ("Doorbell", doorbell(fleet.bell.as_ref())),
        ("Signups", signups(status)),
        (
            "Migrations",
            format!(
                "{} from {}, newest {}, set {}",
                set.migrations().len(),
                set.source(),
                status.migration(set.newest_version()),
                &set.id()[..12]
            ),
        ),
        (
            if by_schema { "Schemas" } else { "Databases" },
            format!(
                "{} of {} (tenant.max), {}{max_per_hour} made within the hour{spares}",
                status.room.tenants, status.config.tenant.max, status.room.last_hour,
            ),
        ),
        ("Registry", status.registry.to_string()),
    ];
    if let Some(main_schema) = &status.main_schema {
        facts.push(("Main schema", self::main_schema(main_schema)));
    }
    facts.extend(rollout);
    facts
}

fn main_schema(standing: &Result<Reached>) -> String {
    match standing {
        Ok(Reached { version: 0, pending }) if pending.is_empty() => "no migration".to_owned(),
        Ok(Reached { version, pending }) if pending.is_empty() => format!("at {version}, the newest"),
        Ok(Reached { version, pending }) => {
            let pending: Vec<String> = pending.iter().map(|(version, name)| format!("{version} {name}")).collect();
            format!("at {version}, still lacking {}", pending.join(", "))
        }
        Err(_) => "see below".to_owned(),
    }
}

fn doorbell(holder: Option<&BellHolder>) -> String {
    match holder {
        None => "not armed: signups need not ring".to_owned(),
        Some(BellHolder { daemon: true, application_name, .. }) => {
            format!("armed by {}", application_name.trim_start_matches("tenantd:daemon "))
        }
        Some(BellHolder { role, .. }) => format!("taken by role {role}, which is no daemon"),
    }
}

fn signups(status: &Status<'_>) -> String {
    let words = |trigger: &Trigger| match trigger {
        Trigger::Right => "in place",
        Trigger::Disabled => "switched off",
        Trigger::Missing => "missing",
        Trigger::Wrong => "wrong",
    };
    match &status.signup {
        Ok(Signup { table, triggers, updates, .. }) => {
            let with = table.when.as_ref().map(|when| format!(" with {}", line(&when.written))).unwrap_or_default();
            let all_right = triggers.iter().chain(updates).all(|(_, trigger)| *trigger == Trigger::Right);
            if all_right {
                let trigger = if updates.is_empty() { "trigger" } else { "triggers" };
                return format!("into {}{with}, {trigger} in place", table.name);
            }
            let each = triggers.iter().map(|(on, trigger)| format!("trigger on {on} {}", words(trigger)));
            let updates = updates.iter().map(|(on, trigger)| format!("on updates of {on} {}", words(trigger)));
            format!("into {}{with}, {}", table.name, each.chain(updates).collect::<Vec<_>>().join(", "))
        }
        Err(_) => "not noticed, see below".to_owned(),
    }
}

fn problems(status: &Status<'_>) -> String {
    let mut text = String::new();
    for (work, head) in [("parked", "Parked"), ("failing", "Failing")] {
        let listed: Vec<_> = status.fleet.problems.iter().filter(|problem| problem.work == work).collect();
        let all = status.with_work(work);
        if all == 0 {
            continue;
        }
        let _ = writeln!(text, "\n{head} ({all}):");
        for problem in &listed {
            text.push_str(&one_problem(problem, status));
        }
        let more = all - i64::try_from(listed.len()).unwrap_or(0);
        if more > 0 {
            let _ =
                writeln!(text, "  and {more} more: select key, last_error from tenantd.tenants where work = '{work}'");
        }
    }
    text
}

fn one_problem(problem: &Problem, status: &Status<'_>) -> String {
    let at = status.fleet.at;
    let since = |earlier, later| {
        duration(std::time::Duration::try_from(jiff::Timestamp::duration_since(later, earlier)).unwrap_or_default())
    };
    let when = if problem.work == "parked" {
        format!("parked for {}", since(problem.due_at, at))
    } else if problem.due_at > at {
        format!("tried again in {}", since(at, problem.due_at))
    } else {
        "due now".to_owned()
    };
    let failures = counted(i64::from(problem.failures), "failure");
    let mut head = format!("{}: {}, {failures}, {when}", line(&problem.key), line(&problem.state));
    if let Some(name) = &problem.name {
        let _ = write!(head, "\n  database {}", line(name));
    }
    let kind = problem.kind.as_deref().unwrap_or("no error recorded").replace('_', " ");
    let mut error = match &problem.step {
        Some(step) => format!("{kind} at step {step}: "),
        None => format!("{kind}: "),
    };
    let said = problem.text.as_deref().unwrap_or_default();
    if let Some(code) = problem.sqlstate.as_deref().filter(|code| !said.contains(&format!("SQLSTATE {code}"))) {
        let _ = write!(error, "SQLSTATE {code}: ");
    }
    error.push_str(said);
    paragraph(&head, 2) + &paragraph(&error, 4)
}

fn remark_lines(remark: &Remark, mark: &str) -> String {
    let mut text = String::new();
    for (index, part) in remark.lines().iter().enumerate() {
        let part = if index == 0 { part.clone() } else { format!("- {part}") };
        text.push_str(&paragraph(&part, mark.len() + 1));
    }
    text.push_str(&paragraph(&line(&remark.advice), mark.len() + 1));
    // The mark stands before the first line.
    text.replacen(&" ".repeat(mark.len() + 1), &format!("{mark} "), 1)
}
