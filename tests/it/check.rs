//! `tenantd check` as an operator runs it: a fleet that is well, each thing that can be wrong with it, and what `--fix` does about that.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tenantd::config::Isolation;

use crate::fleet::{execute, oid, row, write_migrations};
use crate::sql::{one, run};
use crate::support::audit::Finding;
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::process::Signal;
use crate::support::until::until;

const FIRST: (&str, &str) = (
    "0001_note.sql",
    "create table note (id bigint generated always as identity primary key, body text not null default 'x', kind int);
     create index note_body on note (body);",
);
const SECOND: (&str, &str) = ("0002_done.sql", "alter table note add column done boolean not null default false;");

/// Set up with the migrations in `folder`.
fn program(database: &TestDatabase, folder: &Path) -> Program {
    Program::for_database(database)
        .setting("tenant.migrations", &folder.display().to_string())
        .setting("log.format", "text")
        .setting("log.level", "error")
}

/// A fleet of `tenants` with the first migration: the keys in their order.
async fn ready(database: &TestDatabase, program: &Program, tenants: usize) -> Vec<String> {
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let mut keys = Vec::new();
    for number in 0..tenants {
        keys.push(database.sign_up(&format!("{number}@example.org")).await);
    }
    keys.sort();
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 0, "{swept:?}");
    keys
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[FIRST]);
    folder
}

fn object(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Every finding as its tenant's place in `keys`, its kind, and whether it was put right; those of the fleet by database.
fn found(object: &Value, keys: &[String]) -> Vec<(String, String, bool)> {
    let place = |finding: &Value| match finding["key"].as_str() {
        Some(key) => keys.iter().position(|one| one == key).expect("a tenant of the test").to_string(),
        None => finding["database"].as_str().unwrap_or("fleet").to_owned(),
    };
    let findings = object["findings"].as_array().expect("a list").iter();
    findings
        .map(|one| (place(one), one["kind"].as_str().expect("a word").to_owned(), one["fixed"] == json!(true)))
        .collect()
}

fn expected(findings: &[(usize, &str, bool)]) -> Vec<(String, String, bool)> {
    findings.iter().map(|(place, kind, fixed)| (place.to_string(), (*kind).to_owned(), *fixed)).collect()
}

/// Everything that anybody could change from outside: the registry's rows and the server's databases of this test.
async fn portrait(database: &TestDatabase) -> String {
    let client = database.superuser().await;
    let select = format!(
        "select (select string_agg(concat_ws(' ', key, state, work, attempt, access, leased_by, database_oid), e'\\n' order by key) from tenantd.tenant)
             || (select string_agg(to_jsonb(p)::text, e'\\n' order by name) from tenantd.place p where starts_with(name, '{prefix}'))
             || (select string_agg(acl::text, ' ' order by name) from {place} p where starts_with(name, '{prefix}'))
             || (select count(*) from tenantd.event)",
        prefix = database.prefix(),
        place = database.place(&client).await
    );
    one(&client, &select).await
}

/// The one thing that changes from run to run.
fn without_time(text: &str) -> String {
    let (before, after) = text.split_once("looked at in ").expect("a total");
    format!("{before}looked at in TIME:{}", after.split_once(':').expect("a total").1)
}

/// Goal: a fleet that is well is told in one line, with exit code 0, and leaves nothing. Method: with the template, and without any: the
/// expected objects come from a clone, then from the migrations.
#[tokio::test]
async fn a_fleet_that_is_well_is_one_line() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    ready(&database, &program, 2).await;
    for with_template in [true, false] {
        if !with_template {
            execute(&database, "update tenantd.template set retired_at = now()").await;
        }
        let checked = program.run(&["check"]).await;
        assert_eq!(checked.code(), 0, "{checked:?}");
        assert_eq!(without_time(&checked.stdout), "2 tenants looked at in TIME: all is well");
        let written = "select count(*) from tenantd.spare";
        assert_eq!(one::<i64>(&database.superuser().await, written).await, 0);
    }
    let as_json = object(&program.run(&["check", "--json"]).await);
    assert_eq!((&as_json["format"], &as_json["ok"], &as_json["looked_at"]), (&json!(1), &json!(true), &json!(2)));
    database.finish().await;
}

