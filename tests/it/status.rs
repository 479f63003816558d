//! `tenantd status` on a real server: rows in every state, and each thing that needs a person.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tenantd::commands::given::Given;
use tenantd::commands::{ExitStatus, status};
use tenantd::config::Config;
use tenantd::error::{Error, Kind};
use tenantd::migrations::{Migration, MigrationSet, Mode};
use tenantd::pg::Server;
use tenantd::registry::Worker;
use tenantd::tasks::Tasks;
use tokio_postgres::Client;

use crate::fleet::{Fleet, config};
use crate::support::audit::Finding;
use crate::support::daemon::Program;
use crate::support::database::{STRANGER_PASSWORD, TestDatabase};

const SOON: Duration = Duration::from_secs(20);

/// A set of `names`, versions from 1 on.
fn set(names: &[&str]) -> MigrationSet {
    let migration = |(version, name): (i64, &&str)| Migration {
        version,
        name: (*name).to_owned(),
        checksum: format!("checksum of {name}"),
        file: format!("folder/{version:04}_{name}.sql"),
        sql: "select 1".to_owned(),
        down: None,
        mode: Mode::Transaction,
        breaking: None,
    };
    MigrationSet::new("folder", (1..).zip(names).map(migration).collect()).expect("a sound set")
}

/// An installed registry and what status is asked with.
struct Scene {
    database: TestDatabase,
    config: Config,
    set: MigrationSet,
    fleet: Fleet,
    superuser: Client,
}

impl Scene {
    async fn new(more: &[(&str, &str)]) -> Scene {
        let database = TestDatabase::new().await.allow(Finding::ReadyWithoutDatabase);
        let config = config(&database, more);
        let set = set(&["log_message", "add_level", "index_level"]);
        let fleet = Fleet::with_set(config.clone(), set.clone()).await.expect("install");
        let superuser = database.superuser().await;
        Scene { database, config, set, fleet, superuser }
    }

