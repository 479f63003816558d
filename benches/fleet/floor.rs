//! The floor: what no program can do without that migrates a tenant over TLS, and what that is made of.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres_native_tls::{MakeTlsConnector, TlsConnector};
use tenantd::tasks::Tasks;
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls};

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Part, Results};
use crate::stage::{Stage, milliseconds};
use crate::support::database::TENANTD_PASSWORD;
use crate::support::server::TestServer;

/// A way into the tenants' databases: tenantd's role over TLS, verified in full, the certificates read once.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    config: Config,
    tls: MakeTlsConnector,
    tasks: Tasks,
}

impl Door {
    /// Into `server`, which is reached at `address`.
    pub(crate) fn new(server: &TestServer, address: SocketAddr) -> Self {
        let (_, tls) = server.verified("tenantd", TENANTD_PASSWORD, "postgres");
        let mut config = Config::new();
        config.host(address.ip().to_string()).port(address.port()).user("tenantd").password(TENANTD_PASSWORD);
        config.ssl_mode(SslMode::Require);
        Door { address, config, tls, tasks: Tasks::new() }
    }

    /// A connection to `database`.
    #[expect(clippy::disallowed_methods, reason = "the floor is what comes without tenantd's own code")]
    async fn enter(&self, database: &str) -> Client {
        let mut config = self.config.clone();
        let (client, connection) = config.dbname(database).connect(self.tls.clone()).await.expect("connect over TLS");
        self.tasks.spawn("connection of the floor", connection);
        client
    }

