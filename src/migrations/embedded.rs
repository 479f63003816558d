//! The migration sets built into the binary, read by the same rules as a folder.

use super::MigrationSet;
use super::source::{self, Audience, File};
use crate::error::Result;

include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// How the embedded sets are called where a folder would be named.
pub const SOURCE: &str = "embedded";

/// The tenant migrations that were in `tenant-migrations/` when this binary was built.
///
/// # Errors
/// [`crate::error::Kind::Usage`] when that folder broke a rule; a test keeps the shipped one right.
pub fn tenant() -> Result<MigrationSet> {
    read(TENANT, "tenant-migrations", Audience::Tenant)
}

/// The registry's own migrations.
///
/// # Errors
/// As [`tenant`].
pub fn main() -> Result<MigrationSet> {
    read(MAIN, "main-migrations", Audience::Main)
}

fn read(table: &[(&str, &[u8])], folder: &str, audience: Audience) -> Result<MigrationSet> {
    let files = table.iter().map(|&(name, bytes)| File { name: name.to_owned(), content: Ok(bytes.to_vec()) });
    source::read_files(SOURCE, folder, files.collect(), audience)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_shipped_tenant_migrations_load() {
        let set = tenant().unwrap();
        assert_eq!(set.source(), "embedded");
        let first = &set.migrations()[0];
        assert_eq!((first.version, first.name.as_str()), (1, "log_message"));
        assert_eq!(first.file, "tenant-migrations/0001_log_message.up.sql");
        assert!(first.down.is_some());
    }

    #[test]
    fn the_binary_holds_what_the_folders_hold() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sets = [("tenant-migrations", tenant(), Audience::Tenant), ("main-migrations", main(), Audience::Main)];
        for (name, embedded, audience) in sets {
            let folder = root.join(name);
            if folder.is_dir() {
                assert_eq!(embedded.unwrap().id(), source::read_folder(&folder, audience).unwrap().id());
            } else {
                assert_eq!(embedded.unwrap_err().to_string(), "embedded holds no migration");
            }
        }
    }
}
