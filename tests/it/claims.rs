//! Claims: each tenant has one worker at a time, and one that lost its lease changes nothing any more.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::error::{Error, Kind};
use tenantd::registry::claim::{Again, Claim, Done};
use tenantd::registry::hand_over::{Handed, Naming};
use tenantd::registry::spares::{Serving, Taken};
use tenantd::tenant::{State, Work, spare_name};

use crate::fleet::{Fleet, execute, half_made, most, oid, row, write_migrations};
use crate::sql::one;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(30);

async fn sign_up_many(database: &TestDatabase, users: u32) {
    let insert =
        format!("insert into public.users (email) select n || '@example.org' from generate_series(1, {users}) n");
    database.app().await.batch_execute(&insert).await.expect("sign up");
}

/// Goal: every due tenant is claimed by exactly one of many. Method: eight at once, a few at a time, until nothing is left.
#[tokio::test]
async fn no_tenant_is_claimed_twice() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    sign_up_many(&database, 60).await;
    let take_all = async || {
        let mut taken = Vec::new();
        loop {
            let claims = fleet.registry().claim_due(most(3, 5), LEASE).await.expect("claim");
            assert!(claims.len() <= 3, "no more than may be made");
            if claims.is_empty() {
                return taken;
            }
            taken.extend(claims.into_iter().map(|claim| (claim.key, claim.attempt)));
        }
    };
    let taken: Vec<_> =
        futures_util::future::join_all((0..8).map(|_| take_all())).await.into_iter().flatten().collect();
    let by_key: BTreeMap<_, _> = taken.iter().cloned().collect();
    assert_eq!((taken.len(), by_key.len()), (60, 60));
    assert!(by_key.values().all(|attempt| *attempt == 1));
    assert_eq!(fleet.registry().release_all().await.expect("give back"), 60);
    fleet.close().await;
    database.finish().await;
}

/// Goal: the leases that an outage left over are given back, and none that is being taken. Method: a claim and the giving back meet at a locked table.
#[tokio::test]
async fn a_lease_that_is_being_taken_is_not_given_back() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let registry = fleet.registry();
    sign_up_many(&database, 2).await;
    let left_over = registry.claim_due(most(1, 1), LEASE).await.expect("claim").pop().expect("a signup");
    registry.put_down(&left_over);
    registry.owe();
    let mut locker = database.superuser().await;
    let eye = database.superuser().await;
    let lock = locker.transaction().await.expect("begin");
    lock.batch_execute("lock table tenantd.tenant in access exclusive mode").await.expect("lock");
    let waiting = "select count(*) from pg_locks where not granted and relation = 'tenantd.tenant'::regclass";
    let meet = async {
        until("the claim waits", SOON, async || one::<i64>(&eye, waiting).await == 1).await;
        let mut release = pin!(registry.release_owed());
        let both = until("both wait", SOON, async || one::<i64>(&eye, waiting).await == 2);
        let released = tokio::select! {
            released = &mut release => Some(released),
            () = both => None,
        };
        lock.commit().await.expect("unlock");
        let released = match released {
            Some(released) => released,
            None => release.await,
        };
        released.expect("not now, or give back");
    };
    let (claims, ()) = tokio::join!(registry.claim_due(most(1, 1), LEASE), meet);
    let claim = claims.expect("claim").pop().expect("the other signup");
    registry.renew(&claim).await.expect("it stands");
    registry.release_owed().await.expect("give back");
    registry.renew(&claim).await.expect("it stands still");
    assert!(registry.renew(&left_over).await.is_err(), "it was owed all the time");
    drop((locker, eye));
    fleet.close().await;
    database.finish().await;
}

