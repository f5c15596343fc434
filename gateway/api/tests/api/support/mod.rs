//! A gateway's API on a real Unix socket and a real TLS listener; what is behind it is in memory.

pub(crate) mod federation;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use federation_identity::{LiveSvid, Svid, SvidKey, Verifier, tls};
use federation_model::{
    AccountRef, Audience, Body, ClusterId, ClusterName, ConnectionId, Digest, Enforcement, FederationId, MemberState,
    RecordId, Records, Snapshot, SpiffeId, Stance, Timestamp, TokenId, VerifiedPeer,
};
use federation_store::{Change, Damage, Key, Kind as Rows, Revision, Row, Store, StoreError};
use gateway_api::{
    Access, Api, Backup, BackupSummary, BoxFuture, Certificate, Check, CheckState, Connections, Departed, Direction,
    Inputs, Issued, IssuedToken, Joined, Kind, LinkPhase, LinkState, Links, Probed, Refusal, Registry, Rotation,
    RotationPhase, Settings, System, TokenState, TokenSummary, bind,
};
use hyper_util::rt::TokioIo;
use proto::{
    manage::manage_client::ManageClient,
    workload::{EnrolRequest, Identity, workload_identity_client::WorkloadIdentityClient},
};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use federation::Federation;

/// Life of the SVIDs that the tests get, unless one says otherwise.
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// Links without a network.
pub(crate) struct FakeLinks {
    federation: Mutex<Federation>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    records: watch::Sender<Records>,
    verifier: Verifier,
    pub(crate) states: Mutex<Vec<LinkState>>,
    receipts: watch::Sender<u64>,
    confirmed: Mutex<BTreeMap<RecordId, BTreeSet<ClusterId>>>,
}

impl FakeLinks {
    fn new(federation: Federation, verifier: Verifier) -> Self {
        let links = Self {
            federation: Mutex::new(federation),
            snapshot: watch::Sender::new(None),
            records: watch::Sender::default(),
            verifier,
            states: Mutex::default(),
            receipts: watch::Sender::default(),
            confirmed: Mutex::default(),
        };
        links.publish();
        links
    }

    pub(crate) fn federation(&self) -> MutexGuard<'_, Federation> {
        self.federation.lock().expect("lock")
    }

    pub(crate) fn publish(&self) {
        let mut federation = self.federation();
        let snapshot = federation.snapshot();
        self.verifier.publish(&snapshot.bundles);
        self.records.send_replace(federation.records());
        self.snapshot.send_replace(Some(snapshot));
    }

    /// As if the store could not be read.
    pub(crate) fn forget(&self) {
        self.snapshot.send_replace(None);
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone().expect("snapshot")
    }

    /// A link that stands, with a member that is admitted.
    pub(crate) fn link(&self, member: ClusterId, name: &str, phase: LinkPhase) {
        self.states.lock().expect("lock").push(LinkState {
            member,
            name: name.parse().expect("name"),
            phase,
            direction: (phase == LinkPhase::Up).then_some(Direction::Dialled),
            address: "10.0.0.1:7443".into(),
            rtt: Some(Duration::from_micros(1500)),
            build: "hanse/1.2.3".into(),
            relay: None,
            clock_offset_ms: 3,
            data_age: Some(Duration::ZERO),
            tunnels: 2,
            deadline: None,
            error: if phase == LinkPhase::Up { String::new() } else { "connection refused".into() },
            bytes_sent: 10,
            bytes_received: 20,
        });
    }
}

impl FakeLinks {
    /// A member was heard this long ago; its link is up all the while.
    pub(crate) fn heard(&self, member: ClusterId, name: &str, ago: Duration) {
        self.link(member, name, LinkPhase::Up);
        self.states.lock().expect("lock").last_mut().expect("a link").data_age = Some(ago);
    }

