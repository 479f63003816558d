//! What the server says about a migration's SQL, shown at the line that it is about.

use tokio_postgres::error::{DbError, ErrorPosition};

use crate::error::{Error, Kind};
use crate::migrations::place::{self, Place};
use crate::migrations::split::Statement;
use crate::migrations::{Down, Migration};
use crate::pg::sqlstate;

/// The longest piece of a line that is shown, in characters.
const SHOWN: usize = 160;

/// A file that is run: a migration's own, or the one that takes it back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script<'a> {
    pub(super) file: &'a str,
    pub(super) sql: &'a str,
}

impl<'a> From<&'a Migration> for Script<'a> {
    fn from(migration: &'a Migration) -> Self {
        Script { file: &migration.file, sql: &migration.sql }
    }
}

impl<'a> From<&'a Down> for Script<'a> {
    fn from(down: &'a Down) -> Self {
        Script { file: &down.file, sql: &down.sql }
    }
}

/// Why SQL of `script` failed. `sent` is the message that the server's position counts in; `statement` begins what failed, for errors
/// without a position.
pub(super) fn of_sql(
    script: Script<'_>,
    error: &tokio_postgres::Error,
    sent: Statement<'_>,
    statement: Option<usize>,
) -> Error {
    let Script { file, sql } = script;
    let Some(said) = error.as_db_error() else {
        return of_ours(sqlstate::translate(error)).context(format!("apply {file}"));
    };
    let position = match said.position() {
        Some(ErrorPosition::Original(position)) => {
            let nth = usize::try_from(*position).unwrap_or(usize::MAX).saturating_sub(1);
            let within = sent.text.char_indices().nth(nth).map_or(sent.text.len(), |(offset, _)| offset);
            Some(sent.offset + within)
        }
        _ => statement,
    };
    let text = match position.map(|offset| place::at_byte(sql, offset)) {
        Some(place) => {
            let Place { line, column, .. } = place;
            format!("{file}:{line}:{column}: {}\n{line:>5} | {}", words(said), shown(place))
        }
        None => format!("{file}: {}", words(said)),
    };
    let code = said.code().code();
    let error = Error::new(kind(code), text).sqlstate(code);
    match (code, said.hint()) {
        ("25001", _) => error.hint(format!(
            "begin {file} with the comment \"-- tenantd: no-transaction\", which sends its statements one by one without a transaction"
        )),
        (_, Some(hint)) => error.hint(hint),
        _ => error,
    }
}

/// Why SQL of ours failed while migrating: a lock that was not had in time is the tenant's affair here, not the server's.
pub(super) fn of_ours(error: Error) -> Error {
    match error.kind() {
        Kind::Locked => error.with_kind(Kind::MigrationLocked),
        Kind::InUse => error.with_kind(Kind::Migration),
        _ => error,
    }
}

/// What a SQLSTATE means when a migration's own SQL brought it: only what the server itself lacks is not the migration's fault.
fn kind(code: &str) -> Kind {
    match code {
        "55P03" | "40P01" | "40001" => Kind::MigrationLocked,
        // A limit that this migration exceeds, such as temp_file_limit: the server lacks nothing, and another try meets it again.
        "53400" => Kind::Migration,
        _ => match sqlstate::kind_of(&tokio_postgres::error::SqlState::from_code(code)) {
            kind
            @ (Kind::Unreachable | Kind::ReadOnly | Kind::TooManyConnections | Kind::DiskFull | Kind::Shortage) => kind,
            _ => Kind::Migration,
        },
    }
}

/// Message, SQLSTATE, detail and the place within functions, in one line.
fn words(said: &DbError) -> String {
    let mut text = format!("{} (SQLSTATE {})", said.message(), said.code().code());
    for more in [said.detail(), said.where_()].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(&more.replace('\n', " "));
    }
    text
}

/// The line, or what stands around the column of one that is too long to read.
fn shown(place: Place<'_>) -> String {
    let start = if place.column > SHOWN { place.column - SHOWN / 2 } else { 0 };
    place.text.chars().skip(start).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_trouble_is_not_the_migrations() {
        for (code, expected) in [
            ("42703", Kind::Migration),
            ("42501", Kind::Migration),
            ("57014", Kind::Migration),
            ("55006", Kind::Migration),
            ("28000", Kind::Migration),
            ("53400", Kind::Migration),
            ("55P03", Kind::MigrationLocked),
            ("40P01", Kind::MigrationLocked),
            ("40001", Kind::MigrationLocked),
            ("53100", Kind::DiskFull),
            ("53200", Kind::Shortage),
            ("57P01", Kind::Unreachable),
            ("25006", Kind::ReadOnly),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn of_a_long_line_the_part_around_the_column_is_shown() {
        let text = format!("{}here{}", "x".repeat(5000), "y".repeat(5000));
        let line = shown(place::at_byte(&text, 5000));
        assert!(line.contains("here") && line.chars().count() == SHOWN, "{line}");
        assert_eq!(shown(place::at_byte("select 1", 3)), "select 1");
    }
}
