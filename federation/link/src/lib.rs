//! Links between clusters: joining, sessions, replication and tunnels, all over QUIC.
//!
//! In: who this cluster is, its store, its keys (through [`Signer`]); what its operator writes. Out: snapshots and
//! records as they change, tunnels from members, tunnels to members, and how every link fares.
//! Never: decides who may talk to whom, reads a proxied byte, or sends what is not durable here.
//!
//! Where to look: `join` (both sides of a token), `session` (greeting and life of a connection), `supervisor` (who dials
//! whom, and when), `replicate` (the one task that owns the replica), `tunnel`, `wire` (frames), `limits` (every bound).
//!
//! ```text
//!   operator ─ write ─┐            ┌─ snapshot, records ─► proxy, dns, api
//!                     ▼            │
//!   member ─ session ─► driver (replica) ─ rows ─► store
//!     ▲                            │
//!     └──────── vectors, records ──┘        member ◄─ tunnels ─► edge
//! ```

mod accept;
mod compose;
#[cfg(any(test, feature = "crowd"))]
pub mod crowd;
mod endpoint;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod intake;
mod join;
mod leaving;
mod level;
mod limits;
mod membership;
mod metrics;
mod open;
pub mod probe;
mod receipts;
mod records;
mod registry;
mod relay;
mod replicate;
mod session;
mod state;
mod status;
mod supervisor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokens;
mod tunnel;
mod wire;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use federation_identity::{LiveSvid, Signer, Verifier, seal::Kek};
use federation_model::{
    Audience, Body, Candidate, ClusterId, ClusterName, ConnectionId, DenialReason, Endpoint, Enforcement, MemberTerms,
    RecordId, Records, Snapshot, Timestamp, VerifiedPeer,
};
use federation_store::{Store, StoreError};
use proto::federation::{Denied, Extend};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use error::{JoinError, LinkError, SessionError, TokenIssueError, TunnelError, WriteError};
pub use join::joiner::JoinSummary;
pub use limits::{CLOCK_SKEW_MAX, Limits};
pub use membership::Departure;
pub use registry::Direction;
pub use status::{LinkState, LinkStatus, ProbeReport, RelayPath};
pub use tokens::{TokenState, TokenSummary};
pub use tunnel::Tunnel;
pub use wire::WireError;

use crate::{endpoint::code, limits::SHUTDOWN_MAX, registry::Registry, replicate::Command, wire::Frame};

/// What a link is made of.
pub struct Options {
    /// Where records, tokens and this room's own row are kept.
    pub store: Arc<dyn Store>,
    /// Holder of the replication key.
    pub signer: Arc<dyn Signer>,
    /// Who this cluster is.
    pub candidate: Candidate,
    /// The edge's SVID with leaf, intermediate and root. Nothing is dialled or accepted before it is set; renew it by
    /// setting a newer one.
    pub live_svid: LiveSvid,
    /// Gets the bundles with every snapshot.
    pub verifier: Verifier,
    /// UDP address at which sessions and joins are accepted; `None` for a cluster that only dials.
    pub listen: Option<SocketAddr>,
    /// Where others can dial this edge: goes into tokens and into this cluster's terms. If empty, the endpoints in
    /// `terms` stand; if these are empty too, the listening address, unless it is unspecified.
    pub advertise: Vec<Endpoint>,
    /// What this cluster says of itself; said anew at a start when it changed.
    pub terms: MemberTerms,
    pub limits: Limits,
    /// Seals the keys of join tokens.
    pub seal: Arc<Kek>,
    /// Lowest epoch in which this cluster writes: 1, or what was set aside when its store was restored.
    pub epoch_floor: u64,
}

/// What comes in from members.
#[derive(Debug)]
pub struct Incoming {
    /// Tunnels that members opened. At most 1,024 wait; further ones are reset.
    pub tunnels: mpsc::Receiver<Tunnel>,
    /// At most 4,096 wait; further ones are dropped and counted.
    pub events: mpsc::Receiver<Event>,
}

