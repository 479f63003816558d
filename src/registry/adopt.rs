//! Databases that are there already, taken into the registry: each by one transaction that is fenced, and checks that nothing has changed since
//! a person saw it.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::claim::{Claim, fenced};
use super::events::What;
use super::{Registry, field};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};
use crate::tenant::{Marker, RANDOM_PREFIX};

/// A database as it stands before it is adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its oid.
    pub oid: u32,
    /// The role that owns it.
    pub owner: String,
    /// Whether we may do what its owner may.
    pub may_own: bool,
    /// Its comment.
    pub comment: Option<String>,
    /// Whether it is whole.
    pub valid: bool,
    /// Whether it takes connections.
    pub open: bool,
    /// Whether it is none that could be a tenant's: the main database, a template, one of tenantd's own.
    pub reserved: bool,
    /// The keys of the tenants that it is said to be.
    pub tenants: Vec<String>,
}

/// What is recorded of a tenant that gets a database which is there already.
#[derive(Debug, Clone, Copy)]
pub struct Adoption<'a> {
    /// The tenant's key.
    pub key: &'a str,
    /// The database, as it was shown.
    pub database: &'a Found,
    /// The newest migration that it has.
    pub version: Option<i64>,
    /// The id of the set that it has, where that is written down.
    pub migration_set: Option<&'a str>,
    /// What the event says.
    pub detail: &'a str,
}

const FOUND: &str = "
select d.name::text as name, d.oid, pg_get_userbyid(d.owner)::text as owner, pg_has_role(d.owner, 'usage') as may_own,
       d.marker as comment, d.valid, d.open, starts_with(d.name::text, $2) or case r.isolation
           when 'database' then d.name in (current_database(), 'postgres', 'template0', 'template1')
           else d.name in ('public', 'information_schema', 'tenantd') or starts_with(d.name::text, 'pg_') end as reserved,
       array(select t.key from tenantd.tenant t where t.state <> 'deleted' and (t.database_oid = d.oid or t.name = d.name)) as tenants
from tenantd.registry r, tenantd.place d
where d.name = any ($1::text[]::name[])";

/// What the row becomes; what else is to be done with the tenant the next look finds.
const BECOMES: &str = "state = 'ready', work = 'due', due_at = now(), failures = 0, leased_until = null, leased_by = null, name = $4, database_oid = $5,
    version = $6, migration_set = $7, migrated_from = null, access = null, migrated_at = null, verified_at = null,
    ready_at = coalesce(t.ready_at, now()), error_kind = null, error_text = null, error_sqlstate = null, error_step = null";

