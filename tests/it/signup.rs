//! The signup path when something is wrong with the registry, the trigger or the daemon: signups commit, and none is forgotten.

use std::time::{Duration, Instant};

use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::migrations::embedded;
use tenantd::registry::install::Wishes;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::fleet::{Fleet, WISHES, config, oid};
use crate::sql::{one, refused, run, stands, tenants, warnings};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

const SOON: Duration = Duration::from_secs(30);
/// Generous: what is bounded is a wait of 0.2 s.
const A_MOMENT: Duration = Duration::from_secs(5);

fn is(state: &str, work: &str) -> (String, String) {
    (state.to_owned(), work.to_owned())
}

/// A session that holds the tables of the registry that signups need, as a careless administrator or a VACUUM FULL would.
async fn lock_registry(database: &TestDatabase) -> Client {
    let locker = database.superuser().await;
    run(&locker, "begin; lock table tenantd.signup, tenantd.tenant in access exclusive mode").await;
    locker
}

async fn users(database: &TestDatabase) -> i64 {
    one(&database.superuser().await, "select count(*) from public.users").await
}

/// Goal: a signup while no daemon runs is made at the next start. Method: run the daemon, end it, sign up, look at the row, start it again.
#[tokio::test]
async fn a_signup_while_the_daemon_is_down_is_made_at_the_next_start() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let key = database.sign_up("one@example.org").await;
    assert_eq!(stands(&database, &key).await, Some(is("requested", "due")));
    let app = database.app().await;
    let wait = "select tenantd.wait($1)";
    run(&app, "begin isolation level repeatable read").await;
    let in_vain = app.query_one(wait, &[&key]).await.expect_err("it would see nothing new");
    assert_eq!(in_vain.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{in_vain:?}");
    run(&app, "rollback").await;
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let state: Option<String> = app.query_one(wait, &[&key]).await.expect("wait").get(0);
    assert_eq!(state.as_deref(), Some("ready"));
    run(&app, "begin isolation level serializable").await;
    assert_eq!(one::<String>(&app, &format!("select tenantd.wait('{key}')")).await, "ready", "it need not wait");
    drop(app);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: what a trigger that is switched off misses is told, and found by a sweep. Method: switch it off, sign up, install, sweep, switch it on
/// by the very statement of the note.
#[tokio::test]
async fn a_switched_off_trigger_is_told_and_swept_after() {
    let database = TestDatabase::new().await;
    Fleet::install(&database, &[]).await.close().await;
    let admin = database.superuser().await;
    for off in ["disable trigger", "enable replica trigger"] {
        run(&admin, &format!("alter table public.users {off} tenantd_signup")).await;
        let key = database.sign_up(&format!("{}@example.org", off.len())).await;
        assert_eq!(stands(&database, &key).await, None);
        let fleet = Fleet::install(&database, &[]).await;
        let note = fleet.installed.notes.iter().find(|note| note.contains("switched off")).expect("a note");
        let report = fleet.sweep().await;
        assert_eq!((report.requested, report.made), (1, 1), "{report:?}");
        let (_, statement) = note.split_once(": ").expect("a statement");
        run(&admin, statement).await;
        fleet.close().await;
    }
    let fleet = Fleet::install(&database, &[]).await;
    assert!(!fleet.installed.notes.iter().any(|note| note.contains("switched off")), "{:?}", fleet.installed.notes);
    let key = database.sign_up("on@example.org").await;
    assert_eq!(stands(&database, &key).await, Some(is("requested", "due")));
    fleet.close().await;
    database.finish().await;
}

/// Goal: while the registry is locked a signup commits after one `lock_timeout`, with a warning that names the cause, and a sweep finds it.
/// Method: another session locks the table exclusively; the commit is seen by a third.
#[tokio::test]
async fn a_locked_registry_costs_a_signup_one_lock_timeout() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (app, locker) = (database.app().await, lock_registry(&database).await);
    let begin = Instant::now();
    let key: String = one(&app, "insert into public.users (email) values ('a') returning id::text").await;
    let took = begin.elapsed();
    println!("signup while the registry is locked: {took:?}");
    assert!(took < A_MOMENT, "{took:?}");
    assert_eq!(users(&database).await, 1);
    let [warning] = &warnings(&database)[..] else { panic!("{:?}", warnings(&database)) };
    assert!(warning.contains("lock timeout") && warning.contains("next sweep"), "{warning}");
    run(&locker, "rollback").await;
    assert_eq!(stands(&database, &key).await, None);
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (1, 1), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a transaction waits once, however many statements and savepoints it has, and nothing of it outlives the transaction. Method: count the
/// warnings, one for each wait.
#[tokio::test]
async fn a_transaction_waits_once_for_a_locked_registry() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (app, locker) = (database.app().await, lock_registry(&database).await);
    run(&app, "begin").await;
    let begin = Instant::now();
    for number in 0..20 {
        run(&app, &format!("insert into public.users (email) values ('s{number}')")).await;
    }
    println!("20 signups in one transaction while the registry is locked: {:?}", begin.elapsed());
    let timeout: String = one(&app, "show lock_timeout").await;
    assert_eq!(timeout, "0", "the application's own setting stays");
    run(&app, "commit").await;
    assert_eq!(warnings(&database).len(), 1);

    let savepoints =
        (0..3).map(|n| format!("savepoint s; insert into public.users (email) values ('r{n}'); release s;"));
    run(&app, &format!("begin; {} commit", savepoints.collect::<String>())).await;
    assert_eq!(warnings(&database).len(), 2, "released savepoints keep the flag");

    run(&app, "begin; savepoint s; insert into public.users (email) values ('gone'); rollback to s").await;
    run(&app, "insert into public.users (email) values ('kept'); commit").await;
    assert_eq!(warnings(&database).len(), 4, "what is rolled back takes the flag with it");

    run(&locker, "rollback").await;
    run(&app, "insert into public.users (email) values ('free')").await;
    assert_eq!((warnings(&database).len(), users(&database).await), (4, 25));
    let report = fleet.request_missing().await;
    assert_eq!((report.users, report.held), (24, false));
    fleet.close().await;
    database.finish().await;
}

