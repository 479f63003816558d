//! The fleet under chaos: its daemons, its folder of migrations, and whoever signs up, drops and sweeps meanwhile.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenantd::config::Isolation;
use tenantd::pg::quote;
use tenantd::tasks::Tasks;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::plan::DAEMONS;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::{APP_PASSWORD, TestDatabase};
use crate::support::proxy::Proxy;
use crate::support::until::INTERVAL;

/// Between two signups: about five a second.
const BETWEEN_SIGNUPS: Duration = Duration::from_millis(195);

/// Between two drops, while there are few tenants; above this many the next follows at once, or the disk would fill.
const BETWEEN_DROPS: Duration = Duration::from_secs(2);
const MANY: i64 = 200;

/// A command that takes longer is killed.
const LONGEST_COMMAND: Duration = Duration::from_secs(20);

/// Between two sweeps by hand.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(9);

/// What was done, and what went wrong.
#[derive(Debug, Default)]
pub struct Counts {
    /// Users that were inserted.
    pub signups: AtomicUsize,
    /// Sweeps by hand.
    pub sweeps: AtomicUsize,
    /// The newest migration.
    pub version: AtomicI64,
    /// Keys of tenants that were dropped by a command, or that one began to drop.
    pub dropped: Mutex<Vec<String>>,
    /// Users that were deleted.
    pub deleted: AtomicUsize,
    /// What may never be, and was.
    pub violations: Mutex<Vec<String>>,
}

