//! tenantd as a service: the units, what systemd is told, signals, and the pages over HTTP.

mod http;
mod units;

use std::process::{Command, Stdio};
use std::time::Duration;

use tenantd::conditions::{Conditions, MAIN_DATABASE};
use tenantd::heartbeat::Heartbeats;
use tenantd::shutdown::Requests;
use tenantd::systemd;
use tenantd::tasks::Tasks;
use tokio::net::UnixDatagram;
use tokio::time::{sleep, timeout};

use crate::support::daemon::{DEADLINE, Program};
use crate::support::process::{self, Signal, mortal, spawn};

const END: &str = "STATUS=the end";

/// Goal: systemd hears what it expects, in order, and its watchdog nothing while a loop is stuck. Method: this program once more, with a
/// socket in systemd's place.
#[tokio::test]
async fn systemd_hears_of_each_turn_and_is_not_fed_by_a_stuck_loop() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let mut child = spawn(again("service::talk_to_systemd", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "30000000");
    }));
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.last().is_some_and(|last: &String| last.contains(END)) {
        let length = timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("in time").expect("receive");
        heard.push(String::from_utf8_lossy(&buffer[..length]).trim_end().replace('\n', " | "));
    }
    assert!(process::wait("the second program", &mut child, DEADLINE).success());
    let clock = heard[1].rsplit_once('=').expect("a value").1.to_owned();
    assert!(clock.parse::<u64>().expect("microseconds") > 0);
    let expected = [
        "READY=1 | STATUS=waits for the main database",
        &format!("RELOADING=1 | MONOTONIC_USEC={clock}"),
        "READY=1 | STATUS=12 tenants",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "STATUS=main_database: refused STOPPING=1",
        "WATCHDOG=1",
        "STATUS=12 tenants",
        "STOPPING=1 | STATUS=finishing the work in hand",
        "EXTEND_TIMEOUT_USEC=20000000",
        "EXTEND_TIMEOUT_USEC=20000000",
        "EXTEND_TIMEOUT_USEC=20000000",
        "READY=1 | STATUS=the end",
    ];
    assert_eq!(heard, expected);
}

#[tokio::test(start_paused = true)]
#[ignore = "run by systemd_hears_of_each_turn_and_is_not_fed_by_a_stuck_loop"]
async fn talk_to_systemd() {
    let seconds = |seconds| sleep(Duration::from_secs(seconds));
    systemd::ready("waits for the main database");
    systemd::reloading();
    systemd::ready("12 tenants");
    let (heartbeats, conditions) = (Heartbeats::new(), Conditions::new());
    let beat = heartbeats.register("intake", Duration::from_secs(10));
    // Fed at 0 and 15; stuck from 24 to 51, so not at 30 and 45; fed at 60.
    let story = async {
        seconds(14).await;
        beat.turned().await;
        seconds(36).await;
        assert_eq!(heartbeats.late(), ["intake"]);
        conditions.set(MAIN_DATABASE, "refused\nSTOPPING=1");
        seconds(1).await;
        beat.turned().await;
        seconds(10).await;
        conditions.clear(MAIN_DATABASE);
        seconds(1).await;
    };
    tokio::select! {
        () = story => {}
        () = systemd::keep_informed(&heartbeats, &conditions, "12 tenants") => {}
    }
    systemd::stopping(seconds(11)).await;
    systemd::ready("the end");
}

/// Goal: each signal becomes its request. Method: send them to this program, run once more.
#[tokio::test]
async fn signals_are_heeded() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::other(&std::env::current_exe().expect("this program"), directory.path());
    let mut child = program.start_with(&["--exact", "service::heed_signals", "--ignored", "--nocapture"]);
    child.wait_for_line("heeding", DEADLINE).await;
    child.hang_up();
    child.wait_for_line("reload", DEADLINE).await;
    child.signal(Signal::TERM);
    child.wait_for_line("stop", DEADLINE).await;
    child.signal(Signal::INT);
    child.wait_for_line("forced 130", DEADLINE).await;
    assert!(child.ended(DEADLINE).await.success());
    child.kill();
}

#[tokio::test]
#[ignore = "run and signalled by signals_are_heeded"]
async fn heed_signals() {
    let tasks = Tasks::new();
    let requests = Requests::of_process(&tasks).expect("the signals");
    eprintln!("heeding");
    requests.reload().await;
    eprintln!("reload");
    requests.stop.cancelled().await;
    eprintln!("stop");
    eprintln!("forced {}", requests.forced().await);
    assert!(tasks.stop(DEADLINE).await.is_empty(), "it does not hold up the end");
}

/// This program again, running the one ignored test `name`.
fn again(name: &str, prepare: impl FnOnce(&mut Command)) -> Command {
    let mut command = mortal("KILL", None, std::env::current_exe().expect("this program"));
    command.args(["--exact", name, "--ignored", "--nocapture"]).stdout(Stdio::null());
    prepare(&mut command);
    command
}
