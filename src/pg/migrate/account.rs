//! The history as people read it: when each migration was applied, how long that took, and by whom.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::{Client, Row};

use super::History;
use crate::error::Result;
use crate::pg::Doing;

/// One migration of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its version.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// When it was applied; `None`: it was begun, and is not done.
    pub applied_at: Option<Timestamp>,
    /// How long that took.
    pub took: Option<Duration>,
    /// Who applied it, as `host:pid:random`.
    pub applied_by: String,
}

impl History {
    /// Every migration of the history, the oldest version first.
    ///
    /// # Errors
    /// By SQLSTATE, 42P01 when the table is not there.
    pub async fn account(&self, client: &Client) -> Result<Vec<Account>> {
        // Columns as they are, for what the tenant's owner may have put into the search path.
        let name = self.name();
        let sql = format!(
            "select version, name, started_at, applied_at, duration_ms, applied_by from {name} order by version"
        );
        let doing = || format!("read the history {name}");
        let rows = client.query_typed(&sql, &[]).await.doing(doing)?;
        rows.iter().map(read).collect::<Result<_, _>>().doing(doing)
    }
}

fn read(row: &Row) -> Result<Account, tokio_postgres::Error> {
    let (started_at, applied_at): (Timestamp, Option<Timestamp>) =
        (row.try_get("started_at")?, row.try_get("applied_at")?);
    let measured = row.try_get::<_, Option<i64>>("duration_ms")?.and_then(|length| u64::try_from(length).ok());
    // Only a file without a transaction has its own measure: it may have been begun several times.
    let between = applied_at.and_then(|applied_at| Duration::try_from(applied_at.duration_since(started_at)).ok());
    Ok(Account {
        version: row.try_get("version")?,
        name: row.try_get("name")?,
        applied_at,
        took: measured.map(Duration::from_millis).or(between),
        applied_by: row.try_get("applied_by")?,
    })
}
