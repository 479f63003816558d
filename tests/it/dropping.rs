//! `tenantd drop` and `tenantd restore`: taken away for a time of grace, taken back, gone for good.

use std::time::Duration;

use serde_json::Value;
use tenantd::config::Isolation;

use crate::fleet::{enter, execute, oid, row};
use crate::life::{events, files, json, messages, program, standing, tenants, write};
use crate::sql::{one, run};
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// `text` with keys, random names and moments as words.
fn plain(text: &str, key: &str) -> String {
    let mut plain = text.replace(key, "KEY").replace(&key.replace('-', "_"), "KEY");
    if let Some(at) = plain.find("tenantd_dropped_") {
        plain.replace_range(at..at + "tenantd_dropped_".len() + 32, "ASIDE");
    }
    if let Some(end) = plain.find(" UTC") {
        plain.replace_range(end - "2026-01-01 00:00:00".len()..end + " UTC".len(), "MOMENT");
    }
    plain
}

async fn sweep(program: &Program) {
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 0, "{swept:?}");
}

/// Goal: a tenant that is dropped is out of reach, is kept whole, and comes back as it was. Method: drop with a backup, look, restore, sweep.
#[tokio::test]
async fn a_dropped_tenant_comes_back_whole() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 2).await;
    let (key, name) = (&keys[0], database.tenant_name(&keys[0]));
    write(&database, key, "precious").await;
    let before = oid(&database, &name).await;

    let plan = program.run(&["drop", key, "--dry-run"]).await;
    let plan = plain(&plan.stdout, key);
    assert!(
        plan.starts_with("KEY is ready; would be done:\n  back up ") && plan.ends_with("nothing was done"),
        "{plan}"
    );
    assert_eq!(standing(&database, key).await, "ready idle");
    let dropped = program.run(&["drop", key]).await;
    assert_eq!(dropped.code(), 0, "{dropped:?}");
    let file = files(folder.path()).pop().expect("a backup");
    assert_eq!(
        plain(&dropped.stdout, key),
        format!(
            "KEY is dropped: its {} is set aside as ASIDE, and goes for good after MOMENT\n\
             `tenantd restore KEY` takes it back until then\nbackup: {}",
            database.isolation(),
            plain(&file.display().to_string(), key)
        )
    );
    assert_eq!(standing(&database, key).await, "deleting held");
    assert_eq!(oid(&database, &name).await, None);
    assert!(enter(&database, &database.app_url(), &name).await.is_err());
    sweep(&program).await;
    assert_eq!(standing(&database, key).await, "deleting held", "no sweep touches it");
    let again = program.run(&["drop", key]).await;
    assert!(again.code() == 2 && again.stderr.contains("is dropped already"), "{again:?}");
    assert!(again.stderr.contains("`tenantd restore` takes it back"), "{again:?}");
    let backup = program.run(&["backup", key]).await;
    assert!(backup.code() == 1 && backup.stdout.contains("is deleting, so it has no "), "{backup:?}");

    let restored = program.run(&["restore", &key[..8]]).await;
    assert_eq!(restored.code(), 0, "{restored:?}");
    let expected = format!("KEY is back: {}KEY from ASIDE; the daemon looks at it next", database.prefix());
    assert_eq!(plain(&restored.stdout, key), expected);
    assert_eq!(standing(&database, key).await, "ready due");
    assert_eq!(oid(&database, &name).await, before);
    sweep(&program).await;
    assert_eq!(standing(&database, key).await, "ready idle");
    assert_eq!(messages(&database, key).await, "precious");
    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter again");
    app.close().await;
    assert_eq!(events(&database, key).await, "backed_up dropped restored");
    let nothing = program.run(&["restore", key]).await;
    assert!(nothing.code() == 2 && nothing.stderr.contains("nothing of tenant"), "{nothing:?}");
    assert!(nothing.stderr.contains(&format!("hint: its newest backup: --from {}", file.display())), "{nothing:?}");
    database.finish().await;
}

