//! What every reconcile needs, the same for all tenants.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::config::{Config, Isolation};
use crate::error::Result;
use crate::migrations::MigrationSet;
use crate::pg::{Pool, Server};
use crate::registry::Registry;
use crate::registry::claim::Claim;
use crate::registry::elsewhere::SESSIONS;
use crate::registry::rollouts::Rollout;
use crate::registry::sets::Relations;
use crate::registry::sweep::Room;
use crate::retry::Schedule;
use crate::spares::Wanted;
use crate::tenant::{State, Work, hex};

use super::supply::Supply;

/// Everything a reconcile needs, the same for every tenant.
#[derive(Clone)]
pub struct Context {
    /// The server that the tenants' databases are on.
    pub server: Server,
    /// Where the truth is.
    pub registry: Registry,
    /// Sessions for the work in tenants that share a database.
    pub tenants: Pool,
    /// The settings in force.
    pub config: Arc<Config>,
    /// The migrations every tenant should have.
    pub set: Arc<MigrationSet>,
    /// How the set compares with those that tenants have.
    pub relations: Relations,
    /// Whether tenants that are behind get the set by the way, or only as its rollout says.
    pub gate: Gate,
    /// What this process knows of spares.
    pub supply: Supply,
}

/// What a rollout keeps the set from: tenants that lack it, and new ones. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Open>);

#[derive(Debug, Default)]
struct Open {
    to_all: AtomicBool,
    to_new: AtomicBool,
}

impl Gate {
    /// Takes over how the rollout stands; `None`: the set needs none.
    pub fn set(&self, rollout: Option<&Rollout>) {
        self.0.to_all.store(rollout.is_none_or(Rollout::is_open), Ordering::Relaxed);
        self.0.to_new.store(rollout.is_none_or(Rollout::is_for_new), Ordering::Relaxed);
    }

    /// Whether nothing keeps the set from anybody.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.to_all.load(Ordering::Relaxed)
    }

    /// Whether new tenants get the set.
    #[must_use]
    pub fn is_open_to_new(&self) -> bool {
        self.0.to_new.load(Ordering::Relaxed)
    }
}

/// All but one of those to tenants that there may be: a migration without a transaction takes a second one. None is opened before it is needed.
fn tenants(server: &Server, config: &Config) -> Pool {
    let elsewhere = config.tenant.database.as_ref();
    let size = config.bounds().tenants - 1 - if elsewhere.is_some() { SESSIONS } else { 0 };
    Pool::of_tenants(server.clone(), size, elsewhere.unwrap_or(&config.main.database).as_str())
}

impl Context {
    /// Puts a context together: writes the set down in the registry, compares it with the sets that tenants have, begins its rollout where
    /// one is needed, and ends those that it leaves behind. `supply` is the process's.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn prepare(
        server: Server,
        registry: Registry,
        config: Arc<Config>,
        set: Arc<MigrationSet>,
        supply: Supply,
    ) -> Result<Context> {
        registry.keep_set(&set).await?;
        let relations = registry.relate(&set, config.tenant.out_of_order).await?;
        let gate = Gate::default();
        gate.set(registry.rollout_of(&set, &relations.behind).await?.as_ref());
        if gate.is_open_to_new() {
            registry.overtake_rollouts(&relations.overtaken, set.newest_version()).await?;
        }
        let tenants = tenants(&server, &config);
        Ok(Context { server, registry, tenants, config, set, relations, gate, supply })
    }

    /// The same for whoever looks first of all: nothing is written down and no rollout begun. A set whose rollout is still to begin is kept
    /// from tenants that lack it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn looking(
        server: Server,
        registry: Registry,
        config: Arc<Config>,
        set: Arc<MigrationSet>,
        supply: Supply,
    ) -> Result<Context> {
        let relations = registry.relate(&set, config.tenant.out_of_order).await?;
        let rollout = registry.rollout(&set.id()).await?;
        let gate = Gate::default();
        if rollout.is_some() || relations.behind.is_empty() {
            gate.set(rollout.as_ref());
        }
        let tenants = tenants(&server, &config);
        Ok(Context { server, registry, tenants, config, set, relations, gate, supply })
    }

    /// The set that the claimed tenant is to be brought to: ours, unless it lacks some of that, works without a fault, and is not up yet in the
    /// rollout: then what it has.
    ///
    /// A schema that is to be made begins with the newest set that tenants have, until the canaries of ours have passed: a migration that does not work
    /// stops no signup. A database begins as what its template is.
    #[must_use]
    pub fn target(&self, claim: &Claim) -> Arc<MigrationSet> {
        let schemas = self.config.tenant.isolation == Isolation::Schema;
        if schemas && claim.state == State::Requested && !claim.advance && !self.gate.is_open_to_new() {
            let newest = self.relations.behind.values().min_by_key(|lacking| lacking.len());
            let kept = newest.and_then(|lacking| self.set.without(lacking));
            return kept.map_or_else(|| Arc::clone(&self.set), Arc::new);
        }
        let waits = !claim.advance && !self.gate.is_open() && claim.state == State::Ready;
        if waits && matches!(claim.work, Work::Idle | Work::Due) {
            let lacking = claim.migration_set.as_ref().and_then(|id| self.relations.behind.get(id));
            let kept = lacking.and_then(|lacking| self.set.without(lacking));
            return kept.map_or_else(|| Arc::clone(&self.set), Arc::new);
        }
        Arc::clone(&self.set)
    }

    /// The role that owns every tenant.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.config.tenant.owner.as_deref().unwrap_or_else(|| self.config.main.user())
    }

    /// The fingerprint of owner and grants: when a setting of them changes, every tenant is behind.
    #[must_use]
    pub fn access(&self) -> String {
        let as_set = |roles: &[String]| roles.iter().cloned().collect::<BTreeSet<_>>();
        let text = format!(
            "{:?}",
            (self.owner(), as_set(&self.config.tenant.use_roles), as_set(&self.config.tenant.connect_roles))
        );
        hex(&Sha256::digest(text.as_bytes()))
    }

    /// The fingerprint of all that is the same in every tenant but the migrations: owner, grants, extensions.
    #[must_use]
    pub fn shape(&self) -> String {
        hex(&Sha256::digest(format!("{} {:?}", self.access(), self.config.tenant.extensions).as_bytes()))
    }

    /// What templates and spares should be.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            migration_set: self.set.id(),
            shape: self.shape(),
            newer: self.relations.newer.clone(),
            behind: self.relations.behind.keys().cloned().collect(),
            settings: self.config.spares,
        }
    }

    /// How many more tenants the brakes let be made.
    #[must_use]
    pub fn room(&self, counted: Room) -> i64 {
        let of_server = i64::from(self.config.tenant.max) - counted.tenants;
        let per_hour = i64::from(self.config.tenant.max_per_hour);
        let room = if per_hour == 0 { of_server } else { of_server.min(per_hour - counted.last_hour) };
        room.max(0)
    }

    pub(super) fn schedule(&self) -> Schedule {
        let retry = &self.config.retry;
        Schedule { first: retry.first, max: retry.max, attempts: retry.attempts }
    }
}
