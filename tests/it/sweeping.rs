//! Sweeps: what they choose, what they leave, what they cost, and that they are safe beside everything else. And the brakes.

use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::provision::{Outcome, reconcile, template};
use tenantd::registry::claim::Claim;
use tenantd::sweep::{Run, sweep};
use tenantd::tasks::Tasks;
use tenantd::tenant::spare_name;
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, execute, half_made, most, oid, row};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// Signs up `count` users in one statement.
async fn sign_up(database: &TestDatabase, count: usize) {
    let insert = format!(
        "insert into public.users (email) select gen_random_uuid() || '@example.org' from generate_series(1, {count})"
    );
    database.app().await.batch_execute(&insert).await.expect("sign up");
}

async fn count(database: &TestDatabase, condition: &str) -> i64 {
    let select = format!("select count(*) from tenantd.tenant where {condition}");
    database
        .superuser()
        .await
        .query_one(&select, &[])
        .await
        .unwrap_or_else(|error| panic!("{select}: {error:?}"))
        .get(0)
}

/// Goal: a sweep with nothing to do connects to no tenant and changes nothing. Method: a server of its own that logs each connection; the
/// registry's rows before and after, with their transactions.
#[tokio::test]
async fn a_sweep_with_nothing_to_do_touches_nothing() {
    let server = TestServer::builder().setting("log_connections", "on").start();
    let database = TestDatabase::on(&server).await;
    let fleet = Fleet::install(&database, &[]).await;
    sign_up(&database, 5).await;
    assert_eq!(fleet.sweep().await.made, 5);
    let versions = "select string_agg(xmin::text || ctid::text, ',' order by key) from tenantd.tenant";
    let client = database.superuser().await;
    let before: String = client.query_one(versions, &[]).await.expect("look").get(0);
    let logged = server.log().len();
    for by_hand in [false, true] {
        let report = fleet.try_sweep(by_hand).await.expect("sweep");
        assert_eq!((report.chosen, report.ready, report.requested, report.strays), (0, 0, 0, 0), "{report:?}");
        assert!(report.is_clean());
    }
    // A connection of the test's own, so that the log is known to have come this far.
    drop(database.app().await);
    let main = format!("user=app database={}", database.name());
    until("the log", SOON, async || server.log()[logged..].contains(&main)).await;
    let entered: Vec<String> =
        server.log()[logged..].lines().filter(|line| line.contains("database=t")).map(str::to_owned).collect();
    assert!(entered.is_empty(), "{entered:?}");
    assert_eq!(client.query_one(versions, &[]).await.expect("look").get::<_, String>(0), before);
    drop(client);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a sweep finds users without a tenant. Method: the trigger is disabled, then one signs up as replication would; both become tenants.
#[tokio::test]
async fn users_that_the_trigger_missed_are_found() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    execute(&database, "alter table public.users disable trigger tenantd_signup").await;
    sign_up(&database, 2).await;
    execute(&database, "alter table public.users enable trigger tenantd_signup").await;
    execute(&database, "set session_replication_role = replica; insert into public.users (email) values ('replica')")
        .await;
    assert_eq!(count(&database, "true").await, 0);
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.requested, report.made), (3, 3), "{report:?}");
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").requested, 0);
    fleet.close().await;
    database.finish().await;
}

/// Goal: what was broken off, or not looked at for too long, is looked at; held tenants never. Method: one tenant of each kind.
#[tokio::test]
async fn broken_off_and_unverified_tenants_are_looked_at() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("sweep.verify_every", "1h")]).await;
    sign_up(&database, 1).await;
    assert_eq!(fleet.sweep().await.made, 1);
    let damages = [
        "verified_at = now() - interval '2 hours'",
        "verified_at = null",
        "leased_until = now() - interval '1 s', leased_by = 'gone:1'",
        "leased_until = now() - interval '1 s', work = 'parked', due_at = now()",
        "leased_until = now() - interval '1 s', work = 'due', due_at = now()",
        "work = 'parked', due_at = now() - interval '2 hours'",
        "work = 'failing', failures = 3, due_at = now()",
        "migration_set = 'another'",
        "access = 'another'",
    ];
    for damage in damages {
        execute(&database, &format!("update tenantd.tenant set {damage}")).await;
        let report = fleet.try_sweep(false).await.expect("sweep");
        assert_eq!((report.chosen, report.ready, report.made), (1, 1, 0), "{damage}: {report:?}");
        let rested = "work = 'idle' and failures = 0 and leased_until is null and leased_by is null
                      and verified_at > now() - interval '1 min'";
        assert_eq!(count(&database, rested).await, 1, "{damage}");
        assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "{damage}: once is enough");
    }
    execute(&database, "update tenantd.tenant set work = 'held', verified_at = null").await;
    assert_eq!(fleet.sweep().await.chosen, 0, "held");
    fleet.close().await;
    database.finish().await;
}

