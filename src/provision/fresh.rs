//! Fresh signups: nothing stands in their way, so those for which a spare is at hand need no look of their own, and go together in one
//! transaction. Whatever is not that simple goes the long way, `reconcile`.

use std::time::Instant;

use super::step::timed;
use super::{Context, Ended, Outcome};
use crate::registry::claim::Claim;
use crate::registry::hand_over::{Handed, Naming};
use crate::tenant::{State, Work};

/// So many tenants go in one transaction: more would make the others wait for the first.
pub const AT_ONCE: usize = 50;

/// Hands spares over to those of `claims` that are fresh signups. Returns how each of these ended, and the claims that are left to reconcile.
///
/// # Guarantees
/// As for [`crate::registry::Registry::hand_over`]; a tenant is either ready or untouched, and its claim given back to the caller.
pub async fn hand_over(context: &Context, claims: Vec<Claim>) -> (Vec<Ended>, Vec<Claim>) {
    let began = Instant::now();
    let (fresh, mut left): (Vec<_>, Vec<_>) = claims.into_iter().partition(is_fresh);
    let name = |claim: &Claim| match &claim.name {
        Some(name) => Ok(name.clone()),
        None => context.config.tenant.names.of(&claim.key),
    };
    let named: Vec<Naming<'_>> =
        fresh.iter().filter_map(|claim| Some(Naming { claim, name: name(claim).ok()? })).take(AT_ONCE).collect();
    if named.is_empty() {
        left.extend(fresh);
        return (Vec::new(), left);
    }
    let span = tracing::debug_span!("step", step = "hand_over", tenants = named.len());
    let handed = timed(span, context.registry.hand_over(&named, context.owner(), None)).await;
    let handed = handed.unwrap_or_else(|error| {
        // One by one each has its own wait, and its own way round a spare that somebody is in.
        tracing::debug!(error = error.chain(), "spares could not be handed over together; tried one by one");
        Vec::new()
    });
    let mut ended = Vec::new();
    for (naming, handed) in named.iter().zip(handed) {
        let claim = naming.claim;
        match handed {
            Handed::Ready => {
                context.registry.unbroken(&claim.key);
                context.registry.put_down(claim);
                let outcome = Outcome::Ready { made: true, migrated: Vec::new() };
                ended.push(Ended { key: claim.key.clone(), outcome, age: claim.age, took: began.elapsed() });
            }
            Handed::Failed(spare, error) => {
                tracing::debug!(key = claim.key, spare, error = error.chain(), "a spare could not be handed over");
            }
            Handed::NoSpare | Handed::LeaseLost => {}
        }
    }
    let done: std::collections::BTreeSet<String> = ended.iter().map(|ended| ended.key.clone()).collect();
    left.extend(fresh.into_iter().filter(|claim| !done.contains(&claim.key)));
    (ended, left)
}

/// Whether there is a spare for it, and nothing is known that a look would have to find out first.
fn is_fresh(claim: &Claim) -> bool {
    claim.spare_at_hand
        && claim.state == State::Requested
        && claim.work == Work::Due
        && claim.failures == 0
        && claim.database_oid.is_none()
}
