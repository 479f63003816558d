//! Everything at once: daemons killed, stopped and frozen, the server restarted, its network broken, tables locked, notifications forged,
//! migrations that some tenants cannot bear, while users sign up and tenants are dropped. An oracle looks every few seconds for what may never
//! be, and at the end, when all has come to rest, for everything.
//!
//! `make chaos MINUTES=10 SEED=1`; `make test` takes two minutes of it, and without a time it takes twenty seconds. The seed decides which faults
//! come when; what they meet depends on the machine.

#![expect(clippy::print_stdout, reason = "it tells on stdout what it does, fault by fault")]

#[path = "../support/mod.rs"]
pub mod support;

pub mod faults;
pub mod fleet;
pub mod oracle;
pub mod plan;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tenantd::tasks::Tasks;

use crate::faults::Run;
use crate::fleet::Fleet;
use crate::support::database::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::server::TestServer;
use crate::support::until::INTERVAL;

/// Without another word.
const SHORT: Duration = Duration::from_secs(20);

/// Between two looks of the oracle.
const LOOK: Duration = Duration::from_secs(3);

/// By when the fleet must have come to rest after the last fault. Generous: the machine may be busy.
const REST: Duration = Duration::from_mins(10);

/// What a daemon that has done all this may have open at rest: its connections, sockets, and what the runtime needs.
const MOST_FILES: usize = 100;

/// The server vacuums and analyzes whatever was written a second ago, so that its workers are in databases at any moment, as in a large fleet.
const ALWAYS_AT_WORK: [(&str, &str); 5] = [
    ("autovacuum_naptime", "1s"),
    ("autovacuum_vacuum_threshold", "0"),
    ("autovacuum_vacuum_scale_factor", "0"),
    ("autovacuum_analyze_threshold", "0"),
    ("autovacuum_analyze_scale_factor", "0"),
];

