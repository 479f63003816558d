//! The built program at its edges: what systemd hears, exit codes, and what nobody must ever read.

use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixDatagram};

use crate::fleet::{execute, write_migrations};
use crate::pages::Pages;
use crate::support::daemon::{Output, Program};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::proxy::{Mode, Proxy};
use crate::support::until::until;

const SOON: Duration = Duration::from_secs(30);

/// What systemd heard until `last`, one line a message.
async fn transcript(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while !heard.last().is_some_and(|line: &String| line.contains(last)) {
        let length = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await.expect("in time").expect("receive");
        heard.push(String::from_utf8_lossy(&buffer[..length]).trim_end().replace('\n', " | "));
    }
    heard
}

/// Goal: the service tells systemd when it is ready, alive, reloading and ending. Method: a socket in systemd's place, with a watchdog of
/// a second.
#[tokio::test]
async fn systemd_hears_the_daemon() {
    let database = TestDatabase::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let program = Program::for_database(&database).variable("NOTIFY_SOCKET", &path.display().to_string());
    let mut daemon = program.variable("WATCHDOG_USEC", "1000000").start();
    transcript(&socket, "READY=1 | STATUS=turning signups into databases").await;
    transcript(&socket, "WATCHDOG=1").await;
    transcript(&socket, "WATCHDOG=1").await;
    daemon.hang_up();
    let reloading = transcript(&socket, "RELOADING=1").await.pop().expect("it was heard");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    transcript(&socket, "READY=1 | STATUS=turning signups into databases").await;
    assert!(daemon.terminate().await.success());
    let end = transcript(&socket, "STOPPING=1").await.pop().expect("it was heard");
    assert_eq!(end, "STOPPING=1 | STATUS=finishing the work in hand");
    database.finish().await;
}

#[track_caller]
fn ends_with(output: &Output, code: i32, says: &[&str]) {
    let missing: Vec<_> = says.iter().filter(|says| !output.stderr.contains(**says)).collect();
    assert!(output.code() == code && missing.is_empty(), "code {code} with {missing:?} expected: {output:?}");
}

/// Goal: what waiting does not mend ends the daemon at once with 2, and says what to do. Method: each such mistake.
#[tokio::test]
async fn mistakes_end_the_daemon_with_2() {
    let database = TestDatabase::new().await;
    let program = || Program::for_database(&database);
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("first.sql", "select 1;")]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let taken = listener.local_addr().expect("its address").to_string();
    let mistakes: [(Program, &[&str]); 7] = [
        (program().setting("signup.pol", "1s"), &["signup.pol", "signup.poll"]),
        (program().setting("signup.poll", "soon"), &["signup.poll", "soon"]),
        (program().setting("main.url", "postgresql://tenantd:swordfish@[nowhere/app"), &["main.url"]),
        (program().setting("tenant.migrations", &folder.path().display().to_string()), &["first.sql"]),
        (program().setting("signup.table", "public.nobody"), &["public", "nobody", "does not exist"]),
        (program().setting("signup.id_column", "number"), &["no column", "number"]),
        (program().setting("http.listen", &taken), &["http.listen"]),
    ];
    for (program, says) in mistakes {
        let output = program.run(&[]).await;
        ends_with(&output, 2, says);
        assert!(!output.stderr.contains("swordfish"), "{output:?}");
    }
    database.finish().await;
}

/// Goal: commands tell a main database out of reach by their exit code, within `main.connect_timeout`; the daemon waits for it instead.
/// Method: a port where nobody listens, a network that swallows everything, a wrong password.
#[tokio::test]
async fn out_of_reach_is_3_for_commands_and_nothing_for_the_daemon() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    proxy.set(Mode::Hold);
    let address = database.server().address();
    let silent = proxy.url(&database.url(), address);
    let nobody = database.url().replace(&address.to_string(), &Pages::reserve().listen());
    let refused = database.url().replace("swordfish", "wrong");
    for url in [silent, nobody, refused] {
        let program = Program::for_database(&database).setting("main.url", &url).setting("main.connect_timeout", "2s");
        for arguments in [["--sweep-once"], ["status"]] {
            let asked = Instant::now();
            ends_with(&program.run(&arguments).await, 3, &["connect to tenantd@"]);
            assert!(asked.elapsed() < Duration::from_secs(15), "{arguments:?} took {:?}", asked.elapsed());
        }
        let daemon = program.start().allow("tenantd cannot begin yet");
        daemon.wait_for_line("tenantd cannot begin yet", SOON).await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
    }
    drop(proxy);
    database.finish().await;
}

/// Goal: a registry that a newer, incompatible tenantd has written is left alone, with 4. Method: write what such a one would.
#[tokio::test]
async fn a_newer_registry_is_4() {
    let database = TestDatabase::new().await;
    let program = Program::for_database(&database);
    assert_eq!(program.run(&["setup"]).await.code(), 0);
    execute(&database, "update tenantd.registry set needs_version = 999").await;
    for arguments in [&[][..], &["--sweep-once"], &["status"], &["setup"]] {
        ends_with(&program.run(arguments).await, 4, &["newer"]);
    }
    database.finish().await;
}

/// Goal: no secret is ever written anywhere. Method: passwords with a word to look for, the log at its most talkative, through success,
/// failure and reload; log, pages, command line and errors are searched.
#[tokio::test]
async fn secrets_are_never_written() {
    let database = TestDatabase::new().await;
    assert!(TENANTD_PASSWORD.contains("swordfish"));
    let pages = Pages::reserve();
    let program =
        Program::for_database(&database).setting("log.level", "trace").setting("http.listen", &pages.listen());
    let mut daemon = program.start().allow("the registry cannot be read").allow("doorbell");
    daemon.wait_for_line("tenantd is at work", SOON).await;
    let key = database.sign_up("someone@example.org").await;
    daemon.wait_for_line("tenant ready", SOON).await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where application_name like 'tenantd:%' and datname = current_database()";
    database.superuser().await.execute(end, &[]).await.expect("end its connections");
    until("it is ready again", SOON, async || pages.ready_is(200, "").await).await;
    daemon.hang_up();
    daemon.wait_for_line("settings and migrations reloaded", SOON).await;
    let mut written: Vec<String> = Vec::new();
    for page in ["/metrics", "/readyz", "/healthz"] {
        written.push(pages.get(page).await.expect("a page").1);
    }
    assert!(!written[0].contains(&key), "no metric is about one tenant");
    written.push(std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.id())).expect("its command line"));
    let shown = program.run(&["config", "show"]).await;
    written.extend([shown.stdout, shown.stderr, daemon.stdout()]);
    daemon.signal(crate::support::process::Signal::TERM);
    assert!(daemon.ended(SOON).await.success());
    written.extend(daemon.lines());
    assert!(daemon.lines().iter().any(|line| line.contains("\"level\":\"DEBUG\"")), "the log is talkative");
    daemon.kill();
    for text in written {
        assert!(!text.contains("swordfish"), "{text}");
        assert!(!text.contains("someone@example.org"), "what users entered is nobody's business: {text}");
    }
    database.finish().await;
}
