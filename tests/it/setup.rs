//! `tenantd setup` as an operator runs it: the built program, its output, its exit codes.

use std::time::Duration;

use serde_json::Value;
use tenantd::config::Isolation;
use tenantd::migrations::embedded;

use crate::fleet::{Fleet, config, oid};
use crate::sql::{one, refused, run, stands, tenants};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

fn well(output: &Output) -> &str {
    assert_eq!(output.code(), 0, "{output:?}");
    &output.stdout
}

fn json(output: &Output) -> Value {
    serde_json::from_str(well(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Goal: setup says what it did and what to know, and a second run finds nothing to do. Method: twice, as text and as JSON.
#[tokio::test]
async fn setup_installs_once_and_says_what_it_did() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    let first = program.run(&["setup"]).await;
    for part in [
        "done: applied registry migration 1 registry\n",
        "done: made the function tenantd.signup()\n",
        "done: put the trigger tenantd_signup on \"public\".\"users\"\n",
        "done: let role \"app\" read the view tenantd.tenants",
        "signups into \"public\".\"users\" ring the doorbell; tenant migrations: ",
    ] {
        assert!(well(&first).contains(part), "{part}\n{first:?}");
    }
    let second = program.run(&["setup"]).await;
    assert!(well(&second).starts_with("nothing to install") && !second.stdout.contains("done:"), "{second:?}");

    let third = json(&program.run(&["setup", "--json"]).await);
    assert_eq!((&third["format"], &third["notify"]), (&Value::from(1), &Value::from(true)));
    assert_eq!(
        (third["changes"].as_array().map(Vec::len), third["notes"].as_array().map(Vec::len)),
        (Some(0), Some(0))
    );
    assert!(third["migration_set"]["migrations"].as_u64() > Some(0), "{third}");
    let key = database.sign_up("one@example.org").await;
    assert!(stands(&database, &key).await.is_some());
    database.finish().await;
}

/// Goal: the printed SQL is the whole preparation: an administrator runs it as it is, and setup has no right to ask for. Method: roles that do
/// not exist yet, a database without schema tenantd, one script; then setup as the role that it made.
#[tokio::test]
async fn the_printed_sql_can_be_run() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    run(&admin, "drop schema tenantd cascade; revoke all on public.users from tenantd").await;
    let (role, owner) = (format!("{}role", database.prefix()), format!("{}owner", database.prefix()));
    let url = database.url().replacen("tenantd:", &format!("{role}:"), 1);
    let program = Program::for_database(&database).setting("main.url", &url).setting("tenant.owner", &owner);
    let sql = well(&program.run(&["setup", "--print-sql"]).await).to_owned();
    let as_json = json(&program.run(&["setup", "--print-sql", "--json"]).await)["sql"].clone();
    assert_eq!(as_json.as_str().map(str::trim_end), Some(sql.trim_end()));
    run(&admin, &sql).await;
    let password = crate::support::database::TENANTD_PASSWORD;
    run(&admin, &format!("alter role {role} password '{password}'")).await;

    let setup = program.run(&["setup"]).await;
    assert!(
        !well(&setup).contains("function") && !setup.stdout.contains("trigger"),
        "nothing of these was left to do: {setup:?}"
    );
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(stands(&database, &key).await, Some(("ready".to_owned(), "idle".to_owned())));

    database.finish().await;
}

/// Goal: users from before are held, counted and priced, and made due by `--backfill` only. Method: three, setup, sweep, backfill, sweep.
#[tokio::test]
async fn users_from_before_are_held_until_backfill() {
    let database = TestDatabase::new().await;
    for number in 0..3 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    let program = Program::for_database(&database);
    let first = program.run(&["setup"]).await;
    assert!(well(&first).contains("done: held 3 users from before\n"), "{first:?}");
    let (kind, megabytes) = (database.isolation(), if database.isolation() == Isolation::Database { 21 } else { 1 });
    let note = format!(
        "note: 3 users from before are held; 0 {kind}s bear their names already; making them due would take about {megabytes} MB and 1 s: tenantd setup --backfill"
    );
    assert!(first.stdout.contains(&note), "{first:?}");
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert!(database.tenant_databases().await.is_empty());
    assert!(well(&program.run(&["setup", "--backfill"]).await).contains("done: made 3 held users due\n"));
    assert!(well(&program.run(&["setup", "--backfill"]).await).starts_with("nothing to install"));
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(database.tenant_databases().await.len(), 3);
    database.finish().await;
}

/// Goal: `--remove` takes the registry and what it made for nobody, and nothing else, and not unasked. Method: without a terminal, then with --yes; sign up afterwards.
#[tokio::test]
async fn remove_takes_the_registry_and_leaves_the_tenants() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    well(&program.run(&["setup"]).await);
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let dropped = database.sign_up("gone@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    assert_eq!(program.run(&["drop", &dropped, "--skip-backup", "--yes"]).await.code(), 0);
    let unasked = program.run(&["setup", "--remove"]).await;
    assert_eq!(unasked.code(), 2, "{unasked:?}");
    assert!(unasked.stderr.contains("hint: add --yes") && stands(&database, &key).await.is_some(), "{unasked:?}");

    let admin = database.superuser().await;
    let template = "select coalesce(min(name), 'none') from tenantd.template";
    let template: String = one(&admin, template).await;
    let aside: String = one(&admin, "select name from tenantd.dropped").await;
    let kept = format!("tenantd_template_{}", database.name());
    database.outside(&format!("create database {kept}")).await;
    database.outside(&format!("comment on database {kept} is 'mine'")).await;
    let by_schema = database.isolation() == Isolation::Schema;
    if !by_schema {
        run(&admin, &format!("insert into tenantd.template (name, migration_set, version, access, shape) values ('{kept}', 'a', 1, 'a', 'a')")).await;
    }
    let removed = program.run(&["setup", "--remove", "--yes"]).await;
    let removed = well(&removed);
    let told = if by_schema {
        "removed schema tenantd with registry, function and trigger; the tenants' schemas stay"
    } else {
        "1 database of templates and spares; the tenants' databases stay"
    };
    assert!(removed.contains(told), "{removed}");
    let stays = format!("note: these were set aside in a time of grace and stay too, for you to drop: {aside}");
    assert!(removed.trim_end().ends_with(&stays), "{removed}");
    database.outside(&format!("drop database {aside}")).await;
    assert_eq!(oid(&database, &template).await, None);
    assert!(oid(&database, &kept).await.is_some(), "what bears another marker stays");
    database.outside(&format!("drop database {kept}")).await;
    let left = "select to_regnamespace('tenantd') is not null or exists (select from pg_trigger where tgname = 'tenantd_signup')";
    assert!(!one::<bool>(&admin, left).await);
    assert_eq!(database.tenant_databases().await, [database.tenant_name(&key)]);
    database.sign_up("two@example.org").await;
    assert_eq!(json(&program.run(&["setup", "--remove", "--yes", "--json"]).await)["format"], 1, "twice is no harm");
    database.finish().await;
}

/// Makes a copy of the main database, as for staging, once nobody is connected to it.
async fn copy(database: &TestDatabase, name: &str) -> Program {
    let admin = database.server().superuser("postgres").await;
    let create = format!("create database {name} template {}", database.name());
    until("a copy of the main database", SOON, async || admin.batch_execute(&create).await.is_ok()).await;
    let grant = format!("grant create on database {name} to tenantd");
    admin.batch_execute(&grant).await.expect("what a copy does not have");
    let url = database.url().replace(&format!("/{}?", database.name()), &format!("/{name}?"));
    Program::for_database(database).setting("main.url", &url)
}

/// Goal: in a copy of the main database nothing works but what settles whose the tenants are; a copy that forgets them leaves them to the
/// original. Method: a copy on the same server: setup, sweep, daemon; then --new-registry.
#[tokio::test]
async fn a_copied_registry_is_refused_until_it_is_settled() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    well(&program.run(&["setup"]).await);
    let key = database.sign_up("one@example.org").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let (staging, moved) = (format!("{}_staging", database.name()), format!("{}_moved", database.name()));
    let copied = copy(&database, &staging).await;
    let arguments: [&[&str]; 3] = [&["setup"], &["--sweep-once"], &[]];
    for arguments in arguments {
        let refused = copied.run(arguments).await;
        assert_eq!(refused.code(), 2, "{arguments:?} {refused:?}");
        let said = &refused.stderr;
        assert!(
            said.contains("copied or moved") && said.contains("--adopt-registry") && said.contains("--new-registry"),
            "{said}"
        );
    }
    assert_eq!(copied.run(&["setup", "--adopt-registry", "--new-registry"]).await.code(), 2);
    let new = copied.run(&["setup", "--new-registry"]).await;
    assert!(well(&new).contains("forgotten here") && new.stdout.contains("held 1 users"), "{new:?}");
    assert!(new.stdout.contains(&format!("1 {}s bear their names already", database.isolation())), "{new:?}");
    let name = database.tenant_name(&key);
    let before = oid(&database, &name).await;
    assert_eq!(copied.run(&["--sweep-once"]).await.code(), 0);
    well(&copied.run(&["setup", "--backfill"]).await);
    assert_eq!(copied.run(&["--sweep-once"]).await.code(), 1, "the original's database is a conflict");
    assert_eq!(oid(&database, &name).await, before);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0, "the original goes on");

    let adopted = copy(&database, &moved).await;
    let setup = adopted.run(&["setup", "--adopt-registry"]).await;
    assert!(well(&setup).contains("took the registry over for this database"), "{setup:?}");
    assert!(well(&adopted.run(&["setup"]).await).starts_with("nothing to install"));
    assert_eq!(adopted.run(&["--sweep-once"]).await.code(), 0);
    let state: String = one(&database.server().superuser(&moved).await, "select state from tenantd.tenant").await;
    assert_eq!(state, "ready");
    let admin = database.server().superuser("postgres").await;
    for name in [staging, moved] {
        run(&admin, &format!("drop database {name} with (force)")).await;
    }
    database.finish().await;
}

