//! A bad network between tenantd and the server.
//!
//! tenantd talks TLS, and what is encrypted is bytes to the proxy: it can lose them, and not read them. Where single messages matter the
//! test asks for `sslmode=disable`, see [`Proxy::plain_url`]; the server takes that from the address that proxies come from, and from no other.

mod messages;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenantd::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use self::messages::{Talk, TalkEnd, is_question_for_tls, is_start_in_the_clear};

/// Where proxies connect from; `TestServer` takes connections without TLS from here.
pub const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// tenantd.
    Client,
    /// Postgres.
    Server,
}

/// What happens to connections, new and old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything goes through.
    Pass,
    /// Everything goes through, each piece this much later.
    Delay(Duration),
    /// Nothing is read any more, so that nothing goes through and both ends fill up: a dead peer, a firewall that forgot the connection. What
    /// waits goes through once this is over.
    Hold,
    /// Connections are closed, new ones too.
    Cut,
    /// The same by RST, as from a machine that started anew.
    Reset,
    /// Half open: what this side says is lost, and the other's goes through. A connection that lost something stays so.
    Lose(Side),
    /// New connections that ask for TLS are told that there is none; what they say then is kept, see [`Proxy::heard`], and goes to the server.
    NoTls,
    /// Notifications do not arrive. This and the others below are for connections without TLS; others go through.
    NoNotifications,
    /// Notifications without a payload, which are the rings of signups, arrive so many times. Those with one, which are pings, go through.
    Rings(usize),
    /// Once, a statement that contains this text is carried out, commit included, and instead of its answer the client gets a closed
    /// connection. One that fails, or that finds nothing to do, is none. Then [`Proxy::lost`] counts one more, and everything goes through.
    LoseAnswer(&'static str),
}

/// A TCP proxy on a free port of 127.0.0.1; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    mode: watch::Sender<Mode>,
    lost: AtomicUsize,
    heard: Mutex<Vec<u8>>,
}

impl Proxy {
    /// A proxy in front of `target` that lets everything through.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let mode = watch::Sender::new(Mode::Pass);
        let shared = Arc::new(Shared { target, mode, lost: AtomicUsize::new(0), heard: Mutex::default() });
        let tasks = Tasks::new();
        let (connections, cancelled, own) = (tasks.clone(), tasks.cancelled(), Arc::clone(&shared));
        tasks.spawn("proxy", async move {
            let accept = async {
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn("proxied connection", carry(client, Arc::clone(&own)));
                }
            };
            let _ = cancelled.run_until_cancelled(accept).await;
        });
        Self { address, shared, tasks }
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

    /// The same without TLS, for what only a proxy that reads messages can do.
    #[must_use]
    pub fn plain_url(&self, url: &str) -> String {
        let (before, _) = url.split_once('?').expect("the parameters of TLS");
        format!("{}?sslmode=disable", self.url(before, self.shared.target))
    }

    /// Changes what happens, from now on.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// How many answers were lost by [`Mode::LoseAnswer`].
    #[must_use]
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// What clients that were told that there is no TLS said after that.
    #[must_use]
    pub fn heard(&self) -> Vec<u8> {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.tasks.cancelled().cancel();
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>) {
    let mut closing = shared.mode.subscribe();
    let mut server = None;
    tokio::select! {
        // How a connection ended is seen by its two ends.
        _ = both(&mut client, &mut server, &shared) => {}
        _ = closing.wait_for(|mode| matches!(mode, Mode::Cut | Mode::Reset)) => {}
    }
    if *shared.mode.borrow() == Mode::Reset {
        for end in [Some(client), server].into_iter().flatten() {
            let _ = end.set_zero_linger();
        }
    }
}

async fn both(client: &mut TcpStream, server: &mut Option<TcpStream>, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut length = client.read(&mut buffer).await?;
    let stripped = is_question_for_tls(&buffer[..length]) && *shared.mode.borrow() == Mode::NoTls;
    if stripped {
        client.write_all(b"N").await?;
        length = client.read(&mut buffer).await?;
        shared.hear(&buffer[..length]);
    }
    let first = &buffer[..length];
    let talk = Mutex::new(is_start_in_the_clear(first).then(Talk::default));
    let socket = TcpSocket::new_v4()?;
    socket.bind((FROM, 0).into())?;
    let server = server.insert(socket.connect(shared.target).await?);
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.split();
    let (server_in, server_out) = server.split();
    let (up, down) = (
        Pump { side: Side::Client, talk: &talk, shared, stripped },
        Pump { side: Side::Server, talk: &talk, shared, stripped },
    );
    tokio::try_join!(up.run(first, client_in, server_out), down.run(&[], server_in, client_out))?;
    Ok(())
}

impl Shared {
    /// Whether an answer is still to be lost; then it was this one.
    fn loses_one(&self) -> bool {
        let armed = self.mode.send_if_modified(|mode| {
            let armed = matches!(mode, Mode::LoseAnswer(_));
            if armed {
                *mode = Mode::Pass;
            }
            armed
        });
        if armed {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        armed
    }

    fn hear(&self, said: &[u8]) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(said);
    }
}

/// One direction of a connection.
struct Pump<'a> {
    /// Who sends.
    side: Side,
    /// What is known of the messages, where they can be read.
    talk: &'a Mutex<Option<Talk>>,
    shared: &'a Shared,
    /// Whether what the client says is kept.
    stripped: bool,
}

impl Pump<'_> {
    /// Carries `first`, and whatever comes after it.
    async fn run(
        &self,
        first: &[u8],
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut mode = self.shared.mode.subscribe();
        let (mut buffer, mut length, mut lossy) = (vec![0; 64 * 1024], first.len(), false);
        buffer[..length].copy_from_slice(first);
        loop {
            // One piece may have been on its way already.
            let current = *mode.wait_for(|mode| *mode != Mode::Hold).await.map_err(io::Error::other)?;
            lossy |= current == Mode::Lose(self.side);
            if let Mode::Delay(delay) = current
                && length > 0
            {
                tokio::time::sleep(delay).await;
            }
            if !lossy {
                self.pass(&buffer[..length], &mut to).await?;
            }
            length = from.read(&mut buffer).await?;
            if length == 0 {
                return to.shutdown().await;
            }
            if self.stripped && self.side == Side::Client {
                self.shared.hear(&buffer[..length]);
            }
        }
    }

    async fn pass(&self, piece: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut piece = piece;
        loop {
            let mode = *self.shared.mode.borrow();
            let sorted = self
                .talk
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
                .map(|talk| talk.sort(self.side, piece, mode));
            match sorted {
                None => return to.write_all(piece).await,
                Some((whole, TalkEnd::GoesOn)) => return to.write_all(&whole).await,
                Some((whole, TalkEnd::Lost(answer))) => {
                    to.write_all(&whole).await?;
                    if self.shared.loses_one() {
                        return Err(io::Error::other("the answer is lost"));
                    }
                    // Another connection lost one at the same time.
                    to.write_all(&answer).await?;
                    piece = &[];
                }
            }
        }
    }
}
