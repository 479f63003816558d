//! Who may do what: the roles of the application, of strangers and of the tenants' owners, tried one by one.

use std::collections::BTreeSet;

use tenantd::config::Isolation;

use crate::fleet::{Fleet, enter, execute, oid};
use crate::life;
use crate::sql::{one, refused, run, server_version};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

/// Every right on anything in the schema of the registry that `role` has, one a row, as the catalogue knows it.
const RIGHTS: &str = "
select kind || ' ' || name || ': ' || may from (
    select 'schema' as kind, nspname::text as name, may from pg_namespace, unnest(array['usage', 'create']) may
    where nspname = 'tenantd' and has_schema_privilege($1, oid, may)
    union all
    select 'relation', relname, may from pg_class, unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) may
    where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') and has_table_privilege($1, oid, may)
    union all
    select 'column', c.relname || '.' || a.attname, may
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0, unnest(array['select', 'insert', 'update', 'references']) may
    where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') and has_column_privilege($1, c.oid, a.attnum, may)
    and not has_table_privilege($1, c.oid, may)
    union all
    select 'sequence', relname, may from pg_class, unnest(array['usage', 'select', 'update']) may
    where relnamespace = 'tenantd'::regnamespace and relkind = 'S' and has_sequence_privilege($1, oid, may)
    union all
    select 'function', proname, 'execute' from pg_proc where pronamespace = 'tenantd'::regnamespace and has_function_privilege($1, oid, 'execute')
) found order by 1";

/// Goal: the application may read the view and wait, the others nothing, of whatever the schema holds now or later; functions that run as tenantd have
/// a search path of their own. Method: the catalogue's word for each table, column, sequence and function and each right, for each role; and tried.
#[tokio::test]
async fn nobody_has_a_right_more_in_the_registry() {
    let database = TestDatabase::new().await;
    let mut settings = vec![("signup.on_delete", "drop")];
    if database.isolation() == Isolation::Database {
        settings.extend([("spares.max", "1"), ("spares.min", "1"), ("signup.handover", "commit")]);
    }
    let fleet = Fleet::install(&database, &settings).await;
    let admin = database.superuser().await;
    let expected = ["function wait: execute", "relation tenants: select", "schema tenantd: usage"];
    for (role, expected) in [("app", &expected[..]), ("stranger", &[]), ("tenant_owner", &[]), ("public", &[])] {
        let rows = admin.query(RIGHTS, &[&role]).await.expect("look");
        let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, expected, "{role}");
    }
    let things: i64 = one(
        &admin,
        "select count(*) from pg_class where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'v', 'S')",
    )
    .await;
    assert!(things > 12, "{things} are looked at");
    let open = "select coalesce(string_agg(proname, ' '), 'none') from pg_proc where pronamespace = 'tenantd'::regnamespace
                and (prosecdef or prolang <> 14) and not coalesce(proconfig::text like '%search_path=pg_catalog, pg_temp%', false)";
    assert_eq!(one::<String>(&admin, open).await, "none", "functions without a search path of their own");

    let key = database.sign_up("one@example.org").await;
    let app = database.app().await;
    assert_eq!(one::<i64>(&app, "select count(*) from tenantd.tenants").await, 1);
    let tables = "select relname::text from pg_class where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'v') and relname <> 'tenants'";
    for row in admin.query(tables, &[]).await.expect("list") {
        let table: String = row.get(0);
        for tried in [
            "table tenantd.X",
            "insert into tenantd.X default values",
            "delete from tenantd.X",
            "truncate tenantd.X",
            "create trigger t after insert on tenantd.X execute function tenantd.signup()",
        ] {
            let refused = refused(&app, &tried.replace('X', &table)).await;
            assert!(["42501", "42809", "55000"].contains(&refused.as_str()), "{tried} {table}: {refused}");
        }
    }
    for tried in [
        "create table tenantd.mine ()",
        "create function tenantd.wait(uuid) returns text language sql as 'select 1'",
        "create temporary table users (id uuid); create trigger t after insert on users referencing new table as added for each statement execute function tenantd.signup()",
        "create trigger mine after insert on public.users for each row execute function tenantd.signup()",
        "alter table public.users disable trigger tenantd_signup",
        "drop trigger tenantd_signup on public.users",
        "set role tenantd",
        "set role tenant_owner",
        "set session_replication_role = replica",
        "grant tenant_owner to app",
        "create database mine",
    ] {
        assert_eq!(refused(&app, tried).await, "42501", "{tried}");
    }
    if server_version(&admin).await >= 140_000 {
        let tried = "create or replace trigger tenantd_signup after insert on public.users for each row execute function tenantd.signup()";
        assert_eq!(refused(&app, tried).await, "42501");
    }
    assert!(!key.is_empty());
    drop((admin, app));
    fleet.close().await;
    database.finish().await;
}