/// Goal: by hand means now; the daemon's own sweep keeps to what is due. Method: a failing and a parked tenant, in vain for the one, tried by the
/// other.
#[tokio::test]
async fn by_hand_means_now() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    sign_up(&database, 2).await;
    assert_eq!(fleet.context.registry.take_all_in().await.expect("take in"), 2);
    execute(
        &database,
        "update tenantd.tenant set failures = 4, due_at = now() + interval '5 min', error_kind = 'other', error_text = 'x', work = 'failing'",
    )
    .await;
    execute(
        &database,
        "update tenantd.tenant set work = 'parked', due_at = now() where key = (select min(key) from tenantd.tenant)",
    )
    .await;
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0);
    let report = fleet.sweep().await;
    assert_eq!((report.chosen, report.made), (2, 2), "{report:?}");
    assert_eq!(count(&database, "failures = 0 and error_kind is null").await, 2);
    fleet.close().await;
    database.finish().await;
}

/// Goal: sweeps side by side do each thing once. Method: three at once over ten signups and five tenants that are behind; a fourth finds
/// nothing.
#[tokio::test]
async fn sweeps_side_by_side_do_each_thing_once() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("sweep.parallel", "3")]).await;
    sign_up(&database, 5).await;
    assert_eq!(fleet.sweep().await.made, 5);
    execute(&database, "update tenantd.tenant set access = null").await;
    sign_up(&database, 10).await;
    let reports = futures_util::future::join_all((0..3).map(|_| fleet.sweep())).await;
    assert_eq!(reports.iter().map(|report| report.made).sum::<usize>(), 10, "{reports:?}");
    assert!(reports.iter().all(|report| report.failed.is_empty() && report.server.is_none()), "{reports:?}");
    assert_eq!(fleet.sweep().await.chosen, 0);
    assert_eq!(database.tenant_databases().await.len(), 15);
    assert!(half_made(&database).await.is_empty());
    fleet.close().await;
    database.finish().await;
}

