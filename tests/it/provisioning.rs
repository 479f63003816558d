//! From a registry row to a tenant that the application works in.

use crate::fleet::Fleet;
use crate::support::database::TestDatabase;

/// Goal: a signup becomes a database that `app` works in and a stranger cannot enter. Method: sign up, sweep, connect as each.
#[tokio::test]
async fn a_signup_becomes_a_database() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    assert_eq!(database.tenant_databases().await, [database.tenant_name(&key)]);
    fleet.close().await;
    database.finish().await;
}
