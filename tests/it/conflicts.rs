//! Databases that are not as tenantd left them: somebody else's, lost, replaced, not whole, opened or given away.

use tenantd::config::Isolation;
use tenantd::error::Kind;
use tenantd::tenant::Marker;

use crate::fleet::{Fleet, enter, execute, half_made, oid, row};
use crate::sql::one;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

/// One tenant that is ready: its key and its database's name.
async fn one_ready(database: &TestDatabase, fleet: &Fleet) -> (String, String) {
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let name = database.tenant_name(&key);
    (key, name)
}

/// What must not change of a database that is not ours: oid, comment, rights, owner, and whether its table holds its row.
async fn portrait(database: &TestDatabase, name: &str) -> String {
    let client = database.superuser().await;
    let select = format!("select to_jsonb(p)::text from {} p where name = $1", database.place(&client).await);
    let outside: String = client.query_one(&select, &[&name]).await.expect("it is there").get(0);
    let mut limits = String::new();
    if database.isolation() == Isolation::Database {
        let select =
            format!("select concat_ws(' ', datallowconn, datconnlimit) from pg_database where datname = '{name}'");
        limits = one(&client, &select).await;
    }
    let inside = "select string_agg(relname || ' ' || coalesce(relacl::text, ''), ',' order by relname)
                  || (select string_agg(word, ',') from precious)
                  from pg_class where relnamespace = current_schema()::regnamespace";
    let inside: String =
        database.tenant_superuser(name).await.query_one(inside, &[]).await.expect("the table is there").get(0);
    format!("{outside} {limits} {inside}")
}

async fn fill(database: &TestDatabase, name: &str) {
    let fill = "create table precious (word text); insert into precious values ('kept')";
    database.tenant_superuser(name).await.batch_execute(fill).await.expect("fill it");
}

/// Goal: somebody else's database of a tenant's name is never touched. Method: one that is there before the signup, sweeps, and then it is
/// removed: the next sweep makes the tenant.
#[tokio::test]
async fn somebody_elses_database_is_a_conflict_and_stays_as_it_is() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let name = database.tenant_name(&key);
    database.outside(&format!("create database \"{name}\"")).await;
    database.outside(&format!("comment on database \"{name}\" is 'of the shop'")).await;
    fill(&database, &name).await;
    let before = portrait(&database, &name).await;
    let other = database.sign_up("two@example.org").await;

    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 1), "the other tenant is made: {report:?}");
    let failed = &report.failed[0];
    assert_eq!((failed.key.as_str(), failed.error.kind(), failed.parked), (key.as_str(), Kind::Conflict, true));
    let parked = row(&database, &key).await;
    assert_eq!((parked["work"].as_str(), parked["error_kind"].as_str()), (Some("parked"), Some("conflict")));
    assert_eq!(parked["database_oid"].as_str(), None);
    assert_eq!(row(&database, &other).await["state"].as_str(), Some("ready"));
    assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "the periodic sweep leaves a parked one alone");
    assert_eq!(fleet.sweep().await.failed.len(), 1, "a person may ask again");
    assert_eq!(portrait(&database, &name).await, before);

    database.outside(&format!("drop database \"{name}\"")).await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    let ready = row(&database, &key).await;
    assert_eq!((ready["state"].as_str(), ready["error_kind"].as_str()), (Some("ready"), None), "{ready}");
    fleet.close().await;
    database.finish().await;
}

/// Goal: another registry's tenant is somebody else's, too. Method: the marker of the same key in another registry.
#[tokio::test]
async fn another_registrys_database_is_a_conflict() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let name = database.tenant_name(&key);
    let marker = Marker::of(uuid::Uuid::new_v4(), &key);
    database.outside(&format!("create database \"{name}\" owner tenantd")).await;
    database.outside(&format!("comment on database \"{name}\" is '{marker}'")).await;
    fill(&database, &name).await;
    let before = portrait(&database, &name).await;
    let report = fleet.sweep().await;
    assert_eq!(report.failed[0].error.kind(), Kind::Conflict);
    assert_eq!(portrait(&database, &name).await, before);
    database.outside(&format!("drop database \"{name}\"")).await;
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    database.finish().await;
}

