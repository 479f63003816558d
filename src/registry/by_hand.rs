//! Tenants taken by a person's command, which waits for whoever has them.

use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::claim::{Claim, RETURNING, read};
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

impl Registry {
    /// Takes the tenant `key`, held or not, if its state is one of `states`; while somebody else works on it, waits as long as `patience`.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no such tenant, or its state is another. [`Kind::Locked`], with who has it, when the time is over.
    /// The main database cannot be reached.
    pub async fn claim_by_hand(&self, key: &str, states: &[State], patience: Duration) -> Result<Claim> {
        let began = Instant::now();
        loop {
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
}
