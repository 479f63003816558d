//! Lines 1 and 3: signups while spares are there.

use std::time::Duration;

use uuid::Uuid;

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Stage, milliseconds};
use crate::worker::Worker;

const SPARES: usize = 32;
/// Between two signups, so that the pool stays near its full size: a spare is made in some of the pauses, and in others while somebody
/// signs up.
const PAUSE: Duration = Duration::from_millis(100);
const MORE_PAUSE: Duration = Duration::from_millis(400);

/// In one statement; of a quick run, so that its pool is soon made.
const CROWD: usize = 200;
const SMALL_CROWD: usize = 30;
/// Before them, so that theirs are not the first hand-overs in the daemon's life, which take three times as long.
const BEFORE: usize = 10;

/// One signup at a time, the pool full, beside a job worker; then many in one statement.
pub(crate) async fn measure(size: Size) -> Results {
    let mut measures = one_by_one(size).await;
    measures.extend(at_once(size).await);
    measures.into()
}

async fn one_by_one(size: Size) -> Vec<Measure> {
    let stage = Stage::set().await;
    let daemon = stage.daemon(&stage.with_spares(SPARES, SPARES)).await;
    let mut application = stage.application().await;
    let mut worker = Worker::start(&Stage::on(stage.database.server()).await.database).await;
    let (mut ours, mut heard, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    let (rounds, signups) = size.pick((2, 6), (10, 30));
    for _ in 0..rounds {
        let (mut keys, mut hearing) = (Vec::new(), Vec::new());
        stage.spares(SPARES * 3 / 4).await;
        for _ in 0..signups {
            tokio::time::sleep(pause()).await;
            let (key, committed, _) = application.sign_up().await;
            hearing.push(milliseconds(application.heard(&key).await - committed));
            keys.push(key);
        }
        ours.round(stage.waits(&keys).await);
        heard.round(hearing);
        let mut waits = Vec::new();
        for _ in 0..size.pick(3, 10) {
            waits.push(worker.sign_up().await);
        }
        theirs.round(waits);
    }
    drop(daemon);
    let row = |what: &str, samples| Measure::new(1, what, Unit::Milliseconds, samples);
    vec![
        row("signup's commit to tenant ready, warm: p50", &ours)
            .beside("a job worker", &theirs)
            .reach(Reach::AtMost(3.0)),
        row("signup's commit to tenant ready, warm: p99", &ours)
            .at(99)
            .beside("a job worker", &theirs)
            .reach(Reach::AtMost(10.0)),
        row("until the application hears of it by LISTEN: p50", &heard),
        row("until the application hears of it by LISTEN: p99", &heard).at(99),
    ]
}

fn pause() -> Duration {
    let random = f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
    PAUSE + MORE_PAUSE.mul_f64(random)
}

async fn at_once(size: Size) -> Vec<Measure> {
    let stage = Stage::set().await;
    let crowd = size.pick(SMALL_CROWD, CROWD);
    let daemon = stage.daemon(&stage.with_spares(crowd + BEFORE, crowd + BEFORE)).await;
    stage.pool(crowd + BEFORE).await;
    stage.sign_up(BEFORE).await;
    stage.ready(BEFORE).await;
    let mut ours = Samples::default();
    for round in 1..=size.pick(1, 5) {
        // The making of the pool is over; the making of the next begins with the signups.
        stage.pool(crowd).await;
        let keys = stage.sign_up(crowd).await;
        stage.ready(BEFORE + crowd * round).await;
        ours.add(stage.waits(&keys).await.into_iter().fold(0.0, f64::max));
    }
    drop(daemon);
    let what = format!("{crowd} signups in one statement, {crowd} spares: the last one ready");
    vec![Measure::new(3, what, Unit::Milliseconds, &ours).reach(Reach::AtMost(150.0))]
}
