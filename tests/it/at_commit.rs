//! Instant hand-over: the tenant is ready at the signup's own commit, and nothing that may happen to a spare fails or delays the signup.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::fleet::{enter, execute, oid, row};
use crate::sql::{one, run};
use crate::support::count::times;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// What a signup may take on a busy machine; the wait for a lock is 50 ms, and that for somebody in a spare would be 5 s.
const BOUND: Duration = Duration::from_secs(3);

fn program(database: &TestDatabase, spares: usize) -> Program {
    let spares = spares.to_string();
    Program::for_database(database)
        .setting("signup.handover", "commit")
        .setting("spares.min", &spares)
        .setting("spares.max", &spares)
}

async fn at_hand(client: &Client) -> i64 {
    client.query_one("select count(*) from tenantd.spares_at_hand", &[]).await.expect("count").get(0)
}

/// A daemon with so many spares, stopped, so that nothing but the trigger is at work.
async fn stocked(database: &TestDatabase, spares: usize) {
    let daemon = running(database, spares).await;
    assert!(daemon.terminate().await.success());
}

async fn running(database: &TestDatabase, spares: usize) -> Daemon {
    let daemon = program(database, spares).start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    until("the spares", SOON, async || at_hand(&client).await == i64::try_from(spares).expect("few")).await;
    daemon
}

/// What is left is done by a daemon; then every user has one tenant.
async fn end(database: TestDatabase, spares: usize) {
    let daemon = program(&database, spares).start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let one_each = "select (select count(*) from public.users) = (select count(*) from tenantd.tenant where state = 'ready' and work = 'idle')
                       and (select count(*) from public.users) = (select count(distinct database_oid) from tenantd.tenant)";
    until("one tenant each", SOON, async || client.query_one(one_each, &[]).await.expect("count").get::<_, bool>(0))
        .await;
    assert!(daemon.terminate().await.success());
    let users: i64 = client.query_one("select count(*) from public.users", &[]).await.expect("count").get(0);
    assert_eq!(i64::try_from(database.tenant_databases().await.len()).expect("few"), users);
    drop(client);
    database.finish().await;
}

async fn state(database: &TestDatabase, key: &str) -> Value {
    row(database, key).await["state"].clone()
}

/// Goal: at its commit the user has a tenant, whole, owned, marked and usable, without any daemon; a rollback puts the spare back. Method: both,
/// with the daemon stopped.
#[tokio::test]
async fn a_tenant_is_ready_at_the_commit() {
    let database = TestDatabase::new().await;
    stocked(&database, 2).await;
    let mut app = database.app().await;
    let undone = app.transaction().await.expect("begin");
    undone.batch_execute("insert into users (email) values ('undone@example.org')").await.expect("sign up");
    undone.rollback().await.expect("roll back");
    let client = database.superuser().await;
    assert_eq!(at_hand(&client).await, 2);

    let key = database.sign_up("one@example.org").await;
    let recorded = row(&database, &key).await;
    assert_eq!(
        (&recorded["state"], &recorded["work"], &recorded["attempt"]),
        (&"ready".into(), &"idle".into(), &0.into())
    );
    assert_eq!((&recorded["version"], at_hand(&client).await), (&1.into(), 1));
    let name = database.tenant_name(&key);
    let inside = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    inside.batch_execute("insert into log_message (message) values ('hello')").await.expect("app may write");
    inside.close().await;
    let again =
        app.execute("insert into users (id, email) select id, email from users on conflict do nothing", &[]).await;
    assert_eq!((again.expect("an upsert"), at_hand(&client).await), (0, 1), "nobody new, no spare");
    drop((client, app));
    end(database, 2).await;
}

