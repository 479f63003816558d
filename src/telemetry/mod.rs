//! What tenantd tells about itself: log lines and metrics. Nothing here decides anything.

mod fleet;
mod log;
mod metrics;

pub use log::{LogLevel, init};
pub use metrics::Metrics;