/// Goal: when the time of grace is over a sweep drops it for good, and the key that signs up after that gets a new tenant. Method: no grace at all.
#[tokio::test]
async fn what_is_over_is_purged_and_the_key_may_sign_up_again() {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 1).await;
    let key = &keys[0];
    write(&database, key, "old").await;
    let dropped = program.run(&["drop", key, "--skip-backup", "--json"]).await;
    let aside = json(&dropped)["set_aside_as"].as_str().expect("a name").to_owned();
    assert_eq!((json(&dropped)["backup"].clone(), files(folder.path()).len()), (Value::Null, 0));
    assert!(oid(&database, &aside).await.is_some());

    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    let swept = json(&program.run(&["--sweep-once", "--json"]).await);
    assert_eq!((&swept["ok"], &swept["purged"]), (&Value::from(true), &Value::from(1)), "{swept}");
    assert_eq!(oid(&database, &aside).await, None);
    let gone = row(&database, key).await;
    assert_eq!((&gone["state"], &gone["name"], &gone["database_oid"]), (&"deleted".into(), &Value::Null, &Value::Null));
    assert_eq!(events(&database, key).await, "dropped purged");
    sweep(&program).await;
    assert_eq!(row(&database, key).await["state"], "deleted", "its user is there still, and that is no signup");

    execute(&database, "delete from public.users").await;
    let insert = format!("insert into public.users (id, email) values ('{key}', 'again@example.org')");
    run(&database.app().await, &insert).await;
    sweep(&program).await;
    assert_eq!(standing(&database, key).await, "ready idle");
    assert_eq!(messages(&database, key).await, "");
    database.finish().await;
}

/// Goal: a key that signs up while its tenant is being deleted never fails, and gets a new tenant when that is done; taking the tenant back
/// serves it at once. Method: delete the user and insert it again in the time of grace; once purge, once restore.
#[tokio::test]
async fn a_signup_during_the_grace_is_kept_in_mind() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 2).await;
    for key in &keys {
        assert_eq!(program.run(&["drop", key, "--skip-backup"]).await.code(), 0);
        execute(&database, &format!("delete from public.users where id = '{key}'")).await;
        let insert = format!("insert into public.users (id, email) values ('{key}', '{key}')");
        run(&database.app().await, &insert).await;
    }
    sweep(&program).await;
    for key in &keys {
        assert_eq!(standing(&database, key).await, "deleting held");
        assert_ne!(row(&database, key).await["again_at"], Value::Null);
    }
    assert_eq!(program.run(&["restore", &keys[0]]).await.code(), 0);
    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    sweep(&program).await;
    assert_eq!(standing(&database, &keys[1]).await, "requested due", "asked for by the purge itself");
    sweep(&program).await;
    for key in &keys {
        assert_eq!(standing(&database, key).await, "ready idle");
        assert_eq!(row(&database, key).await["again_at"], Value::Null);
    }
    database.finish().await;
}

/// Goal: for good and at once only when asked for; a tenant without a database is deleted at once. Method: without a terminal; --yes; one dropped
/// softly before; a signup that was not made yet.
#[tokio::test]
async fn for_good_only_when_asked_for() {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 2).await;
    let unasked = program.run(&["drop", &keys[0], "--now"]).await;
    assert!(unasked.code() == 2 && unasked.stderr.contains("hint: add --yes"), "{unasked:?}");
    assert_eq!(standing(&database, &keys[0]).await, "ready idle");
    let dropped = program.run(&["drop", &keys[0], "--now", "--yes"]).await;
    assert_eq!(dropped.code(), 0, "{dropped:?}");
    assert!(dropped.stdout.contains("is dropped for good\nbackup: "), "{dropped:?}");
    assert_eq!(program.run(&["drop", &keys[1]]).await.code(), 0);
    let plan = program.run(&["drop", &keys[1], "--now", "--dry-run"]).await;
    let expected = "KEY is deleting; would be done:\n  drop ASIDE for good\nnothing was done";
    assert_eq!(plain(&plan.stdout, &keys[1]), expected);
    assert_eq!(program.run(&["drop", &keys[1], "--now", "--yes"]).await.code(), 0);
    for key in &keys {
        assert_eq!(row(&database, key).await["state"], "deleted");
        assert_eq!(events(&database, key).await, "backed_up dropped purged");
    }
    assert_eq!(one::<i64>(&database.superuser().await, "select count(*) from tenantd.dropped").await, 0);
    let waiting = database.sign_up("waiting@example.org").await;
    let deleted = program.run(&["drop", &waiting]).await;
    assert!(deleted.code() == 0 && deleted.stdout.contains("is deleted: it had no "), "{deleted:?}");
    assert_eq!(row(&database, &waiting).await["state"], "deleted");
    database.finish().await;
}

