//! The support itself: what it promises would otherwise fail unseen, as tests that cannot fail.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use tenantd::config::Isolation;
use tenantd::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::audit::{Finding, audit};
use crate::support::certificates::{Authority, Validity, bundle};
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::process::{self, Signal, spawn};
use crate::support::proxy::{FROM, Mode, Proxy, Side};
use crate::support::server::{Stop, TestServer};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(20);

/// Goal: the roles have what DESIGN section 10 says and no more. Method: each tries what it may not.
#[tokio::test]
async fn roles_have_no_right_more() {
    let database = TestDatabase::new().await;
    let key = database.sign_up("one@example.org").await;
    let tenantd = database.tenantd().await;
    let seen: String = tenantd.query_one("select id::text from public.users", &[]).await.expect("may see ids").get(0);
    assert_eq!(seen, key);
    tenantd.batch_execute("create table tenantd.probe (id int)").await.expect("owns its schema");
    for refused in ["select email from public.users", "insert into public.users (email) values ('x')", "create role x"]
    {
        let error = tenantd.batch_execute(refused).await.expect_err(refused);
        assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("42501"), "{refused}");
    }
    let app = database.app().await;
    app.batch_execute("select * from tenantd.probe").await.expect_err("app has no right in the schema");
    drop((tenantd, app));
    database.finish().await;
}

/// Goal: a password is never sent over TCP in the clear. Method: ask for a connection without TLS.
#[tokio::test]
async fn the_server_refuses_tcp_without_tls() {
    let server = TestServer::shared();
    let mut socket = TcpStream::connect(server.address()).await.expect("it listens");
    // Length, protocol 3.0, one parameter, the end.
    socket.write_all(b"\0\0\0\x16\0\x03\0\0user\0tenantd\0\0").await.expect("send a start-up message");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // Servers before 14 say it in the second way.
    let refused = answer.contains("no encryption") || answer.contains("SSL off");
    assert!(answer.starts_with('E') && refused, "{answer}");
}

/// Goal: a special server is what was asked for, and survives each way to stop it. Method: write, stop, start, read.
#[tokio::test]
async fn special_servers_restart() {
    let server =
        TestServer::builder().without_tls().setting("max_prepared_transactions", "0").setting("fsync", "on").start();
    let select = "select concat_ws(' ', current_setting('ssl'), current_setting('max_prepared_transactions'))";
    let settings: String = server.superuser("postgres").await.query_one(select, &[]).await.expect("ask").get(0);
    assert_eq!(settings, "off 0");
    server.superuser("postgres").await.batch_execute("create table kept (id int)").await.expect("create a table");
    for (count, how) in (1_i64..).zip([Stop::Fast, Stop::Immediate, Stop::Kill]) {
        server.superuser("postgres").await.batch_execute("insert into kept values (1)").await.expect("insert");
        server.restart(how);
        let client = server.superuser("postgres").await;
        let rows: i64 = client.query_one("select count(*) from kept", &[]).await.expect("count").get(0);
        assert_eq!(rows, count, "after {how:?}");
    }
    let directory = server.directory().to_owned();
    assert!(directory.exists());
    drop(server);
    assert!(!directory.exists(), "the directory goes with the server");
}

