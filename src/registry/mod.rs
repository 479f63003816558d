//! The registry: schema `tenantd` in the main database, the truth about which tenants exist and how they stand.
//!
//! All SQL on the main database is in this folder: [`install`] makes the registry, the trigger and the grants; [`claim`] takes signups in
//! and due tenants, `record` and
//! [`rollback`] write what became of them, fenced by the claim's attempt; [`sweep`] finds what needs a look;
//! [`templates`] and [`spares`] are what tenants are made of, [`hand_over`] how; [`sets`] keeps the migration sets;
//! [`databases`] looks at tenants' databases from outside, [`dropped`] sets them aside and takes them back;
//! [`doorbell`] is how the trigger wakes a daemon; [`fleet`] reads for status and metrics; [`lookup`] finds tenants by what a person types,
//! [`tenants`] reads them for commands; [`departure`] is the other end of a signup; [`locks`] tells who holds what, and [`events`] is the history
//! of what was done. [`signup`], [`signup_triggers`] and [`when`] are the application's side of it.

pub mod adopt;
mod by_hand;
pub mod canaries;
pub mod check;
pub mod claim;
mod create;
pub mod databases;
pub mod departure;
pub mod doctor;
pub mod doorbell;
pub mod dropped;
pub mod elsewhere;
pub mod events;
pub mod fleet;
pub mod grants;
pub mod hand_over;
pub mod identity;
mod in_place;
pub mod install;
pub mod locks;
pub mod lookup;
pub mod naming;
pub mod parts;
pub mod print;
mod purge;
mod record;
pub mod rollback;
pub mod rollouts;
pub mod schema;
pub mod sets;
mod shared;
pub mod signup;
pub mod signup_triggers;
pub mod spares;
pub mod sweep;
pub mod templates;
pub mod tenants;
pub mod triggers;
pub mod when;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSqlOwned, ToSql, Type};
use uuid::Uuid;

use self::elsewhere::Elsewhere;
use crate::config::{self, Isolation};
use crate::error::{Error, Kind, Result};
use crate::migrations::embedded;
use crate::pg::{Doing, Pool, PooledSession, Server};

/// What a short statement is answered in, if it is answered at all. A network that swallows packets without a word says nothing else.
const ANSWER: Duration = Duration::from_secs(15);

/// A statement's parameters, each with its type.
type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// The registry of one main database, opened: its schema is there, and it belongs to this database.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: Pool,
    /// The registry's own id, half of every ownership marker.
    pub id: Uuid,
    /// What tenants have of their own.
    pub isolation: Isolation,
    /// Where their schemas are, if not in the main database.
    elsewhere: Option<Elsewhere>,
    /// Who claims: `host:pid:random` of this process, as it stands in `leased_by` and in the names of its connections.
    pub worker: String,
    /// The user and the machine that this process runs for, as events name them: `alice@host`.
    pub who: String,
    /// The newest version of the registry that this tenantd knows.
    knows: i64,
    in_hand: Arc<InHand>,
}

/// The tenants that this process works on, so that leases nobody works under can be told and given back after an outage.
#[derive(Debug, Default)]
struct InHand {
    /// Written by each claim and each end of the work.
    keys: Mutex<BTreeSet<String>>,
    /// Read by each claim until what it took is among the keys: before that nobody can tell its leases from those that are left over.
    claiming: RwLock<()>,
    /// How often in a row a migration of the tenant broke the connection; forgotten when the work comes to another end.
    broken: Mutex<BTreeMap<String, u32>>,
    /// Whether a lease may stand that nobody works under: a claim without an answer, a tenant that could not be given back.
    owed: AtomicBool,
}

