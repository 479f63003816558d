//! Fail points: the places between two steps of the work where a test lets the process die, as SIGKILL would, or stand still. A release build
//! has none of it.
//!
//! | `TENANTD_FAIL_POINT` | what happens |
//! |---|---|
//! | `Made` | the process dies at the point [`Point::Made`] |
//! | `hang:Made` | whoever comes there goes no further, and can only be broken off |
//! | `hold:Made` | whoever comes there goes on when the process is asked to end |
//! | `wedge:intake` | the loop `intake` stands still in the middle of a turn |

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
    /// Something was done to a schema in a database of the tenants' own, and the registry's transaction is open.
    CarriedOut,
    /// The registry gave such a schema another name, and it bears the old one still.
    Moved,
    /// Nothing is left to do, and that is not recorded.
    Looked,
    /// Users without a tenant were found in the signup table, and have rows in the registry now.
    Requested,
    /// A migration has its transaction and its lock, and its SQL is not sent.
    MigrationBegun,
    /// One statement of a migration without a transaction is done, and not counted.
    StatementDone,
    /// The canaries of a rollout are chosen, and none is touched.
    CanariesChosen,
    /// They have passed: new tenants get the set, and the others are to follow.
    CanariesPassed,
    /// A rollout is paused, and its driver has not let go of it.
    RolloutPaused,
    /// A wave of a rollout was reached, and the next is not begun.
    WaveEnded,
    /// Every tenant was reached.
    RolloutDone,
    /// A tenant is held to be rolled back, and nothing was taken back.
    RollbackBegun,
    /// One migration was taken back.
    Undone,
    /// One statement of a down file without a transaction is done, and not counted.
    StatementUndone,
    /// All is taken back, and that is not recorded.
    RolledBack,
    /// A backup is written, under a name that is no backup's.
    Dumped,
    /// A backup is whole, and no event tells of it.
    BackedUp,
    /// A tenant's database that is to be set aside is closed to connections.
    Shut,
    /// Everybody has left it.
    Vacated,
    /// It is set aside, and the registry knows.
    Dropped,
    /// What was set aside is about to be dropped for good; nobody can take it back any more.
    Condemned,
    /// It is dropped for good, and is in the registry still.
    Purged,
    /// What was set aside is the tenant's database again.
    Restored,
    /// The empty database that a backup is to be read into is made.
    FillBegun,
    /// A backup was read into a database under a random name.
    Filled,
    /// A database under a random name took the place of the tenant's own, which is set aside.
    Exchanged,
    /// A database that is to be adopted was given to its owner.
    Owned,
    /// What it holds is written down in it as applied.
    Baselined,
    /// It is a tenant's.
    Adopted,
}

impl Point {
    /// Every point, in the order of the work.
    pub const ALL: [Point; 50] = [
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
        Point::CarriedOut,
        Point::Moved,
        Point::Looked,
        Point::Requested,
        Point::MigrationBegun,
        Point::StatementDone,
        Point::CanariesChosen,
        Point::CanariesPassed,
        Point::RolloutPaused,
        Point::WaveEnded,
        Point::RolloutDone,
        Point::RollbackBegun,
        Point::Undone,
        Point::StatementUndone,
        Point::RolledBack,
        Point::Dumped,
        Point::BackedUp,
        Point::Shut,
        Point::Vacated,
        Point::Dropped,
        Point::Condemned,
        Point::Purged,
        Point::Restored,
        Point::FillBegun,
        Point::Filled,
        Point::Exchanged,
        Point::Owned,
        Point::Baselined,
        Point::Adopted,
    ];

    /// The word for it in the variable `TENANTD_FAIL_POINT`.
    #[must_use]
    pub fn word(self) -> String {
        format!("{self:?}")
    }
}

/// What happens at the point, or in the loop, that is armed.
#[cfg(debug_assertions)]
#[derive(Debug, Clone, PartialEq, Eq)]
enum Armed {
    Die(Point),
    Hang(Point),
    Hold(Point),
    Wedge(String),
}

/// What this process does. Set once, at its start: no setting reaches the places deep inside the work that ask.
#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<Armed> = std::sync::OnceLock::new();

/// Whether the process was asked to end, and who waits for that.
#[cfg(debug_assertions)]
static ENDING: std::sync::Mutex<(bool, Vec<std::task::Waker>)> = std::sync::Mutex::new((false, Vec::new()));

/// Arms this process as `words` say, see the module; the first call counts. Words that name no point do nothing.
#[cfg(debug_assertions)]
pub fn arm(words: &str) {
    let (action, word) = words.split_once(':').unwrap_or(("die", words));
    let point = || Point::ALL.into_iter().find(|point| point.word() == word);
    let armed = match action {
        "die" => point().map(Armed::Die),
        "hang" => point().map(Armed::Hang),
        "hold" => point().map(Armed::Hold),
        "wedge" => Some(Armed::Wedge(word.to_owned())),
        _ => None,
    };
    if let Some(armed) = armed {
        ARMED.get_or_init(|| armed);
    }
}

/// Says that the work has come to `point`. In a build without debug assertions nothing.
#[cfg(debug_assertions)]
pub async fn reach(point: Point) {
    match ARMED.get() {
        Some(Armed::Die(armed)) if *armed == point => std::process::abort(),
        Some(Armed::Hang(armed)) if *armed == point => {
            tracing::info!(?point, "the work hangs at a fail point");
            std::future::pending::<()>().await;
        }
        Some(Armed::Hold(armed)) if *armed == point => {
            tracing::info!(?point, "the work is held at a fail point");
            std::future::poll_fn(wait_for_ending).await;
        }
        _ => {}
    }
}

/// Says that the work has come to `point`. In a build without debug assertions nothing.
#[cfg(not(debug_assertions))]
#[inline]
pub fn reach(point: Point) -> std::future::Ready<()> {
    let _ = point;
    std::future::ready(())
}

#[cfg(debug_assertions)]
fn wait_for_ending(context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
    let mut ending = ENDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if ending.0 {
        return std::task::Poll::Ready(());
    }
    ending.1.push(context.waker().clone());
    std::task::Poll::Pending
}

/// The process was asked to end: what is held at a point goes on. In a build without debug assertions nothing.
pub fn ending() {
    #[cfg(debug_assertions)]
    {
        let mut ending = ENDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ending.0 = true;
        ending.1.drain(..).for_each(std::task::Waker::wake);
    }
}

/// Whether the loop `name` is to stand still. In a build without debug assertions never.
#[must_use]
pub fn is_wedged(name: &str) -> bool {
    #[cfg(debug_assertions)]
    let wedged = ARMED.get().is_some_and(|armed| matches!(armed, Armed::Wedge(armed) if armed == name));
    #[cfg(not(debug_assertions))]
    let wedged = {
        let _ = name;
        false
    };
    wedged
}
