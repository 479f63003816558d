//! Notifications that are missed, doubled, or far too many: what comes of it is what came of none, only when differs.

use std::time::{Duration, Instant};

use crate::crowd::{Crowd, SOON, all_within};
use crate::pages::Pages;
use crate::sql::one;
use crate::support::count::times;
use crate::support::database::{STRANGER_PASSWORD, TestDatabase};
use crate::support::process::tell;
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Stop, TestServer};
use crate::support::until::until;

/// A tenth of the time that the poll would take.
const HEARD: Duration = Duration::from_secs(2);

/// Goal: rings that are lost cost a signup the slow poll at the most, doubled ones nothing, and where no notification arrives the bell is taken away and
/// said to be; each signup is one tenant. Method: a proxy between daemon and server that loses and doubles notifications.
#[tokio::test]
async fn missed_and_doubled_rings_change_nothing() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let crowd = Crowd::new(&database).await;
    let pages = Pages::reserve();
    let program = crowd
        .deaf_without_bell()
        .setting("main.url", &proxy.plain_url(&database.url()))
        .setting("signup.poll", "2s")
        .setting("http.listen", &pages.listen());
    let daemon = crowd.start(&program).await.allow("the doorbell is not heard");
    let app = database.app().await;
    let mut signups = 0;
    for (mode, number) in [(Mode::Rings(0), times(2, 20)), (Mode::Rings(3), times(20, 1_000))] {
        proxy.set(mode);
        for _ in 0..number {
            until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
            let signup = crowd.sign_up(&app).await;
            all_within(Duration::from_secs(5), &crowd.waits(&[signup]).await);
        }
        signups += number;
    }
    proxy.set(Mode::NoNotifications);
    daemon.wait_for_line("the doorbell is not heard", SOON).await;
    until("the bell is taken away", SOON, async || crowd.bells().await == 0).await;
    assert!(pages.ready_is(503, "ping").await, "{:?}", pages.get("/readyz").await);
    for _ in 0..10 {
        let signup = crowd.sign_up(&app).await;
        all_within(HEARD, &crowd.waits(&[signup]).await);
    }
    proxy.set(Mode::Pass);
    daemon.wait_for_line("the doorbell is heard again", SOON).await;
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let signup = crowd.sign_up(&app).await;
    all_within(HEARD, &crowd.waits(&[signup]).await);
    let tenants = crowd.count("select count(*) from tenantd.tenant").await;
    assert_eq!(tenants, i64::try_from(signups + 11).expect("few"), "one each");
    let said = daemon.lines().iter().filter(|line| line.contains("the doorbell is not heard")).count();
    assert_eq!(said, 1, "said once");
    assert!(daemon.terminate().await.success());
    drop((crowd, app, proxy));
    database.finish().await;
}

/// Goal: a flood of notifications from a role that is named nowhere makes the daemon look no more often than a busy one does, keeps no signup from being
/// heard, and fills no queue. Method: very many with payloads in one go, many rings, and signups all the while; the daemon's own metrics.
#[tokio::test]
async fn a_flood_is_drained_and_causes_nothing() {
    let database = TestDatabase::new().await;
    let crowd = Crowd::new(&database).await;
    let pages = Pages::reserve();
    let daemon = crowd.start(&crowd.deaf_without_bell().setting("http.listen", &pages.listen())).await;
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let stranger = database.server().client("stranger", STRANGER_PASSWORD, database.name()).await;
    let (payloads, rings) = (times(10_000, 100_000), times(300, 5_000));
    let (start, looks) = (Instant::now(), pages.metric("tenantd_looks_total").await);
    let flood = async {
        let many = format!(
            "select count(pg_notify('tenantd_doorbell', 'tenant ' || n)) from generate_series(1, {payloads}) n"
        );
        stranger.batch_execute(&many).await.expect("anyone may");
        for _ in 0..rings {
            stranger.batch_execute("notify tenantd_doorbell").await.expect("anyone may");
        }
    };
    let signups = async {
        let app = database.app().await;
        let mut committed = Vec::new();
        for _ in 0..times(20, 200) {
            let signup = crowd.sign_up(&app).await;
            crowd.waits(std::slice::from_ref(&signup)).await;
            committed.push(signup);
        }
        committed
    };
    let ((), committed) = tokio::join!(flood, signups);
    all_within(HEARD, &crowd.waits(&committed).await);
    until("the flood is over", SOON, async || crowd.armed().await == 1).await;
    let (looked, took) = (pages.metric("tenantd_looks_total").await - looks, start.elapsed());
    tell(&format!("{payloads} notifications and {rings} rings in {took:?}: {looked} looks"));
    assert!(looked < took.as_secs_f64() * 500.0, "no more than one in 2 ms: {looked} in {took:?}");
    let queue: f64 = one(&crowd.eye, "select pg_notification_queue_usage()").await;
    assert!(queue < 0.01, "{queue}");
    let tenants = crowd.count("select count(*) from tenantd.tenant").await;
    assert_eq!(tenants, i64::try_from(committed.len()).expect("few"), "one for each signup, and no other");
    assert!(daemon.terminate().await.success());
    drop((crowd, stranger));
    database.finish().await;
}

