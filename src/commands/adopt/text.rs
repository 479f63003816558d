//! What would be recorded, and what was, as text for people.

use super::Report;
use super::judge::Plan;
use crate::commands::output::{counted, line, paragraph};
use crate::config::Isolation;
use crate::error::Error;

pub(super) fn plans(report: &Report, kind: Isolation) -> String {
    let mut text = String::new();
    for plan in &report.plans {
        text.push_str(&one(plan, kind));
    }
    for (candidate, error) in &report.refused {
        text.push_str(&refused(&candidate.name, error));
    }
    match report.already.as_slice() {
        [] => {}
        [one] => text.push_str(&paragraph(&line(&format!("{one} is its tenant's already: nothing is to be done")), 0)),
        several => text.push_str(&format!("{} {kind}s are their tenants' already\n", several.len())),
    }
    if report.plans.is_empty() && report.refused.is_empty() && report.already.is_empty() {
        text.push_str(&format!("there is no {kind} to adopt\n"));
    }
    text
}

/// A key and a name are often too long to stand in one line.
fn one(plan: &Plan, kind: Isolation) -> String {
    let version = match (plan.version, plan.baseline) {
        (None, _) => "without migrations".to_owned(),
        (Some(version), false) => format!("at version {version}"),
        (Some(version), true) => format!("migrations up to {version} to be written down as applied"),
    };
    let now = match &plan.tenant {
        None => "a new tenant".to_owned(),
        Some(tenant) => format!("a tenant that is {}, {}", tenant.state, tenant.work),
    };
    let mut text = paragraph(&line(&format!("{}: {now}", plan.key)), 0);
    text.push_str(&paragraph(&line(&format!("{kind} {}: {version}", plan.database.name)), 2));
    for note in &plan.notes {
        text.push_str(&paragraph(&line(note), 4));
    }
    text
}

fn refused(name: &str, error: &Error) -> String {
    let mut text = paragraph(&line(&format!("refused: {name}: {}", error.chain())), 0);
    if let Some(advice) = error.advice() {
        text.push_str(&paragraph(&line(&format!("hint: {advice}")), 4));
    }
    text
}

pub(super) fn outcome(report: &Report) -> String {
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let mut text: String = report.failed.iter().map(|(key, error)| refused(key, error)).collect();
    if report.dry_run && !report.plans.is_empty() {
        text.push_str(&format!(
            "{} would be adopted; nothing was changed\n",
            counted(number(report.plans.len()), "tenant")
        ));
    }
    if !report.adopted.is_empty() {
        let tenants = counted(number(report.adopted.len()), "tenant");
        text.push_str(&format!(
            "adopted {tenants}; the daemon, or `tenantd --sweep-once`, sees to owner, rights and migrations\n"
        ));
    }
    if report.cut_off {
        text.push_str("ended early: the rest was not adopted\n");
    }
    text
}
