//! Which connections go over a relay: what is said of them later goes the same way.
//!
//! In: connections as they are dialled over a member that relays. Out: that member, for as long as the stream lives.
//! Bounded by the proxy's connections: one entry each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use federation_link::Tunnel;
use federation_model::{ClusterId, ConnectionId};

/// A relay, and the member to which it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) relay: ClusterId,
    pub(crate) to: ClusterId,
}

/// The connections that go over relays.
#[derive(Clone, Default)]
pub(crate) struct Relays(Arc<Mutex<HashMap<ConnectionId, Way>>>);

impl Relays {
    /// Notes over which relay a connection goes to `to`, if its tunnel ends at another; forgotten with the tunnel.
    pub(crate) fn note(&self, connection: ConnectionId, to: ClusterId, tunnel: Tunnel) -> Tunnel {
        if tunnel.member == to {
            return tunnel;
        }
        self.table().insert(connection, Way { relay: tunnel.member, to });
        tunnel.with(Noted { relays: self.clone(), connection })
    }

    /// The relay over which a connection goes; `None` if it goes straight.
    pub(crate) fn way(&self, connection: &ConnectionId) -> Option<Way> {
        self.table().get(connection).copied()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ConnectionId, Way>> {
        // Each change is one call of the map: what a panic elsewhere leaves is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the note away with the tunnel.
struct Noted {
    relays: Relays,
    connection: ConnectionId,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.relays.table().remove(&self.connection);
    }
}
