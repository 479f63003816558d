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
    /// The hand-over is about to be sent.
    Taken,
    /// The hand-over is committed, and nobody was told.
    HandedOver,
    /// The template's name is written down; no database yet.
    TemplateAnnounced,
    /// The template's database is made, closed to connections.
    TemplateMade,
    /// It bears its marker, and the door is open.
    TemplateOpened,
    /// It holds its extensions, grants and migrations.
    TemplateFilled,
    /// It is closed for good, and not in service.
    TemplateClosed,
    /// It is in service.
    TemplateComplete,
    /// Nothing is made any more from a template that nobody needs; it is there still.
    TemplateRetired,
    /// The random name of a spare for anyone is written down; no database yet.
    SpareAnnounced,
    /// That spare's database is made, and at nobody's hand.
    SpareMade,
    /// A spare that is to go is at nobody's hand any more, and is there still.
    SpareWithdrawn,
    /// The roles of `tenant.use` have the rights they lacked in a tenant.
    Granted,
    /// Migrations that a tenant lacked are applied.
    Migrated,
    /// A database that is not whole was moved to a random name, and is not dropped.
    SetAside,
    /// A database that the registry had lost is in it again.
    TakenBack,
    /// Owner or rights of a database were mended from outside.
    Mended,
    /// Nothing is left to do, and that is not recorded.
    Looked,
    /// A tenant is held to be rolled back, and nothing was taken back.
    RollbackBegun,
    /// One migration was taken back.
    Undone,
    /// One statement of a down file without a transaction is done, and not counted.
    StatementUndone,
    /// All is taken back, and that is not recorded.
    RolledBack,
    /// A backup is whole, and no event tells of it.
    BackedUp,
    /// A tenant's database that is to be set aside is closed to connections.
    Shut,
    /// It is set aside, and the registry knows.
    Dropped,
    /// What was set aside is about to be dropped for good; nobody can take it back any more.
    Condemned,
    /// It is dropped for good, and is in the registry still.
    Purged,
    /// What was set aside is the tenant's database again.
    Restored,
    /// A backup was read into a database under a random name.
    Filled,
    /// A database under a random name took the place of the tenant's own, which is set aside.
    Exchanged,
}

impl Point {
    /// Every point, in the order of the work.
    pub const ALL: [Point; 34] = [
        Point::Claimed,
        Point::Named,
        Point::Announced,
        Point::Made,
        Point::Taken,
        Point::HandedOver,
        Point::TemplateAnnounced,
        Point::TemplateMade,
        Point::TemplateOpened,
        Point::TemplateFilled,
        Point::TemplateClosed,
        Point::TemplateComplete,
        Point::TemplateRetired,
        Point::SpareAnnounced,
        Point::SpareMade,
        Point::SpareWithdrawn,
        Point::Granted,
        Point::Migrated,
        Point::SetAside,
        Point::TakenBack,
        Point::Mended,
        Point::Looked,
        Point::RollbackBegun,
        Point::Undone,
        Point::StatementUndone,
        Point::RolledBack,
        Point::BackedUp,
        Point::Shut,
        Point::Dropped,
        Point::Condemned,
        Point::Purged,
        Point::Restored,
        Point::Filled,
        Point::Exchanged,
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
