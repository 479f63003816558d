//! `tenantd wait`: for a tenant that is made, that is not there yet, that cannot be made.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet::execute;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

async fn scene() -> (TestDatabase, Program) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    (database, program)
}

/// Goal: a wait that begins before the signup ends with the tenant ready. Method: two waits for a key that nobody has, by all of it and by its
/// beginning; then the signup, and a sweep that makes the tenant.
#[tokio::test]
async fn a_tenant_to_come_is_waited_for() {
    let (database, program) = scene().await;
    let key = "00000000-0000-4000-8000-000000000001";
    let waits = [key, &key[..13]].map(|word| program.start_with(&["wait", word, "--timeout", "1m"]));
    let listening =
        "select count(*) from pg_stat_activity where application_name like 'tenantd:wait %' and query ilike 'listen %'
                     and datname = current_database()";
    let client = database.superuser().await;
    until("both listen", SOON, async || client.query_one(listening, &[]).await.expect("look").get::<_, i64>(0) == 2)
        .await;
    execute(&database, &format!("insert into public.users (id, email) values ('{key}', 'one@example.org')")).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for mut wait in waits {
        assert_eq!(wait.ended(SOON).await.code(), Some(0));
        assert_eq!(wait.stdout(), format!("{key} is ready"));
        assert!(wait.finish().await.success());
    }
    let output = program.run(&["wait", key, "--timeout", "0s", "--json"]).await;
    let object: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let facts = ["format", "key", "ready", "state", "version"].map(|name| &object[name]);
    assert_eq!((output.code(), facts), (0, [&json!(1), &json!(key), &json!(true), &json!("ready"), &json!(1)]));
    drop(client);
    database.finish().await;
}

/// Goal: a wait in vain says why, with 1; one that cannot be meant, with 2. Method: a parked tenant, a held one, nobody, several.
#[tokio::test]
async fn a_wait_in_vain_says_why() {
    let (database, program) = scene().await;
    execute(
        &database,
        "insert into tenantd.tenant (key, work, error_kind, error_text) values
         ('parked-1', 'parked', 'bad_key', E'the key is no uuid\\nhint: use uuids'), ('held-1', 'held', null, null), ('held-2', 'held', null, null)",
    )
    .await;
    let table = [
        (
            ["wait", "parked-1", "--timeout", "1h"],
            1,
            "tenantd: tenant parked-1 is parked, out of tries: bad key: the key is no uuid\nhint: use uuids\nhint: mend ",
        ),
        (
            ["wait", "held-1", "--timeout", "100ms"],
            1,
            "tenantd: after 100 ms tenant held-1 is requested, its work held\nhint: ",
        ),
        (["wait", "nobody", "--timeout", "100ms"], 1, "tenantd: after 100 ms there is no tenant \"nobody\""),
        (["wait", "held", "--timeout", "1h"], 2, "tenantd: \"held\" means several tenants: held-1, held-2\nhint: "),
        (["wait", "held-1", "--timeout", "soon"], 2, "error: invalid value 'soon'"),
    ];
    for (arguments, code, says) in table {
        let output = program.run(&arguments).await;
        assert!(output.code() == code && output.stderr.starts_with(says) && output.stdout.is_empty(), "{output:?}");
    }
    let output = program.run(&["wait", "nobody", "--timeout", "100ms", "--json"]).await;
    let object: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!((output.code(), object), (1, json!({ "format": 1, "key": "nobody", "state": null, "ready": false })));
    execute(&database, "drop schema tenantd cascade").await;
    let output = program.run(&["wait", "nobody"]).await;
    assert!(output.code() == 2 && output.stderr.contains("`tenantd setup` installs it"), "{output:?}");
    database.finish().await;
}
