//! The acts in which users sign up, whatever stands in the way.

use std::time::{Duration, Instant};

use tenantd::config::Isolation;
use tenantd::naming::{Names, Rule};
use uuid::Uuid;

use crate::figures::Figures;
use crate::page::{Page, time};
use crate::stage::{DEADLINE, Stage, User};
use crate::support::daemon::Daemon;
use crate::support::database::STRANGER_PASSWORD;
use crate::support::listening::Said;
use crate::support::until::until;

const ONE_BY_ONE: [&str; 10] = ["ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hana", "ian", "jo"];
const AT_ONCE: [&str; 4] = ["kim", "leo", "mia", "ned"];
const WHILE_STOPPED: [&str; 4] = ["ola", "pit", "quin", "ray"];
/// The one of them in whose way something stands.
const IN_THE_WAY: usize = 3;

/// tenantd comes to an application that is there already.
pub(crate) async fn install(stage: &Stage) -> Daemon {
    let page = &stage.page;
    let isolation = stage.database.isolation();
    page.line(&format!("tenantd {}: one Postgres {isolation} per signup", env!("CARGO_PKG_VERSION")));
    page.heading("An application and its database");
    let admin = stage.database.superuser().await;
    let server = "select current_setting('server_version'), current_setting('max_prepared_transactions')";
    let row = admin.query_one(server, &[]).await.expect("ask for the version");
    let (version, prepared): (&str, &str) = (row.get(0), row.get(1));
    let version = version.split(' ').next().unwrap_or(version);
    page.line(&format!(
        "Postgres {version}, started for this: {}, TLS by its own CA, max_prepared_transactions = {prepared}.",
        stage.database.server().address()
    ));
    let role = "select rolsuper, rolcreatedb from pg_roles where rolname = 'tenantd'";
    let role = admin.query_one(role, &[]).await.expect("look at the role");
    assert_eq!((role.get(0), role.get(1)), (false, true), "superuser and createdb of role tenantd");
    page.line("tenantd logs in with sslmode=verify-full as a role with CREATEDB and no superuser's rights.");
    stage.tenantd(&["setup"], &[0]).await;
    let daemon = stage.daemon().await;
    let connections = "select count(*), count(*) filter (where s.ssl), min(s.version) from pg_stat_activity a
                       join pg_stat_ssl s using (pid) where a.application_name like 'tenantd:daemon %'";
    let row = admin.query_one(connections, &[]).await.expect("look at the daemon's connections");
    let (all, encrypted): (i64, i64) = (row.get(0), row.get(1));
    assert!(all > 0 && all == encrypted, "{encrypted} of the daemon's {all} connections are encrypted");
    page.line(&format!("The daemon runs; its {all} connections are {}.", row.get::<_, &str>(2)));
    if isolation == Isolation::Schema {
        page.line("Tenants get schemas in the main database: each is made in one transaction, and none ahead of time.");
        return daemon;
    }
    until("two spares are made", DEADLINE, async || {
        let spares =
            admin.query_one("select count(*) from tenantd.spares_at_hand", &[]).await.expect("count the spares");
        spares.get::<_, i64>(0) >= 2
    })
    .await;
    page.line("It has built the template, and made two spares ahead of time.");
    daemon
}

/// What a tenant takes at least: the bare command, or the bare statements. `nth` tells one from the other.
fn bare(isolation: Isolation, nth: usize) -> String {
    let first = include_str!("../../tenant-migrations/0001_log_message.up.sql");
    match isolation {
        Isolation::Database => format!("create database yardstick_{nth} template template0"),
        Isolation::Schema => {
            format!("begin; create schema yardstick_{nth}; set local search_path = yardstick_{nth}; {first} commit")
        }
    }
}

