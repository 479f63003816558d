//! Many schemas of one database share its lock table and its catalogue: nobody waits for a neighbour, and no step takes a lock for every one.

use std::time::Duration;

use tenantd::provision::{Outcome, reconcile};

use crate::fleet::{Fleet, row, write_migrations};
use crate::life;
use crate::sql::{one, run};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// A fleet of so many schemas, all with one table: the keys in their order.
async fn fleet_of(database: &TestDatabase, folder: &std::path::Path, tenants: usize) -> Vec<String> {
    write_migrations(
        folder,
        &[("0001_note.sql", "create table note (id bigint generated always as identity, body text);")],
    );
    let fleet = Fleet::with_folder(database, folder).await;
    let mut keys = Vec::new();
    for number in 0..tenants {
        keys.push(database.sign_up(&format!("{number}@example.org")).await);
    }
    assert_eq!(fleet.sweep().await.made, tenants);
    fleet.close().await;
    keys
}

/// Goal: whoever migrates one schema never waits for whoever migrates another of the same database, and two for the same schema never run at once.
/// Method: one tenant's migration stands still in its middle, since its table is locked; meanwhile another's comes to its end, and a second migrator
/// of the first gives up at once; then the first goes on.
#[tokio::test]
async fn two_migrators_of_two_schemas_never_wait_for_each_other() {
    let database = TestDatabase::new().await.with_schemas().await;
    let folder = tempfile::tempdir().expect("a folder");
    let keys = fleet_of(&database, folder.path(), 2).await;
    write_migrations(folder.path(), &[("0002_done.sql", "alter table note add column done boolean;")]);
    let names = [database.tenant_name(&keys[0]), database.tenant_name(&keys[1])];
    let reader = database.tenant_superuser(&names[0]).await;
    run(&reader, "begin; lock table note in access share mode").await;
    let fleets =
        [Fleet::with_folder(&database, folder.path()).await, Fleet::with_folder(&database, folder.path()).await];
    let migrate = async |fleet: &Fleet, key: &String| {
        let mut claim =
            fleet.registry().claim_keys(std::slice::from_ref(key), SOON).await.expect("claim").pop().expect("one");
        claim.advance = true;
        reconcile(&fleet.context, claim).await.outcome
    };
    let waiting = async || database.tenant_sessions("wait_event_type = 'Lock'").await;
    let beside = async {
        until("the first migration waits for its table", SOON, async || waiting().await == 1).await;
        let outcome = migrate(&fleets[1], &keys[1]).await;
        assert!(matches!(outcome, Outcome::Ready { .. }), "{outcome:?}");
        assert_eq!(waiting().await, 1, "the first waits still, and nobody else does");
        let taken =
            format!("select not pg_try_advisory_xact_lock(hashtextextended('tenantd.migrate:{}', 0))", names[0]);
        assert!(one::<bool>(&reader, &taken).await, "its own schema is locked");
        run(&reader, "commit").await;
    };
    let (first, ()) = tokio::join!(migrate(&fleets[0], &keys[0]), beside);
    assert!(matches!(first, Outcome::Ready { .. }), "{first:?}");
    for key in &keys {
        assert_eq!(row(&database, key).await["version"], 2);
    }
    drop(reader);
    for fleet in fleets {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: indexes that are built concurrently in many schemas at once end all, without a deadlock. Method: a file without a transaction, over several
/// tenants, as many at a time.
#[tokio::test]
async fn indexes_are_built_concurrently_in_many_schemas_at_once() {
    let database = TestDatabase::new().await.with_schemas().await;
    let folder = tempfile::tempdir().expect("a folder");
    let number = times(8, 60);
    fleet_of(&database, folder.path(), number).await;
    let index = "-- tenantd: no-transaction\ncreate index concurrently note_body on note (body);";
    write_migrations(folder.path(), &[("0002_index.sql", index)]);
    let more = [("sweep.parallel", "8"), ("rollout.canary", "1")];
    let fleet = Fleet::with_folder_and(&database, folder.path(), &more).await;
    let report = fleet.sweep().await;
    assert_eq!((report.migrated, report.failed.len()), (number, 0), "{report:?}");
    let valid =
        "select count(*) from pg_index join pg_class on oid = indexrelid where relname = 'note_body' and indisvalid";
    let valid: i64 = one(&database.superuser().await, valid).await;
    assert_eq!(usize::try_from(valid).expect("few"), number);
    fleet.close().await;
    database.finish().await;
}

/// A lock table that thousands of schemas would have to share on a larger server.
fn cramped() -> std::sync::Arc<TestServer> {
    TestServer::builder()
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "60")
        .setting("max_prepared_transactions", "0")
        .start()
}

/// Goal: with more schemas than the server has room for locks they are made, migrated, checked, measured, backed up and swept, and one with more tables
/// than that, partitions and sequences among them, is dropped for good. Method: a server with a small lock table; that it is too small for a plain DROP
/// SCHEMA is shown first.
#[tokio::test]
async fn many_schemas_and_tables_do_not_exhaust_the_locks() {
    let database = TestDatabase::on(&cramped()).await.with_schemas().await;
    let (folder, backups) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let tenants = times(120, 3000);
    let keys = fleet_of(&database, folder.path(), tenants).await;
    write_migrations(folder.path(), &[("0002_more.sql", "create table more (id serial primary key, body text);")]);
    let program: Program = life::program(&database, backups.path())
        .setting("tenant.max", "10000")
        .setting("tenant.migrations", &folder.path().display().to_string());
    let well = async |arguments: &[&str]| {
        let output = program.run(arguments).await;
        assert_eq!(output.code(), 0, "{arguments:?}: {output:?}");
        output.stdout
    };
    well(&["migrate"]).await;
    well(&["list", "--size"]).await;
    well(&["check"]).await;

    let name = database.tenant_name(&keys[0]);
    let large = database.tenant_superuser(&name).await;
    run(&large, "set role tenant_owner; create table parted (id bigint, body text) partition by list (id)").await;
    for number in 0..times(400, 2000) {
        let table = format!(
            "create table t{number} (id serial primary key, body text unique); create sequence s{number};
             create table p{number} partition of parted for values in ({number})"
        );
        run(&large, &table).await;
    }
    let plain = large.batch_execute(&format!("drop schema \"{name}\" cascade")).await.expect_err("too many for it");
    assert_eq!(plain.code().map(tokio_postgres::error::SqlState::code), Some("53200"), "{plain:?}");
    drop(large);
    well(&["drop", &keys[0], "--now", "--yes", "--skip-backup"]).await;
    let left = "select count(*) from pg_namespace where nspname like 'tenantd\\_dropped%'";
    assert_eq!(one::<i64>(&database.superuser().await, left).await, 0);
    well(&["backup", &keys[1]]).await;
    well(&["drop", &keys[1]]).await;
    well(&["restore", &keys[1]]).await;
    well(&["--sweep-once"]).await;
    well(&["check"]).await;
    assert_eq!(database.tenant_databases().await.len(), tenants - 1);
    database.allow(crate::support::audit::Finding::UserWithoutTenant).finish().await;
}
