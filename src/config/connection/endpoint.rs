//! The places where a server may be, each with the TLS that it gets.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Roots;
use super::known::Values;
use crate::error::Result;

/// Where Debian's and Red Hat's servers keep their socket: the place when nothing names a host.
const SOCKET_FOLDER: &str = "/var/run/postgresql";
const PORT: u16 = 5432;

/// One of the hosts that are tried in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) place: Place,
    pub(crate) port: u16,
    /// What is asked of TLS here, defaults filled in. A socket never has any.
    pub(crate) mode: SslMode,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The folder of a unix socket.
    Socket(PathBuf),
    /// A host: the name that its certificate must bear, and the address if that is not to be looked up.
    Host { name: String, address: Option<IpAddr> },
}

/// libpq's levels of TLS, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Socket(folder) => write!(f, "{}:{}", folder.display(), self.port),
            Place::Host { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Host { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Place {
    /// Whether what is sent there stays on this machine. With a name and an address, both must say so.
    pub(crate) fn is_local(&self) -> bool {
        let loopback = |name: &str| {
            name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        match self {
            Place::Socket(_) => true,
            Place::Host { name, address } => loopback(name) && address.is_none_or(|address| address.is_loopback()),
        }
    }

    /// The name under which libpq's password file knows it.
    pub(crate) fn in_passfile(&self) -> &str {
        match self {
            Place::Socket(folder) if folder == Path::new(SOCKET_FOLDER) => "localhost",
            Place::Socket(folder) => folder.to_str().unwrap_or(""),
            Place::Host { name, .. } => name,
        }
    }
}

/// The endpoints that `host`, `hostaddr`, `port` and `sslmode` stand for.
///
/// # Errors
/// Usage: lists of different length, a port or address that is none, a TLS that a host may not have.
pub(super) fn read(values: &Values, roots: &Roots) -> Result<Vec<Endpoint>> {
    let list = |name: &str| values.get(name).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or_else(|| vec![""]));
    let length = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
    if let (Some(hosts), Some(addresses)) = (&hosts, &addresses)
        && hosts.len() != addresses.len()
    {
        return Err(values.wrong("hostaddr", &format!("{} addresses for {} hosts", addresses.len(), hosts.len())));
    }
    if ports.len() != 1 && ports.len() != length {
        return Err(values.wrong("port", &format!("{} ports for {length} hosts", ports.len())));
    }
    let wanted = values.parsed("sslmode", mode)?;
    (0..length)
        .map(|index| {
            let host = hosts.as_ref().map_or("", |hosts| hosts[index]);
            let address = addresses.as_ref().map_or("", |addresses| addresses[index]);
            let place = place(values, host, address)?;
            let port = port(values, if ports.len() == 1 { ports[0] } else { ports[index] })?;
            let mode = checked(values, wanted, &place, roots)?;
            Ok(Endpoint { place, port, mode })
        })
        .collect()
}

fn place(values: &Values, host: &str, address: &str) -> Result<Place> {
    if host.starts_with('@') {
        return Err(values.wrong("host", "abstract sockets are not supported").hint("give the socket's folder"));
    }
    if !address.is_empty() {
        let address: IpAddr =
            address.parse().map_err(|_| values.wrong("hostaddr", &format!("{address:?} is no IP address")))?;
        let name = if host.is_empty() { address.to_string() } else { host.to_owned() };
        return Ok(Place::Host { name, address: Some(address) });
    }
    Ok(match host {
        "" => Place::Socket(PathBuf::from(SOCKET_FOLDER)),
        folder if folder.starts_with('/') => Place::Socket(PathBuf::from(folder)),
        name => Place::Host { name: name.to_owned(), address: None },
    })
}

fn port(values: &Values, text: &str) -> Result<u16> {
    match text {
        "" => Ok(PORT),
        text => text
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| values.wrong("port", "a port is a number from 1 to 65535")),
    }
}

fn mode(text: &str) -> Result<SslMode, String> {
    Ok(match text {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        other => return Err(format!("{other:?} is none of disable, allow, prefer, require, verify-ca, verify-full")),
    })
}

/// The mode for one place: what was asked for, or the default there.
fn checked(values: &Values, wanted: Option<SslMode>, place: &Place, roots: &Roots) -> Result<SslMode> {
    match (place, wanted) {
        (Place::Socket(_), _) => Ok(SslMode::Disable),
        (_, Some(mode @ (SslMode::Allow | SslMode::Prefer))) if !place.is_local() => {
            let word = if mode == SslMode::Allow { "allow" } else { "prefer" };
            Err(values.wrong("sslmode", &format!("{word} is for a host on this machine only, since it gives way to plain text")).hint(
                "use verify-full with sslrootcert, or disable if the network really is to be trusted with the password",
            ))
        }
        // Anybody can have a certificate from an authority of the system's; only the name makes it mean something.
        (_, Some(mode)) if *roots == Roots::System && mode != SslMode::VerifyFull && mode != SslMode::Disable => {
            Err(values.wrong("sslmode", "sslrootcert=system needs verify-full").hint("use sslmode=verify-full"))
        }
        (_, Some(mode)) => Ok(mode),
        (_, None) if place.is_local() && *roots != Roots::System => Ok(SslMode::Prefer),
        (_, None) => Ok(SslMode::VerifyFull),
    }
}
