//! The pages, over a real socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tenantd::conditions::{Conditions, DOORBELL, MAIN_DATABASE};
use tenantd::error::{Error, Kind, Result};
use tenantd::heartbeat::Heartbeats;
use tenantd::http::{HttpState, ReadFleet, bind, serve};
use tenantd::registry::fleet::Fleet;
use tenantd::tasks::Tasks;
use tenantd::telemetry::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::daemon::DEADLINE;
use crate::support::place::free_port;
use crate::support::until::until;

/// The pages of a daemon that is not there.
struct Site {
    address: SocketAddr,
    conditions: Conditions,
    heartbeats: Heartbeats,
    reads: Arc<AtomicUsize>,
    stop: CancellationToken,
    tasks: Tasks,
}

/// An answer: the status line and headers, and the body.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn has(&self, status: u16, body: &str) {
        let line = format!("HTTP/1.1 {status} ");
        assert!(self.head.starts_with(&line) && self.body.contains(body), "{}\n\n{}", self.head, self.body);
    }
}

/// How reading the fleet goes.
#[derive(Clone, Copy)]
enum Database {
    Answers,
    Fails,
    Hangs,
}

impl Site {
    async fn new(database: Database) -> Self {
        let (conditions, heartbeats, reads) = (Conditions::new(), Heartbeats::new(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&reads);
        let read: ReadFleet = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            read(database).boxed()
        });
        let state = HttpState::new(conditions.clone(), heartbeats.clone(), Metrics::new(&conditions), read);
        // Not one of the kernel's own choice, which it would give to the next who asks as soon as this one has ended.
        let address = format!("127.0.0.1:{}", free_port()).parse().expect("an address");
        let listener = bind(address).await.expect("a free port");
        let (address, stop, tasks) =
            (listener.local_addr().expect("its address"), CancellationToken::new(), Tasks::new());
        tasks.spawn("http", serve(listener, state, stop.clone()));
        Site { address, conditions, heartbeats, reads, stop, tasks }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    /// Sends `request` as it stands, and reads until the server closes.
    async fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and then the end");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        Answer { head: head.to_owned(), body: body.to_owned() }
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.stop.cancel();
        assert!(self.tasks.stop(DEADLINE).await.is_empty(), "it ends when told to");
        // A child that another test starts just now has all that is open here, until it becomes its program.
        until("nobody to listen any more", DEADLINE, async || TcpStream::connect(self.address).await.is_err()).await;
    }
}

async fn read(database: Database) -> Result<Fleet> {
    match database {
        Database::Answers => Ok(Fleet { leased: 7, ..Fleet::default() }),
        Database::Fails => Err(Error::new(Kind::Unreachable, "refused")),
        Database::Hangs => std::future::pending().await,
    }
}

/// Goal: alive means that the loops turn, whatever the database does. Method: a loop that is late, then turns.
#[tokio::test]
async fn healthz_names_stuck_loops() {
    let site = Site::new(Database::Hangs).await;
    site.conditions.set(MAIN_DATABASE, "refused");
    site.get("/healthz").await.has(200, "ok");
    let stuck = site.heartbeats.register("intake", Duration::ZERO);
    until("the loop is late", DEADLINE, async || !site.heartbeats.late().is_empty()).await;
    site.get("/healthz").await.has(503, "stuck: intake");
    drop(stuck);
    site.get("/healthz").await.has(200, "ok");
    assert_eq!(site.reads(), 0, "no database was asked");
    site.end().await;
}

/// Goal: ready, or each reason why not. Method: set and clear conditions.
#[tokio::test]
async fn readyz_names_every_reason() {
    let site = Site::new(Database::Hangs).await;
    let json = |answer: &Answer| serde_json::from_str::<serde_json::Value>(&answer.body).expect("JSON");
    let answer = site.get("/readyz").await;
    answer.has(200, "");
    assert_eq!(json(&answer), serde_json::json!({ "ready": true, "reasons": {} }));
    assert!(
        answer.head.contains("content-type: application/json") && answer.head.contains("no-store"),
        "{}",
        answer.head
    );
    site.conditions.set(MAIN_DATABASE, "connection \"refused\"");
    site.conditions.set(DOORBELL, "no ping came back");
    let answer = site.get("/readyz").await;
    answer.has(503, "");
    let reasons = serde_json::json!({ "doorbell": "no ping came back", "main_database": "connection \"refused\"" });
    assert_eq!(json(&answer), serde_json::json!({ "ready": false, "reasons": reasons }));
    assert_eq!(site.reads(), 0, "no database was asked");
    site.end().await;
}

