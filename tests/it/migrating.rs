//! `tenantd migrate` and `tenantd rollout`, as a person types them.

use std::path::Path;

use serde_json::Value;

use crate::fleet::{row, write_migrations};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;

/// A fleet of so many at the first of two migrations, and the commands on it.
struct Scene {
    database: TestDatabase,
    folder: tempfile::TempDir,
    program: Program,
    keys: Vec<String>,
}

impl Scene {
    async fn of(tenants: usize) -> Scene {
        let database = TestDatabase::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text);\n")]);
        let program =
            Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
        let mut scene = Scene { database, folder, program, keys: Vec::new() };
        scene.run(&["setup"], 0).await;
        for number in 0..tenants {
            scene.keys.push(scene.database.sign_up(&format!("{number}@example.org")).await);
        }
        scene.keys.sort();
        scene.run(&["--sweep-once"], 0).await;
        write_migrations(scene.folder(), &[("0002_level.sql", "alter table log add level int;\n")]);
        scene
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn run(&self, arguments: &[&str], code: i32) -> Output {
        let output = self.program.run(arguments).await;
        assert_eq!(output.code(), code, "{arguments:?}: {output:?}");
        output
    }

    async fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat(), code).await;
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    async fn version(&self, key: &str) -> i64 {
        row(&self.database, key).await["version"].as_i64().expect("a version")
    }
}

/// Goal: a dry run prints the very steps and the SQL, and changes nothing. Method: one of two tenants is open to PUBLIC as well.
#[tokio::test]
async fn a_dry_run_shows_steps_and_sql() {
    let scene = Scene::of(2).await;
    let open = scene.database.tenant_name(&scene.keys[0]);
    let grant = format!("grant connect on database \"{open}\" to public");
    scene.database.outside(&grant).await;
    let before = (row(&scene.database, &scene.keys[0]).await, row(&scene.database, &scene.keys[1]).await);
    let output = scene.run(&["migrate", "--dry-run"], 0).await;
    let expected = format!(
        "{}: close; migrate to 2\n{}: migrate to 2\n\n-- {}/0002_level.sql\nalter table log add level int;\n\n\
         2 tenants would be worked on; nothing was changed",
        scene.keys[0],
        scene.keys[1],
        scene.folder().display()
    );
    assert_eq!(output.stdout, expected);
    let shown = scene.json(&["migrate", &scene.keys[1], "--dry-run"], 0).await;
    assert_eq!(shown["tenants"][0]["steps"], serde_json::json!([{ "step": "migrate", "versions": [2] }]));
    assert_eq!(shown["migrations"][0]["sql"], "alter table log add level int;\n");
    assert_eq!((row(&scene.database, &scene.keys[0]).await, row(&scene.database, &scene.keys[1]).await), before);
    scene.run(&["migrate"], 0).await;
    let nothing = scene.run(&["migrate", "--dry-run"], 0).await.stdout;
    assert_eq!(nothing, "no tenant would be worked on; nothing was changed");
    scene.database.finish().await;
}

/// Goal: tenants that are named get the set at once, whatever a rollout says, not further than they are told, with an event; the others wait for it.
#[tokio::test]
async fn those_that_are_named_go_first() {
    let scene = Scene::of(3).await;
    write_migrations(scene.folder(), &[("0003_more.sql", "alter table log add more int;\n")]);
    let paused = scene.run(&["rollout", "pause", "--why", "not yet"], 1).await;
    assert!(paused.stdout.starts_with("rollout to version 3: paused: not yet\n"), "{paused:?}");
    let report = scene.json(&["migrate", &scene.keys[0][..13], "--to", "2"], 0).await;
    assert_eq!((&report["chosen"], &report["migrated"], &report["rollout"]), (&1.into(), &1.into(), &Value::Null));
    assert_eq!((scene.version(&scene.keys[0]).await, scene.version(&scene.keys[1]).await), (2, 1));
    let output = scene.run(&["migrate"], 1).await;
    assert!(
        output.stdout.contains("the rollout to version 3 is paused: not yet; 3 tenants wait for it\n"),
        "{output:?}"
    );
    scene.run(&["migrate", &scene.keys[0]], 0).await;
    assert_eq!(scene.version(&scene.keys[0]).await, 3);
    let events = "select string_agg(detail || ' by ' || who, ', ' order by id) from tenantd.event where what = 'migrated' and key = $1";
    let told = scene.database.superuser().await.query_one(events, &[&scene.keys[0]]).await.expect("events");
    let told: String = told.get(0);
    assert!(
        told.starts_with("to version 2 by ") && told.contains(", to version 3 by ") && told.contains('@'),
        "{told}"
    );
    scene.run(&["rollout", "resume"], 0).await;
    scene.run(&["migrate"], 0).await;
    assert_eq!((scene.version(&scene.keys[1]).await, scene.version(&scene.keys[2]).await), (3, 3));
    scene.database.finish().await;
}

