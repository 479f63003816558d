//! A loop of the daemon that stands still: systemd is not told that all is well, the log names the loop, and a stop ends the daemon all the same.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::support::daemon::{DEADLINE, Program};
use crate::support::database::TestDatabase;

/// What systemd would give as the watchdog's time; it is fed twice in it.
const WATCHDOG: Duration = Duration::from_millis(400);

/// Goal: whichever loop is wedged, the watchdog is fed no more, while all turn it is; the loop is named in one ERROR; SIGTERM still ends the daemon
/// with 0. Method: a socket in systemd's place, and for each loop a daemon in which that loop stands still.
#[tokio::test]
async fn a_wedged_loop_is_not_fed() {
    let database = TestDatabase::new().await;
    assert_eq!(Program::for_database(&database).run(&["setup"]).await.code(), 0);
    let loops = ["intake", "keeper", "sweep", "doorbell"];
    let wedge = |name| wedge(&database, name);
    futures_util::stream::iter(loops).map(wedge).buffer_unordered(loops.len()).collect::<Vec<()>>().await;
    database.finish().await;
}

async fn wedge(database: &TestDatabase, name: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let program = Program::for_database(database)
        .setting("work.shutdown", "100ms")
        .variable("NOTIFY_SOCKET", &path.display().to_string())
        .variable("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
        .variable("TENANTD_FAIL_POINT", &format!("wedge:{name}"));
    let daemon = program.start().allow("the daemon is stuck").allow("work.shutdown is over").allow("tenant left alone");
    heard(&socket, "WATCHDOG=1", DEADLINE).await.unwrap_or_else(|| panic!("{name}: not fed at its start"));
    // Whoever tells systemd waits while nobody reads what was told.
    let line = tokio::select! {
        line = daemon.wait_for_line("the daemon is stuck", DEADLINE) => line,
        Some(line) = heard(&socket, "no message has this", DEADLINE) => line,
    };
    assert!(line.contains(&format!("\"loops\":\"{name}\"")), "{name}: {line}");
    // What was sent before the loop was late, read to the end without waiting.
    let socket = socket.into_std().expect("the socket itself");
    while socket.recv(&mut [0; 4096]).is_ok() {}
    let socket = UnixDatagram::from_std(socket).expect("the socket again");
    assert_eq!(heard(&socket, "WATCHDOG=1", WATCHDOG * 3).await, None, "{name}: it is fed yet");
    assert_eq!(daemon.terminate().await.code(), Some(0), "{name}");
}

/// The next message with `word`, if it comes within `patience`.
async fn heard(socket: &UnixDatagram, word: &str, patience: Duration) -> Option<String> {
    let mut buffer = [0; 4096];
    let search = async {
        loop {
            let length = socket.recv(&mut buffer).await.expect("receive");
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.contains(word) {
                return message;
            }
        }
    };
    timeout(patience, search).await.ok()
}
