//! Taking in: what the trigger wrote down becomes a tenant.

use tokio_postgres::types::Type;

use super::{Registry, field};
use crate::error::Result;

/// So many signups are taken in by one statement: a few milliseconds' work, for which those that have a tenant already wait.
pub(super) const AT_ONCE: i64 = 1000;

/// Makes tenants of so many signups. The commit is not waited for until it is on disk: a crash of the server that loses it puts the signups back.
pub(super) const TAKE_IN: &str =
    "select tenantd.take_in($1) as taken from (select set_config('synchronous_commit', 'off', true)) without_fsync";

impl Registry {
    /// Makes tenants of all signups that were not taken in yet. Returns how many there were.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged. What was taken in until then stays.
    pub async fn take_all_in(&self) -> Result<i64> {
        let mut all = 0;
        loop {
            let rows = self.query(TAKE_IN, &[(&AT_ONCE, Type::INT8)], || "take signups in".to_owned()).await?;
            let taken = rows.first().map_or(Ok(0), |row| field(row, "taken"))?;
            all += taken;
            if taken < AT_ONCE {
                return Ok(all);
            }
        }
    }
}
