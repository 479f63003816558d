//! Where the password comes from, asked anew for each connection: tokens of cloud providers live minutes, and files are changed.
//!
//! In this order, the first that is set: `main.password_command`, `main.password_file`, the URL or `PGPASSWORD`, the password file
//! of libpq. The two keys come first since they name the place where the password is kept up to date; one in the URL is what
//! was left over.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use crate::config::connection::{Endpoint, Password};
use crate::error::{Error, Kind, Result};

/// The password that holds for every host: the command's, the file's, or the fixed one. `None`: look into the password file of libpq.
///
/// The caller bounds the time; a command that is given up is killed.
///
/// # Errors
/// [`Kind::Login`]: the command failed or printed nothing, the file cannot be read or is empty.
pub(super) async fn given(password: &Password) -> Result<Option<SecretString>> {
    if let Some(command) = &password.command {
        return from_command(command).await.map(Some).map_err(|error| error.context("run main.password_command"));
    }
    if let Some(file) = &password.file {
        return from_file(file).await.map(Some);
    }
    Ok(password.fixed.clone())
}

async fn from_command(command: &SecretString) -> Result<SecretString> {
    let failed = |why: String| Error::new(Kind::Login, why).hint("run the command by hand as the user of the daemon");
    let output = Command::new("sh")
        .args(["-c", command.expose_secret()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(format!("start sh: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    let password = String::from_utf8(output.stdout).map_err(|_| failed("what it printed is not UTF-8".to_owned()))?;
    one_line(&password).ok_or_else(|| failed("it printed no password".to_owned()))
}

async fn from_file(file: &Path) -> Result<SecretString> {
    let failed = |why: String| {
        Error::new(Kind::Login, why)
            .hint("main.password_file must hold the password and be readable by the daemon")
            .context(format!("read the password file {}", file.display()))
    };
    let text = tokio::fs::read_to_string(file).await.map_err(|error| failed(error.to_string()))?;
    one_line(&text).ok_or_else(|| failed("it is empty".to_owned()))
}

/// The text without the line end that editors and commands put behind it; `None` when nothing is left.
fn one_line(text: &str) -> Option<SecretString> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    (!text.is_empty()).then(|| SecretString::from(text))
}

/// What libpq's password file says.
pub(super) enum Passfile {
    /// No file, or none that can be read: libpq says nothing either.
    Absent,
    /// Others may read it, so that it is not used.
    Exposed,
    /// The text of it.
    Text(SecretString),
}

/// Reads libpq's password file.
pub(super) async fn passfile(file: &Path) -> Passfile {
    let Ok(metadata) = tokio::fs::metadata(file).await else { return Passfile::Absent };
    if !metadata.is_file() {
        return Passfile::Absent;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Passfile::Exposed;
    }
    tokio::fs::read_to_string(file).await.map_or(Passfile::Absent, |text| Passfile::Text(SecretString::from(text)))
}

/// The password of the first line of `text` that fits; the lines are `host:port:database:user:password`.
pub(super) fn find(text: &SecretString, endpoint: &Endpoint, database: &str, user: &str) -> Option<SecretString> {
    let port = endpoint.port.to_string();
    let wanted = [endpoint.place.in_passfile(), &port, database, user];
    text.expose_secret().lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line.strip_suffix('\r').unwrap_or(line);
        for wanted in wanted {
            let (field, behind) = field(rest)?;
            if field != wanted && rest[..rest.len() - behind.len() - 1] != *"*" {
                return None;
            }
            rest = behind;
        }
        // libpq ends the password at the next colon that is not escaped, too.
        let password = field(rest).map_or_else(|| unescape(rest), |(password, _)| password);
        (!password.is_empty()).then(|| SecretString::from(password))
    })
}

/// The text up to the first colon that is not escaped, unescaped, and what follows that colon.
fn field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            ':' if !escaped => return Some((unescape(&text[..at]), &text[at + 1..])),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::connection::{Place, SslMode};

    fn endpoint(name: &str, port: u16) -> Endpoint {
        Endpoint { place: Place::Host { name: name.to_owned(), address: None }, port, mode: SslMode::VerifyFull }
    }

    fn found(text: &str, host: &str, database: &str) -> Option<String> {
        find(&SecretString::from(text), &endpoint(host, 5432), database, "tenantd")
            .map(|it| it.expose_secret().to_owned())
    }

    #[test]
    fn the_first_line_that_fits_is_taken() {
        let table = [
            ("db:5432:app:tenantd:secret", Some("secret")),
            ("db:5432:app:tenantd:secret\r\n", Some("secret")),
            ("*:*:*:*:any", Some("any")),
            ("# db:5432:app:tenantd:no\ndb:*:app:tenantd:yes", Some("yes")),
            ("other:*:*:*:a\ndb:5433:*:*:b\ndb:*:other:*:c\ndb:*:*:other:d\n*:*:*:tenantd:e", Some("e")),
            ("db:*:*:*:one\ndb:*:*:*:two", Some("one")),
            ("db:5432:app:tenantd:a\\:b\\\\c", Some("a:b\\c")),
            ("db:5432:app:tenantd:a:b", Some("a")),
            ("db:5432:app:tenantd:a#b \u{e9}", Some("a#b \u{e9}")),
            ("db:5432:app:tenantd:end\\", Some("end\\")),
            ("\\*:5432:app:tenantd:literal", None),
            ("db:5432:app:tenantd:", None),
            ("db:5432:app:tenantd", None),
            ("db:5432:app", None),
            ("", None),
            ("::::", None),
        ];
        for (text, password) in table {
            assert_eq!(found(text, "db", "app").as_deref(), password, "{text}");
        }
    }

    #[test]
    fn escaped_colons_stand_for_an_address_and_a_tenant_needs_the_star() {
        assert_eq!(found("\\:\\:1:5432:*:tenantd:six", "::1", "app").as_deref(), Some("six"));
        let lines = "db:5432:app:tenantd:main\n";
        assert_eq!(found(lines, "db", "tenant_x"), None);
        assert_eq!(found("db:5432:*:tenantd:all", "db", "tenant_x").as_deref(), Some("all"));
    }

    #[test]
    fn the_usual_socket_is_localhost() {
        let socket =
            |folder: &str| Endpoint { place: Place::Socket(folder.into()), port: 5432, mode: SslMode::Disable };
        let text = SecretString::from("localhost:5432:app:tenantd:usual\n/run/pg:5432:app:tenantd:own");
        let found = |folder| find(&text, &socket(folder), "app", "tenantd").unwrap().expose_secret().to_owned();
        assert_eq!(found("/var/run/postgresql"), "usual");
        assert_eq!(found("/run/pg"), "own");
    }

    #[tokio::test]
    async fn a_file_that_others_may_read_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgpass");
        assert!(matches!(passfile(&file).await, Passfile::Absent));
        std::fs::write(&file, "*:*:*:*:x").unwrap();
        for (mode, exposed) in [(0o600, false), (0o640, true), (0o604, true), (0o400, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(matches!(passfile(&file).await, Passfile::Exposed), exposed, "{mode:o}");
        }
        assert!(matches!(passfile(folder.path()).await, Passfile::Absent));
    }

    async fn commanded(command: &str) -> Result<String> {
        from_command(&SecretString::from(command)).await.map(|password| password.expose_secret().to_owned())
    }

    #[tokio::test]
    async fn a_command_prints_the_password_or_says_why_not() {
        assert_eq!(commanded("echo 'a b '").await.unwrap(), "a b ");
        assert_eq!(commanded("printf 'a\\nb'").await.unwrap(), "a\nb");
        for (command, said) in [
            ("echo secret; echo; echo 'no token' >&2; echo more >&2; exit 3", "exit status: 3: no token"),
            ("exit 1", "exit status: 1: it said nothing"),
            ("true", "it printed no password"),
            ("echo", "it printed no password"),
            ("printf '\\377'", "not UTF-8"),
        ] {
            let error = commanded(command).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Login);
            assert!(error.chain().contains(said) && !error.chain().contains("secret"), "{}", error.chain());
        }
    }

    #[tokio::test]
    async fn command_then_file_then_fixed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "from file\n").unwrap();
        let mut password = Password {
            command: Some("echo from command".into()),
            file: Some(file.clone()),
            fixed: Some("fixed".into()),
            passfile: None,
        };
        assert_eq!(given(&password).await.unwrap().unwrap().expose_secret(), "from command");
        password.command = None;
        assert_eq!(given(&password).await.unwrap().unwrap().expose_secret(), "from file");
        std::fs::write(&file, "").unwrap();
        let error = given(&password).await.unwrap_err();
        assert!(error.chain().contains("password: it is empty"), "{}", error.chain());
        assert_eq!(error.kind(), Kind::Login);
        password.file = None;
        assert_eq!(given(&password).await.unwrap().unwrap().expose_secret(), "fixed");
        password.fixed = None;
        assert!(given(&password).await.unwrap().is_none());
    }
}
