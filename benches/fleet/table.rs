//! The results as a table on the terminal, and the words in which figures are told.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use crate::figures::Figure;
use crate::machine::Machine;
use crate::measure::{Measure, Reach, Results, Unit};

/// Everything, ratios first.
pub(crate) fn text(results: &Results, machine: &Machine) -> String {
    let mut text = format!("\n{}\n\n", machine.line());
    if !results.measures.is_empty() {
        text += &table(&HEAD, results.measures.iter().map(row));
        text += "\nIn brackets: the lowest and the highest round. Ours and the yardstick took turns.\n";
    }
    if !results.parts.is_empty() {
        text += "\nWhat the floor is made of, one connection at a time (median, middle half):\n\n";
        text += &table(&["", "MS"], results.parts.iter().map(|part| vec![part.name.clone(), spread(part.took, plain)]));
    }
    if !results.curves.is_empty() {
        text += "\nOne provision as the tenants on the server become more (ms, median, middle half):\n\n";
        let head: Vec<String> =
            results.curves[0].points.iter().map(|(tenants, _)| format!("{tenants} TENANTS")).collect();
        let head: Vec<&str> = std::iter::once("").chain(head.iter().map(String::as_str)).collect();
        let rows = results.curves.iter().map(|curve| {
            let points = curve.points.iter().map(|(_, figure)| spread(*figure, plain));
            std::iter::once(curve.name.clone()).chain(points).collect()
        });
        text += &table(&head, rows);
    }
    for (line, why) in &results.missing {
        text += &format!("\nNot measured: {line}: {why}\n");
    }
    let reached: Vec<bool> = results.measures.iter().filter_map(Measure::reached).collect();
    let yes = reached.iter().filter(|reached| **reached).count();
    text + &format!("\n{yes} of {} reached.\n", reached.len())
}

/// What stands above the columns of [`row`].
pub(crate) const HEAD: [&str; 6] = ["RATIO", "TO REACH", "", "WHAT", "OURS", "YARDSTICK"];

/// The columns of one measure.
pub(crate) fn row(measure: &Measure) -> Vec<String> {
    let ours = spread(measure.value(), |value| amount(value, measure.unit));
    let yardstick = measure.yardstick.as_ref().zip(measure.yardstick_value());
    let yardstick = yardstick.map_or_else(String::new, |((name, _), figure)| {
        format!("{} {name}", spread(figure, |value| amount(value, measure.unit)))
    });
    vec![
        measure.ratio().map_or_else(String::new, |ratio| spread(ratio, times)),
        measure.reach.map_or_else(String::new, |reach| to_reach(reach, measure.unit)),
        measure.reached().map_or("", |reached| if reached { "reached" } else { "NOT REACHED" }).to_owned(),
        format!("{:>2} {}", measure.line, measure.what),
        ours,
        yardstick,
    ]
}

fn to_reach(reach: Reach, unit: Unit) -> String {
    match reach {
        Reach::AtMost(most) => format!("≤ {}", amount(most, unit)),
        Reach::TimesAtMost(most) => format!("≤ {most} ×"),
        Reach::TimesAtLeast(least) => format!("≥ {least} ×"),
    }
}

/// A value as people read it.
pub(crate) fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds => format!("{} ms", plain(value)),
        Unit::PerSecond => format!("{}/s", plain(value)),
        Unit::Megabytes => format!("{} MB", plain(value)),
    }
}

fn times(ratio: f64) -> String {
    format!("{} ×", if ratio < 10.0 { format!("{ratio:.2}") } else { plain(ratio) })
}

/// Three digits that count, thousands apart.
pub(crate) fn plain(value: f64) -> String {
    match value.abs() {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        ..999.5 => format!("{value:.0}"),
        _ => {
            let value = value.round();
            let thousands = (value / 1000.0).trunc();
            format!("{thousands:.0},{:03.0}", (value - thousands * 1000.0).abs())
        }
    }
}

fn spread(figure: Figure, tell: impl Fn(f64) -> String) -> String {
    let Figure { value, low, high } = figure;
    if low < high { format!("{} ({}–{})", tell(value), plain(low), plain(high)) } else { tell(value) }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(200);
    }
    table.set_header(head.iter().map(|word| Cell::new(word).set_alignment(CellAlignment::Left)));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}
