//! `tenantd doctor` as an operator runs it: on a server that is well, and with each thing wrong that it looks for.

use serde_json::Value;
use tenantd::commands::doctor::{Check, before};
use tenantd::commands::given::Given;
use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::provision::scratch::Scratch;
use tenantd::tasks::Tasks;

use crate::fleet::{Fleet, config, execute, oid, write_migrations};
use crate::support::daemon::{Output, Program};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};

/// Signups are polled for, as they should be where transactions can be prepared.
fn program(database: &TestDatabase) -> Program {
    Program::for_database(database).unset("signup.notify").setting("log.format", "text")
}

fn object(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What was looked at, each as `verdict check`; the room on the disk of this machine is nobody's promise.
fn verdicts(output: &Output) -> Vec<String> {
    let object = object(output);
    let checks = object["checks"].as_array().expect("a list").iter().map(|found| {
        format!("{} {}", found["verdict"].as_str().expect("a word"), found["check"].as_str().expect("a word"))
    });
    checks.filter(|found| !found.ends_with(" disk")).collect()
}

/// What was found at `check`.
fn at<'a>(object: &'a Value, check: &str) -> &'a Value {
    let checks = object["checks"].as_array().expect("a list");
    checks.iter().find(|found| found["check"] == check).unwrap_or_else(|| panic!("no {check}: {object}"))
}

const ALL_WELL: [&str; 17] = [
    "ok connection",
    "ok tls",
    "ok server",
    "ok writes",
    "ok rights",
    "ok signup",
    "ok registry",
    "ok migrations",
    "ok listen",
    "ok notify",
    "ok clone",
    "ok collation",
    "ok connections",
    "ok room",
    "ok clock",
    "ok autovacuum",
    "ok pg_dump",
];

/// Goal: on a server that is well nothing is wrong, before setup as after it, and nothing is left behind. Method: the built program, as text
/// and as JSON; the scratch database is looked for by the name that was told, or written down.
#[tokio::test]
async fn a_server_that_is_well_is_told_so() {
    let database = TestDatabase::new().await;
    let program = program(&database);
    let bare = program.run(&["doctor", "--json"]).await;
    assert_eq!((bare.code(), verdicts(&bare).as_slice()), (0, &ALL_WELL.map(str::to_owned)[..]), "{bare:?}");
    let found = object(&bare);
    assert_eq!((&found["format"], &found["ok"]), (&Value::from(1), &Value::from(true)));
    assert!(at(&found, "registry")["text"].as_str().expect("a text").starts_with("not installed yet"), "{found}");
    let by_schema = database.isolation() == Isolation::Schema;
    let made = |from: &str| if by_schema { "a scratch schema was made".to_owned() } else { format!("from {from}") };
    assert!(at(&found, "clone")["text"].as_str().expect("a text").contains(&made("template0")), "{found}");
    if !by_schema {
        let scratch = bare.stderr.split("tenantd_spare_").nth(1).expect("its name is told");
        let scratch: String = scratch.chars().take_while(char::is_ascii_hexdigit).collect();
        assert_eq!(oid(&database, &format!("tenantd_spare_{scratch}")).await, None, "{bare:?}");
    }
    let table: Option<String> = database
        .superuser()
        .await
        .query_one("select to_regclass('tenantd.tenant')::text", &[])
        .await
        .expect("look")
        .get(0);
    assert_eq!(table, None, "doctor installs nothing");

    assert_eq!(program.run(&["setup"]).await.code(), 0);
    database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let installed = program.run(&["doctor", "--json"]).await;
    assert_eq!((installed.code(), verdicts(&installed).len()), (0, 17), "{installed:?}");
    let found = object(&installed);
    assert!(at(&found, "clone")["text"].as_str().expect("a text").contains(&made("tenantd_template_")), "{found}");
    assert_eq!(
        at(&found, "room")["text"].as_str().map(|text| text.starts_with("1 tenant of 2000")),
        Some(true),
        "{found}"
    );
    let written = "select count(*) from tenantd.spare";
    assert_eq!(database.superuser().await.query_one(written, &[]).await.expect("count").get::<_, i64>(0), 0);

    let quick = program.run(&["doctor", "--quick"]).await;
    assert_eq!(quick.code(), 0, "{quick:?}");
    assert!(!quick.stdout.contains("scratch") && quick.stdout.contains("\nNothing is wrong"), "{quick:?}");
    let first = quick.stdout.lines().next().expect("a line");
    assert!(first.starts_with("ok       connection   tenantd@127.0.0.1:"), "{first}");
    database.finish().await;
}

