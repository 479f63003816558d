//! A Postgres server of our own: in a temporary directory, on a free port of 127.0.0.1, with TLS.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use native_tls::TlsConnector;
use postgres_native_tls::MakeTlsConnector;
use tenantd::tasks::Tasks;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use super::certificates::{Authority, Certificate, Validity};
use super::directory::Directory;
use super::disk;
use super::place::database_user;
pub use super::place::{free_port, programs};
use super::process::{Signal, mortal, run, signal, spawn, wait};
use super::until::INTERVAL;

/// How long a server may take to start or stop; generous, since a busy machine is no failure.
const DEADLINE: Duration = Duration::from_mins(1);

/// TCP only with TLS and a password; the superuser comes in through the socket in the server's own directory. Proxies, which come from an address
/// of their own, need no TLS, so that they can read messages.
const HOST_RULE: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.2/32 scram-sha-256";

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, everything is written.
    Fast,
    /// Sessions are ended, nothing is written: recovery at the next start.
    Immediate,
    /// SIGKILL to the postmaster, as when memory runs out.
    Kill,
}

/// A server that ends, and whose directory goes, when it is dropped or this process ends, however that happens.
#[derive(Debug)]
pub struct TestServer {
    pub(super) programs: PathBuf,
    /// User to run as, when this process is root: initdb and postgres refuse root.
    pub(super) user: Option<String>,
    pub(super) port: u16,
    pub(super) authority: Authority,
    /// What clients of tests connect with, made once: that takes longer than a login.
    pub(super) connector: OnceLock<TlsConnector>,
    pub(super) process: Mutex<Option<Child>>,
    /// What `database` makes once for the whole server.
    pub(super) prepared: OnceCell<()>,
    // Dropped last: its directory is the server's.
    pub(super) directory: Directory,
}

/// What a special server has that the shared one has not.
#[derive(Debug)]
pub struct Builder {
    tls: bool,
    names: Vec<String>,
    validity: Validity,
    host_rule: String,
    settings: Vec<(String, String)>,
    /// Megabytes of a file system of its own for the data.
    disk: Option<u32>,
}

impl Builder {
    /// TLS is off and passwords are taken without it.
    #[must_use]
    pub fn without_tls(mut self) -> Self {
        self.tls = false;
        self.host_rule = "host all all 127.0.0.1/32 scram-sha-256".into();
        self
    }

    /// The certificate is for `names` (`IP:…`, `DNS:…`) and of this validity; otherwise for 127.0.0.1 and localhost, valid.
    #[must_use]
    pub fn certificate(mut self, names: &[&str], validity: Validity) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self.validity = validity;
        self
    }

    /// The line of `pg_hba.conf` for TCP; certificates of clients are checked against the server's own authority.
    #[must_use]
    pub fn host_rule(mut self, rule: &str) -> Self {
        self.host_rule = rule.into();
        self
    }

    /// A setting of `postgresql.conf`; a later one of the same name wins, also over the built-in ones.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Its data, the log of writes apart, is on a file system of its own of so many megabytes.
    #[must_use]
    pub fn disk(mut self, megabytes: u32) -> Self {
        self.disk = Some(megabytes);
        self
    }

    /// Makes the server and starts it.
    ///
    /// # Panics
    /// When no server's programs are found, or it does not start; the message has the server's log.
    #[must_use]
    pub fn start(self) -> Arc<TestServer> {
        let user = rustix::process::geteuid().is_root().then(database_user);
        let directory = Directory::make();
        let path = directory.path();
        let authority = Authority::new(path, "authority");
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let server = authority.server("server", &names, self.validity);
        let made = TestServer {
            programs: programs(),
            user,
            port: free_port(),
            process: Mutex::new(None),
            prepared: OnceCell::new(),
            connector: OnceLock::new(),
            authority,
            directory,
        };
        if let Some(megabytes) = self.disk {
            disk::mount(&made.data(), megabytes);
        }
        made.own(made.directory.path());
        made.make_cluster();
        made.configure(&self, &server);
        made.own(made.directory.path());
        made.start();
        Arc::new(made)
    }
}

