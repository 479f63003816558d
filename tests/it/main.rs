//! The integration tests: one program, so that it is linked once, its tests run side by side and share one server.

#[path = "../support/mod.rs"]
pub mod support;

mod connect;
mod connecting;
mod harness;
mod sessions;
mod tidy;
