//! Backups of single tenants: what `pg_dump` writes in its custom format, a file each, in one folder.
//!
//! A file gets its real name only when it is whole: written, read back by `pg_restore --list`, and on disk. Whatever else bears the name of
//! a backup with `.part` behind it was left by a process that died.

mod files;
mod program;
mod read;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use self::files::newest;
use self::files::{Part, file_name};
use self::program::{Programs, ran};
pub use self::read::{must_be_of, restore};
use crate::config::{self, Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::database_of;
use crate::pg::Server;
use crate::registry::Registry;
use crate::registry::events::What;

/// Where backups are written, and with what. Clones share what they know of the room that is taken.
#[derive(Debug, Clone)]
pub struct Backups {
    server: Server,
    registry: Registry,
    tenants: config::Tenant,
    folder: PathBuf,
    keep: Option<Duration>,
    programs: Programs,
    /// Bytes that backups in the making may still take.
    reserved: Arc<Mutex<u64>>,
}

/// A backup that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its file.
    pub file: PathBuf,
    /// How large that is.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Makes sure that the programs by which backups are written are there, and know a server of this version (150018 for 15.18).
///
/// # Errors
/// [`Kind::Usage`] with what to do.
pub async fn look_for_programs(settings: &config::Backup, server_version: i32) -> Result<()> {
    Programs::of(settings).must_know(server_version).await
}

impl Backups {
    /// Looks whether backups can be written by the settings; the folder is made if it is not there, for us alone.
    ///
    /// # Errors
    /// [`Kind::Usage`] with what to do: no folder is set, it cannot be written to, there is no `pg_dump`, or one older than the server.
    pub async fn open(server: &Server, registry: &Registry, config: &Config) -> Result<Backups> {
        let config::Backup { folder, keep, .. } = &config.backup;
        let folder = folder.clone().ok_or_else(|| {
            Error::usage("there is no folder for backups: backup.folder is not set").hint("set backup.folder")
        })?;
        files::make(&folder)?;
        let programs = Programs::of(&config.backup);
        programs.must_know(registry.server_version().await?).await?;
        let (server, registry, tenants) = (server.clone(), registry.clone(), config.tenant.clone());
        Ok(Backups { server, registry, tenants, folder, keep: *keep, programs, reserved: Arc::default() })
    }

    /// Where they are written.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a backup of the tenant `key`, whose database is `name`, and an event of it. Others may work in the tenant meanwhile: it is as it was
    /// at one moment near the beginning.
    ///
    /// # Guarantees
    /// When it returns the file is whole and on disk, and only we can read it. Dropped, or after a crash, it leaves no file of a backup's name.
    ///
    /// # Errors
    /// [`Kind::Missing`], [`Kind::Conflict`]: no database of that name bears the tenant's marker. [`Kind::Usage`]: the folder has no room.
    /// What `pg_dump` says.
    pub async fn write(&self, key: &str, name: &str) -> Result<Written> {
        let began = Instant::now();
        let written = self.dump(key, name).await.map_err(|error| error.context(format!("back up tenant {key}")))?;
        let (file, bytes) = written;
        reach(Point::BackedUp).await;
        let detail = format!("{}, {bytes} bytes", file.display());
        self.registry.tell(What::BackedUp, Some(key), Some(&detail)).await?;
        Ok(Written { file, bytes, took: began.elapsed() })
    }

    async fn dump(&self, key: &str, name: &str) -> Result<(PathBuf, u64)> {
        let size = self.registry.database_size(key, name).await?;
        let _reserved = self.reserve(u64::try_from(size).unwrap_or(0))?;
        let libpq =
            self.server.libpq(database_of(&self.server, &self.tenants, name), &format!("tenantd:{key}")).await?;
        let file = self.folder.join(file_name(name, Timestamp::now()));
        let part = Part::create(&file)?;
        let mut command = libpq.command(&self.programs.dump);
        command.args(["--format=custom", "--no-password", "--file"]).arg(part.path());
        if self.tenants.isolation == Isolation::Schema {
            // A pattern: in quotes it is the name alone.
            command.arg(format!("--schema=\"{}\"", name.replace('"', "\"\"")));
        }
        ran(&mut command, "pg_dump").await?;
        let mut list = libpq.command(&self.programs.restore);
        let listed = ran(list.arg("--list").arg(part.path()), "pg_restore").await?;
        if listed.is_empty() {
            return Err(Error::new(Kind::Other, format!("{} holds nothing", part.path().display())));
        }
        reach(Point::Dumped).await;
        let bytes = part.finish(&file)?;
        Ok((file, bytes))
    }

    /// Sees to it that there is room for `bytes`, beside all that is being written already. A backup is smaller than its database, as a rule.
    fn reserve(&self, bytes: u64) -> Result<Reserved> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let free = files::room(&self.folder)?;
        if free < reserved.saturating_add(bytes) {
            let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
            return Err(Error::usage(format!(
                "{} has {} MB of room, and the database takes {} MB{}",
                self.folder.display(),
                megabytes(free),
                megabytes(bytes),
                if *reserved > 0 { " beside those being written" } else { "" }
            ))
            .hint("free room there, or name another folder in backup.folder"));
        }
        *reserved += bytes;
        Ok(Reserved { bytes, all: Arc::clone(&self.reserved) })
    }

    /// Deletes the backups that are older than `backup.keep`, and what was left half written a day ago. Returns which.
    ///
    /// Only files whose names are those of backups are touched.
    ///
    /// # Errors
    /// The folder cannot be read. A file that cannot be deleted is told in the log, and stays.
    pub fn prune(&self) -> Result<Vec<PathBuf>> {
        files::prune(&self.folder, self.keep, Timestamp::now())
    }
}

/// Room that is spoken for, until it is dropped.
struct Reserved {
    bytes: u64,
    all: Arc<Mutex<u64>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        *self.all.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}