/// Goal: what is claimed is what is due, signups before mending, the longest due first, held and parked ones never. Method: one row of
/// each kind.
#[tokio::test]
async fn what_is_claimed_is_what_is_due() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let rows = "insert into tenantd.tenant (key, state, work, due_at, leased_until) values
        ('making, later', 'requested', 'due', now() - interval '1 min', null),
        ('making, first', 'requested', 'failing', now() - interval '2 min', null),
        ('mending', 'ready', 'failing', now() - interval '1 hour', null),
        ('lease ran out', 'ready', 'due', now() - interval '3 min', now() - interval '1 s'),
        ('not yet', 'requested', 'failing', now() + interval '1 min', null),
        ('leased', 'requested', 'due', now() - interval '1 min', now() + interval '1 min'),
        ('idle', 'ready', 'idle', now(), null), ('parked', 'ready', 'parked', now(), null),
        ('held', 'requested', 'held', now(), null), ('deleting', 'deleting', 'due', now(), null),
        ('deleted', 'deleted', 'due', now(), null)";
    execute(&database, rows).await;
    let registry = fleet.registry();
    let claim = async |making, all| {
        let mut keys: Vec<_> = registry.claim_due(most(making, all), LEASE).await.expect("claim");
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        keys.into_iter().map(|claim| claim.key).collect::<Vec<_>>()
    };
    assert_eq!(claim(1, 1).await, ["making, first"]);
    assert_eq!(claim(0, 1).await, ["mending"], "no room to make");
    assert_eq!(claim(5, 5).await, ["lease ran out", "making, later"]);
    assert_eq!(claim(5, 5).await, Vec::<String>::new());
    let keys: Vec<String> = ["idle", "parked", "held", "leased", "deleting", "mending"].map(str::to_owned).into();
    let mut claimed: Vec<_> =
        registry.claim_keys(&keys, LEASE).await.expect("claim").into_iter().map(|claim| claim.key).collect();
    claimed.sort();
    assert_eq!(
        claimed,
        ["idle", "parked"],
        "by name also what is not due, but not what is held, leased or on its way out"
    );
    execute(&database, "delete from tenantd.tenant").await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: a lease that ran out is taken over, and from then on each write of the first holder is refused and changes nothing. Method: a
/// claim that ends at once, a second one, then every write there is in the name of the first.
#[tokio::test]
async fn a_stale_holder_changes_nothing() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let registry = fleet.registry();
    let first = Fleet::install(&database, &[]).await;
    let stale = first.registry().claim_due(most(1, 1), Duration::from_millis(1)).await.expect("claim").remove(0);
    assert_eq!((stale.key.as_str(), stale.attempt, stale.state), (key.as_str(), 1, State::Requested));
    let mut fresh = Vec::new();
    until("the end of the lease", SOON, async || {
        fresh = registry.claim_due(most(1, 1), LEASE).await.expect("claim");
        !fresh.is_empty()
    })
    .await;
    let fresh = fresh.remove(0);
    assert_eq!(fresh.attempt, 2, "attempt grows with each claim");

    let spare = spare_name();
    let by_schema = database.isolation() == Isolation::Schema;
    if by_schema {
        let announce = format!("insert into tenantd.spare (name, key, attempt) values ('{spare}', '{key}', 2)");
        execute(&database, &announce).await;
    } else {
        tenantd::provision::template::ensure(&fleet.context).await.expect("a template");
        let taken = registry.take_spare(&fresh, &spare, "tenant_owner", &SERVING).await.expect("the holder may");
        assert!(matches!(taken, Taken::Name(_)), "{taken:?}");
    }
    make_closed(&database, &spare).await;
    database.outside(&format!("revoke connect, temporary on database {spare} from public")).await;
    let before = row(&database, &key).await;
    let name = database.tenant_name(&key);
    for (what, error) in every_write(&first, &stale, &spare, &name).await {
        assert_eq!(error.kind(), Kind::LeaseLost, "{what}: {}", error.chain());
    }
    assert_eq!(row(&database, &key).await, before, "the row of the second holder");
    assert_eq!(half_made(&database).await, [spare.as_str()]);
    assert!(database.tenant_databases().await.is_empty());

    if by_schema {
        registry.release(&fresh, Duration::ZERO).await.expect("the holder may");
        registry.put_down(&fresh);
        assert_eq!(fleet.sweep().await.made, 1);
    } else {
        let naming = Naming { claim: &fresh, name: name.clone() };
        let handed = registry.hand_over(&[naming], "tenant_owner", Some(&spare)).await.expect("the holder may");
        assert!(matches!(handed[..], [Handed::Ready]), "{handed:?}");
    }
    assert_eq!(database.tenant_databases().await, [name]);
    first.close().await;
    fleet.close().await;
    database.finish().await;
}

