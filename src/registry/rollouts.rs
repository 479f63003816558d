//! Rollouts in the registry: how a migration set goes through the fleet, so that any process goes on where another stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::events::What;
use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::migrations::MigrationSet;
use crate::tenant::words;

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutState {
    /// Sweeps go on with it.
    Running,
    /// It waits for a person, or for a canary to succeed.
    Paused,
    /// A person gave it up: tenants that do not have the set do not get it.
    Aborted,
    /// Every tenant was reached.
    Done,
    /// Other migrations came after these and have passed their canaries: tenants get those.
    Overtaken,
}

words!(RolloutState {
    Running => "running",
    Paused => "paused",
    Aborted => "aborted",
    Done => "done",
    Overtaken => "overtaken",
});

/// How a migration set goes through the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The set's id.
    pub migration_set: String,
    /// Its newest version.
    pub version: i64,
    /// How it stands.
    pub state: RolloutState,
    /// Why it is paused.
    pub why: Option<String>,
    /// Whether it is paused since every canary failed, and goes on by itself when one of them succeeds.
    pub by_canaries: bool,
    /// The keys of the tenants that get it first; `None`: not chosen yet.
    pub canaries: Option<Vec<String>>,
    /// How many tenants were behind when they were chosen.
    pub behind: i64,
    /// Whether new tenants get the set.
    pub passed: bool,
    /// What one canary took on average, and the longest.
    pub took: Option<(Duration, Duration)>,
    /// Who drives it.
    pub driver: Option<String>,
    /// When it began, and for whom.
    pub started_at: Timestamp,
    /// The user and the machine of whoever began it.
    pub started_by: String,
}

impl Rollout {
    /// Whether every tenant that lacks the set may get it by the way, without any rollout's order.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.passed && self.state == RolloutState::Done
    }

    /// Whether new tenants get the set: its canaries have passed.
    #[must_use]
    pub fn is_for_new(&self) -> bool {
        self.passed && self.state != RolloutState::Aborted
    }
}

const COLUMNS: &str = "migration_set, version, state, why, by_canaries, canaries, coalesce(behind, 0) as behind, passed_at is not null as passed,
    seconds, longest, case when leased_until > now() then leased_by end as driver, started_at, started_by";

