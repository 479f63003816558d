//! The built program as a child process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::database::TestDatabase;
use super::process::{self, Signal, mortal, spawn, tell};
use super::until::until;

/// How long a process may take to end.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// How to run tenantd: its settings as environment, its arguments. The environment of the test itself is not handed on.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    environment: BTreeMap<String, String>,
    directory: PathBuf,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Output {
    /// The exit code; -1 after a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

impl Program {
    /// With no setting at all.
    #[must_use]
    pub fn bare(directory: &Path) -> Self {
        Self::other(&program(), directory)
    }

    /// Another program in its place.
    #[must_use]
    pub fn other(path: &Path, directory: &Path) -> Self {
        // Every test names whom it trusts; OpenSSL reads the system's authorities all the same, which takes longer than a login.
        let environment =
            BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into()), ("SSL_CERT_FILE".into(), "/dev/null".into())]);
        Self { path: path.to_owned(), environment, directory: directory.to_owned() }
    }

    /// Set up for `database`: its URL and prefix, `tenant_owner`, `app`, signups ring, no spares, no HTTP, log as JSON.
    #[must_use]
    pub fn for_database(database: &TestDatabase) -> Self {
        Self::bare(database.server().directory())
            .setting("main.url", &database.url())
            .setting("signup.notify", "true")
            .settings(&database.isolating())
            .setting("tenant.prefix", database.prefix())
            .setting("tenant.owner", "tenant_owner")
            .setting("tenant.use", "app")
            .setting("spares.max", "0")
            .setting("http.listen", "")
            .setting("log.format", "json")
    }

    /// The setting `key` as the configuration names it (`signup.poll`), with `value` as written in the environment.
    #[must_use]
    pub fn setting(self, key: &str, value: &str) -> Self {
        let name = format!("TENANTD_{}", key.to_uppercase().replace('.', "__"));
        self.variable(&name, value)
    }

    /// The same for several.
    #[must_use]
    pub fn settings(self, settings: &[(&str, String)]) -> Self {
        settings.iter().fold(self, |program, (key, value)| program.setting(key, value))
    }

    /// Leaves the setting `key` to the daemon.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.environment.remove(&format!("TENANTD_{}", key.to_uppercase().replace('.', "__")));
        self
    }

    /// Any other environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Where it runs; otherwise the server's directory.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    /// Starts the daemon.
    #[must_use]
    pub fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// Starts the daemon by another program, which takes these arguments and then a command that it becomes.
    #[must_use]
    pub fn start_under(&self, path: &str, arguments: &[&str]) -> Daemon {
        let daemon = self.path.display().to_string();
        Self { path: path.into(), ..self.clone() }.start_with(&[arguments, &[&daemon]].concat())
    }

    /// Starts the program with `arguments` and does not wait for its end.
    #[must_use]
    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut child = spawn(self.command(arguments));
        let (log, stdout) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stderr.take().expect("a pipe"), &log),
            collect(child.stdout.take().expect("a pipe"), &stdout),
        ];
        Daemon { child, log, stdout, readers, allowed: Vec::new(), checked: false }
    }

    /// Runs a command to its end. Lines of log it writes are for the caller to judge.
    ///
    /// # Panics
    /// When it takes longer than [`DEADLINE`].
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.start_with(arguments);
        command.checked = true;
        let status = command.ended(DEADLINE).await;
        Output { status, stdout: joined(&command.stdout), stderr: joined(&command.log) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mortal("KILL", None, &self.path);
        command.args(arguments).env_clear().envs(&self.environment).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// A running tenantd; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Lines,
    stdout: Lines,
    readers: Vec<JoinHandle<()>>,
    allowed: Vec<String>,
    checked: bool,
}

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs, or stands still.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Every line of log so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything on stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        joined(&self.stdout)
    }

    /// Waits for a line of log that contains `pattern`, from the first line on, and returns it.
    ///
    /// # Panics
    /// When none has come within `deadline`, or before the process ended; the message has the log.
    pub async fn wait_for_line(&self, pattern: &str, deadline: Duration) -> String {
        self.wait_for_line_after(0, pattern, deadline).await
    }

    /// The same, leaving out the first `lines` lines: `daemon.lines().len()` before a step is what was said before it.
    pub async fn wait_for_line_after(&self, lines: usize, pattern: &str, deadline: Duration) -> String {
        let mut found = None;
        let search = async {
            until("a line of log", deadline + DEADLINE, async || {
                let over = self.readers.iter().all(JoinHandle::is_finished);
                found = self.lines().into_iter().skip(lines).find(|line| line.contains(pattern));
                over || found.is_some()
            })
            .await;
        };
        let in_time = tokio::time::timeout(deadline, search).await;
        assert!(in_time.is_ok(), "not within {deadline:?}: a line with {pattern:?}\n{}", joined(&self.log));
        assert!(found.is_some(), "the process ended without a line with {pattern:?}\n{}", joined(&self.log));
        found.expect("found in time")
    }

    /// Lets [`Self::finish`] and [`Self::terminate`] meet warnings and errors that contain `pattern`.
    #[must_use]
    pub fn allow(mut self, pattern: &str) -> Self {
        self.allowed.push(pattern.into());
        self
    }

    /// The same for several.
    #[must_use]
    pub fn allow_all(self, patterns: &[&str]) -> Self {
        patterns.iter().fold(self, |daemon, pattern| daemon.allow(pattern))
    }

    /// Asks it to end (SIGTERM), waits, and checks its log. Returns how it ended.
    ///
    /// # Panics
    /// When it takes longer than [`DEADLINE`], or as [`Self::finish`] does.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.finish().await
    }

    /// Waits for its end, and checks its log. Returns how it ended.
    ///
    /// # Panics
    /// When it takes longer than [`DEADLINE`], or a warning or error was logged that no pattern allows.
    pub async fn finish(mut self) -> ExitStatus {
        let status = self.ended(DEADLINE).await;
        self.checked = true;
        let bad: Vec<String> = self.lines().into_iter().filter(|line| self.forbidden(line)).collect();
        assert!(bad.is_empty(), "logged, and not allowed by the test:\n{}", bad.join("\n"));
        status
    }

    /// Waits for its end, without judging the log.
    ///
    /// # Panics
    /// When it takes longer than `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let mut status = None;
        until("the end of tenantd", deadline, async || {
            status = self.child.try_wait().expect("ask for its state");
            status.is_some()
        })
        .await;
        self.finish_reading();
        status.expect("waited for")
    }

    /// Ends it at once (SIGKILL), as a crash would; the log is not judged.
    pub fn kill(mut self) {
        self.checked = true;
        self.end_now();
    }

    /// Freezes it (SIGSTOP).
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to reload (SIGHUP).
    pub fn hang_up(&mut self) {
        self.signal(Signal::HUP);
    }

    /// Sends any other signal.
    pub fn signal(&mut self, signal: Signal) {
        process::signal(&mut self.child, signal);
    }

    fn forbidden(&self, line: &str) -> bool {
        let level = serde_json::from_str::<serde_json::Value>(line).ok().map(|line| line["level"].clone());
        // A line that is no JSON is a panic or the last words of a failed start.
        let bad = level.is_none_or(|level| level == "ERROR" || level == "WARN");
        bad && !self.allowed.iter().any(|pattern| line.contains(pattern))
    }

    fn end_now(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish_reading();
    }

    fn finish_reading(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end_now();
        if std::thread::panicking() {
            tell(&format!("log of tenantd:\n{}", joined(&self.log)));
        } else {
            assert!(self.checked || !cfg!(test), "neither terminate(), finish() nor kill() was called on tenantd");
        }
    }
}

/// The built program: where cargo says, or for an example beside the folder it is in.
fn program() -> PathBuf {
    option_env!("CARGO_BIN_EXE_tenantd").map_or_else(
        || {
            let here = std::env::current_exe().expect("where this program is");
            here.ancestors().nth(2).expect("a folder of cargo's").join("tenantd")
        },
        PathBuf::from,
    )
}

fn collect(pipe: impl Read + Send + 'static, lines: &Lines) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

fn joined(lines: &Lines) -> String {
    lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
}
