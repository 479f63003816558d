//! What fails: one tenant's migration, the migration set as a whole, the server. Each is told apart, and none holds up the others.

use std::path::Path;
use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::migrations::source;
use tenantd::provision::Outcome;

use crate::fleet::{Fleet, enter, execute, row, write_migrations};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

const LOG: (&str, &str) = ("0001_log.sql", "create table log (message text);\n");
const SHORT: (&str, &str) = (
    "0002_short.sql",
    "create table other ();\nalter table log\n    add constraint short check (length(message) < 5);\n",
);

/// Signs up `count` users and returns their keys.
async fn sign_up(database: &TestDatabase, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    for number in 0..count {
        keys.push(database.sign_up(&format!("{number}-{}@example.org", uuid::Uuid::new_v4())).await);
    }
    keys
}

async fn in_tenant(database: &TestDatabase, key: &str, sql: &str) {
    let app = enter(database, &database.app_url(), &database.tenant_name(key)).await.expect("app may enter");
    app.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    app.close().await;
}

/// Tables of the tenant, to see that nothing was done to it.
async fn tables(database: &TestDatabase, key: &str) -> String {
    let select =
        "select string_agg(concat_ws(':', c.relname, a.attname), ',' order by c.relname, a.attnum) from pg_class c
                  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
                  where relnamespace = current_schema()::regnamespace and relkind = 'r'";
    let client = database.tenant_superuser(&database.tenant_name(key)).await;
    client.query_one(select, &[]).await.expect("look").get::<_, Option<String>>(0).unwrap_or_default()
}

/// Goal: a migration that one tenant's rows do not bear fails there alone, is counted, delayed, parked at the end, and done once mended.
/// Method: a new constraint, a row that breaks it in one of three tenants, `retry.attempts = 3`.
#[tokio::test]
async fn a_tenant_that_breaks_a_migration_fails_alone() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let keys = sign_up(&database, 3).await;
    assert_eq!(fleet.sweep().await.made, 3);
    fleet.close().await;
    in_tenant(&database, &keys[1], "insert into log values ('too long')").await;
    write_migrations(folder.path(), &[SHORT]);

    let more = [("retry.attempts", "3"), ("retry.first", "1m"), ("retry.max", "1h")];
    let fleet = Fleet::with_folder_and(&database, folder.path(), &more).await;
    let mut delays = Vec::new();
    for failures in 1..=3_i64 {
        let report = fleet.sweep().await;
        assert_eq!(report.failed.len(), 1, "{report:?}");
        assert_eq!(report.migrated, if failures == 1 { 2 } else { 0 }, "the others go on, and only once");
        assert_eq!((&report.failed[0].key, report.failed[0].error.kind()), (&keys[1], Kind::Migration));
        assert_eq!(report.failed[0].parked, failures == 3);
        let failed = row(&database, &keys[1]).await;
        assert_eq!((failed["state"].as_str(), failed["failures"].as_i64()), (Some("ready"), Some(failures)));
        assert_eq!(failed["work"].as_str(), Some(if failures == 3 { "parked" } else { "failing" }));
        assert_eq!((failed["version"].as_i64(), failed["error_step"].as_str()), (Some(1), Some("migrate")));
        assert_eq!(failed["error_sqlstate"].as_str(), Some("23514"));
        let text = failed["error_text"].as_str().expect("a text");
        assert!(text.contains("0002_short.sql:2:1: ") && text.contains("2 | alter table log"), "{text}");
        let delay = "select extract(epoch from due_at - now())::float8 from tenantd.tenant where key = $1";
        delays.push(database.superuser().await.query_one(delay, &[&keys[1]]).await.expect("ask").get::<_, f64>(0));
        assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "not due yet, or parked");
    }
    assert!(delays[0] > 40.0 && delays[0] < 80.0 && delays[1] > 80.0 && delays[1] < 160.0, "{delays:?}");
    assert!(!tables(&database, &keys[1]).await.contains("other"), "a migration that fails leaves nothing");

    in_tenant(&database, &keys[1], "delete from log").await;
    let report = fleet.sweep().await;
    assert_eq!((report.migrated, report.failed.len()), (1, 0), "{report:?}");
    let mended = row(&database, &keys[1]).await;
    assert_eq!((mended["work"].as_str(), mended["failures"].as_i64()), (Some("idle"), Some(0)));
    assert_eq!((mended["version"].as_i64(), mended["error_text"].as_str()), (Some(2), None));
    fleet.close().await;
    database.finish().await;
}

