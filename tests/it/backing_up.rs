//! `tenantd backup`: what is written, who may read it, and what is refused before anything is.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::fleet::row;
use crate::life::{files, json, program, tenants};
use crate::sql::{one, run};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::process;
use crate::support::server::programs;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// Goal: a backup is a whole file of the tenant's, that only we can read, and is in its history; nothing of the password is in the arguments
/// of a child. Method: two tenants, one with a row; what `pg_restore` reads from the file.
#[tokio::test]
async fn a_backup_is_whole_and_private() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("made/by/us");
    let program = program(&database, &inside);
    let keys = tenants(&database, &program, 2).await;
    let name = database.tenant_name(&keys[0]);
    run(&database.tenant_superuser(&name).await, "insert into log_message (message) values ('precious')").await;

    let dry = program.run(&["backup", "--all", "--dry-run"]).await;
    assert!(dry.code() == 0 && dry.stdout.contains("nothing was written") && !inside.exists(), "{dry:?}");
    let output = program.run(&["backup", &name[..20], "--json"]).await;
    assert_eq!(output.code(), 0, "{output:?}");
    let said = json(&output);
    let file = PathBuf::from(said["backups"][0]["file"].as_str().expect("a file"));
    assert_eq!((files(&inside), &said["backups"][0]["key"]), (vec![file.clone()], &Value::from(keys[0].clone())));
    let metadata = std::fs::metadata(&file).expect("the file");
    assert_eq!(
        (metadata.permissions().mode() & 0o777, said["backups"][0]["bytes"].as_u64()),
        (0o600, Some(metadata.len()))
    );
    assert_eq!(std::fs::metadata(&inside).expect("the folder").permissions().mode() & 0o777, 0o700);
    let text = process::run(std::process::Command::new(programs().join("pg_restore")).args(["--file", "-"]).arg(&file));
    assert!(text.contains("precious"), "{text}");
    let event = "select what || ' ' || detail from tenantd.event where what = 'backed_up'";
    let event: String = one(&database.superuser().await, event).await;
    assert_eq!(event, format!("backed_up {}, {} bytes", file.display(), metadata.len()));

    let all = program.run(&["backup", "--all", "--parallel", "2"]).await;
    assert!(all.code() == 0 && all.stdout.contains("2 backups written to "), "{all:?}");
    assert_eq!(files(&inside).len(), 3);
    database.finish().await;
}

/// Goal: the password reaches the child by a file in memory, and stands neither in its arguments nor in its environment, not even as part of what
/// tenantd was told. Method: a `pg_dump` of the test's own writes down its arguments, its variables, and what libpq would read.
#[tokio::test]
async fn the_password_is_in_no_argument_and_no_variable() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, &folder.path().join("backups"));
    let keys = tenants(&database, &program, 1).await;
    let own = folder.path().join("pg_dump");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo 'pg_dump (PostgreSQL) 99.1'; exit 0; }}\n\
         echo \"$@\" > {0}/arguments; env > {0}/environment; cat \"$PGPASSFILE\" > {0}/passfile; echo 'pg_dump: error: as it should' >&2; exit 1\n",
        folder.path().display()
    );
    for name in ["pg_dump", "pg_restore"] {
        std::fs::write(folder.path().join(name), &script).expect("write it");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path().join(name), mode).expect("let it run");
    }
    let output = program.setting("backup.pg_dump", &own.display().to_string()).run(&["backup", &keys[0]]).await;
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stdout.contains("pg_dump failed: pg_dump: error: as it should"), "{output:?}");
    let arguments = std::fs::read_to_string(folder.path().join("arguments")).expect("read");
    let environment = std::fs::read_to_string(folder.path().join("environment")).expect("read");
    let read = std::fs::read_to_string(folder.path().join("passfile")).expect("read");
    assert_eq!(read, format!("*:*:*:*:{}\n", TENANTD_PASSWORD.replace(':', "\\:")));
    let (word, encoded) = ("swordfish", "TENANTD_MAIN__URL");
    assert!(!arguments.contains(word) && !environment.contains(word), "{arguments}\n{environment}");
    assert!(environment.contains("TENANTD_TENANT__PREFIX=") && !environment.contains(encoded), "{environment}");
    assert!(environment.contains("PGSSLMODE=verify-full"), "{environment}");
    assert!(!output.stdout.contains(word) && !output.stderr.contains(word), "{output:?}");
    assert_eq!(files(&folder.path().join("backups")), Vec::<PathBuf>::new(), "nothing half written stays");
    database.finish().await;
}

