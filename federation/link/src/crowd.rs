//! A crowd: many thin members of one federation in one process, to see what one edge makes of thousands of links.
//!
//! In: how many members. Out: a cast (every key, every certificate, the records that make them members), the hub's
//! options, and the crowd that dials the hub. Never: part of an edge: it stands behind the feature `crowd`.
//!
//! Two thousand whole links would each hold every member's records. A thin member has what the hub can see of one: its
//! own keys and SVID, a QUIC connection with the real TLS, greeting, heartbeats, a replication stream level with the hub,
//! and signed receipts (`member`).

mod member;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use federation_identity::{
    AuthorityKeys, LiveSvid, LocalSigner, SVID_TTL_DEFAULT, Signer, Svid, SvidKey, Verifier, federation_id, now,
    seal::Kek,
};
use federation_model::{
    Admission, Audience, Authentic, Body, Bundles, ClusterId, ClusterName, Digest, FederationId, MemberTerms, Record,
    TrustDomain,
};
use federation_store::{CHANGES_MAX, Change, Store};
use prost::Message;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Limits, Options, endpoint, records,
    registry::lock,
    state::{self, State},
};

/// Name of the hub.
const HUB: &str = "hub";
/// Members that share an address: an edge takes only so many handshakes from one at a time.
const MEMBERS_PER_ADDRESS: usize = 32;
/// Round trips and arrivals that are kept until somebody reads them.
const SAMPLES_MAX: usize = 1 << 20;

/// Why there is no crowd.
#[derive(Debug, thiserror::Error)]
#[error("crowd: {0}")]
pub struct CrowdError(String);

fn failed(what: &str) -> impl Fn(String) -> CrowdError {
    move |detail| CrowdError(format!("{what}: {detail}"))
}

/// Everything that a federation of a hub and its members needs, as one file keeps it.
#[derive(Clone, PartialEq, Message)]
pub struct Cast {
    #[prost(message, optional, tag = "1")]
    hub: Option<Actor>,
    #[prost(message, repeated, tag = "2")]
    members: Vec<Actor>,
    /// Founding, admissions, and each member's terms and bundle.
    #[prost(bytes = "vec", repeated, tag = "3")]
    envelopes: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    federation: Vec<u8>,
}

/// One cluster's keys.
#[derive(Clone, PartialEq, Message)]
struct Actor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    root_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    root_certificate: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    intermediate_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    intermediate_certificate: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    replication_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    sealing_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    svid_key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    svid_chain: Vec<Vec<u8>>,
}

impl Actor {
    fn make(name: &str) -> Result<(Self, LocalSigner), CrowdError> {
        let (domain, cluster) = names(name)?;
        let (signer, keys) =
            LocalSigner::generate(&domain, &cluster, now()).map_err(|error| failed("keys")(error.to_string()))?;
        let key = SvidKey::generate();
        let issued = signer.sign_svid(&domain.edge(&cluster), &key.csr(), SVID_TTL_DEFAULT, now());
        let issued = issued.map_err(|error| failed("an SVID")(error.to_string()))?;
        let actor = Self {
            name: name.to_owned(),
            root_key: keys.root_key.to_vec(),
            root_certificate: keys.root_certificate,
            intermediate_key: keys.intermediate_key.to_vec(),
            intermediate_certificate: keys.intermediate_certificate,
            replication_key: keys.replication_key.to_vec(),
            sealing_key: keys.sealing_key.to_vec(),
            svid_key: key.to_pkcs8().to_vec(),
            svid_chain: issued.full_chain(),
        };
        Ok((actor, signer))
    }

    fn signer(&self) -> Result<LocalSigner, CrowdError> {
        let (domain, cluster) = names(&self.name)?;
        let keys = AuthorityKeys {
            root_key: self.root_key.clone().into(),
            root_certificate: self.root_certificate.clone(),
            intermediate_key: self.intermediate_key.clone().into(),
            intermediate_certificate: self.intermediate_certificate.clone(),
            replication_key: self.replication_key.clone().into(),
            sealing_key: self.sealing_key.clone().into(),
            first_root: Vec::new(),
            next: None,
            above: None,
        };
        LocalSigner::from_keys(&domain, &cluster, keys).map_err(|error| failed("keys")(error.to_string()))
    }

    fn svid(&self) -> Result<LiveSvid, CrowdError> {
        let unusable = failed("an SVID");
        let key = SvidKey::from_pkcs8(&self.svid_key).map_err(|error| unusable(error.to_string()))?;
        let svid = Svid::assemble(key, self.svid_chain.clone()).map_err(|error| unusable(error.to_string()))?;
        let live = LiveSvid::new();
        live.set(svid);
        Ok(live)
    }
}

