//! The history: what was done to tenants, when and by whom. Written with the change it tells of, in one statement or transaction.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Registry, field};
use crate::error::Result;
use crate::tenant::words;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A tenant was asked for without a signup.
    Created,
    /// It was brought to a newer migration by a command.
    Migrated,
    /// Migrations of it were taken back.
    RolledBack,
    /// It is kept as it is, out of sweeps.
    Held,
    /// It may be worked on again.
    Released,
    /// A failing or parked tenant was made due.
    Retried,
    /// A lease or lock that somebody left was taken from them.
    Freed,
    /// A database that was there already was recorded as its own.
    Adopted,
    /// What a check had found was put right.
    Fixed,
    /// A backup was written.
    BackedUp,
    /// It was taken away for a time of grace.
    Dropped,
    /// It was taken back, in the time of grace or from a backup.
    Restored,
    /// It was emptied and migrated anew.
    Reset,
    /// Its database was dropped for good.
    Purged,
    /// It is out of tries.
    Parked,
    /// A rollout began, or ended, or was changed by a person.
    Rollout,
}

words!(What {
    Created => "created", Migrated => "migrated", RolledBack => "rolled_back", Held => "held", Released => "released", Retried => "retried",
    Freed => "freed", Adopted => "adopted", Fixed => "fixed", BackedUp => "backed_up", Dropped => "dropped", Restored => "restored",
    Reset => "reset", Purged => "purged", Parked => "parked", Rollout => "rollout",
});

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number; later ones have higher numbers.
    pub id: i64,
    /// When, by the server's clock.
    pub happened_at: Timestamp,
    /// The tenant; `None`: the fleet as a whole.
    pub key: Option<String>,
    /// The word of a [`What`], or of one that a newer tenantd knows.
    pub what: String,
    /// The user and the machine: `alice@host`.
    pub who: String,
    /// More about it, for people.
    pub detail: Option<String>,
}

/// So many events are kept.
pub(super) const EVENTS_KEPT: i64 = 200_000;

impl Registry {
    /// Writes an event by itself, for what was done outside the registry: a backup, a migration by a command. Whatever is one statement on the
    /// registry writes its event in it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn tell(&self, what: What, key: Option<&str>, detail: Option<&str>) -> Result<()> {
        let parameters: super::Parameters<'_> =
            &[(&key, Type::TEXT), (&what.word(), Type::TEXT), (&self.who, Type::TEXT), (&detail, Type::TEXT)];
        let sql = "insert into tenantd.event (key, what, who, detail) values ($1, $2, $3, $4)";
        self.execute(sql, parameters, || format!("write down that {what}")).await.map(drop)
    }

    /// Writes the same event for each of `keys`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn tell_of_each(&self, what: What, keys: &[String], detail: &str) -> Result<()> {
        let parameters: super::Parameters<'_> =
            &[(&keys, Type::TEXT_ARRAY), (&what.word(), Type::TEXT), (&self.who, Type::TEXT), (&detail, Type::TEXT)];
        let sql = "insert into tenantd.event (key, what, who, detail) select key, $2, $3, $4 from unnest($1) key";
        self.execute(sql, parameters, || format!("write down that {what}")).await.map(drop)
    }

    /// The newest events first, of one tenant or of all, not more than `most`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn events(&self, key: Option<&str>, most: i64) -> Result<Vec<Event>> {
        let sql = "select id, happened_at, key, what, who, detail from tenantd.event
                   where $1::text is null or key = $1 order by id desc limit $2";
        let rows = self.query(sql, &[(&key, Type::TEXT), (&most, Type::INT8)], || "read the events".to_owned()).await?;
        rows.iter().map(read).collect()
    }

    /// The events that come after number `after`, the oldest first, of one tenant or of all, not more than `most`.
    ///
    /// # Caveats
    /// A long transaction's event may come later than one with a higher number.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn events_after(&self, after: i64, key: Option<&str>, most: i64) -> Result<Vec<Event>> {
        let sql = "select id, happened_at, key, what, who, detail from tenantd.event
                   where ($1::text is null or key = $1) and id > $3 order by id limit $2";
        let parameters: super::Parameters<'_> = &[(&key, Type::TEXT), (&most, Type::INT8), (&after, Type::INT8)];
        self.query(sql, parameters, || "read the events".to_owned()).await?.iter().map(read).collect()
    }

    /// Forgets all but the newest events.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_old_events(&self) -> Result<u64> {
        let sql = "delete from tenantd.event where id <= (select max(id) from tenantd.event) - $1";
        self.execute(sql, &[(&EVENTS_KEPT, Type::INT8)], || "forget old events".to_owned()).await
    }
}

fn read(row: &Row) -> Result<Event> {
    Ok(Event {
        id: field(row, "id")?,
        happened_at: field(row, "happened_at")?,
        key: field(row, "key")?,
        what: field(row, "what")?,
        who: field(row, "who")?,
        detail: field(row, "detail")?,
    })
}