/// Goal: of two migrations the first stays applied when the second fails, and the registry says so, since the application relies on the
/// version. Method: both pending at once, a row that breaks the second.
#[tokio::test]
async fn the_version_reached_before_a_failure_is_recorded() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = sign_up(&database, 1).await.remove(0);
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    in_tenant(&database, &key, "insert into log values ('too long')").await;
    write_migrations(
        folder.path(),
        &[
            ("0002_more.sql", "create table more ();\n"),
            ("0003_short.sql", "alter table log add constraint short check (length(message) < 5);\n"),
        ],
    );

    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let report = fleet.sweep().await;
    assert_eq!(report.failed.len(), 1, "{report:?}");
    let failed = row(&database, &key).await;
    assert_eq!((failed["version"].as_i64(), failed["work"].as_str()), (Some(2), Some("failing")));
    assert!(tables(&database, &key).await.contains("more"), "it is usable at version 2");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a migration that breaks the connection each time is not tried for ever, and another tenant's is no reason to give up. Method: one that
/// ends its own backend, as a crash would; three sweeps by hand.
#[tokio::test]
async fn a_migration_that_breaks_the_connection_parks_in_the_end() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = sign_up(&database, 1).await.remove(0);
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    write_migrations(
        folder.path(),
        &[("0002_end.sql", "reset role;\nselect pg_terminate_backend(pg_backend_pid());\n")],
    );
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    for tries in 1..=3 {
        let report = fleet.sweep().await;
        assert_eq!(report.failed.len(), 1, "{report:?}");
        let kind = if tries < 3 { Kind::Unreachable } else { Kind::Breaks };
        assert_eq!((report.failed[0].error.kind(), report.failed[0].parked), (kind, tries == 3));
    }
    let parked = row(&database, &key).await;
    assert_eq!((parked["work"].as_str(), parked["error_kind"].as_str()), (Some("parked"), Some("breaks")));
    fleet.close().await;
    database.finish().await;
}

/// Goal: a broken migration parks its tenants, and another set, taken over by SIGHUP, makes them due again. Method: a running daemon, a file
/// with an error, the file mended.
#[tokio::test]
async fn another_set_makes_parked_tenants_due_again() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG]);
    let mut daemon = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("retry.attempts", "1")
        .start()
        .allow("the template of the newest migrations could not be built")
        .allow("rollout paused")
        .allow("tenant parked");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let keys = sign_up(&database, 2).await;
    let client = database.superuser().await;
    let count = async |condition: &str| {
        let select = format!("select count(*) from tenantd.tenant where {condition}");
        client.query_one(&select, &[]).await.expect("count").get::<_, i64>(0)
    };
    until("both ready", SOON, async || count("work = 'idle' and version = 1").await == 2).await;
    write_migrations(folder.path(), &[("0002_more.sql", "alter table logg add at timestamptz;")]);
    daemon.hang_up();
    until("both parked", SOON, async || {
        count("work = 'parked' and error_sqlstate = '42P01' and version = 1").await == 2
    })
    .await;
    write_migrations(folder.path(), &[("0002_more.sql", "alter table log add at timestamptz;")]);
    daemon.hang_up();
    until("both ready", SOON, async || count("work = 'idle' and version = 2 and failures = 0").await == 2).await;
    assert!(tables(&database, &keys[0]).await.contains("log:at"));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    drop(client);
    database.finish().await;
}

/// Two tenants with migrations 1, 2 and 3, and the folder they came from.
async fn three_applied(database: &TestDatabase) -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let third = ("0003_third.sql", "create table third ();");
    write_migrations(folder.path(), &[LOG, ("0002_second.sql", "create table second ();"), third]);
    let fleet = Fleet::with_folder(database, folder.path()).await;
    let keys = sign_up(database, 2).await;
    assert_eq!(fleet.sweep().await.made, 2);
    fleet.close().await;
    (folder, keys)
}