/// Goal: each right that is missing is named at once, with what gives it, and nothing else suffers. Method: a role that has none.
#[tokio::test]
async fn everything_that_is_missing_is_named_at_once() {
    let database = TestDatabase::new().await;
    let (role, owner) = (format!("{}role", database.prefix()), format!("{}owner", database.prefix()));
    let bare = format!(
        "create role {role} login password '{TENANTD_PASSWORD}' connection limit 9; create role {owner} nologin; drop schema tenantd"
    );
    execute(&database, &bare).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("first.sql", "select 1;")]);
    // What tests start programs by, and no pg_dump.
    let path = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink("/usr/bin/setpriv", path.path().join("setpriv")).expect("a link");
    let program = program(&database)
        .setting("main.url", &database.url().replacen("tenantd:", &format!("{role}:"), 1))
        .setting("tenant.owner", &owner)
        .setting("tenant.use", "ghost")
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("work.connections", "12")
        .variable("PATH", &path.path().display().to_string());
    let found = program.run(&["doctor", "--json"]).await;
    assert_eq!(found.code(), 1, "{found:?}");
    let wrong: Vec<String> = verdicts(&found).into_iter().filter(|found| !found.starts_with("ok")).collect();
    let expected = [
        "wrong rights",
        "wrong rights",
        "wrong rights",
        "wrong rights",
        "wrong signup",
        "wrong migrations",
        "wrong clone",
        "wrong connections",
        "warning pg_dump",
    ];
    assert_eq!(wrong, expected, "{found:?}");
    let text = program.run(&["doctor"]).await;
    for said in [
        "the server has no role ghost".to_owned(),
        database.let_make(&role),
        format!("grant \"{owner}\" to \"{role}\""),
        format!("create schema tenantd authorization \"{role}\""),
        format!("grant select (\"id\"), trigger on \"public\".\"users\" to \"{role}\""),
        "first.sql".to_owned(),
        "start pg_dump".to_owned(),
        "8 wrong; 1 warning".to_owned(),
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&text.stdout).contains(&words(&said)), "{said}: {}", text.stdout);
    }
    execute(&database, &format!("drop role {role}; drop role {owner}; create schema tenantd authorization tenantd"))
        .await;
    database.finish().await;
}

/// Goal: without a connection the rest is unknown, and the exit code says so. Method: a wrong password, a port where nobody listens.
#[tokio::test]
async fn without_a_connection_the_rest_is_unknown() {
    let database = TestDatabase::new().await;
    let address = database.server().address().to_string();
    for url in [database.url().replace("swordfish", "wrong"), database.url().replace(&address, "127.0.0.1:1")] {
        let found = program(&database).setting("main.url", &url).run(&["doctor", "--json"]).await;
        assert_eq!(found.code(), 3, "{found:?}");
        let verdicts = verdicts(&found);
        assert_eq!(verdicts[0], "wrong connection", "{verdicts:?}");
        let known: Vec<&String> = verdicts[1..].iter().filter(|found| !found.starts_with("unknown")).collect();
        assert_eq!(known, ["ok migrations"]);
        assert!(at(&object(&found), "connection")["advice"].is_string(), "{found:?}");
    }
    database.finish().await;
}

/// Goal: a registry that is damaged or another database's is told, and does not stop the rest. Method: drop a table; then another oid.
#[tokio::test]
async fn a_registry_that_cannot_serve_is_wrong() {
    let database = TestDatabase::new().await;
    let program = program(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    for (harm, said) in [
        ("drop table tenantd.event", "it lacks event"),
        ("update tenantd.registry set database_oid = 1", "was made for another one"),
    ] {
        execute(&database, harm).await;
        let found = program.run(&["doctor", "--json"]).await;
        let registry = at(&object(&found), "registry").clone();
        assert_eq!((found.code(), &registry["verdict"]), (1, &Value::from("wrong")), "{found:?}");
        assert!(
            registry["text"].as_str().expect("a text").contains(said) && registry["advice"].is_string(),
            "{registry}"
        );
        assert_eq!(verdicts(&found).iter().filter(|found| found.starts_with("wrong")).count(), 1, "{found:?}");
        if said.contains("event") {
            assert_eq!(program.run(&["setup"]).await.code(), 0);
        }
    }
    execute(
        &database,
        "update tenantd.registry set database_oid = (select oid from pg_database where datname = current_database())",
    )
    .await;
    database.finish().await;
}

/// Goal: a command that asks doctor first is refused for what it asked about, and for nothing else. Method: migrations are well, the role may
/// not make databases.
#[tokio::test]
async fn a_command_is_refused_for_what_is_wrong() {
    let database = TestDatabase::new().await;
    let role = format!("{}role", database.prefix());
    execute(
        &database,
        &format!("create role {role} login password '{TENANTD_PASSWORD}'; grant tenant_owner to {role}"),
    )
    .await;
    let url = database.url().replacen("tenantd:", &format!("{role}:"), 1);
    let tasks = Tasks::new();
    let given =
        Given::new(config(&database, &[("main.url", &url)]).into(), "test", tasks.clone(), false).expect("given");
    before(&given, &[Check::Server, Check::Tls, Check::Migrations]).await.expect("nothing is wrong with these");
    let refused = before(&given, &[Check::Server, Check::Rights]).await.expect_err("it may not make databases");
    assert_eq!(refused.kind(), Kind::Usage, "{}", refused.chain());
    assert!(refused.chain().starts_with("not begun, since something is wrong: rights: "), "{}", refused.chain());
    assert!(refused.advice().is_some_and(|advice| advice.contains(&database.let_make(&role))), "{refused:?}");
    drop(given);
    assert!(tasks.stop(std::time::Duration::from_secs(10)).await.is_empty());
    execute(&database, &format!("drop role {role}")).await;
    database.finish().await;
}

/// Goal: a scratch database that a command is at work in is nobody's stray; one that it left is dropped. Method: a sweep with one of each.
#[tokio::test]
async fn a_scratch_database_is_a_stray_only_when_its_time_is_over() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let config = &fleet.context.config;
    let in_use = Scratch::make(fleet.registry(), config, None).await.expect("make one");
    let left = Scratch::make(fleet.registry(), config, None).await.expect("make another");
    let over = format!("update tenantd.spare set scratch_until = now() where name = '{}'", left.name());
    execute(&database, &over).await;
    assert_eq!(fleet.registry().fleet().await.expect("read").strays, 1);
    assert_eq!(fleet.sweep().await.strays, 1);
    assert_eq!(oid(&database, left.name()).await, None);
    assert!(oid(&database, in_use.name()).await.is_some());
    in_use.discard(fleet.registry()).await.expect("drop it");
    fleet.close().await;
    database.finish().await;
}
