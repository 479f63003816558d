//! Connecting: which TLS is taken and which refused, where the password comes from, which host is used.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tenantd::config::Connection;
use tenantd::config::connection::Parts;
use tenantd::error::{Error, Kind};
use tenantd::pg::{Server, Session};
use tenantd::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::certificates::{Authority, Validity, bundle};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::server::TestServer;

const APPLICATION: &str = "tenantd: test";

/// The server that `url` names, in an environment of nothing but `variables`, after `change`.
pub(crate) fn server(url: &str, variables: &[(&str, &str)], change: impl FnOnce(&mut Parts<'_>)) -> Server {
    let environment =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let mut parts = Parts {
        url: Some(url),
        environment: &environment,
        password_file: None,
        password_command: None,
        sslmode: None,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        connect_timeout: Duration::from_secs(20),
    };
    change(&mut parts);
    let connection = Connection::from_parts(&parts).unwrap_or_else(|error| panic!("{}", error.chain()));
    Server::new(connection, Tasks::new())
}

async fn connect(url: &str) -> Result<Session, Error> {
    server(url, &[], |_| ()).connect(None, APPLICATION).await
}

/// Why it did not connect.
async fn refused(url: &str) -> Error {
    let Err(error) = connect(url).await else { panic!("{url} was connected") };
    let said = format!("{} {}", error.chain(), error.advice().unwrap_or_default());
    assert!(!said.contains("hunter2") && !said.contains("swordfish"), "a password is shown: {said}");
    error
}

async fn ask(session: &Session, question: &str) -> String {
    session.query_one(question, &[]).await.expect(question).get(0)
}

async fn encrypted(session: &Session) -> bool {
    ask(session, "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()").await == "true"
}

fn url(address: SocketAddr, parameters: &str) -> String {
    format!("postgresql://tenantd:hunter2@{address}/postgres?{parameters}")
}

/// The parameter that names `root` as the authority to trust.
fn root_parameter(root: &Path) -> String {
    format!("sslrootcert={}", root.display())
}

/// Goal: what operators paste works. Method: ask the server what it sees.
#[tokio::test]
async fn verify_full_connects_and_both_sides_keep_alive() {
    let database = TestDatabase::new().await;
    let session = connect(&database.url()).await.expect("connect");
    assert!(encrypted(&session).await);
    assert_eq!(ask(&session, "select current_database()::text").await, database.name());
    for (setting, value) in [
        ("application_name", APPLICATION),
        ("tcp_keepalives_idle", "15"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "20000"),
    ] {
        assert_eq!(ask(&session, &format!("select current_setting('{setting}')")).await, value, "{setting}");
    }
    // Servers before 14 end no session for being idle.
    if ask(&session, "select (current_setting('server_version_num')::int >= 140000)::text").await == "true" {
        assert_eq!(ask(&session, "select current_setting('idle_session_timeout')").await, "0");
    }
    let address = database.server().address();
    let by_name = database.url().replace(&address.to_string(), &format!("localhost:{}", address.port()));
    assert!(encrypted(&connect(&by_name).await.expect("connect to localhost")).await);
    let by_both = format!("{by_name}&hostaddr=127.0.0.1&channel_binding=require&ssl_min_protocol_version=TLSv1.3");
    assert!(encrypted(&connect(&by_both).await.expect("a name for an address")).await);
    session.close().await;
    database.finish().await;
}

/// Goal: an authority we do not trust is refused wherever one is named. Method: name another one.
#[tokio::test]
async fn another_authority_is_refused() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let stranger = Authority::new(folder.path(), "stranger");
    let own = database.server().authority().root().display().to_string();
    let strange = database.url().replace(&own, &stranger.root().display().to_string());
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = refused(&strange.replace("verify-full", mode)).await;
        assert_eq!(error.kind(), Kind::Tls, "{mode}: {}", error.chain());
        assert!(error.chain().contains("certificate"), "{}", error.chain());
        assert!(error.advice().unwrap_or_default().contains("main.sslrootcert"), "{:?}", error.advice());
    }
    // The system's authorities do not know it either.
    let system = database.url().replace(&own, "system");
    assert_eq!(refused(&system).await.kind(), Kind::Tls);
    // Without any root file require means encrypted towards anybody, as in libpq.
    let (unchecked, _) =
        database.url().split_once('?').map(|(url, rest)| (url.to_owned(), rest.to_owned())).expect("?");
    assert!(encrypted(&connect(&format!("{unchecked}?sslmode=require")).await.expect("unchecked")).await);
    // libpq's own file in the home counts like a named one.
    fs::create_dir(folder.path().join(".postgresql")).expect("a directory");
    fs::copy(stranger.root(), folder.path().join(".postgresql/root.crt")).expect("copy");
    let home = [("HOME", folder.path().to_str().expect("UTF-8"))];
    let by_home = server(&format!("{unchecked}?sslmode=require"), &home, |_| ()).connect(None, APPLICATION).await;
    assert_eq!(by_home.expect_err("refused").kind(), Kind::Tls);
    database.finish().await;
}

