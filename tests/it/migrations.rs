//! The executor of migrations on a real server, with the rights of DESIGN section 10 and no more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenantd::error::{Error, Kind};
use tenantd::migrations::{Migration, MigrationSet, source};
use tenantd::pg::migrate::{Applied, Executor, History, LOCK_TIMEOUT, STATEMENT_TIMEOUT};
use tenantd::tasks::Tasks;
use tokio_postgres::Client;

use crate::support::database::TestDatabase;
use crate::support::until::until;

/// A database to migrate: it belongs to `tenant_owner`, and `app` is given DML on whatever tables come.
pub async fn database() -> TestDatabase {
    let database = TestDatabase::new().await;
    let own = format!(
        "alter database {} owner to tenant_owner;
         alter default privileges for role tenant_owner grant select, insert, update, delete on tables to app",
        database.name()
    );
    database.superuser().await.batch_execute(&own).await.expect("give the database away");
    database
}

/// The set that a folder of these files makes.
#[must_use]
pub fn set(files: &[(&str, &str)]) -> MigrationSet {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, sql) in files {
        std::fs::write(folder.path().join(name), sql).expect("write a file");
    }
    source::folder(folder.path()).expect("a good set")
}

/// A set that no folder could hold: `sql` is not looked at.
fn unchecked(sql: &str) -> MigrationSet {
    let first = set(&[("0001_first.sql", "select 1")]).migrations()[0].clone();
    MigrationSet::new("test", vec![Migration { sql: sql.to_owned(), ..first }]).expect("a set of one")
}

/// What runs the migrations of `set` as the daemon would.
#[must_use]
pub fn executor(set: &MigrationSet) -> Executor<'_> {
    Executor {
        set,
        history: History::tenant("public"),
        owner: Some("tenant_owner"),
        among: None,
        protect_from: vec!["app".to_owned()],
        lock_timeout: LOCK_TIMEOUT,
        statement_timeout: STATEMENT_TIMEOUT,
        applied_by: "test".to_owned(),
        out_of_order: false,
        fresh: false,
    }
}

/// Applies as the daemon would, on a fresh connection.
///
/// # Errors
/// As the executor says.
pub async fn apply(database: &TestDatabase, executor: &Executor<'_>) -> Result<Applied, Error> {
    let mut client = database.tenantd().await;
    executor.apply(&mut client, || async { Ok(database.tenantd().await) }).await
}

/// The versions that were run.
#[must_use]
pub fn versions(applied: &Applied) -> Vec<i64> {
    applied.ran.iter().map(|ran| ran.version).collect()
}

/// The versions that the history holds as applied.
pub async fn recorded(database: &TestDatabase) -> Vec<i64> {
    let rows = History::tenant("public").read(&database.tenantd().await).await.expect("read the history");
    rows.iter().filter(|row| row.finished).map(|row| row.entry.version).collect()
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

const TABLE: (&str, &str) =
    ("0001_table.up.sql", "create table t (id int primary key, name text); -- no line end here");

/// Goal: what is missing is applied in order and recorded, and a second run changes nothing. Method: two files, run twice.
#[tokio::test]
async fn what_is_missing_is_applied_once() {
    let database = database().await;
    let set = set(&[TABLE, ("0002_row.sql", "insert into t values (1, 'a');\ninsert into t values (2, 'b')")]);
    let executor = executor(&set);
    let applied = apply(&database, &executor).await.expect("apply both");
    assert_eq!((applied.version, versions(&applied)), (2, vec![1, 2]));
    let again = apply(&database, &executor).await.expect("do nothing");
    assert_eq!((again.version, versions(&again)), (2, vec![]));

    let rows = executor.history.read(&database.tenantd().await).await.expect("read the history");
    assert_eq!(rows.iter().map(|row| row.entry.clone()).collect::<Vec<_>>(), set.entries());
    assert!(rows[0].finished && rows[1].finished);
    assert_eq!(rows[1].statements_done, 2);
    let told = "select bool_and(applied_at >= started_at and applied_by = 'test') from tenantd_migration";
    assert!(one::<bool>(&database.superuser().await, told).await);
    database.finish().await;
}

/// Goal: what migrations make belongs to the owner, and the application may use it but not the history.
#[tokio::test]
async fn the_owner_owns_and_the_history_is_protected() {
    let database = database().await;
    let set = set(&[TABLE]);
    apply(&database, &executor(&set)).await.expect("apply");
    let app = database.app().await;
    let owners = "select string_agg(tablename || ' ' || tableowner, ', ' order by tablename)
                  from pg_tables where tablename in ('t', 'tenantd_migration')";
    let owners: String = one(&app, owners).await;
    assert_eq!(owners, "t tenant_owner, tenantd_migration tenant_owner");
    app.batch_execute("insert into t values (7)").await.expect("the application works in the tenant");
    for write in
        ["delete from tenantd_migration", "truncate tenantd_migration", "update tenantd_migration set version = 9"]
    {
        let refused = app.batch_execute(write).await.expect_err("not the application's");
        assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("42501"), "{write}");
    }
    database.finish().await;
}

