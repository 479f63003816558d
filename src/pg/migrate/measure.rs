//! What a migration does to tables that are there: run in a transaction that is rolled back, looking after each statement which locks it holds and
//! which tables have another file.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Executor, RESET, of_ours};
use crate::error::Result;
use crate::migrations::Migration;
use crate::migrations::split::split;
use crate::pg::Doing;

/// What a statement did to a table that was there before the migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Where the statement begins in the migration's text, in bytes.
    pub offset: usize,
    /// The table, as SQL names it.
    pub table: String,
    /// How.
    pub how: How,
}

/// How a statement touches a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It wrote the whole table anew.
    Rewritten,
    /// It keeps others out until the end of the transaction.
    Held,
}

const TABLES: &str = "
select c.oid, pg_catalog.pg_relation_filenode(c.oid), c.oid::pg_catalog.regclass from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'm') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relname <> 'tenantd_migration'";

const HELD: &str = "
select distinct l.relation, pg_catalog.pg_relation_filenode(l.relation) from pg_catalog.pg_locks l
where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and l.granted
  and l.mode in ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock')";

/// Runs `migration`, which is one in a transaction, as `executor` would, and rolls it back. What it did to each table that was there, statement by
/// statement; up to the first that fails.
///
/// # Errors
/// The database cannot be looked at.
pub async fn measure(client: &Client, migration: &Migration, executor: &Executor<'_>) -> Result<Vec<Touched>> {
    let measured = run(client, migration, executor).await;
    let ended = client.batch_execute(&format!("rollback; {RESET}")).await;
    let measured = measured?;
    ended.doing(|| "roll a trial back".to_owned()).map(|()| measured)
}

async fn run(client: &Client, migration: &Migration, executor: &Executor<'_>) -> Result<Vec<Touched>> {
    client
        .batch_execute(&format!("begin; {}", executor.enter("set local")))
        .await
        .doing(|| "begin a trial".to_owned())?;
    let mut files: BTreeMap<String, (String, Option<String>)> =
        rows(client, TABLES).await?.into_iter().map(|[oid, file, table]| (oid, (table, Some(file)))).collect();
    let (mut touched, mut known) = (Vec::new(), BTreeSet::new());
    for statement in split(&migration.sql) {
        if client.batch_execute(statement.text).await.is_err() {
            break;
        }
        let empties = statement.words().next().is_some_and(|word| word == "truncate");
        for [oid, file] in rows(client, HELD).await? {
            let Some((table, before)) = files.get_mut(&oid) else { continue };
            let now = Some(file).filter(|file| !file.is_empty());
            let rewritten = now.is_some() && *before != now;
            *before = now;
            let mut tell = |how| touched.push(Touched { offset: statement.offset, table: table.clone(), how });
            let first = known.insert(oid);
            if rewritten && !empties {
                tell(How::Rewritten);
            } else if first {
                tell(How::Held);
            }
        }
    }
    Ok(touched)
}

/// Rows of so many columns; null is an empty text.
async fn rows<const COLUMNS: usize>(client: &Client, sql: &str) -> Result<Vec<[String; COLUMNS]>> {
    let answers = client.simple_query(sql).await.doing(|| "look at a trial".to_owned()).map_err(of_ours)?;
    let row = |answer: &SimpleQueryMessage| match answer {
        SimpleQueryMessage::Row(row) => {
            Some(std::array::from_fn(|column| row.get(column).unwrap_or_default().to_owned()))
        }
        _ => None,
    };
    Ok(answers.iter().filter_map(row).collect())
}
