//! How tenants are named: each strategy from signup to restore, with keys of each type; what none takes; two keys that come to one name.

mod meeting;
mod orphans;

use std::time::Duration;

use tenantd::error::Kind;
use tenantd::naming::{Algorithm, Names, Rule};
use tokio_postgres::Client;

use crate::fleet::{Fleet, WISHES, config, execute, row, write_migrations};
use crate::life::standing;
use crate::sql::{one, run, stands};
use crate::support::daemon::{Output, Program};
use crate::support::database::TestDatabase;
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// So many random keys are named by both.
const KEYS: usize = 5_000;

/// The signup table anew, with ids of type `id`.
pub(crate) async fn users(database: &TestDatabase, id: &str) {
    execute(
        database,
        &format!(
            "drop table public.users cascade;
             create table public.users (id {id} primary key, email text);
             grant insert, select on public.users to app;
             grant select (id), trigger on public.users to tenantd"
        ),
    )
    .await;
}

/// Signs up as the application does, by an id of its own or, without one, by the column's default. Returns the key.
pub(crate) async fn sign_up(app: &Client, id: Option<&str>) -> String {
    let insert = match id {
        Some(id) => format!("insert into public.users (id) values ('{}') returning id::text", id.replace('\'', "''")),
        None => "insert into public.users (email) values ('a') returning id::text".to_owned(),
    };
    one(app, &insert).await
}

/// The settings by which [`config`] and a program name tenants so.
pub(crate) fn named(program: Program, settings: &[(&str, &str)]) -> Program {
    settings.iter().fold(program, |program, (key, value)| program.setting(key, value))
}

/// A random key: a uuid, a number, a word, or whatever a column of text may hold.
fn random_key(random: &mut fastrand::Rng) -> String {
    let length = random.usize(0..70);
    match random.u8(0..5) {
        0 => uuid::Uuid::from_u128(random.u128(..)).to_string(),
        1 => random.i64(..).to_string(),
        2 => (0..length).map(|_| char::from(random.choice(*b"abcxyz_0189").expect("some"))).collect(),
        3 => (0..length).map(|_| char::from(random.choice(*b"abzAZ_-09 \n\"'$").expect("some"))).collect(),
        _ => std::iter::repeat_with(|| random.char(..)).filter(|c| *c != '\0').take(length).collect(),
    }
}

/// Goal: the registry comes to the same names as tenantd, for whatever key, and refuses the same; no reserved word of this server is a name.
/// Method: random keys, all words of the server, prefixes that make a word or a name of the server's of a key.
#[tokio::test]
async fn the_registry_comes_to_the_same_names() {
    let database = TestDatabase::new().await;
    let fleet = Fleet::install(&database, &[]).await;
    let client = database.superuser().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut keys: Vec<String> = std::iter::repeat_with(|| random_key(&mut random)).take(KEYS).collect();
    let words = client.query("select word, catcode::text from pg_get_keywords()", &[]).await.expect("the words");
    keys.extend(words.iter().map(|row| row.get::<_, String>(0)));
    let others = [
        "postgres",
        "gres",
        "template0",
        "0",
        "public",
        "lic",
        "information_schema",
        "tenantd",
        "d",
        "d_x",
        "tenantd_",
        "pg_",
        "g_a",
        "_",
    ];
    keys.extend(others.map(str::to_owned));
    keys.extend([database.name().to_owned(), "é".repeat(31), "a".repeat(63), "a".repeat(64)]);
    let rules = [
        (Rule::Uuid, "tenant_"),
        (Rule::Hash(Algorithm::Md5, 10), "tid_"),
        (Rule::Hash(Algorithm::Md5, 32), "t"),
        (Rule::Hash(Algorithm::Sha256, 62), "t"),
        (Rule::Key, ""),
        (Rule::Key, "p"),
        (Rule::Key, "post"),
        (Rule::Key, "template"),
        (Rule::Key, "tenant"),
        (Rule::Key, "customer_"),
    ];
    let select = "select tenantd.name_of(key, $2) from unnest($1::text[]) with ordinality k (key, nth) order by nth";
    for (rule, prefix) in rules {
        let names = Names::new(rule, prefix, database.name());
        let rows = client.query(select, &[&keys, &names.to_string()]).await.expect("the names");
        assert_eq!(rows.len(), keys.len());
        for (key, row) in keys.iter().zip(&rows) {
            assert_eq!(names.of(key).ok(), row.get::<_, Option<String>>(0), "{names}, {key:?}, seed {seed}");
        }
    }
    let by_key = Names::new(Rule::Key, "", database.name());
    for word in words.iter().filter(|row| matches!(row.get::<_, &str>(1), "R" | "T")) {
        assert!(by_key.of(word.get(0)).is_err(), "{} is reserved here", word.get::<_, &str>(0));
    }
    drop(client);
    fleet.close().await;
    database.finish().await;
}

