//! From the driver's errors to ours: the SQLSTATEs that are treated specially, each with what it means here.

use tokio_postgres::error::{DbError, SqlState};

use crate::error::{Error, Kind, Result};

/// Names what was being done when the driver failed.
pub trait Doing<T> {
    /// Turns the driver's error into ours; `what` is verb and object, as in `create database "x"`.
    ///
    /// # Errors
    /// The failure, with its kind by SQLSTATE.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, tokio_postgres::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| translate(&error).context(what()))
    }
}

/// The driver's error as ours: the server's own words with their SQLSTATE, or the whole chain of a broken connection.
#[must_use]
pub fn translate(error: &tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) => from_server(said),
        None => Error::new(driver_kind(error), chain(error)),
    }
}

/// A failure that never reached the server: a broken connection, or a value of a type that was not asked for.
fn driver_kind(error: &tokio_postgres::Error) -> Kind {
    let io = std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
    if error.is_closed() || io { Kind::Unreachable } else { Kind::Other }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What the server said, as our error: message, detail and hint in one text, the SQLSTATE beside it.
#[must_use]
pub fn from_server(said: &DbError) -> Error {
    let mut message = format!("{} (SQLSTATE {})", said.message(), said.code().code());
    if let Some(detail) = said.detail() {
        message.push_str("; ");
        message.push_str(detail);
    }
    let kind = kind_by_words(said.code(), said.message()).unwrap_or_else(|| kind_of(said.code()));
    let error = Error::new(kind, message).sqlstate(said.code().code());
    let full = (kind == Kind::DiskFull).then_some(&SqlState::DISK_FULL);
    match advice_for(full.unwrap_or(said.code())).or(said.hint()) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What a full disk makes the server say without a SQLSTATE of its own, as an internal error: a login that cannot write the cache of its database, which
/// is never translated, and a DROP DATABASE whose checkpoint fails, in English. Both ask the system for room.
fn kind_by_words(code: &SqlState, message: &str) -> Option<Kind> {
    let internal = *code == SqlState::INTERNAL_ERROR;
    let of_disk = message.starts_with("could not write init file") || message == "checkpoint request failed";
    (internal && of_disk).then_some(Kind::DiskFull)
}

/// A failure that a function of ours caught on the server and told by its SQLSTATE and message.
#[must_use]
pub fn told(code: &str, message: &str) -> Error {
    let state = SqlState::from_code(code);
    let error = Error::new(kind_of(&state), format!("{message} (SQLSTATE {code})")).sqlstate(code);
    match advice_for(&state) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What a SQLSTATE means for whatever was being done. Where the place decides (a lock inside a migration), the caller corrects it.
#[must_use]
pub fn kind_of(code: &SqlState) -> Kind {
    match code.code() {
        "25006" => Kind::ReadOnly,
        "53300" => Kind::TooManyConnections,
        "53100" => Kind::DiskFull,
        "42501" => Kind::Rights,
        "55P03" => Kind::Locked,
        // 57014: cut by our own statement_timeout on CREATE or RENAME, since somebody sits in the database.
        "55006" | "57014" => Kind::InUse,
        code if code.starts_with("08") || code.starts_with("57P") => Kind::Unreachable,
        code if code.starts_with("53") => Kind::Shortage,
        code if code.starts_with("28") => Kind::Login,
        _ => Kind::Other,
    }
}

fn advice_for(code: &SqlState) -> Option<&'static str> {
    Some(match code.code() {
        "53300" => "raise max_connections or the role's CONNECTION LIMIT, or lower work.parallel and sweep.parallel",
        "53100" => "free space on the server's disk; tenantd goes on by itself",
        "25006" => {
            "tenantd waits for the server to take writes again; with several hosts in main.url it finds the new primary"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    #[test]
    fn a_full_disk_is_known_by_its_words_too() {
        let of = |code: &str, message: &str| kind_by_words(&SqlState::from_code(code), message);
        assert_eq!(of("XX000", "could not write init file: No space left on device"), Some(Kind::DiskFull));
        assert_eq!(of("XX000", "checkpoint request failed"), Some(Kind::DiskFull));
        assert_eq!(of("XX000", "cache lookup failed for relation 1"), None);
        assert_eq!(of("58030", "could not write init file"), None);
    }

    #[test]
    fn the_codes_that_matter_are_told_apart() {
        let table = [
            ("08006", Kind::Unreachable, Class::Server),
            ("57P01", Kind::Unreachable, Class::Server),
            ("57P03", Kind::Unreachable, Class::Server),
            ("25006", Kind::ReadOnly, Class::Server),
            ("53300", Kind::TooManyConnections, Class::Server),
            ("53100", Kind::DiskFull, Class::Server),
            ("53200", Kind::Shortage, Class::Server),
            ("28P01", Kind::Login, Class::Server),
            ("42501", Kind::Rights, Class::Server),
            ("55P03", Kind::Locked, Class::Server),
            ("55006", Kind::InUse, Class::Soon),
            ("57014", Kind::InUse, Class::Soon),
            ("42P01", Kind::Other, Class::Later),
        ];
        for (code, kind, class) in table {
            let told = kind_of(&SqlState::from_code(code));
            assert_eq!((told, told.class()), (kind, class), "{code}");
        }
    }
}