/// Goal: any number may install at once, and each succeeds. Method: twenty installers; then, with the function gone, ten daemons that mend.
#[tokio::test]
async fn twenty_installers_at_once_all_succeed() {
    let database = TestDatabase::new().await;
    database.sign_up("before@example.org").await;
    let set = || embedded::tenant().expect("the set");
    // Twenty at once on a busy machine: how long each waits for its connection is no matter here.
    let settings = [("main.connect_timeout", "60s")];
    let installing = (0..20).map(|_| Fleet::with_set(config(&database, &settings), set()));
    let fleets: Vec<Fleet> =
        futures_util::future::join_all(installing).await.into_iter().map(|fleet| fleet.expect("install")).collect();
    let changed = fleets.iter().filter(|fleet| !fleet.installed.changes.is_empty()).count();
    assert_eq!((changed, tenants(&database).await.len()), (1, 1));

    let admin = database.superuser().await;
    run(&admin, "drop function tenantd.signup() cascade").await;
    let mending = fleets.iter().take(10).map(|fleet| fleet.context.registry.mend(&fleet.context.config));
    let mended: Vec<_> =
        futures_util::future::join_all(mending).await.into_iter().map(|mended| mended.expect("mend")).collect();
    assert_eq!(mended.iter().map(|mended| mended.changes.len()).sum::<usize>(), 2, "{mended:?}");
    let key = database.sign_up("after@example.org").await;
    assert!(stands(&database, &key).await.is_some());
    for fleet in fleets {
        fleet.close().await;
    }
    database.finish().await;
}

