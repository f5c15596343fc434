//! Discovery: the feed of one sidecar, from its first words to the end of its SVID.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use federation_identity::now;
use federation_model::{
    AccountRef, Audience, Body, ConnectionId, Digest, Export, FederationId, InstanceId, MESSAGE_BYTES_MAX,
    MESSAGE_RECORDS_MAX, NamespaceName, ServiceId, ServiceName, ServiceRef, Snapshot, Staleness, VerifiedPeer,
};
use proto::workload::{
    Age, Ages, FeedEvent, FeedRequest, Instances, Records, Serves, Subscribe, Withdraw, discovery_server::Discovery,
    feed_event::Event, feed_request,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Kind, Peer, Refusal,
    feed::{Feed, Scope},
    manage::chosen,
    registry::{Registration, Serving},
    server::Shared,
};

/// How long a sidecar may take to say what it wants.
pub const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(5);
/// Most services that one sidecar may serve.
pub const SERVES_MAX: usize = 64;
/// Most services of one cluster.
pub const SERVICES_MAX: usize = 10_000;
/// Longest passthrough header in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most connections in one message of a sidecar that goes.
const WITHDRAWN_MAX: usize = 1_000;
/// Most digests in one message.
const REMOVED_MAX: usize = 10_000;
/// Least time between two lists of instances: when all sidecars come back at once, each still gets few lists.
const INSTANCES_PAUSE: Duration = Duration::from_millis(100);
/// Time between two lists of ages for up to [`AGES_PER_SECOND`] members, and in proportion for more.
const AGES_INTERVAL: Duration = Duration::from_secs(1);
const AGES_PER_SECOND: usize = 32;
/// Longest time between two lists of ages.
const AGES_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Most events that wait for a slow sidecar; then its feed waits.
const EVENTS_MAX: usize = 16;

type Events = mpsc::Sender<Result<FeedEvent, Status>>;

