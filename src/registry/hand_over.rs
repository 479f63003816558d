//! From a database under a random name to a tenant: one transaction that commits whole or not at all.

use std::fmt::Write;
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Transaction};

use super::claim::{Claim, damaged};
use super::{Registry, answered, field};
use crate::error::{Error, Kind, Result};
use crate::fail_points::{Point, reach};
use crate::pg::{Doing, Notifications, Server, Session, quote, sqlstate};
use crate::tenant::Marker;

/// RENAME waits a fixed five seconds for sessions in the database; this cuts it short, since another way is quicker.
pub(super) const RENAME_TIMEOUT: Duration = Duration::from_secs(1);

/// A tenant that is to get a spare.
#[derive(Debug, Clone)]
pub struct Naming<'a> {
    /// Its claim.
    pub claim: &'a Claim,
    /// The real name of its database.
    pub name: String,
}

/// What became of a tenant that was to get a spare.
#[derive(Debug)]
pub enum Handed {
    /// It is ready.
    Ready,
    /// There was no spare for it, or the one that was named is not its own any more.
    NoSpare,
    /// This spare could not become its database, and is left alone for a while.
    Failed(String, Error),
    /// Its lease was lost.
    LeaseLost,
}

impl Registry {
    /// Hands spares over to claimed tenants in one transaction: `wanted`, or whichever are at hand. What became of each, in the same order.
    ///
    /// # Flow
    /// For each tenant: fence by attempt, worker and lease, marker, rename, open, record ready, forget the spare. One that fails is undone
    /// alone. Owner, REVOKE and grants are the spare's from its making.
    ///
    /// # Guarantees
    /// The real name never shows anything unmarked, half-made or open to PUBLIC. After a crash in the middle each spare is a spare still.
    ///
    /// # Caveats
    /// A connection lost before the answer leaves it open whether it happened: the next look tells.
    ///
    /// # Errors
    /// [`Kind::InUse`] when somebody is in one of the spares: none was handed over. The main database cannot be reached.
    pub async fn hand_over(&self, namings: &[Naming<'_>], owner: &str, wanted: Option<&str>) -> Result<Vec<Handed>> {
        let keys: Vec<&str> = namings.iter().map(|naming| naming.claim.key.as_str()).collect();
        let attempts: Vec<i64> = namings.iter().map(|naming| naming.claim.attempt).collect();
        let names: Vec<&str> = namings.iter().map(|naming| naming.name.as_str()).collect();
        let markers: Vec<String> = keys.iter().map(|key| Marker::of(self.id, key).to_string()).collect();
        let session = self.session().await?;
        reach(Point::Taken).await;
        let parameters: &[(&(dyn ToSql + Sync), Type)] = &[
            (&keys, Type::TEXT_ARRAY),
            (&attempts, Type::INT8_ARRAY),
            (&self.worker, Type::TEXT),
            (&names, Type::TEXT_ARRAY),
            (&markers, Type::TEXT_ARRAY),
            (&owner, Type::TEXT),
            (&wanted, Type::TEXT),
        ];
        let sql = "select key, spare, code, said from tenantd.hand_over($1, $2, $3, $4, $5, $6, $7)";
        let handing = session.query_typed(sql, parameters);
        let doing = || format!("hand over {} spares", namings.len());
        // On the heap: what it holds would else weigh on every future around it.
        let handing = Box::pin(async { session.within(RENAME_TIMEOUT, handing).await.doing(doing) });
        let rows = answered(&session, handing).await.map_err(damaged)?;
        reach(Point::HandedOver).await;
        let mut handed: Vec<Handed> = namings.iter().map(|_| Handed::LeaseLost).collect();
        for row in &rows {
            let key: String = field(row, "key")?;
            let nth = keys.iter().position(|one| *one == key);
            let nth = nth.ok_or_else(|| Error::new(Kind::Registry, format!("nobody asked for tenant {key}")))?;
            handed[nth] = read(row, names[nth])?;
        }
        Ok(handed)
    }

    /// Locks the tenant's row for this attempt and returns the oid of the database `spare`.
    pub(super) async fn fence(&self, transaction: &Transaction<'_>, claim: &Claim, spare: &str) -> Result<u32> {
        let held = transaction
            .query_typed_opt(
                "select d.oid from tenantd.tenant t join tenantd.place d on d.name = $3
                 where t.key = $1 and t.attempt = $2 and t.leased_by = $4 and t.leased_until > clock_timestamp() for update of t",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&spare, Type::TEXT),
                    (&self.worker, Type::TEXT),
                ],
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

    /// Moves a tenant's database that must go to a random name, so that the DROP DATABASE to come can only ever meet that name.
    ///
    /// One transaction: fence, marker checked again, rename. Returns the random name, written down as a spare for the drop.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours; [`Kind::InUse`].
    pub async fn set_aside(&self, claim: &Claim, name: &str, aside: &str) -> Result<()> {
        self.see(&[name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| format!("begin to set a {} aside", self.isolation))?;
        self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        transaction
            .batch_execute(&format!(
                "set local statement_timeout = {timeout};
                 insert into tenantd.spare (name, key, attempt) values ({aside_text}, {key}, {attempt});
                 select tenantd.move({name}, {aside_text});
                 update tenantd.tenant set database_oid = null where key = {key} and attempt = {attempt} and state = 'requested';",
                timeout = RENAME_TIMEOUT.as_millis(),
                aside_text = quote::literal(aside),
                key = quote::literal(&claim.key),
                attempt = claim.attempt,
                name = quote::literal(name),
            ))
            .await
            .doing(|| format!("rename the {} {name:?} to {aside:?}", self.isolation))?;
        transaction.commit().await.doing(|| format!("set the {} {name:?} aside", self.isolation))?;
        self.finish_moves().await?;
        reach(Point::SetAside).await;
        Ok(())
    }

    /// Changes a tenant's database from outside (owner, rights, open) in one fenced transaction that checks the marker.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn mend_database(&self, claim: &Claim, name: &str, statements: &str) -> Result<()> {
        self.see(&[name]).await?;
        let what = format!("mend the {} {name:?}", self.isolation);
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| what.clone())?;
        self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        self.carry_out(&transaction, statements, &what).await?;
        transaction.commit().await.doing(|| what)?;
        reach(Point::Mended).await;
        Ok(())
    }

    /// Takes a marked database back into a registry that lost its row: name and oid are recorded, nothing else.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn take_back(&self, claim: &Claim, name: &str) -> Result<()> {
        self.see(&[name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| format!("begin to take a {} back", self.isolation))?;
        let oid = self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        transaction
            .execute_typed(
                "update tenantd.tenant set database_oid = $3 where key = $1 and attempt = $2",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&oid, Type::OID)],
            )
            .await
            .doing(|| format!("record the {} {name:?}", self.isolation))?;
        transaction.commit().await.doing(|| format!("take the {} {name:?} back", self.isolation))?;
        reach(Point::TakenBack).await;
        Ok(())
    }

    /// Hands a tenant's schema over that was made whole under its name: `enter` lets its roles in, and its oid is recorded. That it is ready is recorded
    /// with what it has, afterwards.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]; [`Kind::Conflict`] when the marker is not ours.
    pub async fn hand_over_made(&self, claim: &Claim, name: &str, enter: &str) -> Result<()> {
        self.see(&[name]).await?;
        let mut session = self.session().await?;
        let transaction = session.transaction().await.doing(|| "begin a hand-over".to_owned())?;
        let oid = self.fence(&transaction, claim, name).await?;
        self.must_be_ours(&transaction, claim, name).await?;
        let what = format!("hand the schema {name:?} over");
        let mut record = format!(
            "update tenantd.tenant set database_oid = {oid} where key = {} and attempt = {}; commit",
            quote::literal(&claim.key),
            claim.attempt
        );
        if self.sees_tenants() {
            // In one round trip.
            record.insert_str(0, enter);
        } else {
            self.carry_out(&transaction, enter, &what).await?;
        }
        transaction.batch_execute(&record).await.doing(|| what)?;
        reach(Point::HandedOver).await;
        Ok(())
    }

    pub(super) async fn must_be_ours(&self, client: &Transaction<'_>, claim: &Claim, name: &str) -> Result<()> {
        let marker = Marker::of(self.id, &claim.key).to_string();
        client
            .query_typed_opt(
                "select from tenantd.place d where d.name = $1 and d.marker = $2",
                &[(&name, Type::TEXT), (&marker, Type::TEXT)],
            )
            .await
            .doing(|| format!("read the marker of the {} {name:?}", self.isolation))?
            .map(drop)
            .ok_or_else(|| {
                Error::new(Kind::Conflict, format!("the {} {name:?} does not bear our marker any more", self.isolation))
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

fn read(row: &Row, name: &str) -> Result<Handed> {
    let (spare, code): (Option<String>, Option<String>) = (field(row, "spare")?, field(row, "code")?);
    Ok(match (spare, code) {
        (None, _) => Handed::NoSpare,
        (Some(_), None) => Handed::Ready,
        (Some(spare), Some(code)) => {
            let error = sqlstate::told(&code, &field::<String>(row, "said")?)
                .context(format!("hand the database {spare:?} over as {name:?}"));
            let error = if code == "42P04" { error.with_kind(Kind::Conflict) } else { error };
            Handed::Failed(spare, error)
        }
    })
}

/// Sends the notice that `keys` are ready, in a transaction of its own: neither a full nor a stuck NOTIFY may touch a hand-over.
///
/// A key too long for a payload is sent as an empty one: look at the view.
///
/// # Errors
/// The notice could not be sent; it is a hint only. [`Kind::ReadOnly`]: it was sent, but whoever listens may be on another host by now.
pub async fn notify_ready(client: &Client, keys: &[String]) -> Result<()> {
    let sent = client
        .query_typed(
            "select pg_notify('tenantd_ready', case when octet_length(key) < 8000 then key else '' end),
                    current_setting('transaction_read_only')::bool as read_only from unnest($1) as key",
            &[(&keys, Type::TEXT_ARRAY)],
        )
        .await
        .doing(|| "send the notice tenantd_ready".to_owned())?;
    if sent.first().map_or(Ok(false), |row| field(row, "read_only"))? {
        return Err(Error::new(Kind::ReadOnly, "the server that was notified takes no writes any more"));
    }
    Ok(())
}

/// A session that hears of tenants that became ready; the payload of what it hears is a key, and a hint only.
///
/// # Errors
/// As for [`Server::connect`]; behind a pooler nothing may be heard, without any error.
pub async fn listen_ready(server: &Server, application_name: &str) -> Result<(Session, Notifications)> {
    let (session, notifications) = server.connect_listening(application_name).await?;
    session.batch_execute("listen tenantd_ready").await.doing(|| "listen to tenantd_ready".to_owned())?;
    Ok((session, notifications))
}
