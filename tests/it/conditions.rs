//! `signup.when`: who counts as a signup, by an insert or by the update that makes the condition true, and what cannot be a condition.

use std::time::{Duration, Instant};

use futures_util::SinkExt;
use tenantd::error::Kind;
use tenantd::registry::Registry;
use tenantd::registry::install::Installed;
use tokio_postgres::Client;

use crate::fleet::{Fleet, config};
use crate::sql::{one, refused, run, server_version, stands, tenants, warnings};
use crate::support::audit::Finding;
use crate::support::database::TestDatabase;

/// Generous: what is bounded is a wait of 0.2 s.
const A_MOMENT: Duration = Duration::from_secs(5);

/// The condition of most tests.
pub const CONFIRMED: &str = "email_confirmed and deleted_at is null";

const COLUMNS: &str =
    "id uuid not null default gen_random_uuid(), email text not null, email_confirmed boolean, deleted_at timestamptz,
    region text not null default 'eu'";

/// The kinds of tables: the statements that make them, and what tenantd needs a right on.
const KINDS: [(&str, &str, &[&str]); 3] = [
    ("email", "create table public.users (COLUMNS, unique (email))", &["users"]),
    (
        "email, region",
        "create table public.users (COLUMNS, unique (email, region)) partition by list (region);
         create table public.users_eu partition of public.users for values in ('eu');
         create table public.users_us partition of public.users default",
        &["users", "users_eu", "users_us"],
    ),
    (
        "email",
        "create table public.users (COLUMNS, unique (email)); create table public.users_us () inherits (public.users)",
        &["users", "users_us"],
    ),
];

/// A database whose users have a condition to fulfil; the application owns them.
pub async fn new() -> TestDatabase {
    of_kind(KINDS[0]).await
}

async fn of_kind((_, create, tables): (&str, &str, &[&str])) -> TestDatabase {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    let admin = database.superuser().await;
    run(&admin, "drop table public.users cascade; grant create on schema public to app; set role app").await;
    run(&admin, &create.replace("COLUMNS", COLUMNS)).await;
    for table in tables {
        let grant = format!("grant select (id, email_confirmed, deleted_at), trigger on public.{table} to tenantd");
        run(&admin, &grant).await;
    }
    database
}

/// Installs with a condition.
pub async fn install(database: &TestDatabase, when: &str) -> Fleet {
    Fleet::install(database, &[("signup.when", when)]).await
}

/// Servers before 14 cannot put a trigger in the place of another: the table's owner drops it, as the hint says.
pub async fn make_room(admin: &Client) {
    if server_version(admin).await < 140_000 {
        let drop = "drop trigger if exists tenantd_signup on public.users; drop trigger if exists tenantd_signup_update on public.users";
        run(admin, drop).await;
    }
}

/// Takes in what was written down, and returns the mails of those that are tenants, in order.
async fn signed_up(fleet: &Fleet, client: &Client) -> String {
    fleet.context.registry.take_all_in().await.expect("take in");
    let mails = "select coalesce(string_agg(u.email, ' ' order by u.email), '') from public.users u join tenantd.tenant t on t.key = u.id::text";
    one(client, mails).await
}

async fn written(client: &Client) -> i64 {
    one(client, "select count(*) from tenantd.signup").await
}

