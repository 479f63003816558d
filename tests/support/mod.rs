//! What tests, the demo and the benches stand on: a throwaway server with TLS, a main database like an application's, the built daemon as
//! a child process, and a proxy that plays a bad network.
//!
//! Included by path, as a public module so that the compiler does not ask each program to use all of it:
//! `#[path = "../support/mod.rs"] pub mod support;`. `tests/it/harness.rs` shows that it does what it says.

pub mod audit;
pub mod certificates;
pub mod count;
pub mod daemon;
pub mod database;
pub mod directory;
pub mod disk;
pub mod listening;
pub mod namespace;
pub mod place;
pub mod pooler;
pub mod process;
pub mod proxy;
pub mod server;
pub mod standby;
pub mod tenants;
pub mod until;
