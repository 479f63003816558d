//! Templates: built once, in service only when complete, replaced when they are not as they were left.

use std::time::Duration;

use tenantd::error::{Error, Kind};
use tenantd::provision::template;

use crate::fleet::{Fleet, execute, oid, row, write_migrations};
use crate::pages::Pages;
use crate::support::daemon::Program;
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

async fn count(database: &TestDatabase, from: &str) -> i64 {
    let select = format!("select count(*) from {from}");
    database.superuser().await.query_one(&select, &[]).await.expect("count").get(0)
}

/// Goal: however many daemons start, one template is built. Method: four at once; the server's databases are counted.
#[tokio::test]
async fn many_daemons_build_one_template() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database).setting("spares.min", "1").setting("spares.max", "1");
    let daemons: Vec<_> = (0..4).map(|_| program.start()).collect();
    for daemon in &daemons {
        daemon.wait_for_line("tenantd is at work", SOON).await;
    }
    until("a spare", SOON, async || count(&database, "tenantd.spares_at_hand").await == 1).await;
    assert_eq!(count(&database, "tenantd.template").await, 1);
    let built: usize =
        daemons.iter().map(|daemon| daemon.lines().iter().filter(|line| line.contains("template built")).count()).sum();
    assert_eq!(built, 1);
    for daemon in daemons {
        assert!(daemon.terminate().await.success());
    }
    assert_eq!(count(&database, "pg_database d join tenantd.spare s on s.name = d.datname").await, 1);
    database.finish().await;
}

/// Goal: a template is marked, closed, owned and shut as tenants are. Method: the catalogue.
#[tokio::test]
async fn a_template_is_ours_and_closed() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    template::ensure(&fleet.context).await.expect("a template");
    let templates = fleet.registry().templates().await.expect("templates");
    assert_eq!(templates.len(), 1);
    let built = &templates[0];
    assert!(built.serves() && built.bytes > 1_000_000, "{built:?}");
    assert!(built.name.starts_with(&format!("tenantd_template_{:.16}_", fleet.context.set.id())), "{built:?}");
    let select =
        "select pg_get_userbyid(datdba)::text, shobj_description(oid, 'pg_database'), datallowconn, datistemplate,
                         has_database_privilege('public', oid, 'connect')
                  from pg_database where datname = $1";
    let seen = database.superuser().await.query_one(select, &[&built.name]).await.expect("look");
    assert_eq!((seen.get(0), seen.get(2), seen.get(3), seen.get(4)), ("tenant_owner", false, false, false));
    assert_eq!(seen.get::<_, String>(1), format!("tenantd {} template", fleet.registry().id));
    fleet.close().await;
    database.finish().await;
}

