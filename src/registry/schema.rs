//! Schema tenantd, which the registry stands in: whether it is there, and ours.

use tokio_postgres::Client;

use super::field;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};

/// Makes it, if it is not there.
///
/// # Errors
/// [`Kind::Rights`], with the statement that mends it.
pub(super) async fn make(client: &Client, changes: &mut Vec<String>) -> Result<()> {
    let schema = look(client).await?;
    if schema.there || !schema.may_make {
        return schema.lacks().map_or(Ok(()), Err);
    }
    client.batch_execute("create schema tenantd").await.doing(|| "make schema tenantd".to_owned())?;
    changes.push("made schema tenantd".to_owned());
    Ok(())
}

/// Schema tenantd as the catalogue knows it.
#[derive(Debug, Clone)]
pub struct Schema {
    /// Whether it is there.
    pub there: bool,
    ours: bool,
    may_make: bool,
    me: String,
    here: String,
}

impl Schema {
    /// What keeps us from working with it, or from making it, as the error that it comes to.
    #[must_use]
    pub fn lacks(&self) -> Option<Error> {
        let (me, here) = (quote::identifier(&self.me), quote::identifier(&self.here));
        if self.there {
            let foreign = Error::new(Kind::Rights, format!("schema tenantd does not belong to role {me}"))
                .hint(format!("as an administrator: alter schema tenantd owner to {me}"));
            return (!self.ours).then_some(foreign);
        }
        let refused = Error::new(Kind::Rights, format!("role {me} may not make schema tenantd in database {here}"))
            .hint(format!("as an administrator, in database {here}: create schema tenantd authorization {me}"));
        (!self.may_make).then_some(refused)
    }
}

/// Looks for schema tenantd, and whether we may work with it or make it.
///
/// # Errors
/// The main database cannot be asked.
pub async fn look(client: &Client) -> Result<Schema> {
    let row = client
        .query_typed_one(
            "select to_regnamespace('tenantd') is not null as there, current_user::text as me, current_database()::text as here,
                    has_database_privilege(current_database(), 'create') as may_make,
                    coalesce((select pg_has_role(current_user, nspowner, 'usage') from pg_namespace where nspname = 'tenantd'), true) as ours",
            &[],
        )
        .await
        .doing(|| "look for schema tenantd".to_owned())?;
    Ok(Schema {
        there: field(&row, "there")?,
        ours: field(&row, "ours")?,
        may_make: field(&row, "may_make")?,
        me: field(&row, "me")?,
        here: field(&row, "here")?,
    })
}
