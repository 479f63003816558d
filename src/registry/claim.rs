//! Claims: taking due tenants for a limited time. What became of them is `record`'s.
//!
//! Every write after a claim names its attempt, so that a daemon which lost its lease writes nothing, and who claimed: `attempt` only grows,
//! but a claim is not waited for until it is on disk (`WITHOUT_FSYNC`), and after a crash of the server the next claim may bear its number.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::plan::Database;
use crate::tenant::{Marker, State, Work};

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
    /// What stood on the server under its name when it was claimed, where that was looked at.
    pub seen: Option<Seen>,
    /// Whether a spare was at hand when it was claimed, where that was looked at.
    pub spare_at_hand: bool,
    /// Whether it is up in the rollout of a newer set.
    pub advance: bool,
}

/// What a claim saw of a tenant's database from outside; `None`: there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen(pub Option<Database>);

pub(super) const RETURNING: &str =
    "returning t.key, t.attempt, t.name, t.state, t.work, t.failures, t.version, t.migration_set, t.access,
    t.database_oid, greatest(extract(epoch from clock_timestamp() - t.created_at), 0)::float8 as age";

/// By key, under the same conditions as `tenantd.claim_due`. With each comes what stands on the server under its name, as `pg::admin::look` would see
/// it.
const CLAIM_KEYS: &str = "
, picked as (
    select t.key, t.name from tenantd.tenant t, without_fsync
    where t.key = any ($1) and t.work <> 'held' and t.state in ('requested', 'ready')
    and (t.leased_until is null or t.leased_until <= now())
    and t.key <> all ($6) and exists (select from tenantd.registry where id = $4 and needs_version <= $5)
    for update of t skip locked
)
update tenantd.tenant t set attempt = t.attempt + 1, leased_until = now() + $2 * interval '1 second', leased_by = $3
from picked left join tenantd.place d on d.name = picked.name
where t.key = picked.key ";

const SEEN: &str = ", d.oid, pg_get_userbyid(d.owner)::text as owner, d.valid, d.open, d.public, d.marker";