/// Goal: SQL that fails leaves nothing of its file, and is shown at its line. Method: an error with a position, one without, and one at COMMIT.
#[tokio::test]
async fn failing_sql_is_rolled_back_and_shown() {
    let database = database().await;
    let table: [(&str, &str, &str, &str); 3] = [
        (
            "create table u ();\n\nupdate t\n  set name = 'äö' || y;\n",
            "42703",
            ":4:22:",
            "    4 |   set name = 'äö' || y;",
        ),
        (
            "create table u ();\n-- twice\ninsert into t values (1), (1);",
            "23505",
            ":3:1:",
            "    3 | insert into t values (1), (1);",
        ),
        (
            "create table u (t int references t deferrable initially deferred);\ninsert into u values (5)",
            "23503",
            "0002_bad.up.sql: insert or update",
            "is not present in table",
        ),
    ];
    let mut client = database.tenantd().await;
    for (sql, code, place, line) in table {
        let set = set(&[TABLE, ("0002_bad.up.sql", sql)]);
        let error =
            executor(&set).apply(&mut client, || async { Ok(database.tenantd().await) }).await.expect_err("it fails");
        let text = error.chain();
        assert_eq!((error.kind(), error.code()), (Kind::Migration, Some(code)), "{text}");
        assert!(text.contains("0002_bad.up.sql") && text.contains(&format!("SQLSTATE {code}")), "{text}");
        assert!(text.contains(place) && text.contains(line), "{text}");
        assert!(
            one::<bool>(&client, "select to_regclass('public.u') is null").await,
            "the client works on, nothing is left"
        );
    }
    assert_eq!(recorded(&database).await, [1]);
    database.finish().await;
}

/// Goal: files that do not go with what was applied are refused by name, and nothing is touched.
#[tokio::test]
async fn changed_vanished_newer_and_out_of_order_are_refused() {
    let database = database().await;
    let second = ("0002_b.sql", "create table b ()");
    apply(&database, &executor(&set(&[TABLE, second, ("0004_d.sql", "create table d ()")]))).await.expect("apply");
    let last = ("0004_d.sql", "create table d ()");
    let next = ("0005_e.sql", "create table e ()");
    let cases: [(MigrationSet, Kind, &str); 4] = [
        (set(&[TABLE, ("0002_b.sql", "create table bb ()"), last, next]), Kind::Drift, "0002_b.sql was changed after"),
        (set(&[TABLE, last, next]), Kind::Drift, "Migration 2 \"b\" was applied, and"),
        (set(&[TABLE, second]), Kind::Newer, "4 \"d\""),
        (
            set(&[TABLE, second, ("0003_c.up.sql", "create table c ()"), last, next]),
            Kind::Drift,
            "rename it to 0006_c.up.sql",
        ),
    ];
    for (set, kind, text) in &cases {
        let error = apply(&database, &executor(set)).await.expect_err("refused");
        assert_eq!(error.kind(), *kind, "{}", error.chain());
        assert!(error.chain().contains(text), "{}", error.chain());
        assert_eq!(recorded(&database).await, [1, 2, 4]);
    }
    let allowed = Executor { out_of_order: true, ..executor(&cases[3].0) };
    assert_eq!(versions(&apply(&database, &allowed).await.expect("asked for")), [3, 5]);
    database.finish().await;
}

