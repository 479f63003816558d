//! Trials: migrations run on a scratch database, up, down and up again, to see what they do before any tenant does.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Context;
use super::scratch::Scratch;
use super::template::{fill, furnish};
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::isolation::{database_of, enter, executor};
use crate::migrations::{Migration, MigrationSet, Mode};
use crate::pg::catalogue::{Catalogue, Difference};
use crate::pg::migrate::measure::{Touched, measure};
use crate::pg::{Executor, Session};
use crate::registry::templates::Template;

/// What a migration did on the scratch database.
#[derive(Debug, Default)]
pub struct Tried {
    /// Its version.
    pub version: i64,
    /// What it did to tables that were there; of one without a transaction nothing can be seen.
    pub touched: Vec<Touched>,
    /// Why it could not be applied, taken back, or applied again.
    pub failed: Option<Error>,
    /// What its down file left otherwise than it was before.
    pub after_down: Vec<Difference>,
    /// What a second application made otherwise than the first.
    pub after_up_again: Vec<Difference>,
}

/// Tries `versions` of the context's set, one after the other, on a database that has all before the first of them. `stop` ends it after the one
/// in hand; so does one that cannot be applied, since those after it may need it.
///
/// The database is a clone of the template of what comes before, or made from nothing where there is none. Its random name is written down before
/// it is made; it is dropped at the end, and what a crash leaves is dropped by a sweep.
///
/// # Errors
/// The scratch database cannot be made, reached or dropped.
pub async fn try_out(context: &Context, versions: &[i64], stop: &CancellationToken) -> Result<Vec<Tried>> {
    let Some(first) = versions.first() else { return Ok(Vec::new()) };
    let before = context.set.up_to(first - 1);
    let templates = context.registry.templates().await?;
    let shape = context.shape();
    let of_set = |template: &&Template| {
        template.serves()
            && template.shape == shape
            && before.as_ref().is_some_and(|set| set.id() == template.migration_set)
    };
    let template = templates.iter().find(of_set);
    let scratch = Scratch::make(&context.registry, &context.config, template).await?;
    let tried =
        try_in(context, &scratch, before.filter(|_| template.is_none()), template.is_some(), versions, stop).await;
    let discarded = scratch.discard(&context.registry).await;
    let tried = tried?;
    discarded.map(|()| tried)
}

async fn try_in(
    context: &Context,
    scratch: &Scratch,
    before: Option<MigrationSet>,
    cloned: bool,
    versions: &[i64],
    stop: &CancellationToken,
) -> Result<Vec<Tried>> {
    scratch.open(&context.registry).await?;
    if let Some(before) = before {
        fill(&Context { set: Arc::new(before), ..context.clone() }, scratch.name(), true).await?;
    }
    let mut session = enter(&context.server, &context.config.tenant, scratch.name(), NAME).await?;
    if !cloned && context.config.tenant.isolation == Isolation::Database {
        furnish(context, &session, scratch.name()).await?;
    }
    let mut tried = Vec::new();
    for version in versions {
        let Some(migration) = context.set.get(*version) else { continue };
        let mut one = Tried { version: *version, ..Tried::default() };
        let done = try_one(context, scratch, &mut session, migration, &mut one).await;
        let ended = done.is_err() || stop.is_cancelled();
        one.failed = done.err();
        tried.push(one);
        if ended {
            break;
        }
    }
    session.close().await;
    Ok(tried)
}

const NAME: &str = "tenantd:lint";

/// The error is that of the migration.
async fn try_one(
    context: &Context,
    scratch: &Scratch,
    session: &mut Session,
    migration: &Migration,
    tried: &mut Tried,
) -> Result<()> {
    let settings = &context.config.tenant;
    let set = context.set.up_to(migration.version).expect("it holds that version");
    let executor = executor(scratch.name(), &set, settings, &context.registry.worker);
    let database = database_of(&context.server, settings, scratch.name());
    let connect = || context.server.connect_again(database, NAME);
    if migration.mode == Mode::Transaction {
        tried.touched = measure(session, migration, &executor).await?;
    }
    let before = scratch.catalogue(context, session).await?;
    executor.apply(session, connect).await?;
    if migration.down.is_none() {
        return Ok(());
    }
    let after = scratch.catalogue(context, session).await?;
    let look = async |session: &Session| scratch.catalogue(context, session).await;
    let down = back_and_up(&executor, session, migration, connect, look).await;
    let (back, again) = down.map_err(|error| error.context(format!("take version {} back", migration.version)))?;
    tried.after_down = before.difference(&back);
    tried.after_up_again = after.difference(&again);
    Ok(())
}

/// The catalogue after the down file, and after the migration was applied again.
async fn back_and_up<Connecting: Future<Output = Result<Session>>>(
    executor: &Executor<'_>,
    session: &mut Session,
    migration: &Migration,
    connect: impl Fn() -> Connecting + Copy,
    look: impl AsyncFn(&Session) -> Result<Catalogue>,
) -> Result<(Catalogue, Catalogue)> {
    let before = executor.set.up_to(migration.version - 1).map_or(0, |set| set.newest_version());
    executor.roll_back(session, before, connect).await?;
    let back = look(session).await?;
    executor.apply(session, connect).await.map_err(|error| error.context("apply it again"))?;
    Ok((back, look(session).await?))
}
