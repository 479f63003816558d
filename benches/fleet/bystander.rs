//! Line 8: what others on the server feel while spares are refilled.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Stage, milliseconds};

/// Spares that a burst takes, and that are refilled while the bystander works.
const BURST: usize = 30;

/// Somebody else's small transactions, one after the other: first nothing else runs, then the pool is refilled after a burst.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set().await;
    let daemon = stage.daemon(&stage.with_spares(2, BURST)).await;
    let other = Stage::on(stage.database.server()).await;
    other
        .admin
        .batch_execute("create table public.entry (id bigserial primary key, text text not null)")
        .await
        .expect("make a table");
    let (mut refilling, mut quiet) = (Samples::default(), Samples::default());
    let mut tenants = 0;
    for _ in 0..size.pick(3, 10) {
        stage.spares(2).await;
        // The pool may still be on its way to where demand wants it.
        stage.at_rest().await;
        quiet.round(commits(&other.admin, Duration::from_secs(3)).await);
        stage.sign_up(BURST).await;
        tenants += BURST;
        stage.ready(tenants).await;
        refilling.round(commits(&other.admin, Duration::from_secs(3)).await);
    }
    drop(daemon);
    let row = |what: &str| Measure::new(8, what, Unit::Milliseconds, &refilling).beside("nothing running", &quiet);
    vec![
        row("commit of a bystander's INSERT while spares are refilled: p99").at(99).reach(Reach::TimesAtMost(3.0)),
        row("commit of a bystander's INSERT while spares are refilled: p50"),
    ]
    .into()
}

async fn commits(client: &Client, length: Duration) -> Vec<f64> {
    let insert = client.prepare("insert into public.entry (text) values ('x')").await.expect("prepare an insert");
    let (mut took, began) = (Vec::new(), Instant::now());
    while began.elapsed() < length {
        let sent = Instant::now();
        client.execute(&insert, &[]).await.expect("insert a row");
        took.push(milliseconds(sent.elapsed()));
    }
    took
}