/// Goal: how a rollout stands is shown, also where none is needed, and orders that make no sense are refused.
#[tokio::test]
async fn a_rollout_is_shown_and_ordered() {
    let scene = Scene::of(4).await;
    let shown = scene.json(&["rollout"], 0).await;
    assert_eq!((&shown["state"], &shown["behind"], &shown["passed"]), (&"running".into(), &4.into(), &false.into()));
    write_migrations(scene.folder(), &[("0002_level.sql", "alter table log add level nonsense;\n")]);
    let output = scene.run(&["migrate", "--canary", "2"], 1).await;
    assert!(output.stdout.contains("is paused: every canary failed ("), "{output:?}");
    assert!(output.stdout.contains("; 2 tenants wait for it\n"), "{output:?}");
    let shown = scene.run(&["rollout", "show"], 1).await.stdout;
    assert!(
        shown.contains("canaries: 0 have it, 2 failed, 0 are left; new tenants get the version before\n"),
        "{shown}"
    );
    assert!(shown.contains("behind: 2 of 4 tenants"), "{shown}");
    let refused = scene.run(&["rollout", "pause"], 2).await;
    assert_eq!(refused.stderr.lines().last(), Some("tenantd: the rollout to version 2 is paused already"));
    scene.run(&["rollout", "abort", "--why", "wrong"], 0).await;
    let report = scene.json(&["migrate"], 1).await;
    assert_eq!(
        (&report["rollout"]["state"], &report["rollout"]["waiting"], &report["failures"]),
        (&"aborted".into(), &2.into(), &2.into())
    );
    // Mended: that is another set, with a rollout of its own.
    write_migrations(scene.folder(), &[("0002_level.sql", "alter table log add level int;\n")]);
    scene.run(&["migrate", "--waves", "1,100%"], 0).await;
    let shown = scene.run(&["rollout"], 0).await.stdout;
    assert!(shown.starts_with("rollout to version 2: done"), "{shown}");
    assert_eq!(scene.version(&scene.keys[3]).await, 2);
    scene.database.finish().await;
}

/// Goal: a set that was given up reaches no new tenant either, while a template from before is there. Method: a paused rollout whose canaries have
/// passed; one tenant is made before it is given up, one after.
#[tokio::test]
async fn a_rollout_that_was_given_up_reaches_no_new_tenant() {
    let scene = Scene::of(2).await;
    scene.run(&["rollout", "pause"], 1).await;
    let keys = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];
    let passed = "update tenantd.rollout set passed_at = now()";
    scene.database.superuser().await.batch_execute(passed).await.expect("as if the canaries had passed");
    scene.run(&["create", keys[0]], 0).await;
    let shown = scene.run(&["rollout", "abort"], 0).await.stdout;
    assert!(shown.contains("given up: new tenants get the version before"), "{shown}");
    scene.run(&["create", keys[1]], 0).await;
    assert_eq!((scene.version(keys[0]).await, scene.version(keys[1]).await), (2, 1));
    scene.run(&["rollout", "resume"], 0).await;
    scene.run(&["migrate"], 0).await;
    assert_eq!(scene.version(keys[1]).await, 2);
    scene.database.finish().await;
}

/// Goal: wrong use is told before anything happens.
#[tokio::test]
async fn wrong_use_is_refused() {
    let scene = Scene::of(1).await;
    let table: [(&[&str], &str); 4] = [
        (&["migrate", "--to", "7"], "holds no migration of version 7"),
        (&["migrate", "nobody-at-all"], "there is no tenant \"nobody-at-all\""),
        (&["migrate", "--waves", "10%"], "the last of --waves is 100%"),
        (&["migrate", "--canary", "2", &scene.keys[0]], "cannot be used with"),
    ];
    for (arguments, said) in table {
        let output = scene.run(arguments, 2).await;
        assert!(output.stderr.contains(said), "{arguments:?}: {output:?}");
    }
    assert_eq!(scene.version(&scene.keys[0]).await, 1);
    scene.database.finish().await;
}

/// Goal: exactly those that a rollout changed go back, each to the version that it had, and the set does not come again. Method: three are migrated,
/// one of them from an older version, and one signs up afterwards.
#[tokio::test]
async fn a_rollout_is_taken_back() {
    let scene = Scene::of(3).await;
    let down = [
        ("0002_level.down.sql", "alter table log drop level;\n"),
        ("0003_more.down.sql", "alter table log drop more;\n"),
    ];
    write_migrations(scene.folder(), &[down[0]]);
    std::fs::rename(scene.folder().join("0002_level.sql"), scene.folder().join("0002_level.up.sql")).expect("rename");
    scene.run(&["migrate", &scene.keys[0], &scene.keys[1]], 0).await;
    write_migrations(scene.folder(), &[("0003_more.up.sql", "alter table log add more int;\n"), down[1]]);
    scene.run(&["migrate"], 0).await;
    let new = scene.database.sign_up("new@example.org").await;
    scene.run(&["--sweep-once"], 0).await;
    let output = scene.run(&["rollback", "--rollout"], 2).await;
    assert!(output.stderr.contains("This takes migrations of 3 tenants back"), "{output:?}");
    scene.run(&["rollback", "--rollout", "--yes"], 0).await;
    let versions = [&scene.keys[0], &scene.keys[1], &scene.keys[2], &new];
    let mut found = Vec::new();
    for key in versions {
        found.push(scene.version(key).await);
    }
    assert_eq!(found, [2, 2, 1, 3]);
    scene.run(&["--sweep-once"], 0).await;
    assert_eq!((scene.version(&scene.keys[0]).await, scene.version(&scene.keys[2]).await), (2, 1), "held");
    scene.database.finish().await;
}

/// Goal: where the settings ask for it a tenant is backed up before it is migrated, whoever does it, and not where a person does without.
#[tokio::test]
async fn a_backup_comes_before_a_migration() {
    let mut scene = Scene::of(2).await;
    let folder = tempfile::tempdir().expect("a folder");
    scene.program = scene
        .program
        .setting("backup.folder", &folder.path().display().to_string())
        .setting("backup.before_migrate", "true");
    let files = || std::fs::read_dir(folder.path()).expect("the folder").count();
    scene.run(&["migrate", &scene.keys[0], "--skip-backup"], 0).await;
    assert_eq!((scene.version(&scene.keys[0]).await, files()), (2, 0));
    scene.run(&["--sweep-once"], 0).await;
    assert_eq!((scene.version(&scene.keys[1]).await, files()), (2, 1));
    scene.database.finish().await;
}
