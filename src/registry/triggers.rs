//! A trigger on a table of the application's: how it stands, and how it is put there, in the place of another where there is one, without making
//! the application wait.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::field;
use crate::error::{Kind, Result};
use crate::pg::Doing;

/// The first server that can put a trigger in the place of another of its name.
pub(super) const CREATE_OR_REPLACE: i32 = 140_000;

/// How long an installation may hold up the signups behind it.
const LOCK_TIMEOUT_MS: u32 = 100;

/// Pauses between the tries for the lock.
const PAUSES_MS: [u64; 8] = [50, 100, 200, 400, 800, 1600, 3200, 3200];

/// How one table's trigger stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// As it should be.
    Right,
    /// There, but switched off: signups are found by sweeps only.
    Disabled,
    /// Not there.
    Missing,
    /// There, but calling something else, or at the wrong level.
    Wrong,
}

/// How the trigger `name` on the table `on` stands, which is ours if the condition `ours` on `pg_trigger t` is true; its own parameters begin at `$3`.
pub(super) async fn stands(
    client: &Client,
    on: &str,
    name: &str,
    ours: &str,
    more: super::Parameters<'_>,
) -> Result<Trigger> {
    let always: super::Parameters<'_> = &[(&on, Type::TEXT), (&name, Type::TEXT)];
    let row = client
        .query_typed_opt(
            &format!(
                "select t.tgenabled::text as enabled, coalesce({ours}, false) as ours
                 from pg_trigger t where t.tgrelid = $1::text::regclass and t.tgname = $2"
            ),
            &[always, more].concat(),
        )
        .await
        .doing(|| format!("look at the trigger {name} on {on}"))?;
    Ok(match row {
        None => Trigger::Missing,
        Some(row) if !field::<bool>(&row, "ours")? => Trigger::Wrong,
        // R: fires for a replica's writes and not for the application's.
        Some(row) if matches!(field::<String>(&row, "enabled")?.as_str(), "D" | "R") => Trigger::Disabled,
        Some(_) => Trigger::Right,
    })
}

/// The server's version as a number: 150018 for 15.18.
pub(super) async fn server_version(client: &Client) -> Result<i32> {
    let version = client.query_typed_one("select current_setting('server_version_num')::int as version", &[]).await;
    field(&version.doing(|| "ask for the server's version".to_owned())?, "version")
}

/// Puts the trigger `name` on the table `on`, where it is missing or another stands: by the statement `sql`, which replaces one if it is told to.
///
/// # Errors
/// [`Kind::Locked`] when the table could not be had between long transactions; [`Kind::Rights`]. Before Postgres 14 a trigger that another stands for cannot be replaced, and only the table's owner can drop it.
pub(super) async fn put_trigger(
    client: &Client,
    name: &str,
    on: &str,
    stands: Trigger,
    sql: impl Fn(bool) -> String,
) -> Result<()> {
    if stands == Trigger::Missing || server_version(client).await? >= CREATE_OR_REPLACE {
        return without_queueing(client, &sql(stands == Trigger::Wrong)).await;
    }
    without_queueing(client, &format!("drop trigger {name} on {on}; {}", sql(false))).await.map_err(|error| match error
        .kind()
    {
        Kind::Rights => {
            error.hint(format!("as the table's owner: drop trigger {name} on {on}; tenantd puts the right one there"))
        }
        _ => error,
    })
}

/// Runs `sql`, which locks the signup table, without ever making signups wait long: a short `lock_timeout`, then growing pauses.
///
/// # Errors
/// As `sql`'s; [`Kind::Locked`] after the last try.
pub async fn without_queueing(client: &Client, sql: &str) -> Result<()> {
    let statement = format!("begin; set local lock_timeout = '{LOCK_TIMEOUT_MS}ms'; {sql}; commit");
    let mut pauses = PAUSES_MS.into_iter();
    loop {
        let tried = client.batch_execute(&statement).await.doing(|| "lock the signup table for a moment".to_owned());
        let Err(error) = tried else { return Ok(()) };
        client.batch_execute("rollback").await.doing(|| "roll back".to_owned())?;
        match pauses.next() {
            Some(pause) if error.kind() == Kind::Locked => tokio::time::sleep(Duration::from_millis(pause)).await,
            _ => return Err(error),
        }
    }
}
