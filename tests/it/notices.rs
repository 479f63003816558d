//! The notice `tenantd_ready`, which an application may wait for.

use std::time::Duration;

use crate::support::daemon::Program;
use crate::support::database::{APP_PASSWORD, TestDatabase};
use crate::support::listening::{Listener, Said};

const SOON: Duration = Duration::from_secs(30);

async fn listener(database: &TestDatabase) -> Listener {
    let listener = Listener::connect(database.server(), "app", APP_PASSWORD, database.name()).await;
    listener.client.batch_execute("listen tenantd_ready").await.expect("listen");
    listener
}

async fn hears(listener: &mut Listener, key: &str) {
    let (_, said) = listener.next(SOON).await.expect("a notice in time");
    assert_eq!(said, Said::Notification { channel: "tenantd_ready".into(), payload: key.into() });
}

/// Goal: a tenant is told to be ready whichever way it came in. Method: one user whom the sweep by hand finds, one whom the sweep at the
/// daemon's start finds, one who signs up while the daemon runs; the application hears of each, in this order, and sees it in the view.
#[tokio::test]
async fn every_way_in_ends_with_a_notice() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let mut app = listener(&database).await;

    let by_hand = database.sign_up("by-hand@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    hears(&mut app, &by_hand).await;

    let before = database.sign_up("before@example.org").await;
    let daemon = program.start();
    hears(&mut app, &before).await;

    let meanwhile = database.sign_up("meanwhile@example.org").await;
    hears(&mut app, &meanwhile).await;
    let ready = "select count(*) from tenantd.tenants where state = 'ready'";
    assert_eq!(app.client.query_one(ready, &[]).await.expect("read the view").get::<_, i64>(0), 3);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    drop(app);
    database.finish().await;
}
