//! The one way to connect: for queries, for listening, for the tenants' databases.
//!
//! Hosts are tried in the order they are written, and of each host its addresses. One deadline covers it all; whoever is tried gets
//! an equal share of what is left, so that a host that swallows packets leaves time for the next.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use secrecy::SecretString;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempt, Way};
use super::budget::{Budget, Seat};
use super::password::{self, Passfile};
use super::session::{Notifications, Session};
use super::tls::Connectors;
use crate::config::connection::{Endpoint, Place, SslMode};
use crate::config::{Bounds, Connection};
use crate::error::{Error, Kind, Result};
use crate::tasks::Tasks;

/// The server of the main database and of the tenants' databases. Clones are cheap and share what has been read for TLS.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    tasks: Tasks,
    tls: Connectors,
    warned: AtomicBool,
    /// The server's major version, known from the first login on.
    version: AtomicU32,
    /// How many connections there may be; `None`: as many as are asked for.
    budget: Option<Budget>,
}

/// Who logs in to which database.
struct Login<'a> {
    database: &'a str,
    /// Whether this is the main database, where a session may live long and has to write.
    main: bool,
    application_name: &'a str,
    notify: Option<UnboundedSender<(String, String)>>,
    /// The password for every host, if there is one.
    password: Option<SecretString>,
    /// The lines of libpq's password file, looked at where there is none.
    passfile: Option<SecretString>,
    /// The seat that the connection has among all.
    seat: Option<Arc<Seat>>,
}

impl Server {
    /// The server that `connection` reaches; its connections are driven by `tasks`. Nothing is connected yet.
    #[must_use]
    pub fn new(connection: Connection, tasks: Tasks) -> Server {
        Self::made(connection, tasks, None)
    }

    /// The same, with no more connections than `bounds` say, counted until each is closed on our side. Those to the main database are
    /// counted apart from those to tenants.
    #[must_use]
    pub fn bounded(connection: Connection, bounds: Bounds, tasks: Tasks) -> Server {
        Self::made(connection, tasks, Some(Budget::new(bounds)))
    }

    fn made(connection: Connection, tasks: Tasks, budget: Option<Budget>) -> Server {
        let (tls, warned, version) = (Connectors::default(), AtomicBool::new(false), AtomicU32::new(0));
        Server { shared: Arc::new(Shared { connection, tasks, tls, warned, version, budget }) }
    }

    /// How the server is reached.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    /// A new session in `database`, or in the main database, within `main.connect_timeout`.
    ///
    /// Certificates and passwords are read anew. The server takes writes, unless `target_session_attrs=any` was asked for.
    ///
    /// # Assumptions
    /// For a `database`: the caller holds no session in another and none of the pool, since it waits here, before the time begins to
    /// count, for as long as all connections to tenants that there may be are in use.
    ///
    /// # Errors
    /// [`Kind::Unreachable`]: no host answered in time. [`Kind::ReadOnly`]: those that answered take no writes. [`Kind::Tls`]: TLS
    /// was refused or did not pass, before any password was sent. [`Kind::Login`]: no password could be had, or it was refused;
    /// further hosts are not tried. [`Kind::TooManyConnections`] and what else the server says, with its SQLSTATE.
    pub async fn connect(&self, database: Option<&str>, application_name: &str) -> Result<Session> {
        let seat = match (&self.shared.budget, database) {
            (None, _) => None,
            (Some(budget), None) => Some(budget.main(self.shared.connection.connect_timeout).await?),
            (Some(budget), Some(_)) => Some(budget.tenant(false).await),
        };
        self.open(database, application_name, None, seat).await
    }

    /// One more session in the tenant's `database`, for a caller that has one in it.
    ///
    /// # Errors
    /// As for [`Server::connect`].
    pub async fn connect_again(&self, database: &str, application_name: &str) -> Result<Session> {
        let seat = match &self.shared.budget {
            None => None,
            Some(budget) => Some(budget.tenant(true).await),
        };
        self.open(Some(database), application_name, None, seat).await
    }

    /// A new session in the main database, and the notifications that it will hear once it listens.
    ///
    /// # Errors
    /// As for [`Server::connect`].
    pub async fn connect_listening(&self, application_name: &str) -> Result<(Session, Notifications)> {
        let (notify, heard) = mpsc::unbounded_channel();
        let seat = match &self.shared.budget {
            None => None,
            Some(budget) => Some(budget.main(self.shared.connection.connect_timeout).await?),
        };
        Ok((self.open(None, application_name, Some(notify), seat).await?, Notifications(heard)))
    }

