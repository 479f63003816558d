//! `tenantd hold`, `release`, `retry` and `release-lock`: who may work on a tenant, and when.

use std::time::Duration;

use serde_json::Value;

use crate::fleet::{execute, row, write_migrations};
use crate::life::{events, json, standing, tenants};
use crate::sql::{one, run};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// Goal: a held tenant keeps its version while the others go on, and comes after them once it is released. Method: a newer set; a sweep with one held.
#[tokio::test]
async fn a_held_tenant_keeps_its_version() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text);")]);
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    let keys = tenants(&database, &program, 2).await;
    let plan = program.run(&["hold", &keys[0], "--dry-run"]).await;
    assert_eq!(
        (plan.stdout, standing(&database, &keys[0]).await.as_str()),
        (format!("{} would be held", keys[0]), "ready idle")
    );
    let held = program.run(&["hold", &keys[0], "--why", "support case 4711"]).await;
    assert_eq!((held.code(), held.stdout.as_str()), (0, format!("{} is held", keys[0]).as_str()), "{}", held.stderr);
    let why = format!("select detail from tenantd.event where key = '{}' and what = 'held'", keys[0]);
    assert_eq!(one::<String>(&database.superuser().await, &why).await, "support case 4711");

    write_migrations(folder.path(), &[("0002_more.sql", "alter table log add more text;")]);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(row(&database, &keys[0]).await["version"].as_i64(), Some(1));
    assert_eq!(row(&database, &keys[1]).await["version"].as_i64(), Some(2));
    let released = program.run(&["release", &keys[0], &keys[1], "--json"]).await;
    let said = json(&released);
    assert_eq!(
        (&said["released"][0], &said["not_held"][0]),
        (&Value::from(keys[0].clone()), &Value::from(keys[1].clone()))
    );
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(row(&database, &keys[0]).await["version"].as_i64(), Some(2));
    assert_eq!(events(&database, &keys[0]).await, "held released");
    database.finish().await;
}

/// Goal: failing and parked tenants are due at once with all their tries; others are left and told. Method: rows as a daemon leaves them.
#[tokio::test]
async fn what_failed_is_tried_again() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    let keys = tenants(&database, &program, 4).await;
    let fail = |key: &str, work: &str, more: &str| {
        format!(
            "update tenantd.tenant set work = '{work}', failures = 9, due_at = now() + interval '1 hour'{more} where key = '{key}';"
        )
    };
    let taken = ", leased_by = 'somebody', leased_until = now() + interval '1 hour'";
    let damage = fail(&keys[0], "failing", "") + &fail(&keys[1], "parked", "") + &fail(&keys[2], "failing", taken);
    execute(&database, &damage).await;
    let plan = json(&program.run(&["retry", "--dry-run", "--json"]).await);
    assert_eq!(plan["retried"].as_array().map(Vec::len), Some(2), "{plan}");
    let parked = program.run(&["retry", "--work", "parked"]).await;
    assert_eq!((parked.code(), parked.stdout), (0, format!("{} is due", keys[1])));
    assert_eq!(
        (standing(&database, &keys[0]).await.as_str(), standing(&database, &keys[1]).await.as_str()),
        ("ready failing", "ready due")
    );
    assert_eq!(row(&database, &keys[1]).await["failures"].as_i64(), Some(0));
    let others = program.run(&["retry", &keys[2], &keys[3]]).await;
    assert_eq!(others.stdout.matches("is neither failing nor parked").count(), 2, "{others:?}");
    assert_eq!(program.run(&["retry"]).await.stdout, format!("{} is due", keys[0]));
    assert_eq!(program.run(&["retry"]).await.stdout, "no tenant is failing or parked");
    let unknown = program.run(&["retry", "no-such-key"]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains("there is no tenant"), "{unknown:?}");
    execute(&database, &format!("update tenantd.tenant set leased_by = null, leased_until = null, work = 'due', due_at = now() where key = '{}'", keys[2])).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(events(&database, &keys[1]).await, "retried");
    database.finish().await;
}