/// Goal: a file that leaves our transaction is never recorded. Method: texts that no folder could hold, since reading refuses them.
#[tokio::test]
async fn a_file_with_a_commit_of_its_own_is_refused() {
    let database = database().await;
    let mut client = database.tenantd().await;
    for sql in
        ["create table a (); commit", "commit; begin; create table b ()", "rollback; select 1", "rollback; begin"]
    {
        let set = unchecked(sql);
        let error = executor(&set).apply(&mut client, || async { Ok(database.tenantd().await) }).await.expect_err(sql);
        assert_eq!(error.kind(), Kind::Migration, "{}", error.chain());
        assert!(error.chain().contains("0001_first.sql brings its own COMMIT"), "{}", error.chain());
        assert!(error.advice().is_some_and(|advice| advice.contains("take BEGIN and COMMIT out")));
    }
    assert_eq!(recorded(&database).await, [0; 0]);
    assert!(one::<bool>(&client, "select to_regclass('b') is null").await, "what came after its COMMIT is rolled back");
    assert_eq!(one::<String>(&client, "select current_user::text").await, "tenantd");
    drop(client);
    database.finish().await;
}

/// Goal: what a file sets for its session reaches neither the next file nor the caller.
#[tokio::test]
async fn settings_do_not_leak() {
    let database = database().await;
    let set = set(&[
        (
            "0001_set.sql",
            "set search_path = pg_catalog; set role none; reset all; create temp table t (leaked int); set statement_timeout = '7s'",
        ),
        (
            "0002_next.sql",
            "create table t (id int, timeout text); insert into t values (1, current_setting('statement_timeout'))",
        ),
    ]);
    let mut client = database.tenantd().await;
    let before: String = one(&client, "show statement_timeout").await;
    executor(&set).apply(&mut client, || async { Ok(database.tenantd().await) }).await.expect("apply both");
    assert_eq!(one::<String>(&client, "show search_path").await, "\"$user\", public");
    assert_eq!(one::<String>(&client, "show statement_timeout").await, before);
    assert_eq!(one::<String>(&client, "select current_user::text").await, "tenantd");
    assert_eq!(one::<i32>(&client, "select id from public.t").await, 1);
    assert_eq!(one::<String>(&client, "select timeout from public.t").await, "1h");
    drop(client);
    database.finish().await;
}

/// Goal: how long a file lets its own statements take is not asked of tenantd's. Method: the history is slower than the file allows.
#[tokio::test]
async fn a_files_own_timeout_is_not_ours() {
    let database = database().await;
    let slow = "set statement_timeout = '1s';
                create function slow() returns trigger language plpgsql as
                'begin perform pg_sleep(1.2); return case when tg_op = ''DELETE'' then old else new end; end';
                create trigger slow before insert or update or delete on tenantd_migration for each row execute function slow();";
    let folder = tempfile::tempdir().expect("a folder");
    for (name, sql) in [
        ("0001_slow.sql", slow),
        ("0001_slow.down.sql", "set statement_timeout = '1s'"),
        ("0002_counted.sql", "-- tenantd: no-transaction\nset statement_timeout = '1s';\nset lock_timeout = '1s';\n"),
        (
            "0002_counted.down.sql",
            "-- tenantd: no-transaction\nset statement_timeout = '1s';\nset lock_timeout = '1s';\n",
        ),
    ] {
        std::fs::write(folder.path().join(name), sql).expect("write a file");
    }
    let set = source::folder(folder.path()).expect("a good set");
    assert_eq!(versions(&apply(&database, &executor(&set)).await.expect("apply")), [1, 2]);
    let mut client = database.tenantd().await;
    let back = executor(&set).roll_back(&mut client, 0, || async { Ok(database.tenantd().await) }).await;
    assert_eq!(back.expect("take both back").len(), 2);
    assert!(recorded(&database).await.is_empty());
    drop(client);
    database.finish().await;
}

const DUPLICATES: &str = "insert into t values (1, 'a'), (2, 'a')";
const INDEX: (&str, &str) = (
    "0002_index.sql",
    "-- tenantd: no-transaction\ninsert into t values (3, 'once');\nset lock_timeout = '9s';\ncreate unique index concurrently t_name on t (name);\n",
);

