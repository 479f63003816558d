//! A step is carried out and its answer lost: CREATE DATABASE, a hand-over, any commit. Whoever sent it looks what became of it, as after a death
//! between two steps, and what comes of it is the same.
//!
//! The proxy reads the messages, so these connections are without TLS. The fail points, places between two steps, are the list of what is to be
//! tried: for each, the statement of the step before it.

mod commands;
mod rollouts;

use std::time::Duration;

use tenantd::config::Isolation;
use tenantd::fail_points::Point;

use crate::fleet::{Fleet, enter, execute, half_made};
use crate::support::count::is_long;
use crate::support::daemon::{Daemon, Program};
use crate::support::database::{TestDatabase, isolation};
use crate::support::proxy::{Mode, Proxy};
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// What leads the daemon to a step.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A signup.
    SignUp,
    /// A user whom the trigger does not see.
    Unseen,
    /// This statement of the superuser's about a tenant that stands; `{name}` is its database, `{key}` its key.
    Damage(&'static str),
    /// The same, of what it is from outside.
    DamageOutside(&'static str),
    /// This one about templates or spares, whose keeper looks after them at a SIGHUP.
    OfKeeper(&'static str),
    /// As `Damage`, and this one in the tenant's own database.
    DamageInside(&'static str, &'static str),
}

/// The fail point, what leads to it, and a part of the statement that is the step before it.
type Case = (&'static str, Way, &'static str);

const ANEW: Way = Way::OfKeeper("update tenantd.template set retired_at = now()");
const UNVERIFIED: &str = "update tenantd.tenant set verified_at = null where key = '{key}'";
const FORGOTTEN: &str =
    "update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'";

/// By a daemon that keeps no spares, the most telling first: a short run takes these.
const COLD: &[Case] = &[
    ("Made", Way::SignUp, "create database \"tenantd_spare_"),
    ("HandedOver", Way::SignUp, "tenantd.hand_over($1"),
    ("Claimed", Way::SignUp, "tenantd.claim_due($1"),
    ("TemplateMade", ANEW, "create database \"tenantd_template_"),
    ("Migrated", Way::DamageInside(UNVERIFIED, "drop table log_message; delete from tenantd_migration"), RELEASE),
    ("Mended", Way::DamageOutside("grant connect on database \"{name}\" to public"), MARKER_CHECKED),
    ("TakenBack", Way::Damage(FORGOTTEN), "update tenantd.tenant set database_oid = $3"),
    ("SetAside", Way::Damage(SPOILED), "insert into tenantd.spare (name, key, attempt) values"),
    ("Named", Way::SignUp, "update tenantd.tenant set name = $3"),
    ("Announced", Way::SignUp, "insert into tenantd.spare (name, key, attempt, template"),
    ("TemplateAnnounced", ANEW, "insert into tenantd.template"),
    ("TemplateOpened", ANEW, "with allow_connections true"),
    ("TemplateFilled", ANEW, RELEASE),
    ("TemplateClosed", ANEW, "with allow_connections false"),
    ("TemplateComplete", ANEW, "update tenantd.template p set completed_at = now()"),
    ("TemplateRetired", ANEW, "update tenantd.template set retired_at = coalesce("),
    ("Looked", Way::Damage(UNVERIFIED), "update tenantd.tenant t set state = 'ready', work = 'idle', failures = 0"),
    ("Granted", Way::Damage("update tenantd.tenant set access = 'other' where key = '{key}'"), MARKER_CHECKED),
    ("Requested", Way::Unseen, "insert into tenantd.tenant (key, work)"),
];

/// By one whose tenants have schemas.
const SCHEMAS: &[Case] = &[
    ("Made", Way::SignUp, RELEASE),
    ("HandedOver", Way::SignUp, "update tenantd.tenant set database_oid ="),
    ("Claimed", Way::SignUp, "tenantd.claim_due($1"),
    ("Migrated", Way::DamageInside(UNVERIFIED, "drop table log_message; delete from tenantd_migration"), RELEASE),
    ("Mended", Way::DamageOutside("grant connect on database \"{name}\" to public"), MARKER_CHECKED),
    ("TakenBack", Way::Damage(FORGOTTEN), "update tenantd.tenant set database_oid = $3"),
    ("Named", Way::SignUp, "update tenantd.tenant set name = $3"),
    ("Looked", Way::Damage(UNVERIFIED), "update tenantd.tenant t set state = 'ready', work = 'idle', failures = 0"),
    ("Granted", Way::Damage("update tenantd.tenant set access = 'other' where key = '{key}'"), MARKER_CHECKED),
    ("Requested", Way::Unseen, "insert into tenantd.tenant (key, work)"),
];

/// By one that keeps a spare.
const WARM: &[Case] = &[
    ("HandedOver", Way::SignUp, "tenantd.hand_over($1"),
    ("SpareMade", Way::SignUp, "create database \"tenantd_spare_"),
    ("SpareAnnounced", Way::SignUp, "insert into tenantd.spare (name, template"),
    ("SpareWithdrawn", Way::OfKeeper(OLD), "set made_at = null, maker = null"),
];

/// Ends each migration in a transaction, with its commit.
const RELEASE: &str = "release savepoint tenantd_migration";
/// In each transaction that changes a tenant's database from outside.
const MARKER_CHECKED: &str = "select from tenantd.place d where d.name = $1 and d.marker = $2";
const SPOILED: &str = "update pg_database set datconnlimit = -2 where datname = '{name}';
     update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'";
const OLD: &str =
    "update tenantd.spare set made_at = made_at - interval '2 days', created_at = created_at - interval '2 days'";

/// Points before which no statement of ours is a step of its own, each with why.
const NONE: &[(&str, &str)] = &[
    ("Taken", "the step before is Made"),
    ("RolledBack", "the step before is Undone"),
    ("BackedUp", "pg_dump wrote a file"),
    ("Dumped", "pg_dump wrote a file"),
    ("MigrationBegun", "the transaction has still to commit"),
    ("CarriedOut", "in another database than the main one: see `schemas`"),
    ("Moved", "in another database than the main one: see `schemas`"),
    ("Vacated", "everybody has left"),
    ("CanariesChosen", "they are chosen in the process and written down by CanariesPassed"),
];

/// Goal: every fail point has its lost answer, or a reason why not.
#[test]
fn every_point_has_its_lost_answer() {
    let cases = [COLD, WARM].concat();
    for point in Point::ALL {
        let word = point.word();
        let covered = cases.iter().any(|case| case.0 == word)
            || commands::POINTS.contains(&word.as_str())
            || rollouts::POINTS.contains(&word.as_str())
            || NONE.iter().any(|none| none.0 == word);
        assert!(covered, "{word}: no lost answer, and no word why");
    }
}

/// Goal: whichever answer a daemon loses, it brings every tenant to its end by itself: one database, whole, no failure counted, nothing half made.
/// Method: one daemon without spares and one with, each through a proxy; one step after the other, its answer lost once.
#[tokio::test]
async fn a_daemon_that_lost_an_answer_goes_on() {
    match isolation() {
        Isolation::Database => drop(tokio::join!(one_daemon(COLD, 0, 8), one_daemon(WARM, 1, 2))),
        Isolation::Schema => one_daemon(SCHEMAS, 0, 8).await,
    }
}

/// The first `small` of `cases`, or all in a long run.
async fn one_daemon(cases: &[Case], spares: i64, small: usize) {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    Fleet::install(&database, &[]).await.close().await;
    let client = database.superuser().await;
    let program = Program::for_database(&database)
        .setting("main.url", &proxy.plain_url(&database.url()))
        .setting("work.lease", "3s")
        .setting("signup.poll", "250ms")
        .setting("sweep.every", "1s")
        .setting("spares.min", &spares.to_string())
        .setting("spares.max", &spares.to_string());
    let mut daemon = used_to_losses(program.start());
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let key = database.sign_up("stands@example.org").await;
    let number = if is_long() { cases.len() } else { small };
    at_rest(&database, &client, spares, "the beginning").await;
    for (nth, (point, way, statement)) in cases[..number].iter().enumerate() {
        let what = format!("{point} with {spares} spares");
        proxy.set(Mode::LoseAnswer(statement));
        for _ in 0..10 {
            lead(&database, *way, &key).await;
            if matches!(way, Way::OfKeeper(_)) {
                daemon.hang_up();
            }
            // Where a sweep was quicker than the intake, or the other way round, once more.
            let lost = until("an answer is lost", SOON, async || proxy.lost() == nth + 1);
            if tokio::time::timeout(Duration::from_secs(6), lost).await.is_ok() {
                break;
            }
        }
        assert_eq!(proxy.lost(), nth + 1, "{what}: no answer was lost");
        at_rest(&database, &client, spares, &what).await;
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let users: i64 = client.query_one("select count(*) from public.users", &[]).await.expect("count").get(0);
    let databases = database.tenant_databases().await;
    assert_eq!(i64::try_from(databases.len()).expect("few"), users, "one database each");
    for name in databases {
        let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
        app.batch_execute("insert into log_message (message) values ('x')").await.expect("app can work in it");
        app.close().await;
    }
    drop((proxy, client));
    database.finish().await;
}

async fn lead(database: &TestDatabase, way: Way, key: &str) {
    let name = database.tenant_name(key);
    let filled = |statement: &str| statement.replace("{name}", &name).replace("{key}", key);
    match way {
        Way::SignUp => drop(database.sign_up(&email()).await),
        Way::Unseen => {
            let insert = format!("insert into public.users (email) values ('{}')", email());
            execute(database, &format!("set session_replication_role = replica; {insert}")).await;
        }
        Way::DamageOutside(damage) => database.outside(&filled(damage)).await,
        Way::Damage(damage) | Way::OfKeeper(damage) => execute(database, &filled(damage)).await,
        Way::DamageInside(damage, inside) => {
            database.tenant_superuser(&name).await.batch_execute(inside).await.expect("damage it");
            execute(database, &filled(damage)).await;
        }
    }
}

fn email() -> String {
    format!("{}@example.org", uuid::Uuid::new_v4().simple())
}

/// Lets a daemon say what a broken connection makes it say.
fn used_to_losses(daemon: Daemon) -> Daemon {
    daemon.allow_all(&[
        "the server fails",
        "the server failed this tenant",
        "the registry cannot be read",
        "the doorbell is not heard",
        "the sweep could not",
        "left alone",
        "the template could not be built",
        "templates and spares",
        "could not be dropped",
        "leases were not given back",
    ])
}

/// Waits until all is as it should be: every user a tenant that is ready, verified, held by nobody and without a failure; one template, so many
/// spares, nothing half made.
async fn at_rest(database: &TestDatabase, client: &tokio_postgres::Client, spares: i64, what: &str) {
    let tenants = "select count(*) filter (where t.key is null or not (
                          t.state = 'ready' and t.work = 'idle' and t.leased_until is null and t.verified_at is not null and t.failures = 0
                          and d.oid = t.database_oid and not d.public))
                   from public.users u left join tenantd.tenant t on t.key = u.id::text left join tenantd.place d on d.name = t.name";
    // One that was given up stays for as long as a database may still be made of it.
    let stock =
        "select r.isolation = 'schema' or (select count(*) from tenantd.spares_at_hand) = $1 and (
             select count(*) filter (where retired_at is null) = 1 and bool_and(completed_at is not null or retired_at is not null)
             from tenantd.template
         ) from tenantd.registry r";
    until(&format!("{what}: all at rest"), SOON, async || {
        client.query_one(tenants, &[]).await.expect("look").get::<_, i64>(0) == 0
            && client.query_one(stock, &[&spares]).await.expect("look").get::<_, bool>(0)
            && half_made(database).await.is_empty()
    })
    .await;
}
