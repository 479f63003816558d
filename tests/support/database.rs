//! A main database as an application has it, with the roles of DESIGN section 10 and no right more.

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tenantd::config::Isolation;
use tenantd::naming::{Names, Rule};
use tenantd::tenant::{DROPPED_PREFIX, SPARE_PREFIX, TEMPLATE_PREFIX};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::audit::{Finding, audit};
use super::process::tell;
use super::server::TestServer;
use super::until::until;

/// Password of the role `tenantd`: with signs that must be escaped in a URL, and a word to look for in logs.
pub const TENANTD_PASSWORD: &str = "swordfish:p@ss/word%of tenantd";
/// Password of the role `app`.
pub const APP_PASSWORD: &str = "swordfish-of-app";
/// Password of the role `stranger`.
pub const STRANGER_PASSWORD: &str = "swordfish-of-stranger";

/// What tenants have of their own in every test that does not say: `database`, the default, or `schema`.
const ISOLATION: &str = "TENANTD_TEST_ISOLATION";

/// Cloned for every test, and never entered.
const TEMPLATE: &str = "test_template";

/// How long a session may take to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the tenants of tests that do not say have of their own.
#[must_use]
pub fn isolation() -> Isolation {
    match word().as_deref() {
        None | Some("database") => Isolation::Database,
        Some(_) => Isolation::Schema,
    }
}

fn word() -> Option<String> {
    std::env::var_os(ISOLATION).map(|word| word.display().to_string())
}

/// One test's main database; other tests on the same server do not see its tenants, since their names begin otherwise.
///
/// Ends with [`TestDatabase::finish`]. When a test fails it is kept and named.
#[derive(Debug)]
#[must_use = "end with finish(), which looks for what must not be left"]
pub struct TestDatabase {
    server: Arc<TestServer>,
    name: String,
    prefix: String,
    isolation: Isolation,
    /// The database that tenants' schemas are in; `None`: this one.
    tenants_in: Option<String>,
    allowed: Vec<Finding>,
    finished: bool,
}

impl TestDatabase {
    /// A main database on the shared server.
    pub async fn new() -> Self {
        Self::on(&TestServer::shared()).await
    }

    /// A main database on `server`.
    pub async fn on(server: &Arc<TestServer>) -> Self {
        server.prepared.get_or_init(|| prepare(server)).await;
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let name = format!("main_{random}");
        let admin = server.superuser("postgres").await;
        admin
            .batch_execute(&format!("create database {name} template {TEMPLATE}"))
            .await
            .expect("create the main database");
        let database = Self {
            server: Arc::clone(server),
            name,
            prefix: format!("t{random}_"),
            isolation: Isolation::Database,
            tenants_in: None,
            allowed: Vec::new(),
            finished: false,
        };
        match word().as_deref() {
            None | Some("database") => database,
            Some("schema") => database.with_schemas().await,
            Some("elsewhere") => database.with_schemas_elsewhere(),
            Some(other) => panic!("{ISOLATION} is {other}, and not database, schema or elsewhere"),
        }
    }

    /// Its tenants have a schema each in it, for which tenantd gets the right that it needs.
    pub async fn with_schemas(mut self) -> Self {
        let grant = format!("grant create on database {} to tenantd", self.name);
        self.superuser().await.batch_execute(&grant).await.expect("let tenantd make schemas");
        self.isolation = Isolation::Schema;
        self
    }

    /// Its tenants have a schema each in a database that they share, which tenantd makes.
    pub fn with_schemas_elsewhere(mut self) -> Self {
        self.isolation = Isolation::Schema;
        self.tenants_in = Some(format!("tenants_of_{}", self.name));
        self
    }

    /// The settings that say so.
    #[must_use]
    pub fn isolating(&self) -> Vec<(&'static str, String)> {
        let isolation = ("tenant.isolation", self.isolation.word().to_owned());
        let database = self.tenants_in.as_ref().map(|database| ("tenant.database", database.clone()));
        std::iter::once(isolation).chain(database).collect()
    }

    /// What its tenants have of their own.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Tenants' names begin with `prefix`: for a main database that is alone on its server.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// From now on it is what `server`, which has a copy of it, has.
    pub fn moved_to(mut self, server: &Arc<TestServer>) -> Self {
        self.server = Arc::clone(server);
        self
    }

    /// Lets it go with its server, without a look at what is left: for what measures and does not test.
    pub fn unchecked(mut self) -> Self {
        self.finished = true;
        self
    }

    /// The server it is on.
    #[must_use]
    pub fn server(&self) -> &Arc<TestServer> {
        &self.server
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `tenant.prefix` for this test.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of the database of the tenant `key`.
    #[must_use]
    pub fn tenant_name(&self, key: &str) -> String {
        Names::new(Rule::Uuid, &self.prefix, &self.name).of(key).expect("a uuid")
    }

    /// What an operator writes as `main.url`: the role `tenantd`, verify-full.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as("tenantd", TENANTD_PASSWORD)
    }

    /// The same for the application's role.
    #[must_use]
    pub fn app_url(&self) -> String {
        self.url_as("app", APP_PASSWORD)
    }

    /// The same for a role that is named nowhere.
    #[must_use]
    pub fn stranger_url(&self) -> String {
        self.url_as("stranger", STRANGER_PASSWORD)
    }