    async fn sql(&self, sql: &str) {
        self.superuser.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Puts `number` tenants into the registry; `columns` and `values` besides their keys.
    async fn tenants(&self, number: u32, columns: &str, values: &str) {
        self.sql(&format!(
            "insert into tenantd.tenant (key, {columns}) select gen_random_uuid()::text, {values} from generate_series(1, {number})"
        ))
        .await;
    }

    /// Tenants that are ready with `set`.
    async fn ready(&self, number: u32, set: &MigrationSet) {
        self.fleet.context.registry.keep_set(set).await.expect("keep the set");
        let (version, id) = (set.newest_version(), set.id());
        let values = format!("'ready', 'idle', {version}, '{id}', '2026-01-02T03:04:05Z', 1");
        self.tenants(number, "state, work, version, migration_set, migrated_at, database_oid", &values).await;
    }

    async fn ask(&self, json: bool) -> (String, ExitStatus) {
        let tasks = Tasks::new();
        let server = Server::new(self.config.main.clone(), tasks.clone());
        let mut out = Vec::new();
        // One connection must do.
        let worker = Worker::new("status", "test", "test", 1, &self.config.tenant);
        let (config, set) = (Arc::new(self.config.clone()), Arc::new(self.set.clone()));
        let given = Given { server, config, set, worker, tasks: tasks.clone(), json };
        let status = status::run(&given, &mut out).await.expect("status");
        assert!(tasks.stop(SOON).await.is_empty());
        (String::from_utf8(out).expect("text"), status)
    }

    async fn text(&self) -> String {
        self.ask(false).await.0
    }

    async fn json(&self) -> Value {
        let (text, status) = self.ask(true).await;
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(shown["format"], 1);
        assert_eq!(shown["ok"] == true, status == ExitStatus::Well, "{status:?}");
        shown
    }

    /// The words of what needs a person.
    async fn needs(&self) -> Vec<String> {
        words(&self.json().await["needs_person"])
    }

    async fn end(self) {
        drop(self.superuser);
        self.fleet.close().await;
        self.database.finish().await;
    }
}

fn words(remarks: &Value) -> Vec<String> {
    let word = |remark: &Value| remark["word"].as_str().expect("a word").to_owned();
    remarks.as_array().expect("a list").iter().map(word).collect()
}

/// Goal: five hundred tenants in all states are counted right, in both forms, and nothing is written. Method: rows by SQL.
#[tokio::test]
async fn five_hundred_tenants_at_a_glance() {
    let scene = Scene::new(&[]).await;
    scene.ready(400, &scene.set).await;
    scene.ready(20, &set(&["log_message"])).await;
    scene.tenants(30, "created_at, due_at", "now() - interval '10 min', now() - interval '9 min'").await;
    scene.tenants(20, "work", "'held'").await;
    let old = set(&["log_message"]).id();
    let errors =
        "version, migration_set, state, work, failures, due_at, error_kind, error_text, error_sqlstate, error_step";
    let parked = "'ready', 'parked', 10, now() - interval '2 h', 'conflict', 'in the way', null, 'plan'";
    scene.tenants(27, errors, &format!("1, '{old}', {parked}")).await;
    let failing = "'ready', 'failing', 2, now() + interval '1 h', 'migration', E'broken\\n  1 | x', '42601', 'migrate'";
    scene.tenants(3, errors, &format!("1, '{old}', {failing}")).await;
    let rows = "select md5(string_agg(t::text || t.xmin::text, '' order by key)) from tenantd.tenant t";
    let before: String = scene.superuser.query_one(rows, &[]).await.expect("hash").get(0);

    let shown = scene.json().await;
    let counts: Vec<_> = shown["counts"].as_array().expect("a list").iter().map(ToString::to_string).collect();
    let count =
        |state: &str, work: &str, tenants: i64| json!({ "state": state, "work": work, "tenants": tenants }).to_string();
    let expected = [
        ("ready", "failing", 3),
        ("ready", "idle", 420),
        ("ready", "parked", 27),
        ("requested", "due", 30),
        ("requested", "held", 20),
    ];
    assert_eq!(counts, expected.map(|(state, work, tenants)| count(state, work, tenants)));
    assert_eq!((&shown["tenants"], &shown["waiting"], &shown["held"]), (&json!(500), &json!(33), &json!(20)));
    assert_eq!(
        (shown["parked"].as_array().map(Vec::len), shown["failing"].as_array().map(Vec::len)),
        (Some(27), Some(3))
    );
    let versions = shown["versions"].as_array().expect("a list");
    let brief = |row: &Value| (row["version"].clone(), row["tenants"].clone(), row["standing"].clone());
    assert_eq!(brief(&versions[0]), (json!(3), json!(400), json!("current")));
    assert_eq!(brief(&versions[1]), (json!(1), json!(50), json!("behind")));
    assert_eq!(
        versions[1]["pending"],
        json!([{ "version": 2, "name": "add_level" }, { "version": 3, "name": "index_level" }])
    );
    assert_eq!(
        (&versions[1]["name"], &versions[1]["migrated_at"]),
        (&json!("log_message"), &json!("2026-01-02T03:04:05Z"))
    );
    assert!(shown["oldest_waiting_seconds"].as_f64().expect("a number") >= 600.0);
    assert!(shown["overdue_seconds"].as_f64().expect("a number") >= 540.0);
    assert_eq!(words(&shown["needs_person"]), ["parked", "no_daemon"]);
    assert_eq!(words(&shown["good_to_know"]), ["held", "failing"]);

    let (text, status) = scene.ask(false).await;
    assert_eq!(status, ExitStatus::Findings);
    for line in [
        "ready      idle         420",
        "      3  index_level     2026-01-02 03:04:05 UTC      400  nothing",
        "      1  log_message     2026-01-02 03:04:05 UTC       50  2 add_level, 3 index_level",
        "    migration at step migrate: SQLSTATE 42601: broken",
        "      1 | x",
        "2. No daemon is connected, and 33 tenants wait for one.",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}\nnot in\n{text}");
    }
    assert_eq!(text.matches("conflict at step plan: in the way").count(), 27);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let after: String = scene.superuser.query_one(rows, &[]).await.expect("hash").get(0);
    assert_eq!(before, after, "status only reads");
    scene.end().await;
}

