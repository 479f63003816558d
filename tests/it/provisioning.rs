//! From a registry row to a tenant that the application works in: whose it is, and who may do what in it.

use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::tenant::Marker;

use crate::fleet::{Fleet, enter, execute, half_made, oid, row, write_migrations};
use crate::sql::server_version;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;

/// The password of the roles that tests here make.
const PASSWORD: &str = "swordfish-of-a-role";

/// A login role for one test, with a name that must be quoted wherever it stands.
async fn odd_role(database: &TestDatabase) -> (String, String) {
    let name = format!("Odd \"{}\" $tenantd$; o'clock", database.prefix());
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    execute(database, &format!("create role {quoted} login password '{PASSWORD}'")).await;
    (name, quoted)
}

/// A URL for `role` to the test's server.
fn url(database: &TestDatabase, role: &str) -> String {
    let role = percent_encoding::utf8_percent_encode(role, percent_encoding::NON_ALPHANUMERIC);
    database.stranger_url().replacen("stranger:swordfish%2Dof%2Dstranger", &format!("{role}:{PASSWORD}"), 1)
}

async fn drop_role(server: &TestServer, quoted: &str) {
    server.superuser("postgres").await.batch_execute(&format!("drop role {quoted}")).await.expect("drop the role");
}

/// The SQLSTATE that `sql` fails with.
async fn refused(session: &tenantd::pg::Session, sql: &str) -> Option<String> {
    let error = session.batch_execute(sql).await.expect_err(sql);
    error.code().map(|code| code.code().to_owned())
}

/// What nobody but the owner may do in a tenant. Before Postgres 15 whoever may connect may make tables in `public`, and only a superuser can take that
/// right away.
async fn making(database: &TestDatabase) -> Option<&'static str> {
    (server_version(&database.superuser().await).await >= 150_000).then_some("create table mine ()")
}

/// Goal: a signup becomes a database that `app` works in and nobody else enters. Method: sign up, sweep, look, and try as each role.
#[tokio::test]
async fn a_signup_becomes_a_database() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    let name = database.tenant_name(&key);
    assert_eq!(database.tenant_databases().await, [name.as_str()]);

    let admin = database.superuser().await;
    let select = format!(
        "select owner, marker, (select string_agg(concat_ws(' ', r.rolname, privilege_type), ', ' order by 1)
                                from aclexplode(acl) left join pg_roles r on r.oid = grantee where grantee <> (select oid from pg_roles where rolname = owner))
         from {} p where name = $1",
        database.place(&admin).await
    );
    let seen = admin.query_one(&select, &[&name]).await.expect("look");
    assert_eq!(seen.get::<_, String>(0), "tenant_owner");
    assert_eq!(seen.get::<_, String>(1), Marker::of(fleet.registry().id, &key).to_string());
    let enters = if database.isolation() == Isolation::Database { "app CONNECT" } else { "app USAGE" };
    assert_eq!(seen.get::<_, String>(2), enters, "nothing for PUBLIC, and for app no more than to enter");
    if database.isolation() == Isolation::Database {
        let open = "select datallowconn and datconnlimit = -1 from pg_database where datname = $1";
        assert!(admin.query_one(open, &[&name]).await.expect("look").get::<_, bool>(0));
    }
    drop(admin);

    let recorded = row(&database, &key).await;
    assert_eq!((recorded["state"].as_str(), recorded["work"].as_str()), (Some("ready"), Some("idle")));
    assert_eq!((recorded["version"].as_i64(), recorded["failures"].as_i64()), (Some(1), Some(0)));
    assert_eq!(recorded["database_oid"].as_str().and_then(|oid| oid.parse().ok()), oid(&database, &name).await);
    let spares: i64 = {
        let count = "select count(*) from tenantd.spare";
        database.superuser().await.query_one(count, &[]).await.expect("count").get(0)
    };
    assert_eq!(spares, 0, "nothing is left in tenantd.spare");

    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    app.batch_execute("insert into log_message (message) values ('hello')").await.expect("app may write");
    let said: String = app.query_one("select message from log_message", &[]).await.expect("app may read").get(0);
    assert_eq!(said, "hello");
    app.batch_execute("select version from tenantd_migration").await.expect("app may see what was applied");
    let changes =
        ["update tenantd_migration set version = 9", "delete from tenantd_migration", "truncate tenantd_migration"];
    for sql in changes.into_iter().chain(making(&database).await) {
        assert_eq!(refused(&app, sql).await.as_deref(), Some("42501"), "{sql}");
    }
    let stranger = enter(&database, &database.stranger_url(), &name).await.expect_err("a stranger may not enter");
    assert_eq!(stranger.code(), Some("42501"), "{}", stranger.chain());
    app.close().await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: whatever migrations make, the roles of `tenant.use` can work with. Method: migrations with sequences, an identity column, a view
