//! From a database under a random name to a tenant: one transaction that commits whole or not at all.

use std::fmt::Write;
use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::Registry;
use super::claim::{Claim, Done, fenced};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::{Doing, quote};
use crate::tenant::Marker;

/// RENAME waits a fixed five seconds for sessions in the database; this cuts it short, since another way is quicker.
const RENAME_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether no live claim is making the spare `s`.
pub(super) const STRAY: &str = "not exists (select from tenantd.tenant t where t.key = s.key and t.attempt = s.attempt and t.leased_until > now())";

/// What a spare becomes.
#[derive(Debug, Clone, Copy)]
pub struct HandOver<'a> {
    /// The random name it was made under.
    pub spare: &'a str,
    /// Its real name.
    pub name: &'a str,
    /// Roles that may connect.
    pub connect: &'a [String],
    /// What it holds.
    pub done: &'a Done,
}

/// A random name that nobody is making a database under any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The name.
    pub name: String,
    /// Whether it was written down long ago.
    pub old: bool,
    /// Whether there is a database of that name.
    pub there: bool,
}

impl Registry {
    /// Writes down the random name `spare` before a database of that name is made, so that nothing made is ever unknown.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when the claim is not ours any more: nothing may be made.
    pub async fn announce_spare(&self, claim: &Claim, spare: &str) -> Result<()> {
        let written = self
            .session()
            .await?
            .execute_typed(
                "insert into tenantd.spare (name, key, attempt)
                 select $3, key, attempt from tenantd.tenant where key = $1 and attempt = $2 and leased_until > now()",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&spare, Type::TEXT)],
            )
            .await
            .doing(|| format!("write down the spare {spare:?}"))?;
        fenced(written, claim)
    }

    /// Makes the spare the tenant's database and the tenant ready, in one transaction.
    ///
    /// # Flow
    /// Fence by attempt and lease, marker, REVOKE and grants, rename, open, record ready, forget the spare.
    ///
    /// # Guarantees
    /// The real name never shows anything unmarked or open to PUBLIC. After a crash in the middle the spare is a spare still.
    ///
    /// # Assumptions
    /// Nobody is connected to the spare, and it is closed to connections.
    ///
    /// # Caveats
    /// A connection lost during COMMIT leaves it open whether it happened: the next look tells.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the name was taken meanwhile; [`Kind::InUse`] when somebody is in the spare.
    pub async fn hand_over(&self, claim: &Claim, hand_over: HandOver<'_>) -> Result<()> {
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| "begin the hand-over".to_owned())?;
        let oid = self.fence(&transaction, claim, hand_over.spare).await?;
        reach(Point::Fenced);
        let statements = self.statements(claim, hand_over);
        transaction
            .batch_execute(&statements)
            .await
            .doing(|| format!("hand the database {:?} over as {:?}", hand_over.spare, hand_over.name))
            .map_err(|error| match error.code() {
                Some("42P04") => error.with_kind(Kind::Conflict),
                _ => error,
            })?;
        reach(Point::Renamed);
        record_ready(&transaction, claim, hand_over, oid).await?;
        reach(Point::Recorded);
        transaction.commit().await.doing(|| "commit the hand-over".to_owned())?;
        reach(Point::HandedOver);
        Ok(())
    }

    /// Locks the tenant's row for this attempt and returns the spare's oid.
    async fn fence(&self, transaction: &Transaction<'_>, claim: &Claim, spare: &str) -> Result<u32> {
        let held = transaction
            .query_typed_opt(
                "select d.oid from tenantd.tenant t join pg_database d on d.datname = $3
                 where t.key = $1 and t.attempt = $2 and t.leased_until > clock_timestamp() for update of t",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&spare, Type::TEXT)],
            )
            .await
            .doing(|| "take the tenant's row for the hand-over".to_owned())?;
        match held {
            Some(row) => super::field(&row, "oid"),
            None => Err(Error::new(
                Kind::LeaseLost,
                format!(
                    "attempt {} of tenant {} lost its lease or its spare before the hand-over",
                    claim.attempt, claim.key
                ),
            )),
        }
    }

    fn statements(&self, claim: &Claim, HandOver { spare, name, connect, .. }: HandOver<'_>) -> String {
        let grants = grant_connect(spare, connect);
        let (spare, name) = (quote::identifier(spare), quote::identifier(name));
        let marker = quote::literal(&Marker::of(self.id, &claim.key).to_string());
        format!(
            "set local statement_timeout = {timeout};
             comment on database {spare} is {marker};
             revoke connect, temporary on database {spare} from public;
             {grants}
             alter database {spare} rename to {name};
             set local statement_timeout = 0;
             alter database {name} with allow_connections true;",
            timeout = RENAME_TIMEOUT.as_millis()
        )
    }

    /// Forgets a spare that was dropped, or that became a tenant.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn forget_spare(&self, spare: &str) -> Result<()> {
        self.session()
            .await?
            .execute_typed("delete from tenantd.spare where name = $1", &[(&spare, Type::TEXT)])
            .await
            .doing(|| format!("forget the spare {spare:?}"))?;
        Ok(())
    }

    /// The spares that no live claim is making.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn stray_spares(&self, old_after: Duration) -> Result<Vec<Stray>> {
        let rows = self
            .session()
            .await?
            .query_typed(
                &format!(
                    "select s.name, s.created_at < now() - $1 * interval '1 second' as old,
                        exists (select from pg_database d where d.datname = s.name) as there
                 from tenantd.spare s where {STRAY}"
                ),
                &[(&old_after.as_secs_f64(), Type::FLOAT8)],
            )
            .await
            .doing(|| "look for spares that nobody is making".to_owned())?;
        let read = |row| {
            Ok(Stray {
                name: super::field(row, "name")?,
                old: super::field(row, "old")?,
                there: super::field(row, "there")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Moves a tenant's database that must go to a random name, so that the DROP DATABASE to come can only ever meet that name.
    ///
    /// One transaction: fence, marker checked again, rename. Returns the random name, written down as a spare for the drop.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours; [`Kind::InUse`].
    pub async fn set_aside(&self, claim: &Claim, name: &str, aside: &str) -> Result<()> {
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| "begin to set a database aside".to_owned())?;
        self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        transaction
            .batch_execute(&format!(
                "set local statement_timeout = {timeout};
                 insert into tenantd.spare (name, key, attempt) values ({aside_text}, {key}, {attempt});
                 alter database {name} rename to {aside};
                 update tenantd.tenant set database_oid = null where key = {key} and attempt = {attempt} and state = 'requested';",
                timeout = RENAME_TIMEOUT.as_millis(),
                aside_text = quote::literal(aside),
                key = quote::literal(&claim.key),
                attempt = claim.attempt,
                name = quote::identifier(name),
                aside = quote::identifier(aside),
            ))
            .await
            .doing(|| format!("rename the database {name:?} to {aside:?}"))?;
        transaction.commit().await.doing(|| format!("set the database {name:?} aside"))?;
        reach(Point::SetAside);
        Ok(())
    }

    /// Changes a tenant's database from outside (owner, rights, open) in one fenced transaction that checks the marker.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn mend_database(&self, claim: &Claim, name: &str, statements: &str) -> Result<()> {
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| "begin to mend a database".to_owned())?;
        self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        transaction.batch_execute(statements).await.doing(|| format!("mend the database {name:?}"))?;
        transaction.commit().await.doing(|| format!("mend the database {name:?}"))?;
        reach(Point::Mended);
        Ok(())
    }

    /// Takes a marked database back into a registry that lost its row: name and oid are recorded, nothing else.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn take_back(&self, claim: &Claim, name: &str) -> Result<()> {
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| "begin to take a database back".to_owned())?;
        let oid = self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        transaction
            .execute_typed(
                "update tenantd.tenant set database_oid = $3 where key = $1 and attempt = $2",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&oid, Type::OID)],
            )
            .await
            .doing(|| format!("record the database {name:?}"))?;
        transaction.commit().await.doing(|| format!("take the database {name:?} back"))?;
        reach(Point::TakenBack);
        Ok(())
    }

    async fn must_be_ours(&self, client: &Transaction<'_>, claim: &Claim, name: &str) -> Result<()> {
        let marker = Marker::of(self.id, &claim.key).to_string();
        client
            .query_typed_opt(
                "select from pg_database d where d.datname = $1 and shobj_description(d.oid, 'pg_database') = $2",
                &[(&name, Type::TEXT), (&marker, Type::TEXT)],
            )
            .await
            .doing(|| format!("read the marker of the database {name:?}"))?
            .map(drop)
            .ok_or_else(|| {
                Error::new(Kind::Conflict, format!("the database {name:?} does not bear our marker any more"))
            })
    }
}

