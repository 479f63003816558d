//! Whole outputs of fleets made by hand.

mod parts;

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::commands::output::WIDTH;
use crate::config::{Sources, load};
use crate::error::Error;
use crate::migrations::tests::migration;
use crate::registry::fleet::{BellHolder, Count, Problem};

fn config() -> Config {
    let mut sources = Sources::of([
        ("TENANTD_MAIN__URL", "postgresql://tenantd:canary@db.example.com/app"),
        ("TENANTD_TENANT__MAX", "500"),
    ]);
    sources.default_file = "/nowhere/tenantd.toml".into();
    load(&sources).unwrap().config
}

fn set() -> MigrationSet {
    let files = [(1, "log_message"), (2, "add_level"), (3, "index_level"), (4, "a"), (5, "b")];
    MigrationSet::new("/etc/tenantd/migrations", files.map(|(version, name)| migration(version, name, name)).into())
        .unwrap()
}

fn at() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn count(state: &str, work: &str, tenants: i64) -> Count {
    Count { state: state.to_owned(), work: work.to_owned(), tenants }
}

fn version(version: i64, name: &str, tenants: i64, set: &str) -> VersionCount {
    VersionCount {
        version: Some(version),
        name: Some(name.to_owned()),
        tenants,
        migrated_at: Some("2026-02-28T08:30:01.5Z".parse().unwrap()),
        sets: vec![set.to_owned()],
    }
}

/// A fleet with nothing wrong.
fn well<'a>(config: &'a Config, set: &'a MigrationSet) -> Status<'a> {
    let table = Table {
        name: "public.users".to_owned(),
        id: "id".to_owned(),
        id_name: "id".to_owned(),
        when: None,
        triggers_on: vec!["public.users".to_owned()],
        by_row: false,
        rows_hidden: false,
    };
    let triggers = vec![("public.users".to_owned(), Trigger::Right)];
    let bell = BellHolder {
        role: "tenantd".to_owned(),
        application_name: "tenantd:daemon web1:4711".to_owned(),
        pid: 9,
        daemon: true,
    };
    let fleet = Fleet {
        at: at(),
        counts: vec![count("ready", "idle", 120)],
        versions: vec![version(5, "b", 120, &set.id())],
        daemons: vec!["web1:4711".to_owned()],
        bell: Some(bell),
        ..Fleet::default()
    };
    Status {
        config,
        registry: Uuid::nil(),
        fleet,
        template_failure: None,
        room: Room { tenants: 120, last_hour: 3 },
        signup: Ok(Signup { table, triggers, updates: Vec::new(), departures: Vec::new() }),
        set,
        relations: Relations::default(),
        newer: 0,
        main_schema: None,
    }
}

fn problem(key: &str, work: &str, due_at: Timestamp, error: (&str, &str, Option<&str>, &str)) -> Problem {
    let (kind, text, sqlstate, step) = error;
    Problem {
        key: key.to_owned(),
        name: Some(format!("tenant_{}", key.replace('-', "_"))),
        state: "ready".to_owned(),
        work: work.to_owned(),
        failures: 10,
        kind: Some(kind.to_owned()),
        text: Some(text.to_owned()),
        sqlstate: sqlstate.map(str::to_owned),
        step: Some(step.to_owned()),
        due_at,
    }
}

