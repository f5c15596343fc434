//! Stage 1: how a stream comes in.
//!
//! A sidecar's inbound streams, an edge's streams, and those captured on a service's own loopback address need no
//! words: whoever accepted them knows what they are. A SOCKS5 client says what it wants.

pub(crate) mod socks5;

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
};
use tokio_util::sync::CancellationToken;

use crate::{Core, metrics};

/// A place among those that have not proved who they are; `None` when all are taken. The stream is then dropped unheard
/// and counted, with neither log line nor event: whoever floods must not fill those too.
pub(crate) fn place(core: &Core) -> Option<OwnedSemaphorePermit> {
    let place = Arc::clone(&core.unproved).try_acquire_owned().ok();
    if place.is_none() {
        metrics::unheard();
    }
    place
}

/// Pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop`, and gives each stream, without delay of small segments, to a task of its own.
///
/// Never ends by itself: an error is one connection's, or a shortage that passes.
pub async fn listen<F, W>(listener: TcpListener, stop: CancellationToken, handle: F)
where
    F: Fn(TcpStream) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Requests and answers are often one segment; waiting to fill it costs a delayed acknowledgement.
                let _ = stream.set_nodelay(true);
                tokio::spawn(handle(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