/// Goal: a row that is inserted with the condition true is a signup, and one that an update makes true; false and null are none, neither is an update
/// that changes nothing about it, and nobody is one twice. Method: INSERT, COPY, upsert, MERGE, updates of every kind, on a plain, a partitioned and an
/// inherited table, through parent and leaf; then the sweep, which must agree.
#[tokio::test]
async fn inserted_true_or_made_true_is_a_signup() {
    for kind in KINDS {
        let database = of_kind(kind).await;
        let fleet = install(&database, CONFIRMED).await;
        let app = database.app().await;
        let insert = "insert into public.users (email, email_confirmed, deleted_at) values";
        run(&app, &format!("{insert} ('a', true, null), ('b', false, null), ('c', null, null), ('d', true, now())"))
            .await;
        let copy = app.copy_in("copy public.users (email, email_confirmed) from stdin").await.expect("begin a COPY");
        let mut copy = std::pin::pin!(copy);
        copy.send(&b"e\tt\nf\tf\n"[..]).await.expect("send");
        assert_eq!(copy.finish().await.expect("end the COPY"), 2);
        let (leaf, of_leaf) = if kind.2.len() > 1 { (" g", 1) } else { ("", 0) };
        if of_leaf > 0 {
            run(&app, "insert into public.users_us (email, email_confirmed, region) values ('g', true, 'us'), ('h', false, 'us')").await;
        }
        let admin = database.superuser().await;
        assert_eq!(signed_up(&fleet, &admin).await, format!("a e{leaf}"));

        run(&app, "update public.users set email_confirmed = true where email in ('a', 'b')").await;
        assert_eq!(written(&admin).await, 1, "b alone: a was one already");
        run(&app, "update public.users set email_confirmed = false where email = 'b'").await;
        run(&app, "update public.users set email_confirmed = null where email = 'b'").await;
        run(&app, "update public.users set email = 'z', region = region where email = 'c'").await;
        run(&app, "update public.users set id = gen_random_uuid() where email = 'z'").await;
        assert_eq!(written(&admin).await, 1);
        run(&app, "update public.users set deleted_at = null where email = 'd'").await;
        let upsert = format!(
            "on conflict ({}) do update set email_confirmed = excluded.email_confirmed returning email",
            kind.0
        );
        run(&app, &format!("{insert} ('f', true, null), ('i', true, null), ('j', false, null) {upsert}")).await;
        if server_version(&admin).await >= 150_000 {
            let merge = "merge into public.users u using (values ('j'), ('k')) v (email) on u.email = v.email
                         when matched then update set email_confirmed = true
                         when not matched then insert (email, email_confirmed) values (v.email, true)";
            run(&app, merge).await;
        } else {
            run(
                &app,
                &format!(
                    "update public.users set email_confirmed = true where email = 'j'; {insert} ('k', true, null)"
                ),
            )
            .await;
        }
        run(&app, "begin; update public.users set email_confirmed = true where email = 'z'; rollback").await;
        assert_eq!(signed_up(&fleet, &admin).await, format!("a b d e f{leaf} i j k"));
        let all: i64 = one(&admin, "select count(*) from tenantd.tenant").await;
        run(&app, "update public.users set email_confirmed = false; update public.users set email_confirmed = true where email <> 'z'").await;
        fleet.context.registry.take_all_in().await.expect("take in");
        assert_eq!(one::<i64>(&admin, "select count(*) from tenantd.tenant").await, all + of_leaf, "h alone is new");
        run(&app, "delete from public.users where email = 'a'").await;
        let missing = fleet.request_missing().await;
        assert_eq!((missing.users, warnings(&database).len()), (0, 0), "the sweep agrees");
        fleet.close().await;
        let again = install(&database, CONFIRMED).await;
        assert_eq!(again.installed.changes, [""; 0]);
        again.close().await;
        drop((app, admin));
        database.finish().await;
    }
}

async fn try_install(database: &TestDatabase, when: &str) -> tenantd::error::Result<(Registry, Installed)> {
    use tenantd::pg::Server;
    use tenantd::registry::Worker;
    let config = config(database, &[("signup.when", when)]);
    let server = Server::new(config.main.clone(), tenantd::tasks::Tasks::new());
    Registry::install(&server, &config, crate::fleet::WISHES, &Worker::new("test", "test", "test", 2, &config.tenant))
        .await
}

