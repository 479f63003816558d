//! The brakes on making databases: `tenant.max` and `tenant.max_per_hour`. Beyond them tenants stay requested; signups commit as ever.

use std::time::{Duration, Instant};

use crate::conditions::Conditions;
use crate::error::Result;
use crate::provision::Context;
use crate::registry::claim::Claim;
use crate::telemetry::Metrics;
use crate::tenant::State;

/// How old the count may be before it is read again, after something was made.
const FRESH: Duration = Duration::from_secs(1);

/// Keeps count, so that an idle daemon asks nothing and a busy one once a second.
pub(crate) struct Brakes {
    room: i64,
    read: Option<Instant>,
    used: bool,
    warned: bool,
    conditions: Conditions,
    metrics: Metrics,
}

impl Brakes {
    pub(crate) fn new(conditions: Conditions, metrics: Metrics) -> Self {
        Brakes { room: 0, read: None, used: true, warned: false, conditions, metrics }
    }

    /// How many of `wanted` tenants may be made now.
    ///
    /// # Errors
    /// The count could not be read.
    pub(crate) async fn allow(&mut self, context: &Context, wanted: usize) -> Result<usize> {
        let stale = self.read.is_none_or(|read| read.elapsed() > FRESH);
        if stale && (self.used || self.room <= 0) {
            self.refresh(context).await?;
        }
        Ok(usize::try_from(self.room).unwrap_or(0).min(wanted))
    }

    /// Counts what was claimed to be made.
    pub(crate) fn claimed(&mut self, claims: &[Claim]) {
        let making = claims.iter().filter(|claim| claim.state == State::Requested).count();
        self.room -= i64::try_from(making).unwrap_or(i64::MAX);
        self.used |= making > 0;
    }

    async fn refresh(&mut self, context: &Context) -> Result<()> {
        let counted = context.registry.room().await?;
        let (max, per_hour) = (i64::from(context.config.tenant.max), i64::from(context.config.tenant.max_per_hour));
        self.room = context.room(counted);
        self.read = Some(Instant::now());
        self.used = false;
        let full = self.room <= 0;
        if full {
            let reason = if counted.tenants >= max {
                format!("there are {} tenants, and tenant.max is {max}", counted.tenants)
            } else {
                format!("{} tenants were made within an hour, and tenant.max_per_hour is {per_hour}", counted.last_hour)
            };
            if !self.conditions.unmet().contains_key("brakes") {
                tracing::error!(reason, "the brakes hold new tenants back; signups go on");
            }
            self.conditions.set("brakes", reason);
        } else {
            self.conditions.clear("brakes");
        }
        self.metrics.braked(full);
        let loud = counted.tenants * 10 >= max * 8;
        if loud && !self.warned && !full {
            tracing::warn!(tenants = counted.tenants, max, "four fifths of tenant.max are used");
        }
        self.warned = loud;
        Ok(())
    }
}
