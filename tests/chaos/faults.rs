//! Faults brought about.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::fleet::Fleet;
use crate::oracle;
use crate::plan::{DAEMONS, Fault};
use crate::support::daemon::{DEADLINE, Daemon};
use crate::support::database::STRANGER_PASSWORD;
use crate::support::process::{Signal, tell};
use crate::support::proxy::Mode;
use crate::support::until::{INTERVAL, until};

/// By when what some tenants could not bear must be mended.
const MENDED: Duration = Duration::from_mins(1);

/// So many lines of each daemon's log are shown after a failure.
const LAST_LINES: usize = 100;

/// One run: the fleet, its daemons, and what is broken now.
pub struct Run {
    /// What it happens to.
    pub fleet: Fleet,
    /// How many faults of each kind there were.
    pub brought: BTreeMap<String, usize>,
    /// How often the oracle looked.
    pub looks: usize,
    daemons: [Option<Daemon>; DAEMONS],
    /// Locks that are held, and the like; each ends by itself.
    beside: Vec<JoinHandle<()>>,
    /// Tenants' databases, or schemas, with a row that the migration of this version stumbles over.
    poisoned: Vec<(String, i64)>,
}

impl Run {
    /// Starts the daemons, and returns when they are at work.
    pub async fn begin(fleet: Fleet) -> Run {
        fleet.write("0001_log.sql", "create table log (message text);\n");
        fleet.counts.version.store(1, Ordering::Relaxed);
        let daemons = fleet.start_all();
        for daemon in daemons.iter().flatten() {
            daemon.wait_for_line("tenantd is at work", DEADLINE).await;
        }
        Run { fleet, brought: BTreeMap::new(), looks: 0, daemons, beside: Vec::new(), poisoned: Vec::new() }
    }

    /// Brings one fault about, and returns when it stands.
    pub async fn bring(&mut self, fault: Fault) {
        let kind = format!("{fault:?}");
        *self.brought.entry(kind.split('(').next().unwrap_or_default().to_owned()).or_default() += 1;
        match fault {
            Fault::Kill(number) => {
                if let Some(daemon) = self.daemons[number].take() {
                    self.judge(&daemon);
                    daemon.kill();
                }
            }
            Fault::Stop(number) => self.stop(number).await,
            Fault::Start(number) => self.start(number).await,
            Fault::Freeze(number) => self.on(number, Daemon::freeze),
            Fault::Thaw(number) => self.on(number, Daemon::thaw),
            Fault::Restart(how) => tokio::task::block_in_place(|| self.fleet.database.server().restart(how)),
            Fault::Terminate(share) => {
                let end = format!(
                    "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenantd' and pid % 10 < {share}"
                );
                self.fleet.database.superuser().await.batch_execute(&end).await.expect("end connections");
            }
            Fault::Network(mode) => self.fleet.proxy.set(mode),
            Fault::LockSignups(time) => {
                let main = self.fleet.database.superuser().await;
                self.hold(main, "public.users", time);
            }
            Fault::LockRegistry(time) => {
                let main = self.fleet.database.superuser().await;
                self.hold(main, "tenantd.tenant, tenantd.signup, tenantd.spare", time);
            }
            Fault::LockTenants(tenants, time) => self.lock_tenants(tenants, time).await,
            Fault::Forge(number) => self.forge(number).await,
            Fault::Migrate(poisoned) => self.migrate(poisoned).await,
            Fault::MigrateByStatement => {
                let version = self.fleet.counts.version.fetch_add(1, Ordering::Relaxed) + 1;
                let sql = format!(
                    "-- tenantd: no-transaction\ncreate table added_{version} ();\n\
                     create index concurrently log_{version} on log (message);\n"
                );
                self.put_out(version, &sql);
            }
            Fault::Mend => self.mend().await,
        }
    }

    /// Asks the oracle for what may never be.
    pub async fn look(&mut self) {
        self.looks += 1;
        let client = self.fleet.database.superuser().await;
        for found in oracle::always(&self.fleet.database, &client).await {
            self.fleet.counts.violated(found);
        }
        for (number, daemon) in self.daemons.iter_mut().enumerate() {
            if daemon.as_mut().is_some_and(|daemon| !daemon.is_alive()) {
                let ended = daemon.take().expect("looked at above");
                let last = ended.lines().split_off(ended.lines().len().saturating_sub(20)).join("\n");
                ended.kill();
                self.fleet.counts.violated(format!("the daemon {number} ended by itself:\n{last}"));
            }
        }
    }

    /// Ends every fault: all daemons run, the network is well, nothing is locked, what was poisoned is mended.
    pub async fn calm_down(&mut self) {
        self.fleet.proxy.set(Mode::Pass);
        for number in 0..DAEMONS {
            self.on(number, Daemon::thaw);
            if self.daemons[number].is_none() {
                self.start(number).await;
            }
        }
        for held in self.beside.drain(..) {
            if let Err(error) = held.await {
                self.fleet.counts.violated(format!("what ran beside ended in a panic: {error}"));
            }
        }
        self.mend().await;
        // One that was read while another was written is read again.
        self.daemons.iter_mut().flatten().for_each(Daemon::hang_up);
    }