    /// Runs `sql` in `database` for each of `names`, which stands for `{name}` in it, in so many lanes that stay connected. Returns how long it took.
    pub(crate) async fn run_for_each(
        &self,
        database: &str,
        names: &Arc<Vec<String>>,
        sql: String,
        lanes: usize,
    ) -> Duration {
        let (next, sql) = (Arc::new(AtomicUsize::new(0)), Arc::new(sql));
        let began = Instant::now();
        let lanes = (0..lanes).map(|_| {
            let (door, database, names, next, sql) =
                (self.clone(), database.to_owned(), Arc::clone(names), Arc::clone(&next), Arc::clone(&sql));
            self.tasks.spawn("lane of the floor", async move {
                let client = door.enter(&database).await;
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    client.batch_execute(&sql.replace("{name}", name)).await.expect("run the same SQL");
                }
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.expect("a lane that ends well");
        }
        began.elapsed()
    }

    /// Runs `sql` in each of `databases`, in so many lanes that take the next when free. Returns how long it took.
    pub(crate) async fn run_in_each(&self, databases: &Arc<Vec<String>>, sql: String, lanes: usize) -> Duration {
        let (next, sql) = (Arc::new(AtomicUsize::new(0)), Arc::new(sql));
        let began = Instant::now();
        let lanes = (0..lanes).map(|_| {
            let (door, databases, next, sql) =
                (self.clone(), Arc::clone(databases), Arc::clone(&next), Arc::clone(&sql));
            self.tasks.spawn("lane of the floor", async move {
                while let Some(name) = databases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    door.enter(name).await.batch_execute(&sql).await.expect("run the same SQL");
                }
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.expect("a lane that ends well");
        }
        began.elapsed()
    }

    /// Runs `sql`, which is in the file `file`, in each of `databases` as a script does that loops over them: connect, look at what was
    /// applied, BEGIN, the file, its row in the history, COMMIT, each waiting for its answer. Returns how long it took.
    pub(crate) async fn run_one_by_one(&self, databases: &[String], file: &str, sql: &str) -> Duration {
        let began = Instant::now();
        for name in databases {
            let client = self.enter(name).await;
            let execute = async |sql: &str| client.batch_execute(sql).await.expect("run the same SQL");
            execute(HISTORY).await;
            execute("select file from public.history").await;
            execute("begin; set local role tenant_owner").await;
            execute(sql).await;
            execute(&format!("reset role; insert into public.history values ('{file}')")).await;
            execute("commit").await;
        }
        began.elapsed()
    }

    /// The round trips of one connection, in milliseconds.
    pub(crate) async fn round_trips(&self, database: &str) -> Samples {
        let client = self.enter(database).await;
        let mut samples = Samples::default();
        for _ in 0..50 {
            let began = Instant::now();
            client.batch_execute("").await.expect("a round trip");
            samples.add(milliseconds(began.elapsed()));
        }
        samples
    }
}

/// What a script that loops over tenants does with each, for `run_one_by_one`.
const HISTORY: &str = "create table if not exists public.history (file text primary key)";

/// Takes the time of what is inside: the TLS handshake.
struct Timed {
    inner: TlsConnector,
    took: Arc<Mutex<Duration>>,
}

impl TlsConnect<TcpStream> for Timed {
    type Stream = <TlsConnector as TlsConnect<TcpStream>>::Stream;
    type Error = <TlsConnector as TlsConnect<TcpStream>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move {
            let began = Instant::now();
            let stream = self.inner.connect(stream).await;
            *self.took.lock().unwrap_or_else(PoisonError::into_inner) = began.elapsed();
            stream
        })
    }
}

/// How long each part took, one after the other, as often as asked.
#[derive(Default)]
struct Parts(Vec<(String, Samples)>);

impl Parts {
    fn add(&mut self, name: &str, took: Duration) {
        let known = self.0.iter().position(|(known, _)| known == name);
        let index = known.unwrap_or_else(|| {
            self.0.push((name.to_owned(), Samples::default()));
            self.0.len() - 1
        });
        self.0[index].1.add(milliseconds(took));
    }

    fn results(&self) -> Results {
        let part = |(name, samples): &(String, Samples)| Part { name: name.clone(), took: samples.middle() };
        Results { parts: self.0.iter().map(part).collect(), ..Results::default() }
    }
}

const TABLE: &str = "create table note (id uuid primary key default gen_random_uuid(), message text not null)";
const CHANGE: &str = "alter table note add column added text; create index on note (added)";

/// What the floor is made of, in a database that was entered before: one connection at a time, so that nothing waits for anything else.
pub(crate) async fn measure(size: Size) -> Results {
    // tenantd's role comes in with SCRAM, the application's without a password: what is between them is the price of SCRAM.
    let server = TestServer::builder()
        .setting("fsync", "on")
        .setting("shared_buffers", "128MB")
        .host_rule("hostssl all app 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256")
        .start();
    let stage = Stage::on(&server).await;
    let mut parts = Parts::default();
    stage.database.tenantd().await.batch_execute("create database floor").await.expect("create a database");
    let (door, rounds) = (Door::new(&server, server.address()), size.pick(30, 200));
    for round in 0..=rounds {
        let mut taken = once(&door).await;
        taken.extend(other_ways(&door, server.directory()).await);
        // The first one warms the server's own caches up.
        for (name, took) in taken.into_iter().filter(|_| round > 0) {
            parts.add(name, took);
        }
    }
    parts.results()
}

/// One tenant's migration, part by part.
async fn once(door: &Door) -> Vec<(&'static str, Duration)> {
    let (mut taken, whole) = (Vec::new(), Instant::now());
    let (client, connecting) = connect(door, "tenantd").await;
    taken.extend(connecting);
    let mut then = Instant::now();
    let mut part = |name: &'static str| {
        let took = then.elapsed();
        then = Instant::now();
        (name, took)
    };
    let execute = async |sql: &str| client.batch_execute(sql).await.expect("run a statement");
    execute("select count(*) from pg_class where relname = 'note'").await;
    let first = part("first look at the catalogue");
    execute("begin").await;
    let begin = part("one round trip (begin)");
    execute(&format!("drop table if exists note; {TABLE}; {CHANGE}")).await;
    let change = part("DDL: a table, a column, an index");
    execute("commit").await;
    taken.extend([first, begin, change, part("commit, to disk")]);
    taken.push(("all of it", whole.elapsed()));
    taken
}

/// Connects as `role`, and tells the parts.
async fn connect(door: &Door, role: &str) -> (Client, Vec<(&'static str, Duration)>) {
    let mut config = door.config.clone();
    config.user(role).dbname("floor");
    let inner = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut door.tls.clone(), "127.0.0.1").expect("a connector");
    let took = Arc::new(Mutex::new(Duration::ZERO));
    let began = Instant::now();
    let stream = TcpStream::connect(door.address).await.expect("connect");
    stream.set_nodelay(true).expect("set an option");
    let tcp = began.elapsed();
    let timed = Timed { inner, took: Arc::clone(&took) };
    let (client, connection) = config.connect_raw(stream, timed).await.expect("log in");
    let whole = began.elapsed();
    door.tasks.spawn("connection of the floor", connection);
    let tls = *took.lock().unwrap_or_else(PoisonError::into_inner);
    let login = whole.saturating_sub(tcp + tls);
    (client, vec![("TCP", tcp), ("TLS handshake", tls), ("login: a backend's start, and SCRAM", login)])
}

/// What connecting costs in other ways.
#[expect(clippy::disallowed_methods, reason = "the floor is what comes without tenantd's own code")]
async fn other_ways(door: &Door, sockets: &Path) -> Vec<(&'static str, Duration)> {
    let (_client, parts) = connect(door, "app").await;
    let without_scram = parts.iter().map(|(_, took)| *took).sum();
    let mut config = Config::new();
    config.host_path(sockets).port(door.address.port()).user("app").dbname("floor");
    let began = Instant::now();
    let (_client, connection) = config.connect(NoTls).await.expect("connect through the socket");
    let socket = began.elapsed();
    Tasks::new().spawn("connection of the floor", connection);
    vec![
        ("instead, TLS and login without SCRAM", without_scram),
        ("instead, a unix socket without TLS and SCRAM", socket),
    ]
}
