//! Names, keys, texts and tables that somebody made to do harm: they come back equal, or are refused; nothing is cut, and nothing of them runs.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use tenantd::config::{Isolation, Sources, load};
use tenantd::error::Kind;
use tenantd::migrations::embedded;
use tenantd::migrations::split::split;
use tenantd::pg::{History, quote};
use tenantd::tenant::MAX_IDENTIFIER_BYTES;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::fleet::{Fleet, config, execute};
use crate::sql::{one, run, tenants, warnings};
use crate::support::audit::Finding;
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::{TestDatabase, isolation};

/// So many values, the same in each run.
fn several<S: Strategy>(strategy: &S, number: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..number).map(|_| strategy.new_tree(&mut runner).expect("a value").current()).collect()
}

const ATTACKS: [&str; 12] = [
    "'; drop schema tenantd cascade; --",
    "\"; drop table public.users; --",
    "$tenantd$; drop database postgres; $tenantd$",
    "{id}{owner}{ring}{write}",
    "\\'; select pg_sleep(9); --",
    "a\nb\r\nc\td",
    "%s%I%L%%$1",
    "\u{202e}desrever\u{0}",
    "Robert'); --",
    "../../etc/passwd",
    "\u{1b}[31mred\u{7}",
    "tenantd_spare_x",
];

/// Texts of every sort and length, without the zero byte, which no text of Postgres's can hold.
fn texts(longest: usize) -> BoxedStrategy<String> {
    let attack = proptest::sample::select(ATTACKS.to_vec());
    prop_oneof![
        2 => ".{1,40}",
        2 => "[\\x01-\\x7f]{1,80}",
        2 => (attack, "[a-z'\"\\\\]{0,4}").prop_map(|(attack, end)| format!("{attack}{end}")),
        1 => "[é😀\"']{14,22}",
        1 => "[a-z]{60,66}",
        1 => proptest::collection::vec(any::<char>(), 1..longest).prop_map(String::from_iter),
    ]
    .prop_map(|text| text.replace('\0', ""))
    .prop_filter("not empty", |text| !text.is_empty())
    .boxed()
}

