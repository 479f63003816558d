//! `tenantd sync`: a sweep of all, or of some alone, which leaves everything else as it is.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tenantd::tenant::spare_name;

use crate::fleet::{execute, write_migrations};
use crate::support::audit::Finding;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;

async fn scene() -> (TestDatabase, Program) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    (database, program)
}

/// State and work of every tenant.
async fn standing(database: &TestDatabase) -> BTreeMap<String, String> {
    let select = "select key, state || ' ' || work from tenantd.tenants";
    let rows = database.superuser().await.query(select, &[]).await.expect("look");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn object(output: &Output, code: i32) -> Value {
    assert_eq!(output.code(), code, "{output:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Goal: a sweep of some looks at these alone, and a sweep of all at everything. Method: four signups, one of them unseen by the trigger, and a
/// half-made database that nobody makes; one by its key, two by a filter, then all.
#[tokio::test]
async fn some_are_swept_and_then_all() {
    let (database, program) = scene().await;
    let program = program.setting("signup.on_delete", "drop");
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let (one, two, three) = (database.sign_up("1").await, database.sign_up("2").await, database.sign_up("3").await);
    execute(&database, "alter table public.users disable trigger tenantd_signup").await;
    database.sign_up("4").await;
    execute(&database, "alter table public.users enable trigger tenantd_signup").await;
    let stray = spare_name();
    execute(&database, &format!("insert into tenantd.spare (name) values ('{stray}')")).await;
    let make = database.meant(&format!("create database {stray}"));
    database.tenantd().await.batch_execute(&make).await.expect("make a stray");
    execute(&database, &format!("insert into tenantd.departure (key) values ('{one}')")).await;
    let departures = async || {
        let client = database.superuser().await;
        client.query_one("select count(*) from tenantd.departure", &[]).await.expect("count").get::<_, i64>(0)
    };
    let dry = program.run(&["sync", &one[..8], "--dry-run"]).await;
    assert_eq!(
        (dry.code(), dry.stdout.as_str()),
        (0, "no tenant"),
        "a signup that nobody took in is no row yet: {dry:?}"
    );
    let report = object(&program.run(&["sync", &one[..8], "--json"]).await, 0);
    let numbers =
        ["chosen", "made", "users_without_tenant", "strays_dropped"].map(|name| report[name].as_i64().expect(name));
    assert_eq!(numbers, [1, 1, 0, 0], "{report}");
    let expected = [(one.clone(), "ready idle"), (two.clone(), "requested due"), (three.clone(), "requested due")];
    assert_eq!(standing(&database).await, expected.map(|(key, standing)| (key, standing.to_owned())).into());
    let again = program.run(&["sync", &one]).await.stdout;
    assert!(again.starts_with("nothing to do: none of these tenants needs a look ("), "{again}");
    execute(
        &database,
        &format!("update tenantd.tenant set work = 'parked', failures = 9 where key in ('{one}', '{two}')"),
    )
    .await;
    let dry = program.run(&["sync", "--work", "parked", "--dry-run"]).await.stdout;
    let mut lines = [(&one, "looked at"), (&two, "made")].map(|(key, what)| format!("{key} would be {what}"));
    lines.sort();
    assert_eq!(dry, [lines.as_slice(), &["2 tenants".to_owned()]].concat().join("\n"));
    assert_eq!(standing(&database).await[&two], "requested parked", "nothing was done");
    let dry = object(&program.run(&["sync", "--name", &format!("{two}*"), "--dry-run", "--json"]).await, 0);
    assert_eq!(dry, json!({ "format": 1, "chosen": [{ "key": two, "making": true }] }));
    let report = object(&program.run(&["sync", "--work", "parked", "--json"]).await, 0);
    assert_eq!((&report["chosen"], &report["ready"], &report["made"]), (&json!(2), &json!(2), &json!(1)));
    assert_eq!(standing(&database).await[&three], "requested due");
    assert_eq!(departures().await, 1, "deleted users are not followed by a sweep of some");
    let report = object(&program.run(&["sync", "--json"]).await, 0);
    assert_eq!(departures().await, 0);
    let numbers =
        ["chosen", "made", "users_without_tenant", "strays_dropped"].map(|name| report[name].as_i64().expect(name));
    assert_eq!(numbers, [2, 2, 1, 1], "{report}");
    let unknown = program.run(&["sync", "nobody"]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains("there is no tenant \"nobody\""), "{unknown:?}");
    database.finish().await;
}

/// Goal: a sweep of some takes no migration past its rollout, and says who waits. Method: two tenants, a new file, one of them swept.
#[tokio::test]
async fn a_sweep_of_some_leaves_a_rollout_to_others() {
    let (database, program) = scene().await;
    let keys = [database.sign_up("1").await, database.sign_up("2").await];
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_a.sql", "create table a ();")]);
    let program = program.setting("tenant.migrations", &folder.path().display().to_string());
    assert_eq!(program.run(&["sync"]).await.code(), 0);
    write_migrations(folder.path(), &[("0002_b.sql", "create table b ();")]);
    let versions = async || {
        let rows = database.superuser().await.query("select version from tenantd.tenant order by version", &[]).await;
        rows.expect("look").iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>()
    };
    let one = object(&program.run(&["sync", &keys[0], "--json"]).await, 1);
    let told = (&one["chosen"], &one["rollout"]["state"], &one["rollout"]["version"], &one["rollout"]["waiting"]);
    assert_eq!(told, (&json!(0), &json!("running"), &json!(2), &json!(1)), "{one}");
    assert_eq!(versions().await, [1, 1]);
    assert_eq!(object(&program.run(&["sync", "--json"]).await, 0)["migrated"], 2);
    assert_eq!(versions().await, [2, 2]);
    database.finish().await;
}

/// Goal: what is chosen among very many is read page by page. Method: a thousand rows, of which a filter chooses some in every page.
#[tokio::test]
async fn some_of_very_many_are_chosen() {
    let database = TestDatabase::new().await.allow(Finding::ReadyWithoutDatabase);
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let rows = "insert into tenantd.tenant (key, work, version)
                select md5(n::text)::uuid::text, case when n % 10 = 0 then 'held' else 'due' end, n % 3 from generate_series(1, 1000) n";
    execute(&database, rows).await;
    let chosen = async |arguments: &[&str]| {
        let chosen = object(&program.run(&[&["sync", "--dry-run", "--json"], arguments].concat()).await, 0);
        let keys: Vec<String> =
            chosen["chosen"].as_array().expect("a list").iter().map(|one| one["key"].to_string()).collect();
        assert!(keys.is_sorted_by(|one, next| one < next), "each once, in order");
        keys.len()
    };
    assert_eq!(chosen(&[]).await, 900);
    assert_eq!(chosen(&["--version", "1"]).await, 300);
    assert_eq!(chosen(&["--work", "held"]).await, 0, "held ones are left alone");
    database.finish().await;
}
