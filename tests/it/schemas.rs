//! A schema for each tenant: what is different from a database for each, and what it must not let through.

use std::time::Duration;

use tenantd::error::Kind;
use tenantd::provision::Outcome;

use crate::fleet::{Fleet, execute, row, write_migrations};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// Goal: a signup gets a schema of the tenant's name, owned and marked, that the application's role works in and a stranger does not enter; nothing is in public.
/// Method: the daemon, one signup, the embedded migration; the application writes by its search path.
#[tokio::test]
async fn a_signup_gets_a_schema_of_its_own() {
    let database = TestDatabase::new().await.with_schemas().await;
    let daemon = Program::for_database(&database).start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let key = database.sign_up("one@example.org").await;
    let client = database.superuser().await;
    let ready = "select from tenantd.tenants where key = $1 and state = 'ready' and version = 1";
    until("it is ready", SOON, async || client.query_opt(ready, &[&key]).await.expect("look").is_some()).await;
    let name = database.tenant_name(&key);
    assert_eq!(database.tenant_databases().await, [name.as_str()]);
    let app = database.tenant_app(&name).await;
    app.batch_execute("insert into log_message (message) values ('hello')").await.expect("the application writes");
    let at = "select current_schemas(false)::text, (select count(*) from log_message)";
    let seen = app.query_one(at, &[]).await.expect("look");
    assert_eq!((seen.get::<_, String>(0), seen.get::<_, i64>(1)), (format!("{{{name}}}"), 1));
    assert!(app.batch_execute("delete from tenantd_migration").await.is_err(), "the history is not the application's");
    let owned = "select pg_get_userbyid(n.nspowner)::text, obj_description(n.oid, 'pg_namespace') like 'tenantd %',
                        has_schema_privilege('stranger', n.oid, 'usage'),
                        (select count(*) from pg_class c where c.relnamespace = 'public'::regnamespace and c.relname <> all ('{users,users_pkey,users_email_key}'))
                 from pg_namespace n where n.nspname = $1";
    let owned = client.query_one(owned, &[&name]).await.expect("look");
    assert_eq!((owned.get::<_, String>(0), owned.get::<_, bool>(1)), ("tenant_owner".to_owned(), true));
    assert_eq!((owned.get::<_, bool>(2), owned.get::<_, i64>(3)), (false, 0));
    drop((client, app));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: a migration that touches what is not the tenant's is rolled back, with the relation's name; one that refers to a shared table by a foreign key passes.
/// Method: the owner of tenants is let in on the application's table by an administrator's mistake; migrations that drop it, alter it, empty it, and refer to it.
#[tokio::test]
async fn a_migration_leaves_alone_what_is_not_the_tenants() {
    let database = TestDatabase::new().await.with_schemas().await;
    let client = database.superuser().await;
    let mistake = "create table public.plan (id integer primary key); create table public.note (id integer); insert into public.plan values (1);
                   grant usage on schema public to tenant_owner; grant references, select, truncate on public.plan to tenant_owner;";
    client.batch_execute(mistake).await.expect("make a mistake");
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        ("drop table if exists note;", "public.note"),
        ("alter table note add column x integer;", "public.note"),
        ("create table scratch (id integer); drop table scratch; truncate plan;", "public.plan"),
        ("do $$ begin execute 'drop table note'; end $$;", "public.note"),
    ];
    let shared = [("tenant.shared_schemas", "public")];
    write_migrations(folder.path(), &[("0001_first.sql", "create table first (id integer primary key);")]);
    let fleet = Fleet::with_folder_and(&database, folder.path(), &shared).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    for (sql, relation) in cases {
        write_migrations(folder.path(), &[("0002_bad.sql", sql)]);
        let fleet = Fleet::with_folder_and(&database, folder.path(), &shared).await;
        client.batch_execute("alter table public.note owner to tenant_owner").await.expect("make another mistake");
        let claims = fleet.registry().claim_keys(std::slice::from_ref(&key), SOON).await.expect("claim");
        let mut claim = claims.into_iter().next().expect("one");
        claim.advance = true;
        let ended = tenantd::provision::reconcile(&fleet.context, claim).await;
        let Outcome::Failed { error, .. } = ended.outcome else { panic!("{sql}: {:?}", ended.outcome) };
        assert_eq!(error.kind(), Kind::Migration, "{sql}: {}", error.chain());
        assert!(error.chain().contains(relation) && error.chain().contains("0002_bad.sql"), "{sql}: {}", error.chain());
        let there = "select (select count(*) from public.plan), (select count(*) from pg_attribute where attrelid = 'public.note'::regclass and attnum > 0)";
        let there = client.query_one(there, &[]).await.expect("both are there");
        assert_eq!((there.get::<_, i64>(0), there.get::<_, i64>(1)), (1, 1), "{sql}");
        fleet.close().await;
        let found = Program::for_database(&database).run(&["setup"]).await;
        assert!(found.code() == 2 && found.stderr.contains("public.note"), "{}", found.stderr);
        client.batch_execute("alter table public.note owner to postgres").await.expect("take it back");
    }
    let good = "create table scratch (id integer); drop table scratch; alter table first add column plan_id integer references plan; drop table if exists gone;
                create table second (); drop table second;";
    write_migrations(folder.path(), &[("0002_bad.sql", good)]);
    let fleet = Fleet::with_folder_and(&database, folder.path(), &shared).await;
    let report = fleet.sweep().await;
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(row(&database, &key).await["version"], 2);
    fleet.close().await;
    drop(client);
    database.finish().await;
}

