//! Two clusters, four proxies and an application: what the other tests play in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use federation_identity::{LiveSvid, LocalSigner, Signer, Svid, SvidKey, Verifier, now, sha256, tls};
use federation_model::{
    Accept, AccountRef, Action, Ages, Approval, Audience, Authorizer, Body, Bundles, ClusterId, ConnectionId, Denial,
    DenialReason, DestinationPattern, FederationId, InstanceId, Intention, IntentionKey, Layer, Member, MemberState,
    Members, Record, RecordId, Relay, RuleState, Service, ServiceCatalog, ServiceId, ServiceRef, Snapshot,
    SourcePattern, Timestamp, TrustDomain, VerifiedPeer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};

use crate::{
    AccessEvent, AuditSink, BoxFuture, BoxStream, Control, Dial, Direction, Inputs, Leave, Limits, Next, Notice, Proxy,
    Route, Told, boxed,
    connections::{Connections, Registered, Registration},
};

pub(crate) const ALLOW: &[Rule] = &[(Action::Allow, "web.shop.east", "payments.billing.west")];
pub(crate) const NOTHING: &[Rule] = &[];
pub(crate) type Rule = (Action, &'static str, &'static str);

/// Two clusters that know each other.
pub(crate) struct World {
    signers: HashMap<&'static str, LocalSigner>,
    pub(crate) members: Members,
    pub(crate) bundles: Bundles,
}

impl World {
    pub(crate) fn new() -> Self {
        let (mut signers, mut members, mut bundles) = (HashMap::new(), Members::default(), Bundles::default());
        for name in ["east", "west"] {
            let domain: TrustDomain = format!("{name}.mesh.internal").parse().unwrap();
            let (signer, _) = LocalSigner::generate(&domain, &name.parse().unwrap(), now()).unwrap();
            let candidate = signer.candidate();
            bundles.update(signer.bundle(1)).unwrap();
            members.insert(Member {
                id: candidate.id,
                name: candidate.name,
                trust_domain: domain,
                root: candidate.root.into(),
                replication_key: candidate.replication_key,
                sealing_key: candidate.sealing_key,
                sponsor: candidate.id,
                admitted_at: now(),
                lawmaker: name == "east",
                state: MemberState::Active,
                evicted_by: vec![],
                accept: Accept::Federation,
                approval: Approval::Auto,
                relay: Relay::Nobody,
                endpoints: vec![],
            });
            signers.insert(name, signer);
        }
        Self { signers, members, bundles }
    }

    pub(crate) fn id(&self, cluster: &str) -> ClusterId {
        self.members.by_name(&cluster.parse().unwrap()).unwrap().id
    }

    /// An SVID for `account.namespace.cluster`, for an hour.
    pub(crate) fn workload(&self, account: &str) -> Svid {
        self.workload_for(account, Duration::from_secs(3600))
    }

    pub(crate) fn workload_for(&self, account: &str, ttl: Duration) -> Svid {
        let [account, namespace, cluster] = account.split('.').collect::<Vec<_>>()[..] else { panic!("{account}") };
        let domain: TrustDomain = format!("{cluster}.mesh.internal").parse().unwrap();
        let account = AccountRef { account: account.parse().unwrap(), namespace: namespace.parse().unwrap() };
        let (key, signer) = (SvidKey::generate(), &self.signers[cluster]);
        let issued = signer.sign_svid(&domain.account(&account), &key.csr(), ttl, now()).unwrap();
        Svid::assemble(key, issued.chain).unwrap()
    }

    pub(crate) fn edge_for(&self, cluster: &str, ttl: Duration) -> Svid {
        let domain: TrustDomain = format!("{cluster}.mesh.internal").parse().unwrap();
        let (key, signer) = (SvidKey::generate(), &self.signers[cluster]);
        let id = domain.edge(&cluster.parse().unwrap());
        let issued = signer.sign_svid(&id, &key.csr(), ttl, now()).unwrap();
        Svid::assemble(key, issued.full_chain()).unwrap()
    }

    pub(crate) fn verifier(&self) -> Verifier {
        let verifier = Verifier::new();
        assert!(verifier.publish(&self.bundles).is_empty());
        verifier
    }

    pub(crate) fn service(&self, text: &str) -> Service {
        let name: ServiceRef = text.parse().unwrap();
        let account = AccountRef { account: (&name.service).into(), namespace: name.namespace.clone() };
        let cluster = self.id(name.cluster.as_str());
        Service {
            id: ServiceId { service: name.service.clone(), namespace: name.namespace.clone(), cluster },
            trust_domain: format!("{}.mesh.internal", name.cluster).parse().unwrap(),
            name,
            port: 8080,
            accounts: vec![account],
            exported: true,
            staleness: Default::default(),
        }
    }

