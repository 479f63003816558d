//! Sweeps over many tenants: page by page, verifications spread, claims and records several at a time.

use std::sync::Mutex;
use std::time::Duration;

use tenantd::error::Kind;
use tenantd::migrations::source;
use tenantd::provision::{Brought, Outcome, Unrecorded, bring, record};
use tenantd::registry::claim::{Claim, Done};

use crate::fleet::{Fleet, config, execute, row, write_migrations};
use crate::pages::Pages;
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process::tell;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(30);

/// Signs up `count` users, sweeps, and returns their keys in order.
async fn made(database: &TestDatabase, fleet: &Fleet, count: i64) -> Vec<String> {
    let insert =
        format!("insert into public.users (email) select n || '@example.org' from generate_series(1, {count}) n");
    database.app().await.batch_execute(&insert).await.expect("sign up");
    assert_eq!(fleet.sweep().await.failures, 0);
    let keys = database.superuser().await.query("select key from tenantd.tenant order by key", &[]).await;
    keys.expect("list").iter().map(|row| row.get(0)).collect()
}

async fn count(database: &TestDatabase, condition: &str) -> i64 {
    let select = format!("select count(*) from tenantd.tenant where {condition}");
    let counted = database.superuser().await.query_one(&select, &[]).await;
    counted.unwrap_or_else(|error| panic!("{select}: {error:?}")).get(0)
}

async fn claimed(fleet: &Fleet, keys: &[String]) -> Vec<Claim> {
    let mut claims = fleet.registry().claim_keys(keys, LEASE).await.expect("claim");
    claims.sort_by(|a, b| a.key.cmp(&b.key));
    claims
}

/// Goal: all are reached, each once, also those that fail, and a report holds no more of them than it should. Method: one lane, whose page is
/// 32 tenants; 150 keys that can name no tenant, which fail without a database being made.
#[tokio::test]
async fn all_pages_are_read_and_nobody_is_met_twice() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("sweep.parallel", "1")]).await;
    let insert = "insert into tenantd.tenant (key) select 'no uuid ' || n from generate_series(1, 150) n";
    execute(&database, insert).await;
    for sweeps in 1..=2 {
        let report = fleet.sweep().await;
        assert_eq!((report.chosen, report.failures, report.parked, report.unreached), (150, 150, 150, 0), "{report:?}");
        assert_eq!(report.failed.len(), 100);
        assert!(!report.is_clean() && report.failed.iter().all(|failed| failed.error.kind() == Kind::BadKey));
        assert_eq!(count(&database, &format!("attempt = {sweeps} and leased_until is null")).await, 150);
    }
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "parked");
    execute(&database, "delete from tenantd.tenant").await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: a sweep with nothing to do is one statement on the main database. Method: a server of its own that logs each.
#[tokio::test]
async fn nothing_to_do_is_one_statement() {
    let server = TestServer::builder().setting("log_statement", "all").start();
    let database = TestDatabase::on(&server).await;
    let fleet = Fleet::install(&database, &[]).await;
    made(&database, &fleet, 3).await;
    // What a session did for the makers is cleaned away before its next use.
    assert_eq!(fleet.sweep().await.chosen, 0);
    for by_hand in [false, true] {
        let logged = server.log().len();
        let report = fleet.try_sweep(by_hand).await.expect("sweep");
        assert!(report.is_clean() && report.chosen == 0, "{report:?}");
        // A statement of the test's own, so that the log is known to have come this far.
        execute(&database, &format!("select 'by hand: {by_hand}'")).await;
        until("the log", SOON, async || server.log()[logged..].contains(&format!("'by hand: {by_hand}'"))).await;
        let log = server.log()[logged..].to_owned();
        let ours = |line: &&str| line.contains("tenantd:test") && line.contains("LOG:");
        let statements: Vec<&str> = log.lines().filter(ours).collect();
        assert_eq!(statements.len(), 1, "{statements:#?}");
    }
    fleet.close().await;
    database.finish().await;
}

/// Goal: tenants that were all verified at one moment are verified a few with each sweep, the longest unverified first, none before half of the
/// time is over; by hand all that are overdue. Method: twelve tenants, twelve sweeps in the time.
#[tokio::test]
async fn verifications_are_spread() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("sweep.every", "1h"), ("sweep.verify_every", "12h")]).await;
    let keys = made(&database, &fleet, 12).await;
    let verified = async |ago: &str| {
        execute(&database, &format!("update tenantd.tenant set verified_at = now() - interval '{ago}'")).await;
    };
    verified("5 hours 50 min").await;
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "not half of the time");
    verified("6 hours 10 min").await;
    assert_eq!(fleet.sweep().await.chosen, 0, "by hand nothing is overdue");
    let longest = format!("update tenantd.tenant set verified_at = null where key = '{}'", keys[11]);
    execute(&database, &longest).await;
    for sweeps in 1..=6 {
        let report = fleet.try_sweep(false).await.expect("sweep");
        assert_eq!((report.chosen, report.ready, report.unreached), (2, 2, 0), "{report:?}");
        assert_eq!(count(&database, "verified_at > now() - interval '1 hour'").await, 2 * sweeps);
        let first = format!("key = '{}' and verified_at > now() - interval '1 hour'", keys[11]);
        assert_eq!(count(&database, &first).await, 1, "the longest unverified first");
    }
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0);
    verified("12 hours 10 min").await;
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 2, "not all at once, even then");
    assert_eq!(fleet.sweep().await.chosen, 10, "by hand all that are overdue");
    fleet.close().await;
    database.finish().await;
}