/// Goal: everything that can be seen from outside is found; what is safe is put right through reconcile, once, with an event, and nothing else
/// is touched. Method: a tenant for each; a dry run, which changes nothing; --fix; another check.
#[tokio::test]
async fn what_is_wrong_from_outside_is_found_and_what_is_safe_put_right() {
    let (database, folder) = (TestDatabase::new().await.allow(Finding::ReadyWithoutDatabase), folder());
    let database =
        database.allow(Finding::DuplicateMarker).allow(Finding::InvalidDatabase).allow(Finding::OpenToPublic);
    let program = program(&database, folder.path());
    let keys = ready(&database, &program, 9).await;
    let name = |place: usize| format!("\"{}\"", database.tenant_name(&keys[place]));
    let mut harm = vec![
        format!("grant connect on database {} to public", name(1)),
        format!("alter database {} owner to tenantd", name(2)),
        format!("revoke connect on database {} from app", name(3)),
        format!("update tenantd.tenant set access = 'old' where key = '{}'", keys[4]),
        format!("update tenantd.tenant set leased_by = 'gone:1:ab', leased_until = now() where key = '{}'", keys[5]),
        format!("drop database {}", name(6)),
        format!("drop database {}", name(7)),
        format!("create database {}", name(7)),
        format!("comment on database {} is 'mine now'; grant connect on database {} to public", name(8), name(8)),
    ];
    // A schema cannot be closed: there it is shut to the application.
    let by_schema = database.isolation() == Isolation::Schema;
    let (first, close) = if by_schema {
        ("connect", format!("revoke connect on database {} from app", name(0)))
    } else {
        ("closed", format!("alter database {} allow_connections false", name(0)))
    };
    harm.push(close);
    for harm in harm {
        database.outside(&harm).await;
    }
    let table = |fixed| {
        let kinds = [first, "public", "owner", "connect", "access", "lease", "missing", "replaced", "conflict"];
        let places = kinds.iter().enumerate().map(|(place, kind)| (place, *kind, fixed && place < 6));
        expected(&places.collect::<Vec<_>>())
    };
    let before = portrait(&database).await;
    let checked = program.run(&["check", "--json"]).await;
    assert_eq!((checked.code(), found(&object(&checked), &keys)), (1, table(false)), "{checked:?}");
    let dry = program.run(&["check", "--fix", "--dry-run"]).await;
    assert_eq!(dry.code(), 1, "{dry:?}");
    assert!(dry.stdout.contains("6 findings would be put right; nothing was changed"), "{dry:?}");
    assert!(dry.stdout.contains("    would be done: shut PUBLIC out\n"), "{dry:?}");
    assert_eq!(portrait(&database).await, before);

    let mended = program.run(&["check", "--fix", "--json"]).await;
    assert_eq!((mended.code(), found(&object(&mended), &keys)), (1, table(true)), "{mended:?}");
    let again = program.run(&["check", "--json"]).await;
    let left = expected(&[(6, "missing", false), (7, "replaced", false), (8, "conflict", false)]);
    assert_eq!((again.code(), found(&object(&again), &keys)), (1, left), "{again:?}");
    let client = database.superuser().await;
    let events: Vec<String> = client
        .query("select concat_ws(' ', key, what, detail) from tenantd.event order by key", &[])
        .await
        .expect("events")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let told = [
        &format!("fixed {first}"),
        "fixed public",
        "fixed owner",
        "fixed connect",
        "fixed access",
        "freed the lease that gone:1:ab left",
    ];
    let told: Vec<String> = told.iter().zip(&keys).map(|(told, key)| format!("{key} {told}")).collect();
    assert_eq!(events, told);
    let place = database.place(&client).await;
    let public = format!("select public from {place} p where name = {}", name(8).replace('"', "'"));
    assert!(one::<bool>(&client, &public).await, "somebody else's database is nobody's to change");
    drop(client);
    database.finish().await;
}

/// Goal: what differs within a tenant is shown object by object, and never changed. Method: one tenant with an object of each kind made,
/// dropped or changed by hand, and an index that could not be built.
#[tokio::test]
async fn objects_that_differ_are_shown_one_by_one() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    let keys = ready(&database, &program, 2).await;
    let name = database.tenant_name(&keys[0]);
    let inside = database.tenant_superuser(&name).await;
    let by_hand =
        "alter table note alter body set default 'y'; alter table note drop column kind; drop index note_body;
                   create table extra (id int); insert into note (body) values ('a'), ('a')";
    inside.batch_execute(by_hand).await.expect("change it");
    inside
        .batch_execute("create unique index concurrently note_once on note (body)")
        .await
        .expect_err("they are not unique");
    drop(inside);

    let checked = program.run(&["check"]).await;
    assert_eq!(checked.code(), 1, "{checked:?}");
    let shown = without_time(&checked.stdout).replace(&keys[0], "KEY").replace(&name, "NAME");
    let expected_text = "\
KEY (database NAME)
  changed: 4 objects are not as its migrations made them
      column public.note.body: by its migrations text not null default 'x'::text; in the tenant text
      not null default 'y'::text
      column public.note.kind is missing
      index public.note_body is missing
      table public.extra is in no migration
    put it back by hand, or make the change a migration that all tenants get; nothing is changed by
    --fix
  index: the index public.note_once is invalid: it costs each write and serves no query
    in the tenant: reindex index concurrently public.note_once; or drop it, if its migration makes
    another

