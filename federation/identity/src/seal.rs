//! Sealing: what a store may hold of a secret, and what only one cluster may read.
//!
//! At rest: envelope encryption. Each value has a data key of its own, that key is wrapped under the key-encryption key
//! ([`Kek`]), both with AES-256-GCM, both bound to the name that the caller gives as `aad`, so that no sealed value can
//! be put in another's place. To another cluster: HPKE (RFC 9180) with X25519, HKDF-SHA256 and AES-256-GCM.
//!
//! Never: a default key, a key from an argument, a key that others than its owner may read.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use federation_model::SealingKey;
use nix::fcntl::OFlag;
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};
use zeroize::Zeroizing;

use crate::{SignerError, sha256_of, token::random};

/// Bytes of a key-encryption key and of its file.
pub const KEK_BYTES: usize = 32;
/// Most bytes that are sealed as one value.
pub const SEALED_BYTES_MAX: usize = 1024 * 1024;

const VERSION: u8 = 1;
const KEK_ID_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = 32 + TAG_BYTES;
/// Version, key id, nonce and wrapped data key, nonce of the value.
const HEAD_BYTES: usize = 1 + KEK_ID_BYTES + NONCE_LEN + WRAPPED_BYTES + NONCE_LEN;
const ENCAPSULATED_BYTES: usize = 32;
const HPKE_INFO: &[u8] = b"hanse-seal-v1\0";

/// Why a value cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    #[error("value has {bytes} bytes, at most 1048576 are sealed as one")]
    TooLong { bytes: usize },
    #[error("sealed value is of no form that this version knows")]
    Malformed,
    #[error("sealed value is under another key-encryption key: was the key file replaced?")]
    OtherKey,
    #[error("sealed value does not open: it was changed, or it belongs elsewhere")]
    Damaged,
    #[error("recipient's sealing key is not usable")]
    Recipient,
}

impl SealError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::Malformed => "malformed",
            Self::OtherKey => "other_key",
            Self::Damaged => "damaged",
            Self::Recipient => "recipient",
        }
    }
}

/// Why a value that was sealed to this cluster is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsealError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Signer(#[from] SignerError),
}

impl UnsealError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Seal(error) => error.reason(),
            Self::Signer(error) => error.reason(),
        }
    }
}

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    #[error("key file {path} is not there: point kek_file at it, or let a new store make one")]
    Missing { path: PathBuf },
    #[error("key file {path} is a symbolic link, which is refused: name the file itself")]
    Symlink { path: PathBuf },
    #[error("key file {path} is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("key file {path} has mode {mode:04o}: others than its owner may use it; run chmod 0400 {path}")]
    Mode { path: PathBuf, mode: u32 },
    #[error("key file {path} belongs to uid {owner}, this process runs as uid {own}: run chown {own} {path}")]
    Owner { path: PathBuf, owner: u32, own: u32 },
    #[error("key file {path} has {bytes} bytes, it must have exactly 32")]
    Length { path: PathBuf, bytes: u64 },
    #[error("key file {path} holds nothing but one byte repeated: that is no key")]
    Weak { path: PathBuf },
    #[error("key file {path} exists already and is not overwritten")]
    Exists { path: PathBuf },
    #[error("key file {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl KekError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Symlink { .. } => "symlink",
            Self::NotAFile { .. } => "not_a_file",
            Self::Mode { .. } => "mode",
            Self::Owner { .. } => "owner",
            Self::Length { .. } => "length",
            Self::Weak { .. } => "weak",
            Self::Exists { .. } => "exists",
            Self::Io { .. } => "io",
        }
    }
}

/// The key-encryption key: guards copies of the data, not a stolen host. Wiped when dropped; has no text form.
pub struct Kek {
    bytes: Zeroizing<[u8; KEK_BYTES]>,
    /// Tells keys apart without telling anything of them.
    id: [u8; KEK_ID_BYTES],
}

impl Kek {
    /// A new random key.
    pub fn generate() -> Self {
        Self::from_bytes(random())
    }