/// Goal: a queue of notifications that somebody keeps from being emptied is seen in the metrics before it harms anybody, and no signup fails or waits for
/// it. Method: a session that listens and stays in a transaction, and notifications as long as they may be. Before Postgres 17 the queue holds 8 GB, so
/// that a small part has to do; from then on it can be made small, is filled by half, and signups stop ringing.
#[tokio::test]
async fn a_queue_that_fills_up_is_told() {
    let server = TestServer::builder().setting("max_prepared_transactions", "0").start();
    let admin = server.superuser("postgres").await;
    let version: i32 = one(&admin, "select current_setting('server_version_num')::int").await;
    let (full, small) = if version < 170_000 { (0.0002, false) } else { (0.5, true) };
    if small {
        admin.batch_execute("alter system set max_notify_queue_pages = 64").await.expect("a small queue");
        drop(admin);
        server.restart(Stop::Fast);
    }
    let database = TestDatabase::on(&server).await;
    let crowd = Crowd::new(&database).await;
    let pages = Pages::reserve();
    let program = crowd.deaf_without_bell().setting("signup.poll", "2s").setting("http.listen", &pages.listen());
    let daemon = crowd.start(&program).await;
    until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
    let laggard = database.superuser().await;
    for statement in ["listen anything", "begin"] {
        laggard.batch_execute(statement).await.expect("listen, and do not read");
    }
    let usage = "select pg_notification_queue_usage()";
    until("the queue fills up", SOON, async || {
        crowd.eye.batch_execute("select pg_notify('anything', repeat('x', 7900))").await.expect("notify");
        one::<f64>(&crowd.eye, usage).await >= full
    })
    .await;
    until("the metric tells", SOON, async || pages.metric("tenantd_notification_queue_ratio").await >= full).await;
    let (app, rings) = (database.app().await, pages.metric("tenantd_rings_total").await);
    for _ in 0..3 {
        until("the bell is armed", SOON, async || crowd.armed().await == 1).await;
        let signup = crowd.sign_up(&app).await;
        all_within(Duration::from_secs(5), &crowd.waits(&[signup]).await);
    }
    if small {
        assert!(pages.metric("tenantd_rings_total").await <= rings, "nobody rings into a queue that is half full");
        let status = program.run(&["status"]).await;
        assert!(status.code() == 1 && status.stdout.contains("queue of notifications"), "{status:?}");
    }
    laggard.batch_execute("rollback").await.expect("it reads again");
    until("the queue is empty again", SOON, async || {
        crowd.eye.batch_execute("select pg_notify('anything', repeat('x', 7900))").await.expect("notify");
        one::<f64>(&crowd.eye, usage).await < full / 2.0
    })
    .await;
    assert!(daemon.terminate().await.success());
    drop((crowd, app, laggard));
    database.finish().await;
}
