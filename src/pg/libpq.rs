//! How Postgres's own programs (`pg_dump`, `pg_restore`, `psql`) reach the server: as we do, through libpq's variables of the child alone.
//!
//! Nothing is in their arguments, which every user of the machine can read; what our own environment says is taken out first. Nor is the
//! password in their environment, which goes on to every child of theirs, a shell of psql's say, and into what those write about themselves:
//! it stands in a password file of libpq's that no folder knows, in memory, and is gone with the last process that has it.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use super::{Server, password, quote};
use crate::config::connection::{ChannelBinding, Endpoint, Place, Roots, SslMode};
use crate::config::{Connection, secret_variables};
use crate::error::{Error, Kind, Result};
use crate::tenant::MAX_IDENTIFIER_BYTES;

/// What libpq would take from the environment.
const KNOWN: [&str; 36] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGSSLCOMPRESSION",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCERTMODE",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGREQUIREPEER",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGGSSENCMODE",
    "PGKRBSRVNAME",
    "PGGSSLIB",
    "PGCONNECT_TIMEOUT",
    "PGCLIENTENCODING",
    "PGTARGETSESSIONATTRS",
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

/// What a program needs to reach one database; to be kept until it was started. `Debug` shows no password.
pub struct Libpq {
    pub(super) values: Vec<(&'static str, OsString)>,
    /// Holds the password, if one was given.
    passfile: Option<std::fs::File>,
}

impl fmt::Debug for Libpq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libpq").field("values", &self.values).field("password", &self.passfile.is_some()).finish()
    }
}

impl Server {
    /// What a program of Postgres's needs to connect to `database`. The password is asked for anew, as for each connection.
    ///
    /// # Errors
    /// [`Kind::Login`] when the password could not be had, or holds a line break; [`Kind::Tls`] when the system's certificates are not to be found.
    pub async fn libpq(&self, database: &str, application_name: &str) -> Result<Libpq> {
        let connection = self.connection();
        let given = tokio::time::timeout(connection.connect_timeout, password::given(&connection.password)).await;
        let password = given.unwrap_or_else(|_| {
            Err(Error::new(Kind::Login, format!("no password within {:?}", connection.connect_timeout)))
        })?;
        let mut name = application_name.to_owned();
        name.truncate(name.floor_char_boundary(MAX_IDENTIFIER_BYTES));
        let mut values = values(connection, database, name);
        if password.is_none()
            && let Some(file) = &connection.password.passfile
        {
            values.push(("PGPASSFILE", file.into()));
        }
        if mode(&connection.endpoints) > SslMode::Disable
            && let Some(roots) = roots(connection).await?
        {
            values.push(("PGSSLROOTCERT", roots.into()));
        }
        let passfile = password.as_ref().map(passfile).transpose()?;
        if let Some(file) = &passfile {
            values.push(("PGPASSFILE", format!("/proc/self/fd/{}", file.as_raw_fd()).into()));
        }
        Ok(Libpq { values, passfile })
    }
}

impl Libpq {
    /// The same, with the schemas `path` searched in this order.
    #[must_use]
    pub fn searching(mut self, path: &[&str]) -> Self {
        let path: Vec<String> = path.iter().map(|schema| quote::identifier(schema)).collect();
        // In options a backslash takes a blank, and itself, for what it is.
        let option = format!("-csearch_path={}", path.join(",")).replace('\\', "\\\\").replace(' ', "\\ ");
        match self.values.iter_mut().find(|(name, _)| *name == "PGOPTIONS") {
            Some((_, options)) => {
                options.push(" ");
                options.push(option);
            }
            None => self.values.push(("PGOPTIONS", option.into())),
        }
        self
    }

    /// `program` as a child that reaches the database, and dies when it is dropped. A Ctrl-C on the terminal is for us alone: we end our
    /// children in order.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for name in KNOWN.map(OsString::from).into_iter().chain(secret_variables()) {
            command.env_remove(name);
        }
        command.envs(self.values.iter().map(|(name, value)| (name, value)));
        command.kill_on_drop(true);
        command
    }
}

/// A file in memory that holds `password` for every server, as libpq reads it. It stays open in children that are started while it is there.
fn passfile(password: &SecretString) -> Result<std::fs::File> {
    let password = password.expose_secret();
    if password.contains(['\n', '\r']) {
        return Err(Error::new(
            Kind::Login,
            "the password holds a line break, and Postgres's programs could not be told it",
        )
        .hint("give the role a password of one line"));
    }
    let made = (|| {
        let mut file = std::fs::File::from(memfd_create("tenantd", MemfdFlags::empty())?);
        // libpq uses none that others could read.
        fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        writeln!(file, "*:*:*:*:{}", password.replace('\\', "\\\\").replace(':', "\\:"))?;
        std::io::Result::Ok(file)
    })();
    made.map_err(|error| Error::new(Kind::Other, "hold the password ready for a program of Postgres's").because(error))
}

