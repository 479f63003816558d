//! Spares: made ahead of time, taken by signups, replaced, passed over; and never two tenants' nor nobody's.

use std::time::Duration;

use tenantd::error::Kind;
use tenantd::provision::spare::{discard_spare, make_spare};
use tenantd::provision::{Outcome, fresh, reconcile, template};
use tenantd::registry::claim::{Claim, Most};
use tenantd::registry::spares::{Serving, Taken};
use tenantd::tenant::{Marker, spare_name};
use tokio_postgres::Client;

use crate::fleet::{Fleet, enter, execute, half_made, row, write_migrations};
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_mins(1);

/// A fleet with its template built and so many spares made.
async fn stocked(database: &TestDatabase, spares: usize) -> Fleet {
    let fleet = Fleet::install(database, &[("spares.max", "4")]).await;
    template::ensure(&fleet.context).await.expect("a template");
    for _ in 0..spares {
        stock_one(&fleet).await;
    }
    fleet
}

async fn stock_one(fleet: &Fleet) {
    let templates = fleet.registry().templates().await.expect("templates");
    let serving = fleet.context.wanted().serving(&templates).cloned().expect("a template that serves");
    make_spare(&fleet.context, &serving).await.expect("a spare");
}

async fn claim(fleet: &Fleet) -> Vec<Claim> {
    let most = Most { room: 100, making: 10, by_spares: 50, lanes: 10 };
    fleet.registry().claim_due(most, LEASE).await.expect("claim")
}

async fn names(client: &Client, select: &str) -> Vec<String> {
    client.query(select, &[]).await.expect(select).iter().map(|row| row.get(0)).collect()
}

const AT_HAND: &str = "select name from tenantd.spares_at_hand order by made_at";

/// A daemon with spares, once it has made `spares` of them.
async fn daemon_with(database: &TestDatabase, program: &Program, spares: usize) -> Daemon {
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    until("the spares", SOON, async || names(&client, AT_HAND).await.len() == spares).await;
    daemon
}

/// Goal: a signup gets a spare that was there before it, and with it everything a tenant has. Method: its oid is that of a spare; marker, owner,
/// rights and rows are looked at; the pool is filled again.
#[tokio::test]
async fn a_signup_takes_a_spare() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database).setting("spares.min", "2").setting("spares.max", "4");
    let daemon = daemon_with(&database, &program, 2).await;
    let client = database.superuser().await;
    let before = names(&client, "select database_oid::text from tenantd.spares_at_hand").await;
    let key = database.sign_up("one@example.org").await;
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    let recorded = row(&database, &key).await;
    assert!(before.contains(&recorded["database_oid"].as_str().expect("an oid").to_owned()), "{recorded}");
    assert_eq!((recorded["version"].as_i64(), recorded["attempt"].as_i64()), (Some(1), Some(1)));
    assert_eq!(recorded["leased_by"], serde_json::Value::Null);

    let name = database.tenant_name(&key);
    let registry: uuid::Uuid = client.query_one("select id from tenantd.registry", &[]).await.expect("id").get(0);
    let select = "select pg_get_userbyid(datdba)::text, shobj_description(oid, 'pg_database'), datallowconn,
                         has_database_privilege('public', oid, 'connect') or has_database_privilege('public', oid, 'temporary')
                  from pg_database where datname = $1";
    let seen = client.query_one(select, &[&name]).await.expect("look");
    assert_eq!((seen.get(0), seen.get(2), seen.get(3)), ("tenant_owner", true, false));
    assert_eq!(seen.get::<_, String>(1), Marker::of(registry, &key).to_string());
    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    app.batch_execute("insert into log_message (message) values ('hello')").await.expect("app may write");
    app.close().await;
    until("another spare", SOON, async || names(&client, AT_HAND).await.len() == 2).await;
    drop(client);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: two daemons that race for the last spare make two tenants of two databases. Method: one spare, two claims by two processes, both
