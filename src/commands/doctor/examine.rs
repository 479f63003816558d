//! Doctor at work: connects, asks, tries. Nothing is changed but for the scratch database, which goes again.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{Check, Diagnosis, Verdict, rules};
use crate::backup::look_for_programs;
use crate::commands::migration_set;
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, Server, Session, admin, quote};
use crate::provision::scratch::{self, Scratch};
use crate::registry::doctor::{self, Facts};
use crate::registry::doorbell::{self, Doorbell};
use crate::registry::templates::Template;
use crate::registry::{Registry, Worker, grants, identity, parts, schema, signup};
use crate::tasks::Tasks;
use crate::tenant::spare_name;

/// A session that a pooler shares out comes from another process now and then.
const ASKED_FOR_PROCESS: usize = 5;

/// Whom doctor looks at, and what is needed for it.
pub(super) struct Patient<'a> {
    pub(super) server: &'a Server,
    pub(super) config: &'a Config,
    pub(super) worker: &'a Worker,
    pub(super) tasks: &'a Tasks,
}

/// What the connection showed, for everything that is looked at over it.
struct Connected {
    session: Session,
    facts: Facts,
    /// The clock of this machine before and after the server's was asked.
    between: (Timestamp, Timestamp),
    /// The registry, where it is installed and can be worked with.
    registry: Option<Registry>,
    /// Tenants that have a database; `None` without a registry.
    tenants: Option<i64>,
    /// The templates that serve.
    templates: Vec<Template>,
}

