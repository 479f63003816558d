//! `tenantd wait`: returns when a tenant is ready, for scripts and tests.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::given::{Given, duration};
use super::{ExitStatus, list, output};
use crate::error::{Error, Kind, Result};
use crate::pg::{Notifications, Session};
use crate::registry::Registry;
use crate::registry::hand_over::listen_ready;
use crate::registry::tenants::Tenant;

/// The longest time between two looks. Notices are hints, and a tenant that is ready at its signup's own commit sends none.
const AGAIN: Duration = Duration::from_millis(250);

/// `tenantd wait`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd wait 6f9619ff-8b86-d011-b42d-00c04fc964ff --timeout 10s && ./smoke-test
  tenantd wait 6f9619ff-8b86-d011-b42d-00c04fc964ff --json | jq .state")]
pub struct Wait {
    /// The tenant: a key, a database's name, or the beginning of one. One that is not there yet is waited for, too
    #[arg(value_name = "KEY")]
    pub key: String,
    /// How long to wait: \"30s", "5m"
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

/// How a wait ended.
pub(super) enum Waited {
    /// The tenant is ready.
    Ready(Tenant),
    /// It will not be ready before a person looks.
    Parked(Tenant),
    /// The time is over; how the tenant stands, if there is one.
    Late(Option<Tenant>),
}

/// Waits until the tenant is ready. Returns [`ExitStatus::Findings`], having said why on stderr, when it is parked or the time is over. Only
/// reads.
///
/// # Errors
/// Several tenants are called so; the main database cannot be reached, or there is no registry; `out` cannot be written to.
pub async fn run(given: &Given, arguments: &Wait, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let waited = until_ready(given, &registry, &arguments.key, arguments.timeout).await?;
    let failed = why_not(&arguments.key, arguments.timeout, &waited);
    let tenant = match waited {
        Waited::Ready(tenant) | Waited::Parked(tenant) | Waited::Late(Some(tenant)) => Some(tenant),
        Waited::Late(None) => None,
    };
    if given.json {
        let nobody = || json!({ "key": arguments.key, "state": null });
        let mut object = tenant.as_ref().map_or_else(nobody, |tenant| list::object(tenant, false));
        object["ready"] = json!(failed.is_none());
        output::object(out, &object)?;
    } else if let (None, Some(tenant)) = (&failed, &tenant) {
        output::text(out, &format!("{} is ready\n", output::line(&tenant.key)))?;
    }
    Ok(match failed {
        None => ExitStatus::Well,
        Some(error) => {
            super::tell_failure(&error);
            ExitStatus::Findings
        }
    })
}

/// Waits for the tenant that `word` means until it is ready or parked, as long as `patience`. One that is not there yet may come.
///
/// # Errors
/// `word` means several; the main database cannot be reached.
pub(super) async fn until_ready(given: &Given, registry: &Registry, word: &str, patience: Duration) -> Result<Waited> {
    let deadline = Instant::now() + patience;
    let listening = listen_ready(&given.server, &given.worker.application_name).await;
    let mut notices = listening
        .inspect_err(|error| tracing::debug!(error = error.chain(), "no notice will be heard; looked for instead"))
        .ok();
    let mut pause = Duration::from_millis(10);
    loop {
        let key = registry.find_any(word).await?;
        let tenant = match &key {
            Some(key) => registry.tenant(key).await?,
            None => None,
        };
        match tenant {
            Some(tenant) if tenant.is_ready() => return Ok(Waited::Ready(tenant)),
            Some(tenant) if tenant.is_parked() => return Ok(Waited::Parked(tenant)),
            tenant if Instant::now() >= deadline => return Ok(Waited::Late(tenant)),
            _ => {}
        }
        let next = deadline.min(Instant::now() + pause);
        notice(&mut notices, key.as_deref(), next).await;
        pause = (pause * 2).min(AGAIN);
    }
}

/// Returns at `next`, or when a notice may be about `key`.
async fn notice(notices: &mut Option<(Session, Notifications)>, key: Option<&str>, next: Instant) {
    let Some((_, heard)) = notices else {
        return sleep_until(next).await;
    };
    loop {
        match timeout_at(next, heard.recv()).await {
            // Too long a key is sent as an empty one.
            Ok(Some((_, payload))) if payload.is_empty() || key.is_none_or(|key| key == payload) => return,
            Ok(Some(_)) => {}
            Ok(None) => {
                *notices = None;
                return sleep_until(next).await;
            }
            Err(_) => return,
        }
    }
}

/// Why the tenant called `word` is not ready, if it is not.
pub(super) fn why_not(word: &str, patience: Duration, waited: &Waited) -> Option<Error> {
    let late = |rest: String| Error::new(Kind::Other, format!("after {} {rest}", output::duration(patience)));
    let with_reason = |error: Error, tenant: &Tenant| match &tenant.error {
        Some(reason) => error.because(format!("{}: {}", reason.kind.replace('_', " "), reason.text)),
        None => error,
    };
    match waited {
        Waited::Ready(_) => None,
        Waited::Parked(tenant) => {
            let error = Error::new(Kind::Other, format!("tenant {} is parked, out of tries", tenant.key));
            Some(with_reason(error.hint("mend what the error says, then `tenantd retry` tries it at once"), tenant))
        }
        Waited::Late(Some(tenant)) => {
            let error = late(format!("tenant {} is {}, its work {}", tenant.key, tenant.state, tenant.work));
            Some(with_reason(
                error.hint("`tenantd status` says whether a daemon is there, and what it waits for"),
                tenant,
            ))
        }
        Waited::Late(None) => Some(late(format!("there is no tenant {word:?}"))),
    }
}
