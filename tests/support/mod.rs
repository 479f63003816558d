//! What tests, the demo and the benches stand on: a throwaway server with TLS, a main database like an application's, the built daemon as
//! a child process, and a proxy that plays a bad network.
//!
//! Included by path: `#[path = "../support/mod.rs"] pub mod support;`. The integration tests use every item (`tests/it/support.rs`), so
//! that nothing here can rot; who uses only a part adds `#[expect(dead_code, reason = "…")]` where it includes the module.

pub mod audit;
pub mod certificates;
pub mod daemon;
pub mod database;
pub mod process;
pub mod proxy;
pub mod server;
pub mod until;
