//! The executor downwards, on a real server.

use std::time::Duration;

use tenantd::error::{Error, Kind};
use tenantd::migrations::MigrationSet;
use tenantd::pg::catalogue::{self, Catalogue};
use tenantd::pg::migrate::Executor;

use crate::migrations::{apply, database, executor, recorded, set, versions};
use crate::sql::{one, run};
use crate::support::database::TestDatabase;

const FIRST: [(&str, &str); 2] =
    [("0001_table.up.sql", "create table t (id int primary key, name text)"), ("0001_table.down.sql", "drop table t")];
const SECOND: [(&str, &str); 2] = [
    ("0002_more.up.sql", "alter table t add more int; create view v as select more from t"),
    ("0002_more.down.sql", "drop view v; alter table t drop more"),
];
const INDEX: [(&str, &str); 2] = [
    (
        "0003_index.up.sql",
        "-- tenantd: no-transaction\ncreate index concurrently t_name on t (name); create index concurrently t_more on t (more)",
    ),
    (
        "0003_index.down.sql",
        "-- tenantd: no-transaction\ndrop index concurrently t_name;\ndrop index concurrently t_more",
    ),
];

fn three() -> MigrationSet {
    set(&[FIRST, SECOND, INDEX].concat())
}

/// Takes back as a command would, on a fresh connection; the versions that were.
async fn back(database: &TestDatabase, executor: &Executor<'_>, to: i64) -> Result<Vec<i64>, Error> {
    let mut client = database.tenantd().await;
    let ran = executor.roll_back(&mut client, to, || async { Ok(database.tenantd().await) }).await;
    assert_eq!(one::<String>(&client, "select current_user::text").await, "tenantd", "the client works on");
    Ok(ran?.iter().map(|ran| ran.version).collect())
}

async fn catalogue(database: &TestDatabase) -> Catalogue {
    catalogue::read(&database.superuser().await, Some("public")).await.expect("read the catalogue")
}

/// Goal: what is taken back is gone, from the newest on, in either mode; and it can be applied again. Method: down step by step, comparing
/// the catalogue with what it was on the way up.
#[tokio::test]
async fn down_is_the_way_up_again() {
    let database = database().await;
    let set = three();
    let mut seen = vec![catalogue(&database).await];
    for version in 1..=3 {
        apply(&database, &executor(&set.up_to(version).expect("a part"))).await.expect("apply");
        seen.push(catalogue(&database).await);
    }
    let executor = executor(&set);
    for (to, taken, left) in [(3, vec![], vec![1, 2, 3]), (2, vec![3], vec![1, 2]), (0, vec![2, 1], vec![])] {
        assert_eq!(back(&database, &executor, to).await.expect("take back"), taken);
        assert_eq!(recorded(&database).await, left);
        assert_eq!(catalogue(&database).await, seen[left.len()], "to {to}");
    }
    assert_eq!(versions(&apply(&database, &executor).await.expect("apply again")), [1, 2, 3]);
    assert_eq!(catalogue(&database).await, seen[3]);
    database.finish().await;
}

/// Goal: down SQL that fails leaves its migration whole, is shown at its line, and those before it are taken back. Method: an object in the way.
#[tokio::test]
async fn what_fails_is_whole_and_shown() {
    let database = database().await;
    let down = ("0002_more.down.sql", "drop view v;\nalter table t\n  drop nothing_of_it");
    let set = set(&[FIRST.as_slice(), &[SECOND[0], down], &INDEX].concat());
    apply(&database, &executor(&set)).await.expect("apply");
    let error = back(&database, &executor(&set), 0).await.expect_err("no such column");
    let text = error.chain();
    assert_eq!((error.kind(), error.code()), (Kind::Migration, Some("42703")), "{text}");
    assert!(text.contains("0002_more.down.sql:2:1: ") && text.contains("    2 | alter table t"), "{text}");
    assert_eq!(recorded(&database).await, [1, 2], "the third was taken back before");
    assert!(one::<bool>(&database.superuser().await, "select to_regclass('v') is not null").await);
    database.finish().await;
}

/// Goal: what cannot be taken back is refused by name before anything is touched. Method: a missing down file below one that is there, a file
/// that changed, one that vanished.
#[tokio::test]
async fn what_cannot_be_taken_back_is_named_first() {
    let database = database().await;
    apply(&database, &executor(&three())).await.expect("apply");
    let cases: [(MigrationSet, Kind, &str); 4] = [
        (set(&[FIRST.as_slice(), &SECOND[..1], &INDEX].concat()), Kind::Usage, "0002_more.up.sql has no down file"),
        (
            set(&[FIRST.as_slice(), &SECOND, &[("0003_index.up.sql", "select 1"), INDEX[1]]].concat()),
            Kind::Drift,
            "0003_index.up.sql was changed after version 3",
        ),
        (
            set(&[&[("0001_table.up.sql", "select 1")], SECOND.as_slice(), &INDEX].concat()),
            Kind::Drift,
            "0001_table.up.sql was changed after version 1",
        ),
        (set(&[FIRST, SECOND].concat()), Kind::Drift, "Migration 3 \"index\" was applied, and"),
    ];
    let before = catalogue(&database).await;
    for (set, kind, text) in &cases {
        let error = back(&database, &executor(set), 1).await.expect_err("refused");
        assert_eq!(error.kind(), *kind, "{}", error.chain());
        assert!(error.chain().contains(text) && error.advice().is_some(), "{}", error.chain());
        assert_eq!((recorded(&database).await, catalogue(&database).await), (vec![1, 2, 3], before.clone()));
    }
    assert_eq!(back(&database, &executor(&cases[0].0), 2).await.expect("the second stays"), [3]);
    database.finish().await;
}

