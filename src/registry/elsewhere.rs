//! Tenants' schemas in another database than the registry's. What stands there is looked up there and written down in `tenantd.elsewhere`, where the
//! registry's statements find it; what a transaction of the registry renames gets its new name there after the commit.
//!
//! The registry is right about names: whoever dies between its commit and the rename leaves a row that is moved, and the next who looks renames. The oid
//! tells which schema is meant, and its comment whether it is still the tenant's.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::{Registry, answered, field};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::{Doing, Pool, PooledSession, Server, quote};

/// Sessions in that database beside those of the tenants under work: one for looks, which are short, and one for what goes for good, one schema after the
/// other, which may take long.
pub const SESSIONS: usize = 2;

/// All that anyone may be in, as one array of objects, for `tenantd.see`.
const STANDING: &str = "
select coalesce(json_agg(json_build_object(
           'oid', n.oid::bigint, 'name', n.nspname, 'owner', n.nspowner::bigint, 'marker', obj_description(n.oid, 'pg_namespace'),
           'public', coalesce(n.nspacl @> makeaclitem(0, n.nspowner, 'USAGE', false), false),
           'users', (select json_agg(a.grantee::bigint) from aclexplode(n.nspacl) a where a.privilege_type = 'USAGE' and a.grantee <> 0),
           'bytes', case when $2 then (select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c
                                       where c.relnamespace = n.oid and c.relkind in ('r', 'm', 'S')) end
       )), '[]')::text as seen
from pg_namespace n where ($1::text[] is null or n.nspname = any ($1::text[]::name[])) and n.nspname !~ '^pg_(toast|temp)'";

/// The database that the tenants' schemas are in, where that is not the main one.
#[derive(Debug, Clone)]
pub(super) struct Elsewhere {
    pub(super) database: String,
    pub(super) pool: Pool,
}

impl Elsewhere {
    pub(super) fn new(server: &Server, database: &str, application_name: &str) -> Elsewhere {
        let pool = Pool::elsewhere(server.clone(), SESSIONS, application_name, database);
        Elsewhere { database: database.to_owned(), pool }
    }
}