/// Goal: of several that are recorded in one statement each is fenced by itself. Method: four claims, of which one is overtaken, and one lost in a
/// crash whose number another claim bears by now; in the registry, and for tenants that were brought to what is desired.
#[tokio::test]
async fn of_a_batch_only_what_was_lost_is_not_written() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let keys = made(&database, &fleet, 4).await;
    let overtake = format!(
        "update tenantd.tenant set attempt = attempt + 1 where key = '{}';
         update tenantd.tenant set leased_by = 'other:1:abcd' where key = '{}'",
        keys[1], keys[2]
    );
    let done = Done { version: Some(7), migration_set: "s".to_owned(), access: "a".to_owned(), migrated: true };
    let claims = claimed(&fleet, &keys).await;
    execute(&database, &overtake).await;
    let before = (row(&database, &keys[1]).await, row(&database, &keys[2]).await);
    let batch: Vec<_> = claims.iter().map(|claim| (claim, &done)).collect();
    let recorded = fleet.registry().record_done(&batch).await.expect("the server answers");
    let lost: Vec<_> = recorded.into_iter().map(|one| one.err().map(|error| error.kind())).collect();
    assert_eq!(lost, [None, Some(Kind::LeaseLost), Some(Kind::LeaseLost), None]);
    assert_eq!((row(&database, &keys[1]).await, row(&database, &keys[2]).await), before);
    assert_eq!(count(&database, "version = 7 and migration_set = 's' and leased_until is null").await, 2);

    for claim in &claims {
        fleet.registry().put_down(claim);
    }
    let free = "update tenantd.tenant set leased_until = null, leased_by = null, version = 1, migration_set = ";
    execute(&database, &format!("{free} '{}', access = '{}'", fleet.context.set.id(), fleet.context.access())).await;
    let mut unrecorded: Vec<Unrecorded> = Vec::new();
    for claim in claimed(&fleet, &keys).await {
        match bring(&fleet.context, claim).await {
            Brought::Unrecorded(tenant) => unrecorded.push(*tenant),
            Brought::Ended(ended) => panic!("{ended:?}"),
        }
    }
    execute(&database, &overtake).await;
    let outcomes = record(&fleet.context, unrecorded).await.into_iter().map(|ended| match ended.outcome {
        Outcome::Ready { made: false, .. } => None,
        Outcome::Left(error) => Some(error.kind()),
        other => panic!("{other:?}"),
    });
    assert_eq!(outcomes.collect::<Vec<_>>(), [None, Some(Kind::LeaseLost), Some(Kind::LeaseLost), None]);
    execute(&database, "update tenantd.tenant set leased_until = null, leased_by = null").await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: a claim that waits for a lane keeps its lease. Method: two lanes, a lease of three seconds; the first tenant is migrated at once, the
/// others in two seconds each, so that the fourth waits behind both lanes.
#[tokio::test]
async fn a_claim_that_waits_for_a_lane_keeps_its_lease() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log ();")]);
    let more = [("sweep.parallel", "2"), ("work.lease", "3s")];
    let fleet = Fleet::with_folder_and(&database, folder.path(), &more).await;
    let keys = made(&database, &fleet, 4).await;
    fleet.close().await;
    let quick = database.tenant_superuser(&database.tenant_name(&keys[0])).await;
    quick.batch_execute("insert into log default values").await.expect("mark the quick one");
    drop(quick);
    let slow = "select pg_sleep(case when exists (select from log) then 0 else 2 end);";
    write_migrations(folder.path(), &[("0002_slow.sql", slow)]);

    let fleet = Fleet::with_folder_and(&database, folder.path(), &more).await;
    let report = fleet.sweep().await;
    assert_eq!((report.migrated, report.failures, report.busy), (4, 0, 0), "{report:?}");
    assert_eq!(
        count(&database, "attempt = 2 and version = 2 and leased_until is null").await,
        4,
        "claimed once more each"
    );
    fleet.close().await;
    database.finish().await;
}

/// Goal: a newer tenantd that came while this one ran is noticed by the next sweep, and its tenants are left alone. Method: one that knows only
/// the older set, from before there was any tenant.
#[tokio::test]
async fn a_set_that_came_meanwhile_is_noticed() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_log.sql", "create table log ();")]);
    let older = source::folder(folder.path()).expect("a sound folder");
    let older = Fleet::with_set(config(&database, &[]), older).await.expect("install");
    write_migrations(folder.path(), &[("0002_more.sql", "create table more ();")]);
    let newer = Fleet::with_folder(&database, folder.path()).await;
    let keys = made(&database, &newer, 2).await;
    execute(&database, "update tenantd.tenant set verified_at = null").await;
    let before = row(&database, &keys[0]).await;
    let report = older.sweep().await;
    assert_eq!((report.newer, report.chosen, report.failures), (2, 0, 0), "{report:?}");
    assert_eq!(row(&database, &keys[0]).await, before);
    older.close().await;
    newer.close().await;
    database.finish().await;
}