/// Something that a member's edge said, or that happened to its session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The member's edge refused a connection that came from here.
    Denied {
        member: ClusterId,
        connection: ConnectionId,
        /// Fixed word of [`federation_model::DenialReason`], or one that this version does not know.
        reason: String,
        detail: String,
    },
    /// A fresh passthrough header for a live connection, and the session's identity over which it came.
    Extend { member: ClusterId, peer: VerifiedPeer, connection: ConnectionId, header: Vec<u8> },
    /// On the far side of the member, or at its own edge, something ends in good order: these connections from here are to
    /// be ended at their next quiet moment.
    Leaving { member: ClusterId, connections: Vec<ConnectionId> },
    /// The last session with a member ended.
    SessionClosed { member: ClusterId },
}

/// What all tasks of a link share.
pub(crate) struct Shared {
    own: ClusterId,
    store: Arc<dyn Store>,
    signer: Arc<dyn Signer>,
    candidate: Candidate,
    live_svid: LiveSvid,
    verifier: Verifier,
    terms: MemberTerms,
    limits: Limits,
    seal: Arc<Kek>,
    epoch_floor: u64,
    transport: Arc<quinn::TransportConfig>,
    accepting: Option<quinn::Endpoint>,
    dialling: quinn::Endpoint,
    registry: Registry,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    records: watch::Sender<Records>,
    receipts: receipts::Table,
    recent: Arc<intake::Recent>,
    driver: mpsc::Sender<Command>,
    tunnels: mpsc::Sender<Tunnel>,
    events: mpsc::Sender<Event>,
    /// Whether a stranger may pass the handshake, to join.
    joins_open: Arc<AtomicBool>,
    joins: Semaphore,
    join_bucket: Mutex<join::Bucket>,
    /// The highest time ever seen.
    clock: Mutex<Timestamp>,
    issuing: tokio::sync::Mutex<()>,
    joining: tokio::sync::Mutex<()>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    /// When this link was opened.
    opened: Instant,
}

impl Shared {
    fn emit(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            ::metrics::counter!(metrics::DROPPED, "queue" => "events").increment(1);
        }
    }
}

/// A handle on this cluster's links. Clones are handles on the same; the link lives until [`Link::shutdown`].
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("own", &self.shared.own).finish_non_exhaustive()
    }
}

impl Link {
    /// Opens the link: takes up the federation that the store knows, or founds one of this cluster alone. When it
    /// returns there is a snapshot, and sessions are being dialled and accepted.
    ///
    /// # Errors
    /// A port that is taken, a store that is another cluster's, damaged or failing.
    pub async fn open(options: Options) -> Result<(Self, Incoming), LinkError> {
        open::open(options).await
    }

    /// Who this cluster is.
    pub fn own(&self) -> ClusterId {
        self.shared.own
    }

