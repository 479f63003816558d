//! What a tenant should hold: the catalogue of a database with nothing but its migration set in it.

use std::sync::Arc;

use super::scratch::Scratch;
use super::{Context, template};
use crate::error::Result;
use crate::isolation::enter;
use crate::migrations::MigrationSet;
use crate::pg::catalogue::Catalogue;
use crate::registry::templates::Template;

/// The catalogue of the migration set `id`, read from a clone of its template, or where there is none, from a scratch database that its
/// migrations are applied to. `None`: the set is not ours nor the beginning of ours, so nobody here can tell.
///
/// The scratch database is written down, closed to all but tenantd, and dropped again; nobody is ever connected to the template.
///
/// # Errors
/// Those of making, migrating and dropping a database.
pub async fn expected(context: &Context, id: &str) -> Result<Option<Catalogue>> {
    let templates = context.registry.templates().await?;
    let shape = context.shape();
    let of_set = |template: &&Template| template.serves() && template.migration_set == id && template.shape == shape;
    let template = templates.iter().find(of_set);
    if template.is_none() && beginning(&context.set, id).is_none() {
        return Ok(None);
    }
    let scratch = Scratch::make(&context.registry, &context.config, template).await?;
    let read = look(context, &scratch, id, template.is_some()).await;
    let discarded = scratch.discard(&context.registry).await;
    let read = read?;
    discarded.map(|()| Some(read))
}

async fn look(context: &Context, scratch: &Scratch, id: &str, filled: bool) -> Result<Catalogue> {
    scratch.open(&context.registry).await?;
    if !filled && let Some(set) = beginning(&context.set, id) {
        let of_set = Context { set: Arc::new(set), ..context.clone() };
        template::fill(&of_set, scratch.name(), true).await?;
    }
    let session = enter(&context.server, &context.config.tenant, scratch.name(), "tenantd:check").await?;
    let read = scratch.catalogue(context, &session).await;
    session.close().await;
    read
}

/// The set `id`, if ours begins with it.
fn beginning(ours: &MigrationSet, id: &str) -> Option<MigrationSet> {
    let versions = ours.migrations().iter().map(|migration| migration.version);
    versions.rev().filter_map(|version| ours.up_to(version)).find(|set| set.id() == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrations::tests::migration;

    #[test]
    fn a_set_is_found_among_the_beginnings_of_ours() {
        let set = |versions: &[i64]| {
            let migrations = versions.iter().map(|version| migration(*version, "a", &version.to_string()));
            MigrationSet::new("x", migrations.collect()).unwrap()
        };
        let ours = set(&[1, 2, 7]);
        for versions in [&[1][..], &[1, 2], &[1, 2, 7]] {
            assert_eq!(beginning(&ours, &set(versions).id()), Some(set(versions)));
        }
        for versions in [&[2][..], &[1, 7], &[1, 2, 7, 8]] {
            assert_eq!(beginning(&ours, &set(versions).id()), None);
        }
    }
}
