//! The results as files: JSON for programs, markdown to paste, a plot to look at.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::chart;
use crate::figures::Figure;
use crate::machine::Machine;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::table::{HEAD, plain, row};

/// Where they are: `target/bench`, in cargo's own folder.
pub(crate) fn folder() -> PathBuf {
    let here = std::env::current_exe().expect("where this program is");
    let target = here.ancestors().nth(3).unwrap_or(Path::new("target"));
    target.join("bench")
}

/// Writes all of them, in place of those of an earlier run.
pub(crate) fn write(results: &Results, machine: &Machine, quick: bool) {
    let folder = folder();
    fs::create_dir_all(&folder).expect("make the folder of results");
    let put = |name: &str, text: String| fs::write(folder.join(name), text).expect("write the results");
    put("results.json", format!("{:#}\n", json(results, machine, quick)));
    put("results.md", markdown(results, machine, quick));
    put("results.svg", chart::svg(results, machine));
}

fn json(results: &Results, machine: &Machine, quick: bool) -> Value {
    json!({
        "format": 1,
        "began": machine.at.to_string(),
        "quick": quick,
        "machine": {
            "cores": machine.cores, "gigabytes": machine.gigabytes, "system": machine.system,
            "postgres": machine.postgres, "load_before": machine.load,
        },
        "measures": results.measures.iter().map(measure).collect::<Vec<_>>(),
        "floor_ms": results.parts.iter().map(|part| json!({ "part": part.name, "took": figure(part.took) })).collect::<Vec<_>>(),
        "growth_ms": results.curves.iter().map(|curve| {
            let points = curve.points.iter().map(|(tenants, took)| json!({ "tenants": tenants, "took": figure(*took) }));
            json!({ "curve": curve.name, "points": points.collect::<Vec<_>>() })
        }).collect::<Vec<_>>(),
        "not_measured": results.missing.iter().map(|(line, why)| json!({ "line": line, "why": why })).collect::<Vec<_>>(),
    })
}

fn measure(measure: &Measure) -> Value {
    let unit = match measure.unit {
        Unit::Milliseconds => "ms",
        Unit::PerSecond => "per second",
        Unit::Megabytes => "MB",
    };
    let reach = measure.reach.map(|reach| match reach {
        Reach::AtMost(most) => json!({ "value_at_most": most }),
        Reach::TimesAtMost(most) => json!({ "ratio_at_most": most }),
        Reach::TimesAtLeast(least) => json!({ "ratio_at_least": least }),
    });
    json!({
        "line": measure.line,
        "what": measure.what,
        "unit": unit,
        "percentile": measure.percent,
        "samples": measure.ours.count(),
        "ours": figure(measure.value()),
        "yardstick": measure.yardstick.as_ref().map(|(name, _)| name),
        "yardstick_value": measure.yardstick_value().map(figure),
        "ratio": measure.ratio().map(figure),
        "reach": reach,
        "reached": measure.reached(),
    })
}

fn figure(figure: Figure) -> Value {
    json!({ "value": figure.value, "low": figure.low, "high": figure.high })
}

fn markdown(results: &Results, machine: &Machine, quick: bool) -> String {
    let mut text = format!("{}{}\n\n", machine.line(), if quick { " · quick run" } else { "" });
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text += &line(&HEAD.map(str::to_lowercase));
    text += "|---|---|---|---|---|---|\n";
    text.extend(results.measures.iter().map(|measure| line(&row(measure))));
    if !results.parts.is_empty() {
        text += "\n| part of the floor | ms |\n|---|---|\n";
        text.extend(results.parts.iter().map(|part| line(&[part.name.clone(), plain(part.took.value)])));
    }
    if let Some(first) = results.curves.first() {
        let sizes: Vec<String> = first.points.iter().map(|(tenants, _)| tenants.to_string()).collect();
        text += &format!(
            "\n| one provision, ms, by tenants | {} |\n|---|{}\n",
            sizes.join(" | "),
            "---|".repeat(sizes.len())
        );
        for curve in &results.curves {
            let points = curve.points.iter().map(|(_, took)| plain(took.value));
            text += &line(&std::iter::once(curve.name.clone()).chain(points).collect::<Vec<_>>());
        }
    }
    text.extend(results.missing.iter().map(|(line, why)| format!("\nNot measured: {line}: {why}\n")));
    text
}
