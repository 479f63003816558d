//! Spares for anyone: made ahead of time, dropped when they are too old or too many; and what died makers left.

use std::time::{Duration, Instant};

use super::Context;
use super::step::{step, timed};
use super::template::stay_keeper;
use crate::error::{Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::database::doubt_template;
use crate::isolation::{drop_for_good, roles_that_enter};
use crate::pg::admin;
use crate::registry::Registry;
use crate::registry::hand_over::grant_connect;
use crate::registry::spares::Stray;
use crate::registry::templates::Template;
use crate::tenant::spare_name;

/// After this time a CREATE DATABASE that outlived its daemon cannot still be running: it has a `statement_timeout`.
const FORGET_SPARES_AFTER: Duration = Duration::from_hours(2);

/// Makes a spare from `template` for anyone. Returns how long the server copied. Called by the keeper only.
///
/// # Guarantees
/// Its name is written down before it is made. Nobody can take it before it is whole: closed, shut to PUBLIC, the grants given. A crash in
/// the middle leaves a stray, which a sweep drops.
///
/// # Errors
/// [`Kind::Template`] when the template cannot be cloned; those of the server.
pub async fn make_spare(context: &Context, template: &Template) -> Result<Duration> {
    let name = spare_name();
    let span = tracing::info_span!("spare", name, template = template.name);
    timed(span, make(context, template, name)).await
}

async fn make(context: &Context, template: &Template, name: String) -> Result<Duration> {
    let settings = &context.config.tenant;
    let create = admin::Create {
        name: &name,
        owner: context.owner(),
        template: &template.name,
        bytes: template.bytes,
        strategy: settings.strategy,
        server_version: context.registry.server_version().await?,
    };
    step("announce", context.registry.announce_kept_spare(&name, &template.name)).await?;
    reach(Point::SpareAnnounced).await;
    let began = Instant::now();
    let session = context.registry.session().await?;
    let connect = grant_connect(&name, roles_that_enter(settings));
    let created = tokio::select! {
        created = step("create", admin::create_database(&session, &create, &connect)) => created,
        lost = stay_keeper(context) => Err(lost),
    };
    drop(session);
    let took = began.elapsed();
    reach(Point::SpareMade).await;
    if let Err(error) = created {
        let error = doubt_template(&context.registry, &template.name, error).await;
        if !error.kind().is_out_of_reach() && error.kind() != Kind::LeaseLost {
            discard_spare(context, &name).await?;
        }
        return Err(error);
    }
    if !step("keep", context.registry.keep_spare(&name)).await? {
        tracing::debug!(spare = name, "another keeps spares now; this one is dropped by a sweep");
    }
    context.supply.add();
    Ok(took)
}

/// Drops a spare that is for anyone, unless somebody is quicker and takes it.
///
/// # Errors
/// [`Kind::InUse`] when a prepared transaction or the like holds it: the next sweep tries again. Those of the server.
pub async fn discard_spare(context: &Context, name: &str) -> Result<()> {
    timed(tracing::info_span!("discard spare", name), discard(context, name)).await
}

async fn discard(context: &Context, name: &str) -> Result<()> {
    if !step("withdraw", context.registry.withdraw_spare(name)).await? {
        return Ok(());
    }
    reach(Point::SpareWithdrawn).await;
    let session = context.registry.session().await?;
    step("drop", admin::drop_database(&session, name)).await?;
    step("forget", context.registry.forget_spare(name)).await
}

/// Drops databases under random names that nobody is making: what died daemons left. Returns how many. Asks `enough` before each whether to leave
/// the rest to the next sweep.
///
/// A young name is not forgotten: a CREATE DATABASE that outlived its daemon may still bring its database about.
///
/// # Errors
/// The main database cannot be reached. A spare that cannot be dropped now is tried again by the next sweep.
pub async fn drop_strays(registry: &Registry, enough: impl Fn() -> bool) -> Result<u64> {
    let mut dropped = 0;
    for Stray { name, old, there } in registry.stray_spares(FORGET_SPARES_AFTER).await? {
        if enough() {
            break;
        }
        if there {
            match drop_for_good(registry, &name).await {
                Ok(()) => dropped += 1,
                Err(error) if error.kind().is_out_of_reach() => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        spare = name,
                        error = error.chain(),
                        hint = error.advice(),
                        "a half-made database could not be dropped"
                    );
                    continue;
                }
            }
        }
        if old {
            registry.forget_spare(&name).await?;
        }
    }
    Ok(dropped)
}
