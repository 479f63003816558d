//! A schema is made together with its migrations.

use std::borrow::{Borrow, Cow};
use std::time::Instant;

use futures_util::future::join;
use tokio_postgres::Client;

use super::failure::{Script, of_ours, of_sql};
use super::{Applied, Begun, Executor, RESET, Ran, send, whole};
use crate::error::Result;
use crate::fail_points::{Point, reach};
use crate::migrations::alone::alone;
use crate::migrations::split::{Statement, split};
use crate::migrations::{Migration, Mode};
use crate::pg::Doing;

/// What the server says to a file that needs one before it committed: a new value of an enum, rows whose triggers are still to fire.
const APART: [&str; 2] = ["55P04", "55006"];

/// A migration, and its SQL for a transaction.
type Together<'a> = (&'a Migration, Cow<'a, str>);

fn in_a_transaction(migration: &Migration) -> Option<Together<'_>> {
    let sql = match migration.mode {
        Mode::Transaction => Cow::Borrowed(migration.sql.as_str()),
        Mode::Statements => Cow::Owned(alone(&migration.sql)?),
    };
    Some((migration, sql))
}

impl Executor<'_> {
    /// Makes the schema by the statements `make`, and applies the whole set to it. `connect_again` as for [`Executor::apply`].
    ///
    /// # Flow
    /// One transaction makes the schema, its history, and applies all up to the first file that must do without one; the rest goes as
    /// [`Executor::apply`] does it. So do all, where one needs what another did to be committed. Nobody else is in the schema: a file that does
    /// without a transaction for its indexes alone is not of those; see [`alone`].
    ///
    /// # Guarantees
    /// What can be applied in one transaction is there whole, or nothing of it is. Else what is there after a failure is marked by `make`, and
    /// [`Executor::apply`] goes on with it.
    ///
    /// # Errors
    /// As for [`Executor::apply`]; what the server says to `make`.
    pub async fn found<C, Connecting>(
        &self,
        client: &mut Client,
        make: &str,
        connect_again: impl Fn() -> Connecting,
    ) -> Result<Applied>
    where
        C: Borrow<Client>,
        Connecting: Future<Output = Result<C>>,
    {
        let together: Vec<_> = self.set.migrations().iter().map_while(in_a_transaction).collect();
        let mut ran = Vec::new();
        let mut outcome = whole(client, self.in_one(client, make, &together, &mut ran).await.map(|()| true)).await;
        if outcome.as_ref().is_err_and(|error| error.code().is_some_and(|code| APART.contains(&code))) {
            ran.clear();
            outcome = whole(client, self.in_one(client, make, &[], &mut ran).await.map(|()| true)).await;
        }
        outcome?;
        if ran.len() == self.set.migrations().len() {
            return Ok(Applied { version: self.set.newest_version(), ran });
        }
        let rest = self.apply(client, connect_again).await?;
        ran.extend(rest.ran);
        Ok(Applied { ran, ..rest })
    }

    async fn in_one(&self, client: &Client, make: &str, files: &[Together<'_>], ran: &mut Vec<Ran>) -> Result<()> {
        let Begun { extensions, .. } = self.begin_with_lock(client, make, false).await?;
        let create = self.history.create(&self.protect_from);
        let created = client.batch_execute(&create).await;
        created.doing(|| format!("make the history {}", self.history.name())).map_err(of_ours)?;
        reach(Point::MigrationBegun).await;
        for (migration, sql) in files {
            let started = Instant::now();
            let script = Script { file: &migration.file, sql };
            // Each file finds the session as if it were alone, and a savepoint that tells that the transaction is still ours.
            let after = format!(
                "{after} {RESET} {timeouts} {enter} {} savepoint tenantd_migration;",
                self.write_down(migration),
                after = self.after_file(),
                timeouts = self.timeouts("set local"),
                enter = self.enter("set local"),
            );
            let (file, after) = join(send(client, script.sql), client.batch_execute(&after)).await;
            if let Err((error, done)) = file {
                let failed = split(script.sql).get(done).map(|statement| statement.offset);
                return Err(of_sql(script, &error, Statement { offset: 0, text: script.sql }, failed));
            }
            after.map_err(|error| Self::at_the_end(script, &error))?;
            ran.push(Ran::of(migration, started));
        }
        let finish = format!("{} {} commit; {RESET}", self.after_file(), self.guard(&extensions));
        let finished = client.batch_execute(&finish).await;
        match (finished, files.last()) {
            (Err(error), Some((last, _))) => Err(Self::at_the_end(Script::from(*last), &error)),
            (finished, _) => finished.doing(|| "make the schema".to_owned()).map_err(of_ours),
        }
    }
}
