//! Who owns what in a database.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Doing, quote};
use crate::error::Result;

/// Tables and the like that `role` may not change, of the database or of one `schema`, by their owners: the owner's name and how many. The client stands outside a transaction.
///
/// # Errors
/// By SQLSTATE.
pub async fn out_of_reach(client: &Client, schema: Option<&str>, role: &str) -> Result<Vec<(String, String)>> {
    let sql = format!(
        "set local search_path = pg_catalog, pg_temp;
         select pg_get_userbyid(c.relowner), count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
           and coalesce(n.nspname = {schema}, true) and not pg_has_role({role}, c.relowner, 'usage')
         group by 1 order by 1",
        schema = schema.map_or_else(|| "null::name".to_owned(), quote::literal),
        role = quote::literal(role)
    );
    let answers = client.simple_query(&sql).await.doing(|| "look who owns what".to_owned())?;
    let read = |answer: &SimpleQueryMessage| match answer {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())),
        _ => None,
    };
    Ok(answers.iter().filter_map(read).collect())
}
