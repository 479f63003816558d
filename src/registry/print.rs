//! The installation as SQL that a person can read and run.

use crate::config::{Config, Isolation, OnDelete};
use crate::error::Result;
use crate::migrations::embedded;
use crate::pg::quote;

use super::signup::{self, Table};
use super::when::When;
use super::{departure, signup_triggers};

/// Everything that `setup` would do, as one script for an administrator; `table`: as the catalogue knows it, if it could be asked.
///
/// `setup` goes on from there: it writes down what was applied, and holds the users from before. Triggers by a condition that the server could not be
/// asked about are left to it, too.
///
/// # Errors
/// The embedded migrations do not load.
pub fn sql(config: &Config, table: Option<&Table>, notify: bool) -> Result<String> {
    let unread = table.is_none() && config.signup.when.is_some();
    let ordinary = Table::ordinary(&config.signup, None);
    let table = table.unwrap_or(&ordinary);
    let (id, name, schema) = (&table.id, &table.name, quote::identifier(&config.signup.schema));
    let me = quote::identifier(config.main.user());
    let main = quote::identifier(config.main.database());
    let (createdb, create) = match config.tenant.isolation {
        Isolation::Database => (" createdb", String::new()),
        Isolation::Schema => ("", format!("grant create on database {main} to {me};\n")),
    };
    let mut sql = format!(
        "-- As an administrator, once:\ncreate role {me} login{createdb}; -- its password: \\password {}\n",
        one_line(&me)
    );
    if let Some(owner) = &config.tenant.owner {
        let owner = quote::identifier(owner);
        sql.push_str(&format!("create role {owner} nologin;\ngrant {owner} to {me}; -- Postgres 16 and later: with inherit true, set true\n"));
    }
    sql.push_str(&format!(
        "-- In the main database {}:\n{create}create schema tenantd authorization {me};\ngrant usage on schema {schema} to {me};\n\
         grant select ({id}{columns}), trigger on {name} to {me}; -- trigger on each partition and child, too\n{more}\n\
         -- What tenantd setup does, and the daemon at each start:\nset role {me};\n",
        one_line(&main),
        columns = table.when.as_ref().map(When::and_columns).unwrap_or_default(),
        more = if unread { UNREAD } else { "" },
    ));
    for migration in embedded::main()?.migrations() {
        sql.push_str(&migration.sql);
        sql.push('\n');
    }
    sql.push_str(&signup::Function::of(config, id, notify).sql());
    if !unread {
        sql.extend(signup_triggers::wanted(table).iter().map(|wanted| wanted.sql(false)));
    }
    if config.signup.on_delete == OnDelete::Drop {
        sql.push_str(&departure::sql(id, &table.triggers_on, table.by_row));
    }
    for role in &config.tenant.use_roles {
        let role = quote::identifier(role);
        sql.push_str(&format!(
            "grant usage on schema tenantd to {role};\ngrant select on tenantd.tenants to {role};\n\
             grant execute on function tenantd.wait(text, interval) to {role};\n"
        ));
    }
    sql.push_str("reset role;\n");
    Ok(sql)
}

const UNREAD: &str = "-- And select on the columns that signup.when reads. Only the server can tell which: where main.url can log in, the triggers are printed, too;\n\
    -- else tenantd setup makes them.\n";

/// For a comment, which a name with a line break would leave.
fn one_line(name: &str) -> String {
    name.replace(char::is_control, " ")
}
