//! Signups that cost the daemon a claim and nothing more: a key that can name no tenant is parked at once, and its row keeps when.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::until::until;

/// For what happens within milliseconds on a machine of one's own.
pub const SOON: Duration = Duration::from_secs(20);

/// A signup that was committed, and when, by the server's clock.
#[derive(Debug, Clone)]
pub struct Committed {
    /// What the application calls it.
    pub key: String,
    /// Seconds since 1970, not before its commit.
    pub at: f64,
}

/// A signup table of names instead of uuids.
pub struct Crowd<'a> {
    /// Where it is.
    pub database: &'a TestDatabase,
    /// A superuser's, for looking.
    pub eye: Client,
}

impl<'a> Crowd<'a> {
    /// Makes the table.
    pub async fn new(database: &'a TestDatabase) -> Self {
        let eye = database.superuser().await;
        let table = "create table public.accounts (id text primary key);
                     grant insert on public.accounts to app;
                     grant select (id), trigger on public.accounts to tenantd";
        eye.batch_execute(table).await.expect("make the signup table");
        Crowd { database, eye }
    }

    /// A daemon that must hear signups, since it looks by itself as good as never.
    #[must_use]
    pub fn deaf_without_bell(&self) -> Program {
        self.program().setting("signup.notify", "true").setting("signup.poll", "20s").setting("sweep.every", "1h")
    }

    /// The daemon's settings.
    #[must_use]
    pub fn program(&self) -> Program {
        // A line for each parked tenant would fill pages.
        Program::for_database(self.database)
            .setting("signup.table", "public.accounts")
            .setting("log.level", "info,tenantd::lanes=off")
    }

    /// Starts the daemon, and returns when its bell is armed, or waits in the queue to be.
    pub async fn start(&self, program: &Program) -> Daemon {
        let before = self.bells().await;
        let daemon = program.start();
        daemon.wait_for_line("tenantd is at work", SOON).await;
        until("one bell more stands", SOON, async || self.bells().await > before).await;
        daemon
    }

    /// How many sessions hold the doorbell's lock, wait for it, or look who holds it, as a sleeping daemon does.
    pub async fn bells(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity a
             where datname = current_database() and application_name like 'tenantd:daemon %' and (query like '%) as held' or exists (
                 select from pg_locks l where l.pid = a.pid and locktype = 'advisory' and classid = 20250 and objid = 1 and mode = 'ExclusiveLock'))",
        )
        .await
    }

    /// How many sessions stand in line for the doorbell's lock.
    pub async fn in_line(&self) -> i64 {
        self.count(
            "select count(*) from pg_locks l join pg_database d on d.oid = l.database
             where datname = current_database() and locktype = 'advisory' and classid = 20250 and objid = 1 and not granted",
        )
        .await
    }

    /// How many daemons have the doorbell's lock: one or none.
    pub async fn armed(&self) -> i64 {
        self.count(
            "select count(*) from pg_locks join pg_stat_activity using (pid)
             where locktype = 'advisory' and classid = 20250 and objid = 1 and mode = 'ExclusiveLock' and granted
             and datname = current_database() and application_name like 'tenantd:daemon %'",
        )
        .await
    }

    /// The number that `sql` asks for.
    pub async fn count(&self, sql: &str) -> i64 {
        self.eye.query_one(sql, &[]).await.expect("count").get(0)
    }

    /// One signup in a transaction of its own.
    pub async fn sign_up(&self, app: &Client) -> Committed {
        self.sign_up_slowly(app, 0.0).await
    }

    /// One signup whose transaction stays open for so many seconds.
    pub async fn sign_up_slowly(&self, app: &Client, seconds: f64) -> Committed {
        let key = format!("account {}", uuid::Uuid::new_v4().simple());
        let open = format!("begin; insert into public.accounts values ('{key}'); select pg_sleep({seconds}); commit");
        app.batch_execute(&open).await.expect("a signup never fails");
        Committed { key, at: now(app).await }
    }

    /// Waits until all of `committed` were seen by a daemon; returns how long each waited, the longest last.
    pub async fn waits(&self, committed: &[Committed]) -> Vec<Duration> {
        let keys: Vec<&str> = committed.iter().map(|signup| signup.key.as_str()).collect();
        let seen = "select key, extract(epoch from due_at)::float8 from tenantd.tenant where work = 'parked' and key = any ($1)";
        let mut rows = Vec::new();
        until("every signup is seen", SOON, async || {
            rows = self.eye.query(seen, &[&keys]).await.expect("look");
            rows.len() == committed.len()
        })
        .await;
        let when = |key: &str| rows.iter().find(|row| row.get::<_, &str>(0) == key).expect("its row").get::<_, f64>(1);
        let mut waits: Vec<Duration> =
            committed.iter().map(|signup| Duration::from_secs_f64((when(&signup.key) - signup.at).max(0.0))).collect();
        waits.sort_unstable();
        waits
    }
}

/// The server's clock.
pub async fn now(client: &Client) -> f64 {
    client.query_one("select extract(epoch from clock_timestamp())::float8", &[]).await.expect("the time").get(0)
}

/// Asserts that nobody waited longer than `limit`, and tells the figures.
#[track_caller]
pub fn all_within(limit: Duration, waits: &[Duration]) {
    let (Some(longest), middle) = (waits.last(), waits[waits.len() / 2]) else { panic!("nobody signed up") };
    crate::support::process::tell(&format!("{} signups: half within {middle:?}, all within {longest:?}", waits.len()));
    assert!(*longest < limit, "a signup waited for {longest:?}: {waits:?}");
}