/// A fleet whose ids are of one type, named by one strategy.
struct Case<'a> {
    /// What must be there before the signup table.
    before: &'a str,
    /// The type of the ids.
    id: &'a str,
    /// How they are named.
    settings: &'a [(&'a str, &'a str)],
    /// Users sign up with these ids; `None`: the next one.
    ids: &'a [Option<&'a str>],
}

async fn names_and_versions(database: &TestDatabase, keys: &[String]) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for key in keys {
        let row = row(database, key).await;
        found.push((row["name"].as_str().unwrap_or_default().to_owned(), row["version"].as_i64().unwrap_or(-1)));
    }
    found
}

/// From signup to restore: ready by a daemon under the name that is expected, migrated, dropped, restored, and well at the end.
async fn live(case: Case<'_>) {
    let database = TestDatabase::new().await;
    execute(&database, case.before).await;
    users(&database, case.id).await;
    let (migrations, backups) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    write_migrations(migrations.path(), &[("0001_note.sql", "create table note (body text);")]);
    let program = crate::life::program(&database, backups.path());
    let program =
        program.setting("tenant.migrations", &migrations.path().display().to_string()).setting("spares.max", "2");
    let program = named(program, case.settings);
    let names = config(&database, case.settings).tenant.names;
    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let app = database.app().await;
    let mut keys = Vec::new();
    for id in case.ids {
        keys.push(sign_up(&app, *id).await);
    }
    for key in &keys {
        until("the tenant", SOON, async || standing(&database, key).await == "ready idle").await;
    }
    assert!(daemon.terminate().await.success());
    let expected = |version: i64| keys.iter().map(|key| (names.of(key).expect("a name"), version)).collect::<Vec<_>>();
    assert_eq!(names_and_versions(&database, &keys).await, expected(1));

    write_migrations(migrations.path(), &[("0002_done.sql", "alter table note add column done boolean;")]);
    succeeds(program.run(&["migrate"]).await);
    assert_eq!(names_and_versions(&database, &keys).await, expected(2));
    for key in &keys {
        let name = names.of(key).expect("a name");
        execute_in(&database, &name, "insert into note (body) values ('kept')").await;
        succeeds(program.run(&["drop", "--", key]).await);
        assert_eq!(standing(&database, key).await, "deleting held");
        succeeds(program.run(&["restore", "--", key]).await);
        let url = succeeds(program.run(&["url", "--", key]).await);
        assert!(url.stdout.contains(&database.tenant_url(&name)), "{url:?}");
    }
    succeeds(program.run(&["--sweep-once"]).await);
    succeeds(program.run(&["check"]).await);
    assert_eq!(names_and_versions(&database, &keys).await, expected(2));
    for (name, _) in expected(2) {
        let kept: i64 =
            one(&database.tenant_superuser(&name).await, "select count(*) from note where body = 'kept'").await;
        assert_eq!(kept, 1, "{name}");
    }
    drop(app);
    database.finish().await;
}

