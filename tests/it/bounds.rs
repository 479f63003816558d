//! `work.connections`: the most connections to the server at a time, whatever there is to do.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;

use crate::fleet::write_migrations;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);
const FEWEST: usize = 10;

/// The sessions of tenantd's role.
async fn sessions(client: &Client) -> BTreeSet<i32> {
    let select = "select pid from pg_stat_activity where usename = 'tenantd' and backend_type = 'client backend'";
    client.query(select, &[]).await.expect("look").iter().map(|row| row.get(0)).collect()
}

async fn count(client: &Client, condition: &str) -> i64 {
    let select = format!("select count(*) from tenantd.tenant where {condition}");
    client.query_one(&select, &[]).await.unwrap_or_else(|error| panic!("{select}: {error:?}")).get(0)
}

/// Waits until `condition` holds for `tenants` tenants, and returns the most sessions that were seen meanwhile. The server may take a moment to
/// see that a connection was closed: what is gone at the next look does not count.
async fn most_sessions(client: &Client, tenants: i64, condition: &str) -> usize {
    let (mut most, mut before) = (0, BTreeSet::new());
    until(condition, SOON, async || {
        let now = sessions(client).await;
        most = most.max(now.intersection(&before).count());
        before = now;
        count(client, condition).await == tenants
    })
    .await;
    most
}

/// Goal: a daemon never has more connections than it may, and gets everything done with the fewest that can be set. Method: a server of its own;
/// thirty signups at once beside a sweep with eight lanes, then a migration without a transaction, which takes a second connection, to all.
#[tokio::test]
async fn a_daemon_keeps_to_its_connections() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text);")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("work.connections", &FEWEST.to_string())
        .setting("sweep.every", "1s");
    let mut daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let insert = "insert into public.users (email) select n || '@example.org' from generate_series(1, 16) n";
    database.app().await.batch_execute(insert).await.expect("sign up");
    let most = most_sessions(&client, 16, "state = 'ready' and work = 'idle'").await;
    assert!(most <= FEWEST, "{most} sessions");

    let index = "-- tenantd: no-transaction\ncreate index concurrently log_message on log (message);";
    write_migrations(folder.path(), &[("0002_index.sql", index)]);
    daemon.hang_up();
    let most = most_sessions(&client, 16, "version = 2 and work = 'idle'").await;
    assert!((FEWEST / 2..=FEWEST).contains(&most), "{most} sessions");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    drop(client);
    database.finish().await;
}

/// Goal: a sweep by hand has a bound of its own, by the same setting. Method: as above with `--sweep-once`, which has no doorbell.
#[tokio::test]
async fn a_sweep_by_hand_keeps_to_its_connections() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let program = Program::for_database(&database).setting("work.connections", &FEWEST.to_string());
    let setup = program.run(&["setup"]).await;
    assert_eq!(setup.code(), 0, "{}", setup.stderr);
    let client = database.superuser().await;
    let insert = "insert into public.users (email) select n || '@example.org' from generate_series(1, 20) n";
    database.app().await.batch_execute(insert).await.expect("sign up");
    let (swept, most) =
        tokio::join!(program.run(&["--sweep-once"]), most_sessions(&client, 20, "state = 'ready' and work = 'idle'"));
    assert_eq!(swept.code(), 0, "{}\n{}", swept.stdout, swept.stderr);
    assert!((2..=FEWEST).contains(&most), "{most} sessions");
    drop(client);
    database.finish().await;
}