/// Goal: whatever a key is, it comes back equal and is parked with why, and holds up nobody; one that no index could hold is left out and told.
/// Method: a signup table of any text; generated keys, odd spellings of uuids among them, beside one that is good.
#[tokio::test]
async fn any_key_comes_back_equal_or_is_left_out() {
    let database = TestDatabase::new().await.allow(Finding::UserWithoutTenant);
    // Without an index of its own, which would refuse the longest.
    let table = "drop table public.users; create table public.users (id text); grant insert on public.users to app;
                 grant select (id), trigger on public.users to tenantd";
    execute(&database, table).await;
    let fleet = Fleet::install(&database, &[("tenant.max", "100000")]).await;
    let mut keys: BTreeSet<String> = several(&texts(3000), times(300, 10_000)).into_iter().collect();
    let uuid = "5a0c6e5e-9a3f-4a53-8f39-0a6f1a6f0001";
    for odd in [
        uuid.to_uppercase(),
        uuid.replace('-', ""),
        format!("{{{uuid}}}"),
        format!("{uuid}\n"),
        format!("urn:uuid:{uuid}"),
    ] {
        keys.insert(odd);
    }
    keys.insert(uuid.to_owned());
    let longest: String = several(&"[ -~]{5000}", 1).remove(0);
    keys.insert(longest.clone());
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    let app = database.app().await;
    app.execute("insert into public.users select unnest($1::text[])", &[&all]).await.expect("a signup never fails");

    let report = fleet.sweep().await;
    let (fit, too_long): (BTreeSet<_>, BTreeSet<_>) = keys.iter().cloned().partition(|key| key.len() <= 1000);
    assert!(too_long.contains(&longest));
    assert_eq!((report.made, report.requested), (1, 0), "{report:?}");
    let stand = tenants(&database).await;
    assert_eq!(stand.iter().map(|tenant| tenant.0.clone()).collect::<BTreeSet<_>>(), fit);
    assert!(!warnings(&database).is_empty(), "a key of thousands of bytes is told");
    for (key, state, work) in &stand {
        let expected = if key == uuid { ("ready", "idle") } else { ("requested", "parked") };
        assert_eq!((state.as_str(), work.as_str()), expected, "{key:?}");
    }
    let kinds = "select string_agg(distinct error_kind, ',') from tenantd.tenant where work = 'parked'";
    assert_eq!(one::<String>(&database.superuser().await, kinds).await, "bad_key");
    let again = fleet.try_sweep(false).await.expect("sweep");
    assert_eq!((again.requested, again.made), (0, 0), "those left out are not found over and over");
    fleet.close().await;
    let listed = Program::for_database(&database).run(&["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON, whatever the keys hold");
    let listed = listed["tenants"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|tenant| tenant["key"].as_str().expect("a key").to_owned());
    assert!(listed.collect::<BTreeSet<_>>().is_subset(&fit));
    database.finish().await;
}

/// Goal: names and texts mean to the server what they mean here, byte for byte. Method: generated ones, as names of columns and as values.
#[tokio::test]
async fn quoted_names_and_texts_come_back_equal() {
    let database = TestDatabase::new().await;
    let client = database.tenantd().await;
    let mut names = several(&texts(40), times(500, 10_000));
    names.retain(|name| name.len() <= MAX_IDENTIFIER_BYTES);
    for some in names.chunks(100) {
        let columns: Vec<String> =
            some.iter().map(|name| format!("{} as {}", quote::literal(name), quote::identifier(name))).collect();
        let row = client.query_one(&format!("select {}", columns.join(", ")), &[]).await.expect("it is SQL");
        for (index, name) in some.iter().enumerate() {
            assert_eq!((row.columns()[index].name(), row.get::<_, &str>(index)), (name.as_str(), name.as_str()));
        }
    }
    drop(client);
    database.finish().await;
}

/// Names as settings may hold them: what is refused there is told apart here.
struct Names {
    schema: String,
    table: String,
    column: String,
    owner: String,
    worker: String,
}

impl Names {
    fn all(&self) -> [&String; 5] {
        [&self.schema, &self.table, &self.column, &self.owner, &self.worker]
    }

    /// The settings as a file has them, each name in quotes.
    fn file(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let text = |text: String| toml::Value::from(text).to_string();
        // A schema is not handed over at the commit.
        let (handover, spares) = match isolation() {
            Isolation::Database => ("commit", "[spares]\nmin = 1\nmax = 1\n"),
            Isolation::Schema => ("daemon", ""),
        };
        format!(
            "[signup]\ntable = {}\nid_column = {}\nhandover = \"{handover}\"\n[tenant]\nowner = {}\nuse = [{}]\n{spares}",
            text(format!("{}.{}", quoted(&self.schema), quoted(&self.table))),
            text(quoted(&self.column)),
            text(quoted(&self.owner)),
            text(quoted(&self.worker)),
        )
    }

    /// Makes them as the server itself quotes them.
    async fn make(&self, admin: &Client) {
        for (sql, names) in [
            ("create role %I nologin", [&self.owner, "", ""]),
            ("grant %I to tenantd", [&self.owner, "", ""]),
            ("create role %I nologin", [&self.worker, "", ""]),
            ("create schema %I", [&self.schema, "", ""]),
            ("create table %I.%I (%I uuid default gen_random_uuid())", [&self.schema, &self.table, &self.column]),
            ("grant usage on schema %I to tenantd", [&self.schema, "", ""]),
            ("grant select (%3$I), trigger on %1$I.%2$I to tenantd", [&self.schema, &self.table, &self.column]),
        ] {
            said_by_the_server(admin, sql, names).await;
        }
    }

    async fn remove(&self, admin: &Client) {
        for role in [&self.owner, &self.worker] {
            said_by_the_server(admin, "drop owned by %I", [role, "", ""]).await;
            said_by_the_server(admin, "drop role %I", [role, "", ""]).await;
        }
    }
}

/// Runs `sql` with `names` put in by the server's own `format`.
async fn said_by_the_server(admin: &Client, sql: &str, names: [&str; 3]) {
    let [first, second, third] = names;
    let format = "select format($1::text, $2::text, $3::text, $4::text)";
    let row = admin.query_one(format, &[&sql, &first, &second, &third]).await.expect("format");
    run(admin, row.get(0)).await;
}

/// Goal: names that hold SQL, quotes, signs of ours, or more than fits work as they are or are refused before anything is done. Method: generated
/// names of schema, table, column and roles, quoted by the server itself; a signup that gets its spare at its commit, and one by a sweep.
#[tokio::test]
async fn any_names_in_settings_work_or_are_refused() {
    let (mut taken, mut refused) = (0, 0);
    let one_of = prop_oneof![1 => texts(30), 9 => "[ -~é😀]{1,15}|[\"';$%\\\\{}.-]{1,12}"].boxed();
    let names = (one_of.clone(), one_of.clone(), one_of.clone(), one_of.clone(), one_of);
    let fits = |name: &String| {
        let reserved =
            name.starts_with("pg_") || name.eq_ignore_ascii_case("public") || name.eq_ignore_ascii_case("none");
        name.len() <= MAX_IDENTIFIER_BYTES && !name.chars().any(char::is_control) && !reserved
    };
    let attacks = ["$tenantd$", "{owner}\"", "x'{id}{ring}", "{write}'--"];
    let made_for_us = Names {
        schema: "{id}'".into(),
        table: attacks[0].into(),
        column: attacks[1].into(),
        owner: attacks[2].into(),
        worker: attacks[3].into(),
    };
    let others = several(&names, times(12, 200)).into_iter();
    let others = others.map(|(schema, table, column, owner, worker)| Names { schema, table, column, owner, worker });
    for names in std::iter::once(made_for_us).chain(others) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tenantd.toml");
        std::fs::write(&file, names.file()).expect("write the settings");
        let mut sources = Sources::of([("PGHOST", "localhost"), ("PGUSER", "tenantd"), ("PGDATABASE", "app")]);
        sources.file = Some(file.clone());
        let sound = names.all().into_iter().all(fits);
        match load(&sources) {
            Err(error) => {
                assert!(!sound && error.kind() == Kind::Usage, "{}", error.chain());
                refused += 1;
            }
            Ok(loaded) if sound && names.owner != names.worker => {
                let settings = &loaded.config;
                assert_eq!([&settings.signup.schema, &settings.signup.table], [&names.schema, &names.table]);
                assert_eq!([&settings.signup.id_column, &settings.tenant.use_roles[0]], [&names.column, &names.worker]);
                // The whole way takes a second: for the first ones.
                if taken < times(2, 40) {
                    Box::pin(whole_way(&names, &file)).await;
                }
                taken += 1;
            }
            Ok(_) => {}
        }
    }
    assert!(taken > 1 && refused > 1, "{taken} taken, {refused} refused");
}