async fn sweep_with(database: &TestDatabase, folder: &Path, more: &[(&str, &str)]) -> tenantd::sweep::Report {
    let fleet = Fleet::with_folder_and(database, folder, more).await;
    let report = fleet.sweep().await;
    fleet.close().await;
    report
}

/// Goal: an applied migration whose file changed, was renamed or vanished from the middle stops the tenants that have it, named, and new
/// tenants go on. Method: each in turn; files as they were mend it.
#[tokio::test]
async fn files_that_contradict_what_was_applied_stop_those_tenants_alone() {
    let database = TestDatabase::new().await;
    let (folder, keys) = three_applied(&database).await;
    let second = folder.path().join("0002_second.sql");
    let original = std::fs::read(&second).expect("read");
    let before = tables(&database, &keys[0]).await;
    for named in ["0002_second.sql was changed", "0002_other.sql was renamed", "Migration 2 \"second\" was applied"] {
        if named.contains("changed") {
            std::fs::write(&second, "create table changed ();").expect("write");
        } else {
            std::fs::remove_file(&second).expect("remove");
            if named.contains("renamed") {
                std::fs::write(folder.path().join("0002_other.sql"), &original).expect("write");
            }
        }
        let new = sign_up(&database, 1).await.remove(0);
        let report = sweep_with(&database, folder.path(), &[]).await;
        assert_eq!((report.made, report.failed.len()), (1, 2), "{named}: {report:?}");
        assert!(report.failed.iter().all(|failed| failed.error.kind() == Kind::Drift && failed.parked), "{report:?}");
        let parked = row(&database, &keys[0]).await;
        assert_eq!((parked["state"].as_str(), parked["work"].as_str()), (Some("ready"), Some("parked")));
        assert!(parked["error_text"].as_str().expect("a text").contains(named), "{parked}");
        assert_eq!(tables(&database, &keys[0]).await, before, "{named}");
        // The new one was made from the other files, and with it the files as they were would contradict.
        execute(&database, &format!("update tenantd.tenant set state = 'deleted', work = 'idle' where key = '{new}'"))
            .await;
        let _ = std::fs::remove_file(folder.path().join("0002_other.sql"));
        std::fs::write(&second, &original).expect("write");
        let report = sweep_with(&database, folder.path(), &[]).await;
        assert_eq!((report.ready, report.failed.len()), (2, 0), "{named}, mended: {report:?}");
    }
    database.finish().await;
}

/// Goal: a sweep by hand over files that contradict what was applied fails, whatever the contradiction, names it, and touches no tenant; files as
/// they were make it well again. Method: each contradiction in turn, with the built program.
#[tokio::test]
async fn a_sweep_by_hand_fails_over_files_that_contradict() {
    let database = TestDatabase::new().await;
    let (folder, keys) = three_applied(&database).await;
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    let path = |name: &str| folder.path().join(name);
    let originals: Vec<_> =
        std::fs::read_dir(folder.path()).expect("the folder").flatten().map(|file| file.path()).collect();
    let originals: Vec<_> = originals.iter().map(|path| (path, std::fs::read(path).expect("read"))).collect();
    let before = (tables(&database, &keys[0]).await, tables(&database, &keys[1]).await);
    let cases: [(&str, &dyn Fn(), &str); 4] = [
        (
            "changed",
            &|| std::fs::write(path("0002_second.sql"), "create table changed ();").expect("write"),
            "0002_second.sql was changed",
        ),
        (
            "vanished",
            &|| std::fs::remove_file(path("0002_second.sql")).expect("remove"),
            "Migration 2 \"second\" was applied",
        ),
        (
            "renamed",
            &|| std::fs::rename(path("0002_second.sql"), path("0002_other.sql")).expect("rename"),
            "0002_other.sql was renamed",
        ),
        ("newer", &|| std::fs::remove_file(path("0003_third.sql")).expect("remove"), "left alone with migrations"),
    ];
    for (what, break_it, says) in cases {
        break_it();
        let swept = program.run(&["--sweep-once"]).await;
        assert_eq!(swept.code(), 1, "{what}: {swept:?}");
        let told = format!("{}{}", swept.stdout, swept.stderr);
        assert!(told.contains(says), "{what}: {told}");
        assert_eq!((tables(&database, &keys[0]).await, tables(&database, &keys[1]).await), before, "{what}");
        let _ = std::fs::remove_file(path("0002_other.sql"));
        for (path, text) in &originals {
            std::fs::write(path, text).expect("write");
        }
        let well = program.run(&["--sweep-once"]).await;
        assert_eq!(well.code(), 0, "{what}, mended: {well:?}");
    }
    database.finish().await;
}

