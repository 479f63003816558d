//! Rollouts: a bad migration reaches the canaries only, too many failures alike pause it, and whoever comes next goes on where it stood.

use std::path::Path;
use std::time::Duration;

use tenantd::registry::rollouts::RolloutState;
use tenantd::sweep::Waiting;

use crate::fleet::{Fleet, execute, write_migrations};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process::tell;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

const FIRST: (&str, &str) = ("0001_log.sql", "create table log (message text)");

/// So many tenants at the first migration.
async fn fleet_of(database: &TestDatabase, folder: &Path, tenants: usize) {
    write_migrations(folder, &[FIRST]);
    let fleet = Fleet::with_folder(database, folder).await;
    sign_up(database, tenants).await;
    assert_eq!(fleet.sweep().await.made, tenants);
    fleet.close().await;
}

async fn sign_up(database: &TestDatabase, users: usize) {
    let insert = format!(
        "insert into public.users (email) select gen_random_uuid() || '@example.org' from generate_series(1, {users})"
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

async fn text(database: &TestDatabase, select: &str) -> Option<String> {
    database.superuser().await.query_one(select, &[]).await.unwrap_or_else(|error| panic!("{select}: {error:?}")).get(0)
}

fn waiting(state: RolloutState, tenants: i64, rollout: Option<&Waiting>) -> String {
    let rollout = rollout.unwrap_or_else(|| panic!("a rollout that is {state}"));
    assert_eq!((rollout.state, rollout.version, rollout.tenants), (state, 2, tenants), "{rollout:?}");
    rollout.why.clone().unwrap_or_default()
}

/// In the tenants' databases, a row that a migration stumbles over.
async fn poison(database: &TestDatabase, tenants: usize) {
    for name in database.tenant_databases().await.iter().take(tenants) {
        database.tenant_superuser(name).await.batch_execute("insert into log values ('poison')").await.expect("poison");
    }
}

const STUMBLES: (&str, &str) =
    ("0002_check.sql", "alter table log add constraint clean check (message <> 'poison'); create table second ()");

/// Goal: a migration that fails everywhere reaches the canaries only; it is told, and signups go on from the last good template; once one of
/// the canaries succeeds the others follow by themselves. Method: a migration that every tenant's rows stumble over.
#[tokio::test]
async fn what_fails_everywhere_reaches_the_canaries_only() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 7).await;
    poison(&database, 7).await;
    write_migrations(folder.path(), &[STUMBLES]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    sign_up(&database, 1).await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failures, report.migrated), (1, 3, 0), "{report:?}");
    let why = waiting(RolloutState::Paused, 5, report.rollout.as_ref());
    assert!(why.starts_with("every canary failed ("), "{why}");
    assert!(!report.is_clean());
    assert_eq!(count(&database, "version = 1 and work = 'idle' and attempt = 1").await, 5, "nobody else was touched");
    assert_eq!(count(&database, "work = 'failing' and error_sqlstate = '23514'").await, 3);

    // By hand the canaries are tried again, and fail again.
    let report = fleet.sweep().await;
    assert_eq!((report.chosen, report.failures), (3, 3), "{report:?}");
    waiting(RolloutState::Paused, 5, report.rollout.as_ref());

    // One of the canaries is mended, and all the others that were not reached.
    let broken = "select string_agg(name, ' ') from (select name from tenantd.tenant where work = 'failing' order by key limit 2) t";
    let broken = text(&database, broken).await.expect("two canaries");
    for name in database.tenant_databases().await.iter().filter(|name| !broken.contains(*name)) {
        database.tenant_superuser(name).await.batch_execute("delete from log").await.expect("mend");
    }
    let report = fleet.sweep().await;
    assert_eq!((report.migrated, report.failures, report.rollout), (6, 2, None));
    fleet.close().await;
    database.finish().await;
}

/// Goal: as many failures as the budget allows, anywhere between the others, stop nobody: all others are migrated, each is met once, and those that
/// failed are told. Method: a fleet of which three, or two in a hundred where that is more, stumble.
#[tokio::test]
async fn failures_within_the_budget_stop_nobody() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let tenants = times(12, 1_000);
    let stumbling = 3.max(tenants / 50);
    fleet_of(&database, folder.path(), tenants).await;
    poison(&database, stumbling).await;
    write_migrations(folder.path(), &[STUMBLES]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let before = std::time::Instant::now();
    let report = fleet.sweep().await;
    tell(&format!("{tenants} tenants, {stumbling} of which fail, in {:?}: {:?}", before.elapsed(), report.rollout));
    assert_eq!((report.migrated, report.failures), (tenants - stumbling, stumbling), "{report:?}");
    assert_eq!(report.rollout, None, "every tenant was reached");
    let well = i64::try_from(tenants - stumbling).expect("few");
    assert_eq!(count(&database, "version = 2 and work = 'idle' and attempt = 2").await, well, "each was met once");
    let told = "version = 1 and work = 'failing' and error_sqlstate = '23514' and failures = 1";
    assert_eq!(count(&database, told).await, i64::try_from(stumbling).expect("few"));
    fleet.close().await;
    database.finish().await;
}

