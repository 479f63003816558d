//! How to reach the main database's server: libpq's meaning of URLs, `keyword = value` strings and `PG…` variables, checked.
//!
//! Pure: no file is read and nothing is resolved here. Certificates, keys and passwords kept in files are read by `pg` at each
//! connect, so that they can be changed while the daemon runs.

mod endpoint;
mod known;
mod text;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub(crate) use endpoint::{Endpoint, Place, SslMode};
use known::Values;

use crate::error::{Error, Result};
use crate::tenant::MAX_IDENTIFIER_BYTES;

/// The built-in `main.connect_timeout`. A `connect_timeout` in the URL counts only while the setting still has this value.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is made of, as it was written. What is given here wins over the URL's own parameters, which win over
/// the `PG…` variables.
pub struct Parts<'a> {
    /// A URL, or `keyword = value` pairs.
    pub url: Option<&'a str>,
    /// Looks up `PG…` variables and `HOME`; also `USER`, the user when nothing names one.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Holds the password, read at each connect.
    pub password_file: Option<PathBuf>,
    /// Prints the password, run by `sh -c` at each connect.
    pub password_command: Option<String>,
    /// libpq's word for it.
    pub sslmode: Option<String>,
    /// A file of certificates, or `system`.
    pub sslrootcert: Option<String>,
    /// The certificate we show.
    pub sslcert: Option<PathBuf>,
    /// Its key.
    pub sslkey: Option<PathBuf>,
    /// The longest that one connect may take, name look-up, TCP, TLS and login together.
    pub connect_timeout: Duration,
}

/// Checked settings of a connection. Neither `Debug` nor [`Connection::describe`] shows a password.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Password,
    pub(crate) tls: Tls,
    pub(crate) options: Option<String>,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) keepalive: Keepalive,
    pub(crate) writable: bool,
    pub(crate) connect_timeout: Duration,
}

/// Where the password comes from; the first that is set wins: command, file, the URL's or `PGPASSWORD`, the password file of libpq.
#[derive(Debug, Clone)]
pub(crate) struct Password {
    pub(crate) command: Option<SecretString>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) fixed: Option<SecretString>,
    /// libpq's own: `PGPASSFILE`, else `~/.pgpass`.
    pub(crate) passfile: Option<PathBuf>,
}

/// What TLS is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) roots: Roots,
    pub(crate) identity: Option<Identity>,
    pub(crate) only_tls13: bool,
}

/// Whom we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Roots {
    /// The certificates of this file and no others.
    File(PathBuf),
    /// The system's.
    System,
    /// Nothing was said: libpq's file in the home, if it exists.
    Home(Option<PathBuf>),
}

/// The certificate we show, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Whether somebody named it. Otherwise these are libpq's files in the home, which need not exist.
    pub(crate) named: bool,
}

/// Whether the password exchange is bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// When a silent connection is given up, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) enabled: bool,
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
    pub(crate) user_timeout: Duration,
}

impl Connection {
    /// Reads and checks `parts`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage), with the place and never with a password: a string that cannot be read, an unknown
    /// parameter or value, a combination that would be less safe than it looks.
    pub fn from_parts(parts: &Parts<'_>) -> Result<Connection> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let values = Values::gather(
            parts.environment,
            parts.url.map(text::read).transpose()?.unwrap_or_default(),
            vec![
                ("sslmode", parts.sslmode.clone()),
                ("sslrootcert", parts.sslrootcert.clone()),
                ("sslcert", path(&parts.sslcert)),
                ("sslkey", path(&parts.sslkey)),
            ],
        )?;
        let home = (parts.environment)("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let user = match values.get("user") {
            Some(user) => user.to_owned(),
            None => (parts.environment)("USER").filter(|user| !user.is_empty()).ok_or_else(|| {
                Error::usage("the connection has no user").hint("name it in main.url: postgresql://USER@host/database")
            })?,
        };
        let database = values.get("dbname").unwrap_or(&user).to_owned();
        for (what, name) in [("user", &user), ("database", &database)] {
            if name.len() > MAX_IDENTIFIER_BYTES {
                let cut = format!("the {what} of the connection has {} bytes: Postgres cuts names off", name.len());
                return Err(
                    Error::usage(cut).hint(format!("no {what} has a name of more than {MAX_IDENTIFIER_BYTES} bytes"))
                );
            }
        }
        let roots = roots(&values, home.as_ref());
        Ok(Connection {
            endpoints: endpoint::read(&values, &roots)?,
            database,
            user,
            password: Password {
                command: parts.password_command.as_deref().map(SecretString::from),
                file: parts.password_file.clone(),
                fixed: values.get("password").map(SecretString::from),
                passfile: match values.get("passfile") {
                    Some(file) => Some(PathBuf::from(file)),
                    None => home.as_ref().map(|home| home.join(".pgpass")),
                },
            },
            tls: Tls { roots, identity: identity(&values, home.as_ref())?, only_tls13: only_tls13(&values)? },
            options: values.get("options").map(str::to_owned),
            channel_binding: channel_binding(&values)?,
            keepalive: keepalive(&values)?,
            writable: writable(&values)?,
            connect_timeout: connect_timeout(&values, parts.connect_timeout)?,
        })
    }

    /// The role that logs in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The main database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Who connects to where, as in `tenantd@db.example.com:5432/app`; no secret is in it.
    #[must_use]
    pub fn describe(&self) -> String {
        self.describe_as(&self.database)
    }

    /// The same for another database of the server.
    pub(crate) fn describe_as(&self, database: &str) -> String {
        let mut text = format!("{}@", self.user);
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{endpoint}");
        }
        text.push('/');
        text.push_str(database);
        text
    }
}

