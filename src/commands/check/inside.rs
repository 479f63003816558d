//! What is wrong within a tenant's database: its migrations, its objects, its indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::outside::{FIX, ROLLOUT};
use super::{Finding, Ill};
use crate::config::Isolation;
use crate::error::{Error, Result};
use crate::isolation::{enter, schema_of};
use crate::migrations::compare::{Verdict, compare};
use crate::migrations::{Entry, id_of};
use crate::pg::catalogue::{self, Catalogue, Change, Difference};
use crate::pg::migrate::AppliedRow;
use crate::pg::{History, indexes};
use crate::provision::Context;
use crate::provision::expected::expected;
use crate::registry::check::Outside;
use crate::tenant::Work;

/// What tenants of each migration set should hold, read once when the first of them asks.
pub(super) struct Expectations<'a> {
    context: &'a Context,
    read: Mutex<BTreeMap<String, Expected>>,
}

/// What is known of one set.
#[derive(Clone)]
enum Expected {
    /// Its catalogue.
    Known(Arc<Catalogue>),
    /// Nobody here carries it.
    Foreign,
    /// It could not be had; why.
    Failed(String),
}

impl<'a> Expectations<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Expectations { context, read: Mutex::default() }
    }

    /// Of the set `id`. The caller holds no connection to a tenant: one may be needed here.
    async fn of(&self, id: &str) -> Expected {
        let mut read = self.read.lock().await;
        if let Some(known) = read.get(id) {
            return known.clone();
        }
        let found = match expected(self.context, id).await {
            Ok(Some(catalogue)) => Expected::Known(Arc::new(catalogue)),
            Ok(None) => Expected::Foreign,
            Err(error) => Expected::Failed(error.with_advice()),
        };
        read.insert(id.to_owned(), found.clone());
        found
    }

    /// The sets that could not be had, though they are ours.
    pub(super) fn failures(self) -> Vec<Finding> {
        let failed = self.read.into_inner().into_iter().filter_map(|(id, expected)| match expected {
            Expected::Failed(why) => Some((id, why)),
            Expected::Known(_) | Expected::Foreign => None,
        });
        let finding = |(id, why): (String, String)| {
            let text = format!("tenants of migration set {id:.12} were not compared with what they should hold: {why}");
            Finding::of_fleet(None, Ill::Uncompared, text, "mend what it says, then check again")
        };
        failed.map(finding).collect()
    }
}

/// What a look inside brought.
struct Inside {
    history: Vec<AppliedRow>,
    catalogue: Catalogue,
    invalid_indexes: Vec<String>,
}

pub(super) async fn look(context: &Context, expectations: &Expectations<'_>, tenant: &Outside) -> Vec<Finding> {
    let inside = match read(context, tenant).await {
        Ok(inside) => inside,
        Err(error) => return vec![refused(tenant, &error)],
    };
    let mut found = of_migrations(context, tenant, &inside.history);
    let applied: Vec<Entry> = inside.history.iter().map(|row| row.entry.clone()).collect();
    // Where the grants are those of other settings, all that they are on would differ.
    let comparable = tenant.access.as_ref() == Some(&context.access()) && inside.history.iter().all(|row| row.finished);
    if comparable && let Expected::Known(expected) = expectations.of(&id_of(&applied)).await {
        found.extend(of_objects(tenant, &expected, &inside));
    }
    found.extend(inside.invalid_indexes.iter().map(|index| {
        let advice =
            format!("in the tenant: reindex index concurrently {index}; or drop it, if its migration makes another");
        Finding::of(
            tenant,
            Ill::Index,
            format!("the index {index} is invalid: it costs each write and serves no query"),
            advice,
        )
    }));
    found
}

async fn read(context: &Context, tenant: &Outside) -> Result<Inside> {
    let name = tenant.name.as_deref().unwrap_or_default();
    let settings = &context.config.tenant;
    let session = enter(&context.server, settings, name, &format!("tenantd:{}", tenant.key)).await?;
    let within = (settings.isolation == Isolation::Schema).then_some(name);
    let read = async {
        Ok(Inside {
            history: History::tenant(schema_of(settings, name)).read(&session).await?,
            catalogue: match within {
                Some(schema) => catalogue::read_own(&session, schema).await?,
                None => catalogue::read(&session, None).await?,
            },
            invalid_indexes: indexes::invalid(&session, within).await?,
        })
    };
    let inside = read.await;
    session.close().await;
    inside
}

fn refused(tenant: &Outside, error: &Error) -> Finding {
    let advice = error.advice().unwrap_or("look into the server's log for why");
    Finding::of(tenant, Ill::Refused, format!("it could not be looked into: {}", error.chain()), advice)
}

fn of_migrations(context: &Context, tenant: &Outside, history: &[AppliedRow]) -> Vec<Finding> {
    let recorded: Vec<_> = history.iter().map(AppliedRow::recorded).collect();
    match compare(&context.set, &recorded, context.config.tenant.out_of_order) {
        Verdict::Current => Vec::new(),
        // Whoever holds a tenant means it to stay where it is.
        Verdict::Behind(_) if tenant.work == Work::Held => Vec::new(),
        Verdict::Behind(pending) => {
            let lacks: Vec<String> =
                pending.iter().map(|migration| format!("{} {}", migration.version, migration.name)).collect();
            let advice = if context.gate.is_open() { FIX } else { ROLLOUT };
            vec![Finding::of(tenant, Ill::Behind, format!("it lacks migrations: {}", lacks.join(", ")), advice)]
        }
        Verdict::Newer(more) => {
            let more: Vec<String> = more.iter().map(|entry| format!("{} {}", entry.version, entry.name)).collect();
            let text = format!("it has migrations that this tenantd does not carry: {}", more.join(", "));
            vec![Finding::of(tenant, Ill::Newer, text, "run the tenantd, or name the folder, that carries them")]
        }
        Verdict::Diverged(reasons) => {
            let advice = "put the files back as they were applied, and make each change a new migration";
            reasons.iter().map(|reason| Finding::of(tenant, Ill::Drift, reason.to_string(), advice)).collect()
        }
    }
}

fn of_objects(tenant: &Outside, expected: &Catalogue, inside: &Inside) -> Option<Finding> {
    let mut objects = expected.difference(&inside.catalogue);
    // Told for itself, with what to do; there by its full name, here perhaps without the tenant's schema.
    let is_invalid = |name: &String| {
        inside.invalid_indexes.iter().any(|index| index == name || index.ends_with(&format!(".{name}")))
    };
    objects.retain(|object| !(object.kind == "index" && is_invalid(&object.name)));
    let text = match objects.len() {
        0 => return None,
        1 => "an object is not as its migrations made it".to_owned(),
        several => format!("{several} objects are not as its migrations made them"),
    };
    let advice =
        "put it back by hand, or make the change a migration that all tenants get; nothing is changed by --fix";
    Some(Finding { objects, ..Finding::of(tenant, Ill::Changed, text, advice) })
}

/// A difference in a line.
pub(super) fn told(Difference { kind, name, change }: &Difference) -> String {
    match change {
        Change::Missing => format!("{kind} {name} is missing"),
        Change::Extra => format!("{kind} {name} is in no migration"),
        Change::Changed { ours, theirs } => format!("{kind} {name}: by its migrations {ours}; in the tenant {theirs}"),
    }
}