/// Goal: nothing stays when a test program dies. Method: a second one of these starts a server and is killed.
#[tokio::test]
async fn a_killed_test_program_leaves_nothing() {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "harness::hold_a_server", "--ignored", "--nocapture"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = spawn(command);
    let mut output = tokio::process::ChildStdout::from_std(child.stdout.take().expect("a pipe")).expect("its output");
    let (mut said, mut buffer) = (String::new(), [0; 256]);
    while !said.contains("#\n") {
        let length = output.read(&mut buffer).await.expect("read");
        assert!(length > 0, "it ended: {said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let line = said.lines().find_map(|line| line.split_once('#')).expect("a line for us").1;
    let (address, directory) = line.trim_end_matches('#').split_once(' ').expect("two words");
    assert!(Path::new(directory).exists() && TcpStream::connect(address).await.is_ok(), "{line}");
    process::signal(&mut child, Signal::KILL);
    process::wait("the second test program", &mut child, SOON);
    until("the server's end", SOON, async || TcpStream::connect(address).await.is_err()).await;
    until("the end of its directory", SOON, async || !Path::new(directory).exists()).await;
}

#[test]
#[ignore = "run and killed by a_killed_test_program_leaves_nothing"]
fn hold_a_server() {
    let server = TestServer::builder().start();
    println!("#{} {}#", server.address(), server.directory().display());
    loop {
        std::thread::park();
    }
}

/// Goal: certificates are good or bad as asked. Method: the openssl command judges them.
#[test]
fn certificates_are_what_was_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "theirs"));
    let both = directory.path().join("both.crt");
    bundle(&both, &[theirs.root(), ours.root()]);
    let good = ours.server("good", &["IP:127.0.0.1", "DNS:localhost"], Validity::Valid);
    let expired = ours.server("expired", &["IP:127.0.0.1"], Validity::Expired);
    let client = ours.client("tenantd");
    let verdict = |root: &Path, purpose: &str, certificate: &Path| {
        let mut command = Command::new("openssl");
        command.args(["verify", "-purpose", purpose, "-verify_ip", "127.0.0.1", "-CAfile"]).arg(root).arg(certificate);
        if purpose == "sslclient" {
            command = Command::new("openssl");
            command.args(["verify", "-purpose", purpose, "-CAfile"]).arg(root).arg(certificate);
        }
        let output = command.output().expect("run openssl");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(verdict(ours.root(), "sslserver", &good.certificate).contains("OK"));
    assert!(verdict(&both, "sslserver", &good.certificate).contains("OK"));
    assert!(verdict(ours.root(), "sslclient", &client.certificate).contains("OK"));
    assert!(verdict(theirs.root(), "sslserver", &good.certificate).contains("unable to get local issuer"));
    assert!(verdict(ours.root(), "sslserver", &expired.certificate).contains("expired"));
    assert!(good.key.exists() && client.key.exists());
}

/// Goal: no finding of the audit is blind. Method: a registry in outline, and one of each thing.
#[tokio::test]
async fn the_audit_finds_each_thing() {
    let database = TestDatabase::new().await;
    database.sign_up("nobody-recorded@example.org").await;
    let client = database.superuser().await;
    assert!(
        audit(&client, &database.place(&client).await, database.prefix(), &[Finding::UserWithoutTenant])
            .await
            .is_empty(),
        "no registry: no findings"
    );
    let (one, two) = (format!("{}one", database.prefix()), format!("{}two", database.prefix()));
    let registry = "create table tenantd.tenant (key text, name text, state text, leased_until timestamptz);
                    create table tenantd.spare (name text, made_at timestamptz);
                    create table tenantd.signup (key text);
                    create table tenantd.template (name text, completed_at timestamptz);
                    create table tenantd.dropped (name text);
                    insert into tenantd.tenant values ('gone', 'no_such_database', 'ready', now() - interval '1 s');";
    client.batch_execute(registry).await.expect("make a registry");
    for statement in [
        format!("create database {one}"),
        format!("create database {two}"),
        format!("grant connect on database {one} to public"),
        format!("comment on database {one} is 'same'"),
        format!("comment on database {two} is 'same'"),
        format!("insert into tenantd.spare values ('{one}', now())"),
        "select pg_advisory_lock(1)".into(),
        "set application_name = 'tenantd:test'".into(),
    ] {
        client.batch_execute(&database.meant(&statement)).await.expect(&statement);
    }
    let by_schema = database.isolation() == Isolation::Schema;
    let limit = |limit: i32| format!("update pg_database set datconnlimit = {limit} where datname = '{two}'");
    client.batch_execute(&limit(-2)).await.expect("a database that is not whole");
    let found = audit(&client, &database.place(&client).await, database.prefix(), &[]).await;
    // What only databases can be.
    let other = [Finding::InvalidDatabase, Finding::OpenSpare];
    for finding in Finding::ALL.into_iter().filter(|finding| !by_schema || !other.contains(finding)) {
        assert!(found.iter().any(|line| line.starts_with(&format!("{finding:?}: "))), "{finding:?} not in {found:#?}");
    }
    client.batch_execute(&format!("{}; drop table tenantd.tenant", limit(-1))).await.expect("repair");
    drop(client);
    database.allow(Finding::DuplicateMarker).allow(Finding::OpenToPublic).finish().await;
}

