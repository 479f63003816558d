//! `tenantd url` and `tenantd psql`: the way into a tenant for a person, and what must not be seen on it.

use std::time::Duration;

use serde_json::Value;

use crate::fleet::{enter, execute};
use crate::sql::one;
use crate::support::daemon::{Output, Program};
use crate::support::database::{APP_PASSWORD, TENANTD_PASSWORD, TestDatabase};

/// A main database with one tenant.
async fn scene() -> (TestDatabase, Program, String) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    (database, program, key)
}

/// The beginning of tenantd's password, which needs no escaping.
fn secret() -> &'static str {
    TENANTD_PASSWORD.split(':').next().expect("it has a colon")
}

#[track_caller]
fn refused(output: &Output, says: &str) {
    assert!(output.code() == 2 && output.stderr.contains(says) && output.stdout.is_empty(), "{says}: {output:?}");
}

/// Goal: the URL leads into the tenant with the TLS of main.url, and holds no password unless asked. Method: every form of it, and entering by it.
#[tokio::test]
async fn a_url_leads_into_the_tenant() {
    let (database, program, key) = scene().await;
    let name = database.tenant_name(&key);
    let plain = program.run(&["url", &key[..8]]).await;
    let behind = database.tenant_url(&name);
    assert_eq!(
        (plain.code(), plain.stdout.as_str(), plain.stderr.as_str()),
        (0, format!("postgresql://tenantd{behind}").as_str(), "")
    );
    let whole = program.run(&["url", &name, "--password"]).await.stdout;
    assert!(whole.starts_with(&format!("postgresql://tenantd:{}%3A", secret())) && whole.ends_with(&behind), "{whole}");
    enter(&database, &whole, &name).await.expect("enter by it").close().await;
    let of_app = program.run(&["url", &key, "--user", "app", "--json"]).await.stdout;
    let of_app: Value = serde_json::from_str(&of_app).expect("JSON");
    assert_eq!(
        (of_app["format"].as_i64(), of_app["key"].as_str(), of_app["name"].as_str()),
        (Some(1), Some(key.as_str()), Some(name.as_str()))
    );
    let of_app = of_app["url"].as_str().expect("a URL").replace("//app@", &format!("//app:{APP_PASSWORD}@"));
    enter(&database, &of_app, &name).await.expect("enter as the application").close().await;
    refused(&program.run(&["url", &key, "--user", "app", "--password"]).await, "cannot be used with");
    refused(&program.run(&["url", "nobody"]).await, "there is no tenant \"nobody\"");
    let new = database.sign_up("two@example.org").await;
    for command in ["url", "psql"] {
        refused(
            &program.run(&[command, &new]).await,
            &format!("tenant {new} is requested: it has no {} that one may enter", database.isolation()),
        );
    }
    database.finish().await;
}

/// Goal: psql is in the tenant, with all it is told and nothing inherited for another connection; its exit code is handed on; no password is in
/// its arguments. Method: statements that say where they are, a statement that fails, the process's own command line.
#[tokio::test]
async fn psql_is_in_the_tenant() {
    let (database, program, key) = scene().await;
    let name = database.tenant_name(&key);
    let misled = program
        .clone()
        .variable("PGUSER", "stranger")
        .variable("PGDATABASE", "postgres")
        .variable("PGPASSWORD", "wrong");
    let psql = async |arguments: &[&str]| misled.run(&[&["psql", &key[..8], "--", "-X"], arguments].concat()).await;
    let here =
        "select to_regclass('tenantd_migration')::oid, session_user, ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let history: u32 = one(&database.tenant_superuser(&name).await, "select 'tenantd_migration'::regclass::oid").await;
    let output = psql(&["-Atc", here]).await;
    assert!(output.code() == 0 && output.stdout == format!("{history}|tenantd|t"), "{output:?}");
    let output = psql(&["-v", "ON_ERROR_STOP=1", "-c", "select 1/0"]).await;
    assert!(output.code() == 1 && output.stderr.contains("division by zero"), "{output:?}");
    let output = psql(&["-c", "\\! tr '\\0' ' ' < /proc/$PPID/cmdline"]).await;
    assert!(output.code() == 0 && output.stdout.contains("psql") && !output.stdout.contains(secret()), "{output:?}");
    let left =
        "select count(*) from pg_stat_activity where application_name like 'tenantd%' and datname = current_database()";
    let client = database.superuser().await;
    crate::support::until::until("nothing of ours is left", Duration::from_secs(10), async || {
        client.query_one(left, &[]).await.expect("look").get::<_, i64>(0) == 0
    })
    .await;
    drop(client);
    // With nothing in it but what starts the program.
    let nowhere = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink("/usr/bin/setpriv", nowhere.path().join("setpriv")).expect("a link");
    let without = program.clone().variable("PATH", &nowhere.path().display().to_string());
    refused(&without.run(&["psql", &key]).await, "postgresql-client");
    execute(&database, "update tenantd.tenant set state = 'deleting'").await;
    refused(&program.run(&["psql", &key]).await, "is deleting");
    execute(&database, "update tenantd.tenant set state = 'ready'").await;
    database.finish().await;
}