    async fn open(
        &self,
        database: Option<&str>,
        application_name: &str,
        notify: Option<UnboundedSender<(String, String)>>,
        seat: Option<Seat>,
    ) -> Result<Session> {
        let connection = &self.shared.connection;
        let deadline = Instant::now() + connection.connect_timeout;
        let main = database.is_none();
        let database = database.unwrap_or(&connection.database);
        let opened = async {
            let password = self.given_password(deadline).await?;
            let passfile = if password.is_none() { self.passfile().await } else { None };
            let seat = seat.map(Arc::new);
            self.any_host(&Login { database, main, application_name, notify, password, passfile, seat }, deadline).await
        };
        // Boxed: this is the largest future of the crate, and every caller would carry it.
        Box::pin(opened)
            .await
            .map_err(|error| error.context(format!("connect to {}", connection.describe_as(database))))
    }

    pub(super) async fn given_password(&self, deadline: Instant) -> Result<Option<SecretString>> {
        timeout_at(deadline, password::given(&self.shared.connection.password)).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Login, format!("no password within {:?}", self.shared.connection.connect_timeout))
                .hint("main.password_command must print the password well within main.connect_timeout"))
        })
    }

    pub(super) async fn passfile(&self) -> Option<SecretString> {
        let file = self.shared.connection.password.passfile.as_ref()?;
        match password::passfile(file).await {
            Passfile::Text(text) => Some(text),
            Passfile::Absent => None,
            Passfile::Exposed => {
                if !self.shared.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(file = %file.display(), "password file not used, since others may read it; chmod 600 mends that");
                }
                None
            }
        }
    }

    async fn any_host(&self, login: &Login<'_>, deadline: Instant) -> Result<Session> {
        let endpoints = &self.shared.connection.endpoints;
        let mut failed = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let until = share(deadline, endpoints.len() - index);
            match self.any_address(endpoint, login, until).await {
                Ok(session) => return Ok(session),
                // Another host would refuse the same password, and count it against the role.
                Err(error) if error.kind() == Kind::Login => return Err(error),
                Err(error) => failed.push((endpoint.to_string(), error)),
            }
        }
        Err(worst(failed))
    }

    async fn any_address(&self, endpoint: &Endpoint, login: &Login<'_>, deadline: Instant) -> Result<Session> {
        let started = Instant::now();
        let silent = || {
            Error::new(Kind::Unreachable, format!("no answer within {:.1?}", started.elapsed())).hint(
                "check host, port and firewall; main.connect_timeout covers name look-up, TCP, TLS and login together",
            )
        };
        let addresses = timeout_at(deadline, addresses(endpoint)).await.map_err(|_| silent())??;
        let mut failed = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let until = share(deadline, addresses.len() - index);
            let outcome = timeout_at(until, self.any_way(endpoint, *address, login)).await;
            match outcome.unwrap_or_else(|_| Err(silent())) {
                Ok(session) => return Ok(session),
                Err(error) if error.kind() == Kind::Login => return Err(error),
                Err(error) => failed.push((address.map_or_else(String::new, |address| address.to_string()), error)),
            }
        }
        Err(worst(failed))
    }

    /// `allow` and `prefer`, which only a local host has, mean two ways; everything else means one.
    async fn any_way(&self, endpoint: &Endpoint, address: Option<IpAddr>, login: &Login<'_>) -> Result<Session> {
        let (first, second) = match endpoint.mode {
            SslMode::Disable => (Way::Plain, None),
            SslMode::Allow => (Way::Plain, Some(Way::Tls)),
            SslMode::Prefer => (Way::TlsIfOffered, Some(Way::Plain)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Way::Tls, None),
        };
        match (self.one_way(endpoint, address, login, first).await, second) {
            // 28000: a line of pg_hba.conf that wants the other way.
            (Err(error), Some(second)) if error.kind() == Kind::Tls || error.code() == Some("28000") => {
                tracing::debug!("{endpoint}: {}; trying the other way that sslmode allows", error.chain());
                self.one_way(endpoint, address, login, second).await
            }
            (outcome, _) => outcome,
        }
    }

    async fn one_way(
        &self,
        endpoint: &Endpoint,
        address: Option<IpAddr>,
        login: &Login<'_>,
        way: Way,
    ) -> Result<Session> {
        let connection = &self.shared.connection;
        let tls = match way {
            Way::Plain => None,
            Way::Tls | Way::TlsIfOffered => Some(self.shared.tls.connector(&connection.tls, endpoint.mode).await?),
        };
        let password = match (&login.password, &login.passfile) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(lines)) => password::find(lines, endpoint, login.database, &connection.user),
            (None, None) => None,
        };
        let attempt = Attempt {
            connection,
            endpoint,
            address,
            way,
            database: login.database,
            main: login.main,
            application_name: login.application_name,
            password,
            seat: login.seat.clone(),
            version: &self.shared.version,
        };
        attempt.make(&self.shared.tasks, tls, login.notify.clone()).await
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.shared.connection.describe()).finish()
    }
}

