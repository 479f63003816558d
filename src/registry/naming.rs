//! What the registry knows of names: whose one is, and whose a database without a tenant might be.

use tokio_postgres::types::Type;

use super::signup::inspect;
use super::{Registry, field};
use crate::config::Signup;
use crate::error::{Error, Kind, Result};
use crate::naming::Names;
use crate::pg::Doing;

/// A key that a database could belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namesake {
    /// The key.
    pub key: String,
    /// The name that it would be given now.
    pub name: Option<String>,
    /// Its SHA-256, as a marker bears it.
    pub hash: String,
}

impl Registry {
    /// That a tenant cannot have the name, since another key's has it: each tenant has a database of its own.
    pub(super) async fn name_taken(&self, name: &str) -> Error {
        let sql = "select key from tenantd.tenant where name = $1";
        let whose = self.query(sql, &[(&name, Type::TEXT)], || format!("look whose name {name:?} is")).await;
        // By now it may have gone.
        let other = whose.and_then(|rows| rows.first().map(|row| field::<String>(row, "key")).transpose());
        let whose = match other {
            Ok(Some(other)) => format!("tenant {other:?}"),
            _ => "another key".to_owned(),
        };
        Error::new(Kind::BadKey, format!("the name {name:?} belongs to {whose}"))
    }

    /// Users of the signup table, and tenants, whose names would be among `names`, or whose keys have one of the SHA-256 `hashes`; by key. Reads
    /// all of the signup table.
    ///
    /// # Errors
    /// The signup table cannot be read.
    pub async fn namesakes(
        &self,
        signup: &Signup,
        naming: &Names,
        names: &[String],
        hashes: &[String],
    ) -> Result<Vec<Namesake>> {
        let session = self.session().await?;
        let table = inspect(&session, signup, naming).await?;
        // As in the search for users without a tenant: only of a table can a sample be taken, and concat runs nobody's function as us.
        let sql = format!(
            "select k.key, n.name, n.hash from (
                 select concat({id}) as key from {name} tablesample system (100) where {id} is not null
                 union select key from tenantd.tenant
             ) k, lateral (
                 select tenantd.name_of(k.key, $1) as name, encode(sha256(convert_to(k.key, 'UTF8')), 'hex') as hash
             ) n where n.name = any ($2) or n.hash = any ($3) order by 1",
            id = table.id,
            name = table.name
        );
        let parameters: super::Parameters<'_> =
            &[(&naming.to_string(), Type::TEXT), (&names, Type::TEXT_ARRAY), (&hashes, Type::TEXT_ARRAY)];
        let rows = session.query_typed(&sql, parameters).await.doing(|| "look whose databases these are".to_owned())?;
        let read = |row| Ok(Namesake { key: field(row, "key")?, name: field(row, "name")?, hash: field(row, "hash")? });
        rows.iter().map(read).collect()
    }
}