/// Goal: past fifty problems the rest is counted, with where to read it. Method: sixty.
#[tokio::test]
async fn of_many_problems_the_rest_is_counted() {
    let scene = Scene::new(&[]).await;
    scene.tenants(60, "work, error_kind, error_text", "'parked', 'bad_key', 'no uuid'").await;
    let text = scene.text().await;
    assert_eq!(text.matches("bad key: no uuid").count(), 50, "{text}");
    assert!(
        text.contains("\n  and 10 more: select key, last_error from tenantd.tenants where work = 'parked'\n"),
        "{text}"
    );
    let rest = "select count(*) from tenantd.tenants where work = 'parked' and last_error = 'bad_key: no uuid'";
    assert_eq!(scene.superuser.query_one(rest, &[]).await.expect("the view").get::<_, i64>(0), 60);
    scene.end().await;
}

/// Goal: the doorbell's holder is known for what it is. Method: a stranger takes the lock, then something named as a daemon.
#[tokio::test]
async fn the_doorbells_holder_is_named() {
    let scene = Scene::new(&[]).await;
    assert_eq!(scene.needs().await, Vec::<String>::new());
    assert_eq!(words(&scene.json().await["good_to_know"]), ["no_daemon_needed"]);
    let stranger = scene.database.server().client("stranger", STRANGER_PASSWORD, scene.database.name()).await;
    stranger.batch_execute("select pg_advisory_lock(20250, 1)").await.expect("anyone may");
    let holder = scene.json().await["doorbell"]["holder"].clone();
    assert_eq!(
        (&holder["role"], &holder["application_name"], &holder["daemon"]),
        (&json!("stranger"), &json!("test"), &json!(false))
    );
    assert_eq!(scene.needs().await, ["doorbell_taken"]);
    let text = scene.text().await;
    assert!(text.contains("Doorbell     taken by role stranger, which is no daemon\n"), "{text}");
    assert!(text.contains(&format!("select pg_terminate_backend({})", holder["pid"])), "{text}");
    stranger.batch_execute("select pg_advisory_unlock(20250, 1)").await.expect("let go");

    // A signup in the middle of its transaction holds the lock shared: that is nobody's fault.
    stranger.batch_execute("begin; select pg_advisory_xact_lock_shared(20250, 1)").await.expect("anyone may");
    assert_eq!(scene.json().await["doorbell"]["holder"], Value::Null);
    stranger.batch_execute("rollback").await.expect("let go");

    let prepared = "begin; select pg_advisory_xact_lock(20250, 1); prepare transaction 'status_bell'";
    scene.sql(prepared).await;
    assert_eq!(scene.needs().await, ["doorbell_taken"]);
    assert!(scene.text().await.contains("pg_prepared_xacts"));
    scene.sql("rollback prepared 'status_bell'").await;

    let daemon = scene.database.tenantd().await;
    daemon
        .batch_execute("set application_name = 'tenantd:daemon web:7'; select pg_advisory_lock(20250, 1)")
        .await
        .expect("arm");
    let shown = scene.json().await;
    assert_eq!((&shown["ok"], &shown["daemons"]), (&json!(true), &json!(["web:7"])));
    assert!(scene.text().await.contains("Doorbell     armed by web:7\n"));
    drop((daemon, stranger));
    scene.end().await;
}