/// Goal: one that fails for some stays within the budget and pauses when that is spent, with nobody met twice; a person's word lets it go on.
/// Method: six of twelve tenants stumble, all of one kind; the budget is three.
#[tokio::test]
async fn too_many_that_fail_alike_pause_it() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 12).await;
    poison(&database, 6).await;
    write_migrations(folder.path(), &[STUMBLES]);
    let lanes = [("sweep.parallel", "1"), ("rollout.canary", "0")];
    let fleet = Fleet::with_folder_and(&database, folder.path(), &lanes).await;
    let report = fleet.sweep().await;
    let why = waiting(RolloutState::Paused, 12 - i64::try_from(report.chosen).expect("few"), report.rollout.as_ref());
    assert!(
        why.starts_with("4 tenants failed alike: ") && why.contains("0002_check.sql") && why.contains("23514"),
        "{why}"
    );
    assert!((4..=5).contains(&report.failures), "the one in hand is brought to its end: {report:?}");
    let migrated = report.migrated;

    let other = Fleet::with_folder_and(&database, folder.path(), &lanes).await;
    let set = other.context.set.clone();
    let resumed = other.registry().order_rollout(&set, RolloutState::Running, "").await.expect("resume");
    assert_eq!(resumed.state, RolloutState::Running);
    let report = other.sweep().await;
    assert_eq!((migrated + report.migrated, report.failures), (6, 6), "{report:?}");
    assert_eq!(report.rollout, None, "every tenant was reached");
    assert!(fleet.registry().order_rollout(&set, RolloutState::Paused, "late").await.is_err(), "it is done");
    let events = "select string_agg(detail, '|' order by id) from tenantd.event where what = 'rollout'";
    let events = text(&database, events).await.expect("events");
    let words: Vec<&str> = events.split('|').map(|detail| detail.split(": ").last().unwrap_or_default()).collect();
    assert_eq!(words.len(), 5, "{events}");
    assert!(
        events.starts_with("to version 2 begins|to version 2: the canaries have passed|to version 2: paused"),
        "{events}"
    );
    assert!(events.ends_with("to version 2: resumed|to version 2: done"), "{events}");
    fleet.close().await;
    other.close().await;
    database.finish().await;
}

/// Goal: what a person paused or gave up stays as it is, whatever sweeps come, and a tenant that is behind is looked after at its own version.
/// Method: the rollout is ordered to pause before any tenant was reached; a tenant's database is opened to PUBLIC meanwhile.
#[tokio::test]
async fn a_paused_rollout_leaves_the_tenants_as_they_are() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 4).await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ()")]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let set = fleet.context.set.clone();
    for (order, why) in [(RolloutState::Paused, "not today"), (RolloutState::Aborted, "not at all")] {
        fleet.registry().order_rollout(&set, order, why).await.expect("order");
        let open = database.tenant_databases().await.remove(0);
        database.outside(&format!("grant connect on database \"{open}\" to public")).await;
        execute(&database, "update tenantd.tenant set verified_at = now() - interval '2 days'").await;
        let report = fleet.sweep().await;
        assert_eq!((report.chosen, report.ready, report.migrated), (4, 4, 0), "{report:?}");
        assert_eq!(waiting(order, 4, report.rollout.as_ref()), why);
        assert_eq!(report.is_clean(), order == RolloutState::Aborted);
        assert_eq!(count(&database, "version = 1 and work = 'idle'").await, 4);
    }
    fleet.registry().order_rollout(&set, RolloutState::Running, "").await.expect("resume");
    let report = fleet.sweep().await;
    assert_eq!((report.migrated, report.rollout), (4, None));
    assert_eq!(count(&database, "version = 2 and migrated_from = 1").await, 4);
    fleet.close().await;
    database.finish().await;
}

