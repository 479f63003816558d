//! What every line stands on: a server of its own with fsync and TLS, an application's database, the built tenantd.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tenantd::config::Isolation;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::support::daemon::{Daemon, Output, Program};
use crate::support::database::{APP_PASSWORD, TestDatabase};
use crate::support::listening::{Listener, Said};
use crate::support::server::TestServer;
use crate::support::until::until;

/// How long anything may take: a line that hangs is to end the bench, not to hold it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(10);

/// A server and the application's main database on it. Dropping it ends the server and removes its directory.
pub(crate) struct Stage {
    /// The application's main database.
    pub(crate) database: TestDatabase,
    /// A superuser's connection to it, through the socket.
    pub(crate) admin: Client,
    /// tenantd with its settings.
    pub(crate) program: Program,
}

/// A daemon at work; ended at once when dropped, as a crash would.
pub(crate) struct Running(Option<Daemon>);

/// The application: signs up over TLS, and hears who became ready.
pub(crate) struct Application {
    listener: Listener,
    signup: Statement,
}

impl Stage {
    /// Starts a server as Postgres ships it, but for TLS, and makes the main database; tenantd has not been there yet.
    pub(crate) async fn set() -> Self {
        Self::set_with(&[]).await
    }

    /// The same for tenants that have what `isolation` says.
    pub(crate) async fn set_for(isolation: Isolation) -> Self {
        let mut stage = Self::set().await;
        if isolation == Isolation::Schema {
            stage.database = stage.database.with_schemas().await;
            stage.program = stage.program.settings(&stage.database.isolating());
        }
        stage
    }

    /// The same with settings of the server.
    pub(crate) async fn set_with(settings: &[(&str, &str)]) -> Self {
        let defaults = [
            ("fsync", "on"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "1GB"),
            ("max_prepared_transactions", "0"),
            // Both moments, the signup's commit and the hand-over's, are read off the server's own clock.
            ("track_commit_timestamp", "on"),
        ];
        let all = defaults.iter().chain(settings);
        let server = all.fold(TestServer::builder(), |builder, (name, value)| builder.setting(name, value)).start();
        Self::on(&server).await
    }

    /// Another main database on `server`.
    pub(crate) async fn on(server: &Arc<TestServer>) -> Self {
        let database = TestDatabase::on(server).await.unchecked();
        let admin = database.superuser().await;
        let program = Program::for_database(&database)
            .setting("tenant.max", "20000")
            // One at the start; from then on nothing but what the line is about.
            .setting("sweep.every", "1h");
        Stage { database, admin, program }
    }

    /// tenantd with `spares.min` and `spares.max`.
    pub(crate) fn with_spares(&self, min: usize, max: usize) -> Program {
        self.program.clone().setting("spares.min", &min.to_string()).setting("spares.max", &max.to_string())
    }

    /// Starts the daemon with `program`, and returns when it is at work.
    pub(crate) async fn daemon(&self, program: &Program) -> Running {
        self.tenantd(program, &["config", "check"]).await;
        let daemon = Running(Some(program.start()));
        daemon.wait_for_line("tenantd is at work", PATIENCE).await;
        daemon
    }

    /// Runs a command of tenantd's, which must end with 0.
    pub(crate) async fn tenantd(&self, program: &Program, arguments: &[&str]) -> Output {
        let output = program.run(arguments).await;
        let said = (&output.stdout, &output.stderr);
        assert_eq!(output.code(), 0, "exit code of tenantd {arguments:?}, which said: {said:?}");
        output
    }

    /// The application's connection, which hears of tenants that are ready.
    pub(crate) async fn application(&self) -> Application {
        Application::connect(&self.database, "tenantd_ready").await
    }

    /// Signs up `number` users in one statement, and returns their keys.
    pub(crate) async fn sign_up(&self, number: usize) -> Vec<String> {
        let ids: Vec<Uuid> = (0..number).map(|_| Uuid::new_v4()).collect();
        let insert = "insert into public.users (id, email) select id, id::text from unnest($1::uuid[]) id";
        self.database.app().await.execute(insert, &[&ids]).await.expect("a signup never fails");
        ids.iter().map(Uuid::to_string).collect()
    }