/// Goal: a tenant newer than this tenantd is left alone. Method: a folder without the newest file, which is what an older daemon carries; it
/// makes new tenants of the newer daemon's template.
#[tokio::test]
async fn newer_tenants_are_left_alone() {
    let database = TestDatabase::new().await;
    let (folder, keys) = three_applied(&database).await;
    std::fs::remove_file(folder.path().join("0003_third.sql")).expect("remove");
    let before = row(&database, &keys[0]).await;
    let new = sign_up(&database, 1).await.remove(0);
    let report = sweep_with(&database, folder.path(), &[]).await;
    assert_eq!((report.newer, report.made, report.failed.len(), report.chosen), (2, 1, 0, 1), "{report:?}");
    assert!(!report.is_clean());
    assert_eq!(row(&database, &keys[0]).await, before);
    // A schema is made by the migrations that its maker carries, a database from the newest template.
    let (made_at, newer) = if database.isolation() == Isolation::Database { (3, 3) } else { (2, 2) };
    assert_eq!(row(&database, &new).await["version"].as_i64(), Some(made_at));

    // Also when the registry lies, as after a restored backup: what the tenant itself holds counts.
    execute(
        &database,
        &format!(
            "update tenantd.tenant t set version = 2, migration_set = '{}' where t.key = '{}'",
            source::folder(folder.path()).expect("a sound folder").id(),
            keys[0]
        ),
    )
    .await;
    execute(&database, "update tenantd.tenant set verified_at = now() - interval '2 days'").await;
    let report = sweep_with(&database, folder.path(), &[]).await;
    assert_eq!((report.newer, report.failed.len()), (newer, 0), "{report:?}");
    let left = row(&database, &keys[0]).await;
    assert_eq!(
        (left["failures"].as_i64(), left["error_kind"].as_str(), left["leased_until"].as_str()),
        (Some(0), None, None)
    );

    write_migrations(folder.path(), &[("0003_third.sql", "create table third ();")]);
    let report = sweep_with(&database, folder.path(), &[]).await;
    assert_eq!((report.newer, report.failed.len()), (0, 0), "{report:?}");
    for key in keys.iter().chain([&new]) {
        assert_eq!(row(&database, key).await["version"].as_i64(), Some(3));
    }
    database.finish().await;
}

/// Goal: a version below one that is applied refuses the set as a whole, with the renaming that mends it, before any tenant is touched; with
/// `tenant.out_of_order` it is applied. Method: a file in between, and a signup that waits.
#[tokio::test]
async fn a_version_in_between_refuses_the_set() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG, ("0005_fifth.sql", "create table fifth ();")]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = sign_up(&database, 1).await.remove(0);
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    write_migrations(folder.path(), &[("0003_between.sql", "create table between_ ();")]);
    let new = sign_up(&database, 1).await.remove(0);
    let before = (row(&database, &key).await, row(&database, &new).await);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let error = fleet.try_sweep(true).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::Drift);
    let text = error.chain();
    assert!(
        text.contains("0003_between.sql was not applied") && text.contains("rename it to 0006_between.sql"),
        "{text}"
    );
    assert_eq!((row(&database, &key).await, row(&database, &new).await), before);
    assert_eq!(database.tenant_databases().await.len(), 1, "nothing was made");
    fleet.close().await;
    let report = sweep_with(&database, folder.path(), &[("tenant.out_of_order", "true")]).await;
    // The new one is made of the last template that has proved itself, and follows with the others.
    assert_eq!((report.made, report.migrated, report.failed.len()), (1, 2, 0), "{report:?}");
    assert!(tables(&database, &key).await.contains("between_"));
    database.finish().await;
}