/// Goal: a certificate for another name, or an old one, is refused. Method: servers that have such.
#[tokio::test]
async fn a_wrong_name_and_an_expired_certificate_are_refused() {
    let wrong = TestServer::builder().certificate(&["DNS:other.example"], Validity::Valid).start();
    let root = root_parameter(wrong.authority().root());
    let error = refused(&url(wrong.address(), &format!("sslmode=verify-full&{root}"))).await;
    assert_eq!(error.kind(), Kind::Tls);
    assert!(error.chain().contains("mismatch"), "{}", error.chain());
    assert!(error.advice().unwrap_or_default().contains("host name"), "{:?}", error.advice());
    // verify-ca does not look at the name: it is the password that fails.
    let error = refused(&url(wrong.address(), &format!("sslmode=verify-ca&{root}"))).await;
    assert_eq!(error.kind(), Kind::Login, "{}", error.chain());

    let old = TestServer::builder().certificate(&["IP:127.0.0.1"], Validity::Expired).start();
    let root = root_parameter(old.authority().root());
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = refused(&url(old.address(), &format!("sslmode={mode}&{root}"))).await;
        assert_eq!(error.kind(), Kind::Tls, "{}", error.chain());
        assert!(error.chain().contains("expired"), "{}", error.chain());
    }
}

/// Goal: TLS never gives way by itself. Method: a server without it.
#[tokio::test]
async fn a_server_without_tls_is_refused_unless_it_is_local_and_nothing_was_asked() {
    let server = TestServer::builder().without_tls().start();
    let database = TestDatabase::on(&server).await;
    let (base, rest) = database.url().split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("parameters");
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = refused(&format!("{base}?{}", rest.replace("verify-full", mode))).await;
        assert_eq!(error.kind(), Kind::Tls, "{mode}: {}", error.chain());
        assert!(error.advice().unwrap_or_default().contains("ssl = on"), "{:?}", error.advice());
    }
    for mode in ["", "?sslmode=prefer", "?sslmode=allow", "?sslmode=disable"] {
        assert!(!encrypted(&connect(&format!("{base}{mode}")).await.expect("a local host")).await, "{mode}");
    }
    database.finish().await;
}

/// Goal: allow and prefer reach a local server that wants the other way. Method: servers that take one way only.
#[tokio::test]
async fn allow_and_prefer_try_the_other_way() {
    let database = TestDatabase::new().await;
    let (base, _) = database.url().split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("parameters");
    for mode in ["", "?sslmode=prefer", "?sslmode=allow"] {
        assert!(encrypted(&connect(&format!("{base}{mode}")).await.expect("by TLS")).await, "{mode}");
    }
    assert_eq!(refused(&format!("{base}?sslmode=disable")).await.code(), Some("28000"));
    database.finish().await;

    let server = TestServer::builder().host_rule("hostnossl all all 127.0.0.1/32 scram-sha-256").start();
    let database = TestDatabase::on(&server).await;
    let (base, rest) = database.url().split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("parameters");
    for mode in ["", "?sslmode=prefer", "?sslmode=allow"] {
        assert!(!encrypted(&connect(&format!("{base}{mode}")).await.expect("in the clear")).await, "{mode}");
    }
    assert_eq!(refused(&format!("{base}?{rest}")).await.code(), Some("28000"));
    database.finish().await;
}

