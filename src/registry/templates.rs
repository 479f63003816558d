//! Templates in the registry: which there are, which serve, and who may build one. Making and dropping them is `provision::template`.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};

/// The SQLSTATE by which the server says that a template is not ours to change.
const NOT_OURS: &str = "TD001";

/// A template as the registry and the server's catalogue show it.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Its database's name.
    pub name: String,
    /// The id of the migration set that it holds.
    pub migration_set: String,
    /// The fingerprint of owner, grants and extensions.
    pub shape: String,
    /// Its size in bytes, once it is complete.
    pub bytes: i64,
    /// How long ago it was completed; `None`: it is not yet.
    pub completed: Option<Duration>,
    /// How long ago it was begun.
    pub age: Duration,
    /// Whether new tenants get its set: the canaries of its rollout have passed, or it has none.
    pub open: bool,
    /// Whether nothing is made from it any more.
    pub retired: bool,
    /// Whether its database is there as it was left: whole, closed, the same.
    pub whole: bool,
    /// Whether a database of its name is there at all.
    pub there: bool,
    /// Whether that bears our marker and is valid, so that building can go on in it.
    pub begun: bool,
    /// How many spares are its clones.
    pub spares: i64,
    /// How often in a row building it failed.
    pub failures: u32,
    /// The time until it is tried again.
    pub due_in: Duration,
    /// Why building it failed last, in full.
    pub error: Option<String>,
}

impl Template {
    /// Whether clones may be made of it.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.completed.is_some() && !self.retired && self.whole
    }
}

/// What a template is to hold.
#[derive(Debug, Clone, Copy)]
pub struct TemplateOf<'a> {
    /// The id of the migration set.
    pub migration_set: &'a str,
    /// Its newest version.
    pub version: i64,
    /// The fingerprint of owner and grants.
    pub access: &'a str,
    /// The fingerprint of owner, grants and extensions.
    pub shape: &'a str,
}

