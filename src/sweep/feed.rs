//! What the lanes of a sweep take from: the tenants that need a look, read page by page and claimed a few at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::in_time;
use crate::error::{Kind, Result};
use crate::provision::Context;
use crate::registry::claim::Claim;
use crate::registry::sweep::{Candidate, Cut, Expected, Start};

/// The tenants of one sweep. Lanes share it and take turns.
pub(super) struct Feed {
    context: Arc<Context>,
    expected: Expected,
    cut: Cut,
    /// The last key of the page that was read last; `None`: no page comes after it.
    after: Option<String>,
    /// Those of the page that are still to be claimed.
    keys: VecDeque<String>,
    /// Claimed, and waiting for a lane.
    claims: VecDeque<Claim>,
    /// How many more tenants the brakes let be made; `None`: not asked yet.
    room: Option<i64>,
    /// Tenants that the brakes hold back.
    pub(super) braked: usize,
    /// Tenants that turned out to be in somebody else's hands, since this was last taken.
    pub(super) busy: usize,
}

impl Feed {
    /// With the first page.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub(super) async fn new(context: Arc<Context>, expected: Expected, start: Start) -> Result<Feed> {
        let mut feed = Feed {
            context,
            expected,
            cut: start.cut,
            after: None,
            keys: VecDeque::new(),
            claims: VecDeque::new(),
            room: None,
            braked: 0,
            busy: 0,
        };
        feed.put(start.candidates).await?;
        Ok(feed)
    }

    /// The next tenant, claimed; `None` when all have been given out.
    ///
    /// As many are claimed at once as there are lanes, and no sooner than they are needed, so that leases do not run out in the queue.
    ///
    /// # Errors
    /// The main database cannot be reached. Nothing is lost: the next call tries the same again.
    pub(super) async fn next(&mut self) -> Result<Option<Claim>> {
        loop {
            if let Some(claim) = self.claims.pop_front() {
                if let Some(claim) = self.refresh(claim).await? {
                    return Ok(Some(claim));
                }
            } else if !self.keys.is_empty() {
                let lanes = self.context.config.sweep.parallel.min(self.keys.len());
                let keys: Vec<String> = self.keys.iter().take(lanes).cloned().collect();
                let claims = self.context.registry.claim_keys(&keys, self.context.config.work.lease).await?;
                self.keys.drain(..lanes);
                self.busy += lanes - claims.len();
                self.claims.extend(claims);
            } else if let Some(after) = self.after.clone() {
                let page = self.context.registry.candidates_after(&after, &self.cut, &self.expected);
                self.put(in_time(page).await?).await?;
            } else {
                return Ok(None);
            }
        }
    }

    /// Whether every tenant has been given out.
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.keys.is_empty() && self.after.is_none()
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

    /// Takes a page, without the tenants that may not be made now.
    async fn put(&mut self, page: Vec<Candidate>) -> Result<()> {
        if self.room.is_none() && page.iter().any(|candidate| candidate.making) {
            self.room = Some(self.context.room(self.context.registry.room().await?));
        }
        let full = page.len() == self.expected.page;
        self.after = page.last().filter(|_| full).map(|candidate| candidate.key.clone());
        for Candidate { key, making } in page {
            let room = self.room.get_or_insert(0);
            *room -= i64::from(making);
            if making && *room < 0 {
                self.braked += 1;
            } else {
                self.keys.push_back(key);
            }
        }
        Ok(())
    }
}
