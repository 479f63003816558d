//! How tenants are kept apart. Registry, planner, executor, sweep and commands do not know which way.

pub mod database;
mod entry;

pub use database::DatabaseIsolation;

use std::future::Future;

use crate::error::Result;
use crate::plan::{Desired, Observed, Step};
use crate::registry::claim::Claim;

/// One tenant under work: looked at, and changed step by step.
pub trait Isolation: Send {
    /// What the tenant is now. Nothing is changed.
    fn observe(&mut self, claim: &Claim, desired: &Desired<'_>) -> impl Future<Output = Result<Observed>> + Send;

    /// Carries `step` out.
    fn apply(&mut self, claim: &Claim, desired: &Desired<'_>, step: &Step) -> impl Future<Output = Result<()>> + Send;

    /// The newest migration that a tenant which stands has now; `None` when that cannot be told.
    fn version(&mut self) -> impl Future<Output = Option<i64>> + Send;

    /// Takes back what a failed attempt left: a whole spare is kept for another. Best effort: what stays is found by the next sweep.
    fn give_up(&mut self) -> impl Future<Output = ()> + Send;
}
