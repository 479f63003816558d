//! Lines 4 and 5: one new migration over many tenants, beside the floor: lanes that only connect over TLS and run the same SQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::Size;
use crate::figures::Samples;
use crate::floor::Door;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::Stage;
use crate::support::daemon::Program;
use crate::support::proxy::{Mode, Proxy};

/// `sweep.parallel` as shipped.
pub(crate) const PARALLEL: usize = 8;
/// Lanes where it is the network that is waited for, not the processor.
const PARALLEL_FAR: usize = 32;
/// Each way.
const DELAY: Duration = Duration::from_millis(2);

/// Tenants that get one migration after the other, by tenantd and by the floor in turn.
pub(crate) struct Fleet {
    pub(crate) stage: Stage,
    folder: PathBuf,
    /// The databases of all tenants, or their schemas.
    pub(crate) databases: Arc<Vec<String>>,
    migrations: usize,
}

impl Fleet {
    /// Makes `number` tenants on `stage`.
    pub(crate) async fn made(stage: Stage, number: usize) -> Self {
        let folder = stage.database.server().directory().join("migrations");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tenant-migrations"), &folder);
        let mut fleet = Fleet { stage, folder, databases: Arc::default(), migrations: 1 };
        fleet.stage.fill(&fleet.program(), number).await;
        fleet.databases = Arc::new(fleet.stage.database.tenant_databases().await);
        assert_eq!(fleet.databases.len(), number, "tenants");
        fleet
    }

    pub(crate) fn program(&self) -> Program {
        self.stage.program.clone().setting("tenant.migrations", &self.folder.display().to_string())
    }

    /// Tenants a second of a sweep with so many lanes to one new migration, by its own clock: without the start of the process.
    pub(crate) async fn sweep(&mut self, program: &Program, lanes: usize) -> f64 {
        self.migrations += 1;
        let number = self.migrations;
        let file = self.folder.join(format!("{number:04}_column.sql"));
        fs::write(file, sql(&format!("ours_{number}"))).expect("write a migration");
        let program = program.clone().setting("sweep.parallel", &lanes.to_string());
        let output = self.stage.tenantd(&program, &["--sweep-once", "--json"]).await;
        let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("a report");
        assert_eq!(report["migrated"], self.databases.len(), "{report}");
        self.rate(report["duration_seconds"].as_f64().expect("a number"))
    }

    /// Tenants a second of the floor with so many lanes.
    pub(crate) async fn floor(&mut self, door: &Door, lanes: usize) -> f64 {
        let (_, sql) = self.other_migration();
        let sql = format!("begin; set local role tenant_owner; {sql} commit");
        self.rate(door.run_in_each(&self.databases, sql, lanes).await.as_secs_f64())
    }

    /// The same for schemas: the lanes stay connected.
    pub(crate) async fn floor_of_schemas(&mut self, door: &Door, lanes: usize) -> f64 {
        let (_, sql) = self.other_migration();
        let sql = format!("begin; set local role tenant_owner; set local search_path = {{name}}; {sql} commit");
        let main = self.stage.database.name();
        self.rate(door.run_for_each(main, &self.databases, sql, lanes).await.as_secs_f64())
    }

    /// The same where each tenant's transaction also takes a lock, reads a history and writes a row into it.
    async fn floor_with_history(&mut self, door: &Door, lanes: usize) -> f64 {
        let (name, sql) = self.other_migration();
        let sql = format!(
            "begin; set local role tenant_owner; select pg_advisory_xact_lock(7); select name, done_at from public.floor_history;
             {sql} insert into public.floor_history values ('{name}', now()); commit"
        );
        self.rate(door.run_in_each(&self.databases, sql, lanes).await.as_secs_f64())
    }

    /// Tenants a second of a script that loops over them.
    async fn script(&mut self, door: &Door) -> f64 {
        let (file, sql) = self.other_migration();
        self.rate(door.run_one_by_one(&self.databases, &file, &sql).await.as_secs_f64())
    }

    fn other_migration(&mut self) -> (String, String) {
        self.migrations += 1;
        let name = format!("other_{}", self.migrations);
        let sql = sql(&name);
        (name, sql)
    }