/// handed over at once, again and again.
#[tokio::test]
async fn two_daemons_race_for_the_last_spare() {
    let database = TestDatabase::new().await;
    let fleets = [stocked(&database, 0).await, Fleet::install(&database, &[("spares.max", "4")]).await];
    for round in 0..5 {
        stock_one(&fleets[0]).await;
        let mut claims = Vec::new();
        for (number, fleet) in fleets.iter().enumerate() {
            database.sign_up(&format!("{round}-{number}@example.org")).await;
            claims.push(claim(fleet).await);
        }
        let second = claims.pop().expect("two");
        let first = claims.pop().expect("one");
        let both =
            tokio::join!(fresh::hand_over(&fleets[0].context, first), fresh::hand_over(&fleets[1].context, second),);
        let (made, left) = ((both.0.0.len(), both.1.0.len()), (both.0.1, both.1.1));
        assert_eq!(made.0 + made.1, 1, "one got the spare: {made:?}");
        for (fleet, left) in fleets.iter().zip([left.0, left.1]) {
            for claim in left {
                let outcome = reconcile(&fleet.context, claim).await.outcome;
                assert!(matches!(outcome, Outcome::Ready { made: true, .. }), "{outcome:?}");
            }
        }
    }
    assert_eq!(database.tenant_databases().await.len(), 10);
    let client = database.superuser().await;
    let oids = "select distinct database_oid::text from tenantd.tenant where state = 'ready'";
    assert_eq!(names(&client, oids).await.len(), 10);
    assert!(names(&client, "select name from tenantd.spare").await.is_empty());
    drop(client);
    for fleet in fleets {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: a spare that is taken for one tenant is not named for another at the same moment: after a lock is had, what was seen before it is old. Method:
/// both ways of taking at once, again and again, since nobody can stand in between.
#[tokio::test]
async fn the_two_ways_of_taking_never_take_the_same() {
    let database = TestDatabase::new().await;
    let fleets = [stocked(&database, 0).await, Fleet::install(&database, &[("spares.max", "4")]).await];
    for round in 0..10 {
        stock_one(&fleets[0]).await;
        let mut claims = Vec::new();
        for (number, fleet) in fleets.iter().enumerate() {
            database.sign_up(&format!("{round}-{number}@example.org")).await;
            claims.push(claim(fleet).await);
        }
        let second = claims.pop().expect("two").remove(0);
        let first = claims.pop().expect("one");
        let (unused, set, shape) = (spare_name(), fleets[1].context.set.id(), fleets[1].context.shape());
        let serving = Serving { newer: &[], migration_set: &set, shape: &shape };
        let (named, taken) = tokio::join!(
            fresh::hand_over(&fleets[0].context, first),
            fleets[1].registry().take_spare(&second, &unused, "tenant_owner", &serving),
        );
        let taken = matches!(taken.expect("an answer"), Taken::Spare(_));
        assert_eq!(named.0.len() + usize::from(taken), 1, "round {round}: {:?} and {taken:?}", named.0);
        for claim in named.1 {
            let outcome = reconcile(&fleets[0].context, claim).await.outcome;
            assert!(matches!(outcome, Outcome::Ready { made: true, .. }), "{outcome:?}");
        }
        // What was taken and not used is for anyone again once its tenant's attempt has ended.
        fleets[1].registry().release(&second, Duration::ZERO).await.expect("give back");
        fleets[1].registry().put_down(&second);
        fleets[1].sweep().await;
        let client = database.superuser().await;
        execute(&database, "delete from tenantd.spare where made_at is null").await;
        for spare in names(&client, AT_HAND).await {
            discard_spare(&fleets[0].context, &spare).await.expect("discard");
        }
    }
    for fleet in fleets {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: what fails for one of a crowd fails for it alone. Method: three fresh signups together, of which one has its name taken by a
/// foreign database, and one key that is no uuid.
#[tokio::test]
async fn one_that_fails_holds_up_no_other() {
    let database = TestDatabase::new().await;
    let fleet = stocked(&database, 3).await;
    let mut keys = Vec::new();
    for number in 0..3 {
        keys.push(database.sign_up(&format!("{number}@example.org")).await);
    }
    execute(&database, "insert into tenantd.tenant (key) values ('no uuid')").await;
    let taken = database.tenant_name(&keys[1]);
    execute(&database, &format!("create database {taken}")).await;
    execute(&database, &format!("revoke connect, temporary on database {taken} from public")).await;
    let (ended, left) = fresh::hand_over(&fleet.context, claim(&fleet).await).await;
    assert_eq!((ended.len(), left.len()), (2, 2));
    let mut kinds = Vec::new();
    for claim in left {
        match reconcile(&fleet.context, claim).await.outcome {
            Outcome::Failed { error, parked: true } => kinds.push(error.kind()),
            other => panic!("{other:?}"),
        }
    }
    kinds.sort_by_key(|kind| kind.word());
    assert_eq!(kinds, [Kind::BadKey, Kind::Conflict]);
    assert!(half_made(&database).await.is_empty());
    let client = database.superuser().await;
    let spares = "select count(*) from tenantd.spare where made_at is not null and key is null";
    assert_eq!(client.query_one(spares, &[]).await.expect("count").get::<_, i64>(0), 1, "the third is a spare still");
    execute(&database, &format!("drop database {taken}")).await;
    drop(client);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a spare with somebody in it costs a bounded wait, then the next one serves, and at last one made on demand. Method: one is opened by an
/// administrator who stays in it; a second is whole; three signups.
#[tokio::test]
async fn a_spare_with_somebody_in_it_is_passed_over() {
    let database = TestDatabase::new().await;
    let fleet = stocked(&database, 2).await;
    let client = database.superuser().await;
    let busy = names(&client, AT_HAND).await.remove(0);
    execute(&database, &format!("alter database {busy} allow_connections true")).await;
    let inside = database.tenant_superuser(&busy).await;
    execute(&database, &format!("alter database {busy} allow_connections false")).await;

    // It is seen from outside, and not waited for.
    let first = database.sign_up("first@example.org").await;
    let (ended, left) = fresh::hand_over(&fleet.context, claim(&fleet).await).await;
    assert_eq!((ended.len(), left.len()), (1, 0));
    // Where it is not seen in time the wait is bounded; then one is made.
    let second = database.sign_up("second@example.org").await;
    for claim in claim(&fleet).await {
        let outcome = reconcile(&fleet.context, claim).await.outcome;
        assert!(matches!(outcome, Outcome::Ready { made: true, .. }), "{outcome:?}");
    }
    for key in [&first, &second] {
        assert_eq!(row(&database, key).await["failures"], 0);
    }
    let standing = "select busy_until > now() and key is null from tenantd.spare where name = $1";
    assert!(client.query_one(standing, &[&busy]).await.expect("it is a spare still").get::<_, bool>(0));
    assert_eq!(database.tenant_databases().await.len(), 2);
    drop((inside, client));
    fleet.close().await;
    database.finish().await;
}

/// Goal: a daemon killed while a hand-over waits in the server leaves a spare or a tenant, never both or neither. Method: the hand-over hangs at
/// a row that another holds; the daemon is killed; another goes on. On a server of its own, since what is locked is the whole server's.
#[tokio::test]
async fn a_daemon_killed_within_a_hand_over_leaves_a_spare() {
    let database = TestDatabase::on(&TestServer::builder().start()).await;
    let program = Program::for_database(&database)
        .setting("spares.min", "1")
        .setting("spares.max", "1")
        .setting("work.lease", "3s")
        .setting("sweep.every", "1s");
    let daemon = daemon_with(&database, &program, 1).await;
    let mut blocker = database.superuser().await;
    let blocking = blocker.transaction().await.expect("begin");
    // The name of the spare's database is what the rename waits for.
    blocking.batch_execute("lock table pg_shdescription in access exclusive mode").await.expect("lock");
    let key = database.sign_up("one@example.org").await;
    let client = database.superuser().await;
    let waiting = "select from pg_stat_activity where query like '%tenantd.hand_over%' and wait_event_type = 'Lock'
                   and datname = current_database() limit 1";
    until("the hand-over to wait", SOON, async || client.query_opt(waiting, &[]).await.expect("look").is_some()).await;
    daemon.kill();
    blocking.rollback().await.expect("let it go on");
    let daemon = program.start().allow("tenant left alone");
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    until("the spare", SOON, async || names(&client, AT_HAND).await.len() == 1).await;
    assert!(daemon.terminate().await.success());
    assert_eq!(database.tenant_databases().await, [database.tenant_name(&key)]);
    drop((client, blocker));
    database.finish().await;
}

/// Goal: a burst that empties the pool is served all the same. Method: one statement of thirty signups beside four spares, two daemons.
#[tokio::test]
async fn a_burst_larger_than_the_pool_is_served() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database).setting("spares.min", "4").setting("spares.max", "4");
    let daemons = [daemon_with(&database, &program, 4).await, program.start()];
    daemons[1].wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let spares = names(&client, "select database_oid::text from tenantd.spares_at_hand").await;
    execute(&database, "insert into users (email) select g || '@example.org' from generate_series(1, 30) g").await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle' and failures = 0";
    until("all thirty", SOON * 2, async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == 30)
        .await;
    let used = "select count(*) from tenantd.tenant where database_oid::text = any ($1)";
    assert_eq!(client.query_one(used, &[&spares]).await.expect("count").get::<_, i64>(0), 4, "each spare was used");
    assert_eq!(database.tenant_databases().await.len(), 30);
    drop(client);
    for daemon in daemons {
        assert!(daemon.terminate().await.success());
    }
    database.finish().await;
}

/// Goal: what is not as it was made is not handed out, and goes. Method: spares that were opened, given to another owner, dropped, and one that
/// is old; the daemon puts others in their place.
#[tokio::test]
async fn broken_and_old_spares_are_replaced() {
    let database = TestDatabase::new().await;
    let fleet = stocked(&database, 4).await;
    let client = database.superuser().await;
    let spares = names(&client, AT_HAND).await;
    execute(&database, &format!("alter database {} allow_connections true", spares[0])).await;
    execute(&database, &format!("alter database {} owner to app", spares[1])).await;
    execute(&database, &format!("drop database {}", spares[2])).await;
    let age = format!("update tenantd.spare set created_at = now() - interval '2 days' where name = '{}'", spares[3]);
    execute(&database, &age).await;
    fleet.close().await;
    let program = Program::for_database(&database).setting("spares.min", "2").setting("spares.max", "4");
    let daemon = program.start();
    let daemon = daemon.allow("could not be dropped");
    let replaced = async || {
        let now = names(&client, "select name from tenantd.spare where made_at is not null order by 1").await;
        now.len() == 2
            && now == names(&client, "select name from tenantd.spares_at_hand order by 1").await
            && !now.iter().any(|name| spares.contains(name))
    };
    until("other spares", SOON, replaced).await;
    let left = "select count(*) from pg_database where datname = any ($1)";
    assert_eq!(
        client.query_one(left, &[&spares]).await.expect("count").get::<_, i64>(0),
        1,
        "the one that is another's"
    );
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}

/// Goal: a new set that arrives while users sign up takes over without one signup lost or late: spares of the old serve until there are new
/// ones, and those who got one are brought on. Method: signups one after another while the folder changes under a SIGHUP.
#[tokio::test]
async fn a_new_migration_arrives_while_users_sign_up() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("spares.min", "3")
        .setting("spares.max", "3");
    let mut daemon = daemon_with(&database, &program, 3).await;
    let client = database.superuser().await;
    for number in 0..20 {
        if number == 5 {
            write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
            daemon.hang_up();
        }
        let key = database.sign_up(&format!("{number}@example.org")).await;
        until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    }
    let done = "select (select count(*) from tenantd.tenant where version = 2 and work = 'idle') = 20
                   and (select count(*) from tenantd.spares_at_hand where version = 2) = 3
                   and (select count(*) from tenantd.template) = 1";
    until("everybody, the spares and the template", SOON, async || {
        client.query_one(done, &[]).await.expect("look").get::<_, bool>(0)
    })
    .await;
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}

/// Goal: who gets a spare of the older set when its rollout has ended is brought on when the last of them is gone, and does not wait for the periodic
/// sweep. Method: more spares than are replaced in the time; a crowd in one statement that takes them all.
#[tokio::test]
async fn who_gets_an_old_spare_late_is_brought_on() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("sweep.every", "1h")
        .setting("spares.min", "6")
        .setting("spares.max", "6");
    let mut daemon = daemon_with(&database, &program, 6).await;
    let client = database.superuser().await;
    let is = async |condition: &str| client.query_one(condition, &[]).await.expect("look").get::<_, bool>(0);
    database.sign_up("first@example.org").await;
    let again =
        "select count(*) = 6 and exists (select from tenantd.tenant where state = 'ready') from tenantd.spares_at_hand";
    until("one tenant and all spares", SOON, async || is(again).await).await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    daemon.hang_up();
    daemon.wait_for_line("rollout done", SOON).await;
    let replacing = "select count(*) >= 2 from tenantd.spares_at_hand where version = 2";
    until("the first spares of the new set", SOON, async || is(replacing).await).await;
    let crowd = "insert into public.users (email) select n || '@example.org' from generate_series(1, 12) n";
    database.app().await.batch_execute(crowd).await.expect("sign up");
    let done = "select count(*) = 13 from tenantd.tenant where state = 'ready' and version = 2 and work = 'idle'";
    until("everybody", SOON, async || is(done).await).await;
    let brought_on = "select count(*) > 1 from tenantd.tenant where migrated_at > ready_at";
    assert!(is(brought_on).await, "some got a spare of the older set");
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}

/// Goal: the brakes hold with spares as well. Method: `tenant.max` of two, a pool, three signups.
#[tokio::test]
async fn the_brakes_count_spares_that_become_tenants() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database)
        .setting("spares.min", "2")
        .setting("spares.max", "4")
        .setting("tenant.max", "2");
    let daemon = daemon_with(&database, &program, 2).await.allow("the brakes hold").allow("four fifths");
    for number in 0..3 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    let client = database.superuser().await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready'";
    until("two", SOON, async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == 2).await;
    daemon.wait_for_line("the brakes hold", SOON).await;
    assert_eq!(database.tenant_databases().await.len(), 2);
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}

