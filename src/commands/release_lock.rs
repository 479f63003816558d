//! `tenantd release-lock`: who holds tenants and locks; what dead processes left is freed.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::given::Given;
use super::{ExitStatus, output};
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::locks::{Held, Lease, Lock};

/// `tenantd release-lock`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd release-lock --dry-run          who holds what
  tenantd release-lock                    free what dead processes left
  tenantd release-lock 7cba0a6c --force   take one tenant from a process that lives, and end who migrates it")]
pub struct ReleaseLock {
    /// One tenant: its key, the name of its database, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// Take it from a process that lives, too: what that does under its lease is not written any more
    #[arg(long, requires = "key")]
    pub force: bool,
    /// Say who holds what, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Shows leases and locks, and frees the leases whose process is gone; a live one's, and a lock, only by force.
///
/// # Errors
/// The main database cannot be reached; an unknown key.
pub async fn run(given: &Given, arguments: &ReleaseLock, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let key = match &arguments.key {
        Some(word) => Some(registry.resolve(std::slice::from_ref(word)).await?.remove(0)),
        None => None,
    };
    let (leases, locks) = (registry.leases(key.as_deref()).await?, registry.locks(key.as_deref()).await?);
    let (mut freed, mut broken) = (Vec::new(), Vec::new());
    if !arguments.dry_run {
        for lease in leases.iter().filter(|lease| !lease.alive || arguments.force) {
            freed.push(registry.free(lease).await?);
        }
        broken = break_locks(&registry, &locks, arguments.force).await?;
    }
    let mut freed = freed.into_iter();
    let mut of_lease = |lease: &Lease| {
        let taken = !arguments.dry_run && (!lease.alive || arguments.force) && freed.next() == Some(true);
        if taken { "freed" } else { "stays" }
    };
    let leases: Vec<(&Lease, &str)> = leases.iter().map(|lease| (lease, of_lease(lease))).collect();
    if given.json {
        let lease = |(lease, fate): &(&Lease, &str)| {
            json!({ "what": what(lease), "key": lease.held.key(), "worker": lease.worker, "attempt": lease.attempt, "lasts_seconds": lease.lasts.as_secs_f64(),
                    "alive": lease.alive, "freed": *fate == "freed" })
        };
        let lock = |lock: &Lock| json!({ "what": lock.what, "key": lock.key, "holder": lock.holder, "pid": lock.pid, "broken": broken.contains(&lock.what) });
        let object = json!({
            "dry_run": arguments.dry_run,
            "leases": leases.iter().map(lease).collect::<Vec<_>>(),
            "locks": locks.iter().map(lock).collect::<Vec<_>>(),
        });
        output::object(out, &object)?;
        return Ok(ExitStatus::Well);
    }
    if leases.is_empty() && locks.is_empty() {
        output::text(out, "nobody holds anything\n")?;
        return Ok(ExitStatus::Well);
    }
    let mut rows: Vec<Vec<String>> = leases.iter().map(|(lease, fate)| row_of_lease(lease, fate)).collect();
    rows.extend(locks.iter().map(|lock| {
        let fate = if broken.contains(&lock.what) { "ended" } else { "stays" };
        vec![lock.what.clone(), lock.holder.clone(), "connected".to_owned(), String::new(), fate.to_owned()]
    }));
    output::text(out, &output::table(&["HELD", "BY", "PROCESS", "FOR", "NOW"], &rows))?;
    Ok(ExitStatus::Well)
}

fn row_of_lease(lease: &Lease, fate: &str) -> Vec<String> {
    let held = lease.held.to_string();
    let process = if lease.alive { "lives" } else { "gone" };
    vec![held, lease.worker.clone(), process.to_owned(), output::duration(lease.lasts), fate.to_owned()]
}

/// What a lease is on, for scripts.
fn what(lease: &Lease) -> String {
    match &lease.held {
        Held::Tenant(_) => "tenant".to_owned(),
        held => held.to_string(),
    }
}

/// Ends the sessions that migrate the tenant, by force only: a lock ends with its session, and that with its process. Returns what was locked.
async fn break_locks(registry: &Registry, locks: &[Lock], force: bool) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for lock in locks.iter().filter(|lock| force && lock.key.is_some()) {
        registry.break_lock(lock).await?;
        broken.push(lock.what.clone());
    }
    Ok(broken)
}