impl TestServer {
    /// The server that all tests of this process share; without fsync, with prepared transactions.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Option<Arc<TestServer>>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(shared.get_or_insert_with(|| Self::builder().start()))
    }

    /// A server for one test alone.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            tls: true,
            names: vec!["IP:127.0.0.1".into(), "DNS:localhost".into()],
            validity: Validity::Valid,
            host_rule: HOST_RULE.into(),
            settings: Vec::new(),
            disk: None,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The authority that signed the server's certificate, to sign clients' ones.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A directory that goes with the server.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The server's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Starts it, and returns when it accepts connections.
    ///
    /// # Panics
    /// When it runs already, or does not start.
    pub fn start(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "the server runs already");
        let start = Instant::now();
        while process.is_none() {
            *process = self.try_start(start);
        }
    }

    /// Stops it, and returns when it has ended; does nothing to a stopped one.
    pub fn stop(&self, how: Stop) {
        let Some(mut child) = self.process().take() else { return };
        let kind = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
            Stop::Kill => Signal::KILL,
        };
        signal(&mut child, kind);
        wait("the server", &mut child, DEADLINE);
    }

    /// [`Self::stop`] and [`Self::start`], on the same port.
    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.start();
    }

    /// A superuser's connection to `database`, through the socket.
    pub async fn superuser(&self, database: &str) -> Client {
        let mut config = Config::new();
        config.host_path(self.directory.path()).port(self.port).user("postgres").dbname(database);
        connect(config, None).await.expect("connect through the socket")
    }

    /// A connection over TLS, verified in full.
    pub async fn client(&self, role: &str, password: &str, database: &str) -> Client {
        self.try_client(role, password, database).await.expect("connect over TLS")
    }

    /// The same, or why the server refused it.
    ///
    /// # Errors
    /// What the server or the driver said.
    pub async fn try_client(
        &self,
        role: &str,
        password: &str,
        database: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let (config, tls) = self.verified(role, password, database);
        connect(config, Some(tls)).await
    }

    /// What a connection over TLS is made with, for whoever makes one by itself.
    #[must_use]
    pub fn verified(&self, role: &str, password: &str, database: &str) -> (Config, MakeTlsConnector) {
        let connector = self.connector.get_or_init(|| {
            let root = fs::read(self.authority.root()).expect("read the root");
            let root = native_tls::Certificate::from_pem(&root).expect("a certificate");
            let connector = TlsConnector::builder().disable_built_in_roots(true).add_root_certificate(root).build();
            connector.expect("a connector")
        });
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(role).password(password).dbname(database);
        config.ssl_mode(tokio_postgres::config::SslMode::Require);
        // By which tenantd's code knows that no pooler is in between.
        config.options("-c tenantd.session=on");
        (config, MakeTlsConnector::new(connector.clone()))
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// One of the server's programs, as the server's user.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        // QUIT, not KILL: the postmaster takes its children and its shared memory with it.
        let mut command = mortal("QUIT", self.user.as_deref(), self.programs.join(name));
        // Readable for the server's user, unlike the directory this process may stand in.
        command.current_dir(self.directory.path()).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.stdin(Stdio::null());
        command
    }

    pub(super) fn own(&self, path: &Path) {
        if let Some(user) = &self.user {
            run(Command::new("chown").arg("-R").arg(format!("{user}:")).arg(path));
        }
    }

    fn make_cluster(&self) {
        let mut command = self.program("initdb");
        command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--waldir"]);
        run(command.arg(self.directory.path().join("wal")).arg("--pgdata").arg(self.data()));
    }

    fn configure(&self, builder: &Builder, certificate: &Certificate) {
        let path = |path: &Path| format!("'{}'", path.display());
        let mut settings: Vec<(&str, String)> = vec![
            ("listen_addresses", "'127.0.0.1'".into()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", path(self.directory.path())),
            ("max_connections", "200".into()),
            ("max_prepared_transactions", "20".into()),
            ("shared_buffers", "'64MB'".into()),
            ("max_wal_size", "'512MB'".into()),
            ("fsync", "off".into()),
            ("password_encryption", "'scram-sha-256'".into()),
            ("log_line_prefix", "'%m [%p] %q%a@%d '".into()),
            ("ssl", if builder.tls { "on" } else { "off" }.into()),
        ];
        if builder.tls {
            settings.push(("ssl_cert_file", path(&certificate.certificate)));
            settings.push(("ssl_key_file", path(&certificate.key)));
            settings.push(("ssl_ca_file", path(self.authority.root())));
        }
        settings.extend(builder.settings.iter().map(|(name, value)| (name.as_str(), format!("'{value}'"))));
        let mut file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).expect("open it");
        for (name, value) in settings {
            writeln!(file, "{name} = {value}").expect("write postgresql.conf");
        }
        let rules = format!("local all,replication all trust\n{}\n", builder.host_rule);
        fs::write(self.data().join("pg_hba.conf"), rules).expect("write pg_hba.conf");
    }

    /// One try; `None` where another may succeed: after a SIGKILL the old backends hold the shared memory for a moment.
    fn try_start(&self, start: Instant) -> Option<Child> {
        let before = self.log().len();
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("open the server's log");
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let mut child = spawn(command);
        loop {
            if let Some(status) = child.try_wait().expect("ask for the server's state") {
                let said = self.log().split_off(before);
                let again = said.contains("pre-existing shared memory") || said.contains("lock file");
                assert!(again && start.elapsed() < DEADLINE, "the server does not start: {status}\n{said}");
                std::thread::sleep(INTERVAL);
                return None;
            }
            if self.accepts(child.id()) {
                return Some(child);
            }
            assert!(start.elapsed() < DEADLINE, "the server does not accept connections\n{}", self.log());
            std::thread::sleep(INTERVAL);
        }
    }

    /// Whether the postmaster has written that it accepts connections; `pg_ctl` looks at the same lines.
    fn accepts(&self, process: u32) -> bool {
        let state = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = state.lines().map(str::trim).collect();
        lines.first() == Some(&process.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests connect by themselves, to see the server from outside")]
async fn connect(mut config: Config, tls: Option<MakeTlsConnector>) -> Result<Client, tokio_postgres::Error> {
    config.application_name("test").connect_timeout(DEADLINE);
    let client = if let Some(tls) = tls {
        let (client, connection) = config.connect(tls).await?;
        Tasks::new().spawn("connection of a test", connection);
        client
    } else {
        let (client, connection) = config.connect(NoTls).await?;
        Tasks::new().spawn("connection of a test", connection);
        client
    };
    Ok(client)
}