/// Goal: the log of a child is read and judged. Method: a shell that says what a daemon may say.
#[tokio::test]
async fn a_daemon_is_watched() {
    let directory = tempfile::tempdir().expect("a directory");
    let shell = Program::other(Path::new("/bin/sh"), directory.path()).setting("signup.poll", "2s");
    let output = shell.run(&["-c", "echo $TENANTD_SIGNUP__POLL; pwd >&2; exit 4"]).await;
    assert_eq!((output.code(), output.stdout.as_str()), (4, "2s"));
    assert_eq!(output.stderr, directory.path().to_string_lossy());

    let warns = r#"trap 'echo "{\"level\":\"WARN\",\"n\":2}" >&2; exit 3' TERM; echo '{"level":"INFO","n":1}' >&2; while :; do sleep 0.01; done"#;
    let mut daemon = shell.start_with(&["-c", warns]).allow("\"n\":2");
    assert_eq!(daemon.wait_for_line("\"n\"", SOON).await, r#"{"level":"INFO","n":1}"#);
    assert!(daemon.id() > 1 && daemon.stdout().is_empty());
    daemon.freeze();
    daemon.signal(Signal::TERM);
    daemon.thaw();
    daemon.wait_for_line_after(1, "WARN", SOON).await;
    assert_eq!(daemon.finish().await.code(), Some(3));

    for line in [r#"{"level":"ERROR"}"#, r#"{"level":"WARN"}"#, "thread 'main' panicked"] {
        let daemon = shell.start_with(&["-c", &format!("echo '{}' >&2", line.replace('\'', ""))]);
        let judged = AssertUnwindSafe(daemon.finish()).catch_unwind().await;
        assert!(judged.is_err(), "{line} must not pass");
    }
}

/// Something that answers with what it hears.
async fn echo() -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = listener.local_addr().expect("its address");
    let tasks = Tasks::new();
    let echoes = tasks.clone();
    tasks.spawn("echo", async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            echoes.spawn("one echo", async move {
                let (mut input, mut output) = socket.split();
                let _ = tokio::io::copy(&mut input, &mut output).await;
            });
        }
    });
    (target, tasks)
}

/// Long enough for what comes at once, and short for what never comes.
const MOMENT: Duration = Duration::from_millis(100);

/// What comes back for one byte.
async fn answer(socket: &mut TcpStream, within: Duration) -> Option<u8> {
    socket.write_all(b"x").await.expect("send");
    tokio::time::timeout(within, socket.read_u8()).await.ok().map(|byte| byte.expect("not closed"))
}

/// Goal: the network is as bad as asked. Method: an echo behind the proxy.
#[tokio::test]
async fn the_proxy_passes_delays_holds_and_cuts() {
    let (target, _echo) = echo().await;
    let proxy = Proxy::start(target).await;
    assert_eq!(proxy.url(&format!("x@{target}/y"), target), format!("x@{}/y", proxy.address()));
    assert_eq!(proxy.plain_url(&format!("x@{target}/y?a=b")), format!("x@{}/y?sslmode=disable", proxy.address()));
    let mut socket = TcpStream::connect(proxy.address()).await.expect("connect");
    assert_eq!(answer(&mut socket, SOON).await, Some(b'x'));

    proxy.set(Mode::Delay(Duration::from_millis(50)));
    let start = std::time::Instant::now();
    assert_eq!(answer(&mut socket, SOON).await, Some(b'x'));
    assert!(start.elapsed() >= Duration::from_millis(100), "both ways");

    proxy.set(Mode::Hold);
    assert_eq!(answer(&mut socket, MOMENT).await, None, "held, not closed");
    proxy.set(Mode::Pass);
    assert_eq!(tokio::time::timeout(SOON, socket.read_u8()).await.expect("in time").expect("not closed"), b'x');

    proxy.set(Mode::Cut);
    let mut rest = Vec::new();
    // A reset is as good an end as a close.
    let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut rest)).await.expect("closed in time");
    until("refusal of new connections", SOON, async || {
        let mut socket = TcpStream::connect(proxy.address()).await.expect("accepted, then closed");
        !matches!(socket.read(&mut [0]).await, Ok(1..))
    })
    .await;
}

