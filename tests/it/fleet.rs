//! The library on a test's main database: installed, with a context to reconcile and sweep by.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tenantd::config::{Config, Isolation, Sources, load};
use tenantd::error::Result;
use tenantd::migrations::{MigrationSet, embedded, source};
use tenantd::naming::Names;
use tenantd::pg::{Doing, Server, Session, quote};
use tenantd::provision::{Context, Supply};
use tenantd::registry::claim::Most;
use tenantd::registry::identity::Moved;
use tenantd::registry::install::{Installed, Wishes};
use tenantd::registry::signup::{Missing, Table};
use tenantd::registry::{Registry, Worker};
use tenantd::sweep::{Report, Run, sweep};
use tenantd::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use crate::support::database::TestDatabase;

/// What most tests ask of an installation.
pub const WISHES: Wishes = Wishes { backfill: false, moved: Moved::Refuse };

/// Settings for `database` as the daemon would have them, with `more` of them by key.
#[must_use]
pub fn config(database: &TestDatabase, more: &[(&str, &str)]) -> Config {
    let mut sources = Sources::of(std::iter::empty::<(String, String)>());
    let settings = [
        ("main.url", database.url()),
        ("tenant.prefix", database.prefix().to_owned()),
        ("tenant.owner", "tenant_owner".to_owned()),
        ("tenant.use", "app".to_owned()),
        ("http.listen", String::new()),
        ("spares.max", "0".to_owned()),
    ];
    sources.flags.extend(settings.into_iter().chain(database.isolating()).map(|(key, value)| (key.to_owned(), value)));
    sources.flags.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    load(&sources).expect("the test's settings").config
}

/// A look that may take `most` tenants, `making` of them without a database yet, and no spares.
#[must_use]
pub fn most(making: usize, most: usize) -> Most {
    Most { room: making, making, by_spares: 0, lanes: most }
}

/// One process's view of the fleet.
pub struct Fleet {
    /// Everything a reconcile needs.
    pub context: Arc<Context>,
    /// The signup table.
    pub table: Table,
    /// What the installation did.
    pub installed: Installed,
    tasks: Tasks,
}

impl Fleet {
    /// Installs with the embedded tenant migrations.
    pub async fn install(database: &TestDatabase, more: &[(&str, &str)]) -> Fleet {
        Self::with_set(config(database, more), embedded::tenant().expect("the embedded set")).await.expect("install")
    }

    /// Installs with the tenant migrations in `folder`.
    pub async fn with_folder(database: &TestDatabase, folder: &Path) -> Fleet {
        Self::with_set(config(database, &[]), source::folder(folder).expect("a sound folder")).await.expect("install")
    }

    /// Installs with the tenant migrations in `folder` and `more` settings.
    pub async fn with_folder_and(database: &TestDatabase, folder: &Path, more: &[(&str, &str)]) -> Fleet {
        let set = source::folder(folder).expect("a sound folder");
        Self::with_set(config(database, more), set).await.expect("install")
    }

    /// How its tenants are named.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.context.config.tenant.names
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.context.registry
    }

    /// Installs by `config` with `set`.
    ///
    /// # Errors
    /// As the library says.
    pub async fn with_set(config: Config, set: MigrationSet) -> Result<Fleet> {
        Self::made(config, set, WISHES).await
    }

    /// Installs by `config` with the embedded tenant migrations and what else is wished for.
    ///
    /// # Errors
    /// As the library says.
    pub async fn wishing(config: Config, wishes: Wishes) -> Result<Fleet> {
        Self::made(config, embedded::tenant().expect("the embedded set"), wishes).await
    }

    async fn made(config: Config, set: MigrationSet, wishes: Wishes) -> Result<Fleet> {
        let tasks = Tasks::new();
        let server = Server::new(config.main.clone(), tasks.clone());
        let worker = Worker::new("test", "test", "test", 12, &config.tenant);
        let (registry, installed) = Registry::install(&server, &config, wishes, &worker).await?;
        let context = Context::prepare(server, registry, Arc::new(config), Arc::new(set), Supply::default()).await?;
        Ok(Fleet { context: Arc::new(context), table: installed.table.clone(), installed, tasks })
    }

    /// Looks for users without a tenant, as each sweep does.
    pub async fn request_missing(&self) -> Missing {
        self.registry().request_missing(&self.table, self.names()).await.expect("look for users without a tenant")
    }

    /// A sweep as by hand.
    pub async fn sweep(&self) -> Report {
        self.try_sweep(true).await.expect("sweep")
    }

    /// A sweep by hand or as the daemon's.
    ///
    /// # Errors
    /// As the library says.
    pub async fn try_sweep(&self, by_hand: bool) -> Result<Report> {
        let run = Run { by_hand, stop: CancellationToken::new(), only: None };
        sweep(&self.context, &self.table, &self.tasks, &run, |_, _, _| {}).await
    }

    /// Closes its connections, so that nothing of it is left for the audit to find.
    pub async fn close(self) {
        let Fleet { context, tasks, .. } = self;
        drop(context);
        let alive = tasks.stop(Duration::from_secs(10)).await;
        assert!(alive.is_empty(), "still alive: {alive:?}");
    }
}

/// The registry's row of `key`, with every column; of a signup that is still to be taken in what the application sees.
pub async fn row(database: &TestDatabase, key: &str) -> Value {
    let select = "select coalesce((select to_jsonb(t) from tenantd.tenant t where key = $1), to_jsonb(v))::text
                  from (select) one left join tenantd.tenants v on v.key = $1";
    let text: String = database.superuser().await.query_one(select, &[&key]).await.expect("a row").get(0);
    serde_json::from_str(&text).expect("JSON")
}

/// Runs `sql` in the main database as the superuser.
pub async fn execute(database: &TestDatabase, sql: &str) {
    database.superuser().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Enters the tenant `name` as whoever `url` names: its database, or the main one with a search path that leads to its schema, if that may be used.
///
/// # Errors
/// As the library says.
pub async fn enter(database: &TestDatabase, url: &str, name: &str) -> Result<Session> {
    let config = config(database, &[("main.url", url)]);
    let server = Server::new(config.main, Tasks::new());
    if database.isolation() == Isolation::Database {
        return server.connect(Some(name), "test").await;
    }
    let session = server.connect(None, "test").await?;
    let schema = quote::identifier(name);
    let (itself, within) = (quote::literal(&schema), quote::literal(&format!("{schema}.anything")));
    let search = format!("select {itself}::regnamespace, to_regclass({within}); set search_path = {schema}");
    session.batch_execute(&search).await.doing(|| format!("enter the schema {name:?}"))?;
    Ok(session)
}

/// Writes migrations of the given file names and texts into `folder`.
pub fn write_migrations(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("write a migration");
    }
}

/// The oid of the database, or schema, `name`; `None` when there is none.
pub async fn oid(database: &TestDatabase, name: &str) -> Option<u32> {
    let client = database.superuser().await;
    let select = format!("select oid from {} p where name = $1", database.place(&client).await);
    client.query_opt(&select, &[&name]).await.expect("look").map(|row| row.get(0))
}

/// Names of databases, or schemas, in the making that the registry knows and that are there; spares that are kept for anyone are not among them.
pub async fn half_made(database: &TestDatabase) -> Vec<String> {
    let client = database.superuser().await;
    let select = format!(
        "select s.name from tenantd.spare s join {} d on d.name = s.name where s.made_at is null or s.key is not null",
        database.place(&client).await
    );
    let rows = client.query(&select, &[]).await.expect("look");
    rows.iter().map(|row| row.get(0)).collect()
}
