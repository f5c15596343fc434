//! HTTP/1.1 through the mesh, as much of it as load needs: an application that answers, and clients that keep to what
//! RFC 9112 says of connections.
//!
//! A client that keeps its connection notices when that was ended while idle and opens another. A request on a connection
//! used before that ends without a byte of an answer is sent once more on a new one (RFC 9112, 9.3.1): the requests are
//! idempotent, and every client in use does that. Everything else that is not an answer counts as failed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::app::{Served, socks5};

/// How long a client waits for its answer. Longer than any hold: what is late is seen as late and not as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest head of a message in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// An application that answers every GET with the path that was asked for. It ends when dropped.
pub struct HttpApp {
    /// Where it listens.
    pub address: SocketAddr,
    _served: Served,
}

impl HttpApp {
    /// Starts it.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        // Whoever leaves within a request is asked about at the other end.
        let served = Served::start(|stream| async move { drop(answer(stream).await) }).await?;
        Ok(Self { address: served.address, _served: served })
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    while let Some(head) = head(&mut stream, &mut held).await? {
        let path = head.split(' ').nth(1).context("no path")?;
        let close = head.contains("connection: close");
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
        stream.write_all(text.as_bytes()).await?;
        if close {
            break;
        }
    }
    stream.shutdown().await?;
    Ok(())
}

/// Reads up to the empty line; `None` if the stream ends before the first byte. What is behind it stays in `held`.
async fn head(stream: &mut TcpStream, held: &mut Vec<u8>) -> Result<Option<String>> {
    loop {
        if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = held.split_off(end + 4);
            return Ok(Some(String::from_utf8(std::mem::replace(held, rest))?));
        }
        ensure!(held.len() < HEAD_BYTES_MAX, "a head of {} bytes", held.len());
        if stream.read_buf(held).await? == 0 {
            ensure!(held.is_empty(), "the stream ended within a head");
            return Ok(None);
        }
    }
}

/// One request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When it was due.
    pub at: Instant,
    /// Until the last byte of its answer, from when it was due.
    pub took: Duration,
    /// It was sent again on another connection.
    pub again: bool,
}

/// What the clients of a load saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub answered: Vec<Answered>,
    /// When each was due, and why it failed.
    pub failed: Vec<(Instant, String)>,
    /// Kept connections that were opened after the first of each client.
    pub reopened: usize,
}

/// Clients that do not stop before they are told.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: JoinSet<()>,
}

impl Load {
    /// `keeping` clients that keep their connection and `anew` that open one for each request; each sends one every `pace`
    /// to `name:port` through the SOCKS5 listener at `socks`, whatever became of the one before.
    pub fn start(socks: SocketAddr, name: &'static str, port: u16, keeping: u32, anew: u32, pace: Duration) -> Self {
        let mut load = Self { stop: Arc::default(), seen: Arc::default(), clients: JoinSet::new() };
        let all = keeping + anew;
        for number in 0..all {
            let client = Client { socks, name, port, keeps: number < keeping, stream: None, opened: 0 };
            let first = Instant::now() + pace * number / all;
            load.clients.spawn(client.run(number, first, pace, Arc::clone(&load.stop), Arc::clone(&load.seen)));
        }
        load
    }

    /// How many were answered by now, and how many failed.
    pub fn counts(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.answered.len(), seen.failed.len())
    }

    /// Ends it once what is under way is answered.
    ///
    /// # Errors
    /// A client panicked.
    pub async fn end(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended?;
        }
        Ok(std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

struct Client {
    socks: SocketAddr,
    name: &'static str,
    port: u16,
    keeps: bool,
    stream: Option<TcpStream>,
    opened: usize,
}

impl Client {
    async fn run(mut self, number: u32, first: Instant, pace: Duration, stop: Arc<AtomicBool>, seen: Arc<Mutex<Seen>>) {
        for count in 0_u32.. {
            let due = first + pace * count;
            sleep_until(due).await;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // A client that is late because the last answer was does not send all that it missed at once.
            let at = due.max(Instant::now() - pace);
            let result = timeout(PATIENCE, self.request(&format!("/{number}/{count}"))).await;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(Ok(again)) => seen.answered.push(Answered { at, took: at.elapsed(), again }),
                Ok(Err(error)) => seen.failed.push((at, format!("keeps its connection {}: {error:#}", self.keeps))),
                Err(_) => {
                    seen.failed.push((at, format!("keeps its connection {}: not within {PATIENCE:?}", self.keeps)))
                }
            }
        }
        seen.lock().unwrap_or_else(PoisonError::into_inner).reopened +=
            self.opened.saturating_sub(1) * usize::from(self.keeps);
    }

    /// One request; whether it was sent again.
    async fn request(&mut self, path: &str) -> Result<bool> {
        if let Some(mut kept) = self.stream.take().filter(is_open) {
            match self.exchange(&mut kept, path).await {
                Ok(()) => {
                    self.stream = Some(kept);
                    return Ok(false);
                }
                Err(Unanswered::Nothing(_)) => {}
                Err(Unanswered::Wrong(error)) => return Err(error.context("on a connection that was used before")),
            }
            self.fresh(path).await.context("sent again")?;
            return Ok(true);
        }
        self.fresh(path).await?;
        Ok(false)
    }

    async fn fresh(&mut self, path: &str) -> Result<()> {
        let mut stream = socks5(self.socks, self.name, self.port).await.context("opening a connection")?;
        self.opened += 1;
        match self.exchange(&mut stream, path).await {
            Ok(()) => {
                self.stream = self.keeps.then_some(stream);
                Ok(())
            }
            Err(Unanswered::Nothing(error) | Unanswered::Wrong(error)) => Err(error.context("on a new connection")),
        }
    }

    async fn exchange(&self, stream: &mut TcpStream, path: &str) -> Result<(), Unanswered> {
        let close = if self.keeps { "" } else { "connection: close\r\n" };
        let text = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{close}\r\n", self.name);
        let mut held = Vec::new();
        let head = async {
            stream.write_all(text.as_bytes()).await?;
            head(stream, &mut held).await?.context("the stream ended before an answer")
        };
        let head = match head.await {
            Ok(head) => head,
            Err(error) if held.is_empty() => return Err(Unanswered::Nothing(error)),
            Err(error) => return Err(Unanswered::Wrong(error)),
        };
        let body = async {
            let length: usize = head.split("content-length: ").nth(1).context("no length")?.trim().parse()?;
            while held.len() < length {
                if stream.read_buf(&mut held).await? == 0 {
                    bail!("the stream ended within an answer");
                }
            }
            ensure!(head.starts_with("HTTP/1.1 200 ") && held == path.as_bytes(), "{head} {held:?}");
            Ok(())
        };
        body.await.map_err(Unanswered::Wrong)
    }
}

/// Why there is no answer.
enum Unanswered {
    /// No byte of one came.
    Nothing(anyhow::Error),
    Wrong(anyhow::Error),
}

/// Whether the other end has not ended it.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}
