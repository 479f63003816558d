//! The lanes of a sweep: each takes the next tenant when free, and does not wait until its last one is recorded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::{Report, Run};
use crate::error::{Error, Kind};
use crate::provision::{Brought, Context, Ended, Outcome, bring, record};
use crate::retry::WAIT;
use crate::tasks::Tasks;

/// So many failures of the server in a row end a sweep: it is not one tenant's database that is refused.
const SERVER_FAILURES: usize = 5;

/// What is done within so long is recorded in one statement: to plan it costs more than the rows do.
const TOGETHER: Duration = Duration::from_millis(150);

/// The most that is recorded in one statement.
const AT_ONCE: usize = 64;

/// What a lane tells.
enum Told {
    /// The work on a tenant came to an end.
    Brought(Brought),
    /// Somebody else works on a tenant.
    Busy,
    /// The next tenant could not be claimed.
    Unclaimed(Error),
}

/// Failures of the server, as far as they decide whether the sweep goes on.
#[derive(Default)]
struct Server {
    failures: usize,
    /// The failure that ended the sweep.
    ended: Option<Error>,
}

impl Server {
    /// Counts a failure; hands it back if the sweep goes on.
    fn fail(&mut self, error: Error, run: &Run) -> Option<Error> {
        self.failures += 1;
        if self.failures >= SERVER_FAILURES || error.kind() == Kind::Unreachable && self.failures > 1 {
            run.stop.cancel();
            self.ended.get_or_insert(error);
            return None;
        }
        Some(error)
    }
}

/// Has all that `feed` gives, about `size` tenants, reconciled, or as much as can be until the sweep is stopped, and counts it. `tell` hears of
/// each end, and how many there were before and with it. Returns their number.
pub(super) async fn run(
    context: &Arc<Context>,
    tasks: &Tasks,
    run: &Run,
    feed: Feed,
    size: usize,
    report: &mut Report,
    tell: &mut impl FnMut(Option<&Ended>, usize),
) -> usize {
    let feed = Arc::new(Mutex::new(feed));
    let (sender, mut told) = mpsc::channel(AT_ONCE);
    for _ in 0..context.config.sweep.parallel.min(size) {
        let lane = lane(Arc::clone(context), Arc::clone(&feed), sender.clone(), run.stop.clone());
        tasks.spawn_until_cancelled("sweep lane", lane);
    }
    drop(sender);
    let (mut through, mut server, mut batch) = (0, Server::default(), Vec::new());
    while told.recv_many(&mut batch, AT_ONCE).await > 0 {
        for (ended, counts) in settle(context, run, &mut told, &mut batch, &mut server).await {
            through += 1;
            tell(ended.as_ref(), through);
            match ended.map(|ended| (ended.key, ended.outcome)) {
                None => report.busy += 1,
                Some((key, Outcome::Server(error))) => {
                    let goes_on = if counts { server.fail(error, run) } else { Some(error) };
                    if let Some(error) = goes_on {
                        report.count(key, Outcome::Server(error));
                    }
                }
                Some((key, outcome)) => {
                    server.failures = 0;
                    report.count(key, outcome);
                }
            }
        }
    }
    let mut feed = feed.lock().await;
    feed.give_back().await;
    report.server = server.ended;
    report.braked += feed.braked;
    report.template = feed.template.take().or(report.template.take());
    // Between two pages the fleet goes on living: what was counted at the start is not what was met.
    let left = size.saturating_sub(through + feed.braked + feed.waiting);
    let unreached = if feed.is_empty() { 0 } else { left };
    report.unreached += unreached;
    report.chosen += through + unreached;
    through
}

/// Records what the lanes brought, all that comes within a moment in one statement. Returns how each tenant ended (`None`: busy), and whether
/// a failure of the server counts: one that several met together counts once.
async fn settle(
    context: &Context,
    run: &Run,
    told: &mut mpsc::Receiver<Told>,
    batch: &mut Vec<Told>,
    server: &mut Server,
) -> Vec<(Option<Ended>, bool)> {
    let to_record = |told: &Told| matches!(told, Told::Brought(Brought::Unrecorded(_)));
    // A failure is told at once: it may be one too many.
    let failed = |told: &Told| matches!(told, Told::Brought(Brought::Ended(_)));
    if batch.iter().any(to_record) {
        let deadline = Instant::now() + TOGETHER;
        // Nothing comes any more when all lanes have ended.
        while batch.len() < AT_ONCE
            && !batch.iter().any(failed)
            && let Ok(Some(more)) = timeout_at(deadline, told.recv()).await
        {
            batch.push(more);
        }
    }
    let (mut settled, mut unrecorded) = (Vec::with_capacity(batch.len()), Vec::new());
    for told in batch.drain(..) {
        match told {
            Told::Busy => settled.push((None, false)),
            Told::Unclaimed(error) => {
                if let Some(error) = server.fail(error, run) {
                    tracing::debug!(error = error.chain(), "the next tenants could not be claimed; tried again");
                }
            }
            Told::Brought(Brought::Ended(ended)) => settled.push((Some(ended), true)),
            Told::Brought(Brought::Unrecorded(tenant)) => unrecorded.push(*tenant),
        }
    }
    let recorded = record(context, unrecorded).await;
    settled.extend(recorded.into_iter().enumerate().map(|(index, ended)| (Some(ended), index == 0)));
    settled
}

/// Takes the next tenant when free, until none is left or the sweep ends.
async fn lane(context: Arc<Context>, feed: Arc<Mutex<Feed>>, tell: mpsc::Sender<Told>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let (next, busy) = {
            let mut feed = feed.lock().await;
            (feed.next().await, std::mem::take(&mut feed.busy))
        };
        for _ in 0..busy {
            if tell.send(Told::Busy).await.is_err() {
                return;
            }
        }
        let told = match next {
            Ok(None) => return,
            Ok(Some(claim)) => Told::Brought(bring(&context, claim).await),
            Err(error) => Told::Unclaimed(error),
        };
        let failed = match &told {
            Told::Brought(Brought::Ended(ended)) => matches!(ended.outcome, Outcome::Server(_)),
            Told::Unclaimed(_) => true,
            Told::Brought(Brought::Unrecorded(_)) | Told::Busy => false,
        };
        if tell.send(told).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(WAIT.delay(1)).await;
        }
    }
}
