//! The nouns and rules that clusters agree on.
//!
//! In: values that other rooms parsed. Out: decisions, snapshots, effects.
//! Never: sockets, disk, tokio, serde, digests, signatures, or the time of day (callers pass `now`).

#![allow(clippy::result_large_err, reason = "a denial is made once per refused call, and carries its words with it")]

mod authorizer;
mod bundle;
mod cluster;
mod denial;
mod files;
mod fold;
mod intention;
mod mutation;
mod name;
mod peer;
mod permit;
mod receipt;
mod record;
mod records;
mod reference;
mod replica;
mod roll;
mod service;
mod snapshot;
mod spiffe;
mod staleness;
mod standing;
mod time;
mod token;
mod vector;

pub use authorizer::{Authorizer, Decision, Standing};
pub use bundle::{
    BundleError, Bundles, REVOCATIONS_MAX, ROOT_BYTES_MAX, ROOTS_MAX, Revocation, Revocations, SERIAL_BYTES_MAX,
    TrustBundle,
};
pub use cluster::{
    Accept, Approval, ClusterId, Digest, ENDPOINT_BYTES_MAX, ENDPOINTS_MAX, Endpoint, FederationId, Member,
    MemberState, Members, Relay, ReplicationKey, SealingKey,
};
pub use denial::{Denial, DenialReason};
pub use fold::Fold;
pub use intention::{Action, Intention, IntentionKey, Layer, RuleState};
#[cfg(feature = "mutations")]
pub use mutation::{Mutation, plant};
pub use name::{AccountName, ClusterName, LABEL_BYTES_MAX, NameError, NamespaceName, ServiceName};
pub use peer::{Proof, VerifiedPeer};
pub use permit::{Passage, Permit};
pub use receipt::{
    Enforcement, RECEIPT_LOGS_MAX, RECEIPT_MEMBERS_MAX, RECEIPT_NEIGHBOURS_MAX, Receipt, Receipts, SignedReceipt,
};
pub use record::{
    Admission, Audience, Authentic, Body, Candidate, DESPITE_MAX, Eviction, Export, MemberTerms, Position,
    RECORD_BYTES_MAX, REPLACES_MAX, Record, RecordId, RecordKey, Stance,
};
pub use records::Records;
pub use reference::{
    ClusterPattern, DestinationPattern, Label, MESH_ZONE, ReferenceError, ServiceRef, SourcePattern, SourceRef,
};
pub use replica::{
    Alarm, EPOCH_RECORDS_MAX, Effect, MESSAGE_BYTES_MAX, MESSAGE_RECORDS_MAX, Message, Replica, ReplicaError,
};
pub use service::{ACCOUNTS_MAX, AccountRef, ConnectionId, InstanceId, Service, ServiceCatalog, ServiceId};
pub use snapshot::{Conflict, Snapshot, fold};
pub use spiffe::{Role, SPIFFE_ID_BYTES_MAX, SpiffeId, SpiffeIdError, TRUST_DOMAIN_BYTES_MAX, TrustDomain};
pub use staleness::{Ages, LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, Stale, Staleness, WhenStale};
pub use time::Timestamp;
pub use token::{
    BAD_PROOFS_MAX, JoinToken, TOKEN_TTL_DEFAULT, TOKEN_TTL_MAX, TOKENS_OPEN_MAX, TokenError, TokenId, TokenSecret,
};
pub use vector::{EPOCHS_MAX, Head, LOGS_MAX, Vector};

#[cfg(test)]
mod testing;

#[cfg(any(test, feature = "reference"))]
pub mod evaluator;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
