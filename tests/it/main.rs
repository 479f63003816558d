//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod claims;
mod conflicts;
mod connect;
mod connecting;
#[cfg(debug_assertions)]
mod crashes;
mod failing;
pub mod fleet;
mod harness;
mod migrations;
mod provisioning;
mod service;
mod serving;
mod sessions;
mod sweeping;
mod tidy;
