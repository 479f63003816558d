//! Whether a database may become a tenant's, and what would be recorded of it. Only looks.

use serde_json::{Value, json};

use super::choose::Candidate;
use crate::commands::given::Given;
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::isolation::{enter, schema_of};
use crate::migrations::compare::{Verdict, compare};
use crate::migrations::{Entry, MigrationSet, id_of};
use crate::pg::migrate::AppliedRow;
use crate::pg::{History, ownership};
use crate::registry::Registry;
use crate::registry::adopt::Found;
use crate::registry::check::Outside;
use crate::registry::lookup::Filter;
use crate::tenant::{Marker, State};

/// What would be recorded of one database.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) key: String,
    pub(super) database: Found,
    /// The tenant of this key as it stands, if there is one.
    pub(super) tenant: Option<Outside>,
    /// The newest migration that it has; `None`: none.
    pub(super) version: Option<i64>,
    /// What it has of our set, where that is the beginning of it.
    pub(super) set: Option<MigrationSet>,
    /// Whether that is to be written down as applied.
    pub(super) baseline: bool,
    /// What a person should know, one sentence each.
    pub(super) notes: Vec<String>,
}

impl Plan {
    pub(super) fn object(&self) -> Value {
        let baseline = self.set.as_ref().filter(|_| self.baseline);
        let versions =
            baseline.map(|set| set.migrations().iter().map(|migration| migration.version).collect::<Vec<_>>());
        json!({
            "key": self.key, "database": self.database.name, "oid": self.database.oid, "version": self.version,
            "written_down_as_applied": versions.unwrap_or_default(), "notes": self.notes,
        })
    }
}

/// What would be recorded of `candidate`; `None`: it is its tenant's already. `version`: what a database without a history has.
///
/// # Errors
/// Why it may not be adopted, with what to do.
pub(super) async fn plan(
    given: &Given,
    registry: &Registry,
    candidate: &Candidate,
    version: Option<i64>,
) -> Result<Option<Plan>> {
    let name = &candidate.name;
    let kind = registry.isolation;
    let key = candidate.key.clone().ok_or_else(|| {
        Error::usage(format!(
            "whose the {kind} {name:?} is cannot be told from its name, its marker or the signup table"
        ))
        .hint(format!("`tenantd adopt KEY --database {name}` says it"))
    })?;
    // One that was deleted may come back so.
    let filter = Filter { keys: vec![key.clone()], states: State::ALL.to_vec(), ..Filter::default() };
    let tenant = registry.outside(&filter, "", 1, &[]).await?.pop();
    let database = registry.databases_named(std::slice::from_ref(name)).await?.pop();
    let database = database.ok_or_else(|| {
        let lost = tenant.as_ref().is_some_and(|tenant| tenant.state == State::Ready);
        let or = if lost { format!("; for an empty one: `tenantd adopt {key} --empty`") } else { String::new() };
        Error::new(Kind::Missing, format!("there is no {kind} {name:?}"))
            .hint(format!("restore it under this name, or name another{or}"))
    })?;
    may_be_ours(registry, &key, &database)?;
    if is_the_tenants(kind, &key, &database, tenant.as_ref())? {
        return Ok(None);
    }
    let owner = given.config.tenant.owner.as_deref().unwrap_or_else(|| given.config.main.user());
    let (history, others) = look(given, &key, &database, owner).await?;
    let mut notes = notes(&database, owner);
    notes.extend(others.iter().map(|(role, number)| {
        format!("{number} tables and the like in it belong to role {role}, and migrations run as {owner}: in it, reassign owned by {role:?} to {owner:?}")
    }));
    let (has, set) = of_history(&given.set, &history)?;
    let plan = Plan { key, database, tenant, version: has, set, baseline: false, notes };
    match (history.is_empty(), version) {
        (false, _) | (true, Some(0)) => Ok(Some(plan)),
        (true, Some(version)) => {
            let set = given.set.up_to(version).filter(|set| set.newest_version() == version).ok_or_else(|| {
                Error::usage(format!("there is no migration {version} in {}", given.set.source()))
            })?;
            Ok(Some(Plan { version: Some(version), set: Some(set), baseline: true, ..plan }))
        }
        (true, None) => Err(Error::usage(format!("the {kind} {name:?} has no history of migrations"))
            .hint("say with --version which migration it has already: those up to it are written down as applied; 0: it has none")),
    }
}