/// Goal: a crowd goes the ordinary way, and a transaction takes no more than a quarter of the pool. Method: five rows in one statement; six
/// statements in one transaction beside eight spares.
#[tokio::test]
async fn crowds_leave_spares_for_others() {
    let database = TestDatabase::new().await;
    stocked(&database, 8).await;
    let client = database.superuser().await;
    execute(&database, "insert into users (email) select 'crowd' || g from generate_series(1, 5) g").await;
    assert_eq!(at_hand(&client).await, 8, "a crowd");
    let mut app = database.app().await;
    let long = app.transaction().await.expect("begin");
    for number in 0..6 {
        let insert = format!("insert into users (email) values ('{number}@example.org')");
        long.batch_execute(&insert).await.expect("sign up");
    }
    long.commit().await.expect("commit");
    assert_eq!(at_hand(&client).await, 6, "a quarter of eight");
    drop((client, app));
    end(database, 8).await;
}

/// Signs up under an application's short `statement_timeout`. A machine that stands still for so long ends an INSERT of any kind, so one in three
/// has to come through; a trigger that waits too long ends each.
async fn sign_up_in_time(app: &Client, email: &str) -> String {
    let insert = format!("insert into users (email) values ('{email}') returning id::text");
    let mut attempts = 0;
    loop {
        attempts += 1;
        match app.query_one(&insert, &[]).await {
            Ok(row) => return row.get(0),
            Err(error) if attempts < 3 && error.code() == Some(&SqlState::QUERY_CANCELED) => {}
            Err(error) => panic!("beside a lock on {email}, attempt {attempts}: {error:?}"),
        }
    }
}

/// Goal: without a spare, with the registry's spares locked, with the registry itself locked and with a short `statement_timeout` of the application
/// the signup commits within its bounds. Method: each in turn, on a server of its own, since one of the locks is the whole server's.
#[tokio::test]
async fn whatever_is_missing_the_signup_commits() {
    let database = TestDatabase::on(&TestServer::builder().start()).await;
    stocked(&database, 1).await;
    let first = database.sign_up("first@example.org").await;
    let none = database.sign_up("none@example.org").await;
    assert_eq!((state(&database, &first).await, state(&database, &none).await), ("ready".into(), "requested".into()));
    stocked(&database, 1).await;
    let app = database.app().await;
    app.batch_execute("set statement_timeout = '90ms'").await.expect("as applications do");
    let mut blocker = database.superuser().await;
    for table in ["tenantd.spare", "pg_catalog.pg_database", "tenantd.tenant"] {
        let lock = blocker.transaction().await.expect("begin");
        lock.batch_execute(&format!("lock table {table} in share row exclusive mode")).await.expect("lock");
        let start = Instant::now();
        let key = sign_up_in_time(&app, table).await;
        assert!(start.elapsed() < BOUND, "{table}: {:?}", start.elapsed());
        lock.rollback().await.expect("unlock");
        if table != "tenantd.tenant" {
            assert_eq!(state(&database, &key).await, "requested", "{table}");
        }
    }
    drop((app, blocker));
    end(database, 1).await;
}

/// Goal: a spare that anyone ever entered, or that is not as it was made, is not taken by a signup. Method: somebody in it, somebody who was
/// in it, another owner, a prepared transaction in it.
#[tokio::test]
async fn only_untouched_spares_are_taken() {
    let server = TestServer::builder().setting("max_prepared_transactions", "5").start();
    let database = TestDatabase::on(&server).await;
    stocked(&database, 4).await;
    let client = database.superuser().await;
    let names: Vec<String> = client
        .query("select name from tenantd.spares_at_hand order by made_at", &[])
        .await
        .expect("list")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut inside = Vec::new();
    for name in &names[..3] {
        execute(&database, &format!("alter database {name} allow_connections true")).await;
        inside.push(database.tenant_superuser(name).await);
        execute(&database, &format!("alter database {name} allow_connections false")).await;
    }
    execute(&database, &format!("alter database {} owner to app", names[3])).await;
    inside[1].batch_execute("begin; create table x (); prepare transaction 'forgotten'").await.expect("prepare");
    drop(inside.split_off(1));
    let gone = "select count(*) from pg_stat_activity where datname = any ($1)";
    until("two to be gone", SOON, async || {
        client.query_one(gone, &[&names]).await.expect("count").get::<_, i64>(0) == 1
    })
    .await;
    // Before Postgres 15 what a session did is told a moment after its end.
    let told = "select bool_and(pg_stat_get_db_xact_commit(oid) + pg_stat_get_db_xact_rollback(oid) > 0) from pg_database where datname = any ($1)";
    until("what they did to be told", SOON, async || {
        client.query_one(told, &[&&names[1..3]]).await.expect("look").get::<_, bool>(0)
    })
    .await;
    for number in 0..4 {
        let start = Instant::now();
        let key = database.sign_up(&format!("{number}@example.org")).await;
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
        assert_eq!(state(&database, &key).await, "requested");
    }
    drop(inside);
    execute(&database, &format!("alter database {} allow_connections true", names[1])).await;
    let held = database.tenant_superuser(&names[1]).await;
    held.batch_execute("rollback prepared 'forgotten'").await.expect("forget it");
    drop((held, client));
    execute(&database, &format!("drop database {}", names[3])).await;
    execute(&database, &format!("delete from tenantd.spare where name = '{}'", names[3])).await;
    // The daemon drops the one that is open by itself, in a quiet moment.
    let daemon = program(&database, 4).start();
    until("the open one to go", SOON, async || oid(&database, &names[1]).await.is_none()).await;
    assert!(daemon.terminate().await.success());
    end(database, 4).await;
}

