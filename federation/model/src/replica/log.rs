//! One log: the chains of its epochs, and where two records at one place froze one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Digest, Head, RecordId};

/// Records kept of those at a forked place. The lowest digests win, so that replicas agree in whatever order they came.
pub(super) const SIBLINGS_MAX: usize = 2;

/// Where a record would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is held already.
    Held,
    /// Right behind the head.
    Next,
    /// Another record is at its place.
    Fork,
    /// Something before it is missing, or is not what it names.
    Gap,
    /// It follows a fork, or is one record too many at one.
    Void,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    arrival: u64,
    digest: Digest,
}

/// One epoch: a chain from 1, and the siblings right behind it once it is frozen.
#[derive(Clone, Debug, Default)]
struct Epoch {
    chain: BTreeMap<u64, Entry>,
    /// Empty, or at least two, ordered by digest.
    siblings: BTreeMap<Digest, u64>,
}

/// One log of one writer for one audience.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    epochs: BTreeMap<u64, Epoch>,
}

impl Epoch {
    fn last(&self) -> Head {
        self.chain
            .last_key_value()
            .map_or(Head { seq: 0, digest: Digest::ZERO }, |(seq, entry)| Head { seq: *seq, digest: entry.digest })
    }

    fn is_frozen(&self) -> bool {
        !self.siblings.is_empty()
    }

    /// What the vector says. A frozen epoch stands at the forked place with the digests of its siblings and of the
    /// record before them combined, which is no record's: two replicas have the same head only if they hold the same
    /// siblings behind the same chain.
    fn head(&self) -> Head {
        let last = self.last();
        if !self.is_frozen() {
            return last;
        }
        let mut combined = last.digest.0;
        for digest in self.siblings.keys() {
            combined.iter_mut().zip(digest.0).for_each(|(byte, other)| *byte ^= other);
        }
        Head { seq: last.seq + 1, digest: Digest(combined) }
    }

    fn place(&self, id: &RecordId, previous: Digest) -> Place {
        let last = self.last();
        if let Some(held) = self.chain.get(&id.seq) {
            return if held.digest == id.digest { Place::Held } else { Place::Fork };
        }
        if self.is_frozen() {
            let worth = self.siblings.len() < SIBLINGS_MAX
                || self.siblings.last_key_value().is_some_and(|(highest, _)| id.digest < *highest);
            return if id.seq > last.seq + 1 {
                Place::Void
            } else if self.siblings.contains_key(&id.digest) {
                Place::Held
            } else if worth {
                Place::Fork
            } else {
                Place::Void
            };
        }
        if id.seq == last.seq + 1 && previous == last.digest { Place::Next } else { Place::Gap }
    }
}

impl Log {
    pub(super) fn place(&self, id: &RecordId, previous: Digest) -> Place {
        match self.epochs.get(&id.epoch) {
            Some(epoch) => epoch.place(id, previous),
            None => Epoch::default().place(id, previous),
        }
    }

    /// Puts a record behind the head.
    pub(super) fn append(&mut self, id: &RecordId, arrival: u64) {
        let epoch = self.epochs.entry(id.epoch).or_default();
        epoch.chain.insert(id.seq, Entry { arrival, digest: id.digest });
    }

    /// Freezes the epoch at the record's place; returns what that makes void.
    pub(super) fn fork(&mut self, id: &RecordId, arrival: u64) -> Vec<u64> {
        let epoch = self.epochs.entry(id.epoch).or_default();
        let mut dropped = Vec::new();
        if epoch.chain.contains_key(&id.seq) {
            // A lower fork than the one known, if any: that one and all behind the new place go.
            dropped.extend(std::mem::take(&mut epoch.siblings).into_values());
            let mut behind = epoch.chain.split_off(&id.seq);
            if let Some(rival) = behind.remove(&id.seq) {
                epoch.siblings.insert(rival.digest, rival.arrival);
            }
            dropped.extend(behind.into_values().map(|entry| entry.arrival));
        }
        epoch.siblings.insert(id.digest, arrival);
        while epoch.siblings.len() > SIBLINGS_MAX {
            dropped.extend(epoch.siblings.pop_last().map(|(_, arrival)| arrival));
        }
        dropped
    }

    /// The newest epoch and its head, unless that epoch is frozen or there is none.
    pub(super) fn open_head(&self) -> Option<(u64, Head)> {
        let (number, epoch) = self.epochs.last_key_value()?;
        (!epoch.is_frozen()).then(|| (*number, epoch.last()))
    }

    pub(super) fn highest_epoch(&self) -> u64 {
        self.epochs.last_key_value().map_or(0, |(number, _)| *number)
    }

    pub(super) fn heads(&self) -> impl Iterator<Item = (u64, Head)> {
        self.epochs.iter().map(|(number, epoch)| (*number, epoch.head()))
    }

    pub(super) fn head(&self, epoch: u64) -> Option<Head> {
        self.epochs.get(&epoch).map(Epoch::head)
    }

    /// Epoch and place of each fork.
    pub(super) fn forks(&self) -> impl Iterator<Item = (u64, u64)> {
        self.epochs.iter().filter(|(_, epoch)| epoch.is_frozen()).map(|(number, epoch)| (*number, epoch.head().seq))
    }

    /// Arrivals of all that is held.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = u64> {
        let chain = self.epochs.values().flat_map(|epoch| epoch.chain.values().map(|entry| entry.arrival));
        chain.chain(self.epochs.values().flat_map(|epoch| epoch.siblings.values().copied()))
    }

    /// Arrivals of the siblings that froze an epoch.
    pub(super) fn siblings(&self, epoch: u64) -> impl Iterator<Item = u64> {
        self.epochs.get(&epoch).into_iter().flat_map(|epoch| epoch.siblings.values().copied())
    }

    /// Whether `head` names something of `epoch` that is not held.
    pub(super) fn is_ahead(&self, epoch: u64, head: &Head) -> bool {
        self.epochs.get(&epoch).is_none_or(|epoch| {
            let own = epoch.head();
            let held = epoch.chain.get(&head.seq).is_some_and(|entry| entry.digest == head.digest);
            // A frozen epoch takes nothing more: whatever else others hold of it is void or known.
            !epoch.is_frozen() && !held && own != *head
        })
    }

    /// Adds the arrivals of what somebody with these heads lacks.
    pub(super) fn lacking(&self, theirs: Option<&BTreeMap<u64, Head>>, arrivals: &mut BTreeSet<u64>) {
        for (number, epoch) in &self.epochs {
            let head = theirs.and_then(|heads| heads.get(number)).copied();
            let head = head.unwrap_or(Head { seq: 0, digest: Digest::ZERO });
            if head == epoch.head() {
                continue;
            }
            let last = epoch.last().seq;
            if head.seq > last + 1 || (head.seq > last && !epoch.is_frozen()) {
                arrivals.extend(epoch.siblings.values());
                continue;
            }
            let agrees = head.seq == 0 || epoch.chain.get(&head.seq).is_some_and(|entry| entry.digest == head.digest);
            if agrees {
                arrivals.extend(epoch.chain.range(head.seq + 1..).map(|(_, entry)| entry.arrival));
            } else {
                // Their chain parted from this one somewhere at or before their head: the whole shows where.
                arrivals.extend(epoch.chain.range(..=head.seq).map(|(_, entry)| entry.arrival));
            }
            arrivals.extend(epoch.siblings.values());
        }
    }
}
