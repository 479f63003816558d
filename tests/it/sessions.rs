//! Sessions and the pool: how they end, what they hear, and that none is handed on dirty.

use std::time::{Duration, Instant};

use tenantd::error::Kind;
use tenantd::pg::{Pool, Server, Session};
use tenantd::tasks::Tasks;

use crate::connect::server;
use crate::support::database::TestDatabase;
use crate::support::proxy::{Mode, Proxy};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(20);

fn of(database: &TestDatabase) -> Server {
    server(&database.url(), &[], |_| ())
}

/// How many sessions of `name` the server has.
async fn sessions(database: &TestDatabase, name: &str) -> i64 {
    let count = "select count(*) from pg_stat_activity where application_name = $1 and datname = current_database()";
    database.superuser().await.query_one(count, &[&name]).await.expect("count").get(0)
}

async fn process(session: &tokio_postgres::Client) -> i32 {
    session.query_one("select pg_backend_pid()", &[]).await.expect("ask for the process").get(0)
}

async fn end_process(database: &TestDatabase, process: i32) {
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1";
    let look = database.superuser().await;
    until("its end", SOON, async || look.query(end, &[&process]).await.expect("end it").is_empty()).await;
}

/// Ends what the server goes on with under `name`.
async fn end_sessions(database: &TestDatabase, name: &str) {
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = current_database()";
    let look = database.superuser().await;
    until("their end", SOON, async || look.query(end, &[&name]).await.expect("end them").is_empty()).await;
}

/// Goal: notifications arrive over the one way to connect, and their end is seen. Method: ring, then end the backend.
#[tokio::test]
async fn a_listening_session_hears_and_sees_its_end() {
    let database = TestDatabase::new().await;
    let server = of(&database);
    let (listening, mut heard) = server.connect_listening("listener").await.expect("connect");
    listening.batch_execute("listen bell").await.expect("listen");
    let other = server.connect(None, "ringer").await.expect("connect");
    other.batch_execute("notify bell; notify bell, 'two'; notify unheard, 'x'").await.expect("ring");
    assert_eq!(heard.recv().await, Some(("bell".to_owned(), String::new())));
    assert_eq!(heard.recv().await, Some(("bell".to_owned(), "two".to_owned())));
    end_process(&database, process(&listening).await).await;
    assert_eq!(tokio::time::timeout(SOON, heard.recv()).await.expect("in time"), None);
    until("the session knows", SOON, async || listening.is_closed()).await;
    drop(other);
    database.finish().await;
}

/// Goal: a session that is closed or dropped is gone, also while it works. Method: look at the server and at the tasks.
#[tokio::test]
async fn closed_and_dropped_sessions_end() {
    let database = TestDatabase::new().await;
    let session = of(&database).connect(None, "closed").await.expect("connect");
    session.close().await;
    until("the backend's end", SOON, async || sessions(&database, "closed").await == 0).await;

    let busy = of(&database).connect(None, "busy").await.expect("connect");
    let sleep = tokio::time::timeout(Duration::from_millis(100), busy.batch_execute("select pg_sleep(60)")).await;
    assert!(sleep.is_err(), "it still sleeps");
    let start = Instant::now();
    busy.close().await;
    assert!(start.elapsed() < Duration::from_secs(10), "closing does not wait for the statement");
    end_sessions(&database, "busy").await;
    database.finish().await;
}

/// Goal: no task outlives the stop, whoever still holds a session. Method: stop with one held.
#[tokio::test]
async fn stopping_the_tasks_ends_the_connections() {
    let database = TestDatabase::new().await;
    let tasks = Tasks::new();
    let server = Server::new(of(&database).connection().clone(), tasks.clone());
    let held = server.connect(None, "held").await.expect("connect");
    assert!(tasks.stop(SOON).await.is_empty());
    assert!(held.is_closed());
    database.finish().await;
}

/// Goal: a statement can be stopped on the server, over TLS. Method: cancel a long one.
#[tokio::test]
async fn a_statement_is_cancelled_on_the_server() {
    let database = TestDatabase::new().await;
    let session = of(&database).connect(None, "cancelled").await.expect("connect");
    let cancel = async {
        let sleeps = "select count(*) from pg_stat_activity where application_name = 'cancelled' and state = 'active'
                      and query like '%pg_sleep%' and datname = current_database()";
        let look = database.superuser().await;
        until("it sleeps", SOON, async || look.query_one(sleeps, &[]).await.expect("look").get::<_, i64>(0) == 1).await;
        session.cancel().await.expect("cancel");
    };
    let (slept, ()) = tokio::join!(session.batch_execute("select pg_sleep(60)"), cancel);
    let error = slept.expect_err("it was stopped");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("57014"));
    session.batch_execute("select 1").await.expect("the session goes on");
    session.close().await;
    database.finish().await;
}