/// Goal: a registry that needs a newer tenantd is left alone, with an exit code of its own; one that is newer and compatible is worked with,
/// and its function is left to the newer. Method: as a newer one would leave it.
#[tokio::test]
async fn a_newer_registry_is_refused_only_when_it_must_be() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    well(&program.run(&["setup"]).await);
    let admin = database.superuser().await;
    run(
        &admin,
        "insert into tenantd.migration (version, name, checksum, started_at, applied_at, statements_done, applied_by)
                  select 2, 'more', checksum, started_at, applied_at, 1, 'newer' from tenantd.migration",
    )
    .await;
    let comment = "create or replace function tenantd.signup() returns trigger language plpgsql security definer as
        'begin insert into tenantd.tenant (key) select added.id::text from added; /* newer */ return null; end'";
    run(&admin, comment).await;
    let setup = program.run(&["setup"]).await;
    assert!(
        well(&setup).contains("note: a newer tenantd has been here") && !setup.stdout.contains("done:"),
        "{setup:?}"
    );
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let key = database.sign_up("one@example.org").await;
    let wait = "select tenantd.wait($1)";
    let state: Option<String> = database.app().await.query_one(wait, &[&key]).await.expect("wait").get(0);
    assert_eq!(state.as_deref(), Some("ready"));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let newer = "select prosrc like '%newer%' from pg_proc where oid = 'tenantd.signup()'::regprocedure";
    assert!(one::<bool>(&admin, newer).await);

    let mut running = program.start();
    running.wait_for_line("tenantd is at work", SOON).await;
    run(&admin, "update tenantd.registry set needs_version = 99").await;
    running.hang_up();
    assert_eq!(running.ended(SOON).await.code(), Some(4), "a running daemon meets it at its next sweep");
    running.kill();
    let arguments: [&[&str]; 3] = [&["setup"], &["--sweep-once"], &[]];
    for arguments in arguments {
        let refused = program.run(arguments).await;
        assert_eq!(refused.code(), 4, "{arguments:?} {refused:?}");
        assert!(
            refused.stderr.contains("99") && refused.stderr.contains("hint: start the newer tenantd"),
            "{refused:?}"
        );
    }
    database.finish().await;
}

