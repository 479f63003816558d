//! How to reach the main database's server, as libpq would understand it.

/// Checked settings of a connection.
#[derive(Debug, Clone)]
pub struct Connection {}
