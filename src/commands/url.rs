//! `tenantd url`: where a tenant's database is, as a URL that every client of Postgres reads.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::given::Given;
use super::{ExitStatus, output};
use crate::error::{Error, Result};
use crate::isolation::{database_of, libpq};
use crate::pg;
use crate::registry::Registry;

/// `tenantd url`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd url 6f9619ff --user app                       for the application's configuration
  pg_dump \"$(tenantd url 6f9619ff)\" > tenant.sql        the password comes from ~/.pgpass
  psql \"$(tenantd url 6f9619ff --password)\"             with tenantd's own password, for all to see")]
pub struct Url {
    /// The tenant: a key, a database's name, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: String,
    /// The role that logs in, instead of the one of main.url
    #[arg(long, value_name = "ROLE")]
    pub user: Option<String>,
    /// Put the password of main.url's role into it
    #[arg(long, conflicts_with = "user")]
    pub password: bool,
}

/// Writes the URL of the tenant's database, built from `main.url`. Only reads, and does not connect to the tenant.
///
/// # Errors
/// No tenant is called so, several are, or it is not ready; the password cannot be had; the main database cannot be reached, or there is no
/// registry; `out` cannot be written to.
pub async fn run(given: &Given, arguments: &Url, out: &mut impl Write) -> Result<ExitStatus> {
    let (key, name) = ready(&given.registry().await?, &arguments.key).await?;
    let user = arguments.user.as_deref().unwrap_or_else(|| given.server.connection().user());
    let password = if arguments.password {
        let none = || Error::usage("there is no password to put into the URL").hint("leave --password out");
        let database = database_of(&given.server, &given.config.tenant, &name);
        Some(given.server.password(database).await?.ok_or_else(none)?)
    } else {
        None
    };
    let libpq = libpq(&given.server, &given.config.tenant, &name, "").await?;
    let url = pg::url(&libpq, user, password.as_ref());
    if given.json {
        output::object(out, &json!({ "key": key, "name": name, "url": url }))?;
    } else {
        output::text(out, &format!("{url}\n"))?;
    }
    Ok(ExitStatus::Well)
}

/// The key and the database's name of the tenant that `word` means.
///
/// # Errors
/// No tenant is called so, several are, or it is not ready. The main database cannot be reached.
pub(super) async fn ready(registry: &Registry, word: &str) -> Result<(String, String)> {
    let key = registry.find(word).await?;
    let tenant = registry.tenant(&key).await?;
    let state = tenant.as_ref().map_or("gone", |tenant| tenant.state.as_str()).to_owned();
    match tenant.filter(crate::registry::tenants::Tenant::is_ready).and_then(|tenant| tenant.name) {
        Some(name) => Ok((key, name)),
        None => {
            Err(Error::usage(format!("tenant {key} is {state}: it has no {} that one may enter", registry.isolation))
                .hint(format!("`tenantd wait {key}` returns when it is ready")))
        }
    }
}