/// Goal: nothing but the question for TLS reaches a server that has none. Method: one that answers N and keeps what it hears.
#[tokio::test]
async fn a_server_that_says_no_hears_no_start_up_message() {
    let folder = tempfile::tempdir().expect("a directory");
    let root = root_parameter(Authority::new(folder.path(), "authority").root());
    for parameters in [
        "sslmode=require".to_owned(),
        format!("sslmode=require&{root}"),
        format!("sslmode=verify-ca&{root}"),
        format!("sslmode=verify-full&{root}"),
        "sslrootcert=system".to_owned(),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let heard = Tasks::new().spawn("a server without TLS", async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut heard = vec![0; 8];
            socket.read_exact(&mut heard).await.expect("a question");
            socket.write_all(b"N").await.expect("an answer");
            socket.read_to_end(&mut heard).await.expect("the end");
            // A second try would come here, and the listener is gone.
            heard
        });
        let error = refused(&url(address, &parameters)).await;
        assert_eq!(error.kind(), Kind::Tls, "{parameters}: {}", error.chain());
        let question = [0, 0, 0, 8, 4, 210, 22, 47];
        assert_eq!(heard.await.expect("the server's task"), question, "{parameters}");
    }
}

/// Goal: one deadline covers the whole connect. Method: listeners that accept, answer S or not, and then say nothing.
#[tokio::test]
async fn a_silent_server_is_given_up_and_leaves_time_for_the_next() {
    let database = TestDatabase::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let tasks = Tasks::new();
    tasks.spawn("a silent server", async move {
        let mut held = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            // Every other one stops in the middle of TLS.
            if held.len() % 2 == 1 {
                socket.write_all(b"S").await.expect("an answer");
            }
            held.push(socket);
        }
    });
    let limit = Duration::from_millis(600);
    for _ in 0..2 {
        let silent = server(&url(address, "sslmode=require"), &[], |parts| parts.connect_timeout = limit);
        let start = Instant::now();
        let error = silent.connect(None, APPLICATION).await.expect_err("no session");
        assert_eq!(error.kind(), Kind::Unreachable, "{}", error.chain());
        assert!(error.chain().contains("no answer within"), "{}", error.chain());
        assert!(start.elapsed() >= limit && start.elapsed() < limit * 5, "{:?}", start.elapsed());
    }
    let both = database.url().replace('@', &format!("@{address},"));
    let both = server(&both, &[], |parts| parts.connect_timeout = Duration::from_secs(6));
    assert!(encrypted(&both.connect(None, APPLICATION).await.expect("the second host")).await);
    tasks.cancelled().cancel();
    database.finish().await;
}

/// Goal: a bundle counts whole, and a new authority is trusted without a restart. Method: change the file between connects.
#[tokio::test]
async fn the_root_file_is_read_whole_and_anew() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let (first, second) = (Authority::new(folder.path(), "first"), Authority::new(folder.path(), "second"));
    let own = database.server().authority().root();
    let file = folder.path().join("bundle.pem");
    let server = server(&database.url().replace(&own.display().to_string(), &file.display().to_string()), &[], |_| ());
    let mut outcomes = Vec::new();
    let bundles: [&[&Path]; 4] = [&[first.root()], &[first.root(), second.root(), own], &[second.root()], &[own]];
    for roots in bundles {
        bundle(&file, roots);
        outcomes.push(server.connect(None, APPLICATION).await.map(drop).map_err(|error| error.kind()));
    }
    assert_eq!(outcomes, [Err(Kind::Tls), Ok(()), Err(Kind::Tls), Ok(())]);
    fs::write(&file, "being written").expect("write");
    let error = server.connect(None, APPLICATION).await.expect_err("no session");
    assert!(error.chain().contains("bundle.pem: it holds no certificate"), "{}", error.chain());
    database.finish().await;
}

