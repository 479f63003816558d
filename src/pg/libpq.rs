//! How Postgres's own programs (`pg_dump`, `pg_restore`, `psql`) reach the server: as we do, through libpq's variables of the child alone.
//!
//! Nothing is in their arguments, which every user of the machine can read; what our own environment says is taken out first.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use super::Server;
use super::parameters::{VARIABLES, parameters};
use crate::error::{Error, Kind, Result};
use crate::tenant::MAX_IDENTIFIER_BYTES;

/// What else libpq would take from the environment.
const OTHERS: [&str; 22] = [
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGAPPNAME",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGSSLCOMPRESSION",
    "PGSSLCERTMODE",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGREQUIREPEER",
    "PGSSLMAXPROTOCOLVERSION",
    "PGGSSENCMODE",
    "PGKRBSRVNAME",
    "PGCONNECT_TIMEOUT",
    "PGCLIENTENCODING",
    "PGLOADBALANCEHOSTS",
    "PGDATESTYLE",
    "PGTZ",
];

/// Where systems keep the certificates that they trust. libpq before 16 cannot be told to look for them by itself.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a program needs to reach one database. `Debug` shows no password.
pub struct Libpq {
    values: Vec<(&'static str, String)>,
    password: Option<SecretString>,
}

impl fmt::Debug for Libpq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libpq").field("values", &self.values).finish_non_exhaustive()
    }
}

impl Server {
    /// What a program of Postgres's needs to connect to `database`. The password is asked for anew, as for each connection.
    ///
    /// # Errors
    /// [`Kind::Login`] when the password could not be had; [`Kind::Tls`] when the system's certificates are not to be found.
    pub async fn libpq(&self, database: &str, application_name: &str) -> Result<Libpq> {
        let connection = self.connection();
        let password = self.password(database).await?;
        let mut name = application_name.to_owned();
        name.truncate(name.floor_char_boundary(MAX_IDENTIFIER_BYTES));
        // Whole seconds, and 2 at the least.
        let timeout = connection.connect_timeout.as_secs().max(2).to_string();
        let mut values = vec![("PGAPPNAME", name), ("PGCONNECT_TIMEOUT", timeout)];
        for (parameter, value) in parameters(connection, database, connection.user()) {
            let variable = VARIABLES.iter().find(|(name, _)| *name == parameter);
            let system = parameter == "sslrootcert" && value == "system";
            let value = if system { system_roots().await? } else { value };
            values.extend(variable.map(|(_, variable)| (*variable, value)));
        }
        Ok(Libpq { values, password })
    }
}

impl Libpq {
    /// `program` as a child that reaches the database, and dies when it is dropped.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for name in OTHERS.iter().chain(VARIABLES.iter().map(|(_, variable)| variable)) {
            command.env_remove(name);
        }
        command.envs(self.values.iter().map(|(name, value)| (name, value)));
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.expose_secret());
        }
        command.kill_on_drop(true);
        command
    }
}

/// The file of the certificates that the system trusts.
async fn system_roots() -> Result<String> {
    for file in SYSTEM_ROOTS.map(PathBuf::from) {
        if tokio::fs::try_exists(&file).await.unwrap_or(false) {
            return Ok(file.display().to_string());
        }
    }
    Err(Error::new(Kind::Tls, "the system's certificates are not where Postgres's programs could be told to look")
        .hint("name the authority's file in main.sslrootcert"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Sources, load};
    use crate::tasks::Tasks;

    async fn of(url: &str) -> (BTreeMap<&'static str, String>, bool) {
        let mut sources = Sources::of([("HOME", "/nowhere")]);
        sources.flags.insert("main.url".to_owned(), url.to_owned());
        sources.default_file = "/nowhere/tenantd.toml".into();
        let server = Server::new(load(&sources).unwrap().config.main, Tasks::new());
        let libpq = server.libpq("tenant_x", "tenantd:x").await.unwrap();
        assert!(!format!("{libpq:?}").contains("canary"));
        let values = libpq.values.iter().cloned();
        (values.collect(), libpq.password.is_some())
    }

    #[tokio::test]
    async fn a_url_becomes_variables() {
        let (values, password) =
            of("postgresql://u:canary@db:5433/app?sslmode=verify-full&sslrootcert=/r.pem&options=-c%20a%3Db").await;
        let expected = [
            ("PGHOST", "db"),
            ("PGPORT", "5433"),
            ("PGUSER", "u"),
            ("PGDATABASE", "tenant_x"),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "/r.pem"),
            ("PGOPTIONS", "-c a=b"),
            ("PGCONNECT_TIMEOUT", "10"),
        ];
        for (name, value) in expected {
            assert_eq!(values.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(password && !values.contains_key("PGHOSTADDR"), "{values:?}");
    }

    #[tokio::test]
    async fn several_hosts_get_the_strictest_tls_of_all() {
        let (values, password) = of("postgresql://u@localhost:1,db:2/app?sslrootcert=/r.pem").await;
        assert_eq!((values["PGHOST"].as_str(), values["PGPORT"].as_str()), ("localhost,db", "1,2"));
        assert_eq!((values["PGSSLMODE"].as_str(), password), ("verify-full", false));
        assert_eq!(values["PGTARGETSESSIONATTRS"], "read-write");
        let (socket, _) = of("postgresql://u@%2Frun%2Fpg/app").await;
        assert_eq!((socket["PGHOST"].as_str(), socket.contains_key("PGSSLMODE")), ("/run/pg", false));
    }
}
