//! Chains that passed, by the digest of the whole chain.
//!
//! Two halves: the young one fills, then becomes the old one and the old one is forgotten; whoever is asked for is young
//! again. So the chains in use stay, the bound holds, and neither a clock nor a list is kept.

use std::{collections::HashMap, sync::Arc};

use federation_model::{Digest, Timestamp, TrustDomain};

use super::Verified;

/// Most chains that are remembered: every workload of a large cluster and every member's edge, at about 300 bytes each.
pub const CACHE_CHAINS_MAX: usize = 8192;

#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<Digest, Entry>,
    old: HashMap<Digest, Entry>,
}

#[derive(Clone)]
struct Entry {
    verified: Arc<Verified>,
    /// Of the roots that it was verified against.
    generation: u64,
}

impl Cache {
    /// What is remembered of a chain, if it holds at `now` and `in_force` knows its roots still.
    pub(super) fn get(
        &mut self,
        chain: &Digest,
        now: Timestamp,
        in_force: impl Fn(&TrustDomain, u64) -> bool,
    ) -> Option<Arc<Verified>> {
        let young = self.young.get(chain);
        let entry = match young {
            Some(entry) => entry.clone(),
            None => self.old.get(chain)?.clone(),
        };
        let Entry { verified, generation } = &entry;
        let holds = verified.not_before <= now
            && now <= verified.not_after
            && in_force(verified.id.trust_domain(), *generation);
        if !holds {
            self.young.remove(chain);
            self.old.remove(chain);
            return None;
        }
        let verified = entry.verified.clone();
        if !self.young.contains_key(chain) {
            self.put(*chain, entry);
        }
        Some(verified)
    }

    pub(super) fn insert(&mut self, chain: Digest, verified: Arc<Verified>, generation: u64) {
        self.put(chain, Entry { verified, generation });
    }

    fn put(&mut self, chain: Digest, entry: Entry) {
        if self.young.len() >= CACHE_CHAINS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(chain, entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
