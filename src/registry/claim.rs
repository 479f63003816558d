//! Claims: taking due tenants for a limited time, and recording what became of them.
//!
//! Every write after a claim names its attempt. `attempt` only grows, so that a daemon which lost its lease writes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::tenant::{State, Work};

/// A tenant taken for the length of a lease.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The tenant's key.
    pub key: String,
    /// The fencing token: the number of this claim among all claims of the tenant.
    pub attempt: i64,
    /// When the lease ends by this process's own clock, counted from before the claim was sent: never later than the server's end.
    pub until: Instant,
    /// How long a lease is.
    pub lease: Duration,
    /// The name of its database, when one was ever given.
    pub name: Option<String>,
    /// What the application relies on.
    pub state: State,
    /// What the daemon has to do.
    pub work: Work,
    /// Failures in a row before this attempt.
    pub failures: u32,
    /// The newest migration it is known to have.
    pub version: Option<i64>,
    /// The id of the migration set it was last brought to.
    pub migration_set: Option<String>,
    /// The fingerprint of owner and grants that it was last given.
    pub access: Option<String>,
    /// The oid of its database, once it had one.
    pub database_oid: Option<u32>,
    /// The time since its signup, when it was claimed.
    pub age: Duration,
}

const RETURNING: &str =
    "returning t.key, t.attempt, t.name, t.state, t.work, t.failures, t.version, t.migration_set, t.access,
    t.database_oid, greatest(extract(epoch from clock_timestamp() - t.created_at), 0)::float8 as age";

/// No row where the registry was replaced while this process ran, or needs a tenantd that knows more: then nothing may be claimed, or tenants
/// would be marked as another registry's. Nor is one claimed that this process has in hand: a claim that was lost in a crash of the server
/// gives its number to the next.
///
/// The commit is not waited for: whatever is done under a claim is committed later, in the same log, and makes the claim last.
const CLAIM_DUE: &str = "
with ours as (
    select set_config('synchronous_commit', 'off', true) from tenantd.registry where id = $6 and needs_version <= $7
), spares as (
    select least(count(*), $3)::int8 as at_hand from tenantd.spares_at_hand
), making as (
    select key from tenantd.tenant
    where work in ('due', 'failing') and due_at <= now() and state = 'requested' and (leased_until is null or leased_until <= now())
    and key <> all ($8) and exists (select from ours)
    order by due_at limit least($1, $2 + (select at_hand from spares)) for update skip locked
), mending as (
    select key from tenantd.tenant
    where work in ('due', 'failing') and due_at <= now() and state = 'ready' and (leased_until is null or leased_until <= now())
    and key <> all ($8) and exists (select from ours)
    order by due_at limit greatest(0, $9 - greatest(0, (select count(*) from making) - (select at_hand from spares))) for update skip locked
), picked as (select key from making union all select key from mending)
update tenantd.tenant t set attempt = t.attempt + 1, leased_until = now() + $4 * interval '1 second', leased_by = $5
from picked where t.key = picked.key ";

/// As above.
const CLAIM_KEYS: &str = "
with picked as (
    select key from tenantd.tenant
    where key = any ($1) and work <> 'held' and state in ('requested', 'ready') and (leased_until is null or leased_until <= now())
    and exists (select from tenantd.registry where id = $4 and needs_version <= $5)
    for update skip locked
)
update tenantd.tenant t set attempt = t.attempt + 1, leased_until = now() + $2 * interval '1 second', leased_by = $3
from picked where t.key = picked.key ";

/// How many tenants a look may take.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// Of all that have no database yet: what the brakes allow.
    pub room: usize,
    /// Of these, for which a database is made on demand.
    pub making: usize,
    /// Of these, for which a spare is at hand, beside those.
    pub by_spares: usize,
    /// Of all for which no spare serves: the lanes that are free.
    pub lanes: usize,
}

/// What a tenant has after its work was done.
#[derive(Debug, Clone)]
pub struct Done {
    /// The newest migration in the tenant.
    pub version: Option<i64>,
    /// The id of the migration set it has.
    pub migration_set: String,
    /// The fingerprint of its owner and grants.
    pub access: String,
    /// Whether a migration ran.
    pub migrated: bool,
}

/// When a failed tenant is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After this time.
    After(Duration),
    /// When a person asks for it, or the next verification: the tenant is parked.
    Parked,
}

