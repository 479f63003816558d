//! `PgBouncer` in front of a test's server, in transaction mode: each transaction gets whichever connection is free.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::process::{Signal, run, signal, spawn, wait};
use super::server::{TestServer, free_port};
use super::until::until;

const SOON: Duration = Duration::from_secs(20);

/// A running pooler; ended when dropped or when this process ends.
#[derive(Debug)]
pub struct Pooler {
    address: SocketAddr,
    child: Child,
    log: PathBuf,
    // Its files go with it.
    _directory: tempfile::TempDir,
}

impl Pooler {
    /// Starts one that knows `users` with their passwords, and with `more` lines of settings.
    ///
    /// # Panics
    /// When there is no `pgbouncer`; `make test` installs it.
    pub async fn start(server: &TestServer, users: &[(&str, &str)], more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pooler-").tempdir_in(server.directory()).expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (address, log) = (SocketAddr::from(([127, 0, 0, 1], free_port())), path("pooler.log"));
        let quoted = |text: &str| text.replace('"', "\"\"");
        let lines = users.iter().map(|(user, password)| format!("\"{}\" \"{}\"\n", quoted(user), quoted(password)));
        fs::write(path("users"), lines.collect::<String>()).expect("write the users");
        let settings = format!(
            "[databases]\n* = host={host} port={to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {users}\nlogfile = {log}\npidfile = {pid}\npool_mode = transaction\n\
             client_tls_sslmode = require\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n\
             server_tls_sslmode = require\nmax_client_conn = 200\ndefault_pool_size = 20\n{more}\n",
            host = server.address().ip(),
            to = server.address().port(),
            port = address.port(),
            users = path("users").display(),
            log = log.display(),
            pid = path("pid").display(),
            certificate = server.directory().join("server.crt").display(),
            key = server.directory().join("server.key").display(),
        );
        fs::write(path("pooler.ini"), settings).expect("write the settings");
        server.own(directory.path());
        let mut command = server.program(&program());
        command.arg(path("pooler.ini")).stdout(Stdio::null()).stderr(Stdio::null());
        let pooler = Self { address, child: spawn(command), log, _directory: directory };
        until("the pooler listens", SOON, async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
        pooler
    }

    /// `url` with this pooler's address instead of the server's.
    #[must_use]
    pub fn url(&self, url: &str, server: SocketAddr) -> String {
        url.replace(&server.to_string(), &self.address.to_string())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        signal(&mut self.child, Signal::TERM);
        wait("the pooler", &mut self.child, SOON);
    }
}

fn program() -> String {
    let found =
        run(std::process::Command::new("sh").args(["-c", "PATH=\"$PATH:/usr/sbin:/sbin\" command -v pgbouncer"]));
    found.trim().to_owned()
}
