//! `signup.when` over time: another condition, none any more, a reload, triggers and columns that change behind tenantd's back, another table, rights.

use std::time::Duration;

use serde_json::Value;
use tenantd::error::Kind;
use tokio_postgres::Client;

use crate::conditions::{CONFIRMED, install, new};
use crate::fleet::{Fleet, WISHES, config, execute};
use crate::sql::{make_room, one, refused, run, server_version, stands, tenants, warnings};
use crate::support::daemon::Program;
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

async fn key(client: &Client, mail: &str) -> String {
    one(client, &format!("select id::text from public.users where email = '{mail}'")).await
}

async fn triggers(client: &Client) -> String {
    let each = "select coalesce(string_agg(tgname || coalesce(substring(pg_get_triggerdef(oid) from ' WHEN .* EXECUTE'), ''), '; ' order by tgname), '')
                from pg_trigger where not tgisinternal";
    one(client, each).await
}

/// Goal: another condition takes the place of the one before, in both triggers, and whom it brings in of the users who are there is held; without one every
/// row counts, and the trigger on updates does nothing any more, or goes where we may drop it. Method: one user of each sort; installations one after the
/// other; a second one each time, which has nothing to do.
#[tokio::test]
async fn another_condition_takes_the_place_of_the_one_before() {
    let database = new().await;
    let admin = database.superuser().await;
    let values = "('true', true), ('false', false), ('null', null)";
    run(&admin, &format!("insert into public.users (email, email_confirmed) values {values}")).await;
    install(&database, CONFIRMED).await.close().await;
    let steps = [(Some("email_confirmed is not null"), 2), (None, 3), (Some(CONFIRMED), 3)];
    for (when, held) in steps {
        make_room(&admin).await;
        let settings: Vec<(&str, &str)> = when.map(|when| ("signup.when", when)).into_iter().collect();
        let fleet = Fleet::install(&database, &settings).await;
        let changes = &fleet.installed.changes;
        assert!(changes.contains(&"put the trigger tenantd_signup on \"public\".\"users\"".to_owned()), "{changes:?}");
        assert!(
            fleet.installed.notes.iter().any(|note| note.contains("counts as a signup from now on")),
            "{:?}",
            fleet.installed.notes
        );
        assert_eq!(tenants(&database).await.iter().filter(|tenant| tenant.2 == "held").count(), held, "{when:?}");
        fleet.close().await;
        let again = Fleet::install(&database, &settings).await;
        assert_eq!(again.installed.changes, [""; 0], "{when:?}");
        run(&admin, "truncate tenantd.signup; update public.users set email_confirmed = null; update public.users set email_confirmed = true").await;
        let by_update: i64 = one(&admin, "select count(*) from tenantd.signup").await;
        assert_eq!(by_update, if when.is_some() { 3 } else { 0 }, "{when:?}: {}", triggers(&admin).await);
        run(
            &admin,
            "update public.users set email_confirmed = nullif(email, 'null')::boolean; truncate tenantd.signup",
        )
        .await;
        again.close().await;
    }
    let owner = format!("{}owner", database.prefix());
    run(&admin, &format!("create role {owner}; grant {owner} to tenantd; alter table public.users owner to {owner}"))
        .await;
    let fleet = Fleet::install(&database, &[]).await;
    let gone = "took the trigger tenantd_signup_update on \"public\".\"users\" away".to_owned();
    assert!(fleet.installed.changes.contains(&gone), "{:?}", fleet.installed.changes);
    assert_eq!(triggers(&admin).await, "tenantd_signup");
    fleet.close().await;
    run(&admin, &format!("alter table public.users owner to app; drop role {owner}")).await;
    drop(admin);
    database.finish().await;
}

