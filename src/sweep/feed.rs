//! What the lanes of a sweep take from: the tenants that need a look, read page by page and claimed a few at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{PAGE_OF_LANE, in_time};
use crate::error::{Error, Kind, Result};
use crate::provision::{Context, template};
use crate::registry::claim::Claim;
use crate::registry::sweep::{Candidate, Cut, Expected, Start};

/// Tenants that are claimed in one statement are given out within about so long: to plan it costs more than the rows do, and leases are not to
/// grow old in the queue.
const GIVEN_OUT_WITHIN: Duration = Duration::from_millis(200);

/// The most that is claimed in one statement, for each lane.
const AHEAD: usize = 4;

/// Where the pages come from.
pub(super) enum Pages {
    /// Whatever needs a look.
    Needing(Expected, Cut),
    /// Tenants that are up in a rollout: of these sets, and of these keys alone where they are given.
    Behind(Vec<String>, Option<Vec<String>>),
    /// Tenants that a person named.
    Named,
}

/// The tenants of one sweep. Lanes share it and take turns.
pub(super) struct Feed {
    context: Arc<Context>,
    pages: Pages,
    /// How many candidates a page has at the most.
    page: usize,
    /// How many more tenants may be given out; `None`: all.
    left: Option<usize>,
    /// The last key of the page that was read last; `None`: no page comes after it.
    after: Option<String>,
    /// Those of the page that are still to be claimed.
    keys: VecDeque<String>,
    /// Claimed, and waiting for a lane.
    claims: VecDeque<Claim>,
    /// How many are claimed in the next statement, and when the last ones were.
    at_once: usize,
    claimed_at: Option<Instant>,
    /// How many more tenants the brakes let be made; `None`: not asked yet.
    room: Option<i64>,
    /// Tenants that the brakes hold back.
    pub(super) braked: usize,
    /// Tenants that wait for a template.
    pub(super) waiting: usize,
    /// Why the template of the newest migrations could not be had, if so; the last good one may serve.
    pub(super) template: Option<Error>,
    /// Tenants that turned out to be in somebody else's hands, since this was last taken.
    pub(super) busy: usize,
}

