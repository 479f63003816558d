//! Every metric of the daemon, in a registry of its own. None carries a tenant's name: their number has no bound.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::fleet::{ConditionGauges, FleetGauges};
use crate::conditions::Conditions;
use crate::error::Kind;
use crate::provision::{Ended, Outcome};
use crate::registry::fleet::Fleet;
use crate::sweep::Report;

/// From a hand-over of a millisecond to a signup that waited half an hour for its server.
const BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

const OUTCOMES: [&str; 5] = ["ready", "failing", "parked", "left", "server"];
const MIGRATED: [&str; 2] = ["applied", "failed"];
const SWEPT: [&str; 8] = ["made", "migrated", "unchanged", "failed", "busy", "newer", "braked", "unreached"];

type Label = [(&'static str, &'static str); 1];
type Seconds = Gauge<f64, AtomicU64>;

/// The metrics of one daemon. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<All>);

struct All {
    registry: Registry,
    fleet: FleetGauges,
    provisioned: Counter,
    migrated: Family<Label, Counter>,
    reconciles: Family<Label, Counter>,
    ready: Histogram,
    reconcile: Histogram,
    clone: Histogram,
    lease_lost: Counter,
    sweep_last_success: Seconds,
    sweep: Seconds,
    sweep_tenants: Family<Label, Gauge>,
    looks: Counter,
    rings: Counter,
    bell_armed: Gauge,
    ping_failures: Counter,
    reconnects: Counter,
    brake: Gauge,
    reload: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Registers what `M` makes, and hands it back.
fn new<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn seconds<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

/// With every value of its label from the start, so that the first event is seen as a rise from 0.
fn family<M>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[&'static str],
) -> Family<Label, M>
where
    M: Default + Clone,
    Family<Label, M>: Metric,
{
    let family = Family::<Label, M>::default();
    for value in values {
        drop(family.get_or_create(&[(label, value)]));
    }
    new(registry, name, help, family)
}

impl Metrics {
    /// All at zero. `conditions` are looked at whenever the metrics are read.
    #[must_use]
    pub fn new(conditions: &Conditions) -> Self {
        let mut own = Registry::with_prefix("tenantd");
        let all = &mut own;
        all.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let fleet = FleetGauges::default();
        all.register_collector(Box::new(fleet.clone()));
        all.register_collector(Box::new(ConditionGauges(conditions.clone())));
        let histogram = || Histogram::new(BUCKETS);
        let metrics = All {
            fleet,
            provisioned: new(all, "provisioned", "Tenants' databases made", Counter::default()),
            migrated: family(all, "migrated", "Tenants migrated, or failed in a migration", "outcome", &MIGRATED),
            reconciles: family(all, "reconciles", "Looks at one tenant, by how they ended", "outcome", &OUTCOMES),
            ready: seconds(all, "ready", "From a signup's commit to its tenant being ready", histogram()),
            reconcile: seconds(all, "reconcile", "The work on one tenant alone", histogram()),
            clone: seconds(all, "clone", "Making a spare from the template", histogram()),
            lease_lost: new(all, "lease_lost", "Leases that ran out or went to another daemon", Counter::default()),
            sweep_last_success: seconds(
                all,
                "sweep_last_success_timestamp",
                "When a sweep last reached every tenant it had chosen; 0 before the first",
                Seconds::default(),
            ),
            sweep: seconds(all, "sweep", "How long the last sweep took", Seconds::default()),
            sweep_tenants: family(all, "sweep_tenants", "Tenants of the last sweep, by result", "result", &SWEPT),
            looks: new(all, "looks", "Looks for due tenants", Counter::default()),
            rings: new(all, "rings", "Times that a signup rang the doorbell", Counter::default()),
            bell_armed: new(all, "bell_armed", "Whether this daemon's doorbell is armed", Gauge::default()),
            ping_failures: new(all, "ping_failures", "Own pings that did not come back", Counter::default()),
            reconnects: new(all, "reconnects", "Connections to the main database made anew", Counter::default()),
            brake: new(
                all,
                "brake",
                "Whether tenant.max or tenant.max_per_hour holds tenants back (1) or not (0)",
                Gauge::default(),
            ),
            reload: new(
                all,
                "config_last_reload_successful",
                "Whether the settings and migrations were in order when last read",
                Gauge::default(),
            ),
            registry: own,
        };
        metrics.reload.set(1);
        Metrics(Arc::new(metrics))
    }

    /// A reconcile ended, in a lane or in a sweep.
    pub fn reconciled(&self, Ended { outcome, age, took, .. }: &Ended) {
        let all = &self.0;
        let word = match outcome {
            Outcome::Ready { made, migrated } => {
                if *made {
                    all.provisioned.inc();
                    all.ready.observe((*age + *took).as_secs_f64());
                } else if !migrated.is_empty() {
                    all.migrated.get_or_create(&[("outcome", "applied")]).inc();
                }
                "ready"
            }
            Outcome::Failed { error, parked } => {
                if matches!(error.kind(), Kind::Migration | Kind::MigrationLocked) {
                    all.migrated.get_or_create(&[("outcome", "failed")]).inc();
                }
                if *parked { "parked" } else { "failing" }
            }
            Outcome::Left(error) => {
                if error.kind() == Kind::LeaseLost {
                    all.lease_lost.inc();
                }
                "left"
            }
            Outcome::Server(_) => "server",
        };
        all.reconciles.get_or_create(&[("outcome", word)]).inc();
        all.reconcile.observe(took.as_secs_f64());
    }