/// Goal: passwords are asked for anew at each connect, the explicit keys first. Method: change them between connects.
#[tokio::test]
async fn passwords_come_from_command_file_and_passfile() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("password");
    let address = database.server().address();
    let (_, rest) = database.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a login");
    let (wrong, bare) = (format!("postgresql://tenantd:hunter2@{rest}"), format!("postgresql://tenantd@{rest}"));
    let error = refused(&wrong).await;
    assert_eq!((error.kind(), error.code()), (Kind::Login, Some("28P01")));
    let error = refused(&bare).await;
    assert_eq!(error.kind(), Kind::Login);
    assert!(error.chain().contains("asks for a password, and there is none"), "{}", error.chain());

    let by_file = server(&wrong, &[], |parts| parts.password_file = Some(file.clone()));
    let by_command = server(&wrong, &[], |parts| parts.password_command = Some(format!("cat '{}'", file.display())));
    for server in [by_file, by_command] {
        fs::write(&file, "stale\n").expect("write");
        assert_eq!(server.connect(None, APPLICATION).await.err().map(|error| error.kind()), Some(Kind::Login));
        fs::write(&file, format!("{TENANTD_PASSWORD}\n")).expect("write");
        server.connect(None, APPLICATION).await.expect("the new password");
        fs::remove_file(&file).expect("remove");
        assert_eq!(server.connect(None, APPLICATION).await.err().map(|error| error.kind()), Some(Kind::Login));
    }
    let slow = server(&wrong, &[], |parts| {
        parts.password_command = Some("sleep 60".to_owned());
        parts.connect_timeout = Duration::from_millis(300);
    });
    let error = slow.connect(None, APPLICATION).await.expect_err("no session");
    assert!(error.kind() == Kind::Login && error.chain().contains("no password within"), "{}", error.chain());

    let passfile = folder.path().join(".pgpass");
    let escaped = TENANTD_PASSWORD.replace(':', "\\:");
    fs::write(&passfile, format!("# ours\n127.0.0.1:{}:*:tenantd:{escaped}\n", address.port())).expect("write");
    let home = [("HOME", folder.path().to_str().expect("UTF-8"))];
    let by_home = server(&bare, &home, |_| ());
    for (mode, connects) in [(0o644, false), (0o600, true)] {
        fs::set_permissions(&passfile, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(by_home.connect(None, APPLICATION).await.is_ok(), connects, "{mode:o}");
    }
    by_home.connect(Some("postgres"), APPLICATION).await.expect("another database by the star");
    database.finish().await;
}

/// Goal: a certificate logs in. Method: a server that takes nothing else.
#[tokio::test]
async fn a_client_certificate_logs_in() {
    let test = TestServer::builder().host_rule("hostssl all all 127.0.0.1/32 cert").start();
    let database = TestDatabase::on(&test).await;
    let shown = test.authority().client("tenantd");
    let by = |certificate: &Path, key: &Path| {
        server(&database.url(), &[], |parts| {
            parts.sslcert = Some(certificate.to_owned());
            parts.sslkey = Some(key.to_owned());
        })
    };
    let session = by(&shown.certificate, &shown.key).connect(None, APPLICATION).await.expect("by certificate");
    assert_eq!(ask(&session, "select client_dn from pg_stat_ssl where pid = pg_backend_pid()").await, "/CN=tenantd");
    drop(session);

    let without = refused(&database.url()).await;
    assert_eq!(without.kind(), Kind::Login, "{}", without.chain());
    let folder = tempfile::tempdir().expect("a directory");
    let foreign = Authority::new(folder.path(), "foreign").client("tenantd");
    let error = by(&foreign.certificate, &foreign.key).connect(None, APPLICATION).await.expect_err("refused");
    // The server closes at once, so that its reason does not always arrive.
    assert!(matches!(error.kind(), Kind::Tls | Kind::Unreachable), "{}", error.chain());
    assert!(error.advice().unwrap_or_default().contains("main.sslcert"), "{:?}", error.advice());
    let error = by(&shown.certificate, &foreign.key).connect(None, APPLICATION).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::Tls, "{}", error.chain());
    assert!(error.advice().unwrap_or_default().contains("belong together"), "{:?}", error.advice());
    database.finish().await;
}

