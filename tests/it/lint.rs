//! `tenantd lint`, the built program on a real server.

use serde_json::{Value, json};
use tempfile::TempDir;
use tenantd::config::Isolation;

use crate::fleet::{Fleet, half_made, write_migrations};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;

const FIRST: [(&str, &str); 2] = [
    ("0001_message.up.sql", "create table message (id int primary key, level int, sent timestamptz)"),
    ("0001_message.down.sql", "drop table message"),
];

/// A main database with one tenant that has the first migration; `files` come after it.
struct Scene {
    database: TestDatabase,
    folder: TempDir,
    program: Program,
}

impl Scene {
    async fn new(files: &[(&str, &str)]) -> Scene {
        let database = TestDatabase::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        write_migrations(folder.path(), &FIRST);
        let fleet = Fleet::with_folder(&database, folder.path()).await;
        database.sign_up("one@example.org").await;
        assert_eq!(fleet.sweep().await.made, 1);
        fleet.close().await;
        write_migrations(folder.path(), files);
        let program = Program::for_database(&database)
            .setting("tenant.migrations", &folder.path().display().to_string())
            .setting("log.level", "warn");
        Scene { database, folder, program }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.program.run(&[&["lint"], arguments].concat()).await
    }

    fn shown(&self, output: &Output) -> String {
        output.stdout.replace(&self.folder.path().display().to_string(), "FOLDER")
    }

    /// The findings: level, rule, file and line.
    async fn found(&self, arguments: &[&str]) -> (Value, Vec<(String, String, String)>) {
        let output = self.run(&[&["--json"], arguments].concat()).await;
        let object: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(object["ok"] == json!(true), output.code() == 0, "{output:?}");
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let place = |finding: &Value| {
            let file = text(finding, "file").rsplit('/').next().unwrap_or_default().to_owned();
            finding["line"].as_i64().map_or(file.clone(), |line| format!("{file}:{line}"))
        };
        let findings = object["findings"].as_array().expect("a list").iter();
        let findings =
            findings.map(|finding| (text(finding, "level"), text(finding, "rule"), place(finding))).collect();
        (object, findings)
    }

    async fn end(self) {
        assert_eq!(half_made(&self.database).await, [""; 0], "the scratch database is gone");
        self.database.finish().await;
    }
}

fn expected(findings: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    findings.iter().map(|(level, rule, place)| ((*level).into(), (*rule).into(), (*place).into())).collect()
}

/// Goal: what is sound passes without a word, and what tenants have already is left out unless asked for. Method: none pending; a sound one in
/// each mode; nothing of it reaches the tenant.
#[tokio::test]
async fn sound_migrations_pass() {
    let scene = Scene::new(&[]).await;
    let nothing = scene.run(&[]).await;
    assert_eq!(nothing.stdout, "nothing to try: tenants have every migration (--all tries them all the same)");
    write_migrations(
        scene.folder.path(),
        &[
            ("0002_author.up.sql", "create table author (name text primary key); create index on author (upper(name))"),
            ("0002_author.down.sql", "drop table author"),
            (
                "0003_index.up.sql",
                "-- tenantd: no-transaction\ncreate index concurrently message_level on message (level)",
            ),
            ("0003_index.down.sql", "-- tenantd: no-transaction\ndrop index concurrently message_level"),
        ],
    );
    let two = scene.run(&["--strict"]).await;
    assert_eq!((two.code(), two.stdout.as_str()), (0, "2 migrations tried: no error, no warning, no note"), "{two:?}");
    let three = scene.run(&["--all"]).await;
    assert_eq!(
        (three.code(), three.stdout.as_str()),
        (0, "3 migrations tried: no error, no warning, no note"),
        "{three:?}"
    );
    assert!(scene.program.run(&["status"]).await.stdout.contains("2 author, 3 index"), "the tenant still lacks them");
    scene.end().await;
}

