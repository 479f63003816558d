//! The registry: schema `tenantd` in the main database, the truth about which tenants exist and how they stand.
//!
//! All SQL on the main database is in this folder: [`install`] makes the registry, the trigger and the grants; [`claim`] takes due
//! tenants and records what became of them, every write fenced by the claim's attempt; [`sweep`] finds what needs a look;
//! [`sets`] keeps the migration sets; [`doorbell`] is how the trigger wakes a daemon; [`fleet`] reads for status and metrics.

pub mod claim;
pub mod doorbell;
pub mod fleet;
mod grants;
pub mod hand_over;
pub mod identity;
pub mod install;
pub mod print;
pub mod sets;
pub mod signup;
pub mod sweep;

use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::pg::{Pool, PooledSession, Server};

/// The registry of one main database, opened: its schema is there, and it belongs to this database.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: Pool,
    /// The registry's own id, half of every ownership marker.
    pub id: Uuid,
    /// Who claims: `host:pid` of this process, as it stands in `leased_by` and in the names of its connections.
    pub worker: String,
}

/// A process that works on the registry.
#[derive(Debug, Clone)]
pub struct Worker {
    /// `host:pid`, as it stands in `leased_by`.
    pub name: String,
    /// The name of its connections to the main database; a daemon's begins with `tenantd:daemon `, by which `status` knows it.
    pub application_name: String,
    /// The most connections it has to the main database, its doorbell's apart.
    pub connections: usize,
}

impl Worker {
    /// This process, as a `role` such as `daemon` or `sweep`.
    #[must_use]
    pub fn new(role: &str, host: &str, connections: usize) -> Self {
        let name = format!("{host}:{}", std::process::id());
        let mut application_name = format!("tenantd:{role} {name}");
        // The server would cut it off with a notice.
        application_name.truncate(crate::tenant::MAX_IDENTIFIER_BYTES);
        Worker { name, application_name, connections }
    }

    fn registry(&self, server: &Server, id: Uuid) -> Registry {
        let pool = Pool::new(server.clone(), self.connections, &*self.application_name);
        Registry { pool, id, worker: self.name.clone() }
    }
}

impl Registry {
    /// A session on the main database, for statements that must not share one.
    ///
    /// # Errors
    /// The server cannot be reached, or has no free connection.
    pub async fn session(&self) -> Result<PooledSession> {
        self.pool.get().await
    }
}

/// Reads column `name` of `row`; a value of another type means a registry that is not ours, never a panic.
pub(crate) fn field<T: FromSqlOwned>(row: &Row, name: &str) -> Result<T> {
    row.try_get(name)
        .map_err(|error| Error::new(Kind::Registry, format!("read column {name} of the registry")).because(error))
}
