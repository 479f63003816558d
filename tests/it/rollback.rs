//! `tenantd rollback`, the built program on a real server.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tenantd::fail_points::Point;

use crate::fleet::{Fleet, execute, row, write_migrations};
use crate::sql::one;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

const FILES: [(&str, &str); 6] = [
    ("0001_message.up.sql", "create table message (id int primary key, level int)"),
    ("0001_message.down.sql", "drop table message"),
    ("0002_author.up.sql", "alter table message add author text"),
    ("0002_author.down.sql", "-- What was written into it goes, too.\nalter table message drop author"),
    ("0003_index.up.sql", "-- tenantd: no-transaction\ncreate index concurrently message_level on message (level)"),
    ("0003_index.down.sql", "-- tenantd: no-transaction\ndrop index concurrently message_level"),
];

/// A main database whose tenants have all three migrations, in the order of their keys.
struct Scene {
    database: TestDatabase,
    folder: TempDir,
    program: Program,
    keys: Vec<String>,
}

impl Scene {
    async fn new(tenants: usize) -> Scene {
        let database = TestDatabase::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        write_migrations(folder.path(), &FILES);
        let fleet = Fleet::with_folder(&database, folder.path()).await;
        let mut keys = Vec::new();
        for number in 0..tenants {
            keys.push(database.sign_up(&format!("{number}@example.org")).await);
        }
        keys.sort();
        assert_eq!(fleet.sweep().await.made, tenants);
        fleet.close().await;
        let program = Program::for_database(&database)
            .setting("tenant.migrations", &folder.path().display().to_string())
            .setting("log.level", "warn");
        Scene { database, folder, program, keys }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.program.run(&[&["rollback"], arguments].concat()).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat()).await;
        serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    /// Version, work and the tables' columns and indexes of the `nth` tenant.
    async fn stands(&self, nth: usize) -> (i64, String, String) {
        let recorded = row(&self.database, &self.keys[nth]).await;
        let client = self.database.tenant_superuser(&self.database.tenant_name(&self.keys[nth])).await;
        let has = "select coalesce(string_agg(name, ' ' order by name), '') from (
                       select attname::text as name from pg_attribute where attrelid = to_regclass('message') and attnum > 0 and not attisdropped
                       union all select indexrelid::regclass::text from pg_index where indrelid = to_regclass('message')) o";
        (
            recorded["version"].as_i64().expect("a version"),
            recorded["work"].as_str().expect("work").to_owned(),
            one(&client, has).await,
        )
    }

    /// What happened to the `nth` tenant, the oldest first.
    async fn events(&self, nth: usize) -> Vec<(String, String)> {
        let select = "select what, coalesce(detail, '') from tenantd.event where key = $1 order by id";
        let rows = self.database.superuser().await.query(select, &[&self.keys[nth]]).await.expect("the events");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn leased(&self) -> i64 {
        one(&self.database.superuser().await, "select count(*) from tenantd.tenant where leased_until is not null")
            .await
    }

    /// Keys and times replaced, so that it can be compared.
    fn shown(&self, output: &Output) -> String {
        let mut text = output.stdout.clone();
        for (nth, key) in self.keys.iter().enumerate() {
            text = text.replace(key, &format!("KEY{nth}"));
        }
        text = text.replace(&self.folder.path().display().to_string(), "FOLDER");
        let lines = text.lines().map(|line| match line.rsplit_once(" failed, in ") {
            Some((before, _)) => format!("{before} failed, in TIME\n"),
            None => format!("{line}\n"),
        });
        lines.collect()
    }
}

fn events(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(what, detail)| ((*what).to_owned(), (*detail).to_owned())).collect()
}

const WHOLE: &str = "author id level message_level message_pkey";

