//! What `tenantd check` asks the main database: how tenants stand as seen from outside, and what on the server belongs to no tenant.
//! Only [`Registry::free_expired_leases`] changes anything.

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::claim::damaged;
use super::events::What;
use super::lookup::Filter;
use super::spares::STRAY;
use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::naming::Names;
use crate::plan::Database;
use crate::tenant::{Marker, RANDOM_PREFIX, State, Work};

/// A tenant as the main database shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Its key.
    pub key: String,
    /// The name of its database, when one was ever given.
    pub name: Option<String>,
    /// What the application relies on.
    pub state: State,
    /// What the daemon has to do.
    pub work: Work,
    /// The fingerprint of owner and grants that it was last given.
    pub access: Option<String>,
    /// The oid that its database is said to have.
    pub recorded_oid: Option<u32>,
    /// Why it failed last, in full.
    pub error: Option<String>,
    /// Whether somebody works on it.
    pub leased: bool,
    /// Who let its lease run out.
    pub lease_left_by: Option<String>,
    /// What stands on the server under its name; nobody looked inside.
    pub database: Option<Database>,
    /// Roles that should be able to connect to that, and are not.
    pub shut_out: Vec<String>,
}

/// A database that belongs to no tenant, and yet looks as if.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its name.
    pub name: String,
    /// Its oid.
    pub oid: u32,
    /// Whether it bears a marker of this registry.
    pub ours: bool,
    /// Its comment.
    pub comment: Option<String>,
}

const OUTSIDE: &str = "
select t.key, t.name, t.state::text, t.work::text, t.access, t.database_oid as recorded_oid,
       t.error_kind || ': ' || t.error_text as error, coalesce(t.leased_until > now(), false) as leased,
       case when t.leased_until <= now() then t.leased_by end as lease_left_by,
       d.oid, pg_get_userbyid(d.owner)::text as owner, d.valid, d.open, d.public, d.marker,
       array(select rolname::text from pg_roles
             where d.oid is not null and rolname = any ($9::text[])
             and not tenantd.may_enter(pg_roles.oid, d.oid)
             order by 1) as shut_out
from tenantd.tenant t left join tenantd.place d on d.name = t.name";

/// What tenantd makes under random names is told by its rows, but for a template, which bears a marker.
const ORPHANS: &str = "
select d.name::text as name, d.oid, d.marker as comment, coalesce(starts_with(d.marker, $1), false) as ours
from tenantd.place d
where not exists (select from tenantd.tenant t where t.name = d.name or t.database_oid = d.oid)
  and not exists (select from tenantd.template p where p.name = d.name)
  and case when d.marker = $1 || 'template' then true
           else not starts_with(d.name::text, $2) end
order by 1";

const DUPLICATES: &str = "
select array_agg(d.name::text order by d.name) as names
from tenantd.place d
where starts_with(d.marker, $1) and d.marker <> $1 || 'template' and not starts_with(d.name::text, $2)
group by d.marker having count(*) > 1 order by 1";

const FREE_EXPIRED: &str = "
with freed as (
    update tenantd.tenant t set leased_until = null, leased_by = null from (
        select key, leased_by from tenantd.tenant where key = any ($1) and leased_until <= now() for update skip locked
    ) left_over where t.key = left_over.key returning t.key, left_over.leased_by
), told as (
    insert into tenantd.event (key, what, who, detail) select key, $2, $3, format('the lease that %s left', leased_by) from freed
)
select key from freed";