    #[expect(clippy::cast_precision_loss, reason = "thousands of tenants")]
    fn rate(&self, seconds: f64) -> f64 {
        self.databases.len() as f64 / seconds
    }
}

/// A migration of the kind that is shipped every week: a column and its index.
fn sql(name: &str) -> String {
    format!("alter table log_message add column {name} text; create index on log_message ({name});")
}

/// One migration over a fleet near by, and over one behind a delay.
pub(crate) async fn measure(size: Size) -> Results {
    let mut measures = near(size.pick(40, 200), size.pick(2, 5)).await;
    if let Some(number) = size.pick(None, Some(2000)) {
        measures.extend(near(number, 3).await);
    }
    measures.extend(far(size).await);
    measures.into()
}

async fn near(number: usize, rounds: usize) -> Vec<Measure> {
    let mut fleet = Fleet::made(Stage::set().await, number).await;
    let server = Arc::clone(fleet.stage.database.server());
    let (program, door) = (fleet.program(), Door::new(&server, server.address()));
    let history = "begin; set local role tenant_owner;
                   create table public.floor_history (name text primary key, done_at timestamptz not null); commit";
    door.run_in_each(&fleet.databases, history.to_owned(), PARALLEL).await;
    let at_once = program.clone().setting("rollout.canary", "0").setting("rollout.waves", "100%");
    let (mut ours, mut all_at_once) = (Samples::default(), Samples::default());
    let (mut floor, mut with_history) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        ours.add(fleet.sweep(&program, PARALLEL).await);
        floor.add(fleet.floor(&door, PARALLEL).await);
        all_at_once.add(fleet.sweep(&at_once, PARALLEL).await);
        with_history.add(fleet.floor_with_history(&door, PARALLEL).await);
    }
    let what = format!("one new migration over {number} tenants, {PARALLEL} lanes");
    let row = |what: &str, ours| Measure::new(4, what, Unit::PerSecond, ours);
    let the_floor = "the floor: connect, same SQL";
    vec![
        row(&what, &ours).beside(the_floor, &floor).reach(Reach::TimesAtLeast(0.9)),
        row("that, beside a floor that keeps a history", &ours).beside("the same, a lock, a history", &with_history),
        row("that, without canaries and waves", &all_at_once).beside(the_floor, &floor),
        row("that, beside a floor that keeps a history", &all_at_once)
            .beside("the same, a lock, a history", &with_history),
    ]
}

async fn far(size: Size) -> Vec<Measure> {
    let mut fleet = Fleet::made(Stage::set().await, size.pick(16, 200)).await;
    let server = Arc::clone(fleet.stage.database.server());
    let proxy = Proxy::start(server.address()).await;
    proxy.set(Mode::Delay(DELAY));
    let url = proxy.url(&fleet.stage.database.url(), server.address());
    let (program, door) = (fleet.program().setting("main.url", &url), Door::new(&server, proxy.address()));
    let (mut ours, mut single) = (Samples::default(), Samples::default());
    let (mut floor, mut script) = (Samples::default(), Samples::default());
    for _ in 0..size.pick(1, 5) {
        ours.add(fleet.sweep(&program, PARALLEL_FAR).await);
        script.add(fleet.script(&door).await);
        floor.add(fleet.floor(&door, PARALLEL_FAR).await);
        single.add(fleet.sweep(&program, 1).await);
    }
    let round_trips = door.round_trips(&fleet.databases[0]).await;
    let row = |what: String, ours| Measure::new(5, what, Unit::PerSecond, ours);
    vec![
        row(format!("one new migration, 2 ms of delay each way, {PARALLEL_FAR} lanes"), &ours)
            .beside("a script, one after the other", &script)
            .reach(Reach::TimesAtLeast(8.0)),
        row("that, beside the floor over the same network".to_owned(), &ours)
            .beside(format!("the floor, {PARALLEL_FAR} lanes"), &floor),
        row("that, with a single lane".to_owned(), &single).beside("a script, one after the other", &script),
        Measure::new(5, "a round trip over that network", Unit::Milliseconds, &round_trips),
    ]
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("make the folder of migrations");
    for entry in fs::read_dir(from).expect("read the shipped migrations").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copy a migration");
    }
}