/// Goal: what the proxy does not read fills up at the sender, so that it has to wait. Method: more than any buffer holds, into a proxy that
/// holds; then all of it comes back.
#[tokio::test]
async fn a_proxy_that_holds_reads_nothing() {
    let (target, _echo) = echo().await;
    let proxy = Proxy::start(target).await;
    let mut socket = TcpStream::connect(proxy.address()).await.expect("connect");
    assert_eq!(answer(&mut socket, SOON).await, Some(b'x'));
    proxy.set(Mode::Hold);
    let (mut sent, piece) = (0, vec![b'y'; 64 * 1024]);
    while let Ok(written) = tokio::time::timeout(MOMENT, socket.write(&piece)).await {
        sent += written.expect("not closed");
        assert!(sent < 64 * 1024 * 1024, "somebody reads");
    }
    proxy.set(Mode::Pass);
    let mut back = vec![0; sent];
    tokio::time::timeout(SOON, socket.read_exact(&mut back)).await.expect("in time").expect("all of it");
}

/// Goal: a reset is one, for both ends. Method: the echo's end sees it as ours does.
#[tokio::test]
async fn the_proxy_resets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = Proxy::start(listener.local_addr().expect("its address")).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("connect");
    client.write_all(b"x").await.expect("send");
    let (mut server, from) = listener.accept().await.expect("carried on");
    assert_eq!(from.ip(), FROM, "so that the server knows a proxy");
    assert_eq!(server.read_u8().await.expect("a byte"), b'x');
    proxy.set(Mode::Reset);
    for end in [&mut client, &mut server] {
        let read = tokio::time::timeout(SOON, end.read_u8()).await.expect("in time");
        assert_eq!(read.expect_err("an end").kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// Goal: of a half-open connection one direction is dead, and stays so; new connections are sound afterwards. Method: either direction.
#[tokio::test]
async fn the_proxy_loses_one_direction() {
    for side in [Side::Client, Side::Server] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let proxy = Proxy::start(listener.local_addr().expect("its address")).await;
        let mut client = TcpStream::connect(proxy.address()).await.expect("connect");
        client.write_all(b"x").await.expect("send");
        let (mut server, _) = listener.accept().await.expect("carried on");
        assert_eq!(server.read_u8().await.expect("a byte"), b'x');
        proxy.set(Mode::Lose(side));
        client.write_all(b"1").await.expect("send");
        let lost = side == Side::Client;
        assert_eq!(tokio::time::timeout(MOMENT, server.read_u8()).await.is_err(), lost, "{side:?}");
        server.write_all(b"2").await.expect("send");
        let lost = side == Side::Server;
        assert_eq!(tokio::time::timeout(MOMENT, client.read_u8()).await.is_err(), lost, "{side:?}");
        proxy.set(Mode::Pass);
        let (from, to) = if lost { (&mut server, &mut client) } else { (&mut client, &mut server) };
        from.write_all(b"3").await.expect("send");
        assert!(tokio::time::timeout(MOMENT, to.read_u8()).await.is_err(), "{side:?}: it stays dead");
    }
}

/// Goal: whoever asks for TLS is told that there is none, and what they say then is kept, and goes on. Method: an echo that would hear it.
#[tokio::test]
async fn the_proxy_strips_tls() {
    let (target, _echo) = echo().await;
    let proxy = Proxy::start(target).await;
    let question = [0, 0, 0, 8, 4, 210, 22, 47];
    let ask = async || {
        let mut socket = TcpStream::connect(proxy.address()).await.expect("connect");
        socket.write_all(&question).await.expect("send");
        let answer = tokio::time::timeout(SOON, socket.read_u8()).await.expect("in time").expect("an answer");
        (socket, answer)
    };
    assert_eq!(ask().await.1, 0, "as it was said");
    proxy.set(Mode::NoTls);
    let (mut socket, said) = ask().await;
    assert_eq!((said, proxy.heard()), (b'N', vec![]));
    socket.write_all(b"secret").await.expect("send");
    let mut back = [0; 6];
    tokio::time::timeout(SOON, socket.read_exact(&mut back)).await.expect("in time").expect("carried on");
    assert_eq!((&back, proxy.heard().as_slice()), (b"secret", b"secret".as_slice()));
}

/// Goal: notifications are missed or doubled as asked, and nothing else is. Method: one that listens through the proxy; a ring and a ping each time.
#[tokio::test]
async fn the_proxy_sorts_notifications() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let through = crate::connect::server(&proxy.plain_url(&database.url()), &[], |_| ());
    let (session, mut heard) = through.connect_listening("test").await.expect("connect without TLS, as proxies may");
    session.batch_execute("listen bell; listen done").await.expect("listen");
    for (mode, rings, pings) in [
        (Mode::Pass, 1, 1),
        (Mode::Rings(0), 0, 1),
        (Mode::Rings(3), 3, 1),
        (Mode::NoNotifications, 0, 0),
        (Mode::Pass, 1, 1),
    ] {
        proxy.set(mode);
        session.batch_execute("notify bell; notify bell, 'ping'").await.expect("notify");
        proxy.set(Mode::Pass);
        session.batch_execute("notify done, 'x'").await.expect("notify");
        let mut count = (0, 0);
        loop {
            let (channel, payload) = heard.recv().await.expect("the session stands");
            match (channel.as_str(), payload.as_str()) {
                ("done", _) => break,
                (_, "") => count.0 += 1,
                _ => count.1 += 1,
            }
        }
        assert_eq!(count, (rings, pings), "{mode:?}");
    }
    session.close().await;
    drop(proxy);
    database.finish().await;
}