    /// The law as cluster `own` sees it: each rule written by the destination's cluster, west.
    pub(crate) fn snapshot(&self, own: &str, revision: u64, rules: &[Rule]) -> Snapshot {
        let writer = self.id("west");
        let records: Vec<(RecordId, Record)> = rules
            .iter()
            .enumerate()
            .map(|(place, (action, source, destination))| {
                let key = IntentionKey {
                    source: SourcePattern::parse(source, *action, writer, &self.members).unwrap(),
                    destination: DestinationPattern::parse(destination, &self.members).unwrap(),
                    layer: Layer::Rule,
                };
                let (seq, digest) = (place as u64 + 1, sha256(&[place as u8, revision as u8]));
                let id = RecordId { writer, audience: Audience::Law, epoch: 1, seq, digest };
                let record = Record {
                    federation: FederationId::from_digest(sha256(b"federation")),
                    writer,
                    audience: Audience::Law,
                    epoch: 1,
                    seq,
                    previous: sha256(b"previous"),
                    replaces: vec![],
                    author: "test".into(),
                    written_at: now(),
                    body: Body::Intention(Intention { key, state: RuleState::Is(*action) }),
                };
                (id, record)
            })
            .collect();
        let rules = records.iter().map(|(id, record)| (*id, record));
        let mut catalog = ServiceCatalog::default();
        catalog.insert(self.service("payments.billing.west"));
        catalog.insert(self.service("ledger.billing.west"));
        let member = self.members.by_name(&own.parse().unwrap()).unwrap();
        Snapshot {
            revision,
            own: member.id,
            own_name: member.name.clone(),
            own_trust_domain: member.trust_domain.clone(),
            own_state: MemberState::Active,
            federation: FederationId::from_digest(sha256(b"federation")),
            authorizer: Authorizer::compile(rules, &self.members).at(member.id, revision),
            members: self.members.clone().into(),
            bundles: self.bundles.clone().into(),
            catalog,
            held: vec![],
        }
    }
}

/// A registered connection that nothing carries, for tests of single stages.
pub(crate) fn registered(registry: &Arc<Connections>) -> Registered {
    let world = World::new();
    let svid = world.workload("web.shop.east");
    let peer = world.verifier().own_peer(&svid, now()).unwrap();
    let registration = Registration {
        id: ConnectionId(rand::random()),
        direction: Direction::Outbound,
        service: world.service("payments.billing.west"),
        from: None,
        peer,
        session: None,
        rule: RecordId { writer: world.id("west"), audience: Audience::Law, epoch: 1, seq: 1, digest: sha256(b"rule") },
        policy: 1,
        lease: None,
        deadline: Timestamp::MAX,
        now: now(),
        heading: None,
    };
    registry.register(registration).map_err(|why| format!("{why:?}")).unwrap()
}

/// What a ClientHello made for a test offers.
pub(crate) struct Hello<'a> {
    /// SNI; none if `None`.
    pub(crate) name: Option<&'a str>,
    /// No ALPN at all if empty.
    pub(crate) alpn: &'a [u8],
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self { name: Some("payments.billing.west.mesh.internal"), alpn: b"hanse-mesh/1" }
    }
}

/// The TLS records of a ClientHello.
pub(crate) fn hello(wanted: &Hello<'_>) -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_sni = wanted.name.is_some();
    if !wanted.alpn.is_empty() {
        config.alpn_protocols = vec![wanted.alpn.to_vec()];
    }
    let name = wanted.name.unwrap_or("unnamed.invalid").to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Keeps every access event.
#[derive(Default)]
pub(crate) struct Audit(Mutex<Vec<AccessEvent>>);

impl AuditSink for Audit {
    fn record(&self, event: AccessEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Audit {
    pub(crate) fn all(&self) -> Vec<AccessEvent> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until an event is there that `wanted` picks.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&AccessEvent) -> bool) -> AccessEvent {
        eventually(what, || self.all().into_iter().find(&wanted)).await
    }
}

/// Polls until there is something, at most ten seconds.
pub(crate) async fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2_000 {
        if let Some(found) = found() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come");
}

pub(crate) struct Node {
    pub(crate) proxy: Proxy,
    pub(crate) snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    pub(crate) svid: LiveSvid,
    pub(crate) audit: Arc<Audit>,
    /// When the other cluster was last heard.
    pub(crate) heard: Arc<Mutex<Option<Instant>>>,
    pub(crate) enforcer: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.enforcer.abort();
    }
}

