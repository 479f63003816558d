//! Users who are deleted, where `signup.on_delete = "drop"`: the trigger that writes them down, and what was written.
//!
//! A trigger's promises are those of a signup's: the deletion never fails because of it, and waits no longer than 200 ms once a transaction. What it
//! missed is not found later: a tenant is never dropped because its user was not seen. TRUNCATE is not followed.

use std::collections::BTreeSet;

use jiff::Timestamp;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::signup::{Table, body_literal, filled};
use super::triggers::{Trigger, put_trigger, stands};
use super::{Registry, field};
use crate::config::OnDelete;
use crate::error::{Error, Result};
use crate::pg::{Doing, quote};
use crate::tenant::{State, Work};

/// So many departures are looked at together.
const AT_ONCE: i64 = 1000;

/// What the function does while deletions are not followed: a trigger that was put there by a role with TRIGGER alone cannot be dropped by it.
const IDLE: &str = "\nbegin\n    return null;\nend\n";

/// A user who was deleted, and the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The key.
    pub key: String,
    /// The last time that a user of this key was deleted.
    pub at: Timestamp,
    /// How the tenant stands; `None`: there is none.
    pub stands: Option<(State, Work)>,
}

fn body(id: &str) -> String {
    filled(include_str!("sql/departure.sql"), &[("id", id)])
}

/// The statement that makes the function with this body.
fn function_sql(body: &str) -> String {
    format!(
        "create or replace function tenantd.departure() returns trigger language plpgsql security definer\n\
         set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'\nas {};\n\
         revoke all on function tenantd.departure() from public;\n",
        body_literal(body)
    )
}

fn trigger_sql(on: &str, by_row: bool, replace: bool) -> String {
    let each = if by_row { "for each row" } else { "referencing old table as removed for each statement" };
    let create = if replace { "create or replace" } else { "create" };
    format!("{create} trigger tenantd_departure after delete on {on} {each} execute function tenantd.departure();\n")
}

/// Function and triggers as SQL for an administrator.
#[must_use]
pub fn sql(id: &str, triggers_on: &[String], by_row: bool) -> String {
    triggers_on.iter().fold(function_sql(&body(id)), |all, on| all + &trigger_sql(on, by_row, false))
}

/// Makes the trigger that `on_delete` calls for, or lets one from before do nothing. Compares with the catalogue first, and does nothing when all
/// is as it should be. Returns what was changed, one sentence each.
///
/// # Errors
/// [`Kind::Locked`](crate::error::Kind::Locked) when the table could not be had between long transactions; [`Kind::Rights`](crate::error::Kind::Rights).
pub async fn install(client: &Client, table: &Table, on_delete: OnDelete) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    let there = client
        .query_typed_opt("select prosrc from pg_proc where oid = to_regprocedure('tenantd.departure()')", &[])
        .await
        .doing(|| "look at the function tenantd.departure()".to_owned())?;
    let there: Option<String> = there.map(|row| field(&row, "prosrc")).transpose()?;
    if on_delete == OnDelete::Keep {
        if there.is_some_and(|body| body != IDLE) {
            let idle = function_sql(IDLE) + "delete from tenantd.departure;";
            client.batch_execute(&idle).await.doing(|| "make the function tenantd.departure() idle".to_owned())?;
            changes.push("deleted users are not followed any more".to_owned());
        }
        return Ok(changes);
    }
    let wanted = body(&table.id);
    if there.as_ref() != Some(&wanted) {
        let make = function_sql(&wanted);
        client.batch_execute(&make).await.doing(|| "make the function tenantd.departure()".to_owned())?;
        changes.push("made the function tenantd.departure()".to_owned());
    }
    let_owner_add_partitions(client, table).await?;
    for on in &table.triggers_on {
        // One that was switched off is left so: somebody meant it.
        let stands = trigger(client, on, table.by_row).await?;
        if matches!(stands, Trigger::Missing | Trigger::Wrong) {
            let sql = |replace| trigger_sql(on, table.by_row, replace);
            let put = put_trigger(client, "tenantd_departure", on, stands, sql).await;
            put.map_err(|error: Error| error.context(format!("put the trigger tenantd_departure on {on}")))?;
            changes.push(format!("put the trigger tenantd_departure on {on}"));
        }
    }
    Ok(changes)
}