impl Registry {
    /// Takes due tenants: signups first, each kind the longest due first.
    ///
    /// One statement; finding nothing writes nothing. A crash afterwards leaves leases that end by themselves.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn claim_due(&self, most: Most, lease: Duration) -> Result<Vec<Claim>> {
        let asked = Instant::now();
        let count = |number| i64::try_from(number).unwrap_or(i64::MAX / 2);
        let in_hand: Vec<String> = self.keys_in_hand().iter().cloned().collect();
        let rows = self
            .query(
                &format!("{CLAIM_DUE}{RETURNING}"),
                &[
                    (&count(most.room), Type::INT8),
                    (&count(most.making), Type::INT8),
                    (&count(most.by_spares), Type::INT8),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                    (&self.id, Type::UUID),
                    (&self.knows, Type::INT8),
                    (&in_hand, Type::TEXT_ARRAY),
                    (&count(most.lanes), Type::INT8),
                ],
                || "claim due tenants".to_owned(),
            )
            .await;
        self.taken(rows, asked, lease)
    }

    /// Takes those of `keys` that nobody else works on and that are not held, due or not.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn claim_keys(&self, keys: &[String], lease: Duration) -> Result<Vec<Claim>> {
        let asked = Instant::now();
        let rows = self
            .query(
                &format!("{CLAIM_KEYS}{RETURNING}"),
                &[
                    (&keys, Type::TEXT_ARRAY),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                    (&self.id, Type::UUID),
                    (&self.knows, Type::INT8),
                ],
                || format!("claim {} tenants", keys.len()),
            )
            .await;
        self.taken(rows, asked, lease)
    }

    /// Makes the lease of `claim` as long as at its start again.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when the tenant was claimed by somebody else meanwhile: the work must end at once.
    pub async fn renew(&self, claim: &Claim) -> Result<Instant> {
        let asked = Instant::now();
        let renewed = self
            .execute(
                "update tenantd.tenant set leased_until = now() + $3 * interval '1 second'
                 where key = $1 and attempt = $2 and leased_until > now()",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&claim.lease.as_secs_f64(), Type::FLOAT8)],
                || "renew the lease".to_owned(),
            )
            .await?;
        fenced(renewed, claim)?;
        Ok(asked + claim.lease)
    }

    /// Gives the tenant its name. A name is given once and stays.
    ///
    /// # Errors
    /// [`Kind::BadKey`] when another key has the name; [`Kind::LeaseLost`].
    pub async fn give_name(&self, claim: &Claim, name: &str) -> Result<()> {
        let given = self
            .execute(
                "update tenantd.tenant set name = $3 where key = $1 and attempt = $2",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&name, Type::TEXT)],
                || format!("give the tenant the name {name:?}"),
            )
            .await
            .map_err(|error| match error.code() {
                Some("23505") => Error::new(Kind::BadKey, format!("the name {name:?} belongs to another key")),
                _ => error,
            })?;
        fenced(given, claim)
    }

    /// Records that the tenant is as it should be, and gives the lease back.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when somebody else has the tenant by now: nothing was written.
    pub async fn record_done(&self, claim: &Claim, done: &Done) -> Result<()> {
        let recorded = self.execute(
                "update tenantd.tenant set state = 'ready', work = 'idle', failures = 0, leased_until = null, leased_by = null,
                 version = $3, migration_set = $4, access = $5, migrated_at = case when $6 then now() else migrated_at end,
                 verified_at = now(), ready_at = coalesce(ready_at, now()),
                 error_kind = null, error_text = null, error_sqlstate = null, error_step = null
                 where key = $1 and attempt = $2",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&done.version, Type::INT8),
                    (&done.migration_set, Type::TEXT),
                    (&done.access, Type::TEXT),
                    (&done.migrated, Type::BOOL),
                ], || "record that the tenant is ready".to_owned()).await?;
        fenced(recorded, claim)
    }

    /// Records that `step` failed, counts the failure, and gives the lease back. `version`: the migration that the tenant has all the same, where
    /// that may have changed.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when somebody else has the tenant by now: nothing was written.
    pub async fn record_failure(
        &self,
        claim: &Claim,
        error: &Error,
        step: &str,
        again: Again,
        version: Option<i64>,
    ) -> Result<()> {
        let (work, delay) = match again {
            Again::After(delay) => (Work::Failing, delay),
            Again::Parked => (Work::Parked, Duration::ZERO),
        };
        let text = match error.advice() {
            Some(advice) => format!("{}\nhint: {advice}", error.chain()),
            None => error.chain(),
        };
        let recorded = self.execute(
                "update tenantd.tenant set work = $3, failures = failures + 1, due_at = now() + $4 * interval '1 second',
                 leased_until = null, leased_by = null, error_kind = $5, error_text = $6, error_sqlstate = $7, error_step = $8,
                 migrated_at = case when $9 > version then now() else migrated_at end, version = coalesce($9, version)
                 where key = $1 and attempt = $2",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&work.word(), Type::TEXT),
                    (&delay.as_secs_f64(), Type::FLOAT8),
                    (&error.kind().word(), Type::TEXT),
                    (&text, Type::TEXT),
                    (&error.code(), Type::TEXT),
                    (&step, Type::TEXT),
                    (&version, Type::INT8),
                ], || "record the failure".to_owned()).await?;
        fenced(recorded, claim)
    }

    /// Gives the tenant back, no failure counted: it was no fault of its own. If it is due, then not before `after`, so that others come first.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when somebody else has the tenant by now.
    pub async fn release(&self, claim: &Claim, after: Duration) -> Result<()> {
        let released = self
            .execute(
                "update tenantd.tenant set leased_until = null, leased_by = null,
                 due_at = case when work in ('due', 'failing') then now() + $3 * interval '1 second' else due_at end
                 where key = $1 and attempt = $2",
                &[(&claim.key, Type::TEXT), (&claim.attempt, Type::INT8), (&after.as_secs_f64(), Type::FLOAT8)],
                || "give the tenant back".to_owned(),
            )
            .await?;
        fenced(released, claim)
    }

    /// The work on the tenant has ended, however it did.
    pub fn put_down(&self, claim: &Claim) {
        self.keys_in_hand().remove(&claim.key);
    }

    /// A migration of `migrated`, a tenant's key or a template, broke the connection: how often in a row it did by now, as far as this process
    /// knows.
    #[must_use]
    pub fn broke(&self, migrated: &str) -> u32 {
        let mut broken = self.in_hand.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let times = broken.entry(migrated.to_owned()).or_default();
        *times += 1;
        *times
    }

    /// The work on it came to an end that says nothing of a broken connection.
    pub fn unbroken(&self, migrated: &str) {
        self.in_hand.broken.lock().unwrap_or_else(PoisonError::into_inner).remove(migrated);
    }

    /// A lease may stand that nobody works under; see [`Registry::release_owed`].
    pub fn owe(&self) {
        self.in_hand.owed.store(true, Ordering::Relaxed);
    }

    /// Gives back the leases of this process that nobody works under, if there may be any: after an outage their tenants would otherwise wait
    /// until the leases end. Nothing is asked when there can be none.
    ///
    /// # Errors
    /// The main database cannot be reached: they are still owed.
    pub async fn release_owed(&self) -> Result<()> {
        if !self.in_hand.owed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let in_hand: Vec<String> = self.keys_in_hand().iter().cloned().collect();
        let released = self
            .execute(
                "update tenantd.tenant set leased_until = null, leased_by = null,
                 due_at = case when work in ('due', 'failing') then now() else due_at end
                 where leased_by = $1 and leased_until > now() and key <> all ($2)",
                &[(&self.worker, Type::TEXT), (&in_hand, Type::TEXT_ARRAY)],
                || "give back the leases that nobody works under".to_owned(),
            )
            .await;
        released.map(drop).inspect_err(|_| self.owe())
    }

    fn keys_in_hand(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.in_hand.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what a claim took, and holds it in hand.
    fn taken(&self, rows: Result<Vec<Row>>, asked: Instant, lease: Duration) -> Result<Vec<Claim>> {
        let rows = rows.inspect_err(|_| self.owe())?;
        let claims: Vec<Claim> = rows.iter().map(|row| read(row, asked, lease)).collect::<Result<_>>()?;
        self.keys_in_hand().extend(claims.iter().map(|claim| claim.key.clone()));
        Ok(claims)
    }

    /// Gives back every lease of this process, so that nobody waits for them to end. Called when the daemon stops.
    ///
    /// # Errors
    /// The main database cannot be reached: the leases end by themselves.
    pub async fn release_all(&self) -> Result<u64> {
        self.execute("update tenantd.tenant set leased_until = null, leased_by = null where leased_by = $1 and leased_until > now()", &[(&self.worker, Type::TEXT)], || "give back all leases".to_owned()).await
    }
}