async fn whole_way(names: &Names, file: &std::path::Path) {
    let database = TestDatabase::new().await;
    let admin = database.superuser().await;
    names.make(&admin).await;
    let settings = [
        ("main.url", database.url()),
        ("tenant.isolation", database.isolation().word().to_owned()),
        ("tenant.prefix", database.prefix().to_owned()),
        ("http.listen", String::new()),
    ];
    let mut sources = Sources::of(std::iter::empty::<(String, String)>());
    sources.file = Some(file.to_owned());
    sources.flags.extend(settings.map(|(key, value)| (key.to_owned(), value)));
    let config = load(&sources).expect("the names are sound").config;
    let set = || embedded::tenant().expect("the embedded set");
    let fleet = Fleet::with_set(config.clone(), set()).await.expect("install");
    let insert = "insert into %I.%I default values";
    said_by_the_server(&admin, insert, [&names.schema, &names.table, ""]).await;
    let by_replication = format!("set session_replication_role = replica; {insert}; reset session_replication_role");
    said_by_the_server(&admin, &by_replication, [&names.schema, &names.table, ""]).await;
    assert_eq!(warnings(&database), [""; 0]);
    let report = fleet.sweep().await;
    assert_eq!((report.requested, report.made, report.failed.len()), (1, 2, 0), "{report:?}");
    let place = database.place(&admin).await;
    let owners = format!("select string_agg(distinct owner, ' ') from {place} p join tenantd.tenant using (name)");
    assert_eq!(one::<String>(&admin, &owners).await, names.owner);
    let may = format!(
        "select bool_and(exists (select from aclexplode(acl) where grantee = (select oid from pg_roles where rolname = $1)))
         from {place} p join tenantd.tenant using (name)"
    );
    assert!(admin.query_one(&may, &[&names.worker]).await.expect("look").get::<_, bool>(0));
    fleet.close().await;
    let again = Fleet::with_set(config, set()).await.expect("install");
    assert_eq!(again.installed.changes, [""; 0], "it knows its own");
    again.close().await;
    drop(admin);
    let server = database.server().clone();
    database.finish().await;
    names.remove(&server.superuser("postgres").await).await;
}