/// A database, or schema, under a random name, as the work makes it.
async fn make_closed(database: &TestDatabase, spare: &str) {
    let closed = if database.isolation() == Isolation::Database { " allow_connections false" } else { "" };
    database.outside(&format!("create database {spare} owner tenant_owner{closed}")).await;
}

/// Whatever template serves.
const SERVING: Serving<'static> = Serving { newer: &[], migration_set: "", shape: "" };

/// Every write that a claim allows, tried with `claim` of somebody who lost it; each must fail.
async fn every_write(fleet: &Fleet, claim: &Claim, spare: &str, name: &str) -> Vec<(&'static str, Error)> {
    let registry = fleet.registry();
    let done = Done { version: Some(9), migration_set: "x".to_owned(), access: "x".to_owned(), migrated: true };
    let failure = Error::new(Kind::Other, "late");
    let again = Again::After(Duration::ZERO);
    let recorded = registry.record_done(&[(claim, &done)]).await.expect("an answer").remove(0);
    let mut failed = every_change(fleet, claim, spare, name).await;
    if registry.isolation == Isolation::Schema {
        let filled = registry.filled(claim, Some(9), None, "late").await;
        failed.push(("filled", filled.expect_err("fenced")));
    }
    failed.extend([
        ("give_name", registry.give_name(claim, "late").await.map(drop).expect_err("fenced")),
        ("record_done", recorded.expect_err("fenced")),
        ("record_failure", registry.record_failure(claim, &failure, "late", again, None).await.expect_err("fenced")),
        ("release", registry.release(claim, Duration::ZERO).await.expect_err("fenced")),
    ]);
    failed
}

/// The same for what changes a database, or the length of the lease.
async fn every_change(fleet: &Fleet, claim: &Claim, spare: &str, name: &str) -> Vec<(&'static str, Error)> {
    let registry = fleet.registry();
    let mut failed = Vec::new();
    match registry.isolation {
        Isolation::Database => {
            let naming = Naming { claim, name: name.to_owned() };
            let handed = registry.hand_over(&[naming], "tenant_owner", Some(spare)).await.expect("an answer");
            assert!(matches!(handed[..], [Handed::LeaseLost]), "hand_over: {handed:?}");
            let taken = registry.take_spare(claim, &spare_name(), "tenant_owner", &SERVING).await.map(drop);
            failed.push(("take_spare", taken.expect_err("fenced")));
        }
        Isolation::Schema => {
            let clear = registry.clear_name(claim, name, None, Work::Due).await.map(drop);
            failed.extend([
                ("hand_over_made", registry.hand_over_made(claim, spare, "").await.expect_err("fenced")),
                ("clear_name", clear.expect_err("fenced")),
            ]);
        }
    }
    failed.extend([
        ("renew", registry.renew(claim).await.map(drop).expect_err("fenced")),
        ("set_aside", registry.set_aside(claim, spare, &spare_name()).await.expect_err("fenced")),
        ("mend_database", registry.mend_database(claim, spare, "select 1").await.expect_err("fenced")),
        ("take_back", registry.take_back(claim, spare).await.expect_err("fenced")),
    ]);
    failed
}

