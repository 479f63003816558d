//! The history: a table beside what was migrated, one row for each migration. Always named in full, and read by the simple protocol, so that one
//! message asks for a lock and reads what is applied.

use std::fmt::Write as _;

use crate::pg::quote;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::error::{Error, Kind, Result};
use crate::migrations::Entry;
use crate::migrations::compare::Recorded;
use crate::pg::Doing;

/// Where the history of a schema is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    schema: String,
    table: String,
}

/// A row of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedRow {
    /// Which migration.
    pub entry: Entry,
    /// Whether it came to its end.
    pub finished: bool,
    /// How many of its statements are done.
    pub statements_done: usize,
    /// How many statements of its down file are done, where taking it back without a transaction was begun.
    pub statements_undone: Option<usize>,
    /// How long the last run took, of a file without a transaction. `None` on an unfinished row: it is running, or its runner vanished in the middle of a statement;
    /// with a value there the run ended by itself, and the statement not counted was not done.
    pub duration_ms: Option<i64>,
}

impl AppliedRow {
    /// What comparing needs of it.
    #[must_use]
    pub fn recorded(&self) -> Recorded {
        Recorded { entry: self.entry.clone(), finished: self.finished, half_undone: self.statements_undone.is_some() }
    }
}

impl History {
    /// The history of a tenant whose tables are in `schema`.
    #[must_use]
    pub fn tenant(schema: &str) -> Self {
        History { schema: schema.to_owned(), table: "tenantd_migration".to_owned() }
    }

    /// The history of the registry.
    #[must_use]
    pub fn main() -> Self {
        History { schema: "tenantd".to_owned(), table: "migration".to_owned() }
    }

    /// The schema that is migrated.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Every row by version; none when the table is not there.
    ///
    /// # Errors
    /// By SQLSTATE; [`Kind::Drift`] when the table is not one of ours.
    pub async fn read(&self, client: &Client) -> Result<Vec<AppliedRow>> {
        Ok(self.look(client).await?.unwrap_or_default())
    }

    /// The same; `None` when the table is not there.
    ///
    /// # Errors
    /// As for [`History::read`].
    pub async fn look(&self, client: &Client) -> Result<Option<Vec<AppliedRow>>> {
        match client.simple_query(&self.select()).await {
            Ok(messages) => rows(&messages).map(Some),
            Err(error) if error.code().is_some_and(|code| code.code() == "42P01") => Ok(None),
            Err(error) => Err(error).doing(|| format!("read the history {}", self.name())),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{}.{}", quote::identifier(&self.schema), quote::identifier(&self.table))
    }

    /// The key of the lock that whoever migrates the schema holds.
    pub(super) fn lock(&self) -> String {
        let name = quote::literal(&format!("tenantd.migrate:{}", self.schema));
        format!("pg_catalog.hashtextextended({name}, 0)")
    }

    /// Makes the table, which nobody but its owner may write to. The caller holds the lock, and has taken the owner's role.
    pub(super) fn create(&self, protect_from: &[String]) -> String {
        let name = self.name();
        let mut sql = format!(
            "create table if not exists {name} (
                 version bigint primary key,
                 name text not null,
                 checksum text not null,
                 started_at timestamptz not null,
                 applied_at timestamptz,
                 statements_done integer not null,
                 statements_undone integer,
                 duration_ms bigint,
                 applied_by text not null
             );
             revoke all on {name} from public;"
        );
        for role in protect_from {
            let role = quote::identifier(role);
            let _ = write!(sql, "revoke insert, update, delete, truncate on {name} from {role};");
        }
        sql
    }

    /// Columns as they are and in no order: each operator and function that a statement names is looked up in the catalogue, which a
    /// connection made a moment ago has not read yet. Of a short connection that is what costs.
    pub(super) fn select(&self) -> String {
        format!(
            "select version, name, checksum, applied_at is not null, statements_done, statements_undone, duration_ms from {};",
            self.name()
        )
    }
}

/// The rows of [`History::select`] among the answers to one message.
pub(super) fn rows(messages: &[SimpleQueryMessage]) -> Result<Vec<AppliedRow>> {
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.len() == 7 => Some(row),
        _ => None,
    });
    let rows = rows.map(|row| {
        read_row(row).ok_or_else(|| Error::new(Kind::Drift, "the history holds a row that tenantd cannot have written"))
    });
    let mut rows = rows.collect::<Result<Vec<_>>>()?;
    rows.sort_unstable_by_key(|row| row.entry.version);
    Ok(rows)
}

fn read_row(row: &SimpleQueryRow) -> Option<AppliedRow> {
    let entry =
        Entry { version: row.get(0)?.parse().ok()?, name: row.get(1)?.to_owned(), checksum: row.get(2)?.to_owned() };
    Some(AppliedRow {
        entry,
        finished: row.get(3)? == "t",
        statements_done: row.get(4)?.parse().ok()?,
        statements_undone: match row.get(5) {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        },
        duration_ms: row.get(6).and_then(|text| text.parse().ok()),
    })
}
