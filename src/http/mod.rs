//! `/healthz`, `/readyz` and `/metrics`, for probes and Prometheus. There is no login and nothing can be changed through it.
//!
//! A request cannot hold the daemon up: connections are few, short, and polled in the one task that calls [`serve`].

mod pages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::conditions::Conditions;
use crate::error::{Error, Result};
use crate::heartbeat::Heartbeats;
use crate::registry::fleet::Fleet;
use crate::telemetry::Metrics;

/// Connections served at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// From the first byte to the last of one connection: it serves one request.
const CONNECTION_LASTS: Duration = Duration::from_secs(10);

/// A request's head must have come within this time,
const HEAD_LASTS: Duration = Duration::from_secs(5);

/// and fit into so many bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// What connections in hand get after the stop.
const GRACE: Duration = Duration::from_secs(1);

/// After an accept that failed, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads how the fleet stands.
pub type ReadFleet = Arc<dyn Fn() -> BoxFuture<'static, Result<Fleet>> + Send + Sync>;

/// What the pages show. Clones share it.
#[derive(Clone)]
pub struct HttpState {
    conditions: Conditions,
    heartbeats: Heartbeats,
    metrics: Metrics,
    read_fleet: ReadFleet,
    /// When the fleet was last read, also without success; held while it is being read, so that scrapes at once read once.
    read_at: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl HttpState {
    /// The pages over these. `read_fleet` is called at a scrape, at most once in five seconds, and dropped after one second.
    pub fn new(conditions: Conditions, heartbeats: Heartbeats, metrics: Metrics, read_fleet: ReadFleet) -> Self {
        HttpState { conditions, heartbeats, metrics, read_fleet, read_at: Arc::default() }
    }
}

impl std::fmt::Debug for HttpState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpState").field("conditions", &self.conditions).finish_non_exhaustive()
    }
}

/// Takes the address of `http.listen`; port 0 takes a free one.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage): the address is taken, is not this machine's, or needs a right that is missing.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::usage(format!("http.listen: cannot listen on {address}"))
            .because(error)
            .hint("Set http.listen to a free address and port of this machine, or to \"\" to listen nowhere.")
    })
}

/// Serves the pages until `stop`; requests in hand get one second more.
pub async fn serve(listener: TcpListener, state: HttpState, stop: CancellationToken) {
    let router = pages::router(state);
    let mut connections = FuturesUnordered::new();
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            Some(()) = connections.next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(connection(stream, router.clone())),
                Err(error) => {
                    tracing::warn!(%error, "a connection to http.listen could not be accepted");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let _ = timeout(GRACE, async { while connections.next().await.is_some() {} }).await;
}

/// One request, and the end. What a client does wrong is its own affair.
async fn connection(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_LASTS).max_buf_size(HEAD_BYTES);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_LASTS, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection broke off"),
        Err(_) => tracing::debug!("an HTTP connection took too long"),
    }
}
