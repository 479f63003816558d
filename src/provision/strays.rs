//! What died daemons left: databases under random names that nobody is making.

use std::time::Duration;

use crate::error::Result;
use crate::registry::Registry;
use crate::registry::hand_over::Stray;

/// After this time a CREATE DATABASE that outlived its daemon cannot still be running: it has a `statement_timeout` of a minute.
const FORGET_SPARES_AFTER: Duration = Duration::from_mins(15);

/// Drops databases under random names that no live claim is making: what died daemons left. Returns how many.
///
/// A young name is not forgotten: a CREATE DATABASE that outlived its daemon may still bring its database about.
///
/// # Errors
/// The main database cannot be reached. A spare that cannot be dropped now is tried again by the next sweep.
pub async fn drop_strays(registry: &Registry) -> Result<u64> {
    let mut dropped = 0;
    for Stray { name, old, there } in registry.stray_spares(FORGET_SPARES_AFTER).await? {
        if there {
            let session = registry.session().await?;
            if let Err(error) = crate::pg::admin::drop_database(&session, &name).await {
                tracing::warn!(
                    spare = name,
                    error = error.chain(),
                    hint = error.advice(),
                    "a half-made database could not be dropped"
                );
                continue;
            }
            dropped += 1;
        }
        if old {
            registry.forget_spare(&name).await?;
        }
    }
    Ok(dropped)
}