/// Where to connect to; `None` for a socket.
async fn addresses(endpoint: &Endpoint) -> Result<Vec<Option<IpAddr>>> {
    let name = match &endpoint.place {
        Place::Socket(_) => return Ok(vec![None]),
        Place::Host { address: Some(address), .. } => return Ok(vec![Some(*address)]),
        Place::Host { name, address: None } => name,
    };
    let unknown = |why: String| {
        Error::new(Kind::Unreachable, why)
            .hint("check the host's name in main.url and this machine's name servers")
            .context(format!("look up {name:?}"))
    };
    let found =
        tokio::net::lookup_host((name.as_str(), endpoint.port)).await.map_err(|error| unknown(error.to_string()))?;
    // What was taken for local gets a TLS that gives way, so it must not lead elsewhere.
    let local = endpoint.place.is_local();
    let mut addresses: Vec<_> =
        found.map(|found: SocketAddr| found.ip()).filter(|ip| !local || ip.is_loopback()).map(Some).collect();
    addresses.dedup();
    if addresses.is_empty() { Err(unknown("no address".to_owned())) } else { Ok(addresses) }
}

/// The end of the next try's equal share of the time until `deadline`, with `left` tries to go.
fn share(deadline: Instant, left: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// Of several failures the one that says most, in words that name them all: somebody who answered goes before nobody who did, the
/// first before later ones.
fn worst(failed: Vec<(String, Error)>) -> Error {
    let weight = |error: &Error| match error.kind() {
        Kind::Unreachable => 0,
        Kind::ReadOnly => 1,
        _ => 2,
    };
    let all = failed.iter().map(|(place, error)| format!("{place}: {}", error.chain())).collect::<Vec<_>>().join("; ");
    let several = failed.len() > 1;
    let heaviest = failed
        .into_iter()
        .map(|(_, error)| error)
        .reduce(|heaviest, error| if weight(&error) > weight(&heaviest) { error } else { heaviest });
    let Some(error) = heaviest else { return Error::new(Kind::Unreachable, "no host to connect to") };
    if !several {
        return error;
    }
    let mut summary = Error::new(error.kind(), all);
    if let Some(code) = error.code() {
        summary = summary.sqlstate(code);
    }
    match error.advice() {
        Some(advice) => summary.hint(advice),
        None => summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_the_time_is_shared_by_those_to_come() {
        let start = Instant::now();
        let deadline = start + std::time::Duration::from_secs(9);
        assert_eq!(share(deadline, 3) - start, std::time::Duration::from_secs(3));
        assert_eq!(share(deadline, 1), deadline);
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        assert_eq!(share(deadline, 2), Instant::now());
    }

    #[test]
    fn who_answered_outweighs_who_did_not() {
        let place = |name: &str, kind| (name.to_owned(), Error::new(kind, "why").hint(format!("mend {name}")));
        let table = [
            (vec![Kind::Unreachable, Kind::ReadOnly], Kind::ReadOnly, "mend 1"),
            (vec![Kind::ReadOnly, Kind::Unreachable], Kind::ReadOnly, "mend 0"),
            (vec![Kind::Unreachable, Kind::ReadOnly, Kind::Tls, Kind::Other], Kind::Tls, "mend 2"),
            (vec![Kind::Unreachable, Kind::Unreachable], Kind::Unreachable, "mend 0"),
            (vec![Kind::TooManyConnections], Kind::TooManyConnections, "mend 0"),
        ];
        for (kinds, kind, advice) in table {
            let error = worst(kinds.iter().enumerate().map(|(index, kind)| place(&index.to_string(), *kind)).collect());
            assert_eq!((error.kind(), error.advice()), (kind, Some(advice)), "{kinds:?}");
            assert_eq!(error.chain().matches("why").count(), kinds.len());
        }
    }
}
