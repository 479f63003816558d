//! The main database comes and goes; the daemon stays, says so, and goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixDatagram;
use tokio::sync::watch;

use crate::fleet::{row, write_migrations};
use crate::pages::Pages;
use crate::support::count::times;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::{APP_PASSWORD, TestDatabase};
use crate::support::process::{Signal, tell};
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Stop, TestServer};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// Lets a daemon say what an outage makes it say.
fn through_an_outage(daemon: Daemon) -> Daemon {
    daemon.allow_all(&[
        "tenantd cannot begin yet",
        "the registry cannot be read",
        "the doorbell is not heard",
        "the server fails",
        "the server failed",
        "the sweep could not",
        "the installation is not as it should be",
        "left alone",
        "leases were not given back",
        "nothing could be reloaded yet",
    ])
}

/// Goal: a database that is down at boot is waited for: the service counts as started, says why it waits, and goes on by itself within ten
/// seconds of the server's start. Method: a server of its own, started after the daemon; a socket in systemd's place.
#[tokio::test]
async fn a_database_that_is_down_at_boot_is_waited_for() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    server.stop(Stop::Fast);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let pages = Pages::reserve();
    let program = Program::for_database(&database)
        .variable("NOTIFY_SOCKET", &path.display().to_string())
        .setting("http.listen", &pages.listen());
    let daemon = through_an_outage(program.start());
    let heard = hear(&socket, "READY=1").await;
    assert!(heard.contains("STATUS=waiting: ") && heard.contains("refused"), "{heard}");
    daemon.wait_for_line("tenantd cannot begin yet", SOON).await;
    assert!(pages.ready_is(503, "main_database").await, "{:?}", pages.get("/readyz").await);
    assert_eq!(pages.get("/healthz").await.map(|(status, _)| status), Some(200), "waiting is no illness");
    let mut stopped = through_an_outage(program.setting("http.listen", "").start());
    stopped.wait_for_line("tenantd cannot begin yet", SOON).await;
    let asked = Instant::now();
    stopped.signal(Signal::TERM);
    assert_eq!(stopped.finish().await.code(), Some(0), "nothing to wait for");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    server.start();
    let started = Instant::now();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    tell(&format!("at work {:?} after the server's start", started.elapsed()));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    hear(&socket, "READY=1\nSTATUS=turning signups").await;
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    let said = daemon.lines().iter().filter(|line| line.contains("cannot begin yet")).count();
    assert_eq!(said, 1, "one ERROR for one outage");
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: a reload that the server fails is told once and tried again until it is in force, with the files of the moment of the hang-up. Method: a
/// server of its own is stopped, a migration comes, SIGHUP; while the daemon tries, another file comes, half a deploy; the server starts.
#[tokio::test]
async fn a_reload_in_an_outage_is_in_force_afterwards() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let pages = Pages::reserve();
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("http.listen", &pages.listen())
        .setting("log.level", "debug")
        .setting("sweep.every", "1s");
    let mut daemon = through_an_outage(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    for number in 0..3 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    let all_at = async |version: i32| {
        let at = format!(
            "select count(*) = 3 from tenantd.tenant where state = 'ready' and work = 'idle' and version = {version}"
        );
        database.superuser().await.query_one(&at, &[]).await.expect("count").get::<_, bool>(0)
    };
    until("all are ready", SOON, async || all_at(1).await).await;
    server.stop(Stop::Fast);
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    daemon.hang_up();
    daemon.wait_for_line("nothing could be reloaded yet", SOON).await;
    assert!(pages.ready_is(503, "not in force yet").await, "{:?}", pages.get("/readyz").await);
    write_migrations(folder.path(), &[("0003_third.sql", "half a deploy")]);
    daemon.wait_for_line("still nothing could be reloaded", SOON).await;
    server.start();
    daemon.wait_for_line("settings and migrations reloaded", SOON).await;
    until("all have the second", SOON, async || all_at(2).await).await;
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    let said = daemon.lines().iter().filter(|line| line.contains("nothing could be reloaded yet")).count();
    assert_eq!(said, 1, "one warning for one outage");
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// The next message to systemd that contains `text`.
async fn hear(socket: &UnixDatagram, text: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await.expect("in time").expect("receive");
        let heard = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if heard.contains(text) {
            return heard;
        }
    }
}