impl Registry {
    /// The rollout of `set`. One is begun where tenants have a set that is `behind` it and none was begun yet; `None`: nobody needs one.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn rollout_of(&self, set: &MigrationSet, behind: &BTreeMap<String, Vec<i64>>) -> Result<Option<Rollout>> {
        let behind: Vec<&str> = behind.keys().map(String::as_str).collect();
        let begin = "
            with begun as (
                insert into tenantd.rollout (migration_set, version, started_by)
                select $1, $2, $3 where exists (
                    select from tenantd.tenant where state = 'ready' and work <> 'held' and migration_set = any ($4)
                ) on conflict do nothing returning migration_set
            )
            insert into tenantd.event (what, who, detail)
            select $5, $3, format('to version %s begins', $2::int8) from begun";
        let parameters: super::Parameters<'_> = &[
            (&set.id(), Type::TEXT),
            (&set.newest_version(), Type::INT8),
            (&self.who, Type::TEXT),
            (&behind, Type::TEXT_ARRAY),
            (&What::Rollout.word(), Type::TEXT),
        ];
        if !behind.is_empty() {
            self.execute(begin, parameters, || "begin a rollout".to_owned()).await?;
        }
        self.rollout(&set.id()).await
    }

    /// The rollout of the set `id`, if there is one.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn rollout(&self, id: &str) -> Result<Option<Rollout>> {
        let sql = format!("select {COLUMNS} from tenantd.rollout where migration_set = $1");
        let rows = self.query(&sql, &[(&id, Type::TEXT)], || "read the rollout".to_owned()).await?;
        rows.first().map(read).transpose()
    }

    /// Becomes the one that drives the rollout, or stays it, for the time of `lease`. Its state; `None`: another drives it.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn drive_rollout(&self, id: &str, lease: Duration) -> Result<Option<RolloutState>> {
        let sql = "update tenantd.rollout set leased_by = $2, leased_until = now() + $3 * interval '1 second'
                   where migration_set = $1 and (leased_by is null or leased_by = $2 or leased_until <= now()) returning state";
        let parameters: super::Parameters<'_> =
            &[(&id, Type::TEXT), (&self.worker, Type::TEXT), (&lease.as_secs_f64(), Type::FLOAT8)];
        let rows = self.query(sql, parameters, || "drive the rollout".to_owned()).await?;
        rows.first().map(|row| state(&field::<String>(row, "state")?)).transpose()
    }

    /// Lets another drive the rollout at once.
    ///
    /// # Errors
    /// The main database cannot be reached: the lease ends by itself.
    pub async fn stop_driving(&self, id: &str) -> Result<()> {
        let sql = "update tenantd.rollout set leased_by = null, leased_until = null where migration_set = $1 and leased_by = $2";
        let parameters: super::Parameters<'_> = &[(&id, Type::TEXT), (&self.worker, Type::TEXT)];
        self.execute(sql, parameters, || "give the rollout to others".to_owned()).await.map(drop)
    }

    /// From now on new tenants get the set, and the others follow. `took`: what one canary took on average, and the longest.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when another drives the rollout. The main database cannot be reached.
    pub async fn pass_canaries(&self, id: &str, took: Option<(Duration, Duration)>) -> Result<()> {
        let (seconds, longest) = (took.map(|took| took.0.as_secs_f64()), took.map(|took| took.1.as_secs_f64()));
        self.change_driven(
            id,
            "state = 'running', why = null, by_canaries = false, passed_at = coalesce(passed_at, now()),
             seconds = coalesce($3, seconds), longest = coalesce($4, longest)",
            &[(&seconds, Type::FLOAT8), (&longest, Type::FLOAT8)],
            Some("the canaries have passed"),
        )
        .await
    }

    /// Pauses the rollout, for `why`. `by_canaries`: until one of them succeeds.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when another drives the rollout. The main database cannot be reached.
    pub async fn pause_rollout(&self, id: &str, why: &str, by_canaries: bool) -> Result<()> {
        self.change_driven(
            id,
            "state = 'paused', why = $3, by_canaries = $4",
            &[(&why, Type::TEXT), (&by_canaries, Type::BOOL)],
            Some(&format!("paused: {why}")),
        )
        .await
    }

    /// Every tenant was reached.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`] when another drives the rollout. The main database cannot be reached.
    pub async fn end_rollout(&self, id: &str) -> Result<()> {
        let change = "state = 'done', passed_at = coalesce(passed_at, now()), ended_at = now(), leased_by = null, leased_until = null";
        self.change_driven(id, change, &[], Some("done")).await
    }

    /// Ends the rollouts of the sets `ids`, as far as they are not through: that to `version` has passed its canaries, and whoever waits for
    /// them gets its migrations. Whoever drives one hears of it within a second.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn overtake_rollouts(&self, ids: &[String], version: i64) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let sql = "
            with overtaken as (
                update tenantd.rollout set state = 'overtaken', why = format('by the rollout to version %s', $2::int8), by_canaries = false,
                       ended_at = now(), leased_by = null, leased_until = null
                where migration_set = any ($1) and state in ('running', 'paused') returning version
            )
            insert into tenantd.event (what, who, detail)
            select $3, $4, format('to version %s: overtaken by the rollout to version %s', version, $2::int8) from overtaken";
        let parameters: super::Parameters<'_> = &[
            (&ids, Type::TEXT_ARRAY),
            (&version, Type::INT8),
            (&What::Rollout.word(), Type::TEXT),
            (&self.who, Type::TEXT),
        ];
        self.execute(sql, parameters, || "end the rollouts before".to_owned()).await.map(drop)
    }

    /// Gives up every rollout to `version` that is not through, whoever carries its migrations. Returns how many there were.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn abort_rollouts_to(&self, version: i64, why: &str) -> Result<u64> {
        let sql = "
            with aborted as (
                update tenantd.rollout set state = 'aborted', why = $2, by_canaries = false, ended_at = now()
                where version = $1 and state in ('running', 'paused') returning version
            )
            insert into tenantd.event (what, who, detail)
            select $3, $4, format('to version %s: aborted: %s', version, $2::text) from aborted";
        let parameters: super::Parameters<'_> =
            &[(&version, Type::INT8), (&why, Type::TEXT), (&What::Rollout.word(), Type::TEXT), (&self.who, Type::TEXT)];
        self.execute(sql, parameters, || format!("give up the rollout to version {version}")).await
    }

    /// Changes the rollout that this process drives, and writes an event with it.
    pub(super) async fn change_driven(
        &self,
        id: &str,
        change: &str,
        values: super::Parameters<'_>,
        event: Option<&str>,
    ) -> Result<()> {
        let sql = format!(
            "with changed as (
                 update tenantd.rollout set {change}
                 where migration_set = $1 and leased_by = $2 and state <> 'overtaken' returning version
             ), told as (
                 insert into tenantd.event (what, who, detail)
                 select ${what}, ${who}, format('to version %s: %s', version, ${event}::text) from changed where ${event}::text is not null
             ) select from changed",
            what = values.len() + 3,
            who = values.len() + 4,
            event = values.len() + 5,
        );
        let word = What::Rollout.word();
        let mut parameters: Vec<_> =
            vec![(&id as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT), (&self.worker, Type::TEXT)];
        parameters.extend(values.iter().cloned());
        parameters.extend([
            (&word as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT),
            (&self.who, Type::TEXT),
            (&event, Type::TEXT),
        ]);
        let changed = self.query(&sql, &parameters, || "change the rollout".to_owned()).await?;
        if changed.is_empty() {
            return Err(Error::new(
                Kind::LeaseLost,
                "another process drives the rollout now, or other migrations have overtaken it",
            ));
        }
        Ok(())
    }

    /// A person's word on the rollout of the set `id`, which is made where there is none yet: paused, resumed or aborted. Whoever drives it hears
    /// of it within a second.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is done, or stands so already. The main database cannot be reached.
    pub async fn order_rollout(&self, set: &MigrationSet, to: RolloutState, why: &str) -> Result<Rollout> {
        let sql = format!(
            "with ordered as (
                 insert into tenantd.rollout as r (migration_set, version, state, why, started_by) values ($1, $2, $3, $4, $5)
                 on conflict (migration_set) do update set state = $3, why = $4, by_canaries = false,
                     ended_at = case when $3 = 'aborted' then now() end,
                     -- Whoever goes on after every canary failed has decided that the others follow.
                     passed_at = case when $3 = 'running' and r.by_canaries then now() else r.passed_at end
                 where r.state <> 'done' and r.state <> $3 returning *
             ), told as (
                 insert into tenantd.event (what, who, detail) select $6, $5, format('to version %s: %s', version, $7::text) from ordered
             )
             select {COLUMNS} from ordered"
        );
        let why = (to != RolloutState::Running).then_some(why);
        let told = if to == RolloutState::Running {
            "resumed".to_owned()
        } else {
            format!("{to}: {}", why.unwrap_or_default())
        };
        let parameters: super::Parameters<'_> = &[
            (&set.id(), Type::TEXT),
            (&set.newest_version(), Type::INT8),
            (&to.word(), Type::TEXT),
            (&why, Type::TEXT),
            (&self.who, Type::TEXT),
            (&What::Rollout.word(), Type::TEXT),
            (&told, Type::TEXT),
        ];
        let rows = self.query(&sql, parameters, || "change the rollout".to_owned()).await?;
        if let Some(row) = rows.first() {
            return read(row);
        }
        let state = self.rollout(&set.id()).await?.map_or(RolloutState::Done, |rollout| rollout.state);
        Err(Error::usage(format!("the rollout to version {} is {state} already", set.newest_version())))
    }
}

fn state(word: &str) -> Result<RolloutState> {
    RolloutState::from_word(word).ok_or_else(|| {
        Error::new(
            Kind::Registry,
            format!("the registry knows a state of rollouts {word:?} that this tenantd does not"),
        )
    })
}

fn read(row: &Row) -> Result<Rollout> {
    let seconds = |name| Ok::<_, Error>(field::<Option<f64>>(row, name)?.map(Duration::from_secs_f64));
    Ok(Rollout {
        migration_set: field(row, "migration_set")?,
        version: field(row, "version")?,
        state: state(&field::<String>(row, "state")?)?,
        why: field(row, "why")?,
        by_canaries: field(row, "by_canaries")?,
        canaries: field(row, "canaries")?,
        behind: field(row, "behind")?,
        passed: field(row, "passed")?,
        took: seconds("seconds")?.zip(seconds("longest")?),
        driver: field(row, "driver")?,
        started_at: field(row, "started_at")?,
        started_by: field(row, "started_by")?,
    })
}
