//! The kinds of signups: statements that insert many or none, tables that are several, keys of every sort.

use std::time::Instant;

use futures_util::SinkExt;
use tenantd::error::Kind;
use tokio_postgres::Client;

use crate::fleet::{Fleet, WISHES, config};
use crate::sql::{make_room, one, refused, run, server_version, stands, tenants, warnings};
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;

/// Takes the place of the users table, with the application's role as the owner of everything and tenantd's rights as the design has them.
async fn replace_users(database: &TestDatabase, tables: &[&str], create: &str) {
    let admin = database.superuser().await;
    run(&admin, "drop table public.users cascade; grant create on schema public to app; set role app").await;
    run(&admin, create).await;
    for table in tables {
        run(&admin, &format!("grant select (id), trigger on {table} to tenantd")).await;
    }
}

/// How many signups were written down, and by how many statements.
async fn written(database: &TestDatabase) -> (i64, i64) {
    let count = "select count(*), count(distinct (xmin::text, cmin::text)) from tenantd.signup";
    let row = database.superuser().await.query_one(count, &[]).await.expect("count");
    (row.get(0), row.get(1))
}

/// Goal: a bulk import is one call of the trigger and one write. Method: 10,000 rows in one statement; the server's own counters of it.
#[tokio::test]
async fn ten_thousand_rows_in_a_statement_are_one_write() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let admin = database.superuser().await;
    run(&admin, "begin; set local track_functions = 'all'").await;
    let begin = Instant::now();
    run(&admin, "insert into public.users (email) select n::text from generate_series(1, 10000) n").await;
    println!("10,000 signups in one statement: {:?}", begin.elapsed());
    let calls = "select calls from pg_stat_xact_user_functions where schemaname = 'tenantd' and funcname = 'signup'";
    assert_eq!(one::<i64>(&admin, calls).await, 1);
    run(&admin, "commit").await;
    assert_eq!(written(&database).await, (10_000, 1));
    fleet.close().await;
    database.finish().await;
}

/// Goal: every statement that inserts signups requests exactly those it inserts. Method: COPY, many rows, upserts, MERGE, a rule of none.
#[tokio::test]
async fn every_statement_requests_what_it_inserts() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    run(&database.superuser().await, "grant update on public.users to app").await;
    let app = database.app().await;
    let copy = app.copy_in("copy public.users (email) from stdin").await.expect("begin a COPY");
    let mut copy = std::pin::pin!(copy);
    copy.send(&b"a\nb\nc\n"[..]).await.expect("send");
    assert_eq!(copy.finish().await.expect("end the COPY"), 3);
    assert_eq!(written(&database).await, (3, 1));
    let insert = "insert into public.users (email) values";
    let statements = [
        (format!("{insert} ('c'), ('d'), ('e') on conflict do nothing"), 5),
        (format!("{insert} ('e'), ('f') on conflict (email) do update set created_at = now()"), 6),
        (format!("{insert} ('e'), ('f') on conflict (email) do update set created_at = now()"), 6),
        (format!("{insert} ('a'), ('b') on conflict do nothing"), 6),
        ("insert into public.users (email) select 'x' where false".to_owned(), 6),
        (format!("with added as ({insert} ('i') returning id) select * from added"), 7),
        (
            "merge into public.users u using (values ('f'), ('g'), ('h')) v (email) on u.email = v.email
             when matched then update set created_at = now() when not matched then insert (email) values (v.email)"
                .to_owned(),
            9,
        ),
    ];
    // Servers before 15 have no MERGE.
    let known = statements.len() - usize::from(server_version(&app).await < 150_000);
    for (statement, rows) in statements.into_iter().take(known) {
        run(&app, &statement).await;
        assert_eq!(written(&database).await.0, rows, "{statement}");
    }
    assert_eq!(warnings(&database), [""; 0]);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a statement that inserts nobody writes nothing and does not ring. Method: whether its transaction got an id; a two-phase commit, which
/// Postgres refuses to whoever has rung.
#[tokio::test]
async fn a_statement_that_inserts_nobody_neither_writes_nor_rings() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[("signup.notify", "true")]).await;
    let app = database.app().await;
    run(&app, "insert into public.users (email) values ('a')").await;
    run(&app, "begin; insert into public.users (email) select 'x' where false").await;
    assert!(one::<bool>(&app, "select pg_current_xact_id_if_assigned() is null").await);
    run(&app, "insert into public.users (email) values ('a') on conflict do nothing; commit").await;
    assert_eq!((written(&database).await.0, warnings(&database).len()), (1, 0));

    let sleeper = database.tenantd().await;
    run(&sleeper, "select pg_advisory_lock(20250, 1)").await;
    let prepare = format!("prepare transaction '{}'", database.name());
    run(&app, "begin; insert into public.users (email) values ('a') on conflict do nothing").await;
    run(&app, &prepare).await;
    run(&app, &format!("commit prepared '{}'", database.name())).await;
    run(&app, "begin; insert into public.users (email) values ('b')").await;
    assert_eq!(refused(&app, &prepare).await, "0A000", "a signup that is one rings");
    drop(sleeper);
    fleet.close().await;
    database.finish().await;
}

