//! Fail points: the places between two steps of the work where a test lets the process die, as SIGKILL would. A release build has none of it.

/// Between which two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The tenant is claimed, and nothing is done.
    Claimed,
    /// The tenant has its name.
    Named,
    /// The random name is written down; no database yet.
    Announced,
    /// The database is made under its random name, closed to connections.
    Made,
    /// PUBLIC is shut out, the door is open.
    Opened,
    /// The roles of `tenant.use` have their rights.
    Granted,
    /// The migrations are applied.
    Migrated,
    /// The database is closed again, to be handed over.
    Closed,
    /// The transaction of the hand-over holds the tenant's row.
    Fenced,
    /// The database has its real name, as far as the transaction sees.
    Renamed,
    /// The tenant is recorded ready, as far as the transaction sees.
    Recorded,
    /// The hand-over is committed, and nobody was told.
    HandedOver,
    /// A database that is not whole was moved to a random name, and is not dropped.
    SetAside,
    /// A database that the registry had lost is in it again.
    TakenBack,
    /// Owner or rights of a database were mended from outside.
    Mended,
    /// Nothing is left to do, and that is not recorded.
    Looked,
}

impl Point {
    /// Every point, in the order of the work.
    pub const ALL: [Point; 16] = [
        Point::Claimed,
        Point::Named,
        Point::Announced,
        Point::Made,
        Point::Opened,
        Point::Granted,
        Point::Migrated,
        Point::Closed,
        Point::Fenced,
        Point::Renamed,
        Point::Recorded,
        Point::HandedOver,
        Point::SetAside,
        Point::TakenBack,
        Point::Mended,
        Point::Looked,
    ];

    /// The word for it in the variable `TENANTD_FAIL_POINT`.
    #[must_use]
    pub fn word(self) -> String {
        format!("{self:?}")
    }
}

/// Where this process dies. Set once, at its start: no setting reaches the places deep inside the work that ask.
#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<Point> = std::sync::OnceLock::new();

/// Lets this process die at the point called `word`; the first call counts. A word that names no point does nothing.
#[cfg(debug_assertions)]
pub fn arm(word: &str) {
    if let Some(point) = Point::ALL.into_iter().find(|point| point.word() == word) {
        ARMED.get_or_init(|| point);
    }
}

/// Says that the work has come to `point`. In a build without debug assertions nothing.
#[inline]
pub fn reach(point: Point) {
    #[cfg(debug_assertions)]
    if ARMED.get() == Some(&point) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}
