//! Stage 7: bytes both ways until both ends have finished, or one broke.
//!
//! A direction holds no buffer while it waits for bytes: it borrows this thread's scratch space for the length of one
//! poll, and keeps a copy only of what the other side would not take at once. So an idle connection costs its two
//! sockets (and their TLS state, where TLS ends here), and neither direction waits for the other.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::{connections::Connection, limits::Limits};

/// Bytes that one read may bring, and the most that a direction ever holds.
const BUFFER_BYTES: usize = 16 * 1024;
/// Reads in one poll before others get their turn.
const ROUNDS_MAX: usize = 32;

/// Why bytes stopped before both ends had finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("client's side broke: {0}")]
    Client(#[source] io::Error),
    #[error("server's side broke: {0}")]
    Server(#[source] io::Error),
    #[error("a writer took no byte for too long")]
    Stalled,
    #[error("one direction had ended and the other stayed silent for too long")]
    HalfClosed,
}

impl Broken {
    /// Short fixed word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Client(_) => "client_broke",
            Self::Server(_) => "server_broke",
            Self::Stalled => "stalled",
            Self::HalfClosed => "half_closed",
        }
    }
}

/// Carries bytes until both directions have ended. On an error the caller resets both sides.
pub(crate) async fn splice<C, S>(
    client: &mut C,
    server: &mut S,
    connection: &Connection,
    limits: &Limits,
) -> Result<(), Broken>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Half::new(&connection.to_server, Toward::Server, &connection.answered);
    let mut down = Half::new(&connection.to_client, Toward::Client, &connection.answered);
    let mut watch = Watchdog::default();
    poll_fn(|cx| {
        let going_up = up.poll(client, server, cx).map_err(|side| side.broken(Broken::Client, Broken::Server))?;
        let going_down = down.poll(server, client, cx).map_err(|side| side.broken(Broken::Server, Broken::Client))?;
        connection.idle.store(!up.blocked && !down.blocked, Ordering::Relaxed);
        if going_up.is_ready() && going_down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let wait = if up.blocked || down.blocked {
            Wait::Write
        } else if going_up.is_ready() || going_down.is_ready() {
            Wait::HalfClosed
        } else {
            Wait::Nothing
        };
        let passed = up.passed + down.passed;
        watch.poll(wait, passed, limits, cx).map(Err)
    })
    .await
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Wait {
    #[default]
    Nothing,
    Write,
    HalfClosed,
}

/// Fires when nothing moved for as long as the present state allows. Holds no timer while none is needed.
#[derive(Default)]
struct Watchdog {
    wait: Wait,
    passed: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    fn poll(&mut self, wait: Wait, passed: u64, limits: &Limits, cx: &mut Context<'_>) -> Poll<Broken> {
        if self.wait != wait || self.passed != passed {
            *self = Self { wait, passed, timer: None };
        }
        let (limit, broken) = match wait {
            Wait::Nothing => return Poll::Pending,
            Wait::Write => (limits.write_stall, Broken::Stalled),
            Wait::HalfClosed => (limits.half_close, Broken::HalfClosed),
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(broken)
    }
}

/// Which side of one direction failed.
enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

impl Side {
    fn broken(self, reader: fn(io::Error) -> Broken, writer: fn(io::Error) -> Broken) -> Broken {
        match self {
            Self::Reader(error) => reader(error),
            Self::Writer(error) => writer(error),
        }
    }
}

enum Phase {
    Open,
    Finishing,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Toward {
    Server,
    Client,
}

/// One direction.
struct Half<'a> {
    phase: Phase,
    /// What the writer would not take yet, from `at` on. Empty, and without memory, most of the time.
    left: Vec<u8>,
    at: usize,
    flush: bool,
    /// The writer is what we wait for.
    blocked: bool,
    /// Steps forward, for the watchdog.
    passed: u64,
    count: &'a AtomicU64,
    toward: Toward,
    /// Whether the last byte of either direction went to the client.
    answered: &'a AtomicBool,
}

impl<'a> Half<'a> {
    fn new(count: &'a AtomicU64, toward: Toward, answered: &'a AtomicBool) -> Self {
        let left = Vec::new();
        Self { phase: Phase::Open, left, at: 0, flush: false, blocked: false, passed: 0, count, toward, answered }
    }

    fn poll<R, W>(&mut self, reader: &mut R, writer: &mut W, cx: &mut Context<'_>) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.blocked = true;
        if matches!(self.phase, Phase::Open) {
            ready!(self.drain(writer, cx)).map_err(Side::Writer)?;
            for round in 0.. {
                if round == ROUNDS_MAX {
                    self.blocked = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let mut scratch = Scratch::take();
                let mut buffer = ReadBuf::new(&mut scratch.0);
                match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                    Poll::Pending => {
                        if self.flush {
                            ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Side::Writer)?;
                            self.flush = false;
                        }
                        self.blocked = false;
                        return Poll::Pending;
                    }
                    Poll::Ready(result) => result.map_err(Side::Reader)?,
                }
                let bytes = buffer.filled();
                if bytes.is_empty() {
                    self.phase = Phase::Finishing;
                    break;
                }
                ready!(self.write(bytes, writer, cx)).map_err(Side::Writer)?;
            }
        }
        if matches!(self.phase, Phase::Finishing) {
            ready!(Pin::new(writer).poll_shutdown(cx)).map_err(Side::Writer)?;
            self.phase = Phase::Done;
            self.passed += 1;
        }
        self.blocked = false;
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, and keeps what is not taken.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        mut bytes: &[u8],
        writer: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !bytes.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, bytes)? {
                Poll::Ready(taken) => bytes = self.took(bytes, taken)?,
                Poll::Pending => {
                    self.left = bytes.to_vec();
                    self.at = 0;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was kept, and gives its memory back.
    fn drain<W: AsyncWrite + Unpin>(&mut self, writer: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let left = std::mem::take(&mut self.left);
        let mut bytes = left.get(self.at..).unwrap_or_default();
        while !bytes.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, bytes)? {
                Poll::Ready(taken) => bytes = self.took(bytes, taken)?,
                Poll::Pending => {
                    self.at = left.len() - bytes.len();
                    self.left = left;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn took<'b>(&mut self, bytes: &'b [u8], taken: usize) -> io::Result<&'b [u8]> {
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.passed += 1;
        self.flush = true;
        self.count.fetch_add(taken as u64, Ordering::Relaxed);
        self.answered.store(self.toward == Toward::Client, Ordering::Relaxed);
        Ok(bytes.get(taken..).unwrap_or_default())
    }
}

thread_local! {
    /// One buffer per thread, lent to whichever direction is being polled.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

struct Scratch(Box<[u8]>);

impl Scratch {
    fn take() -> Self {
        Self(SCRATCH.take().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(Some(std::mem::take(&mut self.0)));
    }
}

#[cfg(test)]
mod tests;
