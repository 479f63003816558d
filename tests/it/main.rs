//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod adopt;
mod at_commit;
mod backing_up;
mod bounds;
mod catalogue;
mod check;
mod claims;
mod conflicts;
mod connect;
mod connecting;
#[cfg(debug_assertions)]
mod crashes;
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
mod harness;
mod holding;
pub mod life;
#[cfg(debug_assertions)]
mod life_crashes;
mod lint;
mod list;
mod lookup;
mod main_schema;
mod manual;
mod migrating;
pub mod migrations;
mod new;
mod notices;
mod others;
mod outages;
pub mod pages;
mod program;
mod provisioning;
mod restoring;
#[cfg(debug_assertions)]
mod rollback;
mod rollouts;
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
mod sweeping;
mod sweeping_many;
mod sync;
mod templates;
mod tidy;
mod url;
mod wait;
