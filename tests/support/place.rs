//! What the machine has: the server's programs, a user for them, free ports.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder with `initdb` and `postgres`: `$TENANTD_TEST_PG_BIN`, else the newest under /usr/lib/postgresql.
#[must_use]
pub fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os("TENANTD_TEST_PG_BIN").map(PathBuf::from) {
        assert!(named.join("initdb").exists(), "TENANTD_TEST_PG_BIN is {}, but there is no initdb", named.display());
        return named;
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").exists())
        .max()
        .map(|(_, programs)| programs)
        .expect(
            "no Postgres server under /usr/lib/postgresql: run `make test`, or name a folder in TENANTD_TEST_PG_BIN",
        )
}

/// The user that servers run as when this process is root.
pub(super) fn database_user() -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let known = users.lines().any(|line| line.starts_with("postgres:"));
    if known { "postgres" } else { "nobody" }.into()
}

/// A free port below those that the kernel hands out by itself, so that none is taken before it is used, or while a server restarts. One
/// after the other from a random one on, so that no two servers of a process get the same.
#[must_use]
pub fn free_port() -> u16 {
    const PORTS: u32 = 12_000;
    static FIRST: LazyLock<u32> =
        LazyLock::new(|| u32::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().expect("16 bytes")) % PORTS);
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = (*FIRST + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = 20_000 + u16::try_from(number).expect("a small number");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
