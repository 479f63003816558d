//! Commands that lose an answer: they end and say so, and the next ones find the tenant as it was, or where it was going to.

use tenantd::config::Isolation;

use crate::fleet::{enter, execute, half_made, oid, write_migrations};
use crate::life::{files, messages, program, standing, write};
use crate::sql::one;
use crate::support::count::is_long;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::proxy::{Mode, Proxy};

/// The points that these tests come to.
pub(super) const POINTS: &[&str] = &[
    "Shut",
    "Dropped",
    "Condemned",
    "Purged",
    "Restored",
    "FillBegun",
    "Filled",
    "Exchanged",
    "RollbackBegun",
    "Undone",
    "StatementUndone",
    "StatementDone",
    "Owned",
    "Baselined",
    "Adopted",
];

/// What leads to a lost answer, how the tenant stands after the next sweep, and what brings the row back then.
struct Case {
    point: &'static str,
    /// `KEY` is the tenant's, `FILE` its backup.
    command: &'static [&'static str],
    statement: &'static str,
    /// Done before.
    before: Option<&'static [&'static str]>,
    /// `unknown`: deleted.
    stands: &'static str,
    /// What the tenant holds then; `None`: nothing can be asked.
    holds: Option<&'static str>,
    rescue: &'static [&'static str],
}

const DROP: &[&str] = &["drop", "KEY", "--skip-backup"];
const FOR_GOOD: &[&str] = &["drop", "KEY", "--now", "--yes"];
const RESTORE: &[&str] = &["restore", "KEY"];
const OVER: &[&str] = &["restore", "KEY", "--replace"];
const FROM_FILE: &[&str] = &["restore", "KEY", "--from", "FILE", "--replace"];
const FROM_NOTHING: &[&str] = &["restore", "KEY", "--from", "FILE"];
const RESET: &[&str] = &["reset", "KEY", "--yes", "--skip-backup"];

const fn case(point: &'static str, command: &'static [&'static str], statement: &'static str) -> Case {
    Case { point, command, statement, before: None, stands: "ready idle", holds: Some("precious"), rescue: &[] }
}

/// The most telling first: a short run takes these.
fn cases(isolation: Isolation) -> Vec<Case> {
    match isolation {
        Isolation::Database => of_databases(),
        Isolation::Schema => of_schemas(),
    }
}

/// A schema is emptied and filled under its own name: what cannot be ended is taken back.
fn of_schemas() -> Vec<Case> {
    let gone = |case: Case| Case { holds: None, ..case };
    let deleted = |case: Case| Case { before: Some(DROP), stands: "unknown", rescue: FROM_NOTHING, ..gone(case) };
    let dropped = case("Dropped", DROP, "set state = 'deleting'");
    let cleared = "update tenantd.tenant set state = 'requested'";
    vec![
        Case { stands: "deleting held", rescue: RESTORE, ..gone(dropped) },
        case("Made", RESET, "release savepoint tenantd_migration"),
        deleted(case("Purged", FOR_GOOD, "drop schema if exists \"tenantd_dropped_")),
        case("FillBegun", FROM_FILE, "create schema"),
        Case { before: Some(DROP), ..case("Restored", RESTORE, "select tenantd.move(") },
        case("HandedOver", RESET, "update tenantd.tenant set database_oid ="),
        case("Filled", FROM_FILE, "update tenantd.tenant set database_oid ="),
        deleted(case("Condemned", FOR_GOOD, "set condemned_at = coalesce")),
        Case { holds: Some(""), rescue: OVER, ..case("SetAside", RESET, cleared) },
        Case { stands: "requested held", rescue: RESTORE, ..gone(case("SetAside", FROM_FILE, cleared)) },
    ]
}

fn of_databases() -> Vec<Case> {
    let gone = |case: Case| Case { holds: None, ..case };
    let deleted = |case: Case| Case { before: Some(DROP), stands: "unknown", rescue: FROM_NOTHING, ..gone(case) };
    let dropped = case("Dropped", DROP, "set state = 'deleting'");
    let exchanged = |command| case("Exchanged", command, "tenantd.name_spare(");
    vec![
        Case { stands: "deleting held", rescue: RESTORE, ..gone(dropped) },
        Case { holds: Some(""), rescue: OVER, ..exchanged(RESET) },
        deleted(case("Purged", FOR_GOOD, "drop database if exists \"tenantd_dropped_")),
        case("Shut", DROP, "with allow_connections false"),
        Case { before: Some(DROP), ..case("Restored", RESTORE, "select tenantd.move(") },
        Case { holds: Some("backed up"), rescue: OVER, ..exchanged(FROM_FILE) },
        deleted(case("Condemned", FOR_GOOD, "set condemned_at = coalesce")),
        case("Shut", RESET, "with allow_connections false"),
        case("Made", RESET, "create database \"tenantd_spare_"),
        case("FillBegun", FROM_FILE, "create database \"tenantd_spare_"),
        case("Filled", FROM_FILE, "with allow_connections false"),
    ]
}

/// A main database, the program, and the program through the proxy.
struct Scene {
    database: TestDatabase,
    proxy: Proxy,
    direct: Program,
    through: Program,
}

impl Scene {
    async fn new(direct: impl FnOnce(&TestDatabase) -> Program) -> Scene {
        let database = TestDatabase::new().await;
        let proxy = Proxy::start(database.server().address()).await;
        let direct = direct(&database).setting("log.level", "error").setting("spares.max", "0");
        let through = direct.clone().setting("main.url", &proxy.plain_url(&database.url()));
        well(&direct, &["setup"]).await;
        Scene { database, proxy, direct, through }
    }

    async fn tenant(&self, email: &str) -> String {
        let key = self.database.sign_up(email).await;
        well(&self.direct, &["--sweep-once"]).await;
        key
    }

    /// Runs a command that loses the answer to `statement`.
    async fn lose(&self, statement: &'static str, arguments: &[&str]) -> Output {
        let before = self.proxy.lost();
        self.proxy.set(Mode::LoseAnswer(statement));
        let output = self.through.run(arguments).await;
        assert_eq!(self.proxy.lost(), before + 1, "{statement} of {arguments:?}: {output:?}");
        assert!([0, 1, 3].contains(&output.code()), "{statement} of {arguments:?}: {output:?}");
        // What it said is no matter of ours but this: an outcome that it does not know it must not call a failure of the tenant's.
        let failures: i64 =
            one(&self.database.superuser().await, "select count(*) from tenantd.tenant where failures > 0").await;
        assert_eq!(failures, 0, "{statement} of {arguments:?}: {output:?}");
        output
    }
}

async fn well(program: &Program, arguments: &[&str]) {
    let output = program.run(arguments).await;
    assert_eq!(output.code(), 0, "{arguments:?}: {output:?}");
}

/// Goal: a command that lost an answer leaves the tenant whole: as it was, or where it was going to; what is half made is cleared away, and what it
/// held can be had again. Method: each case with a tenant of its own; a sweep goes on.
#[tokio::test]
async fn a_command_that_lost_an_answer_loses_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let scene = Scene::new(|database| program(database, folder.path())).await;
    let cases = cases(scene.database.isolation());
    let number = if is_long() { cases.len() } else { 5 };
    for (nth, case) in cases.into_iter().take(number).enumerate() {
        one_case(&scene, folder.path(), nth, case).await;
    }
    let Scene { database, proxy, .. } = scene;
    drop(proxy);
    database.finish().await;
}

