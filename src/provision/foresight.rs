//! Foresight: the steps that a reconcile of a tenant would take, for a dry run. Nothing is changed.

use super::Context;
use crate::error::Result;
use crate::isolation::{AnyIsolation, Isolation};
use crate::plan::{Desired, Step, plan};
use crate::registry::claim::Claim;
use crate::registry::spares::Serving;
use crate::tenant::Marker;

/// The steps from what the tenant is to the context's set, as [`reconcile`](super::reconcile) would take them now. `claim` may be a
/// [glance](crate::registry::Registry::glance).
///
/// # Errors
/// As for [`plan`]; the tenant cannot be connected to.
pub async fn foresee(context: &Context, claim: &Claim) -> Result<Vec<Step>> {
    let name = match &claim.name {
        Some(name) => name.clone(),
        None => context.config.tenant.names.of(&claim.key)?,
    };
    let (access, marker) = (context.access(), Marker::of(context.registry.id, &claim.key).to_string());
    let desired = Desired {
        isolation: context.config.tenant.isolation,
        name: &name,
        marker: &marker,
        owner: context.owner(),
        access: &access,
        set: &context.set,
        out_of_order: context.config.tenant.out_of_order,
    };
    let (own_set, shape) = (context.set.id(), context.shape());
    let serving = Serving { newer: &context.relations.newer, migration_set: &own_set, shape: &shape };
    let mut isolation =
        AnyIsolation::new(&context.server, &context.registry, &context.config.tenant, &context.tenants, serving);
    plan(&desired, &isolation.observe(claim, &desired).await?)
}