/// The service; mounted on the TLS listener alone.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Discovery for Service {
    type FeedStream = ReceiverStream<Result<FeedEvent, Status>>;

    async fn feed(&self, request: Request<Streaming<FeedRequest>>) -> Result<Response<Self::FeedStream>, Status> {
        let peer = Peer::of(&request)?;
        let (peer, account) = peer.workload(&self.0.settings.trust_domain, now())?;
        let (peer, requests) = (peer.clone(), request.into_inner());
        let (events, stream) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::clone(&self.0);
        self.0.feeds.spawn(async move {
            if let Err(refusal) = shared.follow(peer, account, requests, &events).await {
                // A sidecar that left needs no reason.
                let _ = events.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Shared {
    /// Feeds one sidecar until it leaves, its SVID ends, or the federation becomes another.
    async fn follow(
        &self,
        peer: VerifiedPeer,
        account: AccountRef,
        mut requests: Streaming<FeedRequest>,
        events: &Events,
    ) -> Result<(), Refusal> {
        let subscribe = first(&mut requests).await?;
        let (mut snapshots, mut records) = (self.links.snapshot(), self.links.records());
        let snapshot = snapshots.borrow_and_update().clone().ok_or_else(Refusal::not_ready)?;
        self.not_revoked(&peer, &snapshot)?;
        let (mut registration, mut feed) = self.subscribe(&peer, &account, subscribe, &snapshot).await?;
        let mut instances = self.registry.changes();
        records.mark_changed();
        let end = Instant::now() + peer.not_after().since(now());
        let mut synced = false;
        let (mut listed, mut list_due) = (Instant::now(), Some(Instant::now()));
        // Before the first records, which are judged by them.
        let opened = Instant::now();
        if !send(events, self.told_ages(opened)).await {
            return Ok(());
        }
        let mut ages_due = opened + ages_interval(snapshot.members.len());
        tracing::info!(spiffe_id = %peer.id(), "feed opened");
        loop {
            tokio::select! {
                () = self.stop.cancelled() => {
                    return Err(Refusal::new(Kind::NotReady, "stopping", "the gateway is stopping: connect again"));
                }
                () = registration.replaced.cancelled() => {
                    return Err(Refusal::new(Kind::State, "replaced", "the same sidecar subscribed again"));
                }
                () = sleep_until(end) => {
                    let message = "the SVID on this connection has ended: connect again with the renewed one";
                    return Err(Refusal::new(Kind::NotProved, "expired", message));
                }
                () = events.closed() => return Ok(()),
                Ok(()) = snapshots.changed() => {
                    let Some(latest) = snapshots.borrow_and_update().clone() else { continue };
                    self.not_revoked(&peer, &latest)?;
                    if latest.federation != snapshot.federation {
                        let message = "this cluster joined another federation: connect again";
                        return Err(Refusal::new(Kind::NotReady, "federation_changed", message));
                    }
                }
                Ok(()) = records.changed() => {
                    let all = records.borrow_and_update().clone();
                    let update = feed.update(&all, &self.forks);
                    if !synced || !update.added.is_empty() || !update.removed.is_empty() {
                        if !send_records(events, update, snapshot.federation).await {
                            return Ok(());
                        }
                        synced = true;
                    }
                }
                Ok(()) = instances.changed() => {
                    instances.borrow_and_update();
                    list_due.get_or_insert(listed + INSTANCES_PAUSE);
                }
                () = sleep_until(list_due.unwrap_or(end)), if list_due.is_some() => {
                    (listed, list_due) = (Instant::now(), None);
                    let event = Event::Instances(Instances { instances: self.registry.serving() });
                    if !send(events, event).await {
                        return Ok(());
                    }
                }
                () = sleep_until(ages_due) => {
                    let members = snapshots.borrow().as_ref().map_or(0, |snapshot| snapshot.members.len());
                    ages_due = Instant::now() + ages_interval(members);
                    if !send(events, self.told_ages(opened)).await {
                        return Ok(());
                    }
                }
                Some(notice) = registration.notices.recv() => {
                    if !send(events, notice).await {
                        return Ok(());
                    }
                }
                request = requests.message() => match request {
                    Ok(Some(FeedRequest { request: Some(feed_request::Request::Withdraw(said)) })) => {
                        self.registry.withdraw(&registration);
                        self.withdraw(said)?;
                    }
                    Ok(Some(request)) => self.extend(request, &peer).await?,
                    // The sidecar closed its side, or is gone.
                    Ok(None) | Err(_) => return Ok(()),
                },
            }
        }
    }

    /// How old the data of every other member is, as said on a feed that was opened then.
    fn told_ages(&self, opened: Instant) -> Event {
        let snapshot = self.links.snapshot().borrow().clone();
        let members = snapshot.iter().flat_map(|held| held.members.present().filter(|member| member.id != held.own));
        let ages = members.filter_map(|member| {
            let age_ms = millis(self.links.data_age(&member.id)?);
            Some(Age { cluster: member.id.as_bytes().to_vec(), age_ms })
        });
        Event::Ages(Ages { ages: ages.collect(), said_at_ms: millis(opened.elapsed()) })
    }

    /// Checks what a sidecar says of itself, and notes it.
    async fn subscribe(
        &self,
        peer: &VerifiedPeer,
        account: &AccountRef,
        subscribe: Subscribe,
        snapshot: &Snapshot,
    ) -> Result<(Registration, Feed), Refusal> {
        let instance = InstanceId::try_from(subscribe.instance.as_slice())
            .map_err(|_| Refusal::invalid("bad_instance", "an instance id has 16 bytes"))?;
        let inbound = inbound(&subscribe)?;
        let mut held = HashSet::with_capacity(subscribe.held.len());
        for digest in &subscribe.held {
            let digest = digest.as_slice().try_into().map(Digest);
            held.insert(digest.map_err(|_| Refusal::invalid("bad_digest", "a digest has 32 bytes"))?);
        }
        if subscribe.serves.len() > SERVES_MAX {
            let message = format!("{} services, a sidecar may serve {SERVES_MAX}", subscribe.serves.len());
            return Err(Refusal::invalid("too_many_serves", message));
        }
        let mut serves = Vec::new();
        for wanted in &subscribe.serves {
            serves.push(self.serve(wanted, account, peer).await?);
        }
        let scope = Scope {
            own: snapshot.own,
            id: peer.id().clone(),
            account: account.clone(),
            serves: serves.iter().map(|(service, namespace)| (namespace.clone(), service.clone())).collect(),
        };
        let what = Serving { instance, account: account.clone(), inbound, serves };
        Ok((self.registry.connect(peer.clone(), what)?, Feed::new(scope, held)))
    }

    /// Whether this account may serve what it says; registers the service if nobody did.
    async fn serve(
        &self,
        wanted: &Serves,
        account: &AccountRef,
        peer: &VerifiedPeer,
    ) -> Result<(ServiceName, NamespaceName), Refusal> {
        let service: ServiceName = wanted.service.parse()?;
        let namespace: NamespaceName =
            if wanted.namespace.is_empty() { NamespaceName::default() } else { wanted.namespace.parse()? };
        let port = port(wanted.port)?;
        // One at a time, so that two sidecars of one service register it once.
        let _turn = self.registering.lock().await;
        let snapshot = self.ready()?;
        let id = ServiceId { service: service.clone(), namespace: namespace.clone(), cluster: snapshot.own };
        if let Some(known) = snapshot.catalog.get(&id) {
            if !known.accounts.contains(account) {
                return Err(not_its_service(&known.name, account, &known.accounts));
            }
            if known.port != port {
                tracing::warn!(service = %known.name, port = known.port, said = port, "a sidecar names another port");
            }
            return Ok((service, namespace));
        }
        let default = AccountRef { account: (&service).into(), namespace: namespace.clone() };
        if default != *account {
            let name = ServiceRef { service, namespace, cluster: snapshot.own_name.clone() };
            return Err(not_its_service(&name, account, &[default]));
        }
        if snapshot.catalog.iter().filter(|known| known.id.cluster == snapshot.own).count() >= SERVICES_MAX {
            let message = format!("this cluster has {SERVICES_MAX} services already");
            return Err(Refusal::new(Kind::Exhausted, "too_many_services", message));
        }
        let staleness = chosen(&wanted.when_stale, wanted.lease_ms, Staleness::default())?;
        let export = Export {
            service: service.clone(),
            namespace: namespace.clone(),
            port,
            accounts: vec![account.clone()],
            staleness,
        };
        let audience = Audience::Member(snapshot.own);
        let record = self.links.write(audience, Body::Service(export), peer.id().to_string()).await?;
        self.published(record, |snapshot| snapshot.catalog.get(&id).is_some()).await;
        tracing::info!(service = %service, %namespace, spiffe_id = %peer.id(), "service registered by its sidecar");
        Ok((service, namespace))
    }

    async fn extend(&self, request: FeedRequest, peer: &VerifiedPeer) -> Result<(), Refusal> {
        match request.request {
            Some(feed_request::Request::Extend(extend)) => {
                let connection = ConnectionId::try_from(extend.connection.as_slice())
                    .map_err(|_| Refusal::invalid("bad_connection", "a connection id has 16 bytes"))?;
                if extend.header.len() > HEADER_BYTES_MAX {
                    let message = format!("a header of {} bytes: at most {HEADER_BYTES_MAX}", extend.header.len());
                    return Err(Refusal::invalid("header_too_long", message));
                }
                self.connections.extend(connection, extend.header, peer.clone()).await;
                Ok(())
            }
            Some(feed_request::Request::Subscribe(_)) => {
                Err(Refusal::invalid("subscribed_twice", "a feed is subscribed to once: open another"))
            }
            // A newer sidecar's words: it goes on without them.
            Some(feed_request::Request::Withdraw(_)) | None => Ok(()),
        }
    }

    /// A sidecar goes: its callers are asked to end their connections to it.
    fn withdraw(&self, said: Withdraw) -> Result<(), Refusal> {
        if said.connections.len() > WITHDRAWN_MAX {
            let message = format!("{} connections in one message: at most {WITHDRAWN_MAX}", said.connections.len());
            return Err(Refusal::invalid("too_many_connections", message));
        }
        let mut connections = Vec::with_capacity(said.connections.len());
        for inbound in &said.connections {
            let id = ConnectionId::try_from(inbound.connection.as_slice())
                .map_err(|_| Refusal::invalid("bad_connection", "a connection id has 16 bytes"))?;
            let source = inbound.source.parse();
            let source = source.map_err(|error| Refusal::invalid("bad_source", format!("{error}")))?;
            connections.push((id, source));
        }
        self.connections.leaving(connections);
        Ok(())
    }
}

/// Time between two lists of ages, for so many members: they change no faster.
fn ages_interval(members: usize) -> Duration {
    let times = u32::try_from(members.div_ceil(AGES_PER_SECOND)).unwrap_or(u32::MAX).max(1);
    AGES_INTERVAL.saturating_mul(times).min(AGES_INTERVAL_MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

async fn first(requests: &mut Streaming<FeedRequest>) -> Result<Subscribe, Refusal> {
    let late = |_| Refusal::invalid("no_subscribe", "nothing was subscribed to within 5 s");
    match timeout(SUBSCRIBE_LIMIT, requests.message()).await.map_err(late)? {
        Ok(Some(FeedRequest { request: Some(feed_request::Request::Subscribe(subscribe)) })) => Ok(subscribe),
        _ => Err(Refusal::invalid("no_subscribe", "the first message of a feed subscribes")),
    }
}

/// Where the sidecar accepts callers. An address, never a name, and not one that leads somewhere else: the edge dials it.
fn inbound(subscribe: &Subscribe) -> Result<Option<SocketAddr>, Refusal> {
    if subscribe.inbound.is_empty() {
        if subscribe.serves.is_empty() {
            return Ok(None);
        }
        return Err(Refusal::invalid("no_inbound", "a sidecar that serves names its inbound listener (address:port)"));
    }
    let shown: String = subscribe.inbound.chars().take(80).collect();
    let wrong = |why| Refusal::invalid("bad_inbound", format!("inbound {shown:?}: {why}"));
    let address: SocketAddr = subscribe.inbound.parse().map_err(|_| {
        wrong("give an IP address and a port; a name is not taken, since the edge would resolve what others control")
    })?;
    let ip = address.ip().to_canonical();
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() || ip.is_multicast() || link_local || address.port() == 0 {
        return Err(wrong("nobody can dial that: name the address at which this cluster reaches the sidecar"));
    }
    Ok(Some(SocketAddr::new(ip, address.port())))
}

pub(crate) fn port(port: u32) -> Result<u16, Refusal> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Refusal::invalid("bad_port", format!("port {port} is not between 1 and 65535"))),
    }
}

fn not_its_service(name: &ServiceRef, account: &AccountRef, may: &[AccountRef]) -> Refusal {
    let may = may.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (service, namespace) = (&name.service, &name.namespace);
    let message = format!(
        "the workload claims another's account: {account} may not serve {name}, which is for {may}; an operator can \
         change that with `hanse service register {service}.{namespace} --port PORT --account {account}`"
    );
    Refusal::new(Kind::NotPermitted, "anothers_account", message)
}

/// Sends an update in messages of bounded size; the last one says that it is the last. Whether the sidecar is there.
async fn send_records(events: &Events, update: crate::feed::Update, federation: FederationId) -> bool {
    let federation = federation.as_bytes().to_vec();
    for removed in update.removed.chunks(REMOVED_MAX) {
        let removed = removed.iter().map(|digest| digest.0.to_vec()).collect();
        if !send(
            events,
            Event::Records(Records { added: Vec::new(), removed, synced: false, federation: federation.clone() }),
        )
        .await
        {
            return false;
        }
    }
    let (mut added, mut bytes) = (Vec::new(), 0);
    for raw in update.added {
        if added.len() >= MESSAGE_RECORDS_MAX || (bytes + raw.len() > MESSAGE_BYTES_MAX && !added.is_empty()) {
            let full = Records {
                added: std::mem::take(&mut added),
                removed: Vec::new(),
                synced: false,
                federation: federation.clone(),
            };
            bytes = 0;
            if !send(events, Event::Records(full)).await {
                return false;
            }
        }
        bytes += raw.len();
        added.push(raw.to_vec());
    }
    send(events, Event::Records(Records { added, removed: Vec::new(), synced: true, federation })).await
}

async fn send(events: &Events, event: Event) -> bool {
    events.send(Ok(FeedEvent { event: Some(event) })).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, wanted: Option<&str>) {
        let subscribe = Subscribe { inbound: text.into(), ..Subscribe::default() };
        let found = inbound(&subscribe).ok().flatten().map(|address| address.to_string());
        assert_eq!(found.as_deref(), wanted, "{text}");
    }

    #[test]
    fn an_edge_dials_addresses_that_lead_to_a_sidecar_and_no_others() {
        check("127.0.0.1:9000", Some("127.0.0.1:9000"));
        check("[::1]:9000", Some("[::1]:9000"));
        check("10.1.2.3:9000", Some("10.1.2.3:9000"));
        check("[::ffff:10.1.2.3]:9000", Some("10.1.2.3:9000"));
        for bad in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "10.0.0.1:0",
            "10.0.0.1",
            "metadata.internal:80",
            "localhost:80",
            "http://10.0.0.1:80",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn who_serves_says_where() {
        let serves = vec![Serves { service: "pay".into(), ..Serves::default() }];
        let subscribe = Subscribe { serves, ..Subscribe::default() };
        assert_eq!(inbound(&subscribe).expect_err("no inbound").reason, "no_inbound");
    }
}