type Later = Arc<OnceLock<Proxy>>;

/// Where a node dials, and whom it tells.
enum Place {
    Source { near: std::net::SocketAddr, near_proxy: Later },
    Near { far: Later, source: Later, session: LiveSvid, east: ClusterId, west: ClusterId, verifier: Verifier },
    Far { near: Later, instance: std::net::SocketAddr, west: ClusterId },
    Destination { app: std::net::SocketAddr },
}

fn unreachable(leave: Leave<'_>, route: &Route, reason: DenialReason) -> Denial {
    Denial::without_rule(reason, Some(leave.source()), &route.service.name)
}

impl Dial for Place {
    fn dial<'a>(&'a self, leave: Leave<'a>, route: &'a Route) -> BoxFuture<'a, Result<BoxStream, Denial>> {
        Box::pin(async move {
            let tcp = |address| async move {
                let dialled = TcpStream::connect(address).await;
                dialled.map_err(|_| unreachable(leave, route, DenialReason::NoInstance))
            };
            match (self, leave, route.next) {
                (Self::Source { near: address, .. }, Leave::Permit(_), Next::Mesh)
                | (Self::Far { instance: address, .. }, Leave::Passage(_), Next::Mesh)
                | (Self::Destination { app: address }, Leave::Permit(_), Next::Application) => {
                    Ok(Box::new(tcp(*address).await?) as BoxStream)
                }
                (Self::Near { far, session, east, verifier, .. }, Leave::Passage(_), Next::Mesh) => {
                    let (here, there) = tokio::io::duplex(64 * 1024);
                    let peer: VerifiedPeer = verifier.session_peer(session.get().unwrap().chain(), now()).unwrap();
                    let (far, east) = (far.get().unwrap().clone(), *east);
                    tokio::spawn(async move { far.pass(boxed(there), Some((east, peer))).await });
                    Ok(boxed(here))
                }
                _ => panic!("no such way from here: {leave:?} {:?}", route.next),
            }
        })
    }
}

impl Control for Place {
    fn denied(&self, told: Told) {
        match self {
            Self::Near { source, .. } => {
                assert_eq!(told.to, None);
                if let Some(source) = source.get() {
                    source.denied(told.connection, None, told.reason, &told.detail);
                }
            }
            Self::Far { near, west, .. } => {
                if let Some(near) = near.get() {
                    near.denied(told.connection, Some(*west), told.reason, &told.detail);
                }
            }
            _ => panic!("only edges tell of denials beside the stream"),
        }
    }

    fn extend(&self, connection: ConnectionId, service: &Service, header: Vec<u8>) {
        match self {
            Self::Source { near_proxy, .. } => {
                let _ = near_proxy.get().unwrap().extend(connection, &header, None);
            }
            Self::Near { far, east, west, .. } => {
                assert_eq!(service.id.cluster, *west);
                let _ = far.get().unwrap().extend(connection, &header, Some(*east));
            }
            Self::Far { .. } => {}
            Self::Destination { .. } => panic!("a destination extends nothing"),
        }
    }

    fn leaving(&self, notice: Notice) {
        match self {
            Self::Near { source, .. } => {
                assert_eq!(notice.to, None);
                if let Some(source) = source.get() {
                    source.leaving(&notice.connections, None);
                }
            }
            Self::Far { near, west, .. } => {
                if let Some(near) = near.get() {
                    near.leaving(&notice.connections, Some(*west));
                }
            }
            // A sidecar tells its edge, which finds the passage by its id.
            _ => panic!("no edge stands behind this place"),
        }
    }
}

/// source proxy → near edge → duplex → far edge → destination proxy → echo.
pub(crate) struct Chain {
    pub(crate) world: World,
    pub(crate) source: Node,
    pub(crate) near: Node,
    pub(crate) far: Node,
    pub(crate) destination: Node,
    /// The application; aborting it closes its port.
    pub(crate) app: JoinHandle<()>,
    pub(crate) app_address: std::net::SocketAddr,
    pub(crate) near_address: std::net::SocketAddr,
    pub(crate) destination_address: std::net::SocketAddr,
}

pub(crate) fn name() -> ServiceRef {
    "payments.billing.west".parse().unwrap()
}

