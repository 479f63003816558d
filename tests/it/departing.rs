//! `signup.on_delete = "drop"`: tenants go with their users, the deletion itself never fails, and nobody goes by oversight.

use std::time::{Duration, Instant};

use crate::fleet::{execute, row};
use crate::life::{events, files, program, standing, tenants};
use crate::sql::{one, run, warnings};
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);
/// Generous: what is bounded is a wait of 0.2 s.
const A_MOMENT: Duration = Duration::from_secs(5);

async fn new() -> (TestDatabase, tempfile::TempDir, Program) {
    let database = TestDatabase::new().await;
    execute(&database, "grant delete on public.users to app").await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path()).setting("signup.on_delete", "drop");
    (database, folder, program)
}

async fn written(database: &TestDatabase) -> i64 {
    one(&database.superuser().await, "select count(*) from tenantd.departure").await
}

async fn delete(database: &TestDatabase, keys: &[String]) {
    let list = keys.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    run(&database.app().await, &format!("delete from public.users where id in ({list})")).await;
}

/// Goal: the tenants of deleted users are dropped softly after a backup, all others stay; a deletion that is rolled back is none. Method: delete two of
/// four in one statement, one in a transaction that is rolled back; sweep; restore one.
#[tokio::test]
async fn tenants_go_with_their_users() {
    let (database, folder, program) = new().await;
    let keys = tenants(&database, &program, 4).await;
    delete(&database, &keys[..2]).await;
    run(&database.app().await, &format!("begin; delete from public.users where id = '{}'; rollback", keys[2])).await;
    assert_eq!((written(&database).await, standing(&database, &keys[0]).await.as_str()), (2, "ready idle"));
    let swept = program.run(&["--sweep-once"]).await;
    assert!(
        swept.code() == 0 && swept.stdout.contains("2 tenants dropped, since their users were deleted"),
        "{swept:?}"
    );
    for key in &keys[..2] {
        assert_eq!(
            (standing(&database, key).await.as_str(), events(&database, key).await.as_str()),
            ("deleting held", "backed_up dropped")
        );
    }
    assert_eq!((files(folder.path()).len(), written(&database).await), (2, 0));
    for key in &keys[2..] {
        assert_eq!(standing(&database, key).await, "ready idle");
    }
    assert_eq!(program.run(&["restore", &keys[0]]).await.code(), 0);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(standing(&database, &keys[0]).await, "ready idle", "whoever takes it back keeps it");
    database.finish().await;
}