/// Users come one after the other, and find spares. The yardstick is taken in between, so that a disk which others keep busy
/// is as slow for both.
pub(crate) async fn one_by_one(stage: &mut Stage, figures: &mut Figures) -> Vec<User> {
    stage.page.heading(&format!("{} users sign up, one after the other", ONE_BY_ONE.len()));
    let isolation = stage.database.isolation();
    let tenantd = stage.database.tenantd().await;
    let mut users = Vec::new();
    for (number, name) in ONE_BY_ONE.into_iter().enumerate() {
        let user = stage.sign_up(&[name]).await.remove(0);
        let database = stage.name(&user);
        stage
            .wait_for(std::slice::from_ref(&user), |page, user, at| {
                figures.ready.add(at - user.committed);
                tell(page, user, &database, &format!("ready {} after the commit", time(at - user.committed)));
            })
            .await;
        figures.signup.add(user.statement);
        users.push(user);
        let create = bare(isolation, number);
        let began = Instant::now();
        tenantd.batch_execute(&create).await.expect("make a bare one");
        figures.create.add(began.elapsed());
    }
    let alone = match isolation {
        Isolation::Database => "CREATE DATABASE alone, in between, with nothing in it",
        Isolation::Schema => "CREATE SCHEMA and the migration alone, by hand, in between",
    };
    stage.page.line(&format!(
        "{} at the median. {alone}: {}.",
        time(figures.ready.quantile(50)),
        time(figures.create.quantile(50))
    ));
    let cascade = if isolation == Isolation::Schema { "cascade" } else { "" };
    for number in 0..ONE_BY_ONE.len() {
        let drop = format!("drop {isolation} yardstick_{number} {cascade}");
        tenantd.batch_execute(&drop).await.expect("drop a bare one");
    }
    users
}

/// Several users in one statement.
pub(crate) async fn at_once(stage: &mut Stage, figures: &mut Figures) -> Vec<User> {
    stage.page.heading(&format!("{} users in one statement", AT_ONCE.len()));
    let users = stage.sign_up(&AT_ONCE).await;
    let prefix = stage.database.prefix().to_owned();
    stage
        .wait_for(&users, |page, user, at| {
            let after = at - user.committed;
            figures.burst = (users.len(), after.max(figures.burst.1));
            tell(page, user, &database(&prefix, user), &format!("ready {} after the commit", time(after)));
        })
        .await;
    users
}

/// What a tenant is for: the application works in it, nobody else comes in.
pub(crate) async fn application_works(stage: &Stage, user: &User) {
    stage.page.heading("The application works in a tenant, nobody else does");
    let tenant = stage.tenant(user).await;
    let insert = "insert into log_message (message) values ($1)";
    tenant.execute(insert, &[&"the first message of ada's"]).await.expect("insert as app");
    let row = tenant.query_one("select message from log_message", &[]).await.expect("read as app");
    let message: &str = row.get(0);
    assert_eq!(message, "the first message of ada's", "what was written");
    let name = stage.name(user);
    stage.page.line(&format!("app, with no grant made by hand, writes and reads log_message: {message:?}"));
    let server = stage.database.server();
    let refused = match stage.database.isolation() {
        Isolation::Database => server.try_client("stranger", STRANGER_PASSWORD, &name).await.map(drop),
        Isolation::Schema => {
            let stranger = server.client("stranger", STRANGER_PASSWORD, stage.database.name()).await;
            stranger.batch_execute(&format!("select from {name}.log_message")).await
        }
    };
    let error = refused.expect_err("a role named nowhere came in");
    let said = error.as_db_error().unwrap_or_else(|| panic!("not refused by the server: {error:?}"));
    assert_eq!(said.code().code(), "42501", "{said:?}");
    stage.page.line(&format!("stranger, who may log in to the server: {}", said.message()));
}

/// Users sign up while the daemon is stopped, and somebody else's database stands in the way of one.
pub(crate) async fn while_stopped(stage: &mut Stage, daemon: Daemon) -> (Daemon, Vec<User>) {
    stage.page.heading(&format!("{} users sign up while the daemon is stopped", WHILE_STOPPED.len()));
    stop(&stage.page, daemon).await;
    let ids: Vec<Uuid> = WHILE_STOPPED.iter().map(|_| Uuid::new_v4()).collect();
    let foreign = stage.database.tenant_name(&ids[IN_THE_WAY].to_string());
    let (admin, isolation) = (stage.database.superuser().await, stage.database.isolation());
    admin.batch_execute(&format!("create {isolation} {foreign}")).await.expect("make what is in the way");
    let users = stage.sign_up_as(&ids, &WHILE_STOPPED).await;
    stage.page.line(&format!(
        "Their signup commits as ever, in {}. Somebody has made a {isolation} {foreign} meanwhile.",
        time(users[0].statement)
    ));
    for user in &users {
        assert_eq!(stage.state(user).await.as_deref(), Some("requested"), "{user:?}");
    }
    let started = Instant::now();
    let daemon = stage.daemon().await.allow("tenant parked");
    let prefix = stage.database.prefix().to_owned();
    let unhindered = [&users[..IN_THE_WAY], &users[IN_THE_WAY + 1..]].concat();
    stage
        .wait_for(&unhindered, |page, user, at| {
            tell(page, user, &database(&prefix, user), &format!("ready {} after its start", time(at - started)));
        })
        .await;
    conflict(stage, &users[IN_THE_WAY], &foreign).await;
    (daemon, users)
}

