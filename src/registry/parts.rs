//! The parts that a registry has: what `tenantd setup` looks for, and makes again where it was dropped by hand.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::field;
use super::identity::Identity;
use crate::config::Isolation;
use crate::error::Result;
use crate::pg::{Doing, Server, Session, admin, schemas};

const TABLES: &[&str] = &[
    "migration",
    "registry",
    "tenant",
    "signup",
    "departure",
    "migration_set",
    "template",
    "rollout",
    "event",
    "spare",
    "dropped",
    "elsewhere",
    "place",
    "spares_at_hand",
    "tenants",
];
const FUNCTIONS: [&str; 13] = [
    "see(text[], json)",
    "move(text, text)",
    "may_enter(oid, oid)",
    "bytes(oid)",
    "wait(text, interval)",
    "request(text[], timestamp with time zone[])",
    "take_in()",
    "claim_due(uuid, bigint, text, double precision, bigint, bigint, bigint, bigint, text[])",
    "name_of(text, text)",
    "name_spare(text, text, text, text)",
    "set_aside(text, text, text, text, text, double precision)",
    "hand_over_at_commit(text[], text, text)",
    "hand_over(text[], bigint[], text, text[], text[], text, text)",
];

/// Those that are not there, by name.
///
/// # Errors
/// The main database cannot be asked.
pub async fn missing(client: &Client) -> Result<Vec<String>> {
    let row = client
        .query_typed_one(
            "select array(select t from unnest($1::text[]) t where to_regclass('tenantd.' || t) is null
                          union all
                          select f from unnest($2::text[]) f where to_regprocedure('tenantd.' || f) is null) as missing",
            &[(&TABLES, Type::TEXT_ARRAY), (&FUNCTIONS.as_slice(), Type::TEXT_ARRAY)],
        )
        .await
        .doing(|| "look for the parts of the registry".to_owned())?;
    field(&row, "missing")
}

/// Something was dropped by hand: the migrations run again. Without the tenant table all users are held anew, since nobody knows which were.
pub(super) async fn forget_history(client: &Client, missing: &[String]) -> Result<()> {
    let mut sql = "do $$ begin if to_regclass('tenantd.migration') is not null then delete from tenantd.migration; end if; end $$;".to_owned();
    if missing.contains(&"tenant".to_owned()) && !missing.contains(&"registry".to_owned()) {
        sql.push_str("update tenantd.registry set users_held_at = null;");
    }
    client.batch_execute(&sql).await.doing(|| "make again what was dropped from the registry".to_owned())
}

/// The templates, spares and scratch databases or schemas that are there: spares bear no marker yet, templates ours. What bears another is somebody else's by now.
pub(super) async fn made_by_us(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "select d.name::text as name from tenantd.place d
             where d.name in (select name from tenantd.spare union all select name from tenantd.template)
             and (d.marker is null or d.marker = (select format('tenantd %s template', id) from tenantd.registry)) order by 1",
            &[],
        )
        .await
        .doing(|| "look for templates and spares".to_owned())?;
    rows.iter().map(|row| field(row, "name")).collect()
}

/// Drops what [`made_by_us`] found.
///
/// # Errors
/// Those of the server; the advice names what is left.
pub(super) async fn drop_made(server: &Server, session: &Session, identity: &Identity, made: &[String]) -> Result<()> {
    let there = match &identity.tenants_in {
        Some(database) => Some(server.connect(Some(database), "tenantd:setup").await?),
        None => None,
    };
    for (nth, name) in made.iter().enumerate() {
        let dropped = match identity.isolation {
            Isolation::Database => admin::drop_database(session, name).await,
            Isolation::Schema => schemas::drop_schema(there.as_ref().unwrap_or(session), name).await,
        };
        dropped.map_err(|error| error.hint(format!("drop by hand what is left: {}", made[nth..].join(", "))))?;
    }
    Ok(())
}

/// The databases that were set aside under random names, of tenants that were dropped, reset or replaced, and are there yet.
pub(super) async fn set_aside(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "select name from tenantd.dropped where name in (select p.name::text from tenantd.place p) order by 1",
            &[],
        )
        .await
        .doing(|| "look for databases that were set aside".to_owned())?;
    rows.iter().map(|row| field(row, "name")).collect()
}