const PARTITIONED: &str = "
create table public.users (id uuid not null default gen_random_uuid(), email text not null, region text not null) partition by list (region);
create table public.users_eu partition of public.users for values in ('eu');
create table public.users_us partition of public.users for values in ('us')";

/// Goal: a partitioned signup table is seen whichever way a row comes in, also through partitions added later by the owner, who is no
/// superuser. Method: parent, leaf, new leaf, attached leaf; and one wait for twenty rows while the registry is locked.
#[tokio::test]
async fn a_partitioned_table_is_seen_through_parent_and_leaves() {
    let database = TestDatabase::new().await;
    replace_users(&database, &["public.users", "public.users_eu", "public.users_us"], PARTITIONED).await;
    let fleet = Fleet::install(&database, &[]).await;
    let app = database.app().await;
    run(&app, "insert into public.users (email, region) values ('a', 'eu'), ('b', 'us')").await;
    run(&app, "insert into public.users_us (email, region) values ('c', 'us')").await;
    run(&app, "create table public.users_asia partition of public.users for values in ('asia')").await;
    run(&app, "insert into public.users_asia (email, region) values ('d', 'asia')").await;
    run(&app, "create table public.users_africa (like public.users including all)").await;
    run(&app, "alter table public.users attach partition public.users_africa for values in ('africa')").await;
    run(&app, "insert into public.users_africa (email, region) values ('e', 'africa')").await;
    assert_eq!(written(&database).await.0, 5);

    let locker = database.superuser().await;
    run(&locker, "begin; lock table tenantd.signup in access exclusive mode").await;
    run(&app, "insert into public.users (email, region) select n::text, 'eu' from generate_series(1, 20) n").await;
    run(&locker, "rollback").await;
    assert_eq!(warnings(&database).len(), 1);
    let missing = fleet.request_missing().await;
    assert_eq!((missing.users, missing.held), (20, false));

    fleet.close().await;
    let again = Fleet::install(&database, &[]).await;
    assert_eq!(again.installed.changes, [""; 0]);
    again.close().await;
    let printed = Program::for_database(&database).run(&["setup", "--print-sql"]).await.stdout;
    assert!(printed.contains("on \"public\".\"users\" for each row"), "{printed}");
    database.finish().await;
}

/// Goal: with classic inheritance children and grandchildren are seen, one added later from the next look of the daemon on; one that tenantd
/// has no right on is told and hinders nobody. Method: insert into each; `Registry::mend` is the daemon's look.
#[tokio::test]
async fn an_inherited_table_is_seen_through_its_children() {
    let database = TestDatabase::new().await;
    let tables = "create table public.users (id uuid primary key default gen_random_uuid(), email text);
                  create table public.users_a () inherits (public.users);
                  create table public.\"Users B\" () inherits (public.users_a)";
    replace_users(&database, &["public.users", "public.users_a", "public.\"Users B\""], tables).await;
    let fleet = Fleet::install(&database, &[]).await;
    let app = database.app().await;
    for table in ["users", "users_a", "\"Users B\""] {
        run(&app, &format!("insert into public.{table} (email) values ('x')")).await;
    }
    assert_eq!(written(&database).await.0, 3);

    run(&app, "create table public.late () inherits (public.users); insert into public.late (email) values ('y')")
        .await;
    let mended = fleet.context.registry.mend(&fleet.context.config).await.expect("mend");
    assert_eq!(mended.changes, [""; 0]);
    let note = mended.notes.iter().find(|note| note.contains("public.late")).expect("a note on the right");
    assert!(note.contains("only sweeps") && note.contains("grant trigger"), "{note}");
    run(&app, "grant select (id), trigger on public.late to tenantd").await;
    let mended = fleet.context.registry.mend(&fleet.context.config).await.expect("mend");
    assert_eq!(mended.changes, ["put the trigger tenantd_signup on public.late"]);
    run(&app, "insert into public.late (email) values ('z')").await;
    assert_eq!(written(&database).await.0, 4);
    assert_eq!(fleet.sweep().await.requested, 1, "the one from between");
    fleet.close().await;
    database.finish().await;
}

