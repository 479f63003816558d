//! Indexes that serve nobody.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Doing, quote};
use crate::error::Result;

/// One of a partitioned table is invalid until all its parts are there; one that is being built will be valid.
const INVALID: &str = "
set local search_path = pg_catalog, pg_temp;
select format('%I.%I', n.nspname, c.relname)
from pg_index x join pg_class c on c.oid = x.indexrelid join pg_namespace n on n.oid = c.relnamespace
where not x.indisvalid and c.relkind = 'i' and coalesce(n.nspname = {schema}, true)
  and not exists (select from pg_stat_progress_create_index p where p.index_relid = x.indexrelid)
order by 1";

/// The indexes of the database, or of one `schema`, that are invalid, by name: what an interrupted CREATE INDEX CONCURRENTLY leaves costs each write and serves no
/// reader. The client stands outside a transaction.
///
/// # Errors
/// By SQLSTATE.
pub async fn invalid(client: &Client, schema: Option<&str>) -> Result<Vec<String>> {
    let sql = INVALID.replace("{schema}", &schema.map_or_else(|| "null::name".to_owned(), quote::literal));
    let answers = client.simple_query(&sql).await.doing(|| "look for invalid indexes".to_owned())?;
    let name = |answer: &SimpleQueryMessage| match answer {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(answers.iter().filter_map(name).collect())
}
