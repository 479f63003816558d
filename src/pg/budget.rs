//! How many connections this process has at the most: a seat is taken before each is made, and given back when it is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Bounds;
use crate::error::{Error, Kind, Result};

/// The seats there are. Those of the main database and those of the tenants are apart, so that neither can use the other up.
pub(super) struct Budget {
    bounds: Bounds,
    main: Arc<Semaphore>,
    tenants: Arc<Semaphore>,
    /// One less than `tenants`: who is in a tenant already always finds that one for a second connection, in the end, and so nobody waits
    /// for ever while all the others do.
    first: Arc<Semaphore>,
}

/// A connection's seat; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(bounds: Bounds) -> Self {
        let seats = |number: usize| Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)));
        Budget {
            bounds,
            main: seats(bounds.main),
            tenants: seats(bounds.tenants),
            first: seats(bounds.tenants.saturating_sub(1)),
        }
    }

    /// A seat on the main database, within `patience`.
    ///
    /// # Errors
    /// [`Kind::TooManyConnections`]: none became free.
    pub(super) async fn main(&self, patience: Duration) -> Result<Seat> {
        match tokio::time::timeout(patience, take(&self.main)).await {
            Ok(permit) => Ok(Seat { _permits: vec![permit] }),
            Err(_) => Err(Error::new(
                Kind::TooManyConnections,
                format!("all {} connections to the main database were in use for {patience:?}", self.bounds.main),
            )
            .hint("work.connections bounds them; a statement on the main database may hang")),
        }
    }

    /// A seat in a tenant, however long that takes. `again`: for who has one already.
    pub(super) async fn tenant(&self, again: bool) -> Seat {
        let mut permits = Vec::with_capacity(2);
        if !again {
            permits.push(take(&self.first).await);
        }
        permits.push(take(&self.tenants).await);
        Seat { _permits: permits }
    }
}

async fn take(seats: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(seats).acquire_owned().await.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_connection_is_had_in_the_end_and_a_first_one_waits() {
        let budget = Budget::new(Bounds { main: 1, pool: 1, tenants: 3 });
        let soon = Duration::from_secs(1);
        let one = budget.tenant(false).await;
        let _two = budget.tenant(false).await;
        assert!(tokio::time::timeout(soon, budget.tenant(false)).await.is_err(), "the third is for second connections");
        let again = budget.tenant(true).await;
        assert!(tokio::time::timeout(soon, budget.tenant(true)).await.is_err(), "three in all");
        drop(again);
        drop(budget.tenant(true).await);
        drop(one);
        drop(budget.tenant(false).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_main_databases_seats_are_apart_and_not_waited_for_without_end() {
        let budget = Budget::new(Bounds { main: 1, pool: 1, tenants: 2 });
        let _tenants = (budget.tenant(false).await, budget.tenant(true).await);
        let seat = budget.main(Duration::from_secs(1)).await.unwrap();
        let error = budget.main(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TooManyConnections);
        drop(seat);
        budget.main(Duration::from_secs(1)).await.unwrap();
    }
}
