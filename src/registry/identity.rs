//! Which registry this is, and whether it belongs to the database it stands in.
//!
//! A staging copy on the same server would otherwise see the tenants of production as its own.

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::claim::damaged;
use super::signup::Table;
use super::{field, triggers};
use crate::config::{self, Isolation};
use crate::error::{Error, Kind, Result};
use crate::pg::Doing;

/// What to do with a registry that was made for another database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Nothing: say so and end.
    Refuse,
    /// The database moved for good: it keeps its tenants.
    Adopt,
    /// It is a copy: it forgets the tenants, which belong to the original, and gets an id of its own.
    New,
}

/// A registry's row about itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Half of every ownership marker.
    pub id: Uuid,
    /// Whether it was made for this very database.
    pub at_home: bool,
    /// The newest breaking migration it went through.
    pub needs_version: i64,
    /// Whether the users from before the installation got their held rows.
    pub users_held: bool,
    /// What tenants have of their own here.
    pub isolation: Isolation,
    /// The database that their schemas are in; `None`: the main one.
    pub tenants_in: Option<String>,
}

/// Reads the registry's row about itself; `None` when there is none yet.
///
/// # Errors
/// The registry cannot be read.
pub async fn read(client: &Client) -> Result<Option<Identity>> {
    let row = client
        .query_typed_opt(
            "select r.id, r.needs_version, r.users_held_at is not null as users_held, r.isolation, r.tenants_in,
                    r.system_identifier = c.system_identifier and r.database_oid = d.oid as at_home
             from tenantd.registry r, pg_control_system() c, pg_database d where d.datname = current_database()",
            &[],
        )
        .await
        .doing(|| "read the registry's identity".to_owned())
        .map_err(damaged)?;
    row.map(|row| {
        Ok(Identity {
            id: field(&row, "id")?,
            at_home: field(&row, "at_home")?,
            needs_version: field(&row, "needs_version")?,
            users_held: field(&row, "users_held")?,
            isolation: Isolation::from_word(&field::<String>(&row, "isolation")?).ok_or_else(|| {
                Error::new(Kind::Registry, "the registry holds an isolation that this tenantd does not know")
            })?,
            tenants_in: field(&row, "tenants_in")?,
        })
    })
    .transpose()
}

/// What signups came from before, compared with now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The same table, by the same condition.
    Same,
    /// Another table, or none.
    AnotherTable,
    /// The same table, by another condition.
    AnotherCondition,
}

/// Records which table signups come from, and by which condition. When another one than before, the users in it that have no tenant are from before,
/// and to be held.
///
/// # Errors
/// The registry cannot be written.
pub async fn point_at(client: &Client, table: &Table) -> Result<Source> {
    let doing = || format!("record that signups come from {}", table.name);
    let when = table.when.as_ref().map(serde_json::to_string).transpose();
    let when = when.map_err(|error| Error::new(Kind::Other, doing()).because(error))?;
    let row = client
        .query_typed_opt(
            "with before as (
                 select signup_table is distinct from $1 as another_table,
                        signup_when ->> 'written' is distinct from $2::text::jsonb ->> 'written' as another_condition
                 from tenantd.registry
             )
             update tenantd.registry set signup_table = $1, signup_when = $2::text::jsonb,
                 users_held_at = case when not another_table and not another_condition then users_held_at end
             from before where another_table or signup_when is distinct from $2::text::jsonb
             returning another_table, another_condition",
            &[(&table.name, Type::TEXT), (&when, Type::TEXT)],
        )
        .await
        .doing(doing)?;
    let Some(row) = row else { return Ok(Source::Same) };
    Ok(match (field(&row, "another_table")?, field(&row, "another_condition")?) {
        (true, _) => Source::AnotherTable,
        (_, true) => Source::AnotherCondition,
        _ => Source::Same,
    })
}

