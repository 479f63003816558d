//! `tenantd restore --from`, `tenantd reset`: another database takes the place of a tenant's own.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tenantd::config::Isolation;

use crate::fleet::{enter, oid, row};
use crate::life::{events, files, json, messages, program, standing, tenants, write};
use crate::sql::one;
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process;
use crate::support::server::programs;

/// The databases under random names that stand on the server for this registry.
async fn random_names(database: &TestDatabase) -> i64 {
    let client = database.superuser().await;
    let select = format!(
        "select count(*) from {} p where name in (select name from tenantd.spare union select name from tenantd.dropped)",
        database.place(&client).await
    );
    one(&client, &select).await
}

async fn backed_up(program: &Program, key: &str) -> String {
    let output = program.run(&["backup", key, "--json"]).await;
    json(&output)["backups"][0]["file"].as_str().unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

/// Goal: a tenant is made of its backup again, as it was, in the hands of its owner and open to the application; the one in its place is set aside
/// and comes back in its turn. Method: backup, other rows, restore with --replace, restore with --replace.
#[tokio::test]
async fn a_backup_takes_the_place_of_what_is_there() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 1).await;
    let (key, name) = (keys[0].as_str(), database.tenant_name(&keys[0]));
    write(&database, key, "old").await;
    let file = backed_up(&program, key).await;
    write(&database, key, "new").await;
    let before = oid(&database, &name).await;

    let refused = program.run(&["restore", key, "--from", &file]).await;
    assert!(refused.code() == 2 && refused.stderr.contains("hint: with --replace"), "{refused:?}");
    let plan = program.run(&["restore", key, "--from", &file, "--replace", "--dry-run"]).await;
    assert!(plan.code() == 0 && plan.stdout.contains("aside for 7 d 0 h\n"), "{plan:?}");
    assert_eq!((oid(&database, &name).await, random_names(&database).await), (before, 0));
    let restored = program.run(&["restore", key, "--from", &file, "--replace"]).await;
    assert_eq!(restored.code(), 0, "{restored:?}");
    assert_eq!(
        (standing(&database, key).await.as_str(), messages(&database, key).await.as_str()),
        ("ready due", "old")
    );
    let recorded = row(&database, key).await;
    assert_eq!((&recorded["version"], &recorded["access"]), (&Value::from(1), &Value::Null));
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(standing(&database, key).await, "ready idle");
    let owner = "select string_agg(distinct tableowner, ',') from pg_tables where schemaname = current_schema()";
    assert_eq!(one::<String>(&database.tenant_superuser(&name).await, owner).await, "tenant_owner");
    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    app.batch_execute("insert into log_message (message) values ('by app')").await.expect("app can work in it");
    app.close().await;
    let client = database.superuser().await;
    let public = format!("select public from {} p where name = '{name}'", database.place(&client).await);
    assert!(!one::<bool>(&client, &public).await);
    drop(client);

    let swapped = program.run(&["restore", key, "--replace"]).await;
    assert_eq!(swapped.code(), 0, "{swapped:?}");
    assert_eq!((oid(&database, &name).await, messages(&database, key).await.as_str()), (before, "new,old"));
    assert_eq!(random_names(&database).await, 1, "what was in its place a moment ago");
    assert_eq!(events(&database, key).await, "backed_up restored restored");
    database.finish().await;
}

/// Goal: what was deleted for good comes back from its backup, also one of an older schema, which is migrated then. Method: drop --now, a newer set,
/// restore, sweep.
#[tokio::test]
async fn a_deleted_tenant_comes_back_from_its_backup() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, &folder.path().join("backups"));
    let migrations = folder.path().join("migrations");
    std::fs::create_dir(&migrations).expect("make it");
    std::fs::write(migrations.join("0001_log.sql"), "create table log_message (message text);").expect("write it");
    let program = program.setting("tenant.migrations", &migrations.display().to_string());
    let keys = tenants(&database, &program, 1).await;
    let key = keys[0].as_str();
    write(&database, key, "precious").await;
    let dropped = json(&program.run(&["drop", key, "--now", "--yes", "--json"]).await);
    let file = dropped["backup"].as_str().expect("a backup");
    assert_eq!(
        (&dropped["dropped_for_good"], standing(&database, key).await.as_str()),
        (&Value::from(true), "unknown")
    );
    std::fs::write(migrations.join("0002_more.sql"), "alter table log_message add more text default 'm';")
        .expect("write");
    let restored = program.run(&["restore", key, "--from", file, "--json"]).await;
    assert_eq!(restored.code(), 0, "{restored:?}");
    assert_eq!(json(&restored)["database"], Value::from(database.tenant_name(key)));
    assert_eq!(
        (row(&database, key).await["version"].as_i64(), standing(&database, key).await.as_str()),
        (Some(1), "ready due")
    );
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(
        (row(&database, key).await["version"].as_i64(), messages(&database, key).await.as_str()),
        (Some(2), "precious")
    );
    database.finish().await;
}

