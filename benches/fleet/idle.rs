//! Lines 6 and 10: what ten thousand tenants cost while there is nothing to do for them.
//!
//! Ten thousand databases would be 73 GB. One is real; the others are rows in the registry, in `pg_database` and among its comments, copied
//! from it by a superuser on the throwaway server. The queries of a sweep see what they would see; whoever connected to such a database
//! would fail, so that it shows if anybody does. Autovacuum, which would, is off.

use std::fs;
use std::time::{Duration, Instant};

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Stage, milliseconds};

const TENANTS: usize = 10_000;

/// How long the daemon runs, with a sweep a second, before its memory is read.
const RUNNING: Duration = Duration::from_secs(8);

const COPY: &str = "
    set session_replication_role = replica;
    set allow_system_table_mods = on;
    create temporary table copy as
        select n, gen_random_uuid() as id, t.key as original, t.name as original_name
        from generate_series(1, $number - 1) n, (select key, name from tenantd.tenant limit 1) t;
    insert into public.users (id, email) select id, id::text from copy;
    insert into tenantd.tenant
        select (jsonb_populate_record(t, jsonb_build_object(
            'key', c.id, 'name', replace(t.name, replace(t.key, '-', '_'), replace(c.id::text, '-', '_')), 'database_oid', 4000000 + c.n))).*
        from copy c join tenantd.tenant t on t.key = c.original;
    insert into pg_database
        select (jsonb_populate_record(d, jsonb_build_object('oid', 4000000 + c.n,
            'datname', replace(d.datname, replace(c.original, '-', '_'), replace(c.id::text, '-', '_'))))).*
        from copy c join pg_database d on d.datname = c.original_name;
    insert into pg_shdescription
        select 4000000 + c.n, s.classoid, format('tenantd %s %s', r.id, encode(sha256(convert_to(c.id::text, 'UTF8')), 'hex'))
        from tenantd.registry r, copy c join pg_database d on d.datname = c.original_name join pg_shdescription s on s.objoid = d.oid;
    analyze public.users; analyze tenantd.tenant; analyze pg_database; analyze pg_shdescription";

/// The least that a sweep could ask: every tenant beside its database.
const ONE_QUERY: &str = "
    select t.key from tenantd.tenant t left join pg_database d on d.datname = t.name
    where d.oid is distinct from t.database_oid";

/// Sweeps by hand, then a daemon.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set_with(&[("autovacuum", "off")]).await;
    stage.fill(&stage.program, 1).await;
    stage.admin.batch_execute(&COPY.replace("$number", &TENANTS.to_string())).await.expect("copy a tenant");
    let sessions = "select coalesce(sum(sessions), 0)::bigint from pg_stat_database where starts_with(datname, 't')";
    let before = stage.number(sessions).await;
    let mut measures = sweeps(&stage, size).await;
    measures.extend(memory(&stage).await);
    assert_eq!(stage.number(sessions).await, before, "sessions in tenants");
    measures.into()
}

async fn sweeps(stage: &Stage, size: Size) -> Vec<Measure> {
    let client = stage.database.tenantd().await;
    let (mut ours, mut query, mut process) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..size.pick(3, 30) {
        let began = Instant::now();
        let output = stage.tenantd(&stage.program, &["--sweep-once", "--json"]).await;
        process.add(milliseconds(began.elapsed()));
        let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("a report");
        assert_eq!((&report["chosen"], &report["ok"]), (&0.into(), &true.into()), "{report}");
        ours.add(report["duration_seconds"].as_f64().expect("a number") * 1000.0);
        let began = Instant::now();
        assert!(client.query(ONE_QUERY, &[]).await.expect("the one query").is_empty());
        query.add(milliseconds(began.elapsed()));
    }
    let row = |what: &str, samples| Measure::new(6, what, Unit::Milliseconds, samples);
    let what = format!("sweep with nothing to do, {TENANTS} tenants, no tenant connection");
    vec![
        row(&what, &ours).beside("one query over the same rows", &query).reach(Reach::AtMost(50.0)),
        row("that sweep with start, installation check and end of the process", &process),
    ]
}

async fn memory(stage: &Stage) -> Vec<Measure> {
    let daemon = stage.daemon(&stage.program.clone().setting("sweep.every", "1s")).await;
    tokio::time::sleep(RUNNING).await;
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("the daemon's state");
    let megabytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells it");
        let kilobytes: f64 = line.trim_end_matches("kB").trim().parse().expect("a number");
        kilobytes * 1024.0 / 1e6
    };
    let (mut now, mut most) = (Samples::default(), Samples::default());
    now.add(megabytes("VmRSS:"));
    most.add(megabytes("VmHWM:"));
    drop(daemon);
    let row = |what: &str, samples| Measure::new(10, what, Unit::Megabytes, samples);
    vec![
        row(&format!("resident memory of the daemon, {TENANTS} tenants, a sweep a second"), &now)
            .reach(Reach::AtMost(40.0)),
        row("resident memory at its highest", &most),
    ]
}
