//! The results as a plot: ours beside the yardstick, what is to be reached as a mark, and how cost grows.

use std::fmt::Write as _;

use crate::machine::Machine;
use crate::measure::{Curve, Measure, Reach, Results};
use crate::table::{amount, plain};

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 470.0;
const BAR: f64 = 340.0;
const ROW: f64 = 46.0;
const TOP: f64 = 96.0;
const GROWTH: f64 = 300.0;

const OURS: &str = "#2563a8";
const YARDSTICK: &str = "#b9c3cf";
const GOOD: &str = "#2f7d4f";
const BAD: &str = "#c0392b";
const CURVES: [&str; 3] = [OURS, "#8a94a0", "#d98324"];

/// The whole plot.
pub(crate) fn svg(results: &Results, machine: &Machine) -> String {
    let told: Vec<&Measure> = results.measures.iter().filter(|measure| measure.reach.is_some()).collect();
    let bars = TOP + ROW * count(told.len());
    let height = bars + if results.curves.is_empty() { 30.0 } else { GROWTH + 90.0 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\" font-size=\"13\" fill=\"#1f2933\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, 32.0, 38.0, "font-size=\"20\" font-weight=\"600\"", "tenantd beside its yardsticks");
    text(&mut svg, 32.0, 60.0, "fill=\"#697586\" font-size=\"12\"", &machine.line());
    legend(&mut svg);
    for (index, measure) in told.iter().enumerate() {
        bar(&mut svg, TOP + ROW * count(index), measure);
    }
    if !results.curves.is_empty() {
        growth(&mut svg, bars + 50.0, &results.curves);
    }
    svg + "</svg>\n"
}

fn legend(svg: &mut String) {
    let mut at = LEFT;
    for (colour, word, width) in [(OURS, "tenantd", 80.0), (YARDSTICK, "yardstick", 88.0)] {
        rectangle(svg, at, 74.0, 12.0, 10.0, colour);
        text(svg, at + 18.0, 83.0, "font-size=\"12\"", word);
        at += width;
    }
    mark(svg, at + 4.0, 72.0, 14.0);
    text(svg, at + 14.0, 83.0, "font-size=\"12\"", "to reach");
}

/// One measure: two bars on a scale of their own, since no two measures share one.
fn bar(svg: &mut String, top: f64, measure: &Measure) {
    let (value, yardstick) = (measure.value(), measure.yardstick_value());
    let target = match measure.reach {
        Some(Reach::AtMost(most)) => Some(most),
        Some(Reach::TimesAtMost(times) | Reach::TimesAtLeast(times)) => yardstick.map(|figure| figure.value * times),
        None => None,
    };
    // The yardstick may be so far away that ours and the target would vanish beside it: then its bar is cut.
    let own = value.value.max(target.unwrap_or(0.0)) * 1.15;
    let full = yardstick.map_or(own, |figure| own.max(figure.value).min(own * 4.0)).max(f64::MIN_POSITIVE);
    let length = |amount: f64| (amount.max(0.0) / full).min(1.0) * BAR;
    let name = format!("{}  {}", measure.line, measure.what);
    text(svg, 32.0, top + 17.0, "", &shortened(&name, 60));
    let (word, colour) = if measure.reached() == Some(true) { ("reached", GOOD) } else { ("not reached", BAD) };
    let ratio = measure.ratio().map_or_else(String::new, |ratio| format!("{} × the yardstick, ", plain(ratio.value)));
    text(svg, 32.0, top + 33.0, &format!("font-size=\"11\" fill=\"{colour}\""), &format!("{ratio}{word}"));
    rectangle(svg, LEFT, top + 6.0, length(value.value), 13.0, OURS);
    let label = |svg: &mut String, at: f64, x: f64, label: &str| {
        text(svg, x + 8.0, at, "font-size=\"11\" fill=\"#4a5563\"", label);
    };
    label(
        svg,
        top + 17.0,
        LEFT + length(value.value).max(target.map_or(0.0, length)),
        &amount(value.value, measure.unit),
    );
    if let (Some(figure), Some((name, _))) = (yardstick, &measure.yardstick) {
        rectangle(svg, LEFT, top + 21.0, length(figure.value), 13.0, YARDSTICK);
        let cut = if figure.value > full { " (cut)" } else { "" };
        let told = format!("{}  {name}{cut}", amount(figure.value, measure.unit));
        label(svg, top + 32.0, LEFT + length(figure.value).max(target.map_or(0.0, length)), &told);
    }
    if let Some(target) = target {
        mark(svg, LEFT + length(target), top + 3.0, 34.0);
    }
}