/// Goal: a role that is to have no rights beyond those of the page on rights makes spares and hands them over, also where the server prepares
/// transactions. Method: a server of its own; a prepared transaction in a spare keeps it from being handed over, and nothing else.
#[tokio::test]
async fn a_prepared_transaction_in_a_spare_keeps_only_that_one() {
    let server = TestServer::builder().setting("max_prepared_transactions", "5").start();
    let database = TestDatabase::on(&server).await;
    let fleet = stocked(&database, 2).await;
    let client = database.superuser().await;
    let held = names(&client, AT_HAND).await.remove(0);
    execute(&database, &format!("alter database {held} allow_connections true")).await;
    let inside = database.tenant_superuser(&held).await;
    inside.batch_execute("begin; create table x (); prepare transaction 'forgotten'").await.expect("prepare");
    drop(inside);
    execute(&database, &format!("alter database {held} allow_connections false")).await;
    let key = database.sign_up("one@example.org").await;
    for claim in claim(&fleet).await {
        let outcome = reconcile(&fleet.context, claim).await.outcome;
        assert!(matches!(outcome, Outcome::Ready { made: true, .. }), "{outcome:?}");
    }
    assert_eq!(row(&database, &key).await["failures"], 0);
    assert_eq!(database.tenant_databases().await.len(), 1);
    let inside = {
        execute(&database, &format!("alter database {held} allow_connections true")).await;
        database.tenant_superuser(&held).await
    };
    inside.batch_execute("rollback prepared 'forgotten'").await.expect("forget it");
    execute(&database, &format!("alter database {held} allow_connections false")).await;
    drop((inside, client));
    fleet.close().await;
    database.finish().await;
}