/// Goal: a lease that ran out ends the work even if nobody took the tenant over. Method: as above without a second holder: nothing may be
/// renewed, made or handed over any more.
#[tokio::test]
async fn a_lease_that_ran_out_makes_nothing_any_more() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let registry = fleet.registry();
    let claim = registry.claim_due(most(1, 1), Duration::from_millis(1)).await.expect("claim").remove(0);
    let ran_out = "select leased_until < now() from tenantd.tenant";
    let client = database.superuser().await;
    until("the end of the lease", SOON, async || client.query_one(ran_out, &[]).await.expect("look").get(0)).await;
    let spare = spare_name();
    execute(&database, &format!("insert into tenantd.spare (name, key, attempt) values ('{spare}', '{key}', 1)")).await;
    make_closed(&database, &spare).await;
    for (what, error) in every_change(&fleet, &claim, &spare, &database.tenant_name(&key)).await {
        assert_eq!(error.kind(), Kind::LeaseLost, "{what}: {}", error.chain());
    }
    drop(client);
    registry.put_down(&claim);
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.strays), (1, 1), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: two daemons make each tenant once. Method: thirty signups, half of them before the daemons start, the rest one by one.
#[tokio::test]
async fn two_daemons_make_each_tenant_once() {
    let database = TestDatabase::new().await;
    Fleet::install(&database, &[]).await.close().await;
    sign_up_many(&database, 15).await;
    let program = Program::for_database(&database).setting("sweep.every", "1s");
    let daemons = [program.start(), program.start()];
    for number in 0..15 {
        database.sign_up(&format!("late-{number}@example.org")).await;
    }
    let client = database.superuser().await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle' and leased_until is null";
    until("all thirty", SOON * 2, async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == 30)
        .await;
    for daemon in daemons {
        assert_eq!(daemon.terminate().await.code(), Some(0));
    }
    assert_eq!(database.tenant_databases().await.len(), 30);
    assert!(half_made(&database).await.is_empty());
    let workers = "select count(*) from tenantd.tenant where failures > 0 or error_kind is not null";
    assert_eq!(client.query_one(workers, &[]).await.expect("count").get::<_, i64>(0), 0);
    drop(client);
    database.finish().await;
}

/// Goal: a daemon that stood still past its lease does nothing late. Method: SIGSTOP in the middle of a migration; another finishes;
/// SIGCONT; then row and database are as the other left them.
#[tokio::test]
async fn a_daemon_that_stood_still_does_nothing_late() {
    // DROP DATABASE waits for every backend of the server to answer its barrier, and one whose client froze in the middle of its login answers when
    // authentication_timeout ends it: the frozen daemon may have been connecting. No other test must wait for that, nor this one for a minute.
    let server = TestServer::builder().setting("authentication_timeout", "5s").start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first (id integer);")]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    let name = database.tenant_name(&key);
    database.tenant_superuser(&name).await.batch_execute("insert into first values (1)").await.expect("insert");
    write_migrations(folder.path(), &[("0002_slow.sql", "select pg_sleep(2) from first;")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("work.lease", "3s")
        .setting("signup.poll", "500ms")
        .setting("sweep.every", "2s");
    // What it hears first of all that has changed is left to chance.
    let mut first = program
        .start()
        .allow("tenant left alone")
        .allow("the server fail")
        .allow("the sweep could not")
        .allow("the registry cannot be read")
        .allow("the doorbell is not heard");
    let client = database.superuser().await;
    let sleeping = "select from pg_stat_activity where application_name = 'tenantd:' || $1 and wait_event = 'PgSleep'";
    until("the migration", SOON, async || client.query_opt(sleeping, &[&key]).await.expect("look").is_some()).await;
    first.freeze();
    let said = first.lines().len();

    let second = program.start();
    let ready = "select from tenantd.tenant where key = $1 and version = 2 and work = 'idle'";
    until("the other daemon", SOON, async || client.query_opt(ready, &[&key]).await.expect("look").is_some()).await;
    let one_template =
        "select count(*) = 1 and bool_and(completed_at is not null and retired_at is null) from tenantd.template";
    until("the end of what is half made", SOON, async || {
        half_made(&database).await.is_empty()
            && (database.isolation() == Isolation::Schema
                || client.query_one(one_template, &[]).await.expect("look").get(0))
    })
    .await;
    assert_eq!(second.terminate().await.code(), Some(0));
    let before = (row(&database, &key).await, oid(&database, &name).await);
    assert_eq!(before.0["attempt"].as_i64(), Some(3), "{}", before.0);

    first.thaw();
    let gave_up = async || {
        first
            .lines()
            .iter()
            .skip(said)
            .any(|line| line.contains("tenant left alone") || line.contains("the server fail"))
    };
    until("the first daemon to give up", SOON, gave_up).await;
    assert_eq!(first.terminate().await.code(), Some(0));
    assert_eq!((row(&database, &key).await, oid(&database, &name).await), before);
    assert_eq!(database.tenant_databases().await, [name]);
    assert!(half_made(&database).await.is_empty());
    drop(client);
    database.finish().await;
}
