//! Where the time of one tenant goes: each step of a provision in the daemon's log, with its duration.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::fleet::{oid, row};
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// What `daemon` told to have come to its end: the spans of each such line, as in `reconcile:make`, and how long it took at least.
fn told(daemon: &Daemon) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for line in daemon.lines() {
        let line: Value = serde_json::from_str(&line).expect("JSON");
        let Some(milliseconds) = line.get("milliseconds") else { continue };
        assert_eq!((&line["level"], &line["message"]), (&"DEBUG".into(), &"done".into()), "{line}");
        assert!(milliseconds.as_f64().is_some_and(|took| took > 0.0), "{line}");
        let spans = line["spans"].as_array().expect("its spans");
        let words = spans.iter().map(|span| span.get("step").unwrap_or(&span["name"]).as_str().expect("a word"));
        told.insert(words.collect::<Vec<_>>().join(":"));
    }
    told
}

async fn ready(database: &TestDatabase, email: &str) -> String {
    let key = database.sign_up(email).await;
    until("the tenant", SOON, async || row(database, &key).await["state"] == "ready").await;
    key
}

/// Goal: every step of a tenant, a template and a spare is told with its duration. Method: a template, a spare, a tenant by it; then, without
/// spares, one that is made on demand, and one that is mended.
#[tokio::test]
async fn every_step_is_told_with_its_duration() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database).setting("log.level", "info,tenantd::provision=debug");
    let warm = program.clone().setting("spares.min", "1").setting("spares.max", "1").start();
    warm.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let at_hand = "select name from tenantd.spares_at_hand";
    let spare = async || client.query_opt(at_hand, &[]).await.expect("look").map(|row| row.get::<_, String>(0));
    until("a spare", SOON, async || spare().await.is_some()).await;
    ready(&database, "warm@example.org").await;
    let mut left = None;
    until("another spare", SOON, async || {
        left = spare().await;
        left.is_some() && told(&warm).contains("hand_over")
    })
    .await;
    let steps = told(&warm);
    for step in ["create", "open", "connect", "extensions", "grant", "migrate", "close", "complete"] {
        assert!(steps.contains(&format!("template:{step}")), "{step}: {steps:?}");
    }
    for step in ["spare", "spare:announce", "spare:create", "spare:keep", "template", "hand_over"] {
        assert!(steps.contains(step), "{step}: {steps:?}");
    }
    assert!(warm.terminate().await.success());

    let cold = program.setting("sweep.every", "1s").start();
    let left = left.expect("a spare");
    until("the spare to go", SOON, async || oid(&database, &left).await.is_none()).await;
    let key = ready(&database, "cold@example.org").await;
    database.outside(&format!("grant connect on database {} to public", database.tenant_name(&key))).await;
    let all = [
        "discard spare:withdraw",
        "discard spare:drop",
        "discard spare:forget",
        "reconcile:name",
        "reconcile:observe",
        "reconcile:make",
        "reconcile:hand_over",
        "reconcile:close",
        "record",
    ];
    until("all steps", SOON, async || {
        let steps = told(&cold);
        all.iter().all(|step| steps.contains(*step))
    })
    .await;
    drop(client);
    assert!(cold.terminate().await.success());
    database.finish().await;
}
