//! One try: one address, one way, one login, and whether the server that answers will do.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres_native_tls::MakeTlsConnector;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedSender;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage, Socket, config};

use super::budget::Seat;
use super::session::Session;
use super::sqlstate::{from_server, translate};
use super::{Doing, tls};
use crate::config::Connection;
use crate::config::connection::{ChannelBinding, Endpoint, Place};
use crate::error::{Error, Kind, Result};
use crate::tasks::Tasks;

/// Whether TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Plain,
    /// Plain if the server has no TLS.
    TlsIfOffered,
    /// Nothing but the question for TLS is sent to a server without it.
    Tls,
}

/// Whether the session is ours alone. A setting of our own that is asked for at login is in force in every session with Postgres itself; a pooler
/// that shares its connections out lets us in only where it leaves that out.
pub(super) const IS_OWN: &str = "select pg_catalog.current_setting('tenantd.session', true)";

/// What one try needs.
pub(super) struct Attempt<'a> {
    pub(super) connection: &'a Connection,
    pub(super) endpoint: &'a Endpoint,
    pub(super) address: Option<IpAddr>,
    pub(super) way: Way,
    pub(super) database: &'a str,
    pub(super) main: bool,
    pub(super) application_name: &'a str,
    pub(super) password: Option<SecretString>,
    pub(super) seat: Option<Arc<Seat>>,
    /// The server's major version, as it was when somebody last logged in; 0 before that.
    pub(super) version: &'a AtomicU32,
}

/// What the server says of itself at login; Postgres before 14 leaves the last two out.
struct Standing {
    version: u32,
    in_recovery: Option<bool>,
    read_only: Option<bool>,
}

/// The major version from which on the server can end transactions for being long.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

/// What is in force in every session of ours. Names are quoted in what the server says only where they must be: types and definitions are compared.
const OWN: &str = "-c tenantd.session=on -c quote_all_identifiers=off";

/// What is in force on the main database besides.
///
/// Nothing of ours is looked for outside `pg_catalog` unless its schema is named: in a role's or public's own schema somebody may have made an operator
/// that fits the types better, and it would run as us. Tenants keep theirs: their migrations may rely on it.
///
/// Nor is what the application's database sets for the application's statements meant for ours: these have bounds of their own, and mean what they mean
/// by default. Rows of the application's that are hidden from us shall be an error and no silence.
const OURS: &str = "-c search_path=pg_catalog,pg_temp -c statement_timeout=0 -c lock_timeout=0 -c default_transaction_isolation=read\\ committed \
                    -c row_security=off -c standard_conforming_strings=on -c transform_null_equals=off -c array_nulls=on";