impl Registry {
    /// A session where the tenants' schemas are.
    ///
    /// # Errors
    /// The server cannot be reached, or has no free connection.
    pub async fn session_of_tenants(&self) -> Result<PooledSession> {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.pool.get().await.map_err(|error| unreachable(error, &elsewhere.database)),
            None => self.session().await,
        }
    }

    /// Whether what the registry knows of tenants from outside is no older than its statement. It is not where they are in another database.
    #[must_use]
    pub fn sees_tenants(&self) -> bool {
        self.elsewhere.is_none()
    }

    /// Looks at the tenants' schemas, all of them, and at their sizes if they are to be `sized`: for whoever asks the registry about many. Where it
    /// sees them by itself, nothing is done.
    ///
    /// # Errors
    /// One of the databases cannot be reached.
    pub async fn see_all(&self, sized: bool) -> Result<()> {
        self.see_some(None, sized).await
    }

    /// The same for the schemas `names` alone.
    ///
    /// # Errors
    /// One of the databases cannot be reached.
    pub(super) async fn see(&self, names: &[&str]) -> Result<()> {
        self.see_some(Some(names), false).await
    }

    pub(super) async fn see_sized(&self, names: &[&str]) -> Result<()> {
        self.see_some(Some(names), true).await
    }

    async fn see_some(&self, names: Option<&[&str]>, sized: bool) -> Result<()> {
        if self.sees_tenants() {
            return Ok(());
        }
        // On the heap: what it holds would else weigh on every future around it, and few need it.
        let moved = Box::pin(self.write_down(names, sized)).await?;
        if moved && let Err(error) = self.finish_moves().await {
            // One that stays as it is keeps nobody else from work.
            tracing::warn!(error = error.chain(), "a schema does not bear the name yet that the registry gave it");
        }
        Ok(())
    }

    /// Whether one of all is moved.
    async fn write_down(&self, names: Option<&[&str]>, sized: bool) -> Result<bool> {
        let there = self.session_of_tenants().await?;
        let parameters: super::Parameters<'_> = &[(&names, Type::TEXT_ARRAY), (&sized, Type::BOOL)];
        let look = there.query_typed_one(STANDING, parameters);
        let seen = answered(&there, async { look.await.doing(|| "look at the tenants' schemas".to_owned()) }).await?;
        let seen: String = field(&seen, "seen")?;
        drop(there);
        let parameters: super::Parameters<'_> = &[(&names, Type::TEXT_ARRAY), (&seen, Type::TEXT)];
        let sql = "select tenantd.see($1, $2::text::json) as moved";
        let rows = self.query(sql, parameters, || "write down which schemas there are".to_owned()).await?;
        rows.first().map_or(Ok(false), |row| field(row, "moved"))
    }

    /// Gives every schema that was moved its new name.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when one does not bear its marker any more: it is left as it is. Those of the server. The others got theirs.
    pub(crate) async fn finish_moves(&self) -> Result<()> {
        if self.sees_tenants() {
            return Ok(());
        }
        reach(Point::Moved).await;
        Box::pin(self.rename_moved()).await
    }

    async fn rename_moved(&self) -> Result<()> {
        let doing = || "give moved schemas their names".to_owned();
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(doing)?;
        let moved = "select oid, name, marker from tenantd.elsewhere where moved order by oid for update skip locked";
        let mut outcome = Ok(());
        for row in transaction.query_typed(moved, &[]).await.doing(doing)? {
            let (oid, name): (u32, String) = (field(&row, "oid")?, field(&row, "name")?);
            let marker: Option<String> = field(&row, "marker")?;
            match self.finish_one(&transaction, oid, &name, marker.as_deref()).await {
                Ok(()) => {}
                Err(error) => outcome = Err(error.context(format!("rename a schema to {name:?}"))),
            }
        }
        transaction.commit().await.doing(doing)?;
        outcome
    }

    async fn finish_one(
        &self,
        transaction: &Transaction<'_>,
        oid: u32,
        name: &str,
        marker: Option<&str>,
    ) -> Result<()> {
        let doing = || format!("look for the schema of the oid {oid}");
        let there = self.session_of_tenants().await?;
        let select = "select nspname::text as name, obj_description(oid, 'pg_namespace') as marker from pg_namespace where oid = $1";
        let found = there.query_typed_opt(select, &[(&oid, Type::OID)]).await.doing(doing)?;
        let forget_or_keep = if let Some(row) = &found {
            if field::<Option<String>>(row, "marker")?.as_deref() != marker {
                return Err(super::databases::not_ours(self.isolation, name));
            }
            let now: String = field(row, "name")?;
            if now != name {
                let rename = format!("alter schema {} rename to {}", quote::identifier(&now), quote::identifier(name));
                there.batch_execute(&rename).await.doing(|| rename.clone())?;
                there.left_in_order();
            }
            "update tenantd.elsewhere set moved = false where oid = $1"
        } else {
            "delete from tenantd.elsewhere where oid = $1"
        };
        transaction.execute_typed(forget_or_keep, &[(&oid, Type::OID)]).await.doing(doing).map(drop)
    }

    /// Carries `statements` about a tenant's database or schema out: in the `transaction`, or, where the tenants are in another database, in one of its
    /// own there, before that of the registry commits. Only for what may be done twice.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn carry_out(&self, transaction: &Transaction<'_>, statements: &str, what: &str) -> Result<()> {
        let doing = || what.to_owned();
        if self.sees_tenants() {
            return transaction.batch_execute(statements).await.doing(doing);
        }
        let carried = async {
            let there = self.session_of_tenants().await?;
            there.batch_execute(&format!("begin; {statements}; commit")).await.doing(doing)?;
            there.left_in_order();
            Ok(())
        };
        Box::pin(carried).await?;
        reach(Point::CarriedOut).await;
        Ok(())
    }
}

/// What it means that the database in `tenant.database` cannot be entered.
pub(super) fn unreachable(error: Error, database: &str) -> Error {
    let error = error.context(format!("connect to {database:?}, the database in tenant.database"));
    match error.code() {
        Some("3D000") => error.with_kind(Kind::Usage).hint(format!(
            "`tenantd setup` makes it where tenantd's role may; else, as an administrator: create database {}",
            quote::identifier(database)
        )),
        _ => error,
    }
}