/// What the server answers to `sql`, value by value; `None` where it refuses it.
async fn answers(client: &Client, sql: &str) -> Option<Vec<String>> {
    let messages = client.simple_query(sql).await.ok()?;
    let text =
        |row: &SimpleQueryRow| (0..row.len()).map(|at| row.get(at).unwrap_or("null")).collect::<Vec<_>>().join("|");
    Some(
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(text(row)),
                SimpleQueryMessage::CommandComplete(_) => Some(";".to_owned()),
                _ => None,
            })
            .collect(),
    )
}

/// Goal: text comes apart where the server takes it apart. Method: generated scripts of quotes, comments and names; where the server takes the whole,
/// the pieces one by one give the same answers.
#[tokio::test]
async fn the_splitter_agrees_with_the_server() {
    let database = TestDatabase::new().await;
    let client = database.superuser().await;
    let value = prop_oneof![
        "'([a;\\\\\"$]|''|--|/\\*){0,4}'",
        "[eE]'([a;\"$]|\\\\'|\\\\\\\\|''|--){0,4}'( -- [a';]{0,3}\n(--'\n)? ?'([a;]|\\\\'){0,3}')?",
        "\\$\\$[a;'\"\\\\]{0,4}\\$\\$",
        "\\$(b|_1|é)\\$([a;'\"\\\\]|\\$\\$|\\$c\\$){0,4}",
        "1 as \"([a;'$]|\"\"|--){1,4}\"",
        "1 as a\\$[b$]{0,3}",
        "u&'[a;]{0,2}'",
        "[(]([a-z;'\"$\\\\(]){0,3}[)]",
        "1 -- [a;'\"$]{0,4}\n",
        "1 /\\*([a;'\"$]|/\\* ; \\*/){0,4}\\*/",
        ".{0,6}",
    ]
    .prop_map(|value| match value.strip_prefix("$b$") {
        Some(_) => format!("{value}$b$"),
        None => value,
    });
    let statement = prop_oneof![
        8 => value.prop_map(|value| format!("select {value}")),
        1 => "( |-- ;\n|/\\* ; \\*/){0,2}".prop_map(|blank| blank),
        1 => Just("do $$ begin perform 1; end $$".to_owned()),
        1 => "create or replace function pg_temp.f() returns int begin atomic (select 1 (as )?end; )?select case 1 when 1 then 2 end; end"
            .prop_map(|text| text),
    ];
    let scripts = proptest::collection::vec(statement, 1..5).prop_map(|statements| statements.join(";"));
    let mut compared = 0;
    for script in several(&scripts, times(400, 20_000)) {
        let Some(whole) = answers(&client, &script).await else { continue };
        let mut pieces = Vec::new();
        for statement in split(&script) {
            let answer = answers(&client, statement.text).await;
            pieces.extend(answer.unwrap_or_else(|| panic!("{:?} of {script:?}", statement.text)));
        }
        if pieces.is_empty() {
            pieces.push(";".to_owned());
        }
        assert_eq!(pieces, whole, "{script:?}");
        compared += 1;
    }
    assert!(compared > times(100, 5000), "{compared} scripts were SQL");
    drop(client);
    database.finish().await;
}

