//! What those who make tenants and the one who makes spares tell each other within one process, and the room that the brakes leave.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// The supply of spares as one process knows it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Supply(Arc<Told>);

#[derive(Debug)]
struct Told {
    /// Whether a template serves.
    served: AtomicBool,
    /// Signups that were taken up.
    signups: AtomicU64,
    /// When the last was.
    last_signup: Mutex<Option<Instant>>,
    /// The room for more tenants, as last counted.
    room: Mutex<Option<Counted>>,
    /// Held by whoever in this process acts as the keeper: to the registry they are one.
    keeping: Semaphore,
    /// Rung for the keeper: spares were taken, or a template is missing.
    wanted: Notify,
    /// Rung for the intake: there is a spare, or a template, that was not there before.
    made: Notify,
}

impl Default for Told {
    fn default() -> Self {
        Told {
            served: AtomicBool::default(),
            signups: AtomicU64::default(),
            last_signup: Mutex::default(),
            room: Mutex::default(),
            keeping: Semaphore::new(1),
            wanted: Notify::default(),
            made: Notify::default(),
        }
    }
}

/// A count of tenants, and what happened since.
#[derive(Debug, Clone, Copy)]
struct Counted {
    room: i64,
    at: Instant,
    /// Claimed to be made since then.
    taken: i64,
}

/// What is known of the room for more tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLeft {
    /// So many may still be made.
    pub tenants: i64,
    /// Whether that is so little that other daemons' tenants matter.
    pub near: bool,
    /// Whether something was made since the count, which is more than a moment ago.
    pub stale: bool,
}

/// The count is good for so long where it is near the end.
const MOMENT: Duration = Duration::from_secs(1);

/// The count is good for so long where it is far from the end: others make no more than [`NEAR`] meanwhile.
const WHILE: Duration = Duration::from_secs(10);

/// With less room than this, each tenant is counted exactly before it is made.
const NEAR: i64 = 500;

impl Supply {
    /// The room that was counted a moment ago. `None`: it is to be counted anew.
    #[must_use]
    pub fn room(&self) -> Option<RoomLeft> {
        let counted = (*self.0.room.lock().unwrap_or_else(PoisonError::into_inner))?;
        let (tenants, age) = (counted.room - counted.taken, counted.at.elapsed());
        let near = tenants <= NEAR;
        let stale = counted.taken > 0 && age > MOMENT;
        let old = if near { stale || tenants <= 0 && age > MOMENT } else { counted.taken > 0 && age > WHILE };
        (!old).then_some(RoomLeft { tenants, near, stale })
    }

    /// The room was counted.
    pub fn counted(&self, room: i64) -> RoomLeft {
        let counted = Counted { room, at: Instant::now(), taken: 0 };
        *self.0.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(counted);
        RoomLeft { tenants: room, near: room <= NEAR, stale: false }
    }

    fn take_room(&self, tenants: usize) {
        if let Some(counted) = self.0.room.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            counted.taken += i64::try_from(tenants).unwrap_or(i64::MAX);
        }
    }

    /// Signups were taken up: spares may be gone, and there is less room.
    pub fn signed_up(&self, signups: usize) {
        if signups > 0 {
            self.take_room(signups);
            self.0.signups.fetch_add(u64::try_from(signups).unwrap_or(u64::MAX), Ordering::Relaxed);
            *self.0.last_signup.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.want();
        }
    }

    /// How many signups this process has taken up.
    #[must_use]
    pub fn signups(&self) -> u64 {
        self.0.signups.load(Ordering::Relaxed)
    }

    /// The time since the last signup was taken up; `None` before the first.
    #[must_use]
    pub fn quiet_for(&self) -> Option<Duration> {
        self.0.last_signup.lock().unwrap_or_else(PoisonError::into_inner).map(|last| last.elapsed())
    }

    /// Returns when nobody else in this process acts as the keeper; until the permit is dropped nobody does.
    pub async fn keeping(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.0.keeping.acquire().await.ok()
    }

    /// Something is wanted of the keeper.
    pub fn want(&self) {
        self.0.wanted.notify_one();
    }

    /// Returns when something is wanted of the keeper.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Whether a template serves, so that databases can be made on demand.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.0.served.load(Ordering::Relaxed)
    }

    /// A template serves now, or none does.
    pub fn serve(&self, served: bool) {
        if self.0.served.swap(served, Ordering::Relaxed) != served && served {
            self.0.made.notify_one();
        }
    }

    /// A spare is at hand that was not there before.
    pub fn add(&self) {
        self.0.made.notify_one();
    }

    /// Returns when something was made that the intake may have waited for.
    pub async fn made(&self) {
        self.0.made.notified().await;
    }
}