/// The text of a variable; `None` where it is unset or empty.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?;
    Some(value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

fn main() -> ExitCode {
    // As cargo's own tests do: a name that is asked for and is not this one's is somebody else's.
    let mut words = std::env::args().skip(1);
    if words.any(|word| word == "--list" || !word.starts_with('-') && !"chaos".contains(&word)) {
        return ExitCode::SUCCESS;
    }
    let minutes = variable("TENANTD_CHAOS_MINUTES").map(|value| value.parse::<f64>().expect("minutes, as a number"));
    let seed = variable("TENANTD_CHAOS_SEED").map(|value| value.parse::<u64>().expect("a seed, as a number"));
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    plan::check(seed, length);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let violations = runtime.expect("a runtime").block_on(chaos(seed, length));
    for violation in &violations {
        println!("VIOLATED: {violation}");
    }
    if violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("the same faults again: make chaos SEED={seed} MINUTES={}", length.as_secs_f64() / 60.0);
    ExitCode::FAILURE
}

/// Returns what was violated.
async fn chaos(seed: u64, length: Duration) -> Vec<String> {
    // A daemon that is frozen in the middle of its login keeps the server from ending until its time for that is over.
    let server = TestServer::builder().setting("authentication_timeout", "5s");
    let server = ALWAYS_AT_WORK.into_iter().fold(server, |server, (name, value)| server.setting(name, value)).start();
    let database = TestDatabase::on(&server).await.unchecked();
    println!("chaos with seed {seed} for {length:?}, a {} for each tenant", database.isolation().word());
    let delete = "grant delete on public.users to app";
    database.superuser().await.batch_execute(delete).await.expect("let the application delete users");
    let proxy = Proxy::start(server.address()).await;
    let fleet = Fleet {
        database: Arc::new(database),
        proxy: Arc::new(proxy),
        folder: Arc::new(tempfile::tempdir().expect("a folder")),
        counts: Arc::default(),
        tasks: Tasks::new(),
        over: tokio_util::sync::CancellationToken::new(),
    };
    let mut run = Run::begin(fleet.clone()).await;
    let beside = [
        fleet.tasks.spawn("signups", fleet.clone().sign_up()),
        fleet.tasks.spawn("drops", fleet.clone().drop_tenants()),
        fleet.tasks.spawn("sweeps", fleet.clone().sweep()),
    ];
    disturb(&mut run, seed, length).await;
    fleet.over.cancel();
    for task in beside {
        if let Err(error) = task.await {
            fleet.counts.violated(format!("what ran beside ended in a panic: {error}"));
        }
    }
    run.calm_down().await;
    let rested = rest(&mut run).await;
    finish(run, rested).await;
    fleet.counts.violations()
}

/// One fault after the other, and the oracle between them.
async fn disturb(run: &mut Run, seed: u64, length: Duration) {
    let (began, mut next_look) = (Instant::now(), LOOK);
    for planned in plan::plan(seed, length) {
        while next_look < planned.at {
            tokio::time::sleep_until((began + next_look).into()).await;
            run.look().await;
            next_look = next_look.max(began.elapsed()) + LOOK;
        }
        tokio::time::sleep_until((began + planned.at).into()).await;
        println!("{planned}");
        run.bring(planned.fault).await;
    }
}

/// Waits until there is nothing left to do. Returns how long that took; `None`: it did not come to rest.
async fn rest(run: &mut Run) -> Option<Duration> {
    let (began, fleet) = (Instant::now(), run.fleet.clone());
    let (version, dropped) = (fleet.counts.version.load(Ordering::Relaxed), fleet.counts.dropped());
    let client = fleet.database.superuser().await;
    loop {
        let unrest = oracle::unrest(&fleet.database, &client, version, &dropped).await;
        if unrest.is_empty() {
            return Some(began.elapsed());
        }
        if began.elapsed() > REST {
            fleet.counts.all_violated("not at rest", unrest);
            run.tell_logs();
            return None;
        }
        tokio::time::sleep(INTERVAL * 10).await;
    }
}

/// Looks at everything, ends the daemons, looks for what they left, and tells the figures.
async fn finish(mut run: Run, rested: Option<Duration>) {
    run.look().await;
    let (fleet, version) = (run.fleet.clone(), run.fleet.counts.version.load(Ordering::Relaxed));
    if rested.is_some() {
        fleet.counts.all_violated("in a tenant", oracle::inside(&fleet.database, version).await);
    }
    let (files, kilobytes) = run.footprint();
    if files > MOST_FILES {
        fleet.counts.violated(format!("a daemon at rest has {files} files open"));
    }
    run.end_daemons().await;
    let client = fleet.database.superuser().await;
    let place = fleet.database.place(&client).await;
    let left = support::audit::audit(&client, &place, fleet.database.prefix(), &[]).await;
    fleet.counts.all_violated("left behind", left);
    let figures = "select count(*), count(*) filter (where t.key is null),
                          coalesce(round((extract(epoch from max(t.ready_at - u.created_at)))::numeric, 1)::text, '-'),
                          coalesce(round((extract(epoch from percentile_cont(0.5) within group (order by t.ready_at - u.created_at)))::numeric, 3)::text, '-'),
                          coalesce(round((extract(epoch from percentile_cont(0.99) within group (order by t.ready_at - u.created_at)))::numeric, 1)::text, '-')
                   from public.users u left join tenantd.tenant t on t.key = u.id::text";
    let row = client.query_one(figures, &[]).await.expect("the figures");
    let double = format!(
        "select count(*) from (select from {place} p where starts_with(name, $1) and marker is not null group by marker
         having count(*) > 1) d"
    );
    let double: i64 = client.query_one(&double, &[&fleet.database.prefix()]).await.expect("the figures").get(0);
    let text = |index: usize| row.get::<_, String>(index);
    println!(
        "signups {} (deleted again {})",
        run.fleet.counts.signups.load(Ordering::Relaxed),
        fleet.counts.deleted.load(Ordering::Relaxed)
    );
    println!(
        "dropped by command {}, sweeps by hand {}",
        fleet.counts.dropped().len(),
        fleet.counts.sweeps.load(Ordering::Relaxed)
    );
    println!("faults {:?}, looks of the oracle {}", run.brought, run.looks);
    println!("migrations {version}, users at the end {}", row.get::<_, i64>(0));
    println!("lost {}, double {double}", row.get::<_, i64>(1));
    println!("from signup to ready: p50 {} s, p99 {} s, slowest {} s", text(3), text(4), text(2));
    println!(
        "at rest after the last fault: {}",
        rested.map_or("never".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()))
    );
    println!("a daemon at rest: {files} files open, {kilobytes} kB resident at the most");
}