/// Goal: a tenant that somebody works on is counted busy and left to them. Method: a claim of ours stays open.
#[tokio::test]
async fn a_tenant_under_work_is_counted_busy() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    sign_up(&database, 2).await;
    let claim = fleet.registry().claim_due(most(1, 1), Duration::from_mins(1)).await.expect("claim").remove(0);
    let report = fleet.sweep().await;
    assert_eq!((report.busy, report.made, report.failed.len()), (1, 1, 0), "{report:?}");
    assert_eq!(row(&database, &claim.key).await["attempt"].as_i64(), Some(1), "not claimed again");
    let outcome = reconcile(&fleet.context, claim).await.outcome;
    assert!(matches!(outcome, Outcome::Ready { made: true, .. }), "{outcome:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: half-made databases that nobody is making are dropped; one that a live claim makes is not, and a young name is remembered, since its
/// CREATE may still be under way. Method: one of each.
#[tokio::test]
async fn strays_are_dropped() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let claim = fleet.registry().claim_due(most(1, 1), Duration::from_mins(1)).await.expect("claim").remove(0);
    let [live, young, old, never, long_gone] = std::array::from_fn(|_| spare_name());
    let written =
        format!("insert into tenantd.spare (name, key, attempt) values ('{live}', '{key}', {})", claim.attempt);
    execute(&database, &written).await;
    for (name, age, there) in
        [(&young, "1 min", true), (&old, "3 h", true), (&never, "1 min", false), (&long_gone, "3 h", false)]
    {
        let insert = format!(
            "insert into tenantd.spare (name, key, attempt, created_at) values ('{name}', '{key}', 0, now() - interval '{age}')"
        );
        execute(&database, &insert).await;
        if there {
            database.outside(&format!("create database {name} owner tenant_owner")).await;
        }
    }
    database.outside(&format!("create database {live} owner tenant_owner")).await;
    for strays in [2, 0] {
        let report = fleet.try_sweep(false).await.expect("sweep");
        assert_eq!(report.strays, strays, "{report:?}");
        assert_eq!(half_made(&database).await, [live.as_str()]);
    }
    assert_eq!((oid(&database, &young).await, oid(&database, &old).await), (None, None));
    let names = "select string_agg(name, ',' order by name) from tenantd.spare";
    let left: String = database.superuser().await.query_one(names, &[]).await.expect("look").get(0);
    let mut expected = [live, young, never];
    expected.sort();
    assert_eq!(left, expected.join(","));
    fleet.registry().release(&claim, Duration::ZERO).await.expect("give back");
    fleet.registry().put_down(&claim);
    let report = fleet.sweep().await;
    assert_eq!((report.strays, report.made), (1, 1), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a sweep that is stopped ends after the tenants in hand and says what it did not reach; what died daemons left it drops after the tenants,
/// so that nobody waits for that. Method: stopped by the first tenant's end, with a half-made database to drop.
#[tokio::test]
async fn a_stopped_sweep_finishes_what_it_has_in_hand() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("sweep.parallel", "2")]).await;
    // What is made within the moment in which results are recorded together is made still: of schemas that are several.
    let (users, most) = if database.isolation() == Isolation::Database { (8, 4) } else { (60, 50) };
    sign_up(&database, users).await;
    let stray = spare_name();
    execute(&database, &format!("insert into tenantd.spare (name, key, attempt) values ('{stray}', 'gone', 0)")).await;
    database.outside(&format!("create database {stray} owner tenant_owner")).await;
    let run = Run { by_hand: true, stop: CancellationToken::new(), only: None };
    let tasks = Tasks::new();
    let stop = run.stop.clone();
    let report = sweep(&fleet.context, &fleet.table, &tasks, &run, |_, _, _| stop.cancel()).await.expect("sweep");
    assert!(report.made >= 1 && report.made <= most && report.failed.is_empty(), "{report:?}");
    assert_eq!((report.chosen, report.made + report.unreached), (users, users), "{report:?}");
    assert_eq!((report.strays, half_made(&database).await), (0, vec![stray]), "{report:?}");
    assert!(!report.is_clean());
    assert_eq!(count(&database, "leased_until is not null").await, 0);
    let next = fleet.sweep().await;
    assert_eq!((next.made, next.strays), (report.unreached, 1), "{next:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: `--sweep-once` beside a running daemon is safe and ends well. Method: it runs while the daemon makes twenty tenants.
#[tokio::test]
async fn sweep_once_beside_a_daemon() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    sign_up(&database, 20).await;
    for _ in 0..2 {
        let swept = program.run(&["--sweep-once"]).await;
        assert_eq!(swept.code(), 0, "{}\n{}", swept.stdout, swept.stderr);
    }
    until("all twenty", SOON, async || count(&database, "state = 'ready' and work = 'idle'").await == 20).await;
    assert_eq!(count(&database, "failures > 0").await, 0);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_eq!(database.tenant_databases().await.len(), 20);
    assert!(half_made(&database).await.is_empty());
    database.finish().await;
}

