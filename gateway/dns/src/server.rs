//! The sockets of the mesh DNS.
//!
//! In: bound sockets and what to answer from. Out: answers. Never: spawns a task for a datagram, or holds more than
//! [`TCP_CONNECTIONS_MAX`] connections.

use std::{
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use federation_model::{Ages, Snapshot};
use metrics::{counter, gauge, histogram};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Addresses, REQUEST_BYTES_MAX,
    metrics::{ANSWER, DROPPED, QUERIES, TCP_CONNECTIONS, TRUNCATED},
    wire::{Reply, Transport, respond},
};

/// Most TCP connections at a time, over all listeners. One more is closed at once.
pub const TCP_CONNECTIONS_MAX: usize = 64;
/// How long a TCP connection may take for its next whole query, or to take an answer (RFC 7766, 6.2.3).
pub const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long a TCP connection may live at all, so that a busy few cannot hold every place for ever.
pub const TCP_LIFETIME: Duration = Duration::from_secs(60);
/// Rest after a socket error that is nobody's query, so that a broken socket does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What answers are made from.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The newest snapshot; `None` answers SERVFAIL.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub addresses: Addresses,
    /// How old what the snapshot says of each other cluster is.
    pub ages: Ages,
}

/// Answers on all of the given sockets until `stop` is cancelled; open connections end with it.
///
/// Bind them to loopback: whoever reaches them learns which services this process may see. A datagram that came to one
/// of several addresses of an unspecified bind may be answered from another.
pub async fn serve(udp: Vec<UdpSocket>, tcp: Vec<TcpListener>, inputs: Inputs, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let places = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
    for socket in udp {
        tasks.spawn(serve_udp(socket, inputs.clone()));
    }
    for listener in tcp {
        tasks.spawn(serve_tcp(listener, inputs.clone(), Arc::clone(&places)));
    }
    stop.cancelled().await;
    tasks.shutdown().await;
}

async fn serve_udp(socket: UdpSocket, inputs: Inputs) {
    // One byte more than the bound, so that a longer query shows as too long instead of being cut to one that fits.
    let mut buffer = vec![0; REQUEST_BYTES_MAX + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                pause(&error, "udp receive failed").await;
                continue;
            }
        };
        // Nothing can be sent to port 0.
        if from.port() == 0 {
            counter!(DROPPED, "reason" => "port").increment(1);
            continue;
        }
        let Some(answer) = buffer.get(..length).and_then(|request| inputs.answer(request, Transport::Udp)) else {
            continue;
        };
        if let Err(error) = socket.send_to(&answer, from).await {
            counter!(DROPPED, "reason" => "send").increment(1);
            tracing::debug!(%error, "udp answer could not be sent");
        }
    }
}

async fn serve_tcp(listener: TcpListener, inputs: Inputs, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause(&error, "tcp accept failed").await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let place = Place::new(place);
                let inputs = inputs.clone();
                connections.spawn(async move {
                    let _place = place;
                    // Either end of this bound closes the connection: nothing more is owed to the client.
                    let _ = timeout(TCP_LIFETIME, serve_connection(stream, from, inputs)).await;
                });
            }
            Err(_) => counter!(DROPPED, "reason" => "connections").increment(1),
        }
    }
}

/// A taken place among the connections, counted for as long as it is held.
struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        gauge!(TCP_CONNECTIONS).increment(1);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        gauge!(TCP_CONNECTIONS).decrement(1);
    }
}

/// Queries one after another, each with its length before it (RFC 1035, 4.2.2), until the client is done or too slow.
async fn serve_connection(mut stream: TcpStream, from: SocketAddr, inputs: Inputs) {
    loop {
        match timeout(TCP_IDLE, exchange(&mut stream, &inputs)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, client = %from, "tcp connection ended");
                return;
            }
        }
    }
}

/// Reads one query and writes its answer. False when the connection should end.
async fn exchange(stream: &mut TcpStream, inputs: &Inputs) -> io::Result<bool> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    };
    if length > REQUEST_BYTES_MAX {
        counter!(DROPPED, "reason" => "long").increment(1);
        return Ok(false);
    }
    let mut request = vec![0; length];
    stream.read_exact(&mut request).await?;
    let Some(answer) = inputs.answer(&request, Transport::Tcp) else { return Ok(false) };
    // One write, so that length and message leave in one segment (RFC 7766, 8).
    let Ok(length) = u16::try_from(answer.len()) else { return Ok(false) };
    let mut framed = Vec::with_capacity(2 + answer.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&answer);
    stream.write_all(&framed).await?;
    Ok(true)
}

impl Inputs {
    /// The bytes of the answer, counted; `None` if the query is to be dropped.
    fn answer(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let begun = Instant::now();
        let snapshot = self.snapshot.borrow().clone();
        // The codec is not ours: should a crafted message make it panic, that costs the message and not the service.
        let reply = catch_unwind(AssertUnwindSafe(|| {
            respond(snapshot.as_deref(), &self.addresses, &self.ages, request, transport)
        }));
        match reply {
            Ok(Reply::Send { bytes, rcode, truncated }) => {
                counter!(QUERIES, "rcode" => rcode.as_str(), "transport" => transport.as_str()).increment(1);
                histogram!(ANSWER).record(begun.elapsed());
                if truncated {
                    counter!(TRUNCATED).increment(1);
                }
                Some(bytes)
            }
            Ok(Reply::Drop(reason)) => {
                counter!(DROPPED, "reason" => reason).increment(1);
                None
            }
            Err(_) => {
                counter!(DROPPED, "reason" => "panic").increment(1);
                tracing::error!("a query made the DNS codec panic and was dropped: please report this");
                None
            }
        }
    }
}

async fn pause(error: &io::Error, what: &'static str) {
    counter!(DROPPED, "reason" => "socket").increment(1);
    tracing::debug!(%error, "{what}");
    sleep(ERROR_PAUSE).await;
}

#[cfg(test)]
mod tests;
