//! Users who were deleted take their tenants along, where `signup.on_delete = "drop"`: each is dropped softly, with its time of grace.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::drop::{Dropping, drop_tenant};
use crate::backup::Backups;
use crate::config::{Config, OnDelete};
use crate::error::{Error, Kind, Result};
use crate::pg::Server;
use crate::registry::Registry;
use crate::registry::departure::Departure;
use crate::registry::signup::Table;
use crate::tenant::{State, Work};

/// How long a tenant's sessions that our role may not end are waited for; it is tried again with the next sweep.
const PATIENCE: Duration = Duration::from_secs(5);

/// A sweep that nobody waits for goes on with its other work after so long; the next one goes on here.
const LONGEST: Duration = Duration::from_mins(1);

/// What following deleted users came to.
#[derive(Debug, Default)]
pub struct Followed {
    /// How many tenants were dropped.
    pub dropped: u64,
    /// Those that could not be, by key, each with why: tried again by the next sweep.
    pub failed: Vec<(String, Error)>,
}

/// Drops the tenants of users that were deleted and are not there any more; after a backup where `backup.folder` is set.
///
/// # Guarantees
/// A user who was inserted again before is kept, and one inserted at the very moment gets a tenant when this one's grace is over. A held tenant waits
/// until it is released. What cannot be done now stays written down.
///
/// # Errors
/// The main database cannot be reached; the signup table cannot be read, or no backup can be written: then nothing was dropped.
pub async fn follow(
    server: &Server,
    registry: &Registry,
    config: &Config,
    table: &Table,
    by_hand: bool,
    stop: &CancellationToken,
) -> Result<Followed> {
    let (mut followed, began) = (Followed::default(), Instant::now());
    if config.signup.on_delete == OnDelete::Keep {
        return Ok(followed);
    }
    // A signup that was deleted before anybody saw it becomes a tenant first, and goes as one.
    registry.take_all_in().await?;
    let departures = registry.departures().await?;
    let keys: Vec<String> = departures.iter().map(|departure| departure.key.clone()).collect();
    let users = registry.users_among(table, &keys).await?;
    let (gone, over): (Vec<&Departure>, Vec<&Departure>) =
        departures.iter().partition(|departure| goes(departure) && !users.contains(&departure.key));
    let over: Vec<&Departure> =
        over.into_iter().filter(|departure| !waits(departure) || users.contains(&departure.key)).collect();
    registry.forget_departures(&over).await?;
    let backups = match &config.backup.folder {
        Some(_) if !gone.is_empty() => Some(Backups::open(server, registry, config).await?),
        _ => None,
    };
    for departure in gone {
        if stop.is_cancelled() || !by_hand && began.elapsed() > LONGEST {
            break;
        }
        match drop_one(registry, config, backups.as_ref(), table, departure).await {
            Ok(dropped) => followed.dropped += u64::from(dropped),
            Err(error) if error.kind().is_out_of_reach() => return Err(error),
            Err(error) => {
                tracing::warn!(
                    key = departure.key,
                    error = error.chain(),
                    hint = error.advice(),
                    "the tenant of a deleted user could not be dropped; tried again by the next sweep"
                );
                followed.failed.push((departure.key.clone(), error));
            }
        }
    }
    if let Some(backups) = &backups {
        backups.prune()?;
    }
    Ok(followed)
}

/// Whether there is a tenant to be dropped.
fn goes(departure: &Departure) -> bool {
    match departure.stands {
        Some((State::Ready, Work::Held)) => false,
        Some((State::Requested | State::Ready, _)) => true,
        _ => false,
    }
}

/// Whether it is held by a person, who decides.
fn waits(departure: &Departure) -> bool {
    departure.stands == Some((State::Ready, Work::Held))
}

/// False: somebody works on it just now.
async fn drop_one(
    registry: &Registry,
    config: &Config,
    backups: Option<&Backups>,
    table: &Table,
    departure: &Departure,
) -> Result<bool> {
    let key = &departure.key;
    let claim = match registry.claim_by_hand(key, &[State::Requested, State::Ready], Duration::ZERO).await {
        Ok(claim) => claim,
        Err(error) if error.kind() == Kind::Locked => return Ok(false),
        Err(error) => return Err(error),
    };
    drop_tenant(registry, &claim, Dropping { backups, grace: config.drop.grace, patience: PATIENCE }).await?;
    // Inserted again since we looked: the signup found a tenant that stood yet.
    if registry.users_among(table, std::slice::from_ref(key)).await?.contains(key) {
        registry.signed_up_again(key).await?;
    }
    registry.forget_departures(&[departure]).await?;
    Ok(true)
}
