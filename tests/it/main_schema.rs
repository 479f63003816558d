//! `tenantd migrate main` and what goes with it: the application's own schema, by the built program on a real server.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::{Fleet, execute, write_migrations};
use crate::sql::one;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;

const FILES: [(&str, &str); 4] = [
    ("0001_plan.up.sql", "create table public.plan (name text primary key)"),
    ("0001_plan.down.sql", "drop table public.plan"),
    (
        "0002_index.up.sql",
        "-- tenantd: no-transaction\ncreate index concurrently plan_upper on public.plan (upper(name))",
    ),
    ("0002_index.down.sql", "-- tenantd: no-transaction\ndrop index concurrently public.plan_upper"),
];

struct Scene {
    database: TestDatabase,
    folder: TempDir,
    program: Program,
}

impl Scene {
    async fn new() -> Scene {
        let database = TestDatabase::new().await;
        execute(&database, "grant create on schema public to main_owner").await;
        let folder = tempfile::tempdir().expect("a folder");
        write_migrations(folder.path(), &FILES);
        let program = Program::for_database(&database)
            .setting("main.migrations", &folder.path().display().to_string())
            .setting("main.owner", "main_owner")
            .setting("log.level", "warn");
        Scene { database, folder, program }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.program.run(arguments).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat()).await;
        serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    async fn one(&self, sql: &str) -> String {
        one(&self.database.superuser().await, sql).await
    }
}

const MADE: &str = "select coalesce(string_agg(relname || ' ' || pg_get_userbyid(relowner), ', ' order by relname), '') from pg_class
                    where relnamespace = 'public'::regnamespace and relname in ('plan', 'plan_upper', 'tenantd_migration')";

/// Goal: the main schema goes up, is seen in status, and goes down again, before there is a registry and with it; what is done is an event. Method:
/// every way once, the dry runs first.
#[tokio::test]
async fn up_and_down_with_and_without_a_registry() {
    let scene = Scene::new().await;
    let path = scene.folder.path().display().to_string();
    let dry = scene.run(&["migrate", "main", "--dry-run"]).await;
    assert_eq!(
        dry.stdout.replace(&path, "FOLDER"),
        "the main schema would go from 0 to 2:\n\
         \n\
         -- FOLDER/0001_plan.up.sql, in a transaction\n\
         create table public.plan (name text primary key)\n\
         \n\
         -- FOLDER/0002_index.up.sql, without a transaction\n\
         -- tenantd: no-transaction\n\
         create index concurrently plan_upper on public.plan (upper(name))"
    );
    assert_eq!((dry.code(), scene.one(MADE).await.as_str()), (0, ""));

    let up = scene.run(&["migrate", "main", "--to", "1"]).await;
    assert!(up.code() == 0 && up.stdout.starts_with("the main schema went from 0 to 1 in "), "{up:?}");
    Fleet::install(&scene.database, &[]).await.close().await;
    let status = scene.json(&["status"]).await;
    let expected =
        json!({ "source": path, "version": 1, "pending": [{ "version": 2, "name": "index" }], "error": null });
    assert_eq!((&status["main_schema"], &status["ok"]), (&expected, &json!(true)));
    let up = scene.json(&["migrate", "main"]).await;
    assert_eq!((&up["from"], &up["to"], &up["ran"][0]["name"]), (&json!(1), &json!(2), &json!("index")));
    assert_eq!(scene.one(MADE).await, "plan main_owner, plan_upper main_owner, tenantd_migration main_owner");
    assert!(scene.run(&["status"]).await.stdout.contains("\nMain schema  at 2, the newest\n"));
    assert_eq!(scene.run(&["migrate", "main"]).await.stdout, "nothing to do: the main schema is at version 2");
    let below = scene.run(&["migrate", "main", "--to", "1"]).await;
    assert!(below.code() == 2 && below.stderr.contains("`tenantd rollback main`"), "{below:?}");

    let dry = scene.json(&["rollback", "main", "--to-name", "plan", "--dry-run"]).await;
    assert_eq!((&dry["to"], &dry["sql"][0]["transaction"]), (&json!(1), &json!(false)));
    let unasked = scene.run(&["rollback", "main", "--steps", "1"]).await;
    assert!(
        unasked.code() == 2 && unasked.stderr.contains("Without a terminal nothing is done unasked"),
        "{unasked:?}"
    );
    let down = scene.run(&["rollback", "main", "--to", "0", "--yes"]).await;
    assert!(
        down.code() == 0
            && down.stdout.contains("went from 2 to 0 in ")
            && down.stdout.ends_with(": 2 index, 1 plan taken back"),
        "{down:?}"
    );
    assert_eq!(scene.one(MADE).await, "tenantd_migration main_owner");
    let events = "select string_agg(what || ' ' || detail, ', ' order by id) from tenantd.event where key is null";
    let told = "migrated the main schema from 1 to 2, rolled_back the main schema from 2 to 0";
    assert_eq!(scene.one(events).await, told);
    scene.database.finish().await;
}

