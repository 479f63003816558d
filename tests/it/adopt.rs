//! `tenantd adopt` as an operator runs it: restored over ours, made by hand, found as orphans, a fleet with a table of its own; and what it refuses.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tenantd::config::Isolation;
use tenantd::tenant::Marker;

use crate::fleet::{Fleet, execute, oid, row, write_migrations};
use crate::sql::{one, run, stands};
use crate::support::audit::Finding;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const NOTE: &str =
    "create table note (id bigint generated always as identity primary key, body text not null default 'x');";
const DONE: &str = "alter table note add column done boolean not null default false;";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_note.sql", NOTE), ("0002_done.sql", DONE)]);
    folder
}

fn program(database: &TestDatabase, folder: &Path) -> Program {
    Program::for_database(database)
        .setting("tenant.migrations", &folder.display().to_string())
        .setting("log.format", "text")
        .setting("log.level", "error")
}

fn object(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A database with what the first migration makes and a row, without a history, as another tool would have made it.
async fn by_hand(database: &TestDatabase, name: &str, owner: &str) {
    database.outside(&format!("create database \"{name}\" owner {owner}")).await;
    let client = database.tenant_superuser(name).await;
    run(&client, &format!("set role {owner}; {NOTE} insert into note (body) values ('kept')")).await;
}

async fn kept(database: &TestDatabase, name: &str) -> i64 {
    one(&database.tenant_superuser(name).await, "select count(*) from note where body = 'kept'").await
}

/// Goal: a database that was restored over ours is taken as it stands, after it was shown, and not unasked. Method: a copy in its place; a dry
/// run; no terminal; --yes; then nothing is left to find.
#[tokio::test]
async fn a_restored_database_is_taken_as_it_stands() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let name = database.tenant_name(&key);
    run(&database.tenant_superuser(&name).await, "insert into note (body) values ('kept')").await;
    database.restore_over(&name).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1, "it is parked");
    let before = row(&database, &key).await;

    let kind = database.isolation();
    let dry = program.run(&["adopt", &key, "--dry-run"]).await;
    let shown = dry.stdout.replace(&key, "KEY").replace(&name, "NAME");
    assert_eq!(dry.code(), 0, "{dry:?}");
    assert_eq!(
        shown,
        format!(
            "KEY: a tenant that is ready, parked\n  {kind} NAME: at version 2\n1 tenant would be adopted; nothing was changed"
        )
    );
    let unasked = program.run(&["adopt", &key]).await;
    assert!(unasked.code() == 2 && unasked.stderr.contains("add --yes"), "{unasked:?}");
    assert_eq!(row(&database, &key).await, before);

    let adopted = program.run(&["adopt", &key, "--yes"]).await;
    assert!(adopted.code() == 0 && adopted.stdout.contains("adopted 1 tenant;"), "{adopted:?}");
    let after = row(&database, &key).await;
    assert_eq!((after["work"].as_str(), after["error_kind"].as_str()), (Some("due"), None), "{after}");
    assert_eq!(
        after["database_oid"].as_str().map(str::to_owned),
        oid(&database, &name).await.map(|oid| oid.to_string())
    );
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let checked = program.run(&["check"]).await;
    assert_eq!(checked.code(), 0, "{checked:?}");
    assert_eq!(kept(&database, &name).await, 1);
    let event =
        "select concat_ws(' ', key, what, split_part(detail, ' (oid', 1)) from tenantd.event where what = 'adopted'";
    let event: String = one(&database.superuser().await, event).await;
    assert_eq!(event, format!("{key} adopted the {kind} {name}"));
    let again = program.run(&["adopt", &key, "--yes"]).await;
    assert!(again.code() == 0 && again.stdout.contains("its tenant's already: nothing is to be done"), "{again:?}");
    database.finish().await;
}