/// Goal: scrapes read the fleet, and not more often than every five seconds. Method: count the reads.
#[tokio::test]
async fn metrics_read_the_fleet_now_and_then() {
    let site = Site::new(Database::Answers).await;
    for _ in 0..3 {
        let answer = site.get("/metrics").await;
        answer.has(200, "tenantd_up 1\n");
        answer.has(200, "tenantd_leased 7\n");
        assert!(answer.body.ends_with("# EOF\n"));
        let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(answer.head.contains(kind), "{}", answer.head);
    }
    assert_eq!(site.reads(), 1);
    site.end().await;
}

/// Goal: metrics are served without the database too, in bounded time. Method: a read that fails, and one that never ends.
#[tokio::test]
async fn metrics_outlive_the_database() {
    for database in [Database::Fails, Database::Hangs] {
        let site = Site::new(database).await;
        let answer = timeout(Duration::from_secs(10), site.get("/metrics")).await.expect("in bounded time");
        answer.has(200, "tenantd_up 0\n");
        answer.has(200, "tenantd_looks_total 0\n");
        site.get("/metrics").await.has(200, "tenantd_up 0\n");
        assert_eq!(site.reads(), 1, "a failure is not asked for again at once");
        site.end().await;
    }
}

/// Goal: what is not there says so. Method: wrong paths, methods and requests.
#[tokio::test]
async fn wrong_requests_are_refused() {
    let site = Site::new(Database::Answers).await;
    site.get("/").await.has(404, "/healthz, /readyz and /metrics");
    site.get("/metrics/x").await.has(404, "");
    for method in ["POST", "PUT", "DELETE"] {
        let answer = site.ask(&format!("{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).await;
        answer.has(405, "");
        assert!(answer.head.contains("allow: GET,HEAD"), "{}", answer.head);
    }
    let answer = site.ask("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    answer.has(200, "");
    assert!(answer.body.is_empty());
    site.ask("no HTTP at all\r\n\r\n").await.has(400, "");
    site.ask(&format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(15_000))).await.has(200, "ok");
    assert_eq!(site.reads(), 0);
    site.end().await;
}

/// Goal: a request's head has a bound. Method: send for ever, until the server has enough.
#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let site = Site::new(Database::Answers).await;
    let mut stream = TcpStream::connect(site.address).await.expect("connect");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.expect("send");
    let sent = async {
        let mut sent = 0_usize;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    };
    let sent = timeout(DEADLINE, sent).await.expect("the server ends it");
    // What the kernel's buffers hold comes on top.
    assert!(sent < 64 * 1024 * 1024, "{sent} bytes were taken");
    site.end().await;
}

/// Goal: a crowd of silent clients locks nobody out for long. Method: more of them than are served at once, and a clock that jumps whenever
/// nothing moves.
#[tokio::test(start_paused = true)]
async fn silent_clients_are_cut_off() {
    let site = Site::new(Database::Answers).await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(site.address).await.expect("connect"));
    }
    let began = Instant::now();
    site.get("/healthz").await.has(200, "ok");
    assert!(began.elapsed() <= Duration::from_secs(30), "{:?}", began.elapsed());
    for mut stream in silent {
        // A reset is an end too.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    site.end().await;
}

/// Goal: an address that is taken is told as what it is, a wrong setting. Method: take it twice.
#[tokio::test]
async fn a_taken_address_names_the_setting() {
    let taken = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = taken.local_addr().expect("its address");
    let error = bind(address).await.expect_err("it is taken");
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.chain().starts_with(&format!("http.listen: cannot listen on {address}: ")), "{}", error.chain());
    assert!(error.advice().is_some());
}
