//! Reads a backup from its start to its end, and believes nothing before the signature at the end.

use std::io::{self, Read};

use aws_lc_rs::{
    aead::{Aad, LessSafeKey},
    digest,
};
use federation_model::{Digest, ReplicationKey, Timestamp};
use prost::Message;
use zeroize::Zeroizing;

use super::{
    BackupError, CHUNK, CHUNK_BYTES, FORMAT, FRAME_BYTES, HEADER_BYTES_MAX, Head, Header, LAST, MAGIC, SIGNATURE_BYTES,
    TAG_BYTES, cluster_id_of, file_key, key_id, nonce, sha256, verify,
};

/// A backup that is being read.
pub struct Reader<R> {
    source: Source<R>,
    head: Head,
    /// The head as it lies in the file.
    head_bytes: Vec<u8>,
    number: u64,
    key: Option<LessSafeKey>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head, which is in the clear. That it is the named cluster's own is known at the end alone.
    ///
    /// # Errors
    /// It is no backup, one of a later format, or its head was changed.
    pub fn open(from: R) -> Result<Self, BackupError> {
        let mut source = Source { from, at: 0, running: digest::Context::new(&digest::SHA256) };
        let (head, head_bytes) = read_head(&mut source)?;
        Ok(Self { source, head, head_bytes, number: 0, key: None, ended: false })
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes the key, without which [`Reader::next`] gives no content.
    ///
    /// # Errors
    /// It is not the one under which this backup was sealed.
    pub fn unlock(&mut self, key: &[u8; 32]) -> Result<(), BackupError> {
        let wanted: String = self.head.key_id.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.head.key_id != key_id(key) {
            return Err(BackupError::OtherKey { wanted });
        }
        self.key = Some(file_key(key, &self.head_bytes).ok_or(BackupError::OtherKey { wanted })?);
        Ok(())
    }

    /// The content of the next chunk; empty if there is no key. `None` once the signature was found good and nothing is
    /// behind it: what was given out before counts for nothing until then.
    ///
    /// # Errors
    /// Anything is not as it was written.
    pub fn next_chunk(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, BackupError> {
        if self.ended {
            self.check_end()?;
            return Ok(None);
        }
        let (number, at) = (self.number, self.source.at);
        let changed = || BackupError::Chunk { number, at };
        let frame: [u8; FRAME_BYTES] = self.source.array()?;
        let [kind, length @ ..] = frame;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if !(kind == CHUNK && length == CHUNK_BYTES || kind == LAST && length <= CHUNK_BYTES) {
            return Err(changed());
        }
        let mut content = Zeroizing::new(self.source.bytes(length + TAG_BYTES)?);
        let plain = match &self.key {
            Some(key) => {
                let opened = key.open_in_place(nonce(kind, number), Aad::from(frame), &mut content);
                opened.map_err(|_| changed())?.len()
            }
            None => 0,
        };
        content.truncate(plain);
        self.number += 1;
        self.ended = kind == LAST;
        Ok(Some(content))
    }

    fn check_end(&mut self) -> Result<(), BackupError> {
        let (at, digest) = (self.source.at, crate::finish(self.source.running.clone()));
        let signature: [u8; SIGNATURE_BYTES] = self.source.array()?;
        if !verify(&digest, &signature, &self.head.replication_key) {
            return Err(BackupError::Signature { at });
        }
        match self.source.array::<1>() {
            Err(BackupError::Cut { .. }) => Ok(()),
            Ok(_) => Err(BackupError::Trailing { at: at + SIGNATURE_BYTES as u64 }),
            Err(error) => Err(error),
        }
    }
}

/// The head, and its bytes.
fn read_head(source: &mut Source<impl Read>) -> Result<(Head, Vec<u8>), BackupError> {
    let magic = match source.array::<8>() {
        Err(BackupError::Cut { .. }) => return Err(BackupError::NotABackup),
        other => other?,
    };
    if magic != *MAGIC {
        return Err(BackupError::NotABackup);
    }
    let format = u32::from_be_bytes(source.array()?);
    if format > FORMAT {
        return Err(BackupError::Future { found: format });
    }
    let length = u32::from_be_bytes(source.array()?);
    let fits = usize::try_from(length).ok().filter(|length| *length <= HEADER_BYTES_MAX);
    let header = source.bytes(fits.ok_or(BackupError::Head { end: source.at })?)?;
    let mut bytes = [magic.as_slice(), &format.to_be_bytes(), &length.to_be_bytes(), &header].concat();
    let digest = sha256(&bytes);
    let told: [u8; 32] = source.array()?;
    bytes.extend(told);
    let changed = || BackupError::Head { end: source.at };
    if told != digest.0 || format != FORMAT {
        return Err(changed());
    }
    let header = Header::decode(header.as_slice()).map_err(|_| changed())?;
    let root = header.root.as_slice().try_into().map(Digest).map_err(|_| changed())?;
    let replication_key = header.replication_key.as_slice().try_into().map(ReplicationKey).map_err(|_| changed())?;
    let head = Head {
        format,
        cluster: cluster_id_of(&root, &replication_key),
        replication_key,
        created_at: Timestamp::from_millis(header.created_at_ms),
        key_id: header.key_id.as_slice().try_into().map_err(|_| changed())?,
    };
    Ok((head, bytes))
}

/// The bytes as they come, counted and digested.
struct Source<R> {
    from: R,
    at: u64,
    running: digest::Context,
}

impl<R: Read> Source<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| BackupError::Cut { at: self.at })
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; count];
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => return Err(BackupError::Cut { at: self.at + read as u64 }),
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BackupError::Io { at: self.at + read as u64, error }),
            }
        }
        self.at += count as u64;
        self.running.update(&bytes);
        Ok(bytes)
    }
}

/// Checks without a key that a file is whole and signed by the cluster that its head names.
///
/// # Errors
/// It is not. What lies under the seal is not looked at.
pub fn verify_whole(from: impl Read) -> Result<Head, BackupError> {
    let mut reader = Reader::open(from)?;
    while reader.next_chunk()?.is_some() {}
    Ok(reader.head)
}
