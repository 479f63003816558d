//! Every way that a user is inserted, with every way that the insert ends: who is there at the end has a tenant, and nobody else.

use std::collections::BTreeSet;

use futures_util::SinkExt;
use tokio_postgres::Client;

use crate::fleet::Fleet;
use crate::sql::{one, run, warnings};
use crate::support::count::times;
use crate::support::database::TestDatabase;

/// How rows come in.
#[derive(Debug, Clone, Copy)]
enum Path {
    One,
    Several,
    Select,
    Copy,
    NothingOnConflict,
    UpdateOnConflict,
    Merge,
    With,
    View,
    Function,
    Prepared,
}

const PATHS: [Path; 11] = [
    Path::One,
    Path::Several,
    Path::Select,
    Path::Copy,
    Path::NothingOnConflict,
    Path::UpdateOnConflict,
    Path::Merge,
    Path::With,
    Path::View,
    Path::Function,
    Path::Prepared,
];

/// How their transaction ends: what comes before, and after.
const ENDS: [(&str, &str); 7] = [
    ("", ""),
    ("begin", "commit"),
    ("begin", "rollback"),
    ("begin; savepoint s", "rollback to s; commit"),
    ("begin; savepoint s", "release s; commit"),
    ("begin; savepoint s; savepoint t", "release t; rollback to s; release s; commit"),
    ("begin isolation level serializable", "commit"),
];

const COLUMNS: &str =
    "id uuid not null default gen_random_uuid(), email text not null, region text not null default 'eu'";

/// The kinds of tables: the statements that make them, and what tenantd needs a right on.
const KINDS: [(&str, &str, &[&str]); 3] = [
    ("plain", "create table public.users (COLUMNS, unique (email))", &["users"]),
    (
        "partitioned",
        "create table public.users (COLUMNS, unique (email, region)) partition by list (region);
         create table public.users_eu partition of public.users for values in ('eu');
         create table public.users_us partition of public.users default",
        &["users", "users_eu", "users_us"],
    ),
    (
        "inherited",
        "create table public.users (COLUMNS, unique (email)); create table public.users_eu () inherits (public.users)",
        &["users", "users_eu"],
    ),
];

/// Inserts by `path`; mails differ by `number`, but for two that are there already where the path is about conflicts.
async fn insert(app: &Client, path: Path, number: usize, unique: &str) {
    let values = format!("('{number} a'), ('{number} b')");
    let insert = "insert into public.users (email)";
    let sql = match path {
        Path::One => format!("{insert} values ('{number} a')"),
        Path::Several => format!("{insert} values {values}"),
        Path::Select => format!("{insert} select '{number} ' || n from generate_series(1, 5) n"),
        Path::NothingOnConflict => format!("{insert} values ('there'), ('{number} a') on conflict do nothing"),
        Path::UpdateOnConflict => {
            format!(
                "{insert} values ('there'), ('{number} a') on conflict ({unique}) do update set email = excluded.email"
            )
        }
        Path::Merge => format!(
            "merge into public.users u using (values ('there'), ('{number} a')) v (email) on u.email = v.email
             when matched then update set email = u.email when not matched then insert (email) values (v.email)"
        ),
        Path::With => format!("with added as ({insert} values {values} returning id) select count(*) from added"),
        Path::View => format!("insert into public.as_view (email) values {values}"),
        Path::Function => format!("select public.add_user('{number} a'), public.add_user('{number} b')"),
        Path::Prepared => {
            format!("prepare p as {insert} values ($1); execute p('{number} a'); execute p('{number} b'); deallocate p")
        }
        Path::Copy => {
            let copy = app.copy_in("copy public.users (email) from stdin").await.expect("begin a COPY");
            let mut copy = std::pin::pin!(copy);
            copy.send(std::io::Cursor::new(format!("{number} a\n{number} b\n").into_bytes())).await.expect("send");
            copy.finish().await.expect("end the COPY");
            return;
        }
    };
    run(app, &sql).await;
}

async fn keys(client: &Client, sql: &str) -> BTreeSet<String> {
    client.query(sql, &[]).await.expect("read").iter().map(|row| row.get(0)).collect()
}

/// Goal: every committed user is recorded, whichever way it came in and however its transaction went, and nobody that was rolled back. Method: eleven
/// ways, each with seven ends, into a plain, a partitioned and an inherited table; an error within a function that catches it; sets compared.
#[tokio::test]
async fn whoever_is_there_is_recorded_and_nobody_else() {
    for (kind, create, tables) in KINDS {
        let database = TestDatabase::new().await;
        let admin = database.superuser().await;
        run(&admin, "drop table public.users cascade").await;
        run(&admin, &create.replace("COLUMNS", COLUMNS)).await;
        for table in tables {
            let grant = format!(
                "grant select (id), trigger on public.{table} to tenantd; grant select, insert, update on public.{table} to app"
            );
            run(&admin, &grant).await;
        }
        run(
            &admin,
            "create view public.as_view as select email from public.users; grant insert on public.as_view to app;
             create function public.add_user(mail text) returns void language plpgsql as $$ begin
                 insert into public.users (email) values (mail);
                 begin
                     insert into public.users (email) values (mail || ' caught');
                     raise exception 'caught';
                 exception when raise_exception then
                 end;
             end $$",
        )
        .await;
        let fleet = Fleet::install(&database, &[]).await;
        let version: i32 = one(&admin, "select current_setting('server_version_num')::int").await;
        let unique = if kind == "partitioned" { "email, region" } else { "email" };
        let app = database.app().await;
        run(&app, "insert into public.users (email) values ('there')").await;
        let mut number = 0;
        for _ in 0..times(1, 20) {
            for path in PATHS {
                if matches!(path, Path::Merge) && version < 150_000 {
                    continue;
                }
                for (before, after) in ENDS {
                    number += 1;
                    run(&app, before).await;
                    insert(&app, path, number, unique).await;
                    run(&app, after).await;
                }
            }
        }
        for table in &tables[1..] {
            run(
                &app,
                &format!(
                    "insert into public.{table} (email, region) values ('{table} directly', substr('{table}', 7))"
                ),
            )
            .await;
        }
        while fleet.context.registry.take_all_in().await.expect("take in") > 0 {}
        let users = keys(&admin, "select id::text from public.users").await;
        assert_eq!(keys(&admin, "select key from tenantd.tenant").await, users, "{kind}");
        assert!(users.len() > number && warnings(&database).is_empty(), "{kind}: {} users", users.len());
        assert_eq!(one::<i64>(&admin, "select count(*) from public.users where email like '% caught'").await, 0);
        let missing = fleet.request_missing().await;
        assert_eq!(missing.users, 0, "{kind}: the sweep finds nobody that the trigger missed");
        fleet.close().await;
        drop((admin, app));
        database.finish().await;
    }
}