/// Goal: an application's `statement_timeout` shorter than our `lock_timeout` does not abort its signup. Method: 190 ms, registry locked.
#[tokio::test]
async fn a_short_statement_timeout_does_not_abort_a_signup() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (app, locker) = (database.app().await, lock_registry(&database).await);
    for timeout in ["190ms", "700ms"] {
        run(&app, &format!("set statement_timeout = '{timeout}'")).await;
        run(&app, &format!("insert into public.users (email) values ('{timeout}')")).await;
    }
    run(&locker, "rollback").await;
    assert_eq!((users(&database).await, warnings(&database).len()), (2, 2));
    assert_eq!(fleet.sweep().await.made, 2);
    fleet.close().await;
    database.finish().await;
}

/// Goal: without table `tenantd.tenant`, or `tenantd.signup`, signups go on; the next install makes it again, tenants whose databases stand come
/// back as they were, signups that were written down are requested, users of the gap are held. Method: drop first one, then both, with a tenant
/// that holds a row.
#[tokio::test]
async fn a_dropped_tenant_table_loses_no_tenant() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let first = database.sign_up("first@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let name = database.tenant_name(&first);
    run(&database.tenant_superuser(&name).await, "insert into log_message (message) values ('precious')").await;
    let admin = database.superuser().await;
    let before = oid(&database, &name).await;

    run(&admin, "drop table tenantd.tenant cascade").await;
    let written_down = database.sign_up("written-down@example.org").await;
    assert_eq!(warnings(&database), [""; 0]);
    let error = fleet.try_sweep(true).await.expect_err("no table");
    assert!(error.kind() == Kind::Registry && error.advice().is_some(), "{}", error.chain());
    fleet.close().await;
    let fleet = Fleet::install(&database, &[]).await;
    assert_eq!(stands(&database, &written_down).await, Some(is("requested", "due")));
    let report = fleet.sweep().await;
    assert_eq!((report.ready, report.made, report.failed.len()), (2, 1, 0), "{report:?}");

    run(&admin, "drop table tenantd.tenant, tenantd.signup cascade").await;
    let gap = database.sign_up("gap@example.org").await;
    assert!(warnings(&database)[0].contains("does not exist"), "{:?}", warnings(&database));
    let error = fleet.try_sweep(true).await.expect_err("no table");
    assert!(error.kind() == Kind::Registry && error.advice().is_some(), "{}", error.chain());
    fleet.close().await;

    let fleet = Fleet::install(&database, &[]).await;
    assert_eq!(stands(&database, &first).await, Some(is("requested", "due")));
    assert_eq!(stands(&database, &gap).await, Some(is("requested", "held")));
    let report = fleet.sweep().await;
    assert_eq!((report.ready, report.made, report.failed.len()), (2, 0, 0), "{report:?}");
    assert_eq!(stands(&database, &first).await, Some(is("ready", "idle")));
    assert_eq!(oid(&database, &name).await, before);
    let kept: String = one(&database.tenant_superuser(&name).await, "select message from log_message").await;
    assert_eq!(kept, "precious");
    fleet.close().await;
    backfill(&database).await;
    assert_eq!(stands(&database, &gap).await, Some(is("ready", "idle")));
    database.finish().await;
}

