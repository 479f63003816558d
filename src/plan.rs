//! The planner: from what is desired and what is observed to the steps between. Pure; a dry run prints what apply would execute.

use std::fmt;

use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::migrations::MigrationSet;
use crate::migrations::back::{Target, back};
use crate::migrations::compare::{Recorded, compare};
use crate::tenant::State;

/// What a tenant should be.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// What it has of its own.
    pub isolation: Isolation,
    /// The name of its database, or schema.
    pub name: &'a str,
    /// The comment that marks it as ours.
    pub marker: &'a str,
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
    /// Get a database under a random name, a clone of the template: a spare, or one made on demand.
    Make,
    /// Give the owner's objects to the roles that use the tenant.
    Grant,
    /// Apply these versions, in this order.
    Migrate(Vec<i64>),
    /// Mark it, name it, open it and record it ready, in one transaction.
    HandOver,
    /// Take a marked database of ours back into the registry that lost it.
    TakeBack,
    /// Take CONNECT away from PUBLIC.
    Close,
    /// Give it to its owner.
    Own,
    /// Let it take connections again.
    Open,
    /// Take these versions back, in this order, so that nothing newer than `to` is left. Only a person asks for it: [`plan_back`].
    RollBack {
        /// The newest that stays; 0: none does.
        to: i64,
        /// What is taken back, the newest first.
        versions: Vec<i64>,
    },
}

/// How a tenant stands that is to be rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Back {
    /// Its newest migration; 0: it has none.
    pub from: i64,
    /// The newest that stays; 0: none does.
    pub to: i64,
    /// What is taken back, the newest first; nothing where it is no newer than that already.
    pub versions: Vec<i64>,
}

impl Back {
    /// The step to take; none when there is nothing to take back.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        let Back { to, versions, .. } = self;
        (!versions.is_empty()).then(|| Step::RollBack { to: *to, versions: versions.clone() })
    }
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
            Step::RollBack { .. } => "roll_back",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |versions: &[i64]| versions.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Step::Migrate(versions) => write!(f, "migrate to {}", list(versions)),
            Step::RollBack { versions, .. } => write!(f, "roll back {}", list(versions)),
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

/// What is to be taken back of a tenant that stands, of what `desired.set` carries.
///
/// # Errors
/// Before anything is touched: what [`plan`] leaves alone, and what cannot be taken back, see [`back`]; [`Kind::Refused`] for a database that
/// cannot be looked into.
pub fn plan_back(desired: &Desired<'_>, observed: &Observed, target: Target) -> Result<Back> {
    let Some(database) = &observed.database else {
        return Err(Error::new(Kind::Missing, format!("the {} {:?} is gone", desired.isolation, desired.name)));
    };
    refuse_foreign(desired, observed, database)?;
    let applied = database.applied.as_ref().ok_or_else(|| {
        Error::new(Kind::Refused, format!("the {} {:?} is closed, or not whole", desired.isolation, desired.name))
            .hint("`tenantd --sweep-once` puts it right")
    })?;
    let back = back(desired.set, applied, target.version(applied))?;
    let versions: Vec<i64> = back.iter().map(|(migration, _)| migration.version).collect();
    let has = || applied.iter().map(|recorded| recorded.entry.version);
    // Of what is asked for it may have less.
    let to = has().filter(|version| !versions.contains(version)).max().unwrap_or(0);
    Ok(Back { from: has().max().unwrap_or(0), to, versions })
}

fn absent(desired: &Desired<'_>, observed: &Observed) -> Result<Vec<Step>> {
    if observed.state != State::Requested {
        let (kind, name) = (desired.isolation, desired.name);
        return Err(Error::new(Kind::Missing, format!("the {kind} {name:?} is gone")).hint(format!(
            "restore it from a backup under this name, then `tenantd adopt {name}`; for an empty one instead: `tenantd adopt {name} --empty`"
        )));
    }
    Ok(vec![Step::Make, Step::HandOver])
}

