//! Whom a rollout reaches: tenants that are behind, and the canaries among them.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::sweep::{BEHIND, Candidate};
use super::{Registry, field};
use crate::error::{Error, Kind, Result};

/// How the canaries of a rollout stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canaries {
    /// They have the set.
    pub migrated: i64,
    /// They failed, with it or before.
    pub failed: i64,
    /// Of these, those that failed for the migration's own sake: not for a lock, or a database that refuses connections.
    pub broken: i64,
    /// They were not tried yet.
    pub left: i64,
}

/// For each canary so many tenants are looked at: to tell the size of one takes the server half a millisecond.
const SAMPLE: usize = 8;

impl Registry {
    /// How many tenants have one of the sets `behind` and could get a newer one now.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn count_behind(&self, behind: &[String]) -> Result<i64> {
        let sql = format!("select count(*) as tenants {BEHIND}");
        let rows =
            self.query(&sql, &[(&behind, Type::TEXT_ARRAY)], || "count tenants that are behind".to_owned()).await?;
        rows.first().map_or(Ok(0), |row| field(row, "tenants"))
    }

    /// The next page of tenants that have one of the sets `behind`, by key: of `keys` alone where these are given.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn behind_after(
        &self,
        behind: &[String],
        keys: Option<&[String]>,
        after: &str,
        most: i64,
    ) -> Result<Vec<Candidate>> {
        let sql = format!(
            "select t.key {BEHIND} and t.key > $2 and ($3::text[] is null or t.key = any ($3)) order by t.key limit $4"
        );
        let parameters: super::Parameters<'_> =
            &[(&behind, Type::TEXT_ARRAY), (&after, Type::TEXT), (&keys, Type::TEXT_ARRAY), (&most, Type::INT8)];
        let rows = self.query(&sql, parameters, || "look for tenants that are behind".to_owned()).await?;
        rows.iter().map(|row| Ok(Candidate { key: field(row, "key")?, making: false })).collect()
    }

    /// The tenants that the rollout of the set `id` changed and that have it still, each with the version that it had before. Those that were made
    /// with the set are not among them.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn changed_by_rollout(&self, id: &str) -> Result<BTreeMap<String, i64>> {
        let sql = "select key, migrated_from from tenantd.tenant where state = 'ready' and migration_set = $1 and migrated_from < version";
        let rows = self.query(sql, &[(&id, Type::TEXT)], || "look whom the rollout changed".to_owned()).await?;
        rows.iter().map(|row| Ok((field(row, "key")?, field(row, "migrated_from")?))).collect()
    }

    /// Chooses `number` canaries of different size, among those that have one of the sets `behind`, and writes them down with the number of
    /// all of these. One that was made since the rollout began proves nothing, being empty. Sizes are looked at in a random sample, a few
    /// times as large as `number`.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when another drives the rollout. The main database cannot be reached.
    pub async fn choose_canaries(&self, id: &str, behind: &[String], number: usize) -> Result<Vec<String>> {
        let sized = format!(
            "with sample as (
                 select t.key, t.name {BEHIND} and t.ready_at <= (select started_at from tenantd.rollout where migration_set = $2)
                 order by random() limit $3
             )
             select sample.key, coalesce(tenantd.bytes(d.oid), 0) as bytes
             from sample left join tenantd.place d on d.name = sample.name order by 2, 1"
        );
        self.see_all(true).await?;
        let most = i64::try_from(SAMPLE.saturating_mul(number)).unwrap_or(i64::MAX);
        let parameters: super::Parameters<'_> = &[(&behind, Type::TEXT_ARRAY), (&id, Type::TEXT), (&most, Type::INT8)];
        let rows = self.query(&sized, parameters, || "choose canaries".to_owned()).await?;
        let sized: Vec<String> = rows.iter().map(|row| field(row, "key")).collect::<Result<_>>()?;
        let canaries = spread(&sized, number);
        let all = self.count_behind(behind).await?;
        self.change_driven(
            id,
            "canaries = $3, behind = $4",
            &[(&canaries, Type::TEXT_ARRAY), (&all, Type::INT8)],
            None,
        )
        .await?;
        Ok(canaries)
    }

    /// How the tenants `canaries` stand to the set `id`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn canaries(&self, id: &str, behind: &[String], canaries: &[String]) -> Result<Canaries> {
        let sql = "select count(*) filter (where migration_set = $1) as migrated,
                          count(*) filter (where migration_set = any ($2) and work in ('failing', 'parked')) as failed,
                          count(*) filter (where migration_set = any ($2) and work in ('failing', 'parked')
                                           and error_kind in ('migration', 'breaks', 'drift')) as broken,
                          count(*) filter (where migration_set = any ($2) and work not in ('failing', 'parked', 'held')) as left
                   from tenantd.tenant where key = any ($3) and state = 'ready'";
        let parameters: super::Parameters<'_> =
            &[(&id, Type::TEXT), (&behind, Type::TEXT_ARRAY), (&canaries, Type::TEXT_ARRAY)];
        let rows = self.query(sql, parameters, || "look how the canaries stand".to_owned()).await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a count came back without a row"))?;
        Ok(Canaries {
            migrated: field(row, "migrated")?,
            failed: field(row, "failed")?,
            broken: field(row, "broken")?,
            left: field(row, "left")?,
        })
    }
}

/// `number` of `sorted`, the first and the last among them, the others evenly between.
fn spread(sorted: &[String], number: usize) -> Vec<String> {
    if number >= sorted.len() {
        return sorted.to_vec();
    }
    let last = sorted.len() - 1;
    let nth = |index: usize| if number == 1 { last / 2 } else { index * last / (number - 1) };
    (0..number).map(|index| sorted[nth(index)].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_of_different_size() {
        let sorted: Vec<String> = (0..10).map(|number: i32| number.to_string()).collect();
        assert_eq!(spread(&sorted, 3), ["0", "4", "9"]);
        assert_eq!(spread(&sorted, 1), ["4"]);
        assert_eq!(spread(&sorted, 0), Vec::<String>::new());
        assert_eq!(spread(&sorted, 10), sorted);
        assert_eq!(spread(&[], 3), Vec::<String>::new());
    }
}