/// Goal: locks and rewritten tables are measured at their statement, the rest is read; warnings fail a strict run only. Method: one of each.
#[tokio::test]
async fn what_hurts_is_told_at_its_line() {
    let up = "-- Two that are quick, three that are not.\n\
              alter table message add level_name text;\n\
              alter table message add seen timestamptz not null default clock_timestamp();\n\
              alter table message alter level type bigint;\n\
              create index message_sent on message (sent);\n\
              alter table message alter sent set not null;\n\
              update message set level = 0;";
    let scene = Scene::new(&[("0002_more.up.sql", up)]).await;
    let (object, found) = scene.found(&[]).await;
    assert_eq!(
        found,
        expected(&[
            ("warning", "no_down", "0002_more.up.sql"),
            ("note", "locks", "0002_more.up.sql:2"),
            ("warning", "rewrites", "0002_more.up.sql:3"),
            ("warning", "rewrites", "0002_more.up.sql:4"),
            ("warning", "index_locks", "0002_more.up.sql:5"),
            ("warning", "scans", "0002_more.up.sql:6"),
            ("warning", "every_row", "0002_more.up.sql:7"),
        ])
    );
    assert_eq!((&object["warnings"], &object["notes"], &object["ok"]), (&json!(6), &json!(1), &json!(true)));
    assert_eq!(scene.run(&["--strict"]).await.code(), 1);
    let text = scene.shown(&scene.run(&[]).await);
    assert!(
        text.contains(
            "warning: FOLDER/0002_more.up.sql:3: writes all of message anew, and keeps everybody out meanwhile\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("1 migration tried: no error, 6 warnings, 1 note"), "{text}");
    scene.end().await;
}

/// Goal: a down file that leaves something, or after which the migration makes something else, is an error that names each object. Method: a
/// column that stays; a default that the second time finds another table.
#[tokio::test]
async fn a_down_file_must_take_all_back() {
    let scene = Scene::new(&[
        ("0002_two.up.sql", "alter table message add if not exists a int; create table if not exists b (n int)"),
        (
            "0002_two.down.sql",
            "drop table b; create table b (other text); alter table message alter level set default 1",
        ),
    ])
    .await;
    let output = scene.run(&[]).await;
    // A schema of its own has no name that all tenants' have.
    let own = if scene.database.isolation() == Isolation::Database { "public." } else { "" };
    assert_eq!(
        scene.shown(&output),
        "error: FOLDER/0002_two.down.sql: its down file does not take all back\n    \
             column public.message.a is left\n    \
             column public.message.level was integer, and is integer default 1\n    \
             table public.b is left\n    \
             mend the down file: a rollback would leave tenants that no migration knows\n\
         error: FOLDER/0002_two.down.sql: applied again after its down file it makes something else\n    \
             column public.b.n is missing\n    \
             column public.b.other is left\n    \
             column public.message.level was integer, and is integer default 1\n    \
             mend the down file: a rollback would leave tenants that no migration knows\n\
         note: FOLDER/0002_two.up.sql:1: keeps others out of message from here to the end of the migration\n    \
             what takes long belongs into a migration of its own\n\
         1 migration tried: 2 errors, no warning, 1 note"
            .replace("public.", own)
    );
    assert_eq!(output.code(), 1);
    scene.end().await;
}

/// Goal: what fails is shown at its place in its file, and what comes after is not tried. Method: SQL that fails upwards, then downwards, then what
/// cannot run in a transaction.
#[tokio::test]
async fn what_fails_ends_the_trial() {
    let third = [("0003_c.up.sql", "create table c ()"), ("0003_c.down.sql", "drop table c")];
    let scene = Scene::new(&third).await;
    let cases = [
        ("select 1;\nselect no_such_column", "select 1", "0002_b.up.sql:2", "column \"no_such_column\" does not exist"),
        ("create table b ()", "\n\ndrop table nowhere", "0002_b.down.sql:3", "table \"nowhere\" does not exist"),
        (
            "create index concurrently i on message (level)",
            "select 1",
            "0002_b.up.sql:1",
            "cannot run inside a transaction block",
        ),
    ];
    for (up, down, place, says) in cases {
        write_migrations(scene.folder.path(), &[("0002_b.up.sql", up), ("0002_b.down.sql", down)]);
        let (object, found) = scene.found(&[]).await;
        assert_eq!(found, expected(&[("error", "fails", place)]), "{object}");
        assert!(object["findings"][0]["text"].as_str().is_some_and(|text| text.contains(says)), "{object}");
        assert_eq!((&object["chosen"], &object["tried"]), (&json!(2), &json!(1)));
    }
    let text = scene.shown(&scene.run(&[]).await);
    assert!(text.contains("    begin FOLDER/0002_b.up.sql with the comment \"-- tenantd: no-transaction\""), "{text}");
    assert!(text.ends_with("1 migration tried: 1 error, no warning, no note\n1 migration not tried"), "{text}");
    scene.end().await;
}
