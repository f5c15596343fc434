//! Why something in this room failed: one enum per thing that a caller asked for.

use std::{net::SocketAddr, time::Duration};

use federation_identity::SignerError;
use federation_model::{ClusterId, ClusterName, MemberState, TokenError, TrustDomain};
use federation_store::StoreError;
use proto::convert::TokenTextError;

use crate::wire::WireError;

/// Why the link could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("cannot listen on {address} (UDP): is the port taken?")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("no TLS configuration could be made: {0}")]
    Tls(String),
    #[error("store")]
    Store(#[from] StoreError),
    #[error("the store belongs to cluster {found}, this one is {own}: give the store of this cluster, or an empty one")]
    OtherCluster { found: ClusterId, own: ClusterId },
    #[error("row {row} of the store cannot be read: {detail}")]
    Unreadable { row: String, detail: String },
    #[error("the founding record of federation {federation} is missing from the store: restore it from an export")]
    NoFounding { federation: String },
    #[error("own record could not be made: {0}")]
    Record(String),
}

impl LinkError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "bind",
            Self::Tls(_) => "tls",
            Self::Store(_) => "store",
            Self::OtherCluster { .. } => "other_cluster",
            Self::Unreadable { .. } => "unreadable",
            Self::NoFounding { .. } => "no_founding",
            Self::Record(_) => "record",
        }
    }
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("a {0} record cannot be written by hand")]
    Kind(&'static str),
    #[error("{what} is told to {wanted}, and to nobody else")]
    Audience { what: &'static str, wanted: &'static str },
    #[error("record does not fit its bounds: {0}")]
    Bounds(String),
    #[error(transparent)]
    Signer(#[from] SignerError),
    #[error("store: {0}")]
    Store(String),
    #[error("this cluster is alone in its federation: there is nothing to leave")]
    Alone,
    #[error("the link is shutting down")]
    Closed,
}

impl WriteError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kind(_) => "kind",
            Self::Audience { .. } => "audience",
            Self::Bounds(_) => "bounds",
            Self::Signer(error) => error.reason(),
            Self::Store(_) => "store",
            Self::Alone => "alone",
            Self::Closed => "closed",
        }
    }
}

/// Why no join token was issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenIssueError {
    #[error("a token for {0} would be for this very cluster: name the one that shall join")]
    OwnCluster(ClusterName),
    #[error("{0} is a member already")]
    MemberAlready(ClusterName),
    #[error("a token lives between 1 s and 24 h, {0:?} was asked for")]
    Life(Duration),
    #[error("{0} join tokens are open, which is the most: wait until one is used or expires")]
    TooMany(usize),
    #[error(
        "this edge accepts no sessions, so nobody could join through it: set `listen` and `advertise`, or issue the token elsewhere"
    )]
    NoEndpoint,
    #[error("only a lawmaker may issue a lawmaker's token, and this cluster is none")]
    NotLawmaker,
    #[error("proof key could not be sealed: {0}")]
    Seal(String),
    #[error("store")]
    Store(#[from] StoreError),
}

impl TokenIssueError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OwnCluster(_) => "own_cluster",
            Self::MemberAlready(_) => "member_already",
            Self::Life(_) => "life",
            Self::TooMany(_) => "too_many",
            Self::NoEndpoint => "no_endpoint",
            Self::NotLawmaker => "not_lawmaker",
            Self::Seal(_) => "seal",
            Self::Store(_) => "store",
        }
    }
}

/// Why this cluster did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error(transparent)]
    Text(#[from] TokenTextError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("this cluster has {0} other member(s) in its federation already: a cluster is in one federation at a time")]
    HasMembers(usize),
    #[error(
        "this cluster has rotated its root, and its id is made of the first one, which it can no longer prove to \
         strangers: set it up anew, with a new data_dir, to join another federation"
    )]
    Rotated,
    #[error(
        "the token's issuer uses trust domain {0}, which is this cluster's own: one of the two must be set up with another"
    )]
    OwnTrustDomain(TrustDomain),
    #[error("no edge of {issuer} could be reached: {tried}")]
    Unreachable { issuer: ClusterName, tried: String },
    #[error(
        "the edge that answers for {issuer} does not prove the key that the token pins, so somebody may stand in between: {detail}"
    )]
    Pin { issuer: ClusterName, detail: String },
    #[error("{issuer} refused: {detail} ({reason})")]
    Refused { issuer: ClusterName, reason: String, detail: String },
    #[error("{issuer} does not know the token's secret: do not trust this answer, and ask for a new token")]
    IssuerProof { issuer: ClusterName },
    #[error("clocks differ by {by:?}, at most 5 min are allowed: set this cluster's clock, or the one of {issuer}")]
    ClockSkew { issuer: ClusterName, by: Duration },
    #[error("{issuer} speaks protocol version {theirs}, this edge speaks {ours}: bring the older one up to date")]
    Version { issuer: ClusterName, theirs: u32, ours: u32 },
    #[error("{issuer} answered what cannot be: {detail}")]
    Answer { issuer: ClusterName, detail: String },
    #[error("the connection to {issuer} failed during the join, which may be tried again with the same token")]
    Wire {
        issuer: ClusterName,
        #[source]
        source: WireError,
    },
    #[error("store: {0}")]
    Store(String),
    #[error("the link is shutting down")]
    Closed,
}