/// Goal: a backup that cannot be read leaves the tenant as it was, and nothing half made. Method: no file, no backup, one cut off, one whose owner
/// does not exist here.
#[tokio::test]
async fn a_backup_that_cannot_be_read_changes_nothing() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, &folder.path().join("backups"));
    let keys = tenants(&database, &program, 1).await;
    let (key, name) = (keys[0].as_str(), database.tenant_name(&keys[0]));
    write(&database, key, &"long ".repeat(2000)).await;
    let file = backed_up(&program, key).await;
    let bytes = std::fs::read(&file).expect("read it");
    let other = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("write it");
        path.display().to_string()
    };
    let before = oid(&database, &name).await;
    let cases = [
        ("/nowhere/x.dump".to_owned(), 2, "there is no such file"),
        (other("text", b"no backup at all"), 2, "pg_restore failed"),
        (other("cut", &bytes[..bytes.len() / 4]), 2, "pg_restore failed"),
        (other("cut at the end", &bytes[..bytes.len() - 60]), 1, "pg_restore failed"),
    ];
    for (file, code, why) in cases {
        let failed = program.run(&["restore", key, "--from", &file, "--replace"]).await;
        assert!(failed.code() == code && failed.stderr.contains(why), "{file}: {failed:?}");
        assert_eq!((oid(&database, &name).await, random_names(&database).await), (before, 0), "{file}");
        assert!(standing(&database, key).await.starts_with("ready "), "{file}");
        assert_eq!(row(&database, key).await["leased_by"], Value::Null, "{file}");
    }
    let app = enter(&database, &database.app_url(), &name).await.expect("it is open");
    app.close().await;
    database.finish().await;
}

/// Goal: a reset tenant is empty and on the newest migrations, and what it held can be taken back. Method: reset with a backup; the ways it is refused;
/// restore --replace.
#[tokio::test]
async fn a_reset_tenant_is_empty_and_can_be_taken_back() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 2).await;
    let (key, name) = (keys[0].as_str(), database.tenant_name(&keys[0]));
    write(&database, key, "old").await;
    let before = oid(&database, &name).await;
    let unasked = program.run(&["reset", key]).await;
    assert!(
        unasked.code() == 2 && unasked.stderr.contains("This empties 1 tenant") && unasked.stderr.contains("add --yes"),
        "{unasked:?}"
    );
    let without = program.clone().unset("backup.folder").run(&["reset", key, "--yes"]).await;
    assert!(without.code() == 2 && without.stderr.contains("--skip-backup does without"), "{without:?}");
    assert_eq!(oid(&database, &name).await, before);

    let reset = program.run(&["reset", key, "--yes"]).await;
    assert_eq!(reset.code(), 0, "{reset:?}");
    let file = files(folder.path()).pop().expect("a backup");
    assert_eq!(reset.stdout, format!("{key} is empty; backup: {}", file.display()));
    let text = process::run(Command::new(programs().join("pg_restore")).args(["--file", "-"]).arg(&file));
    assert!(text.contains("old"));
    assert!(standing(&database, key).await.starts_with("ready "));
    assert_eq!(messages(&database, key).await, "");
    assert_ne!(oid(&database, &name).await, before);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(standing(&database, key).await, "ready idle");
    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    app.close().await;
    write(&database, key, "new").await;
    assert_eq!(program.run(&["restore", key]).await.code(), 2, "not without --replace");
    assert_eq!(program.run(&["restore", key, "--replace"]).await.code(), 0);
    assert_eq!((oid(&database, &name).await, messages(&database, key).await.as_str()), (before, "old"));
    assert_eq!(events(&database, key).await, "backed_up reset restored");
    database.finish().await;
}

