//! Two keys that come to one name: whichever way they come, one gets it, the other is parked and told whose it is, and nothing is shared.

use std::time::Duration;

use tenantd::error::Kind;
use tenantd::naming::{Algorithm, Names, Rule};
use tenantd::provision::spare::make_spare;
use tenantd::provision::{Outcome, fresh, reconcile, template};
use tenantd::registry::claim::Most;

use super::{sign_up, succeeds, users};
use crate::fleet::{Fleet, execute, row};
use crate::life::standing;
use crate::sql::{one, run};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_mins(1);

/// As few digits as there may be.
const FEW: [(&str, &str); 2] = [("tenant.naming", "hash"), ("tenant.hash_digits", "8")];

/// Two keys that come to one name with few digits.
fn pair() -> (String, String) {
    let names = Names::new(Rule::Hash(Algorithm::Md5, 8), "t", "app");
    let mut met = std::collections::HashMap::new();
    (0_u32..)
        .find_map(|number| {
            let key = format!("customer {number}");
            met.insert(names.of(&key).expect("a name"), key.clone()).map(|other| (other, key))
        })
        .expect("there are more keys than names")
}

/// With a hand-over at commit.
pub(super) fn at_commit(database: &TestDatabase, spares: usize) -> Program {
    let spares = spares.to_string();
    Program::for_database(database)
        .setting("signup.handover", "commit")
        .setting("spares.min", &spares)
        .setting("spares.max", &spares)
}

/// A daemon with so many spares, stopped, so that nothing but the trigger is at work.
pub(super) async fn stocked(database: &TestDatabase, program: &Program, spares: i64) {
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let client = database.superuser().await;
    let at_hand = "select count(*) from tenantd.spares_at_hand";
    until("the spares", SOON, async || one::<i64>(&client, at_hand).await == spares).await;
    assert!(daemon.terminate().await.success());
}

/// One of the two has the name and the only database, the other is parked, without a name, and told whose it is. Returns the first and the second.
async fn one_of(database: &TestDatabase, pair: &(String, String)) -> (String, String) {
    let ready = standing(database, &pair.0).await == "ready idle";
    let (first, second) = if ready { (&pair.0, &pair.1) } else { (&pair.1, &pair.0) };
    let (one, other) = (row(database, first).await, row(database, second).await);
    assert_eq!((one["state"].as_str(), one["work"].as_str()), (Some("ready"), Some("idle")), "{one}");
    assert_eq!((other["state"].as_str(), other["work"].as_str()), (Some("requested"), Some("parked")), "{other}");
    assert_eq!(
        (other["error_kind"].as_str(), other["name"].as_str(), other["database_oid"].as_str()),
        (Some("bad_key"), None, None)
    );
    let (text, name) = (other["error_text"].as_str().expect("why"), one["name"].as_str().expect("a name"));
    assert!(text.contains(&format!("the name {name:?} belongs to tenant {first:?}")), "{text}");
    assert!(text.contains("tenant.hash_digits"), "{text}");
    assert_eq!(database.tenant_databases().await, [name]);
    (first.clone(), second.clone())
}

/// Goal: the second of two keys that meet is parked, whoever looks at it, and gets a name of its own with more digits; the first keeps its name.
/// Method: a sweep over both; then ten digits and `retry`.
#[tokio::test]
async fn a_second_key_is_parked_and_told_whose_the_name_is() {
    let database = TestDatabase::new().await;
    users(&database, "text").await;
    let program = super::named(Program::for_database(&database), &FEW).setting("log.level", "off");
    succeeds(program.run(&["setup"]).await);
    let (app, pair) = (database.app().await, pair());
    for key in [&pair.0, &pair.1] {
        sign_up(&app, Some(key)).await;
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1);
    let (first, second) = one_of(&database, &pair).await;
    let name = row(&database, &first).await["name"].clone();
    let program = program.setting("tenant.hash_digits", "10");
    succeeds(program.run(&["retry", &second]).await);
    succeeds(program.run(&["--sweep-once"]).await);
    let (one, other) = (row(&database, &first).await, row(&database, &second).await);
    assert_eq!((&one["name"], other["state"].as_str()), (&name, Some("ready")));
    let (short, long) = (name.as_str().expect("a name"), other["name"].as_str().expect("a name"));
    assert!(long.len() == short.len() + 2 && long.starts_with(short), "{short} {long}");
    assert_ne!(one["database_oid"], other["database_oid"]);
    drop(app);
    database.finish().await;
}

