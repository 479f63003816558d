//! Templates: built once for a migration set, cloned for every tenant, dropped when nobody needs them any more.

use std::time::{Duration, Instant};

use super::step::{step, timed};
use super::{Context, failure};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::isolation::database::grants;
use crate::isolation::{database_of, enter, executor};
use crate::pg::{Doing, Executor, Session, admin, quote};
use crate::registry::templates::{Template, TemplateOf};
use crate::tenant::template_name;

/// How long the template is waited for that another builds.
const PATIENCE: Duration = Duration::from_mins(1);

/// The template that another builds is looked for so often.
const ANOTHER_BUILDS: Duration = Duration::from_millis(100);

/// How long our own connection may take to vanish from the template by itself.
const LEAVE: Duration = Duration::from_secs(1);

/// How long anybody may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// It vanishes so soon, for the most part, that it is looked for so often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Builds the template of the context's set, from where an earlier try stood. Called by the keeper only.
///
/// # Guarantees
/// It serves only when it is complete and closed. A crash in the middle leaves something that the next call goes on with, or that is dropped. When
/// another became the keeper meanwhile, nothing is put into service, opened or recorded: a keeper that stood still spoils nothing of the other's.
///
/// # Errors
/// [`Kind::Migration`] and the like for a set that cannot be applied; [`Kind::Rights`] for an extension; [`Kind::LeaseLost`] when another keeps;
/// those of the server. What is not the server's is recorded with the template, with the time of the next try.
pub async fn build(context: &Context, unfinished: Option<&Template>) -> Result<()> {
    let name = announce(context, unfinished).await?;
    let there = unfinished.is_some_and(|template| template.begun);
    let span = tracing::info_span!("template", name);
    let built = tokio::select! {
        built = timed(span, construct(context, &name, there)) => built,
        lost = stay_keeper(context) => Err(lost),
    };
    let Err(error) = built else { return Ok(()) };
    let error = error.context(format!("build the template {name:?}"));
    if error.kind().is_out_of_reach() || error.kind() == Kind::LeaseLost {
        return Err(error);
    }
    let failures = unfinished.map_or(0, |template| template.failures) + 1;
    if !context.registry.record_template_failure(&name, &error, context.schedule().delay(failures)).await? {
        return Err(lost().because(error));
    }
    Err(error)
}

/// The name that the template is built under, written down.
async fn announce(context: &Context, unfinished: Option<&Template>) -> Result<String> {
    let (id, access, shape) = (context.set.id(), context.access(), context.shape());
    let name = template_name(&id);
    match unfinished {
        Some(template) if template.begun || !template.there => return Ok(template.name.clone()),
        // The last try got no further than CREATE DATABASE, or somebody dropped it half-way. A DROP DATABASE for a name that is built under
        // could come late, from a keeper that stood still; it could wait for a hanging session, too.
        Some(template) => context.registry.begin_template_anew(&template.name, &name).await?,
        None => {
            let version = context.set.newest_version();
            let of = TemplateOf { migration_set: &id, version, access: &access, shape: &shape };
            context.registry.announce_template(&name, of).await?;
        }
    }
    reach(Point::TemplateAnnounced).await;
    Ok(name)
}

fn lost() -> Error {
    Error::new(Kind::LeaseLost, "another tenantd keeps templates and spares now")
}

/// Renews the keeper's lease; returns only when another has it.
pub(super) async fn stay_keeper(context: &Context) -> Error {
    let lease = context.config.work.lease;
    loop {
        tokio::time::sleep(lease / 3).await;
        match context.registry.keep(lease).await {
            Ok(true) => {}
            Ok(false) => return lost(),
            Err(error) => {
                tracing::debug!(error = error.chain(), "the keeper's lease could not be renewed; tried again");
            }
        }
    }
}

async fn construct(context: &Context, name: &str, there: bool) -> Result<()> {
    if !there {
        step("create", create(context, name)).await?;
        reach(Point::TemplateMade).await;
    }
    step("open", context.registry.open_template(name)).await?;
    reach(Point::TemplateOpened).await;
    if there {
        // The keeper that began it may have a session there yet, with the migrations' lock: its machine is gone, or it stands still. Somebody
        // else, who mends what is in the way, is met at the end.
        step("evict", empty(context, name, Duration::ZERO, LEAVE)).await?;
    }
    let filled = fill(context, name, !there).await;
    // A set that breaks the connection time and again must not bring the server down for ever.
    filled.map_err(|error| failure::blame_for_breaking(context, name, error))?;
    context.registry.unbroken(name);
    reach(Point::TemplateFilled).await;
    step("close", close(context, name)).await?;
    reach(Point::TemplateClosed).await;
    if !step("complete", context.registry.complete_template(name)).await? {
        return Err(lost());
    }
    reach(Point::TemplateComplete).await;
    Ok(())
}

/// Makes the empty database from template0: template1 is often in use and holds local junk.
async fn create(context: &Context, name: &str) -> Result<()> {
    let create = admin::Create {
        name,
        owner: context.owner(),
        template: "template0",
        bytes: 0,
        strategy: context.config.tenant.strategy,
        server_version: context.registry.server_version().await?,
    };
    let created = admin::create_database(&*context.registry.session().await?, &create, "").await;
    created.map_err(|error| match error.code() {
        // Another keeper's CREATE DATABASE was on its way: the next look finds what it made.
        Some("42P04" | "23505") => lost().because(error),
        _ => error,
    })
}

