//! What tenantd tells about itself: log lines and metrics. Nothing here decides anything.

mod fleet;
mod log;
mod metrics;

pub use log::{LogLevel, init};
pub use metrics::Metrics;

use crate::error::Error;

/// ERROR once, where the wait begins; a person must look if it lasts.
pub(crate) fn tell_once(error: &Error, consequence: &str) {
    tracing::error!(
        error = error.chain(),
        kind = error.kind().word(),
        sqlstate = error.code(),
        hint = error.advice(),
        "{consequence}"
    );
}
