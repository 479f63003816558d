//! Scratch databases: clones of a template for a command to look into, under a random name that is written down, and dropped at the end. Where
//! tenants have schemas, an empty schema.

use std::time::Duration;

use super::Context;
use crate::config::{Config, Isolation};
use crate::error::Result;
use crate::isolation::{drop_for_good, enter_roles};
use crate::pg::catalogue::{self, Catalogue};
use crate::pg::{Doing, Session, admin, quote, schemas};
use crate::registry::Registry;
use crate::registry::templates::Template;
use crate::tenant::spare_name;

/// A scratch database is no stray for so long; no command needs one longer.
const LASTS: Duration = Duration::from_hours(1);

/// What every database can be a copy of.
const EMPTY: &str = "template0";

/// A scratch database: shut to PUBLIC, and closed until it is opened.
///
/// End with [`Scratch::discard`]. What a command that died left is dropped by a sweep, an hour later.
#[derive(Debug)]
pub struct Scratch {
    name: String,
}

impl Scratch {
    /// Makes one from `template`, or an empty one.
    ///
    /// # Errors
    /// As [`admin::create_database`]'s; nothing is left then.
    pub async fn make(registry: &Registry, config: &Config, template: Option<&Template>) -> Result<Scratch> {
        let scratch = Scratch { name: spare_name() };
        registry.announce_scratch(&scratch.name, LASTS).await?;
        let made = if registry.isolation == Isolation::Schema {
            let session = registry.session_of_tenants().await?;
            let made = session.batch_execute(&scratch.schema(config)).await;
            made.doing(|| format!("make the scratch schema {:?}", scratch.name))
        } else {
            let server_version = registry.server_version().await?;
            let session = registry.session().await?;
            admin::create_database(&session, &copy(config, template, &scratch.name, server_version), "").await
        };
        match made {
            Ok(()) => Ok(scratch),
            Err(error) => {
                // What cannot be dropped either is found by a sweep.
                let _ = scratch.discard(registry).await;
                Err(error)
            }
        }
    }

    fn schema(&self, config: &Config) -> String {
        let owner = config.tenant.owner.as_deref().unwrap_or_else(|| config.main.user());
        format!(
            "create schema {} authorization {}; {} {}",
            quote::identifier(&self.name),
            quote::identifier(owner),
            schemas::default_privileges(&self.name, owner, &config.tenant.use_roles),
            enter_roles(&self.name, &config.tenant)
        )
    }

    /// What people made in it, as `session`, which is in it, sees it.
    ///
    /// # Errors
    /// By SQLSTATE.
    pub async fn catalogue(&self, context: &Context, session: &Session) -> Result<Catalogue> {
        match context.config.tenant.isolation {
            Isolation::Database => catalogue::read(session, None).await,
            Isolation::Schema => catalogue::read_own(session, &self.name).await,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets it take connections of those that may connect: tenantd and its owner.
    ///
    /// # Errors
    /// The server did not let us.
    pub async fn open(&self, registry: &Registry) -> Result<()> {
        if registry.isolation == Isolation::Schema {
            return Ok(());
        }
        let open = format!("alter database {} with allow_connections true", quote::identifier(&self.name));
        let opened = registry.session().await?.batch_execute(&open).await;
        opened.doing(|| format!("open the scratch database {:?}", self.name))
    }

    /// Drops it.
    ///
    /// # Errors
    /// The server did not drop it: a sweep does later.
    pub async fn discard(self, registry: &Registry) -> Result<()> {
        drop_for_good(registry, &self.name).await?;
        registry.forget_spare(&self.name).await
    }
}

/// The scratch database `name` to be made, written down or not: a copy of `template`, or an empty one.
#[must_use]
pub fn copy<'a>(
    config: &'a Config,
    template: Option<&'a Template>,
    name: &'a str,
    server_version: i32,
) -> admin::Create<'a> {
    admin::Create {
        name,
        owner: config.tenant.owner.as_deref().unwrap_or_else(|| config.main.user()),
        template: template.map_or(EMPTY, |template| &template.name),
        bytes: template.map_or(0, |template| template.bytes),
        strategy: config.tenant.strategy,
        server_version,
    }
}
