//! SIGHUP: settings and migrations are read again and put in force, all or nothing.

use std::sync::Arc;

use super::migration_set;
use super::serve::tell_systemd;
use crate::conditions::MIGRATION_SET;
use crate::config::{Config, Sources, load};
use crate::controller::{Controller, Shared};
use crate::error::{Class, Error, Result};
use crate::migrations::MigrationSet;
use crate::retry::WAIT;
use crate::shutdown::Requests;
use crate::systemd;
use crate::telemetry::LogLevel;

/// What a reload needs.
pub(super) struct Reloading<'a> {
    pub(super) sources: &'a Sources,
    pub(super) controller: &'a Controller,
    pub(super) shared: &'a Shared,
    pub(super) log: &'a LogLevel,
}

impl Reloading<'_> {
    /// Reloads whenever `requests` ask for it, for ever. What does not load leaves the last good settings and migrations in force.
    pub(super) async fn run(&self, requests: &Requests) {
        requests.reload().await;
        loop {
            systemd::reloading();
            let asked_again = match self.read() {
                Ok((config, set)) => self.put_in_force(&config, &Arc::new(set), requests).await,
                Err(error) => {
                    self.failed(&error);
                    false
                }
            };
            if !asked_again {
                requests.reload().await;
            }
        }
    }

    fn read(&self) -> Result<(Config, MigrationSet)> {
        let config = load(self.sources)?.config;
        let set = migration_set(&config).inspect_err(|error| {
            self.shared.conditions.set(MIGRATION_SET, error.chain());
        })?;
        self.log.set(&config.log.level)?;
        Ok((config, set))
    }

    /// Tries for as long as the server fails, with what was read at the hang-up: half a deploy may be lying in the folder by now. Returns true when
    /// another reload is asked for meanwhile.
    async fn put_in_force(&self, config: &Config, set: &Arc<MigrationSet>, requests: &Requests) -> bool {
        let mut failures = 0;
        loop {
            match self.controller.replace(config.clone(), Arc::clone(set)).await {
                Ok(()) => {
                    tracing::info!("settings and migrations reloaded");
                    self.ended(true);
                    return false;
                }
                Err(error) if error.class() != Class::Server => {
                    self.failed(&error);
                    return false;
                }
                Err(error) if failures == 0 => {
                    tracing::warn!(
                        error = error.chain(),
                        hint = error.advice(),
                        "nothing could be reloaded yet, and is tried again; the last good settings and migrations stay in force"
                    );
                    self.shared.conditions.set(MIGRATION_SET, format!("not in force yet: {}", error.chain()));
                    self.ended(false);
                }
                Err(error) => tracing::debug!(error = error.chain(), failures, "still nothing could be reloaded"),
            }
            failures += 1;
            tokio::select! {
                () = requests.reload() => return true,
                () = tokio::time::sleep(WAIT.delay(failures)) => {}
            }
        }
    }

    fn failed(&self, error: &Error) {
        tracing::error!(
            error = error.chain(),
            hint = error.advice(),
            "nothing was reloaded; the last good settings and migrations stay in force"
        );
        self.ended(false);
    }

    fn ended(&self, successful: bool) {
        self.shared.metrics.reloaded(successful);
        tell_systemd(self.shared);
    }
}
