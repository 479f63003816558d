//! What tests see of tenants, and do to them behind tenantd's back, in the same words whether each has a database or a schema.

use tenantd::config::Isolation;
use tenantd::pg::quote;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::audit::place;
use super::database::{APP_PASSWORD, TENANTD_PASSWORD, TestDatabase};

/// What is said of a database, and of a schema in its place.
const WORDS: [(&str, &str); 7] = [
    ("connect, temporary on database", "usage on schema"),
    ("connect on database", "usage on schema"),
    ("all on database", "all on schema"),
    ("comment on database", "comment on schema"),
    ("alter database", "alter schema"),
    ("create database", "create schema"),
    ("drop database", "drop schema"),
];

/// What only a database has.
const DATABASE_ALONE: [&str; 4] = ["allow_connections", "connection limit", "datconnlimit", " template "];

impl TestDatabase {
    /// A superuser's connection to a tenant's database, or to its schema.
    pub async fn tenant_superuser(&self, name: &str) -> Client {
        match self.isolation() {
            Isolation::Database => self.server().superuser(name).await,
            Isolation::Schema => searching(self.tenants_superuser().await, name).await,
        }
    }

    /// The same as the application's role.
    pub async fn tenant_app(&self, name: &str) -> Client {
        self.tenant_client("app", APP_PASSWORD, name).await
    }

    /// The same as tenantd's own role.
    pub async fn tenant_tenantd(&self, name: &str) -> Client {
        self.tenant_client("tenantd", TENANTD_PASSWORD, name).await
    }

    async fn tenant_client(&self, role: &str, password: &str, name: &str) -> Client {
        match self.isolation() {
            Isolation::Database => self.server().client(role, password, name).await,
            Isolation::Schema => {
                searching(self.server().client(role, password, self.around_tenants()).await, name).await
            }
        }
    }

