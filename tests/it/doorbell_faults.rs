//! What can go wrong with the doorbell. Never with a signup, and never so that one is forgotten.

use std::time::{Duration, Instant};

use tenantd::pg::Server;
use tenantd::tasks::Tasks;
use tokio_postgres::Client;

use crate::crowd::{Crowd, SOON, all_within};
use crate::fleet::config;
use crate::pages::Pages;
use crate::support::database::{STRANGER_PASSWORD, TestDatabase};
use crate::support::server::TestServer;
use crate::support::until::until;

/// A tenth of the time that the poll would take.
const HEARD: Duration = Duration::from_secs(2);

/// A role that is named nowhere, in the main database.
async fn stranger(database: &TestDatabase) -> Client {
    database.server().client("stranger", STRANGER_PASSWORD, database.name()).await
}

/// Goal: a signup rings while a daemon sleeps, and not otherwise. Method: another session holds the lock as a sleeping daemon would; a
/// third listens.
#[tokio::test]
async fn rung_only_while_a_daemon_sleeps() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    crowd.start(&crowd.deaf_without_bell()).await.terminate().await;
    let tasks = Tasks::new();
    let server = Server::new(config(&database, &[("main.url", &database.app_url())]).main, tasks.clone());
    let (listening, mut heard) = server.connect_listening("test").await.expect("connect");
    listening.batch_execute("listen tenantd_doorbell; listen done").await.expect("listen");
    let app = database.app().await;
    crowd.sign_up(&app).await;
    app.batch_execute("notify done, 'awake'").await.expect("notify");
    let note = heard.recv().await.expect("a notification");
    assert_eq!(note, ("done".to_owned(), "awake".to_owned()), "the signup did not ring");
    crowd.eye.batch_execute("select pg_advisory_lock(20250, 1)").await.expect("as a daemon does");
    crowd.sign_up(&app).await;
    assert_eq!(heard.recv().await, Some(("tenantd_doorbell".to_owned(), String::new())));
    app.batch_execute("insert into public.accounts select 'nobody' where false").await.expect("nobody");
    app.batch_execute("begin; insert into public.accounts values ('rolled back'); rollback").await.expect("roll back");
    app.batch_execute("notify done, 'asleep'").await.expect("notify");
    assert_eq!(heard.recv().await, Some(("done".to_owned(), "asleep".to_owned())), "nobody signed up, so nothing rang");
    crowd.eye.batch_execute("select pg_advisory_unlock(20250, 1)").await.expect("wake up");
    listening.close().await;
    assert!(tasks.stop(SOON).await.is_empty());
    drop((crowd, app));
    database.finish().await;
}

/// Goal: what others send through the channel causes nothing. Method: a role that is named nowhere sends a hundred payloads, empty ones
/// among them; the daemon's own metrics tell how often it looked.
#[tokio::test]
async fn garbage_causes_nothing() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    let pages = Pages::reserve();
    let daemon = crowd.start(&crowd.deaf_without_bell().setting("http.listen", &pages.listen())).await;
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let app = database.app().await;
    let signup = crowd.sign_up(&app).await;
    crowd.waits(&[signup]).await;
    let (looks, registry) = (pages.metric("tenantd_looks_total").await, registry(&crowd).await);
    let stranger = stranger(&database).await;
    for number in 0..100 {
        let payload = match number % 4 {
            0 => String::new(),
            1 => "'; drop schema tenantd cascade; --".to_owned(),
            2 => "x".repeat(7999),
            _ => uuid::Uuid::new_v4().simple().to_string(),
        };
        stranger.execute("select pg_notify('tenantd_doorbell', $1)", &[&payload]).await.expect("anyone may");
    }
    until("the last ring was answered", SOON, async || pages.metric("tenantd_rings_total").await > 1.0).await;
    let signup = crowd.sign_up(&app).await;
    all_within(HEARD, &crowd.waits(std::slice::from_ref(&signup)).await);
    let looked = pages.metric("tenantd_looks_total").await - looks;
    assert!(looked <= 25.0 + 10.0, "twenty-five empty payloads, and {looked} looks");
    crowd.eye.execute("delete from tenantd.tenant where key = $1", &[&signup.key]).await.expect("forget it");
    assert_eq!(self::registry(&crowd).await, registry, "nothing changed");
    assert_eq!(crowd.armed().await, 1, "the bell stands");
    assert!(daemon.terminate().await.success());
    drop((crowd, app, stranger));
    database.finish().await;
}