2 tenants looked at in TIME: 2 findings, 1 tenant concerned";
    // Without regard to where its lines are broken.
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match database.isolation() {
        Isolation::Database => assert_eq!(shown, expected_text),
        Isolation::Schema => {
            let expected = expected_text.replace("(database NAME)", "(schema NAME)");
            let expected = expected.replace("public.note_once", "NAME.note_once").replace("public.", "");
            assert_eq!(words(&shown), words(&expected));
        }
    }
    let mended = object(&program.run(&["check", "--fix", "--json"]).await);
    assert_eq!(found(&mended, &keys), expected(&[(0, "changed", false), (0, "index", false)]));
    let column = &mended["findings"][0]["objects"][0];
    let (ours, theirs) = (&column["in_the_migrations"], &column["in_the_tenant"]);
    assert_eq!((&column["kind"], &column["change"]), (&json!("column"), &json!("changed")));
    assert_eq!((ours, theirs), (&json!("text not null default 'x'::text"), &json!("text not null default 'y'::text")));
    let extra = one::<bool>(&database.tenant_superuser(&name).await, "select to_regclass('extra') is not null").await;
    assert!(extra, "it stays");
    database.finish().await;
}

/// Goal: a tenant that lacks a migration is compared with what its own set makes; it waits for its turn in the rollout, and is brought up by
/// --fix where that has passed it by. A checksum that differs stops the fix of that tenant alone. Method: a second migration; a tenant that was
/// held while it went through the fleet; one whose history is edited; one that is still held.
#[tokio::test]
async fn tenants_behind_are_mended_and_drift_is_left_to_a_person() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    let keys = ready(&database, &program, 3).await;
    write_migrations(folder.path(), &[SECOND]);
    let early = program.run(&["check", "--fix", "--json"]).await;
    let behind: Vec<(usize, &str, bool)> = (0..3).map(|place| (place, "behind", false)).collect();
    assert_eq!((early.code(), found(&object(&early), &keys)), (1, expected(&behind)), "{early:?}");
    let why = object(&early)["findings"][0]["not_fixed"].clone();
    assert!(
        why.as_str().expect("a text").starts_with("the rollout of the migrations brings it up in its turn"),
        "{why}"
    );
    let begun = "select count(*) from tenantd.rollout";
    assert_eq!(one::<i64>(&database.superuser().await, begun).await, 0, "a check begins no rollout");

    let hold = |place: usize| format!("update tenantd.tenant set work = 'held' where key = '{}'", keys[place]);
    execute(&database, &format!("{}; {}", hold(0), hold(2))).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    execute(&database, &hold(0).replace("held", "idle")).await;
    let edit = "update tenantd_migration set checksum = repeat('0', 64) where version = 1";
    database
        .tenant_superuser(&database.tenant_name(&keys[1]))
        .await
        .batch_execute(edit)
        .await
        .expect("edit the history");
    let open = format!("grant connect on database \"{}\" to public", database.tenant_name(&keys[1]));
    database.outside(&open).await;

    let mended = program.run(&["check", "--fix", "--json"]).await;
    let object = object(&mended);
    assert_eq!(
        found(&object, &keys),
        expected(&[(0, "behind", true), (1, "public", false), (1, "drift", false)]),
        "{mended:?}"
    );
    assert_eq!(object["findings"][0]["text"], "it lacks migrations: 2 done");
    assert_eq!(object["findings"][1]["not_fixed"], "what else is wrong with the tenant stands in the way");
    assert!(
        object["findings"][2]["text"].as_str().expect("a text").contains("0001_note.sql was changed after"),
        "{mended:?}"
    );
    assert_eq!(row(&database, &keys[0]).await["version"].as_i64(), Some(2));
    assert_eq!(
        row(&database, &keys[1]).await["work"].as_str(),
        Some("idle"),
        "drift parks nobody that was only looked at"
    );
    assert_eq!(row(&database, &keys[2]).await["version"].as_i64(), Some(1), "held is held");
    database.outside(&open.replace("grant", "revoke").replace(" to ", " from ")).await;
    database.finish().await;
}