    /// A spare was made from the template, which took so long.
    pub fn spare_made(&self, took: Duration) {
        self.0.clone.observe(took.as_secs_f64());
    }

    /// A sweep ended.
    pub fn swept(&self, report: &Report) {
        let all = &self.0;
        let newer = usize::try_from(report.newer).unwrap_or_default();
        let unchanged = report.ready.saturating_sub(report.made + report.migrated);
        let results = [
            report.made,
            report.migrated,
            unchanged,
            report.failures,
            report.busy,
            newer,
            report.braked,
            report.unreached,
        ];
        for (word, tenants) in SWEPT.into_iter().zip(results) {
            let tenants = i64::try_from(tenants).unwrap_or(i64::MAX);
            all.sweep_tenants.get_or_create(&[("result", word)]).set(tenants);
        }
        all.sweep.set(report.took.as_secs_f64());
        if report.server.is_none() && report.unreached == 0 {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            all.sweep_last_success.set(now.as_secs_f64());
        }
    }

    /// The fleet was read.
    pub fn fleet(&self, fleet: &Fleet) {
        self.0.fleet.set(Some(fleet.clone()));
    }

    /// The fleet could not be read: what was known is no longer told, and `tenantd_up` is 0.
    pub fn fleet_unread(&self) {
        self.0.fleet.set(None);
    }

    /// The daemon looked for due tenants.
    pub fn looked(&self) {
        self.0.looks.inc();
    }

    /// A signup rang.
    pub fn rung(&self) {
        self.0.rings.inc();
    }

    /// The bell was armed or disarmed.
    pub fn bell_armed(&self, armed: bool) {
        self.0.bell_armed.set(i64::from(armed));
    }

    /// A ping of our own did not come back in time.
    pub fn ping_failed(&self) {
        self.0.ping_failures.inc();
    }

    /// A connection to the main database was lost and made anew.
    pub fn reconnected(&self) {
        self.0.reconnects.inc();
    }

    /// The brakes hold tenants back, or no longer do.
    pub fn braked(&self, held_back: bool) {
        self.0.brake.set(i64::from(held_back));
    }

    /// Settings and migrations were read again, with or without success.
    pub fn reloaded(&self, successful: bool) {
        self.0.reload.set(i64::from(successful));
    }

