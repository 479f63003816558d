//! What setup refuses, with which exit code, and whether what it advises mends it; and that installing never holds up signups.

use std::time::{Duration, Instant};

use tenantd::error::Kind;
use tenantd::migrations::embedded;

use crate::fleet::{Fleet, config};
use crate::sql::{one, run};
use crate::support::daemon::{Output, Program};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};

/// What follows `hint: `, up to the end of the line.
fn hint(output: &Output) -> &str {
    let hint = output.stderr.lines().find_map(|line| line.strip_prefix("hint: "));
    hint.unwrap_or_else(|| panic!("no hint: {output:?}"))
}

/// The statement at the end of a hint such as `as the table's owner: grant …`.
fn statement(output: &Output) -> &str {
    hint(output).split_once(": ").unwrap_or_else(|| panic!("no statement: {output:?}")).1
}

async fn nothing_was_installed(database: &TestDatabase) {
    let installed = "select to_regclass('tenantd.tenant') is not null
                     or exists (select from pg_trigger where tgname = 'tenantd_signup')";
    assert!(!one::<bool>(&database.superuser().await, installed).await);
}

/// Goal: settings that do not fit the database are exit 2, with a sentence that names the setting. Method: one wrong thing a row; afterwards
/// nothing is installed.
#[tokio::test]
async fn wrong_settings_are_named() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    let others =
        "create table public.numbered (id bigint, email text); create view public.seen as select id from public.users;
                  grant select, trigger on public.numbered, public.seen to tenantd";
    run(&admin, others).await;
    let table: [(&str, &str, &str, &str); 6] = [
        ("signup.table", "public.nobody", "\"public\".\"nobody\" does not exist", "signup.table"),
        ("signup.table", "nowhere.users", "\"nowhere\".\"users\" does not exist", "signup.table"),
        ("signup.table", "public.seen", "is no table", "signup.table"),
        ("signup.table", "public.numbered", "is of type bigint", "signup.id_column"),
        ("signup.id_column", "uid", "has no column \"uid\"", "signup.id_column"),
        ("tenant.owner", "nobody", "the server has no role nobody", "tenant.owner"),
    ];
    for (key, value, said, hinted) in table {
        let refused = Program::for_database(&database).setting(key, value).run(&["setup"]).await;
        assert_eq!(refused.code(), 2, "{key} = {value}: {refused:?}");
        assert!(refused.stderr.contains(said) && hint(&refused).contains(hinted), "{key} = {value}: {refused:?}");
    }
    let program =
        Program::for_database(&database).setting("tenant.use", "app,ghost").setting("tenant.connect", "wraith");
    let refused = program.run(&["setup"]).await;
    assert!(refused.code() == 2 && refused.stderr.contains("no role ghost, wraith"), "{refused:?}");
    nothing_was_installed(&database).await;
    database.finish().await;
}

/// Goal: each right that is missing is exit 1, and the statement of the hint gives it. Method: take all rights, then run setup and what it says
/// until it succeeds.
#[tokio::test]
async fn each_missing_right_is_named_with_the_statement_that_gives_it() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    let (role, owner) = (format!("{}role", database.prefix()), format!("{}owner", database.prefix()));
    let bare = format!(
        "create role {role} login password '{TENANTD_PASSWORD}'; create role {owner} nologin;
         drop schema tenantd; create schema tenantd; create schema private; alter table public.users set schema private"
    );
    run(&admin, &bare).await;
    let program = Program::for_database(&database)
        .setting("main.url", &database.url().replacen("tenantd:", &format!("{role}:"), 1))
        .setting("signup.table", "private.users")
        .setting("tenant.owner", &owner);
    let expected = [
        format!("grant usage on schema \"private\" to \"{role}\""),
        format!("grant select (\"id\"), trigger on \"private\".\"users\" to \"{role}\""),
        database.let_make(&role),
        format!("grant \"{owner}\" to \"{role}\" (Postgres 16 and later: with inherit true, set true)"),
        format!("alter schema tenantd owner to \"{role}\""),
    ];
    for expected in &expected {
        let refused = program.run(&["setup"]).await;
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert_eq!(statement(&refused), expected, "{refused:?}");
        nothing_was_installed(&database).await;
        run(&admin, expected.split(" (Postgres").next().expect("the statement")).await;
    }
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let left = "drop schema tenantd cascade; alter table private.users set schema public";
    run(&admin, left).await;
    database.finish().await;
}

