//! The TLS listener: handshakes side by side, each within its time, and every peer judged before its first request.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use federation_identity::{Verifier, now};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{CONNECTIONS_MAX, Connection, Peer, STRANGER_LIMIT},
    metrics,
};

/// How long a handshake may take.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Most handshakes at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Wait after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Accepted = Connection<TlsStream<TcpStream>>;

/// Accepts until `stop`, and hands on each connection whose handshake succeeded.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    verifier: Verifier,
    connections: mpsc::Sender<io::Result<Accepted>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropping the set ends the handshakes that are under way.
    let mut tasks = JoinSet::new();
    loop {
        // Taken before the accept, so that a flood waits in the kernel's queue rather than here.
        let permits = async {
            let handshake = Arc::clone(&handshakes).acquire_owned().await;
            (handshake, Arc::clone(&room).acquire_owned().await)
        };
        let (Ok(handshake), Ok(place)) = (tokio::select! {
            () = stop.cancelled() => return,
            permits = permits => permits,
        }) else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        while tasks.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                let shake = shake(acceptor.clone(), stream, from.ip().to_canonical(), verifier.clone(), place);
                let connections = connections.clone();
                tasks.spawn(async move {
                    let connection = shake.await;
                    drop(handshake);
                    if let Some(connection) = connection {
                        let _ = connections.send(Ok(connection)).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the discovery listener");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: IpAddr,
    verifier: Verifier,
    place: OwnedSemaphorePermit,
) -> Option<Accepted> {
    let _ = stream.set_nodelay(true);
    let refused = |reason: &'static str| {
        metrics::handshake(reason);
        None
    };
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            return refused("failed");
        }
        Err(_) => return refused("timeout"),
    };
    let now = now();
    let (peer, life) = match stream.get_ref().1.peer_certificates() {
        None => (None, STRANGER_LIMIT),
        Some(chain) => match verifier.tls_peer(chain, now) {
            Ok(peer) => {
                let life = peer.not_after().since(now);
                (Some(peer), life)
            }
            Err(error) => {
                tracing::debug!(reason = error.reason(), "a client's certificate was refused");
                return refused("certificate");
            }
        },
    };
    metrics::handshake("ok");
    Some(Connection::new(stream, Peer::Remote { peer, address }, Some(life), place))
}
