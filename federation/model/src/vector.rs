//! How far a replica has each log: per (writer, audience) and epoch, the head it holds without a gap.

use std::collections::BTreeMap;

use crate::{Audience, ClusterId, Digest, RecordId};

/// Most epochs of one log that a replica keeps.
pub const EPOCHS_MAX: usize = 256;
/// Most logs that a vector may name: 1,000 members with a few audiences each.
pub const LOGS_MAX: usize = 16 * 1024;

/// The last record held of an epoch, all before it being held too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    pub seq: u64,
    pub digest: Digest,
}

/// How far a replica has each log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vector(pub BTreeMap<(ClusterId, Audience), BTreeMap<u64, Head>>);

impl Vector {
    pub fn head(&self, writer: ClusterId, audience: Audience, epoch: u64) -> Option<Head> {
        self.0.get(&(writer, audience)).and_then(|epochs| epochs.get(&epoch)).copied()
    }

    pub fn set(&mut self, writer: ClusterId, audience: Audience, epoch: u64, head: Head) {
        self.0.entry((writer, audience)).or_default().insert(epoch, head);
    }

    /// Whether the epoch of a record is named as far as its place, or further.
    pub fn reaches(&self, id: &RecordId) -> bool {
        self.head(id.writer, id.audience, id.epoch).is_some_and(|head| head.seq >= id.seq)
    }

    /// The newest epoch of a log and its head.
    pub fn latest(&self, writer: ClusterId, audience: Audience) -> Option<(u64, Head)> {
        let (epoch, head) = self.0.get(&(writer, audience))?.last_key_value()?;
        Some((*epoch, *head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;

    #[test]
    fn heads_are_kept_per_log_and_epoch() {
        let mut vector = Vector::default();
        let head = |seq| Head { seq, digest: Digest([seq as u8; 32]) };
        vector.set(cluster(0), Audience::Law, 1, head(3));
        vector.set(cluster(0), Audience::Law, 2, head(1));
        vector.set(cluster(0), Audience::All, 1, head(9));
        assert_eq!(vector.head(cluster(0), Audience::Law, 1), Some(head(3)));
        assert_eq!(vector.latest(cluster(0), Audience::Law), Some((2, head(1))));
        assert_eq!(vector.latest(cluster(0), Audience::All), Some((1, head(9))));
        assert_eq!(vector.latest(cluster(1), Audience::Law), None);
        assert_eq!(vector.head(cluster(0), Audience::Law, 3), None);
    }
}
