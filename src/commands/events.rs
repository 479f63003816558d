//! `tenantd events`: what was done to tenants, when and by whom.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::given::Given;
use super::{ExitStatus, output};
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::events::Event;
use crate::shutdown::Requests;

/// Time between two looks for new events.
const AGAIN: Duration = Duration::from_secs(1);

/// So many events are read at a time.
const PAGE: i64 = 1000;

/// New events are looked for from so far before the last one on: a long transaction's comes later than one with a higher number.
const BACK: i64 = 100;

/// `tenantd events`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd events --limit 20        the last twenty
  tenantd events 6f9619ff          those of one tenant, named by the beginning of its key
  tenantd events --follow --json   each as it comes, one object a line")]
pub struct Events {
    /// Only this tenant's: a key, a database's name, or the beginning of one
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// Not more than so many of those that happened already
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i64).range(0..))]
    pub limit: i64,
    /// Go on and show what happens from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
}

/// Writes the newest events, the newest last; with `--follow` those that come, too. As text a line each; as JSON one object, or with `--follow`
/// one for each event. Only reads.
///
/// # Errors
/// No tenant is called so, or several are; the main database cannot be reached; `out` cannot be written to.
pub async fn run(given: &Given, arguments: &Events, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let key = match &arguments.key {
        Some(word) => Some(registry.find(word).await?),
        None => None,
    };
    if arguments.follow {
        return follow(given, &registry, key.as_deref(), arguments.limit, out).await;
    }
    let mut events = registry.events(key.as_deref(), arguments.limit).await?;
    events.reverse();
    if given.json {
        output::object(out, &json!({ "events": events.iter().map(object).collect::<Vec<_>>() }))?;
    } else {
        output::text(out, if events.is_empty() { "no event\n".to_owned() } else { lines(&events) }.as_str())?;
    }
    Ok(ExitStatus::Well)
}

/// Shows the newest `limit` events and those that come, until interrupted, or until nobody reads any more.
async fn follow(
    given: &Given,
    registry: &Registry,
    key: Option<&str>,
    limit: i64,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    // Before the first is shown: whoever has seen one may interrupt.
    let stop = Requests::of_process(&given.tasks)?.stop;
    let mut last = registry.events(None, 1).await?.first().map_or(0, |event| event.id);
    // What is there now is shown below, or not asked for; what is not there may still come, with whatever number.
    let mut seen: BTreeSet<i64> =
        registry.events_after(last - BACK, key, PAGE).await?.iter().map(|event| event.id).collect();
    let mut events = registry.events(key, limit).await?;
    events.reverse();
    loop {
        for event in &events {
            last = last.max(event.id);
            seen.insert(event.id);
            let text = if given.json { object_line(event) } else { lines(std::slice::from_ref(event)) };
            if !output::more(out, &text)? {
                return Ok(ExitStatus::Well);
            }
        }
        seen = seen.split_off(&(last - BACK));
        if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return Ok(ExitStatus::Well);
        }
        events = registry.events_after(last - BACK, key, PAGE).await?;
        events.retain(|event| !seen.contains(&event.id));
    }
}

/// One event as a whole object in one line, so that each can be taken as it comes.
fn object_line(event: &Event) -> String {
    let mut object = object(event);
    object["format"] = json!(1);
    format!("{object}\n")
}

/// Events as people read them, a line each.
pub(super) fn lines(events: &[Event]) -> String {
    let line = |event: &Event| {
        let key = event.key.as_deref().unwrap_or("the fleet");
        let detail = event.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        let text =
            format!("{}  {:<11}  {key}  by {}{detail}", output::moment(event.happened_at), event.what, event.who);
        output::line(&text) + "\n"
    };
    events.iter().map(line).collect()
}

/// One event for programs.
pub(super) fn object(event: &Event) -> Value {
    json!({
        "id": event.id,
        "happened_at": event.happened_at.to_string(),
        "key": event.key,
        "what": event.what,
        "who": event.who,
        "detail": event.detail,
    })
}
