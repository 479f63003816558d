//! Commands that die between any two steps of taking data away and back: whatever they leave, no row is lost, and the next ones go on.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures_util::StreamExt;
use tenantd::config::Isolation;
use tenantd::fail_points::Point;

use crate::crashes::is_reached;
use crate::fleet::{enter, execute, half_made, oid, write_migrations};
use crate::life::{files, messages, program, standing, tenants, write};
use crate::sql::one;
use crate::support::daemon::Program;
use crate::support::database::{TestDatabase, isolation};

const SOON: Duration = Duration::from_mins(1);

/// What leads to a point, how the tenant stands after the death and after the next sweep, and what brings the row back then.
#[derive(Clone, Copy)]
struct Case {
    point: Point,
    /// Begun with the tenant's key; `FILE` is its backup.
    command: &'static [&'static str],
    /// Done before, with all its ways.
    before: &'static [&'static [&'static str]],
    /// State after the death; after a sweep.
    stands: (&'static str, &'static str),
    /// What the tenant holds after the sweep; `None`: nothing can be asked.
    holds: Option<&'static str>,
    /// What brings back what the tenant held, if it needs anything.
    rescue: &'static [&'static str],
}

const DROP: &[&str] = &["drop", "KEY", "--skip-backup"];
const RESTORE: &[&str] = &["restore", "KEY"];
const OVER: &[&str] = &["restore", "KEY", "--replace"];
const FROM_FILE: &[&str] = &["restore", "KEY", "--from", "FILE", "--replace"];
const RESET: &[&str] = &["reset", "KEY", "--yes", "--skip-backup"];

const fn case(point: Point, command: &'static [&'static str], stands: (&'static str, &'static str)) -> Case {
    Case { point, command, before: &[], stands, holds: Some("precious"), rescue: &[] }
}

fn cases(isolation: Isolation) -> Vec<Case> {
    match isolation {
        Isolation::Database => of_databases(),
        Isolation::Schema => of_schemas(),
    }
}

/// A schema is emptied and filled under its own name: a sweep makes an empty one anew, and nothing in the place of what was to come from a backup.
fn of_schemas() -> Vec<Case> {
    let half = ("requested held", "requested held");
    let emptied =
        Case { holds: Some(""), rescue: OVER, ..case(Point::SetAside, RESET, ("requested due", "ready idle")) };
    let filled = |point| Case { holds: None, rescue: OVER, ..case(point, FROM_FILE, half) };
    let kept = [Point::Dumped, Point::BackedUp, Point::Dropped, Point::Restored, Point::Condemned, Point::Purged];
    let mut cases: Vec<Case> = of_databases().into_iter().filter(|case| kept.contains(&case.point)).collect();
    cases.extend([
        Case { point: Point::Made, ..emptied },
        Case { point: Point::HandedOver, ..emptied },
        emptied,
        Case { rescue: RESTORE, ..filled(Point::SetAside) },
        filled(Point::FillBegun),
        filled(Point::Filled),
        Case {
            holds: Some("backed up"),
            rescue: OVER,
            ..case(Point::Exchanged, FROM_FILE, ("ready due", "ready idle"))
        },
    ]);
    cases
}

fn of_databases() -> Vec<Case> {
    let ready = ("ready idle", "ready idle");
    vec![
        case(Point::Dumped, &["drop", "KEY"], ready),
        case(Point::BackedUp, &["drop", "KEY"], ready),
        case(Point::Shut, DROP, ready),
        case(Point::Vacated, DROP, ready),
        case(Point::Shut, RESET, ready),
        case(Point::Shut, FROM_FILE, ready),
        case(Point::FillBegun, FROM_FILE, ready),
        case(Point::Filled, FROM_FILE, ready),
        case(Point::Made, RESET, ready),
        Case { holds: None, rescue: RESTORE, ..case(Point::Dropped, DROP, ("deleting held", "deleting held")) },
        Case { before: &[DROP], ..case(Point::Restored, RESTORE, ("ready due", "ready idle")) },
        Case { holds: Some(""), rescue: OVER, ..case(Point::Exchanged, RESET, ("ready due", "ready idle")) },
        Case {
            holds: Some("backed up"),
            rescue: OVER,
            ..case(Point::Exchanged, FROM_FILE, ("ready due", "ready idle"))
        },
        Case {
            before: &[DROP],
            holds: None,
            rescue: &["restore", "KEY", "--from", "FILE"],
            ..case(Point::Condemned, &["drop", "KEY", "--now", "--yes"], ("deleting held", "deleted"))
        },
        Case {
            before: &[DROP],
            holds: None,
            rescue: &["restore", "KEY", "--from", "FILE"],
            ..case(Point::Purged, &["drop", "KEY", "--now", "--yes"], ("deleting held", "deleted"))
        },
    ]
}

/// Goal: a command that dies at any point leaves the tenant whole: as it was, or where it was going to; what is half made is cleared away, and what
/// it held can be had again. Method: each case on a main database of its own; release-lock frees what the dead one left, a sweep goes on.
#[tokio::test]
async fn a_command_that_died_loses_nothing() {
    futures_util::stream::iter(cases(isolation())).map(die_and_go_on).buffer_unordered(4).collect::<Vec<()>>().await;
}

