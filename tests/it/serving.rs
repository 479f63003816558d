//! The daemon as a whole: the built binary, signups, signals.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::fleet::{row, write_migrations};
use crate::pages::Pages;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

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

/// A daemon whose tenants' second migration takes `seconds` for each row of the table that the first made, in `folder`.
fn slow(database: &TestDatabase, folder: &Path, seconds: u32) -> Program {
    write_migrations(folder, &[("0002_slow.sql", &format!("select pg_sleep({seconds}) from first;"))]);
    Program::for_database(database).setting("tenant.migrations", &folder.display().to_string())
}

/// A tenant with one row in the table of its first migration.
async fn one_tenant(database: &TestDatabase, folder: &Path) -> String {
    write_migrations(folder, &[("0001_first.sql", "create table first (id integer);")]);
    let program = Program::for_database(database).setting("tenant.migrations", &folder.display().to_string());
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 0, "{}", swept.stderr);
    let inside = database.tenant_superuser(&database.tenant_name(&key)).await;
    inside.batch_execute("insert into first values (1)").await.expect("insert");
    key
}

/// How many migrations of this test's tenants sleep in the server now.
async fn sleeping(database: &TestDatabase) -> i64 {
    database.tenant_sessions("query like '%pg_sleep%' and application_name like 'tenantd:%'").await
}

/// Starts the daemon, and returns once the migration sleeps.
async fn work_in_hand(database: &TestDatabase, program: &Program) -> Daemon {
    let daemon = program.start();
    until("the migration runs", SOON, async || sleeping(database).await == 1).await;
    daemon
}

/// Goal: SIGTERM and SIGINT let the work in hand be finished, take no new work, and leave nothing. Method: a migration of two seconds, the signal in
/// the middle, a signup after it; the audit looks for leases and connections.
#[tokio::test]
async fn a_signal_drains() {
    for signal in [Signal::TERM, Signal::INT] {
        let database = TestDatabase::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let key = one_tenant(&database, folder.path()).await;
        let mut daemon = work_in_hand(&database, &slow(&database, folder.path(), 2)).await;
        daemon.signal(signal);
        daemon.wait_for_line("no new work", SOON).await;
        let late = database.sign_up("too late").await;
        assert!(daemon.finish().await.success());
        let (worked, late) = (row(&database, &key).await, row(&database, &late).await);
        assert_eq!((&worked["version"], &worked["leased_until"]), (&2.into(), &serde_json::Value::Null), "{worked}");
        assert_eq!((&late["state"], &late["name"]), (&"requested".into(), &serde_json::Value::Null), "{late}");
        database.finish().await;
    }
}

/// Goal: work that `work.shutdown` leaves no time for is broken off on the server as well and given back, so that another daemon finishes it.
/// Method: a migration of a minute, a second of time.
#[tokio::test]
async fn what_takes_too_long_is_broken_off() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let key = one_tenant(&database, folder.path()).await;
    let program = slow(&database, folder.path(), 60).setting("work.shutdown", "1s");
    let daemon = work_in_hand(&database, &program).await;
    let daemon = daemon.allow("work.shutdown is over").allow("broken off");
    assert!(daemon.terminate().await.success());
    until("the migration is stopped", SOON, async || sleeping(&database).await == 0).await;
    let left = row(&database, &key).await;
    assert_eq!((&left["leased_until"], &left["failures"]), (&serde_json::Value::Null, &0.into()), "{left}");
    let other = slow(&database, folder.path(), 0).start();
    until("another finishes it", SOON, async || row(&database, &key).await["version"] == 2).await;
    assert!(other.terminate().await.success());
    database.finish().await;
}

/// Goal: a second signal ends the daemon at once, with the code of that signal; the work is taken up after its lease. Method: a migration
/// of a minute, and both signals.
#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let database = TestDatabase::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let key = one_tenant(&database, folder.path()).await;
        let program = slow(&database, folder.path(), 60).setting("work.lease", "4s");
        let mut daemon = work_in_hand(&database, &program).await;
        daemon.signal(Signal::TERM);
        daemon.wait_for_line("no new work", SOON).await;
        let asked = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.allow("a second signal").finish().await.code(), Some(code));
        assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
        // Its first sweep may come before the lease ends.
        let other = slow(&database, folder.path(), 0).setting("sweep.every", "1s").start();
        until("another takes it up", SOON, async || row(&database, &key).await["version"] == 2).await;
        assert!(other.terminate().await.success());
        database.finish().await;
    }
}

async fn all_have(database: &TestDatabase, version: i64) -> bool {
    let others = "select count(*) from tenantd.tenants where state <> 'ready' or version is distinct from $1";
    database.superuser().await.query_one(others, &[&version]).await.expect("count").get::<_, i64>(0) == 0
}

/// Goal: SIGHUP brings a new migration to every tenant; a broken folder leaves the last good set in force and says so, until it is mended.
/// Method: three tenants, a folder that grows, breaks, and is mended; a signup while it is broken; readiness over HTTP.
#[tokio::test]
async fn a_hang_up_reads_the_migrations_again() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let pages = Pages::reserve();
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.every", "1h")
        .setting("http.listen", &pages.listen());
    let mut daemon = program.start().allow("nothing was reloaded");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    for number in 0..3 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    until("all are ready", SOON, async || all_have(&database, 1).await).await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    daemon.hang_up();
    until("all have the second", SOON, async || all_have(&database, 2).await).await;
    until("readiness", SOON, async || pages.ready_is(200, "").await).await;

    write_migrations(folder.path(), &[("0003_third.sql", "create table third ();"), ("fourth.sql", "select 4;")]);
    daemon.hang_up();
    daemon.wait_for_line("nothing was reloaded", SOON).await;
    assert!(pages.ready_is(503, "fourth.sql").await, "{:?}", pages.get("/readyz").await);
    database.sign_up("meanwhile@example.org").await;
    until("the last good set is in force", SOON, async || all_have(&database, 2).await).await;

    std::fs::remove_file(folder.path().join("fourth.sql")).expect("mend the folder");
    daemon.hang_up();
    until("all have the third", SOON, async || all_have(&database, 3).await).await;
    until("readiness again", SOON, async || pages.ready_is(200, "").await).await;
    let said = daemon.lines().iter().filter(|line| line.contains("nothing was reloaded")).count();
    assert_eq!(said, 1);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}