/// Statements that let each of `roles` connect to `database`.
pub fn grant_connect<'a>(database: &str, roles: impl IntoIterator<Item = &'a String>) -> String {
    let database = quote::identifier(database);
    roles.into_iter().fold(String::new(), |mut statements, role| {
        // Writing to a String cannot fail.
        let _ = write!(statements, "grant connect on database {database} to {};", quote::identifier(role));
        statements
    })
}

async fn record_ready(transaction: &Transaction<'_>, claim: &Claim, hand_over: HandOver<'_>, oid: u32) -> Result<()> {
    let HandOver { spare, name, done, .. } = hand_over;
    let recorded = transaction
        .execute_typed(
            "with forgotten as (delete from tenantd.spare where name = $3)
             update tenantd.tenant set state = 'ready', work = 'idle', failures = 0, leased_until = null, leased_by = null,
             name = $4, database_oid = $5, version = $6, migration_set = $7, access = $8,
             migrated_at = clock_timestamp(), verified_at = clock_timestamp(), ready_at = clock_timestamp(),
             error_kind = null, error_text = null, error_sqlstate = null, error_step = null
             where key = $1 and attempt = $2",
            &[
                (&claim.key, Type::TEXT),
                (&claim.attempt, Type::INT8),
                (&spare, Type::TEXT),
                (&name, Type::TEXT),
                (&oid, Type::OID),
                (&done.version, Type::INT8),
                (&done.migration_set, Type::TEXT),
                (&done.access, Type::TEXT),
            ],
        )
        .await
        .doing(|| "record that the tenant is ready".to_owned())?;
    fenced(recorded, claim)
}

/// Sends the notice that `keys` are ready, in a transaction of its own: neither a full nor a stuck NOTIFY may touch a hand-over.
///
/// A key too long for a payload is sent as an empty one: look at the view.
///
/// # Errors
/// The notice could not be sent; it is a hint only.
pub async fn notify_ready(client: &Client, keys: &[String]) -> Result<()> {
    client
        .execute_typed(
            "select pg_notify('tenantd_ready', case when octet_length(key) < 8000 then key else '' end) from unnest($1) as key",
            &[(&keys, Type::TEXT_ARRAY)],
        )
        .await
        .doing(|| "send the notice tenantd_ready".to_owned())?;
    Ok(())
}
