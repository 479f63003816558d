//! The brakes on making databases: `tenant.max` and `tenant.max_per_hour`. Beyond them tenants stay requested; signups commit as ever.

use crate::conditions::{BRAKES, Conditions};
use crate::error::Result;
use crate::provision::{Context, RoomLeft};
use crate::telemetry::Metrics;

/// Tells how near the end is, and asks anew when that may matter: an idle daemon asks nothing, a busy one once a second and not before it
/// has taken its signups up.
pub(crate) struct Brakes {
    warned: bool,
    conditions: Conditions,
    metrics: Metrics,
}

impl Brakes {
    pub(crate) fn new(conditions: Conditions, metrics: Metrics) -> Self {
        Brakes { warned: false, conditions, metrics }
    }

    /// How many tenants may be made now.
    ///
    /// # Errors
    /// The count could not be read.
    pub(crate) async fn room(&mut self, context: &Context) -> Result<RoomLeft> {
        match context.supply.room() {
            Some(left) => Ok(left),
            None => self.count(context).await,
        }
    }

    /// Counts anew, where something was made since the last count. For moments in which nobody waits.
    ///
    /// # Errors
    /// The count could not be read.
    pub(crate) async fn settle(&mut self, context: &Context) -> Result<()> {
        match context.supply.room() {
            Some(left) if !left.stale => Ok(()),
            _ => self.count(context).await.map(drop),
        }
    }

    async fn count(&mut self, context: &Context) -> Result<RoomLeft> {
        let counted = context.registry.room().await?;
        let (max, per_hour) = (i64::from(context.config.tenant.max), i64::from(context.config.tenant.max_per_hour));
        let left = context.supply.counted(context.room(counted));
        let full = left.tenants <= 0;
        if full {
            let reason = if counted.tenants >= max {
                format!("there are {} tenants, and tenant.max is {max}", counted.tenants)
            } else {
                format!("{} tenants were made within an hour, and tenant.max_per_hour is {per_hour}", counted.last_hour)
            };
            if !self.conditions.unmet().contains_key(BRAKES) {
                tracing::error!(reason, "the brakes hold new tenants back; signups go on");
            }
            self.conditions.set(BRAKES, reason);
        } else {
            self.conditions.clear(BRAKES);
        }
        self.metrics.braked(full);
        let loud = counted.tenants * 10 >= max * 8;
        if loud && !self.warned && !full {
            tracing::warn!(tenants = counted.tenants, max, "four fifths of tenant.max are used");
        }
        self.warned = loud;
        Ok(left)
    }
}