/// Goal: a migration without a transaction that was cut off goes on where it stood. Method: duplicates make the build fail, which leaves an
/// invalid index as a lost connection would.
#[tokio::test]
async fn a_failed_index_build_is_resumed() {
    let database = database().await;
    apply(&database, &executor(&set(&[TABLE]))).await.expect("apply");
    let owner = database.superuser().await;
    owner.batch_execute(DUPLICATES).await.expect("insert duplicates");
    let set = set(&[TABLE, INDEX]);
    let error = apply(&database, &executor(&set)).await.expect_err("a duplicate");
    assert_eq!((error.kind(), error.code()), (Kind::Migration, Some("23505")), "{}", error.chain());
    assert!(error.chain().contains("0002_index.sql:4:1:"), "{}", error.chain());
    let invalid = "select count(*) from pg_index where not indisvalid";
    assert_eq!(one::<i64>(&owner, invalid).await, 1);
    assert_eq!(recorded(&database).await, [1]);

    owner.batch_execute("delete from t where id = 2").await.expect("mend the data");
    assert_eq!(versions(&apply(&database, &executor(&set)).await.expect("go on")), [2]);
    assert_eq!(one::<i64>(&owner, invalid).await, 0);
    assert_eq!(
        one::<String>(&owner, "select tableowner::text from pg_tables where tablename = 't'").await,
        "tenant_owner"
    );
    assert!(one::<bool>(&owner, "select indisunique from pg_index where indexrelid = 't_name'::regclass").await);
    assert_eq!(
        one::<i64>(&owner, "select count(*) from t where name = 'once'").await,
        1,
        "done statements are not repeated"
    );
    let rows = History::tenant("public").read(&owner).await.expect("read the history");
    assert_eq!(rows[1].statements_done, 3);
    assert!(apply(&database, &executor(&set)).await.expect("nothing").ran.is_empty());
    database.finish().await;
}

/// Goal: the same after a lost connection. Method: a writer holds the build up, and the backend that builds is ended.
#[tokio::test]
async fn a_build_whose_backend_is_ended_is_resumed() {
    let database = Arc::new(database().await);
    apply(&database, &executor(&set(&[TABLE]))).await.expect("apply");
    let set = Arc::new(set(&[TABLE, INDEX]));
    let writer = database.superuser().await;
    writer.batch_execute("begin; insert into t values (8, 'writer')").await.expect("hold the build up");
    let run = {
        let (database, set) = (Arc::clone(&database), Arc::clone(&set));
        Tasks::new().spawn("executor of a test", async move { apply(&database, &executor(&set)).await })
    };
    let superuser = database.superuser().await;
    until("the build waits for the writer", Duration::from_secs(5), async || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_progress_create_index
                   where datname = current_database() and phase like 'waiting%'";
        one::<i64>(&superuser, end).await == 1
    })
    .await;
    let error = run.await.expect("no panic").expect_err("the connection is gone");
    assert_eq!(error.kind(), Kind::Unreachable, "{}", error.chain());
    writer.batch_execute("commit").await.expect("end the writer");

    assert_eq!(versions(&apply(&database, &executor(&set)).await.expect("go on")), [2]);
    assert!(one::<bool>(&superuser, "select bool_and(indisvalid) from pg_index").await);
    assert_eq!(one::<i64>(&superuser, "select count(*) from t where name = 'once'").await, 1);
    Arc::into_inner(database).expect("the task has ended").finish().await;
}

/// Goal: a statement whose count was lost is taken as done, and one that failed by itself never is. Method: the history as each would leave it.
#[tokio::test]
async fn a_lost_count_is_told_from_a_failure() {
    let database = database().await;
    let set = set(&[TABLE, INDEX]);
    apply(&database, &executor(&set)).await.expect("apply");
    let superuser = database.superuser().await;
    let unfinished = |duration| {
        format!(
            "update tenantd_migration set applied_at = null, statements_done = 2, duration_ms = {duration} where version = 2"
        )
    };
    superuser.batch_execute(&unfinished("null")).await.expect("cut off");
    apply(&database, &executor(&set)).await.expect("the index is there");
    assert_eq!(recorded(&database).await, [1, 2]);

    superuser.batch_execute(&unfinished("5")).await.expect("failed by itself");
    for _ in 0..2 {
        let error = apply(&database, &executor(&set)).await.expect_err("somebody else's index of that name");
        assert_eq!(error.code(), Some("42P07"), "{}", error.chain());
    }
    superuser
        .batch_execute("update tenantd_migration set checksum = 'x' where version = 2")
        .await
        .expect("another file");
    assert_eq!(apply(&database, &executor(&set)).await.expect_err("changed").kind(), Kind::Drift);
    database.finish().await;
}