    /// A superuser's connection, for looking and for breaking things.
    pub async fn superuser(&self) -> Client {
        self.server.superuser(&self.name).await
    }

    /// The database that the tenants' schemas are in.
    #[must_use]
    pub fn around_tenants(&self) -> &str {
        self.tenants_in.as_deref().unwrap_or(&self.name)
    }

    /// A connection as the daemon's role.
    pub async fn tenantd(&self) -> Client {
        self.server.client("tenantd", TENANTD_PASSWORD, &self.name).await
    }

    /// A connection as the application's role.
    pub async fn app(&self) -> Client {
        self.server.client("app", APP_PASSWORD, &self.name).await
    }

    /// Signs up a user as the application does, and returns the key.
    pub async fn sign_up(&self, email: &str) -> String {
        let insert = "insert into public.users (email) values ($1) returning id::text";
        self.app().await.query_one(insert, &[&email]).await.expect("a signup never fails").get(0)
    }

    /// Lets [`Self::finish`] meet `finding`: for tests that mean it.
    pub fn allow(mut self, finding: Finding) -> Self {
        self.allowed.push(finding);
        self
    }

    /// Looks for what must not be left, then removes the tenants and the main database. Daemons are to be ended before.
    ///
    /// # Panics
    /// With everything that was found and not allowed; then nothing is removed.
    pub async fn finish(mut self) {
        let client = self.superuser().await;
        let found = audit(&client, &self.place(&client).await, &self.prefix, &self.allowed).await;
        assert!(found.is_empty(), "left behind in {}:\n{}", self.name, found.join("\n"));
        let mut databases = Vec::new();
        if self.isolation == Isolation::Database {
            databases.extend(self.tenant_databases().await);
            databases.extend(self.spares(&client).await);
        }
        drop(client);
        databases.extend(self.tenants_in.clone());
        databases.push(self.name.clone());
        let admin = self.server.superuser("postgres").await;
        for name in databases {
            let drop = format!("drop database if exists \"{name}\" with (force)");
            admin.batch_execute(&drop).await.unwrap_or_else(|error| panic!("{drop}: {error:?}"));
        }
        self.finished = true;
    }

    /// Spares, templates and what was set aside, as recorded in this registry.
    async fn spares(&self, client: &Client) -> Vec<String> {
        let mut names = Vec::new();
        for table in ["spare", "template", "dropped"] {
            let there = format!("select to_regclass('tenantd.{table}') is not null");
            if !client.query_one(&there, &[]).await.expect("look for the tables").get::<_, bool>(0) {
                continue;
            }
            let select = format!(
                "select s.name from tenantd.{table} s join pg_database on datname = s.name
                 where starts_with(s.name, $1) or starts_with(s.name, $2) or starts_with(s.name, $3)"
            );
            let prefixes: [&(dyn ToSql + Sync); 3] = [&SPARE_PREFIX, &TEMPLATE_PREFIX, &DROPPED_PREFIX];
            let rows = client.query(&select, &prefixes).await.expect("list the spares");
            names.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        names
    }

    fn url_as(&self, role: &str, password: &str) -> String {
        let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
        let root = self.server.authority().root().display();
        let (address, name) = (self.server.address(), &self.name);
        format!("postgresql://{role}:{password}@{address}/{name}?sslmode=verify-full&sslrootcert={root}")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let directory = self.server.directory().display();
            tell(&format!("kept: database {} in {directory} (which stays if TENANTD_TEST_KEEP=1)", self.name));
        } else {
            assert!(
                self.finished || !cfg!(test),
                "finish() was not called on {}: nobody looked what is left",
                self.name
            );
        }
    }
}

/// Makes roles and template, once for a server.
async fn prepare(server: &TestServer) {
    let admin = server.superuser("postgres").await;
    let version: i32 = admin
        .query_one("select current_setting('server_version_num')::int", &[])
        .await
        .expect("ask for the version")
        .get(0);
    let options = if version >= 160_000 { "with inherit true, set true" } else { "" };
    let roles = format!(
        "create role tenantd login createdb password '{TENANTD_PASSWORD}';
         create role tenant_owner nologin;
         grant tenant_owner to tenantd {options};
         create role main_owner nologin;
         grant main_owner to tenantd {options};
         create role app login password '{APP_PASSWORD}';
         create role stranger login password '{STRANGER_PASSWORD}';"
    );
    admin.batch_execute(&roles).await.expect("make the roles");
    admin.batch_execute(&format!("create database {TEMPLATE}")).await.expect("make the template");
    let template = server.superuser(TEMPLATE).await;
    let schema = "create table public.users (
             id uuid primary key default gen_random_uuid(),
             email text not null unique,
             created_at timestamptz not null default now()
         );
         grant insert, select on public.users to app;
         create schema tenantd authorization tenantd;
         grant select (id), trigger on public.users to tenantd;";
    template.batch_execute(schema).await.expect("fill the template");
    drop(template);
    let close = format!("alter database {TEMPLATE} allow_connections false");
    admin.batch_execute(&close).await.expect("close the template");
    let inside = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{TEMPLATE}'");
    until("the end of who is in the template", DEADLINE, async || {
        admin.query(&inside, &[]).await.expect("end them").is_empty()
    })
    .await;
}