    /// All of them as `OpenMetrics` text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail; what a failure would leave is not worth serving.
        if encode(&mut text, &self.0.registry).is_err() {
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::BRAKES;
    use crate::error::Error;
    use crate::registry::fleet::{Count, VersionCount};

    fn metrics() -> (Conditions, Metrics) {
        let conditions = Conditions::new();
        let metrics = Metrics::new(&conditions);
        (conditions, metrics)
    }

    fn fleet() -> Fleet {
        let version = |version, tenants| VersionCount { version, tenants, ..VersionCount::default() };
        Fleet {
            counts: vec![Count { state: "ready".into(), work: "idle".into(), tenants: 27 }],
            versions: [Some(9), Some(8), Some(7), Some(6), Some(5), Some(4), None]
                .map(|v| version(v, v.unwrap_or(2)))
                .into(),
            oldest_waiting: Some(Duration::from_millis(1500)),
            leased: 3,
            at_hand: 2,
            daemons: vec!["a:1".into(), "b:2".into()],
            notification_queue: 0.25,
            ..Fleet::default()
        }
    }

    #[track_caller]
    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|one| one == *line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn everything_is_there_from_the_start() {
        let text = metrics().1.encode();
        has(
            &text,
            &[
                concat!("tenantd_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "tenantd_up 0",
                "tenantd_provisioned_total 0",
                "tenantd_migrated_total{outcome=\"applied\"} 0",
                "tenantd_reconciles_total{outcome=\"parked\"} 0",
                "tenantd_ready_seconds_count 0",
                "tenantd_reconcile_seconds_bucket{le=\"0.001\"} 0",
                "tenantd_lease_lost_total 0",
                "tenantd_sweep_last_success_timestamp_seconds 0.0",
                "tenantd_sweep_seconds 0.0",
                "tenantd_sweep_tenants{result=\"unreached\"} 0",
                "tenantd_looks_total 0",
                "tenantd_rings_total 0",
                "tenantd_bell_armed 0",
                "tenantd_ping_failures_total 0",
                "tenantd_reconnects_total 0",
                "tenantd_config_last_reload_successful 1",
                "tenantd_conditions{name=\"main_database\"} 1",
                "tenantd_brake 0",
                "# EOF",
            ],
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("tenantd_"), "{line}");
        }
    }

    #[test]
    fn the_fleet_is_told_as_read_and_not_at_all_when_unread() {
        let (_, metrics) = metrics();
        metrics.fleet(&fleet());
        let text = metrics.encode();
        has(
            &text,
            &[
                "tenantd_up 1",
                "tenantd_tenants{state=\"ready\",work=\"idle\"} 27",
                "tenantd_tenants{state=\"requested\",work=\"parked\"} 0",
                "tenantd_tenants_by_version{version=\"9\"} 9",
                "tenantd_tenants_by_version{version=\"5\"} 5",
                "tenantd_tenants_by_version{version=\"other\"} 6",
                "tenantd_waiting_oldest_seconds 1.5",
                "tenantd_leased 3",
                "tenantd_spares{standing=\"at_hand\"} 2",
                "tenantd_spares{standing=\"stray\"} 0",
                "tenantd_daemons 2",
                "tenantd_notification_queue_ratio 0.25",
            ],
        );
        assert!(!text.contains("version=\"4\""), "versions are bounded");
        metrics.fleet_unread();
        let text = metrics.encode();
        has(&text, &["tenantd_up 0"]);
        assert!(!text.contains("tenantd_tenants{") && !text.contains("tenantd_leased"), "{text}");
    }

    #[test]
    fn a_reconcile_counts_by_its_outcome() {
        let (_, metrics) = metrics();
        let (age, took) = (Duration::from_millis(20), Duration::from_millis(40));
        let failed = |kind, parked| Outcome::Failed { error: Error::new(kind, "x"), parked };
        for outcome in [
            Outcome::Ready { made: true, migrated: vec![1, 2] },
            Outcome::Ready { made: false, migrated: vec![2] },
            Outcome::Ready { made: false, migrated: vec![] },
            failed(Kind::Migration, false),
            failed(Kind::Conflict, true),
            Outcome::Left(Error::new(Kind::LeaseLost, "x")),
            Outcome::Left(Error::new(Kind::Newer, "x")),
            Outcome::Server(Error::new(Kind::Unreachable, "x")),
        ] {
            metrics.reconciled(&Ended { key: "k".to_owned(), outcome, age, took });
        }
        has(
            &metrics.encode(),
            &[
                "tenantd_provisioned_total 1",
                "tenantd_migrated_total{outcome=\"applied\"} 1",
                "tenantd_migrated_total{outcome=\"failed\"} 1",
                "tenantd_reconciles_total{outcome=\"ready\"} 3",
                "tenantd_reconciles_total{outcome=\"failing\"} 1",
                "tenantd_reconciles_total{outcome=\"parked\"} 1",
                "tenantd_reconciles_total{outcome=\"left\"} 2",
                "tenantd_reconciles_total{outcome=\"server\"} 1",
                "tenantd_lease_lost_total 1",
                "tenantd_reconcile_seconds_count 8",
                "tenantd_ready_seconds_count 1",
                "tenantd_ready_seconds_bucket{le=\"0.05\"} 0",
                "tenantd_ready_seconds_bucket{le=\"0.1\"} 1",
            ],
        );
    }

    #[test]
    fn a_sweep_that_ended_early_is_no_success() {
        let (_, metrics) = metrics();
        let early = Report { ready: 5, made: 1, migrated: 1, busy: 2, unreached: 4, ..Report::default() };
        metrics.swept(&early);
        has(
            &metrics.encode(),
            &[
                "tenantd_sweep_tenants{result=\"made\"} 1",
                "tenantd_sweep_tenants{result=\"unchanged\"} 3",
                "tenantd_sweep_tenants{result=\"busy\"} 2",
                "tenantd_sweep_tenants{result=\"unreached\"} 4",
                "tenantd_sweep_last_success_timestamp_seconds 0.0",
            ],
        );
        metrics.swept(&Report { took: Duration::from_millis(250), ..Report::default() });
        let text = metrics.encode();
        has(&text, &["tenantd_sweep_seconds 0.25", "tenantd_sweep_tenants{result=\"busy\"} 0"]);
        assert!(!text.contains("tenantd_sweep_last_success_timestamp_seconds 0.0"), "{text}");
    }

    #[test]
    fn conditions_are_told_as_they_stand() {
        let (conditions, metrics) = metrics();
        conditions.set(BRAKES, "3 tenants wait");
        has(&metrics.encode(), &["tenantd_conditions{name=\"brakes\"} 0", "tenantd_conditions{name=\"registry\"} 1"]);
        conditions.clear(BRAKES);
        has(&metrics.encode(), &["tenantd_conditions{name=\"brakes\"} 1"]);
    }

    #[test]
    fn the_loops_count() {
        let (_, metrics) = metrics();
        metrics.looked();
        metrics.looked();
        metrics.rung();
        metrics.bell_armed(true);
        metrics.ping_failed();
        metrics.reconnected();
        metrics.braked(true);
        metrics.reloaded(false);
        has(
            &metrics.encode(),
            &[
                "tenantd_looks_total 2",
                "tenantd_rings_total 1",
                "tenantd_bell_armed 1",
                "tenantd_ping_failures_total 1",
                "tenantd_reconnects_total 1",
                "tenantd_brake 1",
                "tenantd_config_last_reload_successful 0",
            ],
        );
    }
}
