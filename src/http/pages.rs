//! The three pages.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::HttpState;

/// How long a scrape waits for the main database.
const READ_LASTS: Duration = Duration::from_secs(1);

/// What was read is good for this long, and so is a failure.
const READ_AGAIN: Duration = Duration::from_secs(5);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn router(state: HttpState) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(nothing_here)
        .method_not_allowed_fallback(read_only)
        .with_state(state)
}

async fn nothing_here() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "nothing here: there are /healthz, /readyz and /metrics\n")
}

async fn read_only() -> (StatusCode, &'static str) {
    (StatusCode::METHOD_NOT_ALLOWED, "this page can only be read: GET\n")
}

/// Whether the process should live: asks no database, so that an orchestrator does not restart what only waits for one.
async fn healthz(State(state): State<HttpState>) -> Response {
    let late = state.heartbeats.late();
    if late.is_empty() {
        return fresh(StatusCode::OK, "ok\n");
    }
    fresh(StatusCode::SERVICE_UNAVAILABLE, format!("stuck: {}\n", late.join(", ")))
}

/// Whether signups become tenants now, and if not, why.
async fn readyz(State(state): State<HttpState>) -> Response {
    let unmet = state.conditions.unmet();
    let status = if unmet.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    fresh(status, Json(json!({ "ready": unmet.is_empty(), "reasons": unmet })))
}

async fn metrics(State(state): State<HttpState>) -> Response {
    refresh(&state).await;
    fresh(StatusCode::OK, ([(header::CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode()))
}

/// Reads the fleet, unless it was read just now.
async fn refresh(state: &HttpState) {
    let mut read_at = state.read_at.lock().await;
    if read_at.is_some_and(|read_at| read_at.elapsed() < READ_AGAIN) {
        return;
    }
    match timeout(READ_LASTS, (state.read_fleet)()).await {
        Ok(Ok(fleet)) => state.metrics.fleet(&fleet),
        Ok(Err(error)) => {
            tracing::debug!(error = error.chain(), "metrics without the fleet");
            state.metrics.fleet_unread();
        }
        Err(_) => {
            tracing::debug!("metrics without the fleet: the main database took too long");
            state.metrics.fleet_unread();
        }
    }
    *read_at = Some(Instant::now());
}

/// An answer that no cache may keep.
fn fresh(status: StatusCode, body: impl IntoResponse) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}
