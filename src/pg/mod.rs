//! Postgres: how a connection is made, and what is done to a server that is not the registry.

pub mod admin;
mod attempt;
mod budget;
pub mod catalogue;
pub mod indexes;
mod libpq;
pub mod migrate;
pub mod ownership;
mod password;
mod pool;
pub mod quote;
pub mod schemas;
mod server;
mod session;
pub mod sqlstate;
mod tls;
mod url;

pub use libpq::Libpq;
pub use migrate::{Executor, History};
pub use pool::{Pool, PoolStatus, PooledSession};
pub use server::Server;
pub use session::{Notifications, Session};
pub use sqlstate::Doing;
pub use url::url;