/// Goal: somebody connected to the template holds up no tenant: another template is built, and the first dropped when it is free. Method: an
/// administrator opens it and stays.
#[tokio::test]
async fn somebody_in_the_template_is_no_obstacle() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    template::ensure(&fleet.context).await.expect("a template");
    let first = fleet.registry().templates().await.expect("templates").remove(0).name;
    fleet.close().await;
    execute(&database, &format!("alter database {first} allow_connections true")).await;
    let inside = database.tenant_superuser(&first).await;
    // Closed again, with somebody in it: it looks as it was left.
    execute(&database, &format!("alter database {first} allow_connections false")).await;
    let daemon = Program::for_database(&database).setting("signup.poll", "250ms").start();
    let key = database.sign_up("one@example.org").await;
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    assert_eq!(row(&database, &key).await["failures"], 0);
    drop(inside);
    let gone = async || oid(&database, &first).await.is_none() && count(&database, "tenantd.template").await == 1;
    // Tried while somebody was in it, it is tried again after half a minute.
    until("the first to go, and to be forgotten", 3 * SOON, gone).await;
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: a template that is not as it was left serves no more. Method: opened; dropped; its marker changed, which nobody may drop then.
#[tokio::test]
async fn a_template_that_was_touched_is_built_anew() {
    let database = TestDatabase::new().await;
    let daemon = Program::for_database(&database)
        .setting("spares.min", "1")
        .setting("spares.max", "1")
        .start()
        .allow("template forgotten");
    let serving = async || {
        let select = "select p.name from tenantd.template p join pg_database d on d.oid = p.database_oid
                      where completed_at is not null and retired_at is null and not datallowconn";
        let rows = database.superuser().await.query(select, &[]).await.unwrap_or_default();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    daemon.wait_for_line("template built", SOON).await;
    let mut kept = None;
    for damage in ["open", "drop", "unmark"] {
        let mut name = String::new();
        until("a template", SOON, async || {
            name = serving().await.pop().unwrap_or_default();
            !name.is_empty()
        })
        .await;
        match damage {
            "open" => execute(&database, &format!("alter database {name} allow_connections true")).await,
            "drop" => execute(&database, &format!("drop database {name}")).await,
            _ => {
                execute(&database, &format!("comment on database {name} is 'mine'")).await;
                execute(&database, &format!("update tenantd.template set retired_at = now() where name = '{name}'"))
                    .await;
                kept = Some(name.clone());
            }
        }
        // A signup takes the spare, so that the daemon looks at once.
        let key = database.sign_up(&format!("{damage}@example.org")).await;
        until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
        until(&format!("another template after {damage}"), SOON, async || {
            serving().await.first().is_some_and(|now| *now != name)
        })
        .await;
    }
    let kept = kept.expect("one was changed");
    daemon.wait_for_line("template forgotten", SOON).await;
    assert!(oid(&database, &kept).await.is_some(), "what is not marked as ours is not dropped");
    until("what was touched to go", SOON, async || count(&database, "tenantd.template").await == 1).await;
    assert!(daemon.terminate().await.success());
    execute(&database, &format!("drop database {kept}")).await;
    database.finish().await;
}

/// As if the daemon that built it had died before it was complete. Returns its name.
async fn unfinish(database: &TestDatabase) -> String {
    let unfinish = "update tenantd.template set completed_at = null, database_oid = null, bytes = null returning name";
    database.superuser().await.query_one(unfinish, &[]).await.expect("one template").get(0)
}

/// Goal: a template that was begun and cannot be gone on with is made anew under another name, then dropped, and nobody is told. Method: its
/// DROP DATABASE was interrupted; it was never marked; with no other template to serve.
#[tokio::test]
async fn what_cannot_be_gone_on_with_is_made_anew() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    template::ensure(&fleet.context).await.expect("a template");
    fleet.close().await;
    let program = Program::for_database(&database);
    for damage in
        ["update pg_database set datconnlimit = -2 where datname = '{name}'", "comment on database {name} is null"]
    {
        let name = unfinish(&database).await;
        execute(&database, &damage.replace("{name}", &name)).await;
        let daemon = program.start();
        daemon.wait_for_line("template built", SOON).await;
        let gone = async || oid(&database, &name).await.is_none() && count(&database, "tenantd.template").await == 1;
        until(&format!("what is left after {damage}"), SOON, gone).await;
        assert!(daemon.terminate().await.success());
        let whole = "tenantd.template where completed_at is not null and retired_at is null and failures = 0";
        assert_eq!(count(&database, whole).await, 1);
    }
    database.finish().await;
}

/// Goal: a connection of ours that stays in a template in the making, as that of a daemon whose machine is gone, does not hold it up, whatever it
/// holds. Method: it goes on with one that the daemon's role is connected to, in the middle of a migration.
#[tokio::test]
async fn a_session_of_a_keeper_that_is_gone_is_ended() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first (id integer);")]);
    let fleet = Fleet::with_folder(&database, folder.path()).await;
    template::ensure(&fleet.context).await.expect("a template");
    let name = unfinish(&database).await;
    execute(&database, &format!("alter database {name} allow_connections true")).await;
    let inside = database.tenant_superuser(&name).await;
    inside.batch_execute("drop table first; delete from tenantd_migration").await.expect("take it back");
    drop(inside);
    let left = database.server().client("tenantd", TENANTD_PASSWORD, &name).await;
    let lock = "begin; select pg_advisory_xact_lock(hashtextextended('tenantd.migrate:public', 0))";
    left.batch_execute(lock).await.expect("in the middle of a migration");
    template::ensure(&fleet.context).await.expect("the same template");
    until("the end of what was left", SOON, async || left.is_closed()).await;
    assert!(fleet.registry().templates().await.expect("templates")[0].serves());
    assert_eq!((oid(&database, &name).await.is_some(), count(&database, "tenantd.template").await), (true, 1));
    fleet.close().await;
    database.finish().await;
}