fn values(connection: &Connection, database: &str, application_name: String) -> Vec<(&'static str, OsString)> {
    let endpoints = &connection.endpoints;
    let list = |text: &dyn Fn(&Endpoint) -> String| endpoints.iter().map(text).collect::<Vec<_>>().join(",");
    let host = list(&|endpoint| match &endpoint.place {
        Place::Socket(folder) => folder.display().to_string(),
        Place::Host { name, .. } => name.clone(),
    });
    let address = |endpoint: &Endpoint| match &endpoint.place {
        Place::Host { address: Some(address), .. } => address.to_string(),
        _ => String::new(),
    };
    let mut values: Vec<(&'static str, OsString)> = vec![
        ("PGHOST", host.into()),
        ("PGPORT", list(&|endpoint| endpoint.port.to_string()).into()),
        ("PGUSER", connection.user().into()),
        ("PGDATABASE", database.into()),
        ("PGAPPNAME", application_name.into()),
        ("PGSSLMODE", word(mode(endpoints)).into()),
        // Whole seconds, and 2 at the least.
        ("PGCONNECT_TIMEOUT", connection.connect_timeout.as_secs().max(2).to_string().into()),
        ("PGTARGETSESSIONATTRS", if connection.writable { "read-write" } else { "any" }.into()),
        (
            "PGCHANNELBINDING",
            match connection.channel_binding {
                ChannelBinding::Disable => "disable",
                ChannelBinding::Prefer => "prefer",
                ChannelBinding::Require => "require",
            }
            .into(),
        ),
    ];
    if endpoints.iter().any(|endpoint| !address(endpoint).is_empty()) {
        values.push(("PGHOSTADDR", list(&address).into()));
    }
    if let Some(options) = &connection.options {
        values.push(("PGOPTIONS", options.into()));
    }
    // Libpq's own files in the home need not exist.
    let identity = connection.tls.identity.as_ref();
    if let Some(identity) = identity.filter(|identity| identity.named || identity.certificate.exists()) {
        values.push(("PGSSLCERT", identity.certificate.clone().into()));
        values.push(("PGSSLKEY", identity.key.clone().into()));
    }
    if connection.tls.only_tls13 {
        values.push(("PGSSLMINPROTOCOLVERSION", "TLSv1.3".into()));
    }
    values
}

/// The strictest that any of them has: libpq knows one for all. It does not count for sockets, which have none.
fn mode(endpoints: &[Endpoint]) -> SslMode {
    endpoints.iter().map(|endpoint| endpoint.mode).max().unwrap_or(SslMode::VerifyFull)
}

fn word(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

/// The file of trusted certificates. `None`: none is looked at.
async fn roots(connection: &Connection) -> Result<Option<PathBuf>> {
    match &connection.tls.roots {
        Roots::File(file) => return Ok(Some(file.clone())),
        Roots::Home(Some(file)) if tokio::fs::try_exists(file).await.unwrap_or(true) => return Ok(Some(file.clone())),
        Roots::System | Roots::Home(_) => {}
    }
    if mode(&connection.endpoints) < SslMode::VerifyCa {
        return Ok(None);
    }
    for file in SYSTEM_ROOTS.map(PathBuf::from) {
        if tokio::fs::try_exists(&file).await.unwrap_or(false) {
            return Ok(Some(file));
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
        let values = libpq.values.iter().map(|(name, value)| (*name, value.to_string_lossy().into_owned()));
        (values.collect(), libpq.passfile.is_some())
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
            ("PGTARGETSESSIONATTRS", "read-write"),
            ("PGCONNECT_TIMEOUT", "10"),
        ];
        for (name, value) in expected {
            assert_eq!(values.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(password && values["PGPASSFILE"].starts_with("/proc/self/fd/"), "{values:?}");
        assert!(!values.contains_key("PGPASSWORD") && !values.contains_key("PGHOSTADDR"), "{values:?}");
    }

    #[tokio::test]
    async fn a_password_is_in_a_file_of_no_folder_that_only_we_can_read() {
        use std::os::unix::fs::PermissionsExt;
        let file = passfile(&SecretString::from("a:b\\c d'")).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "*:*:*:*:a\\:b\\\\c d'\n");
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
        assert_eq!(passfile(&SecretString::from("a\nb")).unwrap_err().kind(), Kind::Login);
    }

    #[tokio::test]
    async fn several_hosts_get_the_strictest_tls_of_all() {
        let (values, password) = of("postgresql://u@localhost:1,db:2/app?sslrootcert=/r.pem").await;
        assert_eq!((values["PGHOST"].as_str(), values["PGPORT"].as_str()), ("localhost,db", "1,2"));
        assert_eq!((values["PGSSLMODE"].as_str(), password), ("verify-full", false));
        assert_eq!(values["PGPASSFILE"], "/nowhere/.pgpass");
        let (socket, _) = of("postgresql://u@%2Frun%2Fpg/app").await;
        assert_eq!((socket["PGHOST"].as_str(), socket["PGSSLMODE"].as_str()), ("/run/pg", "disable"));
    }
}
