//! Puts the migration folders into the binary: one table of (file name, bytes) for each.
//!
//! Nothing is judged here. What may stand in a folder is decided in one place, `migrations::source`, at load.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // As cargo says now, not as it said when this was compiled: a folder of builds may be shared by several checkouts.
    let root = PathBuf::from(
        env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("CARGO_MANIFEST_DIR is not set"))?,
    );
    let mut code = String::new();
    for (table, folder) in [("TENANT", "tenant-migrations"), ("MAIN", "main-migrations")] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
        let _ = writeln!(code, "static {table}: &[(&str, &[u8])] = &[");
        for name in names(&root.join(folder))? {
            let path = format!("/{folder}/{name}");
            let _ = writeln!(code, "    ({name:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),");
        }
        let _ = writeln!(code, "];");
    }
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    fs::write(Path::new(&out).join("migrations.rs"), code)
}

/// The names of a folder in order; a folder that is not there is an empty one.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| io::Error::other(format!("{} is no UTF-8", name.display())))?;
        if entry.path().is_dir() {
            return Err(io::Error::other(format!("{} is a folder in a folder of migrations", entry.path().display())));
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}
