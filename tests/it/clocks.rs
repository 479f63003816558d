//! Clocks that are wrong.

use std::path::PathBuf;
use std::time::Duration;

use crate::fleet::write_migrations;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// What gives a program another time of day, and leaves its monotonic clock alone.
fn other_clock() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("read /usr/lib").flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime below /usr/lib, which .ci/install-needs installs")
}

/// The year in which the daemon wrote its first line.
fn year(daemon: &Daemon) -> i32 {
    let line: serde_json::Value = serde_json::from_str(&daemon.lines()[0]).expect("a line of log");
    line["timestamp"].as_str().expect("a timestamp")[..4].parse().expect("a year")
}

/// Goal: the wall clock of a daemon's machine decides nothing: leases, due times, times of grace and looks are the server's. Method: two daemons side by
/// side, one ten years behind, one ten years ahead; they make tenants and migrate them, a second for each, so that each sees leases of the other's. A
/// lease that was judged by either clock would be taken over, which the other says. Without TLS, since certificates are judged by the machine's
/// clock, as everywhere.
#[tokio::test]
async fn a_wrong_wall_clock_changes_nothing() {
    let server = TestServer::builder().without_tls().start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("main.sslmode", "disable")
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.every", "1s")
        .setting("sweep.parallel", "2")
        .setting("signup.poll", "100ms")
        .setting("spares.min", "1")
        .setting("spares.max", "1")
        .variable("LD_PRELOAD", &other_clock().display().to_string())
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut daemons = [program.clone().variable("FAKETIME", "-3650d"), program.variable("FAKETIME", "+3650d")]
        .map(|program| program.start());
    for daemon in &daemons {
        daemon.wait_for_line("tenantd is at work", SOON).await;
    }
    assert!((19..=20).contains(&(year(&daemons[1]) - year(&daemons[0]))), "twenty years lie between their clocks");
    let client = database.superuser().await;
    let insert = "insert into public.users (email) select n || '@example.org' from generate_series(1, 8) n";
    client.batch_execute(insert).await.expect("sign up");
    let all_at = async |version: i64| {
        let at = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle' and leased_until is null and version = $1";
        client.query_one(at, &[&version]).await.expect("count").get::<_, i64>(0) == 8
    };
    until("all are ready", SOON, async || all_at(1).await).await;
    write_migrations(folder.path(), &[("0002_slow.sql", "select pg_sleep(1); create table second ();")]);
    for daemon in &mut daemons {
        daemon.hang_up();
    }
    until("all are migrated", SOON, async || all_at(2).await).await;
    // To the last line.
    for daemon in &mut daemons {
        daemon.signal(Signal::TERM);
        assert!(daemon.ended(SOON).await.success());
    }
    for message in ["\"tenant ready\"", "\"tenant migrated\""] {
        let said = |daemon: &Daemon| daemon.lines().iter().filter(|line| line.contains(message)).count();
        assert_eq!(daemons.iter().map(said).sum::<usize>(), 8, "each once: {message}");
    }
    for daemon in daemons {
        assert!(daemon.finish().await.success());
    }
    assert_eq!(database.tenant_databases().await.len(), 8);
    drop(client);
    database.finish().await;
}
