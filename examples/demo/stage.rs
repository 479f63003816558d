//! What the story stands on: a server of its own, an application's database and connection, the built tenantd.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::page::Page;
use crate::support::daemon::{Daemon, Output, Program};
use crate::support::database::{APP_PASSWORD, TestDatabase};
use crate::support::listening::{Listener, Said};
use crate::support::server::TestServer;

/// How long anything may take; generous, since a slow machine is no failure.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// How long a notice is waited for before the view is asked: a notice is a hint and may be lost.
const PATIENCE: Duration = Duration::from_secs(1);

const SIGNUP: &str = "insert into public.users (id, email) select * from unnest($1::uuid[], $2::text[])";

/// Everything the acts need. Dropping it ends the server and removes its directory.
pub(crate) struct Stage {
    /// Where the story is written.
    pub(crate) page: Page,
    /// The application's main database.
    pub(crate) database: TestDatabase,
    /// tenantd with its settings.
    pub(crate) program: Program,
    /// What `tenant.migrations` names.
    pub(crate) migrations: PathBuf,
    /// The application's connection: signs up, listens on `tenantd_ready`.
    pub(crate) app: Listener,
    signup: tokio_postgres::Statement,
}

/// Somebody who signed up.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// Its row in `users`.
    pub(crate) email: String,
    /// The key of its tenant.
    pub(crate) key: String,
    /// When the application knew that the signup is committed.
    pub(crate) committed: Instant,
    /// How long the statement of its signup took, commit included.
    pub(crate) statement: Duration,
}

impl Stage {
    /// Starts the server and makes main database, roles and the folder of migrations; tenantd has not been there yet.
    pub(crate) async fn set() -> Self {
        // The tests do without fsync; figures that a person reads are to be those of a real disk.
        let server = TestServer::builder().setting("fsync", "on").start();
        let database = TestDatabase::on(&server).await.with_prefix("tenant_");
        let app = Listener::connect(&server, "app", APP_PASSWORD, database.name()).await;
        app.client.batch_execute("listen tenantd_ready").await.expect("listen");
        let signup = app.client.prepare(SIGNUP).await.expect("prepare the signup");
        let migrations = server.directory().join("migrations");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tenant-migrations"), &migrations);
        // The retry of a failed tenant is left to the person in the story.
        // The running daemon carries the old migrations; its own retry would find nothing to do, and forget the failure that is shown.
        let program = Program::for_database(&database)
            .setting("tenant.migrations", &migrations.display().to_string())
            .setting("retry.first", "10m")
            .setting("spares.max", "32")
            .setting("backup.folder", &server.directory().join("backups").display().to_string());
        Stage { page: Page::open(), database, program, migrations, app, signup }
    }

    /// Starts the daemon, and returns when it is at work.
    pub(crate) async fn daemon(&self) -> Daemon {
        let daemon = self.program.start();
        daemon.wait_for_line("tenantd is at work", DEADLINE).await;
        daemon
    }

    /// Runs a command of tenantd's and shows it with what it says; it must end with one of `codes`.
    pub(crate) async fn tenantd(&self, arguments: &[&str], codes: &[i32]) -> Output {
        let output = self.program.clone().setting("log.level", "error").run(arguments).await;
        self.page.command(&format!("tenantd {}", arguments.join(" ")), &output.stdout);
        let ended = output.code();
        assert!(codes.contains(&ended), "exit code {ended} of tenantd {arguments:?}, which said:\n{}", output.stderr);
        output
    }

    /// Signs up all of `names` in one statement, as the application does.
    pub(crate) async fn sign_up(&self, names: &[&str]) -> Vec<User> {
        let ids: Vec<Uuid> = names.iter().map(|_| Uuid::new_v4()).collect();
        self.sign_up_as(&ids, names).await
    }

    /// The same with ids that the application has chosen before.
    pub(crate) async fn sign_up_as(&self, ids: &[Uuid], names: &[&str]) -> Vec<User> {
        let emails: Vec<String> = names.iter().map(|name| format!("{name}@example.org")).collect();
        let began = Instant::now();
        let rows = self.app.client.execute(&self.signup, &[&ids, &emails]).await.expect("a signup never fails");
        let (committed, statement) = (Instant::now(), began.elapsed());
        assert_eq!(usize::try_from(rows).ok(), Some(names.len()), "rows of the signup");
        let users = ids.iter().zip(emails);
        users.map(|(id, email)| User { email, key: id.to_string(), committed, statement }).collect()
    }

    /// Tells of each of `users` when its tenant has become ready; the view has confirmed it.
    pub(crate) async fn wait_for(&mut self, users: &[User], mut tell: impl FnMut(&Page, &User, Instant)) {
        let start = Instant::now();
        let mut waiting = users.to_vec();
        while !waiting.is_empty() {
            assert!(start.elapsed() < DEADLINE, "not ready within {DEADLINE:?}: {waiting:?}");
            let heard = self.app.next(PATIENCE).await;
            let at = heard.as_ref().map_or_else(Instant::now, |(at, _)| *at);
            let named = |user: &User| match &heard {
                Some((_, Said::Notification { payload, .. })) => *payload == user.key,
                Some(_) => false,
                None => true,
            };
            let mut left = Vec::new();
            for user in waiting {
                if named(&user) && self.state(&user).await.as_deref() == Some("ready") {
                    tell(&self.page, &user, at);
                } else {
                    left.push(user);
                }
            }
            waiting = left;
        }
    }

    /// The state of a user's tenant, as the application sees it; `None`: no tenant.
    pub(crate) async fn state(&self, user: &User) -> Option<String> {
        let select = "select state from tenantd.tenants where key = $1";
        let row = self.app.client.query_opt(select, &[&user.key]).await.expect("read the view");
        row.map(|row| row.get(0))
    }

    /// One number that the application reads from the main database.
    pub(crate) async fn count(&self, query: &str) -> i64 {
        self.app.client.query_one(query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")).get(0)
    }

    /// The name of a user's database.
    pub(crate) fn name(&self, user: &User) -> String {
        self.database.tenant_name(&user.key)
    }

    /// The application's connection to a user's database.
    pub(crate) async fn tenant(&self, user: &User) -> tokio_postgres::Client {
        self.database.tenant_app(&self.name(user)).await
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("make the folder of migrations");
    for entry in fs::read_dir(from).expect("read the shipped migrations").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copy a migration");
    }
}