/// Closes the template and waits until nobody is in it, since nobody could clone it else.
async fn close(context: &Context, name: &str) -> Result<()> {
    context.registry.close_template(name).await?;
    // Ours has said goodbye, and is gone in a moment. What stays longer belongs to nobody any more.
    if empty(context, name, LEAVE, LEAVE_TIMEOUT).await? {
        return Ok(());
    }
    Err(Error::new(Kind::InUse, format!("somebody is connected to the database {name:?} in the making"))
        .hint("a monitoring agent that connects to every database? exclude names that begin with tenantd_"))
}

/// Waits until nobody is in the template, for `patience` at most. Sessions of ours that stay longer than `leave` are ended. False: somebody is there yet.
async fn empty(context: &Context, name: &str, leave: Duration, patience: Duration) -> Result<bool> {
    let started = Instant::now();
    loop {
        let evict = started.elapsed() >= leave;
        if context.registry.sessions_in_template(name, evict).await? == 0 {
            return Ok(true);
        }
        if started.elapsed() > patience {
            return Ok(false);
        }
        tokio::time::sleep(if evict { LEAVE / 20 } else { LOOK_AGAIN }).await;
    }
}

/// Extensions, rights, migrations: all that tenants have in common.
pub(super) async fn fill(context: &Context, name: &str, fresh: bool) -> Result<()> {
    let settings = &context.config.tenant;
    let application_name = "tenantd:template";
    let mut session = step("connect", enter(&context.server, settings, name, application_name)).await?;
    if settings.isolation == Isolation::Database {
        furnish(context, &session, name).await?;
    }
    let database = database_of(&context.server, settings, name);
    let executor = Executor { fresh, ..executor(name, &context.set, settings, &context.registry.worker) };
    step("migrate", executor.apply(&mut session, || context.server.connect_again(database, application_name))).await?;
    session.close().await;
    Ok(())
}

/// Extensions and rights, which come before the first migration.
pub(super) async fn furnish(context: &Context, session: &Session, name: &str) -> Result<()> {
    step("extensions", extend(context, session, name)).await?;
    let grants = grants(context.owner(), &context.config.tenant.use_roles);
    let granted =
        async { session.batch_execute(&grants).await.doing(|| "give the roles of tenant.use their rights".to_owned()) };
    step("grant", granted).await
}

async fn extend(context: &Context, session: &Session, name: &str) -> Result<()> {
    for extension in &context.config.tenant.extensions {
        let create = format!("create extension if not exists {}", quote::identifier(extension));
        session.batch_execute(&create).await.doing(|| create.clone()).map_err(|error| {
            if error.kind() != Kind::Rights {
                return error.hint("is it on the server? select name from pg_available_extensions");
            }
            let role = quote::identifier(context.config.main.user());
            let code = error.code().unwrap_or_default().to_owned();
            // What the server advises is true, and no help.
            Error::new(Kind::Rights, format!("role {role} may not make the extension {extension:?}")).sqlstate(code).because(error).hint(
                format!("as a superuser, connect to database {name:?} and run `{create}`; tenantd goes on with that by itself"),
            )
        })?;
    }
    Ok(())
}

/// Drops a template that nobody needs any more. Called by the keeper only.
///
/// It is taken out of service first; a crash in the middle leaves one that the next call drops.
///
/// # Errors
/// [`Kind::Conflict`] when the database does not bear our marker any more: it is forgotten, not dropped. Those of the server.
pub async fn drop_template(context: &Context, template: &Template) -> Result<()> {
    let span = tracing::info_span!("drop template", name = template.name);
    timed(span, retire_and_drop(context, template)).await
}

async fn retire_and_drop(context: &Context, template: &Template) -> Result<()> {
    let name = &template.name;
    step("retire", context.registry.retire_template(name)).await?;
    reach(Point::TemplateRetired).await;
    let ours = context.registry.is_our_template(name).await?;
    if ours == Some(false) && template.completed.is_some() {
        context.registry.forget_template(name).await?;
        return Err(Error::new(Kind::Conflict, format!("the database {name:?} does not bear our marker any more"))
            .hint("it is left as it is: drop it if it is of no use"));
    }
    if ours.is_some() {
        let session = context.registry.session().await?;
        step("drop", admin::drop_database(&session, name)).await?;
    }
    step("forget", context.registry.forget_template(name)).await
}

/// Makes sure that there is a template of our set, or of a newer one: builds it, or waits for the one who does. Schemas are made of none.
///
/// # Errors
/// As [`build`]; [`Kind::Template`] when another tenantd does not get it done either. An older template may serve all the same.
pub async fn ensure(context: &Context) -> Result<()> {
    if context.config.tenant.isolation == Isolation::Schema {
        context.supply.serve(true);
        return Ok(());
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let keeping = context.supply.keeping().await;
        let (templates, wanted) = (context.registry.templates().await?, context.wanted());
        if wanted.is_built(&templates) {
            context.supply.serve(true);
            return Ok(());
        }
        if context.registry.keep(context.config.work.lease).await? {
            let built = build(context, wanted.unfinished(&templates)).await;
            context.supply.serve(built.is_ok() || wanted.serving(&templates).is_some());
            context.registry.stop_keeping().await?;
            return built;
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(Kind::Template, "another tenantd has been building the template for a minute")
                .hint("`tenantd status` says why it does not come to an end"));
        }
        drop(keeping);
        tokio::time::sleep(ANOTHER_BUILDS).await;
    }
}