/// Goal: each fault of the signup table's side is told apart. Method: break it in each way.
#[tokio::test]
async fn the_signup_tables_faults_are_told() {
    let scene = Scene::new(&[]).await;
    for (sql, needs) in [
        ("alter table public.users disable trigger tenantd_signup", "trigger_disabled"),
        ("alter table public.users enable replica trigger tenantd_signup", "trigger_disabled"),
        ("drop trigger tenantd_signup on public.users", "trigger_missing"),
        (
            "create trigger tenantd_signup after insert on public.users for each row execute function tenantd.signup()",
            "trigger_wrong",
        ),
    ] {
        scene.sql(sql).await;
        assert_eq!(scene.needs().await, [needs], "{sql}");
    }
    scene.fleet.context.registry.mend(&scene.config).await.expect("mend");
    scene.sql("alter table public.users enable row level security").await;
    assert_eq!(scene.needs().await, ["users_hidden"]);
    scene.sql("alter table public.users disable row level security; alter table public.users rename to people").await;
    let shown = scene.json().await;
    assert_eq!(words(&shown["needs_person"]), ["signup_table"]);
    assert_eq!(shown["signup"]["error"]["kind"], "usage");
    scene.sql("alter table public.people rename to users; revoke trigger on public.users from tenantd").await;
    assert_eq!(scene.json().await["signup"]["error"]["kind"], "rights");
    assert!(scene.text().await.contains("grant select (\"id\"), trigger on"));
    scene.end().await;
}

/// Goal: how the set stands to what tenants have is told by file. Method: tenants with a newer, a changed and an out-of-order set.
#[tokio::test]
async fn the_sets_relation_is_told() {
    let scene = Scene::new(&[]).await;
    scene.ready(2, &set(&["log_message", "add_level", "index_level", "later"])).await;
    let shown = scene.json().await;
    assert_eq!(
        (words(&shown["needs_person"]), &shown["migrations"]["relation"]),
        (vec!["migrations_newer".to_owned()], &json!("older"))
    );
    assert_eq!(
        (&shown["migrations"]["newer_tenants"], &shown["versions"][0]["standing"]),
        (&json!(2), &json!("newer"))
    );

    scene.ready(1, &set(&["log_message", "other"])).await;
    assert_eq!(scene.needs().await, ["migrations_diverged", "migrations_newer"]);
    let text = scene.text().await;
    assert!(text.contains("- folder/0002_add_level.sql was changed after version 2 was applied"), "{text}");

    let mut gap = scene.set.migrations().to_vec();
    gap.remove(1);
    scene.ready(1, &MigrationSet::new("folder", gap).expect("a sound set")).await;
    let shown = scene.json().await;
    assert_eq!(words(&shown["needs_person"])[0], "migrations_refused");
    let refused = shown["migrations"]["refused"][0].as_str().expect("a reason");
    assert!(refused.starts_with("folder/0002_add_level.sql was not applied and is older than version 3"), "{refused}");
    scene.end().await;
}

/// Goal: the brakes and what was left half-made are told. Method: few tenants allowed, and a database that nobody is making.
#[tokio::test]
async fn brakes_and_leftovers_are_told() {
    let scene = Scene::new(&[("tenant.max", "5"), ("tenant.max_per_hour", "4")]).await;
    scene.ready(4, &scene.set).await;
    let shown = scene.json().await;
    assert_eq!(words(&shown["good_to_know"])[0], "tenant_max_near");
    scene.tenants(1, "work", "'due'").await;
    scene.sql("update tenantd.tenant set ready_at = now() where state = 'ready'").await;
    assert_eq!(scene.needs().await, ["tenant_max_per_hour", "no_daemon"]);
    scene.ready(1, &scene.set).await;
    assert_eq!(scene.needs().await, ["tenant_max", "no_daemon"]);
    assert_eq!(scene.json().await["brakes"], json!({ "tenants": 5, "max": 5, "made_last_hour": 4, "max_per_hour": 4 }));

    let spare = tenantd::tenant::spare_name();
    scene.sql(&scene.database.meant(&format!("create database {spare}"))).await;
    scene
        .sql(&format!(
            "insert into tenantd.spare (name, key, attempt) values ('{spare}', 'gone', 1), ('tenantd_spare_never_made', 'gone', 1)"
        ))
        .await;
    let shown = scene.json().await;
    assert_eq!(shown["spares"], json!({ "at_hand": 0, "in_the_making": 0, "left_over": 1 }));
    assert!(words(&shown["good_to_know"]).contains(&"strays".to_owned()));
    scene.end().await;
}