/// Goal: what cannot be dropped is left as it was, with why and what to do. Method: a session of the application's, a prepared transaction, another
/// marker, somebody else's lease, no folder for a backup, an unknown key.
#[tokio::test]
async fn what_cannot_be_dropped_is_left_as_it_was() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 1).await;
    let (key, name) = (keys[0].as_str(), database.tenant_name(&keys[0]));
    let drop = ["drop", key, "--skip-backup", "--timeout", "300ms"];
    let refused = async |program: &Program, arguments: &[&str], code: i32, why: &str, advice: &str| {
        let output = program.run(arguments).await;
        assert_eq!(output.code(), code, "{why}: {output:?}");
        assert!(output.stderr.contains(why) && output.stderr.contains(advice), "{why}: {output:?}");
        assert_eq!(standing(&database, key).await, "ready idle", "{why}");
        let open = enter(&database, &database.app_url(), &name).await;
        open.unwrap_or_else(|error| panic!("{why}: it is closed: {error:?}")).close().await;
    };
    refused(
        &program.clone().unset("backup.folder"),
        &["drop", key],
        2,
        "back the tenant up first",
        "set backup.folder",
    )
    .await;
    refused(&program, &["drop", "no-such-tenant"], 2, "there is no tenant", "hint:").await;

    if database.isolation() == Isolation::Database {
        let app = database.tenant_app(&name).await;
        refused(&program, &drop, 1, "is in use after 300ms: role app (test, pid ", "pg_signal_backend").await;
        assert!(one::<bool>(&app, "select true").await, "its session lives");
        run(&app, "begin; insert into log_message (message) values ('x'); prepare transaction 'left over'").await;
        std::mem::drop(app);
        refused(&program, &drop, 1, "the prepared transaction 'left over' of role app", "ROLLBACK PREPARED").await;
        let admin = database.tenant_superuser(&name).await;
        run(&admin, "rollback prepared 'left over'").await;
    }

    execute(&database, "update tenantd.tenant set leased_by = 'somebody', leased_until = now() + interval '1 hour'")
        .await;
    refused(&program, &drop, 1, "is in the hands of somebody", "tenantd release-lock").await;
    execute(&database, "update tenantd.tenant set leased_by = null, leased_until = null").await;
    let marker = database.marker(&name).await.expect("a marker");
    database.outside(&format!("comment on database \"{name}\" is 'mine'")).await;
    refused(&program, &drop, 1, "does not bear the marker", "somebody else made it").await;
    database.outside(&format!("comment on database \"{name}\" is '{marker}'")).await;
    let missing = TestDatabase::new().await;
    let nothing = Program::for_database(&missing).run(&["drop", key]).await;
    assert!(nothing.code() == 2 && nothing.stderr.contains("`tenantd setup` installs it"), "{nothing:?}");
    missing.finish().await;

    // Sessions of tenantd's own role in its database are ended.
    let own = database.tenant_tenantd(&name).await;
    assert_eq!(program.run(&drop).await.code(), 0);
    assert_eq!(own.query_one("select 1", &[]).await.is_err(), database.isolation() == Isolation::Database);
    database.finish().await;
}

/// Goal: what holds a dropped database is named, nothing else waits for it, and the marker is looked at before the end. Method: an open replication
/// slot cannot be had by our role, hence a changed comment.
#[tokio::test]
async fn a_dropped_database_that_is_not_ours_any_more_stays() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 2).await;
    let mut asides = Vec::new();
    for key in &keys {
        let dropped = json(&program.run(&["drop", key, "--skip-backup", "--json"]).await);
        asides.push(dropped["set_aside_as"].as_str().expect("a name").to_owned());
    }
    database.outside(&format!("comment on database {} is 'mine'", asides[0])).await;
    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    let swept = program.run(&["--sweep-once"]).await;
    assert!(swept.code() == 1 && swept.stdout.contains("could not be dropped"), "{swept:?}");
    assert!(oid(&database, &asides[0]).await.is_some() && oid(&database, &asides[1]).await.is_none());
    let restored = program.run(&["restore", &keys[0]]).await;
    assert!(restored.code() == 1 && restored.stderr.contains("does not bear our marker"), "{restored:?}");
    assert_eq!(standing(&database, &keys[0]).await, "deleting held");
    database.outside(&format!("drop database {}", asides[0])).await;
    sweep(&program).await;
    assert_eq!(row(&database, &keys[0]).await["state"], "deleted", "what somebody dropped by hand is forgotten");
    database.finish().await;
}

/// Goal: a daemon purges by itself, beside everything else. Method: a short grace, and no sweep by hand.
#[tokio::test]
async fn the_daemon_purges_what_is_over() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path()).setting("drop.grace", "0s").setting("sweep.every", "1s");
    let keys = tenants(&database, &program, 2).await;
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    for key in &keys {
        let dropped = program.run(&["drop", key, "--skip-backup"]).await;
        assert_eq!(dropped.code(), 0, "{dropped:?}");
    }
    let client = database.superuser().await;
    until("both to be deleted", SOON, async || {
        one::<i64>(&client, "select count(*) from tenantd.tenant where state = 'deleted'").await == 2
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_eq!(database.tenant_databases().await, Vec::<String>::new());
    std::mem::drop(client);
    database.finish().await;
}