/// Goal: what fails says where and what to do, and what was done before it is told and stays. Method: SQL that fails in the second file, a
/// missing down file, a file that changed, a right that is missing, no folder.
#[tokio::test]
async fn what_fails_is_told_in_full() {
    let scene = Scene::new().await;
    Fleet::install(&scene.database, &[]).await.close().await;
    write_migrations(scene.folder.path(), &[("0002_index.up.sql", "select 1;\nselect no_such_column")]);
    let output = scene.run(&["migrate", "main"]).await;
    assert!(
        output.code() == 1 && output.stderr.contains("0002_index.up.sql:2:8: column \"no_such_column\" does not exist"),
        "{output:?}"
    );
    let event = "select string_agg(detail, ', ') from tenantd.event";
    assert_eq!(scene.one(event).await, "the main schema from 0 to 1");

    std::fs::remove_file(scene.folder.path().join("0001_plan.down.sql")).expect("remove a file");
    let output = scene.run(&["rollback", "main", "--steps", "1", "--yes"]).await;
    assert!(output.code() == 2 && output.stderr.contains("0001_plan.up.sql has no down file"), "{output:?}");
    write_migrations(scene.folder.path(), &[("0001_plan.up.sql", "create table other ()")]);
    let output = scene.run(&["migrate", "main", "--dry-run"]).await;
    assert!(output.code() == 1 && output.stderr.contains("0001_plan.up.sql was changed after version 1"), "{output:?}");
    let status = scene.json(&["status"]).await;
    assert_eq!(
        (&status["needs_person"][0]["word"], &status["main_schema"]["error"]["kind"]),
        (&json!("main_schema"), &json!("drift"))
    );

    execute(&scene.database, "drop table plan, tenantd_migration; revoke create on schema public from main_owner")
        .await;
    let output = scene.run(&["migrate", "main"]).await;
    assert!(
        output.code() != 0 && output.stderr.contains("hint: name a role that may do it in main.owner"),
        "{output:?}"
    );
    let output = scene.program.clone().unset("main.migrations").run(&["migrate", "main"]).await;
    assert!(output.code() == 2 && output.stderr.contains("hint: set main.migrations"), "{output:?}");
    scene.database.finish().await;
}

/// Goal: of several at once each migration is applied once. Method: three commands beside each other.
#[tokio::test]
async fn several_at_once_apply_once() {
    let scene = Scene::new().await;
    let arguments = ["migrate", "main", "--json"];
    let outputs = tokio::join!(scene.run(&arguments), scene.run(&arguments), scene.run(&arguments));
    let mut ran = 0;
    for output in [outputs.0, outputs.1, outputs.2] {
        let object: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        ran += object["ran"].as_array().expect("a list").len();
    }
    assert_eq!((ran, scene.one("select count(*)::text from tenantd_migration").await.as_str()), (2, "2"));
    scene.database.finish().await;
}