fn growth(svg: &mut String, top: f64, curves: &[Curve]) {
    let (left, right, bottom) = (80.0, WIDTH - 220.0, top + GROWTH - 40.0);
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most_tenants = points().map(|(tenants, _)| count(*tenants)).fold(1.0, f64::max);
    let step = nice(points().map(|(_, took)| took.high).fold(1.0, f64::max) / 4.0);
    let lines = (points().map(|(_, took)| took.high).fold(0.0, f64::max) / step).ceil();
    let x = |tenants: f64| left + tenants / most_tenants * (right - left);
    let y = |took: f64| bottom - took / (step * lines) * (bottom - top - 20.0);
    text(
        svg,
        32.0,
        top,
        "font-size=\"15\" font-weight=\"600\"",
        "One provision as the tenants on the server become more",
    );
    let mut line = 0.0;
    while line <= lines {
        let at = y(line * step);
        let _ = writeln!(svg, "<path d=\"M{left:.1} {at:.1}H{right:.1}\" stroke=\"#e4e8ed\" fill=\"none\"/>");
        text(
            svg,
            left - 10.0,
            at + 4.0,
            "text-anchor=\"end\" font-size=\"11\" fill=\"#697586\"",
            &format!("{} ms", line * step),
        );
        line += 1.0;
    }
    for (tenants, _) in &curves[0].points {
        let place = "text-anchor=\"middle\" font-size=\"11\" fill=\"#697586\"";
        text(svg, x(count(*tenants)), bottom + 20.0, place, &format!("{tenants} tenants"));
    }
    for (curve, colour) in curves.iter().zip(CURVES) {
        let path: Vec<String> = curve
            .points
            .iter()
            .map(|(tenants, took)| format!("{:.1} {:.1}", x(count(*tenants)), y(took.value)))
            .collect();
        let _ =
            writeln!(svg, "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"2.5\" fill=\"none\"/>", path.join("L"));
        for (tenants, took) in &curve.points {
            let (at, low, high) = (x(count(*tenants)), y(took.low), y(took.high));
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {low:.1}V{high:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.4\" stroke-width=\"5\"/>"
            );
            let _ = writeln!(svg, "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", y(took.value));
        }
    }
    // From below upwards, none nearer to the one before than a line is high.
    let mut ends: Vec<_> =
        curves.iter().zip(CURVES).filter_map(|(curve, colour)| Some((curve, colour, curve.points.last()?.1))).collect();
    ends.sort_by(|(_, _, one), (_, _, other)| one.value.total_cmp(&other.value));
    let mut above = f64::INFINITY;
    for (curve, colour, took) in ends {
        above = (y(took.value) + 4.0).min(above - 16.0);
        let told = format!("{}: {} ms", curve.name, plain(took.value));
        text(svg, right + 14.0, above, &format!("fill=\"{colour}\" font-size=\"12\""), &told);
    }
}

/// 1, 2 or 5 with as many noughts as it takes: the smallest no less than `value`.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= value).unwrap_or(value)
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn count(number: usize) -> f64 {
    number as f64
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    let width = width.max(1.0);
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" fill=\"{colour}\"/>"
    );
}

/// What is to be reached: an upright line.
fn mark(svg: &mut String, x: f64, y: f64, height: f64) {
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {y:.1}v{height:.1}\" stroke=\"{BAD}\" stroke-width=\"2\" stroke-dasharray=\"3 2\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>");
}
