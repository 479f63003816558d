//! A bad network between tenantd and the server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tenantd::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections, new and old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything goes through.
    Pass,
    /// Everything goes through, each piece this much later.
    Delay(Duration),
    /// Nothing goes through and nobody is told: a dead peer, a firewall that forgot the connection.
    Hold,
    /// Connections are closed, new ones too.
    Cut,
}

/// A TCP proxy on a free port of 127.0.0.1; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    tasks: Tasks,
}

impl Proxy {
    /// A proxy in front of `target` that lets everything through.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (mode, current) = watch::channel(Mode::Pass);
        let tasks = Tasks::new();
        let connections = tasks.clone();
        let cancelled = tasks.cancelled();
        tasks.spawn("proxy", async move {
            let accept = async {
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn("proxied connection", carry(client, target, current.clone()));
                }
            };
            let _ = cancelled.run_until_cancelled(accept).await;
        });
        Self { address, mode, tasks }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with this proxy's address instead of the server's.
    #[must_use]
    pub fn url(&self, url: &str, server: SocketAddr) -> String {
        url.replace(&server.to_string(), &self.address.to_string())
    }

    /// Changes what happens, from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Cut);
        self.tasks.cancelled().cancel();
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, mode: watch::Receiver<Mode>) {
    let mut cut = mode.clone();
    let both = async {
        let mut server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        tokio::try_join!(pump(client_in, server_out, mode.clone()), pump(server_in, client_out, mode.clone()))
    };
    tokio::select! {
        // How a connection ended is seen by its two ends.
        _ = both => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let current = *mode.wait_for(|mode| *mode != Mode::Hold).await.map_err(io::Error::other)?;
        if let Mode::Delay(delay) = current {
            tokio::time::sleep(delay).await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
