//! Putting a trigger on a table of the application's, in the place of another where there is one.

use tokio_postgres::Client;

use super::field;
use super::signup::{Trigger, without_queueing};
use crate::error::{Kind, Result};
use crate::pg::Doing;

/// The first server that can put a trigger in the place of another of its name.
const CREATE_OR_REPLACE: i32 = 140_000;

/// Puts the trigger `name` on the table `on`, where it is missing or another stands: by the statement `sql`, which replaces one if it is told to.
///
/// # Errors
/// As for [`install_trigger`](super::signup::install_trigger). Before Postgres 14 a trigger that another stands for cannot be replaced, and only the table's owner can drop it.
pub(super) async fn put_trigger(
    client: &Client,
    name: &str,
    on: &str,
    stands: Trigger,
    sql: impl Fn(bool) -> String,
) -> Result<()> {
    let version = client.query_typed_one("select current_setting('server_version_num')::int as version", &[]).await;
    let version: i32 = field(&version.doing(|| "ask for the server's version".to_owned())?, "version")?;
    if stands == Trigger::Missing || version >= CREATE_OR_REPLACE {
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
