//! The SVIDs that this cluster issued and that have not ended: what can be revoked, by serial number.
//!
//! In: each SVID as it is issued. Out: the one of a serial number; lists. Kept in the store, so that a restart forgets
//! none. Never: refuses an SVID. One that the store cannot note is issued all the same, and is known to this process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use federation_identity::now;
use federation_model::{Digest, SpiffeId, Timestamp};
use federation_store::{Change, Key, Kind as Rows, Row, Store, StoreError};
use prost::Message;
use proto::store::IssuedSvid as Wire;

/// Most SVIDs that are remembered. Past it the one that ends first is forgotten, and can be revoked no more.
pub const ISSUED_MAX: usize = 65_536;
/// How long one that has ended is remembered, so that whoever comes late learns why it needs no revoking.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// What the names of its rows begin with; the serial number follows.
const NAME: &[u8] = b"svid/";

/// An SVID that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedSvid {
    pub spiffe_id: SpiffeId,
    /// Big-endian, 1 to 20 bytes.
    pub serial: Vec<u8>,
    /// SHA-256 of its public key (SPKI DER).
    pub key: Digest,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// The SVIDs that were issued. A clone is another handle on the same.
#[derive(Clone)]
pub struct Issued(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_serial: BTreeMap<Vec<u8>, IssuedSvid>,
    /// In order of their ends.
    ends: BTreeMap<(Timestamp, Vec<u8>), ()>,
}

impl Table {
    fn insert(&mut self, svid: IssuedSvid) {
        self.ends.insert((svid.not_after, svid.serial.clone()), ());
        self.by_serial.insert(svid.serial.clone(), svid);
    }

    /// Forgets what ended long ago, and beyond the bound what ends first. The serial numbers.
    fn sweep(&mut self, now: Timestamp) -> Vec<Vec<u8>> {
        let mut gone = Vec::new();
        while let Some(first) = self.ends.first_entry()
            && (first.key().0.after(KEPT) <= now || self.by_serial.len() > ISSUED_MAX)
        {
            let ((_, serial), ()) = first.remove_entry();
            self.by_serial.remove(&serial);
            gone.push(serial);
        }
        gone
    }
}

impl Issued {
    /// Reads what was issued before.
    ///
    /// # Errors
    /// The store cannot be read. A row that cannot be understood is passed over.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let rows = store.list(Rows::Local, NAME).await?;
        let mut table = Table::default();
        rows.iter().filter_map(read).for_each(|svid| table.insert(svid));
        Ok(Self(Arc::new(Inner { store, table: Mutex::new(table) })))
    }

    /// Notes an SVID. It is durable when this returns, unless the store refuses, which is logged.
    pub async fn note(&self, svid: IssuedSvid) {
        let mut changes = vec![Change::put(key(&svid.serial), written(&svid).encode_to_vec())];
        {
            let mut table = self.table();
            table.insert(svid);
            changes.extend(table.sweep(now()).iter().map(|serial| Change::delete(key(serial))));
        }
        if let Err(error) = self.0.store.apply(changes).await {
            tracing::warn!(%error, "an SVID that was issued cannot be noted; after a restart it cannot be revoked");
        }
    }

    /// The SVID of a serial number, also for an hour after its end.
    pub(crate) fn find(&self, serial: &[u8]) -> Option<IssuedSvid> {
        self.table().by_serial.get(serial).cloned()
    }

    /// When the last SVID of a key ends.
    pub(crate) fn last_end(&self, key: &Digest) -> Option<Timestamp> {
        self.table().by_serial.values().filter(|svid| svid.key == *key).map(|svid| svid.not_after).max()
    }

    /// Those that have not ended, by identity and then by end.
    pub(crate) fn list(&self, now: Timestamp) -> Vec<IssuedSvid> {
        let mut all: Vec<_> = self.table().by_serial.values().filter(|svid| now < svid.not_after).cloned().collect();
        all.sort_by(|a, b| (&a.spiffe_id, a.not_after, &a.serial).cmp(&(&b.spiffe_id, b.not_after, &b.serial)));
        all
    }

    /// Nothing panics while it holds the lock half way through a change, so a poisoned table is still whole.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(serial: &[u8]) -> Key {
    Key::new(Rows::Local, [NAME, serial].concat())
}

fn written(svid: &IssuedSvid) -> Wire {
    Wire {
        spiffe_id: svid.spiffe_id.to_string(),
        serial: svid.serial.clone(),
        key: svid.key.0.to_vec(),
        not_before_ms: svid.not_before.as_millis(),
        not_after_ms: svid.not_after.as_millis(),
    }
}

fn read(row: &Row) -> Option<IssuedSvid> {
    let wire = Wire::decode(row.value.as_slice()).ok()?;
    Some(IssuedSvid {
        spiffe_id: wire.spiffe_id.parse().ok()?,
        serial: wire.serial,
        key: Digest(wire.key.as_slice().try_into().ok()?),
        not_before: Timestamp::from_millis(wire.not_before_ms),
        not_after: Timestamp::from_millis(wire.not_after_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svid(serial: u32, key: u8, ends: Timestamp) -> IssuedSvid {
        IssuedSvid {
            spiffe_id: "spiffe://west.mesh.internal/ns/shop/sa/web".parse().expect("id"),
            serial: serial.to_be_bytes().to_vec(),
            key: Digest([key; 32]),
            not_before: now(),
            not_after: ends,
        }
    }

    #[tokio::test]
    async fn what_was_issued_is_known_after_a_restart_until_an_hour_after_its_end() {
        let store = federation_store::memory();
        let issued = Issued::open(Arc::clone(&store)).await.expect("open");
        let (live, ended) = (svid(1, 1, now().after(KEPT)), svid(2, 2, now().before(Duration::from_secs(9))));
        let old = svid(3, 3, now().before(KEPT));
        for one in [&live, &ended, &old] {
            issued.note(one.clone()).await;
        }
        let again = Issued::open(store).await.expect("open");
        for issued in [issued, again] {
            assert_eq!(issued.find(&live.serial), Some(live.clone()));
            assert_eq!(issued.find(&ended.serial), Some(ended.clone()), "whoever comes late learns that it ended");
            assert_eq!(issued.find(&old.serial), None);
            assert_eq!(issued.list(now()), std::slice::from_ref(&live));
        }
    }

    #[tokio::test]
    async fn the_end_of_a_key_is_that_of_its_last_certificate() {
        let issued = Issued::open(federation_store::memory()).await.expect("open");
        let (first, last) = (svid(1, 7, now().after(KEPT)), svid(2, 7, now().after(2 * KEPT)));
        for one in [&last, &first, &svid(3, 8, now().after(3 * KEPT))] {
            issued.note(one.clone()).await;
        }
        assert_eq!(issued.last_end(&Digest([7; 32])), Some(last.not_after));
        assert_eq!(issued.last_end(&Digest([9; 32])), None);
    }

    #[test]
    fn past_the_bound_what_ends_first_is_forgotten() {
        let mut table = Table::default();
        let at = now();
        for serial in 0..=ISSUED_MAX as u32 {
            table.insert(svid(serial, 0, at.after(KEPT + Duration::from_secs(u64::from(serial)))));
        }
        assert_eq!(table.sweep(at), [0_u32.to_be_bytes().to_vec()]);
        assert_eq!((table.by_serial.len(), table.ends.len()), (ISSUED_MAX, ISSUED_MAX));
    }
}