/// Goal: a signup left open holds its spare, and nobody else. Method: one left open; another takes the next; the daemon fills the pool meanwhile
/// and the first commits in the end.
#[tokio::test]
async fn a_signup_left_open_holds_up_nobody() {
    let database = TestDatabase::new().await;
    let daemon = running(&database, 2).await;
    let mut app = database.app().await;
    let open = app.transaction().await.expect("begin");
    let first: String = open
        .query_one("insert into users (email) values ('open@example.org') returning id::text", &[])
        .await
        .expect("sign up")
        .get(0);
    for number in 0..4 {
        let start = Instant::now();
        let key = database.sign_up(&format!("{number}@example.org")).await;
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
        until("the tenant", SOON, async || state(&database, &key).await == "ready").await;
    }
    open.commit().await.expect("commit");
    assert_eq!(state(&database, &first).await, "ready");
    drop(app);
    assert!(daemon.terminate().await.success());
    end(database, 2).await;
}

/// Goal: the hand-over brings no conflict into signups, whatever their isolation: SERIALIZABLE ones leave it to the daemon, the others have their tenant
/// at their commit. Method: many at once, all begun before the first commits.
#[tokio::test]
async fn no_isolation_makes_signups_conflict() {
    let database = TestDatabase::new().await;
    stocked(&database, 24).await;
    for (isolation, at_commit) in [("serializable", 0), ("repeatable read", 6)] {
        let mut apps = Vec::new();
        for number in 0..6 {
            let app = database.app().await;
            run(&app, &format!("begin isolation level {isolation}")).await;
            run(&app, &format!("insert into users (email) values ('{isolation} {number}')")).await;
            apps.push(app);
        }
        for app in &apps {
            run(app, "commit").await;
        }
        let client = database.superuser().await;
        let ready = format!(
            "select count(*) from tenantd.tenant t join users u on u.id::text = t.key where t.state = 'ready' and u.email like '{isolation}%'"
        );
        assert_eq!(one::<i64>(&client, &ready).await, at_commit, "{isolation}");
    }
    end(database, 24).await;
}