/// Goal: of several hosts the first that takes writes is used. Method: a dead one, one that takes none, a good one.
#[tokio::test]
async fn the_first_host_that_takes_writes_is_used() {
    let database = TestDatabase::new().await;
    let dead = dead_address().await;
    let session = connect(&database.url().replace('@', &format!("@{dead},"))).await.expect("the second host");
    assert!(encrypted(&session).await);
    session.close().await;
    let error = refused(&url(dead, "sslmode=require")).await;
    assert_eq!(error.kind(), Kind::Unreachable, "{}", error.chain());

    let frozen = TestServer::builder().setting("default_transaction_read_only", "on").start();
    let admin = frozen.superuser("postgres").await;
    for statement in ["set default_transaction_read_only = off", "create role tenantd login password 'hunter2'"] {
        admin.batch_execute(statement).await.expect(statement);
    }
    let to_frozen = url(frozen.address(), &root_parameter(frozen.authority().root()));
    assert_eq!(refused(&to_frozen).await.kind(), Kind::ReadOnly);
    let error = refused(&to_frozen.replace('@', &format!("@{dead},"))).await;
    assert_eq!(error.kind(), Kind::ReadOnly, "{}", error.chain());
    assert!(error.chain().contains(&dead.to_string()), "every host is named: {}", error.chain());
    connect(&format!("{to_frozen}&target_session_attrs=any")).await.expect("any will do");
    // Being made read-only by a setting is the matter of that tenant alone; not where it is the main database, in which schemas of tenants may be.
    let of_frozen = server(&to_frozen, &[], |_| ());
    of_frozen.connect(Some("template1"), APPLICATION).await.expect("a tenant");
    let error = of_frozen.connect(Some("postgres"), APPLICATION).await.expect_err("the main database by its name");
    assert_eq!(error.kind(), Kind::ReadOnly, "{}", error.chain());
    database.finish().await;
}

/// Goal: what the server or the network says keeps its meaning. Method: ask for what is not there.
#[tokio::test]
async fn failures_keep_their_kind() {
    let database = TestDatabase::new().await;
    let server = server(&database.url(), &[], |_| ());
    let error = server.connect(Some("not_there"), APPLICATION).await.expect_err("no such database");
    assert_eq!(error.code(), Some("3D000"));
    assert!(error.chain().contains("/not_there: "), "{}", error.chain());

    let error = refused("postgresql://tenantd:hunter2@db.invalid/app").await;
    assert_eq!(error.kind(), Kind::Unreachable, "{}", error.chain());

    let role = format!("limited_{}", database.name());
    let admin = database.superuser().await;
    let create = format!("create role {role} login password '{TENANTD_PASSWORD}' connection limit 0");
    admin.batch_execute(&create).await.expect("make the role");
    let error = refused(&database.url().replace("//tenantd:", &format!("//{role}:"))).await;
    assert_eq!((error.kind(), error.code()), (Kind::TooManyConnections, Some("53300")));
    admin.batch_execute(&format!("drop role {role}")).await.expect("drop the role");
    drop(admin);
    database.finish().await;
}

/// Goal: a socket is reached as libpq would, without TLS whatever is said of it. Method: the server's own directory.
#[tokio::test]
async fn a_socket_has_no_tls() {
    let test = TestServer::shared();
    let folder = test.directory().display().to_string();
    for rest in ["", " sslmode=verify-full", " sslmode=prefer"] {
        let written = format!("host={folder} port={} user=postgres dbname=postgres{rest}", test.address().port());
        let session = connect(&written).await.expect("through the socket");
        assert!(!encrypted(&session).await);
    }
}

/// An address where nobody listens.
async fn dead_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("its address")
}