/// Installs with `--backfill` and sweeps.
async fn backfill(database: &TestDatabase) -> tenantd::sweep::Report {
    let fleet = Fleet::wishing(config(database, &[]), Wishes { backfill: true, ..WISHES }).await.expect("install");
    let report = fleet.sweep().await;
    fleet.close().await;
    report
}

/// Goal: a renamed schema costs no signup, and once it is called as before, a sweep finds them. Method: rename, sign up, rename back.
#[tokio::test]
async fn a_renamed_schema_costs_no_signup() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let admin = database.superuser().await;
    run(&admin, "alter schema tenantd rename to elsewhere").await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(warnings(&database).len(), 1);
    let error = fleet.context.registry.mend(&fleet.context.config).await.expect_err("no registry");
    assert!(error.kind() == Kind::Registry && error.advice().is_some(), "{}", error.chain());
    run(&admin, "alter schema elsewhere rename to tenantd").await;
    assert_eq!(fleet.sweep().await.made, 1);
    assert_eq!(stands(&database, &key).await, Some(is("ready", "idle")));
    fleet.close().await;
    database.finish().await;
}

/// Goal: DROP SCHEMA … CASCADE takes the trigger along, signups go on, and the next install begins anew and holds everybody; what the old
/// registry made is nobody's and is not touched. Method: drop it beside a ready tenant; make the schema as the refusal says.
#[tokio::test]
async fn a_schema_dropped_with_cascade_is_installed_anew() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let old = database.sign_up("old@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let admin = database.superuser().await;
    run(&admin, "drop schema tenantd cascade").await;
    let new = database.sign_up("new@example.org").await;
    let triggers: i64 = one(&admin, "select count(*) from pg_trigger where tgname = 'tenantd_signup'").await;
    assert_eq!((triggers, warnings(&database).len()), (0, 0));
    assert_eq!(fleet.context.registry.mend(&fleet.context.config).await.expect_err("gone").kind(), Kind::Registry);
    fleet.close().await;

    // Whoever may make schemas for tenants may make its own.
    if database.isolation() == Isolation::Database {
        let set = embedded::tenant().expect("the set");
        let error =
            Fleet::with_set(config(&database, &[]), set).await.map(drop).expect_err("no right to make a schema");
        assert_eq!(error.kind(), Kind::Rights);
        let (_, statement) = error.advice().and_then(|advice| advice.split_once(": ")).expect("a statement");
        run(&admin, statement).await;
    }
    let fleet = Fleet::install(&database, &[]).await;
    let bear = format!("2 users from before are held; 1 {}s bear", database.isolation());
    assert!(fleet.installed.notes.iter().any(|note| note.contains(&bear)));
    assert_eq!(fleet.sweep().await.chosen, 0);
    let later = database.sign_up("later@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    assert_eq!(stands(&database, &later).await, Some(is("ready", "idle")));
    fleet.close().await;

    let report = backfill(&database).await;
    assert_eq!((report.made, report.failed.len()), (1, 1), "{report:?}");
    assert_eq!((report.failed[0].key.as_str(), report.failed[0].error.kind()), (old.as_str(), Kind::Conflict));
    assert_eq!(stands(&database, &new).await, Some(is("ready", "idle")));
    assert_eq!(stands(&database, &old).await, Some(is("requested", "parked")));
    database.finish().await;
}

/// Goal: where two-phase commits are possible signups do not ring unless told to, so that such a signup passes, and its tenant is made once
/// it is committed. Method: PREPARE, sweep, COMMIT PREPARED, sweep.
#[tokio::test]
async fn a_two_phase_signup_becomes_a_tenant() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    assert!(!fleet.installed.notify);
    assert!(fleet.installed.notes.iter().any(|note| note.contains("max_prepared_transactions")));
    let (app, name) = (database.app().await, database.name());
    // Somebody holds the bell's lock, as a sleeping daemon does: a trigger with a bell would ring.
    let sleeper = database.tenantd().await;
    run(&sleeper, "select pg_advisory_lock(20250, 1)").await;
    run(&app, &format!("begin; insert into public.users (email) values ('a'); prepare transaction '{name}'")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.chosen), (0, 0), "{report:?}");
    run(&app, &format!("commit prepared '{name}'")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (0, 1), "the trigger wrote the row: {report:?}");
    drop(sleeper);
    fleet.close().await;
    database.finish().await;
}