/// Goal: a migration without a transaction that failed half-way goes on where it stood. Method: one whose second statement one tenant's
/// rows do not bear.
#[tokio::test]
async fn an_unfinished_migration_goes_on() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[LOG]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let keys = sign_up(&database, 2).await;
    fleet.sweep().await;
    fleet.close().await;
    in_tenant(&database, &keys[0], "insert into log values ('same'), ('same')").await;
    let unique =
        "-- tenantd: no-transaction\ncreate table begun ();\ncreate unique index concurrently once on log (message);\n";
    write_migrations(folder.path(), &[("0002_unique.sql", unique)]);
    let report = sweep_with(&database, folder.path(), &[]).await;
    assert_eq!((report.migrated, report.failed.len()), (1, 1), "{report:?}");
    let failed = row(&database, &keys[0]).await;
    assert_eq!((failed["error_sqlstate"].as_str(), failed["version"].as_i64()), (Some("23505"), Some(1)));
    assert!(tables(&database, &keys[0]).await.contains("begun"), "the first statement is done");
    in_tenant(&database, &keys[0], "delete from log").await;
    let report = sweep_with(&database, folder.path(), &[]).await;
    assert_eq!((report.migrated, report.failed.len()), (1, 0), "{report:?}");
    let valid = "select indisvalid from pg_index where indexrelid = 'once'::regclass";
    let client = database.tenant_superuser(&database.tenant_name(&keys[0])).await;
    assert!(client.query_one(valid, &[]).await.expect("the index is there").get::<_, bool>(0));
    drop(client);
    database.finish().await;
}

/// Goal: without the right to create databases nothing is counted against a tenant, one ERROR says what is missing, and the work goes on by
/// itself when the right is back. Method: a server of its own, three signups.
#[tokio::test]
async fn a_missing_right_to_create_counts_against_nobody() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let daemon = Program::for_database(&database)
        .start()
        .allow("the server fails")
        .allow("the installation is not as it should be")
        .allow("the server failed this tenant");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let first = database.sign_up("first@example.org").await;
    until("the first", SOON, async || row(&database, &first).await["state"] == "ready").await;
    execute(
        &database,
        &database
            .let_make("tenantd")
            .replace("createdb", "nocreatedb")
            .replace("grant", "revoke")
            .replace(" to ", " from "),
    )
    .await;
    let keys = sign_up(&database, 3).await;
    let told = daemon.wait_for_line("the server fails", SOON).await;
    assert!(told.contains("42501") && told.contains("as an administrator: "), "{told}");
    let spares = "select count(*) from tenantd.spare";
    let client = database.superuser().await;
    let untouched = async || {
        let mut all = true;
        for key in &keys {
            let row = row(&database, key).await;
            all &= row["failures"] == 0 && row["error_kind"].is_null() && row["state"] == "requested";
        }
        all
    };
    // Each was tried, since a claim is counted.
    let tried = "select count(*) from tenantd.tenant where attempt > 0";
    until("each to be tried", SOON, async || client.query_one(tried, &[]).await.expect("count").get::<_, i64>(0) == 4)
        .await;
    assert!(untouched().await);
    execute(&database, &database.let_make("tenantd")).await;
    daemon.wait_for_line("the server works again", SOON).await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready'";
    until("all ready", SOON, async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == 4).await;
    let errors = daemon.lines().iter().filter(|line| line.contains("the server fails")).count();
    assert_eq!(errors, 1, "{}", daemon.lines().join("\n"));
    assert_eq!(
        client.query_one(spares, &[]).await.expect("count").get::<_, i64>(0),
        0,
        "what was never made is forgotten"
    );
    drop(client);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: a role that has no connection left is the server's trouble, a database that takes none is that tenant's. Method: a server of its