/// Goal: leases of processes that are gone are freed, those of a living one stay but by force; locks are named with their holders. Method: a lease
/// of nobody; a running daemon's, by its name; the lock of a tenant's migrations, held in the tenant.
#[tokio::test]
async fn what_the_dead_left_is_freed() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database).setting("signup.notify", "true");
    let keys = tenants(&database, &program, 2).await;
    assert_eq!(program.run(&["release-lock"]).await.stdout, "nobody holds anything");
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let name = "select min(split_part(application_name, ' ', 2)) from pg_stat_activity
                where datname = current_database() and application_name like 'tenantd:daemon %'";
    let living: String = one(&client, name).await;
    let lease = |key: &str, worker: &str| {
        format!(
            "update tenantd.tenant set leased_by = '{worker}', leased_until = now() + interval '1 hour', attempt = 7 where key = '{key}';"
        )
    };
    execute(&database, &(lease(&keys[0], "gone:1:abcd") + &lease(&keys[1], &living))).await;
    let name = database.tenant_name(&keys[1]);
    let lock =
        format!("select pg_advisory_lock(hashtextextended('tenantd.migrate:{}', 0))", database.tenant_schema(&name));
    let locker = database.tenant_superuser(&name).await;
    run(&locker, &lock).await;
    until("the bell to be armed", SOON, async || {
        program.run(&["release-lock", "--dry-run"]).await.stdout.contains("the doorbell")
    })
    .await;

    let shown = json(&program.run(&["release-lock", "--dry-run", "--json"]).await);
    let of =
        |key: &str| shown["leases"].as_array().expect("a list").iter().find(|lease| lease["key"] == key).expect("it");
    assert_eq!((&of(&keys[0])["alive"], &of(&keys[1])["alive"]), (&Value::from(false), &Value::from(true)), "{shown}");
    let locks: Vec<&str> =
        shown["locks"].as_array().expect("a list").iter().filter_map(|lock| lock["what"].as_str()).collect();
    assert_eq!(locks, [format!("migrations of tenant {}", keys[1]).as_str(), "the doorbell"], "{shown}");
    assert_eq!(row(&database, &keys[0]).await["leased_by"], "gone:1:abcd", "shown and left");

    let freed = program.run(&["release-lock"]).await;
    assert!(freed.code() == 0 && freed.stdout.contains("freed") && freed.stdout.contains("stays"), "{freed:?}");
    assert_eq!(row(&database, &keys[0]).await["leased_by"], Value::Null);
    assert_eq!(row(&database, &keys[1]).await["leased_by"], living.as_str());
    assert_eq!(events(&database, &keys[0]).await, "freed");
    assert_eq!(program.run(&["release-lock", "--force"]).await.code(), 2, "by force only one tenant");
    let superuser = program.run(&["release-lock", &keys[1], "--force"]).await;
    assert!(
        superuser.code() == 1 && superuser.stderr.contains("end the session that holds migrations of"),
        "{superuser:?}"
    );
    assert_eq!(row(&database, &keys[1]).await["leased_by"], Value::Null, "the lease was freed all the same");
    drop(locker);
    let own = database.tenant_tenantd(&name).await;
    run(&own, &lock).await;
    let forced = program.run(&["release-lock", &keys[1], "--force"]).await;
    assert!(forced.code() == 0 && forced.stdout.contains("ended"), "{forced:?}");
    assert!(own.query_one("select 1", &[]).await.is_err());
    assert_eq!(daemon.terminate().await.code(), Some(0));
    drop(client);
    database.finish().await;
}

/// Goal: the lease of a dead process on a rollout is shown and freed, so that the next one drives it at once; a living one's stays. Method: the lease
/// of nobody, for an hour, on a rollout that has begun; a sweep by hand drives it afterwards.
#[tokio::test]
async fn a_rollout_of_the_dead_is_freed() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("signup.notify", "true");
    let keys = tenants(&database, &program, 2).await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    assert_eq!(program.run(&["rollout", "pause"]).await.code(), 1, "paused");
    assert_eq!(program.run(&["rollout", "resume"]).await.code(), 0);
    let lease = "update tenantd.rollout set leased_by = 'gone:1:abcd', leased_until = now() + interval '1 hour' where version = 2";
    execute(&database, lease).await;
    let shown = json(&program.run(&["release-lock", "--dry-run", "--json"]).await);
    let only = &shown["leases"][0];
    assert_eq!((&only["what"], &only["key"]), (&Value::from("the rollout to version 2"), &Value::Null), "{shown}");
    let freed = program.run(&["release-lock"]).await;
    assert!(freed.stdout.contains("the rollout to version 2") && freed.stdout.contains("freed"), "{freed:?}");
    assert_eq!(program.run(&["release-lock"]).await.stdout, "nobody holds anything");
    let told = "select detail from tenantd.event where what = 'freed' and key is null";
    let client = database.superuser().await;
    let told: String = one(&client, told).await;
    assert_eq!(told, "a lease of gone:1:abcd on the rollout to version 2");
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for key in &keys {
        assert_eq!(row(&database, key).await["version"], 2);
    }
    drop(client);
    database.finish().await;
}
