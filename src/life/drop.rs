//! A tenant is dropped: softly, into its time of grace.

use std::time::Duration;

use super::{giving_back, look, vacated};
use crate::backup::Backups;
use crate::error::{Error, Kind, Result};
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::dropped::Aside;
use crate::registry::events::What;

/// How a tenant is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Dropping<'a> {
    /// Where a backup is written before; `None`: without one.
    pub backups: Option<&'a Backups>,
    /// How long it can be taken back.
    pub grace: Duration,
    /// How long to wait for sessions in it that our role may not end.
    pub patience: Duration,
}

/// What became of a tenant that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// Its database is set aside under this name, after this backup.
    SetAside {
        /// The random name.
        name: String,
        /// The backup's file.
        backup: Option<String>,
    },
    /// It had no database, and is deleted.
    WithoutDatabase,
}

/// Drops the claimed tenant; the claim is given back, however it ends.
///
/// # Flow
/// A backup; closed to connections; sessions ended, or waited for; then one fenced transaction: marker checked, renamed to a random name, the
/// tenant `deleting`.
///
/// # Guarantees
/// After a crash between any two steps the tenant is ready as before, at worst closed until the next look at it, or dropped whole.
///
/// # Errors
/// Those of the backup; [`Kind::InUse`] with who is in it; [`Kind::Conflict`] for a database that is not the tenant's; [`Kind::LeaseLost`].
/// Then it is as it was before.
pub async fn drop_tenant(registry: &Registry, claim: &Claim, dropping: Dropping<'_>) -> Result<Gone> {
    let dropped = giving_back(registry, claim, drop_held(registry, claim, dropping)).await;
    dropped.map_err(|error| error.context(format!("drop tenant {}", claim.key)))
}

async fn drop_held(registry: &Registry, claim: &Claim, dropping: Dropping<'_>) -> Result<Gone> {
    let database = match &claim.name {
        Some(name) => look(registry, claim, name).await?.map(|database| (name, database)),
        None => None,
    };
    let Some((name, database)) = database else {
        registry.drop_without_database(claim).await?;
        return Ok(Gone::WithoutDatabase);
    };
    if !database.valid {
        return Err(Error::new(
            Kind::Conflict,
            format!("the database {name:?} is left over from an interrupted CREATE or DROP"),
        )
        .hint("`tenantd --sweep-once` clears it away; then drop the tenant again"));
    }
    let backup = match dropping.backups {
        Some(backups) => Some(backups.write(&claim.key, name).await?.file.display().to_string()),
        None => None,
    };
    let aside = Aside { what: What::Dropped, backup: backup.as_deref(), grace: dropping.grace };
    let dropping = vacated(registry, claim, name, dropping.patience, registry.drop_softly(claim, name, aside));
    let name = dropping.await?;
    Ok(Gone::SetAside { name, backup })
}