    /// A member says that it enforces a record.
    pub(crate) fn confirm(&self, record: RecordId, member: ClusterId) {
        self.confirmed.lock().expect("lock").entry(record).or_default().insert(member);
        self.receipts.send_modify(|count| *count += 1);
    }

    /// How a member stands here, by the fold.
    fn standing(&self, member: ClusterId) -> MemberState {
        self.current().members.get(&member).expect("a member").state
    }

    fn decide(&self, cluster: ClusterId, stance: Stance, author: &str) {
        let own = self.federation().own.id;
        self.federation().write(Audience::Member(own), Body::Stance { cluster, stance }, author);
        self.publish();
    }
}

impl Links for FakeLinks {
    fn snapshot(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshot.subscribe()
    }

    fn records(&self) -> watch::Receiver<Records> {
        self.records.subscribe()
    }

    fn issue_token(&self, joiner: ClusterName, ttl: Duration, _: bool) -> BoxFuture<'_, Result<IssuedToken, Refusal>> {
        Box::pin(async move {
            Ok(IssuedToken {
                text: format!("token-for-{joiner}"),
                id: TokenId([1; 16]),
                expires_at: federation_identity::now().after(ttl),
                endpoints: vec!["10.0.0.1:7443".parse().expect("endpoint")],
            })
        })
    }

    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenSummary>, Refusal>> {
        Box::pin(async {
            Ok(vec![TokenSummary {
                id: TokenId([1; 16]),
                joiner: "east".parse().expect("name"),
                state: TokenState::Burned,
                expires_at: federation_identity::now(),
                refusals: 5,
            }])
        })
    }

    fn join(&self, _: String) -> BoxFuture<'_, Result<Joined, Refusal>> {
        Box::pin(async { Err(Refusal::new(Kind::State, "refused", "the issuer refused")) })
    }

    fn data_age(&self, member: &ClusterId) -> Option<Duration> {
        self.statuses().into_iter().find(|state| state.member == *member)?.data_age
    }

    fn statuses(&self) -> Vec<LinkState> {
        let mut states = self.states.lock().expect("lock").clone();
        let snapshot = self.snapshot.borrow().clone();
        for state in &mut states {
            let standing = snapshot.as_ref().and_then(|held| Some(held.members.get(&state.member)?.state));
            if let Some(standing) = standing.filter(|standing| !standing.is_active()) {
                state.phase = LinkPhase::Out(standing);
            }
        }
        states
    }

    fn enforcement(&self, record: &RecordId) -> Enforcement {
        let confirmed = self.confirmed.lock().expect("lock");
        let by = |member: &ClusterId| confirmed.get(record).is_some_and(|by| by.contains(member));
        let snapshot = self.current();
        let mut found = Enforcement::default();
        for id in snapshot.members.present().map(|member| member.id) {
            match id == snapshot.own || by(&id) {
                true => found.by.push(id),
                false => found.behind.push((id, Some(Duration::from_secs(40)))),
            }
        }
        found
    }

    fn receipts(&self) -> watch::Receiver<u64> {
        self.receipts.subscribe()
    }

    fn block(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>> {
        let changes = self.standing(member) != MemberState::Blocked;
        if changes {
            self.decide(member, Stance::Blocked, &author);
        }
        Box::pin(async move { Ok(changes) })
    }

    fn approve(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>> {
        let held = self.current().members.get(&member).cloned().expect("a member");
        let changes = !held.state.is_active() && !held.state.is_gone();
        if changes {
            self.decide(member, Stance::Approved { despite: held.evicted_by.into_iter().collect() }, &author);
        }
        Box::pin(async move { Ok(changes) })
    }

    fn evict(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>> {
        let id = self.federation().evict(member, &author);
        self.publish();
        Box::pin(async move { Ok(id) })
    }

    fn leave(&self, _: String) -> BoxFuture<'_, Result<Departed, Refusal>> {
        let federation = FederationId::from_digest(federation_identity::sha256(b"alone"));
        Box::pin(async move { Ok(Departed { federation, untold: vec!["north".parse().expect("name")] }) })
    }

    fn write(&self, audience: Audience, body: Body, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>> {
        Box::pin(async move {
            let id = self.federation().write(audience, body, &author);
            self.publish();
            Ok(id)
        })
    }

    fn probe(&self, member: ClusterId) -> BoxFuture<'_, Result<Probed, Refusal>> {
        let states = self.states.lock().expect("lock");
        let up = states.iter().any(|state| state.member == member && state.phase == LinkPhase::Up);
        Box::pin(async move {
            if !up {
                return Err(Refusal::new(Kind::State, "unreachable", "no answer from 10.0.0.1:7443"));
            }
            Ok(Probed { rtt: Duration::from_millis(1), clock_offset_ms: 2_000, detail: "heartbeat".into() })
        })
    }
}

/// Remembers what it was told.
#[derive(Default)]
pub(crate) struct FakeConnections(pub(crate) Mutex<Vec<(ConnectionId, Vec<u8>, SpiffeId)>>);

impl Connections for FakeConnections {
    fn count(&self) -> u64 {
        7
    }

    fn extend(&self, connection: ConnectionId, header: Vec<u8>, from: VerifiedPeer) -> BoxFuture<'_, ()> {
        self.0.lock().expect("lock").push((connection, header, from.id().clone()));
        Box::pin(async {})
    }

    fn leaving(&self, connections: Vec<(ConnectionId, SpiffeId)>) {
        let told = connections.into_iter().map(|(connection, source)| (connection, b"leaving".to_vec(), source));
        self.0.lock().expect("lock").extend(told);
    }
}