impl JoinError {
    /// Short fixed word; for a refusal the issuer's own, if it is one that this version knows.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Text(error) => error.reason(),
            Self::Token(error) => match error {
                TokenError::Expired { .. } => "token_expired",
                TokenError::OtherJoiner { .. } => "other_joiner",
                TokenError::OwnCluster { .. } => "own_cluster",
                TokenError::Used => "token_used",
                TokenError::Burned => "token_burned",
                _ => "token_unknown",
            },
            Self::HasMembers(_) => "has_members",
            Self::Rotated => "rotated",
            Self::OwnTrustDomain(_) => "own_trust_domain",
            Self::Unreachable { .. } => "unreachable",
            Self::Pin { .. } => "pin",
            Self::Refused { reason, .. } => {
                crate::join::REFUSALS.iter().find(|word| *word == reason).copied().unwrap_or("refused")
            }
            Self::IssuerProof { .. } => "issuer_proof",
            Self::ClockSkew { .. } => "clock_skew",
            Self::Version { .. } => "version",
            Self::Answer { .. } => "answer",
            Self::Wire { .. } => "wire",
            Self::Store(_) => "store",
            Self::Closed => "closed",
        }
    }
}

/// Why no tunnel was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    #[error("there is no session with {0}: `hanse link status` says why")]
    NoSession(String),
    #[error("{member} is {state} here: `hanse cluster list` says by whom")]
    Out { member: String, state: MemberState },
    #[error("session with {member} has {max} tunnels, which is the most")]
    TooMany { member: String, max: u32 },
    #[error("session with {0} ended while the tunnel was opened")]
    Lost(String),
    #[error("{0} took no tunnel within the limit")]
    TimedOut(String),
}

impl TunnelError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSession(_) => "no_session",
            Self::Out { state, .. } => state.as_str(),
            Self::TooMany { .. } => "too_many",
            Self::Lost(_) => "lost",
            Self::TimedOut(_) => "timed_out",
        }
    }
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    #[error("{0} names no endpoint that could be dialled")]
    NoEndpoint(String),
    #[error("{endpoint} has no address: {detail}")]
    Lookup { endpoint: String, detail: String },
    #[error("{address} is no address to dial a member at")]
    Address { address: SocketAddr },
    #[error("{address} did not answer: {detail}")]
    Connect { address: SocketAddr, detail: String },
    #[error("the edge at {address} is not proved to be {member}'s: {detail}")]
    Identity { address: SocketAddr, member: String, detail: String },
    #[error("refused by the peer: {detail} ({reason})")]
    Refused { reason: String, detail: String },
    #[error("peer was refused: {detail}")]
    Refuse { reason: &'static str, detail: String },
    #[error("greeting: {0}")]
    Wire(#[from] WireError),
    #[error("the connection ended: {0}")]
    Ended(String),
    #[error("a successor would end no later: neither side has a newer SVID yet")]
    NoGain,
    #[error("no TLS configuration could be made: {0}")]
    Tls(String),
}

impl SessionError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoEndpoint(_) => "no_endpoint",
            Self::Lookup { .. } => "lookup",
            Self::Address { .. } => "address",
            Self::Connect { .. } => "connect",
            Self::Identity { .. } => "identity",
            Self::Refused { .. } => "refused",
            Self::Refuse { reason, .. } => reason,
            Self::Wire(error) => error.reason(),
            Self::Ended(_) => "ended",
            Self::NoGain => "no_gain",
            Self::Tls(_) => "tls",
        }
    }
}