impl Patient<'_> {
    /// What is found at each of `checks`. Without a connection most of it is unknown.
    pub(super) async fn examine(&self, checks: &[Check]) -> Vec<Diagnosis> {
        let began = Instant::now();
        let connected = self.connect().await;
        let took = began.elapsed();
        let mut found = Vec::new();
        for check in checks {
            match (check, &connected) {
                (Check::Migrations, _) => found.push(self.migrations()),
                (Check::Connection, Ok(connected)) => {
                    let text = format!(
                        "{}, as role {:?}, in {}",
                        self.config.main.describe(),
                        connected.facts.me,
                        crate::commands::output::duration(took)
                    );
                    found.push(Diagnosis::ok(Check::Connection, text));
                }
                (Check::Connection, Err(error)) => {
                    let advice =
                        error.advice().unwrap_or("is the server up, and main.url right? `tenantd config show`");
                    found.push(Diagnosis::wrong(Check::Connection, error.chain(), advice));
                }
                (check, Err(_)) => {
                    found.push(Diagnosis::new(*check, Verdict::Unknown, "not looked at, for want of a connection"));
                }
                (check, Ok(connected)) => match self.look(*check, connected).await {
                    Ok(diagnoses) => found.extend(diagnoses),
                    Err(error) => found.push(Diagnosis::of(*check, Verdict::Unknown, &error)),
                },
            }
        }
        if let Ok(connected) = connected {
            connected.session.close().await;
        }
        found
    }

    async fn connect(&self) -> Result<Connected> {
        let session = self.server.connect(None, &self.worker.application_name).await?;
        let before = Timestamp::now();
        let facts = doctor::facts(&session).await?;
        let between = (before, Timestamp::now());
        // Whatever is wrong with the registry, it is told where that is looked at.
        let registry = Registry::open(self.server, self.worker).await.ok();
        let (mut tenants, mut templates) = (None, Vec::new());
        if let Some(registry) = &registry {
            tenants = registry.room().await.ok().map(|room| room.tenants);
            templates = registry.templates().await.unwrap_or_default();
            templates.retain(Template::serves);
        }
        Ok(Connected { session, facts, between, registry, tenants, templates })
    }

    async fn look(&self, check: Check, connected: &Connected) -> Result<Vec<Diagnosis>> {
        let (facts, config, session) = (&connected.facts, self.config, &connected.session);
        Ok(match check {
            Check::Tls => vec![rules::tls(facts, config)],
            Check::Server => vec![rules::server(facts, config)],
            Check::Writes => vec![rules::writes(facts)],
            Check::Notify => vec![rules::notify(facts, config)],
            Check::Connections => vec![rules::connections(facts, config)],
            Check::Room => vec![rules::room(facts, connected.tenants, config)],
            Check::Autovacuum => vec![rules::autovacuum(facts)],
            Check::Clock => vec![rules::clock(facts.clock, connected.between.0, connected.between.1)],
            Check::Collation if facts.version < 150_000 => vec![rules::collation(&[], facts.version)],
            Check::Collation => vec![rules::collation(&doctor::collations(session).await?, facts.version)],
            Check::Disk => vec![self.disk(connected)],
            Check::Rights => self.rights(connected).await?,
            Check::Signup => vec![self.signup(session).await?],
            Check::Registry => vec![self.registry(connected).await?],
            Check::Listen => vec![self.listen(session).await?],
            Check::Clone => vec![self.clone(connected).await?],
            Check::PgDump => {
                let looked = look_for_programs(&config.backup, facts.version).await;
                vec![rules::pg_dump(&looked, config)]
            }
            Check::Connection | Check::Migrations => Vec::new(),
        })
    }

    fn migrations(&self) -> Diagnosis {
        match migration_set(self.config) {
            Ok(set) => {
                let (number, newest) = (set.migrations().len(), set.newest_version());
                Diagnosis::ok(Check::Migrations, format!("{number} from {}, the newest is {newest}", set.source()))
            }
            Err(error) => Diagnosis::of(Check::Migrations, Verdict::Wrong, &error),
        }
    }

    /// Roles, membership, schema: each that lacks something by itself.
    async fn rights(&self, Connected { session, facts, .. }: &Connected) -> Result<Vec<Diagnosis>> {
        let mut notes = Vec::new();
        let mut lacking = grants::lacking(session, self.config, &mut notes).await?;
        lacking.extend(schema::look(session).await?.lacks());
        let mut found: Vec<Diagnosis> =
            lacking.iter().map(|error| Diagnosis::of(Check::Rights, Verdict::Wrong, error)).collect();
        notes.extend(grants::notes_on_roles(self.config));
        if facts.superuser {
            notes.push(format!("role {:?} is a superuser: tenantd needs none", facts.me));
        }
        found.extend(notes.into_iter().map(|note| Diagnosis::new(Check::Rights, Verdict::Warning, note)));
        if found.is_empty() {
            let kind = self.config.tenant.isolation;
            let text = format!("role {:?} may make {kind}s, give them to their owner, and keep the registry", facts.me);
            found.push(Diagnosis::ok(Check::Rights, text));
        }
        Ok(found)
    }

    async fn signup(&self, session: &Session) -> Result<Diagnosis> {
        Ok(match signup::inspect(session, &self.config.signup, &self.config.tenant.names).await {
            Ok(table) if table.rows_hidden => Diagnosis::warning(
                Check::Signup,
                format!(
                    "row level security hides rows of {} from tenantd, so no sweep finds a user that the trigger missed",
                    table.name
                ),
                format!("as an administrator: alter role {} bypassrls", self.config.main.user()),
            ),
            Ok(table) => {
                let with = table.when.map(|when| format!(", for rows with {}", when.written)).unwrap_or_default();
                let text = format!("a trigger on {} can serve, by column {}{with}", table.name, table.id);
                Diagnosis::ok(Check::Signup, text)
            }
            Err(error) if matches!(error.kind(), Kind::Usage | Kind::Rights) => {
                Diagnosis::of(Check::Signup, Verdict::Wrong, &error)
            }
            Err(error) => return Err(error),
        })
    }

    async fn registry(&self, connected: &Connected) -> Result<Diagnosis> {
        let missing = parts::missing(&connected.session).await?;
        if missing.contains(&"registry".to_owned()) {
            return Ok(Diagnosis::ok(Check::Registry, "not installed yet: `tenantd setup` does that"));
        }
        if !missing.is_empty() {
            let text = format!("the registry is damaged, it lacks {}", missing.join(", "));
            return Ok(Diagnosis::wrong(Check::Registry, text, "`tenantd setup` makes again what is missing"));
        }
        let Some(registry) = &connected.registry else {
            // Once more, for why.
            return Ok(match Registry::open(self.server, self.worker).await {
                Ok(_) => Diagnosis::ok(Check::Registry, "installed"),
                Err(error) => Diagnosis::of(Check::Registry, Verdict::Wrong, &error),
            });
        };
        let held = identity::read(&connected.session).await?.is_some_and(|identity| identity.users_held);
        let text = if held { "installed" } else { "installed; the users from before are still to be read" };
        Ok(Diagnosis::ok(Check::Registry, format!("{text}: {}", registry.id)))
    }

    /// Whether a notification of our own is heard, and the session belongs to us alone.
    async fn listen(&self, session: &Session) -> Result<Diagnosis> {
        let advice = "main.url must reach the server directly, not through a pooler that shares its connections out";
        if session.is_shared() {
            return Ok(Diagnosis::of(Check::Listen, Verdict::Wrong, &doorbell::pooled()));
        }
        let first = doctor::backend(session).await?;
        for _ in 1..ASKED_FOR_PROCESS {
            if doctor::backend(session).await? != first {
                let text = "a pooler between tenantd and the server gives one session to several processes";
                return Ok(Diagnosis::wrong(Check::Listen, text, advice));
            }
        }
        let heard = async {
            let (name, rings) = (&self.worker.application_name, Arc::new(Notify::new()));
            let bell = Doorbell::open(self.server, name, rings, self.tasks).await?;
            let began = Instant::now();
            bell.ping().await.map(|()| began.elapsed())
        };
        Ok(match heard.await {
            Ok(took) => {
                let text = format!("a notification came back in {}", crate::commands::output::duration(took));
                Diagnosis::ok(Check::Listen, text)
            }
            Err(error) => Diagnosis::of(Check::Listen, Verdict::Wrong, &error.hint(advice)),
        })
    }

    /// Makes a scratch database, from the template that serves if there is one, and drops it; a schema where tenants have these.
    async fn clone(&self, connected: &Connected) -> Result<Diagnosis> {
        let template = connected.templates.first();
        let from = match self.config.tenant.isolation {
            Isolation::Database => Some(template.map_or("template0", |template| template.name.as_str())),
            Isolation::Schema => None,
        };
        if connected.registry.is_none() && self.config.tenant.database.is_some() {
            let later = "a schema is tried where tenants will have theirs once `tenantd setup` has been there";
            return Ok(Diagnosis::new(Check::Clone, Verdict::Unknown, later));
        }
        let began = Instant::now();
        let made = match &connected.registry {
            Some(registry) => match Scratch::make(registry, self.config, template).await {
                Ok(scratch) => {
                    let took = began.elapsed();
                    scratch.discard(registry).await.map(|()| took)
                }
                Err(error) => Err(error),
            },
            None => self.clone_unregistered(connected).await,
        };
        Ok(match made {
            Ok(took) => rules::cloned(took, from),
            Err(error) => Diagnosis::of(Check::Clone, Verdict::Wrong, &error),
        })
    }

    /// Before there is a registry to write the name down in, it is told.
    async fn clone_unregistered(&self, connected: &Connected) -> Result<std::time::Duration> {
        let (name, began) = (spare_name(), Instant::now());
        if self.config.tenant.isolation == Isolation::Schema {
            let schema = quote::identifier(&name);
            let both = format!("create schema {schema}; drop schema {schema}");
            let made = connected.session.batch_execute(&both).await;
            return made.doing(|| "make a scratch schema".to_owned()).map(|()| began.elapsed());
        }
        tracing::info!(database = name, "making a scratch database, which is dropped at once");
        let copy = scratch::copy(self.config, None, &name, connected.facts.version);
        let made = admin::create_database(&connected.session, &copy, "").await;
        let took = began.elapsed();
        let dropped = admin::drop_database(&connected.session, &name).await;
        made?;
        dropped.map_err(|error: Error| error.hint(format!("drop it by hand: drop database {name}")))?;
        Ok(took)
    }

    /// The room on the server's disk can be seen where the server runs on this machine and shows where its data are.
    fn disk(&self, connected: &Connected) -> Diagnosis {
        let local = self.config.main.endpoints.iter().all(|endpoint| endpoint.place.is_local());
        let unseen = || Diagnosis::new(Check::Disk, Verdict::Unknown, "the server's disk cannot be seen from here");
        let Some(directory) = connected.facts.data_directory.as_ref().filter(|_| local) else { return unseen() };
        let Ok(found) = rustix::fs::statvfs(directory) else { return unseen() };
        let free = i64::try_from(found.f_bavail.saturating_mul(found.f_frsize)).unwrap_or(i64::MAX);
        let each = connected.templates.first().map_or(rules::EMPTY_DATABASE, |template| template.bytes);
        rules::disk(free, each, connected.tenants, self.config)
    }
}
