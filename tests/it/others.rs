//! What others set, make and start beside tenantd, and that it changes nothing for ours.

use std::time::Duration;

use tenantd::migrations::source;
use tokio::net::UnixDatagram;

use crate::fleet::{Fleet, config, execute, most, row, write_migrations};
use crate::sql::server_version;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// Goal: an operator that somebody made in a tenant never runs as tenantd. Method: one that fits better than the catalogue's own and fails when
/// it is used; then the grants are given anew.
#[tokio::test]
async fn operators_made_in_a_tenant_do_not_run_as_us() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let inside = database.tenant_superuser(&database.tenant_name(&key)).await;
    inside
        .batch_execute(
            "create function public.trap(name, name) returns boolean language plpgsql
             as $$ begin raise exception 'ran as %', current_user; end $$;
             create operator public.!~ (leftarg = name, rightarg = name, function = public.trap);
             create operator public.<> (leftarg = name, rightarg = name, function = public.trap);",
        )
        .await
        .expect("make the operators");
    drop(inside);
    execute(&database, "update tenantd.tenant set access = null").await;
    let report = fleet.sweep().await;
    assert_eq!((report.ready, report.failed.len()), (1, 0), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: what the application's database sets for the application's statements does not reach tenantd's. Method: settings that would cut them
/// off, let them fail or give them another meaning; a session shows what is in force, and signups become tenants, are migrated and checked.
#[tokio::test]
async fn settings_for_the_application_are_not_for_us() {
    let everywhere = [
        ("quote_all_identifiers", "on"),
        ("standard_conforming_strings", "off"),
        ("transform_null_equals", "on"),
        ("array_nulls", "off"),
        ("datestyle", "SQL, DMY"),
        ("intervalstyle", "sql_standard"),
        ("timezone", "Asia/Kolkata"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-15"),
    ];
    let server =
        everywhere.into_iter().fold(TestServer::builder(), |server, (name, value)| server.setting(name, value));
    let database = TestDatabase::on(&server.start()).await;
    for setting in
        ["statement_timeout = '900ms'", "lock_timeout = '1ms'", "default_transaction_isolation = 'serializable'"]
    {
        execute(&database, &format!("alter database {} set {setting}", database.name())).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let first = ("0001_first.sql", "create table \"it's\" (\"a\\b\" text default 'it''s \\ here' not null)");
    write_migrations(folder.path(), &[first]);
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    database.sign_up("before@example.org").await;
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let session = fleet.registry().session().await.expect("a session");
    let select = "select current_setting('statement_timeout'), current_setting('transaction_isolation')";
    let shown = session.query_one(select, &[]).await.expect("look");
    assert_eq!((shown.get(0), shown.get(1)), ("0", "read committed"));
    drop(session);
    database.sign_up("one@example.org").await;
    for arguments in
        [vec!["--sweep-once"], vec!["check"], vec!["doctor"], vec!["status"], vec!["list"], vec!["config", "check"]]
    {
        let ran = program.run(&arguments).await;
        assert_eq!(ran.code(), 0, "{arguments:?} {ran:?}");
    }
    write_migrations(folder.path(), &[("0002_second.sql", "create index on \"it's\" (\"a\\b\")")]);
    for arguments in [vec!["lint"], vec!["migrate"], vec!["check"]] {
        let ran = program.run(&arguments).await;
        assert_eq!(ran.code(), 0, "{arguments:?} {ran:?}");
    }
    fleet.close().await;
    database.finish().await;
}

/// Goal: how long the application's transactions may take does not end tenantd's, migrations of each kind among them. Method: a time for it that both
/// exceed, on a server that knows one.
#[tokio::test]
async fn a_bound_for_transactions_is_not_for_us() {
    let database = TestDatabase::on(&TestServer::builder().start()).await;
    let knows = server_version(&database.superuser().await).await >= 170_000;
    if knows {
        execute(&database, "alter role tenantd set transaction_timeout = '1s'").await;
    }
    let nap = format!("select pg_sleep({})", if knows { 1.5 } else { 0.0 });
    let folder = tempfile::tempdir().expect("a folder");
    let apart = format!("-- tenantd: no-transaction\n{nap}");
    write_migrations(folder.path(), &[("0001_nap.sql", &nap), ("0002_apart.sql", &apart)]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = database.sign_up("one@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!((report.ready, report.failed.len()), (1, 0), "{report:?}");
    assert_eq!(row(&database, &key).await["version"], 2);
    fleet.close().await;
    database.finish().await;
}

/// Goal: an older daemon does not look into tenants that a newer one brought on after it began, sweep after sweep. Method: it begins first.
#[tokio::test]
async fn a_newer_set_that_comes_later_is_noticed() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let older = Fleet::with_folder(&database, folder.path()).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(older.sweep().await.made, 1);
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    let set = source::folder(folder.path()).expect("a sound folder");
    let newer = Fleet::with_set(config(&database, &[]), set).await.expect("install");
    assert_eq!(newer.sweep().await.migrated, 1);
    let before = row(&database, &key).await;
    let report = older.try_sweep(false).await.expect("sweep");
    assert_eq!((report.newer, report.chosen), (1, 0), "{report:?}");
    assert_eq!(row(&database, &key).await, before, "not claimed");
    older.close().await;
    newer.close().await;
    database.finish().await;
}

/// Goal: a reload with another signup table changes nothing but a warning: its rows become no tenants by surprise. Method: a table with users of
/// its own, that tenantd could serve; a sweep follows each reload.
#[tokio::test]
async fn a_reload_keeps_the_signup_table() {
    let database = TestDatabase::new().await;
    execute(
        &database,
        "create table public.others (id uuid primary key default gen_random_uuid());
         insert into public.others select from generate_series(1, 3);
         grant select (id), trigger on public.others to tenantd",
    )
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenantd.toml");
    std::fs::write(&file, "").expect("write the settings");
    let mut daemon = Program::for_database(&database)
        .variable("TENANTD_CONFIG", &file.display().to_string())
        .start()
        .allow("take effect at the next start only");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    std::fs::write(&file, "[signup]\ntable = \"public.others\"\n").expect("write the settings");
    let said = daemon.lines().len();
    database.sign_up("one@example.org").await;
    daemon.hang_up();
    daemon.wait_for_line_after(said, "take effect at the next start only", SOON).await;
    daemon.wait_for_line_after(said, "settings and migrations reloaded", SOON).await;
    // Found by a sweep alone, so that one is known to have come to its end.
    execute(&database, "set session_replication_role = replica; insert into public.users (email) values ('replica')")
        .await;
    let mut keys = 0;
    until("a sweep after the reload", SOON, async || {
        daemon.hang_up();
        let select = "select count(*) from tenantd.tenant";
        keys = database.superuser().await.query_one(select, &[]).await.expect("count").get::<_, i64>(0);
        keys >= 2
    })
    .await;
    assert_eq!(keys, 2, "the users of the table that is in force");
    let select =
        "select count(*) from pg_trigger where tgname = 'tenantd_signup' and tgrelid = 'public.others'::regclass";
    let triggers: i64 = database.superuser().await.query_one(select, &[]).await.expect("count").get(0);
    assert_eq!(triggers, 0);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: an installation that takes long, such as beside very many users, is no start that failed: systemd hears that it goes on. Method: another
/// holds the lock of the installation, for longer than a loop may stand still between two turns of it; a socket in systemd's place.
#[tokio::test]
async fn a_long_installation_is_no_failed_start() {
    let database = TestDatabase::new().await;
    let other = database.superuser().await;
    other.batch_execute("select pg_advisory_lock(20250, 2)").await.expect("lock");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let daemon = Program::for_database(&database).variable("NOTIFY_SOCKET", &path.display().to_string()).start();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await.expect("in time").expect("receive");
    let heard = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(heard.contains("READY=1") && heard.contains("the installation is not through yet"), "{heard}");
    drop(other);
    daemon.wait_for_line("tenantd is at work", SOON).await;
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: a process that began with another registry, or knows less than this one needs, claims nothing: what it made would bear the wrong marker.
/// Method: the registry is removed and installed anew beside it, then needs a version to come.
#[tokio::test]
async fn a_registry_that_was_replaced_is_left_alone() {
    let database = TestDatabase::new().await;
    let before = Fleet::install(&database, &[]).await;
    execute(&database, "drop schema tenantd cascade; create schema tenantd authorization tenantd").await;
    let now = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let lease = Duration::from_mins(1);
    assert!(before.registry().claim_due(most(1, 1), lease).await.expect("ask").is_empty());
    assert!(before.registry().claim_keys(std::slice::from_ref(&key), lease).await.expect("ask").is_empty());
    execute(&database, "update tenantd.registry set needs_version = needs_version + 1").await;
    assert!(now.registry().claim_due(most(1, 1), lease).await.expect("ask").is_empty());
    assert!(now.registry().claim_keys(&[key], lease).await.expect("ask").is_empty());
    execute(&database, "update tenantd.registry set needs_version = needs_version - 1").await;
    assert_eq!(now.sweep().await.made, 1);
    before.close().await;
    now.close().await;
    database.finish().await;
}