/// Whoever adds a partition puts our trigger on it, and must be allowed to.
async fn let_owner_add_partitions(client: &Client, table: &Table) -> Result<()> {
    let owner = client
        .query_typed_opt(
            "select pg_get_userbyid(c.relowner)::text as name from pg_class c where c.oid = $1::text::regclass and c.relkind = 'p'
             and not has_function_privilege(c.relowner, to_regprocedure('tenantd.departure()'), 'execute')",
            &[(&table.name, Type::TEXT)],
        )
        .await
        .doing(|| "look at the function tenantd.departure()".to_owned())?;
    let Some(row) = owner else { return Ok(()) };
    let owner = quote::identifier(&field::<String>(&row, "name")?);
    let grant = format!("grant execute on function tenantd.departure() to {owner}");
    client.batch_execute(&grant).await.doing(|| format!("let {owner} add partitions to {}", table.name))
}

/// How the trigger on the table `on` stands.
///
/// # Errors
/// The catalogue could not be read.
pub async fn trigger(client: &Client, on: &str, by_row: bool) -> Result<Trigger> {
    let ours = "t.tgfoid = to_regprocedure('tenantd.departure()') and t.tgtype = case when $3 then 9 else 8 end
                and t.tgoldtable is not distinct from case when $3 then null else 'removed' end";
    stands(client, on, "tenantd_departure", ours, &[(&by_row, Type::BOOL)]).await
}

impl Registry {
    /// The users that were deleted, the longest ago first, a thousand at the most; with each how its tenant stands.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn departures(&self) -> Result<Vec<Departure>> {
        let rows = self
            .query(
                "select d.key, d.at, t.state::text, t.work::text from (
                     select key, max(departed_at) as at from tenantd.departure group by key order by 2 limit $1
                 ) d left join tenantd.tenant t on t.key = d.key order by d.at",
                &[(&AT_ONCE, Type::INT8)],
                || "look for users that were deleted".to_owned(),
            )
            .await?;
        rows.iter()
            .map(|row| {
                let (state, work): (Option<String>, Option<String>) = (field(row, "state")?, field(row, "work")?);
                let state = state.as_deref().and_then(State::from_word);
                let stands = state.zip(work.as_deref().and_then(Work::from_word));
                Ok(Departure { key: field(row, "key")?, at: field(row, "at")?, stands })
            })
            .collect()
    }

    /// Those of `keys` whose user is in the signup table now.
    ///
    /// # Errors
    /// [`Kind::Rights`](crate::error::Kind::Rights) where rows are hidden from our role: then nobody knows. The main database cannot be reached.
    pub async fn users_among(&self, table: &Table, keys: &[String]) -> Result<BTreeSet<String>> {
        // As for users without a tenant: of a table alone can a sample be taken, and this one is all of it.
        let sql = format!(
            "select concat({id}) as key from {name} tablesample system (100) where concat({id}) = any ($1)",
            id = table.id,
            name = table.name
        );
        let session = self.session().await?;
        let rows = session.query_typed(&sql, &[(&keys, Type::TEXT_ARRAY)]).await;
        let rows = rows.doing(|| format!("look for users in {}", table.name))?;
        rows.iter().map(|row| field(row, "key")).collect()
    }

    /// Forgets the deletions of the users `keys` up to those that were looked at.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_departures(&self, departures: &[&Departure]) -> Result<()> {
        let keys: Vec<&str> = departures.iter().map(|departure| departure.key.as_str()).collect();
        let until: Vec<Timestamp> = departures.iter().map(|departure| departure.at).collect();
        self.execute(
            "delete from tenantd.departure d using unnest($1::text[], $2::timestamptz[]) s (key, at) where d.key = s.key and d.departed_at <= s.at",
            &[(&keys, Type::TEXT_ARRAY), (&until, Type::TIMESTAMPTZ_ARRAY)],
            || "forget users that were deleted".to_owned(),
        )
        .await
        .map(drop)
    }

    /// Writes down that the key signed up again while its tenant is being deleted.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn signed_up_again(&self, key: &str) -> Result<()> {
        let sql =
            "update tenantd.tenant set again_at = coalesce(again_at, now()) where key = $1 and state = 'deleting'";
        self.execute(sql, &[(&key, Type::TEXT)], || format!("write down that {key} signed up again")).await.map(drop)
    }
}