impl Attempt<'_> {
    /// Connects, and checks that the server takes writes if that is asked for.
    ///
    /// # Errors
    /// See [`Server::connect`](super::Server::connect).
    #[expect(clippy::disallowed_methods, reason = "the one place that connects")]
    pub(super) async fn make(
        &self,
        tasks: &Tasks,
        tls: Option<MakeTlsConnector>,
        notify: Option<UnboundedSender<(String, String)>>,
    ) -> Result<Session> {
        let config = self.config();
        let (session, standing) = if let Some(tls) = tls {
            let (client, connection) = config.connect(tls.clone()).await.map_err(|error| self.refused(&error))?;
            let standing = Standing::of(&connection);
            (Session::start(tasks, client, connection, Some(tls), notify, self.seat.clone()), standing)
        } else {
            let (client, connection) = config.connect(NoTls).await.map_err(|error| self.refused(&error))?;
            let standing = Standing::of(&connection);
            (Session::start(tasks, client, connection, None, notify, self.seat.clone()), standing)
        };
        self.version.store(standing.version, Ordering::Relaxed);
        if self.connection.writable && !self.takes_writes(&session, &standing).await? {
            return Err(Error::new(Kind::ReadOnly, "the server takes no writes").hint(
                "tenantd waits for it to take writes; write all hosts of the cluster into main.url and it finds the one that does",
            ));
        }
        if self.main { self.prepare(session, standing.version).await } else { Ok(session) }
    }

    /// Sessions on the main database listen, hold locks or wait in the pool: being idle must not end them, nor a migration of a
    /// schema that takes long. And whether they are sessions at all.
    async fn prepare(&self, session: Session, version: u32) -> Result<Session> {
        let forever = match version {
            ..14 => "",
            14..TRANSACTION_TIMEOUT_SINCE => "set idle_session_timeout = 0; ",
            _ => "set idle_session_timeout = 0; set transaction_timeout = 0; ",
        };
        let answer = session.simple_query(&format!("{forever}{IS_OWN}")).await;
        let answer = answer.doing(|| "prepare a session on the main database".to_owned())?;
        let own =
            |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on"));
        Ok(if answer.iter().any(own) { session } else { session.shared() })
    }

    fn is_for_all(&self) -> bool {
        self.main || self.database == self.connection.database
    }

    /// A tenant that was made read-only by a setting is that tenant's matter; on the main database, where all tenants' schemas may be, it ends all work.
    async fn takes_writes(&self, session: &Session, standing: &Standing) -> Result<bool> {
        if let (Some(in_recovery), Some(read_only)) = (standing.in_recovery, standing.read_only) {
            let refuses = in_recovery || (self.is_for_all() && read_only);
            return Ok(!refuses);
        }
        let question =
            if self.is_for_all() { "show transaction_read_only" } else { "select pg_catalog.pg_is_in_recovery()" };
        let answer = session.simple_query(question).await.doing(|| "ask whether the server takes writes".to_owned())?;
        let says_yes = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                row.try_get(0).ok().flatten().is_some_and(|word| word == "on" || word == "t")
            }
            _ => false,
        };
        Ok(!answer.iter().any(says_yes))
    }

    fn config(&self) -> Config {
        let Connection { user, options, keepalive, channel_binding, .. } = self.connection;
        let mut config = Config::new();
        config.user(user).dbname(self.database).application_name(self.application_name).port(self.endpoint.port);
        match (&self.endpoint.place, self.address) {
            (Place::Host { name, .. }, Some(address)) => {
                config.host(name).hostaddr(address);
            }
            (Place::Host { name, .. }, None) => {
                config.host(name);
            }
            (Place::Socket(folder), _) => {
                config.host_path(folder);
            }
        }
        config.ssl_mode(match self.way {
            Way::Plain => config::SslMode::Disable,
            Way::TlsIfOffered => config::SslMode::Prefer,
            Way::Tls => config::SslMode::Require,
        });
        config.channel_binding(match channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
        config.keepalives(keepalive.enabled);
        config
            .keepalives_idle(keepalive.idle)
            .keepalives_interval(keepalive.interval)
            .keepalives_retries(keepalive.count);
        if keepalive.enabled {
            config.tcp_user_timeout(keepalive.user_timeout);
        }
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        let ours = self.main.then(|| OURS.to_owned());
        let own = Some(OWN.to_owned());
        // A migration has a bound of its own, for each of its statements. Older servers let nobody in who asks for this; on the main database, where
        // the version is not known yet, it is set afterwards.
        let knows = self.version.load(Ordering::Relaxed) >= TRANSACTION_TIMEOUT_SINCE;
        let unhurried = (!self.main && knows).then(|| "-c transaction_timeout=0".to_owned());
        let options = [own, ours, unhurried, self.server_keepalives(), options.clone()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ");
        if !options.is_empty() {
            config.options(options);
        }
        config
    }

    /// The server's side of the keepalives: without them it holds a dead daemon's locks for two hours. They are not sent while something waits to be
    /// acknowledged, a notification say; for that it has a time of its own, which would else be a quarter of an hour.
    fn server_keepalives(&self) -> Option<String> {
        let keepalive = self.connection.keepalive;
        (keepalive.enabled && self.address.is_some()).then(|| {
            format!(
                "-c tcp_keepalives_idle={} -c tcp_keepalives_interval={} -c tcp_keepalives_count={} -c tcp_user_timeout={}",
                keepalive.idle.as_secs(),
                keepalive.interval.as_secs(),
                keepalive.count,
                keepalive.user_timeout.as_millis()
            )
        })
    }

    /// Why the driver could not connect.
    fn refused(&self, error: &tokio_postgres::Error) -> Error {
        if let Some(said) = error.as_db_error() {
            let refused = from_server(said);
            return match said.code().code() {
                "28P01" => refused.hint("check the password; it is read anew at each try, so that mending it is enough"),
                "28000" => refused.hint("check the role, and the lines of the server's pg_hba.conf for it"),
                "3D000" => refused.hint("check the database's name in main.url"),
                "08P01" => refused.hint(
                    "connect to Postgres itself rather than to a pooler, or let the pooler ignore the startup parameter options",
                ),
                _ => refused,
            };
        }
        if self.way != Way::Plain
            && let Some(failure) = tls::failure(error)
        {
            return failure;
        }
        // The driver's error has no predicates for these two; the texts are those of its kinds.
        match error.to_string().as_str() {
            // All settings were checked before, so that what is missing can only be the password.
            "invalid configuration" if self.password.is_none() => {
                Error::new(Kind::Login, "the server asks for a password, and there is none").hint(
                    "set main.password_file or main.password_command, or write it into ~/.pgpass, with * as the database since tenants have theirs",
                )
            }
            "authentication error" => translate(error).with_kind(Kind::Login),
            // With TLS 1.3 the server's reason for refusing a certificate may be lost on the way, and only a broken connection is left.
            _ if self.way == Way::Tls && self.connection.tls.identity.as_ref().is_some_and(|identity| identity.named) => {
                translate(error).hint("perhaps the server refused main.sslcert; its log has the reason")
            }
            _ => translate(error),
        }
    }
}

impl Standing {
    fn of<S>(connection: &tokio_postgres::Connection<Socket, S>) -> Standing
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let on = |name: &str| connection.parameter(name).map(|value| value == "on");
        Standing {
            version: connection.parameter("server_version").map_or(0, major),
            in_recovery: on("in_hot_standby"),
            read_only: on("default_transaction_read_only"),
        }
    }
}

/// The leading number of `15.18 (Debian 15.18-0)` or `18beta1`; 0 when there is none.
fn major(version: &str) -> u32 {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_its_first_number() {
        for (version, number) in [("15.18 (Debian 15.18-0)", 15), ("18beta1", 18), ("9.6.24", 9), ("", 0), ("devel", 0)]
        {
            assert_eq!(major(version), number);
        }
    }
}