    pub fn from_bytes(bytes: [u8; KEK_BYTES]) -> Self {
        let digest = sha256_of(&[b"hanse-kek-id-v1\0", &bytes]);
        let mut id = [0; KEK_ID_BYTES];
        id.iter_mut().zip(digest.0).for_each(|(to, from)| *to = from);
        Self { bytes: Zeroizing::new(bytes), id }
    }

    /// Another key for one purpose, from which this one cannot be told: HMAC-SHA256(key, purpose) (RFC 2104).
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.bytes.as_slice());
        let mut derived = Zeroizing::new([0; 32]);
        derived.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        derived
    }

    /// Reads a key file: 32 raw bytes in a regular file that is this process's user's own and nobody else's to read.
    ///
    /// # Errors
    /// Anything else about the file; nothing of its content is told.
    pub fn load(path: &Path) -> Result<Self, KekError> {
        let at = || path.to_path_buf();
        // Opened without following a link and without waiting for a writer, then judged by what was opened, so that
        // nothing can be put in its place between look and use.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|source| {
            let link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
            match source.kind() {
                _ if link => KekError::Symlink { path: at() },
                io::ErrorKind::NotFound => KekError::Missing { path: at() },
                _ => KekError::Io { path: at(), source },
            }
        })?;
        let found = file.metadata().map_err(|source| KekError::Io { path: at(), source })?;
        if !found.is_file() {
            return Err(KekError::NotAFile { path: at() });
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o7077 != 0 {
            return Err(KekError::Mode { path: at(), mode });
        }
        let own = nix::unistd::geteuid().as_raw();
        if found.uid() != own {
            return Err(KekError::Owner { path: at(), owner: found.uid(), own });
        }
        if found.len() != KEK_BYTES as u64 {
            return Err(KekError::Length { path: at(), bytes: found.len() });
        }
        let mut bytes = Zeroizing::new([0; KEK_BYTES]);
        (&file).read_exact(bytes.as_mut()).map_err(|source| KekError::Io { path: at(), source })?;
        if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
            return Err(KekError::Weak { path: at() });
        }
        Ok(Self::from_bytes(*bytes))
    }

    /// Makes a new key and its file, mode 0400, on the disk before this returns.
    ///
    /// # Errors
    /// The file exists, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, KekError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KekError::Exists { path: path.to_path_buf() },
            _ => KekError::Io { path: path.to_path_buf(), source },
        };
        let kek = Self::generate();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path).map_err(failed)?;
        let written = file.write_all(kek.bytes.as_ref()).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // Half a key would only be refused at the next start.
            let _ = fs::remove_file(path);
            return Err(failed(source));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(kek)
    }

    /// Seals a value under the name `aad`: version ‖ key id ‖ nonce ‖ wrapped data key ‖ nonce ‖ ciphertext and tag.
    ///
    /// # Errors
    /// More than [`SEALED_BYTES_MAX`] bytes.
    pub fn seal(&self, aad: &[u8], value: &[u8]) -> Result<Vec<u8>, SealError> {
        if value.len() > SEALED_BYTES_MAX {
            return Err(SealError::TooLong { bytes: value.len() });
        }
        let data_key = Zeroizing::new(random::<32>());
        let mut sealed = Vec::with_capacity(HEAD_BYTES + value.len() + TAG_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id);
        encrypt(&self.bytes, &self.bound(b"key", aad), data_key.as_ref(), &mut sealed)?;
        encrypt(&data_key, &self.bound(b"value", aad), value, &mut sealed)?;
        Ok(sealed)
    }

    /// Opens what [`Kek::seal`] sealed under the same name.
    ///
    /// # Errors
    /// Another key, another name, or any changed byte.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if sealed.len() > HEAD_BYTES + SEALED_BYTES_MAX + TAG_BYTES {
            return Err(SealError::TooLong { bytes: sealed.len() });
        }
        let (&version, rest) = sealed.split_first().ok_or(SealError::Malformed)?;
        let (id, rest) = rest.split_first_chunk::<KEK_ID_BYTES>().ok_or(SealError::Malformed)?;
        let (wrapped, value) = rest.split_at_checked(NONCE_LEN + WRAPPED_BYTES).ok_or(SealError::Malformed)?;
        if version != VERSION {
            return Err(SealError::Malformed);
        }
        if *id != self.id {
            return Err(SealError::OtherKey);
        }
        let data_key = decrypt(&self.bytes, &self.bound(b"key", aad), wrapped)?;
        let data_key: Zeroizing<[u8; 32]> =
            Zeroizing::new(data_key.as_slice().try_into().map_err(|_| SealError::Damaged)?);
        decrypt(&data_key, &self.bound(b"value", aad), value)
    }

    /// What both layers are bound to: their purpose, the key that is meant, the name of the value.
    fn bound(&self, purpose: &[u8], aad: &[u8]) -> Vec<u8> {
        [b"hanse-sealed-v1\0", purpose, b"\0", &self.id, aad].concat()
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(hidden)")
    }
}