/// Begins a statement whose commit is not waited for until it is on disk; the setting ends with the transaction.
///
/// For claims, renewals and records of tenants that stand: the truth is in the tenant itself. What a crash of the server loses of them means
/// only that a tenant looks as it did before, due or behind or unverified, and the next sweep looks at it again. Nothing is lost that came
/// after something else was kept: whatever waits for the disk later, such as a hand-over, takes all that was written before it along.
pub(super) const WITHOUT_FSYNC: &str =
    "with without_fsync as materialized (select set_config('synchronous_commit', 'off', true))";

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
    /// Makes tenants of all signups that were not taken in yet. Returns how many there were.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged. What was taken in until then stays.
    pub async fn take_all_in(&self) -> Result<i64> {
        let take_in = format!("{WITHOUT_FSYNC} select tenantd.take_in() as taken from without_fsync");
        let mut all = 0;
        loop {
            let rows = self.query(&take_in, &[], || "take signups in".to_owned()).await?;
            match rows.first().map_or(Ok(0), |row| field(row, "taken"))? {
                0 => return Ok(all),
                taken => all += taken,
            }
        }
    }

    /// Makes tenants of new signups, and takes due tenants: signups first, each kind the longest due first.
    ///
    /// One statement; finding nothing writes nothing. A crash afterwards leaves leases that end by themselves.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn claim_due(&self, most: Most, lease: Duration) -> Result<Vec<Claim>> {
        let _claiming = self.in_hand.claiming.read().await;
        let asked = Instant::now();
        let count = |number| i64::try_from(number).unwrap_or(i64::MAX / 2);
        let in_hand: Vec<String> = self.keys_in_hand().iter().cloned().collect();
        let rows = self
            .query(
                "select * from tenantd.claim_due($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    (&self.id, Type::UUID),
                    (&self.knows, Type::INT8),
                    (&self.worker, Type::TEXT),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&count(most.room), Type::INT8),
                    (&count(most.making), Type::INT8),
                    (&count(most.by_spares), Type::INT8),
                    (&count(most.lanes), Type::INT8),
                    (&in_hand, Type::TEXT_ARRAY),
                ],
                || "claim due tenants".to_owned(),
            )
            .await;
        let spares = rows.as_deref().unwrap_or_default().first().map_or(Ok(false), |row| field(row, "spare_at_hand"));
        let spare_at_hand = spares.inspect_err(|_| self.owe())?;
        let claims = self.taken(rows, asked, lease)?;
        Ok(claims.into_iter().map(|claim| Claim { spare_at_hand, ..claim }).collect())
    }

    /// Takes those of `keys` that nobody else works on and that are not held, due or not, and looks at their databases from outside.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn claim_keys(&self, keys: &[String], lease: Duration) -> Result<Vec<Claim>> {
        let _claiming = self.in_hand.claiming.read().await;
        let asked = Instant::now();
        let in_hand: Vec<String> = self.keys_in_hand().iter().cloned().collect();
        let rows = self
            .query(
                &format!("{WITHOUT_FSYNC}{CLAIM_KEYS}{RETURNING}{SEEN}"),
                &[
                    (&keys, Type::TEXT_ARRAY),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                    (&self.id, Type::UUID),
                    (&self.knows, Type::INT8),
                    (&in_hand, Type::TEXT_ARRAY),
                ],
                || format!("claim {} tenants", keys.len()),
            )
            .await;
        let seen: Result<Vec<Seen>> = rows.as_deref().unwrap_or_default().iter().map(|row| self.seen(row)).collect();
        let seen = seen.inspect_err(|_| self.owe())?;
        let mut claims = self.taken(rows, asked, lease)?;
        // One without a name has no database that we know of, which is not to say that there is none.
        for (claim, seen) in claims.iter_mut().zip(seen).filter(|(claim, _)| claim.name.is_some()) {
            claim.seen = Some(seen);
        }
        Ok(claims)
    }

    fn seen(&self, row: &Row) -> Result<Seen> {
        let Some(oid) = field::<Option<u32>>(row, "oid")? else { return Ok(Seen(None)) };
        let marker = Marker::of(self.id, &field::<String>(row, "key")?).to_string();
        Ok(Seen(Some(Database {
            oid,
            owner: field(row, "owner")?,
            ours: field::<Option<String>>(row, "marker")?.is_some_and(|found| found == marker),
            valid: field(row, "valid")?,
            open: field(row, "open")?,
            public: field(row, "public")?,
            applied: None,
        })))
    }

    /// Makes the lease of `claim` as long as at its start again.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when the tenant was claimed by somebody else meanwhile: the work must end at once.
    pub async fn renew(&self, claim: &Claim) -> Result<Instant> {
        let asked = Instant::now();
        let renewed = self
            .execute(
                &format!(
                    "{WITHOUT_FSYNC}
                     update tenantd.tenant set leased_until = now() + $3 * interval '1 second' from without_fsync
                     where key = $1 and attempt = $2 and leased_by = $4 and leased_until > now()"
                ),
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&claim.lease.as_secs_f64(), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                ],
                || "renew the lease".to_owned(),
            )
            .await?;
        fenced(renewed, claim)?;
        Ok(asked + claim.lease)
    }

    /// Gives the tenant its name, and says what stands on the server under it. A name is given once and stays.
    ///
    /// # Errors
    /// [`Kind::BadKey`] when another key has the name; [`Kind::LeaseLost`].
    pub async fn give_name(&self, claim: &Claim, name: &str) -> Result<Seen> {
        let named = self
            .query(
                &format!(
                    "{WITHOUT_FSYNC}, named as (
                         update tenantd.tenant set name = $3 from without_fsync
                         where key = $1 and attempt = $2 and leased_by = $4 returning key
                     )
                     select named.key{SEEN} from named left join tenantd.place d on d.name = $3"
                ),
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&name, Type::TEXT),
                    (&self.worker, Type::TEXT),
                ],
                || format!("give the tenant the name {name:?}"),
            )
            .await;
        let named = match named {
            Err(error) if error.code() == Some("23505") => return Err(self.name_taken(name).await),
            named => named?,
        };
        fenced(u64::try_from(named.len()).unwrap_or(0), claim)?;
        self.seen(&named[0])
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
    /// until the leases end. Nothing is asked when there can be none, nor while a claim is under way: they are still owed then.
    ///
    /// # Errors
    /// The main database cannot be reached: they are still owed.
    pub async fn release_owed(&self) -> Result<()> {
        let Ok(_nobody_claims) = self.in_hand.claiming.try_write() else { return Ok(()) };
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
    pub(super) fn taken(&self, rows: Result<Vec<Row>>, asked: Instant, lease: Duration) -> Result<Vec<Claim>> {
        let rows = rows.inspect_err(|_| self.owe())?;
        let claims: Vec<Claim> = rows.iter().map(|row| read(row, asked, lease)).collect::<Result<_>>()?;
        self.keys_in_hand().extend(claims.iter().map(|claim| claim.key.clone()));
        Ok(claims)
    }

    /// Gives back every lease of this process, on tenants, on a rollout, on templates and spares, so that nobody waits for them to end. Called
    /// when the process stops; what is broken off may hold any of them. Returns how many tenants'.
    ///
    /// # Errors
    /// The main database cannot be reached: the leases end by themselves.
    pub async fn release_all(&self) -> Result<u64> {
        self.execute(RELEASE_ALL, &[(&self.worker, Type::TEXT)], || "give back all leases".to_owned()).await
    }
}

const RELEASE_ALL: &str = "with rollouts as (
     update tenantd.rollout set leased_until = null, leased_by = null where leased_by = $1
 ), keeper as (
     update tenantd.registry set keeper = null, keeper_until = null where keeper = $1
 ) update tenantd.tenant set leased_until = null, leased_by = null where leased_by = $1 and leased_until > now()";

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

pub(super) fn read(row: &Row, asked: Instant, lease: Duration) -> Result<Claim> {
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
        seen: None,
        spare_at_hand: false,
        advance: false,
    })
}