async fn one_case(scene: &Scene, folder: &std::path::Path, nth: usize, case: Case) {
    let (database, what) = (&scene.database, format!("{} of {}", case.point, case.command[0]));
    let key = scene.tenant(&format!("{nth}@example.org")).await;
    let name = database.tenant_name(&key);
    write(database, &key, "backed up").await;
    well(&scene.direct, &["backup", &key]).await;
    let mine = |file: &std::path::PathBuf| file.display().to_string().contains(&name);
    let file = files(folder).into_iter().find(mine).expect("a backup").display().to_string();
    let rename = "update log_message set message = 'precious'";
    database.tenant_superuser(&name).await.batch_execute(rename).await.expect("another row than in the backup");
    let words = |command: &[&'static str]| -> Vec<String> {
        command.iter().map(|word| word.replace("KEY", &key).replace("FILE", &file)).collect()
    };
    let run = async |command: &[&'static str]| {
        let words = words(command);
        well(&scene.direct, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    };
    if let Some(before) = case.before {
        run(before).await;
    }
    let command = words(case.command);
    scene.lose(case.statement, &command.iter().map(String::as_str).collect::<Vec<_>>()).await;

    run(&["release-lock"]).await;
    run(&["--sweep-once"]).await;
    assert_eq!(standing(database, &key).await, case.stands, "{what}");
    assert_eq!(half_made(database).await, Vec::<String>::new(), "{what}");
    match case.holds {
        Some(holds) => {
            assert_eq!(messages(database, &key).await, holds, "{what}");
            let app =
                enter(database, &database.app_url(), &name).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            app.close().await;
        }
        None if case.stands == "requested held" => {}
        None => assert_eq!(oid(database, &name).await, None, "{what}"),
    }
    if !case.rescue.is_empty() {
        run(case.rescue).await;
        run(&["--sweep-once"]).await;
    }
    let from_backup = case.rescue.contains(&"--from");
    assert_eq!(messages(database, &key).await, if from_backup { "backed up" } else { "precious" }, "{what}");
    assert_eq!(standing(database, &key).await, "ready idle", "{what}");
    execute(database, "update tenantd.dropped set purge_after = now()").await;
    run(&["--sweep-once"]).await;
    assert_eq!(one::<i64>(&database.superuser().await, "select count(*) from tenantd.dropped").await, 0, "{what}");
}

/// The ANALYZE keeps the index out of the transaction that makes a schema.
const FILES: [(&str, &str); 4] = [
    ("0001_message.up.sql", "create table message (id int primary key, level int)"),
    ("0001_message.down.sql", "drop table message"),
    (
        "0002_index.up.sql",
        "-- tenantd: no-transaction\ncreate index concurrently message_level on message (level); analyze message",
    ),
    ("0002_index.down.sql", "-- tenantd: no-transaction\ndrop index concurrently message_level"),
];

/// Tables and indexes of the tenant `key`.
async fn holds(database: &TestDatabase, key: &str) -> String {
    let client = database.tenant_superuser(&database.tenant_name(key)).await;
    let has = "select coalesce(string_agg(relname, ' ' order by relname), '') from pg_class c left join pg_index i on indexrelid = c.oid
               where relname like 'message%' and coalesce(indisvalid, true)";
    one(&client, has).await
}

/// Goal: migrations and rollbacks, with and without a transaction, whose answers are lost are done once, and counted. Method: a set with an index that
/// is built concurrently; a migration that loses the answer, a rollback for each of its steps, and the same command again.
#[tokio::test]
async fn a_migration_and_a_rollback_that_lost_an_answer_are_done_once() {
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &FILES);
    let path = folder.path().display().to_string();
    let scene = Scene::new(|database| Program::for_database(database).setting("tenant.migrations", &path)).await;
    let database = &scene.database;
    let key = database.sign_up("one@example.org").await;
    // The template is made of the same files.
    scene.lose("create index concurrently", &["--sweep-once"]).await;
    well(&scene.direct, &["--sweep-once"]).await;
    let whole = "message message_level message_pkey";
    assert_eq!(holds(database, &key).await, whole);

    let steps = [
        ("RollbackBegun", "update tenantd.tenant set work = 'held' where"),
        ("StatementUndone", "drop index concurrently"),
        ("Undone", "release savepoint tenantd_migration"),
    ];
    let back = ["rollback", "--all", "--to", "0", "--yes", "--skip-backup"];
    for (point, statement) in steps {
        scene.lose(statement, &back).await;
        well(&scene.direct, &["release-lock"]).await;
        well(&scene.direct, &["--sweep-once"]).await;
        assert_eq!(standing(database, &key).await, "ready held", "{point}: nobody brings it up meanwhile");
        well(&scene.direct, &back).await;
        assert_eq!(holds(database, &key).await, "", "{point}");
        well(&scene.direct, &["release", &key]).await;
        well(&scene.direct, &["--sweep-once"]).await;
        assert_eq!(
            (holds(database, &key).await.as_str(), &*standing(database, &key).await),
            (whole, "ready idle"),
            "{point}"
        );
    }
    let Scene { database, proxy, .. } = scene;
    drop(proxy);
    database.finish().await;
}

