//! Backups: a file that only this cluster's key file opens, and that nobody else can have written.
//!
//! In: any bytes, a key that the signer derives from the key-encryption key, the signer for one signature. Out: a head in
//! the clear that says whose backup it is and from when, sealed chunks, a signature over all of it; and the way back.
//! Never: knows what the bytes mean; gives out a byte of a chunk that was changed, swapped or cut; tells a name to whoever
//! lacks the key.
//!
//! ```text
//! "hansebak"  format u32  length u32  header  SHA-256 of all before     header: root, replication key, time, salt, key id
//! kind u8 (1, the last one 2)  length u32  AES-256-GCM of so many bytes, tag               chunk; numbered by its nonce
//! Ed25519 signature over "hanse-backup-v1" 0x00 and the SHA-256 of all before; then the file ends
//! ```
//!
//! Each file has a key of its own: HMAC-SHA256(backup key, "hanse-backup-file-v1" 0x00 ‖ SHA-256(head)), so no chunk of one
//! opens in another, and no byte of the head can be changed without all chunks failing.

mod reader;
#[cfg(test)]
mod tests;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, hmac,
    signature::{ED25519, UnparsedPublicKey},
};
use federation_model::{Candidate, ClusterId, Digest, ReplicationKey, Timestamp};
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

pub use reader::{Reader, verify_whole};

use crate::{Signer, SignerError, cluster_id_of, sha256, token::random};

/// Bytes of content in one chunk, at most.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Format that this version writes, and the highest that it reads.
pub const FORMAT: u32 = 1;
/// Most bytes of the header.
const HEADER_BYTES_MAX: usize = 1024;

const MAGIC: &[u8; 8] = b"hansebak";
const DOMAIN: &[u8] = b"hanse-backup-v1\0";
const TAG_BYTES: usize = 16;
const SIGNATURE_BYTES: usize = 64;
/// Kind and length.
const FRAME_BYTES: usize = 1 + 4;
const CHUNK: u8 = 1;
const LAST: u8 = 2;

/// What stands in the clear: no name, and nothing that the key guards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub format: u32,
    /// Follows from the first root and the replication key.
    pub cluster: ClusterId,
    /// Signs the file.
    pub replication_key: ReplicationKey,
    /// Of the moment that the content shows.
    pub created_at: Timestamp,
    /// Tells under which key file's key it is sealed; tells nothing of that key.
    pub key_id: [u8; 8],
}

/// The header as it lies in the file.
#[derive(Clone, PartialEq, Message)]
struct Header {
    /// SHA-256 of the cluster's first root, DER.
    #[prost(bytes, tag = "1")]
    root: Vec<u8>,
    #[prost(bytes, tag = "2")]
    replication_key: Vec<u8>,
    #[prost(uint64, tag = "3")]
    created_at_ms: u64,
    #[prost(bytes, tag = "4")]
    salt: Vec<u8>,
    #[prost(bytes, tag = "5")]
    key_id: Vec<u8>,
}

/// Why a file is not taken as a backup. Places are bytes from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    #[error("it is no backup: it does not begin like one")]
    NotABackup,
    #[error(
        "it has format {found}, this version reads format 1: use the version of hanse that wrote it, or a later one"
    )]
    Future { found: u32 },
    #[error("its head was changed (bytes 0 to {end}): take another copy or an older backup")]
    Head { end: u64 },
    #[error(
        "it is sealed under another key: give the key file that the cluster had when it was made (key id {wanted})"
    )]
    OtherKey { wanted: String },
    #[error("chunk {number} at byte {at} was changed or is not in its place: take another copy or an older backup")]
    Chunk { number: u64, at: u64 },
    #[error("it ends at byte {at}, in the middle: the copy is not whole, take another one or an older backup")]
    Cut { at: u64 },
    #[error("there is more behind its end at byte {at}: take another copy or an older backup")]
    Trailing { at: u64 },
    #[error("the signature at byte {at} is not that of the cluster whose backup it claims to be: do not use it")]
    Signature { at: u64 },
    #[error("cannot be read at byte {at}: {error}")]
    Io { at: u64, error: std::io::Error },
}

impl BackupError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotABackup => "not_a_backup",
            Self::Future { .. } => "future_format",
            Self::Head { .. } => "head",
            Self::OtherKey { .. } => "other_key",
            Self::Chunk { .. } => "chunk",
            Self::Cut { .. } => "cut",
            Self::Trailing { .. } => "trailing",
            Self::Signature { .. } => "signature",
            Self::Io { .. } => "io",
        }
    }
}

/// What the signer signs.
pub(crate) fn signed_bytes(digest: &Digest) -> Vec<u8> {
    [DOMAIN, &digest.0].concat()
}

fn verify(digest: &Digest, signature: &[u8], key: &ReplicationKey) -> bool {
    UnparsedPublicKey::new(&ED25519, &key.0).verify(&signed_bytes(digest), signature).is_ok()
}

