//! Several daemons at once: beside each other, one that died, one that stood still, an older and a newer.

use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::error::{Error, Kind};
use tenantd::registry::Registry;
use tenantd::registry::claim::Claim;
use tenantd::registry::dropped::Aside;
use tenantd::registry::events::What;
use tenantd::registry::rollback::RolledBack;
use tenantd::tenant::spare_name;
use tokio_postgres::Client;

use crate::fleet::{Fleet, execute, half_made, row, write_migrations};
use crate::support::count::times;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

async fn sign_up_many(database: &TestDatabase, users: usize) {
    let app = database.app().await;
    for _ in 0..users {
        let insert = "insert into public.users (email) values (gen_random_uuid()::text)";
        app.batch_execute(insert).await.expect("a signup never fails");
    }
}

/// Goal: however many daemons there are, each user gets one tenant, also while some die and others come. Method: two, then five, that sweep all the
/// time, under signups of several clients; one is killed in the middle and another started; `--sweep-once` beside them.
#[tokio::test]
async fn daemons_beside_each_other_make_each_tenant_once() {
    let server = TestServer::builder().start();
    for daemons in [2, 5] {
        beside_each_other(&server, daemons).await;
    }
}

async fn beside_each_other(server: &std::sync::Arc<TestServer>, daemons: usize) {
    let database = TestDatabase::on(server).await;
    Fleet::install(&database, &[]).await.close().await;
    let program = Program::for_database(&database)
        .setting("sweep.every", "1s")
        .setting("signup.poll", "500ms")
        .setting("work.lease", "5s")
        .setting("work.connections", "15")
        .setting("spares.min", "2")
        .setting("spares.max", "4");
    // On a busy machine so short a lease may run out under an honest daemon, too.
    let start = || program.start().allow("tenant left alone").allow("the server fail");
    let mut running: Vec<Daemon> = (0..daemons).map(|_| start()).collect();
    let users = times(8, 60);
    let signing_up = async {
        for _ in 0..2 {
            futures_util::future::join_all((0..4).map(|_| sign_up_many(&database, users / 4))).await;
            running.remove(0).kill();
            running.push(start());
        }
    };
    let (swept, ()) = tokio::join!(program.run(&["--sweep-once"]), signing_up);
    assert!([0, 1].contains(&swept.code()), "{}\n{}", swept.stdout, swept.stderr);
    let eye = database.superuser().await;
    let wanted = i64::try_from(users / 4 * 4 * 2).expect("small");
    let ready = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle' and leased_until is null";
    until("a tenant for each", SOON, async || count(&eye, ready).await == wanted).await;
    until("nothing is half made", SOON, async || half_made(&database).await.is_empty()).await;
    for daemon in running {
        assert_eq!(daemon.terminate().await.code(), Some(0));
    }
    assert_eq!(database.tenant_databases().await.len(), users / 4 * 4 * 2);
    assert_eq!(
        count(&eye, "select count(*) from tenantd.tenant where failures > 0 or error_kind is not null").await,
        0
    );
    drop(eye);
    database.finish().await;
}

/// Goal: who lost the lease on a tenant that stands changes nothing more of it, whatever it was about: migrating, rolling back, dropping, holding,
/// exchanging its database; nor does its history tell of it. Method: a claim that ran out and was taken over, and every such write in its name.
#[tokio::test]
async fn a_stale_holder_of_a_tenant_that_stands_changes_nothing() {
    let database = TestDatabase::new().await;
    let first = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(first.sweep().await.made, 1);
    let keys = [key.clone()];
    let stale = first.registry().claim_keys(&keys, Duration::from_millis(1)).await.expect("claim").remove(0);
    let second = Fleet::install(&database, &[]).await;
    let mut fresh = Vec::new();
    until("the end of the lease", SOON, async || {
        fresh = second.registry().claim_keys(&keys, SOON).await.expect("claim");
        !fresh.is_empty()
    })
    .await;
    let eye = database.superuser().await;
    let events = "select count(*) from tenantd.event";
    let seen = async || {
        let place = database.place(&eye).await;
        let databases = format!(
            "select string_agg(to_jsonb(p)::text, ',' order by oid) from {place} p where starts_with(name, $1)"
        );
        let databases: String = eye.query_one(&databases, &[&database.prefix()]).await.expect("look").get(0);
        (row(&database, &key).await, count(&eye, events).await, databases)
    };
    let before = seen().await;
    for (what, outcome) in late_writes(first.registry(), &stale, &database.tenant_name(&key)).await {
        let error = outcome.expect_err(what);
        assert_eq!(error.kind(), Kind::LeaseLost, "{what}: {}", error.chain());
    }
    assert_eq!(seen().await, before);
    second.registry().release(&fresh[0], Duration::ZERO).await.expect("the holder may");
    drop(eye);
    first.close().await;
    second.close().await;
    database.finish().await;
}

