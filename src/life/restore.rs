//! A tenant is taken back: from its time of grace, or from a backup.

use std::path::Path;
use std::time::Duration;

use super::{empty, giving_back, in_place, look, vacated};
use crate::backup;
use crate::config::{Config, Isolation};
use crate::error::{Error, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::{enter, roles_that_enter, schema_of};
use crate::migrations::id_of;
use crate::pg::{Doing, History, Server, admin};
use crate::plan::Database;
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::dropped::{Aside, Dropped};
use crate::registry::events::What;
use crate::registry::hand_over::grant_connect;
use crate::tenant::spare_name;

/// How long our own `pg_restore` may take to vanish from the database that it filled.
const LEAVE: Duration = Duration::from_secs(5);

/// How a tenant is taken back.
#[derive(Debug, Clone, Copy)]
pub struct Restoring {
    /// Whether a database that the tenant has now is set aside for it.
    pub replace: bool,
    /// How long that one can be taken back.
    pub grace: Duration,
    /// How long to wait for sessions in it that our role may not end.
    pub patience: Duration,
}

impl Restoring {
    fn aside(&self) -> Aside<'static> {
        Aside { what: What::Restored, backup: None, grace: self.grace }
    }

    /// Refuses to take the place of a database unless that is wanted.
    fn may_replace(&self, kind: Isolation, claim: &Claim, there: Option<&Database>) -> Result<()> {
        if self.replace || there.is_none() {
            return Ok(());
        }
        Err(Error::usage(format!("tenant {} has a {kind}", claim.key))
            .hint("with --replace that one is set aside, and can be taken back in its turn"))
    }
}

/// Makes what was set aside the database of the claimed tenant again. The claim is given back, however it ends.
///
/// # Guarantees
/// It is one transaction; before it, at worst, the tenant's present database is closed until the next look at it.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage) without `replace` where the tenant has a database, or when it is being dropped for good; [`Kind::InUse`](crate::error::Kind::InUse); [`Kind::Conflict`](crate::error::Kind::Conflict).
pub async fn take_back(registry: &Registry, claim: &Claim, dropped: &Dropped, how: Restoring) -> Result<()> {
    let work = async {
        let there = match &claim.name {
            Some(name) => look(registry, claim, name).await?.map(|database| (name, database)),
            None => None,
        };
        how.may_replace(registry.isolation, claim, there.as_ref().map(|(_, database)| database))?;
        match there {
            None => registry.take_dropped_back(claim, dropped, None).await,
            Some((name, _)) => {
                let exchange = registry.take_dropped_back(claim, dropped, Some(how.aside()));
                vacated(registry, claim, name, how.patience, exchange).await
            }
        }
    };
    let back = giving_back(registry, claim, work).await;
    back.map_err(|error| error.context(format!("restore tenant {}", claim.key)))
}

/// Makes a database of the backup `file` that of the claimed tenant. The claim is given back, however it ends.
///
/// # Flow
/// An empty database under a random name, open to our role alone; `pg_restore` into it; closed; then handed over in one fenced transaction, which
/// sets the present one aside.
///
/// # Guarantees
/// The real name never shows a half-filled database. After a crash before the hand-over the tenant is as it was, and the next sweep drops what
/// was half made.
///
/// # Errors
/// As for [`take_back`]; what `pg_restore` says.
pub async fn from_file(
    server: &Server,
    registry: &Registry,
    config: &Config,
    claim: &Claim,
    file: &Path,
    how: Restoring,
) -> Result<()> {
    let back = giving_back(registry, claim, fill_and_exchange(server, registry, config, claim, file, how)).await;
    back.map_err(|error| error.context(format!("restore tenant {}", claim.key)))
}

async fn fill_and_exchange(
    server: &Server,
    registry: &Registry,
    config: &Config,
    claim: &Claim,
    file: &Path,
    how: Restoring,
) -> Result<()> {
    let name = match &claim.name {
        Some(name) => name.clone(),
        None => config.tenant.names.of(&claim.key)?,
    };
    let there = look(registry, claim, &name).await?;
    how.may_replace(registry.isolation, claim, there.as_ref())?;
    if registry.isolation == Isolation::Schema {
        let aside = there.as_ref().map(|_| how.aside());
        return in_place::fill(server, registry, config, claim, (&name, file), aside).await;
    }
    let spare = spare_name();
    registry.announce_for(claim, &spare).await?;
    let done = async {
        create(registry, config, &spare).await?;
        reach(Point::FillBegun).await;
        backup::restore(server, config, file, &spare, &claim.key).await?;
        describe(server, registry, config, claim, &spare).await?;
        close(registry, config, &spare).await?;
        reach(Point::Filled).await;
        let (aside, from) = (there.as_ref().map(|_| how.aside()), format!("from {}", file.display()));
        let exchange = registry.exchange(claim, &name, &spare, aside, What::Restored, &from);
        if there.is_none() { exchange.await } else { vacated(registry, claim, &name, how.patience, exchange).await }
    };
    let done = done.await;
    if done.is_err() {
        discard(registry, &spare).await;
    }
    done
}

/// Empty, shut to PUBLIC, and open: only our role and the tenants' owner can get in.
async fn create(registry: &Registry, config: &Config, spare: &str) -> Result<()> {
    let create = admin::Create {
        name: spare,
        owner: config.tenant.owner.as_deref().unwrap_or_else(|| config.main.user()),
        template: "template0",
        bytes: 0,
        strategy: config.tenant.strategy,
        server_version: registry.server_version().await?,
    };
    admin::create_database(&*registry.session().await?, &create, &admin::open(spare, true)).await
}

/// Closed, with the rights that a spare has from its making, and left by all.
async fn close(registry: &Registry, config: &Config, spare: &str) -> Result<()> {
    let close = admin::open(spare, false) + &grant_connect(spare, roles_that_enter(&config.tenant));
    let session = registry.session().await?;
    session.batch_execute(&close).await.doing(|| format!("close the database {spare:?}"))?;
    drop(session);
    empty(registry, spare, LEAVE).await
}

/// Writes down what the backup held: which migrations.
async fn describe(server: &Server, registry: &Registry, config: &Config, claim: &Claim, spare: &str) -> Result<()> {
    let session = enter(server, &config.tenant, spare, &format!("tenantd:{}", claim.key)).await?;
    let rows = History::tenant(schema_of(&config.tenant, spare)).look(&session).await?.unwrap_or_default();
    session.close().await;
    let entries: Vec<_> = rows.iter().filter(|row| row.finished).map(|row| row.entry.clone()).collect();
    let whole = !entries.is_empty() && entries.len() == rows.len();
    let version = entries.last().map(|entry| entry.version);
    registry.describe_spare(claim, spare, version, whole.then(|| id_of(&entries)).as_deref()).await
}

/// What stays is dropped by the next sweep, once the lease has ended.
async fn discard(registry: &Registry, spare: &str) {
    let discarded = async {
        admin::drop_database(&*registry.session().await?, spare).await?;
        registry.forget_spare(spare).await
    };
    if let Err(error) = discarded.await {
        tracing::debug!(spare, error = error.chain(), "a half-filled database stays until the next sweep");
    }
}
