//! What a person's command does with tenants: takes them, waiting for whoever has them; holds, releases and retries them.

use std::time::{Duration, Instant};

use tokio_postgres::types::{ToSql, Type};

use super::claim::{Claim, RETURNING, fenced, read};
use super::events::What;
use super::lookup::Filter;
use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::tenant::State;

/// Time between two tries for a tenant that somebody works on.
const AGAIN: Duration = Duration::from_millis(200);

/// The lease that a command takes. Its process renews it as long as it works.
const LEASE: Duration = Duration::from_secs(30);

/// In whatever state and work it is, so that a person may change what no daemon touches; else under the same conditions as a daemon's.
const CLAIM: &str = "
update tenantd.tenant t set attempt = t.attempt + 1, leased_until = now() + $2 * interval '1 second', leased_by = $3
where t.key = $1 and t.state = any ($6) and (t.leased_until is null or t.leased_until <= now())
and exists (select from tenantd.registry where id = $4 and needs_version <= $5) ";

/// Which tenants `t` may be made due: they do not go on by themselves, or not soon.
const RETRIED: &str = "t.work in ('failing', 'parked') and t.state in ('requested', 'ready')
    and (t.leased_until is null or t.leased_until <= now())";

impl Registry {
    /// Takes the tenant `key`, held or not, if its state is one of `states`; while somebody else works on it, waits as long as `patience`.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no such tenant, or its state is another. [`Kind::Locked`], with who has it, when the time is over.
    /// The main database cannot be reached.
    pub async fn claim_by_hand(&self, key: &str, states: &[State], patience: Duration) -> Result<Claim> {
        let began = Instant::now();
        loop {
            let claiming = self.in_hand.claiming.read().await;
            let asked = Instant::now();
            let words: Vec<&str> = states.iter().map(|state| state.word()).collect();
            let claimed = self
                .query(
                    &format!("{CLAIM}{RETURNING}"),
                    &[
                        (&key, Type::TEXT),
                        (&LEASE.as_secs_f64(), Type::FLOAT8),
                        (&self.worker, Type::TEXT),
                        (&self.id, Type::UUID),
                        (&self.knows, Type::INT8),
                        (&words, Type::TEXT_ARRAY),
                    ],
                    || format!("claim tenant {key}"),
                )
                .await;
            if let Some(claim) = self.taken(claimed, asked, LEASE)?.pop() {
                return Ok(claim);
            }
            drop(claiming);
            let busy = self.why_not(key, states).await?;
            if began.elapsed() >= patience {
                return Err(busy);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The tenant `key` as a claim would show it, if its state is one of `states`, and not taken: nothing can be written under it. For a dry run.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no such tenant, or its state is another. The main database cannot be reached.
    pub async fn glance(&self, key: &str, states: &[State]) -> Result<Claim> {
        let columns = RETURNING.trim_start_matches("returning");
        let sql = format!("select {columns} from tenantd.tenant t where t.key = $1");
        let rows = self.query(&sql, &[(&key, Type::TEXT)], || format!("look at tenant {key}")).await?;
        match rows.first().map(|row| read(row, Instant::now(), Duration::ZERO)).transpose()? {
            Some(seen) if states.contains(&seen.state) => Ok(seen),
            _ => Err(self.why_not(key, states).await?),
        }
    }

    /// Who has the tenant; an error at once where waiting would not help.
    async fn why_not(&self, key: &str, states: &[State]) -> Result<Error> {
        let rows = self
            .query(
                "select state::text, leased_by, extract(epoch from leased_until - now())::float8 as lasts
                 from tenantd.tenant where key = $1",
                &[(&key, Type::TEXT)],
                || format!("look who has tenant {key}"),
            )
            .await?;
        let Some(row) = rows.first() else { return Err(Error::usage(format!("there is no tenant {key:?}"))) };
        let state: String = field(row, "state")?;
        if !states.iter().any(|asked| asked.word() == state) {
            let states: Vec<&str> = states.iter().map(|state| state.word()).collect();
            return Err(Error::usage(format!(
                "tenant {key} is {state}, and this is for one that is {}",
                states.join(" or ")
            )));
        }
        let holder: Option<String> = field(row, "leased_by")?;
        let lasts: Option<f64> = field(row, "lasts")?;
        let holder = holder.unwrap_or_else(|| "nobody".to_owned());
        Ok(Error::new(
            Kind::Locked,
            format!("tenant {key} is in the hands of {holder}, for {:.0} s unless renewed", lasts.unwrap_or(0.0).max(0.0)),
        )
        .hint("wait for it with a longer --timeout; what a dead process left is freed by itself when its lease ends, or by `tenantd release-lock`"))
    }

    /// Holds the claimed tenant: no daemon and no sweep touches it until it is released. The lease is given back. `why` goes into its history.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`]. The main database cannot be reached.
    pub async fn hold(&self, claim: &Claim, why: Option<&str>) -> Result<()> {
        let held = self
            .execute(
                "with held as (
                     update tenantd.tenant set work = 'held', leased_until = null, leased_by = null
                     where key = $1 and attempt = $2 and leased_by = $3 returning key
                 ) insert into tenantd.event (key, what, who, detail) select key, $4, $5, $6 from held",
                &[
                    (&claim.key, Type::TEXT),
                    (&claim.attempt, Type::INT8),
                    (&self.worker, Type::TEXT),
                    (&What::Held.word(), Type::TEXT),
                    (&self.who, Type::TEXT),
                    (&why, Type::TEXT),
                ],
                || format!("hold tenant {}", claim.key),
            )
            .await;
        self.put_down(claim);
        fenced(held?, claim)
    }

    /// Makes a held tenant due. False: it is not held, or being deleted.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn release_held(&self, key: &str) -> Result<bool> {
        let released = self
            .query(
                "with released as (
                     update tenantd.tenant set work = 'due', due_at = now() where key = $1 and work = 'held' and state in ('requested', 'ready')
                     and (leased_until is null or leased_until <= now()) returning key
                 ), told as (insert into tenantd.event (key, what, who) select key, $2, $3 from released)
                 select key from released",
                &[(&key, Type::TEXT), (&What::Released.word(), Type::TEXT), (&self.who, Type::TEXT)],
                || format!("release tenant {key}"),
            )
            .await?;
        Ok(!released.is_empty())
    }