/// Signs up again and again, through every outage, until `enough`; returns the keys whose commit was answered.
async fn sign_up_always(server: Arc<TestServer>, database: String, enough: watch::Receiver<bool>) -> Vec<String> {
    let mut keys = Vec::new();
    while !*enough.borrow() {
        let Ok(app) = server.try_client("app", APP_PASSWORD, &database).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let insert = "insert into public.users (email) values (gen_random_uuid()::text) returning id::text";
        while let Ok(row) = app.query_one(insert, &[]).await {
            keys.push(row.get(0));
            if *enough.borrow() {
                break;
            }
            // One at a time is enough: the tenant is in hand or ready when the next one comes.
            let _ = app.query_one("select tenantd.wait($1, '200ms')", &[&keys.last()]).await;
        }
    }
    keys
}

/// What befalls the server.
#[derive(Debug, Clone, Copy)]
enum Outage {
    Restart(Stop),
    /// One backend dies by SIGKILL: the server ends all others, recovers and goes on by itself.
    Crash,
}

impl Outage {
    async fn befall(self, server: &TestServer, pages: &Pages) {
        match self {
            Outage::Restart(stop) => {
                server.stop(stop);
                until("it says that it is not ready", SOON, async || pages.ready_is(503, "main_database").await).await;
                server.start();
            }
            Outage::Crash => {
                let eye = server.superuser("postgres").await;
                // One of the daemon's own, at whatever it is just then.
                let select =
                    "select pid from pg_stat_activity where usename = 'tenantd' order by state_change desc limit 1";
                let process: i32 = eye.query_one(select, &[]).await.expect("a backend").get(0);
                rustix::process::kill_process(
                    rustix::process::Pid::from_raw(process).expect("a process"),
                    Signal::KILL,
                )
                .expect("kill the backend");
                until("every session is ended", SOON, async || eye.is_closed()).await;
                let back = async || server.try_client("app", APP_PASSWORD, "postgres").await.is_ok();
                until("the server has recovered", SOON, back).await;
            }
        }
    }
}

/// Waits until `more` tenants became ready.
async fn become_ready(database: &TestDatabase, more: i64) {
    let eye = database.superuser().await;
    let count = "select count(*) from tenantd.tenant where state = 'ready'";
    let before: i64 = eye.query_one(count, &[]).await.expect("count").get(0);
    until("tenants become ready", 2 * SOON, async || {
        eye.query_one(count, &[]).await.expect("count").get::<_, i64>(0) >= before + more
    })
    .await;
}