/// Goal: several sweeps of one rollout do not meet a tenant twice, and those by hand return when it is through. Method: three at once.
#[tokio::test]
async fn one_drives_and_the_others_wait() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 8).await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ()")]);
    let (one, two, three) = tokio::join!(
        Fleet::with_folder(&database, folder.path()),
        Fleet::with_folder(&database, folder.path()),
        Fleet::with_folder(&database, folder.path())
    );
    let (first, second, third) = tokio::join!(one.sweep(), two.sweep(), three.sweep());
    assert_eq!(first.migrated + second.migrated + third.migrated, 8);
    assert!([&first, &second, &third].iter().all(|report| report.rollout.is_none() && report.failures == 0));
    assert_eq!(count(&database, "version = 2 and attempt = 2").await, 8);
    for fleet in [one, two, three] {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: a rollout survives the death of whoever drives it. Method: a daemon is killed among the waves, held up by a lock in one tenant; the
/// next one goes on, with the same canaries.
#[tokio::test]
async fn another_goes_on_after_a_death() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 6).await;
    let name = database.tenant_databases().await.remove(0);
    let locker = database.tenant_superuser(&name).await;
    locker.batch_execute("begin; lock table log in share row exclusive mode").await.expect("lock");
    write_migrations(folder.path(), &[("0002_second.sql", "alter table log add column second int")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.parallel", "1")
        .setting("rollout.canary", "1")
        .setting("work.lease", "3s")
        .setting("sweep.every", "1s");
    let daemon = program.start().allow("tenant failing, tried again");
    until("some have it", SOON, async || {
        count(&database, "version = 2").await > 0 || count(&database, "work = 'failing'").await > 0
    })
    .await;
    let canaries = "select array_to_string(canaries, ',') from tenantd.rollout";
    let chosen = text(&database, canaries).await;
    daemon.kill();
    drop(locker);
    let daemon = program.start().allow("tenant failing, tried again");
    until("all have it", SOON, async || count(&database, "version = 2 and work = 'idle'").await == 6).await;
    until("it is done", SOON, async || {
        text(&database, "select state from tenantd.rollout").await.as_deref() == Some("done")
    })
    .await;
    assert_eq!(text(&database, canaries).await, chosen);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// How all rollouts stand, in the order in which they began.
async fn states(database: &TestDatabase) -> String {
    let states = "select string_agg(format('%s %s', version, state), ', ' order by started_at) from tenantd.rollout";
    text(database, states).await.expect("a rollout")
}

/// Goal: nobody has to end the rollout of migrations that were mended: it is over when the mended ones have passed their canaries. Where they were
/// withdrawn it is told with the command that gives it up. Method: a paused rollout, each of both, and what `tenantd status` says.
#[tokio::test]
async fn a_paused_rollout_ends_with_its_migrations() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 4).await;
    poison(&database, 4).await;
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    write_migrations(folder.path(), &[STUMBLES]);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1);

    std::fs::remove_file(folder.path().join(STUMBLES.0)).expect("withdraw it");
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0, "those that had failed are as they were");
    let status = program.run(&["status"]).await;
    assert_eq!(status.code(), 1);
    let told = "The rollout to version 2, whose migrations are not those that this tenantd carries, is paused: every canary failed (";
    let said = status.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(told) && said.contains("`tenantd rollout abort --version 2` gives it up"), "{said}");
    let other = program.run(&["rollout", "abort", "--version", "3"]).await;
    assert_eq!(other.code(), 2, "{other:?}");
    assert!(other.stderr.contains("no rollout to version 3 is running or paused"), "{other:?}");
    let aborted = program.run(&["rollout", "abort", "--version", "2", "--why", "withdrawn"]).await;
    assert_eq!(
        (aborted.code(), aborted.stdout.as_str()),
        (0, "rollout to version 2: aborted: withdrawn"),
        "{aborted:?}"
    );
    assert_eq!((program.run(&["status"]).await.code(), states(&database).await.as_str()), (0, "2 aborted"));

    write_migrations(folder.path(), &[(STUMBLES.0, &format!("{} -- again", STUMBLES.1))]);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1);
    assert_eq!(states(&database).await, "2 aborted, 2 paused");
    write_migrations(folder.path(), &[(STUMBLES.0, "create table second ()")]);
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 0, "{swept:?}");
    assert_eq!(states(&database).await, "2 aborted, 2 overtaken, 2 done");
    let status = program.run(&["status"]).await;
    assert_eq!(status.code(), 0, "{status:?}");
    database.finish().await;
}

/// Goal: a daemon that is told of newer migrations in the middle of a rollout goes on with those, and does not bring the whole fleet to the older
/// ones first. Method: a migration that takes long, and another after its canaries.
#[tokio::test]
async fn a_reload_in_a_rollout_goes_on_with_the_newer_set() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    fleet_of(&database, folder.path(), 12).await;
    write_migrations(folder.path(), &[("0002_second.sql", "select pg_sleep(0.6)")]);
    let mut daemon = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.parallel", "1")
        .setting("rollout.canary", "1")
        .start();
    daemon.wait_for_line("the canaries of the rollout have passed", SOON).await;
    write_migrations(folder.path(), &[("0003_third.sql", "create table third ()")]);
    daemon.hang_up();
    until("all have the newer", SOON, async || count(&database, "version = 3 and work = 'idle'").await == 12).await;
    until("it is done", SOON, async || states(&database).await == "2 overtaken, 3 done").await;
    assert!(daemon.terminate().await.success());
    database.finish().await;
}
