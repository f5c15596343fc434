//! How far this cluster went, kept beside its key file: so that an older copy of its store is known to be older.
//!
//! In: this cluster's own records as they come, a restore. Out: a small sealed file, replaced whole. Never: needed for
//! anything but a restore: a gateway that cannot write it goes on, and says so.
//!
//! It lies beside the key file, not in `data_dir`: whoever loses the store has the key file from elsewhere, or nothing.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use federation_identity::{seal::Kek, sha256};
use federation_link::Link;
use federation_model::{Body, ClusterId, Records};
use prost::Message;
pub(super) use proto::store::Ledger as Row;
use tokio_util::sync::CancellationToken;

/// What the file is bound to.
const SEALED_AS: &[u8] = b"hanse-ledger-v1";
/// Most bytes of the file.
const BYTES_MAX: u64 = 64 * 1024;

/// The file.
pub(crate) struct Ledger {
    path: PathBuf,
    seal: Kek,
}

impl Ledger {
    /// The ledger beside `kek_file`, sealed under the key for backups.
    pub(crate) fn new(kek_file: &Path, key: [u8; 32]) -> Self {
        let mut path = kek_file.as_os_str().to_owned();
        path.push(".ledger");
        Self { path: path.into(), seal: Kek::from_bytes(key) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of `cluster`; none if it is not there, or another cluster's.
    ///
    /// # Errors
    /// It cannot be read, or was changed.
    pub(super) fn read(&self, cluster: &ClusterId) -> Result<Option<Row>> {
        let shown = self.path.display();
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("ledger {shown}")),
            Ok(found) => anyhow::ensure!(found.len() <= BYTES_MAX, "ledger {shown} has {} bytes", found.len()),
        }
        let sealed = fs::read(&self.path).with_context(|| format!("ledger {shown}"))?;
        let clear = self.seal.open(SEALED_AS, &sealed).with_context(|| format!("ledger {shown}"))?;
        let row = Row::decode(clear.as_slice()).with_context(|| format!("ledger {shown}"))?;
        Ok(Some(row).filter(|row| row.cluster_id == cluster.as_bytes()))
    }

    /// Writes it, on the disk when this returns.
    ///
    /// # Errors
    /// The folder of the key file cannot be written to.
    pub(super) fn write(&self, row: &Row) -> Result<()> {
        let sealed = self.seal.seal(SEALED_AS, &row.encode_to_vec()).context("sealing the ledger")?;
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let written = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        written().with_context(|| format!("ledger {}", self.path.display()))
    }

    /// Follows the records of this cluster until `stop`. `floor` is the lowest epoch in which it writes.
    pub(crate) async fn keep(self, link: Link, floor: u64, stop: CancellationToken) {
        let mut row = match self.read(&link.own()) {
            Ok(row) => row.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the ledger beside the key file is made anew");
                Row::default()
            }
        };
        let mut records = link.records();
        let (mut seen, mut removed, mut failed) = (0, 0, false);
        let mut kept = row.clone();
        row.cluster_id = link.own().as_bytes().to_vec();
        row.epoch = row.epoch.max(floor);
        loop {
            let held = records.borrow_and_update().clone();
            // Fewer than before: of another federation.
            if held.removed() != removed || held.next() < seen {
                (seen, removed) = (0, held.removed());
            }
            note(&mut row, &link.own(), &held, seen);
            seen = held.next();
            if row != kept {
                match self.write(&row) {
                    Ok(()) => (kept, failed) = (row.clone(), false),
                    Err(error) if !failed => {
                        failed = true;
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the ledger cannot be kept: a restore then relies on what other members say"
                        );
                    }
                    Err(_) => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = records.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Takes down what the records from the `seen`-th on say of this cluster.
fn note(row: &mut Row, own: &ClusterId, records: &Records, seen: u64) {
    for record in records.since(seen).map(federation_model::Authentic::value).filter(|record| record.writer == *own) {
        row.epoch = row.epoch.max(record.epoch);
        if let Body::Bundle(bundle) = &record.body
            && bundle.sequence >= row.bundle_sequence
        {
            row.bundle_sequence = bundle.sequence;
            row.roots = bundle.roots.iter().map(|root| sha256(root).0.to_vec()).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use federation_model::Digest;

    use super::*;

    fn id(byte: u8) -> ClusterId {
        ClusterId::from_digest(Digest([byte; 32]))
    }

    #[test]
    fn it_comes_back_as_it_was_written_and_only_for_its_cluster_and_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let kek = folder.path().join("west.kek");
        let ledger = Ledger::new(&kek, [7; 32]);
        assert_eq!(ledger.read(&id(1)).expect("nothing there"), None);
        let row = Row { cluster_id: id(1).as_bytes().to_vec(), epoch: 9, bundle_sequence: 3, roots: vec![vec![1; 32]] };
        for epoch in [9, 10] {
            ledger.write(&Row { epoch, ..row.clone() }).expect("written");
            assert_eq!(ledger.read(&id(1)).expect("read"), Some(Row { epoch, ..row.clone() }));
        }
        assert_eq!(ledger.read(&id(2)).expect("read"), None);
        assert!(Ledger::new(&kek, [8; 32]).read(&id(1)).is_err());

        let path = ledger.path().to_owned();
        let mut bytes = fs::read(&path).expect("there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("written");
        let error = ledger.read(&id(1)).expect_err("a changed ledger was believed");
        assert!(format!("{error:#}").contains("west.kek.ledger"), "{error:#}");
    }
}