/// Goal: every point that only commands come to is among the cases.
#[test]
fn every_point_of_the_commands_is_died_at() {
    let points = [
        Point::Dumped,
        Point::BackedUp,
        Point::Shut,
        Point::Vacated,
        Point::Dropped,
        Point::Condemned,
        Point::Purged,
        Point::Restored,
        Point::FillBegun,
        Point::Filled,
        Point::Exchanged,
    ];
    for point in points {
        assert!(cases(Isolation::Database).iter().any(|case| case.point == point), "{point:?}");
    }
    for point in points.into_iter().filter(|point| is_reached(*point, Isolation::Schema)) {
        assert!(cases(Isolation::Schema).iter().any(|case| case.point == point), "{point:?}");
    }
}

async fn well(program: &Program, arguments: &[String], what: &str) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = program.run(&arguments).await;
    assert_eq!(output.code(), 0, "{what}: {arguments:?}: {output:?}");
}

async fn die_and_go_on(case: Case) {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&database, folder.path());
    let key = tenants(&database, &program, 1).await.remove(0);
    let (name, what) = (database.tenant_name(&key), format!("{:?} of {}", case.point, case.command[0]));
    write(&database, &key, "backed up").await;
    well(&program, &["backup".to_owned(), key.clone()], &what).await;
    let file = files(folder.path()).pop().expect("a backup").display().to_string();
    let rename = "update log_message set message = 'precious'";
    database.tenant_superuser(&name).await.batch_execute(rename).await.expect("another row than in the backup");
    let words = |command: &[&str]| -> Vec<String> {
        command.iter().map(|word| word.replace("KEY", &key).replace("FILE", &file)).collect()
    };
    for before in case.before {
        well(&program, &words(before), &what).await;
    }

    let dying = program.clone().variable("TENANTD_FAIL_POINT", &case.point.word());
    let command = words(case.command);
    let mut dying = dying.start_with(&command.iter().map(String::as_str).collect::<Vec<_>>());
    let ended = dying.ended(SOON).await;
    assert!(ended.signal().is_some(), "{what}: it ended by itself: {ended}\n{}", dying.lines().join("\n"));
    dying.kill();
    assert_eq!(standing(&database, &key).await, case.stands.0, "{what}");

    well(&program, &["release-lock".to_owned()], &what).await;
    well(&program, &["--sweep-once".to_owned()], &what).await;
    let state: String = one(
        &database.superuser().await,
        "select case state when 'deleted' then state else state || ' ' || work end from tenantd.tenant",
    )
    .await;
    assert_eq!(state, case.stands.1, "{what}");
    assert_eq!(half_made(&database).await, Vec::<String>::new(), "{what}");
    match case.holds {
        Some(holds) => {
            assert_eq!(messages(&database, &key).await, holds, "{what}");
            let app =
                enter(&database, &database.app_url(), &name).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            app.close().await;
        }
        // A schema that a backup was being read into stands half-filled under the tenant's name.
        None if case.stands.1 == "requested held" => {}
        None => assert_eq!(oid(&database, &name).await, None, "{what}"),
    }
    if !case.rescue.is_empty() {
        well(&program, &words(case.rescue), &what).await;
        well(&program, &["--sweep-once".to_owned()], &what).await;
    }
    let from_backup = case.rescue.contains(&"--from");
    assert_eq!(messages(&database, &key).await, if from_backup { "backed up" } else { "precious" }, "{what}");
    assert_eq!(standing(&database, &key).await, "ready idle", "{what}");
    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    well(&program, &["--sweep-once".to_owned()], &what).await;
    assert_eq!(one::<i64>(&database.superuser().await, "select count(*) from tenantd.dropped").await, 0, "{what}");
    database.finish().await;
}

/// Goal: an adoption that died at any step leaves a database that is a tenant's, or that the same command takes the next time, and a sweep brings it
/// up to date; what was in it is kept. Method: a database made by hand at the first of two migrations; a command that dies at each point.
#[tokio::test]
async fn an_adoption_that_died_is_gone_on_with() {
    let (database, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
    let (note, done) = ("create table note (body text)", "alter table note add column done boolean");
    write_migrations(folder.path(), &[("0001_note.sql", note), ("0002_done.sql", done)]);
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    for (point, adopted) in [(Point::Owned, false), (Point::Baselined, false), (Point::Adopted, true)] {
        let key = database.sign_up(&format!("{point:?}@example.org")).await;
        let name = database.tenant_name(&key);
        execute(&database, "delete from tenantd.signup").await;
        database.outside(&format!("create database \"{name}\" owner tenantd")).await;
        let fill = format!("{note}; insert into note values ('kept'); alter table note owner to tenant_owner");
        database.tenant_superuser(&name).await.batch_execute(&fill).await.expect("fill it");
        let adopt = ["adopt", &key, "--database", &name, "--version", "1", "--yes"];
        let dying = program.clone().variable("TENANTD_FAIL_POINT", &point.word()).run(&adopt).await;
        assert_eq!(dying.code(), -1, "{point:?}: {dying:?}");
        assert_eq!(standing(&database, &key).await != "unknown", adopted, "{point:?}");
        if !adopted {
            let again = program.run(&adopt).await;
            assert_eq!(again.code(), 0, "{point:?}: {again:?}");
        }
        let swept = program.run(&["--sweep-once"]).await;
        assert_eq!(swept.code(), 0, "{point:?}: {swept:?}");
        assert_eq!(standing(&database, &key).await, "ready idle", "{point:?}");
        let kept = "select count(*) from note where body = 'kept' and done is null";
        assert_eq!(one::<i64>(&database.tenant_superuser(&name).await, kept).await, 1, "{point:?}");
    }
    database.finish().await;
}