/// Tells backup keys apart.
fn key_id(key: &[u8; 32]) -> [u8; 8] {
    let mut id = [0; 8];
    id.iter_mut().zip(mac(key, b"hanse-backup-key-id-v1\0")).for_each(|(to, from)| *to = from);
    id
}

fn mac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut made = [0; 32];
    made.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref());
    made
}

/// The key of the one file with this head.
fn file_key(key: &[u8; 32], head: &[u8]) -> Option<LessSafeKey> {
    let message = [b"hanse-backup-file-v1\0".as_slice(), &sha256(head).0].concat();
    let mut file = Zeroizing::new(mac(key, &message));
    let made = UnboundKey::new(&AES_256_GCM, file.as_ref()).ok().map(LessSafeKey::new);
    file.zeroize();
    made
}

/// Kind and number are the nonce, so that no chunk passes for another.
fn nonce(kind: u8, number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    if let Some((first, rest)) = nonce.split_first_mut() {
        *first = kind;
        rest.iter_mut().skip(3).zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
    }
    Nonce::assume_unique_for_key(nonce)
}

fn frame(kind: u8, bytes: usize) -> [u8; FRAME_BYTES] {
    let mut frame = [kind; FRAME_BYTES];
    let length = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    frame.iter_mut().skip(1).zip(length).for_each(|(to, from)| *to = from);
    frame
}

/// Writes a backup: what comes out, one piece after another, is the file.
pub struct Writer {
    key: LessSafeKey,
    running: digest::Context,
    number: u64,
    /// Bytes of the head.
    head: u64,
    /// Content that waits for a chunk to be full.
    waiting: Zeroizing<Vec<u8>>,
}

impl Writer {
    /// A backup of the cluster `of` as it is `now`, sealed under `key`; its head is appended to `out`.
    ///
    /// # Errors
    /// A key that cannot be used: never one of 32 bytes.
    pub fn new(key: &[u8; 32], of: &Candidate, now: Timestamp, out: &mut Vec<u8>) -> Result<Self, SignerError> {
        let header = Header {
            root: sha256(&of.root).0.to_vec(),
            replication_key: of.replication_key.0.to_vec(),
            created_at_ms: now.as_millis(),
            salt: random::<32>().to_vec(),
            key_id: key_id(key).to_vec(),
        };
        Self::with(key, &header, out)
    }

    fn with(key: &[u8; 32], header: &Header, out: &mut Vec<u8>) -> Result<Self, SignerError> {
        let header = header.encode_to_vec();
        let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
        let mut head = [MAGIC.as_slice(), &FORMAT.to_be_bytes(), &length.to_be_bytes(), &header].concat();
        head.extend(sha256(&head).0);
        let key = file_key(key, &head).ok_or(SignerError::Unreadable)?;
        let mut running = digest::Context::new(&digest::SHA256);
        running.update(&head);
        let bytes = head.len() as u64;
        out.extend(head);
        Ok(Self { key, running, number: 0, head: bytes, waiting: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES)) })
    }

    /// Bytes of the whole file with so many bytes of content.
    pub fn file_bytes(&self, content: u64) -> u64 {
        let chunks = content.div_ceil(CHUNK_BYTES as u64).max(1);
        self.head + content + chunks * (FRAME_BYTES + TAG_BYTES) as u64 + SIGNATURE_BYTES as u64
    }

    /// Takes more content; whole chunks are appended to `out`.
    pub fn push(&mut self, mut content: &[u8], out: &mut Vec<u8>) {
        while !content.is_empty() {
            // A full chunk waits until it is known not to be the last.
            if self.waiting.len() == CHUNK_BYTES {
                self.seal(CHUNK, out);
            }
            let (now, later) = content.split_at(content.len().min(CHUNK_BYTES - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            content = later;
        }
    }

    /// Appends the last chunk and the signature to `out`.
    ///
    /// # Errors
    /// There is no signer to ask.
    pub fn finish(mut self, signer: &dyn Signer, out: &mut Vec<u8>) -> Result<(), SignerError> {
        self.seal(LAST, out);
        let digest = crate::finish(self.running);
        out.extend(signer.sign_backup(&digest)?);
        Ok(())
    }

    fn seal(&mut self, kind: u8, out: &mut Vec<u8>) {
        let frame = frame(kind, self.waiting.len());
        let start = out.len();
        out.extend(frame);
        let at = out.len();
        out.extend_from_slice(&self.waiting);
        let nonce = nonce(kind, self.number);
        let content = out.get_mut(at..).unwrap_or_default();
        match self.key.seal_in_place_separate_tag(nonce, Aad::from(frame), content) {
            Ok(tag) => out.extend(tag.as_ref()),
            // Only more than 2^36 bytes are refused. Nothing in the clear goes out: the file would not open.
            Err(_) => content.zeroize(),
        }
        self.running.update(out.get(start..).unwrap_or_default());
        self.number += 1;
        self.waiting.zeroize();
    }
}