/// Goal: what no reconcile could put right is told, and --fix leaves it alone. Method: a tenant each that is half dropped, without a name, lets
/// nobody in, has a migration that nobody knows, is parked; and a set whose objects cannot be known.
#[tokio::test]
async fn what_only_a_person_can_mend_is_left() {
    let (database, folder) = (TestDatabase::new().await.allow(Finding::InvalidDatabase), folder());
    let database = database.allow(Finding::ReadyWithoutDatabase).allow(Finding::DatabaseWithoutTenant);
    let program = program(&database, folder.path());
    let keys = ready(&database, &program, 5).await;
    let name = |place: usize| database.tenant_name(&keys[place]);
    let more =
        "insert into tenantd_migration (version, name, checksum, started_at, applied_at, statements_done, applied_by)
                select 9, 'later', checksum, started_at, applied_at, 1, 'x' from tenantd_migration";
    database.tenant_superuser(&name(3)).await.batch_execute(more).await.expect("a migration more");
    let mut harm = vec![
        format!("update tenantd.tenant set name = null, database_oid = null where key = '{}'", keys[1]),
        format!(
            "update tenantd.tenant set work = 'parked', error_kind = 'other', error_text = 'odd' where key = '{}'",
            keys[4]
        ),
    ];
    // A schema is always whole, and lets in whom its database lets in.
    let by_schema = database.isolation() == Isolation::Schema;
    if !by_schema {
        harm.push(format!("update pg_database set datconnlimit = -2 where datname = '{}'", name(0)));
        harm.push(format!("alter database \"{}\" connection limit 0", name(2)));
    }
    for harm in harm {
        execute(&database, &harm).await;
    }
    let before = portrait(&database).await;
    let mended = program.run(&["check", "--fix", "--json"]).await;
    let mut all = found(&object(&mended), &keys);
    assert_eq!(all.pop().map(|orphan| (orphan.0, orphan.1)), Some((name(1), "orphan".to_owned())), "{mended:?}");
    let kinds = ["invalid", "nameless", "refused", "newer", "failing"];
    let places = kinds.iter().enumerate().map(|(place, kind)| (place, *kind, false));
    let places: Vec<_> = places.filter(|(place, ..)| !by_schema || ![0, 2].contains(place)).collect();
    assert_eq!((mended.code(), all), (1, expected(&places)), "{mended:?}");
    assert_eq!(portrait(&database).await, before);

    if by_schema {
        // Extensions are what all of them share, and looked after by setup.
        return database.finish().await;
    }
    let unknown = program.clone().setting("tenant.extensions", "nowhere").run(&["check", &keys[4], "--json"]).await;
    let kinds: Vec<String> = found(&object(&unknown), &keys).into_iter().map(|finding| finding.1).collect();
    assert_eq!(kinds, ["failing", "uncompared"], "{unknown:?}");
    database.finish().await;
}

/// Goal: databases that belong to no tenant are told apart by their markers, and left alone; strays are dropped by --fix. Method: one of each.
#[tokio::test]
async fn what_belongs_to_no_tenant_is_found() {
    let (database, folder) = (TestDatabase::new().await.allow(Finding::DatabaseWithoutTenant), folder());
    let database = database.allow(Finding::DuplicateMarker).allow(Finding::OpenToPublic);
    let program = program(&database, folder.path()).setting("tenant.use", "app,ghost");
    assert_eq!(program.run(&["setup"]).await.code(), 2, "the ghost is refused");
    let keys = ready(&database, &self::program(&database, folder.path()), 1).await;
    let name = database.tenant_name(&keys[0]);
    let client = database.superuser().await;
    let marker = database.marker(&name).await.expect("a marker");
    let other = |number: u32| database.tenant_name(&format!("00000000-0000-0000-0000-00000000000{number}"));
    let stray = format!("tenantd_spare_{}", uuid::Uuid::new_v4().simple());
    let copy = format!("{}copy", database.prefix());
    let foreign = format!("tenantd {} {}", uuid::Uuid::nil(), "0".repeat(64));
    for harm in [
        format!("create database \"{copy}\""),
        format!("comment on database \"{copy}\" is '{marker}'"),
        format!("create database \"{}\"", other(1)),
        format!("create database \"{}\"", other(2)),
        format!("comment on database \"{}\" is '{foreign}'", other(2)),
        format!("insert into tenantd.spare (name) values ('{stray}')"),
        format!("create database {stray} owner tenant_owner"),
    ] {
        database.outside(&harm).await;
    }
    let finding = |database: &str, kind: &str, fixed| (database.to_owned(), kind.to_owned(), fixed);
    let table = |fixed| {
        [
            finding(&other(1), "stranger", false),
            finding(&other(2), "stranger", false),
            finding(&copy, "orphan", false),
            finding("fleet", "duplicate", false),
            finding(&stray, "stray", fixed),
            finding("fleet", "role", false),
        ]
    };
    let mut all = found(&object(&program.run(&["check", "--json"]).await), &keys);
    // Its rights are those of other settings, now that the ghost is named.
    assert_eq!(all.remove(0), ("0".to_owned(), "access".to_owned(), false));
    assert_eq!(all, table(false));
    let refused = program.run(&["check", "--fix"]).await;
    assert_eq!(refused.code(), 2, "nothing is put right by settings that cannot be: {refused:?}");
    let mended = self::program(&database, folder.path()).run(&["check", "--fix", "--json"]).await;
    assert_eq!(found(&object(&mended), &keys), table(true)[..5], "{mended:?}");
    assert_eq!(oid(&database, &stray).await, None);
    let event = "select concat_ws(' ', key, what, detail) from tenantd.event";
    assert_eq!(one::<String>(&client, event).await, format!("fixed dropped 1 half-made {}s", database.isolation()));
    drop(client);
    database.finish().await;
}

