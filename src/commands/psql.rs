//! `tenantd psql`: a shell in a tenant's database.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::ExitStatus;
use super::given::Given;
use super::url::ready;
use crate::error::{Error, Kind, Result};
use crate::isolation::libpq;

/// What our own sessions may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// `tenantd psql`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd psql 6f9619ff                                   a shell
  tenantd psql 6f9619ff -- -c 'table log_message'         one statement
  tenantd psql 6f9619ff -- --csv -f report.sql > out.csv  whatever psql takes")]
pub struct Psql {
    /// The tenant: a key, a database's name, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: String,
    /// What psql itself is told
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

/// Becomes psql, connected to the tenant as tenantd is: exit code, signals and terminal are psql's from then on. Host, role and TLS go by the
/// variables of the process, the password by a file in memory; nothing by its arguments, which everybody on the machine may read.
///
/// # Errors
/// No tenant is called so, several are, or it is not ready; the password cannot be had; psql is not there. The main database cannot be reached.
pub async fn run(given: &Given, arguments: &Psql) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let (_, name) = ready(&registry, &arguments.key).await?;
    let libpq = libpq(&given.server, &given.config.tenant, &name, "").await?;
    registry.close();
    drop(registry);
    given.tasks.stop(GOODBYE).await;
    let mut psql = libpq.command(Path::new("psql")).into_std();
    // By its own name, as whoever looks at the server expects it.
    psql.args(&arguments.arguments).env_remove("PGAPPNAME");
    let error = psql.exec();
    let missing = error.kind() == ErrorKind::NotFound;
    let error = Error::new(if missing { Kind::Usage } else { Kind::Other }, "start psql").because(error);
    Err(if missing {
        error.hint("install it: the package is postgresql-client on Debian and Ubuntu, postgresql on Fedora and Red Hat, libpq with Homebrew")
    } else {
        error
    })
}