async fn registry(crowd: &Crowd<'_>) -> String {
    let whole = "select string_agg(t::text, ' ' order by key) from tenantd.tenant t";
    crowd.eye.query_one(whole, &[]).await.expect("read the registry").get(0)
}

/// Goal: whoever else takes the doorbell's lock keeps no signup from being heard. Method: a stranger holds it before the daemon starts, and
/// gives it back.
#[tokio::test]
async fn a_foreign_holder_of_the_lock_silences_nothing() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    let (stranger, app) = (stranger(&database).await, database.app().await);
    stranger.batch_execute("select pg_advisory_lock(20250, 1)").await.expect("anyone may");
    let daemon = crowd.start(&crowd.deaf_without_bell()).await;
    for _ in 0..20 {
        let signup = crowd.sign_up(&app).await;
        all_within(HEARD, &crowd.waits(&[signup]).await);
    }
    assert_eq!(crowd.armed().await, 0);
    stranger.batch_execute("select pg_advisory_unlock(20250, 1)").await.expect("give it back");
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let signup = crowd.sign_up(&app).await;
    all_within(HEARD, &crowd.waits(&[signup]).await);
    assert!(daemon.terminate().await.success());
    drop((crowd, app, stranger));
    database.finish().await;
}

/// Goal: a connection of the bell that ends is made anew, and nothing is lost meanwhile. Method: an administrator ends each of the three, a
/// signup follows at once.
#[tokio::test]
async fn killed_connections_are_made_anew() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    let daemon = crowd.start(&crowd.deaf_without_bell()).await.allow("the doorbell is not heard");
    let app = database.app().await;
    for last_statement in ["listen %", "select pg_%advisory%", "select pg_notify%"] {
        until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where datname = current_database() and application_name like 'tenantd:daemon %' and query like $1";
        let ended: i64 = crowd.eye.query_one(end, &[&last_statement]).await.expect("end it").get(0);
        assert_eq!(ended, 1, "{last_statement}");
        let signup = crowd.sign_up(&app).await;
        all_within(HEARD, &crowd.waits(&[signup]).await);
        daemon.wait_for_line("the doorbell is heard again", SOON).await;
    }
    assert!(daemon.terminate().await.success());
    drop((crowd, app));
    database.finish().await;
}

/// Goal: a stuck NOTIFY takes the bell away, is said once, and keeps no signup and no hand-over waiting. Method: a server of its own whose
/// synchronous standby does not exist; one commit with a NOTIFY hangs there, application and daemon commit without the standby.
#[tokio::test]
async fn a_stuck_notify_holds_up_nobody() {
    let server = TestServer::builder().setting("max_prepared_transactions", "0").start();
    let database = TestDatabase::on(&server).await;
    let crowd = Crowd::new(&database).await;
    let local = "alter role tenantd set synchronous_commit = 'local'; alter role app set synchronous_commit = 'local';
                 set synchronous_commit = 'local'";
    crowd.eye.batch_execute(local).await.expect("commit without a standby");
    let pages = Pages::reserve();
    let program = crowd.deaf_without_bell().setting("http.listen", &pages.listen());
    let daemon = crowd.start(&program).await.allow("the doorbell is not heard");
    let stuck = database.superuser().await;
    crowd.eye.batch_execute("alter system set synchronous_standby_names = 'ghost'").await.expect("a standby");
    crowd.eye.batch_execute("select pg_reload_conf()").await.expect("reload");
    // The server takes it up in its own time. A transaction that only notifies writes nothing that a standby could confirm.
    let write = "begin; insert into public.accounts values (gen_random_uuid()); notify anything; commit";
    until("a commit waits for the standby", SOON, async || {
        tokio::time::timeout(Duration::from_millis(500), stuck.batch_execute(write)).await.is_err()
    })
    .await;
    until("the bell is taken away", SOON, async || {
        pages.metric("tenantd_ping_failures_total").await > 0.0 && crowd.bells().await == 0
    })
    .await;
    let app = database.app().await;
    for _ in 0..10 {
        let signup = tokio::time::timeout(HEARD, crowd.sign_up(&app)).await.expect("a signup does not wait");
        all_within(HEARD, &crowd.waits(&[signup]).await);
    }
    let key = uuid::Uuid::new_v4().to_string();
    app.execute("insert into public.accounts values ($1)", &[&key]).await.expect("a signup never fails");
    until("its tenant is handed over", SOON, async || {
        crowd.count(&format!("select count(*) from tenantd.tenant where state = 'ready' and key = '{key}'")).await == 1
    })
    .await;
    assert!(
        pages.ready_is(503, "NOTIFY").await || pages.ready_is(503, "ping").await,
        "{:?}",
        pages.get("/readyz").await
    );
    until("it was tried again", SOON, async || pages.metric("tenantd_ping_failures_total").await > 1.0).await;
    let said = daemon.lines().iter().filter(|line| line.contains("the doorbell is not heard")).count();
    assert_eq!(said, 1, "said once");
    crowd.eye.batch_execute("alter system reset synchronous_standby_names").await.expect("no standby");
    crowd.eye.batch_execute("select pg_reload_conf()").await.expect("reload");
    daemon.wait_for_line("the doorbell is heard again", SOON).await;
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    until("readiness", SOON, async || pages.ready_is(200, "").await).await;
    assert!(daemon.terminate().await.success());
    drop((crowd, app, stuck));
    database.finish().await;
}

