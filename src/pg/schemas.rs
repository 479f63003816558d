//! Schemas of tenants as a whole: what may be done in one, and how one that nobody needs any more goes.

use std::fmt::Write as _;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{Doing, quote};
use crate::error::{Error, Kind, Result};
use crate::tenant::{DROPPED_PREFIX, SPARE_PREFIX};

/// So many relations go at a time: each takes a lock, and the server has room for some thousands in all.
const TOGETHER: i64 = 50;

fn list(roles: &[String]) -> String {
    roles.iter().map(|role| quote::identifier(role)).collect::<Vec<_>>().join(", ")
}

/// Statements that give `roles` what they need to work on whatever `owner` will make in the schema `name`.
#[must_use]
pub fn default_privileges(name: &str, owner: &str, roles: &[String]) -> String {
    if roles.is_empty() {
        return String::new();
    }
    let (name, owner, roles) = (quote::identifier(name), quote::identifier(owner), list(roles));
    format!(
        "alter default privileges for role {owner} in schema {name} grant select, insert, update, delete on tables to {roles};
         alter default privileges for role {owner} in schema {name} grant usage, select on sequences to {roles};"
    )
}

/// The same on what is there already, as far as whoever runs them may: one table of an administrator's must not stop a GRANT on all.
#[must_use]
pub fn privileges(name: &str, roles: &[String]) -> String {
    if roles.is_empty() {
        return String::new();
    }
    format!(
        "set local search_path = pg_catalog, pg_temp;
         set local tenantd.roles = {roles};
         do $tenantd$
         declare
             target record;
         begin
             for target in select c.relname, c.relkind from pg_class c
                           where c.relnamespace = to_regnamespace({schema}) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                           and pg_has_role(c.relowner, 'usage')
             loop
                 execute format('grant %s on %s %I.%I to %s',
                     case when target.relkind = 'S' then 'usage, select' when target.relname = 'tenantd_migration' then 'select'
                          else 'select, insert, update, delete' end,
                     case when target.relkind = 'S' then 'sequence' else 'table' end,
                     {name}, target.relname, current_setting('tenantd.roles'));
             end loop;
         end
         $tenantd$;",
        roles = quote::literal(&list(roles)),
        schema = quote::literal(&quote::identifier(name)),
        name = quote::literal(name),
    )
}

/// Drops the schema `name` for good, some of its relations at a time, so that a large one does not take every lock that the server has: partitions before
/// what they are of, and sequences last, since most go with their tables. Only ever called for a random name.
///
/// A crash in the middle leaves some of it; the next call goes on.
///
/// # Errors
/// [`Kind::Registry`] for any other name. Those of the server.
pub async fn drop_schema(client: &Client, name: &str) -> Result<()> {
    if ![SPARE_PREFIX, DROPPED_PREFIX].iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Error::new(Kind::Registry, format!("{name:?} is no random name of ours: it is not dropped"))
            .hint("somebody wrote a row into tenantd.spare or tenantd.dropped: delete it"));
    }
    let doing = || format!("drop schema {name:?}");
    loop {
        let rows = client
            .query_typed(
                "select format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind
                 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                 where n.nspname = $1 and c.relkind in ('r', 'p', 'f', 'v', 'm', 'S')
                 order by case c.relkind when 'p' then 1 when 'S' then 2 else 0 end limit $2",
                &[(&name, Type::TEXT), (&TOGETHER, Type::INT8)],
            )
            .await
            .doing(doing)?;
        if rows.is_empty() {
            break;
        }
        let mut sql = String::new();
        for row in &rows {
            let relation: String = row.try_get("name").doing(doing)?;
            let kind = match row.try_get::<_, String>("kind").doing(doing)?.as_str() {
                "v" => "view",
                "m" => "materialized view",
                "f" => "foreign table",
                "S" => "sequence",
                _ => "table",
            };
            // Writing to a String cannot fail.
            let _ = write!(sql, "drop {kind} if exists {relation} cascade;");
        }
        client.batch_execute(&sql).await.doing(doing)?;
    }
    client.batch_execute(&format!("drop schema if exists {} cascade", quote::identifier(name))).await.doing(doing)
}