/// Goal: a reload puts another condition in force, and one that cannot be leaves the one before in force and says why. Method: a daemon whose file changes;
/// the users that only the new condition takes.
#[tokio::test]
async fn a_reload_puts_another_condition_in_force() {
    let database = new().await;
    let admin = database.superuser().await;
    run(&admin, "insert into public.users (email, email_confirmed) values ('before', false)").await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenantd.toml");
    let write =
        |when: &str| std::fs::write(&file, format!("[signup]\nwhen = \"{when}\"\n")).expect("write the settings");
    write("email_confirmed");
    let program = Program::for_database(&database).variable("TENANTD_CONFIG", &file.display().to_string());
    let mut daemon = program.start().allow("the installation is not as it should be");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    write("not email_confirmed");
    daemon.hang_up();
    let old = server_version(&admin).await < 140_000;
    let other = async || triggers(&admin).await.contains("WHEN ((NOT new.email_confirmed))");
    until("the other condition", SOON, async || {
        let there = other().await;
        if old && !there {
            make_room(&admin).await;
            daemon.hang_up();
        }
        there
    })
    .await;
    run(&admin, "insert into public.users (email, email_confirmed) values ('no', true), ('yes', false)").await;
    let yes = key(&admin, "yes").await;
    until("its tenant", SOON, async || stands(&database, &yes).await.is_some_and(|stands| stands.0 == "ready")).await;
    let before = key(&admin, "before").await;
    until("whom it brings in", SOON, async || {
        stands(&database, &before).await.is_some_and(|stands| stands.1 == "held")
    })
    .await;
    assert_eq!(tenants(&database).await.len(), 2);

    write("email_confirm");
    daemon.hang_up();
    let said = daemon.wait_for_line("the installation is not as it should be", SOON).await;
    assert!(said.contains("does not exist"), "{said}");
    assert!(other().await, "the one before stays");
    run(&admin, "insert into public.users (email, email_confirmed) values ('more', false)").await;
    let more = key(&admin, "more").await;
    until("its tenant", SOON, async || stands(&database, &more).await.is_some_and(|stands| stands.0 == "ready")).await;
    assert!(daemon.terminate().await.success());
    drop(admin);
    database.finish().await;
}