    /// Brings the fleet to `number` tenants, with `program` as the daemon, but without spares. Made without fsync, since nobody measures; what is on disk
    /// afterwards is the same.
    pub(crate) async fn fill(&self, program: &Program, number: usize) {
        self.fsync("off").await;
        let daemon = self.daemon(&program.clone().setting("spares.min", "0").setting("spares.max", "0")).await;
        let there = self.number("select count(*) from tenantd.tenant").await;
        let missing = number.saturating_sub(usize::try_from(there).expect("no less than none"));
        self.sign_up(missing).await;
        self.ready(number).await;
        drop(daemon);
        self.fsync("on").await;
        self.admin.batch_execute("checkpoint").await.expect("write everything");
    }

    async fn fsync(&self, state: &str) {
        for statement in [format!("alter system set fsync = {state}"), "select pg_reload_conf()".to_owned()] {
            self.admin.batch_execute(&statement).await.expect("set fsync");
        }
        let seen = format!("select count(*) from pg_settings where name = 'fsync' and setting = '{state}'");
        until("fsync is set", PATIENCE, async || self.number(&seen).await == 1).await;
    }

    /// Waits until so many tenants are ready.
    pub(crate) async fn ready(&self, number: usize) {
        let count = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle'";
        self.count_reaches(&format!("{number} tenants ready"), count, number).await;
    }

    /// Waits until the pool holds so many spares, which are made without fsync, and until they are on disk.
    pub(crate) async fn pool(&self, number: usize) {
        self.fsync("off").await;
        self.spares(number).await;
        self.fsync("on").await;
        self.admin.batch_execute("checkpoint").await.expect("write everything");
    }

    /// Waits until the pool holds so many spares.
    pub(crate) async fn spares(&self, number: usize) {
        let count = "select count(*) from tenantd.spares_at_hand";
        self.count_reaches(&format!("{number} spares"), count, number).await;
    }

    async fn count_reaches(&self, what: &str, count: &str, number: usize) {
        let number = i64::try_from(number).expect("few");
        until(what, PATIENCE, async || self.number(count).await >= number).await;
    }

    /// One number that a superuser reads in the main database.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.admin.query_one(query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")).get(0)
    }

    /// Milliseconds from the signup's commit to that which made the tenant ready, of each of `keys`, by the server's clock.
    pub(crate) async fn waits(&self, keys: &[String]) -> Vec<f64> {
        let select = "select (extract(epoch from pg_xact_commit_timestamp(t.xmin) - pg_xact_commit_timestamp(u.xmin)) * 1000)::float8
                      from public.users u join tenantd.tenant t on t.key = u.id::text
                      where t.key = any ($1) and t.state = 'ready'";
        let rows = self.admin.query(select, &[&keys]).await.expect("read the commits' moments");
        assert_eq!(rows.len(), keys.len(), "tenants that are ready");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Application {
    /// Connects to `database` and listens on `channel`, whose payload is the key of who became ready.
    pub(crate) async fn connect(database: &TestDatabase, channel: &str) -> Self {
        let listener = Listener::connect(database.server(), "app", APP_PASSWORD, database.name()).await;
        listener.client.batch_execute(&format!("listen {channel}")).await.expect("listen");
        let insert = "insert into public.users (id, email) values ($1, $1::uuid::text)";
        let signup = listener.client.prepare(insert).await.expect("prepare the signup");
        Application { listener, signup }
    }

    /// A connection for statements.
    pub(crate) fn client(&self) -> &Client {
        &self.listener.client
    }

    /// Signs one user up. Returns the key, when the commit was known, and how long the statement took.
    pub(crate) async fn sign_up(&self) -> (String, Instant, Duration) {
        let id = Uuid::new_v4();
        let began = Instant::now();
        self.listener.client.execute(&self.signup, &[&id]).await.expect("a signup never fails");
        (id.to_string(), Instant::now(), began.elapsed())
    }

    /// Waits for the notice that the tenant `key` is ready, and returns when it came.
    pub(crate) async fn heard(&mut self, key: &str) -> Instant {
        loop {
            let (at, said) = self.listener.next(PATIENCE).await.unwrap_or_else(|| panic!("{key} is not ready"));
            if matches!(said, Said::Notification { payload, .. } if payload == key) {
                return at;
            }
        }
    }
}

impl Deref for Running {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        self.0.as_ref().expect("there until dropped")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(daemon) = self.0.take() {
            daemon.kill();
        }
    }
}

/// As milliseconds.
pub(crate) fn milliseconds(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}
