//! The metrics that are read from the registry: how the fleet stands, as last read, and whether it could be read.

use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::conditions::{Conditions, NAMES};
use crate::registry::fleet::{Fleet, VersionCount};
use crate::tenant::{State, Work};

/// So many versions are told apart, the newest; the rest is one number.
const VERSIONS: usize = 5;

/// The fleet as last read; `None` when the last try failed. While nothing is known, nothing but that is told.
#[derive(Debug, Clone, Default)]
pub(super) struct FleetGauges(Arc<Mutex<Option<Fleet>>>);

impl FleetGauges {
    pub(super) fn set(&self, fleet: Option<Fleet>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fleet;
    }
}

impl Collector for FleetGauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let fleet = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let up = i64::from(fleet.is_some());
        gauge(&mut encoder, "up", "Whether the main database answered (1) or not (0)", None, &up)?;
        let Some(fleet) = fleet.as_ref() else { return Ok(()) };
        tenants(&mut encoder, fleet)?;
        by_version(&mut encoder, &fleet.versions)?;
        let waiting = fleet.oldest_waiting.unwrap_or_default().as_secs_f64();
        let help = "How long the longest waiting signup has waited for its tenant; 0 when none waits";
        gauge(&mut encoder, "waiting_oldest", help, Some(&Unit::Seconds), &waiting)?;
        gauge(&mut encoder, "leased", "Tenants that are being worked on", None, &fleet.leased)?;
        spares(&mut encoder, fleet)?;
        rollout(&mut encoder, fleet)?;
        let daemons = i64::try_from(fleet.daemons.len()).unwrap_or(i64::MAX);
        gauge(&mut encoder, "daemons", "Daemons connected to the main database", None, &daemons)?;
        let help = "How full the server's queue of notifications is; at 1 commits fail";
        gauge(&mut encoder, "notification_queue_ratio", help, None, &fleet.notification_queue)
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: &impl EncodeGaugeValue,
) -> Result<(), Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(value)
}

/// Every state with every work, the empty ones too, so that a series does not come and go.
fn tenants(encoder: &mut DescriptorEncoder, fleet: &Fleet) -> Result<(), Error> {
    let help = "Tenants by state and by what is still to do";
    let mut family = encoder.encode_descriptor("tenants", help, None, MetricType::Gauge)?;
    for state in State::ALL {
        for work in Work::ALL {
            let counts = fleet.counts.iter().filter(|count| count.state == state.word() && count.work == work.word());
            let labels = [("state", state.word()), ("work", work.word())];
            ConstGauge::new(counts.map(|count| count.tenants).sum::<i64>()).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn spares(encoder: &mut DescriptorEncoder, fleet: &Fleet) -> Result<(), Error> {
    let help =
        "Databases under a random name, not yet a tenant's: at hand, in the making, left by work that was cut off";
    let mut family = encoder.encode_descriptor("spares", help, None, MetricType::Gauge)?;
    for (standing, spares) in [("at_hand", fleet.at_hand), ("making", fleet.making), ("stray", fleet.strays)] {
        ConstGauge::new(spares).encode(family.encode_family(&[("standing", standing)])?)?;
    }
    Ok(())
}

fn rollout(encoder: &mut DescriptorEncoder, fleet: &Fleet) -> Result<(), Error> {
    let help = "Whether new migrations are on their way through the fleet (1) or not (0): running, or paused and waiting for a person";
    let mut family = encoder.encode_descriptor("rollout", help, None, MetricType::Gauge)?;
    for (state, paused) in [("running", false), ("paused", true)] {
        let so = fleet.rollout.as_ref().is_some_and(|rollout| rollout.paused == paused);
        ConstGauge::new(i64::from(so)).encode(family.encode_family(&[("state", state)])?)?;
    }
    Ok(())
}

fn by_version(encoder: &mut DescriptorEncoder, versions: &[VersionCount]) -> Result<(), Error> {
    let mut known: Vec<(i64, i64)> = versions.iter().filter_map(|one| Some((one.version?, one.tenants))).collect();
    known.sort_unstable_by(|a, b| b.cmp(a));
    known.truncate(VERSIONS);
    let other =
        versions.iter().map(|one| one.tenants).sum::<i64>() - known.iter().map(|(_, tenants)| tenants).sum::<i64>();
    let help = "Ready tenants by their newest migration, the newest versions one by one";
    let mut family = encoder.encode_descriptor("tenants_by_version", help, None, MetricType::Gauge)?;
    for (version, tenants) in known {
        ConstGauge::new(tenants).encode(family.encode_family(&[("version", version.to_string())])?)?;
    }
    ConstGauge::new(other).encode(family.encode_family(&[("version", "other")])?)
}

/// The conditions as they stand at each scrape.
#[derive(Debug)]
pub(super) struct ConditionGauges(pub(super) Conditions);

impl Collector for ConditionGauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let unmet = self.0.unmet();
        let help = "What readiness depends on: met (1) or not (0); /readyz says why";
        let mut family = encoder.encode_descriptor("conditions", help, None, MetricType::Gauge)?;
        for name in NAMES {
            let met = i64::from(!unmet.contains_key(name));
            ConstGauge::new(met).encode(family.encode_family(&[("name", name)])?)?;
        }
        Ok(())
    }
}