struct FakeSystem {
    pin: Digest,
    /// Which members the rotation that was started leaves out.
    rotation: Mutex<Option<Vec<ClusterId>>>,
}

impl System for FakeSystem {
    fn reload(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        Box::pin(async {
            Err(Refusal::new(
                Kind::State,
                "cannot_change_live",
                "key `cluster` cannot change live: the old config stays",
            ))
        })
    }

    fn set_log_level(&self, level: &str) -> Result<String, Refusal> {
        match level {
            "debug" => Ok("debug".into()),
            _ => Err(Refusal::new(Kind::Invalid, "bad_level", format!("{level:?} is no level"))),
        }
    }

    fn certificates(&self) -> Vec<Certificate> {
        let now = federation_identity::now();
        vec![Certificate {
            kind: "edge",
            spiffe_id: "spiffe://west.mesh.internal/hanse/edge/west".parse().expect("id"),
            serial: vec![0, 0xab],
            not_before: now,
            not_after: now.after(TTL),
            key_sha256: federation_identity::sha256(b"key"),
        }]
    }

    fn pin(&self) -> Result<Digest, Refusal> {
        Ok(self.pin)
    }

    fn renew_edge(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn rotate_intermediate(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { Err(Refusal::new(Kind::NotReady, "signer_gone", "the signer does not answer")) })
    }

    fn rotation(&self) -> BoxFuture<'_, Result<Option<Rotation>, Refusal>> {
        let held = self.rotation.lock().expect("lock").clone();
        Box::pin(async { Ok(held.map(rotation)) })
    }

    fn rotate_root(&self, without: Vec<ClusterId>, _: String) -> BoxFuture<'_, Result<Rotation, Refusal>> {
        *self.rotation.lock().expect("lock") = Some(without.clone());
        Box::pin(async { Ok(rotation(without)) })
    }

    fn abort_rotation(&self, _: String) -> BoxFuture<'_, Result<Rotation, Refusal>> {
        Box::pin(async { Err(Refusal::new(Kind::State, "no_rotation", "no rotation is under way")) })
    }

    fn backup(&self) -> BoxFuture<'_, Result<Backup, Refusal>> {
        Box::pin(async {
            let (pieces, taken) = tokio::sync::mpsc::channel(4);
            let unsigned = Refusal::new(Kind::NotReady, "backup_unfinished", "the signer does not answer");
            for piece in [Ok(b"back".to_vec()), Ok(b"up!".to_vec()), Err(unsigned)] {
                pieces.try_send(piece).expect("room");
            }
            let summary = BackupSummary { created_at: Timestamp::from_millis(5), rows: 2, bytes: 7 };
            Ok(Backup { summary, pieces: taken })
        })
    }

    fn problems(&self) -> Vec<String> {
        vec!["row 3 cannot be read".into()]
    }

    fn checks(&self) -> BoxFuture<'_, Vec<Check>> {
        Box::pin(async {
            vec![Check {
                id: "store.rows",
                state: CheckState::Ok,
                subject: String::new(),
                detail: "all are sound".into(),
                fix: String::new(),
                took: Duration::ZERO,
            }]
        })
    }
}

