//! The report of a check as text for people: by tenant, then the fleet, then the totals.

use std::collections::BTreeSet;

use super::inside::told;
use super::mend::Mended;
use super::{Finding, Report};
use crate::commands::output::{counted, duration, line, paragraph};
use crate::config::Isolation;

/// Of more objects than this the rest is counted; JSON has them all.
const OBJECTS: usize = 20;

pub(super) fn whole(report: &Report, kind: Isolation) -> String {
    let mut text = String::new();
    let mut of = None;
    for finding in &report.findings {
        if of != Some(&finding.key) {
            text.push_str(&head(finding, kind));
            of = Some(&finding.key);
        }
        text.push_str(&one(finding));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text + &totals(report)
}

fn head(finding: &Finding, kind: Isolation) -> String {
    match (&finding.key, &finding.database) {
        (Some(key), Some(name)) => format!("{} ({kind} {})\n", line(key), line(name)),
        (Some(key), None) => format!("{}\n", line(key)),
        (None, _) => "the fleet\n".to_owned(),
    }
}

fn one(finding: &Finding) -> String {
    let mut text = paragraph(&line(&format!("{}: {}", finding.ill, finding.text)), 2);
    for object in finding.objects.iter().take(OBJECTS) {
        text.push_str(&paragraph(&line(&told(object)), 6));
    }
    let more = finding.objects.len().saturating_sub(OBJECTS);
    if more > 0 {
        text.push_str(&format!("      and {more} more: --json names them all\n"));
    }
    let cure = finding.ill.cure().unwrap_or_default();
    text.push_str(&match &finding.mended {
        Mended::NotAsked => paragraph(&line(&finding.advice), 4),
        Mended::WouldBe => format!("    would be done: {cure}\n"),
        Mended::Done => format!("    done: {cure}\n"),
        Mended::Failed(why) => paragraph(&line(&format!("not put right: {why}")), 4),
    });
    text
}

fn totals(report: &Report) -> String {
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let tenants: BTreeSet<&String> = report.findings.iter().filter_map(|finding| finding.key.as_ref()).collect();
    let mut text = format!("{} looked at in {}: ", counted(number(report.looked_at), "tenant"), duration(report.took));
    if report.findings.is_empty() {
        text.push_str("all is well\n");
    } else {
        let ills = counted(number(report.findings.len()), "finding");
        text.push_str(&format!("{ills}, {} concerned\n", counted(number(tenants.len()), "tenant")));
    }
    let with = |which: fn(&Finding) -> bool| report.findings.iter().filter(|finding| which(finding)).count();
    let (done, would) =
        (with(|finding| finding.mended == Mended::Done), with(|finding| finding.mended == Mended::WouldBe));
    if done > 0 {
        text.push_str(&format!("{} put right\n", counted(number(done), "finding")));
    }
    if would > 0 {
        text.push_str(&format!("{} would be put right; nothing was changed\n", counted(number(would), "finding")));
    }
    if report.busy > 0 {
        text.push_str(&format!("{} left out, since somebody works on them\n", counted(number(report.busy), "tenant")));
    }
    if report.cut_off {
        text.push_str("ended early: the rest was not looked at\n");
    }
    text
}
