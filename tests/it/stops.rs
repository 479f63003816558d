//! A stop in the middle of anything: whatever the daemon has in hand is given back at once, and another goes on without waiting for a lease.

use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::fail_points::Point;

use crate::crashes::is_reached;
use crate::fleet::{execute, half_made, write_migrations};
use crate::life::tenants;
use crate::sql::one;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

const FIRST: (&str, &str) = ("0001_log.sql", "create table log (message text)");

/// A main database where one daemon after the other is stopped at a point of its work.
struct Scene {
    database: TestDatabase,
    folder: tempfile::TempDir,
    program: Program,
}

impl Scene {
    /// With leases that nobody could wait for, and no time to finish what is in hand.
    async fn new() -> Scene {
        let (database, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
        write_migrations(folder.path(), &[FIRST]);
        let program = Program::for_database(&database)
            .setting("tenant.migrations", &folder.path().display().to_string())
            .setting("work.lease", "1h")
            .setting("work.shutdown", "100ms")
            .setting("retry.first", "100ms")
            .setting("retry.max", "1s")
            .setting("signup.poll", "100ms")
            .setting("sweep.every", "1s");
        Scene { database, folder, program }
    }

    /// A daemon that comes to `point` hangs there, is asked to end, and leaves nothing leased and nobody connected.
    async fn stop_at(&self, point: Point, settings: &[(&str, &str)]) {
        if !is_reached(point, self.database.isolation()) {
            return;
        }
        let program = settings.iter().fold(self.program.clone(), |program, (key, value)| program.setting(key, value));
        let mut daemon = program.variable("TENANTD_FAIL_POINT", &format!("hang:{}", point.word())).start();
        // The daemon's own panic would not tell which.
        until(&format!("{point:?}"), SOON, async || daemon.lines().iter().any(|line| line.contains("the work hangs")))
            .await;
        daemon.signal(Signal::TERM);
        let ended = daemon.ended(SOON).await;
        assert_eq!(ended.code(), Some(0), "{point:?}: {}", daemon.lines().join("\n"));
        daemon.kill();
        let client = self.database.superuser().await;
        let leases = "select (select count(*) from tenantd.tenant where leased_by is not null)
                           + (select count(*) from tenantd.rollout where leased_by is not null)
                           + (select count(*) from tenantd.registry where keeper is not null)";
        assert_eq!(one::<i64>(&client, leases).await, 0, "{point:?}: leases that are left");
        let connected = "select count(*) from pg_stat_activity where starts_with(application_name, 'tenantd')
                         and (datname = current_database() or starts_with(datname, $1))";
        until(&format!("{point:?}: the end of its connections"), SOON, async || {
            let row = client.query_one(connected, &[&self.database.prefix()]).await.expect("look who is there");
            row.get::<_, i64>(0) == 0
        })
        .await;
    }

    /// A daemon that is let work: all tenants come to rest at `version`, with nothing half made.
    async fn go_on(self, version: i64) {
        let program = self.program.clone().setting("spares.max", "0").setting("work.shutdown", "30s");
        let daemon = program.start().allow("tenant failing, tried again");
        daemon.wait_for_line("tenantd is at work", SOON).await;
        let client = self.database.superuser().await;
        let restless = "select (select count(*) from tenantd.signup)
            + (select count(*) from tenantd.tenant where state <> 'deleted' and not
               (state = 'ready' and work = 'idle' and version = $1 and leased_until is null and verified_at is not null
                and exists (select from tenantd.place p where p.oid = database_oid and not p.public)))
            + (select count(*) from tenantd.rollout where version = $1 and state <> 'done')
            + (select count(*) from tenantd.template where version <> $1 or completed_at is null or retired_at is not null)
            + (select count(*) from tenantd.dropped)";
        until("all to be at rest", SOON, async || {
            client.query_one(restless, &[&version]).await.expect("look").get::<_, i64>(0) == 0
        })
        .await;
        until("what was half made is dropped", SOON, async || half_made(&self.database).await.is_empty()).await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        drop(client);
        self.database.finish().await;
    }
}

/// From a signup to its tenant, with the template before it.
async fn making() {
    let scene = Scene::new().await;
    assert_eq!(scene.program.run(&["setup"]).await.code(), 0);
    scene.database.sign_up("one@example.org").await;
    let [before, made]: [&[Point]; 2] = match scene.database.isolation() {
        Isolation::Database => [
            &[
                Point::TemplateAnnounced,
                Point::TemplateMade,
                Point::TemplateOpened,
                Point::MigrationBegun,
                Point::TemplateFilled,
                Point::TemplateClosed,
                Point::TemplateComplete,
            ],
            &[Point::Announced, Point::Made, Point::Taken, Point::HandedOver],
        ],
        // A schema is migrated as it is made, and taken back where the hand-over is missing.
        Isolation::Schema => [&[], &[Point::MigrationBegun, Point::Made, Point::TakenBack]],
    };
    for point in [before, &[Point::Claimed, Point::Named], made].into_iter().flatten() {
        scene.stop_at(*point, &[]).await;
    }
    // One that the trigger missed.
    execute(
        &scene.database,
        "set session_replication_role = replica; insert into public.users (email) values ('missed')",
    )
    .await;
    scene.stop_at(Point::Requested, &[]).await;
    scene.go_on(1).await;
}

/// Tenants that stand, each damaged in another way, and spares.
async fn mending() {
    let scene = Scene::new().await;
    let damages = [
        (
            Point::SetAside,
            "update pg_database set datconnlimit = -2 where datname = '{name}';
             update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'",
        ),
        (
            Point::TakenBack,
            "update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'",
        ),
        (Point::Mended, "grant connect on database \"{name}\" to public"),
        (Point::Granted, "update tenantd.tenant set access = 'other' where key = '{key}'"),
        (Point::Looked, "update tenantd.tenant set verified_at = null where key = '{key}'"),
    ];
    let keys = tenants(&scene.database, &scene.program, damages.len()).await;
    for ((point, damage), key) in damages.iter().zip(&keys) {
        if !is_reached(*point, scene.database.isolation()) {
            continue;
        }
        let damage = damage.replace("{name}", &scene.database.tenant_name(key)).replace("{key}", key);
        if *point == Point::Mended {
            scene.database.outside(&damage).await;
        } else {
            execute(&scene.database, &damage).await;
        }
        scene.stop_at(*point, &[]).await;
    }
    execute(&scene.database, "update tenantd.template set retired_at = now()").await;
    scene.stop_at(Point::TemplateRetired, &[]).await;
    let some = [("spares.min", "1"), ("spares.max", "1")];
    scene.stop_at(Point::SpareAnnounced, &some).await;
    scene.stop_at(Point::SpareMade, &some).await;
    scene.go_on(1).await;
}

/// A rollout by statements, and one that every tenant stumbles over.
async fn rolling_out() {
    let scene = Scene::new().await;
    let keys = tenants(&scene.database, &scene.program, 5).await;
    let second =
        "-- tenantd: no-transaction\ncreate table second ();\ncreate index concurrently log_second on log (message);";
    write_migrations(scene.folder.path(), &[("0002_second.sql", second)]);
    let settings = [("rollout.canary", "1"), ("rollout.waves", "50%,100%")];
    for point in [Point::CanariesChosen, Point::StatementDone, Point::Migrated, Point::CanariesPassed, Point::WaveEnded]
    {
        scene.stop_at(point, &settings).await;
    }
    scene.stop_at(Point::RolloutDone, &settings).await;
    for key in &keys {
        let client = scene.database.tenant_superuser(&scene.database.tenant_name(key)).await;
        client.batch_execute("insert into log values ('poison')").await.expect("poison");
    }
    let third = "alter table log add constraint clean check (message <> 'poison')";
    write_migrations(scene.folder.path(), &[("0003_third.sql", third)]);
    scene.stop_at(Point::RolloutPaused, &settings).await;
    for key in &keys {
        let client = scene.database.tenant_superuser(&scene.database.tenant_name(key)).await;
        client.batch_execute("delete from log").await.expect("mend");
    }
    scene.go_on(3).await;
}

/// A tenant that goes with its user.
async fn dropping() {
    let scene = Scene::new().await;
    let program = scene.program.clone().setting("signup.on_delete", "drop").setting("drop.grace", "0s");
    let scene = Scene { program, ..scene };
    let keys = tenants(&scene.database, &scene.program, 2).await;
    execute(&scene.database, &format!("delete from public.users where id = '{}'", keys[0])).await;
    for point in [Point::Shut, Point::Vacated, Point::Dropped, Point::Condemned, Point::Purged] {
        scene.stop_at(point, &[]).await;
    }
    scene.go_on(1).await;
}

/// Goal: SIGTERM at any step of the daemon's work ends it with 0 and gives back at once what it had leased: tenants, a rollout, templates and spares;
/// nothing of it stays connected, and the next goes on from there. Method: leases of an hour; one daemon after the other that hangs at a fail
/// point and is asked to end, then one that does not hang.
#[tokio::test]
async fn a_stop_at_any_step_leaves_nothing_leased() {
    tokio::join!(Box::pin(making()), Box::pin(mending()), Box::pin(rolling_out()), Box::pin(dropping()));
}

/// Goal: a command that takes data away or back comes to its end when it is asked to stop, ends with 0, and leaves nothing leased. Method: each is
/// held at a fail point in its middle until the signal.
#[tokio::test]
async fn a_command_that_is_asked_to_stop_comes_to_its_end() {
    let (database, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
    let program = crate::life::program(&database, folder.path()).setting("work.lease", "1h");
    let keys = tenants(&database, &program, 3).await;
    // A database that takes another's place is looked at anew; a schema is made in its place.
    let emptied = if database.isolation() == Isolation::Database { "ready due" } else { "ready idle" };
    let steps: [(Point, usize, &[&str], &str); 6] = [
        (Point::Dumped, 0, &["drop"], "deleting held"),
        (Point::Restored, 0, &["restore"], "ready due"),
        (Point::Vacated, 1, &["drop", "--skip-backup"], "deleting held"),
        (Point::Condemned, 1, &["drop", "--now", "--yes"], "unknown"),
        (Point::Made, 2, &["reset", "--yes", "--skip-backup"], emptied),
        (Point::Dropped, 2, &["drop", "--skip-backup"], "deleting held"),
    ];
    let isolation = database.isolation();
    for (point, tenant, words, stands) in steps.into_iter().filter(|step| is_reached(step.0, isolation)) {
        let held = program.clone().variable("TENANTD_FAIL_POINT", &format!("hold:{}", point.word()));
        let arguments = [&words[..1], &[keys[tenant].as_str()], &words[1..]].concat();
        let mut command = held.start_with(&arguments);
        command.wait_for_line("the work is held at a fail point", SOON).await;
        command.signal(Signal::TERM);
        let ended = command.ended(SOON).await;
        assert_eq!(ended.code(), Some(0), "{point:?}: {}", command.lines().join("\n"));
        command.kill();
        assert_eq!(crate::life::standing(&database, &keys[tenant]).await, stands, "{point:?}");
        let leases = "select count(*) from tenantd.tenant where leased_by is not null";
        assert_eq!(one::<i64>(&database.superuser().await, leases).await, 0, "{point:?}: leases that are left");
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(half_made(&database).await, Vec::<String>::new());
    database.finish().await;
}
