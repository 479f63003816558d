//! Status as one object for programs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::findings::Remark;
use super::{Signup, Status};
use crate::commands::main_schema::Reached;
use crate::commands::output;
use crate::error::Result;
use crate::registry::fleet::{BellHolder, Problem, VersionCount};
use crate::registry::triggers::Trigger;

pub(super) fn object(status: &Status<'_>) -> Value {
    let (fleet, needs) = (&status.fleet, status.needs_person());
    let counts =
        fleet.counts.iter().map(|count| json!({ "state": count.state, "work": count.work, "tenants": count.tenants }));
    json!({
        "ok": status.is_well(),
        "needs_person": needs.iter().map(remark).collect::<Vec<_>>(),
        "good_to_know": status.good_to_know().iter().map(remark).collect::<Vec<_>>(),
        "at": moment(fleet.at),
        "database": status.config.main.describe(),
        "registry": status.registry.to_string(),
        "tenants": fleet.counts.iter().map(|count| count.tenants).sum::<i64>(),
        "counts": counts.collect::<Vec<_>>(),
        "versions": fleet.versions.iter().map(|row| version(status, row)).collect::<Vec<_>>(),
        "waiting": status.waiting(),
        "oldest_waiting_seconds": fleet.oldest_waiting.map(|length| length.as_secs_f64()),
        "overdue_seconds": fleet.overdue.map(|length| length.as_secs_f64()),
        "in_work": fleet.leased,
        "parked": problems(status, "parked"),
        "parked_tenants": status.with_work("parked"),
        "failing": problems(status, "failing"),
        "failing_tenants": status.with_work("failing"),
        "held": status.with("requested", "held"),
        "held_by_hand": status.with("ready", "held"),
        "deleting": status.with("deleting", "held"),
        "signed_up_again": status.fleet.again,
        "daemons": fleet.daemons,
        "doorbell": { "holder": fleet.bell.as_ref().map(holder), "notification_queue_usage": fleet.notification_queue },
        "signup": signup(status),
        "brakes": {
            "tenants": status.room.tenants,
            "max": status.config.tenant.max,
            "made_last_hour": status.room.last_hour,
            "max_per_hour": Some(status.config.tenant.max_per_hour).filter(|max| *max > 0),
        },
        "migrations": migrations(status),
        "rollout": fleet.rollout.as_ref().map(|rollout| json!({
            "version": rollout.version,
            "state": if rollout.paused { "paused" } else { "running" },
            "why": rollout.why,
        })),
        "spares": { "at_hand": fleet.at_hand, "in_the_making": fleet.making, "left_over": fleet.strays },
        "template_failure": status.template_failure,
        "main_schema": status.main_schema.as_ref().map(|standing| main_schema(status, standing)),
    })
}

/// RFC 3339.
fn moment(at: Timestamp) -> String {
    at.to_string()
}

fn remark(remark: &Remark) -> Value {
    json!({ "word": remark.word, "text": remark.text, "advice": remark.advice })
}

fn version(status: &Status<'_>, row: &VersionCount) -> Value {
    let standing = status.standing(row);
    let named = |version: &i64| json!({ "version": version, "name": status.set.get(*version).map(|ours| &ours.name) });
    json!({
        "version": row.version,
        "name": row.name,
        "tenants": row.tenants,
        "migrated_at": row.migrated_at.map(moment),
        "standing": standing.word(),
        "pending": standing.pending().map(|pending| pending.iter().map(named).collect::<Vec<_>>()),
    })
}

fn main_schema(status: &Status<'_>, standing: &Result<Reached>) -> Value {
    let (version, pending, error) = match standing {
        Ok(Reached { version, pending }) => {
            let named = |(version, name): &(i64, String)| json!({ "version": version, "name": name });
            (Some(version), Some(pending.iter().map(named).collect::<Vec<_>>()), None)
        }
        Err(error) => (None, None, Some(output::error(error))),
    };
    json!({ "source": status.config.main_schema.migrations, "version": version, "pending": pending, "error": error })
}

fn problems(status: &Status<'_>, work: &str) -> Vec<Value> {
    let object = |problem: &Problem| {
        json!({
            "key": problem.key,
            "name": problem.name,
            "state": problem.state,
            "failures": problem.failures,
            "due_at": moment(problem.due_at),
            "error": { "kind": problem.kind, "text": problem.text, "sqlstate": problem.sqlstate, "step": problem.step },
        })
    };
    status.fleet.problems.iter().filter(|problem| problem.work == work).map(object).collect()
}

fn holder(holder: &BellHolder) -> Value {
    json!({
        "role": holder.role,
        "application_name": holder.application_name,
        "pid": Some(holder.pid).filter(|pid| *pid != 0),
        "daemon": holder.daemon,
    })
}

fn signup(status: &Status<'_>) -> Value {
    let word = |trigger: Trigger| match trigger {
        Trigger::Right => "right",
        Trigger::Disabled => "disabled",
        Trigger::Missing => "missing",
        Trigger::Wrong => "wrong",
    };
    match &status.signup {
        Ok(Signup { table, triggers, updates, departures }) => {
            let each = |triggers: &[(String, Trigger)]| {
                let one = |(on, trigger): &(String, Trigger)| json!({ "table": on, "trigger": word(*trigger) });
                triggers.iter().map(one).collect::<Vec<_>>()
            };
            json!({
                "table": table.name,
                "id_column": table.id,
                "when": table.when.as_ref().map(|when| &when.written),
                "triggers": each(triggers),
                "update_triggers": each(updates),
                "departure_triggers": each(departures),
                "users_hidden": table.rows_hidden,
                "error": null,
            })
        }
        Err(error) => json!({ "error": output::error(error) }),
    }
}

fn migrations(status: &Status<'_>) -> Value {
    let (set, relations) = (status.set, &status.relations);
    let relation = match relations {
        relations if !relations.refused.is_empty() => "refused",
        relations if !relations.diverged.is_empty() => "diverged",
        relations if !relations.newer.is_empty() => "older",
        _ => "newest",
    };
    let entries =
        set.migrations().iter().map(|migration| json!({ "version": migration.version, "name": migration.name }));
    json!({
        "source": set.source(),
        "id": set.id(),
        "newest": set.newest_version(),
        "migrations": entries.collect::<Vec<_>>(),
        "relation": relation,
        "refused": relations.refused,
        "diverged": relations.diverged,
        "newer_sets": relations.newer,
        "newer_tenants": status.newer,
    })
}