/// Goal: without the bell signups are found ten times a second. Method: `signup.notify` is left to the server, which allows prepared
/// transactions; the slow poll is hours away.
#[tokio::test]
async fn without_the_bell_it_polls() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    let pages = Pages::reserve();
    let program = crowd.program().unset("signup.notify").setting("signup.poll", "10m").setting("sweep.every", "1h");
    let daemon = program.setting("http.listen", &pages.listen()).start();
    daemon.wait_for_line("signups do not ring", SOON).await;
    let line = daemon.wait_for_line("tenantd is at work", SOON).await;
    assert!(line.contains("\"notify\":false"), "{line}");
    let app = database.app().await;
    let mut committed = Vec::new();
    for _ in 0..20 {
        let signup = crowd.sign_up(&app).await;
        crowd.waits(std::slice::from_ref(&signup)).await;
        committed.push(signup);
    }
    let waits = crowd.waits(&committed).await;
    all_within(HEARD, &waits);
    assert!(waits[10] < Duration::from_millis(300), "one in ten tenths of a second: {waits:?}");
    assert_eq!(crowd.bells().await, 0);
    let (start, looks) = (Instant::now(), pages.metric("tenantd_looks_total").await);
    until("ten looks", SOON, async || pages.metric("tenantd_looks_total").await >= looks + 10.0).await;
    assert!(start.elapsed() > Duration::from_millis(800), "ten looks within {:?}", start.elapsed());
    assert!(daemon.terminate().await.success());
    drop((crowd, app));
    database.finish().await;
}

/// Goal: an idle daemon sends one query per poll and its pings, and changes nothing. Method: a server of its own, which allows no prepared
/// transactions and so lets signups ring by default, logs every statement; three polls are read in that log.
#[tokio::test]
async fn an_idle_daemon_is_quiet() {
    let server =
        TestServer::builder().setting("max_prepared_transactions", "0").setting("log_statement", "all").start();
    let database = TestDatabase::on(&server).await;
    let crowd = Crowd::new(&database).await;
    let program = crowd.program().unset("signup.notify").setting("signup.poll", "1s").setting("sweep.every", "1h");
    let daemon = crowd.start(&program).await;
    let line = daemon.wait_for_line("tenantd is at work", SOON).await;
    assert!(line.contains("\"notify\":true"), "{line}");
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let statements = |from: usize| -> Vec<String> {
        let log = server.log().split_off(from);
        // Further lines of a statement begin with a tab.
        let whole = log.replace("\n\t", " ");
        let of_daemon = whole.lines().filter(|line| line.contains("tenantd:daemon"));
        of_daemon.filter(|line| line.contains("statement: ") || line.contains("execute ")).map(str::to_owned).collect()
    };
    let claims = |sent: &[String]| sent.iter().filter(|line| line.contains("tenantd.claim_due")).count();
    // The look after arming may still be on its way.
    let before = server.log().len();
    until("a poll", SOON, async || claims(&statements(before)) > 1).await;
    let (from, start) = (server.log().len(), Instant::now());
    until("three polls more", SOON, async || claims(&statements(from)) >= 3).await;
    let (sent, elapsed) = (statements(from), start.elapsed());
    let pings = sent.iter().filter(|line| line.contains("pg_notify")).count();
    assert_eq!(sent.len(), claims(&sent) + pings, "{sent:#?}");
    assert!(claims(&sent) <= usize::try_from(elapsed.as_secs()).expect("few") + 1, "one a second: {sent:#?}");
    assert!(pings <= 2, "one in five seconds: {sent:#?}");
    assert!(daemon.terminate().await.success());
    drop(crowd);
    database.finish().await;
}
