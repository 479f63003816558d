//! What the server runs out of: room on its disk, connections.

use std::time::Duration;

use tokio_postgres::Client;

use crate::fleet::write_migrations;
use crate::support::count::{is_long, times};
use crate::support::daemon::{Daemon, Program};
use crate::support::database::{APP_PASSWORD, STRANGER_PASSWORD, TestDatabase};
use crate::support::server::TestServer;
use crate::support::until::until;

/// Generous: while the server fails, the daemon tries one tenant at a time, with growing pauses.
const SOON: Duration = Duration::from_mins(3);

/// Lets a daemon say what a shortage makes it say.
fn through_a_shortage(daemon: Daemon) -> Daemon {
    daemon.allow_all(&[
        "the server fails",
        "the server failed",
        "no spares are made just now",
        "the sweep could not",
        "the registry cannot be read",
        "the template of",
        "nothing could be reloaded yet",
    ])
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// Nothing is counted against any tenant.
async fn nobody_is_blamed(client: &Client) {
    let blamed = "select count(*) from tenantd.tenant where failures > 0 or error_kind is not null or work = 'parked'";
    assert_eq!(count(client, blamed).await, 0);
}

/// Whether nothing is left to be made, migrated or dropped: what is dropped later would give room back.
async fn is_at_rest(client: &Client, version: i32) -> bool {
    let restless = format!(
        "select (select count(*) from tenantd.tenant where version <> {version} or work <> 'idle')
              + (select count(*) from tenantd.template where version <> {version} or completed_at is null)
              + (select count(*) from tenantd.spare where version <> {version} or made_at is null)
              + abs(1 - (select count(*) from tenantd.spares_at_hand))"
    );
    count(client, &restless).await == 0
}

/// Goal: while the server's disk is full nothing half made is registered, no tenant is blamed, and the one ERROR says what to do; spares serve as long
/// as there are any; when there is room again the work goes on by itself. Method: the data of a server of its own on a small file system, filled to
/// less than a database needs, also while a migration writes; then freed.
#[tokio::test]
async fn a_full_disk_is_waited_for() {
    // Each round leaves five tenants there.
    let server = TestServer::builder().disk(if is_long() { 400 } else { 160 }).start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text);")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("spares.min", "1")
        .setting("spares.max", "1");
    let mut daemon = through_a_shortage(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let eye = database.superuser().await;
    let app = server.client("app", APP_PASSWORD, database.name()).await;
    let mut version = 1;
    for round in 0..times(1, 5) {
        let ready = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle'";
        let before = count(&eye, ready).await;
        database.sign_up(&format!("before-{round}@example.org")).await;
        until("a tenant", SOON, async || count(&eye, ready).await == before + 1).await;
        until("all to be at rest", SOON, async || is_at_rest(&eye, version).await).await;
        let said = daemon.lines().len();
        server.fill_disk(3_000_000);
        for number in 0..4 {
            let insert = "insert into public.users (email) values ($1)";
            app.execute(insert, &[&format!("{round}-{number}@example.org")]).await.expect("a signup never fails");
        }
        let told = daemon.wait_for_line_after(said, "the server fails", SOON).await;
        assert!(told.contains("53100") && told.contains("free space"), "{told}");
        // Tried more than once, so that what a try leaves would be seen.
        let tries = "select coalesce(sum(attempt), 0)::bigint from tenantd.tenant where state = 'requested'";
        until("several tries", SOON, async || count(&eye, tries).await >= 3).await;
        let made = count(&eye, ready).await - before;
        assert!((2..5).contains(&made), "a spare serves, and then somebody waits: {made}");
        nobody_is_blamed(&eye).await;
        // What is on its way out may be half dropped: a drop takes room, too.
        let half_made = "select count(*) from pg_database where datconnlimit = -2 and datname in (
                             select name from tenantd.tenant where state = 'ready'
                             union all select name from tenantd.spare where made_at is not null
                             union all select name from tenantd.template where completed_at is not null and retired_at is null)";
        assert_eq!(count(&eye, half_made).await, 0);

        server.free_disk();
        until("all are served", SOON, async || count(&eye, ready).await == before + 5).await;
        daemon.wait_for_line_after(said, "the server works again", SOON).await;
        let errors = daemon.lines().iter().skip(said).filter(|line| line.contains("the server fails")).count();
        assert_eq!(errors, 1, "{}", daemon.lines().join("\n"));

        version += 1;
        until("all to be at rest", SOON, async || is_at_rest(&eye, version - 1).await).await;
        server.fill_disk(3_000_000);
        let write = "create table written as select md5(n::text) as text from generate_series(1, 100000) n; drop table written;";
        let file = format!("{version:04}_write.sql");
        write_migrations(folder.path(), &[(&file, write)]);
        let said = daemon.lines().len();
        daemon.hang_up();
        daemon.wait_for_line_after(said, "53100", SOON).await;
        nobody_is_blamed(&eye).await;
        server.free_disk();
        let behind = format!("select count(*) from tenantd.tenant where version <> {version} or work <> 'idle'");
        until("all are migrated", SOON, async || count(&eye, &behind).await == 0).await;
        nobody_is_blamed(&eye).await;
    }
    drop((eye, app));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// How many sessions tenantd has.
const OWN: &str = "select count(*) from pg_stat_activity where usename = 'tenantd' and backend_type = 'client backend'";

/// Connects as a stranger until nobody can any more who is no superuser, and none is on its way out, which would leave room a moment later.
async fn take_all_connections(server: &TestServer, eye: &Client) -> Vec<Client> {
    let usable =
        "select current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8";
    let usable = count(eye, usable).await;
    let mut taken = Vec::new();
    until("strangers have every connection", SOON, async || {
        match server.try_client("stranger", STRANGER_PASSWORD, "postgres").await {
            Ok(client) => {
                taken.push(client);
                false
            }
            Err(error) => {
                assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("53300"), "{error:?}");
                // One that ends is not listed any more before it gives its place back.
                count(eye, "select count(*) from pg_stat_activity where backend_type = 'client backend'").await
                    == usable
            }
        }
    })
    .await;
    taken
}

