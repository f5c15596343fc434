//! The records of the feed: verified one by one, folded like an edge folds its own.
//!
//! In: signed envelopes from the edge or from disk. Out: a [`Snapshot`]. Never: believes an envelope because the edge
//! sent it; every key but the own cluster's comes from an admission that a member signed.

use std::{collections::BTreeMap, sync::Arc};

use federation_identity::record;
use federation_model::{Authentic, Body, ClusterId, Digest, FederationId, Record, ReplicationKey, Snapshot, fold};
use proto::convert::{Envelope, decode_envelope};

/// Most records that a sidecar holds.
pub(crate) const RECORDS_MAX: usize = 200_000;

/// Every record that concerns this workload.
#[derive(Debug)]
pub(crate) struct Records {
    own: ClusterId,
    federation: FederationId,
    keys: BTreeMap<ClusterId, ReplicationKey>,
    /// In the order in which they were verified: admissions before what they vouch for.
    held: Vec<Authentic<Record>>,
    revision: u64,
}

impl Records {
    /// `own_key` is what the edge said at enrolment, over a connection that proved it.
    pub(crate) fn new(own: ClusterId, own_key: ReplicationKey, federation: FederationId) -> Self {
        Self { own, federation, keys: BTreeMap::from([(own, own_key)]), held: Vec::new(), revision: 0 }
    }

    pub(crate) fn federation(&self) -> FederationId {
        self.federation
    }

    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.held.iter().map(Authentic::digest)
    }

    pub(crate) fn raw(&self) -> Vec<Vec<u8>> {
        self.held.iter().map(|record| record.raw().to_vec()).collect()
    }

    /// Takes what verifies, in whatever order it came. Returns how many did not.
    pub(crate) fn add(&mut self, envelopes: Vec<Vec<u8>>) -> usize {
        let known: std::collections::BTreeSet<Digest> = self.digests().collect();
        let mut refused = 0;
        let mut waiting = Vec::new();
        for raw in envelopes {
            match decode_envelope(&raw) {
                Ok(envelope) if known.contains(&federation_identity::sha256(&envelope.record_bytes)) => {}
                Ok(envelope) => waiting.push((Arc::<[u8]>::from(raw), envelope)),
                Err(_) => refused += 1,
            }
        }
        // An admission may come after what it vouches for: go round until nothing more can be verified.
        loop {
            let before = waiting.len();
            let mut later = Vec::new();
            for (raw, envelope) in waiting {
                match self.verify(&raw, envelope) {
                    Verdict::Taken => {}
                    Verdict::Refused => refused += 1,
                    Verdict::UnknownWriter(envelope) => later.push((raw, *envelope)),
                }
            }
            waiting = later;
            if waiting.is_empty() || waiting.len() == before {
                return refused + waiting.len();
            }
        }
    }

    pub(crate) fn remove(&mut self, digests: &[Digest]) {
        self.held.retain(|record| !digests.contains(&record.digest()));
    }

    /// A new snapshot of what is held; `None` while the own cluster's admission is not among it.
    pub(crate) fn snapshot(&mut self) -> Option<Snapshot> {
        self.revision += 1;
        fold(self.own, self.federation, self.revision, self.held.iter())
    }

    fn verify(&mut self, raw: &Arc<[u8]>, envelope: Envelope) -> Verdict {
        if self.held.len() >= RECORDS_MAX {
            return Verdict::Refused;
        }
        let founding = matches!(envelope.record.body, Body::Founding(_));
        if !founding && envelope.record.federation != self.federation {
            return Verdict::Refused;
        }
        let verified = if founding {
            // A founding record vouches for itself: its digest is the federation that enrolment named.
            match record::verify_founding(envelope.record, Arc::clone(raw), &envelope.record_bytes, &envelope.signature)
            {
                Ok((record, federation)) if federation == self.federation => Ok(record),
                Ok(_) => return Verdict::Refused,
                Err(error) => Err(error),
            }
        } else {
            let Some(key) = self.keys.get(&envelope.record.writer) else {
                return Verdict::UnknownWriter(Box::new(envelope));
            };
            record::verify(envelope.record, Arc::clone(raw), &envelope.record_bytes, &envelope.signature, key)
        };
        let Ok(verified) = verified else { return Verdict::Refused };
        let candidate = match &verified.value().body {
            Body::Founding(candidate) => Some(candidate),
            Body::Admission(admission) => Some(&admission.candidate),
            _ => None,
        };
        if let Some(candidate) = candidate {
            // The first key stays: an id is the hash of it, so another cannot be right.
            self.keys.entry(candidate.id).or_insert(candidate.replication_key);
        }
        self.held.push(verified);
        Verdict::Taken
    }
}

enum Verdict {
    Taken,
    Refused,
    UnknownWriter(Box<Envelope>),
}

#[cfg(test)]
mod tests;