/// Goal: an ordinary table that gets its first child is moved from the statement's trigger to the row's. Method: look, insert into both.
#[tokio::test]
async fn a_first_child_changes_the_trigger() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let admin = database.superuser().await;
    run(
        &admin,
        "create table public.child () inherits (public.users); grant select (id), trigger on public.child to tenantd",
    )
    .await;
    make_room(&admin).await;
    let mended = fleet.context.registry.mend(&fleet.context.config).await.expect("mend");
    assert_eq!((mended.changes.len(), mended.table.by_row), (2, true), "{:?}", mended.changes);
    run(&admin, "insert into public.users (email) values ('a'); insert into public.child (email) values ('b')").await;
    assert_eq!(written(&database).await.0, 2);
    fleet.close().await;
    database.finish().await;
}

/// Goal: row level security hides nobody silently: the trigger works, what cannot be read is told with the right that is missing, and users from
/// before are held also when they can be read only later. Method: a server of its own, since the right goes to the role.
#[tokio::test]
async fn row_level_security_hides_nobody_silently() {
    let database = TestDatabase::on(&TestServer::builder().start()).await;
    let admin = database.superuser().await;
    let secure =
        "alter table public.users enable row level security; create policy mine on public.users to app using (true);
                  insert into public.users (email) values ('before')";
    run(&admin, secure).await;
    let fleet = Fleet::install(&database, &[]).await;
    assert!(fleet.table.rows_hidden && fleet.installed.notes.iter().any(|note| note.contains("bypassrls")));
    let key = database.sign_up("after@example.org").await;
    let replicate = "set session_replication_role = replica; insert into public.users (email) values";
    run(&admin, &format!("{replicate} ('missed')")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.requested), (1, 0), "{report:?}");
    let unread = report.unread.expect("it could not be read");
    assert!(unread.kind() == Kind::Rights && unread.advice().expect("a hint").contains("bypassrls"), "{unread:?}");
    assert_eq!(stands(&database, &key).await.expect("made").0, "ready");

    run(&admin, "alter role tenantd bypassrls").await;
    let report = fleet.sweep().await;
    assert!(report.unread.is_none() && report.requested == 0 && report.made == 0, "{report:?}");
    let held = tenants(&database).await.into_iter().filter(|tenant| tenant.2 == "held").count();
    assert_eq!(held, 2, "nobody can tell those from before from those missed until now");
    run(&admin, &format!("{replicate} ('missed later')")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (1, 1), "{report:?}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a key that signs up again after its tenant was deleted is requested anew, by either trigger. Method: the state is written by hand,
/// beside a ready one, which stays as it is.
#[tokio::test]
async fn a_deleted_tenant_that_signs_up_again_is_requested_anew() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let admin = database.superuser().await;
    let ready = database.sign_up("ready@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let key = "5a0c6e5e-9a3f-4a53-8f39-0a6f1a6f0001";
    let delete = "delete from public.users; update tenantd.tenant set state = 'deleted', work = 'idle', version = 1, failures = 3";
    let again = format!("insert into public.users (id, email) values ('{key}', 'again@example.org')");
    run(&admin, &again).await;
    assert_eq!(fleet.context.registry.take_all_in().await.expect("take in"), 1);
    for by_row in [false, true] {
        if by_row {
            run(&admin, "create table public.child () inherits (public.users); grant select (id), trigger on public.child to tenantd").await;
            make_room(&admin).await;
            fleet.context.registry.mend(&fleet.context.config).await.expect("mend");
        }
        run(&admin, &format!("{delete} where key = '{key}'")).await;
        run(&admin, &again).await;
        assert_eq!(fleet.context.registry.take_all_in().await.expect("take in"), 1);
        let row =
            "select (state, work, version is null, failures, due_at <= now())::text from tenantd.tenant where key = ";
        let row: String = one(&admin, &format!("{row}'{key}'")).await;
        assert_eq!(row, "(requested,due,t,0,t)");
        assert_eq!(stands(&database, &ready).await.expect("untouched").0, "ready");
    }
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a text column serves as long as it holds uuids; what is none is parked at once, a null is nobody. Method: one of each, one from before.
#[tokio::test]
async fn text_keys_serve_and_others_are_parked() {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    let table =
        "create table public.users (id text, email text); insert into public.users values ('back\\slash', 'before')";
    replace_users(&database, &["public.users"], table).await;
    let fleet = Fleet::wishing(config(&database, &[("signup.backfill", "true")]), WISHES).await.expect("install");
    let uuid = "5a0c6e5e-9a3f-4a53-8f39-0a6f1a6f0002";
    let insert = format!("insert into public.users values ('{uuid}', 'a'), ('abc', 'b'), (null, 'c'), ('{uuid}', 'd')");
    run(&database.app().await, &insert).await;
    assert_eq!((written(&database).await.0, warnings(&database).len()), (3, 0));
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 1), "{report:?}");
    assert!(report.failed.iter().all(|failed| failed.parked && failed.error.kind() == Kind::BadKey), "{report:?}");
    assert_eq!(stands(&database, "abc").await.expect("a row").1, "parked");
    assert_eq!(stands(&database, "back\\slash").await.expect("a row").1, "held");
    fleet.close().await;
    database.finish().await;
}

