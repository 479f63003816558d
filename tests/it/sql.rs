//! Short ways to ask a database in tests; whatever fails unexpectedly names its SQL.

use tokio_postgres::Client;
use tokio_postgres::types::FromSqlOwned;

use crate::support::database::TestDatabase;

/// The one value that `sql` gives.
pub async fn one<T: FromSqlOwned>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// The server's version as a number: 150018 for 15.18.
pub async fn server_version(client: &Client) -> i32 {
    one(client, "select current_setting('server_version_num')::int").await
}

/// Runs `sql`, of one or more statements.
pub async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Runs `sql`, which is refused, and returns the SQLSTATE.
pub async fn refused(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().to_owned(),
    }
}

/// Servers before 14 cannot put a trigger in the place of another: the table's owner drops it, as the hint says.
pub async fn make_room(admin: &Client) {
    if server_version(admin).await < 140_000 {
        let drop = "drop trigger if exists tenantd_signup on public.users; drop trigger if exists tenantd_signup_update on public.users";
        run(admin, drop).await;
    }
}

/// State and work of every tenant and of every signup that is still to be taken in, in order of their keys.
pub async fn tenants(database: &TestDatabase) -> Vec<(String, String, String)> {
    let select = "select key, state, work from tenantd.tenants order by key";
    let rows = database.superuser().await.query(select, &[]).await.expect("read the registry");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// State and work of the tenant `key`; `None` when the registry has no such row.
pub async fn stands(database: &TestDatabase, key: &str) -> Option<(String, String)> {
    tenants(database).await.into_iter().find(|tenant| tenant.0 == key).map(|(_, state, work)| (state, work))
}

/// Every warning that the trigger gave in `database` so far, from the server's log.
pub fn warnings(database: &TestDatabase) -> Vec<String> {
    let of_database = format!("@{} ", database.name());
    let log = database.server().log();
    let warnings = log.lines().filter(|line| line.contains(&of_database) && line.contains("WARNING:  tenantd"));
    warnings.map(str::to_owned).collect()
}