/// Goal: the history does not grow without end. Method: two events that are two hundred thousand apart.
#[tokio::test]
async fn old_events_are_forgotten() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let events = "insert into tenantd.event (id, what, who) overriding system value
                  values (1, 'old', 'test'), (2, 'kept', 'test'), (200001, 'kept', 'test')";
    execute(&database, events).await;
    assert!(fleet.try_sweep(false).await.expect("sweep").is_clean());
    let left = "select string_agg(what, ' ') from tenantd.event";
    let left: String = database.superuser().await.query_one(left, &[]).await.expect("count").get(0);
    assert_eq!(left, "kept kept");
    fleet.close().await;
    database.finish().await;
}

/// A daemon that sweeps once, finding nothing, and makes tenants of `signups` users one after the other. Returns how many rows of the registry the server read for it,
/// how long it was at work, and the longest wait of a user.
async fn rows_read(database: &TestDatabase, signups: usize) -> (i64, Duration, Duration) {
    let figure = async || {
        let read = "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint from pg_stat_user_tables where schemaname = 'tenantd'";
        database.superuser().await.query_one(read, &[]).await.expect("count").get::<_, i64>(0)
    };
    // Before Postgres 15 what an ended session read is told up to half a second later.
    let read = async || {
        let last = Mutex::new((figure().await, std::time::Instant::now()));
        until("the figure to stand still", SOON, async || {
            let now = figure().await;
            let mut last = last.lock().expect("nobody panics with it");
            if last.0 != now {
                *last = (now, std::time::Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(1)
        })
        .await;
        figure().await
    };
    let pages = Pages::reserve();
    let program = Program::for_database(database)
        .setting("signup.notify", "false")
        .setting("sweep.every", "1h")
        .setting("http.listen", &pages.listen());
    let before = read().await;
    let start = std::time::Instant::now();
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", 4 * SOON).await;
    // It finds nothing to do: one that meets somebody's lease would come again soon, and read all once more.
    until("the sweep", 4 * SOON, async || pages.metric("tenantd_sweep_seconds").await > 0.0).await;
    let mut longest = Duration::ZERO;
    for _ in 0..signups {
        let began = std::time::Instant::now();
        let key = database.sign_up(&uuid::Uuid::new_v4().to_string()).await;
        until("the tenant", SOON, async || row(database, &key).await["state"] == "ready").await;
        longest = longest.max(began.elapsed());
    }
    // What a session read is counted when it ends, at the latest.
    assert!(daemon.terminate().await.success());
    let length = start.elapsed();
    (read().await - before, length, longest)
}

/// Goal: a look costs what is due, and not what was ever done, also where a transaction that stays open keeps all that is dead. Method: a registry full of
/// tenants of long ago, an inbox full of signups that were taken in, a transaction open from before; a daemon that sweeps once is compared with one
/// that also makes twenty tenants and looks ten times a second: between them lies no more than what the brakes count: all tenants once a second, each by
/// the intake, the keeper and who makes one.
#[tokio::test]
async fn old_rows_cost_a_look_nothing() {
    let database = TestDatabase::new().await;
    Fleet::install(&database, &[]).await.close().await;
    let rows = times(20_000, 1_000_000);
    let open = database.superuser().await;
    open.batch_execute("begin isolation level repeatable read; select count(*) from tenantd.tenant")
        .await
        .expect("a snapshot");
    let old = format!(
        "insert into tenantd.tenant (key, state, work, attempt, due_at, created_at, cluster)
             select gen_random_uuid(), 'deleted', 'idle', 3, now() - interval '1 year', now() - interval '2 years', 'main'
             from generate_series(1, {rows});
         insert into tenantd.signup (key) select gen_random_uuid() from generate_series(1, {rows});
         delete from tenantd.signup"
    );
    execute(&database, &old).await;
    // As autovacuum does within a minute.
    execute(&database, "analyze tenantd.tenant; analyze tenantd.signup").await;
    let (idle, ..) = rows_read(&database, 0).await;
    let (busy, length, longest) = rows_read(&database, 20).await;
    tell(&format!(
        "beside {rows} old rows: {idle} rows read for a start and its sweep, {busy} in {length:?} with twenty tenants, the longest in {longest:?}"
    ));
    let counts = 3 * i64::try_from(length.as_secs() + 3).expect("few");
    let all = i64::try_from(rows).expect("few");
    assert!(busy - idle < counts * all, "{idle} rows without, {busy} in {length:?} with twenty tenants");
    open.batch_execute("commit").await.expect("end it");
    drop(open);
    execute(&database, "delete from tenantd.tenant where state = 'deleted'").await;
    database.finish().await;
}
