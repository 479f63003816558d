//! Postgres: how a connection is made, and what is done to a server that is not the registry.

mod attempt;
mod password;
pub mod pool;
pub mod quote;
pub mod server;
pub mod session;
pub mod sqlstate;
mod tls;

pub use pool::{Pool, PoolStatus, PooledSession};
pub use server::Server;
pub use session::{Notifications, Session};
pub use sqlstate::Doing;
