//! `tenantd show` and `tenantd events`: everything that is known of a tenant, and what was done to it.

use std::time::Duration;

use serde_json::{Value, json};
use tenantd::config::Isolation;

use crate::fleet::execute;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// A main database with one tenant, made by a sweep, whose every moment is known.
async fn scene() -> (TestDatabase, Program, String) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    execute(
        &database,
        "update tenantd.tenant set created_at = '2020-01-01 00:00:00Z', ready_at = '2020-01-01 00:00:00.25Z', verified_at = '2020-01-02 00:00:00Z'",
    )
    .await;
    let inside = database.tenant_superuser(&database.tenant_name(&key)).await;
    let history = "update tenantd_migration set started_at = '2020-01-01 00:00:00Z', applied_at = '2020-01-01 00:00:00.011Z', applied_by = 'vm:1:ab'";
    inside.batch_execute(history).await.expect("change the history");
    (database, program, key)
}

fn object(output: &Output) -> Value {
    assert_eq!((output.code(), output.stderr.as_str()), (0, ""), "{output:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The text with what differs from run to run by its name.
async fn shown(database: &TestDatabase, program: &Program, key: &str) -> String {
    let output = program.run(&["show", key]).await;
    assert_eq!((output.code(), output.stderr.as_str()), (0, ""), "{output:?}");
    let text = output.stdout.replace(&database.tenant_name(key), "NAME").replace(key, "KEY");
    let masked = |line: &str| match line.split(", ").collect::<Vec<_>>().as_slice() {
        [at, _] if line.starts_with("Signed up") => format!("{at}, AGE"),
        [name, size, rest @ ..] if size.ends_with(" MB") || size.ends_with(" kB") => {
            format!("{name}, SIZE, {}", rest.join(", "))
        }
        _ => line.to_owned(),
    };
    text.lines().map(masked).collect::<Vec<_>>().join("\n")
}

/// Goal: what is as it should be is shown whole. Method: one tenant with two events.
#[tokio::test]
async fn a_ready_tenant_is_shown_whole() {
    let (database, program, key) = scene().await;
    let events = format!(
        "insert into tenantd.event (happened_at, key, what, who, detail) values
         ('2020-01-03Z', '{key}', 'held', 'alice@host', 'for the audit'), ('2020-01-04Z', '{key}', 'released', 'bob@host', null),
         ('2020-01-05Z', 'another', 'held', 'bob@host', null)"
    );
    execute(&database, &events).await;
    let expected = "\
Tenant     KEY
State      ready, its work idle
Database   NAME, SIZE, owner tenant_owner, open, shut to PUBLIC, no connection
Version    1 log_message, the newest
Signed up  2020-01-01 00:00:00 UTC, AGE
Ready      2020-01-01 00:00:00 UTC, 250 ms after the signup
Looked at  2020-01-02 00:00:00 UTC
In work    no, 1 claim until now

VERSION  MIGRATION    APPLIED                  TOOK   BY
      1  log_message  2020-01-01 00:00:00 UTC  11 ms  vm:1:ab

Events:
2020-01-03 00:00:00 UTC  held         KEY  by alice@host: for the audit
2020-01-04 00:00:00 UTC  released     KEY  by bob@host";
    let by_schema = database.isolation() == Isolation::Schema;
    let expected = if by_schema {
        expected.replace("Database ", "Schema   ").replace(", no connection", "")
    } else {
        expected.to_owned()
    };
    assert_eq!(shown(&database, &program, &key).await, expected);
    let whole = object(&program.run(&["show", &database.tenant_name(&key), "--json"]).await);
    let facts =
        ["format", "key", "state", "work", "version", "standing", "pending", "attempt", "error", "history_error"]
            .map(|name| &whole[name]);
    let expected = [
        &json!(1),
        &json!(key),
        &json!("ready"),
        &json!("idle"),
        &json!(1),
        &json!("current"),
        &json!([]),
        &json!(1),
        &Value::Null,
        &Value::Null,
    ];
    assert_eq!(facts, expected);
    assert_eq!(
        whole["history"],
        json!([{ "version": 1, "name": "log_message", "applied_at": "2020-01-01T00:00:00.011Z", "duration_seconds": 0.011, "applied_by": "vm:1:ab" }])
    );
    let mut outside = whole["database"].clone();
    assert!(outside["bytes"].take().as_i64().is_some_and(|bytes| bytes > if by_schema { 40_000 } else { 1_000_000 }));
    let expected = json!({ "owner": "tenant_owner", "ours": true, "in_its_place": false, "valid": true, "open": true, "public_may_connect": false, "bytes": null, "connections": if by_schema { Value::Null } else { json!(0) } });
    assert_eq!(outside, expected);
    assert_eq!(whole["events"].as_array().map(Vec::len), Some(2));
    database.finish().await;
}

/// Goal: everything that is wrong is shown, and looking never fails for it. Method: one damage after the other.
#[tokio::test]
async fn what_is_wrong_is_shown() {
    let (database, program, key) = scene().await;
    let folder = tempfile::tempdir().expect("a folder");
    let first = std::fs::read_to_string("tenant-migrations/0001_log_message.up.sql").expect("the example");
    crate::fleet::write_migrations(folder.path(), &[("0001_log_message.sql", &first), ("0002_more.sql", "select 1;")]);
    let newer = program.clone().setting("tenant.migrations", &folder.path().display().to_string());
    execute(
        &database,
        "update tenantd.tenant set work = 'failing', failures = 2, due_at = '2020-01-05Z', leased_by = 'vm:7:cd', leased_until = now() + interval '1 hour',
         error_kind = 'migration_locked', error_text = E'0002_more.sql:1:1: no lock\\nhint: try \\x1b[2J later', error_sqlstate = '55P03', error_step = 'migrate'",
    )
    .await;
    let text = shown(&database, &newer, &key).await;
    for line in [
        "State      ready, its work failing",
        "Version    1 log_message; still lacking 2 more",
        "Failures   2 failures in a row; due 2020-01-05 00:00:00 UTC",
        "Last error: migration locked at step migrate, SQLSTATE 55P03",
        "    0002_more.sql:1:1: no lock",
        "    hint: try \\u{1b}[2J later",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}:\n{text}");
    }
    assert!(text.contains("\nIn work    by vm:7:cd, for 59 m "), "{text}");
    execute(&database, "update tenantd.tenant set leased_by = null, leased_until = null, work = 'idle', failures = 0, error_kind = null").await;
    let name = database.tenant_name(&key);
    database.outside(&format!("grant connect on database {name} to public")).await;
    let by_schema = database.isolation() == Isolation::Schema;
    if !by_schema {
        database.outside(&format!("alter database {name} connection limit 0")).await;
    }
    let text = shown(&database, &program, &key).await;
    assert!(text.contains("open, PUBLIC may enter"), "{text}");
    if !by_schema {
        let unread = "\nMigrations could not be read:\n    connect to tenantd@";
        assert!(text.contains(unread) && text.contains("SQLSTATE 53300"), "{text}");
        let error = &object(&program.run(&["show", &key, "--json"]).await)["history_error"];
        assert_eq!((&error["kind"], &error["sqlstate"]), (&json!("too_many_connections"), &json!("53300")));
        database.outside(&format!("alter database {name} connection limit -1")).await;
    }
    database.outside(&format!("comment on database {name} is 'mine now'")).await;
    assert!(shown(&database, &program, &key).await.contains(", without our marker: not touched\n"));
    database.outside(&format!("alter database {name} rename to {name}_away")).await;
    let (word, kind) = if by_schema { ("schema", "Schema") } else { ("database", "Database") };
    let gone = format!("\n{kind:<11}NAME: no {word} of this name is there\n");
    assert!(shown(&database, &program, &key).await.contains(&gone));
    database.outside(&format!("alter database {name}_away rename to {name}")).await;
    database.outside(&format!("revoke connect on database {name} from public")).await;
    let new = database.sign_up("two@example.org").await;
    let text = shown(&database, &program, &new).await;
    assert!(
        text.contains(&format!("State      requested, its work due\n{kind:<11}none yet\nVersion    none\n")),
        "{text}"
    );
    for (arguments, says) in
        [(["show", "nobody"], "there is no tenant \"nobody\""), (["events", "nobody"], "there is no tenant \"nobody\"")]
    {
        let output = program.run(&arguments).await;
        assert!(output.code() == 2 && output.stderr.contains(says) && output.stdout.is_empty(), "{output:?}");
    }
    database.finish().await;
}

/// Goal: events are listed, the newest last, and followed without losing or repeating any. Method: events written by hand, one of them with a
/// number lower than what was shown, as a long transaction's; then an interrupt.
#[tokio::test]
async fn events_are_listed_and_followed() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    assert_eq!(program.run(&["events"]).await.stdout, "no event");
    let insert = async |id: i64, key: &str, what: &str| {
        let values = format!("({id}, '2020-01-01Z', {key}, '{what}', E'al\\x1bce@host', null)");
        execute(&database, &format!("insert into tenantd.event (id, happened_at, key, what, who, detail) overriding system value values {values}")).await;
    };
    execute(&database, "insert into tenantd.tenant (key, work) values ('alpha', 'held'), ('beta', 'held')").await;
    for (id, key, what) in [(10, "'alpha'", "held"), (11, "'beta'", "held"), (12, "null", "rollout")] {
        insert(id, key, what).await;
    }
    let line = |key: &str, what: &str| format!("2020-01-01 00:00:00 UTC  {what:<11}  {key}  by al\\u{{1b}}ce@host");
    let listed = program.run(&["events"]).await.stdout;
    assert_eq!(listed, [line("alpha", "held"), line("beta", "held"), line("the fleet", "rollout")].join("\n"));
    assert_eq!(program.run(&["events", "alph"]).await.stdout, line("alpha", "held"));
    assert_eq!(program.run(&["events", "--limit", "1"]).await.stdout, line("the fleet", "rollout"));
    let whole = object(&program.run(&["events", "beta", "--json"]).await);
    let event = json!({ "id": 11, "happened_at": "2020-01-01T00:00:00Z", "key": "beta", "what": "held", "who": "al\u{1b}ce@host", "detail": null });
    assert_eq!(whole, json!({ "format": 1, "events": [event] }));
    let mut following = program.start_with(&["events", "--follow", "--limit", "1", "--json"]);
    let numbers = |text: String| -> Vec<i64> {
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object a line"));
        events.map(|event| if event["format"] == 1 { event["id"].as_i64().expect("a number") } else { -1 }).collect()
    };
    until("the first event", SOON, async || numbers(following.stdout()) == [12]).await;
    insert(20, "'alpha'", "released").await;
    until("the second", SOON, async || numbers(following.stdout()) == [12, 20]).await;
    insert(15, "'beta'", "released").await;
    until("the late one", SOON, async || numbers(following.stdout()) == [12, 20, 15]).await;
    following.signal(Signal::INT);
    assert_eq!(following.ended(SOON).await.code(), Some(0));
    assert_eq!(numbers(following.stdout()), [12, 20, 15]);
    following.kill();
    database.finish().await;
}
