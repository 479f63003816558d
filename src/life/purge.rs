//! What was set aside is dropped for good when its time of grace is over: one at a time, for each DROP DATABASE makes the server write a
//! checkpoint.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::drop_for_good;
use crate::registry::Registry;
use crate::registry::dropped::Dropped;

/// Between two DROP DATABASE that nobody waits for.
const BETWEEN: Duration = Duration::from_secs(1);

/// A sweep that nobody waits for goes on with its other work after so long; the next one goes on here.
const LONGEST: Duration = Duration::from_mins(1);

/// What a purge came to.
#[derive(Debug, Default)]
pub struct Purged {
    /// How many databases were dropped for good.
    pub dropped: u64,
    /// Those that could not be, with why: tried again by the next sweep.
    pub failed: Vec<(Dropped, Error)>,
}

/// Drops one for good: `now`, or when its time of grace is over. False: somebody took it back before.
///
/// # Guarantees
/// Once begun it cannot be taken back, and whoever dies in the middle, the next purge goes on. The marker is checked before.
///
/// # Errors
/// [`Kind::Conflict`] when the database bears another marker; [`Kind::InUse`], naming what holds it; those of the server.
pub async fn purge(registry: &Registry, dropped: &Dropped, now: bool) -> Result<bool> {
    if !registry.condemn(dropped, now).await? {
        return Ok(false);
    }
    if let Err(error) = drop_for_good(registry, &dropped.name).await {
        return Err(named(registry, dropped, error).await);
    }
    reach(Point::Purged).await;
    registry.purged(&dropped.name).await?;
    Ok(true)
}

/// Who holds the database, where that is why it could not be dropped.
async fn named(registry: &Registry, dropped: &Dropped, error: Error) -> Error {
    let error = error.context(format!("drop tenant {} for good", dropped.key));
    if error.kind() != Kind::InUse {
        return error;
    }
    match registry.occupants(&dropped.name).await {
        Ok(occupants) if !occupants.is_empty() => error.context(format!("in use by {}", super::named(&occupants))),
        _ => error,
    }
}

/// Drops for good whatever is over. Where another does so already, nothing. `by_hand`: somebody waits for it.
///
/// # Errors
/// The main database cannot be reached.
pub async fn purge_due(registry: &Registry, by_hand: bool, stop: &CancellationToken) -> Result<Purged> {
    let mut purged = Purged::default();
    let Some(lock) = registry.lock_purges().await? else { return Ok(purged) };
    let done = purge_locked(registry, by_hand, stop, &mut purged).await;
    lock.close().await;
    done.map(|()| purged)
}

async fn purge_locked(registry: &Registry, by_hand: bool, stop: &CancellationToken, purged: &mut Purged) -> Result<()> {
    let began = Instant::now();
    for (nth, dropped) in registry.to_purge().await?.into_iter().enumerate() {
        if nth > 0 && !by_hand {
            tokio::select! {
                () = tokio::time::sleep(BETWEEN) => {}
                () = stop.cancelled() => {}
            }
        }
        if stop.is_cancelled() || !by_hand && began.elapsed() > LONGEST {
            return Ok(());
        }
        match purge(registry, &dropped, false).await {
            Ok(gone) => purged.dropped += u64::from(gone),
            Err(error) if error.kind().is_out_of_reach() => return Err(error),
            Err(error) => {
                tracing::warn!(
                    key = dropped.key,
                    database = dropped.name,
                    error = error.chain(),
                    hint = error.advice(),
                    "a dropped tenant could not be dropped for good; tried again by the next sweep"
                );
                purged.failed.push((dropped, error));
            }
        }
    }
    Ok(())
}

/// Drops one for good at once, for somebody who waits; while another drops, waits for that as long as `patience`. False: it was taken back before.
///
/// # Errors
/// As for [`purge`]; [`Kind::Locked`].
pub async fn purge_now(registry: &Registry, dropped: &Dropped, patience: Duration) -> Result<bool> {
    let began = Instant::now();
    let lock = loop {
        if let Some(lock) = registry.lock_purges().await? {
            break lock;
        }
        if began.elapsed() >= patience {
            return Err(Error::new(Kind::Locked, "another tenantd has been dropping databases all the time")
                .hint("what was to be dropped is set aside, and goes with the next sweep"));
        }
        tokio::time::sleep(BETWEEN / 10).await;
    };
    let purged = purge(registry, dropped, true).await;
    lock.close().await;
    purged
}