/// Goal: `tenant.max` holds exactly, nothing is parked or counted, it is told, and raising it lets the rest go on. Method: five signups wait
/// before the daemon starts, so that its intake and its first sweep see the same room; the file is changed and SIGHUP sent.
#[tokio::test]
async fn the_brake_holds_exactly_until_it_is_raised() {
    let database = TestDatabase::new().await;
    Fleet::install(&database, &[]).await.close().await;
    sign_up(&database, 5).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenantd.toml");
    std::fs::write(&file, "[tenant]\nmax = 3\n").expect("write the settings");
    let mut daemon = Program::for_database(&database)
        .variable("TENANTD_CONFIG", &file.display().to_string())
        .setting("signup.poll", "250ms")
        .setting("sweep.every", "1s")
        .start()
        .allow("the brakes hold new tenants back")
        .allow("four fifths");
    daemon.wait_for_line("the brakes hold new tenants back", SOON).await;
    until("three", SOON, async || count(&database, "state = 'ready'").await == 3).await;
    let said = daemon.lines().len();
    sign_up(&database, 1).await;
    let waiting =
        "state = 'requested' and work = 'due' and failures = 0 and error_kind is null and database_oid is null";
    until("the others to wait", SOON, async || count(&database, waiting).await == 3).await;
    assert_eq!((count(&database, "state = 'ready'").await, database.tenant_databases().await.len()), (3, 3));
    std::fs::write(&file, "[tenant]\nmax = 30\n").expect("write the settings");
    daemon.hang_up();
    daemon.wait_for_line_after(said, "settings and migrations reloaded", SOON).await;
    until("all six", SOON, async || count(&database, "state = 'ready' and work = 'idle'").await == 6).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: sweeps keep to the brakes, alone and side by side. Method: six signups; three sweeps at once with room for three; then
/// `max_per_hour`, until the hour is over.
#[tokio::test]
async fn sweeps_keep_to_the_brakes() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("tenant.max", "3")]).await;
    sign_up(&database, 6).await;
    for _ in 0..3 {
        let reports = futures_util::future::join_all((0..3).map(|_| fleet.sweep())).await;
        assert!(reports.iter().all(|report| report.failed.is_empty() && !report.is_clean()), "{reports:?}");
        assert!(database.tenant_databases().await.len() <= 3, "never more than the brake allows");
    }
    fleet.sweep().await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.braked), (0, 3), "{report:?}");
    assert_eq!(database.tenant_databases().await.len(), 3);
    assert_eq!(
        count(&database, "state = 'requested' and work = 'due' and failures = 0 and error_kind is null").await,
        3
    );
    fleet.close().await;

    let fleet = Fleet::install(&database, &[("tenant.max_per_hour", "4")]).await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.braked), (1, 2), "three were made within the hour: {report:?}");
    execute(&database, "update tenantd.tenant set ready_at = ready_at - interval '61 min' where state = 'ready'").await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.braked), (2, 0), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: two that saw the same room do not go beyond it together. Method: room for one, two tenants claimed before either is made: at
/// least one steps back, and nothing is counted against it; tried again alone, it is still so.
#[tokio::test]
async fn two_that_saw_the_same_room_step_back() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("tenant.max", "1")]).await;
    sign_up(&database, 2).await;
    template::ensure(&fleet.context).await.expect("a template");
    let reconcile_all = async |claims: Vec<Claim>| {
        let mut made = 0;
        for outcome in
            futures_util::future::join_all(claims.into_iter().map(|claim| reconcile(&fleet.context, claim))).await
        {
            match outcome.outcome {
                Outcome::Ready { made: is_new, .. } => made += usize::from(is_new),
                Outcome::Left(error) => assert_eq!(error.kind(), Kind::Braked, "{}", error.chain()),
                other => panic!("{other:?}"),
            }
        }
        made
    };
    let claims = fleet.registry().claim_due(most(2, 2), Duration::from_mins(1)).await.expect("claim");
    let keys: Vec<String> = claims.iter().map(|claim| claim.key.clone()).collect();
    assert!(reconcile_all(claims).await <= 1, "one may be made once the other has stepped back");
    for key in &keys {
        let claims = fleet.registry().claim_keys(std::slice::from_ref(key), Duration::from_mins(1)).await;
        reconcile_all(claims.expect("claim")).await;
    }
    let waiting =
        "state = 'requested' and work = 'due' and failures = 0 and error_kind is null and leased_until is null";
    assert_eq!((count(&database, "state = 'ready'").await, count(&database, waiting).await), (1, 1));
    assert_eq!(database.tenant_databases().await.len(), 1);
    fleet.close().await;
    database.finish().await;
}