/// A process that works on the registry.
#[derive(Debug, Clone)]
pub struct Worker {
    /// `host:pid:random`, as it stands in `leased_by`.
    pub name: String,
    /// The name of its connections to the main database; a daemon's begins with `tenantd:daemon `, by which `status` knows it.
    pub application_name: String,
    /// The user and the machine, as events name them: `alice@host`.
    pub who: String,
    /// The most connections in its pool; those that stand apart from it, such as its doorbell's, come on top.
    pub connections: usize,
    /// What it takes tenants to have of their own.
    pub isolation: Isolation,
    /// The database that it takes their schemas to be in; `None`: the main one.
    pub tenants_in: Option<String>,
}

impl Worker {
    /// This process, as a `role` such as `daemon` or `sweep`, run by `user`.
    #[must_use]
    pub fn new(role: &str, user: &str, host: &str, connections: usize, tenants: &config::Tenant) -> Self {
        // Two containers may have one host name, and both the process id 1.
        let random = &Uuid::new_v4().simple().to_string()[..4];
        let name = format!("{host}:{}:{random}", std::process::id());
        let mut application_name = format!("tenantd:{role} {name}");
        // The server would cut it off with a notice.
        application_name.truncate(application_name.floor_char_boundary(crate::tenant::MAX_IDENTIFIER_BYTES));
        Worker {
            name,
            application_name,
            who: format!("{user}@{host}"),
            connections,
            isolation: tenants.isolation,
            tenants_in: tenants.database.clone(),
        }
    }

    fn elsewhere(&self, server: &Server) -> Option<Elsewhere> {
        self.tenants_in.as_ref().map(|database| Elsewhere::new(server, database, &self.application_name))
    }

    fn registry(&self, server: &Server, id: Uuid) -> Result<Registry> {
        let pool = Pool::new(server.clone(), self.connections, &*self.application_name);
        let knows = embedded::main()?.newest_version();
        Ok(Registry {
            pool,
            id,
            isolation: self.isolation,
            elsewhere: self.elsewhere(server),
            worker: self.name.clone(),
            who: self.who.clone(),
            knows,
            in_hand: Arc::default(),
        })
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

    /// Closes every session that nobody uses, since the server takes no writes any more: the next may lead to another host.
    pub fn leave_host(&self) {
        self.pool.drop_idle();
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.pool.drop_idle();
        }
    }

    /// Closes every session that nobody uses, and the others as they come back. For the end of the process.
    pub fn close(&self) {
        self.pool.close();
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.pool.close();
        }
    }

    /// The rows of a short statement.
    async fn query(&self, sql: &str, parameters: Parameters<'_>, what: impl FnOnce() -> String) -> Result<Vec<Row>> {
        let session = self.session().await?;
        answered(&session, async { session.query_typed(sql, parameters).await.doing(what) })
            .await
            .map_err(claim::damaged)
    }

    /// How many rows a short statement changed.
    async fn execute(&self, sql: &str, parameters: Parameters<'_>, what: impl FnOnce() -> String) -> Result<u64> {
        let session = self.session().await?;
        answered(&session, async { session.execute_typed(sql, parameters).await.doing(what) })
            .await
            .map_err(claim::damaged)
    }
}

/// The outcome of `statement`, which runs on `session`. One that is not answered in time is stopped on the server, if that hears us.
async fn answered<T>(session: &PooledSession, statement: impl Future<Output = Result<T>>) -> Result<T> {
    if let Ok(outcome) = tokio::time::timeout(ANSWER, statement).await {
        return outcome;
    }
    if let Err(error) = session.cancel().await {
        tracing::debug!(error = error.chain(), "a statement without an answer was not stopped");
    }
    Err(Error::new(Kind::Unreachable, format!("the main database gave no answer within {ANSWER:?}"))
        .hint("look at the network between tenantd and the server, and for a statement of tenantd's that waits there"))
}

/// Reads column `name` of `row`; a value of another type means a registry that is not ours, never a panic.
pub(crate) fn field<T: FromSqlOwned>(row: &Row, name: &str) -> Result<T> {
    row.try_get(name)
        .map_err(|error| Error::new(Kind::Registry, format!("read column {name} of the registry")).because(error))
}