async fn execute_in(database: &TestDatabase, name: &str, sql: &str) {
    database.tenant_superuser(name).await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[track_caller]
fn succeeds(output: Output) -> Output {
    assert_eq!(output.code(), 0, "{output:?}");
    output
}

/// Goal: numbers from a sequence name tenants by their hash, all the way. Method: two users of a bigint table.
#[tokio::test]
async fn numbers_are_named_by_their_hash() {
    let id = "bigint generated by default as identity";
    live(Case { before: "", id, settings: &[("tenant.naming", "hash")], ids: &[None, None, Some("-7")] }).await;
}

/// Goal: whatever a column of text holds is named by its hash, all the way. Method: keys with quotes, blanks, a line break, letters beyond ASCII
/// and commands; SHA-256.
#[tokio::test]
async fn any_text_is_named_by_its_hash() {
    let settings = [("tenant.naming", "hash"), ("tenant.hash", "sha256"), ("tenant.hash_digits", "20")];
    let ids = [Some("default_tenant"), Some("Größe \"x\"'; drop table users; --\n$1 %I {id}"), Some("--json")];
    live(Case { before: "", id: "varchar(200)", settings: &settings, ids: &ids }).await;
}

/// Goal: a key that can be a name is it, all the way, in a domain over a type of an extension. Method: citext beneath two domains.
#[tokio::test]
async fn a_word_is_its_own_name() {
    let before = "create extension citext; create domain word as citext; create domain id as word check (value <> '')";
    // Other tests are on the same server: nothing but their keys keeps their tenants apart.
    let (acme, user) = (format!("t{:08x}_acme", fastrand::u32(..)), format!("_{:08x}", fastrand::u32(..)));
    let database = TestDatabase::new().await;
    execute(&database, before).await;
    users(&database, "id").await;
    let program = named(Program::for_database(&database), &[("tenant.naming", "key"), ("tenant.prefix", "")]);
    let app = database.app().await;
    succeeds(program.run(&["setup"]).await);
    for id in [&acme, &user] {
        assert_eq!(&sign_up(&app, Some(id)).await, id);
    }
    succeeds(program.run(&["--sweep-once"]).await);
    for key in [&acme, &user] {
        let row = row(&database, key).await;
        assert_eq!((row["state"].as_str(), row["name"].as_str()), (Some("ready"), Some(key.as_str())));
    }
    succeeds(program.run(&["check"]).await);
    for key in [&acme, &user] {
        database.outside(&format!("drop database {key}")).await;
    }
    execute(&database, "delete from tenantd.tenant; delete from public.users").await;
    drop(app);
    database.finish().await;
}

/// Goal: with a prefix numbers are names as they stand, all the way. Method: an integer column.
#[tokio::test]
async fn numbers_follow_a_prefix() {
    live(Case {
        before: "",
        id: "integer generated by default as identity",
        settings: &[("tenant.naming", "key")],
        ids: &[None, None],
    })
    .await;
}

/// Goal: a domain over uuid is one. Method: as the default names them.
#[tokio::test]
async fn a_domain_over_uuid_is_one() {
    let id = "account default gen_random_uuid()";
    live(Case { before: "create domain account as uuid", id, settings: &[], ids: &[None] }).await;
}

/// Goal: a key that can be no name is parked at once, with what is wrong and what to do; the others are made. Method: one of each fault; then the
/// same keys by their hashes, after `retry`.
#[tokio::test]
async fn what_can_be_no_name_is_parked_at_once() {
    let database = TestDatabase::new().await;
    users(&database, "text").await;
    let program = named(Program::for_database(&database), &[("tenant.naming", "key")]).setting("log.level", "off");
    succeeds(program.run(&["setup"]).await);
    let app = database.app().await;
    let (long, good) = ("a".repeat(60), ["acme", "_1", "42"]);
    let bad = [
        ("Acme", "it holds 'A'"),
        ("acme-inc", "it holds '-'"),
        ("", "it is empty"),
        (&long, "at most 63"),
        ("größe", "it holds 'ö'"),
    ];
    for id in good.into_iter().chain(bad.map(|(id, _)| id)) {
        sign_up(&app, Some(id)).await;
    }
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1);
    for id in good {
        assert_eq!(standing(&database, id).await, "ready idle", "{id}");
    }
    for (id, reason) in bad {
        let row = row(&database, id).await;
        assert_eq!(
            (row["work"].as_str(), row["error_kind"].as_str(), row["failures"].as_i64()),
            (Some("parked"), Some("bad_key"), Some(1))
        );
        let text = row["error_text"].as_str().expect("why");
        assert!(text.contains(reason) && text.contains("tenant.naming = \"hash\""), "{id:?}: {text}");
    }
    let program = program.setting("tenant.naming", "hash");
    succeeds(program.run(&["retry", "--work", "parked"]).await);
    assert_eq!(program.run(&["--sweep-once"]).await.code(), 1, "the empty one");
    for (id, _) in bad.into_iter().filter(|(id, _)| !id.is_empty()) {
        assert_eq!(standing(&database, id).await, "ready idle", "{id}");
    }
    let kept = good.map(|id| format!("{}{id}", database.prefix()));
    for (id, name) in good.iter().zip(kept) {
        assert_eq!(row(&database, id).await["name"].as_str(), Some(name.as_str()), "a name is given once");
    }
    drop(app);
    database.finish().await;
}

