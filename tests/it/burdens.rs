//! Dropping tenants beside what is in the way of it, and beside others at work: a server of its own, which decodes its log.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_postgres::Client;

use crate::fleet::{execute, oid};
use crate::life::{self, standing};
use crate::sql::{one, run};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process::{self, tell};
use crate::support::server::TestServer;
use crate::support::until::until;

const SOON: Duration = Duration::from_mins(1);

/// How long transactions took, in microseconds and in order, from pgbench's log. It writes block by block: one that was told to end leaves half a
/// line behind.
fn latencies(folder: &Path) -> Vec<u64> {
    let logs = std::fs::read_dir(folder)
        .expect("the folder")
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with("pgbench_log"));
    let texts: Vec<String> = logs.map(|log| std::fs::read_to_string(log.path()).expect("read")).collect();
    let whole = texts.iter().filter_map(|text| text.rsplit_once('\n')).flat_map(|(whole, _)| whole.lines());
    let mut took: Vec<u64> =
        whole.map(|line| line.split(' ').nth(2).expect("a time").parse().expect("a number")).collect();
    took.sort_unstable();
    took
}

/// What both parts of the test work with.
struct Scene {
    database: TestDatabase,
    program: Program,
    admin: Client,
    keys: Vec<String>,
}

impl Scene {
    /// One of the server's programs, as the superuser.
    fn client(&self, program: &str) -> Command {
        let server = self.database.server();
        let mut command = server.program(program);
        command.arg("--host").arg(server.directory()).args(["--port", &server.address().port().to_string()]);
        command.args(["--username", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    async fn drop_one(&self, key: &str) {
        let dropped = self.program.run(&["drop", key, "--skip-backup"]).await;
        assert_eq!(dropped.code(), 0, "{dropped:?}");
    }

    /// The first tenant, while its replication slot is read, and after.
    async fn drop_beside_a_slot(&self) {
        let (first, name) = (self.keys[0].as_str(), self.database.tenant_name(&self.keys[0]));
        let slot = "select pg_create_logical_replication_slot('kept', 'test_decoding')";
        run(&self.database.tenant_superuser(&name).await, slot).await;
        let mut reader = self.client("pg_recvlogical");
        reader.args(["--dbname", &name, "--slot", "kept", "--start", "--no-loop", "--file", "/dev/null"]);
        let mut reader = process::spawn(reader);
        let slot = "select active from pg_replication_slots where slot_name = 'kept'";
        until("the slot is read", SOON, async || one::<bool>(&self.admin, slot).await).await;
        let dropped = self.program.run(&["drop", first, "--skip-backup", "--timeout", "300ms"]).await;
        let why = dropped.stderr.contains("is in use: the replication slot kept");
        assert!(dropped.code() == 1 && why, "{dropped:?}");
        assert_eq!(standing(&self.database, first).await, "ready idle");
        process::signal(&mut reader, process::Signal::INT);
        process::wait("pg_recvlogical", &mut reader, SOON);
        until("nobody reads the slot", SOON, async || !one::<bool>(&self.admin, slot).await).await;
        self.drop_one(first).await;
    }

    /// pgbench in the last tenant, for so many seconds; `log` is where it writes how long each transaction took.
    fn bench(&self, log: &Path, seconds: &str) -> Child {
        let script = log.join("script.sql");
        std::fs::create_dir(log).expect("a folder");
        std::fs::write(&script, "update counter set n = n + 1;\n").expect("write the script");
        process::run(Command::new("chmod").args(["-R", "a+rwX"]).arg(log));
        let mut bench = self.client("pgbench");
        bench.args(["--no-vacuum", "--log", "--client", "2", "--time", seconds, "--file"]).arg(&script);
        bench.arg(self.busy()).current_dir(log);
        process::spawn(bench)
    }

    fn busy(&self) -> String {
        self.database.tenant_name(self.keys.last().expect("a tenant"))
    }

    /// All tenants but the first and the last, and all that was set aside.
    async fn drop_and_purge(&self) {
        for key in &self.keys[1..self.keys.len() - 1] {
            self.drop_one(key).await;
        }
        execute(&self.database, "update tenantd.dropped set purge_after = now()").await;
        until("all are purged", SOON, async || {
            assert_eq!(self.program.run(&["--sweep-once"]).await.code(), 0);
            one::<i64>(&self.admin, "select count(*) from tenantd.dropped").await == 0
        })
        .await;
    }
}

/// Goal: a tenant whose replication slot is read is left as it was, with what to do, and goes when nobody reads it; dropping very many takes nothing
/// from a tenant at work. Method: `pg_recvlogical`; then drops one after the other, and the purge of all, while pgbench runs in another tenant.
#[tokio::test]
async fn drops_leave_alone_who_is_at_work() {
    let database = TestDatabase::on(&TestServer::builder().setting("wal_level", "logical").start()).await;
    let folder = tempfile::tempdir().expect("a folder");
    process::run(Command::new("chmod").arg("a+rx").arg(folder.path()));
    let program = life::program(&database, folder.path());
    let keys = life::tenants(&database, &program, times(6, 52)).await;
    let admin = database.superuser().await;
    let scene = Scene { database, program, admin, keys };
    scene.drop_beside_a_slot().await;

    let busy = scene.busy();
    let client = scene.database.tenant_superuser(&busy).await;
    run(&client, "create table counter (n bigint); insert into counter values (0)").await;
    let before = oid(&scene.database, &busy).await;
    let (alone, beside) = (folder.path().join("alone"), folder.path().join("beside"));
    let seconds = times(1, 10).to_string();
    assert!(process::wait("pgbench", &mut scene.bench(&alone, &seconds), SOON).success());
    let mut running = scene.bench(&beside, "3600");
    let counted = async || one::<i64>(&client, "select n from counter").await;
    let begun = counted().await;
    until("pgbench is at work", SOON, async || counted().await > begun).await;
    scene.drop_and_purge().await;
    let then = counted().await;
    until("pgbench goes on", SOON, async || counted().await > then).await;
    assert!(running.try_wait().expect("ask for its state").is_none(), "pgbench was not cut off");
    process::signal(&mut running, process::Signal::TERM);
    process::wait("pgbench", &mut running, SOON);
    assert_eq!(oid(&scene.database, &busy).await, before);
    assert_eq!(scene.database.tenant_databases().await, [busy]);
    let slots: i64 = one(&scene.admin, "select count(*) from pg_replication_slots").await;
    assert_eq!(slots, 0, "the slot went with its database");
    for (what, folder) in [("alone", alone), ("beside the drops", beside)] {
        let took = latencies(&folder);
        let at = |share: usize| took.get(took.len() * share / 1000).copied().unwrap_or_default();
        let (half, most, all) = (at(500), at(990), at(999));
        tell(&format!("{} transactions {what}: half in {half} us, 99 % in {most} us, 99.9 % in {all} us", took.len()));
    }
    drop((scene.admin, client));
    scene.database.finish().await;
}

/// Goal: a tenant that the server itself is vacuuming is set aside and dropped for good like any other, by a role that may not end the server's own
/// processes and is told next to nothing of them. Method: a table that autovacuum takes minutes for.
#[tokio::test]
async fn a_vacuum_holds_up_no_drop() {
    let database = TestDatabase::on(&TestServer::builder().setting("autovacuum_naptime", "1s").start()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = life::program(&database, folder.path());
    let keys = life::tenants(&database, &program, 1).await;
    let (admin, name) = (database.superuser().await, database.tenant_name(&keys[0]));
    let vacuumed = async |name: &str| {
        let vacuum = format!(
            "select exists (select from pg_stat_activity where backend_type = 'autovacuum worker' and datname = '{name}' and query like '%litter%')"
        );
        until("it is vacuumed", SOON, async || one::<bool>(&admin, &vacuum).await).await;
    };
    let litter =
        "create table litter (n int) with (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
                  insert into litter select generate_series(1, 100000); delete from litter";
    run(&database.tenant_superuser(&name).await, litter).await;
    vacuumed(&name).await;
    let dropped = program.run(&["drop", &keys[0], "--skip-backup", "--timeout", "0s", "--json"]).await;
    assert_eq!(dropped.code(), 0, "{dropped:?}");
    let aside = life::json(&dropped)["set_aside_as"].as_str().expect("a name").to_owned();
    execute(&database, "update tenantd.dropped set purge_after = now()").await;
    vacuumed(&aside).await;
    let swept = program.run(&["--sweep-once", "--json"]).await;
    assert_eq!(swept.code(), 0, "{swept:?}");
    assert_eq!(oid(&database, &aside).await, None);
    database.finish().await;
}