/// Goal: the application may read the view and wait, and nothing else; a stranger nothing. Method: try everything in the schema.
#[tokio::test]
async fn the_application_sees_the_view_and_nothing_else() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    database.sign_up("one@example.org").await;
    let (app, stranger) = (database.app().await, database.superuser().await);
    assert_eq!(one::<i64>(&app, "select count(*) from tenantd.tenants where state = 'requested'").await, 1);
    assert_eq!(one::<Option<String>>(&app, "select tenantd.wait('nobody', '0')").await, None);
    run(&stranger, "set role stranger").await;
    let listed = "select format('select count(*) from tenantd.%I', relname) from pg_class
                  where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'v')
                  union all
                  select format('select tenantd.%I(%s)', proname, array_to_string(array(
                      select 'null::' || format_type(given, null) from unnest(proargtypes::oid[]) given), ', '))
                  from pg_proc where pronamespace = 'tenantd'::regnamespace";
    let admin = database.superuser().await;
    let mut tried = 0;
    for row in admin.query(listed, &[]).await.expect("list") {
        let statement: String = row.get(0);
        assert_eq!(refused(&stranger, &statement).await, "42501", "{statement}");
        if !statement.ends_with("tenants") && !statement.contains("wait") {
            assert_eq!(refused(&app, &statement).await, "42501", "{statement}");
        }
        tried += 1;
    }
    assert!(tried >= 9, "{tried}");
    for write in [
        "insert into tenantd.tenants (key) values ('a')",
        "update tenantd.tenants set name = 'a'",
        "delete from tenantd.tenants",
    ] {
        assert_eq!(refused(&app, write).await, "55000", "{write}");
    }
    fleet.close().await;
    database.finish().await;
}

/// Goal: another signup table fills no disk by surprise: its users are from before, and held like those of the first. Method: a second table
/// with users in it, named in the settings.
#[tokio::test]
async fn the_users_of_another_table_are_held() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    let admin = database.superuser().await;
    run(
        &admin,
        "create table public.accounts (id uuid primary key default gen_random_uuid());
         insert into public.accounts select from generate_series(1, 2);
         grant select (id), trigger on public.accounts to tenantd",
    )
    .await;
    let other = [("signup.table", "public.accounts")];
    let fleet = Fleet::install(&database, &other).await;
    assert!(fleet.installed.notes.iter().any(|note| note.starts_with("signups come from \"public\".\"accounts\" now")));
    assert_eq!(fleet.sweep().await.made, 0);
    assert_eq!(one::<i64>(&admin, "select count(*) from tenantd.tenant where work = 'held'").await, 2);
    run(&admin, "insert into public.accounts default values").await;
    assert_eq!(fleet.sweep().await.made, 1, "a signup after that is one");
    fleet.close().await;
    database.finish().await;
}