/// Goal: one tenant goes back and stays there, beside a daemon that sweeps; the dry run says before what is done, and does nothing. Method: two
/// steps back of the first of two tenants.
#[tokio::test]
async fn one_goes_back_and_stays_there() {
    let scene = Scene::new(2).await;
    let daemon = scene.program.clone().setting("sweep.every", "1s").setting("log.level", "info").start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let beginning = &scene.keys[0][..13];
    let dry = scene.run(&[beginning, "--steps", "2", "--dry-run"]).await;
    assert_eq!(
        scene.shown(&dry),
        "KEY0 would go from 3 to 1: 3 index, 2 author taken back\n\
         \n\
         -- FOLDER/0003_index.down.sql, without a transaction\n\
         -- tenantd: no-transaction\n\
         drop index concurrently message_level\n\
         \n\
         -- FOLDER/0002_author.down.sql, in a transaction\n\
         -- What was written into it goes, too.\n\
         alter table message drop author\n\
         \n\
         1 tenant chosen, 1 to be rolled back, 0 no newer than that, 0 failed, in TIME\n"
    );
    assert_eq!((dry.code(), scene.stands(0).await), (0, (3, "idle".to_owned(), WHOLE.to_owned())));
    assert_eq!(scene.events(0).await, []);

    let done = scene.run(&[beginning, "--steps", "2", "--yes"]).await;
    assert_eq!(
        scene.shown(&done),
        "KEY0 went from 3 to 1: 3 index, 2 author taken back\n\
         1 tenant chosen, 1 rolled back, 0 no newer than that, 0 failed, in TIME\n\
         what was rolled back is held: `tenantd release` lets the next sweep bring it up again\n"
    );
    assert_eq!(done.code(), 0, "{done:?}");
    let back = (1, "held".to_owned(), "id level message_pkey".to_owned());
    assert_eq!(scene.stands(0).await, back);
    let told = events(&[("held", "to be rolled back from 3 to 1"), ("rolled_back", "from 3 to 1")]);
    assert_eq!(scene.events(0).await, told);
    assert!(scene.program.run(&["--sweep-once"]).await.stdout.contains("nothing to do"));
    assert_eq!((scene.stands(0).await, scene.stands(1).await), (back, (3, "idle".to_owned(), WHOLE.to_owned())));

    let again = scene.json(&[&scene.keys[0], "--to-name", "message", "--yes"]).await;
    assert_eq!((&again["unchanged"], &again["rolled_back"], &again["ok"]), (&json!(1), &json!([]), &json!(true)));
    execute(&scene.database, "update tenantd.tenant set work = 'due', due_at = now()").await;
    until("brought up again once it is let go", SOON, async || scene.stands(0).await.2 == WHOLE).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    scene.database.finish().await;
}

/// Goal: all go back, several at a time; one that fails is told, stays as it was, and stops no other. Method: a view in one tenant that needs
/// the column; nothing below it in the set is touched.
#[tokio::test]
async fn one_that_fails_stops_no_other() {
    let scene = Scene::new(4).await;
    let name = scene.database.tenant_name(&scene.keys[1]);
    let tenant = scene.database.tenant_superuser(&name).await;
    tenant.batch_execute("create view authors as select author from message").await.expect("a view");
    drop(tenant);
    let done = scene.json(&["--all", "--to", "1", "--yes", "--parallel", "2"]).await;
    assert_eq!((&done["chosen"], &done["failures"], &done["ok"]), (&json!(4), &json!(1), &json!(false)));
    assert_eq!(done["failed"][0]["key"], json!(scene.keys[1]));
    assert_eq!(done["failed"][0]["error"]["sqlstate"], json!("2BP01"));
    let steps = json!([{ "version": 3, "name": "index" }, { "version": 2, "name": "author" }]);
    let first = json!({ "key": scene.keys[0], "from": 3, "to": 1, "steps": steps });
    assert_eq!((&done["rolled_back"][0], done["rolled_back"].as_array().map(Vec::len)), (&first, Some(3)));
    // The index was taken back before.
    assert_eq!(scene.stands(1).await, (2, "held".to_owned(), "author id level message_pkey".to_owned()));
    let told = scene.events(1).await;
    assert!(told[1].0 == "rolled_back" && told[1].1.starts_with("from 3 to 2, not to 1: "), "{told:?}");
    let recorded = row(&scene.database, &scene.keys[1]).await;
    assert_eq!((&recorded["error_step"], &recorded["error_sqlstate"]), (&json!("roll_back"), &json!("2BP01")));
    assert_eq!(scene.leased().await, 0);

    let again = scene.run(&[&scene.keys[1], "--steps", "1", "--yes"]).await;
    let text = scene.shown(&again);
    assert!(
        text.starts_with("KEY1 failed: FOLDER/0002_author.down.sql:2:1: cannot drop column author of table message"),
        "{text}"
    );
    assert_eq!((again.code(), scene.stands(1).await.1), (1, "held".to_owned()));
    scene.database.finish().await;
}