impl Registry {
    /// Every template, the one completed last first, those not complete at the end.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        let rows = self
            .query(
                "select p.name, p.migration_set, p.shape, coalesce(p.bytes, 0) as bytes, p.failures, p.retired_at is not null as retired,
                        not exists (select from tenantd.rollout r where r.migration_set = p.migration_set and (r.passed_at is null or r.state = 'aborted')) as open,
                        extract(epoch from now() - p.completed_at)::float8 as completed,
                        greatest(extract(epoch from now() - p.created_at), 0)::float8 as age,
                        greatest(extract(epoch from p.due_at - now()), 0)::float8 as due_in,
                        coalesce(d.oid = p.database_oid and d.datconnlimit = -1 and not d.datallowconn, false) as whole,
                        d.oid is not null as there,
                        coalesce(shobj_description(d.oid, 'pg_database') = $1 and d.datconnlimit <> -2, false) as begun,
                        (select count(*) from tenantd.spare s where s.template = p.name) as spares,
                        p.error_kind || ': ' || p.error_text as error
                 from tenantd.template p left join pg_database d on d.datname = p.name
                 order by p.completed_at desc nulls last, p.created_at desc",
                &[(&self.template_marker(), Type::TEXT)],
                || "read the templates".to_owned(),
            )
            .await?;
        rows.iter().map(read).collect()
    }

    /// Why the template of the set `id` could not be built, in full; `None`: it could, or nobody tried.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn template_failure(&self, id: &str) -> Result<Option<String>> {
        let sql = "select error_kind || ': ' || error_text as error from tenantd.template
                   where migration_set = $1 and completed_at is null and retired_at is null and error_text is not null
                   order by created_at desc limit 1";
        let rows = self.query(sql, &[(&id, Type::TEXT)], || "look at the template".to_owned()).await?;
        rows.first().map(|row| field(row, "error")).transpose()
    }

    /// Makes this process the one that builds templates and makes spares, for the time of `lease`, or renews that. False: another is.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn keep(&self, lease: Duration) -> Result<bool> {
        let kept = self
            .execute(
                "update tenantd.registry set keeper = $1, keeper_until = now() + $2 * interval '1 second'
                 where id = $3 and needs_version <= $4 and (keeper is null or keeper = $1 or keeper_until <= now())",
                &[
                    (&self.worker, Type::TEXT),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&self.id, Type::UUID),
                    (&self.knows, Type::INT8),
                ],
                || "become the keeper of templates and spares".to_owned(),
            )
            .await?;
        Ok(kept == 1)
    }

    /// Lets another be the keeper at once.
    ///
    /// # Errors
    /// The main database cannot be reached: the lease ends by itself.
    pub async fn stop_keeping(&self) -> Result<()> {
        self.execute(
            "update tenantd.registry set keeper = null, keeper_until = null where keeper = $1",
            &[(&self.worker, Type::TEXT)],
            || "give up keeping templates and spares".to_owned(),
        )
        .await
        .map(drop)
    }

    /// Writes down the template `name` before its database is made.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn announce_template(&self, name: &str, of: TemplateOf<'_>) -> Result<()> {
        self.execute(
            "insert into tenantd.template (name, migration_set, version, access, shape) values ($1, $2, $3, $4, $5)",
            &[
                (&name, Type::TEXT),
                (&of.migration_set, Type::TEXT),
                (&of.version, Type::INT8),
                (&of.access, Type::TEXT),
                (&of.shape, Type::TEXT),
            ],
            || format!("write down the template {name:?}"),
        )
        .await
        .map(drop)
    }

    /// Writes down the template `name`, which takes the place of `old`: that cannot be gone on with, and is to be dropped. How often it failed
    /// stays, so that the time between tries goes on growing.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn begin_template_anew(&self, old: &str, name: &str) -> Result<()> {
        self.execute(
            "with old as (update tenantd.template set retired_at = coalesce(retired_at, now()) where name = $1 returning *)
             insert into tenantd.template
                 (name, migration_set, version, access, shape, failures, due_at, error_kind, error_text, error_sqlstate)
             select $2, migration_set, version, access, shape, failures, due_at, error_kind, error_text, error_sqlstate from old",
            &[(&old, Type::TEXT), (&name, Type::TEXT)],
            || format!("write down the template {name:?} in the place of {old:?}"),
        )
        .await
        .map(drop)
    }

    /// Marks the template `name`, which is being built, as ours, and opens it.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when another is the keeper, or it is not being built any more: nothing was changed. The main database cannot be reached.
    pub async fn open_template(&self, name: &str) -> Result<()> {
        let (database, marker) = (quote::identifier(name), quote::literal(&self.template_marker()));
        let open = format!(
            "comment on database {database} is {marker}; alter database {database} with allow_connections true;"
        );
        self.change_template(name, &open).await.map_err(|error| error.context(format!("open the database {name:?}")))
    }

    /// Closes the template `name`, which is being built.
    ///
    /// # Errors
    /// As [`Self::open_template`].
    pub async fn close_template(&self, name: &str) -> Result<()> {
        let close = format!("alter database {} with allow_connections false;", quote::identifier(name));
        self.change_template(name, &close).await.map_err(|error| error.context(format!("close the database {name:?}")))
    }

    /// Runs `statements` if the template `name` is still this process's to build. One message, so that a process that stands still
    /// cannot do so between the question and the change.
    async fn change_template(&self, name: &str, statements: &str) -> Result<()> {
        let body = format!(
            "begin
                 perform from tenantd.template p, tenantd.registry r
                 where p.name = {name} and p.completed_at is null and p.retired_at is null
                   and r.keeper = {worker} and r.keeper_until > clock_timestamp();
                 if not found then
                     raise exception using errcode = '{NOT_OURS}', message = 'another tenantd keeps templates and spares now';
                 end if;
                 {statements}
             end",
            name = quote::literal(name),
            worker = quote::literal(&self.worker),
        );
        let session = self.session().await?;
        let change = format!("do {}", quote::literal(&body));
        let changed = session.batch_execute(&change).await.doing(|| format!("change the template {name:?}"));
        changed.map_err(|error| match error.code() {
            Some(NOT_OURS) => error.with_kind(Kind::LeaseLost),
            _ => error,
        })
    }

    /// How many sessions are in the template `name`, but for the server's own, whom a clone does not wait for. With `evict`, those of our role are asked
    /// to end: one of a keeper that stood still, or whose machine is gone, would stay for as long as the network lets it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn sessions_in_template(&self, name: &str, evict: bool) -> Result<usize> {
        let rows = self
            .query(
                "select case when $3 and a.usename = session_user and r.keeper = $2 and r.keeper_until > now()
                             then pg_terminate_backend(a.pid) end
                 from pg_stat_activity a, tenantd.registry r where a.datname = $1 and a.usesysid is not null",
                &[(&name, Type::TEXT), (&self.worker, Type::TEXT), (&evict, Type::BOOL)],
                || format!("look for sessions in the database {name:?}"),
            )
            .await?;
        Ok(rows.len())
    }

    /// Puts the template `name` into service, with its size, unless another became the keeper meanwhile. False: it is not in service.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn complete_template(&self, name: &str) -> Result<bool> {
        let completed = self
            .execute(
                "update tenantd.template p set completed_at = now(), database_oid = d.oid, bytes = pg_database_size(d.oid), failures = 0,
                        error_kind = null, error_text = null, error_sqlstate = null
                 from pg_database d
                 where p.name = $1 and d.datname = $1 and not d.datallowconn and p.retired_at is null
                 and exists (select from tenantd.registry where keeper = $2 and keeper_until > now())",
                &[(&name, Type::TEXT), (&self.worker, Type::TEXT)],
                || format!("put the template {name:?} into service"),
            )
            .await?;
        Ok(completed == 1)
    }

    /// Records why the template `name` could not be built, and when it is tried again, unless another became the keeper meanwhile. False: nothing
    /// was recorded.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn record_template_failure(&self, name: &str, error: &Error, again: Duration) -> Result<bool> {
        let text = error.with_advice();
        let recorded = self
            .execute(
                "update tenantd.template set failures = failures + 1, due_at = now() + $2 * interval '1 second',
                    error_kind = $3, error_text = $4, error_sqlstate = $5
             where name = $1 and completed_at is null
               and exists (select from tenantd.registry where keeper = $6 and keeper_until > now())",
                &[
                    (&name, Type::TEXT),
                    (&again.as_secs_f64(), Type::FLOAT8),
                    (&error.kind().word(), Type::TEXT),
                    (&text, Type::TEXT),
                    (&error.code(), Type::TEXT),
                    (&self.worker, Type::TEXT),
                ],
                || format!("record that the template {name:?} could not be built"),
            )
            .await?;
        Ok(recorded == 1)
    }

    /// Takes the template `name` out of service: nothing is made from it any more.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn retire_template(&self, name: &str) -> Result<()> {
        self.execute(
            "update tenantd.template set retired_at = coalesce(retired_at, now()) where name = $1",
            &[(&name, Type::TEXT)],
            || format!("take the template {name:?} out of service"),
        )
        .await
        .map(drop)
    }

    /// Forgets a template that was dropped.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_template(&self, name: &str) -> Result<()> {
        self.execute("delete from tenantd.template where name = $1", &[(&name, Type::TEXT)], || {
            format!("forget the template {name:?}")
        })
        .await
        .map(drop)
    }

    /// The comment that marks a template as this registry's.
    #[must_use]
    pub fn template_marker(&self) -> String {
        format!("tenantd {} template", self.id)
    }

    /// Whether the database `name` bears the marker of a template of this registry; `None` when there is no such database.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn is_our_template(&self, name: &str) -> Result<Option<bool>> {
        let doing = || format!("read the marker of the template {name:?}");
        let rows = self
            .query(
                "select coalesce(shobj_description(oid, 'pg_database') = $2, false) as ours from pg_database where datname = $1",
                &[(&name, Type::TEXT), (&self.template_marker(), Type::TEXT)],
                doing,
            )
            .await?;
        rows.first().map(|row| field(row, "ours")).transpose()
    }

    /// A session for work on whole databases, and what the server calls its version (150018 for 15.18).
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn server_version(&self) -> Result<i32> {
        let row = self
            .session()
            .await?
            .query_typed_one("select current_setting('server_version_num')::int as version", &[])
            .await
            .doing(|| "ask for the server's version".to_owned())?;
        field(&row, "version")
    }
}

fn read(row: &Row) -> Result<Template> {
    Ok(Template {
        name: field(row, "name")?,
        migration_set: field(row, "migration_set")?,
        shape: field(row, "shape")?,
        bytes: field(row, "bytes")?,
        completed: field::<Option<f64>>(row, "completed")?.map(|ago| Duration::from_secs_f64(ago.max(0.0))),
        age: Duration::from_secs_f64(field(row, "age")?),
        open: field(row, "open")?,
        retired: field(row, "retired")?,
        whole: field(row, "whole")?,
        there: field(row, "there")?,
        begun: field(row, "begun")?,
        spares: field(row, "spares")?,
        failures: u32::try_from(field::<i32>(row, "failures")?).unwrap_or(0),
        due_in: Duration::from_secs_f64(field(row, "due_in")?),
        error: field(row, "error")?,
    })
}