/// Goal: only the whole marker of the very tenant makes a database ours, while the tenant is made and ever after. Method: comments that are nearly
/// it, on a database that bears the tenant's name before it is made; then on the tenant's own, which no sweep or drop touches then.
#[tokio::test]
async fn nearly_our_marker_is_not_ours() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let key = database.sign_up("one@example.org").await;
    let name = database.tenant_name(&key);
    let ours = Marker::of(fleet.registry().id, &key).to_string();
    let another = Marker::of(fleet.registry().id, "another").to_string();
    let template = format!("tenantd {} template", fleet.registry().id);
    let nearly = [
        String::new(),
        format!("{ours} "),
        format!(" {ours}"),
        ours.to_uppercase(),
        ours[..ours.len() - 1].to_owned(),
        ours.replace(' ', "  "),
        format!("{ours}\n"),
        another,
        template,
        "tenantd".to_owned(),
    ];
    database.outside(&format!("create database \"{name}\" owner tenantd")).await;
    fill(&database, &name).await;
    let comment = |text: &str| format!("comment on database \"{name}\" is '{text}'");
    for text in &nearly {
        database.outside(&comment(text)).await;
        let before = portrait(&database, &name).await;
        let report = fleet.sweep().await;
        assert_eq!((report.made, report.failed[0].error.kind()), (0, Kind::Conflict), "{text:?}");
        assert_eq!(portrait(&database, &name).await, before, "{text:?}");
    }
    database.outside(&format!("drop database \"{name}\"")).await;
    assert_eq!(fleet.sweep().await.made, 1);
    fill(&database, &name).await;
    let program = Program::for_database(&database);
    for text in &nearly[1..4] {
        database.outside(&comment(text)).await;
        execute(&database, "update tenantd.tenant set verified_at = now() - interval '2 days'").await;
        let before = portrait(&database, &name).await;
        assert_eq!(fleet.sweep().await.failed.len(), 1, "{text:?}");
        let dropped = program.run(&["drop", &key, "--skip-backup"]).await;
        assert!(dropped.code() == 1 && dropped.stderr.contains("does not bear the marker"), "{text:?}: {dropped:?}");
        assert_eq!(portrait(&database, &name).await, before, "{text:?}");
    }
    database.outside(&comment(&ours)).await;
    assert_eq!(fleet.sweep().await.failed.len(), 0);
    fleet.close().await;
    database.finish().await;
}

/// Goal: what an interrupted DROP left of ours is cleared away and made anew while nothing relies on it; somebody else's is not. Method: the
/// mark that Postgres itself sets.
#[tokio::test]
async fn a_database_that_is_not_whole_is_dropped_if_it_is_ours() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (key, name) = one_ready(&database, &fleet).await;
    let first = oid(&database, &name).await;
    execute(&database, &format!("update pg_database set datconnlimit = -2 where datname = '{name}'")).await;
    let anew = "update tenantd.tenant set state = 'requested', work = 'due', due_at = now(), database_oid = null";
    execute(&database, anew).await;
    let report = fleet.sweep().await;
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    assert_ne!(oid(&database, &name).await, first);
    assert!(half_made(&database).await.is_empty());

    // In use: nothing can be saved of it, but that it is to be empty from now on is for a person to say.
    execute(&database, &format!("update pg_database set datconnlimit = -2 where datname = '{name}'")).await;
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!(report.failed[0].error.kind(), Kind::Missing, "{report:?}");
    assert_eq!(oid(&database, &name).await, None);
    execute(&database, anew).await;
    assert_eq!(fleet.sweep().await.made, 1);

    database.outside(&format!("comment on database \"{name}\" is 'mine now'")).await;
    execute(&database, &format!("update pg_database set datconnlimit = -2 where datname = '{name}'")).await;
    execute(&database, anew).await;
    let foreign = oid(&database, &name).await;
    let report = fleet.sweep().await;
    assert_eq!((report.failed[0].key.as_str(), report.failed[0].error.kind()), (key.as_str(), Kind::Conflict));
    assert_eq!(oid(&database, &name).await, foreign, "untouched");
    database.outside(&format!("drop database \"{name}\"")).await;
    assert_eq!(fleet.sweep().await.made, 1);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a tenant whose database is gone is not silently replaced by an empty one. Method: drop it; the periodic sweep parks the tenant, and
/// the command that the error names makes an empty one.
#[tokio::test]
async fn a_lost_database_is_parked_with_what_to_do() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (key, name) = one_ready(&database, &fleet).await;
    database.outside(&format!("drop database \"{name}\"")).await;
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.failed.len(), report.failed[0].parked), (1, true), "{report:?}");
    let parked = row(&database, &key).await;
    assert_eq!((parked["work"].as_str(), parked["error_kind"].as_str()), (Some("parked"), Some("missing")));
    assert!(database.tenant_databases().await.is_empty());
    let told = parked["error_text"].as_str().expect("a text");
    let (_, command) = told.split_once("for an empty one instead: ").expect("the command");
    assert_eq!(command, format!("`tenantd adopt {name} --empty`"));
    let adopt = Program::for_database(&database);
    let unasked = adopt.run(&["adopt", &name, "--empty"]).await;
    assert!(unasked.code() == 2 && unasked.stderr.contains("add --yes"), "{unasked:?}");
    let adopted = adopt.run(&["adopt", &name, "--empty", "--yes"]).await;
    assert_eq!(adopted.code(), 0, "{adopted:?}");
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.made, report.failed.len()), (1, 0), "{report:?}");
    let app = enter(&database, &database.app_url(), &name).await.expect("app may enter");
    let rows: i64 = app.query_one("select count(*) from log_message", &[]).await.expect("count").get(0);
    assert_eq!(rows, 0);
    app.close().await;
    fleet.close().await;
    database.finish().await;
}