/// Goal: thirty-two at once each end with one tenant, by their commit or soon after, beside a daemon that fills the pool. Method: as many clients,
/// each with two signups, or ten.
#[tokio::test]
async fn a_crowd_of_clients_ends_with_one_tenant_each() {
    let database = TestDatabase::new().await;
    let daemon = running(&database, 16).await;
    let signups = times(2, 10);
    let all = i64::try_from(32 * signups).expect("few");
    let clients = (0..32).map(|client| {
        let database = &database;
        async move {
            let app = database.app().await;
            for number in 0..signups {
                let insert = format!("insert into users (email) values ('{client}-{number}@example.org')");
                app.batch_execute(&insert).await.expect("a signup never fails");
            }
        }
    });
    futures_util::future::join_all(clients).await;
    let client = database.superuser().await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready'";
    until("all of them", SOON * 2, async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == all)
        .await;
    let at_commit = "select count(*) from tenantd.tenant where attempt = 0";
    assert!(client.query_one(at_commit, &[]).await.expect("count").get::<_, i64>(0) > 0, "some at their commit");
    assert_eq!(database.tenant_databases().await.len(), 32 * signups);
    drop(client);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: the brakes hold here too, since nothing is kept that may not become a tenant. Method: `tenant.max` of two, four signups.
#[tokio::test]
async fn the_brakes_hold_at_the_commit_too() {
    let database = TestDatabase::new().await;
    let daemon = program(&database, 4).setting("tenant.max", "2").start().allow("the brakes hold").allow("four fifths");
    let client = database.superuser().await;
    until("the spares", SOON, async || {
        let installed = "select to_regclass('tenantd.spares_at_hand') is not null";
        client.query_one(installed, &[]).await.expect("look").get::<_, bool>(0) && at_hand(&client).await == 2
    })
    .await;
    for number in 0..4 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    daemon.wait_for_line("the brakes hold", SOON).await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready'";
    assert_eq!(client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0), 2);
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}

/// Goal: with a row-level trigger it is the same. Method: a partitioned signup table.
#[tokio::test]
async fn a_partitioned_table_too() {
    let database = TestDatabase::new().await;
    execute(
        &database,
        "create table public.people (id uuid default gen_random_uuid(), email text) partition by hash (id);
         create table public.people_0 partition of public.people for values with (modulus 1, remainder 0);
         grant select (id), trigger on public.people, public.people_0 to tenantd; grant insert, select on public.people to app",
    )
    .await;
    let daemon = program(&database, 2).setting("signup.table", "public.people").start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    until("the spares", SOON, async || at_hand(&client).await == 2).await;
    assert!(daemon.terminate().await.success());
    let app = database.app().await;
    let key: String = app
        .query_one("insert into people (email) values ('one@example.org') returning id::text", &[])
        .await
        .expect("sign up")
        .get(0);
    assert_eq!(state(&database, &key).await, "ready");
    drop((app, client));
    database.finish().await;
}

/// Goal: the update that makes `signup.when` true hands a spare over as an insert does, a crowd takes a quarter of the pool and goes on without a look at it for
/// each row, and nobody is lost. Method: one row, then a thousand in one update, with four spares.
#[tokio::test]
async fn an_update_that_makes_the_condition_true_is_handed_a_spare() {
    let database = TestDatabase::new().await;
    let setup =
        "alter table public.users add column email_confirmed boolean; grant update, select on public.users to app;
                 grant select (email_confirmed) on public.users to tenantd";
    execute(&database, setup).await;
    let program = program(&database, 4).setting("signup.when", "email_confirmed");
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    until("the spares", SOON, async || at_hand(&client).await == 4).await;
    assert!(daemon.terminate().await.success());
    let key = database.sign_up("0").await;
    for number in 1..=3 {
        database.sign_up(&number.to_string()).await;
    }
    let app = database.app().await;
    app.batch_execute("update public.users set email_confirmed = true where email = '0'").await.expect("confirm");
    assert_eq!(row(&database, &key).await["state"], "ready", "at the very commit");
    execute(&database, "insert into public.users (email) select 'crowd ' || n from generate_series(1, 1000) n").await;
    let begin = Instant::now();
    let crowd = "begin; update public.users set email_confirmed = true where email like 'crowd %'; rollback";
    app.batch_execute(crowd).await.expect("confirm a crowd");
    println!("1,000 rows confirmed in one update beside three spares: {:?}", begin.elapsed());
    assert_eq!(at_hand(&client).await, 3);
    execute(&database, "delete from public.users where email like 'crowd %'").await;
    app.batch_execute("update public.users set email_confirmed = true").await.expect("confirm three");
    assert_eq!(at_hand(&client).await, 2, "a quarter of three, and one at the least");
    drop((client, app));
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let all = "select count(*) = 4 from tenantd.tenant where state = 'ready' and work = 'idle'";
    until("one tenant each", SOON, async || client.query_one(all, &[]).await.expect("count").get::<_, bool>(0)).await;
    assert!(daemon.terminate().await.success());
    drop(client);
    database.finish().await;
}
