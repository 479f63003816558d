//! Line 8: what others on the server feel while spares are refilled.

use std::time::{Duration, Instant};

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Application, Stage, milliseconds};

/// The yardstick needs no more.
const QUIET: Duration = Duration::from_secs(3);
const SPARES: usize = 32;
/// Bursts that leave the pool nearly empty, so that it is refilled at once, or at half, so that it is refilled in quiet moments; a quick run has
/// no time for these.
const BURSTS: [usize; 2] = [30, 16];

/// Somebody else's small transactions, one after the other: while the pool is refilled after a burst, and as long while nothing else runs.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set().await;
    let daemon = stage.daemon(&stage.with_spares(SPARES, SPARES)).await;
    // An application in a database of its own, where tenantd has never been.
    let bystander = Stage::on(stage.database.server()).await.application().await;
    let mut measures = Vec::new();
    let mut tenants = 0;
    for &burst in &BURSTS[..size.pick(1, 2)] {
        let (mut refilling, mut quiet) = (Samples::default(), Samples::default());
        for _ in 0..size.pick(1, 8) {
            stage.spares(SPARES).await;
            tenants += burst;
            stage.sign_up(burst).await;
            stage.ready(tenants).await;
            let began = Instant::now();
            refilling.round(commits(&bystander, stage.spares(SPARES)).await);
            quiet.round(commits(&bystander, tokio::time::sleep(began.elapsed().min(QUIET))).await);
        }
        let what = format!("commit of a bystander's INSERT while {burst} of {SPARES} spares are refilled");
        let row = |statistic: &str| {
            Measure::new(8, format!("{what}: {statistic}"), Unit::Milliseconds, &refilling)
                .beside("nothing running", &quiet)
        };
        measures.extend([row("p99").at(99).reach(Reach::TimesAtMost(3.0)), row("p50")]);
    }
    drop(daemon);
    measures.into()
}

/// How long each insert took, one after the other, for as long as `meanwhile` takes.
async fn commits(bystander: &Application, meanwhile: impl Future<Output = ()>) -> Vec<f64> {
    let mut took = Vec::new();
    let inserts = async {
        loop {
            took.push(milliseconds(bystander.sign_up().await.2));
        }
    };
    tokio::select! {
        () = inserts => {}
        () = meanwhile => {}
    }
    took
}