/// A fleet with something of everything.
fn troubled<'a>(config: &'a Config, set: &'a MigrationSet) -> Status<'a> {
    let mut status = well(config, set);
    let migration = "apply /etc/tenantd/migrations/0002_add_level.up.sql: /etc/tenantd/migrations/0002_add_level.up.sql:3:9: \
                     check constraint \"level\" of relation \"log_message\" is violated by some row (SQLSTATE 23514)\n    3 | alter table \
                     log_message add constraint level check (level > 0)";
    status.fleet.counts = vec![
        count("ready", "failing", 2),
        count("ready", "idle", 402),
        count("ready", "parked", 2),
        count("requested", "due", 7),
        count("requested", "held", 90),
    ];
    status.fleet.versions = vec![
        version(9, "z", 3, "newer"),
        version(5, "b", 400, &set.id()),
        version(3, "index_level", 2, "behind"),
        version(1, "log_message", 1, "far"),
    ];
    status.fleet.oldest_waiting = Some(Duration::from_secs(200));
    status.fleet.overdue = Some(Duration::from_secs(200));
    status.fleet.at_hand = 3;
    status.fleet.making = 1;
    status.fleet.strays = 1;
    status.fleet.problems = vec![
        problem(
            "0b1d7c1e-0000-4000-8000-000000000001",
            "parked",
            "2026-03-01T09:55:00Z".parse().unwrap(),
            (
                "conflict",
                "the database \"tenant_0b1d7c1e_0000_4000_8000_000000000001\" exists and does not bear this registry's marker; somebody else made it",
                None,
                "plan",
            ),
        ),
        problem(
            "x\u{1b}[2J\nAll is well.",
            "failing",
            "2026-03-01T12:00:42Z".parse().unwrap(),
            ("migration", migration, Some("23514"), "migrate"),
        ),
        problem(
            "0b1d7c1e-0000-4000-8000-000000000003",
            "failing",
            at(),
            ("in_use", "rename", Some("55006"), "hand_over"),
        ),
    ];
    status.fleet.daemons.clear();
    status.fleet.bell =
        Some(BellHolder { role: "Mallory".to_owned(), application_name: "psql".to_owned(), pid: 77, daemon: false });
    status.fleet.notification_queue = 0.625;
    status.room = Room { tenants: 406, last_hour: 40 };
    if let Ok(signup) = &mut status.signup {
        signup.table.rows_hidden = true;
        signup.triggers =
            vec![("public.users".to_owned(), Trigger::Disabled), ("public.staff".to_owned(), Trigger::Missing)];
        signup.departures =
            vec![("public.users".to_owned(), Trigger::Right), ("public.staff".to_owned(), Trigger::Missing)];
    }
    status.relations.newer = vec!["newer".to_owned()];
    status.newer = 3;
    status.relations.behind = [("behind".to_owned(), vec![4, 5]), ("far".to_owned(), vec![2, 3, 4, 5])].into();
    status.relations.diverged =
        vec!["a.sql was changed after version 1 was applied.".to_owned(), "b.sql was renamed.".to_owned()];
    status
}