/// Goal: what cannot end well is refused before anything is written, with what to do. Method: no folder, an old `pg_dump`, none, no room, a database
/// that is not ours, an unknown key, a tenant without a database.
#[tokio::test]
async fn what_cannot_end_well_is_refused() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 1).await;
    let fake = |said: &str| {
        let fake = folder.path().join(format!("fake-{}", said.len()));
        std::fs::create_dir_all(&fake).expect("make it");
        for name in ["pg_dump", "pg_restore"] {
            std::fs::write(fake.join(name), format!("#!/bin/sh\necho '{said}'\n")).expect("write it");
            std::fs::set_permissions(fake.join(name), std::fs::Permissions::from_mode(0o755)).expect("let it run");
        }
        program.clone().setting("backup.pg_dump", &fake.join("pg_dump").display().to_string())
    };
    let cases = [
        (program.clone().unset("backup.folder"), "backup.folder is not set", "set backup.folder"),
        (
            fake("pg_dump (PostgreSQL) 9.6.24"),
            "is pg_dump (PostgreSQL) 9.6.24, and the server is Postgres",
            "install the client",
        ),
        (fake(""), "of no version that it tells", "install the client"),
        (program.clone().setting("backup.pg_dump", "/nowhere/pg_dump"), "start /nowhere/pg_dump", "install the client"),
        (program.clone().setting("backup.folder", "/proc/none"), "make the folder for backups", "let tenantd's user"),
        (program.clone().setting("backup.folder", "/proc"), "has 0 MB of room", "free room there"),
    ];
    for (program, why, advice) in cases {
        let output = program.run(&["backup", &keys[0]]).await;
        assert!(output.code() == 2 || output.code() == 1, "{why}: {output:?}");
        let said = output.stdout.clone() + &output.stderr;
        assert!(said.contains(why) && said.contains(advice), "{why}: {output:?}");
    }
    let unknown = program.run(&["backup", "0000-no-such"]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains("there is no tenant"), "{unknown:?}");
    assert_eq!(program.run(&["backup"]).await.code(), 2, "neither a key nor --all");
    let waiting = database.sign_up("waiting@example.org").await;
    let without = program.run(&["backup", &waiting]).await;
    assert!(without.code() == 1 && without.stdout.contains(" of its own now"), "{without:?}");
    let name = database.tenant_name(&keys[0]);
    database.outside(&format!("comment on database \"{name}\" is 'mine'")).await;
    let foreign = program.run(&["backup", &keys[0]]).await;
    assert!(foreign.code() == 1 && foreign.stdout.contains("does not bear our marker"), "{foreign:?}");
    database.finish().await;
}

/// Goal: each backup that is written takes the old ones with it, and nothing else. Method: files of several names and ages.
#[tokio::test]
async fn old_backups_are_pruned() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path()).setting("backup.keep", "30d");
    let keys = tenants(&database, &program, 1).await;
    let old = folder.path().join("tenant_x_20200101T000000.000Z.dump");
    let others = ["tenant_x.dump", "notes.txt"].map(|name| folder.path().join(name));
    for file in others.iter().chain([&old]) {
        std::fs::write(file, "x").expect("write it");
    }
    let output = program.run(&["backup", &keys[0]]).await;
    assert!(output.code() == 0 && output.stdout.contains("1 deleted since they were old"), "{output:?}");
    assert!(!old.exists() && others.iter().all(|file| file.exists()));
    assert_eq!(files(folder.path()).len(), 3);
    database.finish().await;
}

/// Goal: Ctrl-C lets the backup in hand end, begins no other, and says so. Method: a lock that `pg_dump` waits for; three tenants, one at a time.
#[tokio::test]
async fn an_interrupted_run_ends_what_it_has_in_hand() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let keys = tenants(&database, &program, 3).await;
    let mut lockers = Vec::new();
    for key in &keys {
        let locker = database.tenant_superuser(&database.tenant_name(key)).await;
        run(&locker, "begin; lock table log_message in access exclusive mode").await;
        lockers.push(locker);
    }
    let mut running = program.start_with(&["backup", "--all", "--parallel", "1"]);
    until("pg_dump to wait", SOON, async || database.tenant_sessions("wait_event_type = 'Lock'").await > 0).await;
    running.signal(process::Signal::INT);
    running.wait_for_line("ending: no new work", SOON).await;
    drop(lockers);
    assert_eq!(running.ended(SOON).await.code(), Some(1));
    assert!(
        running.stdout().contains("1 backup written") && running.stdout().contains("2 not begun"),
        "{}",
        running.stdout()
    );
    running.kill();
    assert_eq!(row(&database, &keys[0]).await["leased_by"], Value::Null);
    database.finish().await;
}
