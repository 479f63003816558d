//! A connection for another program: libpq's parameters, as a URL or as variables, and the password that goes with them.

use std::fmt::Write;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::password;
use super::server::Server;
use crate::config::Connection;
use crate::config::connection::{ChannelBinding, Endpoint, Place, Roots, SslMode};
use crate::error::Result;

/// What stands as it is in every part of a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The variables by which libpq takes parameters. Whatever is not set anew must not be inherited: it would be meant for another connection.
pub const VARIABLES: [(&str, &str); 13] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// libpq's parameters by name.
pub type Parameters = Vec<(&'static str, String)>;

impl Server {
    /// The password that we would log in to `database` with, read anew; `None`: none is needed, or it is asked for.
    ///
    /// # Errors
    /// [`Kind::Login`](crate::error::Kind::Login) when it cannot be had.
    pub async fn password(&self, database: &str) -> Result<Option<SecretString>> {
        let connection = self.connection();
        if let Some(password) = self.given_password(Instant::now() + connection.connect_timeout).await? {
            return Ok(Some(password));
        }
        let Some(lines) = self.passfile().await else { return Ok(None) };
        let find = |endpoint| password::find(&lines, endpoint, database, connection.user());
        Ok(connection.endpoints.iter().find_map(find))
    }
}

/// The parameters by which libpq reaches `database` as `user` the way `connection` does: the same hosts, at least the same TLS. No password is
/// among them. Files are named so that they are found from every folder.
#[must_use]
pub fn parameters(connection: &Connection, database: &str, user: &str) -> Parameters {
    let endpoints = &connection.endpoints;
    let hosts: Vec<String> = endpoints.iter().map(|endpoint| host(&endpoint.place)).collect();
    let ports: Vec<String> = endpoints.iter().map(|endpoint| endpoint.port.to_string()).collect();
    let mut parameters = vec![
        ("host", hosts.join(",")),
        ("port", ports.join(",")),
        ("user", user.to_owned()),
        ("dbname", database.to_owned()),
    ];
    parameters.extend(more(connection));
    parameters
}

/// The same as a URL, with `password` if there is one.
#[must_use]
pub fn url(connection: &Connection, database: &str, user: &str, password: Option<&SecretString>) -> String {
    let mut url = format!("postgresql://{}", encoded(user));
    if let Some(password) = password {
        let _ = write!(url, ":{}", encoded(password.expose_secret()));
    }
    let hosts: Vec<String> = connection.endpoints.iter().map(in_url).collect();
    let _ = write!(url, "@{}/{}", hosts.join(","), encoded(database));
    for (index, (name, value)) in more(connection).iter().enumerate() {
        let _ = write!(url, "{}{name}={}", if index == 0 { '?' } else { '&' }, encoded(value));
    }
    url
}

/// All that stands behind the question mark of a URL.
fn more(connection: &Connection) -> Parameters {
    let (endpoints, tls) = (&connection.endpoints, &connection.tls);
    let mut more = Parameters::new();
    let address = |endpoint: &Endpoint| match &endpoint.place {
        Place::Host { address: Some(address), .. } => address.to_string(),
        _ => String::new(),
    };
    let addresses: Vec<String> = endpoints.iter().map(address).collect();
    if addresses.iter().any(|address| !address.is_empty()) {
        more.push(("hostaddr", addresses.join(",")));
    }
    // libpq knows one mode for all hosts, and none for sockets.
    let of_hosts = endpoints.iter().filter(|endpoint| !matches!(endpoint.place, Place::Socket(_)));
    if let Some(mode) = of_hosts.map(|endpoint| endpoint.mode).max() {
        more.push(("sslmode", mode.word().to_owned()));
        more.extend(roots(&tls.roots, mode).map(|roots| ("sslrootcert", roots)));
        if let Some(identity) = tls.identity.as_ref().filter(|identity| identity.named) {
            more.push(("sslcert", absolute(&identity.certificate)));
            more.push(("sslkey", absolute(&identity.key)));
        }
        if tls.only_tls13 {
            more.push(("ssl_min_protocol_version", "TLSv1.3".to_owned()));
        }
    }
    match connection.channel_binding {
        ChannelBinding::Disable => more.push(("channel_binding", "disable".to_owned())),
        ChannelBinding::Require => more.push(("channel_binding", "require".to_owned())),
        ChannelBinding::Prefer => {}
    }
    more.extend(connection.options.clone().map(|options| ("options", options)));
    if endpoints.len() > 1 && connection.writable {
        more.push(("target_session_attrs", "read-write".to_owned()));
    }
    more
}

/// Whom libpq is told to trust. Left to itself it knows only the file in the home, where we fall back on the system's.
fn roots(roots: &Roots, mode: SslMode) -> Option<String> {
    match roots {
        Roots::File(file) => Some(absolute(file)),
        Roots::System => Some("system".to_owned()),
        Roots::Home(Some(file)) if file.exists() => None,
        Roots::Home(_) => (mode == SslMode::VerifyFull).then(|| "system".to_owned()),
    }
}

fn host(place: &Place) -> String {
    match place {
        Place::Socket(folder) => absolute(folder),
        Place::Host { name, .. } => name.clone(),
    }
}

fn in_url(endpoint: &Endpoint) -> String {
    let host = host(&endpoint.place);
    let shown = if host.contains(':') && matches!(endpoint.place, Place::Host { .. }) {
        format!("[{}]", host.replace('%', "%25"))
    } else {
        encoded(&host)
    };
    format!("{shown}:{}", endpoint.port)
}

fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.to_string_lossy().into_owned()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::connection::{DEFAULT_CONNECT_TIMEOUT, Parts};

    fn connection(url: &str) -> Connection {
        let parts = Parts {
            url: Some(url),
            environment: &|name| (name == "HOME").then(|| "/nowhere".to_owned()),
            password_file: None,
            password_command: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        };
        Connection::from_parts(&parts).unwrap_or_else(|error| panic!("{url}: {}", error.chain()))
    }

    fn of_tenant(main: &str) -> String {
        url(&connection(main), "tenant_x", "app", None)
    }

    #[test]
    fn a_url_names_the_tenant_and_keeps_the_rest() {
        let table = [
            (
                "postgresql://t:secret@db.example.com/app",
                "db.example.com:5432/tenant_x?sslmode=verify-full&sslrootcert=system",
            ),
            (
                "postgresql://t@db/app?sslmode=verify-full&sslrootcert=/etc/a b.pem",
                "db:5432/tenant_x?sslmode=verify-full&sslrootcert=%2Fetc%2Fa%20b.pem",
            ),
            ("postgresql://t@localhost:6543/app", "localhost:6543/tenant_x?sslmode=prefer"),
            ("postgresql://t@[::1]:6543/app", "[::1]:6543/tenant_x?sslmode=prefer"),
            ("host=/run/pg user=t dbname=app", "%2Frun%2Fpg:5432/tenant_x"),
            (
                "postgresql://t@a:1,b:2/app?sslmode=disable&options=-c%20x%3D1",
                "a:1,b:2/tenant_x?sslmode=disable&options=-c%20x%3D1&target_session_attrs=read-write",
            ),
            (
                "postgresql://t@db/app?hostaddr=192.0.2.1&sslmode=require&channel_binding=require&ssl_min_protocol_version=TLSv1.3",
                "db:5432/tenant_x?hostaddr=192.0.2.1&sslmode=require&ssl_min_protocol_version=TLSv1.3&channel_binding=require",
            ),
            (
                "postgresql://t@db/app?sslmode=verify-ca&sslrootcert=/r&sslcert=/c&sslkey=/k",
                "db:5432/tenant_x?sslmode=verify-ca&sslrootcert=%2Fr&sslcert=%2Fc&sslkey=%2Fk",
            ),
        ];
        for (main, shown) in table {
            assert_eq!(of_tenant(main), format!("postgresql://app@{shown}"));
        }
    }

    #[test]
    fn what_reads_main_url_reads_it_back() {
        for main in [
            "postgresql://t@db.example.com/app",
            "postgresql://t@a:1,b:2/app?sslmode=disable&options=-c%20x%3D1",
            "postgresql://t@[::1]:6543,localhost:7/app?channel_binding=disable",
            "postgresql://t@db,/app?hostaddr=192.0.2.1,::1&sslmode=require",
            "host=/run/pg,/run/other port=1,2 user=t dbname=app",
        ] {
            let (before, after) = (connection(main), connection(&of_tenant(main)));
            assert_eq!(before.endpoints, after.endpoints, "{main}");
            assert_eq!((after.user(), after.database()), ("app", "tenant_x"));
            assert_eq!((before.options, before.channel_binding), (after.options, after.channel_binding), "{main}");
        }
    }

    #[test]
    fn a_password_is_there_when_asked_for_and_escaped() {
        let main = connection("postgresql://t@localhost/app");
        let password = SecretString::from("p@ss/word%:");
        assert_eq!(
            url(&main, "x y", "o'k", Some(&password)),
            "postgresql://o%27k:p%40ss%2Fword%25%3A@localhost:5432/x%20y?sslmode=prefer"
        );
    }

    #[test]
    fn every_parameter_has_its_variable() {
        let main = connection(
            "postgresql://t@a,b/app?hostaddr=::1,::1&sslmode=verify-full&sslrootcert=/r&sslcert=/c&sslkey=/k&options=x&\
             channel_binding=require&ssl_min_protocol_version=TLSv1.3",
        );
        let parameters = parameters(&main, "x", "app");
        for (name, value) in &parameters {
            assert!(VARIABLES.iter().any(|(known, _)| known == name), "{name}={value}");
        }
        assert_eq!(parameters.len(), VARIABLES.len());
    }
}
