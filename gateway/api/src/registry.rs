//! The sidecars of this cluster: who enrolled, who is connected, and what serves what.

mod leaving;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use federation_model::{
    AccountRef, ConnectionId, InstanceId, NamespaceName, ServiceName, SpiffeId, Timestamp, VerifiedPeer,
};
use proto::workload::{self, feed_event::Event};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{Kind, Refusal, metrics};

/// Most sidecars whose feed is open at once.
pub const FEEDS_MAX: usize = 4096;
/// Most enrolments that are remembered for lists. Beyond it the one that ends first is forgotten.
const ENROLLED_MAX: usize = 16_384;
/// Most notices that wait for one sidecar; more are dropped: a denial only saves the callers' waiting, and what is not
/// asked to end is cut later.
pub const NOTICES_MAX: usize = 256;

/// How a workload proved itself the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolledBy {
    Token,
    Uid,
}

impl EnrolledBy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Uid => "uid",
        }
    }
}

/// One process that serves a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub account: AccountRef,
    /// Where its sidecar accepts mTLS.
    pub address: SocketAddr,
}

/// The sidecars of this cluster. A clone is another handle on the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// Counts the changes of what serves what.
    changes: watch::Sender<u64>,
    /// When this registry began, empty: sidecars are still coming back.
    began: Instant,
}

#[derive(Default)]
struct Table {
    feeds: BTreeMap<InstanceId, Feed>,
    enrolled: BTreeMap<SpiffeId, (EnrolledBy, Timestamp)>,
    /// When the last instance that served a service said that it goes.
    left: BTreeMap<(ServiceName, NamespaceName), Instant>,
    generation: u64,
}

struct Feed {
    peer: VerifiedPeer,
    what: Serving,
    notices: mpsc::Sender<Event>,
    replaced: CancellationToken,
    /// It said that it goes: nothing new is sent to it.
    withdrawn: bool,
    generation: u64,
}

impl Feed {
    fn instance(&self) -> Option<Instance> {
        self.what.instance().filter(|_| !self.withdrawn)
    }
}

/// What a sidecar says of itself when it subscribes, once it was checked.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) instance: InstanceId,
    pub(crate) account: AccountRef,
    pub(crate) inbound: Option<SocketAddr>,
    pub(crate) serves: Vec<(ServiceName, NamespaceName)>,
}

/// A sidecar's entry; dropping it takes the sidecar off the list.
pub(crate) struct Registration {
    registry: Registry,
    instance: InstanceId,
    generation: u64,
    pub(crate) notices: mpsc::Receiver<Event>,
    /// Cancelled when the same sidecar subscribed again.
    pub(crate) replaced: CancellationToken,
}