/// Goal: a down file without a transaction that was cut off goes on where it stood, and until then nothing is applied to the schema. Method: its
/// second statement fails; then the history as a lost count leaves it.
#[tokio::test]
async fn a_half_undone_one_goes_on() {
    let database = database().await;
    let set = three();
    apply(&database, &executor(&set)).await.expect("apply");
    let superuser = database.superuser().await;
    run(&superuser, "drop index t_more").await;
    let error = back(&database, &executor(&set), 2).await.expect_err("no such index");
    assert_eq!((error.kind(), error.code()), (Kind::Migration, Some("42704")), "{}", error.chain());
    assert!(error.chain().contains("0003_index.down.sql:3:1: "), "{}", error.chain());
    let undone = "select statements_undone from tenantd_migration where version = 3";
    assert_eq!(one::<i32>(&superuser, undone).await, 1);

    let error = apply(&database, &executor(&set)).await.expect_err("half undone");
    assert_eq!(error.kind(), Kind::Drift);
    assert!(error.chain().contains("Taking migration 3 \"index\" back was begun"), "{}", error.chain());
    assert!(error.advice().is_some_and(|advice| advice.contains("tenantd rollback")));

    run(&superuser, "create index t_more on t (more); alter index t_more owner to tenant_owner").await;
    assert_eq!(back(&database, &executor(&set), 3).await.expect("go on, though 3 may stay"), [3]);
    assert_eq!(recorded(&database).await, [1, 2]);
    assert_eq!(one::<i64>(&superuser, "select count(*) from pg_indexes where tablename = 't'").await, 1);

    apply(&database, &executor(&set)).await.expect("apply again");
    run(
        &superuser,
        "drop index t_name; update tenantd_migration set statements_undone = 0, duration_ms = null where version = 3",
    )
    .await;
    assert_eq!(back(&database, &executor(&set), 2).await.expect("its first statement was done"), [3]);
    database.finish().await;
}

/// Goal: an invalid index that a cut-off down file left is dropped and built anew. Method: duplicates make the build fail.
#[tokio::test]
async fn an_index_half_built_on_the_way_back_is_built_anew() {
    let database = database().await;
    let unique = [
        ("0002_drop.up.sql", "drop index t_name"),
        ("0002_drop.down.sql", "-- tenantd: no-transaction\ncreate unique index concurrently t_name on t (name)"),
    ];
    let first =
        ("0001_table.up.sql", "create table t (id int primary key, name text); create unique index t_name on t (name)");
    let set = set(&[first, unique[0], unique[1]]);
    apply(&database, &executor(&set)).await.expect("apply");
    let superuser = database.superuser().await;
    run(&superuser, "insert into t values (1, 'a'), (2, 'a')").await;
    let error = back(&database, &executor(&set), 1).await.expect_err("a duplicate");
    assert_eq!(error.code(), Some("23505"), "{}", error.chain());
    run(&superuser, "delete from t where id = 2").await;
    assert_eq!(back(&database, &executor(&set), 1).await.expect("go on"), [2]);
    assert!(one::<bool>(&superuser, "select bool_and(indisvalid) from pg_index where indrelid = 't'::regclass").await);
    assert!(one::<bool>(&superuser, "select indisunique from pg_index where indexrelid = 't_name'::regclass").await);
    database.finish().await;
}

/// Goal: of two at once each migration is taken back by exactly one; a lock that somebody holds is given up in time.
#[tokio::test]
async fn two_take_back_once_and_nobody_waits_for_ever() {
    let database = database().await;
    let set = three();
    apply(&database, &executor(&set)).await.expect("apply");
    let executor = executor(&set);
    let (one, other) = tokio::join!(back(&database, &executor, 1), back(&database, &executor, 1));
    let mut both = [one.expect("take back"), other.expect("take back")].concat();
    both.sort_unstable();
    assert_eq!(both, [2, 3]);

    let holder = database.superuser().await;
    run(&holder, "begin; lock table t in access share mode").await;
    let quick = Executor { lock_timeout: Duration::from_millis(100), ..executor };
    let error = back(&database, &quick, 0).await.expect_err("locked");
    assert_eq!(error.kind(), Kind::MigrationLocked, "{}", error.chain());
    assert_eq!(recorded(&database).await, [1]);
    drop(holder);
    database.finish().await;
}
