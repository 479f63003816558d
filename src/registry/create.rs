//! Tenants that a person asks for, without a signup.

use tokio_postgres::types::Type;

use super::events::What;
use super::{Registry, field};
use crate::error::Result;

impl Registry {
    /// Makes tenants of `keys`, due at once, as a signup would, and writes down who asked. Returns those that are new; keys that have a tenant are
    /// passed over, unless it is deleted.
    ///
    /// # Errors
    /// The main database cannot be reached: then either all is done or nothing.
    pub async fn request_by_hand(&self, keys: &[String]) -> Result<Vec<String>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self
            .query(
                "with asked as materialized (
                     select tenantd.request($1, array_fill(clock_timestamp(), array[cardinality($1)])) as key
                 ), told as (
                     insert into tenantd.event (key, what, who) select key, $2, $3 from asked
                 )
                 select key from asked",
                &[(&keys, Type::TEXT_ARRAY), (&What::Created.word(), Type::TEXT), (&self.who, Type::TEXT)],
                || "ask for tenants".to_owned(),
            )
            .await?;
        rows.iter().map(|row| field(row, "key")).collect()
    }
}