/// One that waits for those whom it does not leave out.
fn rotation(without: Vec<ClusterId>) -> Rotation {
    Rotation {
        phase: RotationPhase::Published,
        started_at: federation_identity::now(),
        author: "ada".into(),
        enforcement: Enforcement { by: Vec::new(), behind: vec![(without[0], Some(Duration::from_secs(40)))] },
        without,
        old_until: None,
        ended_at: None,
    }
}

/// A store in which others come between a read and the write that follows it.
struct Slow(Arc<dyn Store>);

impl Store for Slow {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>> {
        Box::pin(async move {
            let row = self.0.get(key).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            row
        })
    }

    fn list<'a>(&'a self, kind: Rows, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        self.0.list(kind, prefix)
    }

    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>> {
        self.0.all()
    }

    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.0.apply(changes)
    }

    fn damaged(&self) -> Vec<Damage> {
        self.0.damaged()
    }
}

/// A gateway's API, running.
pub(crate) struct World {
    pub(crate) links: Arc<FakeLinks>,
    pub(crate) connections: Arc<FakeConnections>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) api: Api,
    pub(crate) socket: PathBuf,
    pub(crate) discovery: std::net::SocketAddr,
    pub(crate) verifier: Verifier,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn account(text: &str) -> AccountRef {
    let (account, namespace) = text.split_once('.').expect("account.namespace");
    AccountRef { account: account.parse().expect("account"), namespace: namespace.parse().expect("namespace") }
}

/// The uid that the tests run as.
pub(crate) fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

impl World {
    /// Cluster `west`, alone in its federation.
    pub(crate) async fn new() -> Self {
        Self::with(Federation::found("west"), vec![], TTL).await
    }

    pub(crate) async fn with(federation: Federation, workloads: Vec<(u32, AccountRef)>, svid_ttl: Duration) -> Self {
        let (signer, candidate) = (federation.own.signer.clone(), federation.own.signer.candidate());
        let edge = federation.own.svid(&candidate.trust_domain.edge(&candidate.name), TTL);
        let verifier = Verifier::new();
        let links = Arc::new(FakeLinks::new(federation, verifier.clone()));
        let connections = Arc::new(FakeConnections::default());
        let store: Arc<dyn Store> = Arc::new(Slow(federation_store::memory()));
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let discovery = listener.local_addr().expect("address");
        let settings = Settings {
            cluster: candidate.name.clone(),
            cluster_id: candidate.id,
            trust_domain: candidate.trust_domain.clone(),
            version: "0.1.0".into(),
            mesh_endpoint: "127.0.0.1:1".into(),
            discovery_endpoint: discovery.to_string(),
            svid_ttl,
            operators: vec![],
            workloads,
        };
        let inputs = Inputs {
            settings,
            links: links.clone(),
            connections: connections.clone(),
            system: Arc::new(FakeSystem { pin: signer.root_pin(), rotation: Mutex::default() }),
            signer,
            store: store.clone(),
            registry: Registry::new(),
            issued: Issued::open(store.clone()).await.expect("open"),
        };
        let api = Api::new(inputs, stop.clone());
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("hanse.sock");
        let bound = bind(&socket, Access::Owner).expect("socket");
        let server = tls::workload_server(&edge, &verifier).expect("configuration");
        let (on_socket, on_tls, verify) = (api.clone(), api.clone(), verifier.clone());
        let tasks = vec![
            tokio::spawn(async move { on_socket.serve_socket(bound).await.expect("socket") }),
            tokio::spawn(async move { on_tls.serve_tls(listener, server, verify).await.expect("tls") }),
        ];
        Self { links, connections, store, api, socket, discovery, verifier, stop, tasks, _folder: folder }
    }