/// What cannot be a condition, each with a part of what is said of it.
const REFUSED: [(&str, &str); 32] = [
    ("email_confirmd", "column \"email_confirmd\" does not exist"),
    ("email", "its value is of type text, not boolean"),
    ("'yes'", "its value is of type text, not boolean"),
    ("(email_confirmed, email_confirmed)", "not boolean"),
    ("email_confirmed, email_confirmed", "it is several values, not one"),
    ("true", "it reads no column"),
    ("email_confirmed and", "syntax error"),
    ("email_confirmed) or (email_confirmed", "syntax error"),
    ("email_confirmed] || array[email_confirmed", "syntax error"),
    ("email_confirmed) execute function tenantd.wait(); --", "syntax error"),
    ("email_confirmed; drop table public.users", "syntax error"),
    ("email_confirmed from public.users", "syntax error"),
    ("email_confirmed /*", "unterminated"),
    ("email = 'a", "unterminated"),
    ("email = $1", "there is no parameter $1"),
    ("exists (select from public.users)", "it reads no column"),
    ("id in (select id from public.users)", "it reads more than the row"),
    ("count(email) > 1", "it holds an aggregate"),
    ("row_number() over (order by email) > 1", "it reads more than the row"),
    ("random() > 0.5 and email_confirmed", "it depends on more than the row"),
    ("deleted_at < now()", "it depends on more than the row"),
    ("email = current_user", "it depends on more than the row"),
    ("xmin = '1' and email_confirmed", "it reads more than the row"),
    ("new is not null and email_confirmed", "the row as a whole"),
    (
        "10 / length(email) > 1",
        "it could fail for some row, and the application's statement with it: it uses operator /",
    ),
    ("email::int > 1", "coerceviaio"),
    ("case when email_confirmed then true else false end", "case"),
    ("public.mine(email)", "it uses what is not the server's own: function public.mine(text)"),
    ("email = 'a@b'::public.mail", "type public.mail"),
    ("code = other", "two collations that contradict each other"),
    ("email like code", "LIKE with a pattern that is no constant"),
    ("email not like 'a%\\'", "LIKE with a pattern that is no constant or ends in a backslash"),
];

/// Goal: what cannot be a condition is refused as a setting that cannot be, in words that a person understands, and before anything is changed; nothing of
/// what it would do is done. Method: one of each kind; a function that would tell.
#[tokio::test]
async fn what_cannot_be_a_condition_is_refused() {
    let database = new().await;
    let app = database.app().await;
    run(
        &app,
        "create table public.told (by_whom text); grant insert on public.told to public; create domain public.mail as text check (value like '%@%');
         create function public.mine(text) returns boolean language plpgsql immutable as
             $$ begin insert into public.told values (current_user); return true; end $$;
         alter table public.users add column code text collate \"C\", add column other text collate \"POSIX\";
         insert into public.users (email, email_confirmed) values ('a', true)",
    )
    .await;
    for (when, part) in REFUSED {
        let error = try_install(&database, when).await.map(drop).expect_err(when);
        let said = error.chain();
        assert!(error.kind() == Kind::Usage && error.advice().is_some(), "{when}: {said}");
        assert!(
            said.starts_with(&format!("take signup.when = {when:?} as a condition")) && said.contains(part),
            "{when}: {said}"
        );
    }
    let left = "select count(*) from pg_class where relnamespace = 'tenantd'::regnamespace";
    assert_eq!(
        one::<i64>(&database.superuser().await, left).await,
        0,
        "nothing was made, and nothing is left of compiling"
    );
    assert_eq!(one::<i64>(&app, "select count(*) from public.told").await, 0);
    drop(app);
    database.finish().await;
}