impl Counts {
    /// Writes down what may never be.
    pub fn violated(&self, what: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// The same of each of `found`; `what` says how they were found.
    pub fn all_violated(&self, what: &str, found: Vec<String>) {
        for one in found {
            self.violated(format!("{what}: {one}"));
        }
    }

    /// What was written down.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keys of tenants that were dropped.
    #[must_use]
    pub fn dropped(&self) -> Vec<String> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All of it. Clones share it.
#[derive(Clone)]
pub struct Fleet {
    /// Where everything is.
    pub database: Arc<TestDatabase>,
    /// Between the server and the first daemon.
    pub proxy: Arc<Proxy>,
    /// The folder of migrations.
    pub folder: Arc<tempfile::TempDir>,
    /// What was done.
    pub counts: Arc<Counts>,
    /// Everything that runs beside.
    pub tasks: Tasks,
    /// Cancelled when nothing new is to be begun.
    pub over: CancellationToken,
}

impl Fleet {
    /// The settings of a daemon or a command: short leases and pauses, so that much happens in little time.
    #[must_use]
    pub fn program(&self) -> Program {
        Program::for_database(&self.database)
            .setting("tenant.migrations", &self.folder.path().display().to_string())
            .setting("signup.on_delete", "drop")
            // The brake is not what is tried: ten minutes sign up more than the default lets be made.
            .setting("tenant.max", "100000")
            .setting("spares.min", "2")
            .setting("spares.max", "6")
            .setting("work.lease", "3s")
            .setting("work.shutdown", "5s")
            .setting("sweep.every", "2s")
            .setting("sweep.verify_every", "2m")
            .setting("retry.first", "200ms")
            .setting("retry.max", "2s")
            .setting("retry.attempts", "1000000")
            .setting("drop.grace", "3s")
            .setting("main.connect_timeout", "3s")
    }

    /// Starts the daemon `number`.
    #[must_use]
    pub fn start(&self, number: usize) -> Daemon {
        let program = self.program();
        if number > 0 {
            return program.start();
        }
        let url = self.proxy.url(&self.database.url(), self.database.server().address());
        program.setting("main.url", &url).start()
    }

    /// All daemons.
    #[must_use]
    pub fn start_all(&self) -> [Option<Daemon>; DAEMONS] {
        std::array::from_fn(|number| Some(self.start(number)))
    }

    /// A connection as the application's to the main database; `None` while there is none to be had.
    pub async fn app(&self) -> Option<Client> {
        self.database.server().try_client("app", APP_PASSWORD, self.database.name()).await.ok()
    }

    /// The same to the tenant whose database, or schema, is `name`.
    pub async fn app_in(&self, name: &str) -> Option<Client> {
        let around = match self.database.isolation() {
            Isolation::Database => name,
            Isolation::Schema => self.database.around_tenants(),
        };
        let client = self.database.server().try_client("app", APP_PASSWORD, around).await.ok()?;
        let search = format!("set search_path = {}", quote::identifier(self.database.tenant_schema(name)));
        client.batch_execute(&search).await.ok()?;
        Some(client)
    }

    /// Writes a migration so that nobody reads half of it.
    pub fn write(&self, name: &str, sql: &str) {
        let (part, file) = (self.folder.path().join(format!(".{name}")), self.folder.path().join(name));
        std::fs::write(&part, sql).expect("write a migration");
        std::fs::rename(part, file).expect("name a migration");
    }

    /// Signs users up until it is over. A signup may wait and may meet a server that is gone, and then it is tried again; nothing else may
    /// become of it.
    pub async fn sign_up(self) {
        let mut client: Option<Client> = None;
        let mut number = 0;
        while !self.over.is_cancelled() {
            let usable = client.as_ref().is_some_and(|client| !client.is_closed());
            if !usable {
                client = self.app().await;
            }
            if let Some(client) = &client {
                let insert =
                    format!("insert into public.users (email) values ('{number}@example.org') on conflict do nothing");
                match client.batch_execute(&insert).await {
                    Ok(()) => number += 1,
                    Err(error) if is_of_the_server(&error) => {}
                    Err(error) => self.counts.violated(format!("a signup failed: {error:?}")),
                }
            }
            self.counts.signups.store(number, Ordering::Relaxed);
            tokio::time::sleep(BETWEEN_SIGNUPS).await;
        }
    }

    /// Drops tenants until it is over, one by command, one by deleting its user, one by command.
    pub async fn drop_tenants(self) {
        let mut turn = 0;
        while !self.over.is_cancelled() {
            let many = self.drop_one(turn).await.is_some_and(|ready| ready > MANY);
            turn += 1;
            if !many {
                let _ = tokio::time::timeout(BETWEEN_DROPS, self.over.cancelled()).await;
            }
        }
    }

    /// Returns how many tenants there were; `None`: the server is gone.
    async fn drop_one(&self, turn: usize) -> Option<i64> {
        let main = self.app().await?;
        let oldest = "select id::text, (select count(*) from public.users) from public.users where id::text <> all ($1)
                      order by created_at limit 1";
        let dropped = self.counts.dropped();
        let row = main.query_opt(oldest, &[&dropped]).await.ok()??;
        let (key, users): (String, i64) = (row.get(0), row.get(1));
        let users = users - i64::try_from(self.counts.dropped().len()).unwrap_or(0);
        if turn % 2 == 1 {
            // What was committed before the answer was lost counts as well: the next one finds nobody to delete.
            if main.batch_execute(&format!("delete from public.users where id = '{key}'")).await.is_ok() {
                self.counts.deleted.fetch_add(1, Ordering::Relaxed);
            }
            return Some(users);
        }
        self.counts.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
        self.command(&["drop", &key, "--skip-backup", "--now", "--yes", "--timeout", "10s"]).await;
        Some(users)
    }

    /// Sweeps by hand until it is over.
    pub async fn sweep(self) {
        while !self.over.is_cancelled() {
            self.command(&["--sweep-once"]).await;
            self.counts.sweeps.fetch_add(1, Ordering::Relaxed);
            let _ = tokio::time::timeout(BETWEEN_SWEEPS, self.over.cancelled()).await;
        }
    }

    /// Runs a command to its end, or kills it when it takes long: a sweep waits for what others drive.
    async fn command(&self, arguments: &[&str]) {
        let mut command = self.program().start_with(arguments);
        let began = Instant::now();
        while command.is_alive() && began.elapsed() < LONGEST_COMMAND {
            tokio::time::sleep(INTERVAL).await;
        }
        self.judge(arguments[0], &command.lines().join("\n"));
        command.kill();
    }

    /// Nothing of tenantd's may panic, whatever befalls it.
    pub fn judge(&self, who: &str, said: &str) {
        if said.contains("panicked at") || said.contains("ended in a panic") {
            self.counts.violated(format!("{who} panicked:\n{said}"));
        }
    }
}

/// The server is stopping, was killed, or is gone: that is nothing a signup was refused for.
fn is_of_the_server(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code().is_none_or(|code| code.code().starts_with("57P") || code.code().starts_with("08"))
}
