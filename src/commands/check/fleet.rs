//! What is wrong with the fleet as a whole, and what on the server belongs to no tenant.

use super::{Finding, Ill};
use crate::config::Isolation;
use crate::error::Result;
use crate::provision::Context;
use crate::registry::check::Orphan;

pub(super) async fn look(context: &Context) -> Result<Vec<Finding>> {
    let (registry, settings) = (&context.registry, &context.config.tenant);
    let kind = registry.isolation;
    let orphans = registry.orphans(&settings.names).await?;
    let mut found: Vec<Finding> = orphans.iter().map(|orphan| self::orphan(kind, orphan)).collect();
    for names in registry.duplicates().await? {
        let text = format!("{} say that they are the same tenant", names.join(" and "));
        let advice = "one is a copy: give that another COMMENT, or drop it; the registry goes by name and oid";
        found.push(Finding::of_fleet(None, Ill::Duplicate, text, advice));
    }
    for name in registry.strays().await? {
        let text = format!("the {kind} {name:?} was left half-made, and nobody is making it");
        found.push(Finding::of_fleet(
            Some(name),
            Ill::Stray,
            text,
            "the next sweep drops it, or `tenantd check --fix`",
        ));
    }
    let roles: Vec<String> = settings.use_roles.iter().chain(&settings.connect_roles).cloned().collect();
    for role in registry.unknown_roles(&roles).await? {
        let text = format!("the server has no role {role:?}, which tenant.use or tenant.connect names");
        found.push(Finding::of_fleet(None, Ill::Role, text, "create it, or correct the settings"));
    }
    Ok(found)
}

fn orphan(kind: Isolation, Orphan { name, ours, comment, .. }: &Orphan) -> Finding {
    let adopt = "`tenantd adopt --orphans` takes it in; drop it by hand if it is of no use";
    let (ill, text, advice) = match (ours, comment) {
        (true, _) => {
            (Ill::Orphan, format!("the {kind} {name:?} bears this registry's marker and belongs to no tenant"), adopt)
        }
        (_, Some(comment)) if comment.starts_with("tenantd ") => (
            Ill::Stranger,
            format!("the {kind} {name:?} is named as a tenant would be, and bears another registry's marker"),
            "leave it to the tenantd of that registry, or give one of the two another tenant.prefix",
        ),
        _ => (Ill::Stranger, format!("the {kind} {name:?} is named as a tenant would be, and is none"), adopt),
    };
    Finding::of_fleet(Some(name.clone()), ill, text, advice)
}
