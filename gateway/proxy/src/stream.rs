//! Byte streams as the stages see them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// A byte stream that can end in two ways: finished, or broken off.
///
/// The difference matters to an application that reads until the end: what was cut must not look complete.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the coming drop break the stream off where that can be told apart from a finish (TCP: RST instead of FIN).
    fn reset(&mut self) {}
}

/// Any stream.
pub type BoxStream = Box<dyn Stream>;

impl Stream for Box<dyn Stream> {
    fn reset(&mut self) {
        (**self).reset();
    }
}

impl Stream for TcpStream {
    fn reset(&mut self) {
        // Fails only on a socket that is gone already.
        let _ = self.set_zero_linger();
    }
}

impl Stream for UnixStream {}

impl Stream for DuplexStream {}

impl<S: Stream> Stream for tokio_rustls::client::TlsStream<S> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl<S: Stream> Stream for tokio_rustls::server::TlsStream<S> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

/// Makes a stream of another crate's type (a tunnel) one of ours. Its drop is all the breaking off that it has.
pub fn boxed<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> BoxStream {
    Box::new(Foreign(stream))
}

struct Foreign<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for Foreign<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Foreign<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Foreign<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// How long one who was refused may take to read why, and how much of what it sends is read meanwhile.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;

/// Sends last bytes and lets the other end read them: closing with bytes unread would reset the connection, and take
/// what was sent with it.
pub(crate) async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    let said = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(FAREWELL_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whether it listens is its own affair.
    let _ = timeout(FAREWELL, said).await;
}

/// A stream whose first bytes were read already and are given again.
pub(crate) struct Rewound<S> {
    stream: S,
    again: Vec<u8>,
    given: usize,
}

impl<S> Rewound<S> {
    pub(crate) fn new(stream: S, again: Vec<u8>) -> Self {
        Self { stream, again, given: 0 }
    }
}

impl<S: Stream> Stream for Rewound<S> {
    fn reset(&mut self) {
        self.stream.reset();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(left) = this.again.get(this.given..).filter(|left| !left.is_empty()) {
            let taken = left.len().min(buf.remaining());
            buf.put_slice(left.get(..taken).unwrap_or_default());
            this.given += taken;
            if this.given == this.again.len() {
                this.again = Vec::new();
                this.given = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
