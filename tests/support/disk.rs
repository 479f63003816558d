//! A small file system for a server's data, so that a test can fill it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::run;
use super::server::TestServer;

/// Mounts an empty file system of so many megabytes, in memory, at `path`. It goes with the server's directory.
///
/// # Panics
/// Where this process may not mount: what is tested by it cannot be seen without, so that there is nothing to do instead.
pub(super) fn mount(path: &Path, megabytes: u32) {
    fs::create_dir(path).expect("make the folder");
    let options = format!("size={megabytes}m,mode=0700");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tenantd-test"]).arg(path));
}

impl TestServer {
    /// Fills the server's own file system with a file of nobody's, until no more than `bytes` are left.
    pub fn fill_disk(&self, bytes: u64) {
        let state = rustix::fs::statvfs(self.data()).expect("ask for the room left");
        let mut left = (state.f_bavail * state.f_frsize).saturating_sub(bytes);
        let mut ballast = fs::File::create(self.ballast()).expect("make a file");
        let block = vec![0; 64 * 1024];
        while left > 0 {
            let length = left.min(64 * 1024);
            match ballast.write_all(&block[..usize::try_from(length).expect("small")]) {
                Ok(()) => left -= length,
                // The server was quicker.
                Err(error) if error.kind() == ErrorKind::StorageFull => {
                    let length = ballast.metadata().expect("its length").len();
                    ballast.set_len(length.saturating_sub(bytes)).expect("give room back");
                    return;
                }
                Err(error) => panic!("fill the disk: {error}"),
            }
        }
    }

    /// Takes away what [`Self::fill_disk`] put there.
    pub fn free_disk(&self) {
        fs::remove_file(self.ballast()).expect("remove the file");
    }

    fn ballast(&self) -> PathBuf {
        self.data().join("ballast")
    }
}