    /// The schema that a tenant of this name has its tables in.
    #[must_use]
    pub fn tenant_schema<'a>(&self, name: &'a str) -> &'a str {
        match self.isolation() {
            Isolation::Database => "public",
            Isolation::Schema => name,
        }
    }

    /// A superuser's connection to where tenants' schemas are; to the main database where they have databases.
    pub async fn tenants_superuser(&self) -> Client {
        self.server().superuser(self.around_tenants()).await
    }

    /// Names of the databases, or schemas, that bear this test's prefix, in order.
    pub async fn tenant_databases(&self) -> Vec<String> {
        let client = self.superuser().await;
        let place = self.place(&client).await;
        let select = format!("select name from {place} p where starts_with(name, $1) order by 1");
        let rows = client.query(&select, &[&self.prefix()]).await.expect("list the tenants");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Where its tenants may be, for a look by `client` in the main database: a table of name, oid, owner, marker, rights, and whether PUBLIC may enter.
    /// Where that is another database, as it is now.
    pub async fn place(&self, client: &Client) -> String {
        let around = self.around_tenants();
        if around == self.name() {
            return place(self.isolation()).to_owned();
        }
        let there = "select exists (select from pg_database where datname = $1)";
        let mut seen = "[]".to_owned();
        if client.query_one(there, &[&around]).await.expect("look for it").get(0) {
            let select = format!(
                "select coalesce(json_agg(json_build_object('name', name, 'oid', oid::bigint, 'owner', owner, 'marker', marker, 'acl', acl::text, 'public', public)),
                        '[]')::text from {} p",
                place(self.isolation())
            );
            seen = self.tenants_superuser().await.query_one(&select, &[]).await.expect("look there").get(0);
        }
        let columns = "name text, oid oid, owner text, marker text, acl aclitem[], public boolean";
        let fill = format!("drop table if exists pg_temp.place; create temporary table place ({columns})");
        client.batch_execute(&fill).await.expect("make a table of places");
        let insert = "insert into pg_temp.place select name, oid::oid, owner, marker, acl::aclitem[], public
                      from json_to_recordset($1::text::json) r(name text, oid bigint, owner text, marker text, acl text, public boolean)";
        client.execute(insert, &[&seen]).await.expect("fill it");
        "pg_temp.place".to_owned()
    }

    /// What `tenantd url` says of the tenant of this name, from behind the role's name on.
    #[must_use]
    pub fn tenant_url(&self, name: &str) -> String {
        let root = self.server().authority().root().display().to_string().replace('/', "%2F");
        let (address, around) = (self.server().address(), self.around_tenants());
        let (database, way) = match self.isolation() {
            Isolation::Database => (name, String::new()),
            Isolation::Schema => (around, format!("&options=-csearch_path%3D%22{name}%22")),
        };
        format!("@{address}/{database}?sslmode=verify-full&sslrootcert={root}{way}")
    }

    /// How many sessions of tenants are found by `which`, a condition on `pg_stat_activity`.
    pub async fn tenant_sessions(&self, which: &str) -> i64 {
        let count = format!(
            "select count(*) from pg_stat_activity where ({which}) and pid <> pg_backend_pid()
             and case $2 when 'database' then starts_with(datname, $1) else datname = $3 end"
        );
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.prefix(), &self.isolation().word(), &self.around_tenants()];
        self.superuser().await.query_one(&count, &parameters).await.expect("count").get(0)
    }

    /// What an administrator runs to let `role` make tenants.
    #[must_use]
    pub fn let_make(&self, role: &str) -> String {
        match self.isolation() {
            Isolation::Database => format!("alter role \"{role}\" createdb"),
            Isolation::Schema => format!("grant create on database \"{}\" to \"{role}\"", self.around_tenants()),
        }
    }

    /// The comment on a tenant's database, or schema.
    pub async fn marker(&self, name: &str) -> Option<String> {
        let select = format!("select marker from {} p where name = $1", place(self.isolation()));
        self.tenants_superuser().await.query_one(&select, &[&name]).await.expect("look at the marker").get(0)
    }

    /// Runs `sql`, which speaks of tenants' databases seen from outside, as a superuser; of schemas where they have those, see [`TestDatabase::meant`].
    pub async fn outside(&self, sql: &str) {
        let sql = self.meant(sql);
        self.tenants_superuser().await.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// What `sql`, which speaks of databases, says of what tenants have: CREATE, DROP (by itself), ALTER with OWNER TO and RENAME TO, COMMENT, GRANT and REVOKE.
    ///
    /// # Panics
    /// When it speaks of what schemas have not.
    #[must_use]
    pub fn meant(&self, sql: &str) -> String {
        if self.isolation() == Isolation::Database {
            return sql.to_owned();
        }
        assert!(!DATABASE_ALONE.iter().any(|word| sql.contains(word)), "only a database has that: {sql}");
        let mut meant = WORDS.iter().fold(sql.to_owned(), |sql, (database, schema)| sql.replace(database, schema));
        if meant.starts_with("create schema") {
            meant = meant.replace(" owner ", " authorization ");
        }
        if meant.starts_with("drop schema") {
            meant += " cascade";
        }
        meant
    }

    /// Puts a copy in the place of a tenant's database, or schema, as a restored backup would be: the same in it, another oid, no comment.
    pub async fn restore_over(&self, name: &str) {
        let copy = format!("{}copy", self.prefix());
        let client = self.tenants_superuser().await;
        let statements = match self.isolation() {
            Isolation::Database => vec![
                format!("create database \"{copy}\" template \"{name}\" owner tenant_owner"),
                format!("drop database \"{name}\""),
                format!("alter database \"{copy}\" rename to \"{name}\""),
            ],
            Isolation::Schema => vec![
                format!("create schema \"{copy}\" authorization tenant_owner"),
                format!(
                    "do $$ declare one regclass; begin
                         for one in select oid from pg_class where relnamespace = '\"{name}\"'::regnamespace and relkind = 'r'
                         loop execute format('alter table %s set schema \"{copy}\"', one); end loop;
                     end $$"
                ),
                format!("drop schema \"{name}\" cascade"),
                format!("alter schema \"{copy}\" rename to \"{name}\""),
            ],
        };
        for sql in statements {
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }
}

async fn searching(client: Client, name: &str) -> Client {
    let search = format!("set search_path = {}", quote::identifier(name));
    client.batch_execute(&search).await.expect("find the way to the schema");
    client
}