async fn conflict(stage: &mut Stage, user: &User, foreign: &str) {
    let select = "select last_error from tenantd.tenants where key = $1 and work = 'parked'";
    let mut parked: Option<String> = None;
    until("the tenant in whose way something stands is parked", DEADLINE, async || {
        let row = stage.app.client.query_opt(select, &[&user.key]).await.expect("read the view");
        parked = row.map(|row| row.get(0));
        parked.is_some()
    })
    .await;
    let error = parked.expect("waited for");
    assert!(error.starts_with("conflict: "), "{error}");
    stage.page.trouble(&format!("{}: parked, {error}", user.email));
    let admin = stage.database.superuser().await;
    let isolation = stage.database.isolation();
    admin.batch_execute(&format!("drop {isolation} {foreign}")).await.expect("remove what is in the way");
    stage.page.line("Its owner removes it.");
    stage.tenantd(&["--sweep-once"], &[0]).await;
    assert_eq!(stage.state(user).await.as_deref(), Some("ready"), "{}", user.email);
    tell(&stage.page, user, foreign, "ready by the sweep");
}

/// A user signs up while somebody holds the registry locked.
pub(crate) async fn while_locked(stage: &mut Stage, figures: &mut Figures) -> Vec<User> {
    stage.page.heading("One user signs up while the registry is locked");
    let admin = stage.database.superuser().await;
    let lock = "begin; lock table tenantd.signup, tenantd.tenant in access exclusive mode";
    admin.batch_execute(lock).await.expect("lock the registry");
    stage.app.so_far();
    let user = stage.sign_up(&["sam"]).await.remove(0);
    admin.batch_execute("rollback").await.expect("unlock the registry");
    figures.locked = user.statement;
    let one_wait = Duration::from_millis(200)..Duration::from_secs(2);
    assert!(one_wait.contains(&user.statement), "the signup took {:?}", user.statement);
    stage.page.line(&format!(
        "The signup commits after {}: one lock_timeout of 200 ms. Its client is told:",
        time(user.statement)
    ));
    let warnings: Vec<String> = stage.app.so_far().into_iter().filter_map(warning).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    stage.page.quote(&warnings[0]);
    assert_eq!(stage.state(&user).await, None, "a tenant of {}'s", user.email);
    stage.tenantd(&["--sweep-once"], &[0]).await;
    assert_eq!(stage.state(&user).await.as_deref(), Some("ready"), "{}", user.email);
    tell(&stage.page, &user, &stage.name(&user), "found and ready by the sweep");
    vec![user]
}

fn warning(said: Said) -> Option<String> {
    match said {
        Said::Notice { severity, message } => Some(format!("{severity}: {message}")),
        Said::Notification { .. } => None,
    }
}

/// The daemon is asked to end.
pub(crate) async fn end(stage: &Stage, daemon: Daemon) {
    stage.page.heading("The end");
    stop(&stage.page, daemon).await;
}

async fn stop(page: &Page, daemon: Daemon) {
    let began = Instant::now();
    let status = daemon.terminate().await;
    assert_eq!(status.code(), Some(0), "exit code of the daemon");
    page.line(&format!("SIGTERM ends the daemon with exit code 0 in {}.", time(began.elapsed())));
}

fn database(prefix: &str, user: &User) -> String {
    Names::new(Rule::Uuid, prefix, "").of(&user.key).expect("a uuid")
}

fn tell(page: &Page, user: &User, database: &str, what: &str) {
    page.line(&format!("{:16}  {database}  {what}", user.email));
}