/// Goal: a naming that cannot name what the signup table's column holds is refused before anything is installed, and doctor says it. Method: each
/// pair that cannot be.
#[tokio::test]
async fn a_naming_that_cannot_fit_is_refused() {
    let database = TestDatabase::new().await;
    for (id, naming, prefix, hint) in [
        ("bigint", "uuid", "t_", "\"hash\" takes integers"),
        ("uuid", "key", "t_", "\"uuid\" is for them"),
        ("smallint", "key", "", "needs a tenant.prefix"),
        ("timestamptz", "hash", "t_", "must name a column of type uuid, text"),
        ("bytea", "hash", "t_", "must name a column of type uuid, text"),
        ("numeric", "uuid", "t_", "must name a column of type uuid, text"),
    ] {
        users(&database, id).await;
        let settings = [("tenant.naming", naming), ("tenant.prefix", prefix)];
        let error = Fleet::wishing(config(&database, &settings), WISHES).await.err().expect(id);
        assert_eq!(error.kind(), Kind::Usage);
        let types = error.chain().replace("timestamptz", "timestamp with time zone");
        assert!(types.contains("after which no tenant can be named"), "{types}");
        assert!(error.advice().expect("a hint").contains(hint), "{id}: {:?}", error.advice());
    }
    users(&database, "bigint").await;
    let doctor = Program::for_database(&database).run(&["doctor", "--quick"]).await;
    assert!(doctor.code() == 1 && doctor.stdout.contains("\"hash\" takes integers"), "{doctor:?}");
    assert!(Program::for_database(&database).setting("tenant.naming", "hash").run(&["setup"]).await.code() == 0);
    database.finish().await;
}

/// Goal: a signup is ready at its own commit under each strategy's name; a key that has none goes the ordinary way, and costs the others nothing.
/// Method: a spare, no daemon; both keys in one statement.
#[tokio::test]
async fn at_the_commit_each_strategy_names() {
    for (id, settings, good, bad) in [
        ("text", [("tenant.naming", "hash"), ("tenant.hash", "md5")], "Größe", Some("")),
        ("text", [("tenant.naming", "key"), ("tenant.hash", "md5")], "acme", Some("Acme")),
        ("bigint", [("tenant.naming", "hash"), ("tenant.hash", "sha256")], "-42", None),
    ] {
        let database = TestDatabase::new().await;
        users(&database, id).await;
        let program = named(meeting::at_commit(&database, 1), &settings);
        meeting::stocked(&database, &program, 1).await;
        let app = database.app().await;
        let bad_too = bad.map(|bad| format!(", ('{bad}')")).unwrap_or_default();
        run(&app, &format!("insert into public.users (id) values ('{good}'){bad_too}")).await;
        let names = config(&database, &settings).tenant.names;
        let row = row(&database, good).await;
        assert_eq!(
            (row["state"].as_str(), row["name"].as_str()),
            (Some("ready"), names.of(good).ok().as_deref()),
            "{good}"
        );
        if let Some(bad) = bad {
            assert_eq!(standing(&database, bad).await, "requested due", "{bad:?}");
        }
        drop(app);
        database.finish().await;
    }
}

