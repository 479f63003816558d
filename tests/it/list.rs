//! `tenantd list` over five hundred tenants and over a few: order, pages, filters, sizes, what is shown of each.

use serde_json::{Value, json};
use tenantd::config::Isolation;

use crate::fleet::execute;
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

async fn scene(rows: &str) -> (TestDatabase, Program) {
    let database = TestDatabase::new().await.allow(Finding::ReadyWithoutDatabase);
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    execute(&database, rows).await;
    (database, program)
}

async fn shown(program: &Program, arguments: &[&str]) -> String {
    let output = program.run(&[&["list"], arguments].concat()).await;
    assert_eq!((output.code(), output.stderr.as_str()), (0, ""), "{output:?}");
    output.stdout
}

async fn object(program: &Program, arguments: &[&str]) -> Value {
    let text = shown(program, &[&["--json"], arguments].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn keys(object: &Value) -> Vec<&str> {
    object["tenants"].as_array().expect("a list").iter().map(|tenant| tenant["key"].as_str().expect("a key")).collect()
}

const A_FEW: &str = "
insert into tenantd.tenant (key, name, state, work, version, failures, error_kind, error_text, error_sqlstate, error_step, created_at) values
('a', 'tenant_a', 'ready', 'idle', 12, 0, null, null, null, null, now() - interval '3 days'),
('b', 'tenant_b', 'ready', 'failing', 2, 3, 'migration', E'it broke\\nhint: mend it', '23514', 'migrate', now() - interval '9 days'),
(E'c\\x1b[2J', null, 'requested', 'held', null, 0, null, null, null, null, now() - interval '40 days'),
('d', 'tenant_d', 'deleted', 'idle', 2, 0, null, null, null, null, now() - interval '50 days')";

/// Goal: the table and the object show what there is, for people without what could command a terminal. Method: one tenant of each kind.
#[tokio::test]
async fn a_few_are_shown_whole() {
    let (database, program) = scene(A_FEW).await;
    let expected = "\
KEY         STATE      WORK     VERSION       AGE
a           ready      idle          12   3 d 0 h
b           ready      failing        2   9 d 0 h
c\\u{1b}[2J  requested  held           -  40 d 0 h
3 tenants";
    assert_eq!(shown(&program, &[]).await, expected.to_owned());
    assert_eq!(
        shown(&program, &["--name", "tenant_?", "--limit", "1", "--sort", "age", "--reverse"]).await.lines().last(),
        Some("1 of 2 tenants")
    );
    assert_eq!(shown(&program, &["--name", "nobody*"]).await, "no tenant");
    let mut whole = object(&program, &["--work", "failing"]).await;
    for moment in ["created_at", "age_seconds"] {
        assert!(!whole["tenants"][0][moment].take().is_null());
    }
    assert_eq!(
        whole,
        json!({
            "format": 1,
            "total": 1,
            "tenants": [{
                "key": "b", "name": "tenant_b", "state": "ready", "work": "failing", "version": 2, "failures": 3, "cluster": "main",
                "error": { "kind": "migration", "text": "it broke\nhint: mend it", "sqlstate": "23514", "step": "migrate" },
                "created_at": null, "age_seconds": null, "ready_at": null, "migrated_at": null, "leased_by": null,
            }],
        })
    );
    assert_eq!(object(&program, &["--name", "nobody*"]).await, json!({ "format": 1, "tenants": [], "total": 0 }));
    assert_eq!(keys(&object(&program, &["--state", "deleted"]).await), ["d"]);
    for (arguments, says) in [
        (["list", "--state", "cooking"], "requested, ready, deleting, deleted"),
        (["list", "--work", "hard"], "idle, due, failing, parked, held"),
        (["list", "--sort", "colour"], "key, age, version, size, name, failures"),
        (["list", "--limit", "0"], "0 is not in 1.."),
    ] {
        let output = program.run(&arguments).await;
        assert!(output.code() == 2 && output.stderr.contains(says), "{output:?}");
    }
    database.finish().await;
}

/// Goal: five hundred and more come in every order, each once, whatever the page. Method: twelve hundred rows, so that there are pages, beside
/// the same order in SQL.
#[tokio::test]
async fn many_are_listed_in_order() {
    let (database, program) = scene(
        "insert into tenantd.tenant (key, name, state, work, version, failures, created_at)
         select md5(n::text)::uuid::text, case when n % 7 > 0 then 'tenant_' || n end, 'ready', 'idle', nullif(n % 4, 0), n % 3,
                now() - (n / 10) * interval '1 minute' from generate_series(1, 1200) n",
    )
    .await;
    let client = database.superuser().await;
    for (sort, order) in [
        ("key", ["key"; 2]),
        ("age", ["created_at desc", "key desc"]),
        ("version", ["coalesce(version, 0)", "key"]),
        ("name", ["coalesce(name, '')", "key"]),
        ("failures", ["failures", "key"]),
    ] {
        let select = format!("select key from tenantd.tenant order by {}", order.join(", "));
        let mut expected: Vec<String> =
            client.query(&select, &[]).await.expect(&select).iter().map(|row| row.get(0)).collect();
        let forward = object(&program, &["--sort", sort]).await;
        assert_eq!(
            (keys(&forward), &forward["total"]),
            (expected.iter().map(String::as_str).collect(), &json!(1200)),
            "{sort}"
        );
        expected.reverse();
        let back = object(&program, &["--sort", sort, "--reverse", "--limit", "700"]).await;
        assert_eq!(keys(&back), expected[..700], "{sort}");
    }
    let table = shown(&program, &[]).await;
    assert_eq!((table.lines().count(), table.lines().last()), (1202, Some("1200 tenants")));
    drop(client);
    database.finish().await;
}

/// Goal: sizes are those of the tenants' own databases, and sort. Method: two tenants, one of them filled; one whose database is gone.
#[tokio::test]
async fn sizes_are_measured_and_sorted() {
    let (database, program) = scene("select").await;
    let mut made = [database.sign_up("one@example.org").await, database.sign_up("two@example.org").await];
    made.sort();
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    execute(&database, "insert into tenantd.tenant (key, name, state, work, database_oid) values ('gone', 'nobody', 'ready', 'idle', 2)").await;
    let filling = database.tenant_superuser(&database.tenant_name(&made[0])).await;
    filling
        .batch_execute("create table filler as select repeat('x', 100) from generate_series(1, 20000)")
        .await
        .expect("fill it");
    drop(filling);
    let new = database.sign_up("three@example.org").await;
    let largest = object(&program, &["--sort", "size", "--reverse", "--limit", "2"]).await;
    assert_eq!((keys(&largest), &largest["total"]), (made.iter().map(String::as_str).collect(), &json!(4)));
    let bytes = |nth: usize| largest["tenants"][nth]["bytes"].as_i64().expect("a size");
    let empty = if database.isolation() == Isolation::Database { 5_000_000 } else { 40_000 };
    assert!(bytes(0) > bytes(1) + 2_000_000 && bytes(1) > empty, "{largest}");
    let table = shown(&program, &["--size"]).await;
    let line = |key: &str| {
        table.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {table}")).to_owned()
    };
    assert!(line("KEY").ends_with(" SIZE") && line(&made[0]).ends_with(" MB"), "{table}");
    assert!(
        line("gone").ends_with(" -") && line(&new).contains("requested  due") && line(&new).ends_with(" -"),
        "{table}"
    );
    database.finish().await;
}