    pub(crate) async fn unix(&self) -> Channel {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://hanse.local").connect_with_connector(connector).await.expect("socket")
    }

    pub(crate) async fn manage(&self) -> ManageClient<Channel> {
        ManageClient::new(self.unix().await)
    }

    pub(crate) async fn channel(&self, config: Arc<rustls::ClientConfig>) -> Result<Channel, tonic::transport::Error> {
        let address = self.discovery;
        let connector = tower::service_fn(move |_| {
            let config = config.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = rustls::pki_types::ServerName::try_from("edge.hanse").map_err(std::io::Error::other)?;
                TlsConnector::from(config).connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://edge.hanse").connect_with_connector(connector).await
    }

    /// A channel of somebody who has no SVID yet.
    pub(crate) async fn stranger(&self) -> Channel {
        let candidate = self.links.federation().own.signer.candidate();
        let pin = self.links.federation().own.signer.root_pin();
        let config = tls::enrol_client(pin, candidate.trust_domain).expect("configuration");
        self.channel(config).await.expect("handshake")
    }

    /// A channel of a workload with an SVID.
    pub(crate) async fn as_workload(&self, live: &LiveSvid) -> Channel {
        let candidate = self.links.federation().own.signer.candidate();
        let edge = candidate.trust_domain.edge(&candidate.name);
        let config = tls::workload_client(live, &self.verifier, edge).expect("configuration");
        self.channel(config).await.expect("handshake")
    }

    /// An SVID for an account of this cluster, straight from the authority.
    pub(crate) fn svid(&self, text: &str, ttl: Duration) -> LiveSvid {
        let federation = self.links.federation();
        let id = federation.own.signer.candidate().trust_domain.account(&account(text));
        federation.own.svid(&id, ttl)
    }

    /// A token's id and secret, as `hanse workload token` makes one.
    pub(crate) async fn token(&self, text: &str) -> (Vec<u8>, Vec<u8>) {
        let request = proto::manage::IssueWorkloadTokenRequest { account: text.into(), ttl_seconds: 0 };
        let reply = self.manage().await.issue_workload_token(request).await.expect("token").into_inner();
        let token = proto::convert::parse_workload_token(&reply.token).expect("text");
        (token.id.0.to_vec(), token.secret.0.to_vec())
    }

    pub(crate) async fn enrol(&self, request: EnrolRequest) -> Result<Identity, tonic::Status> {
        WorkloadIdentityClient::new(self.stranger().await).enrol(request).await.map(tonic::Response::into_inner)
    }
}

/// An enrolment with a token.
pub(crate) fn with_token((id, secret): &(Vec<u8>, Vec<u8>), key: &SvidKey) -> EnrolRequest {
    EnrolRequest { token_id: id.clone(), token_secret: secret.clone(), csr: key.csr(), ..EnrolRequest::default() }
}

/// The word of a refusal.
pub(crate) fn reason(status: &tonic::Status) -> String {
    let word = status.metadata().get("hanse-reason").and_then(|word| word.to_str().ok());
    word.unwrap_or_default().to_owned()
}

/// The SVID that an enrolment gave, ready for use.
pub(crate) fn live(key: SvidKey, identity: &Identity) -> LiveSvid {
    let live = LiveSvid::new();
    live.set(Svid::assemble(key, identity.chain.clone()).expect("svid"));
    live
}