impl Chain {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default(), Duration::from_secs(3600)).await
    }

    pub(crate) async fn start_with(limits: Limits, ttl: Duration) -> Self {
        let world = World::new();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (app, near_in, destination_in) =
            (listen().await.unwrap(), listen().await.unwrap(), listen().await.unwrap());
        let (near_address, destination_address) = (near_in.local_addr().unwrap(), destination_in.local_addr().unwrap());
        let later: [Later; 3] = Default::default();
        let [source_later, near_later, far_later] = later;
        let edge = live(world.edge_for("east", ttl));
        let (east, west) = (world.id("east"), world.id("west"));

        let place = Place::Source { near: near_address, near_proxy: near_later.clone() };
        let source = node(&world, "east", live(world.workload_for("web.shop.east", ttl)), place, limits);
        let place = Place::Near {
            far: far_later.clone(),
            source: source_later.clone(),
            session: edge.clone(),
            east,
            west,
            verifier: world.verifier(),
        };
        let near = node(&world, "east", edge, place, limits);
        let place = Place::Far { near: near_later.clone(), instance: destination_address, west };
        let far = node(&world, "west", live(world.edge_for("west", ttl)), place, limits);
        let place = Place::Destination { app: app.local_addr().unwrap() };
        let destination = node(&world, "west", live(world.workload_for("payments.billing.west", ttl)), place, limits);
        for (later, node) in [(&source_later, &source), (&near_later, &near), (&far_later, &far)] {
            assert!(later.set(node.proxy.clone()).is_ok());
        }

        let app_address = app.local_addr().unwrap();
        let app = tokio::spawn(echo(app));
        accept(near_in, near.proxy.clone(), |proxy, stream| async move { proxy.pass(Box::new(stream), None).await });
        accept(destination_in, destination.proxy.clone(), |proxy, stream| async move {
            proxy.serve(Box::new(stream)).await;
        });
        let chain = Self { world, source, near, far, destination, app, app_address, near_address, destination_address };
        eventually("four enforcers", || {
            let all =
                chain.nodes().iter().all(|node| node.proxy.0.enforcing.load(std::sync::atomic::Ordering::Acquire));
            all.then_some(())
        })
        .await;
        chain
    }

    pub(crate) fn nodes(&self) -> [&Node; 4] {
        [&self.source, &self.near, &self.far, &self.destination]
    }

    /// An application's stream to the service, and what became of it.
    pub(crate) async fn call(&self) -> (TcpStream, JoinHandle<Result<(), Denial>>) {
        let (application, captured) = pair().await;
        let proxy = self.source.proxy.clone();
        (application, tokio::spawn(async move { proxy.connect(captured, &name(), 8080).await }))
    }

    /// A call that must be refused.
    pub(crate) async fn refused(&self) -> Denial {
        let (mut application, task) = self.call().await;
        let denial = task.await.unwrap().expect_err("refused");
        let mut got = Vec::new();
        // Reset, not finished: nothing may look like an answer.
        application.read_to_end(&mut got).await.expect_err("a reset");
        denial
    }

    /// Puts a law in force at one node.
    pub(crate) fn law(&self, node: &Node, rules: &[Rule]) {
        let held = node.snapshot.borrow().clone().unwrap();
        let snapshot = self.world.snapshot(held.own_name.as_str(), held.revision + 1, rules);
        node.snapshot.send_replace(Some(Arc::new(snapshot)));
    }
}

fn live(svid: Svid) -> LiveSvid {
    let live = LiveSvid::new();
    live.set(svid);
    live
}

fn node(world: &World, cluster: &str, svid: LiveSvid, place: Place, limits: Limits) -> Node {
    let place = Arc::new(place);
    let audit = Arc::new(Audit::default());
    let (snapshot, seen) = watch::channel(Some(Arc::new(world.snapshot(cluster, 1, ALLOW))));
    let heard = Arc::new(Mutex::new(Some(Instant::now())));
    let asked = heard.clone();
    let proxy = Proxy::new(Inputs {
        snapshot: seen,
        ages: Ages::new(move |_| asked.lock().unwrap().map(|heard| heard.elapsed())),
        verifier: world.verifier(),
        svid: svid.clone(),
        dial: place.clone(),
        audit: audit.clone(),
        control: place,
        instance: InstanceId(rand::random()),
        limits,
    });
    let enforced = proxy.clone();
    let enforcer = tokio::spawn(async move { enforced.run_enforcer().await });
    Node { proxy, snapshot, svid, audit, heard, enforcer }
}

/// Two ends of a TCP connection.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn accept<F>(listener: TcpListener, proxy: Proxy, carry: impl Fn(Proxy, TcpStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(carry(proxy.clone(), stream));
        }
    });
}

/// Sends back what comes, and finishes when the caller has.
async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// Sends some bytes and reads them back.
pub(crate) async fn ping(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).await?;
    assert_eq!(got, bytes);
    Ok(())
}