/// Goal: an adoption that lost an answer can be repeated, and is done once. Method: a database made by hand; each of its three commits is lost, and the
/// same command again.
#[tokio::test]
async fn an_adoption_that_lost_an_answer_is_done_once() {
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &FILES[..2]);
    let path = folder.path().display().to_string();
    let scene = Scene::new(|database| Program::for_database(database).setting("tenant.migrations", &path)).await;
    let database = &scene.database;
    let steps = [
        ("Owned", "owner to"),
        ("Baselined", "\".\"tenantd_migration\""),
        ("Adopted", "insert into tenantd.tenant (key, name, state, work, database_oid"),
    ];
    for (nth, (point, statement)) in steps.into_iter().enumerate() {
        let (key, name) = (format!("acme-{nth}"), format!("{}acme_{nth}", database.prefix()));
        database.outside(&format!("create database \"{name}\" owner tenantd")).await;
        let client = database.tenant_superuser(&name).await;
        client
            .batch_execute("set role tenantd; create table message (id int primary key, level int)")
            .await
            .expect("a table");
        client.batch_execute("reset role; alter table message owner to tenant_owner").await.expect("its owner");
        let adopt = ["adopt", &key, "--database", &name, "--version", "1", "--yes"];
        scene.lose(statement, &adopt).await;
        well(&scene.direct, &["release-lock"]).await;
        let again = scene.direct.run(&adopt).await;
        assert!([0, 1, 2].contains(&again.code()), "{point}: {again:?}");
        well(&scene.direct, &["--sweep-once"]).await;
        assert_eq!(standing(database, &key).await, "ready idle", "{point}: {again:?}");
    }
    let Scene { database, proxy, .. } = scene;
    drop(proxy);
    database.finish().await;
}