/// Goal: whoever forgets the comment is told of it.
#[tokio::test]
async fn what_cannot_run_in_a_transaction_gets_the_hint() {
    let database = database().await;
    let set = set(&[TABLE, ("0002_index.sql", "create index concurrently t_name on t (name)")]);
    let error = apply(&database, &executor(&set)).await.expect_err("not in a transaction");
    assert_eq!(error.code(), Some("25001"));
    assert!(error.advice().is_some_and(|advice| advice.contains("-- tenantd: no-transaction")), "{error:?}");
    database.finish().await;
}

/// Goal: of several executors at once each migration is applied by exactly one, and none deadlocks. Method: four of them, as tasks, with an index built
/// concurrently among the files.
#[tokio::test]
async fn several_executors_apply_once() {
    let database = Arc::new(database().await);
    let set = Arc::new(set(&[TABLE, INDEX, ("0003_more.sql", "create table more ()")]));
    let tasks = Tasks::new();
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let (database, set) = (Arc::clone(&database), Arc::clone(&set));
            tasks.spawn("executor of a test", async move { apply(&database, &executor(&set)).await })
        })
        .collect();
    let mut ran = Vec::new();
    for run in runs {
        let applied = run.await.expect("no panic").unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(applied.version, 3);
        ran.extend(versions(&applied));
    }
    ran.sort_unstable();
    assert_eq!(ran, [1, 2, 3]);
    Arc::into_inner(database).expect("the tasks have ended").finish().await;
}

/// Goal: neither our lock nor a table's is waited for longer than `lock_timeout`, and both count as a lock, not as a failure of the SQL.
#[tokio::test]
async fn a_held_lock_is_given_up_in_time() {
    let database = database().await;
    let first = set(&[TABLE]);
    let second = set(&[TABLE, ("0002_add.sql", "alter table t add column more int")]);
    let third = set(&[TABLE, ("0002_add.sql", "-- tenantd: no-transaction\nalter table t add column more int")]);
    let quick = |set| Executor { lock_timeout: Duration::from_millis(100), ..executor(set) };
    apply(&database, &executor(&first)).await.expect("apply");
    let (holder, other) = (database.superuser().await, database.superuser().await);
    let locks = [
        "begin; select pg_advisory_xact_lock(hashtextextended('tenantd.migrate:public', 0))",
        "begin; lock table t in access share mode",
    ];
    for lock in locks {
        holder.batch_execute(lock).await.expect("take the lock");
        for set in [&second, &third] {
            let started = Instant::now();
            let error = apply(&database, &quick(set)).await.expect_err("locked");
            assert_eq!(error.kind(), Kind::MigrationLocked, "{}", error.chain());
            assert!(started.elapsed() < LOCK_TIMEOUT, "{:?}", started.elapsed());
            other.batch_execute("delete from tenantd_migration where version = 2").await.expect("forget the try");
        }
        assert!(apply(&database, &quick(&first)).await.expect("nothing to do needs no lock").ran.is_empty());
        holder.batch_execute("rollback").await.expect("give the lock back");
    }
    apply(&database, &quick(&second)).await.expect("free again");
    database.finish().await;
}

/// Goal: the connection of a file without a transaction is closed on every exit, so that its lock is free.
#[tokio::test]
async fn the_own_connection_is_closed_after_a_failure() {
    let database = database().await;
    let set = set(&[("0001_bad.sql", "-- tenantd: no-transaction\nselect 1/0")]);
    let error = apply(&database, &executor(&set)).await.expect_err("division by zero");
    assert_eq!(error.code(), Some("22012"));
    let superuser = database.superuser().await;
    until("the lock is free", Duration::from_secs(5), async || {
        let held = "select count(*) from pg_locks join pg_database d on d.oid = database
                    where locktype = 'advisory' and datname = current_database()";
        one::<i64>(&superuser, held).await == 0
    })
    .await;
    database.finish().await;
}

/// Goal: the shipped migrations work on the server.
#[tokio::test]
async fn the_embedded_set_makes_the_example() {
    let database = database().await;
    let set = tenantd::migrations::embedded::tenant().expect("it loads");
    apply(&database, &executor(&set)).await.expect("apply");
    let app = database.app().await;
    app.batch_execute("insert into log_message (message) values ('hello')").await.expect("write a message");
    let filled = "select id is not null and created_at = updated_at from log_message where message = 'hello'";
    assert!(one::<bool>(&app, filled).await);
    let down = set.migrations()[0].down.as_ref().expect("it can be taken back");
    database.superuser().await.batch_execute(&down.sql).await.expect("take it back");
    database.finish().await;
}