/// Goal: a database made by hand becomes a tenant under the name that it has, whatever key it is to have; what it has is written down, and only
/// what it lacks is run. Method: without a history: refused; with --version; the sweep applies the second migration only.
#[tokio::test]
async fn a_database_made_by_hand_becomes_a_tenant() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    // Given to nobody in particular, and called as nobody should.
    let name = format!("{}Customer \"One\"", database.prefix());
    database.outside(&format!("create database \"{}\" owner tenantd", name.replace('"', "\"\""))).await;
    let client = database.tenant_superuser(&name).await;
    run(&client, &format!("{NOTE} insert into note (body) values ('kept'); alter table note owner to tenant_owner"))
        .await;
    drop(client);
    database.outside(&format!("comment on database \"{}\" is 'of the shop'", name.replace('"', "\"\""))).await;

    let unknown = program.run(&["adopt", "acme", "--database", &name, "--yes"]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains("no history of migrations"), "{unknown:?}");
    assert!(unknown.stderr.contains("hint: say with --version"), "{unknown:?}");
    let odd = program.run(&["adopt", "acme", "--database", &name, "--version", "7", "--yes"]).await;
    assert!(odd.code() == 2 && odd.stderr.contains("there is no migration 7"), "{odd:?}");
    assert_eq!(stands(&database, "acme").await, None);

    let dry =
        object(&program.run(&["adopt", "acme", "--database", &name, "--version", "1", "--dry-run", "--json"]).await);
    let plan = &dry["plans"][0];
    assert_eq!((&dry["dry_run"], &plan["written_down_as_applied"]), (&json!(true), &json!([1])), "{dry}");
    let notes: Vec<&str> = plan["notes"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(notes[0], "its comment \"of the shop\" gives way to the marker");
    assert!(notes[1].starts_with("it goes from role tenantd to tenant_owner;") && notes.len() == 2, "{notes:?}");

    let adopted = program.run(&["adopt", "acme", "--database", &name, "--version", "1", "--yes"]).await;
    assert_eq!(adopted.code(), 0, "{adopted:?}");
    let ready = row(&database, "acme").await;
    assert_eq!((ready["name"].as_str(), ready["version"].as_i64()), (Some(name.as_str()), Some(1)), "{ready}");
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 0, "{swept:?}");
    assert_eq!(row(&database, "acme").await["version"].as_i64(), Some(2));
    let checked = program.run(&["check", "acme"]).await;
    assert_eq!(checked.code(), 0, "{checked:?}");
    assert_eq!(kept(&database, &name).await, 1);
    // Its name needs quoting, which what removes the test's databases does not do.
    database.outside(&format!("drop database \"{}\"", name.replace('"', "\"\""))).await;
    execute(&database, "delete from tenantd.tenant").await;
    database.finish().await;
}

/// Goal: of the databases without a tenant those that are ours by marker or by name are taken, each as whose it is; another registry's, and one
/// that tenantd may not own, are refused with why. Method: one of each.
#[tokio::test]
async fn orphans_are_taken_and_foreign_databases_refused() {
    let (database, folder) = (TestDatabase::new().await.allow(Finding::DatabaseWithoutTenant), folder());
    let database = database.allow(Finding::OpenToPublic).allow(Finding::UserWithoutTenant);
    let program = program(&database, folder.path());
    let fleet = Fleet::install(&database, &[]).await;
    let registry = fleet.registry().id;
    fleet.close().await;
    let key = |number: u32| format!("00000000-0000-4000-8000-00000000000{number}");
    let name = |number: u32| database.tenant_name(&key(number));
    let unmatched = format!("{}lost", database.prefix());
    for (name, owner) in [
        (name(1), "tenant_owner"),
        (name(2), "tenant_owner"),
        (name(3), "tenant_owner"),
        (unmatched.clone(), "tenant_owner"),
    ] {
        by_hand(&database, &name, owner).await;
    }
    database.outside(&format!("create database \"{}\"", name(4))).await;
    for (name, marker) in [
        (name(1), Marker::of(registry, &key(1)).to_string()),
        (name(3), Marker::of(uuid::Uuid::nil(), &key(3)).to_string()),
        (unmatched.clone(), Marker::of(registry, "nobody").to_string()),
    ] {
        database.outside(&format!("comment on database \"{name}\" is '{marker}'")).await;
    }
    let adopted = program.run(&["adopt", "--orphans", "--version", "1", "--yes", "--json"]).await;
    let object = object(&adopted);
    assert_eq!((adopted.code(), &object["adopted"]), (1, &json!([key(1), key(2)])), "{object}");
    let refused: Vec<(&str, &str)> = object["refused"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|refused| {
            (refused["database"].as_str().expect("a name"), refused["error"]["kind"].as_str().expect("a kind"))
        })
        .collect();
    assert_eq!(refused, [(name(3).as_str(), "conflict"), (name(4).as_str(), "rights"), (unmatched.as_str(), "usage")]);
    assert_eq!(database.marker(&name(3)).await, Some(Marker::of(uuid::Uuid::nil(), &key(3)).to_string()));
    assert_eq!(database.marker(&name(2)).await, Some(Marker::of(registry, &key(2)).to_string()));
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(row(&database, &key(2)).await["version"].as_i64(), Some(2));
    let none = program.run(&["adopt", "--orphans", "--dry-run", "--version", "1"]).await;
    assert!(none.code() == 1 && none.stdout.contains("refused: ") && !none.stdout.contains("would be"), "{none:?}");
    database.finish().await;
}

