//! Tenants' databases, or schemas, seen from outside: how large they are, who is in them, who must leave.

use tokio_postgres::types::Type;

use super::claim::damaged;
use super::{Registry, field};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::plan::Database;
use crate::tenant::{Marker, State};

/// What keeps a database from being renamed or dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupant {
    /// What it is, for people: `role "app" (web, pid 77)`.
    pub what: String,
    /// The session's process; `None` for what is no session.
    pub pid: Option<i32>,
    /// Whether our role may end it.
    pub ours_to_end: bool,
}

/// How much a tenant is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Its size; `None` where that may not be known.
    pub bytes: Option<u64>,
    /// How many sessions are in its database; `None` where it shares one.
    pub connections: Option<i64>,
}

impl Registry {
    /// Looks at the database, or schema, `name` from outside: `ours` if its comment is `marker`. `None` when there is none.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn look(&self, name: &str, marker: &str) -> Result<Option<Database>> {
        self.see(&[name]).await?;
        let rows = self
            .query(
                "select d.oid, pg_get_userbyid(d.owner)::text as owner, d.valid, d.open, d.public, coalesce(d.marker = $2, false) as ours
                 from tenantd.place d where d.name = $1",
                &[(&name, Type::TEXT), (&marker, Type::TEXT)],
                || format!("look for the {} {name:?}", self.isolation),
            )
            .await
            .map_err(damaged)?;
        let read = |row| -> Result<Database> {
            Ok(Database {
                oid: field(row, "oid")?,
                owner: field(row, "owner")?,
                ours: field(row, "ours")?,
                valid: field(row, "valid")?,
                open: field(row, "open")?,
                public: field(row, "public")?,
                applied: None,
            })
        };
        rows.first().map(read).transpose()
    }

    /// Measures the database, or schema, `name` of the given oid.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn measure(&self, name: &str, oid: u32) -> Result<Use> {
        self.see_sized(&[name]).await?;
        let rows = self
            .query(
                "select tenantd.bytes($1) as bytes,
                        case r.isolation when 'database' then (select count(*) from pg_stat_activity where datid = $1 and usesysid is not null) end as connections
                 from tenantd.registry r",
                &[(&oid, Type::OID)],
                || format!("measure the {} of the oid {oid}", self.isolation),
            )
            .await
            .map_err(damaged)?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a size came back without a row"))?;
        let bytes: Option<i64> = field(row, "bytes")?;
        Ok(Use { bytes: bytes.and_then(|bytes| u64::try_from(bytes).ok()), connections: field(row, "connections")? })
    }

    /// The size in bytes of the database `name`, if it is the tenant `key`'s.
    ///
    /// # Errors
    /// [`Kind::Missing`] when there is none; [`Kind::Conflict`] when it does not bear the tenant's marker. The main database cannot be reached.
    pub async fn database_size(&self, key: &str, name: &str) -> Result<i64> {
        let marker = Marker::of(self.id, key).to_string();
        self.see_sized(&[name]).await?;
        let rows = self
            .query(
                "select coalesce(tenantd.bytes(oid), 0) as bytes, coalesce(marker = $2, false) as ours from tenantd.place where name = $1",
                &[(&name, Type::TEXT), (&marker, Type::TEXT)],
                || format!("look how large the {} {name:?} is", self.isolation),
            )
            .await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(Kind::Missing, format!("the {} {name:?} is gone", self.isolation)));
        };
        if field(row, "ours")? { field(row, "bytes") } else { Err(not_ours(self.isolation, name)) }
    }

    /// What the application relies on of the tenant `key`, and the name of its database, or the one that it had.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no such tenant. The main database cannot be reached.
    pub async fn standing(&self, key: &str) -> Result<(State, Option<String>)> {
        let rows = self
            .query("select state::text, name from tenantd.tenant where key = $1", &[(&key, Type::TEXT)], || {
                format!("look how tenant {key} stands")
            })
            .await?;
        let Some(row) = rows.first() else { return Err(Error::usage(format!("there is no tenant {key:?}"))) };
        let word: String = field(row, "state")?;
        let state = State::from_word(&word).ok_or_else(|| {
            Error::new(Kind::Registry, format!("the registry holds {word:?}, which this tenantd does not know"))
        })?;
        Ok((state, field(row, "name")?))
    }

    /// The name of the database of the tenant `key`.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no such tenant, or it has no database now. The main database cannot be reached.
    pub async fn database_of(&self, key: &str) -> Result<String> {
        match self.standing(key).await? {
            (State::Ready, Some(name)) => Ok(name),
            (state, _) => {
                Err(Error::usage(format!("tenant {key} is {state}, so it has no {} of its own now", self.isolation)))
            }
        }
    }

    /// Everything that keeps the database `name` from being renamed or dropped: sessions, prepared transactions, replication slots.
    /// Those of the server's own that leave by themselves are not among them: they have no role, which is all that others than a superuser see of what
    /// they are. A schema is nobody in.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn occupants(&self, name: &str) -> Result<Vec<Occupant>> {
        if self.isolation == Isolation::Schema {
            return Ok(Vec::new());
        }
        // The names of roles are not to be taken for SQL here: this is for people.
        let rows = self
            .query(
                "select format('role %I (%s, pid %s)', coalesce(usename::text, 'unknown'), coalesce(nullif(application_name, ''), 'no name'), pid) as what, pid,
                        coalesce(not r.rolsuper and (pg_has_role(usesysid, 'usage') or pg_has_role('pg_signal_backend', 'usage')), false) as ours
                 from pg_stat_activity a left join pg_roles r on r.oid = a.usesysid
                 where datname = $1 and usesysid is not null and backend_type is distinct from 'parallel worker'
                 union all
                 select format('the prepared transaction %L of role %I', gid, owner), null, false from pg_prepared_xacts where database = $1
                 union all
                 select format('the replication slot %I', slot_name), null, false from pg_replication_slots where database = $1 and active",
                &[(&name, Type::TEXT)],
                || format!("look who is in the database {name:?}"),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Occupant { what: field(row, "what")?, pid: field(row, "pid")?, ours_to_end: field(row, "ours")? })
            })
            .collect()
    }

    /// Asks the server to end the sessions that our role may end among those in the database `name`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn evict(&self, name: &str) -> Result<()> {
        self.query(
            "select pg_terminate_backend(pid) from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
             where datname = $1 and not r.rolsuper
             and (pg_has_role(a.usesysid, 'usage') or pg_has_role('pg_signal_backend', 'usage'))",
            &[(&name, Type::TEXT)],
            || format!("end the sessions in the database {name:?}"),
        )
        .await
        .map(drop)
    }
}

pub(super) fn not_ours(kind: Isolation, name: &str) -> Error {
    Error::new(Kind::Conflict, format!("the {kind} {name:?} does not bear our marker"))
        .hint("somebody else made it, or its COMMENT was changed; nothing was done to it")
}
