//! The pure parts that run for each tenant or each file: planner, comparing of sets, splitter. `cargo bench --bench micro`.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tenantd::config::Isolation;
use tenantd::migrations::compare::{Recorded, compare};
use tenantd::migrations::split::split;
use tenantd::migrations::{Migration, MigrationSet, Mode};
use tenantd::plan::{Database, Desired, Observed, plan};
use tenantd::tenant::State;

/// As many as an application gathers in a year.
const MIGRATIONS: [i64; 2] = [10, 200];

fn set(number: i64) -> MigrationSet {
    let migration = |version: i64| Migration {
        version,
        name: format!("change_{version}"),
        checksum: format!("{version:064x}"),
        file: format!("migrations/{version:04}_change_{version}.sql"),
        sql: format!("alter table message add column added_{version} text;"),
        down: None,
        mode: Mode::Transaction,
        breaking: None,
    };
    MigrationSet::new("migrations", (1..=number).map(migration).collect()).expect("no version twice")
}

fn applied(set: &MigrationSet, missing: usize) -> Vec<Recorded> {
    let entries = set.entries();
    entries[..entries.len() - missing].iter().cloned().map(Recorded::from).collect()
}

fn planner(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for number in MIGRATIONS {
        let set = set(number);
        let desired = Desired {
            isolation: Isolation::Database,
            name: "tenant_6f9619ff_8b86_d011_b42d_00c04fc964ff",
            marker: "tenantd marker",
            owner: "tenant_owner",
            access: "access",
            set: &set,
            out_of_order: false,
        };
        let observed = |missing: Option<usize>| Observed {
            state: if missing.is_some() { State::Ready } else { State::Requested },
            recorded_oid: missing.map(|_| 16_384),
            access: missing.map(|_| "access".to_owned()),
            database: missing.map(|missing| Database {
                oid: 16_384,
                owner: "tenant_owner".to_owned(),
                ours: true,
                valid: true,
                open: true,
                public: false,
                applied: Some(applied(&set, missing)),
            }),
        };
        for (name, observed) in [("new", observed(None)), ("behind", observed(Some(1))), ("current", observed(Some(0)))]
        {
            group.bench_function(BenchmarkId::new(name, number), |bencher| {
                bencher.iter(|| plan(black_box(&desired), black_box(&observed)).expect("a plan"));
            });
        }
    }
    group.finish();
}

fn sets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compare");
    for number in MIGRATIONS {
        let set = set(number);
        let behind = applied(&set, 1);
        group.bench_function(BenchmarkId::new("behind", number), |bencher| {
            bencher.iter(|| drop(black_box(compare(black_box(&set), black_box(&behind), false))));
        });
        group.bench_function(BenchmarkId::new("id", number), |bencher| bencher.iter(|| black_box(&set).id()));
        group.bench_function(BenchmarkId::new("new", number), |bencher| {
            bencher.iter_batched(
                || set.migrations().to_vec(),
                |migrations| MigrationSet::new("migrations", migrations),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn splitter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    for statements in [1, 1000] {
        let mut sql = String::new();
        for number in 0..statements {
            let _ = write!(
                sql,
                "-- The messages of a tenant; one table among many.
create table message_{number} (id uuid primary key, text text not null default 'a;b', /* later */ at timestamptz);
create function touch_{number}() returns trigger language plpgsql as $body$
begin new.at := now(); return new; end
$body$;\n"
            );
        }
        group.throughput(Throughput::Bytes(sql.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(2 * statements), |bencher| {
            bencher.iter(|| split(black_box(&sql)));
        });
    }
    group.finish();
}

criterion_group!(benches, planner, sets, splitter);
criterion_main!(benches);