impl Feed {
    /// All that needs a look, with the first page.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub(super) async fn new(context: Arc<Context>, expected: Expected, start: Start) -> Result<Feed> {
        let mut feed = Feed::empty(context, Pages::Needing(expected, start.cut));
        feed.put(start.candidates).await?;
        Ok(feed)
    }

    /// Tenants that have one of the sets `behind`, of `keys` alone where they are given, and not more than `most`.
    pub(super) fn of_rollout(
        context: Arc<Context>,
        behind: Vec<String>,
        keys: Option<Vec<String>>,
        most: Option<usize>,
    ) -> Feed {
        let feed = Feed::empty(context, Pages::Behind(behind, keys));
        Feed { after: Some(String::new()), left: most, ..feed }
    }

    /// Tenants that a person named, up for the newest set whatever a rollout says.
    pub(super) fn named(context: Arc<Context>, keys: Vec<String>) -> Feed {
        Feed { keys: keys.into(), ..Feed::empty(context, Pages::Named) }
    }

    fn empty(context: Arc<Context>, pages: Pages) -> Feed {
        Feed {
            page: PAGE_OF_LANE * context.config.sweep.parallel,
            at_once: context.config.sweep.parallel,
            claimed_at: None,
            context,
            pages,
            left: None,
            after: None,
            keys: VecDeque::new(),
            claims: VecDeque::new(),
            room: None,
            braked: 0,
            waiting: 0,
            template: None,
            busy: 0,
        }
    }

    /// The next tenant, claimed; `None` when all have been given out.
    ///
    /// As many are claimed at once as there are lanes, or a few times that while lanes are quick, so that leases do not run out in the queue.
    ///
    /// # Errors
    /// The main database cannot be reached. Nothing is lost: the next call tries the same again.
    pub(super) async fn next(&mut self) -> Result<Option<Claim>> {
        loop {
            if let Some(claim) = self.claims.pop_front() {
                if let Some(claim) = self.refresh(claim).await? {
                    return Ok(Some(claim));
                }
            } else if self.left == Some(0) {
                return Ok(None);
            } else if !self.keys.is_empty() {
                let most = self.claimed_together().min(self.keys.len()).min(self.left.unwrap_or(usize::MAX));
                let keys: Vec<String> = self.keys.iter().take(most).cloned().collect();
                let claims = self.context.registry.claim_keys(&keys, self.context.config.work.lease).await?;
                self.claimed_at = Some(Instant::now());
                self.keys.drain(..most);
                self.busy += most - claims.len();
                self.left = self.left.map(|left| left - most);
                let advance = matches!(self.pages, Pages::Behind(..) | Pages::Named);
                self.claims.extend(claims.into_iter().map(|claim| Claim { advance, ..claim }));
            } else if let Some(after) = self.after.clone() {
                let page = self.next_page(&after).await?;
                self.put(page).await?;
            } else {
                return Ok(None);
            }
        }
    }

    /// How many are claimed now: twice as many as the last time while those were gone soon.
    fn claimed_together(&mut self) -> usize {
        let lanes = self.context.config.sweep.parallel;
        let soon = self.claimed_at.is_some_and(|at| at.elapsed() < GIVEN_OUT_WITHIN / 2);
        self.at_once = if soon { (2 * self.at_once).min(AHEAD * lanes) } else { (self.at_once / 2).max(lanes) };
        self.at_once
    }

    async fn next_page(&self, after: &str) -> Result<Vec<Candidate>> {
        let registry = &self.context.registry;
        match &self.pages {
            Pages::Needing(expected, cut) => in_time(registry.candidates_after(after, cut, expected)).await,
            Pages::Behind(behind, keys) => {
                let most = i64::try_from(self.page).unwrap_or(i64::MAX);
                in_time(registry.behind_after(behind, keys.as_deref(), after, most)).await
            }
            Pages::Named => Ok(Vec::new()),
        }
    }

    /// Whether every tenant has been given out.
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && (self.left == Some(0) || self.keys.is_empty() && self.after.is_none())
    }

    /// Gives back what was claimed and not taken.
    pub(super) async fn give_back(&mut self) {
        if self.claims.is_empty() {
            return;
        }
        let registry = &self.context.registry;
        for claim in self.claims.drain(..) {
            registry.put_down(&claim);
        }
        registry.owe();
        if let Err(error) = registry.release_owed().await {
            tracing::debug!(error = error.chain(), "leases of a sweep that ended early were not given back yet");
        }
    }

    /// A claim that waited behind long migrations gets its lease renewed, and is looked at again. `None` when the lease was lost: the tenant
    /// is to be claimed anew.
    async fn refresh(&mut self, mut claim: Claim) -> Result<Option<Claim>> {
        let registry = &self.context.registry;
        if claim.until > Instant::now() + claim.lease * 2 / 3 {
            return Ok(Some(claim));
        }
        match registry.renew(&claim).await {
            Ok(until) => {
                (claim.until, claim.seen) = (until, None);
                Ok(Some(claim))
            }
            Err(error) if error.kind() == Kind::LeaseLost => {
                registry.put_down(&claim);
                self.keys.push_front(claim.key);
                Ok(None)
            }
            Err(error) => {
                self.claims.push_front(claim);
                Err(error)
            }
        }
    }

    /// Takes a page, without the tenants that cannot be made now.
    async fn put(&mut self, page: Vec<Candidate>) -> Result<()> {
        if self.room.is_none() && page.iter().any(|candidate| candidate.making) {
            self.prepare_to_make().await?;
        }
        let full = page.len() == self.page;
        self.after = page.last().filter(|_| full).map(|candidate| candidate.key.clone());
        let makes = self.template.is_none() || self.context.supply.is_served();
        for Candidate { key, making } in page {
            if making && !makes {
                self.waiting += 1;
            } else if making && !self.take_room() {
                self.braked += 1;
            } else {
                self.keys.push_back(key);
            }
        }
        Ok(())
    }

    /// Takes room for one more tenant; false where the brakes leave none.
    fn take_room(&mut self) -> bool {
        let room = self.room.get_or_insert(0);
        *room -= 1;
        *room >= 0
    }

    /// Sees to it that there is a template, and asks how many tenants may be made. Without any template they wait.
    async fn prepare_to_make(&mut self) -> Result<()> {
        match template::ensure(&self.context).await {
            Ok(()) => {}
            Err(error) if error.kind().is_out_of_reach() => return Err(error),
            Err(error) => self.template = Some(error),
        }
        self.room = Some(self.context.room(self.context.registry.room().await?));
        Ok(())
    }
}