/// What people write, each with the values of (status, plan, settings, "Odd "" Name", new) that fulfil it, and some that do not.
const TAKEN: [(&str, &str, &str); 15] = [
    ("status = 'paid'", "'paid', null, null, null, null", "'new', 'trial', null, null, null"),
    (
        "status = 'it''s (new.status) $$' -- why",
        "'it''s (new.status) $$', null, null, null, null",
        "'its', null, null, null, null",
    ),
    (
        "/* ) */ status in ('paid', 'old')\n  and not status = 'old'",
        "'paid', null, null, null, null",
        "'old', null, null, null, null",
    ),
    ("plan = 'pro'", "null, 'pro', null, null, null", "null, 'trial', null, null, null"),
    ("plan in ('pro', 'team') and status is null", "null, 'team', null, null, null", "'x', 'team', null, null, null"),
    ("plan > 'trial'", "null, 'pro', null, null, null", "null, 'trial', null, null, null"),
    ("settings ->> 'beta' = 'on'", "null, null, '{\"beta\": \"on\"}', null, null", "null, null, '[1]', null, null"),
    ("settings @> '{\"a\": 1}'", "null, null, '{\"a\": 1}', null, null", "null, null, '3', null, null"),
    ("status like '%@acme.example'", "'x@acme.example', null, null, null, null", "'acme', null, null, null, null"),
    ("lower(coalesce(status, 'paid')) <> 'free'", "null, null, null, null, null", "'FREE', null, null, null, null"),
    ("\"Odd \"\" Name\" > 3", "null, null, null, 4, null", "null, null, null, 3, null"),
    ("\"new\" is not true is not true", "null, null, null, null, true", "null, null, null, null, false"),
    ("new.new and new.status is not null", "'', null, null, null, true", "null, null, null, null, true"),
    ("customer", "'4', null, null, null, null", "'x', null, null, null, null"),
    (
        "status not ilike all ('{%.test,%.example}') and status like any (array['%a', '%b'])",
        "'cb', null, null, null, null",
        "'b.test', null, null, null, null",
    ),
];

/// Goal: what people write is taken, means the same to triggers and sweeps, and is put there once. Method: each on a table with columns of every kind and odd
/// names; a row of each sort, inserted and updated with the triggers and without; a second installation finds nothing to do.
#[tokio::test]
async fn what_people_write_is_taken() {
    let database = new().await;
    let app = database.app().await;
    run(
        &app,
        "drop table public.users; create type public.plan as enum ('trial', 'pro', 'team');
         create table public.users (id uuid default gen_random_uuid(), email text, status varchar(40), plan public.plan, settings jsonb,
             \"Odd \"\" Name\" numeric, new boolean,
             customer boolean generated always as (status ~ '^[0-9]+$') stored);
         grant select, trigger on public.users to tenantd",
    )
    .await;
    let admin = database.superuser().await;
    let columns = "status, plan, settings, \"Odd \"\" Name\", new";
    for (when, fulfils, not) in TAKEN {
        run(&app, "truncate public.users").await;
        make_room(&admin).await;
        install(&database, when).await.close().await;
        let fleet = install(&database, when).await;
        assert_eq!(fleet.installed.changes, [""; 0], "{when}");
        run(&admin, "truncate tenantd.tenant, tenantd.signup").await;
        let insert = |mail: &str, values: &str| {
            format!("insert into public.users (email, {columns}) values ('{mail}', {values});")
        };
        run(&app, &format!("{}{}{}", insert("a", fulfils), insert("b", not), insert("c", not))).await;
        assert_eq!(signed_up(&fleet, &admin).await, "a", "{when}");
        run(&app, &format!("update public.users set ({columns}) = ({fulfils}) where email <> 'b'")).await;
        assert_eq!(written(&admin).await, 1, "{when}");
        assert_eq!(signed_up(&fleet, &admin).await, "a c", "{when}");
        run(
            &admin,
            &format!(
                "set session_replication_role = replica; {}{} reset session_replication_role",
                insert("d", fulfils),
                insert("e", not)
            ),
        )
        .await;
        let missing = fleet.request_missing().await;
        assert_eq!((missing.users, missing.held), (1, false), "{when}");
        assert_eq!(signed_up(&fleet, &admin).await, "a c d", "{when}");
        fleet.close().await;
    }
    assert_eq!(warnings(&database), [""; 0]);
    drop((app, admin));
    database.finish().await;
}