/// Goal: a partition that tenantd has no right on is named. Method: rights on the parent only; then as the hint says.
#[tokio::test]
async fn a_partition_without_rights_is_named() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    let tables = "drop table public.users;
        create table public.users (id uuid default gen_random_uuid(), email text) partition by list (email);
        create table public.users_rest partition of public.users default;
        grant select (id), trigger on public.users to tenantd";
    run(&admin, tables).await;
    let program = Program::for_database(&database);
    let refused = program.run(&["setup"]).await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("users_rest") && hint(&refused).contains("each partition"), "{refused:?}");
    run(&admin, "grant trigger on public.users_rest to tenantd").await;
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    database.finish().await;
}

/// Goal: a long transaction on the signup table makes the installation give up, and signups go on all the while, none waiting longer than about
/// the tenth of a second that the installation asks for the table. Method: sign up one after the other until it has given up; then end the
/// transaction and install.
#[tokio::test]
async fn installing_gives_way_to_signups() {
    let database = TestDatabase::new().await;
    let (long, app) = (database.app().await, database.app().await);
    run(&long, "begin; insert into public.users (email) values ('long')").await;
    let installing = Fleet::with_set(config(&database, &[]), embedded::tenant().expect("the set"));
    let mut installing = std::pin::pin!(installing);
    let (mut longest, mut signups) = (Duration::ZERO, 0);
    let error = loop {
        let begin = Instant::now();
        let statement = format!("insert into public.users (email) values ('{signups}')");
        tokio::select! {
            installed = &mut installing => break installed.map(drop).expect_err("the table is in use"),
            () = run(&app, &statement) => {}
        }
        longest = longest.max(begin.elapsed());
        signups += 1;
    };
    println!("{signups} signups during an installation that gave up, the longest took {longest:?}");
    assert_eq!(error.kind(), Kind::Locked, "{}", error.chain());
    assert!(error.advice().expect("a hint").contains("long transaction"));
    assert!(signups > 20 && longest < Duration::from_secs(3), "{signups} signups, {longest:?}");
    run(&long, "commit").await;
    let fleet = Fleet::install(&database, &[]).await;
    let held: i64 = one(&database.superuser().await, "select count(*) from tenantd.tenant where work = 'held'").await;
    let all: i64 = one(&app, "select count(*) from public.users").await;
    assert_eq!(held, all);
    fleet.close().await;
    database.finish().await;
}

/// Goal: what was dropped from the registry by hand is made again by the next setup, whatever it is. Method: drop each part in turn.
#[tokio::test]
async fn a_part_that_was_dropped_is_made_again() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    let key = database.sign_up("one@example.org").await;
    let admin = database.superuser().await;
    for dropped in [
        "view tenantd.tenants",
        "function tenantd.wait(text, interval)",
        "function tenantd.request(text[], timestamptz[])",
        "function tenantd.take_in()",
        "table tenantd.signup",
        "function tenantd.signup()",
        "table tenantd.migration",
        "table tenantd.migration_set",
        "table tenantd.spare",
    ] {
        run(&admin, &format!("drop {dropped} cascade")).await;
        let setup = program.run(&["setup"]).await;
        assert!(setup.code() == 0 && setup.stdout.contains("done:"), "{dropped}: {setup:?}");
        assert!(program.run(&["setup"]).await.stdout.starts_with("nothing to install"), "{dropped}");
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(database.tenant_databases().await, [database.tenant_name(&key)]);
    let waited: String = one(&database.app().await, &format!("select tenantd.wait('{key}')")).await;
    assert_eq!(waited, "ready");
    database.finish().await;
}
