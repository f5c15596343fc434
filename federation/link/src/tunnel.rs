//! Tunnels: one proxied stream each, opened by either side of a session.
//!
//! The first frame of the stream is `OpenTunnel`; what follows are the bytes of `docs/protocol.md` §5, untouched.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use federation_model::{ClusterId, VerifiedPeer};
use proto::federation::OpenTunnel;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    TunnelError,
    endpoint::code,
    metrics,
    registry::Session,
    wire::{self, Frame},
};

/// Counts a tunnel for as long as it lives.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        ::metrics::gauge!(metrics::TUNNELS).increment(1.0);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        ::metrics::gauge!(metrics::TUNNELS).decrement(1.0);
    }
}

/// One proxied stream in a session with `member`.
///
/// Shut down its write half to tell the far end that nothing more comes; a tunnel that is dropped without that is reset,
/// so that a cut never looks like an end.
pub struct Tunnel {
    /// The member at the far end.
    pub member: ClusterId,
    /// That member's edge, as its session proved it.
    pub peer: VerifiedPeer,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    finished: bool,
    _counted: Counted,
    /// Dropped with the tunnel.
    _attached: Option<Box<dyn Send>>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("member", &self.member).field("stream", &self.send.id()).finish()
    }
}

impl Tunnel {
    /// A tunnel over a stream whose first frame has passed already.
    pub(crate) fn new(session: &Session, send: quinn::SendStream, receive: quinn::RecvStream) -> Self {
        let counted = Counted::new(&session.tunnels);
        Self {
            member: session.member,
            peer: session.peer(),
            send,
            receive,
            finished: false,
            _counted: counted,
            _attached: None,
        }
    }

    /// The tunnel with something that lives as long as it does.
    #[must_use]
    pub fn with(mut self, attached: impl Send + 'static) -> Self {
        self._attached = Some(Box::new(attached));
        self
    }

    /// Refuses a tunnel that cannot be taken now.
    pub(crate) fn refuse(mut self, code: quinn::VarInt) {
        self.finished = true;
        let _ = self.send.reset(code);
        let _ = self.receive.stop(code);
    }
}

/// Opens a tunnel in `session`.
pub(crate) async fn open(session: &Session, tunnels_max: u32, limit: Duration) -> Result<Tunnel, TunnelError> {
    let member = || session.name.to_string();
    if session.tunnel_count() >= tunnels_max {
        return Err(TunnelError::TooMany { member: member(), max: tunnels_max });
    }
    let opening = async {
        let (mut send, receive) = session.connection.open_bi().await.map_err(|_| TunnelError::Lost(member()))?;
        wire::write(&mut send, Frame::OpenTunnel(OpenTunnel {})).await.map_err(|_| TunnelError::Lost(member()))?;
        Ok(Tunnel::new(session, send, receive))
    };
    let tunnel = tokio::time::timeout(limit, opening).await.map_err(|_| TunnelError::TimedOut(member()))??;
    ::metrics::counter!(metrics::TUNNELS_OPENED, "direction" => "outbound").increment(1);
    Ok(tunnel)
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            // Otherwise quinn would finish the stream, and the far end would take a cut for an end.
            let _ = self.send.reset(code::ABORTED);
        }
    }
}
