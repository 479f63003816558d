//! Connections that are dead, and nobody was told: a direction that is lost, a link that is down.

use std::time::{Duration, Instant};

use crate::fleet::row;
use crate::outages::behind_a_proxy;
use crate::support::certificates::Validity;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::namespace::Namespace;
use crate::support::process::tell;
use crate::support::proxy::{Mode, Side};
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// The promise, and what a busy machine adds.
const NOTICED: Duration = Duration::from_secs(45);

fn through_silence(daemon: Daemon) -> Daemon {
    daemon.allow_all(&[
        "the registry cannot be read",
        "the doorbell is not heard",
        "the server fails",
        "the sweep could not",
        "the installation is not as it should be",
        "left alone",
        "leases were not given back",
    ])
}

/// Goal: a connection of which one direction is dead is noticed in half a minute, and once the network is sound again the daemon goes on, and
/// nobody is lost. Method: a proxy that loses what the daemon says, and one that loses what the server says, with and without the bell; keepalives
/// cannot see it, since the proxy itself answers them.
#[tokio::test]
async fn half_open_connections_are_noticed() {
    tokio::join!(lose(Side::Server, "true"), lose(Side::Client, "true"), lose(Side::Server, "false"));
}

async fn lose(side: Side, notify: &str) {
    let (database, proxy, pages, daemon) = behind_a_proxy(notify, through_silence).await;
    proxy.set(Mode::Lose(side));
    let lost = Instant::now();
    let key = database.sign_up("in the silence").await;
    until("it is noticed", 2 * SOON, async || pages.ready_is(503, "main_database").await).await;
    tell(&format!("noticed {:?} after what the {side:?} says was lost, notify = {notify}", lost.elapsed()));
    assert!(lost.elapsed() < NOTICED, "{:?}", lost.elapsed());
    assert_eq!(pages.get("/healthz").await.map(|(status, _)| status), Some(200), "no loop is stuck");
    proxy.set(Mode::Pass);
    let mended = Instant::now();
    until("its tenant is ready", SOON, async || row(&database, &key).await["state"] == "ready").await;
    tell(&format!("its tenant was ready {:?} after the network was sound", mended.elapsed()));
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    // The proxy still stands between the dead connections and the server, which would hold what they hold.
    assert!(daemon.terminate().await.success());
    drop(proxy);
    database.finish().await;
}

/// Goal: when the link is down the server frees what a daemon held, by the keepalives that tenantd asked it for, the daemon notices, and when the link is
/// up again it goes on. Method: the daemon in a network namespace of its own, whose link to the server is taken down; with keepalives of seconds, so
/// that the test need not wait for the built-in half minute.
#[tokio::test]
async fn a_link_that_is_down_is_noticed_at_both_ends() {
    let namespace = Namespace::make();
    let here = namespace.outside();
    let server = TestServer::builder()
        .setting("listen_addresses", &format!("127.0.0.1,{here}"))
        .setting("max_prepared_transactions", "0")
        .certificate(&["IP:127.0.0.1", &format!("IP:{here}")], Validity::Valid)
        .host_rule(&format!(
            "hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl all all {}/32 scram-sha-256",
            namespace.inside()
        ))
        .start();
    let database = TestDatabase::on(&server).await;
    let keepalives = "keepalives_idle=1&keepalives_interval=1&keepalives_count=3&tcp_user_timeout=4000";
    let url = format!("{}&{keepalives}", database.url().replace("@127.0.0.1:", &format!("@{here}:")));
    let program = Program::for_database(&database).setting("main.url", &url).setting("work.lease", "6s");
    let daemon = through_silence(namespace.start(&program));
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let eye = database.superuser().await;
    let armed =
        "select count(*) from pg_locks where locktype = 'advisory' and classid = 20250 and objid = 1 and granted";
    let held = async || eye.query_one(armed, &[]).await.expect("look").get::<_, i64>(0);
    until("the bell is armed", SOON, async || held().await == 1).await;
    namespace.link(false);
    let down = Instant::now();
    let key = database.sign_up("while it is down").await;
    daemon.wait_for_line("the doorbell is not heard", SOON).await;
    tell(&format!("the daemon noticed {:?} after the link went down", down.elapsed()));
    let ours = "select count(*) from pg_stat_activity where application_name like 'tenantd:%'";
    until("the server frees lock and connections", SOON, async || {
        held().await == 0 && eye.query_one(ours, &[]).await.expect("look").get::<_, i64>(0) == 0
    })
    .await;
    tell(&format!("the server had freed all {:?} after the link went down", down.elapsed()));
    namespace.link(true);
    let up = Instant::now();
    until("its tenant is ready", SOON, async || row(&database, &key).await["state"] == "ready").await;
    tell(&format!("its tenant was ready {:?} after the link was up", up.elapsed()));
    until("the bell is armed", SOON, async || held().await == 1).await;
    assert!(daemon.terminate().await.success());
    drop(eye);
    database.finish().await;
}