/// Every write about a tenant that stands, with `claim` of somebody who lost it.
async fn late_writes(registry: &Registry, claim: &Claim, name: &str) -> Vec<(&'static str, Result<(), Error>)> {
    let aside = Aside { what: What::Dropped, backup: None, grace: Duration::from_hours(1) };
    let back = RolledBack { version: 0, migration_set: None, detail: "late", error: None };
    let mut writes = vec![
        ("hold_for_rollback", registry.hold_for_rollback(claim, "late").await),
        ("let_go_after_rollback", registry.let_go_after_rollback(claim, "late").await),
        ("record_rollback", registry.record_rollback(claim, &back).await),
        ("drop_softly", registry.drop_softly(claim, name, aside).await.map(drop)),
        ("drop_without_database", registry.drop_without_database(claim).await),
        ("hold", registry.hold(claim, Some("late")).await),
        ("begin_anew", registry.begin_anew(claim).await),
        ("announce_for", registry.announce_for(claim, &spare_name()).await),
    ];
    if registry.isolation == Isolation::Database {
        let exchanged = registry.exchange(claim, name, &spare_name(), Some(aside), What::Reset, "late").await;
        writes.extend([("shut", registry.shut(claim, name).await), ("exchange", exchanged)]);
    }
    writes
}

/// Goal: an upgrade that rolls from daemon to daemon costs nothing: beside a newer one the older goes on serving signups, with the newer's schema, touches
/// none of its tenants and says so; when the newer is taken back, signups are served all the same; a registry that needs the newer ends the older.
/// Method: two daemons whose folders differ by a migration; the newer is killed; then the registry says that it needs one that is newer yet.
#[tokio::test]
async fn an_upgrade_rolls_from_daemon_to_daemon() {
    let database = TestDatabase::new().await;
    let (older, newer) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let files = [("0001_first.sql", "create table first ();"), ("0002_second.sql", "create table second ();")];
    write_migrations(older.path(), &files[..1]);
    write_migrations(newer.path(), &files);
    let program = |folder: &std::path::Path| {
        Program::for_database(&database)
            .setting("tenant.migrations", &folder.display().to_string())
            .setting("sweep.every", "1s")
            .setting("spares.min", "1")
            .setting("spares.max", "2")
    };
    let old = program(older.path()).start().allow("tenant left alone").allow("newer");
    let eye = database.superuser().await;
    let at = async |version: i32, tenants: i64| {
        let there = format!(
            "select count(*) from tenantd.tenant where state = 'ready' and version = {version} and work = 'idle'"
        );
        until(&format!("{tenants} at {version}"), SOON, async || count(&eye, &there).await == tenants).await;
    };
    old.wait_for_line("tenantd is at work", SOON).await;
    sign_up_many(&database, 4).await;
    at(1, 4).await;
    let new = program(newer.path()).start();
    // Signups go on while the rollout runs; whoever of the two takes them.
    sign_up_many(&database, 4).await;
    // Those that were made of the older's template after the rollout are brought up by the newer's next sweep.
    at(2, 8).await;
    let attempts = "select sum(attempt)::bigint from tenantd.tenant";
    new.kill();
    let before = count(&eye, attempts).await;
    // Served by the older, of what the newer has left: its template, or a spare of the older set that was not replaced yet.
    let ready = "select count(*) from tenantd.tenant where state = 'ready' and work = 'idle' and version in (1, 2)";
    sign_up_many(&database, 4).await;
    until("the signups beside the older alone", SOON, async || count(&eye, ready).await == 12).await;
    // A sweep or two of the older later nothing was claimed but what signed up.
    let said = old.lines().len();
    let key = database.sign_up("last@example.org").await;
    until("the last", SOON, async || row(&database, &key).await["work"] == "idle").await;
    assert_eq!(count(&eye, ready).await, 13);
    assert_eq!(count(&eye, attempts).await, before + 5, "{}", old.lines()[said..].join("\n"));
    assert_eq!(
        count(&eye, "select count(*) from tenantd.tenant where failures > 0 or error_kind is not null").await,
        0
    );

    execute(&database, "update tenantd.registry set needs_version = 99").await;
    let mut old = old.allow("needs");
    assert_eq!(old.ended(SOON).await.code(), Some(4), "what it knows is not enough");
    old.kill();
    execute(&database, "update tenantd.registry set needs_version = 1").await;
    let new = program(newer.path()).start();
    sign_up_many(&database, 1).await;
    at(2, 14).await;
    assert_eq!(new.terminate().await.code(), Some(0));
    drop(eye);
    database.finish().await;
}