/// Goal: the built program's exit codes. Method: without a registry, beside a daemon, with the registry renamed, with nobody listening.
#[tokio::test]
async fn the_programs_exit_codes() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    let none = program.run(&["status"]).await;
    assert_eq!(none.code(), 2, "{none:?}");
    assert!(none.stderr.contains("there is no registry") && none.stderr.contains("tenantd setup"), "{none:?}");

    let daemon = program.start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let well = program.run(&["status"]).await;
    assert_eq!((well.code(), well.stderr.as_str()), (0, ""), "{well:?}");
    assert!(well.stdout.ends_with("All is well."), "{well:?}");
    let json = program.run(&["status", "--json"]).await;
    let shown: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(shown["daemons"].as_array().map(Vec::len), Some(1), "{shown}");
    daemon.terminate().await;

    let gone = program.clone().setting("main.url", "postgresql://tenantd@127.0.0.1:1/app?sslmode=disable");
    assert_eq!(gone.run(&["status"]).await.code(), 3);
    database.finish().await;
}

/// Goal: an error's kind decides the exit code. Method: each kind.
#[test]
fn kinds_have_their_exit_status() {
    for kind in Kind::ALL {
        let expected = match kind {
            Kind::Usage => 2,
            Kind::Unreachable | Kind::ReadOnly | Kind::Login | Kind::Tls | Kind::TooManyConnections => 3,
            Kind::RegistryNewer => 4,
            _ => 1,
        };
        assert_eq!(ExitStatus::from(&Error::new(kind, "x")) as u8, expected, "{kind}");
    }
}

/// Goal: a sweep by hand reports what it did. Method: one signup; nothing; a stranger's database in the way of another.
#[tokio::test]
async fn a_sweep_by_hand_reports() {
    let database = TestDatabase::new().await.allow(Finding::OpenToPublic);
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    database.sign_up("one@example.org").await;
    let made = program.run(&["--sweep-once"]).await;
    assert_eq!(made.code(), 0, "{made:?}");
    assert!(made.stdout.ends_with(": 1 chosen, 1 ready (1 made, 0 migrated), 0 failed (0 of them parked)"), "{made:?}");
    let nothing = program.run(&["--sweep-once"]).await;
    assert_eq!((nothing.code(), nothing.stdout.lines().count()), (0, 1), "{nothing:?}");
    assert!(nothing.stdout.starts_with("nothing to do: every tenant is as it should be ("), "{nothing:?}");

    let key = database.sign_up("two@example.org").await;
    let name = database.tenant_name(&key);
    database.outside(&format!("create database {name}")).await;
    let failed = program.run(&["--sweep-once"]).await;
    assert_eq!(failed.code(), 1, "{failed:?}");
    let lines: Vec<_> = failed.stdout.lines().take(2).collect();
    assert!(lines[0].starts_with(&format!("{key} parked: ")) && lines[0].ends_with("marker"), "{lines:?}");
    assert!(lines[1].starts_with("    hint: somebody else made it"), "{lines:?}");
    let json = program.run(&["--sweep-once", "--json"]).await;
    let shown: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((&shown["failed"][0]["key"], &shown["failed"][0]["error"]["kind"]), (&json!(key), &json!("conflict")));
    let status = program.run(&["status"]).await;
    assert!(status.code() == 1 && status.stdout.contains("\nParked (1):\n"), "{status:?}");
    database.finish().await;
}