/// Goal: what cannot be done is refused by name before anything is touched. Method: each mistake, and a failure before anything was taken back.
#[tokio::test]
async fn what_cannot_be_done_is_refused_first() {
    let scene = Scene::new(1).await;
    let key = scene.keys[0].clone();
    let near = format!("{}0000", &key[..32]);
    let cases: [(&[&str], &str); 9] = [
        (&[&key, "--to", "1"], "Without a terminal nothing is done unasked"),
        (&[&near, "--to", "1", "--yes"], "the nearest: "),
        (&[&key, "--to", "7", "--yes"], "holds no migration of version 7\nhint: the nearest: 3 \"index\""),
        (&[&key, "--to-name", "autor", "--yes"], "holds no migration called \"autor\"\nhint: the nearest: author"),
        (&[&key, "--yes"], "--to <VERSION>"),
        (&["--to", "1", "--yes"], "--all"),
        (&[&key, "--all", "--to", "1"], "cannot be used with"),
        (&[&key, "--steps", "0"], "0 is not in 1.."),
        (&[&key, "--to", "1", "--steps", "1"], "cannot be used with"),
    ];
    for (arguments, says) in cases {
        let output = scene.run(arguments).await;
        assert!(output.code() == 2 && output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    std::fs::remove_file(scene.folder.path().join("0002_author.down.sql")).expect("remove a file");
    let output = scene.run(&["--all", "--steps", "2", "--yes"]).await;
    assert!(output.code() == 2 && output.stderr.contains("0002_author.up.sql has no down file"), "{output:?}");
    write_migrations(scene.folder.path(), &[FILES[3], ("0003_index.up.sql", "select 1")]);
    let output = scene.run(&["--all", "--steps", "1", "--yes"]).await;
    assert!(
        output.code() == 1 && output.stdout.contains("0003_index.up.sql was changed after version 3"),
        "{output:?}"
    );
    write_migrations(scene.folder.path(), &[FILES[4], ("0003_index.down.sql", "drop index no_such_index")]);
    assert_eq!(scene.events(0).await, [], "so far nothing was begun");
    assert_eq!(scene.run(&["--all", "--steps", "1", "--yes"]).await.code(), 1);
    assert_eq!(scene.stands(0).await, (3, "idle".to_owned(), WHOLE.to_owned()));
    let told = scene.events(0).await;
    assert_eq!(told[0], ("held".to_owned(), "to be rolled back from 3 to 2".to_owned()));
    assert!(told[1].0 == "released" && told[1].1.starts_with("nothing was rolled back: "), "{told:?}");

    let claimed = "update tenantd.tenant set leased_until = now() + interval '1 hour', leased_by = 'elsewhere:1:abcd'";
    execute(&scene.database, claimed).await;
    let output = scene.run(&[&key, "--steps", "1", "--yes", "--timeout", "100ms"]).await;
    assert!(output.code() == 1 && output.stdout.contains("is in the hands of elsewhere:1:abcd"), "{output:?}");
    execute(&scene.database, "update tenantd.tenant set leased_until = null, leased_by = null, state = 'requested'")
        .await;
    let output = scene.run(&[&key, "--steps", "1", "--yes"]).await;
    assert!(
        output.code() == 2 && output.stdout.contains("is requested, and this is for one that is ready"),
        "{output:?}"
    );
    execute(&scene.database, "update tenantd.tenant set state = 'ready'").await;
    let unmark = format!("comment on database {} is 'mine'", scene.database.tenant_name(&key));
    scene.database.outside(&unmark).await;
    let output = scene.run(&[&key, "--steps", "1", "--yes"]).await;
    assert!(output.code() == 1 && output.stdout.contains("does not bear this registry's marker"), "{output:?}");
    scene.database.finish().await;
}

/// Goal: each tenant is written to a file before anything is taken back, unless a person does without; where that fails, nothing is taken back.
/// Method: a file in the place of the folder, a folder, then --skip-backup.
#[tokio::test]
async fn a_backup_comes_first() {
    let scene = Scene::new(1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["rollback", "--all", "--steps", "1", "--yes"];
    let in_the_way = folder.path().join("in the way");
    std::fs::write(&in_the_way, "a file").expect("write");
    let nowhere = scene.program.clone().setting("backup.folder", &in_the_way.display().to_string());
    let output = nowhere.run(&arguments).await;
    assert!(output.code() != 0 && output.stderr.contains("in the way"), "{output:?}");
    assert_eq!((scene.stands(0).await.0, scene.events(0).await), (3, vec![]));
    std::fs::remove_file(in_the_way).expect("remove");
    let program = scene.program.clone().setting("backup.folder", &folder.path().display().to_string());
    let output = program.run(&arguments).await;
    assert_eq!(output.code(), 0, "{output:?}");
    let told: Vec<String> = scene.events(0).await.into_iter().map(|(what, _)| what).collect();
    assert_eq!(told, ["backed_up", "held", "rolled_back"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
    let output = program.run(&["rollback", "--all", "--steps", "1", "--yes", "--skip-backup"]).await;
    assert_eq!((output.code(), std::fs::read_dir(folder.path()).expect("the folder").count()), (0, 1), "{output:?}");
    scene.database.finish().await;
}

/// Goal: killed at any point, a tenant is held between two migrations or has one half undone, no daemon touches it, and the next rollback goes
/// on. Method: for each fail point a command that dies there beside a running daemon, then one that does not.
#[tokio::test]
async fn killed_at_any_point_it_is_held_and_goes_on() {
    let points = [Point::RollbackBegun, Point::StatementUndone, Point::Undone, Point::RolledBack];
    for point in points {
        let scene = Scene::new(1).await;
        let daemon = scene.program.clone().setting("sweep.every", "1s").setting("log.level", "info").start();
        daemon.wait_for_line("tenantd is at work", SOON).await;
        let arguments = ["rollback", "--all", "--to", "1", "--yes", "--timeout", "1m"];
        let dying = scene.program.clone().variable("TENANTD_FAIL_POINT", &point.word()).run(&arguments).await;
        assert_eq!(dying.code(), -1, "{point:?}: {dying:?}");
        // What a dead process leased is free sooner than its lease ends.
        execute(&scene.database, "update tenantd.tenant set leased_until = now()").await;
        assert_eq!(scene.stands(0).await.1, "held", "{point:?}");
        assert_eq!(scene.program.run(&["--sweep-once"]).await.code(), 0, "{point:?}");
        let expected = match point {
            Point::RollbackBegun => WHOLE,
            Point::RolledBack => "id level message_pkey",
            _ => "author id level message_pkey",
        };
        assert_eq!(scene.stands(0).await.2, expected, "{point:?}");
        let output = scene.program.run(&arguments).await;
        assert_eq!(output.code(), 0, "{point:?}: {output:?}");
        assert_eq!(scene.stands(0).await, (1, "held".to_owned(), "id level message_pkey".to_owned()), "{point:?}");
        assert_eq!(scene.events(0).await.last().map(|last| last.0.as_str()), Some("rolled_back"), "{point:?}");
        assert_eq!(daemon.terminate().await.code(), Some(0));
        scene.database.finish().await;
    }
}