/// Goal: a keeper that stood still, while another took its place, changes nothing of the template that is being built. Method: every change there
/// is, in the name of the first, then of the second.
#[tokio::test]
async fn a_keeper_that_stood_still_changes_no_template() {
    let database = TestDatabase::new().await;
    let (first, second) = (Fleet::install(&database, &[]).await, Fleet::install(&database, &[]).await);
    template::ensure(&first.context).await.expect("a template");
    let name = unfinish(&database).await;
    let (stale, fresh) = (first.registry(), second.registry());
    assert!(stale.keep(Duration::from_millis(1)).await.expect("keep"));
    until("the end of the lease", SOON, async || fresh.keep(SOON).await.expect("keep")).await;
    let open = format!("pg_database where datname = '{name}' and datallowconn");

    let late = stale.open_template(&name).await.expect_err("fenced");
    assert_eq!((late.kind(), count(&database, &open).await), (Kind::LeaseLost, 0), "{}", late.chain());
    let failure = Error::new(Kind::Other, "late");
    assert!(!stale.record_template_failure(&name, &failure, SOON).await.expect("an answer"));
    assert!(!stale.complete_template(&name).await.expect("an answer"));
    fresh.open_template(&name).await.expect("the keeper may");
    let inside = database.server().client("tenantd", TENANTD_PASSWORD, &name).await;
    assert_eq!(stale.close_template(&name).await.expect_err("fenced").kind(), Kind::LeaseLost);
    assert_eq!(stale.sessions_in_template(&name, true).await.expect("an answer"), 1);
    inside.batch_execute("select 1").await.expect("nobody ended it");
    assert_eq!((count(&database, &open).await, count(&database, "tenantd.template").await), (1, 1));

    fresh.close_template(&name).await.expect("the keeper may");
    assert_eq!(fresh.sessions_in_template(&name, true).await.expect("an answer"), 1);
    until("its end", SOON, async || inside.is_closed()).await;
    assert!(fresh.complete_template(&name).await.expect("the keeper may"));
    assert_eq!(fresh.open_template(&name).await.expect_err("it serves").kind(), Kind::LeaseLost);
    first.close().await;
    second.close().await;
    database.finish().await;
}