/// Appends nonce and ciphertext with tag.
fn encrypt(key: &[u8; 32], aad: &[u8], plain: &[u8], into: &mut Vec<u8>) -> Result<(), SealError> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Malformed)?);
    let nonce = random::<NONCE_LEN>();
    let mut buffer = Zeroizing::new(plain.to_vec());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut *buffer)
        .map_err(|_| SealError::Malformed)?;
    into.extend_from_slice(&nonce);
    into.extend_from_slice(&buffer);
    Ok(())
}

fn decrypt(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Malformed)?);
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Malformed)?;
    if rest.len() < TAG_BYTES {
        return Err(SealError::Malformed);
    }
    let mut buffer = Zeroizing::new(rest.to_vec());
    let plain = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut buffer)
        .map_err(|_| SealError::Damaged)?
        .len();
    buffer.truncate(plain);
    Ok(buffer)
}

/// Seals a value to another cluster's sealing key: version ‖ encapsulated key ‖ ciphertext and tag. The name goes into
/// HPKE's `info`, behind "hanse-seal-v1" ‖ 0x00; its own `aad` stays empty.
///
/// # Errors
/// More than [`SEALED_BYTES_MAX`] bytes, or a recipient's key that is none.
pub fn seal_to(recipient: &SealingKey, aad: &[u8], value: &[u8]) -> Result<Vec<u8>, SealError> {
    if value.len() > SEALED_BYTES_MAX {
        return Err(SealError::TooLong { bytes: value.len() });
    }
    let public = HpkePublicKey(recipient.0.to_vec());
    let (EncapsulatedSecret(encapsulated), ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
        .seal(&[HPKE_INFO, aad].concat(), &[], value, &public)
        .map_err(|_| SealError::Recipient)?;
    Ok([&[VERSION][..], &encapsulated, &ciphertext].concat())
}

pub(crate) fn unseal(private: &[u8], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.len() > 1 + ENCAPSULATED_BYTES + SEALED_BYTES_MAX + TAG_BYTES {
        return Err(SealError::TooLong { bytes: sealed.len() });
    }
    let (&version, rest) = sealed.split_first().ok_or(SealError::Malformed)?;
    let (encapsulated, ciphertext) = rest.split_first_chunk::<ENCAPSULATED_BYTES>().ok_or(SealError::Malformed)?;
    if version != VERSION || ciphertext.len() < TAG_BYTES {
        return Err(SealError::Malformed);
    }
    let secret = HpkePrivateKey::from(private.to_vec());
    DH_KEM_X25519_HKDF_SHA256_AES_256
        .open(&EncapsulatedSecret(encapsulated.to_vec()), &[HPKE_INFO, aad].concat(), &[], ciphertext, &secret)
        .map(Zeroizing::new)
        .map_err(|_| SealError::Damaged)
}

#[cfg(test)]
mod tests;