/// Goal: where no connection is left tenantd keeps those it has, takes none that is kept for superusers, blames no tenant, and goes on by itself.
/// Method: a server of few connections. Strangers take them all before the daemon starts; then beside one at work, as tenants are to be migrated,
/// which takes connections of their own; then the role's CONNECTION LIMIT is what is in the way.
#[tokio::test]
async fn connections_that_are_taken_are_waited_for() {
    let server = TestServer::builder().setting("max_connections", "30").start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text);")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.every", "1s")
        .setting("work.connections", "12");
    let eye = database.superuser().await;
    let app = database.app().await;
    let taken = take_all_connections(&server, &eye).await;
    let mut daemon =
        through_a_shortage(program.start()).allow("tenantd cannot begin yet").allow("the doorbell is not heard");
    let told = daemon.wait_for_line("tenantd cannot begin yet", SOON).await;
    assert!(told.contains("53300") && told.contains("max_connections"), "{told}");
    drop(taken);
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let insert = "insert into public.users (email) select gen_random_uuid()::text from generate_series(1, 5)";
    app.batch_execute(insert).await.expect("a signup never fails");
    let at = async |version: i32, tenants: i64| {
        let there = format!(
            "select count(*) from tenantd.tenant where state = 'ready' and version = {version} and work = 'idle'"
        );
        until("all tenants", SOON, async || count(&eye, &there).await == tenants).await;
    };
    at(1, 5).await;

    let mut version = 1;
    for _ in 0..times(1, 10) {
        for by_limit in [false, true] {
            // Of the tenants' connections some are about to end, and would leave room.
            let elsewhere = format!("{OWN} and datname <> current_database()");
            until("the work in tenants to be through", SOON, async || count(&eye, &elsewhere).await == 0).await;
            let taken = if by_limit { Vec::new() } else { take_all_connections(&server, &eye).await };
            if by_limit {
                // Far below what it has.
                eye.batch_execute("alter role tenantd connection limit 1").await.expect("limit it");
            }
            version += 1;
            write_migrations(
                folder.path(),
                &[(&format!("{version:04}_more.sql"), &format!("create table t{version} ();"))],
            );
            let said = daemon.lines().len();
            daemon.hang_up();
            daemon.wait_for_line_after(said, "53300", SOON).await;
            assert!(count(&eye, OWN).await <= 12, "no more than it may have");
            database.superuser().await;
            nobody_is_blamed(&eye).await;
            drop(taken);
            eye.batch_execute("alter role tenantd connection limit -1").await.expect("limit it no more");
            at(version, 5).await;
            nobody_is_blamed(&eye).await;
        }
    }
    drop((eye, app));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}
