//! Clusters of one process for the tests of this room: real QUIC on loopback, stores in memory.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use federation_identity::{LiveSvid, LocalSigner, SVID_TTL_DEFAULT, Signer, Svid, SvidKey, Verifier, now, seal::Kek};
use federation_model::{
    Action, Audience, Body, ClusterId, ClusterName, DestinationPattern, Intention, IntentionKey, Layer, MemberTerms,
    RuleState, Snapshot, SourcePattern, TrustDomain,
};
use federation_store::{BoxFuture, Change, Damage, Key, Kind, Revision, Row, Store, StoreError};
use tokio::{net::UdpSocket, sync::Mutex, time::Instant};

use crate::{Incoming, Limits, Link, LinkError, Options};

/// Longest wait for anything that should happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What outlives a process: store, keys, key-encryption key.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) name: ClusterName,
    pub(crate) domain: TrustDomain,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) signer: Arc<LocalSigner>,
    pub(crate) kek: Arc<Kek>,
}

impl Disk {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_domain(name, &format!("{name}.mesh.internal"))
    }

    pub(crate) fn with_domain(name: &str, domain: &str) -> Self {
        let (name, domain): (ClusterName, TrustDomain) = (name.parse().expect("name"), domain.parse().expect("domain"));
        let (signer, _) = LocalSigner::generate(&domain, &name, now()).expect("keys");
        let (store, kek) = (federation_store::memory(), Arc::new(Kek::generate()));
        Self { name, domain, store, signer: Arc::new(signer), kek }
    }

    /// The same with a store that takes no write while somebody else holds the lock.
    pub(crate) fn that_can_hang(self) -> (Self, Arc<Mutex<()>>) {
        let gate = Arc::new(Mutex::new(()));
        let store = Arc::new(Hanging { store: self.store, gate: gate.clone() });
        (Self { store, ..self }, gate)
    }

    pub(crate) fn id(&self) -> ClusterId {
        self.signer.candidate().id
    }

    /// An SVID of the edge with root, as every edge shows it.
    pub(crate) fn svid(&self, ttl: Duration) -> Svid {
        let key = SvidKey::generate();
        let id = self.domain.edge(&self.name);
        let issued = self.signer.sign_svid(&id, &key.csr(), ttl, now()).expect("issued");
        Svid::assemble(key, issued.full_chain()).expect("assembled")
    }
}

/// A disk that stands still for a while, as one that is overloaded or unplugged does.
struct Hanging {
    store: Arc<dyn Store>,
    gate: Arc<Mutex<()>>,
}

impl Store for Hanging {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        self.store.list(kind, prefix)
    }

    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>> {
        self.store.all()
    }

    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let _open = self.gate.lock().await;
            self.store.apply(changes).await
        })
    }

    fn damaged(&self) -> Vec<Damage> {
        self.store.damaged()
    }
}

/// How a cluster is opened.
pub(crate) struct Setup {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) limits: Limits,
    pub(crate) ttl: Duration,
    pub(crate) terms: MemberTerms,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            listen: Some("127.0.0.1:0".parse().expect("address")),
            advertise: Vec::new(),
            limits: limits(),
            ttl: SVID_TTL_DEFAULT,
            terms: MemberTerms::default(),
        }
    }
}

impl Setup {
    pub(crate) fn outbound_only() -> Self {
        Self { listen: None, ..Self::default() }
    }
}

/// The defaults, less patient, and without the budget per address: here all come from one.
pub(crate) fn limits() -> Limits {
    Limits {
        pending_per_address_max: 1_024,
        joins_per_second: 10_000,
        joins_max: 256,
        backoff_max: Duration::from_millis(500),
        retired_grace: Duration::from_millis(300),
        heartbeat: Duration::from_millis(200),
        anti_entropy: Duration::from_secs(2),
        ..Limits::default()
    }
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) disk: Disk,
    pub(crate) link: Link,
    pub(crate) incoming: Incoming,
    pub(crate) live: LiveSvid,
}

pub(crate) fn options(disk: &Disk, live: &LiveSvid, setup: &Setup) -> Options {
    Options {
        store: disk.store.clone(),
        signer: disk.signer.clone(),
        candidate: disk.signer.candidate(),
        live_svid: live.clone(),
        verifier: Verifier::new(),
        listen: setup.listen,
        advertise: setup.advertise.iter().map(|address| address.to_string().parse().expect("endpoint")).collect(),
        terms: setup.terms.clone(),
        limits: setup.limits.clone(),
        seal: disk.kek.clone(),
        epoch_floor: 1,
    }
}

impl Cluster {
    pub(crate) async fn start(name: &str) -> Self {
        Self::open(Disk::new(name), Setup::default()).await
    }

