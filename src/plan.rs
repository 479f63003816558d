//! The planner: from what is desired and what is observed to the steps between. Pure; a dry run prints what apply would execute.

use std::fmt;

use crate::error::{Error, Kind, Result};
use crate::migrations::MigrationSet;
use crate::migrations::compare::{Recorded, compare};
use crate::tenant::State;

/// What a tenant should be.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// The name of its database.
    pub name: &'a str,
    /// The role that owns it.
    pub owner: &'a str,
    /// The fingerprint of owner and grants.
    pub access: &'a str,
    /// The migrations it should have.
    pub set: &'a MigrationSet,
    /// Whether a version below its newest is applied.
    pub out_of_order: bool,
}

/// What a tenant is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What the application relies on, by the registry.
    pub state: State,
    /// The oid that the registry knows.
    pub recorded_oid: Option<u32>,
    /// The fingerprint of owner and grants that it was last given.
    pub access: Option<String>,
    /// What stands on the server under its name.
    pub database: Option<Database>,
}

/// A database as the server's catalogue shows it, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its oid.
    pub oid: u32,
    /// The role that owns it.
    pub owner: String,
    /// Whether it bears the marker of this registry and this key.
    pub ours: bool,
    /// Whether it is whole: false after an interrupted CREATE or DROP.
    pub valid: bool,
    /// Whether it takes connections.
    pub open: bool,
    /// Whether PUBLIC may connect.
    pub public: bool,
    /// Its migrations; `None` when nobody looked inside, since it is closed, not whole, or not ours.
    pub applied: Option<Vec<Recorded>>,
}

/// One step towards what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Move a database that is not whole to a random name and drop it there.
    DropInvalid,
    /// Make a database under a random name, closed to PUBLIC.
    Make,
    /// Give the owner's objects to the roles that use the tenant.
    Grant,
    /// Apply these versions, in this order.
    Migrate(Vec<i64>),
    /// Name it, mark it, open it and record it ready, in one transaction.
    HandOver,
    /// Take a marked database of ours back into the registry that lost it.
    TakeBack,
    /// Take CONNECT away from PUBLIC.
    Close,
    /// Give it to its owner.
    Own,
    /// Let it take connections again.
    Open,
}

impl Step {
    /// The step's name in logs, metrics and `error_step`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Step::DropInvalid => "drop_invalid",
            Step::Make => "make",
            Step::Grant => "grant",
            Step::Migrate(_) => "migrate",
            Step::HandOver => "hand_over",
            Step::TakeBack => "take_back",
            Step::Close => "close",
            Step::Own => "own",
            Step::Open => "open",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Migrate(versions) => {
                let versions: Vec<String> = versions.iter().map(i64::to_string).collect();
                write!(f, "migrate to {}", versions.join(", "))
            }
            step => f.write_str(&step.word().replace('_', " ")),
        }
    }
}

/// The steps from `observed` to `desired`; none when nothing is left to do.
///
/// What can only be seen after a step (the inside of a database that is closed) is planned by the next look.
///
/// # Errors
/// A state that must not be changed, only told: [`Kind::Conflict`], [`Kind::Missing`], [`Kind::Replaced`], [`Kind::Drift`], [`Kind::Newer`].
pub fn plan(desired: &Desired<'_>, observed: &Observed) -> Result<Vec<Step>> {
    let Some(database) = &observed.database else {
        return absent(desired, observed);
    };
    refuse_foreign(desired, observed, database)?;
    if !database.valid {
        return Ok(vec![Step::DropInvalid]);
    }
    let mut steps = Vec::new();
    if observed.recorded_oid.is_none() {
        steps.push(Step::TakeBack);
    }
    if database.public {
        steps.push(Step::Close);
    }
    if database.owner != desired.owner {
        steps.push(Step::Own);
    }
    if !database.open {
        steps.push(Step::Open);
    }
    if let Some(applied) = &database.applied {
        if observed.access.as_deref() != Some(desired.access) {
            steps.push(Step::Grant);
        }
        steps.extend(pending(desired, applied)?);
    }
    Ok(steps)
}

fn absent(desired: &Desired<'_>, observed: &Observed) -> Result<Vec<Step>> {
    if observed.state != State::Requested {
        return Err(Error::new(Kind::Missing, format!("the database {:?} is gone", desired.name)).hint(format!(
            "restore it from a backup under this name; for an empty one instead: \
             update tenantd.tenant set state = 'requested', work = 'due', due_at = now(), database_oid = null where name = '{}'",
            desired.name
        )));
    }
    let versions = desired.set.migrations().iter().map(|migration| migration.version).collect();
    Ok(vec![Step::Make, Step::Grant, Step::Migrate(versions), Step::HandOver])
}

/// A database that somebody else made, or put in the place of ours, is never touched.
fn refuse_foreign(desired: &Desired<'_>, observed: &Observed, database: &Database) -> Result<()> {
    if let Some(recorded) = observed.recorded_oid
        && recorded != database.oid
    {
        return Err(Error::new(
            Kind::Replaced,
            format!(
                "another database (oid {}) stands under the name {:?} in the place of ours (oid {recorded})",
                database.oid, desired.name
            ),
        )
        .hint("was it restored? `tenantd adopt KEY` takes it back; else rename it out of the way"));
    }
    if !database.ours {
        return Err(Error::new(
            Kind::Conflict,
            format!("the database {:?} exists and does not bear this registry's marker", desired.name),
        )
        .hint(
            "somebody else made it, or its COMMENT was changed: rename or drop it, then run `tenantd --sweep-once`",
        ));
    }
    Ok(())
}

fn pending(desired: &Desired<'_>, applied: &[Recorded]) -> Result<Option<Step>> {
    let pending = compare(desired.set, applied, desired.out_of_order).pending()?;
    let versions: Vec<i64> = pending.iter().map(|migration| migration.version).collect();
    Ok((!versions.is_empty()).then_some(Step::Migrate(versions)))
}