/// Goal: what comes in past all triggers is found by a sweep. Method: `session_replication_role = replica`, as logical replication and restores have it.
#[tokio::test]
async fn a_replicated_signup_is_swept_after() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let admin = database.superuser().await;
    run(&admin, "set session_replication_role = replica; insert into public.users (email) values ('a')").await;
    assert_eq!(tenants(&database).await, []);
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (1, 1), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a signup that is rolled back, whole or to a savepoint, leaves nothing. Method: both, and one that stays.
#[tokio::test]
async fn a_rolled_back_signup_leaves_nothing() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let app = database.app().await;
    run(&app, "begin; insert into public.users (email) values ('gone'); rollback").await;
    assert_eq!(refused(&app, "insert into public.users (email) values ('a'), ('a')").await, "23505");
    run(&app, "begin; insert into public.users (email) values ('kept'); savepoint s").await;
    run(&app, "insert into public.users (email) values ('gone'); rollback to s; commit").await;
    let key: String = one(&app, "select id::text from public.users").await;
    assert_eq!(tenants(&database).await, [(key, "requested".to_owned(), "due".to_owned())]);
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    database.finish().await;
}

/// Goal: the trigger brings no conflict into SERIALIZABLE signups. Method: many at once, all begun before the first commits.
#[tokio::test]
async fn serializable_signups_do_not_conflict() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let mut apps = Vec::new();
    for number in 0..12 {
        let app = database.app().await;
        run(&app, "begin isolation level serializable").await;
        run(&app, &format!("insert into public.users (email) values ('{number}')")).await;
        apps.push(app);
    }
    for app in &apps {
        run(app, "commit").await;
    }
    assert_eq!((tenants(&database).await.len(), warnings(&database).len()), (12, 0));
    fleet.close().await;
    database.finish().await;
}
