//! What the tests of backup, drop, restore and reset share.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sql::{one, run, stands};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::server::programs;

/// With a folder for backups, and the programs of the server's own version.
#[must_use]
pub fn program(database: &TestDatabase, folder: &Path) -> Program {
    Program::for_database(database)
        .setting("backup.folder", &folder.display().to_string())
        .setting("backup.pg_dump", &programs().join("pg_dump").display().to_string())
}

/// Signs users up and sweeps. Returns their keys.
pub async fn tenants(database: &TestDatabase, program: &Program, number: usize) -> Vec<String> {
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let mut keys = Vec::new();
    for number in 0..number {
        keys.push(database.sign_up(&format!("{number}@example.org")).await);
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    keys
}

/// What a command printed as JSON.
#[must_use]
pub fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The files in `folder`, in order.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the folder").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Writes a row into the tenant `key` that is to be found again.
pub async fn write(database: &TestDatabase, key: &str, message: &str) {
    let client = database.tenant_superuser(&database.tenant_name(key)).await;
    run(&client, &format!("insert into log_message (message) values ('{message}')")).await;
}

/// Every row of the tenant `key`.
pub async fn messages(database: &TestDatabase, key: &str) -> String {
    let client = database.tenant_superuser(&database.tenant_name(key)).await;
    one(&client, "select coalesce(string_agg(message, ',' order by message), '') from log_message").await
}

/// State and work of the tenant `key` in one text.
pub async fn standing(database: &TestDatabase, key: &str) -> String {
    stands(database, key).await.map_or_else(|| "unknown".to_owned(), |(state, work)| format!("{state} {work}"))
}

/// What was done to the tenant `key`, the oldest first.
pub async fn events(database: &TestDatabase, key: &str) -> String {
    let select =
        format!("select coalesce(string_agg(what, ' ' order by id), '') from tenantd.event where key = '{key}'");
    one(&database.superuser().await, &select).await
}
