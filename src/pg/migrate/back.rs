//! Takes applied migrations back, by their down files.

use std::borrow::Borrow;
use std::time::Instant;

use tokio_postgres::Client;

use super::statements::Run;
use super::{AppliedRow, Begun, Executor, RESET, Ran, whole};
use crate::error::Result;
use crate::fail_points::{Point, reach};
use crate::migrations::back::back;
use crate::migrations::compare::Recorded;
use crate::migrations::{Down, Migration, Mode};

impl Executor<'_> {
    /// Takes back what is newer than `to`, the newest first. Returns what this call took back, in that order. `connect_again` as for
    /// [`Executor::apply`].
    ///
    /// # Flow
    /// One transaction for each holds the lock of the schema, another look at what is applied, the down file and the end of the history
    /// row. A down file without a transaction runs statement by statement on a connection of its own, closed on every exit.
    ///
    /// # Guarantees
    /// Nothing is touched unless all can be taken back. One that fails leaves its migration as it was, those before it are taken back; one
    /// without a transaction goes on at the next call where it stood, and until then nothing is applied to the schema.
    ///
    /// # Errors
    /// [`Kind::Drift`](crate::error::Kind::Drift) and [`Kind::Usage`](crate::error::Kind::Usage), see [`back`], before anything is touched;
    /// the rest as for [`Executor::apply`].
    pub async fn roll_back<C, Connecting>(
        &self,
        client: &mut Client,
        to: i64,
        connect_again: impl Fn() -> Connecting,
    ) -> Result<Vec<Ran>>
    where
        C: Borrow<Client>,
        Connecting: Future<Output = Result<C>>,
    {
        let mut ran = Vec::new();
        loop {
            let rows = self.history.read(client).await?;
            let Some((next, down)) = self.next_back(&rows, to)? else { return Ok(ran) };
            let done = match down.mode {
                Mode::Transaction => self.back_in_transaction(client, next, down, to).await?,
                Mode::Statements => {
                    let own = connect_again().await?;
                    self.by_statement(own.borrow(), Run::back(next, down, to)).await?
                }
            };
            if let Some(done) = done {
                reach(Point::Undone).await;
                ran.push(done);
            }
        }
    }

    /// What is taken back first.
    pub(super) fn next_back(&self, rows: &[AppliedRow], to: i64) -> Result<Option<(&Migration, &Down)>> {
        let recorded: Vec<Recorded> = rows.iter().map(AppliedRow::recorded).collect();
        Ok(back(self.set, &recorded, to)?.into_iter().next())
    }

    /// `None`: what is to be taken back first has changed meanwhile.
    async fn back_in_transaction(
        &self,
        client: &Client,
        next: &Migration,
        down: &Down,
        to: i64,
    ) -> Result<Option<Ran>> {
        let started = Instant::now();
        let committed = async {
            let Begun { rows, extensions } = self.begin_with_lock(client, "", true).await?;
            if self.next_back(&rows, to)?.is_none_or(|(first, _)| first.version != next.version) {
                return Ok(false);
            }
            self.send_and_commit(client, down.into(), &self.forget(next, &extensions)).await.map(|()| true)
        };
        let done = whole(client, committed.await).await?;
        Ok(done.then(|| Ran::of(next, started)))
    }

    /// Takes the history row away and commits, if this is still the transaction that we began.
    fn forget(&self, migration: &Migration, extensions: &str) -> String {
        format!(
            "{after} {guard} {enter} delete from {history} where version = {version}; commit; {RESET}",
            after = self.after_file(),
            guard = self.guard(extensions),
            enter = self.enter("set local"),
            history = self.history.name(),
            version = migration.version,
        )
    }
}
