//! Line 9: what a signup pays when its own transaction hands a spare over.

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Stage, milliseconds};

/// Half of it is made without pauses, the rest goes on being made meanwhile.
const SPARES: usize = 64;

/// Signups with `signup.handover = "commit"` beside signups whose trigger writes only the row, in turn.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set().await;
    let program = stage.with_spares(SPARES, SPARES).setting("signup.handover", "commit");
    let daemon = stage.daemon(&program).await;
    let beside = Stage::on(stage.database.server()).await;
    beside.tenantd(&beside.program, &["setup"]).await;
    let (application, other) = (stage.application().await, beside.application().await);
    let ready =
        application.client().prepare("select state from tenantd.tenants where key = $1").await.expect("prepare");
    let (mut ours, mut theirs, mut gains) = (Samples::default(), Samples::default(), Samples::default());
    let (mut signups, mut at_commit) = (0, 0);
    for _ in 0..size.pick(1, 10) {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        stage.spares(SPARES / 2).await;
        for _ in 0..16 {
            let (key, _, took) = application.sign_up().await;
            let seen: String = application.client().query_one(&ready, &[&key]).await.expect("read the view").get(0);
            signups += 1;
            at_commit += usize::from(seen == "ready");
            with.push(milliseconds(took));
            without.push(milliseconds(other.sign_up().await.2));
        }
        gains.round(with.iter().zip(&without).map(|(with, without)| with - without).collect());
        ours.round(with);
        theirs.round(without);
    }
    drop(daemon);
    let row = |what: String, samples| Measure::new(9, what, Unit::Milliseconds, samples);
    vec![
        row("instant hand-over: what the signup statement gains: p50".into(), &gains).reach(Reach::AtMost(1.0)),
        row(format!("the statement itself; ready at its commit: {at_commit} of {signups}"), &ours)
            .beside("the trigger writing only the row", &theirs),
    ]
    .into()
}