fn names(name: &str) -> Result<(TrustDomain, ClusterName), CrowdError> {
    let domain = format!("{name}.mesh.internal").parse().map_err(|_| failed("a trust domain")(name.to_owned()))?;
    Ok((domain, name.parse().map_err(|_| failed("a name")(name.to_owned()))?))
}

/// The next record of a cluster's law.
struct Pen<'a> {
    signer: &'a LocalSigner,
    federation: FederationId,
    seq: u64,
    previous: Digest,
}

impl<'a> Pen<'a> {
    fn new(signer: &'a LocalSigner, federation: FederationId) -> Self {
        Self { signer, federation, seq: 0, previous: Digest::ZERO }
    }

    fn write(&mut self, body: Body) -> Result<Authentic<Record>, CrowdError> {
        self.seq += 1;
        let record = Record {
            federation: self.federation,
            writer: self.signer.candidate().id,
            audience: Audience::Law,
            epoch: 1,
            seq: self.seq,
            previous: self.previous,
            replaces: Vec::new(),
            author: "start".into(),
            written_at: now(),
            body,
        };
        let key = self.signer.candidate().replication_key;
        let record = records::sign(self.signer, &key, record).map_err(|error| failed("a record")(error.to_string()))?;
        self.previous = record.digest();
        Ok(record)
    }
}

impl Cast {
    /// Keys and records of a hub and so many members that it admitted. Two milliseconds a member.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn make(members: usize) -> Result<Self, CrowdError> {
        let (hub, signer) = Actor::make(HUB)?;
        let mut pen = Pen::new(&signer, FederationId::from_digest(Digest::ZERO));
        let founding = pen.write(Body::Founding(signer.candidate()))?;
        pen.federation = federation_id(founding.digest());
        let (mut actors, mut envelopes) = (Vec::new(), vec![founding.raw().to_vec()]);
        for number in 0..members {
            let (actor, member) = Actor::make(&format!("m{number}"))?;
            let admission = Admission { candidate: member.candidate(), lawmaker: false };
            envelopes.push(pen.write(Body::Admission(admission))?.raw().to_vec());
            let mut own = Pen::new(&member, pen.federation);
            envelopes.push(own.write(Body::Terms(MemberTerms::default()))?.raw().to_vec());
            envelopes.push(own.write(Body::Bundle(member.bundle(1)))?.raw().to_vec());
            actors.push(actor);
        }
        Ok(Self { hub: Some(hub), members: actors, envelopes, federation: pen.federation.as_bytes().to_vec() })
    }

    /// Keeps it in a file, keys in the clear: they are nobody's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        std::fs::write(file, self.encode_to_vec())
    }

    /// The cast that [`Cast::write`] kept.
    ///
    /// # Errors
    /// The file cannot be read or is none.
    pub fn read(file: &Path) -> std::io::Result<Self> {
        Self::decode(std::fs::read(file)?.as_slice()).map_err(std::io::Error::other)
    }

    /// Number of members besides the hub.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    fn hub(&self) -> Result<&Actor, CrowdError> {
        self.hub.as_ref().ok_or_else(|| failed("the cast")("it has no hub".into()))
    }

    fn federation(&self) -> Result<FederationId, CrowdError> {
        let bytes = self.federation.as_slice().try_into();
        let digest = bytes.map(Digest).map_err(|_| failed("the cast")("it has no federation".into()))?;
        Ok(FederationId::from_digest(digest))
    }

    /// Fills an empty store with the hub's federation.
    ///
    /// # Errors
    /// The store refuses, or an envelope is none.
    pub async fn fill(&self, store: &dyn Store) -> Result<(), CrowdError> {
        let (own, federation) = (self.hub()?.signer()?.candidate().id, self.federation()?);
        let envelopes = self.envelopes.iter().map(|raw| Arc::from(raw.as_slice())).collect();
        let (good, unfit) = records::check_all(federation, envelopes).await;
        if let Some(unfit) = unfit.first() {
            return Err(failed("a record of the cast")(unfit.reason().to_owned()));
        }
        let mut changes: Vec<Change> = good.iter().zip(0..).map(|(record, at)| records::put(record, at)).collect();
        let state = State { own, federation, blocked: Default::default() };
        changes.push(Change::put(state::key(), state.encode()));
        for changes in changes.chunks(CHANGES_MAX.min(1_000)) {
            store.apply(changes.to_vec()).await.map_err(|error| failed("the store")(error.to_string()))?;
        }
        Ok(())
    }

    /// The hub, as an edge with production limits would open it.
    ///
    /// # Errors
    /// A key of the cast cannot be used.
    pub fn options(&self, store: Arc<dyn Store>, listen: SocketAddr) -> Result<Options, CrowdError> {
        let hub = self.hub()?;
        let signer = hub.signer()?;
        Ok(Options {
            store,
            candidate: signer.candidate(),
            signer: Arc::new(signer),
            live_svid: hub.svid()?,
            verifier: Verifier::new(),
            listen: Some(listen),
            advertise: Vec::new(),
            terms: MemberTerms::default(),
            limits: Limits::default(),
            seal: Arc::new(Kek::generate()),
            epoch_floor: 1,
        })
    }
}