/// A workload as lists show it.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) id: SpiffeId,
    pub(crate) enrolled_by: Option<EnrolledBy>,
    pub(crate) not_after: Timestamp,
    pub(crate) serving: Option<Serving>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    pub fn new() -> Self {
        Self(Arc::new(Inner { table: Mutex::default(), changes: watch::Sender::new(0), began: Instant::now() }))
    }

    /// Every connected process that serves this service of the own cluster.
    pub fn instances(&self, service: &ServiceName, namespace: &NamespaceName) -> Vec<Instance> {
        let table = self.table();
        let serves = |what: &Serving| what.serves.iter().any(|(name, space)| name == service && space == namespace);
        table.feeds.values().filter(|feed| serves(&feed.what)).filter_map(Feed::instance).collect()
    }

    /// One connected process.
    pub fn instance(&self, id: &InstanceId) -> Option<Instance> {
        self.table().feeds.get(id).and_then(Feed::instance)
    }

    /// Changes whenever a process that serves comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Sidecars whose feed is open.
    pub fn connected(&self) -> usize {
        self.table().feeds.len()
    }

    /// Tells the sidecars of `source` that an edge refused one of their connections. `reason` is the denial's word.
    pub fn denied(&self, source: &SpiffeId, connection: ConnectionId, reason: &str, detail: &str) {
        let table = self.table();
        for feed in table.feeds.values().filter(|feed| feed.peer.id() == source) {
            let denied = workload::Denied {
                connection: connection.0.to_vec(),
                reason: reason.to_owned(),
                detail: detail.to_owned(),
            };
            let _ = feed.notices.try_send(Event::Denied(denied));
        }
    }

    /// Notes that a workload got an SVID. `by` is `None` for a renewal, which keeps what was known.
    pub(crate) fn enrolled(&self, id: &SpiffeId, by: Option<EnrolledBy>, not_after: Timestamp) {
        let mut table = self.table();
        let known = table.enrolled.get(id).map(|(by, _)| *by);
        let Some(by) = by.or(known) else { return };
        if known.is_none() && table.enrolled.len() >= ENROLLED_MAX {
            let first = table.enrolled.iter().min_by_key(|(_, (_, end))| *end).map(|(id, _)| id.clone());
            if let Some(first) = first {
                table.enrolled.remove(&first);
            }
        }
        table.enrolled.insert(id.clone(), (by, not_after));
    }

    pub(crate) fn remembers(&self, id: &SpiffeId) -> bool {
        self.table().enrolled.contains_key(id)
    }

    /// Adds a sidecar. One that subscribes again takes its own place.
    pub(crate) fn connect(&self, peer: VerifiedPeer, what: Serving) -> Result<Registration, Refusal> {
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let replaced = CancellationToken::new();
        let instance = what.instance;
        let mut table = self.table();
        match table.feeds.get(&instance) {
            Some(held) if held.peer.id() != peer.id() => {
                let message = format!("instance {instance} belongs to another workload: each process makes its own id");
                return Err(Refusal::new(Kind::NotPermitted, "instance_taken", message));
            }
            Some(held) => held.replaced.cancel(),
            None if table.feeds.len() >= FEEDS_MAX => {
                let message = format!("{FEEDS_MAX} sidecars are connected already: run another edge for more");
                return Err(Refusal::new(Kind::Exhausted, "too_many_feeds", message));
            }
            None => {}
        }
        table.generation += 1;
        let generation = table.generation;
        let feed = Feed { peer, what, notices: sender, replaced: replaced.clone(), withdrawn: false, generation };
        table.feeds.insert(instance, feed);
        metrics::feeds(table.feeds.len());
        drop(table);
        self.changed();
        Ok(Registration { registry: self.clone(), instance, generation, notices, replaced })
    }

    /// Everything that serves, for the feed.
    pub(crate) fn serving(&self) -> Vec<workload::Instance> {
        let table = self.table();
        let mut all = Vec::new();
        for feed in table.feeds.values() {
            let Some(instance) = feed.instance() else { continue };
            for (service, namespace) in &feed.what.serves {
                all.push(workload::Instance {
                    service: service.to_string(),
                    namespace: namespace.to_string(),
                    instance: instance.id.0.to_vec(),
                    address: instance.address.to_string(),
                });
            }
        }
        all
    }

    /// Every workload that enrolled or is connected, in order of identity; several processes of one are several.
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        let table = self.table();
        let mut all: Vec<Workload> = table
            .feeds
            .values()
            .map(|feed| Workload {
                id: feed.peer.id().clone(),
                enrolled_by: table.enrolled.get(feed.peer.id()).map(|(by, _)| *by),
                not_after: feed.peer.not_after(),
                serving: Some(feed.what.clone()),
            })
            .collect();
        let connected: BTreeSet<SpiffeId> = all.iter().map(|workload| workload.id.clone()).collect();
        for (id, (by, not_after)) in &table.enrolled {
            if !connected.contains(id) {
                let (enrolled_by, not_after) = (Some(*by), *not_after);
                all.push(Workload { id: id.clone(), enrolled_by, not_after, serving: None });
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Nothing panics while it holds the lock half way through a change, so a poisoned table is still whole.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serving {
    fn instance(&self) -> Option<Instance> {
        let address = self.inbound?;
        Some(Instance { id: self.instance, account: self.account.clone(), address })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        // A newer subscription of the same process has its own entry by now.
        if table.feeds.get(&self.instance).is_some_and(|feed| feed.generation == self.generation) {
            table.feeds.remove(&self.instance);
            metrics::feeds(table.feeds.len());
            drop(table);
            self.registry.changed();
        }
    }
}
