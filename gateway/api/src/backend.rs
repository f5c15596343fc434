//! What the API needs of the program that serves it: three small traits, in the nouns of the model.

use std::{pin::Pin, sync::Arc, time::Duration};

use federation_model::{
    Audience, Body, ClusterId, ClusterName, ConnectionId, Digest, Endpoint, Enforcement, MemberState, RecordId,
    Records, Snapshot, SpiffeId, Timestamp, TokenId, VerifiedPeer,
};
use tokio::sync::{mpsc, watch};

use crate::Refusal;

/// A future that a trait object may return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The federation: tokens, joining, links, and the records of every member.
pub trait Links: Send + Sync + 'static {
    /// The newest snapshot; `None` before the first.
    fn snapshot(&self) -> watch::Receiver<Option<Arc<Snapshot>>>;

    /// Every record held, in order of arrival.
    fn records(&self) -> watch::Receiver<Records>;

    /// Issues a join token for `joiner`. The API checked that the name is free and the life within bounds.
    fn issue_token(
        &self,
        joiner: ClusterName,
        ttl: Duration,
        lawmaker: bool,
    ) -> BoxFuture<'_, Result<IssuedToken, Refusal>>;

    /// Every join token that this cluster issued and still remembers.
    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenSummary>, Refusal>>;

    /// Joins the federation that issued the token.
    fn join(&self, token: String) -> BoxFuture<'_, Result<Joined, Refusal>>;

    /// Which active members say that they enforce a record of a public log, and which do not.
    fn enforcement(&self, record: &RecordId) -> Enforcement;

    /// Ticks whenever a member says anew what it enforces.
    fn receipts(&self) -> watch::Receiver<u64>;

    /// How old the data of another member is; `None` if it was never heard since this process started.
    fn data_age(&self, member: &ClusterId) -> Option<Duration>;

    /// How every link is doing; one entry for each other member.
    fn statuses(&self) -> Vec<LinkState>;

    /// Shuts a member out, for this cluster alone, until [`Links::approve`]. Returns once it is durable and a snapshot
    /// with it is published. Whether anything changed.
    fn block(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>>;

    /// Lets a member in that was blocked, held or suspended, for this cluster alone. Whether anything changed.
    fn approve(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<bool, Refusal>>;

    /// Signs that a member is out. The API checked that this cluster makes law.
    fn evict(&self, member: ClusterId, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>>;

    /// Leaves the federation and founds one of this cluster alone.
    fn leave(&self, author: String) -> BoxFuture<'_, Result<Departed, Refusal>>;

    /// Writes a record of this cluster. Returns once it is durable and a snapshot with it is published.
    fn write(&self, audience: Audience, body: Body, author: String) -> BoxFuture<'_, Result<RecordId, Refusal>>;

    /// Tries the link with a member: a real handshake, or a heartbeat on the session that stands.
    fn probe(&self, member: ClusterId) -> BoxFuture<'_, Result<Probed, Refusal>>;
}

/// A join token, fresh from its issuer.
#[derive(Clone)]
pub struct IssuedToken {
    /// What the joiner needs; secret.
    pub text: String,
    pub id: TokenId,
    pub expires_at: Timestamp,
    /// Where the joiner will dial.
    pub endpoints: Vec<Endpoint>,
}

/// What became of a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    Open,
    Used,
    Expired,
    /// Void after too many bad proofs.
    Burned,
}

impl TokenState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Burned => "burned",
        }
    }
}

/// A join token as lists show it.
#[derive(Clone, Debug)]
pub struct TokenSummary {
    pub id: TokenId,
    pub joiner: ClusterName,
    pub state: TokenState,
    pub expires_at: Timestamp,
    pub refusals: u32,
}

/// The federation that was joined.
#[derive(Clone, Debug)]
pub struct Joined {
    pub federation: federation_model::FederationId,
    /// Who admitted this cluster.
    pub issuer: ClusterName,
    /// Every member, this cluster included.
    pub members: Vec<ClusterName>,
}

/// What became of a cluster that left.
#[derive(Clone, Debug)]
pub struct Departed {
    /// The federation that it founded.
    pub federation: federation_model::FederationId,
    /// Members that did not confirm that it left.
    pub untold: Vec<ClusterName>,
}

/// Whether a link's session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPhase {
    Up,
    Connecting,
    /// For the other side to dial, since it names no endpoint.
    Waiting,
    /// Held, blocked, suspended or gone: nobody dials.
    Out(MemberState),
}

impl LinkPhase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Connecting => "connecting",
            Self::Waiting => "waiting",
            Self::Out(state) => state.as_str(),
        }
    }
}

/// Which side opened a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Dialled,
    Accepted,
}

impl Direction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dialled => "dialled",
            Self::Accepted => "accepted",
        }
    }
}

