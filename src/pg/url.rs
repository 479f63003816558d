//! A connection for people and their programs, as a URL, and the password that goes with it.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::libpq::Libpq;
use super::password;
use super::server::Server;
use crate::error::Result;

/// What stands as it is in every part of a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What stands behind the question mark, by the variable that means the same.
const BEHIND: [(&str, &str); 9] = [
    ("PGHOSTADDR", "hostaddr"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGOPTIONS", "options"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
];

impl Server {
    /// The password that we would log in to `database` with, read anew; `None`: none is known, and perhaps none is needed.
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

/// The URL by which libpq, and whatever reads such URLs, reaches what `libpq` reaches: the same hosts, at least the same TLS; as `user`, with
/// `password` if there is one. Files are named so that they are found from every folder.
#[must_use]
pub fn url(libpq: &Libpq, user: &str, password: Option<&SecretString>) -> String {
    let value = |name: &str| {
        let found = libpq.values.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let password = password.map(|password| format!(":{}", encoded(password.expose_secret()))).unwrap_or_default();
    let (hosts, ports) = (value("PGHOST"), value("PGPORT"));
    let places: Vec<String> =
        hosts.split(',').zip(ports.split(',')).map(|(host, port)| format!("{}:{port}", host_of_url(host))).collect();
    let sockets_alone = hosts.split(',').all(|host| host.starts_with('/'));
    let mut url =
        format!("postgresql://{}{password}@{}/{}", encoded(user), places.join(","), encoded(&value("PGDATABASE")));
    let mut sign = '?';
    for (variable, name) in BEHIND {
        let value = value(variable);
        let says_nothing = match name {
            // What libpq does by itself.
            "channel_binding" => value == "prefer",
            "target_session_attrs" => value == "any" || places.len() == 1,
            _ => name.starts_with("ssl") && sockets_alone,
        };
        if !value.is_empty() && !says_nothing {
            let value = if matches!(name, "sslrootcert" | "sslcert" | "sslkey") { absolute(&value) } else { value };
            url.push_str(&format!("{sign}{name}={}", encoded(&value)));
            sign = '&';
        }
    }
    url
}

fn host_of_url(host: &str) -> String {
    let is_address = host.contains(':') && !host.starts_with('/');
    if is_address { format!("[{}]", host.replace('%', "%25")) } else { encoded(host) }
}

fn absolute(path: &str) -> String {
    std::path::absolute(Path::new(path)).map_or_else(|_| path.to_owned(), |path| path.to_string_lossy().into_owned())
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Connection;
    use crate::config::connection::{DEFAULT_CONNECT_TIMEOUT, Parts};
    use crate::tasks::Tasks;

    fn connection(url: &str) -> Connection {
        let parts = Parts {
            url: Some(url),
            // No home: no files in it either.
            environment: &|_| None,
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

    async fn of_tenant(main: &str) -> String {
        url(&Server::new(connection(main), Tasks::new()).libpq("tenant_x", "").await.unwrap(), "app", None)
    }

    #[tokio::test]
    async fn a_url_names_the_tenant_and_keeps_the_rest() {
        let table = [
            (
                "postgresql://t@db/app?sslmode=verify-full&sslrootcert=/etc/a b.pem",
                "db:5432/tenant_x?sslmode=verify-full&sslrootcert=%2Fetc%2Fa%20b.pem",
            ),
            ("postgresql://t:secret@localhost:6543/app", "localhost:6543/tenant_x?sslmode=prefer"),
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
            assert_eq!(of_tenant(main).await, format!("postgresql://app@{shown}"));
        }
    }

    #[tokio::test]
    async fn what_reads_main_url_reads_it_back() {
        for main in [
            "postgresql://t@db.example.com/app?sslrootcert=/r",
            "postgresql://t@a:1,b:2/app?sslmode=disable&options=-c%20x%3D1",
            "postgresql://t@[::1]:6543,localhost:7/app?channel_binding=disable",
            "postgresql://t@db,/app?hostaddr=192.0.2.1,::1&sslmode=require",
            "host=/run/pg,/run/other port=1,2 user=t dbname=app",
        ] {
            let (before, after) = (connection(main), connection(&of_tenant(main).await));
            assert_eq!((after.user(), after.database()), ("app", "tenant_x"));
            assert_eq!(before.endpoints, after.endpoints, "{main}");
            assert_eq!((before.options, before.channel_binding), (after.options, after.channel_binding), "{main}");
            assert_eq!(before.tls, after.tls, "{main}");
        }
    }

    #[tokio::test]
    async fn a_password_is_there_when_asked_for_and_escaped() {
        let server = Server::new(connection("postgresql://t@localhost/app"), Tasks::new());
        let password = SecretString::from("p@ss/word%:");
        assert_eq!(
            url(&server.libpq("x y", "").await.unwrap(), "o'k", Some(&password)),
            "postgresql://o%27k:p%40ss%2Fword%25%3A@localhost:5432/x%20y?sslmode=prefer"
        );
    }
}