/// Goal: names with capitals, spaces and quotes work everywhere. Method: schema, table and column bear such; sign up, miss one, sweep.
#[tokio::test]
async fn odd_names_work() {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    let table = r#"create schema "My App"; create table "My App"."User ""Accounts""" ("Id Of User" uuid primary key default gen_random_uuid());
        grant usage on schema "My App" to tenantd;
        grant select ("Id Of User"), trigger on "My App"."User ""Accounts""" to tenantd"#;
    run(&admin, table).await;
    let settings = [("signup.table", r#""My App"."User ""Accounts""""#), ("signup.id_column", "Id Of User")];
    let fleet = Fleet::install(&database, &settings).await;
    let insert = r#"insert into "My App"."User ""Accounts""" default values"#;
    run(&admin, insert).await;
    assert_eq!(written(&database).await.0, 1);
    run(&admin, &format!("set session_replication_role = replica; {insert}")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (1, 2), "{report:?}");
    fleet.close().await;
    let again = Fleet::install(&database, &settings).await;
    assert_eq!(again.installed.changes, [""; 0]);
    again.close().await;
    database.finish().await;
}

/// What an attacker who owns the signup table leaves: in `stolen` stands under whose name it was run.
const ATTACK: &str = "
create table public.stolen (by_whom text);
grant insert on public.stolen to public;
create type public.trap as enum ('x');
create function public.steal(public.trap) returns text language plpgsql as
    $$ begin insert into public.stolen values (current_user); return 'x'; end $$;
create cast (public.trap as text) with function public.steal(public.trap);
create function public.steal(text, uuid) returns text language plpgsql as
    $$ begin insert into public.stolen values (current_user); return 'x'; end $$;
create operator public.|| (leftarg = text, rightarg = uuid, function = public.steal);
alter table public.users alter column id drop default;
alter table public.users alter column id type public.trap using 'x'";

async fn thefts(client: &Client) -> String {
    one(client, "select coalesce(string_agg(by_whom, ', '), 'none') from public.stolen").await
}

/// Goal: who owns the signup table cannot run code as tenantd: not by a cast of the column's type, a view in its place, an operator, or
/// temporary tables of our names. Method: set the traps after the installation, sign up, sweep; that the cast is a trap is shown on its maker.
#[tokio::test]
async fn the_owner_of_the_signup_table_cannot_act_as_tenantd() {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    let table = "create table public.users (id uuid default gen_random_uuid(), email text)";
    replace_users(&database, &["public.users"], table).await;
    let fleet = Fleet::install(&database, &[]).await;
    let app = database.app().await;
    run(&app, ATTACK).await;
    run(&app, "create temporary table tenant (key text primary key); create temporary table added (id text)").await;
    run(&app, "insert into public.users values ('x', 'a')").await;
    assert_eq!((thefts(&app).await.as_str(), warnings(&database).len()), ("none", 0));
    assert_eq!(stands(&database, "x").await.expect("a row").1, "due");
    let admin = database.superuser().await;
    run(
        &admin,
        "delete from tenantd.tenant; delete from tenantd.signup; update tenantd.registry set users_held_at = null",
    )
    .await;
    let missing = fleet.request_missing().await;
    assert_eq!((missing.users, thefts(&app).await.as_str()), (1, "none"));
    run(
        &app,
        "alter table public.users rename to real; create view public.users as select id::text as id from public.real",
    )
    .await;
    run(&app, "grant select on public.users to tenantd").await;
    let unread = fleet.sweep().await.unread.expect("it could not be read");
    assert!(unread.kind() == Kind::Usage && thefts(&app).await == "none", "{}", unread.chain());
    run(&app, "select id from public.users").await;
    assert_eq!(thefts(&app).await, "app", "the trap itself works");
    run(&app, "drop view public.users; alter table public.real rename to users").await;
    fleet.close().await;
    database.finish().await;
}