    /// The most open files, and the most memory in kB, of one daemon.
    #[must_use]
    pub fn footprint(&self) -> (usize, u64) {
        let ids: Vec<u32> = self.daemons.iter().flatten().map(Daemon::id).collect();
        let files = |id: &u32| std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        let kilobytes = |id: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().to_owned();
            line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
        };
        (ids.iter().map(files).max().unwrap_or(0), ids.iter().map(kilobytes).max().unwrap_or(0))
    }

    /// Says what the daemons said last, for whoever looks into a failure.
    pub fn tell_logs(&self) {
        for (number, daemon) in self.daemons.iter().enumerate() {
            let lines = daemon.as_ref().map(Daemon::lines).unwrap_or_default();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            tell(&format!("the last lines of the daemon {number}:\n{}", last.join("\n")));
        }
    }

    /// Asks all daemons to end. Each has to, in order.
    pub async fn end_daemons(&mut self) {
        for number in 0..DAEMONS {
            self.stop(number).await;
        }
    }

    /// Starts a daemon, and returns when it heeds signals: until then each would end it.
    async fn start(&mut self, number: usize) {
        let daemon = self.fleet.start(number);
        daemon.wait_for_line("tenantd starts", DEADLINE).await;
        self.daemons[number] = Some(daemon);
    }

    async fn stop(&mut self, number: usize) {
        let Some(mut daemon) = self.daemons[number].take() else { return };
        daemon.signal(Signal::TERM);
        let code = daemon.ended(DEADLINE).await.code();
        self.judge(&daemon);
        if code != Some(0) {
            self.fleet.counts.violated(format!("the daemon {number} was asked to end, and did with {code:?}"));
        }
        daemon.kill();
    }

    fn on(&mut self, number: usize, what: impl FnOnce(&mut Daemon)) {
        if let Some(daemon) = &mut self.daemons[number] {
            what(daemon);
        }
    }

    fn judge(&self, daemon: &Daemon) {
        self.fleet.judge("a daemon", &daemon.lines().join("\n"));
    }

    /// Locks `tables` for `time`; `client` is given away.
    fn hold(&mut self, client: Client, tables: &str, time: Duration) {
        let lock = format!(
            "begin; lock table {tables} in access exclusive mode; select pg_sleep({}); rollback",
            time.as_secs_f64()
        );
        let held = async move {
            // A server that is restarted lets go of it earlier; a deadlock is decided against us.
            let _ = client.batch_execute(&lock).await;
        };
        self.beside.push(self.fleet.tasks.spawn("lock", held));
    }

    async fn lock_tenants(&mut self, tenants: usize, time: Duration) {
        for name in self.some_tenants(tenants).await {
            // It may be gone by now.
            if let Some(client) = self.fleet.app_in(&name).await {
                self.hold(client, "log", time);
            }
        }
    }

    async fn forge(&self, number: usize) {
        let database = self.fleet.database.name();
        let server = self.fleet.database.server();
        let Ok(stranger) = server.try_client("stranger", STRANGER_PASSWORD, database).await else { return };
        let forge = format!(
            "select pg_notify('tenantd_doorbell', repeat('x', n % 7000)), pg_notify('tenantd_ready', gen_random_uuid()::text || n)
             from generate_series(1, {number}) n"
        );
        stranger.batch_execute(&forge).await.expect("anybody may notify");
    }

    /// The newest ready tenants: the oldest are dropped next.
    async fn some_tenants(&self, number: usize) -> Vec<String> {
        let number = i64::try_from(number).expect("few");
        let newest = "select name from tenantd.tenant where state = 'ready' order by ready_at desc limit $1";
        let rows = self.fleet.database.superuser().await.query(newest, &[&number]).await.expect("list tenants");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Poisons tenants, as the application could, and puts a migration out that stumbles over it.
    async fn migrate(&mut self, poisoned: usize) {
        let version = self.fleet.counts.version.fetch_add(1, Ordering::Relaxed) + 1;
        for name in self.some_tenants(poisoned).await {
            let Some(client) = self.fleet.app_in(&name).await else { continue };
            let poison = format!("set lock_timeout = '1s'; insert into log values ('poison {version}')");
            // Whether it was written when the answer was lost is not known: it is mended in any case.
            self.poisoned.push((name, version));
            let _ = client.batch_execute(&poison).await;
        }
        let sql = format!(
            "create table added_{version} ();\nalter table log add constraint clean_{version} check (message <> 'poison {version}');\n"
        );
        self.put_out(version, &sql);
    }

    /// Puts a migration out, and has all daemons read it.
    fn put_out(&mut self, version: i64, sql: &str) {
        self.fleet.write(&format!("{version:04}_chaos.sql"), sql);
        self.daemons.iter_mut().flatten().for_each(Daemon::hang_up);
    }

    /// Takes the poison out of every tenant, and lets a rollout go on that it paused.
    async fn mend(&mut self) {
        for (name, version) in std::mem::take(&mut self.poisoned) {
            until("a tenant to be mended", MENDED, async || self.cure(&name, version).await).await;
        }
        // Refused where there is nothing to resume.
        let resumed = self.fleet.program().run(&["rollout", "resume"]).await;
        self.fleet.judge("rollout resume", &resumed.stderr);
    }

    /// Takes the poison out of one tenant. False: it could not be reached, to be tried again.
    async fn cure(&self, name: &str, version: i64) -> bool {
        let client = self.fleet.database.superuser().await;
        let there = format!("select from {} p where name = $1", self.fleet.database.place(&client).await);
        if client.query_opt(&there, &[&name]).await.expect("look for a tenant").is_none() {
            return true;
        }
        let cure = format!("set lock_timeout = '5s'; delete from log where message = 'poison {version}'");
        let Some(client) = self.fleet.app_in(name).await else {
            tokio::time::sleep(INTERVAL * 10).await;
            return false;
        };
        client.batch_execute(&cure).await.is_ok()
    }
}
