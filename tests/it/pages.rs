//! The daemon's pages, as a probe reads them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::free_port;

/// The pages of one daemon.
pub struct Pages(SocketAddr);

impl Pages {
    /// An address that was free a moment ago, for `http.listen`.
    #[must_use]
    pub fn reserve() -> Self {
        Pages(([127, 0, 0, 1], free_port()).into())
    }

    /// What `http.listen` is to be set to.
    #[must_use]
    pub fn listen(&self) -> String {
        self.0.to_string()
    }

    /// Status and body of a page; `None` while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.0).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Whether `/readyz` answers with `status` and a body that contains `text`.
    pub async fn ready_is(&self, status: u16, text: &str) -> bool {
        self.get("/readyz").await.is_some_and(|(found, body)| found == status && body.contains(text))
    }

    /// The value of the metric `name` without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, body) = self.get("/metrics").await.expect("the page");
        let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next());
        value.unwrap_or_else(|| panic!("no {name} in\n{body}")).parse().expect("a number")
    }
}
