//! Waiting for something to become true.

use std::time::{Duration, Instant};

/// Time between two looks.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// Returns as soon as `condition` holds; looks every 10 ms.
///
/// # Panics
/// When `deadline` has passed; the message names `what`.
pub async fn until(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// [`until`] for code that is not async.
///
/// # Panics
/// When `deadline` has passed; the message names `what`.
pub fn until_blocking(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(INTERVAL);
    }
}