impl Registry {
    /// Those of the databases `names` that are there.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn databases_named(&self, names: &[String]) -> Result<Vec<Found>> {
        self.see(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let parameters: super::Parameters<'_> = &[(&names, Type::TEXT_ARRAY), (&RANDOM_PREFIX, Type::TEXT)];
        let rows = self.query(FOUND, parameters, || "look at databases".to_owned()).await?;
        let read = |row| {
            Ok(Found {
                name: field(row, "name")?,
                oid: field(row, "oid")?,
                owner: field(row, "owner")?,
                may_own: field(row, "may_own")?,
                comment: field(row, "comment")?,
                valid: field(row, "valid")?,
                open: field(row, "open")?,
                reserved: field(row, "reserved")?,
                tenants: field(row, "tenants")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Reads a table of the main database that says which database is whose: pairs of key and name, by key. `table` is `SCHEMA.TABLE`.
    ///
    /// # Errors
    /// There is no such table or column, or we may not read it.
    pub async fn tracked(&self, table: &str, name_column: &str, key_column: &str) -> Result<Vec<(String, String)>> {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        let (schema, name) = (quote::identifier(schema), quote::identifier(name));
        let (key, database) = (quote::identifier(key_column), quote::identifier(name_column));
        // concat and not a cast: it is the type's own output, whereas a cast may be a function that somebody wrote, run as us.
        let sql = format!(
            "select concat(t.{key}) as key, concat(t.{database}) as name from {schema}.{name} t
             where t.{key} is not null and t.{database} is not null order by 1, 2"
        );
        let rows = self.query(&sql, &[], || format!("read the table {schema}.{name}")).await.map_err(|error| {
            let me = "tenantd's role";
            match error.code() {
                Some("42501") => error
                    .hint(format!("as the table's owner: grant select ({key}, {database}) on {schema}.{name} to {me}")),
                _ => error
                    .with_kind(Kind::Usage)
                    .hint("--from-table SCHEMA.TABLE --name-column COLUMN --key-column COLUMN"),
            }
        })?;
        rows.iter().map(|row| Ok((field(row, "key")?, field(row, "name")?))).collect()
    }

    /// The tenants whose keys have one of the SHA-256 `hashes`, as a marker bears it: pairs of hash and key.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn keys_of_hashes(&self, hashes: &[String]) -> Result<Vec<(String, String)>> {
        let sql = "select h.hash, t.key from tenantd.tenant t, lateral (select encode(sha256(convert_to(t.key, 'UTF8')), 'hex') as hash) h
                   where h.hash = any ($1)";
        let rows =
            self.query(sql, &[(&hashes, Type::TEXT_ARRAY)], || "look whose markers these are".to_owned()).await?;
        rows.iter().map(|row| Ok((field(row, "hash")?, field(row, "key")?))).collect()
    }

    /// Gives a database that is to be adopted to `owner`, if it is as it was shown: before its history is written, which belongs to that role.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it is not. The server's.
    pub async fn own_database(&self, database: &Found, key: &str, owner: &str) -> Result<()> {
        let (name, owner) = (quote::identifier(&database.name), quote::identifier(owner));
        let what = format!("give the {} {name} to {owner}", self.isolation);
        self.see(&[&database.name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| what.clone())?;
        as_shown(&transaction, self.isolation, database, key).await?;
        let give = format!("alter {} {name} owner to {owner}", self.isolation);
        self.carry_out(&transaction, &give, &what).await?;
        transaction.commit().await.doing(|| what)
    }

    /// Makes the database the tenant's: marked, recorded ready, due for a look. `claim`: the tenant's, where there is one by that key.
    ///
    /// One transaction: the database is as it was shown and nobody else's, the fence, the row, the marker, the event. A crash leaves all as it
    /// was, or as it is to be.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the database has changed since, or the key signed up meanwhile: nothing was changed.
    pub async fn adopt(&self, claim: Option<&Claim>, adoption: Adoption<'_>) -> Result<()> {
        let Adoption { key, database, version, migration_set, detail } = adoption;
        let kind = self.isolation;
        let doing = || format!("adopt the {kind} {:?}", database.name);
        self.see(&[&database.name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(doing)?;
        as_shown(&transaction, kind, database, key).await?;
        let attempt = claim.map(|claim| claim.attempt);
        let sql = match claim {
            Some(_) => format!(
                "update tenantd.tenant t set {BECOMES}
                 where key = $1 and attempt = $2 and leased_by = $3 and leased_until > clock_timestamp()"
            ),
            None => "insert into tenantd.tenant (key, name, state, work, database_oid, version, migration_set, ready_at)
                     select $1, $4, 'ready', 'due', $5, $6, $7, now() where $2::int8 is null and $3::text is not null on conflict do nothing"
                .to_owned(),
        };
        let parameters: super::Parameters<'_> = &[
            (&key, Type::TEXT),
            (&attempt, Type::INT8),
            (&self.worker, Type::TEXT),
            (&database.name, Type::TEXT),
            (&database.oid, Type::OID),
            (&version, Type::INT8),
            (&migration_set, Type::TEXT),
        ];
        let written = transaction.execute_typed(&sql, parameters).await.doing(doing)?;
        match claim {
            Some(claim) => fenced(written, claim)?,
            None if written == 1 => {}
            None => return Err(changed(format!("tenant {key} came into the registry meanwhile"))),
        }
        let marker = quote::literal(&Marker::of(self.id, key).to_string());
        let mark = format!("comment on {kind} {} is {marker}", quote::identifier(&database.name));
        self.carry_out(&transaction, &mark, &doing()).await?;
        let event = "insert into tenantd.event (key, what, who, detail) values ($1, $2, $3, $4)";
        let parameters: super::Parameters<'_> =
            &[(&key, Type::TEXT), (&What::Adopted.word(), Type::TEXT), (&self.who, Type::TEXT), (&detail, Type::TEXT)];
        transaction.execute_typed(event, parameters).await.doing(doing)?;
        transaction.commit().await.doing(doing)?;
        if let Some(claim) = claim {
            self.put_down(claim);
        }
        Ok(())
    }

    /// Has an empty database made for a tenant whose own is lost for good.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when a database of its name is there after all.
    pub async fn begin_anew(&self, claim: &Claim) -> Result<()> {
        if let Some(name) = &claim.name {
            self.see(&[name]).await?;
        }
        let detail = format!("its {} is lost; it gets an empty one", self.isolation);
        let sql = "with anew as (
                update tenantd.tenant t set state = 'requested', work = 'due', due_at = now(), failures = 0, leased_until = null,
                    leased_by = null, database_oid = null, version = null, migration_set = null, migrated_from = null, access = null,
                    migrated_at = null, verified_at = null, ready_at = null,
                    error_kind = null, error_text = null, error_sqlstate = null, error_step = null
                where key = $1 and attempt = $2 and leased_by = $3 and leased_until > clock_timestamp()
                and not exists (select from tenantd.place d where d.name = t.name) returning key
            )
            insert into tenantd.event (key, what, who, detail) select key, $4, $5, $6 from anew";
        let parameters: super::Parameters<'_> = &[
            (&claim.key, Type::TEXT),
            (&claim.attempt, Type::INT8),
            (&self.worker, Type::TEXT),
            (&What::Reset.word(), Type::TEXT),
            (&self.who, Type::TEXT),
            (&detail, Type::TEXT),
        ];
        let written = self.execute(sql, parameters, || format!("begin tenant {} anew", claim.key)).await?;
        fenced(written, claim)?;
        self.put_down(claim);
        Ok(())
    }
}

fn changed(message: String) -> Error {
    Error::new(Kind::Conflict, message).hint("nothing was changed; look again with --dry-run")
}

/// Whether the database is what a person has seen, and no other tenant's.
async fn as_shown(transaction: &Transaction<'_>, kind: Isolation, database: &Found, key: &str) -> Result<()> {
    let Found { name, oid, comment, .. } = database;
    let same = "select from tenantd.place d
                where d.name = $1 and d.oid = $2 and d.marker is not distinct from $3
                and not exists (select from tenantd.tenant t
                                where t.key <> $4 and t.state <> 'deleted' and (t.name = $1 or t.database_oid = $2))";
    transaction
        .query_typed_opt(same, &[(name, Type::TEXT), (oid, Type::OID), (comment, Type::TEXT), (&key, Type::TEXT)])
        .await
        .doing(|| format!("look at the {kind} {name:?} once more"))?
        .map(drop)
        .ok_or_else(|| changed(format!("the {kind} {name:?} is not what it was a moment ago")))
}