/// Whether the database is nobody else's.
fn may_be_ours(registry: &Registry, key: &str, database: &Found) -> Result<()> {
    let (kind, name) = (registry.isolation, &database.name);
    if database.reserved {
        let whose = match kind {
            Isolation::Database => "the main one, a template, or tenantd's own",
            Isolation::Schema => "the server's, the application's, or tenantd's own",
        };
        return Err(Error::usage(format!("the {kind} {name:?} can be no tenant's: it is {whose}")));
    }
    if !database.valid || !database.open {
        let why = if database.valid { "takes no connections" } else { "is not whole" };
        return Err(Error::usage(format!("the database {name:?} {why}"))
            .hint("alter database … allow_connections true; one that is not whole can only be dropped"));
    }
    let marker = database.comment.as_deref().filter(|comment| is_marker(comment));
    if let Some(marker) = marker.filter(|marker| *marker != Marker::of(registry.id, key).to_string()) {
        let whose = if marker.contains(&registry.id.to_string()) {
            format!("bears the marker of another tenant than {key}")
        } else {
            "bears another registry's marker".to_owned()
        };
        return Err(Error::new(Kind::Conflict, format!("the {kind} {name:?} {whose}"))
            .hint(format!("if it really is to be this tenant's: comment on {kind} {name:?} is null")));
    }
    if !database.may_own {
        return Err(Error::new(
            Kind::Rights,
            format!("the {kind} {name:?} belongs to role {:?}, of which tenantd is no member", database.owner),
        )
        .hint(format!("as an administrator: alter {kind} {name:?} owner to tenantd's role, or to tenant.owner")));
    }
    Ok(())
}

fn is_marker(comment: &str) -> bool {
    let mut words = comment.split(' ');
    words.next() == Some("tenantd") && words.next().is_some_and(|word| uuid::Uuid::try_parse(word).is_ok())
}

/// Whether the tenant has it already.
///
/// # Errors
/// Another tenant has it, or this one another database.
fn is_the_tenants(kind: Isolation, key: &str, database: &Found, tenant: Option<&Outside>) -> Result<bool> {
    let name = &database.name;
    if let Some(other) = database.tenants.iter().find(|other| *other != key) {
        return Err(Error::usage(format!("the {kind} {name:?} is tenant {other}'s")));
    }
    let Some(tenant) = tenant else { return Ok(false) };
    if tenant.state == State::Deleting {
        return Err(Error::usage(format!("tenant {key} is being deleted")).hint("`tenantd restore` takes it back"));
    }
    let own = tenant.database.as_ref().filter(|own| tenant.recorded_oid == Some(own.oid));
    match own {
        Some(own) if own.oid == database.oid && own.ours => Ok(true),
        Some(own) if own.oid != database.oid => {
            let has = tenant.name.as_deref().unwrap_or_default();
            Err(Error::usage(format!("tenant {key} has a {kind} already, {has:?}"))
                .hint("rename that out of the way first, if it is not the tenant's"))
        }
        _ => Ok(false),
    }
}

fn notes(database: &Found, owner: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(comment) = database.comment.as_deref().filter(|comment| !is_marker(comment)) {
        notes.push(format!("its comment {comment:?} gives way to the marker"));
    }
    if database.owner != owner {
        notes.push(format!("it goes from role {} to {owner}; PUBLIC and whoever is in neither tenant.use nor tenant.connect is shut out", database.owner));
    }
    notes
}

/// Its history, and what is not the owner's in it.
async fn look(
    given: &Given,
    key: &str,
    database: &Found,
    owner: &str,
) -> Result<(Vec<AppliedRow>, Vec<(String, String)>)> {
    let settings = &given.config.tenant;
    let session = enter(&given.server, settings, &database.name, &format!("tenantd:{key}")).await?;
    let schema = schema_of(settings, &database.name);
    let looked = async {
        let within = (settings.isolation == Isolation::Schema).then_some(schema);
        Ok((History::tenant(schema).read(&session).await?, ownership::out_of_reach(&session, within, owner).await?))
    };
    let looked = looked.await;
    session.close().await;
    looked.map_err(|error: Error| error.context(format!("look into the {} {:?}", settings.isolation, database.name)))
}

/// The version that the history has, and the beginning of our set that it is, if it is one.
///
/// # Errors
/// It contradicts our files, or holds more than they.
fn of_history(ours: &MigrationSet, history: &[AppliedRow]) -> Result<(Option<i64>, Option<MigrationSet>)> {
    let recorded: Vec<_> = history.iter().map(AppliedRow::recorded).collect();
    match compare(ours, &recorded, true) {
        verdict @ (Verdict::Diverged(_) | Verdict::Newer(_)) => verdict.pending().map(|_| (None, None)),
        Verdict::Current | Verdict::Behind(_) => {
            let finished = recorded.iter().filter(|row| row.finished);
            let entries: Vec<Entry> = finished.map(|row| row.entry.clone()).collect();
            let version = entries.last().map(|entry| entry.version);
            let set = version.and_then(|version| ours.up_to(version)).filter(|set| set.id() == id_of(&entries));
            Ok((version, set))
        }
    }
}
