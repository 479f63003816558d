//! A schema that has its migrations from elsewhere: they are written down as applied, and not run.

use tokio_postgres::Client;

use super::failure::of_ours;
use super::{Begun, Executor, RESET, history};
use crate::error::{Error, Kind, Result};
use crate::pg::Doing;

impl Executor<'_> {
    /// Writes the whole set down as applied, in one transaction that holds the lock of the schema. Nothing of it is run.
    ///
    /// Afterwards, also after an error, the client stands outside a transaction.
    ///
    /// # Errors
    /// [`Kind::Drift`] when the schema has a history already: nothing is written. [`Kind::MigrationLocked`]; else by SQLSTATE.
    pub async fn baseline(&self, client: &Client) -> Result<()> {
        let written = self.write_baseline(client).await;
        if written.is_err() {
            // On a broken connection this fails too, and the server rolls back by itself.
            let _ = client.batch_execute(&format!("rollback; {RESET}")).await;
        }
        written
    }

    async fn write_baseline(&self, client: &Client) -> Result<()> {
        let Begun { extensions, .. } = self.begin_with_lock(client, "", false).await?;
        let doing = || format!("make the history {}", self.history.name());
        let create = self.history.create(&self.protect_from) + &self.history.select();
        let answer = client.simple_query(&create).await.doing(doing).map_err(of_ours)?;
        if !history::rows(&answer)?.is_empty() {
            return Err(Error::new(Kind::Drift, "it has a history of migrations already"));
        }
        let insert: String = self.set.migrations().iter().map(|migration| self.write_down(migration)).collect();
        client
            .batch_execute(&format!("{insert} {} commit; {RESET}", self.guard(&extensions)))
            .await
            .doing(doing)
            .map_err(of_ours)
    }
}
