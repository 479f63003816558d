//! The life of a tenant's data: taken away, taken back, emptied, forgotten.
//!
//! ```text
//! ready ─shut, left by all─▶ set aside (deleting) ─time of grace─▶ condemned ─▶ dropped for good (deleted)
//!   ▲                                │
//!   └──────────── restore ───────────┘
//! ```
//!
//! Each arrow but DROP DATABASE is one fenced transaction, so that a tenant is always in one of these places, whoever dies when. What cannot be
//! undone names a random name only, which nobody can take back any more.

pub mod departures;
pub mod drop;
mod in_place;
pub mod purge;
pub mod reset;
pub mod restore;

use std::time::{Duration, Instant};

use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::admin;
use crate::plan::Database;
use crate::provision::under_lease;
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::databases::Occupant;
use crate::tenant::Marker;

/// Time between two looks whether somebody is in a database.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// So many of those who are in a database are named.
const NAMED: usize = 5;

/// Does `work` under `claim` and gives the tenant back if that failed; what succeeds gives it back by itself.
fn giving_back<'a, T: 'a>(
    registry: &'a Registry,
    claim: &'a Claim,
    work: impl Future<Output = Result<T>> + 'a,
) -> impl Future<Output = Result<T>> + 'a {
    // On the heap: what it holds would else weigh on every future around it.
    let work = Box::pin(work);
    async move {
        let done = under_lease(registry, claim, work).await;
        if done.is_err()
            && let Err(error) = registry.release(claim, Duration::ZERO).await
        {
            tracing::debug!(error = error.chain(), "the lease was not given back, and ends by itself");
        }
        registry.put_down(claim);
        done
    }
}

/// The tenant's database `name` as it is seen from outside; `None` when there is none.
///
/// # Errors
/// [`Kind::Conflict`] for one that is not ours. The main database cannot be reached.
async fn look(registry: &Registry, claim: &Claim, name: &str) -> Result<Option<Database>> {
    let marker = Marker::of(registry.id, &claim.key).to_string();
    let found = registry.look(name, &marker).await?;
    match found {
        Some(database) if !database.ours => Err(Error::new(
            Kind::Conflict,
            format!("the {} {name:?} does not bear the marker of tenant {}", registry.isolation, claim.key),
        )
        .hint("somebody else made it, or its COMMENT was changed; nothing was done to it")),
        found => Ok(found),
    }
}

/// Closes the tenant's database to connections, waits until all have left it, those whom our role may end being ended, and does `then`.
///
/// # Guarantees
/// After an error, or a crash, it is opened again: here, or by the next look at the tenant.
///
/// # Errors
/// [`Kind::InUse`], naming who stays: at once for a prepared transaction or a replication slot, else after `patience`. Those of `then`.
async fn vacated<T>(
    registry: &Registry,
    claim: &Claim,
    name: &str,
    patience: Duration,
    then: impl Future<Output = Result<T>>,
) -> Result<T> {
    if registry.isolation == Isolation::Schema {
        // Nobody is in a schema: whoever looks for its tables after the rename finds none.
        return then.await;
    }
    let occupants = registry.occupants(name).await?;
    let lasting: Vec<Occupant> = occupants.into_iter().filter(|occupant| occupant.pid.is_none()).collect();
    if !lasting.is_empty() {
        return Err(occupied(name, &lasting, None));
    }
    registry.shut(claim, name).await?;
    let done = async {
        empty(registry, name, patience).await?;
        reach(Point::Vacated).await;
        then.await
    };
    let done = done.await;
    if done.is_err()
        && let Err(error) = registry.mend_database(claim, name, &admin::open(name, true)).await
    {
        tracing::warn!(database = name, error = error.chain(), "it stays closed until the next look at the tenant");
    }
    done
}

async fn empty(registry: &Registry, name: &str, patience: Duration) -> Result<()> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let occupants = registry.occupants(name).await?;
        if occupants.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= patience {
            return Err(occupied(name, &occupants, Some(patience)));
        }
        if occupants.iter().any(|occupant| occupant.ours_to_end) {
            registry.evict(name).await?;
        }
        if !told && occupants.iter().any(|occupant| !occupant.ours_to_end) {
            told = true;
            tracing::info!(
                database = name,
                sessions = named(&occupants),
                "waiting up to {patience:?} for sessions that tenantd's role may not end"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn named(occupants: &[Occupant]) -> String {
    let mut names: Vec<&str> = occupants.iter().take(NAMED).map(|occupant| occupant.what.as_str()).collect();
    if occupants.len() > NAMED {
        names.push("and more");
    }
    names.join(", ")
}

fn occupied(name: &str, occupants: &[Occupant], patience: Option<Duration>) -> Error {
    let waited = patience.map(|patience| format!(" after {patience:?}")).unwrap_or_default();
    let error = Error::new(Kind::InUse, format!("the database {name:?} is in use{waited}: {}", named(occupants)));
    match occupants.iter().find_map(|occupant| occupant.pid) {
        Some(pid) => error.hint(format!(
            "let them end, or as an administrator: select pg_terminate_backend({pid}); with `grant pg_signal_backend to` tenantd's role \
             it ends them itself"
        )),
        None => error.hint("end the prepared transaction (COMMIT PREPARED, ROLLBACK PREPARED) or drop the replication slot first"),
    }
}