    /// Where sessions are accepted; `None` for a cluster that only dials.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.accepting.as_ref().and_then(|endpoint| endpoint.local_addr().ok())
    }

    /// Every UDP socket of this link, the one that only dials included.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        let endpoints = self.shared.accepting.iter().chain([&self.shared.dialling]);
        endpoints.filter_map(|endpoint| endpoint.local_addr().ok()).collect()
    }

    /// The picture of the federation, as it changes. `None` denies.
    pub fn snapshot(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shared.snapshot.subscribe()
    }

    /// Every record held, in order of arrival, as it changes; never behind the snapshot.
    pub fn records(&self) -> watch::Receiver<Records> {
        self.shared.records.subscribe()
    }

    /// Signs and keeps a record of this cluster, in place of what it may replace under the same key, and tells members.
    /// It is durable and in the snapshot when this returns.
    ///
    /// # Errors
    /// A kind that is not written by hand, a record past its bounds, a store that refuses. Nothing was written then.
    pub async fn write(&self, audience: Audience, body: Body, author: String) -> Result<RecordId, WriteError> {
        match &body {
            Body::Founding(_) => return Err(WriteError::Kind("founding")),
            Body::Admission(_) => return Err(WriteError::Kind("admission")),
            Body::Unknown { .. } => return Err(WriteError::Kind("unknown")),
            Body::Eviction(_) => return Err(WriteError::Kind("eviction")),
            Body::Stance { .. } if audience != Audience::Member(self.shared.own) => {
                return Err(WriteError::Audience { what: "a stance", wanted: "this cluster alone" });
            }
            Body::Stance { .. } => {}
            Body::Service(_) | Body::ServiceGone { .. } if audience == Audience::Law => {
                return Err(WriteError::Audience { what: "a service", wanted: "all, or to one member" });
            }
            Body::Service(_) | Body::ServiceGone { .. } => {}
            _ if audience != Audience::Law => {
                return Err(WriteError::Audience { what: "the law", wanted: "every member" });
            }
            _ => {}
        }
        self.say(audience, body, author).await
    }

    async fn say(&self, audience: Audience, body: Body, author: String) -> Result<RecordId, WriteError> {
        let (reply, replied) = oneshot::channel();
        let command = Command::Write { audience, body: Box::new(body), author, reply };
        self.shared.driver.send(command).await.map_err(|_| WriteError::Closed)?;
        replied.await.map_err(|_| WriteError::Closed)?
    }

    /// Issues a join token for the cluster that will be called `joiner`; the text is a secret and is not kept.
    ///
    /// # Errors
    /// See [`TokenIssueError`].
    pub async fn issue_token(
        &self,
        joiner: ClusterName,
        ttl: Duration,
        lawmaker: bool,
    ) -> Result<(String, TokenSummary), TokenIssueError> {
        tokens::issue(&self.shared, joiner, ttl, lawmaker).await
    }

    /// The tokens that this cluster issued, newest first, until a day after they expired.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenSummary>, StoreError> {
        let now = tokens::clock(&self.shared);
        Ok(tokens::all(&self.shared).await?.iter().map(|held| held.summary(now)).collect())
    }

    /// Redeems a join token: leaves the federation of one and takes up the issuer's. Blocks until all is durable.
    ///
    /// # Errors
    /// See [`JoinError`]; nothing has changed here then.
    pub async fn join(&self, token_text: &str) -> Result<JoinSummary, JoinError> {
        join::joiner::join(&self.shared, token_text).await
    }

    /// Opens a tunnel toward `member`: in the session with it, or, where there is none, in that with a member that
    /// relays and has one (see [`Tunnel::member`]).
    ///
    /// # Errors
    /// There is no way, or nobody took a tunnel in time.
    pub async fn open_tunnel_toward(&self, member: ClusterId) -> Result<Tunnel, TunnelError> {
        match self.open_tunnel(member).await {
            Err(error @ (TunnelError::NoSession(_) | TunnelError::Lost(_))) => {
                let Some(relay) = status::relay_toward(&self.shared, &member) else { return Err(error) };
                self.open_tunnel(relay.member).await
            }
            outcome => outcome,
        }
    }

    /// Opens a tunnel in the session with `member`.
    ///
    /// # Errors
    /// There is no session, or it took no tunnel in time.
    pub async fn open_tunnel(&self, member: ClusterId) -> Result<Tunnel, TunnelError> {
        let name = || self.name(&member);
        let state = self.shared.snapshot.borrow().as_ref().and_then(|held| Some(held.members.get(&member)?.state));
        if let Some(state) = state.filter(|state| !state.is_active()) {
            return Err(TunnelError::Out { member: name(), state });
        }
        let mut last = TunnelError::NoSession(name());
        // The session in use may be ending as it is taken; its successor is there by then.
        let mut tried = None;
        for _ in 0..2 {
            let session = self.shared.registry.preferred(&member);
            let session = session.filter(|session| tried != Some(session.number) && leaving::stays(session));
            let Some(session) = session else { break };
            tried = Some(session.number);
            match tunnel::open(&session, self.shared.limits.tunnels_max, self.shared.limits.handshake).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Tells a member's edge that a connection of its cluster was refused here. `false` if it cannot be told now.
    pub fn notify_denied(
        &self,
        member: ClusterId,
        connection: ConnectionId,
        reason: DenialReason,
        detail: &str,
    ) -> bool {
        let frame = Frame::Denied(Denied {
            connection: connection.0.to_vec(),
            reason: reason.as_str().to_owned(),
            detail: wire::printable(detail),
        });
        self.tell(&member, frame)
    }

    /// Passes a fresh passthrough header for a live connection on to a member's edge. `false` if it cannot be told now.
    pub fn notify_extend(&self, member: ClusterId, connection: ConnectionId, header: Vec<u8>) -> bool {
        self.tell(&member, Frame::Extend(Extend { connection: connection.0.to_vec(), header }))
    }

    /// Tells every member that this edge goes, so that it opens no more tunnels here and waits for a session with the
    /// successor. Returns the longest round trip: those on their way come within it.
    pub fn leave_sessions(&self) -> Duration {
        leaving::announce(&self.shared)
    }

    /// Passes on to a member's edge that connections from there shall end at their next quiet moment; at most 1,000.
    /// `false` if it cannot be told now, or would not understand.
    pub fn notify_leaving(&self, member: ClusterId, connections: &[ConnectionId]) -> bool {
        leaving::tell(&self.shared, member, connections)
    }

    /// Waits until there may be a tunnel toward `member` again. `false` at once if nothing says that there will be: its
    /// edge did not say within `hold` that it goes, and this link was not opened within it either.
    pub async fn back(&self, member: ClusterId, hold: Duration) -> bool {
        leaving::back(&self.shared, member, hold).await
    }

    fn tell(&self, member: &ClusterId, frame: Frame) -> bool {
        // A frame past the bound would end the session at the far end.
        let fits = wire::encode(frame.clone()).is_ok_and(|bytes| bytes.len() <= wire::CONTROL_BYTES_MAX);
        fits && self.shared.registry.preferred(member).is_some_and(|session| session.tell(frame))
    }

    /// The identity of a member's edge, as its newest session proved it.
    pub fn session_peer(&self, member: ClusterId) -> Option<VerifiedPeer> {
        self.shared.registry.preferred(&member).map(|session| session.peer())
    }

    /// Ticks whenever a member said anew what it enforces.
    pub fn receipts(&self) -> watch::Receiver<u64> {
        self.shared.receipts.changes()
    }

    /// Which active members enforce a record of a public log, and which have not said so yet.
    pub fn enforcement(&self, record: &RecordId) -> Enforcement {
        let snapshot = self.shared.snapshot.borrow().clone();
        let members = snapshot.iter().flat_map(|snapshot| snapshot.members.iter());
        let active = members.filter(|member| member.state.is_active()).map(|member| member.id);
        self.shared.receipts.read(|receipts, now| receipts.enforcement(record, active, now))
    }

    /// How old this cluster's picture of another member is; `None` if it was never heard since this process started.
    /// What [`LinkStatus::data_age`] says, at a cost that suits a decision.
    pub fn data_age(&self, member: &ClusterId) -> Option<Duration> {
        status::data_age(&self.shared, member)
    }

    /// How the link with every other member fares, by name.
    pub fn statuses(&self) -> Vec<LinkStatus> {
        status::all(&self.shared)
    }

    /// Tries the link with one member for real: a handshake with each of its endpoints, a heartbeat over its session.
    ///
    /// # Errors
    /// It is no member.
    pub async fn probe(&self, member: ClusterId) -> Result<ProbeReport, TunnelError> {
        status::probe(&self.shared, member).await.ok_or_else(|| TunnelError::NoSession(self.name(&member)))
    }

    fn name(&self, member: &ClusterId) -> String {
        let snapshot = self.shared.snapshot.borrow();
        let held = snapshot.as_ref().and_then(|snapshot| snapshot.members.get(member));
        held.map_or_else(|| member.short(), |member| member.name.to_string())
    }

    /// Ends every session and task, and waits, for three seconds at most, until peers were told. Drain first: tunnels
    /// that live are cut.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.cancel.cancel();
        let endpoints: Vec<_> = shared.accepting.iter().chain([&shared.dialling]).cloned().collect();
        for endpoint in &endpoints {
            endpoint.close(code::SHUTDOWN, b"shutdown");
        }
        shared.tasks.close();
        let ended = async {
            shared.tasks.wait().await;
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(SHUTDOWN_MAX, ended).await;
    }
}