const PASSWORD: &str = "swordfish-of-one";

/// What needs no connection to the database `N`; `O` is a role. The last two a schema has not.
const FROM_OUTSIDE: [&str; 7] = [
    "drop database N",
    "alter database N rename to mine",
    "comment on database N is 'mine'",
    "alter database N owner to \"O\"",
    "grant connect on database N to public",
    "alter database N set search_path = 'x'",
    "create database mine template N",
];

/// Tries each statement from outside as `role` on each of `names`.
async fn may_change_none(database: &TestDatabase, role: &str, names: impl Iterator<Item = &String>) {
    let client = database.tenants_superuser().await;
    run(&client, &format!("set role \"{role}\"")).await;
    let tried = if database.isolation() == Isolation::Database { &FROM_OUTSIDE[..] } else { &FROM_OUTSIDE[..5] };
    for name in names {
        for tried in tried {
            let sql = database.meant(&tried.replace('N', &format!("\"{name}\"")).replace('O', role));
            assert_eq!(refused(&client, &sql).await, "42501", "{sql}");
        }
    }
}

/// Goal: roles that own one tenant each reach that one and no other, nor a template, a spare or what was set aside; and tenantd itself works on without a
/// right more. Method: a role for each tenant; every pair of role and database tried, every statement that needs no connection too.
#[tokio::test]
async fn who_owns_one_tenant_reaches_no_other() {
    let database = TestDatabase::new().await;
    let number = times(4, 30);
    let program = Program::for_database(&database).setting("spares.min", "1").setting("spares.max", "1");
    let keys = life::tenants(&database, &program, number + 1).await;
    assert_eq!(program.run(&["drop", &keys[number], "--skip-backup"]).await.code(), 0);
    let admin = database.superuser().await;
    let names: Vec<String> = keys[..number].iter().map(|key| database.tenant_name(key)).collect();
    let roles: Vec<String> = names.iter().map(|name| format!("own_{name}")).collect();
    let mut refusals = 0;
    for (role, name) in roles.iter().zip(&names) {
        run(
            &admin,
            &database.meant(&format!(
                "create role \"{role}\" login password '{PASSWORD}'; alter database \"{name}\" owner to \"{role}\""
            )),
        )
        .await;
    }
    let hidden = "select name from tenantd.template union all select name from tenantd.spare union all select name from tenantd.dropped";
    let hidden: Vec<String> = admin.query(hidden, &[]).await.expect("list").iter().map(|row| row.get(0)).collect();
    let by_schema = database.isolation() == Isolation::Schema;
    assert!(hidden.len() >= if by_schema { 1 } else { 2 }, "a template and what was dropped: {hidden:?}");
    for role in &roles {
        let url =
            database.stranger_url().replacen("stranger:swordfish%2Dof%2Dstranger", &format!("{role}:{PASSWORD}"), 1);
        assert!(url.contains(role));
        for name in names.iter().chain(&hidden) {
            match enter(&database, &url, name).await {
                Ok(session) => {
                    assert_eq!(format!("own_{name}"), *role);
                    session.close().await;
                }
                Err(error) => {
                    assert!(error.code() == Some("42501") || hidden.contains(name), "{role} {name}: {}", error.chain());
                    refusals += 1;
                }
            }
        }
    }
    assert_eq!(refusals, number * (number - 1) + number * hidden.len());
    may_change_none(&database, &roles[0], names[1..].iter().chain(&hidden)).await;
    // They are given back, as the sweep would find them.
    let before: BTreeSet<_> =
        futures_util::future::join_all(names.iter().map(|name| oid(&database, name))).await.into_iter().collect();
    for (role, name) in roles.iter().zip(&names) {
        database.outside(&format!("alter database \"{name}\" owner to tenant_owner")).await;
        run(&admin, &format!("drop role \"{role}\"")).await;
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    let after: BTreeSet<_> =
        futures_util::future::join_all(names.iter().map(|name| oid(&database, name))).await.into_iter().collect();
    assert_eq!(before, after);
    drop(admin);
    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 0);
    database.finish().await;
}
