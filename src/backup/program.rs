//! Postgres's own programs as children: found, new enough, run to their end.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config;
use crate::error::{Error, Kind, Result};

/// So many lines of what a program said are told.
const LINES: usize = 4;

/// The two programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) dump: PathBuf,
    pub(super) restore: PathBuf,
}

impl Programs {
    /// By the settings: `pg_restore` stands beside `pg_dump`.
    pub(super) fn of(settings: &config::Backup) -> Programs {
        Programs { dump: settings.pg_dump.clone(), restore: settings.pg_dump.with_file_name("pg_restore") }
    }

    /// Makes sure that both are there, and that `pg_dump` knows the server's version (150018 for 15.18): it refuses a newer one.
    pub(super) async fn must_know(&self, server_version: i32) -> Result<()> {
        let major = server_version / 10_000;
        let advice = format!(
            "install the client programs of Postgres {major} (on Debian: postgresql-client-{major}), or name theirs in backup.pg_dump"
        );
        for program in [&self.dump, &self.restore] {
            let said = version(program).await.map_err(|error| error.hint(advice.clone()))?;
            let own = major_of(&said);
            if own.is_none_or(|own| own < major) {
                return Err(Error::usage(format!(
                    "{} is {}, and the server is Postgres {major}",
                    program.display(),
                    if said.is_empty() { "of no version that it tells" } else { said.as_str() }
                ))
                .hint(advice));
            }
        }
        Ok(())
    }
}

async fn version(program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    for name in config::secret_variables() {
        command.env_remove(name);
    }
    let output =
        command.output().await.map_err(|error| Error::usage(format!("start {}", program.display())).because(error))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The leading number of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0)` or `pg_dump (PostgreSQL) 18beta1`.
fn major_of(said: &str) -> Option<i32> {
    let number = said.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

/// Runs a child to its end and returns what it wrote to stdout.
///
/// # Errors
/// It could not be started, or failed: with what it said.
pub(super) async fn ran(command: &mut Command, program: &str) -> Result<Vec<u8>> {
    fed(command, program, Vec::new()).await
}

/// As [`ran`], with `input` on the child's stdin.
pub(super) async fn fed(command: &mut Command, program: &str, input: Vec<u8>) -> Result<Vec<u8>> {
    // In a group of its own: a Ctrl-C on the terminal is for us, who end in order.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let unstarted = |error| Error::usage(format!("start {program}")).because(error).hint("name it in backup.pg_dump");
    let mut child = command.spawn().map_err(unstarted)?;
    let mut stdin = child.stdin.take().expect("a pipe");
    let write = async move {
        // A child that ends without reading says why by itself.
        let _ = stdin.write_all(&input).await;
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(|error| Error::new(Kind::Other, format!("wait for {program}")).because(error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(LINES).collect();
    let said = if said.is_empty() { output.status.to_string() } else { said.join("; ") };
    Err(Error::new(Kind::Other, format!("{program} failed: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (said, major) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("pg_restore (PostgreSQL) 18beta1", Some(18)),
            ("pg_dump (PostgreSQL) 9.6.24", Some(9)),
            ("pg_dump, well", None),
            ("", None),
        ] {
            assert_eq!(major_of(said), major, "{said}");
        }
    }

    #[test]
    fn pg_restore_stands_beside_pg_dump() {
        let programs = |pg_dump: &str| {
            Programs::of(&config::Backup { folder: None, keep: None, before_migrate: false, pg_dump: pg_dump.into() })
        };
        assert_eq!(programs("pg_dump").restore, PathBuf::from("pg_restore"));
        assert_eq!(programs("/opt/pg/bin/pg_dump").restore, PathBuf::from("/opt/pg/bin/pg_restore"));
    }

    #[tokio::test]
    async fn a_child_is_fed_and_a_failure_says_why() {
        let mut shell = Command::new("sh");
        assert_eq!(fed(shell.args(["-c", "cat"]), "cat", b"abc".to_vec()).await.unwrap(), b"abc");
        let mut shell = Command::new("sh");
        let failed = ran(shell.args(["-c", "echo; echo 'sh: error: x' >&2; exit 3"]), "sh").await.unwrap_err();
        assert_eq!(failed.chain(), "sh failed: sh: error: x");
        let missing = ran(&mut Command::new("/nowhere/pg_dump"), "pg_dump").await.unwrap_err();
        assert_eq!((missing.kind(), missing.to_string().as_str()), (Kind::Usage, "start pg_dump"));
    }
}
