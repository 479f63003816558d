//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod connect;
mod connecting;
pub mod crowd;
mod doorbell;
mod doorbell_faults;
pub mod fleet;
mod harness;
mod migrations;
mod notices;
mod outages;
pub mod pages;
mod provisioning;
mod service;
mod serving;
mod sessions;
mod signup;
mod signup_kinds;
pub mod sql;
mod status;
mod tidy;