/// and a schema of their own; `app` uses each, and what was there before the second set too.
#[tokio::test]
async fn the_application_can_use_what_migrations_make() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    // A schema of its own, where it has a database of its own.
    let own = database.isolation() == Isolation::Database;
    let placed = |sql: &str| sql.replace("extra.", if own { "extra." } else { "" });
    let first = "create table counted (id serial primary key, number bigint generated by default as identity);
                 create table extra.thing (id bigserial primary key, name text);
                 create sequence extra.loose;";
    let first = placed(&format!("{}{first}", if own { "create schema extra;" } else { "" }));
    write_migrations(folder.path(), &[("0001_first.sql", &first)]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    let key = database.sign_up("one@example.org").await;
    fleet.sweep().await;
    fleet.close().await;
    let second = placed("create view extra.names as select name from extra.thing;");
    write_migrations(folder.path(), &[("0002_second.sql", &second)]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    assert_eq!(fleet.sweep().await.migrated, 1);

    let app = enter(&database, &database.app_url(), &database.tenant_name(&key)).await.expect("app may enter");
    for sql in [
        "insert into counted default values",
        "insert into extra.thing (name) values ('a')",
        "select nextval('extra.loose')",
        "select * from extra.names",
        "update extra.thing set name = 'b'",
        "delete from extra.thing",
    ] {
        app.batch_execute(&placed(sql)).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    app.close().await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: a role of `tenant.connect` enters and can do no more, whatever its name. Method: one with a name full of signs.
#[tokio::test]
async fn a_role_that_may_connect_can_only_connect() {
    let database = TestDatabase::new().await;
    let (name, quoted) = odd_role(&database).await;
    let fleet = Fleet::install(&database, &[("tenant.connect", name.as_str())]).await;
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let odd = enter(&database, &url(&database, &name), &database.tenant_name(&key)).await.expect("may enter");
    let uses = ["select * from log_message", "insert into log_message (message) values ('x')"];
    for sql in uses.into_iter().chain(making(&database).await) {
        assert_eq!(refused(&odd, sql).await.as_deref(), Some("42501"), "{sql}");
    }
    odd.close().await;
    fleet.close().await;
    let server = TestServer::shared();
    database.finish().await;
    drop_role(&server, &quoted).await;
}

/// Goal: a role that joins `tenant.use` later gets its rights in the tenants that are there, by the next sweep. Method: change the setting;
/// one tenant holds a table of an administrator's, which is not ours to share and must not be in the way.
#[tokio::test]
async fn a_later_role_gets_its_rights_by_the_next_sweep() {
    let database = TestDatabase::new().await;
    let (name, quoted) = odd_role(&database).await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    fleet.sweep().await;
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "nothing to do yet");
    fleet.close().await;
    let tenant = database.tenant_name(&key);
    let foreign = "create table administrators (id int)";
    database.tenant_superuser(&tenant).await.batch_execute(foreign).await.expect("make a table");
    let before = enter(&database, &url(&database, &name), &tenant).await.expect_err("may not enter yet");
    assert_eq!(before.kind(), Kind::Rights);

    let fleet = Fleet::install(&database, &[("tenant.use", &format!("app,{name}"))]).await;
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.chosen, report.ready, report.made), (1, 1, 0), "{report:?}");
    let odd = enter(&database, &url(&database, &name), &tenant).await.expect("may enter");
    odd.batch_execute("insert into log_message (message) values ('x')").await.expect("may write");
    for sql in ["delete from tenantd_migration", "select * from administrators"] {
        assert_eq!(refused(&odd, sql).await.as_deref(), Some("42501"), "{sql}");
    }
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "and once is enough");
    assert!(half_made(&database).await.is_empty());
    odd.close().await;
    fleet.close().await;
    let server = TestServer::shared();
    database.finish().await;
    drop_role(&server, &quoted).await;
}

/// Goal: a name is given once. Method: change `tenant.prefix`; the tenant keeps its name, a new one gets the new prefix.
#[tokio::test]
async fn a_changed_prefix_renames_nobody() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let old = database.sign_up("old@example.org").await;
    fleet.sweep().await;
    fleet.close().await;
    let prefix = format!("{}new_", database.prefix());
    let fleet = Fleet::install(&database, &[("tenant.prefix", &prefix), ("sweep.verify_every", "1s")]).await;
    execute(&database, "update tenantd.tenant set verified_at = now() - interval '1 hour'").await;
    let new = database.sign_up("new@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!((report.chosen, report.ready, report.made), (2, 2, 1), "{report:?}");
    assert_eq!(row(&database, &old).await["name"].as_str(), Some(database.tenant_name(&old).as_str()));
    let named = row(&database, &new).await["name"].as_str().expect("a name").to_owned();
    assert!(named.starts_with(&prefix), "{named}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: a key that can name no tenant is parked at once with why, and holds up nobody. Method: a signup table of text ids.
#[tokio::test]
async fn a_key_that_is_no_uuid_is_parked() {
    let database = TestDatabase::new().await;
    execute(&database, "alter table public.users alter id drop default, alter id type text").await;
    let fleet = Fleet::install(&database, &[]).await;
    execute(
        &database,
        "insert into public.users (id, email) values ('x\"; drop database postgres; --', 'a'), (gen_random_uuid()::text, 'b')",
    )
    .await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 1), "{report:?}");
    assert_eq!((report.failed[0].error.kind(), report.failed[0].parked), (Kind::BadKey, true));
    let parked = row(&database, &report.failed[0].key).await;
    assert_eq!((parked["work"].as_str(), parked["error_kind"].as_str()), (Some("parked"), Some("bad_key")));
    fleet.close().await;
    database.finish().await;
}
