//! What is wrong with a tenant as seen from the main database. Pure.

use super::{Finding, Ill};
use crate::config::Isolation;
use crate::plan::Database;
use crate::provision::Context;
use crate::registry::check::Outside;
use crate::tenant::{State, Work};

/// What `--fix` is told by.
pub(super) const FIX: &str = "`tenantd check --fix` puts it right";

/// What a tenant behind is told while the migrations go through the fleet in their order.
pub(super) const ROLLOUT: &str =
    "the rollout of the migrations brings it up in its turn: `tenantd --sweep-once` goes on with it";

/// Whether the inside can say anything: the database is the tenant's, whole and open.
pub(super) fn may_be_entered(tenant: &Outside) -> bool {
    let ours = |database: &Database| {
        database.ours && database.valid && database.open && tenant.recorded_oid.is_none_or(|oid| oid == database.oid)
    };
    tenant.state == State::Ready && tenant.database.as_ref().is_some_and(ours)
}

pub(super) fn look(context: &Context, tenant: &Outside) -> Vec<Finding> {
    let kind = context.registry.isolation;
    let mut found = Vec::new();
    if let Some(who) = &tenant.lease_left_by {
        let text = format!("{who} let its lease run out");
        found.push(Finding::of(tenant, Ill::Lease, text, format!("a sweep goes on with what is due; {FIX}")));
    }
    if tenant.state != State::Ready {
        return found;
    }
    let Some(name) = &tenant.name else {
        let advice = format!("`tenantd adopt KEY --database NAME` records the {kind} that is its own");
        found.push(Finding::of(tenant, Ill::Nameless, "it is ready, and has no name", advice));
        return found;
    };
    let Some(database) = &tenant.database else {
        let text = format!("the {kind} {name:?} is gone");
        let advice = format!("restore it from a backup under this name, then `tenantd adopt {}`", tenant.key);
        found.push(Finding::of(tenant, Ill::Missing, text, advice));
        return found;
    };
    match of_place(kind, tenant, name, database) {
        Some(finding) => found.push(finding),
        None => found.extend(of_state(context, tenant, database)),
    }
    found
}

/// What makes the database none of ours to touch.
fn of_place(kind: Isolation, tenant: &Outside, name: &str, database: &Database) -> Option<Finding> {
    let adopt = format!("if it is the tenant's: `tenantd adopt {}`; if not, rename it out of the way", tenant.key);
    if let Some(recorded) = tenant.recorded_oid.filter(|recorded| *recorded != database.oid) {
        let text = format!(
            "another {kind} (oid {}) stands under the name {name:?} in the place of ours (oid {recorded})",
            database.oid
        );
        return Some(Finding::of(tenant, Ill::Replaced, text, adopt));
    }
    if !database.ours {
        let text = format!("the {kind} {name:?} does not bear this registry's marker");
        return Some(Finding::of(tenant, Ill::Conflict, text, adopt));
    }
    if !database.valid {
        let text =
            format!("the database {name:?} is not whole: a DROP DATABASE was interrupted, nothing of it can be saved");
        let advice = "restore it from a backup; `tenantd retry` drops what is left";
        return Some(Finding::of(tenant, Ill::Invalid, text, advice));
    }
    None
}

fn of_state(context: &Context, tenant: &Outside, database: &Database) -> Vec<Finding> {
    let (kind, mut found) = (context.registry.isolation, Vec::new());
    let mut find = |ill, text: String| found.push(Finding::of(tenant, ill, text, FIX));
    if !database.open {
        find(Ill::Closed, "its database takes no connections".to_owned());
    }
    if database.public {
        find(Ill::Public, format!("PUBLIC may enter its {kind}"));
    }
    if database.owner != context.owner() {
        find(Ill::Owner, format!("its {kind} belongs to {:?}, and not to {:?}", database.owner, context.owner()));
    }
    if tenant.access.as_ref() != Some(&context.access()) && tenant.work != Work::Held {
        find(
            Ill::Access,
            "its rights are those of other settings (tenant.owner, tenant.use, tenant.connect)".to_owned(),
        );
    }
    if !tenant.shut_out.is_empty() {
        find(Ill::Connect, format!("{} cannot enter its {kind}", tenant.shut_out.join(", ")));
    }
    found
}

/// That the tenant does not go on, where nothing else says why.
pub(super) fn failing(tenant: &Outside) -> Option<Finding> {
    let advice = match tenant.work {
        Work::Parked => "mend what it says, then `tenantd --sweep-once`, which tries it at once",
        Work::Failing => "it is tried again by itself",
        Work::Idle | Work::Due | Work::Held => return None,
    };
    let error = tenant.error.as_deref().unwrap_or("no error is recorded");
    Some(Finding::of(tenant, Ill::Failing, format!("it is {}: {error}", tenant.work), advice))
}
