//! Whoever drives a rollout dies between any two steps of it, and another goes on where it stood.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures_util::StreamExt;
use tenantd::fail_points::Point;

use crate::fleet::{execute, write_migrations};
use crate::life::tenants;
use crate::sql::one;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// Goal: whatever a rollout's driver was doing when it died, every tenant gets the set, once, and the rollout is done, with the canaries that it had;
/// one that was paused stays so until the reason is mended. Method: for each point a daemon that dies there, then one that does not.
#[tokio::test]
async fn a_rollout_whose_driver_died_is_gone_on_with() {
    let points = [
        Point::CanariesChosen,
        Point::StatementDone,
        Point::CanariesPassed,
        Point::RolloutPaused,
        Point::WaveEnded,
        Point::RolloutDone,
    ];
    futures_util::stream::iter(points).map(die_and_go_on).buffer_unordered(3).collect::<Vec<()>>().await;
}

async fn die_and_go_on(point: Point) {
    let (database, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
    write_migrations(folder.path(), &[("0001_log.sql", "create table log (message text)")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("rollout.canary", "1")
        .setting("rollout.waves", "50%,100%")
        .setting("retry.first", "100ms")
        .setting("retry.max", "1s")
        .setting("sweep.every", "1s");
    let keys = tenants(&database, &program, 4).await;
    let each = async |sql: &str| {
        for key in &keys {
            let client = database.tenant_superuser(&database.tenant_name(key)).await;
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{point:?}: {error:?}"));
        }
    };
    let sql = match point {
        Point::RolloutPaused => {
            "alter table log add constraint clean check (message <> 'poison'); create table second ()"
        }
        _ => {
            "-- tenantd: no-transaction\ncreate table second ();\ncreate index concurrently log_second on log (message);"
        }
    };
    write_migrations(folder.path(), &[("0002_second.sql", sql)]);
    if point == Point::RolloutPaused {
        each("insert into log values ('poison')").await;
    }
    let mut dying = program.clone().variable("TENANTD_FAIL_POINT", &point.word()).start();
    let ended = dying.ended(SOON).await;
    assert!(ended.signal().is_some(), "{point:?}: it ended by itself: {ended}\n{}", dying.lines().join("\n"));
    dying.kill();
    let client = database.superuser().await;
    let canaries = "select array_to_string(canaries, ',') from tenantd.rollout where version = 2";
    let chosen: Option<String> = one(&client, canaries).await;
    assert!(chosen.is_some(), "{point:?}");
    // What a dead process leased is free sooner than its leases end.
    execute(&database, "update tenantd.rollout set leased_until = now(); update tenantd.tenant set leased_until = now() where leased_until > now();
        update tenantd.registry set keeper_until = now()").await;

    let daemon = program.start().allow("tenant failing, tried again").allow("rollout paused");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    if point == Point::RolloutPaused {
        daemon.wait_for_line("tenant failing, tried again", SOON).await;
        let reached = "select count(*) from tenantd.tenant where version = 2 or work = 'failing'";
        assert_eq!(one::<i64>(&client, reached).await, 1, "the canary alone");
        each("delete from log").await;
    }
    let done = "select (select state = 'done' and leased_by is null from tenantd.rollout where version = 2)
                and (select bool_and(work = 'idle' and version = 2 and leased_until is null) from tenantd.tenant)";
    until(&format!("{point:?}: the rollout's end"), SOON, async || one::<bool>(&client, done).await).await;
    assert_eq!(one::<Option<String>>(&client, canaries).await, chosen, "{point:?}");
    assert_eq!(daemon.terminate().await.code(), Some(0), "{point:?}");
    for key in &keys {
        let tenant = database.tenant_superuser(&database.tenant_name(key)).await;
        let whole =
            "select to_regclass('second') is not null and not exists (select from pg_index where not indisvalid)
                     and (select count(*) from tenantd_migration where applied_at is not null) = 2";
        assert!(one::<bool>(&tenant, whole).await, "{point:?}");
    }
    drop(client);
    database.finish().await;
}
