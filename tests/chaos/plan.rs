//! Which faults come when. Drawn from a seed and nothing else, so that the same seed brings the same faults again.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::support::proxy::Mode;
use crate::support::server::Stop;

/// So many daemons. The first one's connections go through the proxy.
pub const DAEMONS: usize = 3;

/// What goes wrong, or is done to the fleet, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A daemon is killed.
    Kill(usize),
    /// A daemon is asked to end.
    Stop(usize),
    /// It is started again.
    Start(usize),
    /// A daemon stands still, for longer than its leases.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// The server is stopped so, and started.
    Restart(Stop),
    /// So many of ten connections of tenantd's are ended.
    Terminate(u32),
    /// The network of the first daemon.
    Network(Mode),
    /// The signup table is locked for so long.
    LockSignups(Duration),
    /// The registry is.
    LockRegistry(Duration),
    /// A table of so many tenants is.
    LockTenants(usize, Duration),
    /// So many notifications that nobody should believe.
    Forge(usize),
    /// A new migration, which this many tenants cannot bear.
    Migrate(usize),
    /// A new migration without a transaction.
    MigrateByStatement,
    /// What those tenants cannot bear is mended.
    Mend,
}

/// A fault and when it comes, counted from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3}  {:?}", self.at.as_secs_f64(), self.fault)
    }
}

/// One card of the deck that faults are drawn from: shuffled, and drawn to its end, so that a short run has some of each, too.
const DECK: [Fault; 17] = [
    Fault::Kill(0),
    Fault::Kill(0),
    Fault::Kill(0),
    Fault::Stop(0),
    Fault::Freeze(0),
    Fault::Restart(Stop::Fast),
    Fault::Restart(Stop::Immediate),
    Fault::Terminate(0),
    Fault::Terminate(0),
    Fault::Network(Mode::Hold),
    Fault::Network(Mode::Cut),
    Fault::LockSignups(Duration::ZERO),
    Fault::LockRegistry(Duration::ZERO),
    Fault::LockTenants(0, Duration::ZERO),
    Fault::Forge(0),
    Fault::Migrate(0),
    Fault::MigrateByStatement,
];

/// The faults of a run of `length` from `seed`, in order of time. Whatever begins ends within it.
#[must_use]
pub fn plan(seed: u64, length: Duration) -> Vec<Planned> {
    let mut random = Rng::with_seed(seed);
    let (mut faults, mut deck) = (Vec::new(), Vec::new());
    // Until when a daemon is not there, or stands still; and the network.
    let (mut away, mut bad_network) = ([Duration::ZERO; DAEMONS], Duration::ZERO);
    let mut at = Duration::from_secs(2);
    while at < length {
        if deck.is_empty() {
            deck.extend(DECK);
            random.shuffle(&mut deck);
        }
        let mut add = |at: Duration, fault| faults.push(Planned { at: at.min(length), fault });
        let mut last = |least: u64, most: u64| at + Duration::from_millis(random.u64(least..=most));
        match deck.pop().expect("filled above") {
            card @ (Fault::Kill(_) | Fault::Stop(_) | Fault::Freeze(_)) => {
                let until = match card {
                    Fault::Freeze(_) => last(4000, 7000),
                    _ => last(0, 3000),
                };
                let daemon = random.usize(0..DAEMONS);
                if away[daemon] < at {
                    let (begin, end) = match card {
                        Fault::Kill(_) => (Fault::Kill(daemon), Fault::Start(daemon)),
                        Fault::Stop(_) => (Fault::Stop(daemon), Fault::Start(daemon)),
                        _ => (Fault::Freeze(daemon), Fault::Thaw(daemon)),
                    };
                    add(at, begin);
                    add(until, end);
                    away[daemon] = until;
                }
            }
            Fault::Network(mode) => {
                let until = last(1000, 6000);
                if bad_network < at {
                    add(at, Fault::Network(mode));
                    add(until, Fault::Network(Mode::Pass));
                    bad_network = until;
                }
            }
            Fault::Migrate(_) => {
                add(at, Fault::Migrate(random.usize(0..=6)));
                add(at + Duration::from_millis(random.u64(3000..=8000)), Fault::Mend);
            }
            Fault::Terminate(_) => add(at, Fault::Terminate(random.u32(3..=10))),
            Fault::LockSignups(_) => add(at, Fault::LockSignups(Duration::from_millis(random.u64(100..=1500)))),
            Fault::LockRegistry(_) => add(at, Fault::LockRegistry(Duration::from_millis(random.u64(100..=2500)))),
            Fault::LockTenants(..) => {
                let time = Duration::from_millis(random.u64(500..=4000));
                add(at, Fault::LockTenants(random.usize(1..=8), time));
            }
            Fault::Forge(_) => add(at, Fault::Forge(random.usize(1..=300))),
            card => add(at, card),
        }
        at += Duration::from_millis(random.u64(300..=2200));
    }
    faults.sort_by_key(|planned| planned.at);
    faults
}

/// What a plan must be, looked at before each run: the same again from the same seed, and with all ended that was begun.
pub fn check(seed: u64, length: Duration) {
    let faults = plan(seed, length);
    assert_eq!(faults, plan(seed, length), "the same seed brings the same faults");
    let count = |wanted: fn(&Fault) -> bool| faults.iter().filter(|planned| wanted(&planned.fault)).count();
    let ended = count(|fault| matches!(fault, Fault::Kill(_) | Fault::Stop(_)));
    assert_eq!(ended, count(|fault| matches!(fault, Fault::Start(_))));
    assert_eq!(count(|fault| matches!(fault, Fault::Freeze(_))), count(|fault| matches!(fault, Fault::Thaw(_))));
}
