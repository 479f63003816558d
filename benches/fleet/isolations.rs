//! Line 12: what a tenant costs that has a schema, and what one costs that has a database: to make, to migrate, on disk, to back up.

use std::path::Path;
use std::time::Instant;

use tenantd::config::Isolation;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::Size;
use crate::figures::Samples;
use crate::floor::Door;
use crate::measure::{Measure, Results, Unit};
use crate::rollout::{Fleet, PARALLEL};
use crate::stage::{Stage, milliseconds};

/// What one isolation came to.
struct Costs {
    made: Samples,
    /// The bare commands in turn with that.
    bare: Samples,
    swept: Samples,
    floor: Samples,
    disk: Samples,
    backup: Samples,
}

pub(crate) async fn measure(size: Size) -> Results {
    let number = size.pick(16, 1_000);
    let schema = costs(Isolation::Schema, number, size).await;
    let database = costs(Isolation::Database, number, size).await;
    let row = |what: &str, unit, ours: &Samples| Measure::new(12, what, unit, ours);
    let sweep = format!("one new migration over {number} schemas, {PARALLEL} lanes");
    let disk = format!("a tenant on disk, {number} schemas, as shipped");
    vec![
        row("signup's commit to tenant ready, a schema: p50", Unit::Milliseconds, &schema.made)
            .beside("the same statements by hand, connected", &schema.bare),
        row("that, beside a database, cold", Unit::Milliseconds, &schema.made).beside("a database", &database.made),
        row(&sweep, Unit::PerSecond, &schema.swept).beside("the floor: the same SQL, connected", &schema.floor),
        row("that, beside databases", Unit::PerSecond, &schema.swept).beside("databases", &database.swept),
        row("databases, beside their floor", Unit::PerSecond, &database.swept)
            .beside("the floor: connect, same SQL", &database.floor),
        row(&disk, Unit::Megabytes, &schema.disk).beside("a database", &database.disk),
        row("tenantd backup KEY, a schema", Unit::Milliseconds, &schema.backup).beside("a database", &database.backup),
    ]
    .into()
}

async fn costs(isolation: Isolation, number: usize, size: Size) -> Costs {
    let stage = Stage::set_for(isolation).await;
    stage.tenantd(&stage.program, &["setup"]).await;
    stage.admin.batch_execute("checkpoint").await.expect("write everything");
    let before = bytes_below(&stage.database.server().directory().join("data/base"));
    let mut fleet = Fleet::made(stage, number).await;
    let after = bytes_below(&fleet.stage.database.server().directory().join("data/base"));
    let mut disk = Samples::default();
    disk.add(megabytes_each(after - before, number));
    let (made, bare) = provision(&fleet.stage, isolation, size).await;
    let (mut swept, mut floor) = (Samples::default(), Samples::default());
    let server = std::sync::Arc::clone(fleet.stage.database.server());
    let (program, door) = (fleet.program(), Door::new(&server, server.address()));
    // Those that were made since are brought to the newest migration by the first sweep, too.
    fleet.databases = std::sync::Arc::new(fleet.stage.database.tenant_databases().await);
    for _ in 0..size.pick(1, 3) {
        swept.add(fleet.sweep(&program, PARALLEL).await);
        floor.add(match isolation {
            Isolation::Schema => fleet.floor_of_schemas(&door, PARALLEL).await,
            Isolation::Database => fleet.floor(&door, PARALLEL).await,
        });
    }
    let backup = back_up(&fleet, size.pick(2, 20)).await;
    Costs { made, bare, swept, floor, disk, backup }
}

/// Signups one after the other, each in turn with the bare commands, without spares.
async fn provision(stage: &Stage, isolation: Isolation, size: Size) -> (Samples, Samples) {
    let daemon = stage.daemon(&stage.with_spares(0, 0)).await;
    let mut application = stage.application().await;
    let bare = stage.database.tenantd().await;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..size.pick(1, 5) {
        let (mut keys, mut made) = (Vec::new(), Vec::new());
        for _ in 0..size.pick(4, 20) {
            let (key, _, _) = application.sign_up().await;
            application.heard(&key).await;
            keys.push(key);
            if isolation == Isolation::Schema {
                made.push(make_schema(&bare).await);
            }
        }
        ours.round(stage.waits(&keys).await);
        if !made.is_empty() {
            theirs.round(made);
        }
    }
    drop(daemon);
    (ours, theirs)
}

/// What the shipped migrations make, by hand, in one transaction. How long it took, in milliseconds.
async fn make_schema(client: &Client) -> f64 {
    let name = format!("bare_{}", Uuid::new_v4().simple());
    let sql = format!(
        "begin; create schema {name} authorization tenant_owner; set local role tenant_owner; set local search_path = {name};
         create table log_message (id uuid primary key default gen_random_uuid(), message text not null,
             created_at timestamptz not null default now(), updated_at timestamptz not null default now());
         create table history (file text primary key, done_at timestamptz not null default now()); insert into history values ('0001');
         grant usage on schema {name} to app; grant select, insert, update, delete on log_message to app; commit"
    );
    let began = Instant::now();
    client.batch_execute(&sql).await.expect("make a schema");
    let took = milliseconds(began.elapsed());
    // The tenants' owner is to have tenants only.
    client.batch_execute(&format!("drop schema {name} cascade")).await.expect("drop it");
    took
}

/// So many backups, one command each. How long each took, in milliseconds.
async fn back_up(fleet: &Fleet, number: usize) -> Samples {
    let folder = fleet.stage.database.server().directory().join("backups");
    let program = fleet.program().setting("backup.folder", &folder.display().to_string());
    let keys = "select key from tenantd.tenant where state = 'ready' order by key limit $1";
    let number = i64::try_from(number).expect("few");
    let mut took = Samples::default();
    for row in fleet.stage.admin.query(keys, &[&number]).await.expect("choose tenants") {
        let key: String = row.get(0);
        let began = Instant::now();
        fleet.stage.tenantd(&program, &["backup", &key]).await;
        took.add(milliseconds(began.elapsed()));
    }
    took
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        // A table that was dropped this moment.
        Err(_) => 0,
    });
    bytes.sum()
}

#[expect(clippy::cast_precision_loss, reason = "gigabytes")]
fn megabytes_each(bytes: u64, number: usize) -> f64 {
    bytes as f64 / 1e6 / number as f64
}
