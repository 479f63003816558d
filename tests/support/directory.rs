//! A server's directory, which goes whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::process::spawn;

/// A temporary directory with a guardian: a shell whose stdin ends when this value is dropped or this process ends, SIGKILL included.
/// It waits until the server is gone, then removes the directory, unless `TENANTD_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    guardian: Child,
}

const GUARDIAN: &str = r#"
trap '' HUP INT TERM
read -r _
tries=0
while process=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && [ -n "$process" ] && [ "$tries" -lt 100 ]; do
    kill -QUIT "$process" 2>/dev/null || break
    tries=$((tries + 1))
    sleep 0.1
done
umount "$1/data" 2>/dev/null
[ -n "$TENANTD_TEST_KEEP" ] || rm -rf -- "$1"
"#;

impl Directory {
    /// Makes an empty one.
    #[must_use]
    pub fn make() -> Self {
        let path = tempfile::Builder::new().prefix("tenantd-").tempdir().expect("a temporary directory").keep();
        let mut command = Command::new("sh");
        command.args(["-c", GUARDIAN, "guardian"]).arg(&path).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self { path, guardian: spawn(command) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}
