//! On what was measured: the kind of machine, no names.

use std::fs;
use std::process::Command;

use jiff::Timestamp;

/// The kind of machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// When the run began.
    pub(crate) at: Timestamp,
    /// How many processors it may use.
    pub(crate) cores: usize,
    /// Main memory, 10^9 bytes.
    pub(crate) gigabytes: u64,
    /// The system, with its version.
    pub(crate) system: String,
    /// The server, with its version.
    pub(crate) postgres: String,
    /// How busy it was before anything was started: the mean number of processes that wanted to run.
    pub(crate) load: String,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kilobytes = read("/proc/meminfo").split_whitespace().nth(1).and_then(|number| number.parse().ok());
        let release = read("/etc/os-release");
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
        let version = Command::new(crate::support::server::programs().join("postgres")).arg("--version").output();
        let version = version.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        Machine {
            at: Timestamp::now(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            gigabytes: kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1024 / 1_000_000_000),
            system: system.trim_matches('"').to_owned(),
            postgres: version.split_whitespace().nth(2).unwrap_or("unknown").to_owned(),
            load: read("/proc/loadavg").split_whitespace().next().unwrap_or("unknown").to_owned(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Machine { at, cores, gigabytes, system, postgres, load } = self;
        let at = at.strftime("%F %H:%M UTC");
        format!("{at} · {cores} cores, {gigabytes} GB · {system} · Postgres {postgres}, fsync on · load before {load}")
    }
}
