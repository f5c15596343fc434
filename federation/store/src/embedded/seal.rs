//! MACs: what binds a row to its key, a manifest to its rows, a head to its manifest, and all to one store.

use std::sync::Arc;

use aws_lc_rs::{hmac, rand};

use crate::{Key, Kind};

/// An HMAC-SHA256.
pub(super) type Tag = [u8; 32];

/// A random id of one store, so that rows of another one under the same key do not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId(pub(super) [u8; 16]);

impl StoreId {
    /// `None` when the system has no randomness.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }
}

/// The store's key. Each use has a label of its own, so that no MAC passes for another.
#[derive(Clone)]
pub(super) struct Sealer(Arc<hmac::Key>);

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// Tells one key from another; says nothing about the key.
    pub(super) fn key_id(&self) -> [u8; 8] {
        let tag = self.seal(b"hanse-store-key-id-1", &[]);
        let mut id = [0; 8];
        id.copy_from_slice(&tag[..8]);
        id
    }

    /// What stands in a row. `place` is its header: revision, position, length.
    pub(super) fn row(&self, store: StoreId, key: &Key, place: &[u8], value: &[u8]) -> Tag {
        // The name's length is in front of it: no two splits of the same bytes are the same row.
        let length = (key.name.len() as u64).to_be_bytes();
        self.seal(b"hanse-store-row-1", &[&store.0, &[key.kind.byte()], &length, &key.name, place, value])
    }

    /// What a row adds to the sum of its kind. Never written anywhere: who could read these could find another set of
    /// old rows with the same sum.
    pub(super) fn share(&self, row: &Tag) -> Tag {
        self.seal(b"hanse-store-share-1", &[row])
    }

    /// Binds the content of a manifest.
    pub(super) fn manifest(&self, content: &[u8]) -> Tag {
        self.seal(b"hanse-store-manifest-1", &[content])
    }

    /// Binds the sum of a kind's shares at one revision without telling it.
    pub(super) fn sum(&self, store: StoreId, revision: u64, kind: Kind, count: u64, shares: &Tag) -> Tag {
        let (revision, count) = (revision.to_be_bytes(), count.to_be_bytes());
        self.seal(b"hanse-store-sum-1", &[&store.0, &revision, &[kind.byte()], &count, shares])
    }

    pub(super) fn head(&self, content: &[u8]) -> Tag {
        self.seal(b"hanse-store-head-1", &[content])
    }

    fn seal(&self, label: &[u8], parts: &[&[u8]]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(label);
        for part in parts {
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }
}

/// Whether two MACs are equal, in constant time.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}