/// Goal: extensions are what all tenants share: a migration that makes one is refused, however it does. Method: by itself, and within a DO block.
#[tokio::test]
async fn a_migration_makes_no_extension() {
    let database = TestDatabase::new().await.with_schemas().await;
    let client = database.superuser().await;
    let grant = format!("grant create on database {} to tenant_owner", database.name());
    client.batch_execute(&grant).await.expect("let the owner do too much");
    Fleet::install(&database, &[]).await.close().await;
    let key = database.sign_up("one@example.org").await;
    for sql in ["create extension citext;", "do $$ begin execute 'create extension citext'; end $$;"] {
        let folder = tempfile::tempdir().expect("a folder");
        write_migrations(folder.path(), &[("0001_bad.sql", sql)]);
        let fleet = Fleet::with_folder(&database, folder.path()).await;
        fleet.registry().take_all_in().await.expect("take it in");
        let claims = fleet.registry().claim_keys(std::slice::from_ref(&key), SOON).await.expect("claim");
        let ended = tenantd::provision::reconcile(&fleet.context, claims.into_iter().next().expect("one")).await;
        let Outcome::Failed { error, .. } = ended.outcome else { panic!("{sql}: {:?}", ended.outcome) };
        assert!(error.with_advice().contains("extension"), "{}", error.with_advice());
        let there = "select count(*) from pg_extension where extname = 'citext'";
        assert_eq!(client.query_one(there, &[]).await.expect("look").get::<_, i64>(0), 0);
        assert!(database.tenant_databases().await.is_empty(), "nothing is left of it");
        fleet.close().await;
    }
    drop(client);
    database.finish().await;
}

/// Goal: what a migration leaves behind in its session reaches no other tenant. Method: three tenants on one connection, the first of whose migrations changes search path,
/// role and settings, prepares a statement and makes a temporary table.
#[tokio::test]
async fn what_a_migration_leaves_behind_reaches_nobody() {
    let database = TestDatabase::new().await.with_schemas().await;
    let folder = tempfile::tempdir().expect("a folder");
    let dirty =
        "create table first (id integer); prepare mine as select 1; create temporary table first_of_all (id integer);
                 set search_path = public; set statement_timeout = 7; listen somebody;";
    write_migrations(
        folder.path(),
        &[("0001_dirty.sql", dirty), ("0002_more.sql", "create table second (id integer);")],
    );
    let fleet = Fleet::with_folder_and(&database, folder.path(), &[("sweep.parallel", "1")]).await;
    for number in 0..3 {
        database.sign_up(&format!("{number}@example.org")).await;
    }
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (3, 0), "{report:?}");
    for name in database.tenant_databases().await {
        let tables = "select string_agg(relname, ' ' order by relname) from pg_class where relnamespace = $1::text::regnamespace and relkind = 'r'";
        let tables: String = database.superuser().await.query_one(tables, &[&name]).await.expect("list").get(0);
        assert_eq!(tables, "first second tenantd_migration");
    }
    fleet.close().await;
    database.finish().await;
}

/// Runs a command, which must end with 0, and returns what it wrote to stdout.
async fn run(program: &Program, arguments: &[&str]) -> String {
    let output = program.run(arguments).await;
    assert_eq!(output.code(), 0, "{arguments:?}: {}{}", output.stdout, output.stderr);
    output.stdout
}