pub(super) fn fenced(rows: u64, claim: &Claim) -> Result<()> {
    if rows == 1 {
        return Ok(());
    }
    Err(Error::new(
        Kind::LeaseLost,
        format!("attempt {} of tenant {} was overtaken by a later one", claim.attempt, claim.key),
    ))
}

/// A table or column of ours that is not there: nothing a tenant could be blamed for.
pub(super) fn damaged(error: Error) -> Error {
    match error.code() {
        Some("42P01" | "3F000" | "42703" | "42883") => error
            .with_kind(Kind::Registry)
            .hint("the registry is damaged: `tenantd setup` makes again what is missing, and holds the tenants it does not know"),
        _ => error,
    }
}

fn read(row: &Row, asked: Instant, lease: Duration) -> Result<Claim> {
    let (state, work): (String, String) = (field(row, "state")?, field(row, "work")?);
    let unknown = |word: &str| {
        Error::new(Kind::Registry, format!("the registry holds {word:?}, which this tenantd does not know"))
    };
    Ok(Claim {
        key: field(row, "key")?,
        attempt: field(row, "attempt")?,
        until: asked + lease,
        lease,
        name: field(row, "name")?,
        state: State::from_word(&state).ok_or_else(|| unknown(&state))?,
        work: Work::from_word(&work).ok_or_else(|| unknown(&work))?,
        failures: u32::try_from(field::<i32>(row, "failures")?).unwrap_or(0),
        version: field(row, "version")?,
        migration_set: field(row, "migration_set")?,
        access: field(row, "access")?,
        database_oid: field(row, "database_oid")?,
        age: Duration::from_secs_f64(field(row, "age")?),
    })
}