/// Goal: `create` makes tenants of keys of each kind, and refuses what can be no name before it makes any. Method: under each strategy.
#[tokio::test]
async fn create_takes_keys_of_each_kind() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    succeeds(program.run(&["setup"]).await);
    let prefix = database.prefix();
    let by_hash = program.clone().setting("tenant.naming", "hash");
    let made = succeeds(by_hash.run(&["create", "default_tenant", "--", "-5"]).await);
    let url = database.tenant_url(&format!("{prefix}cf4116b064"));
    assert!(made.stdout.contains(&url) && made.stdout.lines().count() == 2, "{made:?}");
    let by_key = program.clone().setting("tenant.naming", "key");
    let dry = succeeds(by_key.run(&["create", "acme", "--dry-run"]).await);
    assert_eq!(dry.stdout, format!("acme: {} {prefix}acme: make, hand over", database.isolation()));
    let refused = by_key.run(&["create", "acme", "Acme"]).await;
    assert!(refused.code() == 2 && refused.stderr.contains("it holds 'A'"), "{refused:?}");
    assert_eq!(stands(&database, "acme").await, None, "nothing was begun");
    succeeds(by_key.run(&["create", "acme"]).await);
    let refused = program.run(&["create", "acme2"]).await;
    assert!(refused.code() == 2 && refused.stderr.contains("tenant.naming = \"hash\""), "{refused:?}");
    database.finish().await;
}

/// Goal: where the registry lost its rows, tenants that stand are found by their names under each strategy, and taken back; users without one are
/// held. Method: the rows deleted, the moment forgotten at which users were held; then what is printed of a database that bears a user's name.
#[tokio::test]
async fn tenants_that_stand_are_known_by_their_names() {
    for naming in ["hash", "key"] {
        let database = TestDatabase::new().await;
        users(&database, "text").await;
        let fleet = Fleet::install(&database, &[("tenant.naming", naming)]).await;
        let app = database.app().await;
        sign_up(&app, Some("acme")).await;
        assert_eq!(fleet.sweep().await.made, 1);
        let before = row(&database, "acme").await;
        sign_up(&app, Some("initech")).await;
        let forget =
            "delete from tenantd.signup; delete from tenantd.tenant; update tenantd.registry set users_held_at = null";
        execute(&database, forget).await;
        let missing = fleet.request_missing().await;
        assert_eq!((missing.users, missing.held), (2, true), "{naming}");
        assert_eq!(standing(&database, "initech").await, "requested held");
        let report = fleet.sweep().await;
        assert_eq!((report.made, report.failed.len()), (0, 0), "{report:?}");
        let after = row(&database, "acme").await;
        assert_eq!(
            (after["state"].as_str(), &after["database_oid"]),
            (Some("ready"), &before["database_oid"]),
            "{naming}"
        );
        let name = fleet.names().of("initech").expect("a name");
        database.outside(&format!("create database {name}")).await;
        let installed = Fleet::install(&database, &[("tenant.naming", naming)]).await;
        let note = installed.installed.notes.iter().find(|note| note.contains("are held")).expect("a note");
        assert!(note.contains(&format!("1 {}s bear their names already", database.isolation())), "{note}");
        database.outside(&format!("drop database {name}")).await;
        drop(app);
        installed.close().await;
        fleet.close().await;
        database.finish().await;
    }
}