/// Goal: a database in the place of ours is not touched, whatever it says of itself. Method: dropped and made anew by somebody, without our
/// comment and with it.
#[tokio::test]
async fn a_replaced_database_is_parked_and_stays_as_it_is() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (key, name) = one_ready(&database, &fleet).await;
    let marker = Marker::of(fleet.registry().id, &key);
    for comment in ["of the shop".to_owned(), marker.to_string()] {
        database.outside(&format!("drop database \"{name}\"")).await;
        database.outside(&format!("create database \"{name}\" owner tenant_owner")).await;
        database.outside(&format!("comment on database \"{name}\" is '{comment}'")).await;
        fill(&database, &name).await;
        let before = portrait(&database, &name).await;
        let report = fleet.sweep().await;
        assert_eq!(report.failed[0].error.kind(), Kind::Replaced, "{report:?}");
        let parked = row(&database, &key).await;
        assert_eq!((parked["work"].as_str(), parked["error_kind"].as_str()), (Some("parked"), Some("replaced")));
        assert_eq!(portrait(&database, &name).await, before);
    }
    // It was the tenant's all along, restored: the command that the error names takes it back, with what it holds.
    let parked = row(&database, &key).await;
    let told = parked["error_text"].as_str().expect("a text");
    assert!(told.contains(&format!("`tenantd adopt {name}` takes it as it stands")), "{told}");
    let adopted = Program::for_database(&database).run(&["adopt", &name, "--version", "0", "--yes"]).await;
    assert_eq!(adopted.code(), 0, "{adopted:?}");
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.ready, report.made, report.failed.len()), (1, 0, 0), "{report:?}");
    assert!(portrait(&database, &name).await.contains("kept"));
    fleet.close().await;
    database.finish().await;
}

/// Goal: what can be mended from outside is mended by the next periodic sweep, without a person. Method: closed, open to PUBLIC, another
/// owner, and all of it at once; what is inside stays.
#[tokio::test]
async fn a_changed_database_is_mended_by_the_next_sweep() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (_, name) = one_ready(&database, &fleet).await;
    fill(&database, &name).await;
    let before = portrait(&database, &name).await;
    let mut changes = vec![
        format!("grant connect on database \"{name}\" to public"),
        format!("alter database \"{name}\" owner to tenantd"),
    ];
    if database.isolation() == Isolation::Database {
        changes.push(format!("alter database \"{name}\" allow_connections false"));
    }
    let all: Vec<_> = changes.iter().map(String::as_str).collect();
    for changes in changes.iter().map(|change| vec![change.as_str()]).chain([all]) {
        for change in &changes {
            database.outside(change).await;
        }
        let report = fleet.try_sweep(false).await.expect("sweep");
        assert_eq!((report.chosen, report.ready, report.made), (1, 1, 0), "{changes:?}: {report:?}");
        assert_eq!(portrait(&database, &name).await, before, "{changes:?}");
        assert_eq!(fleet.try_sweep(false).await.expect("sweep").chosen, 0, "{changes:?}: once is enough");
    }
    fleet.close().await;
    database.finish().await;
}

/// Goal: an owner that tenantd may not take a database from is that tenant's trouble alone. Method: given to the superuser, with five other
/// tenants to be made; given back, the next try mends it.
#[tokio::test]
async fn a_database_that_was_given_away_holds_up_nobody() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (key, name) = one_ready(&database, &fleet).await;
    database.outside(&format!("alter database \"{name}\" owner to postgres")).await;
    for number in 0..5 {
        database.sign_up(&format!("other-{number}@example.org")).await;
    }
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.made, report.failed.len()), (5, 1), "{report:?}");
    assert!(report.server.is_none());
    let failing = row(&database, &key).await;
    assert_eq!((failing["work"].as_str(), failing["error_kind"].as_str()), (Some("failing"), Some("refused")));
    assert_eq!((failing["state"].as_str(), failing["error_sqlstate"].as_str()), (Some("ready"), Some("42501")));
    database.outside(&format!("alter database \"{name}\" owner to tenant_owner")).await;
    assert_eq!(fleet.sweep().await.failed.len(), 0);
    fleet.close().await;
    database.finish().await;
}

/// Goal: a registry that forgot a tenant takes its database back by the marker. Method: the row is deleted; the sweep finds the user
/// without a tenant, and the database with our marker.
#[tokio::test]
async fn a_forgotten_tenant_is_taken_back() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let (key, name) = one_ready(&database, &fleet).await;
    fill(&database, &name).await;
    let before = portrait(&database, &name).await;
    execute(&database, "delete from tenantd.tenant").await;
    let report = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((report.requested, report.ready, report.made), (1, 1, 0), "{report:?}");
    let ready = row(&database, &key).await;
    assert_eq!((ready["state"].as_str(), ready["version"].as_i64()), (Some("ready"), Some(1)));
    assert_eq!(portrait(&database, &name).await, before);
    fleet.close().await;
    database.finish().await;
}