/// Goal: a check can be about some tenants; one that somebody works on is left out; words and places that are wrong are told. Method: keys,
/// beginnings, filters, a lease, no registry, no server.
#[tokio::test]
async fn a_check_can_be_about_some_tenants() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path());
    let uninstalled = program.run(&["check"]).await;
    assert!(uninstalled.code() == 2 && uninstalled.stderr.contains("`tenantd setup` installs it"), "{uninstalled:?}");
    let keys = ready(&database, &program, 3).await;
    let open = format!("grant connect on database \"{}\" to public", database.tenant_name(&keys[1]));
    database.outside(&open).await;
    let lease = "leased_by = 'other:1:ab', leased_until = now() + interval '1 hour'";
    execute(&database, &format!("update tenantd.tenant set {lease} where key = '{}'", keys[2])).await;

    let one_is_well = program.run(&["check", &keys[0][..13]]).await;
    assert_eq!(without_time(&one_is_well.stdout), "1 tenant looked at in TIME: all is well", "{one_is_well:?}");
    let by_name = program.run(&["check", &database.tenant_name(&keys[1]), "--json"]).await;
    assert_eq!(found(&object(&by_name), &keys), expected(&[(1, "public", false)]));
    let busy = program.run(&["check", &keys[2]]).await;
    assert_eq!(
        (busy.code(), without_time(&busy.stdout).as_str()),
        (0, "no tenant looked at in TIME: all is well\n1 tenant left out, since somebody works on them")
    );
    let none = program.run(&["check", "--state", "requested"]).await;
    assert_eq!(none.code(), 0, "{none:?}");
    let other = if keys[0].ends_with('0') { '1' } else { '0' };
    let unknown = program.run(&["check", &format!("{}{other}", &keys[0][..35])]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains(&keys[0]), "{unknown:?}");
    let dry = program.run(&["check", "--dry-run"]).await;
    assert!(dry.code() == 2 && dry.stderr.contains("--fix"), "{dry:?}");
    database.outside(&open.replace("grant", "revoke").replace(" to ", " from ")).await;
    execute(&database, "update tenantd.tenant set leased_by = null, leased_until = null").await;
    database.finish().await;
}

/// Goal: Ctrl-C ends a check after the tenant in hand, with what was found until then. Method: histories that are locked; three tenants, one at a time.
#[tokio::test]
async fn an_interrupted_check_says_what_it_saw() {
    let (database, folder) = (TestDatabase::new().await, folder());
    let program = program(&database, folder.path()).setting("log.level", "info");
    let keys = ready(&database, &program, 3).await;
    let mut lockers = Vec::new();
    for key in &keys {
        let locker = database.tenant_superuser(&database.tenant_name(key)).await;
        run(&locker, "begin; lock table tenantd_migration in access exclusive mode").await;
        lockers.push(locker);
    }
    let mut running = program.start_with(&["check", "--parallel", "1"]);
    let soon = Duration::from_secs(30);
    until("the check to wait", soon, async || database.tenant_sessions("wait_event_type = 'Lock'").await > 0).await;
    running.signal(Signal::INT);
    running.wait_for_line("ending: no new work", soon).await;
    drop(lockers);
    assert_eq!(running.ended(soon).await.code(), Some(1));
    let said = without_time(&running.stdout());
    assert_eq!(said, "1 tenant looked at in TIME: all is well\nended early: the rest was not looked at", "{said}");
    running.kill();
    database.finish().await;
}
