//! Child processes that never outlive this one.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use super::until::until_blocking;

type Birth = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel sends the parent-death signal when the *thread* that started the child ends, so all children are started by one thread
/// that lives as long as the process; a test's own thread ends with the test.
static PARENT: LazyLock<Mutex<mpsc::Sender<Birth>>> = LazyLock::new(|| {
    let (sender, births) = mpsc::channel::<Birth>();
    std::thread::Builder::new()
        .name("parent of children".into())
        .spawn(move || {
            for (mut command, reply) in births {
                // Nobody waits for the answer when the asking test has panicked meanwhile.
                let _ = reply.send(command.spawn());
            }
        })
        .expect("start a thread");
    Mutex::new(sender)
});

/// A command for `program` that gets `signal` (a name without SIG) when this process ends, however it ends; run as `user`, if given.
#[must_use]
pub fn mortal(signal: &str, user: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        let group = run(Command::new("id").args(["-g", user]));
        command.args(["--reuid", user, "--regid", group.trim(), "--clear-groups"]);
    }
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    // Ctrl-C on a terminal is for this process alone, which ends its children in order.
    command.process_group(0);
    command
}

/// Starts `command` from the thread that lives as long as this process.
///
/// # Panics
/// When it cannot be started; the message names the command.
#[must_use]
pub fn spawn(command: Command) -> Child {
    let described = format!("{command:?}");
    let (reply, child) = mpsc::channel();
    PARENT.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).expect("the parent thread lives");
    child.recv().expect("the parent thread lives").unwrap_or_else(|error| panic!("start {described}: {error}"))
}

/// Runs `command` to its end and returns its stdout.
///
/// # Panics
/// When it cannot be started or fails; the message has its stderr.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sends `signal` to `child`; a child that has ended gets nothing.
pub fn signal(child: &mut Child, signal: Signal) {
    // Asked first, so that a process id the kernel gave to somebody else is never hit.
    if matches!(child.try_wait(), Ok(None)) {
        let _ = kill_process(Pid::from_child(child), signal);
    }
}

/// Waits until `child` has ended.
///
/// # Panics
/// When it lives longer than `deadline`.
pub fn wait(what: &str, child: &mut Child, deadline: Duration) -> std::process::ExitStatus {
    let mut status = None;
    until_blocking(&format!("end of {what}"), deadline, || {
        status = child.try_wait().expect("ask for a child's state");
        status.is_some()
    });
    status.expect("waited for")
}

/// Says something about a failed test, where the test's own output goes.
#[expect(clippy::print_stderr, reason = "the one way out of a test that is failing already")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}
