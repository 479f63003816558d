//! From a backup back into a database.

use std::path::Path;

use super::program::{Programs, fed, ran};
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::isolation::database_of;
use crate::pg::Server;

/// Reads the backup `file` into the database `name`, which is empty and open to us: everything in it belongs to the tenants' owner.
///
/// The comments on extensions are left out: only who made an extension may comment on it.
///
/// # Errors
/// [`Kind::Usage`] when there is no such file, or it is no backup. What `pg_restore` says: the database is half filled then.
pub async fn restore(server: &Server, config: &Config, file: &Path, name: &str, key: &str) -> Result<()> {
    let of_file = |error: Error| error.context(format!("read {} into a database", file.display()));
    must_be_there(file).await?;
    let programs = Programs::of(&config.backup);
    let schema = config.tenant.isolation == Isolation::Schema;
    let database = database_of(server, &config.tenant, name);
    let libpq = server.libpq(database, &format!("tenantd:{key}")).await?;
    let mut list = libpq.command(&programs.restore);
    let listed = ran(list.arg("--list").arg(file), "pg_restore").await;
    let listed = listed.map_err(|error| {
        of_file(error.with_kind(Kind::Usage).hint("name a file that `tenantd backup` or pg_dump --format=custom wrote"))
    })?;
    let mut command = libpq.command(&programs.restore);
    command.args(["--exit-on-error", "--no-owner", "--no-password", "--use-list=/dev/stdin"]);
    if let Some(owner) = &config.tenant.owner {
        command.arg(format!("--role={owner}"));
    }
    if schema {
        // Others work in the database: all of it comes, or nothing.
        command.arg("--single-transaction");
    }
    // The name of a database is no secret. A name with an equals sign would be taken for more than a name.
    command.arg("--dbname").arg(format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))).arg(file);
    let kept = without_comments_on_extensions(&listed);
    let kept = if schema { without_the_schema(&kept, name) } else { kept };
    fed(&mut command, "pg_restore", kept).await.map(drop).map_err(of_file)
}

async fn must_be_there(file: &Path) -> Result<()> {
    if tokio::fs::try_exists(file).await.unwrap_or(false) {
        return Ok(());
    }
    Err(Error::usage("there is no such file").context(format!("read {} into a database", file.display())))
}

/// Makes sure that the backup `file` is one of the schema `name`: what it holds goes by that name.
///
/// # Errors
/// [`Kind::Usage`] when it is of another, or no backup.
pub async fn must_be_of(server: &Server, config: &Config, file: &Path, name: &str) -> Result<()> {
    must_be_there(file).await?;
    let libpq = server.libpq(database_of(server, &config.tenant, name), "tenantd:restore").await?;
    let mut list = libpq.command(&Programs::of(&config.backup).restore);
    let listed = ran(list.arg("--list").arg(file), "pg_restore").await.map_err(|error| {
        let error = error.with_kind(Kind::Usage).context(format!("read {}", file.display()));
        error.hint("name a file that `tenantd backup` or pg_dump --format=custom --schema wrote")
    })?;
    if String::from_utf8_lossy(&listed).lines().any(|line| line.contains(&format!(" SCHEMA - {name} "))) {
        return Ok(());
    }
    Err(Error::usage(format!("{} holds no schema {name:?}", file.display()))
        .hint("a backup of a schema is read back under the name that it had"))
}

/// Without the lines that make the schema `name`, comment on it, or say who may enter: it is there, and marked as the tenant's.
fn without_the_schema(listed: &[u8], name: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(listed);
    let of_schema =
        [format!(" SCHEMA - {name} "), format!(" COMMENT - SCHEMA {name} "), format!(" ACL - SCHEMA {name} ")];
    let kept = text.lines().filter(|line| !of_schema.iter().any(|one| line.contains(one)));
    kept.fold(String::new(), |all, line| all + line + "\n").into_bytes()
}

/// Lines of the list: `7; 3079 16386 EXTENSION - citext`, `3500; 0 0 COMMENT - EXTENSION citext`.
fn without_comments_on_extensions(listed: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(listed);
    let kept = text.lines().filter(|line| !line.contains(" COMMENT - EXTENSION "));
    kept.fold(String::new(), |all, line| all + line + "\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_on_extensions_are_left_out() {
        let listed = b"; Archive\n2; 3079 16386 EXTENSION - citext \n3500; 0 0 COMMENT - EXTENSION citext \n3501; 0 0 COMMENT public TABLE t o\n";
        let kept = String::from_utf8(without_comments_on_extensions(listed)).unwrap();
        assert_eq!(kept, "; Archive\n2; 3079 16386 EXTENSION - citext \n3501; 0 0 COMMENT public TABLE t o\n");
    }
}
