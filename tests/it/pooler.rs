//! A pooler that shares its connections out stands between tenantd and the server: it is recognised and told, nothing of a session is left with
//! somebody else's connection, and signups become tenants all the same.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::fleet::{enter, write_migrations};
use crate::pages::Pages;
use crate::sql::one;
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::{APP_PASSWORD, TENANTD_PASSWORD, TestDatabase};
use crate::support::pooler::Pooler;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const USERS: [(&str, &str); 2] = [("tenantd", TENANTD_PASSWORD), ("app", APP_PASSWORD)];

fn through(database: &TestDatabase, pooler: &Pooler) -> Program {
    Program::for_database(database).setting("main.url", &pooler.url(&database.url(), database.server().address()))
}

/// How many advisory locks anybody has in the main database or in a tenant.
async fn locks(database: &TestDatabase) -> i64 {
    let held = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                where locktype = 'advisory' and (d.datname = current_database() or d.datname like 't%')";
    one(&database.superuser().await, held).await
}

/// A client's session may end a moment after the client. What leaked stays: with a connection of the pooler's, which keeps it.
async fn no_lock_is_left(database: &TestDatabase) {
    until("no lock is left", SOON, async || locks(database).await == 0).await;
}

async fn sign_up(database: &TestDatabase, user: usize) {
    database.sign_up(&format!("{user}@example.org")).await;
}

/// What doctor says of `check`.
async fn doctor(program: &Program, check: &str) -> (i32, String) {
    let output = program.run(&["doctor", "--quick", "--json"]).await;
    let found: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let of = found["checks"].as_array().expect("a list").iter().find(|one| one["check"] == check).expect(check).clone();
    (output.code(), format!("{}: {} {}", of["verdict"], of["text"], of["advice"]))
}

/// Goal: a pooler as it comes, which knows nothing of our settings, does not let tenantd in, and the refusal says what to do. Method: doctor and setup.
#[tokio::test]
async fn a_pooler_that_refuses_is_told() {
    let database = TestDatabase::new().await;
    let pooler = Pooler::start(database.server(), &USERS, "").await;
    let program = through(&database, &pooler);
    let (code, said) = doctor(&program, "connection").await;
    assert!(
        code == 3 && said.contains("startup parameter") && said.contains("rather than to a pooler"),
        "{code}: {said}"
    );
    let setup = program.run(&["setup"]).await;
    assert!(setup.code() != 0 && setup.stderr.contains("pooler"), "{setup:?}");
    drop(pooler);
    database.finish().await;
}

/// Goal: behind one that lets tenantd in, the daemon knows it, says so once, arms no bell and polls; signups become tenants, as quickly as they do without
/// the bell; setup and sweeps can be repeated, and no lock is left. Method: `PgBouncer` in transaction mode; setup twice; a daemon with spares and a
/// crowd; a sweep by hand beside it.
#[tokio::test]
async fn behind_a_pooler_signups_become_tenants() {
    let database = TestDatabase::new().await;
    let pooler = Pooler::start(database.server(), &USERS, "ignore_startup_parameters = options").await;
    let pages = Pages::reserve();
    let program = through(&database, &pooler).setting("spares.min", "2").setting("spares.max", "4");
    for _ in 0..2 {
        let setup = program.run(&["setup"]).await;
        assert_eq!(setup.code(), 0, "{setup:?}\n{}", pooler.log());
        no_lock_is_left(&database).await;
    }
    let (code, said) = doctor(&program, "listen").await;
    assert!(
        code == 1 && said.starts_with("\"wrong\"") && said.contains("shares its connections out"),
        "{code}: {said}"
    );

    let daemon = program.clone().setting("http.listen", &pages.listen()).start().allow("the doorbell is not heard");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    daemon.wait_for_line("a pooler between tenantd and the server", SOON).await;
    until("readiness says why", SOON, async || pages.ready_is(503, "a pooler between").await).await;
    join_all((0..times(8, 60)).map(|user| sign_up(&database, user))).await;
    let client = database.superuser().await;
    let missing = "select count(*) from public.users u left join tenantd.tenant t on t.key = u.id::text
                   where t.state is distinct from 'ready' or t.failures > 0";
    until("every user has a tenant", 2 * SOON, async || one::<i64>(&client, missing).await == 0).await;
    assert_eq!(locks(&database).await, 0, "nobody arms a bell that would not ring");
    let sweep = program.run(&["--sweep-once"]).await;
    assert_eq!(sweep.code(), 0, "{sweep:?}");
    let said = daemon.lines().iter().filter(|line| line.contains("the doorbell is not heard")).count();
    assert_eq!(said, 1, "said once");
    assert!(daemon.terminate().await.success());
    for name in database.tenant_databases().await {
        let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
        app.batch_execute("insert into log_message (message) values ('x')").await.expect("app can work in it");
        app.close().await;
    }
    no_lock_is_left(&database).await;
    drop((client, pooler));
    database.finish().await;
}

/// Goal: a migration without a transaction, which needs a session of its own, is refused behind a pooler, with the reason; no lock and no role is left
/// behind, and directly it runs. Method: an index that is built concurrently; the ANALYZE keeps it out of the transaction that makes a schema.
#[tokio::test]
async fn behind_a_pooler_no_migration_runs_without_a_transaction() {
    let database = TestDatabase::new().await;
    let pooler = Pooler::start(database.server(), &USERS, "ignore_startup_parameters = options").await;
    let folder = tempfile::tempdir().expect("a folder");
    let index = "-- tenantd: no-transaction\ncreate index concurrently note_id on note (id); analyze note";
    write_migrations(folder.path(), &[("0001_note.sql", "create table note (id int)"), ("0002_index.sql", index)]);
    let path = folder.path().display().to_string();
    let program = through(&database, &pooler).setting("tenant.migrations", &path);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    let output = program.run(&["--sweep-once"]).await;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(output.code() == 1 && said.contains("needs a session of its own"), "{output:?}");
    no_lock_is_left(&database).await;
    let direct = Program::for_database(&database).setting("tenant.migrations", &path);
    // What waits for its next try is tried now.
    crate::fleet::execute(&database, "update tenantd.template set due_at = now()").await;
    let output = direct.run(&["--sweep-once"]).await;
    assert_eq!(output.code(), 0, "{output:?}");
    assert_eq!(crate::life::standing(&database, &key).await, "ready idle");
    drop(pooler);
    database.finish().await;
}
