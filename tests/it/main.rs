//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod adopt;
mod at_commit;
mod backing_up;
mod bounds;
mod burdens;
mod catalogue;
mod check;
mod claims;
mod clocks;
pub mod conditions;
mod conditions_changed;
mod conflicts;
mod connect;
mod connecting;
#[cfg(debug_assertions)]
pub mod crashes;
mod create;
pub mod crowd;
mod departing;
mod doctor;
mod doorbell;
mod doorbell_faults;
mod dropping;
mod failing;
mod failover;
pub mod fleet;
mod going_back;
mod half_open;
mod harness;
mod holding;
mod hostile;
mod inserting;
mod libpq;
pub mod life;
#[cfg(debug_assertions)]
mod life_crashes;
mod lint;
mod list;
mod lookup;
#[cfg(debug_assertions)]
mod lost_answers;
mod main_schema;
mod manual;
mod migrating;
pub mod migrations;
mod naming;
mod new;
mod notices;
mod notifications;
mod others;
mod outages;
pub mod pages;
mod pooler;
mod program;
mod provisioning;
mod restoring;
mod rights;
#[cfg(debug_assertions)]
mod rollback;
#[cfg(debug_assertions)]
mod rollout_crashes;
mod rollouts;
mod schema_locks;
mod schemas;
mod secrets;
mod service;
mod serving;
mod sessions;
mod setup;
mod setup_refused;
mod several;
mod shortages;
mod show;
mod signup;
mod signup_kinds;
mod spares;
pub mod sql;
mod status;
mod steps;
#[cfg(debug_assertions)]
mod stops;
mod sweeping;
mod sweeping_many;
mod sync;
mod templates;
mod tidy;
mod tls;
mod url;
mod wait;
#[cfg(debug_assertions)]
mod wedged;
