//! A daemon that dies between any two steps of its work, and another that goes on after the lease.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures_util::StreamExt;
use tenantd::config::Isolation;
use tenantd::fail_points::Point;
use tenantd::provision::spare::make_spare;

use crate::fleet::{Fleet, enter, execute, half_made, row};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::{TestDatabase, isolation};
use crate::support::process::tell;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// What leads the work to a point.
enum Way {
    /// A signup.
    Making,
    /// A signup, and a spare to be made ahead of the next.
    Keeping,
    /// A signup that this statement of the superuser's loses.
    Losing(&'static str),
    /// A tenant that stands; what was damaged by this statement of the superuser's. `{name}` is its database, `{key}` its key.
    Mending(&'static str),
    /// The same, of what it is from outside.
    MendingOutside(&'static str),
    /// The same, and this one in the tenant's own database.
    MendingInside(&'static str, &'static str),
}

/// `None` for the points that only commands come to, see `life_crashes` and `rollback`, those of rollouts, see `rollout_crashes`, and those of schemas, see
/// `schemas`.
fn way(point: Point) -> Option<Way> {
    Some(match point {
        Point::SetAside => Way::Mending(
            "update pg_database set datconnlimit = -2 where datname = '{name}';
             update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'",
        ),
        Point::TakenBack => Way::Mending(
            "update tenantd.tenant set state = 'requested', work = 'due', database_oid = null where key = '{key}'",
        ),
        Point::Mended => Way::MendingOutside("grant connect on database \"{name}\" to public"),
        Point::Looked => Way::Mending("update tenantd.tenant set verified_at = null where key = '{key}'"),
        Point::Granted => Way::Mending("update tenantd.tenant set access = 'other' where key = '{key}'"),
        Point::Requested => Way::Losing("delete from tenantd.signup; delete from tenantd.tenant"),
        Point::MigrationBegun | Point::Migrated => Way::MendingInside(
            "update tenantd.tenant set verified_at = null where key = '{key}'",
            "drop table log_message; delete from tenantd_migration",
        ),
        Point::TemplateRetired => Way::Mending("update tenantd.template set retired_at = now()"),
        Point::SpareAnnounced | Point::SpareMade => Way::Keeping,
        Point::SpareWithdrawn => Way::Mending(
            "update tenantd.spare set made_at = made_at - interval '2 days', created_at = created_at - interval '2 days'",
        ),
        Point::Claimed
        | Point::Named
        | Point::Announced
        | Point::Made
        | Point::Taken
        | Point::HandedOver
        | Point::TemplateAnnounced
        | Point::TemplateMade
        | Point::TemplateOpened
        | Point::TemplateFilled
        | Point::TemplateClosed
        | Point::TemplateComplete => Way::Making,
        Point::CarriedOut
        | Point::Moved
        | Point::StatementDone
        | Point::CanariesChosen
        | Point::CanariesPassed
        | Point::RolloutPaused
        | Point::WaveEnded
        | Point::RolloutDone
        | Point::RollbackBegun
        | Point::Undone
        | Point::StatementUndone
        | Point::RolledBack
        | Point::Dumped
        | Point::BackedUp
        | Point::Shut
        | Point::Vacated
        | Point::Dropped
        | Point::Condemned
        | Point::Purged
        | Point::Restored
        | Point::FillBegun
        | Point::Filled
        | Point::Exchanged
        | Point::Owned
        | Point::Baselined
        | Point::Adopted => return None,
    })
}

/// Whether the work ever comes to `point` where tenants have `isolation`. A schema is made by one transaction, under its own name.
#[must_use]
pub fn is_reached(point: Point, isolation: Isolation) -> bool {
    isolation == Isolation::Database
        || !matches!(
            point,
            Point::Announced
                | Point::Taken
                | Point::TemplateAnnounced
                | Point::TemplateMade
                | Point::TemplateOpened
                | Point::TemplateFilled
                | Point::TemplateClosed
                | Point::TemplateComplete
                | Point::TemplateRetired
                | Point::SpareAnnounced
                | Point::SpareMade
                | Point::SpareWithdrawn
                | Point::SetAside
                | Point::Shut
                | Point::Vacated
        )
}

/// Goal: whatever the daemon was doing when it died, another brings the tenant to its end: one database, whole, in use, nothing half made.
/// Method: for every fail point a daemon that dies there, then one that does not.
#[tokio::test]
async fn a_daemon_that_died_at_any_point_is_taken_over() {
    // A few at a time: each makes databases, and the machine has few cores.
    let points = Point::ALL.into_iter().filter(|point| is_reached(*point, isolation()));
    let points = points.filter_map(|point| Some((point, way(point)?)));
    futures_util::stream::iter(points).map(die_and_go_on).buffer_unordered(6).collect::<Vec<()>>().await;
}

async fn die_and_go_on((point, way): (Point, Way)) {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database)
        .setting("work.lease", "3s")
        .setting("signup.poll", "250ms")
        .setting("sweep.every", "1s");
    let client = database.superuser().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let name = database.tenant_name(&key);
    if let Way::Mending(damage) | Way::MendingInside(damage, _) | Way::MendingOutside(damage) = way {
        assert_eq!(fleet.sweep().await.made, 1);
        if isolation() == Isolation::Database {
            let templates = fleet.registry().templates().await.expect("the template");
            make_spare(&fleet.context, &templates[0]).await.expect("a spare");
        }
        let damage = damage.replace("{name}", &name).replace("{key}", &key);
        if matches!(way, Way::MendingOutside(_)) {
            database.outside(&damage).await;
        } else {
            execute(&database, &damage).await;
        }
    }
    if let Way::Losing(damage) = way {
        execute(&database, damage).await;
    }
    if let Way::MendingInside(_, damage) = way {
        database.tenant_superuser(&name).await.batch_execute(damage).await.expect("damage it");
    }
    fleet.close().await;

    let keeps = if isolation() == Isolation::Database { "1" } else { "0" };
    let program = program.setting("spares.min", keeps).setting("spares.max", keeps);
    let mut dying = program.clone().variable("TENANTD_FAIL_POINT", &point.word());
    if matches!(way, Way::Making | Way::Losing(_)) {
        dying = dying.setting("spares.max", "0");
    }
    let mut dying = dying.start();
    let ended = dying.ended(SOON).await;
    assert!(ended.signal().is_some(), "{point:?}: it ended by itself: {ended}\n{}", dying.lines().join("\n"));
    dying.kill();

    // On a busy machine so short a lease may run out under an honest daemon, too.
    let daemon = program.start().allow("tenant left alone");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let at_rest = "select from tenantd.tenant
                   where key = $1 and state = 'ready' and work = 'idle' and leased_until is null and verified_at is not null
                     and exists (select from tenantd.place p where p.oid = database_oid and not p.public)";
    until(&format!("{point:?}: the other daemon"), SOON, async || {
        client.query_opt(at_rest, &[&key]).await.expect("look").is_some()
    })
    .await;
    until(&format!("{point:?}: what was half made is dropped"), SOON, async || half_made(&database).await.is_empty())
        .await;
    let stock = "select r.isolation = 'schema' or (select count(*) from tenantd.spares_at_hand) = 1 and (
                     select count(*) = 1 and bool_and(completed_at is not null and retired_at is null) from tenantd.template
                 ) from tenantd.registry r";
    until(&format!("{point:?}: one template, one spare"), SOON, async || {
        client.query_one(stock, &[]).await.expect("look").get::<_, bool>(0)
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0), "{point:?}");

    assert_eq!(database.tenant_databases().await, [name.as_str()], "{point:?}");
    let recorded = row(&database, &key).await;
    assert_eq!((recorded["failures"].as_i64(), recorded["version"].as_i64()), (Some(0), Some(1)), "{point:?}");
    let app = enter(&database, &database.app_url(), &name).await.unwrap_or_else(|error| panic!("{point:?}: {error:?}"));
    app.batch_execute("insert into log_message (message) values ('x')").await.expect("app can work in it");
    app.close().await;
    drop(client);
    database.finish().await;
}

/// Goal: the same for deaths that come at any time, and for more than one tenant. Method: daemons are killed again and again while
/// users sign up; the last one brings all to their end.
#[tokio::test]
async fn daemons_killed_again_and_again_lose_nobody() {
    let database = TestDatabase::new().await;
    Fleet::install(&database, &[]).await.close().await;
    let program = Program::for_database(&database)
        .setting("work.lease", "3s")
        .setting("signup.poll", "250ms")
        .setting("sweep.every", "1s");
    let client = database.superuser().await;
    let ready = "select count(*) from tenantd.tenant where state = 'ready'";
    let (rounds, users) = (times(5, 200), times(8, 3));
    for round in 0..rounds {
        let daemon = program.start();
        for number in 0..users {
            database.sign_up(&format!("{round}-{number}@example.org")).await;
        }
        // Killed in the middle of the work: some of this round's are ready, not all.
        let few = i64::try_from(round * users / 3).expect("few");
        let some = async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) > few;
        until("some to be ready", SOON, some).await;
        daemon.kill();
    }
    // On a busy machine so short a lease may run out under an honest daemon, too.
    let daemon = program.start().allow("tenant left alone");
    let signups = i64::try_from(rounds * users).expect("few");
    let all = async || client.query_one(ready, &[]).await.expect("count").get::<_, i64>(0) == signups;
    until("all of them", SOON, all).await;
    // Each death may leave some, and drops are spread out.
    let mut left = half_made(&database).await.len();
    tell(&format!("{rounds} kills over {signups} signups, none lost, {left} databases half made"));
    while left > 0 {
        let fewer = async || half_made(&database).await.len() < left;
        until("what was half made is dropped, one after the other", SOON, fewer).await;
        left = half_made(&database).await.len();
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_eq!(database.tenant_databases().await.len(), rounds * users);
    drop(client);
    database.finish().await;
}