/// What a crowd has seen since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Members whose session is in use now.
    pub up: usize,
    /// Dials so far that became a session.
    pub sessions: u64,
    /// Dials and sessions that failed so far, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Round trips of heartbeats, in no order.
    pub round_trips: Vec<Duration>,
    /// When members got a record, in milliseconds since 1970, in no order.
    pub arrivals: Vec<u64>,
    /// Receipts that the hub passed on or made.
    pub receipts: u64,
}

/// What all thin members share.
struct Stage {
    hub: SocketAddr,
    hub_id: ClusterId,
    federation: FederationId,
    limits: Limits,
    transport: Arc<quinn::TransportConfig>,
    members: usize,
    /// What every member enforces: they are level with the hub.
    heads: Mutex<BTreeMap<(ClusterId, u64), u64>>,
    up: AtomicUsize,
    sessions: AtomicU64,
    receipts: AtomicU64,
    seen: Mutex<Samples>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Samples {
    failures: HashMap<String, u64>,
    round_trips: Vec<Duration>,
    arrivals: Vec<u64>,
}

impl Stage {
    fn sample(&self, add: impl FnOnce(&mut Samples)) {
        let mut seen = lock(&self.seen);
        if seen.round_trips.len() + seen.arrivals.len() < SAMPLES_MAX {
            add(&mut seen);
        }
    }
}

/// Members that dial the hub, and go on doing so with an edge's own backoff, until it is dropped.
pub struct Crowd {
    stage: Arc<Stage>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crowd").field("members", &self.stage.members).finish_non_exhaustive()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stage.cancel.cancel();
    }
}

impl Crowd {
    /// Starts every member of the cast at once, from addresses of 127.1.0.0/16.
    ///
    /// # Errors
    /// No socket, or a key that cannot be used.
    pub fn start(cast: &Cast, hub: SocketAddr) -> Result<Self, CrowdError> {
        let (domain, _) = names(HUB)?;
        let authority = cast.hub()?.signer()?;
        let (verifier, mut bundles) = (Verifier::new(), Bundles::default());
        bundles.update(authority.bundle(1)).map_err(|error| failed("the hub's bundle")(error.to_string()))?;
        verifier.publish(&bundles);
        let limits = Limits::default();
        let stage = Arc::new(Stage {
            hub,
            hub_id: authority.candidate().id,
            federation: cast.federation()?,
            transport: endpoint::transport(&limits),
            limits,
            members: cast.members.len() + 1,
            heads: Mutex::new(heads(cast)?),
            up: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            receipts: AtomicU64::new(0),
            seen: Mutex::default(),
            cancel: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        for (members, address) in cast.members.chunks(MEMBERS_PER_ADDRESS).zip(0_u16..) {
            let [high, low] = address.to_be_bytes();
            let source = SocketAddr::from((IpAddr::V4(Ipv4Addr::new(127, 1 + high, low, 1)), 0));
            let endpoint = endpoint::dialling_from(source).map_err(|error| failed("a socket")(error.to_string()))?;
            for actor in members {
                let member = member::Member::new(&stage, actor, &verifier, domain.clone(), endpoint.clone())?;
                tasks.spawn(member.run());
            }
        }
        tasks.close();
        Ok(Self { stage, tasks })
    }

    /// What was seen since the last call; what is there now does not go away by it.
    pub fn seen(&self) -> Seen {
        let stage = &self.stage;
        let mut samples = lock(&stage.seen);
        Seen {
            up: stage.up.load(Ordering::Relaxed),
            sessions: stage.sessions.load(Ordering::Relaxed),
            failures: samples.failures.iter().map(|(reason, count)| (reason.clone(), *count)).collect(),
            round_trips: std::mem::take(&mut samples.round_trips),
            arrivals: std::mem::take(&mut samples.arrivals),
            receipts: stage.receipts.load(Ordering::Relaxed),
        }
    }

    /// Ends every member.
    pub async fn stop(self) {
        self.stage.cancel.cancel();
        self.tasks.wait().await;
    }
}

/// How far the cast's records go, by public log.
fn heads(cast: &Cast) -> Result<BTreeMap<(ClusterId, u64), u64>, CrowdError> {
    let mut heads = BTreeMap::new();
    for raw in &cast.envelopes {
        member::note_head(&mut heads, raw).map_err(failed("a record of the cast"))?;
    }
    Ok(heads)
}