fn words(status: &Status<'_>) -> Vec<&'static str> {
    status.needs_person().iter().map(|remark| remark.word).collect()
}

#[test]
fn a_fleet_that_is_well() {
    let (config, set) = (config(), set());
    let status = well(&config, &set);
    let expected = format!(
        "\
tenantd@db.example.com:5432/app at 2026-03-01 12:00:00 UTC

STATE  WORK  TENANTS
ready  idle      120
all              120

VERSION  LAST MIGRATION  LAST APPLIED             TENANTS  STILL LACKING
      5  b               2026-02-28 08:30:01 UTC      120  nothing

Waiting      no tenant
In work      no tenant
Daemons      web1:4711
Doorbell     armed by web1:4711
Signups      into public.users, trigger in place
Migrations   5 from /etc/tenantd/migrations, newest 5 b, set {}
Databases    120 of 500 (tenant.max), 3 made within the hour; no spare at hand, 0 in the making
Registry     00000000-0000-0000-0000-000000000000

All is well.
",
        &set.id()[..12]
    );
    assert_eq!(text::whole(&status), expected);
    assert_eq!(json::object(&status)["ok"], true);
}

#[test]
fn a_fleet_of_schemas() {
    let (mut config, set) = (config(), set());
    config.tenant.isolation = crate::config::Isolation::Schema;
    let told = text::whole(&well(&config, &set));
    assert!(told.contains("\nSchemas      120 of 500 (tenant.max), 3 made within the hour\n"), "{told}");
    assert!(!told.to_lowercase().contains("database") && !told.contains("spare"), "{told}");
}

const TROUBLED: &str = r#"tenantd@db.example.com:5432/app at 2026-03-01 12:00:00 UTC

STATE      WORK     TENANTS
ready      failing        2
ready      idle         402
ready      parked         2
requested  due            7
requested  held          90
all                     503

VERSION  LAST MIGRATION  LAST APPLIED             TENANTS  STILL LACKING
      9  z               2026-02-28 08:30:01 UTC        3  newer than this tenantd
      5  b               2026-02-28 08:30:01 UTC      400  nothing
      3  index_level     2026-02-28 08:30:01 UTC        2  4 a, 5 b
      1  log_message     2026-02-28 08:30:01 UTC        1  4 migrations, 2 add_level to 5 b

Waiting      9 tenants, the oldest signup without a database for 3 m 20 s
In work      no tenant
Daemons      none connected
Doorbell     taken by role Mallory, which is no daemon
Signups      into public.users, trigger on public.users switched off, trigger on public.staff
             missing
Migrations   5 from /etc/tenantd/migrations, newest 5 b, set SETID
Databases    406 of 500 (tenant.max), 40 made within the hour; 3 spares at hand, 1 in the making
Registry     00000000-0000-0000-0000-000000000000

Parked (2):
  0b1d7c1e-0000-4000-8000-000000000001: ready, 10 failures, parked for 2 h 5 m
    database tenant_0b1d7c1e_0000_4000_8000_000000000001
    conflict at step plan: the database "tenant_0b1d7c1e_0000_4000_8000_000000000001" exists and
    does not bear this registry's marker; somebody else made it
  and 1 more: select key, last_error from tenantd.tenants where work = 'parked'

Failing (2):
  x\u{1b}[2J All is well.: ready, 10 failures, tried again in 42 s
    database tenant_x\u{1b}[2J All is well.
    migration at step migrate: apply /etc/tenantd/migrations/0002_add_level.up.sql:
    /etc/tenantd/migrations/0002_add_level.up.sql:3:9: check constraint "level" of relation
    "log_message" is violated by some row (SQLSTATE 23514)
        3 | alter table log_message add constraint level check (level > 0)
  0b1d7c1e-0000-4000-8000-000000000003: ready, 10 failures, due now
    database tenant_0b1d7c1e_0000_4000_8000_000000000003
    in use at step hand_over: SQLSTATE 55006: rename

Good to know:
- 90 users are held without a database, from before tenantd.
  `tenantd setup --backfill` makes them due.
- 2 tenants are failing.
  They are tried again by themselves.
- 1 half-made database left by work that was cut off.
  The next sweep drops what is left.
- 406 tenants are there and tenant.max is 500.
  Raise it in time, if the server has room for more.

Needs a person:
1. 2 tenants are parked: out of tries, or nothing that tenantd may mend.
   Mend what each error says, then run `tenantd --sweep-once`, which tries them at once.
2. No daemon is connected, and 9 tenants wait for one.
   Start it (`systemctl start tenantd`), or run `tenantd --sweep-once`.
3. The migration set contradicts what was applied; the tenants concerned stay as they are:
   - a.sql was changed after version 1 was applied.
   - b.sql was renamed.
   Put the files back as they were applied, and make each change a new migration.
4. 3 tenants have migrations that this tenantd does not carry; it leaves them alone.
   Run the tenantd, or name the folder, that carries them.
5. The trigger tenantd_signup on public.users is switched off, so only sweeps find its signups.
   As the table's owner: alter table public.users enable trigger tenantd_signup
6. The trigger tenantd_signup on public.staff is missing, so only sweeps find its signups.
   `tenantd setup` puts it right.
7. The trigger tenantd_departure on public.staff is missing, so nobody follows its deleted users.
   `tenantd setup` puts it right.
8. Row level security hides users of public.users from tenantd, so no sweep finds one that the
   trigger missed.
   As an administrator: alter role "tenantd" bypassrls
9. Role "Mallory" (psql, pid 77) holds the doorbell's lock and is no daemon: every signup has to
   ring, which slows a crowd of them.
   Let it end by itself, or as an administrator: select pg_terminate_backend(77)
10. The server's queue of notifications is 62 % full: some session listens and does not read.
    End the oldest that is idle in a transaction: select pid, usename, xact_start from
    pg_stat_activity where state like 'idle in%' order by xact_start
"#;

#[test]
fn a_fleet_in_trouble() {
    let (config, set) = (config(), set());
    let shown = text::whole(&troubled(&config, &set));
    assert_eq!(shown, TROUBLED.replace("SETID", &set.id()[..12]));
    assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{shown}");
}

#[test]
fn json_has_what_the_text_has() {
    let (config, set) = (config(), set());
    let status = troubled(&config, &set);
    let shown = json::object(&status);
    assert_eq!(
        (&shown["ok"], &shown["at"], &shown["tenants"]),
        (&json!(false), &json!("2026-03-01T12:00:00Z"), &json!(503))
    );
    assert_eq!(
        (&shown["waiting"], &shown["oldest_waiting_seconds"], &shown["held"]),
        (&json!(9), &json!(200.0), &json!(90))
    );
    let found: Vec<_> =
        shown["needs_person"].as_array().unwrap().iter().map(|remark| remark["word"].as_str().unwrap()).collect();
    assert_eq!(found, words(&status));
    let standings: Vec<_> = shown["versions"].as_array().unwrap().iter().map(|version| &version["standing"]).collect();
    assert_eq!(standings, ["newer", "current", "behind", "behind"]);
    assert_eq!(shown["versions"][2]["pending"], json!([{ "version": 4, "name": "a" }, { "version": 5, "name": "b" }]));
    assert_eq!(shown["versions"][2]["migrated_at"], "2026-02-28T08:30:01.5Z");
    assert_eq!(shown["versions"][0]["pending"], Value::Null);
    assert_eq!((&shown["parked_tenants"], shown["parked"].as_array().unwrap().len()), (&json!(2), 1));
    assert_eq!(shown["parked"][0]["error"]["kind"], "conflict");
    assert_eq!(shown["failing"][0]["key"], "x\u{1b}[2J\nAll is well.");
    assert_eq!(shown["signup"]["triggers"][1], json!({ "table": "public.staff", "trigger": "missing" }));
    assert_eq!(
        shown["doorbell"]["holder"],
        json!({ "role": "Mallory", "application_name": "psql", "pid": 77, "daemon": false })
    );
    assert_eq!((&shown["migrations"]["relation"], &shown["migrations"]["id"]), (&json!("diverged"), &json!(set.id())));
    assert_eq!(shown["brakes"], json!({ "tenants": 406, "max": 500, "made_last_hour": 40, "max_per_hour": null }));
    assert_eq!(shown["spares"], json!({ "at_hand": 3, "in_the_making": 1, "left_over": 1 }));
}

#[test]
fn brakes_need_a_person_when_somebody_waits_for_them() {
    let (mut config, set) = (config(), set());
    config.tenant.max_per_hour = 40;
    let with = |room: Room, due: i64| {
        let mut status = well(&config, &set);
        status.room = room;
        status.fleet.counts.push(count("requested", "due", due));
        status.fleet.overdue = Some(Duration::from_hours(1));
        words(&status)
    };
    assert_eq!(with(Room { tenants: 500, last_hour: 0 }, 0), ["tenant_max"]);
    assert_eq!(with(Room { tenants: 400, last_hour: 40 }, 1), ["tenant_max_per_hour"]);
    assert_eq!(with(Room { tenants: 400, last_hour: 39 }, 1), ["overdue"]);
}

#[test]
fn work_that_nobody_does_needs_a_person() {
    let (config, set) = (config(), set());
    let with = |daemon: bool, leased: i64, overdue: u64| {
        let mut status = well(&config, &set);
        status.fleet.counts.push(count("requested", "due", 5));
        status.fleet.overdue = Some(Duration::from_secs(overdue));
        status.fleet.leased = leased;
        if !daemon {
            status.fleet.daemons.clear();
        }
        words(&status)
    };
    assert_eq!(with(true, 0, 20), Vec::<&str>::new());
    assert_eq!(with(true, 0, 301), ["overdue"]);
    assert_eq!(with(true, 4, 301), Vec::<&str>::new());
    assert_eq!(with(false, 0, 1), ["no_daemon"]);
    assert_eq!(with(false, 1, 301), Vec::<&str>::new(), "a sweep by hand is at work");
}

#[test]
fn a_signup_table_that_cannot_serve_is_shown() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    status.signup =
        Err(Error::usage("the signup table public.users does not exist in the main database").hint("create it first"));
    let shown = text::whole(&status);
    assert!(shown.contains("\nSignups      not noticed, see below\n"), "{shown}");
    assert!(shown.ends_with(
        "\nNeeds a person:\n1. Signups are not noticed: the signup table public.users does not exist in the main database.\n   create it first\n"
    ));
    assert_eq!(json::object(&status)["signup"]["error"]["kind"], "usage");
}
