//! Stage 1: how a stream comes in.
//!
//! A sidecar's inbound streams, an edge's streams, and those captured on a service's own loopback address need no
//! words: whoever accepted them knows what they are. A SOCKS5 client says what it wants.

pub(crate) mod socks5;

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

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