/// A database that somebody else made, or put in the place of ours, is never touched.
fn refuse_foreign(desired: &Desired<'_>, observed: &Observed, database: &Database) -> Result<()> {
    if let Some(recorded) = observed.recorded_oid
        && recorded != database.oid
    {
        return Err(Error::new(
            Kind::Replaced,
            format!(
                "another {} (oid {}) stands under the name {:?} in the place of ours (oid {recorded})",
                desired.isolation, database.oid, desired.name
            ),
        )
        .hint(format!(
            "if it is the tenant's, restored: `tenantd adopt {name}` takes it as it stands; if not, rename it out of the way",
            name = desired.name
        )));
    }
    if !database.ours {
        return Err(Error::new(
            Kind::Conflict,
            format!("the {} {:?} exists and does not bear this registry's marker", desired.isolation, desired.name),
        )
        .hint(
            "somebody else made it, or its COMMENT was changed: rename or drop it, then run `tenantd --sweep-once`; if it is the tenant's: `tenantd adopt`",
        ));
    }
    Ok(())
}

fn pending(desired: &Desired<'_>, applied: &[Recorded]) -> Result<Option<Step>> {
    let pending = compare(desired.set, applied, desired.out_of_order).pending()?;
    let versions: Vec<i64> = pending.iter().map(|migration| migration.version).collect();
    Ok((!versions.is_empty()).then_some(Step::Migrate(versions)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;
    use crate::migrations::tests::migration;
    use crate::migrations::{Down, Migration, Mode};

    fn set(versions: &[i64]) -> MigrationSet {
        let migrations: Vec<Migration> =
            versions.iter().map(|version| migration(*version, "name", "select 1")).collect();
        MigrationSet::new("folder", migrations).unwrap()
    }

    fn desired(set: &MigrationSet) -> Desired<'_> {
        Desired {
            isolation: Isolation::Database,
            name: "tenant_x",
            marker: "marker",
            owner: "owner",
            access: "access",
            set,
            out_of_order: false,
        }
    }

    fn applied(set: &MigrationSet) -> Vec<Recorded> {
        set.entries().into_iter().map(Recorded::from).collect()
    }

    /// A tenant that has `set` and is as it should be.
    fn ready(set: &MigrationSet) -> Observed {
        let database = Database {
            oid: 7,
            owner: "owner".to_owned(),
            ours: true,
            valid: true,
            open: true,
            public: false,
            applied: Some(applied(set)),
        };
        Observed {
            state: State::Ready,
            recorded_oid: Some(7),
            access: Some("access".to_owned()),
            database: Some(database),
        }
    }

    /// [`ready`] with one thing changed.
    fn changed(set: &MigrationSet, change: impl FnOnce(&mut Observed, &mut Database)) -> Observed {
        let mut observed = ready(set);
        let mut database = observed.database.take().unwrap();
        change(&mut observed, &mut database);
        observed.database = Some(database);
        observed
    }

    fn made() -> Vec<Step> {
        vec![Step::Make, Step::HandOver]
    }

    #[test]
    fn each_state_has_its_steps() {
        let (one, both) = (set(&[1]), set(&[1, 2]));
        let nothing = |state| Observed { state, recorded_oid: None, access: None, database: None };
        let table = [
            ("as it should be", ready(&both), vec![]),
            ("not there yet", nothing(State::Requested), made()),
            ("there once, asked for anew", Observed { recorded_oid: Some(7), ..nothing(State::Requested) }, made()),
            ("not whole", changed(&both, |_, database| database.valid = false), vec![Step::DropInvalid]),
            (
                "not whole, and nothing else is right",
                changed(&both, |_, database| {
                    *database = Database { valid: false, open: false, public: true, applied: None, ..database.clone() };
                }),
                vec![Step::DropInvalid],
            ),
            ("lost by the registry", changed(&both, |seen, _| seen.recorded_oid = None), vec![Step::TakeBack]),
            ("open to PUBLIC", changed(&both, |_, database| database.public = true), vec![Step::Close]),
            ("another's", changed(&both, |_, database| database.owner = "x".to_owned()), vec![Step::Own]),
            (
                "closed: the inside is for the next look",
                changed(&both, |seen, database| {
                    (seen.access, database.open, database.applied) = (None, false, None);
                }),
                vec![Step::Open],
            ),
            ("other rights", changed(&both, |seen, _| seen.access = Some("old".to_owned())), vec![Step::Grant]),
            ("behind", ready(&one), vec![Step::Migrate(vec![2])]),
            (
                "all at once, in an order that never shows it half done",
                changed(&one, |seen, database| {
                    (seen.recorded_oid, seen.access) = (None, None);
                    (database.public, database.owner) = (true, "x".to_owned());
                }),
                vec![Step::TakeBack, Step::Close, Step::Own, Step::Grant, Step::Migrate(vec![2])],
            ),
            (
                "a migration was begun",
                changed(&both, |_, database| database.applied.as_mut().unwrap()[1].finished = false),
                vec![Step::Migrate(vec![2])],
            ),
        ];
        for (what, observed, steps) in table {
            assert_eq!(plan(&desired(&both), &observed).unwrap(), steps, "{what}");
        }
    }

    #[test]
    fn what_must_not_be_touched_is_told_apart() {
        let both = set(&[1, 2]);
        let absent = Observed { database: None, ..ready(&both) };
        let table = [
            ("gone", absent, Kind::Missing),
            ("somebody else's", changed(&both, |_, database| database.ours = false), Kind::Conflict),
            (
                "somebody else's, and not whole",
                changed(&both, |_, database| (database.ours, database.valid) = (false, false)),
                Kind::Conflict,
            ),
            ("in the place of ours", changed(&both, |_, database| database.oid = 8), Kind::Replaced),
            (
                "in the place of ours, with another's marker",
                changed(&both, |_, database| (database.oid, database.ours) = (8, false)),
                Kind::Replaced,
            ),
            ("newer", ready(&set(&[1, 2, 3])), Kind::Newer),
            ("vanished from the middle", ready(&set(&[1, 2])), Kind::Drift),
            (
                "changed",
                changed(&both, |_, database| database.applied.as_mut().unwrap()[0].entry.checksum = "x".to_owned()),
                Kind::Drift,
            ),
        ];
        let without_two = set(&[1, 3]);
        for (what, observed, kind) in table {
            let set = if what.starts_with("vanished") { &without_two } else { &both };
            let error = plan(&desired(set), &observed).unwrap_err();
            assert_eq!(error.kind(), kind, "{what}: {}", error.chain());
            assert!(error.advice().is_some(), "{what}: nothing says what to do");
        }
    }

    #[test]
    fn out_of_order_is_refused_unless_it_is_wanted() {
        let (all, observed) = (set(&[1, 2, 3]), ready(&set(&[1, 3])));
        assert_eq!(plan(&desired(&all), &observed).unwrap_err().kind(), Kind::Drift);
        let desired = Desired { out_of_order: true, ..desired(&all) };
        assert_eq!(plan(&desired, &observed).unwrap(), [Step::Migrate(vec![2])]);
    }

    #[test]
    fn the_advice_for_a_lost_database_is_a_command() {
        let both = set(&[1, 2]);
        let error = plan(&desired(&both), &Observed { database: None, ..ready(&both) }).unwrap_err();
        let advice = error.advice().unwrap().split_once("instead: ").unwrap().1;
        assert_eq!(advice, "`tenantd adopt tenant_x --empty`");
    }

    #[test]
    fn back_is_planned_for_what_is_ours_and_can_be_looked_into() {
        let mut set = set(&[1, 2, 5]);
        set = MigrationSet::new("folder", set.migrations().iter().map(with_down).collect()).unwrap();
        let back = |observed: &Observed, target| plan_back(&desired(&set), observed, target);
        for (target, to, versions) in [
            (Target::To(2), 2, vec![5]),
            (Target::To(4), 2, vec![5]),
            (Target::To(9), 5, vec![]),
            (Target::To(0), 0, vec![5, 2, 1]),
            (Target::To(5), 5, vec![]),
            (Target::Steps(1), 2, vec![5]),
            (Target::Steps(9), 0, vec![5, 2, 1]),
        ] {
            let planned = back(&ready(&set), target).unwrap();
            assert_eq!(planned, Back { from: 5, to, versions: versions.clone() }, "{target:?}");
            assert_eq!(planned.step(), (!versions.is_empty()).then_some(Step::RollBack { to, versions }));
        }
        let table = [
            ("gone", Observed { database: None, ..ready(&set) }, Kind::Missing),
            ("somebody else's", changed(&set, |_, database| database.ours = false), Kind::Conflict),
            ("in the place of ours", changed(&set, |_, database| database.oid = 8), Kind::Replaced),
            ("closed", changed(&set, |_, database| database.applied = None), Kind::Refused),
        ];
        for (what, observed, kind) in table {
            assert_eq!(back(&observed, Target::To(1)).unwrap_err().kind(), kind, "{what}");
        }
    }

    fn with_down(migration: &Migration) -> Migration {
        let down = Down { file: String::new(), sql: String::new(), mode: Mode::Transaction };
        Migration { down: Some(down), ..migration.clone() }
    }

    #[test]
    fn steps_read_well() {
        let steps = [Step::Make, Step::Migrate(vec![1, 2]), Step::HandOver];
        assert_eq!(steps.map(|step| step.to_string()), ["make", "migrate to 1, 2", "hand over"]);
        assert_eq!(Step::RollBack { to: 1, versions: vec![3, 2] }.to_string(), "roll back 3, 2");
        for step in [Step::DropInvalid, Step::TakeBack, Step::Close, Step::Own, Step::Open, Step::Grant] {
            assert_eq!(step.to_string(), step.word().replace('_', " "));
        }
    }

    /// What `step` does, as far as an observer sees.
    fn apply(desired: &Desired<'_>, observed: &mut Observed, step: &Step) {
        if matches!(step, Step::Make) {
            observed.database = ready(desired.set).database;
            observed.access = Some(desired.access.to_owned());
        }
        let database = observed.database.as_mut().unwrap();
        match step {
            Step::Make => {}
            Step::DropInvalid => (observed.database, observed.recorded_oid) = (None, None),
            Step::Grant => observed.access = Some(desired.access.to_owned()),
            Step::Migrate(_) => database.applied = Some(applied(desired.set)),
            Step::HandOver => (observed.state, observed.recorded_oid) = (State::Ready, Some(database.oid)),
            Step::TakeBack => observed.recorded_oid = Some(database.oid),
            Step::Close => database.public = false,
            Step::Own => database.owner = desired.owner.to_owned(),
            Step::Open => (database.open, database.applied) = (true, Some(applied(&set(&[1])))),
            Step::RollBack { .. } => unreachable!("nobody asked for it"),
        }
    }

    prop_compose! {
        fn any_observed()(
            requested: bool, known: bool, granted: bool, there: bool,
            owned: bool, valid: bool, open: bool, public: bool, behind: bool,
        ) -> Observed {
            let have = if behind { set(&[1]) } else { set(&[1, 2, 5]) };
            changed(&have, |seen, database| {
                seen.state = if requested { State::Requested } else { State::Ready };
                seen.recorded_oid = known.then_some(7);
                seen.access = granted.then(|| "access".to_owned());
                if !owned { "x".clone_into(&mut database.owner); }
                (database.valid, database.open, database.public) = (valid, open, public);
                if !open || !valid { database.applied = None; }
            }).with(there)
        }
    }

    impl Observed {
        fn with(mut self, there: bool) -> Observed {
            if !there {
                self.database = None;
            }
            self
        }
    }

    proptest! {
        #[test]
        fn what_is_desired_needs_nothing(versions in proptest::collection::btree_set(1_i64..1000, 1..20)) {
            let set = set(&versions.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(plan(&desired(&set), &ready(&set)).unwrap(), []);
        }

        #[test]
        fn the_steps_lead_to_what_is_desired(mut observed in any_observed()) {
            let set = set(&[1, 2, 5]);
            let desired = desired(&set);
            for look in 0.. {
                match plan(&desired, &observed) {
                    Ok(steps) if steps.is_empty() => break,
                    Ok(steps) => steps.iter().for_each(|step| apply(&desired, &mut observed, step)),
                    Err(error) => {
                        // Gone while the application relies on it: the one thing here that a person decides.
                        prop_assert_eq!((error.kind(), observed.state), (Kind::Missing, State::Ready));
                        prop_assert!(observed.database.is_none());
                        return Ok(());
                    }
                }
                prop_assert!(look < 4, "no rest: {:?}", observed);
            }
            prop_assert_eq!(observed.database, ready(&set).database);
        }
    }
}
