//! A tenant under work, whichever way tenants are kept apart.

use super::{DatabaseIsolation, Isolation, SchemaIsolation};
use crate::config::{self, Isolation as Kept};
use crate::error::Result;
use crate::pg::{Pool, Server};
use crate::plan::{Desired, Observed, Step};
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::spares::Serving;

/// One tenant under work, as the settings keep it apart.
pub enum AnyIsolation<'a> {
    /// It has a database.
    Database(DatabaseIsolation<'a>),
    /// It has a schema.
    Schema(SchemaIsolation<'a>),
}

impl<'a> AnyIsolation<'a> {
    /// Begins work on one tenant. `tenants` are the sessions for those that share a database, `serving` is what others are made of.
    #[must_use]
    pub fn new(
        server: &'a Server,
        registry: &'a Registry,
        settings: &'a config::Tenant,
        tenants: &'a Pool,
        serving: Serving<'a>,
    ) -> Self {
        match settings.isolation {
            Kept::Database => AnyIsolation::Database(DatabaseIsolation::new(server, registry, settings, serving)),
            Kept::Schema => AnyIsolation::Schema(SchemaIsolation::new(server, registry, settings, tenants)),
        }
    }
}

impl Isolation for AnyIsolation<'_> {
    async fn observe(&mut self, claim: &Claim, desired: &Desired<'_>) -> Result<Observed> {
        match self {
            AnyIsolation::Database(database) => database.observe(claim, desired).await,
            AnyIsolation::Schema(schema) => schema.observe(claim, desired).await,
        }
    }

    async fn apply(&mut self, claim: &Claim, desired: &Desired<'_>, step: &Step) -> Result<()> {
        match self {
            AnyIsolation::Database(database) => database.apply(claim, desired, step).await,
            AnyIsolation::Schema(schema) => schema.apply(claim, desired, step).await,
        }
    }

    async fn version(&mut self) -> Option<i64> {
        match self {
            AnyIsolation::Database(database) => database.version().await,
            AnyIsolation::Schema(schema) => schema.version().await,
        }
    }

    async fn give_up(&mut self) {
        match self {
            AnyIsolation::Database(database) => database.give_up().await,
            AnyIsolation::Schema(schema) => schema.give_up().await,
        }
    }
}