/// A daemon and an application that signs up go through `outages`. Returns the number of signups whose commit was answered, and the longest time
/// from the server's start to the next tenant that is ready.
async fn go_through(outages: &[Outage]) -> (usize, Duration) {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let pages = Pages::reserve();
    let program = Program::for_database(&database).setting("http.listen", &pages.listen()).setting("work.lease", "90s");
    let daemon = through_an_outage(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let (enough, watched) = watch::channel(false);
    let tasks = tenantd::tasks::Tasks::new();
    let signing_up = tasks.spawn("signups", sign_up_always(Arc::clone(&server), database.name().to_owned(), watched));
    let mut slowest = Duration::ZERO;
    for outage in outages {
        become_ready(&database, 3).await;
        outage.befall(&server, &pages).await;
        let started = Instant::now();
        become_ready(&database, 1).await;
        slowest = slowest.max(started.elapsed());
    }
    enough.send_replace(true);
    let keys = signing_up.await.expect("it ends");
    assert!(keys.len() > outages.len(), "{keys:?}");
    // Well before the lease ends: what was in hand when the server went away is given back, not waited for.
    until("every user has a tenant that is ready", 2 * SOON, async || {
        let missing = "select count(*) from public.users u left join tenantd.tenant t on t.key = u.id::text
                       where t.state is distinct from 'ready'";
        database.superuser().await.query_one(missing, &[]).await.expect("count").get::<_, i64>(0) == 0
    })
    .await;
    let lost = "select count(*) from unnest($1::text[]) k left join tenantd.tenant t on t.key = k where t.state is distinct from 'ready'";
    let lost = database.superuser().await.query_one(lost, &[&keys]).await.expect("count").get::<_, i64>(0);
    assert_eq!(lost, 0, "whose commit was answered");
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    assert!(daemon.terminate().await.success());
    database.finish().await;
    (keys.len(), slowest)
}

/// Goal: a server that restarts or crashes under signups costs no signup its tenant. Method: fast and immediate stops of a server of its own, and
/// a backend killed, while the application signs up; afterwards every user has a tenant that is ready.
#[tokio::test]
async fn a_restart_of_the_server_loses_nothing() {
    let outages = [Outage::Restart(Stop::Fast), Outage::Restart(Stop::Immediate), Outage::Crash];
    // A new server now and then, so that a long run needs no large disk.
    for _ in 0..times(1, 4) {
        let all: Vec<Outage> = outages.into_iter().cycle().take(outages.len() * times(1, 5)).collect();
        let (signups, slowest) = go_through(&all).await;
        tell(&format!(
            "{} outages, {signups} signups, none lost, a tenant ready {slowest:?} after the server's start at the latest",
            all.len()
        ));
    }
}

/// A daemon that reaches its server through a proxy, at work and ready.
pub(crate) async fn behind_a_proxy(notify: &str, allow: fn(Daemon) -> Daemon) -> (TestDatabase, Proxy, Pages, Daemon) {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let pages = Pages::reserve();
    let program = Program::for_database(&database)
        .setting("main.url", &proxy.url(&database.url(), database.server().address()))
        .setting("signup.notify", notify)
        // A claim that was on its way when the network fell silent may reach the server in the end, and nobody knows of it.
        .setting("work.lease", "6s")
        .setting("http.listen", &pages.listen());
    let daemon = allow(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    (database, proxy, pages, daemon)
}

/// A network falls silent, and speaks again.
async fn silence(notify: &str) {
    let (database, proxy, pages, daemon) = behind_a_proxy(notify, through_an_outage).await;
    proxy.set(Mode::Hold);
    let held = Instant::now();
    until("it is noticed", 2 * SOON, async || pages.ready_is(503, "main_database").await).await;
    tell(&format!("noticed {:?} after the network fell silent, notify = {notify}", held.elapsed()));
    assert!(held.elapsed() < Duration::from_secs(45), "{:?}", held.elapsed());
    assert_eq!(pages.get("/healthz").await.map(|(status, _)| status), Some(200), "no loop is stuck");
    let key = database.sign_up("in the silence").await;
    proxy.set(Mode::Pass);
    until("its tenant is ready", SOON, async || row(&database, &key).await["state"] == "ready").await;
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    assert!(daemon.terminate().await.success());
    drop(proxy);
    database.finish().await;
}

/// Goal: a network that swallows everything without a word is noticed within about half a minute, and when it is mended the daemon goes on.
/// Method: a proxy that holds; keepalives cannot see it, since the proxy itself answers them.
#[tokio::test]
async fn a_silent_network_is_noticed() {
    silence("true").await;
}

/// Goal and method: the same without the doorbell, whose pings notice nothing then.
#[tokio::test]
async fn a_silent_network_is_noticed_without_the_bell() {
    silence("false").await;
}

/// Goal: SIGTERM ends the daemon also where the main database does not answer any more. Method: a proxy that holds.
#[tokio::test]
async fn a_silent_network_does_not_keep_the_daemon_from_ending() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let url = proxy.url(&database.url(), database.server().address());
    let program = Program::for_database(&database).setting("main.url", &url).setting("work.shutdown", "2s");
    let daemon = through_an_outage(program.start()).allow("work.shutdown is over");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    proxy.set(Mode::Hold);
    assert!(daemon.terminate().await.success());
    drop(proxy);
    database.finish().await;
}