/// own; the role's CONNECTION LIMIT, then the database's; other tenants are made meanwhile, at once.
#[tokio::test]
async fn connections_that_are_refused_are_told_apart() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    fleet.sweep().await;
    let name = database.tenant_name(&key);
    let look_again = format!("update tenantd.tenant set verified_at = null where key = '{key}'");

    let own = "select count(*) from pg_stat_activity where usename = 'tenantd'";
    let sessions: i64 = database.superuser().await.query_one(own, &[]).await.expect("count").get(0);
    execute(&database, &look_again).await;
    let other = database.sign_up("two@example.org").await;
    execute(&database, &format!("alter role tenantd connection limit {sessions}")).await;
    let claims = fleet.registry().claim_keys(&[key.clone(), other.clone()], Duration::from_secs(30)).await;
    for claim in claims.expect("claim") {
        let outcome = tenantd::provision::reconcile(&fleet.context, claim).await.outcome;
        if let Outcome::Ready { made, .. } = outcome {
            assert!(made, "to make one, no further connection is needed");
            continue;
        }
        let Outcome::Server(error) = &outcome else { panic!("{outcome:?}") };
        assert_eq!((error.kind(), error.code()), (Kind::TooManyConnections, Some("53300")), "{}", error.chain());
    }
    for key in [&key, &other] {
        let row = row(&database, key).await;
        assert_eq!((row["failures"].as_i64(), row["error_kind"].as_str()), (Some(0), None), "{row}");
    }
    execute(&database, "alter role tenantd connection limit -1").await;
    assert_eq!(fleet.sweep().await.failed.len(), 0);
    fleet.close().await;

    execute(&database, &look_again).await;
    database.outside(&format!("alter database \"{name}\" connection limit 0")).await;
    let program = Program::for_database(&database).setting("retry.first", "100ms").setting("signup.poll", "250ms");
    let daemon = program.start().allow("tenant failing, tried again");
    daemon.wait_for_line("tenant failing, tried again", SOON).await;
    let client = database.superuser().await;
    for number in 0..3 {
        let key = database.sign_up(&format!("more-{number}@example.org")).await;
        let wait = "select tenantd.wait($1, '20 s')";
        assert_eq!(client.query_one(wait, &[&key]).await.expect("wait").get::<_, String>(0), "ready");
    }
    let failing = row(&database, &key).await;
    assert_eq!((failing["error_kind"].as_str(), failing["error_sqlstate"].as_str()), (Some("refused"), Some("53300")));
    assert_eq!(failing["state"].as_str(), Some("ready"));
    database.outside(&format!("alter database \"{name}\" connection limit -1")).await;
    let mended = "select from tenantd.tenant where key = $1 and work = 'idle' and failures = 0";
    until("the tenant", SOON, async || client.query_opt(mended, &[&key]).await.expect("look").is_some()).await;
    drop(client);
    assert!(!daemon.lines().iter().any(|line| line.contains("the server fails")), "{}", daemon.lines().join("\n"));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: that too many are connected is a tenant's own fault only where its database has a limit and has reached it; a session that ended meanwhile
/// blames nobody. Method: a database without a limit, with one that is not reached, with one that is, and one that is gone.
#[tokio::test]
async fn only_a_limit_that_is_reached_is_a_databases_own() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    fleet.sweep().await;
    let name = database.tenant_name(&key);
    let session = fleet.context.server.connect(None, "tenantd:test").await.expect("connect");
    let full = async || tenantd::pg::admin::is_full(&session, &name).await.expect("ask");
    let inside = database.tenant_superuser(&name).await;
    assert!(!full().await, "no limit");
    for (limit, expected) in [(2, false), (1, true), (0, true), (-1, false)] {
        database.outside(&format!("alter database \"{name}\" connection limit {limit}")).await;
        assert_eq!(full().await, expected, "limit {limit}");
    }
    drop(inside);
    assert!(!tenantd::pg::admin::is_full(&session, "nobody's").await.expect("ask"), "gone");
    session.close().await;
    fleet.close().await;
    database.finish().await;
}
