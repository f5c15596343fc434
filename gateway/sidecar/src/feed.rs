//! The discovery feed: what concerns this workload, kept live for as long as the process runs.
//!
//! In: the edge's stream, or what was kept from it. Out: snapshots and their age, the instances of the own cluster,
//! denials.
//! Never: forgets what it has because the edge is away.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use federation_identity::{LiveSvid, Svid, Verifier};
use federation_model::{ConnectionId, Digest, FederationId, InstanceId, NamespaceName, ServiceName, Snapshot};
use gateway_proxy::{HOLD, NOTICE_MAX, Proxy};
use proto::workload::{
    FeedEvent, FeedRequest, Subscribe, discovery_client::DiscoveryClient, feed_event::Event, feed_request::Request,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::{
    ages::{EdgeClock, Heard},
    identity::{self, Home},
    presence::Presence,
    records::Records,
    state::State,
};

/// First and longest wait between two tries to reach the edge.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest wait while an edge that went a moment ago is expected back.
const RETRY_SOON: Duration = Duration::from_millis(250);
/// Pause before another try at an instance that is listed but could not be dialled.
const AGAIN: Duration = Duration::from_millis(50);
/// Most requests to the edge that wait to be sent; more are dropped: their passages end early, or are not ended in order.
pub(crate) const OUTGOING_MAX: usize = 1024;
/// Requests that wait to be sent to the edge.
const REQUESTS_MAX: usize = 16;
/// Largest event that is taken from the edge.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most instances that are taken from the edge.
const INSTANCES_MAX: usize = 100_000;

/// Where the services of the own cluster are served, by what name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Instances(Arc<watch::Sender<Listed>>);

type Key = (ServiceName, NamespaceName);
type Table = BTreeMap<Key, Vec<(InstanceId, SocketAddr)>>;

/// What serves, and since when nothing does of what was served lately.
#[derive(Debug, Default)]
struct Listed {
    table: Table,
    left: BTreeMap<Key, Instant>,
}

impl Instances {
    /// Everything that serves it, in no order that means anything.
    pub(crate) fn of(&self, service: &ServiceName, namespace: &NamespaceName) -> Vec<(InstanceId, SocketAddr)> {
        self.0.borrow().table.get(&(service.clone(), namespace.clone())).cloned().unwrap_or_default()
    }

    /// Waits until something serves it, or serves it anew. `false` at once if nothing did within `hold`.
    pub(crate) async fn back(&self, service: &ServiceName, namespace: &NamespaceName, hold: Duration) -> bool {
        let key = (service.clone(), namespace.clone());
        let mut changes = self.0.subscribe();
        if self.0.borrow().table.contains_key(&key) {
            // It came just now, or is gone and the edge has not noticed yet.
            let _ = timeout(AGAIN, changes.changed()).await;
            return true;
        }
        let left = self.0.borrow().left.get(&key).copied();
        let Some(rest) = left.and_then(|left| hold.checked_sub(left.elapsed())) else { return false };
        matches!(timeout(rest, changes.wait_for(|listed| listed.table.contains_key(&key))).await, Ok(Ok(_)))
    }

    fn set(&self, instances: Vec<proto::workload::Instance>) {
        let mut table = Table::new();
        for instance in instances.into_iter().take(INSTANCES_MAX) {
            let parsed = (
                instance.service.parse(),
                instance.namespace.parse(),
                InstanceId::try_from(instance.instance.as_slice()),
                instance.address.parse(),
            );
            if let (Ok(service), Ok(namespace), Ok(id), Ok(address)) = parsed {
                table.entry((service, namespace)).or_default().push((id, address));
            }
        }
        self.0.send_modify(|listed| {
            listed.left.retain(|key, left| left.elapsed() < HOLD && !table.contains_key(key));
            for key in std::mem::take(&mut listed.table).into_keys().filter(|key| !table.contains_key(key)) {
                listed.left.insert(key, Instant::now());
            }
            listed.table = table;
        });
    }
}

/// A feed that stands.
struct Open {
    clock: EdgeClock,
    requests: mpsc::Sender<FeedRequest>,
    events: tonic::Streaming<FeedEvent>,
}

/// What the feed is told of a connection that an edge refused.
pub(crate) type Refused = (ConnectionId, String, String);

/// Everything that the feed works with.
pub(crate) struct Feed {
    pub(crate) home: watch::Receiver<Home>,
    /// Tells the keeper of the identity that the edge is not where it was.
    pub(crate) astray: Arc<Notify>,
    pub(crate) live: LiveSvid,
    pub(crate) verifier: Verifier,
    pub(crate) state: State,
    pub(crate) subscribe: Subscribe,
    pub(crate) instances: Instances,
    /// How old what the edge knows of the others is.
    pub(crate) heard: Heard,
    pub(crate) snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    /// What goes to the edge.
    pub(crate) outgoing: mpsc::Receiver<Request>,
    pub(crate) presence: Presence,
    pub(crate) proxy: Proxy,
    pub(crate) refused: mpsc::Sender<Refused>,
}

impl Feed {
    /// Publishes what was kept from before, then follows the edge until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let home = self.home.borrow().clone();
        let mut records = Records::new(home.cluster, home.replication_key, home.federation);
        let kept = self.state.records();
        if !kept.is_empty() {
            records.add(kept);
            self.publish(&mut records);
        }
        let mut wait = RETRY.0;
        loop {
            let mut synced = false;
            tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(&mut records, &mut synced) => match ended {
                    Ok(()) => tracing::warn!("the edge ended the feed; serving from the last snapshot"),
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "no feed; serving from the last snapshot");
                    }
                },
            }
            self.presence.away(false);
            if synced {
                wait = RETRY.0;
            } else {
                self.astray.notify_one();
            }
            if self.presence.went_lately(HOLD) {
                wait = wait.min(RETRY_SOON);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                // The edge may be somewhere else now.
                Ok(()) = self.home.changed() => {}
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    async fn follow(&mut self, records: &mut Records, synced: &mut bool) -> Result<()> {
        let mut current = self.open(records).await?;
        // Kept until its successor has spoken, so that the edge never lacks this instance.
        let mut previous = None;
        loop {
            tokio::select! {
                event = current.events.next() => match event {
                    Some(event) => {
                        previous = None;
                        self.take(event?, &mut current.clock, records, synced).await;
                    }
                    None => return Ok(()),
                },
                Some(request) = self.outgoing.recv() => {
                    current.requests.send(FeedRequest { request: Some(request) }).await?;
                }
                // Renewed: the edge ends a feed with the SVID that opened it, so its successor is opened before that.
                Ok(()) = self.home.changed() => match self.open(records).await {
                    Ok(next) => {
                        drop(previous.take());
                        previous = Some(std::mem::replace(&mut current, next));
                    }
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "the feed has no successor yet"),
                },
            }
        }
    }

    async fn open(&mut self, records: &Records) -> Result<Open> {
        let home = self.home.borrow_and_update().clone();
        let channel = identity::discovery(&home, &self.live, &self.verifier).await?;
        let (requests, stream) = mpsc::channel(REQUESTS_MAX);
        let held = records.digests().map(|digest| digest.0.to_vec()).collect();
        let subscribe = Subscribe { held, ..self.subscribe.clone() };
        let first = FeedRequest { request: Some(Request::Subscribe(subscribe)) };
        requests.send(first).await.context("the feed's first request")?;
        let events = DiscoveryClient::new(channel)
            .max_decoding_message_size(EVENT_BYTES_MAX)
            .feed(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Open { clock: EdgeClock::default(), requests, events })
    }

    async fn take(&mut self, event: FeedEvent, clock: &mut EdgeClock, records: &mut Records, synced: &mut bool) {
        match event.event {
            Some(Event::Records(update)) => {
                if let Ok(federation) = FederationId::try_from(update.federation.as_slice())
                    && federation != records.federation()
                {
                    tracing::info!(%federation, "the cluster joined another federation");
                    let home = self.home.borrow().clone();
                    *records = Records::new(home.cluster, home.replication_key, federation);
                    self.heard.forget();
                }
                let removed: Vec<Digest> =
                    update.removed.iter().filter_map(|digest| digest.as_slice().try_into().ok().map(Digest)).collect();
                records.remove(&removed);
                let refused = records.add(update.added);
                if refused > 0 {
                    tracing::warn!(refused, "the edge sent records that do not verify");
                }
                if update.synced {
                    *synced = true;
                    self.publish(records);
                    self.presence.here();
                    if let Err(error) = self.state.keep_records(records.raw()) {
                        tracing::error!(error = format!("{error:#}"), "cannot keep the feed's records");
                    }
                }
            }
            Some(Event::Instances(update)) => self.instances.set(update.instances),
            Some(Event::Ages(ages)) => clock.take(&self.heard, &ages),
            Some(Event::Denied(denied)) => {
                if let Ok(connection) = ConnectionId::try_from(denied.connection.as_slice()) {
                    // A full queue means that many are being cut already.
                    let _ = self.refused.try_send((connection, denied.reason, denied.detail));
                }
            }
            Some(Event::Leaving(leaving)) => {
                if leaving.edge {
                    tracing::info!("the edge goes; new connections wait for its successor");
                    self.presence.away(true);
                }
                let ids = leaving.connections.iter().filter_map(|id| ConnectionId::try_from(id.as_slice()).ok());
                self.proxy.leaving(&ids.take(NOTICE_MAX).collect::<Vec<_>>(), None);
            }
            None => {}
        }
    }

    fn publish(&self, records: &mut Records) {
        match records.snapshot() {
            Some(snapshot) => {
                self.verifier.publish(&snapshot.bundles);
                let revoked = |svid: &Svid| snapshot.bundles.is_revoked(svid.id().trust_domain(), &svid.key_digest());
                if self.live.get().is_some_and(|svid| revoked(&svid)) {
                    tracing::warn!("the key of this sidecar was revoked: it asks for another");
                    self.astray.notify_one();
                }
                self.snapshot.send_replace(Some(Arc::new(snapshot)));
            }
            None => tracing::warn!(federation = %records.federation(), "the records hold no snapshot yet"),
        }
    }
}