/// Goal: the operator's commands do with a schema what they do with a database: shown, entered, checked, backed up, emptied, filled from the backup, rolled back, dropped, taken back,
/// dropped for good. Method: two tenants, one of which everything is done to; the other keeps its row through all of it.
#[tokio::test]
async fn each_command_knows_schemas() {
    each_command(TestDatabase::new().await.with_schemas().await).await;
}

/// Goal: the same where the schemas are in another database than the main one, which setup makes. Method: the same commands.
#[tokio::test]
async fn each_command_knows_schemas_elsewhere() {
    each_command(TestDatabase::new().await.with_schemas_elsewhere()).await;
}

async fn each_command(database: TestDatabase) {
    let (folder, backups) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let second = ("0002_second.up.sql", "create table second (id integer primary key);");
    write_migrations(
        folder.path(),
        &[
            ("0001_note.sql", "create table note (id integer primary key, text text);"),
            second,
            ("0002_second.down.sql", "drop table second;"),
        ],
    );
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("backup.folder", &backups.path().display().to_string());
    run(&program, &["setup"]).await;
    let keys = [uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string()];
    let urls = run(&program, &["create", &keys[0], &keys[1]]).await;
    assert!(urls.lines().all(|url| url.contains("search_path")) && urls.lines().count() == 2, "{urls}");
    let names = [database.tenant_name(&keys[0]), database.tenant_name(&keys[1])];
    for name in &names {
        database.tenant_app(name).await.batch_execute("insert into note values (1, 'kept')").await.expect("write");
    }
    let rows = async |name: &str| -> i64 {
        let client = database.tenant_superuser(name).await;
        client.query_one("select count(*) from note", &[]).await.expect("count").get(0)
    };
    let key = keys[0].as_str();
    let shown = run(&program, &["show", key, "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert!(shown["database"]["bytes"].as_i64() > Some(8192) && shown["version"] == 2, "{shown}");
    assert_eq!(run(&program, &["psql", key, "--", "-Atc", "select text from note"]).await, "kept");
    run(&program, &["check"]).await;
    let drift = "alter table note add column by_hand integer";
    database.tenant_superuser(&names[0]).await.batch_execute(drift).await.expect("drift");
    let checked = program.run(&["check"]).await;
    assert!(checked.code() == 1 && checked.stdout.contains("note.by_hand"), "{}", checked.stdout);
    let undo = "alter table note drop column by_hand";
    database.tenant_superuser(&names[0]).await.batch_execute(undo).await.expect("take it back");
    run(&program, &["lint", "--all"]).await;

    run(&program, &["backup", key]).await;
    let file = std::fs::read_dir(backups.path()).expect("look").next().expect("a backup").expect("a file").path();
    run(&program, &["reset", key, "--yes", "--skip-backup"]).await;
    assert_eq!((rows(&names[0]).await, rows(&names[1]).await), (0, 1));
    run(&program, &["restore", key, "--from", &file.display().to_string(), "--replace"]).await;
    run(&program, &["--sweep-once"]).await;
    assert_eq!((rows(&names[0]).await, rows(&names[1]).await), (1, 1));
    database.tenant_app(&names[0]).await.batch_execute("insert into note values (2, 'more')").await.expect("write");
    run(&program, &["check"]).await;

    run(&program, &["rollback", key, "--steps", "1", "--yes", "--skip-backup"]).await;
    assert_eq!(row(&database, key).await["version"], 1);
    run(&program, &["release", key]).await;
    run(&program, &["--sweep-once"]).await;
    assert_eq!(row(&database, key).await["version"], 2);

    run(&program, &["drop", key, "--skip-backup"]).await;
    assert_eq!(database.tenant_databases().await, [names[1].as_str()]);
    run(&program, &["restore", key]).await;
    assert_eq!((rows(&names[0]).await, rows(&names[1]).await), (2, 1));
    run(&program, &["drop", key, "--now", "--yes", "--skip-backup"]).await;
    let left = "select count(*) from pg_namespace where nspname like 'tenantd\\_dropped%'";
    let left: i64 = database.tenant_superuser(&names[1]).await.query_one(left, &[]).await.expect("count").get(0);
    assert_eq!(
        (left, rows(&names[1]).await),
        (2, 1),
        "what reset and restore set aside waits for the end of its grace"
    );
    run(&program, &["check"]).await;

    removes_what_is_half_made(&database, &program, &names[1]).await;
    database.finish().await;
}

/// What a dead command left half made goes with the registry; tenants stay.
async fn removes_what_is_half_made(database: &TestDatabase, program: &Program, name: &str) {
    let half_made = format!("{}00", tenantd::tenant::SPARE_PREFIX);
    let inside = database.tenant_superuser(name).await;
    let make = format!("create schema \"{half_made}\" authorization tenant_owner; create table \"{half_made}\".t ()");
    inside.batch_execute(&make).await.expect("leave something");
    execute(database, &format!("insert into tenantd.spare (name, maker) values ('{half_made}', 'somebody')")).await;
    let checked = program.run(&["check"]).await;
    assert!(checked.code() == 1 && checked.stdout.contains("was left half-made"), "{}", checked.stdout);
    run(program, &["setup", "--remove", "--yes"]).await;
    let left = "select string_agg(nspname, ' ') from pg_namespace where nspname = any ($1)";
    let left: String = inside.query_one(left, &[&[half_made, name.to_owned()].as_slice()]).await.expect("look").get(0);
    assert_eq!(left, name);
}

/// Goal: between the registry's commit and the new name of a schema elsewhere, or between what is done to a schema there and the registry's commit, a crash leaves
/// nothing that the next look does not put right. Method: a command that dies at either point, for a drop, its taking back, a reset and a changed owner; then a sweep.
#[tokio::test]
async fn a_crash_between_two_databases_is_settled() {
    let database = TestDatabase::new().await.with_schemas_elsewhere();
    let program = Program::for_database(&database).setting("work.lease", "3s").setting("retry.first", "10ms");
    run(&program, &["setup"]).await;
    let key = uuid::Uuid::new_v4().to_string();
    let name = database.tenant_name(&key);
    let dying = |point: &str| program.clone().variable("TENANTD_FAIL_POINT", point);
    let died = dying("CarriedOut").run(&["create", &key]).await;
    assert_ne!(died.code(), 0, "{}{}", died.stdout, died.stderr);
    let swept = async |what: &str| {
        // Stands for the time that the dead one's lease lasts.
        execute(&database, "update tenantd.tenant set leased_until = now() where leased_until > now()").await;
        until(what, SOON, async || {
            let swept = program.run(&["--sweep-once"]).await;
            swept.code() == 0 && row(&database, &key).await["work"] == "idle"
        })
        .await;
    };
    swept("it is made").await;
    let client = database.tenant_superuser(&name).await;
    client.batch_execute("insert into log_message (message) values ('kept')").await.expect("write");
    let client = database.superuser().await;
    let moved = "select count(*) from tenantd.elsewhere where moved";
    let moved = async || client.query_one(moved, &[]).await.expect("count").get::<_, i64>(0);

    let died = dying("Moved").run(&["drop", &key, "--skip-backup"]).await;
    assert!(died.code() != 0 && moved().await == 1, "{}{}", died.stdout, died.stderr);
    assert_eq!(database.tenant_databases().await, [name.as_str()], "it bears its name still");
    run(&program, &["--sweep-once"]).await;
    assert!(database.tenant_databases().await.is_empty() && moved().await == 0);

    let died = dying("Moved").run(&["restore", &key]).await;
    assert!(died.code() != 0 && moved().await == 1, "{}{}", died.stdout, died.stderr);
    swept("it is back").await;
    assert_eq!((database.tenant_databases().await, moved().await), (vec![name.clone()], 0));
    let inside = database.tenant_superuser(&name).await;
    let rows = "select count(*) from log_message";
    assert_eq!(inside.query_one(rows, &[]).await.expect("count").get::<_, i64>(0), 1);

    let died = dying("Moved").run(&["reset", &key, "--yes", "--skip-backup"]).await;
    assert!(died.code() != 0 && moved().await == 1, "{}{}", died.stdout, died.stderr);
    swept("it is made anew").await;
    assert_eq!((database.tenant_databases().await, moved().await), (vec![name.clone()], 0));
    let inside = database.tenant_superuser(&name).await;
    assert_eq!(inside.query_one(rows, &[]).await.expect("count").get::<_, i64>(0), 0);

    inside.batch_execute(&format!("grant usage on schema \"{name}\" to public")).await.expect("open it");
    let died = dying("CarriedOut").run(&["--sweep-once"]).await;
    assert_ne!(died.code(), 0, "{}{}", died.stdout, died.stderr);
    swept("it is shut again").await;
    let open = "select has_schema_privilege('stranger', $1, 'usage')";
    assert!(!inside.query_one(open, &[&name]).await.expect("look").get::<_, bool>(0));
    run(&program, &["check"]).await;
    drop((client, inside));
    database.finish().await;
}

/// Goal: a schema that somebody made another's is not renamed for the registry; whatever else is to be done goes on, and it is told. Method: a drop that dies before
/// the rename; the schema gets another comment; a sweep; the comment is put back.
#[tokio::test]
async fn a_moved_schema_that_is_not_ours_any_more_stays() {
    let database = TestDatabase::new().await.with_schemas_elsewhere();
    let program = Program::for_database(&database).setting("work.lease", "3s");
    run(&program, &["setup"]).await;
    let keys = [uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string()];
    run(&program, &["create", &keys[0]]).await;
    let name = database.tenant_name(&keys[0]);
    let died = program.clone().variable("TENANTD_FAIL_POINT", "Moved").run(&["drop", &keys[0], "--skip-backup"]).await;
    assert_ne!(died.code(), 0);
    let client = database.tenant_superuser(&name).await;
    let marker = "select obj_description(to_regnamespace($1), 'pg_namespace')";
    let marker: String = client.query_one(marker, &[&name]).await.expect("look").get(0);
    let mark = async |comment: &str| {
        let mark = format!("comment on schema \"{name}\" is '{comment}'");
        client.batch_execute(&mark).await.expect("comment");
    };
    mark("of the shop").await;
    let made = program.run(&["create", &keys[1]]).await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    assert!(made.stderr.contains("does not bear our marker"), "{}", made.stderr);
    assert!(database.tenant_databases().await.contains(&name), "it was left alone");
    mark(&marker).await;
    run(&program, &["--sweep-once"]).await;
    assert_eq!(database.tenant_databases().await, [database.tenant_name(&keys[1])]);
    drop(client);
    database.finish().await;
}

/// Goal: schemas that tenants are to share and that are not there are named before anything is made, and who may not enter one is told. Method: setup, in the main
/// database and in another, with one that is missing and one that is shut.
#[tokio::test]
async fn shared_schemas_are_looked_at_first() {
    for database in [TestDatabase::new().await.with_schemas().await, TestDatabase::new().await.with_schemas_elsewhere()]
    {
        let program = Program::for_database(&database).setting("tenant.shared_schemas", "shared,pg_catalog");
        let refused = program.run(&["setup"]).await;
        assert_eq!(refused.code(), 2, "{}", refused.stderr);
        assert!(refused.stderr.contains("does not have: shared\n"), "{}", refused.stderr);
        assert!(refused.stderr.contains("create schema \"shared\""), "{}", refused.stderr);
        database.tenant_superuser("public").await.batch_execute("create schema shared").await.expect("make it");
        let told = run(&program, &["setup"]).await;
        assert!(
            told.contains("grant usage on schema shared to app; grant usage on schema shared to tenant_owner"),
            "{told}"
        );
        database.finish().await;
    }
}

/// Goal: nobody who signs up waits for a transaction of somebody else's, also where the set makes indexes concurrently: in a schema that is being made they
/// are made at once. Method: a report that stays open in the database; the index is there and whole, and the file counts as applied.
#[tokio::test]
async fn indexes_of_a_new_tenant_wait_for_nobody() {
    let database = TestDatabase::new().await.with_schemas().await;
    let folder = tempfile::tempdir().expect("a folder");
    let files = [
        ("0001_first.sql", "create table first (a integer);"),
        ("0002_index.sql", "-- tenantd: no-transaction\ncreate index concurrently first_a on first (a);"),
        ("0003_second.sql", "create table second ();"),
    ];
    write_migrations(folder.path(), &files);
    let report = database.app().await;
    report.batch_execute("begin isolation level repeatable read; select count(*) from users").await.expect("report");
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = database.sign_up("one@example.org").await;
    let swept = fleet.sweep().await;
    assert_eq!((swept.made, swept.failures), (1, 0), "{swept:?}");
    let tenant = database.tenant_superuser(&database.tenant_name(&key)).await;
    let seen = "select (select indisvalid from pg_index where indexrelid = 'first_a'::regclass),
                       (select string_agg(format('%s %s', version, statements_done), ', ' order by version) from tenantd_migration where applied_at is not null)";
    let seen = tenant.query_one(seen, &[]).await.expect("look");
    assert_eq!((seen.get::<_, bool>(0), seen.get::<_, String>(1)), (true, "1 1, 2 1, 3 1".to_owned()));
    report.batch_execute("commit").await.expect("it was open all the time");
    drop((report, tenant));
    fleet.close().await;
    database.finish().await;
}
