//! Whether two replicas are level, in 32 bytes: a vector names thousands of logs, and mostly they are the same.
//!
//! In: the logs that two members share. Out: their digest. Never: takes replicas for level that are not: it covers every
//! head, and who finds it different asks for the vector.

use std::collections::BTreeSet;

use federation_identity::sha256;
use federation_model::{Audience, ClusterId, Digest, Head, Replica};

/// Feature word of a greeting: the peer compares digests of vectors.
pub(crate) const FEATURE: &str = "vector_digests";
/// What is hashed starts with this.
const DOMAIN: &[u8] = b"hanse-vector-v1\0";

/// Digests of what this cluster holds, and peers whose last one was another.
#[derive(Default)]
pub(crate) struct Levels {
    /// Of the logs that everybody shares, and how many records there were.
    common: Option<(usize, Digest)>,
    /// Records may have been on their way to them.
    unlike: BTreeSet<ClusterId>,
}

impl Levels {
    /// The digest of all that this cluster and `peer` share.
    pub(crate) fn digest(&mut self, replica: &Replica, peer: &ClusterId) -> Digest {
        let held = replica.len();
        let common = match self.common {
            Some((count, digest)) if count == held => digest,
            _ => digest(replica.heads_shared(*peer).filter(|(_, audience, ..)| !is_private(audience))),
        };
        self.common = Some((held, common));
        let private = digest(replica.heads_shared(*peer).filter(|(_, audience, ..)| is_private(audience)));
        sha256(&[DOMAIN, &common.0, &private.0].concat())
    }

    /// A peer's digest is this one.
    pub(crate) fn agree(&mut self, peer: &ClusterId) {
        self.unlike.remove(peer);
    }

    /// A peer's digest is another one: whether that is so for the second time.
    pub(crate) fn differ(&mut self, peer: &ClusterId) -> bool {
        !self.unlike.insert(*peer) && self.unlike.remove(peer)
    }
}

fn is_private(audience: &Audience) -> bool {
    matches!(audience, Audience::Member(_))
}

/// Over writer ‖ kind of audience ‖ reader or zeros ‖ epoch ‖ seq ‖ digest of each head, in order.
fn digest(heads: impl Iterator<Item = (ClusterId, Audience, u64, Head)>) -> Digest {
    let mut bytes = Vec::new();
    for (writer, audience, epoch, head) in heads {
        let (kind, reader) = match &audience {
            Audience::Law => (0, [0; 32]),
            Audience::All => (1, [0; 32]),
            Audience::Member(reader) => (2, *reader.as_bytes()),
        };
        bytes.extend_from_slice(writer.as_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&reader);
        bytes.extend_from_slice(&epoch.to_be_bytes());
        bytes.extend_from_slice(&head.seq.to_be_bytes());
        bytes.extend_from_slice(&head.digest.0);
    }
    sha256(&bytes)
}