impl Registry {
    /// The tenants that fit `filter` and whose keys come after `after`, in their order, not more than `most`. `roles`: those that should be able
    /// to connect.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn outside(&self, filter: &Filter, after: &str, most: i64, roles: &[String]) -> Result<Vec<Outside>> {
        let sql = format!("{OUTSIDE} where {} and t.key > $7 order by t.key limit $8", Filter::SQL);
        let values = filter.values();
        let mut parameters = values.parameters();
        let more: [(&(dyn ToSql + Sync), Type); 3] =
            [(&after, Type::TEXT), (&most, Type::INT8), (&roles, Type::TEXT_ARRAY)];
        parameters.extend(more);
        let rows = self.query(&sql, &parameters, || "look at tenants from outside".to_owned()).await?;
        rows.iter().map(|row| self.read_outside(row)).collect()
    }

    fn read_outside(&self, row: &Row) -> Result<Outside> {
        let key: String = field(row, "key")?;
        let (state, work): (String, String) = (field(row, "state")?, field(row, "work")?);
        let unknown = |word: &str| {
            Error::new(Kind::Registry, format!("the registry holds {word:?}, which this tenantd does not know"))
        };
        let database = match field::<Option<u32>>(row, "oid")? {
            None => None,
            Some(oid) => Some(Database {
                oid,
                owner: field(row, "owner")?,
                ours: field::<Option<String>>(row, "marker")?
                    .is_some_and(|marker| marker == Marker::of(self.id, &key).to_string()),
                valid: field(row, "valid")?,
                open: field(row, "open")?,
                public: field(row, "public")?,
                applied: None,
            }),
        };
        Ok(Outside {
            key,
            name: field(row, "name")?,
            state: State::from_word(&state).ok_or_else(|| unknown(&state))?,
            work: Work::from_word(&work).ok_or_else(|| unknown(&work))?,
            access: field(row, "access")?,
            recorded_oid: field(row, "recorded_oid")?,
            error: field(row, "error")?,
            leased: field(row, "leased")?,
            lease_left_by: field(row, "lease_left_by")?,
            database,
            shut_out: field(row, "shut_out")?,
        })
    }

    /// Databases that bear this registry's marker, or [look like](Names::look_like) tenants by their names, and are in no row.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn orphans(&self, names: &Names) -> Result<Vec<Orphan>> {
        let parameters: super::Parameters<'_> = &[(&self.marks(), Type::TEXT), (&RANDOM_PREFIX, Type::TEXT)];
        let rows = self.query(ORPHANS, parameters, || "look for databases without a tenant".to_owned()).await?;
        let read = |row| {
            Ok(Orphan {
                name: field(row, "name")?,
                oid: field(row, "oid")?,
                ours: field(row, "ours")?,
                comment: field(row, "comment")?,
            })
        };
        let orphans: Vec<Orphan> = rows.iter().map(read).collect::<Result<_>>()?;
        Ok(orphans.into_iter().filter(|orphan| orphan.ours || names.look_like(&orphan.name)).collect())
    }

    /// Databases that say they are the same tenant, by name.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn duplicates(&self) -> Result<Vec<Vec<String>>> {
        let parameters: super::Parameters<'_> = &[(&self.marks(), Type::TEXT), (&RANDOM_PREFIX, Type::TEXT)];
        let rows = self.query(DUPLICATES, parameters, || "look for markers that stand twice".to_owned()).await?;
        rows.iter().map(|row| field(row, "names")).collect()
    }

    /// Databases under a random name that nobody is making, by name.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn strays(&self) -> Result<Vec<String>> {
        let sql = format!(
            "select s.name from tenantd.spare s join tenantd.place d on d.name = s.name where {STRAY} order by 1"
        );
        let rows = self.query(&sql, &[], || "look for half-made databases".to_owned()).await.map_err(damaged)?;
        rows.iter().map(|row| field(row, "name")).collect()
    }

    /// Those of `roles` that the server does not have.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn unknown_roles(&self, roles: &[String]) -> Result<Vec<String>> {
        let sql = "select r as name from unnest($1::text[]) r where not exists (select from pg_roles where rolname = r) order by 1";
        let rows = self.query(sql, &[(&roles, Type::TEXT_ARRAY)], || "look for roles".to_owned()).await?;
        rows.iter().map(|row| field(row, "name")).collect()
    }

    /// Takes the leases of `keys` that have run out from those who left them. Returns the keys that had one. The events are written with it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn free_expired_leases(&self, keys: &[String]) -> Result<Vec<String>> {
        let parameters: super::Parameters<'_> =
            &[(&keys, Type::TEXT_ARRAY), (&What::Freed.word(), Type::TEXT), (&self.who, Type::TEXT)];
        let rows = self.query(FREE_EXPIRED, parameters, || "free leases that have run out".to_owned()).await?;
        rows.iter().map(|row| field(row, "key")).collect()
    }

    /// What every marker of this registry begins with.
    pub(super) fn marks(&self) -> String {
        format!("tenantd {} ", self.id)
    }
}
