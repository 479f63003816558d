//! `tenantd setup`: installs, prints what it would install, or removes.

use std::io::Write;

use serde_json::json;

use super::given::{Consent, Given};
use super::{ExitStatus, output};
use crate::cli;
use crate::config::{Config, Isolation};
use crate::error::Result;
use crate::migrations::MigrationSet;
use crate::pg::Server;
use crate::registry::identity::Moved;
use crate::registry::install::{Installed, Removed, Wishes};
use crate::registry::signup::{self, Table};
use crate::registry::{Registry, print as printed, when};

/// Installs and says what was done and what a person should know.
///
/// # Errors
/// As [`Registry::install`]'s; wrong use.
pub async fn run(given: &Given, arguments: &cli::Setup, out: &mut impl Write) -> Result<ExitStatus> {
    let Given { server, config, set, worker, json, .. } = given;
    let json = *json;
    if arguments.print_sql {
        return print_sql(server, config, json, out).await;
    }
    if arguments.remove {
        return remove(server, config.tenant.isolation, arguments.yes, json, out).await;
    }
    let wishes = Wishes {
        backfill: arguments.backfill || config.signup.backfill,
        moved: match (arguments.adopt_registry, arguments.new_registry) {
            (true, _) => Moved::Adopt,
            (_, true) => Moved::New,
            _ => Moved::Refuse,
        },
    };
    let (_, installed) = Registry::install(server, config, wishes, worker).await?;
    if json {
        output::object(
            out,
            &json!({
                "changes": installed.changes,
                "notes": installed.notes,
                "notify": installed.notify,
                "migration_set": { "source": set.source(), "id": set.id(), "migrations": set.migrations().len() },
            }),
        )?;
    } else {
        print(&installed, set, out)?;
    }
    Ok(ExitStatus::Well)
}

fn print(installed: &Installed, set: &MigrationSet, out: &mut impl Write) -> Result<()> {
    let mut text = String::new();
    for change in &installed.changes {
        text.push_str(&format!("done: {change}\n"));
    }
    if installed.changes.is_empty() {
        text.push_str("nothing to install: all is as it should be\n");
    }
    text.push_str(&format!(
        "signups into {}{} {}; tenant migrations: {} from {}\n",
        installed.table.name,
        installed.table.when.as_ref().map(|when| format!(" with {}", output::line(&when.written))).unwrap_or_default(),
        if installed.notify { "ring the doorbell" } else { "are polled for" },
        set.migrations().len(),
        set.source()
    ));
    for note in &installed.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    output::text(out, &text)
}

/// Without a connection the signup table is taken for an ordinary one, and so is one that we may not use yet.
async fn print_sql(server: &Server, config: &Config, json: bool, out: &mut impl Write) -> Result<ExitStatus> {
    let table = match server.connect(None, "tenantd:setup").await {
        Ok(session) => match signup::inspect(&session, &config.signup, &config.tenant.names).await {
            Ok(table) => Some(table),
            Err(_) if config.signup.when.is_none() => None,
            // What is wrong with the condition is said; rights are what the script is there for.
            Err(_) => {
                let ordinary = Table::ordinary(&config.signup, None);
                let when = when::of(&session, &ordinary.name, &config.signup).await?;
                Some(Table { when, ..ordinary })
            }
        },
        Err(_) => None,
    };
    let sql = printed::sql(config, table.as_ref(), config.signup.notify.unwrap_or(true))?;
    if json {
        output::object(out, &json!({ "sql": sql }))?;
    } else {
        output::text(out, &sql)?;
    }
    Ok(ExitStatus::Well)
}

async fn remove(server: &Server, kind: Isolation, yes: bool, json: bool, out: &mut impl Write) -> Result<ExitStatus> {
    let what = "This removes schema tenantd: which tenants exist and how they stand is forgotten.";
    Consent { yes }.ask(what, "yes")?;
    let Removed { dropped, set_aside } = Registry::remove(server).await?;
    if json {
        let removed = ["schema tenantd"];
        output::object(out, &json!({ "removed": removed, "dropped": dropped, "set_aside": set_aside }))?;
    } else {
        let besides = match kind {
            Isolation::Database => {
                let dropped = output::counted(i64::try_from(dropped.len()).unwrap_or(i64::MAX), "database");
                format!(", and {dropped} of templates and spares")
            }
            Isolation::Schema => String::new(),
        };
        let mut told =
            format!("removed schema tenantd with registry, function and trigger{besides}; the tenants' {kind}s stay\n");
        if !set_aside.is_empty() {
            told.push_str(&format!(
                "note: these were set aside in a time of grace and stay too, for you to drop: {}\n",
                set_aside.join(", ")
            ));
        }
        output::text(out, &told)?;
    }
    Ok(ExitStatus::Well)
}