    pub(crate) async fn open(disk: Disk, setup: Setup) -> Self {
        let live = LiveSvid::new();
        live.set(disk.svid(setup.ttl));
        let deadline = Instant::now() + SOON;
        loop {
            match Link::open(options(&disk, &live, &setup)).await {
                Ok((link, incoming)) => return Self { disk, link, incoming, live },
                // The one before it in this process may still be letting go of its socket.
                Err(LinkError::Bind { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn id(&self) -> ClusterId {
        self.disk.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.link.local_addr().expect("listens")
    }

    pub(crate) async fn token_for(&self, joiner: &str) -> String {
        let joiner = joiner.parse().expect("name");
        self.link.issue_token(joiner, Duration::from_secs(600), false).await.expect("issued").0
    }

    /// Joins with a token of `issuer`.
    pub(crate) async fn join(&self, issuer: &Self) {
        let token = issuer.token_for(self.disk.name.as_str()).await;
        self.link.join(&token).await.expect("joins");
    }

    /// Ends it as a killed process would be: nothing is drained, the store keeps what was acknowledged.
    pub(crate) async fn kill(self) -> Disk {
        self.link.shutdown().await;
        self.disk
    }

    pub(crate) async fn snapshot_where(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.link.snapshot();
        let found = snapshots.wait_for(|held| held.as_ref().is_some_and(|held| wanted(held)));
        let found = tokio::time::timeout(SOON, found).await;
        let name = &self.disk.name;
        found.unwrap_or_else(|_| panic!("{name}: not within {SOON:?}: {what}")).expect("open").clone().expect("some")
    }

    pub(crate) async fn knows(&self, others: &[&Self]) {
        let ids: Vec<ClusterId> = others.iter().map(|other| other.id()).collect();
        self.snapshot_where("members", |held| ids.iter().all(|id| held.members.get(id).is_some())).await;
    }

    /// Until there is a live session with `other`.
    pub(crate) async fn linked(&self, other: &Self) {
        let what = format!("{} linked with {}", self.disk.name, other.disk.name);
        let deadline = Instant::now() + SOON;
        while self.link.session_peer(other.id()).is_none() {
            let seen = || (self.link.statuses(), other.link.statuses());
            assert!(Instant::now() < deadline, "not within {SOON:?}: {what}: {:#?}", seen());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn allow(&self, source: &str) {
        let body = Body::Intention(Intention { key: rule(source), state: RuleState::Is(Action::Allow) });
        self.link.write(Audience::Law, body, "test".into()).await.expect("written");
    }

    /// Until a rule with this source, by anyone, is held.
    pub(crate) async fn holds(&self, source: &str) {
        let mut records = self.link.records();
        let key = rule(source);
        let found = records.wait_for(|held| {
            held.iter().any(|record| matches!(&record.value().body, Body::Intention(rule) if rule.key == key))
        });
        let name = &self.disk.name;
        tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("{name} lacks rule {source}")).expect("open");
    }
}

/// A rule from the account `source` of any cluster to everything.
pub(crate) fn rule(source: &str) -> IntentionKey {
    let source = SourcePattern::Account {
        account: federation_model::Label::Is(source.parse().expect("account")),
        namespace: federation_model::Label::Is("default".parse().expect("namespace")),
        cluster: federation_model::Label::Any,
    };
    let destination = DestinationPattern {
        service: federation_model::Label::Any,
        namespace: federation_model::Label::Any,
        cluster: federation_model::Label::Any,
    };
    IntentionKey { source, destination, layer: Layer::Rule }
}

/// Waits for a condition that has no channel of its own.
pub(crate) async fn until(what: &str, wanted: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !wanted() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A UDP path to one address that can be cut and healed.
pub(crate) struct Path {
    pub(crate) front: SocketAddr,
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Path {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("socket"));
        let address = front.local_addr().expect("bound");
        let cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(forward(front, target, cut.clone()));
        Self { front: address, cut, task }
    }

    pub(crate) fn cut(&self, on: bool) {
        self.cut.store(on, Ordering::SeqCst);
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        if let Entry::Vacant(vacant) = backs.entry(from) {
            let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("socket"));
            back.connect(target).await.expect("connects");
            vacant.insert(back.clone());
            tasks.spawn(backward(front.clone(), back, from, cut.clone()));
        }
        let _ = backs[&from].send(&buffer[..length]).await;
    }
}

async fn backward(front: Arc<UdpSocket>, back: Arc<UdpSocket>, to: SocketAddr, cut: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length) = back.recv(&mut buffer).await else { continue };
        if !cut.load(Ordering::SeqCst) {
            let _ = front.send_to(&buffer[..length], to).await;
        }
    }
}
