//! One accepted connection: its bytes, who is on it, and how long it may live.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use federation_model::{Role, TrustDomain, VerifiedPeer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::{Kind, Refusal};

/// Most connections at once, on each listener.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long a connection may live whose peer proved nothing: enough to enrol.
pub const STRANGER_LIMIT: Duration = Duration::from_secs(30);

/// Who is on the other end, as far as was proved before the first request.
#[derive(Clone, Debug)]
pub enum Peer {
    /// On the Unix socket, by the kernel's word.
    Local { uid: u32, operator: bool },
    /// Over TLS from `address`; `peer` is `None` without a certificate of its own.
    Remote { peer: Option<VerifiedPeer>, address: IpAddr },
}

impl Peer {
    /// The peer of a request, as the listener noted it.
    ///
    /// # Errors
    /// It came another way: nobody judged it, so it gets nothing.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refusal> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Refusal::new(Kind::NotProved, "no_peer", "nothing is known of who asks"))
    }

    /// The workload of `domain` that proved itself over TLS and whose SVID lasts beyond `now`.
    ///
    /// # Errors
    /// Anyone else.
    pub(crate) fn workload(
        &self,
        domain: &TrustDomain,
        now: federation_model::Timestamp,
    ) -> Result<(&VerifiedPeer, federation_model::AccountRef), Refusal> {
        let missing = "this needs the SVID of an enrolled workload: enrol first (`hanse workload token`)";
        let Self::Remote { peer: Some(peer), .. } = self else {
            return Err(Refusal::new(Kind::NotProved, "no_svid", missing));
        };
        if peer.trust_domain() != domain {
            let message =
                format!("{} is of another trust domain: sidecars use the edge of their own cluster", peer.id());
            return Err(Refusal::new(Kind::NotPermitted, "foreign_domain", message));
        }
        if now >= peer.not_after() {
            return Err(Refusal::new(Kind::NotProved, "expired", "the SVID on this connection has ended: renew it"));
        }
        match peer.id().role() {
            Role::Workload(account) => Ok((peer, account)),
            _ => Err(Refusal::new(Kind::NotPermitted, "not_a_workload", format!("{} is no workload", peer.id()))),
        }
    }
}

/// A stream with its peer. Reading fails once its time is up, which closes it.
pub(crate) struct Connection<S> {
    stream: S,
    peer: Peer,
    end: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, peer: Peer, life: Option<Duration>, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, peer, end: life.map(|life| Box::pin(sleep(life))), _permit: permit }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection's time is up")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Semaphore,
        time::Instant,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_closes_when_its_time_is_up_and_gives_its_place_back() {
        let room = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&room).acquire_owned().await.expect("room");
        let (mut far, near) = tokio::io::duplex(64);
        let peer = Peer::Local { uid: 1001, operator: false };
        let mut connection = Connection::new(near, peer, Some(STRANGER_LIMIT), permit);
        let start = Instant::now();
        far.write_all(b"a").await.expect("write");
        assert_eq!(connection.read_u8().await.expect("within its time"), b'a');
        let read = tokio::time::timeout(2 * STRANGER_LIMIT, connection.read_u8()).await;
        let error = read.expect("it stays open").expect_err("its time is up");
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, STRANGER_LIMIT.as_secs()));
        assert_eq!(room.available_permits(), 0);
        drop(connection);
        assert_eq!(room.available_permits(), 1);
    }
}