/// Goal: a fleet that another tool kept a table of is taken whole; what is wrong in that table is told row by row and stops nobody else. Method:
/// held users from before, a name that is not there, a database named for two keys, a table that we may not read.
#[tokio::test]
async fn a_fleet_with_a_table_of_its_own_is_taken() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    let mut keys = Vec::new();
    for number in 0..3 {
        keys.push(database.sign_up(&format!("{number}@example.org")).await);
    }
    keys.sort();
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    execute(&database, "create schema ops; create table ops.customer (id uuid, database name, plan text)").await;
    let name = |number: usize| format!("{}customer_{number}", database.prefix());
    for number in 0..2 {
        by_hand(&database, &name(number), "tenant_owner").await;
    }
    for (key, database_name) in [(&keys[0], name(0)), (&keys[1], name(1)), (&keys[2], name(1)), (&keys[2], name(9))] {
        execute(&database, &format!("insert into ops.customer values ('{key}', '{database_name}', 'gold')")).await;
    }
    let arguments = |more: &[&'static str]| {
        let mut all = vec!["adopt", "--from-table", "ops.customer", "--name-column", "database", "--key-column", "id"];
        all.extend(more);
        all
    };
    let unread = program.run(&arguments(&["--version", "1", "--yes"])).await;
    assert!(unread.code() == 1 && unread.stderr.contains("hint: as the table's owner: grant select"), "{unread:?}");
    execute(&database, "grant usage on schema ops to tenantd; grant select (id, database) on ops.customer to tenantd")
        .await;

    let adopted = program.run(&arguments(&["--version", "1", "--yes", "--json"])).await;
    let object = object(&adopted);
    assert_eq!((adopted.code(), &object["adopted"]), (1, &json!([keys[0], keys[1]])), "{object}");
    assert_eq!(
        (&object["refused"][0]["database"], &object["refused"][0]["error"]["kind"]),
        (&json!(name(9)), &json!("missing"))
    );
    assert_eq!(
        (&object["failed"][0]["key"], &object["failed"][0]["error"]["kind"]),
        (&json!(keys[2]), &json!("drift")),
        "{object}"
    );
    assert_eq!(stands(&database, &keys[2]).await, Some(("requested".to_owned(), "held".to_owned())), "as it was");
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    for (number, key) in keys.iter().take(2).enumerate() {
        let ready = row(&database, key).await;
        assert_eq!(
            (ready["name"].as_str(), ready["version"].as_i64()),
            (Some(name(number).as_str()), Some(2)),
            "{ready}"
        );
        assert_eq!(kept(&database, &name(number)).await, 1);
    }
    let leases = "select count(*) from tenantd.tenant where leased_by is not null";
    assert_eq!(one::<i64>(&database.superuser().await, leases).await, 0);
    database.finish().await;
}