/// Goal: an update that confirms ten thousand commits and forgets none; while the registry is locked it waits once and commits all the same, and the sweep
/// finds them. Method: both, timed.
#[tokio::test]
async fn ten_thousand_confirmed_at_once() {
    let database = new().await;
    let fleet = install(&database, CONFIRMED).await;
    let admin = database.superuser().await;
    run(&admin, "insert into public.users (email) select n::text from generate_series(1, 10000) n").await;
    let begin = Instant::now();
    run(&admin, "update public.users set email_confirmed = true").await;
    println!("10,000 rows confirmed in one update: {:?}", begin.elapsed());
    assert_eq!(written(&admin).await, 10_000);
    run(&admin, "delete from tenantd.signup; update public.users set email_confirmed = false").await;
    let locker = database.superuser().await;
    run(&locker, "begin; lock table tenantd.signup in access exclusive mode").await;
    let app = database.app().await;
    let begin = Instant::now();
    run(&app, "update public.users set email_confirmed = true where email <= '11'").await;
    assert!(begin.elapsed() < A_MOMENT, "{:?}", begin.elapsed());
    run(&locker, "rollback").await;
    let confirmed: i64 = one(&admin, "select count(*) from public.users where email_confirmed").await;
    assert_eq!((written(&admin).await, warnings(&database).len()), (0, 1));
    let missing = fleet.request_missing().await;
    assert_eq!((missing.users, missing.held), (confirmed, false));
    fleet.close().await;
    drop((app, admin, locker));
    database.finish().await;
}

/// Goal: a signup by an update rings as one by an insert does, and one that is none does not. Method: a two-phase commit, which Postgres refuses to whoever
/// has rung, while somebody holds the bell's lock as a sleeping daemon does.
#[tokio::test]
async fn a_signup_by_update_rings() {
    let database = new().await;
    let fleet = Fleet::install(&database, &[("signup.when", CONFIRMED), ("signup.notify", "true")]).await;
    let (app, sleeper) = (database.app().await, database.tenantd().await);
    run(&app, "insert into public.users (email) values ('a'), ('b')").await;
    run(&sleeper, "select pg_advisory_lock(20250, 1)").await;
    let prepare = format!("prepare transaction '{}'", database.name());
    run(
        &app,
        "begin; update public.users set email = 'c' where email = 'b'; insert into public.users (email) values ('d')",
    )
    .await;
    run(&app, &prepare).await;
    run(&app, &format!("commit prepared '{}'", database.name())).await;
    run(&app, "begin; update public.users set email_confirmed = true where email = 'a'").await;
    assert_eq!(refused(&app, &prepare).await, "0A000", "it has rung");
    drop((sleeper, app));
    fleet.close().await;
    database.finish().await;
}

/// Goal: nobody of before who does not fulfil the condition is held, and each comes by the update that makes it true; whoever fulfilled it is held, also
/// when it toggles. Method: one of each before the installation.
#[tokio::test]
async fn users_from_before_are_held_by_the_condition() {
    let database = new().await;
    let app = database.app().await;
    run(&app, "insert into public.users (email, email_confirmed) values ('true', true), ('false', false)").await;
    let fleet = install(&database, CONFIRMED).await;
    let key = async |mail: &str| {
        one::<String>(&app, &format!("select id::text from public.users where email = '{mail}'")).await
    };
    let (held, later) = (key("true").await, key("false").await);
    assert!(fleet.installed.changes.contains(&"held 1 users from before".to_owned()), "{:?}", fleet.installed.changes);
    assert_eq!(tenants(&database).await, [(held.clone(), "requested".to_owned(), "held".to_owned())]);
    run(&app, "update public.users set email_confirmed = not email_confirmed").await;
    run(&app, "update public.users set email_confirmed = true").await;
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made), (0, 1), "{report:?}");
    assert_eq!(stands(&database, &later).await, Some(("ready".to_owned(), "idle".to_owned())));
    assert_eq!(stands(&database, &held).await, Some(("requested".to_owned(), "held".to_owned())));
    fleet.close().await;
    drop(app);
    database.finish().await;
}
