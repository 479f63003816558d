//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod connect;
mod connecting;
pub mod fleet;
mod harness;
mod migrations;
mod notices;
mod provisioning;
mod service;
mod serving;
mod sessions;
mod status;
mod tidy;