/// Goal: in a crowd that takes spares together the second is left out alone: the others get theirs, and its spare stays one. Method: both and two
/// more in one statement.
#[tokio::test]
async fn in_a_crowd_only_the_second_is_left_out() {
    let database = TestDatabase::new().await;
    users(&database, "text").await;
    let fleet = Fleet::install(&database, &[FEW[0], FEW[1], ("spares.max", "4")]).await;
    template::ensure(&fleet.context).await.expect("a template");
    let templates = fleet.registry().templates().await.expect("templates");
    let serving = fleet.context.wanted().serving(&templates).cloned().expect("a template that serves");
    for _ in 0..4 {
        make_spare(&fleet.context, &serving).await.expect("a spare");
    }
    let (app, pair) = (database.app().await, pair());
    for key in ["before", &pair.0, &pair.1, "after"] {
        sign_up(&app, Some(key)).await;
    }
    let most = Most { room: 100, making: 10, by_spares: 50, lanes: 10 };
    let claims = fleet.registry().claim_due(most, LEASE).await.expect("claim");
    let (ended, mut left) = fresh::hand_over(&fleet.context, claims).await;
    assert_eq!((ended.len(), left.len()), (3, 1));
    let at_hand: i64 = one(&database.superuser().await, "select count(*) from tenantd.spares_at_hand").await;
    assert_eq!(at_hand, 1, "a spare still, and at hand");
    match reconcile(&fleet.context, left.remove(0)).await.outcome {
        Outcome::Failed { error, parked: true } => assert_eq!(error.kind(), Kind::BadKey, "{}", error.chain()),
        other => panic!("{other:?}"),
    }
    for key in ["before", "after"] {
        assert_eq!(standing(&database, key).await, "ready idle", "{key}");
        let name = row(&database, key).await["name"].as_str().expect("a name").to_owned();
        execute(
            &database,
            &format!("delete from tenantd.tenant where key = '{key}'; delete from users where id = '{key}'"),
        )
        .await;
        database.outside(&format!("drop database {name}")).await;
    }
    one_of(&database, &pair).await;
    drop(app);
    fleet.close().await;
    database.finish().await;
}

/// Goal: two daemons that have the two at the same moment give the name once. Method: claimed by two, reconciled side by side, time and again.
#[tokio::test]
async fn side_by_side_the_name_is_given_once() {
    let database = TestDatabase::new().await;
    users(&database, "text").await;
    let fleets = [Fleet::install(&database, &FEW).await, Fleet::install(&database, &FEW).await];
    let (app, pair) = (database.app().await, pair());
    for key in [&pair.0, &pair.1] {
        sign_up(&app, Some(key)).await;
    }
    fleets[0].registry().take_all_in().await.expect("take in");
    for fleet in &fleets {
        template::ensure(&fleet.context).await.expect("a template");
    }
    for round in 0..5 {
        let mut claims = Vec::new();
        for (fleet, key) in fleets.iter().zip([&pair.0, &pair.1]) {
            claims.push(fleet.registry().claim_keys(std::slice::from_ref(key), LEASE).await.expect("claim").remove(0));
        }
        let second = claims.pop().expect("two");
        let first = claims.pop().expect("two");
        let (one, other) = tokio::join!(reconcile(&fleets[0].context, first), reconcile(&fleets[1].context, second));
        let outcomes = [one.outcome, other.outcome];
        let made = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Ready { .. })).count();
        let parked = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed { parked: true, .. })).count();
        assert_eq!((made, parked), (1, 1), "round {round}: {outcomes:?}");
        let (first, _) = one_of(&database, &pair).await;
        let name = row(&database, &first).await["name"].as_str().expect("a name").to_owned();
        execute(
            &database,
            "update tenantd.tenant set state = 'requested', work = 'due', due_at = now(), failures = 0, name = null, database_oid = null",
        )
        .await;
        database.outside(&format!("drop database {name}")).await;
    }
    execute(&database, "delete from tenantd.tenant; delete from public.users").await;
    drop(app);
    for fleet in fleets {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: at the commit, too, the name is given once, and nobody's signup fails or waits for the other's transaction. Method: both in one
/// statement; then one in a transaction that stays open while the other signs up and a daemon looks at it.
#[tokio::test]
async fn at_the_commit_the_name_is_given_once() {
    for together in [true, false] {
        let database = TestDatabase::new().await;
        users(&database, "text").await;
        // So many that one transaction may take two.
        let program = super::named(at_commit(&database, 8), &FEW).setting("retry.max", "1s");
        stocked(&database, &program, 8).await;
        let (app, other, pair) = (database.app().await, database.app().await, pair());
        let daemon = if together {
            run(&app, &format!("insert into public.users (id) values ('{}'), ('{}')", pair.0, pair.1)).await;
            let both = [standing(&database, &pair.0).await, standing(&database, &pair.1).await];
            assert_eq!(both.iter().filter(|standing| *standing == "ready idle").count(), 1, "{both:?}");
            program.start()
        } else {
            run(&app, &format!("begin; insert into public.users (id) values ('{}')", pair.0)).await;
            sign_up(&other, Some(&pair.1)).await;
            assert_eq!(standing(&database, &pair.1).await, "requested due");
            let daemon = program.start();
            let why = "select error_kind from tenantd.tenant where error_kind is not null";
            let client = database.superuser().await;
            until("the daemon to meet it", SOON, async || {
                client.query_opt(why, &[]).await.expect("look").is_some_and(|row| row.get::<_, &str>(0) == "in_use")
            })
            .await;
            run(&app, "commit").await;
            daemon
        };
        let daemon = daemon.allow("parked").allow("tenant failing");
        until("one to be parked", SOON, async || {
            standing(&database, &pair.1).await == "requested parked"
                || standing(&database, &pair.0).await == "requested parked"
        })
        .await;
        assert!(daemon.terminate().await.success());
        let (first, _) = one_of(&database, &pair).await;
        assert!(together || first == pair.0, "the one whose transaction was open");
        drop((app, other));
        database.finish().await;
    }
}
