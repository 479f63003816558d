//! `tenantd create`: tenants without a signup, made by the command itself or by whoever is quicker.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet::{enter, execute, row};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const ONE: &str = "00000000-0000-4000-8000-000000000001";
const TWO: &str = "00000000-0000-4000-8000-000000000002";

async fn scene() -> (TestDatabase, Program) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    (database, program)
}

#[track_caller]
fn object(output: &Output, code: i32) -> Value {
    assert_eq!(output.code(), code, "{output:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

async fn number(database: &TestDatabase, select: &str) -> i64 {
    database.superuser().await.query_one(select, &[]).await.unwrap_or_else(|error| panic!("{select}: {error:?}")).get(0)
}

/// Goal: without any daemon a tenant is made and its URL leads into it; the history says who asked. Method: a dry run, two keys, the same again.
#[tokio::test]
async fn tenants_are_made_without_a_daemon() {
    let (database, program) = scene().await;
    let name = database.tenant_name(ONE);
    let dry = program.run(&["create", ONE, "--dry-run"]).await;
    assert_eq!((dry.code(), dry.stdout), (0, format!("{ONE}: {} {name}: make, hand over", database.isolation())));
    let dry = object(&program.run(&["create", ONE, "--dry-run", "--json"]).await, 0);
    assert_eq!(dry["tenants"], json!([{ "key": ONE, "name": name, "steps": ["make", "hand over"] }]));
    assert_eq!(number(&database, "select count(*) from tenantd.tenant").await, 0, "nothing was changed");
    let made = program.run(&["create", ONE, TWO, ONE]).await;
    let urls = [ONE, TWO].map(|key| url(&database, key));
    assert_eq!((made.code(), made.stdout, made.stderr), (0, urls.join("\n"), String::new()));
    enter(&database, &database.url(), &name).await.expect("enter it").close().await;
    let created = "select count(*) from tenantd.event where what = 'created' and who like '%@%' and key in (select key from tenantd.tenant)";
    assert_eq!(number(&database, created).await, 2);
    let again = program.run(&["create", ONE]).await;
    let told = format!("tenant {ONE} is there already, and ready");
    assert_eq!((again.code(), again.stdout, again.stderr), (0, urls[0].clone(), told));
    let again = object(&program.run(&["create", ONE, "--json"]).await, 0);
    assert_eq!(
        again,
        json!({ "format": 1, "tenants": [{ "key": ONE, "created": false, "name": name, "url": urls[0] }], "unreached": 0 })
    );
    assert_eq!(number(&database, created).await, 2, "nothing was asked for anew");
    database.finish().await;
}

/// What `tenantd url` says.
fn url(database: &TestDatabase, key: &str) -> String {
    format!("postgresql://tenantd{}", database.tenant_url(&database.tenant_name(key)))
}

/// Goal: what cannot be made is refused before anything is, or told with its reason; nobody else's database is touched. Method: bad keys, a held
/// tenant, a deleted one, a foreign database of the name.
#[tokio::test]
async fn what_cannot_be_made_is_told() {
    let (database, program) = scene().await;
    for key in ["42", "00000000-0000-4000-8000-00000000000A", "x\u{1b}[2J"] {
        let refused = program.run(&["create", TWO, key]).await;
        assert!(
            refused.code() == 2 && refused.stderr.contains("is no uuid in the form Postgres prints it"),
            "{refused:?}"
        );
        assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
    }
    execute(&database, &format!("insert into tenantd.tenant (key, work) values ('{ONE}', 'held')")).await;
    let refused = program.run(&["create", TWO, ONE]).await;
    let says = format!("tenant {ONE} is there already, and not ready: requested, its work held\nhint: --if-missing");
    assert!(refused.code() == 2 && refused.stderr.contains(&says), "{refused:?}");
    assert_eq!(number(&database, "select count(*) from tenantd.tenant").await, 1, "nothing was begun");
    let late = object(&program.run(&["create", ONE, "--if-missing", "--timeout", "200ms", "--json"]).await, 1);
    let text = late["tenants"][0]["error"]["text"].as_str().expect("why");
    assert!(text.contains("after 200 ms tenant") && text.contains("its work held"), "{text}");
    let mut waiting = program.start_with(&["create", ONE, "--if-missing", "--timeout", "1h"]);
    let listening = "select count(*) from pg_stat_activity where application_name like 'tenantd:create %' and query ilike 'listen %'
                     and datname = current_database()";
    until("it waits", SOON, async || number(&database, listening).await > 0).await;
    waiting.signal(Signal::INT);
    assert_eq!(waiting.ended(SOON).await.code(), Some(1));
    assert!(
        waiting.lines().iter().any(|line| line.contains("interrupted before it was ready")),
        "{:?}",
        waiting.lines()
    );
    waiting.kill();
    execute(&database, &format!("update tenantd.tenant set state = 'deleted', work = 'idle' where key = '{ONE}'"))
        .await;
    assert_eq!(program.run(&["create", ONE]).await.code(), 0, "a deleted one is made anew");
    let name = database.tenant_name(TWO);
    database.outside(&format!("create database {name}")).await;
    for arguments in [["create", TWO, "--dry-run"].as_slice(), &["create", TWO]] {
        let refused = program.run(arguments).await;
        assert!(refused.code() == 1 && refused.stderr.contains("does not bear this registry's marker"), "{refused:?}");
    }
    assert_eq!(row(&database, TWO).await["work"], "parked");
    database.outside(&format!("drop database {name}")).await;
    assert_eq!(program.run(&["create", TWO, "--if-missing"]).await.code(), 0, "once mended it is made");
    let without = program.clone().setting("main.url", &database.url().replace(database.name(), "postgres"));
    let refused = without.run(&["create", ONE]).await;
    assert!(refused.code() == 2 && refused.stderr.contains("`tenantd setup` installs it"), "{refused:?}");
    database.finish().await;
}

/// Goal: beside daemons each tenant is made once, whoever is quicker. Method: two daemons, and four commands with the same keys at once.
#[tokio::test]
async fn beside_daemons_each_is_made_once() {
    let (database, program) = scene().await;
    let daemons = [program.start(), program.start()];
    for daemon in &daemons {
        daemon.wait_for_line("tenantd is at work", SOON).await;
    }
    let keys: Vec<String> = (1..=4).map(|number| format!("00000000-0000-4000-8000-00000000000{number}")).collect();
    let create = async || {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        program.run(&[&["create", "--if-missing"], keys.as_slice()].concat()).await
    };
    let all = futures_util::future::join_all((0..4).map(|_| create())).await;
    for output in all {
        assert!(output.code() == 0 && output.stdout.lines().count() == 4, "{output:?}");
    }
    assert_eq!(database.tenant_databases().await.len(), 4);
    assert_eq!(number(&database, "select count(*) from tenantd.event where what = 'created'").await, 4);
    for daemon in daemons {
        assert!(daemon.terminate().await.success());
    }
    database.finish().await;
}