/// Goal: nothing is taken from anybody: another tenant's database, the main one, one whose tenant has its own or is in other hands, one with
/// migrations that contradict ours. Method: each, and the registry is as it was.
#[tokio::test]
async fn what_is_somebodys_is_refused() {
    let (database, folder) = (TestDatabase::new().await.allow(Finding::OpenToPublic), folder());
    let program = program(&database, folder.path());
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let (one_key, other_key) = (database.sign_up("1@example.org").await, database.sign_up("2@example.org").await);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let (one_name, other_name) = (database.tenant_name(&one_key), database.tenant_name(&other_key));
    let made = format!("{}made", database.prefix());
    by_hand(&database, &made, "tenant_owner").await;
    let before = (row(&database, &one_key).await, row(&database, &other_key).await);
    let kind = database.isolation();
    let [applications, servers] = match kind {
        Isolation::Database => [database.name(), "template1"],
        Isolation::Schema => ["public", "pg_catalog"],
    };
    let (none, already) = (format!("there is no {kind}"), format!("has a {kind} already"));
    let refusals: [(&[&str], &str); 6] = [
        (&["new", "--database", &other_name], "is tenant"),
        (&["new", "--database", applications], "can be no tenant's"),
        (&["new", "--database", servers], "can be no tenant's"),
        (&["new", "--database", "nowhere"], &none),
        (&[&one_key, "--database", &made], &already),
        (&[&one_key, "--empty"], "is there"),
    ];
    for (words, said) in refusals {
        let arguments: Vec<&str> = ["adopt"].iter().chain(words).chain(&["--yes"]).copied().collect();
        let refused = program.run(&arguments).await;
        assert!(matches!(refused.code(), 1 | 2) && refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
    assert_eq!((row(&database, &one_key).await, row(&database, &other_key).await), before);
    let nobody = program.run(&["adopt", "--dry-run"]).await;
    assert_eq!(nobody.code(), 2, "{nobody:?}");

    database.restore_over(&one_name).await;
    let lease = "leased_by = 'other:1:ab', leased_until = now() + interval '1 hour'";
    execute(&database, &format!("update tenantd.tenant set {lease} where key = '{one_key}'")).await;
    let busy = program.run(&["adopt", &one_key, "--yes", "--timeout", "1s"]).await;
    assert!(busy.code() == 1 && busy.stdout.contains("other:1:ab, for"), "{busy:?}");
    execute(&database, "update tenantd.tenant set leased_by = null, leased_until = null").await;
    let edit = "update tenantd_migration set checksum = repeat('0', 64)";
    run(&database.tenant_superuser(&one_name).await, edit).await;
    let drifted = program.run(&["adopt", &one_key, "--yes"]).await;
    assert!(drifted.code() == 1 && drifted.stderr.contains("was changed after version 1"), "{drifted:?}");
    database.outside(&format!("drop database \"{made}\"")).await;
    assert_eq!(oid(&database, &made).await, None);
    database.finish().await;
}

/// Goal: Ctrl-C ends an adoption after the database in hand, and says how far it came. Method: databases whose comments cannot be written, one
/// after the other.
#[tokio::test]
async fn an_interrupted_adoption_ends_with_the_one_in_hand() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path()).setting("log.level", "info");
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    execute(&database, "create table customer (id uuid, database name); grant select on customer to tenantd").await;
    let (locker, mut keys) = (database.superuser().await, Vec::new());
    run(&locker, "begin").await;
    for number in 0..2 {
        let name = format!("{}customer_{number}", database.prefix());
        by_hand(&database, &name, "tenant_owner").await;
        run(&locker, &database.meant(&format!("comment on database \"{name}\" is null"))).await;
        let key = database.sign_up(&format!("{number}@example.org")).await;
        execute(&database, &format!("insert into customer values ('{key}', '{name}')")).await;
        keys.push(key);
    }
    let from = ["adopt", "--from-table", "customer", "--name-column", "database", "--key-column", "id"];
    let mut running = program.start_with(&[&from[..], &["--version", "1", "--yes"]].concat());
    let waits = format!(
        "select exists (select from pg_stat_activity where datname = '{}' and wait_event_type = 'Lock')",
        database.name()
    );
    let (client, soon) = (database.superuser().await, Duration::from_secs(30));
    until("the adoption to wait", soon, async || one(&client, &waits).await).await;
    running.signal(Signal::INT);
    running.wait_for_line("ending: no new work", soon).await;
    run(&locker, "commit").await;
    assert_eq!(running.ended(soon).await.code(), Some(1));
    let said = running.stdout();
    assert!(said.contains("adopted 1 tenant") && said.contains("ended early: the rest was not adopted"), "{said}");
    running.kill();
    let named = "select count(*) from tenantd.tenant where name is not null and leased_by is null";
    assert_eq!(one::<i64>(&client, named).await, 1);
    drop((client, locker));
    assert_eq!(
        program.run(&[&from[..], &["--version", "1", "--yes"]].concat()).await.code(),
        0,
        "the next try goes on"
    );
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    database.finish().await;
}
