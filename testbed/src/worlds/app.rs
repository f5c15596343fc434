//! What workloads do: an application that echoes, and a client that talks to it through a SOCKS5 listener.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// How long a dial or one exchange may take on a busy machine.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);

/// A listener within the test that serves each connection by itself. It ends when dropped.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Served {
    pub(super) async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        open.spawn(serve(stream));
                    }
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An application within the test that sends back whatever comes. It ends when dropped.
pub struct EchoApp {
    /// Where it listens.
    pub address: SocketAddr,
    _served: Served,
}

impl EchoApp {
    /// Starts it.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        let served = Served::start(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let served = served.await?;
        Ok(Self { address: served.address, _served: served })
    }
}

/// What the SOCKS5 listener answered instead of success (RFC 1928, 6).
#[derive(Debug)]
pub struct Refused(pub u8);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SOCKS5 answered 0x{:02x}", self.0)
    }
}

impl std::error::Error for Refused {}

/// A connection to an echo application.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    said: u32,
}

/// Opens a connection to `name:port` through the SOCKS5 listener at `socks`.
///
/// # Errors
/// [`Refused`] if the sidecar said no; anything else is a fault.
pub async fn dial(socks: SocketAddr, name: &str, port: u16) -> Result<Conversation> {
    let dialling = socks5(socks, name, port);
    let stream = timeout(EXCHANGE_LIMIT, dialling)
        .await
        .with_context(|| format!("{name}: no answer in {EXCHANGE_LIMIT:?}"))??;
    Ok(Conversation { stream, said: 0 })
}

/// A stream to `name:port` through the SOCKS5 listener at `socks`.
///
/// # Errors
/// As [`dial`], but for a listener that does not answer: it waits.
pub(super) async fn socks5(socks: SocketAddr, name: &str, port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(socks).await.context("the sidecar's SOCKS5 listener")?;
    stream.set_nodelay(true)?;
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
    let mut address = vec![0; if kind == 4 { 18 } else { 6 }];
    stream.read_exact(&mut address).await?;
    Ok(stream)
}

impl Conversation {
    /// Says something new and hears it back.
    ///
    /// # Errors
    /// The connection was cut, is stuck, or carries something else.
    pub async fn exchange(&mut self) -> Result<()> {
        self.said += 1;
        let line = format!("line {:08} of a conversation that must arrive whole\n", self.said);
        let exchange = async {
            self.stream.write_all(line.as_bytes()).await?;
            let mut heard = vec![0; line.len()];
            self.stream.read_exact(&mut heard).await?;
            ensure!(heard == line.as_bytes(), "heard {:?}", String::from_utf8_lossy(&heard));
            Ok(())
        };
        timeout(EXCHANGE_LIMIT, exchange).await.with_context(|| format!("no echo in {EXCHANGE_LIMIT:?}"))?
    }

    /// Waits until the other side ends it, saying nothing.
    ///
    /// # Errors
    /// It is still open after `limit`.
    pub async fn cut(&mut self, limit: Duration) -> Result<()> {
        let ended = async {
            let mut bytes = [0; 64];
            // An end and a reset are both a cut.
            while matches!(self.stream.read(&mut bytes).await, Ok(length) if length > 0) {}
        };
        timeout(limit, ended).await.with_context(|| format!("the connection is still open after {limit:?}"))
    }
}
