//! The steps of the work as a trace shows them, and how long each took.

use std::time::Instant;

use tracing::{Instrument, Span};

/// Does `work` within `span`, and tells at debug how long it took. What is given up before its end tells nothing.
pub(super) fn timed<T, E>(span: Span, work: impl Future<Output = Result<T, E>>) -> impl Future<Output = Result<T, E>> {
    // On the heap: each span around it would else double what its caller carries.
    let work = Box::pin(work);
    let told = async move {
        let began = Instant::now();
        let outcome = work.await;
        // To the microsecond: what is quick counts too, where it is done for every tenant.
        let milliseconds = (began.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        tracing::debug!(milliseconds, "{}", if outcome.is_ok() { "done" } else { "failed" });
        outcome
    };
    told.instrument(span)
}

/// [`timed`] in the span of one step of a tenant, a template or a spare. For a tenant the words are those of `error_step`.
pub(super) fn step<T, E>(
    step: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    timed(tracing::debug_span!("step", step), work)
}
