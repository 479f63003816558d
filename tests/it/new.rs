//! `tenantd new`: the built program without a database.

use std::path::Path;

use serde_json::Value;

use crate::support::daemon::Program;

/// A main database that nobody can reach.
fn program(folder: &Path) -> Program {
    Program::bare(folder).setting("main.url", "postgresql://tenantd@nowhere.invalid/app")
}

/// Goal: the files are there afterwards, the next ones after them, and paths come out as text and as JSON. Method: an empty folder.
#[tokio::test]
async fn the_files_are_made_without_a_database() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["tenants", "main"] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    let program = program(folder.path()).setting("tenant.migrations", "tenants").setting("main.migrations", "main");
    let made = program.run(&["new", "first"]).await;
    assert_eq!(made.stdout, "made tenants/0001_first.up.sql\nmade tenants/0001_first.down.sql", "{made:?}");
    let made = program.run(&["new", "--json", "second", "--no-transaction"]).await;
    let object: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let expected = serde_json::json!({
        "format": 1, "version": 2, "name": "second", "up": "tenants/0002_second.up.sql", "down": "tenants/0002_second.down.sql",
    });
    assert_eq!(object, expected);
    let text = std::fs::read_to_string(folder.path().join("tenants/0002_second.up.sql")).expect("it is there");
    assert!(text.starts_with("-- tenantd: no-transaction\n"), "{text}");
    let made = program.run(&["new", "--main", "users", "--timestamp"]).await;
    let path = made.stdout.lines().next().expect("a line").trim_start_matches("made ").to_owned();
    let version = path.trim_start_matches("main/").trim_end_matches("_users.up.sql");
    assert!(version.len() == 14 && version.starts_with("20") && folder.path().join(&path).exists(), "{made:?}");
}

/// Goal: without a folder it says what to set, and what cannot be a name is refused.
#[tokio::test]
async fn without_a_folder_it_says_what_to_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    for (arguments, says) in
        [(&["new", "a"][..], "TENANTD_TENANT__MIGRATIONS"), (&["new", "--main", "a"], "TENANTD_MAIN__MIGRATIONS")]
    {
        let output = program.run(arguments).await;
        assert!(output.code() == 2 && output.stderr.contains(says), "{output:?}");
    }
    let output = program.setting("tenant.migrations", ".").run(&["new", "a b"]).await;
    assert!(output.code() == 2 && output.stderr.contains("\"a b\" cannot name a migration"), "{output:?}");
}
