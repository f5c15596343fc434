//! The one picture of the federation that the data path reads: immutable, made by one fold.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Audience, Authentic, Authorizer, Body, Bundles, ClusterId, ClusterName, Digest, FederationId, Fold, IntentionKey,
    MemberState, Members, Record, RecordId, ServiceCatalog, TrustDomain,
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
    /// How the other members see this cluster; in `members` it is active.
    pub own_state: MemberState,
    pub federation: FederationId,
    pub members: Arc<Members>,
    pub bundles: Arc<Bundles>,
    pub catalog: ServiceCatalog,
    pub authorizer: Authorizer,
    /// Admissions that are held back: another member has their name or trust domain.
    pub held: Vec<RecordId>,
}

impl Snapshot {
    /// Intentions with concurrent versions that nobody has resolved, found when asked for.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.authorizer.conflicts()
    }
}

/// Makes a snapshot of whatever records are given, replaced ones included: an edge gives its replica's, a sidecar those
/// of its feed, both in order of arrival, which decides whose admission of a name came first.
///
/// `None` while the records do not hold the own cluster's admission: no snapshot means deny. What does not count is
/// passed over: records of another federation, of no member's, or behind a fork.
pub fn fold<'a>(
    own: ClusterId,
    federation: FederationId,
    revision: u64,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Option<Snapshot> {
    let mut fold = Fold::new(own, federation);
    for (record, arrival) in counted(federation, records).into_iter().zip(0..) {
        fold.take(arrival, record);
    }
    fold.snapshot(revision)
}

/// The records of this federation that no fork makes void.
fn counted<'a>(
    federation: FederationId,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Vec<&'a Authentic<Record>> {
    let ours = records
        .filter(|record| record.value().federation == federation || matches!(record.value().body, Body::Founding(_)));
    let ours: Vec<_> = ours.collect();
    let mut places: HashMap<(ClusterId, Audience, u64, u64), Digest> = HashMap::new();
    let mut forks: HashMap<(ClusterId, Audience, u64), u64> = HashMap::new();
    for record in &ours {
        let RecordId { writer, audience, epoch, seq, digest } = record.id();
        if *places.entry((writer, audience, epoch, seq)).or_insert(digest) != digest {
            let lowest = forks.entry((writer, audience, epoch)).or_insert(seq);
            *lowest = seq.min(*lowest);
        }
    }
    let stands = |record: &&Authentic<Record>| {
        let id = record.id();
        forks.get(&(id.writer, id.audience, id.epoch)).is_none_or(|fork| id.seq <= *fork)
    };
    ours.into_iter().filter(stands).collect()
}

#[cfg(test)]
mod tests;
