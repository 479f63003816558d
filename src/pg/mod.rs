//! Postgres: how a connection is made, and what is done to a server that is not the registry.
pub mod migrate;
pub mod sqlstate;

pub use sqlstate::Doing;