/// Goal: nobody gets a session with somebody else's transaction. Method: leave one open, failed, half run.
#[tokio::test]
async fn the_pool_hands_out_clean_sessions() {
    let database = TestDatabase::new().await;
    let pool = Pool::new(of(&database), 1, "pool");
    database
        .superuser()
        .await
        .batch_execute("create table public.left_over (id int); grant all on public.left_over to public")
        .await
        .expect("a table");
    let first = process(&pool.get().await.expect("a session")).await;
    for left in [
        "select 1",
        "begin; insert into public.left_over values (1)",
        "begin; insert into public.left_over values (2); select 1/0",
        "begin; insert into public.left_over values (3); select pg_sleep(30)",
    ] {
        let session = pool.get().await.expect("a session");
        let _ = tokio::time::timeout(Duration::from_millis(200), session.batch_execute(left)).await;
        drop(session);
        let session = pool.get().await.expect("a session");
        let state = session.simple_query("savepoint probe").await.expect_err("no transaction is open");
        assert_eq!(state.code().map(tokio_postgres::error::SqlState::code), Some("25P01"), "after {left}");
    }
    let session = pool.get().await.expect("a session");
    assert_ne!(process(&session).await, first, "what could not be cleaned was thrown away");
    drop(session);
    // The server goes on with what was given up; its transaction must not be committed by anybody.
    end_sessions(&database, "pool").await;
    let look = database.superuser().await;
    let rows: i64 = look.query_one("select count(*) from public.left_over", &[]).await.expect("count").get(0);
    assert_eq!(rows, 0);
    let log = database.server().log();
    let loud = |line: &&str| line.contains(database.name()) && line.contains("there is no transaction in progress");
    assert_eq!(log.lines().find(loud), None, "cleaning is silent");
    database.superuser().await.batch_execute("drop table public.left_over").await.expect("drop it");
    database.finish().await;
}

/// Goal: a dead connection is not handed out, whether its end was heard or not. Method: end the backend; hold the network.
#[tokio::test]
async fn the_pool_hands_out_no_dead_session() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let through = server(&proxy.url(&database.url(), database.server().address()), &[], |_| ());
    let pool = Pool::new(through, 1, "pool");
    let first = process(&pool.get().await.expect("a session")).await;
    end_process(&database, first).await;
    let second = process(&pool.get().await.expect("a new session")).await;
    assert_ne!(first, second);
    proxy.set(Mode::Hold);
    let (got, ()) = tokio::join!(pool.get(), async {
        // Long enough for the silent session to be given up, and then the network is back for the new one.
        until("the session is given up", SOON, async || pool.status().size == 0).await;
        proxy.set(Mode::Pass);
    });
    assert_ne!(process(&got.expect("a new session")).await, second);
    pool.close();
    drop(proxy);
    database.finish().await;
}

/// Goal: the pool has its bound, its figures, and its end. Method: take all there are.
#[tokio::test]
async fn the_pool_is_bounded_and_says_so() {
    let database = TestDatabase::new().await;
    // The same bound is for connecting, which takes seconds on a busy machine.
    let patient = server(&database.url(), &[], |parts| parts.connect_timeout = Duration::from_secs(6));
    let pool = Pool::new(patient, 2, "bounded");
    let (one, two) = (pool.get().await.expect("one"), pool.get().await.expect("two"));
    let status = pool.status();
    assert_eq!((status.limit, status.size, status.in_use), (2, 2, 2));
    let error = pool.get().await.expect_err("no third");
    assert_eq!(error.kind(), Kind::TooManyConnections, "{}", error.chain());
    drop(one);
    assert_eq!(pool.status().in_use, 1);
    let discarded: Session = two.discard();
    assert_eq!((pool.status().size, pool.status().in_use), (1, 0));
    discarded.close().await;
    pool.close();
    assert_eq!(pool.get().await.err().map(|error| error.kind()), Some(Kind::Unreachable));
    until("all backends' end", SOON, async || sessions(&database, "bounded").await == 0).await;
    database.finish().await;
}