    /// Whether the tenant is held, and can be released.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn is_held(&self, key: &str) -> Result<bool> {
        let sql = "select from tenantd.tenant where key = $1 and work = 'held' and state in ('requested', 'ready')";
        Ok(!self.query(sql, &[(&key, Type::TEXT)], || format!("look how tenant {key} stands")).await?.is_empty())
    }

    /// Makes those of the tenants that fit `filter` which are failing or parked due at once, with all their tries before them. Returns their
    /// keys. One that somebody works on is left to them.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn retry(&self, filter: &Filter) -> Result<Vec<String>> {
        let sql = format!(
            "with retried as (
                 update tenantd.tenant t set work = 'due', due_at = now(), failures = 0
                 where {RETRIED} and {} returning t.key
             ), told as (insert into tenantd.event (key, what, who) select key, $7, $8 from retried)
             select key from retried order by key",
            Filter::SQL
        );
        let values = filter.values();
        let (what, mut parameters) = (What::Retried.word(), values.parameters());
        parameters.extend([(&what as &(dyn ToSql + Sync), Type::TEXT), (&self.who, Type::TEXT)]);
        let rows = self.query(&sql, &parameters, || "make failing and parked tenants due".to_owned()).await?;
        rows.iter().map(|row| field(row, "key")).collect()
    }

    /// The keys that [`Registry::retry`] would make due.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn to_retry(&self, filter: &Filter) -> Result<Vec<String>> {
        let sql = format!("select t.key from tenantd.tenant t where {RETRIED} and {} order by t.key", Filter::SQL);
        let values = filter.values();
        let rows = self.query(&sql, &values.parameters(), || "look for failing and parked tenants".to_owned()).await?;
        rows.iter().map(|row| field(row, "key")).collect()
    }
}