/// Checks that this tenantd, whose newest registry migration is `carried`, may work with the registry.
///
/// # Errors
/// [`Kind::RegistryNewer`]; [`Kind::Usage`] for a registry of another database.
pub fn check(identity: &Identity, carried: i64) -> Result<()> {
    if identity.needs_version > carried {
        return Err(Error::new(
            Kind::RegistryNewer,
            format!(
                "the registry needs a tenantd that knows its version {}; this one knows {carried}",
                identity.needs_version
            ),
        )
        .hint("start the newer tenantd that wrote the registry"));
    }
    if !identity.at_home {
        return Err(Error::usage(
            "the registry in this database was made for another one: the database was copied or moved, and its tenants may belong to the original",
        )
        .hint("if it moved for good: `tenantd setup --adopt-registry`; if it is a copy: `tenantd setup --new-registry` forgets the tenants"));
    }
    Ok(())
}

/// Records what tenants have of their own, and where, which can be chosen until there is something of one.
///
/// # Errors
/// [`Kind::Usage`] where there is, of the other kind or elsewhere. The registry cannot be written.
pub async fn isolate(client: &Client, tenants: &config::Tenant) -> Result<()> {
    let chosen = client
        .query_typed_opt(
            "with chosen as (
                 update tenantd.registry set isolation = $1, tenants_in = $2
                 where not exists (select from tenantd.tenant where database_oid is not null) and not exists (select from tenantd.dropped)
                 and not exists (select from tenantd.template) and not exists (select from tenantd.spare) and (isolation, tenants_in) is distinct from ($1, $2)
                 returning one
             ) select isolation, tenants_in from tenantd.registry
             where (isolation, tenants_in) is distinct from ($1, $2) and not exists (select from chosen)",
            &[(&tenants.isolation.word(), Type::TEXT), (&tenants.database, Type::TEXT)],
        )
        .await
        .doing(|| "record what tenants have of their own".to_owned())?;
    match chosen {
        None => Ok(()),
        Some(row) => Err(chosen_otherwise(&field::<String>(&row, "isolation")?, field(&row, "tenants_in")?)),
    }
}

/// Refuses settings that say otherwise than the registry what tenants have of their own, or where.
///
/// # Errors
/// [`Kind::Usage`].
pub fn matches(identity: &Identity, isolation: Isolation, tenants_in: Option<&str>) -> Result<()> {
    if identity.isolation == isolation && identity.tenants_in.as_deref() == tenants_in {
        return Ok(());
    }
    Err(chosen_otherwise(identity.isolation.word(), identity.tenants_in.clone()))
}

fn chosen_otherwise(isolation: &str, tenants_in: Option<String>) -> Error {
    let place = tenants_in.map_or_else(String::new, |database| format!(" in the database {database:?}"));
    Error::usage(format!("tenants have a {isolation} each{place} here; tenant.isolation and tenant.database say otherwise"))
        .hint("how tenants are kept apart is chosen before the first is made; `tenantd setup --remove` forgets them all, and leaves what they hold")
}

/// Makes the registry's row, or settles what became of one from another database. The tenants of a copy are forgotten.
///
/// # Errors
/// The registry cannot be written.
pub async fn settle(client: &Client, moved: Moved) -> Result<()> {
    const HERE: &str = "select c.system_identifier, d.oid from pg_control_system() c, pg_database d where d.datname = current_database()";
    let sql = match moved {
        Moved::Refuse => format!("insert into tenantd.registry (system_identifier, database_oid) {HERE} on conflict do nothing"),
        Moved::Adopt => format!(
            "insert into tenantd.registry (system_identifier, database_oid) {HERE}
             on conflict (one) do update set system_identifier = excluded.system_identifier, database_oid = excluded.database_oid"
        ),
        Moved::New => format!(
            "lock table tenantd.signup, tenantd.departure, tenantd.tenant in exclusive mode;
             delete from tenantd.tenant; delete from tenantd.signup; delete from tenantd.departure; delete from tenantd.spare; delete from tenantd.template; delete from tenantd.dropped; delete from tenantd.elsewhere;
             delete from tenantd.event; delete from tenantd.rollout;
             delete from tenantd.registry;
             insert into tenantd.registry (system_identifier, database_oid) {HERE}"
        ),
    };
    if moved == Moved::New {
        return triggers::without_queueing(client, &sql)
            .await
            .map_err(|error| error.context("forget the original's tenants"));
    }
    client.batch_execute(&sql).await.doing(|| "write the registry's identity".to_owned())
}
