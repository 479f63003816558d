//! The main database moves to another server: a standby takes over, or the primary takes no writes any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenantd::tenant::SPARE_PREFIX;

use crate::fleet::{enter, row};
use crate::pages::Pages;
use crate::support::count::times;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::process::tell;
use crate::support::server::{Stop, TestServer};
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// A primary with a main database, and a standby that follows it.
struct Pair {
    primary: Arc<TestServer>,
    standby: Arc<TestServer>,
    database: TestDatabase,
}

impl Pair {
    async fn start() -> Pair {
        let primary = TestServer::builder().start();
        let database = TestDatabase::on(&primary).await;
        let standby = primary.standby();
        standby.catch_up(&primary).await;
        Pair { primary, standby, database }
    }

    /// A daemon that knows both hosts.
    fn program(&self, pages: &Pages) -> Program {
        let (primary, standby) = (self.primary.address().to_string(), self.standby.address().to_string());
        let url = self.database.url().replace(&primary, &format!("{primary},{standby}"));
        Program::for_database(&self.database)
            .setting("main.url", &format!("{url}&target_session_attrs=read-write"))
            .setting("http.listen", &pages.listen())
            .setting("spares.min", "1")
            .setting("spares.max", "1")
            .setting("sweep.every", "1s")
    }

    /// The standby becomes the primary, and the main database is there.
    fn promote(self) -> (Arc<TestServer>, TestDatabase) {
        self.standby.promote();
        (self.primary, self.database.moved_to(&self.standby))
    }
}

/// Lets a daemon say what a failover makes it say.
fn through_a_failover(daemon: Daemon) -> Daemon {
    daemon.allow_all(&[
        "the registry cannot be read",
        "the doorbell is not heard",
        "the server fails",
        "the server failed",
        "the sweep could not",
        "the installation is not as it should be",
        "no spares are made just now",
        "left alone",
    ])
}

async fn ready(database: &TestDatabase, key: &str) -> bool {
    row(database, key).await["state"] == "ready"
}

/// Goal: when a standby takes over, signups are served again by themselves, and tenants that the primary had acknowledged and the standby never got
/// are made again. Method: users sign up, and their tenants are made after the standby stopped following; the primary is stopped, the standby
/// promoted; the time until a new signup has its tenant is measured.
#[tokio::test]
async fn a_standby_that_takes_over_is_found() {
    for _ in 0..times(1, 5) {
        take_over().await;
    }
}

async fn take_over() {
    let pair = Pair::start().await;
    let pages = Pages::reserve();
    let program = pair.program(&pages);
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let first = pair.database.sign_up("first@example.org").await;
    until("the first tenant", SOON, async || ready(&pair.database, &first).await).await;
    assert!(daemon.terminate().await.success());
    let mut lagging = Vec::new();
    for number in 0..3 {
        lagging.push(pair.database.sign_up(&format!("lagging-{number}@example.org")).await);
    }
    pair.standby.catch_up(&pair.primary).await;
    pair.standby.stop_following().await;
    let daemon = through_a_failover(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    for key in &lagging {
        until("acknowledged by the primary", SOON, async || ready(&pair.database, key).await).await;
    }
    let lost = pair.database.sign_up("lost@example.org").await;
    until("a user whom the standby never gets", SOON, async || ready(&pair.database, &lost).await).await;

    let on_standby = "select count(*) from tenantd.tenants where state = 'ready'";
    let eye = pair.standby.superuser(pair.database.name()).await;
    assert_eq!(eye.query_one(on_standby, &[]).await.expect("count").get::<_, i64>(0), 1, "it got the first alone");
    drop(eye);
    let stopped = Instant::now();
    pair.primary.stop(Stop::Immediate);
    let (_primary, database) = pair.promote();
    let promoted = Instant::now();
    let new = database.sign_up("new@example.org").await;
    until("a new signup is served", SOON, async || ready(&database, &new).await).await;
    tell(&format!(
        "a new signup has its tenant {:?} after the standby took over, {:?} after the primary stopped",
        promoted.elapsed(),
        stopped.elapsed()
    ));
    for key in &lagging {
        until("made again", SOON, async || ready(&database, key).await).await;
    }
    for key in lagging.iter().chain([&first, &new]) {
        enter(&database, &database.app_url(), &database.tenant_name(key))
            .await
            .expect("the tenant is there")
            .close()
            .await;
    }
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    assert!(daemon.terminate().await.success());
    assert_eq!(database.tenant_databases().await.len(), 5);
    no_stray_spare(&database).await;
    database.finish().await;
}

/// Spares in the registry without a database, and databases under their names that are not in the registry.
async fn no_stray_spare(database: &TestDatabase) {
    let client = database.superuser().await;
    let place = database.place(&client).await;
    let strays = format!(
        "select coalesce(s.name, d.name) from (select name from tenantd.spare where made_at is not null) s
                  full join (select name from {place} p where starts_with(name, $1)) d on d.name = s.name
                  where s.name is null or d.name is null"
    );
    let strays = client.query(&strays, &[&SPARE_PREFIX]).await.expect("look");
    assert!(strays.is_empty(), "{:?}", strays.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());
}

/// Goal: a primary that takes no writes any more is left for the one that does, with every connection, though nothing ended them. Method: the primary is
/// made read-only by its setting while the daemon sleeps; for a while nobody takes writes; then the standby is promoted.
#[tokio::test]
async fn a_primary_that_takes_no_writes_is_left() {
    let pair = Pair::start().await;
    let pages = Pages::reserve();
    let daemon = through_a_failover(pair.program(&pages).start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let first = pair.database.sign_up("first@example.org").await;
    until("the first tenant", SOON, async || ready(&pair.database, &first).await).await;
    until("it is ready", SOON, async || pages.ready_is(200, "").await).await;
    pair.standby.catch_up(&pair.primary).await;
    let eye = pair.primary.superuser(pair.database.name()).await;
    eye.batch_execute("alter system set default_transaction_read_only = on").await.expect("change the setting");
    eye.batch_execute("select pg_reload_conf()").await.expect("reload");
    until("it says that it is not ready", SOON, async || pages.ready_is(503, "main_database").await).await;
    let asked = Instant::now();
    let (_primary, database) = pair.promote();
    let new = database.sign_up("new@example.org").await;
    until("a new signup is served", SOON, async || ready(&database, &new).await).await;
    tell(&format!("a new signup has its tenant {:?} after the standby took over", asked.elapsed()));
    let left = "select from pg_stat_activity where usename = 'tenantd' and backend_type = 'client backend'";
    until("no connection is left behind", SOON, async || eye.query(left, &[]).await.expect("look").is_empty()).await;
    until("it is ready, and hears", SOON, async || pages.ready_is(200, "").await).await;
    drop(eye);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}
