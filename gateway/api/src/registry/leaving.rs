//! What ends in good order, told to the sidecars and by them: the edge itself, and instances.
//!
//! In: that this edge goes, that connections are to end, that a sidecar goes. Out: notices on feeds, instances to which
//! nothing new is sent, and a wait for their successors. Never: ends a feed or a connection.

use std::time::Duration;

use federation_model::{ConnectionId, NamespaceName, ServiceName, SpiffeId};
use proto::workload::{self, feed_event::Event};
use tokio::time::{Instant, timeout};

use super::{Registration, Registry};

/// Most services of which it is remembered that an instance left; beyond it the oldest is forgotten.
const LEFT_MAX: usize = 1_024;
/// Pause before another try where an instance is known but could not be dialled.
const AGAIN: Duration = Duration::from_millis(50);

impl Registry {
    /// Tells every sidecar that this edge goes: it waits for the successor with what is new.
    pub fn leave(&self) {
        let leaving = workload::Leaving { edge: true, connections: Vec::new() };
        for feed in self.table().feeds.values() {
            let _ = feed.notices.try_send(Event::Leaving(leaving.clone()));
        }
    }

    /// Tells the sidecars of `source` that connections of theirs shall end at their next quiet moment; at most 1,000.
    pub fn leaving(&self, source: &SpiffeId, connections: &[ConnectionId]) {
        let connections: Vec<_> = connections.iter().map(|connection| connection.0.to_vec()).collect();
        for feed in self.table().feeds.values().filter(|feed| feed.peer.id() == source) {
            let leaving = workload::Leaving { edge: false, connections: connections.clone() };
            let _ = feed.notices.try_send(Event::Leaving(leaving));
        }
    }

    /// Waits until something serves this service, or serves it anew. `false` at once if nothing says that there will be:
    /// no instance said within `hold` that it goes, and this registry did not begin within it.
    pub async fn back(&self, service: &ServiceName, namespace: &NamespaceName, hold: Duration) -> bool {
        let mut changes = self.changes();
        if !self.instances(service, namespace).is_empty() {
            // It came just now, or is gone and its feed has not ended yet.
            let _ = timeout(AGAIN, changes.changed()).await;
            return true;
        }
        loop {
            let left = self.table().left.get(&(service.clone(), namespace.clone())).copied();
            let left = left.unwrap_or(self.0.began).max(self.0.began);
            let Some(rest) = hold.checked_sub(left.elapsed()) else { return false };
            if !matches!(timeout(rest, changes.changed()).await, Ok(Ok(()))) {
                return false;
            }
            if !self.instances(service, namespace).is_empty() {
                return true;
            }
        }
    }

    /// A sidecar goes: nothing new is sent to it.
    pub(crate) fn withdraw(&self, registration: &Registration) {
        let mut table = self.table();
        let table = &mut *table;
        let Some(feed) = table.feeds.get_mut(&registration.instance) else { return };
        if feed.generation != registration.generation || std::mem::replace(&mut feed.withdrawn, true) {
            return;
        }
        for serves in &feed.what.serves {
            if table.left.len() >= LEFT_MAX {
                let oldest = table.left.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
                oldest.map(|oldest| table.left.remove(&oldest));
            }
            table.left.insert(serves.clone(), Instant::now());
        }
        self.changed();
    }
}