/// How one link is doing.
#[derive(Clone, Debug)]
pub struct LinkState {
    pub member: ClusterId,
    pub name: ClusterName,
    pub phase: LinkPhase,
    /// `None` while down.
    pub direction: Option<Direction>,
    /// Of the peer's edge, as this side sees it; empty while down.
    pub address: String,
    pub rtt: Option<Duration>,
    /// What the peer's edge says of its build; empty while down.
    pub build: String,
    /// Who relays to it while there is no session, and the round trip over that member.
    pub relay: Option<(ClusterName, Duration)>,
    /// The peer's clock less ours.
    pub clock_offset_ms: i64,
    /// Since the last data from this member; `None` when none came yet.
    pub data_age: Option<Duration>,
    pub tunnels: u32,
    /// When the session must have been renewed.
    pub deadline: Option<Timestamp>,
    /// Why the last attempt failed, and what to do; empty when it did not.
    pub error: String,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// What a probe of a link found.
#[derive(Clone, Debug)]
pub struct Probed {
    pub rtt: Duration,
    /// The peer's clock less ours.
    pub clock_offset_ms: i64,
    /// What was done, in words: `heartbeat on the session to 10.0.0.1:7443`.
    pub detail: String,
}

/// The connections that the program carries.
pub trait Connections: Send + Sync + 'static {
    /// Live proxied connections.
    fn count(&self) -> u64;

    /// A fresh passthrough header for a connection that lives, from the sidecar `from`. A header that does not verify
    /// changes nothing.
    fn extend(&self, connection: ConnectionId, header: Vec<u8>, from: VerifiedPeer) -> BoxFuture<'_, ()>;

    /// A sidecar of this cluster goes: these connections to it, of whom it says they are, shall end at their next quiet
    /// moment. Whoever knows a connection's id, 16 random bytes, is on its path.
    fn leaving(&self, connections: Vec<(ConnectionId, SpiffeId)>);
}

/// The program itself.
pub trait System: Send + Sync + 'static {
    /// Reads the configuration again; which keys changed.
    ///
    /// # Errors
    /// The new configuration is wrong, or changes a key that cannot change live; the old one stays.
    fn reload(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>>;

    /// Sets the log filter; the filter now in force.
    ///
    /// # Errors
    /// The filter cannot be read.
    fn set_log_level(&self, level: &str) -> Result<String, Refusal>;

    /// The authority's certificates and the edge's own.
    fn certificates(&self) -> Vec<Certificate>;

    /// SHA-256 of the public key (SPKI DER) of the root that the edge shows: what workload tokens pin.
    ///
    /// # Errors
    /// It has no SVID.
    fn pin(&self) -> Result<Digest, Refusal>;

    /// Gives this edge an SVID with another key.
    ///
    /// # Errors
    /// The signer refuses.
    fn renew_edge(&self) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Makes another intermediate, which signs from then on, and gives this edge an SVID by it.
    ///
    /// # Errors
    /// The signer or the store refuses.
    fn rotate_intermediate(&self) -> BoxFuture<'_, Result<(), Refusal>>;

    /// The rotation of the root that is under way, or the last one.
    fn rotation(&self) -> BoxFuture<'_, Result<Option<Rotation>, Refusal>>;

    /// Starts a rotation of the root, or goes on with the one under way; it no longer waits for the members `without`.
    fn rotate_root(&self, without: Vec<ClusterId>, author: String) -> BoxFuture<'_, Result<Rotation, Refusal>>;

    /// Gives up the rotation under way.
    ///
    /// # Errors
    /// There is none, or the new root signs already.
    fn abort_rotation(&self, author: String) -> BoxFuture<'_, Result<Rotation, Refusal>>;

    /// A sealed copy of the whole store as of this moment.
    ///
    /// # Errors
    /// The store is damaged or cannot be read, or another copy is being made.
    fn backup(&self) -> BoxFuture<'_, Result<Backup, Refusal>>;

    /// What a person should know, each one sentence: damaged rows, alarms. Empty when all is well.
    fn problems(&self) -> Vec<String>;

    /// The program's own checks: store, listeners, keys.
    fn checks(&self) -> BoxFuture<'_, Vec<Check>>;
}

/// A backup as it is made.
#[derive(Debug)]
pub struct Backup {
    pub summary: BackupSummary,
    /// The file, piece by piece, each at most half a MiB; it is whole only if the last one is no refusal.
    pub pieces: mpsc::Receiver<Result<Vec<u8>, Refusal>>,
}

/// What a backup will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// The moment that it shows.
    pub created_at: Timestamp,
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// How far a rotation of the root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationPhase {
    /// The new root is made and not published yet.
    Prepared,
    /// It is published, and not every member has said that it knows it.
    Published,
    /// It signs; SVIDs by the old root live.
    Signing,
    /// The old root is gone.
    Retired,
    /// The new root is gone.
    Aborted,
}

impl RotationPhase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Signing => "signing",
            Self::Retired => "retired",
            Self::Aborted => "aborted",
        }
    }
}

/// A rotation of the root.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub phase: RotationPhase,
    pub started_at: Timestamp,
    /// Who started it.
    pub author: String,
    /// Who knows the new root, and who has not said so. Nobody once it ended.
    pub enforcement: Enforcement,
    /// Members for which it does not wait.
    pub without: Vec<ClusterId>,
    /// While signing: when the last SVID by the old root ends.
    pub old_until: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// A certificate of this cluster.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// `root`, `intermediate` or `edge`.
    pub kind: &'static str,
    pub spiffe_id: SpiffeId,
    /// Big-endian.
    pub serial: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// SHA-256 of the public key (SPKI DER).
    pub key_sha256: Digest,
}

/// Whether a check found things in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckState {
    Ok,
    Warning,
    Failed,
}

impl CheckState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One result of `hanse check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// Fixed, such as `store.rows`; people search for it.
    pub id: &'static str,
    pub state: CheckState,
    /// What was looked at; empty when the id says it.
    pub subject: String,
    pub detail: String,
    /// What to do; empty when all is well.
    pub fix: String,
    pub took: Duration,
}