/// Goal: a lost answer is that of a statement that was carried out, of no other, and once. Method: one that fails, one that finds nothing, one in a
/// transaction that rolls back; then one that does something, alone and in a transaction; what the table holds tells.
#[tokio::test]
async fn the_proxy_loses_an_answer() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let eye = database.superuser().await;
    eye.batch_execute("create table tenantd.probe (id int unique)").await.expect("a table");
    eye.batch_execute("alter table tenantd.probe owner to tenantd").await.expect("its owner");
    let through = crate::connect::server(&proxy.plain_url(&database.url()), &[], |_| ());
    proxy.set(Mode::LoseAnswer("into tenantd.probe"));
    let session = through.connect(None, "test").await.expect("connect");
    session.batch_execute("insert into tenantd.probe select 1 where false").await.expect("nothing to do");
    session.batch_execute("insert into tenantd.probe select 1/0").await.expect_err("the server's own answer");
    session.batch_execute("begin; insert into tenantd.probe values (1)").await.expect("not committed");
    session.batch_execute("rollback").await.expect("rolled back");
    assert_eq!(proxy.lost(), 0);
    session.batch_execute("insert into tenantd.probe values (2)").await.expect_err("lost");
    assert!(proxy.lost() == 1 && session.is_closed());
    let mut session = through.connect(None, "test").await.expect("connect");
    session.batch_execute("insert into tenantd.probe values (3)").await.expect("once only");
    proxy.set(Mode::LoseAnswer("into tenantd.probe"));
    let transaction = session.transaction().await.expect("begin");
    let sent = transaction.execute_typed("insert into tenantd.probe values (4)", &[]).await;
    assert_eq!(sent.expect("not committed yet"), 1);
    transaction.commit().await.expect_err("lost");
    assert_eq!(proxy.lost(), 2);
    let rows = eye.query("select id from tenantd.probe order by id", &[]).await.expect("look");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [2, 3, 4]);
    drop((proxy, eye, session));
    database.finish().await;
}

/// Goal: the list of what runs only with databases is exact, so that nothing is left out by oversight, or listed for nothing. Method: this program's
/// own list of its tests.
#[test]
fn what_runs_only_with_databases_exists() {
    let mut list = Command::new(std::env::current_exe().expect("this program"));
    let listed = process::run(list.arg("--list"));
    let tests: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let file = std::fs::read_to_string("tests/only-with-databases.txt").expect("the list");
    let mut lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    assert!(lines.peek().is_some() && !tests.is_empty());
    for line in lines {
        let (name, why) = line.split_once("  ").unwrap_or_else(|| panic!("{line:?} does not say why"));
        assert!(!why.is_empty() && name.contains("::"), "{line}");
        let (left_out, others): (Vec<&str>, Vec<&str>) = tests.iter().partition(|test| test.starts_with(name));
        assert!(!left_out.is_empty(), "{name}: there is no such test");
        // The test program leaves out whatever holds these words.
        assert!(!others.iter().any(|test| test.contains(name)), "{name} leaves others out, too");
        assert!(name.ends_with("::") || left_out == [name], "{name} is the beginning of several: {left_out:?}");
    }
}