fn roots(values: &Values, home: Option<&PathBuf>) -> Roots {
    match values.get("sslrootcert") {
        Some("system") => Roots::System,
        Some(file) => Roots::File(PathBuf::from(file)),
        None => Roots::Home(home.map(|home| home.join(".postgresql/root.crt"))),
    }
}

fn identity(values: &Values, home: Option<&PathBuf>) -> Result<Option<Identity>> {
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name));
    let certificate = values.get("sslcert").map(PathBuf::from);
    let key = values.get("sslkey").map(PathBuf::from);
    let named = certificate.is_some() || key.is_some();
    match (certificate.or_else(|| in_home("postgresql.crt")), key.or_else(|| in_home("postgresql.key"))) {
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key, named })),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Error::usage("sslkey is set without sslcert").hint("set both main.sslcert and main.sslkey"))
        }
        (Some(_), None) => Err(Error::usage("sslcert is set without sslkey")
            .hint("set main.sslkey too; if the certificate is that of an authority, it belongs in main.sslrootcert")),
    }
}

fn only_tls13(values: &Values) -> Result<bool> {
    let read = |text: &str| match text {
        "TLSv1" | "TLSv1.1" | "TLSv1.2" => Ok(false),
        "TLSv1.3" => Ok(true),
        other => Err(format!("{other:?} is none of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3")),
    };
    Ok(values.parsed("ssl_min_protocol_version", read)?.unwrap_or(false))
}

fn channel_binding(values: &Values) -> Result<ChannelBinding> {
    let read = |text: &str| match text {
        "disable" => Ok(ChannelBinding::Disable),
        "prefer" => Ok(ChannelBinding::Prefer),
        "require" => Ok(ChannelBinding::Require),
        other => Err(format!("{other:?} is none of disable, prefer, require")),
    };
    Ok(values.parsed("channel_binding", read)?.unwrap_or(ChannelBinding::Prefer))
}

/// Keepalives are on unless switched off; DESIGN wants a dead peer noticed within half a minute. 0 leaves a value at ours.
fn keepalive(values: &Values) -> Result<Keepalive> {
    let number = |name: &str, default: u32| -> Result<u32> {
        let read = |text: &str| text.trim().parse::<u32>().map_err(|_| format!("{text:?} is no whole number"));
        Ok(values.parsed(name, read)?.filter(|number| *number > 0).unwrap_or(default))
    };
    let seconds = |name, default| number(name, default).map(|seconds| Duration::from_secs(seconds.into()));
    let enabled = values.parsed("keepalives", |text| match text.trim() {
        "0" => Ok(false),
        "1" => Ok(true),
        other => Err(format!("{other:?} is neither 0 nor 1")),
    })?;
    Ok(Keepalive {
        enabled: enabled.unwrap_or(true),
        idle: seconds("keepalives_idle", 15)?,
        interval: seconds("keepalives_interval", 5)?,
        count: number("keepalives_count", 3)?,
        // libpq counts this one in milliseconds.
        user_timeout: Duration::from_millis(number("tcp_user_timeout", 20_000)?.into()),
    })
}

/// Whether only a server that takes writes will do. libpq's default is any; tenantd has nothing to do on a standby.
fn writable(values: &Values) -> Result<bool> {
    let read = |text: &str| match text {
        "any" => Ok(false),
        "read-write" | "primary" => Ok(true),
        "read-only" | "standby" | "prefer-standby" => Err(format!("tenantd writes, so it cannot use {text}")),
        other => Err(format!("{other:?} is none of read-write, primary, any")),
    };
    Ok(values.parsed("target_session_attrs", read)?.unwrap_or(true))
}

/// Whole seconds as in libpq, where 0 and less mean for ever, which is left to the setting.
fn connect_timeout(values: &Values, setting: Duration) -> Result<Duration> {
    let read = |text: &str| text.trim().parse::<i32>().map_err(|_| format!("{text:?} is no whole number of seconds"));
    let written = values.parsed("connect_timeout", read)?.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(match written {
        Some(seconds) if seconds > 0 && setting == DEFAULT_CONNECT_TIMEOUT => Duration::from_secs(seconds),
        _ => setting,
    })
}

#[cfg(test)]
mod tests;
