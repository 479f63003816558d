//! What goes over the wire before the server is known for who it is: no user, no password, whatever it shows or takes away.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use native_tls::{Identity, TlsAcceptor};
use tenantd::error::Kind;

use crate::connect::server;
use crate::fleet::row;
use crate::pages::Pages;
use crate::support::certificates::{Authority, Certificate, Validity, bundle, self_signed};
use crate::support::count::times;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::proxy::{Mode, Proxy};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// What every client says that wants TLS, and all that may be said in the clear.
const QUESTION: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// In the clear, and after TLS.
type Heard = (Vec<u8>, Vec<u8>);

/// A server for one client that shows `certificate`, and keeps what it hears.
fn show(certificate: &Certificate) -> (SocketAddr, JoinHandle<Heard>) {
    let read = |path: &Path| fs::read(path).expect("read a file");
    let identity = Identity::from_pkcs8(&read(&certificate.certificate), &read(&certificate.key)).expect("an identity");
    let acceptor = TlsAcceptor::new(identity).expect("an acceptor");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let heard = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        let mut clear = vec![0; 8];
        socket.read_exact(&mut clear).expect("a question");
        socket.write_all(b"S").expect("an answer");
        let mut within = vec![0; 512];
        // A client that refuses the certificate breaks this off, here or at the first word.
        let length = acceptor.accept(socket).map_or(0, |mut tls| tls.read(&mut within).unwrap_or(0));
        within.truncate(length);
        (clear, within)
    });
    (address, heard)
}

fn url(address: SocketAddr, parameters: &str) -> String {
    format!("postgresql://tenantd:hunter2@{address}/postgres?{parameters}")
}

/// Goal: five bad certificates are refused, each with its reason, before user and password are said, even within TLS. Method: a server of our own that
/// keeps what it hears; a client that asks for no proof shows that it would hear them.
#[tokio::test]
async fn nothing_is_said_to_a_server_with_a_bad_certificate() {
    let folder = tempfile::tempdir().expect("a directory");
    let at = folder.path();
    let (ours, theirs) = (Authority::new(at, "ours"), Authority::new(at, "theirs"));
    let here = ["IP:127.0.0.1"];
    let bad = [
        (self_signed(at, "itself", &here), "self"),
        (theirs.server("foreign", &here, Validity::Valid), "issuer"),
        (ours.server("old", &here, Validity::Expired), "expired"),
        (ours.server("elsewhere", &["DNS:db.example.com", "IP:192.0.2.1"], Validity::Valid), "mismatch"),
        (ours.client("client"), "purpose"),
    ];
    let root = format!("sslmode=verify-full&sslrootcert={}", ours.root().display());
    for (certificate, reason) in &bad {
        let (address, heard) = show(certificate);
        let error = server(&url(address, &root), &[], |_| ()).connect(None, "test").await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Tls, "{}", error.chain());
        assert!(error.chain().contains(reason), "{reason}: {}", error.chain());
        assert!(error.advice().is_some(), "{reason}: what to do");
        let (clear, within) = heard.join().expect("the server's thread");
        assert_eq!((clear.as_slice(), within.as_slice()), (&QUESTION[..], &[][..]), "{reason}");
    }
    let (address, heard) = show(&bad[0].0);
    let _ = server(&url(address, "sslmode=require"), &[("HOME", "/nowhere")], |_| ()).connect(None, "test").await;
    let (clear, within) = heard.join().expect("the server's thread");
    assert_eq!(clear, QUESTION);
    assert!(String::from_utf8_lossy(&within).contains("tenantd"), "it would have heard: {within:?}");
}

/// Goal: whoever stands in between and says that the server has no TLS hears nothing, although the server behind would take all of it. Method: a proxy
/// that answers so and keeps what it hears, for the connection, for the built program, and for one that asks for nothing better.
#[tokio::test]
async fn nothing_is_said_where_tls_is_taken_away() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    proxy.set(Mode::NoTls);
    let through = proxy.url(&database.url(), database.server().address());
    for mode in ["verify-full", "verify-ca", "require"] {
        let url = through.replace("verify-full", mode);
        let error = server(&url, &[], |_| ()).connect(None, "test").await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Tls, "{mode}: {}", error.chain());
    }
    let setup = Program::for_database(&database).setting("main.url", &through).run(&["setup"]).await;
    assert!(setup.code() != 0 && setup.stderr.contains("TLS"), "{setup:?}");
    assert_eq!(proxy.heard(), b"", "nothing after the question");
    let unasked = through.replace("verify-full", "prefer");
    server(&unasked, &[], |_| ()).connect(None, "test").await.expect("a local host, and nothing better was asked for");
    assert!(String::from_utf8_lossy(&proxy.heard()).contains("tenantd"), "the proxy hears");
    drop(proxy);
    database.finish().await;
}

/// Goal: a bundle of very many authorities counts whole, and a running daemon takes up what it becomes on disk, bad or good, without a restart. Method:
/// the server's authority last of all; then a bundle without it, while an administrator ends the daemon's connections; then it is back.
#[tokio::test]
async fn a_bundle_is_rotated_under_a_running_daemon() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("bundle.pem");
    let others: Vec<Authority> =
        (0..times(20, 150)).map(|number| Authority::new(folder.path(), &format!("other-{number}"))).collect();
    let own = database.server().authority().root();
    let without: Vec<&Path> = others.iter().map(Authority::root).collect();
    let with = [without.clone(), vec![own]].concat();
    bundle(&file, &with);
    let url = database.url().replace(&own.display().to_string(), &file.display().to_string());
    let pages = Pages::reserve();
    let program = Program::for_database(&database).setting("main.url", &url).setting("http.listen", &pages.listen());
    let daemon = program.start();
    let daemon = daemon.allow_all(&[
        "the registry cannot be read",
        "the doorbell is not heard",
        "the server fails",
        "the sweep could not",
    ]);
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let key = database.sign_up("before@example.org").await;
    until("its tenant is ready", SOON, async || row(&database, &key).await["state"] == "ready").await;

    bundle(&file, &without);
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name like 'tenantd:daemon %'";
    let eye = database.superuser().await;
    assert!(eye.query_one(end, &[]).await.expect("end them").get::<_, i64>(0) > 0);
    until("readiness says why", SOON, async || pages.ready_is(503, "certificate").await).await;
    let key = database.sign_up("meanwhile@example.org").await;
    bundle(&file, &with);
    until("its tenant is ready", SOON, async || row(&database, &key).await["state"] == "ready").await;
    assert!(daemon.terminate().await.success());
    drop(eye);
    database.finish().await;
}