/// Goal: all of them only with the phrase, each by itself: one that cannot be is told, the others are emptied. Method: three tenants, somebody in one.
#[tokio::test]
async fn all_are_reset_only_with_the_phrase() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 3).await;
    for key in &keys {
        write(&database, key, "old").await;
    }
    let phrase = format!("reset 3 tenants of {}", database.name());
    let without = program.run(&["reset", "--all", "--yes", "--skip-backup"]).await;
    assert!(without.code() == 2 && without.stderr.contains(&format!("add --phrase '{phrase}'")), "{without:?}");
    let wrong = program.run(&["reset", "--all", "--yes", "--phrase", "reset 2 tenants of x", "--skip-backup"]).await;
    assert_eq!(wrong.code(), 2, "{wrong:?}");
    assert_eq!(program.run(&["reset", "--all"]).await.code(), 2, "no terminal");
    let plan = program.run(&["reset", "--all", "--dry-run"]).await;
    assert!(plan.code() == 0 && plan.stdout.lines().count() == 4, "{plan:?}");
    for key in &keys {
        assert_eq!(messages(&database, key).await, "old");
    }
    // Somebody in its database, or the comment of somebody else on its schema.
    let name = database.tenant_name(&keys[1]);
    let app = database.tenant_app(&name).await;
    let marker = database.marker(&name).await.expect("a marker");
    let by_schema = database.isolation() == Isolation::Schema;
    if by_schema {
        database.outside(&format!("comment on database \"{name}\" is 'mine'")).await;
    }
    let arguments = ["reset", "--all", "--yes", "--phrase", &phrase, "--skip-backup", "--timeout", "200ms", "--json"];
    let reset = program.run(&arguments).await;
    let said = json(&reset);
    assert_eq!((reset.code(), &said["ok"]), (1, &Value::from(false)), "{said}");
    drop(app);
    for key in &keys {
        let failed = *key == keys[1];
        assert_eq!(messages(&database, key).await, if failed { "old" } else { "" }, "{key}");
        let of_key = said["tenants"].as_array().expect("a list").iter().find(|one| one["key"] == **key).expect("told");
        let kind = if by_schema { "conflict" } else { "in_use" };
        assert_eq!(of_key["error"]["kind"], if failed { Value::from(kind) } else { Value::Null }, "{said}");
    }
    database.outside(&format!("comment on database \"{name}\" is '{marker}'")).await;
    assert_eq!(one::<i64>(&database.superuser().await, "select count(*) from tenantd.dropped").await, 2);
    database.finish().await;
}

/// Goal: another tenant's marker, or another database under the name, is never touched by a restore. Method: a database of the name, made by hand, while
/// the tenant is dropped.
#[tokio::test]
async fn a_foreign_database_in_the_way_is_told() {
    let database = TestDatabase::new().await.allow(Finding::DatabaseWithoutTenant);
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 1).await;
    let (key, name) = (keys[0].as_str(), database.tenant_name(&keys[0]));
    let file = backed_up(&program, key).await;
    assert_eq!(program.run(&["drop", key, "--skip-backup"]).await.code(), 0);
    database.outside(&format!("create database \"{name}\"")).await;
    database.outside(&format!("revoke all on database \"{name}\" from public")).await;
    let before = oid(&database, &name).await;
    for arguments in [vec!["restore", key], vec!["restore", key, "--from", &file, "--replace"]] {
        let refused = program.run(&arguments).await;
        assert!(
            refused.code() == 1 && refused.stderr.contains("does not bear the marker"),
            "{arguments:?} {refused:?}"
        );
        assert_eq!((oid(&database, &name).await, standing(&database, key).await.as_str()), (before, "deleting held"));
    }
    database.outside(&format!("drop database \"{name}\"")).await;
    assert_eq!(program.run(&["restore", key]).await.code(), 0);
    assert!(Path::new(&file).exists());
    database.finish().await;
}