/// Goal: a history that somebody wrote to is read as it stands or called what it is, and never anything worse. Method: tables of its name with odd
/// columns, and rows of odd values.
#[tokio::test]
async fn any_history_is_read_or_refused() {
    let database = TestDatabase::new().await;
    let client = database.superuser().await;
    let history = History::tenant("public");
    let columns = "version bigint, name text, checksum text, applied_at timestamptz, statements_done integer, statements_undone integer, duration_ms bigint";
    run(&client, &format!("create table public.tenantd_migration ({columns})")).await;
    let rows = (
        any::<i64>(),
        texts(200),
        texts(200),
        any::<bool>(),
        -2_i32..9,
        proptest::option::of(-2_i32..9),
        proptest::option::of(any::<i64>()),
    );
    for (version, name, checksum, finished, done, undone, took) in several(&rows, times(60, 2000)) {
        let insert = "with cleared as (delete from public.tenantd_migration)
                      insert into public.tenantd_migration values ($1, $2, $3, case when $4 then now() end, $5, $6, $7)";
        client.execute(insert, &[&version, &name, &checksum, &finished, &done, &undone, &took]).await.expect("insert");
        match history.read(&client).await {
            Ok(read) => {
                assert_eq!((read.len(), read[0].entry.version, read[0].finished), (1, version, finished));
                assert_eq!((&read[0].entry.name, &read[0].entry.checksum), (&name, &checksum));
                assert!(done >= 0 && undone.is_none_or(|undone| undone >= 0));
            }
            Err(error) => assert!(error.kind() == Kind::Drift && (done < 0 || undone < Some(0)), "{}", error.chain()),
        }
    }
    for odd in [
        "version text",
        "version bigint, name text",
        "",
        "version bigint, name bytea, checksum text, applied_at text, statements_done text, statements_undone text, duration_ms text",
    ] {
        run(&client, &format!("drop table public.tenantd_migration; create table public.tenantd_migration ({odd})"))
            .await;
        let _ = client.execute("insert into public.tenantd_migration select", &[]).await;
        let read = history.read(&client).await;
        assert!(read.is_err(), "{odd}: {read:?}");
    }
    // To the daemon it is that tenant's trouble.
    run(&client, "drop table public.tenantd_migration").await;
    let fleet =
        Fleet::with_set(config(&database, &[]), embedded::tenant().expect("the embedded set")).await.expect("install");
    let key = database.sign_up("one@example.org").await;
    assert_eq!(fleet.sweep().await.made, 1);
    let inside = database.tenant_superuser(&database.tenant_name(&key)).await;
    run(&inside, "update tenantd_migration set statements_done = -1, name = e'x\\n\\x1b[31m'").await;
    execute(&database, "update tenantd.tenant set verified_at = now() - interval '2 days'").await;
    let report = fleet.sweep().await;
    assert_eq!((report.failed.len(), report.failed[0].error.kind()), (1, Kind::Drift), "{report:?}");
    fleet.close().await;
    drop((client, inside));
    database.finish().await;
}