/// Goal: a newest migration that fails leaves signups served by the last good template, and says so; mended, it takes over. Method: a running
/// daemon, a broken file, a signup, readiness and status; then the file is mended.
#[tokio::test]
async fn a_broken_newest_migration_stops_no_signup() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let pages = Pages::reserve();
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    let program = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("http.listen", &pages.listen())
        .setting("spares.min", "1")
        .setting("spares.max", "2")
        .setting("sweep.every", "1h")
        .setting("retry.first", "100ms");
    let mut daemon = program
        .start()
        .allow("the template of the newest migrations could not be built")
        .allow("tenant failing")
        .allow("tenant parked");
    until("a spare", SOON, async || {
        daemon.lines().iter().any(|line| line.contains("template built"))
            && count(&database, "tenantd.spares_at_hand").await == 1
    })
    .await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second (;")]);
    daemon.hang_up();
    let told = daemon.wait_for_line("the template of the newest migrations could not be built", SOON).await;
    assert!(told.contains("0002_second.sql:1:22") && told.contains("42601"), "{told}");
    for number in 0..3 {
        let key = database.sign_up(&format!("{number}@example.org")).await;
        until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
        assert_eq!(row(&database, &key).await["version"], 1);
    }
    assert!(pages.ready_is(503, "the last good one").await, "{:?}", pages.get("/readyz").await);
    let status = program.run(&["status"]).await;
    assert_eq!(status.code(), 1, "{}", status.stderr);
    assert!(status.stdout.contains("0002_second.sql"), "{}", status.stdout);

    write_migrations(folder.path(), &[("0002_second.sql", "create table second ();")]);
    daemon.hang_up();
    let all = "tenantd.tenant where version = 2 and work = 'idle'";
    until("everybody has it", SOON, async || count(&database, all).await == 3).await;
    until("readiness", SOON, async || pages.ready_is(200, "").await).await;
    let told = daemon.lines().iter().filter(|line| line.contains("could not be built")).count();
    assert_eq!(told, 1, "once");
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: without any template nobody is parked: signups wait, and it is said why. Method: the first set is broken, then mended.
#[tokio::test]
async fn without_a_template_signups_wait() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_first.sql", "create table first (;")]);
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    let mut daemon = program.start().allow("the template of the newest migrations could not be built");
    daemon.wait_for_line("could not be built", SOON).await;
    let key = database.sign_up("one@example.org").await;
    let swept = program.run(&["--sweep-once"]).await;
    assert_eq!(swept.code(), 1, "{}", swept.stdout);
    assert!(swept.stdout.contains("0001_first.sql:1:21"), "{}", swept.stdout);
    let waiting = row(&database, &key).await;
    assert_eq!(
        (&waiting["state"], &waiting["work"], &waiting["failures"]),
        (&"requested".into(), &"due".into(), &0.into())
    );
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ();")]);
    daemon.hang_up();
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    assert!(daemon.terminate().await.success());
    database.finish().await;
}

/// Goal: every tenant has the extensions that the config names, without a right of its own; one that tenantd may not make is named with the role and
/// what to run, and when an administrator has run it the work goes on. Method: a trusted one, and one that needs a superuser.
#[tokio::test]
async fn extensions_are_made_once_in_the_template() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let fleet = Fleet::install(&database, &[("tenant.extensions", "pgcrypto")]).await;
    let key = database.sign_up("one@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    let inside = database.tenant_superuser(&database.tenant_name(&key)).await;
    inside.query_one("select public.gen_salt('md5')", &[]).await.expect("the extension is there");
    drop(inside);
    fleet.close().await;

    let fleet = Fleet::install(&database, &[("tenant.extensions", "pgcrypto,pageinspect")]).await;
    let error = template::ensure(&fleet.context).await.expect_err("not trusted");
    assert_eq!(error.kind(), Kind::Rights, "{}", error.chain());
    let advice = error.advice().expect("what to do");
    let unfinished = fleet.registry().templates().await.expect("templates");
    let name = &unfinished.iter().find(|template| template.completed.is_none()).expect("begun").name;
    assert!(
        error.chain().contains("role \"tenantd\"") && advice.contains(name.as_str()),
        "{}: {advice}",
        error.chain()
    );
    let second = database.sign_up("two@example.org").await;
    let report = fleet.sweep().await;
    assert_eq!(report.made, 1, "the last good one serves: {report:?}");
    let statement = advice.split('`').nth(1).expect("a statement");
    let administrator = database.tenant_superuser(name).await;
    administrator.batch_execute(statement).await.expect(statement);
    drop(administrator);
    template::ensure(&fleet.context).await.expect("it goes on with what was made");
    let third = database.sign_up("three@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    for (key, has) in [(&second, false), (&third, true)] {
        let inside = database.tenant_superuser(&database.tenant_name(key)).await;
        let there = "select exists (select from pg_extension where extname = 'pageinspect')";
        assert_eq!(inside.query_one(there, &[]).await.expect("look").get::<_, bool>(0), has);
    }
    fleet.close().await;
    database.finish().await;
}

/// Goal: a template that was begun and never completed, since its set was overtaken by the next, is dropped. Method: a keeper that dies over the first
/// set's; a daemon with one migration more.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a_half_built_template_of_an_overtaken_set_is_dropped() {
    let (database, folder) = (TestDatabase::new().await, tempfile::tempdir().expect("a folder"));
    write_migrations(folder.path(), &[("0001_first.sql", "create table first ()")]);
    let program = Program::for_database(&database).setting("tenant.migrations", &folder.path().display().to_string());
    let dying = program.clone().variable("TENANTD_FAIL_POINT", "TemplateFilled").run(&[]).await;
    assert_eq!(dying.code(), -1, "{dying:?}");
    assert_eq!(count(&database, "tenantd.template where completed_at is null").await, 1);
    execute(&database, "update tenantd.registry set keeper_until = now()").await;
    write_migrations(folder.path(), &[("0002_second.sql", "create table second ()")]);
    let daemon = program.start();
    until("the second set's template alone", SOON, async || {
        count(&database, "tenantd.template where version = 2 and completed_at is not null").await == 1
            && count(&database, "tenantd.template").await == 1
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    database.finish().await;
}

/// Goal: collations of another version than the server's, as after an upgrade of the machine, are got over where that can be: a template of ours is built
/// anew; where it is the server's own template0, signups wait, nobody is blamed, one ERROR says what an administrator is to do, and then all goes on
/// by itself. Method: on a server of its own the version that a database was made with is overwritten, as an upgrade would make it differ.
#[tokio::test]
async fn collations_of_another_version_are_got_over() {
    let server = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let client = database.superuser().await;
    let version: i32 =
        client.query_one("select current_setting('server_version_num')::int", &[]).await.expect("ask").get(0);
    let kept =
        "select count(*) from pg_attribute where attrelid = 'pg_database'::regclass and attname = 'datcollversion'";
    let kept: i64 = client.query_one(kept, &[]).await.expect("ask").get(0);
    assert_eq!(kept == 1, version >= 150_000, "servers before 15 keep no such version");
    if kept == 0 {
        drop(client);
        return database.finish().await;
    }
    let program = Program::for_database(&database).setting("signup.poll", "250ms").setting("sweep.every", "1s");
    let daemon = program.start().allow("could not be built").allow("the server fails").allow("the server failed");
    let of_ours = "select name from tenantd.template where completed_at is not null and retired_at is null";
    until("a template", SOON, async || client.query_opt(of_ours, &[]).await.is_ok_and(|row| row.is_some())).await;
    let first: String = client.query_one(of_ours, &[]).await.expect("it").get(0);
    let outdate = |name: &str, version: &str| {
        format!("update pg_database set datcollversion = {version} where datname = '{name}'")
    };
    let real = "select datcollversion from pg_database where datname = 'template0'";
    let real: Option<String> = client.query_one(real, &[]).await.expect("ask").get(0);
    let real = real.map_or_else(|| "null".to_owned(), |version| format!("'{version}'"));
    execute(&database, &outdate(&first, "'0'")).await;
    let key = database.sign_up("one@example.org").await;
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    assert_eq!(row(&database, &key).await["failures"], 0);
    let second: String = client.query_one(of_ours, &[]).await.expect("another").get(0);
    assert_ne!(first, second, "another template");

    execute(&database, &outdate("template0", "'0'")).await;
    execute(&database, &outdate(&second, "'0'")).await;
    let said = daemon.lines().len();
    let key = database.sign_up("two@example.org").await;
    let told = daemon.wait_for_line_after(said, "\"ERROR\"", SOON).await;
    assert!(told.contains("template0") && told.contains("refresh collation version"), "{told}");
    let waiting = row(&database, &key).await;
    assert_eq!((&waiting["state"], &waiting["failures"]), (&"requested".into(), &0.into()));
    execute(&database, &outdate("template0", &real)).await;
    until("the tenant", SOON, async || row(&database, &key).await["state"] == "ready").await;
    assert_eq!(row(&database, &key).await["failures"], 0);
    let errors = daemon.lines().iter().skip(said).filter(|line| line.contains("\"ERROR\"")).count();
    assert_eq!(errors, 1, "{}", daemon.lines().join("\n"));
    drop(client);
    assert!(daemon.terminate().await.success());
    database.finish().await;
}