/// Goal: a daemon follows by itself, without a folder for backups too; a signup deleted before it was made leaves nothing. Method: delete beside it.
#[tokio::test]
async fn the_daemon_follows() {
    let (database, _folder, program) = new().await;
    let program = program.unset("backup.folder").setting("sweep.every", "1s");
    let keys = tenants(&database, &program, 1).await;
    let early = database.sign_up("early@example.org").await;
    delete(&database, &[keys[0].clone(), early.clone()]).await;
    let daemon = program.start();
    until("both to go", SOON, async || {
        let (one, other) = (standing(&database, &keys[0]).await, row(&database, &early).await["state"].clone());
        one == "deleting held" && (other == "deleting" || other == "deleted")
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: a user who is inserted again before the sweep is kept, and so is a held tenant until it is released. Method: delete and insert; hold, delete,
/// sweep, release, sweep.
#[tokio::test]
async fn who_comes_back_or_is_held_stays() {
    let (database, _folder, program) = new().await;
    let keys = tenants(&database, &program, 2).await;
    delete(&database, &keys).await;
    run(
        &database.app().await,
        &format!("insert into public.users (id, email) values ('{}', 'back@example.org')", keys[0]),
    )
    .await;
    assert_eq!(program.run(&["hold", &keys[1]]).await.code(), 0);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(
        (standing(&database, &keys[0]).await.as_str(), standing(&database, &keys[1]).await.as_str()),
        ("ready idle", "ready held")
    );
    assert_eq!(written(&database).await, 1, "the held one is kept in mind");
    assert_eq!(program.run(&["release", &keys[1]]).await.code(), 0);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!((standing(&database, &keys[1]).await.as_str(), written(&database).await), ("deleting held", 0));
    database.finish().await;
}

/// Goal: nothing follows where it is not asked for, and what followed once is idle when it is not wanted any more; TRUNCATE is never followed.
/// Method: the default; then drop, TRUNCATE, keep, delete.
#[tokio::test]
async fn nothing_follows_unless_asked_for() {
    let (database, _folder, program) = new().await;
    let database = database.allow(Finding::UserWithoutTenant);
    let keep = program.clone().unset("signup.on_delete");
    let keys = tenants(&database, &keep, 2).await;
    let admin = database.superuser().await;
    let there = "select to_regprocedure('tenantd.departure()') is not null or exists (select from pg_trigger where tgname = 'tenantd_departure')";
    assert!(!one::<bool>(&admin, there).await);
    let setup = program.run(&["setup"]).await;
    assert!(setup.stdout.contains("done: put the trigger tenantd_departure on \"public\".\"users\""), "{setup:?}");
    assert!(program.run(&["setup"]).await.stdout.starts_with("nothing to install"));
    run(&admin, "alter table public.users disable trigger tenantd_departure").await;
    let status = program.run(&["status"]).await;
    assert_eq!(status.code(), 1, "{status:?}");
    assert!(
        status.stdout.contains("The trigger tenantd_departure on \"public\".\"users\" is switched off"),
        "{status:?}"
    );
    run(&admin, "alter table public.users enable trigger tenantd_departure").await;
    assert_eq!(program.run(&["status"]).await.code(), 0);
    let printed = program.run(&["setup", "--print-sql"]).await;
    let trigger =
        "create trigger tenantd_departure after delete on \"public\".\"users\" referencing old table as removed";
    assert!(printed.stdout.contains(trigger), "{printed:?}");
    run(&admin, "truncate public.users cascade").await;
    assert_eq!(written(&database).await, 0);
    run(
        &admin,
        &format!(
            "insert into public.users (id, email) select unnest('{{{}, {}}}'::uuid[]), gen_random_uuid()",
            keys[0], keys[1]
        ),
    )
    .await;
    delete(&database, &keys[..1]).await;
    assert_eq!(written(&database).await, 1);
    let setup = keep.run(&["setup"]).await;
    assert!(setup.stdout.contains("done: deleted users are not followed any more"), "{setup:?}");
    delete(&database, &keys[1..]).await;
    assert_eq!(written(&database).await, 0);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for key in &keys {
        assert_eq!(standing(&database, key).await, "ready idle");
    }
    drop(admin);
    database.finish().await;
}

/// Goal: a deletion commits whatever befalls the registry, waits once a transaction at the most, and warns. Method: the table locked, with and without a
/// short `statement_timeout`; dropped; the whole function in the way of nothing.
#[tokio::test]
async fn a_deletion_never_fails() {
    let (database, _folder, program) = new().await;
    let keys = tenants(&database, &program, 5).await;
    let locker = database.superuser().await;
    run(&locker, "begin; lock table tenantd.departure in access exclusive mode").await;
    let begin = Instant::now();
    let app = database.app().await;
    run(&app, "begin").await;
    for key in &keys[..2] {
        run(&app, &format!("delete from public.users where id = '{key}'")).await;
    }
    run(&app, "commit").await;
    assert!(begin.elapsed() < A_MOMENT, "{:?}", begin.elapsed());
    let [warning] = &warnings(&database)[..] else { panic!("{:?}", warnings(&database)) };
    assert!(warning.contains("the deletion is kept") && warning.contains("lock timeout"), "{warning}");
    run(&app, "set statement_timeout = '190ms'").await;
    run(&app, &format!("delete from public.users where id = '{}'", keys[2])).await;
    run(&locker, "rollback").await;
    run(&locker, "drop table tenantd.departure").await;
    delete(&database, &keys[3..4]).await;
    assert_eq!(one::<i64>(&locker, "select count(*) from public.users").await, 1);
    assert_eq!(warnings(&database).len(), 3);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for key in &keys {
        assert_eq!(standing(&database, key).await, "ready idle", "what was missed is never guessed");
    }
    delete(&database, &keys[4..]).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(standing(&database, &keys[4]).await, "deleting held");
    drop((locker, app));
    database.finish().await;
}

/// Goal: deletions from a partition are seen, of whichever table they are asked for; a new partition has the trigger by itself. Method: a partitioned
/// users table, deletions through it and from a leaf.
#[tokio::test]
async fn deletions_from_partitions_are_seen() {
    let (database, _folder, program) = new().await;
    let admin = database.superuser().await;
    run(&admin, "drop table public.users cascade; grant create on schema public to app; set role app").await;
    run(
        &admin,
        "create table public.users (id uuid default gen_random_uuid(), email text) partition by hash (id);
        create table public.users_0 partition of public.users for values with (modulus 2, remainder 0);
        grant select (id), trigger on public.users, public.users_0 to tenantd",
    )
    .await;
    let setup = program.run(&["setup"]).await;
    assert_eq!(setup.code(), 0, "{setup:?}");
    run(
        &admin,
        "create table public.users_1 partition of public.users for values with (modulus 2, remainder 1); reset role",
    )
    .await;
    let mut keys = Vec::new();
    for number in 0..8 {
        keys.push(database.sign_up(&number.to_string()).await);
    }
    run(&database.app().await, "delete from public.users_1; delete from public.users").await;
    assert_eq!(written(&database).await, 8);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for key in &keys {
        assert_eq!(row(&database, key).await["state"], "deleting");
    }
    drop(admin);
    database.finish().await;
}

/// Goal: where nobody can tell whether a user is there, no tenant goes. Method: row level security on the signup table.
#[tokio::test]
async fn where_users_are_hidden_nobody_goes() {
    let (database, _folder, program) = new().await;
    let database = database.allow(Finding::UserWithoutTenant);
    let keys = tenants(&database, &program, 1).await;
    delete(&database, &keys).await;
    execute(&database, "alter table public.users enable row level security").await;
    let swept = program.run(&["--sweep-once"]).await;
    assert!(
        swept.code() == 1 && swept.stdout.contains("of deleted users could not be dropped: look for users in"),
        "{swept:?}"
    );
    assert_eq!((standing(&database, &keys[0]).await.as_str(), written(&database).await), ("ready idle", 1));
    database.finish().await;
}