/// Goal: status names a trigger on updates that is missing, wrong or switched off, and what to do; setup mends the first two, and a sweep finds whom it
/// missed; `--remove` takes both triggers. Method: each done by the table's owner.
#[tokio::test]
async fn a_trigger_on_updates_that_is_amiss_is_told_and_mended() {
    let database = new().await;
    let program = Program::for_database(&database).setting("signup.when", CONFIRMED);
    let setup = program.run(&["setup"]).await;
    assert!(setup.stdout.contains(&format!("signups into \"public\".\"users\" with {CONFIRMED} ring")), "{setup:?}");
    let status = program.run(&["status"]).await;
    assert!(
        status.code() == 0 && status.stdout.contains(&format!("with {CONFIRMED}, triggers in place")),
        "{status:?}"
    );
    let app = database.app().await;
    run(&app, "insert into public.users (email) values ('a')").await;
    let other = "create trigger tenantd_signup_update after update on public.users for each row when (new.email_confirmed) execute function public.other()";
    let function = "create function public.other() returns trigger language plpgsql as $$ begin return null; end $$";
    let drop_it = "drop trigger tenantd_signup_update on public.users";
    let breaches = [
        (drop_it.to_owned(), "update_trigger_missing", true),
        (format!("{function}; {drop_it}; {other}"), "update_trigger_wrong", true),
        ("alter table public.users disable trigger tenantd_signup_update".to_owned(), "update_trigger_disabled", false),
    ];
    let old = server_version(&app).await < 140_000;
    for (breach, word, mended) in breaches {
        run(&app, &breach).await;
        let status = program.run(&["status", "--json"]).await;
        let shown: Value = serde_json::from_str(&status.stdout).expect("JSON");
        assert!(status.code() == 1 && shown["needs_person"][0]["word"] == word, "{word}: {status:?}");
        run(&app, "update public.users set email_confirmed = true").await;
        if old && word == "update_trigger_wrong" {
            run(&app, drop_it).await;
        }
        let setup = program.run(&["setup"]).await;
        let expected = if mended {
            "done: put the trigger tenantd_signup_update"
        } else {
            "trigger tenantd_signup_update is switched off"
        };
        assert!(setup.stdout.contains(expected) || setup.stdout.contains("is switched off"), "{word}: {setup:?}");
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(stands(&database, &key(&app, "a").await).await, Some(("ready".to_owned(), "idle".to_owned())));
    assert_eq!(program.run(&["setup", "--remove", "--yes"]).await.code(), 0);
    assert_eq!(triggers(&app).await, "");
    drop(app);
    database.finish().await;
}

const ORGANISATIONS: &str = r#"create schema "My App"; create type "My App"."kind" as enum ('test', 'customer');
    create table "My App"."Organi""sations" ("Org Id" text primary key default gen_random_uuid(), "Paid" boolean, kind "My App"."kind", note text);
    grant usage on schema "My App" to app; grant insert, select, update on "My App"."Organi""sations" to app"#;

/// Goal: any table can be the signup table, whatever its names are; the printed SQL has the grant and both triggers, and setup has nothing left to do; an
/// insert and an update become ready tenants. Method: organisations with odd names in a schema of their own, to which tenantd has no right; the
/// administrator runs what is printed.
#[tokio::test]
async fn organisations_sign_up() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    run(&admin, ORGANISATIONS).await;
    let program = Program::for_database(&database)
        .setting("signup.table", r#""My App"."Organi""sations""#)
        .setting("signup.id_column", "Org Id")
        .setting("signup.when", r#""Paid" and kind = 'customer'"#);
    let refused = program.run(&["setup"]).await;
    assert!(refused.code() == 2 || refused.code() == 1, "{refused:?}");
    run(&admin, r#"grant usage on schema "My App" to tenantd"#).await;
    let printed = program.run(&["setup", "--print-sql"]).await;
    let grant = r#"grant select ("Org Id", "Paid", "kind"), trigger on "My App"."Organi""sations" to "tenantd""#;
    let update = r#"create trigger tenantd_signup_update after update of "Paid", "kind" on "My App"."Organi""sations" for each row when"#;
    assert!(printed.code() == 0 && printed.stdout.contains(grant) && printed.stdout.contains(update), "{printed:?}");
    let (_, script) = printed
        .stdout
        .split_once("create schema tenantd authorization \"tenantd\";")
        .expect("the part after the roles");
    run(&admin, script).await;
    let setup = program.run(&["setup"]).await;
    assert!(setup.code() == 0 && !setup.stdout.contains("put the trigger"), "{setup:?}");

    let app = database.app().await;
    let table = r#""My App"."Organi""sations""#;
    run(&app, &format!("insert into {table} (\"Paid\", kind, note) values (true, 'customer', 'a'), (true, 'test', 'b'), (null, 'customer', 'c')")).await;
    run(&app, &format!("update {table} set kind = 'customer', note = 'by update' where note = 'b'")).await;
    run(&admin, &format!("set session_replication_role = replica; insert into {table} (\"Paid\", kind, note) values (true, 'customer', 'by sweep')")).await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let ready = format!(
        "select string_agg(o.note, ' ' order by o.note) from {table} o join tenantd.tenant t on t.key = o.\"Org Id\" where t.state = 'ready'"
    );
    assert_eq!(one::<String>(&admin, &ready).await, "a by sweep by update");
    assert_eq!(warnings(&database), [""; 0]);
    drop((admin, app));
    database.finish().await;
}

/// Goal: where nobody can be asked which columns the condition reads, the printed SQL says so, and setup names the very grant. Method: a role that does not
/// exist yet; the script, setup, its hint, setup.
#[tokio::test]
async fn an_unread_condition_is_left_to_setup() {
    let database = new().await;
    let admin = database.superuser().await;
    run(&admin, "drop schema tenantd cascade").await;
    let (role, owner) = (format!("{}role", database.prefix()), format!("{}owner", database.prefix()));
    let url = database.url().replacen("tenantd:", &format!("{role}:"), 1);
    let program = Program::for_database(&database)
        .setting("main.url", &url)
        .setting("tenant.owner", &owner)
        .setting("signup.when", CONFIRMED);
    let printed = program.run(&["setup", "--print-sql"]).await;
    assert!(printed.stdout.contains("signup.when") && !printed.stdout.contains("create trigger"), "{printed:?}");
    run(&admin, &printed.stdout).await;
    run(&admin, &format!("alter role {role} password '{TENANTD_PASSWORD}'")).await;
    let setup = program.run(&["setup"]).await;
    let (_, hint) = setup.stderr.split_once("as the table's owner: ").expect("a statement");
    assert!(
        hint.starts_with("grant select (\"id\", \"deleted_at\", \"email_confirmed\"), trigger on \"public\".\"users\""),
        "{setup:?}"
    );
    run(&admin, hint.lines().next().expect("a line")).await;
    let setup = program.run(&["setup"]).await;
    assert!(setup.code() == 0 && setup.stdout.contains("put the trigger tenantd_signup_update"), "{setup:?}");
    drop(admin);
    database.finish().await;
}

/// What an attacker who owns the signup table does after the installation: in `stolen` stands under whose name it was run.
const TRAPS: [&str; 2] = [
    "alter table public.users rename column plan to real_plan; alter table public.users add column plan public.trap default 'paid'",
    "alter type public.plan rename to real_plan; create domain public.plan as text check (public.steal())",
];

/// Goal: who owns the signup table cannot run code as tenantd by letting the condition's names mean something else: triggers keep what was compiled and run as
/// whoever signs up, and a sweep reads nothing until the installation has looked anew. Method: a column and a type that take others' places; that the
/// traps work is shown on their maker.
#[tokio::test]
async fn names_that_change_their_meaning_run_nothing_as_tenantd() {
    for trap in TRAPS {
        let database = new().await;
        let app = database.app().await;
        run(
            &app,
            "create table public.stolen (by_whom text); grant insert on public.stolen to public;
             create type public.plan as enum ('trial', 'paid'); create type public.trap as enum ('paid');
             create function public.steal(public.trap) returns text language plpgsql as
                 $$ begin insert into public.stolen values (current_user); return 'paid'; end $$;
             create function public.steal() returns boolean language plpgsql as
                 $$ begin insert into public.stolen values (current_user); return true; end $$;
             create cast (public.trap as text) with function public.steal(public.trap) as implicit;
             alter table public.users add column plan public.plan; grant select (plan) on public.users to tenantd",
        )
        .await;
        let fleet = install(&database, "plan = 'paid'::public.plan").await;
        run(&app, "insert into public.users (email, plan) values ('a', 'paid')").await;
        run(&app, trap).await;
        run(&app, "insert into public.users (email) values ('b')").await;
        let stolen = async || one::<i64>(&app, "select count(*) from public.stolen where by_whom <> 'app'").await;
        let report = fleet.sweep().await;
        let unread = report.unread.expect("it was not read");
        assert!(unread.kind() == Kind::Usage && unread.chain().contains("have changed"), "{}", unread.chain());
        assert_eq!((report.made, stolen().await), (1, 0), "{trap}");
        let looked = fleet.context.registry.mend(&fleet.context.config).await.expect_err("it means something else now");
        assert!(looked.kind() == Kind::Usage && stolen().await == 0, "{}", looked.chain());
        let tried = "select count(*) from public.users where plan::text = 'paid' or 'paid'::public.plan is null";
        app.batch_execute(tried).await.expect("the traps let their maker through");
        assert!(
            one::<i64>(&app, "select count(*) from public.stolen where by_whom = 'app'").await > 0,
            "the trap itself works"
        );
        fleet.close().await;
        drop(app);
        database.finish().await;
    }
}

/// Goal: where the condition cannot be asked any more, sweeps say so and do the rest, and signups go on by what the triggers hold. Method: the value of an enum
/// that it names is renamed.
#[tokio::test]
async fn a_condition_that_cannot_be_asked_any_more_is_told() {
    let database = new().await;
    let app = database.app().await;
    let column =
        "create type public.plan as enum ('trial', 'paid'); alter table public.users add column plan public.plan;
                  grant select (plan) on public.users to tenantd";
    run(&app, column).await;
    let fleet = install(&database, "plan = 'paid'").await;
    run(&app, "alter type public.plan rename value 'paid' to 'pro'").await;
    run(&app, "insert into public.users (email, plan) values ('a', 'pro'), ('b', 'trial')").await;
    let report = fleet.sweep().await;
    let unread = report.unread.expect("it was not read");
    assert!(
        unread.kind() == Kind::Usage && unread.chain().contains("paid") && unread.advice().is_some(),
        "{}",
        unread.chain()
    );
    assert_eq!((report.made, report.failures, warnings(&database).len()), (1, 0, 0));
    fleet.close().await;
    drop(app);
    database.finish().await;
}

/// Goal: a right that sweeps lack to read the condition's columns is told with the statement that gives it. Method: one is revoked; the hint is run.
#[tokio::test]
async fn a_right_that_the_condition_needs_is_named() {
    let database = new().await;
    execute(&database, "revoke select (deleted_at) on public.users from tenantd").await;
    let wish = || Fleet::wishing(config(&database, &[("signup.when", CONFIRMED)]), WISHES);
    let error = wish().await.map(drop).expect_err("a right is missing");
    let (_, statement) = error.advice().and_then(|advice| advice.split_once(": ")).expect("a statement");
    assert_eq!(error.kind(), Kind::Rights);
    execute(&database, statement).await;
    let fleet = wish().await.expect("install");
    fleet.close().await;
    // The application may not change what its trigger's condition reads without the trigger's leave.
    let app = database.app().await;
    assert_eq!(refused(&app, "alter table public.users alter column email_confirmed type text").await, "0A000");
    run(&app, "alter table public.users drop column email_confirmed cascade").await;
    let error = wish().await.map(drop).expect_err("a column is missing");
    assert!(error.kind() == Kind::Usage && error.chain().contains("does not exist"), "{}", error.chain());
    drop(app);
    database.finish().await;
}
