//! Databases without a tenant, under each strategy: what looks like one, and whose it is.

use serde_json::Value;
use tenantd::tenant::Marker;

use super::{named, sign_up, succeeds, users};
use crate::fleet::{Fleet, execute};
use crate::sql::stands;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;

async fn make(database: &TestDatabase, name: &str, comment: Option<&str>) {
    database.outside(&format!("create database {name} owner tenant_owner")).await;
    database.outside(&format!("revoke connect, temporary on database {name} from public")).await;
    if let Some(comment) = comment {
        database.outside(&format!("comment on database {name} is '{comment}'")).await;
    }
}

/// Key and name of what `adopt --orphans` would take, and the names that it refuses.
async fn orphans(program: &Program) -> (Vec<(String, String)>, Vec<String>) {
    let output = program.run(&["adopt", "--orphans", "--version", "0", "--dry-run", "--json"]).await;
    let found: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |name: &str| found[name].as_array().cloned().unwrap_or_default();
    let plans = list("plans").iter().map(|plan| (text(&plan["key"]), text(&plan["database"]))).collect();
    (plans, list("refused").iter().map(|refused| text(&refused["database"])).collect())
}

/// Goal: whose a database named by a hash is, is found among the users; what could be two users', or nobody's, is refused. Method: databases as
/// an older tool made them: a user's, nobody's, one with our marker under another name, one with too many digits.
#[tokio::test]
async fn the_users_tell_whose_a_hash_is() {
    let database = TestDatabase::new().await;
    users(&database, "text").await;
    let settings = [("tenant.naming", "hash")];
    let fleet = Fleet::install(&database, &settings).await;
    let (registry, names) = (fleet.registry().id, fleet.names().clone());
    fleet.close().await;
    let app = database.app().await;
    execute(&database, "alter table public.users disable trigger all").await;
    for id in ["default_tenant", "Moved"] {
        sign_up(&app, Some(id)).await;
    }
    let (prefix, own) = (database.prefix(), names.of("default_tenant").expect("a name"));
    let (nobodys, moved, longer) =
        (format!("{prefix}0123456789"), format!("{prefix}moved"), format!("{prefix}0123456789a"));
    make(&database, &own, None).await;
    make(&database, &nobodys, None).await;
    make(&database, &moved, Some(&Marker::of(registry, "Moved").to_string())).await;
    make(&database, &longer, None).await;
    let program = named(Program::for_database(&database), &settings).setting("log.level", "error");
    let (plans, refused) = orphans(&program).await;
    let mut expected = vec![("default_tenant".to_owned(), own.clone()), ("Moved".to_owned(), moved.clone())];
    expected.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!((plans, refused), (expected, vec![nobodys.clone()]));
    let checked = program.run(&["check"]).await;
    assert!(
        checked.code() == 1 && checked.stdout.contains(&nobodys) && !checked.stdout.contains(&longer),
        "{checked:?}"
    );
    for name in [&nobodys, &longer] {
        database.outside(&format!("drop database {name}")).await;
    }
    succeeds(program.run(&["adopt", "--orphans", "--version", "0", "--yes"]).await);
    succeeds(program.run(&["--sweep-once"]).await);
    for key in ["default_tenant", "Moved"] {
        assert_eq!(stands(&database, key).await, Some(("ready".to_owned(), "idle".to_owned())), "{key}");
    }
    drop(app);
    database.finish().await;
}

/// Goal: by `key` a name behind a prefix tells the key; without a prefix no database of the server is taken for a tenant by its name alone.
/// Method: a name that fits, one that does not; the same without a prefix, where only our marker tells.
#[tokio::test]
async fn a_name_behind_a_prefix_tells_its_key() {
    let database = TestDatabase::new().await;
    let settings = [("tenant.naming", "key")];
    let fleet = {
        users(&database, "text").await;
        Fleet::install(&database, &settings).await
    };
    let registry = fleet.registry().id;
    fleet.close().await;
    let prefix = database.prefix();
    let (acme, odd, marked) = (format!("{prefix}acme"), format!("\"{prefix}Acme\""), format!("{prefix}marked"));
    make(&database, &acme, None).await;
    make(&database, &odd, None).await;
    make(&database, &marked, Some(&Marker::of(registry, &marked).to_string())).await;
    let program = named(Program::for_database(&database), &settings).setting("log.level", "error");
    let (plans, refused) = orphans(&program).await;
    assert_eq!(
        (plans, refused),
        (vec![("acme".to_owned(), acme.clone())], vec![marked.clone()]),
        "the marker is another key's"
    );
    let bare = program.clone().setting("tenant.prefix", "");
    assert_eq!(orphans(&bare).await, (vec![(marked.clone(), marked.clone())], Vec::new()));
    for name in [acme, odd, marked] {
        database.outside(&format!("drop database {name}")).await;
    }
    database.finish().await;
}
