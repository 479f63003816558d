//! The daemon as a whole: the built binary, signups, signals.

use std::time::Duration;

use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

const SOON: Duration = Duration::from_secs(20);

/// Goal: a signup becomes ready while the daemon runs, and SIGTERM ends it cleanly. Method: as a user would.
#[tokio::test]
async fn signups_become_tenants() {
    let database = TestDatabase::new().await;
    let daemon = Program::for_database(&database).setting("signup.notify", "true").start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let app = database.app().await;
    for number in 0..5 {
        let key = database.sign_up(&format!("{number}@example.org")).await;
        let state: Option<String> = app.query_one("select tenantd.wait($1)", &[&key]).await.expect("wait").get(0);
        assert_eq!(state.as_deref(), Some("ready"));
    }
    drop(app);
    let ended = daemon.terminate().await;
    assert_eq!(ended.code(), Some(0));
    database.finish().await;
}
