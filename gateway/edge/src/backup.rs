//! Backups of this cluster: a copy of its store as of one moment, sealed and signed, on demand and by the clock; and back.
//!
//! In: the store, the signer for a key and a signature; a file. Out: a file that only this cluster's key file opens; a store
//! made of it that writes on in a new epoch.
//! Never: a copy of a damaged store; a part of a backup in a store's place; a row in the clear outside the store.
//!
//! `content` has what lies under the seal, `federation_identity::backup` the seal, `restore` the way back, `ledger` what
//! tells an older copy from the newest, `schedule` the copies by the clock.

mod content;
mod ledger;
mod restore;
mod schedule;

use std::sync::Arc;

use anyhow::{Context, Result};
use federation_identity::{RemoteSigner, Signer, backup::Writer, now};
use federation_model::{Candidate, Timestamp};
use federation_store::{Revision, Row, Store};
use gateway_api::{Backup, BackupSummary, Kind as Refused, Refusal};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use zeroize::Zeroizing;

pub(crate) use ledger::Ledger;
pub use restore::{Restored, Shown, restore, show};
pub(crate) use restore::{check_interrupted, restored};
pub(crate) use schedule::{overdue, run as run_schedule};

/// Bytes that are handed on at once, at least, but for the last ones.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for whoever takes them.
const PIECES_MAX: usize = 4;

/// What backups of this cluster are made from.
pub(crate) struct Source {
    store: Arc<dyn Store>,
    signer: Arc<RemoteSigner>,
    key: Zeroizing<[u8; 32]>,
    /// One at a time: each holds all rows in memory.
    turn: Arc<Semaphore>,
}

/// All rows as of one moment, on their way into a file.
struct Copy {
    of: Candidate,
    at: Timestamp,
    revision: Revision,
    rows: Vec<Row>,
    _turn: OwnedSemaphorePermit,
}

impl Source {
    pub(crate) fn new(store: Arc<dyn Store>, signer: Arc<RemoteSigner>, key: Zeroizing<[u8; 32]>) -> Self {
        Self { store, signer, key, turn: Arc::new(Semaphore::new(1)) }
    }

    async fn copy(&self) -> Result<Copy, Refusal> {
        let busy = "another backup is being made: try again when it is done";
        let turn = Arc::clone(&self.turn).try_acquire_owned();
        let turn = turn.map_err(|_| Refusal::new(Refused::Exhausted, "backup_busy", busy))?;
        let of =
            self.signer.held().ok_or_else(|| Refusal::new(Refused::NotReady, "no_keys", "the signer has no keys"))?;
        let (revision, rows) = self.store.all().await.map_err(|error| {
            Refusal::new(Refused::State, error.reason(), format!("the store cannot be copied: {error}"))
        })?;
        Ok(Copy { of: of.candidate(), at: now(), revision, rows, _turn: turn })
    }

    /// Begins a backup: what it will be, and its pieces as they come.
    pub(crate) async fn begin(&self) -> Result<Backup, Refusal> {
        let copy = self.copy().await?;
        let (pieces, taken) = mpsc::channel(PIECES_MAX);
        let (signer, key) = (Arc::clone(&self.signer), self.key.clone());
        let mut out = Vec::new();
        let begun = begin(&key, &copy, &mut out);
        let (writer, manifest) =
            begun.map_err(|error| Refusal::new(Refused::Internal, "internal", error.to_string()))?;
        let summary = BackupSummary {
            created_at: copy.at,
            rows: copy.rows.len() as u64,
            bytes: writer.file_bytes(content_bytes(&manifest, &copy.rows)),
        };
        tokio::task::spawn_blocking(move || {
            let sent = write(writer, &manifest, copy, signer.as_ref(), out, |piece| {
                // Nobody takes it any more: then nobody misses the rest.
                pieces.blocking_send(Ok(piece)).map_err(|_| anyhow::anyhow!("nobody takes it any more"))
            });
            if let Err(error) = sent {
                tracing::warn!(error = format!("{error:#}"), "a backup was not finished");
                let refusal = Refusal::new(Refused::NotReady, "backup_unfinished", format!("{error:#}"));
                let _ = pieces.blocking_send(Err(refusal));
            }
        });
        Ok(Backup { summary, pieces: taken })
    }
}

fn begin(key: &[u8; 32], copy: &Copy, out: &mut Vec<u8>) -> Result<(Writer, Vec<u8>)> {
    let writer = Writer::new(key, &copy.of, copy.at, out).context("the key for backups")?;
    let (cluster, domain) = (copy.of.name.as_str(), copy.of.trust_domain.as_str());
    let manifest = content::manifest(cluster, domain, copy.revision, &copy.rows);
    Ok((writer, manifest.encode_length_delimited_to_vec()))
}

fn content_bytes(manifest: &[u8], rows: &[Row]) -> u64 {
    let row = |row: &Row| {
        // A field's header and length, and its bytes; `BackupRow` says the same once it is made.
        let field = |bytes: usize| if bytes == 0 { 0 } else { 1 + prost::length_delimiter_len(bytes) + bytes };
        let bytes = field(row.key.kind.name().len()) + field(row.key.name.len()) + field(row.value.len());
        (prost::length_delimiter_len(bytes) + bytes) as u64
    };
    manifest.len() as u64 + rows.iter().map(row).sum::<u64>()
}

/// Writes the rest of a backup, piece by piece.
fn write(
    mut writer: Writer,
    manifest: &[u8],
    copy: Copy,
    signer: &dyn Signer,
    mut out: Vec<u8>,
    mut give: impl FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    writer.push(manifest, &mut out);
    for row in copy.rows {
        writer.push(&content::row(row).encode_length_delimited_to_vec(), &mut out);
        if out.len() >= PIECE_BYTES {
            give(std::mem::take(&mut out))?;
        }
    }
    writer.finish(signer, &mut out).context("signing the backup")?;
    give(out)
}
