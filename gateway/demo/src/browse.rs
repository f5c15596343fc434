//! What a workload of the demo does: HTTP through its sidecar's SOCKS5 listener, by mesh name.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// What the SOCKS5 listener answered instead of success (RFC 1928, 6).
#[derive(Debug, thiserror::Error)]
#[error("SOCKS5 answered 0x{0:02x}")]
pub(crate) struct Refused(pub(crate) u8);

/// Opens a connection to `name:port` through the SOCKS5 listener at `socks`.
pub(crate) async fn dial(socks: SocketAddr, name: &str, port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(socks).await.context("the sidecar's SOCKS5 listener")?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.context("SOCKS5 method")?;
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len())?];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await.context("SOCKS5 reply")?;
    let [_, code, _, kind] = reply;
    if code != 0 {
        bail!(Refused(code));
    }
    let rest = if kind == 4 { 18 } else { 6 };
    let mut address = vec![0; rest];
    stream.read_exact(&mut address).await?;
    Ok(stream)
}

/// `GET path` from `name:port`; the body as text.
pub(crate) async fn get(socks: SocketAddr, name: &str, port: u16, path: &str) -> Result<String> {
    timeout(REQUEST_LIMIT, async {
        let stream = dial(socks, name, port).await?;
        fetch(stream, name, path).await
    })
    .await
    .context("no answer within 5 s")?
}

/// `GET path` on an open connection.
pub(crate) async fn fetch(stream: TcpStream, host: &str, path: &str) -> Result<String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if !status.is_success() {
        bail!("HTTP {status}");
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// A connection that carries a tick every 50 ms for as long as it lives.
pub(crate) struct Live {
    ticks: Arc<AtomicU64>,
    task: JoinHandle<Instant>,
    pub(crate) opened: Instant,
}

impl Live {
    pub(crate) async fn open(socks: SocketAddr, name: &str, port: u16) -> Result<Self> {
        let stream = timeout(REQUEST_LIMIT, dial(socks, name, port)).await.context("no answer within 5 s")??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::get("/clock").header("host", name).body(Empty::<Bytes>::new())?;
        let mut body = sender.send_request(request).await?.into_body();
        let ticks = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&ticks);
        let task = tokio::spawn(async move {
            while let Some(Ok(_)) = body.frame().await {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            drop((sender, driver));
            Instant::now()
        });
        let live = Self { ticks, task, opened: Instant::now() };
        live.carries().await?;
        Ok(live)
    }

    /// An error unless more bytes come within a second.
    pub(crate) async fn carries(&self) -> Result<()> {
        let before = self.ticks.load(Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if self.ticks.load(Ordering::Relaxed) > before {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the live connection carries nothing")
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    /// When it was cut, if that happens within `limit`.
    pub(crate) async fn cut(&mut self, limit: Duration) -> Result<Instant> {
        let ended = timeout(limit, &mut self.task).await;
        Ok(ended.with_context(|| format!("the live connection still carries bytes after {limit:?}"))??)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the mesh DNS at `server` for the A record of `name` (RFC 1035, 4).
pub(crate) async fn resolve(server: SocketAddr, name: &str) -> Result<Ipv4Addr> {
    let mut query = vec![0x48, 0x41, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut answer = [0; 512];
    let length = timeout(Duration::from_secs(2), socket.recv(&mut answer)).await.context("no answer within 2 s")??;
    // The question comes back whole, and the only record after it ends in its four bytes of address.
    let (code, count) = (answer[3] & 0x0f, u16::from_be_bytes([answer[6], answer[7]]));
    let record = answer.get(query.len()..length).unwrap_or_default();
    match record.get(10..16) {
        Some(&[0, 4, a, b, c, d]) if code == 0 && count == 1 => Ok(Ipv4Addr::new(a, b, c, d)),
        _ => bail!("answered with code {code} and {count} records"),
    }
}
