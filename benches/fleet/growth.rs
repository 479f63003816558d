//! Line 11: what one provision costs as the tenants on the server become more.

use crate::Size;
use crate::cold::{Bare, round};
use crate::figures::Samples;
use crate::measure::{Curve, Measure, Reach, Results, Unit};
use crate::stage::Stage;

/// What a tenant takes on disk, in bytes, with a little to spare.
const TENANT: u64 = 7_600_000;
/// Room that stays free: WAL, the machine's own needs.
const SPARE_ROOM: u64 = 4_000_000_000;

/// What is measured at one size.
struct Costs {
    tenants: usize,
    cold: Samples,
    warm: Samples,
    bare: Samples,
}

/// Fills the server up in steps, and measures at each.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set().await;
    let sizes: &[usize] = size.pick(&[8, 16], &[100, 1_000, 3_000]);
    let largest = *sizes.last().expect("some");
    if let Err(reason) = room_for(&stage, largest) {
        return Results {
            missing: vec![("11 cost of one provision as tenants grow".to_owned(), reason)],
            ..Results::default()
        };
    }
    let mut all = Vec::new();
    for &tenants in sizes {
        stage.fill(&stage.program, tenants).await;
        all.push(costs(&stage, tenants, size).await);
    }
    let (first, last) = (&all[0], &all[all.len() - 1]);
    let row = |way: &str, of: fn(&Costs) -> &Samples| {
        let what = format!("one provision at {} tenants, {way}", last.tenants);
        Measure::new(11, what, Unit::Milliseconds, of(last)).beside(format!("at {}", first.tenants), of(first))
    };
    let measures = vec![
        row("cold: p50", |costs| &costs.cold).reach(Reach::TimesAtMost(1.2)),
        row("warm: p50", |costs| &costs.warm).reach(Reach::TimesAtMost(1.2)),
        row("bare CREATE DATABASE: p50", |costs| &costs.bare),
    ];
    let curve = |name: &str, of: fn(&Costs) -> &Samples| Curve {
        name: name.to_owned(),
        points: all.iter().map(|costs| (costs.tenants, of(costs).middle())).collect(),
    };
    let curves = vec![
        curve("cold", |costs| &costs.cold),
        curve("bare CREATE DATABASE", |costs| &costs.bare),
        curve("warm", |costs| &costs.warm),
    ];
    Results { measures, curves, ..Results::default() }
}

async fn costs(stage: &Stage, tenants: usize, size: Size) -> Costs {
    let (mut cold, mut warm, mut bare) = (Samples::default(), Samples::default(), Samples::default());
    let mut application = stage.application().await;
    let daemon = stage.daemon(&stage.with_spares(0, 0)).await;
    let command = Bare::new(stage).await;
    for _ in 0..size.pick(1, 5) {
        let (waits, created) = round(stage, &mut application, &command, size.pick(3, 10)).await;
        cold.round(waits);
        bare.round(created);
    }
    drop(daemon);
    let daemon = stage.daemon(&stage.with_spares(16, 16)).await;
    for _ in 0..size.pick(1, 5) {
        let mut keys = Vec::new();
        for _ in 0..size.pick(3, 10) {
            stage.spares(8).await;
            let (key, _, _) = application.sign_up().await;
            application.heard(&key).await;
            keys.push(key);
        }
        warm.round(stage.waits(&keys).await);
    }
    drop(daemon);
    Costs { tenants, cold, warm, bare }
}

fn room_for(stage: &Stage, tenants: usize) -> Result<(), String> {
    let directory = stage.database.server().directory();
    let disk = rustix::fs::statvfs(directory).expect("ask for the room on the disk");
    let (free, needed) = (disk.f_bavail * disk.f_frsize, tenants as u64 * TENANT + SPARE_ROOM);
    if free >= needed {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes.div_ceil(1_000_000_000);
    Err(format!(
        "{} GB are free where {} lies, {tenants} tenants need {} GB; TMPDIR names another place",
        gigabytes(free),
        directory.display(),
        gigabytes(needed)
    ))
}
