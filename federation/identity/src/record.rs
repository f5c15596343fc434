//! Signatures over records, and the one place where a record becomes [`Authentic`].

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use federation_model::{
    Audience, Authentic, Body, Candidate, ClusterId, Digest, FederationId, RECORD_BYTES_MAX, Record, ReplicationKey,
};

use crate::{Signer, SignerError, cluster_id, federation_id, sha256, verifier::check_root};

/// Bytes of a signature (RFC 8032, 5.1.6).
pub const SIGNATURE_BYTES: usize = 64;
/// What is signed starts with this, so that a signature over a record is a signature over nothing else.
const DOMAIN: &[u8] = b"hanse-record-v1\0";

/// Why a record is not taken. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    #[error("record envelope has {bytes} bytes, at most 65536 are allowed")]
    TooLong { bytes: usize },
    #[error("record envelope is not exactly the record and its signature in this order")]
    Envelope,
    #[error("record's signature has {bytes} bytes, Ed25519 has 64")]
    SignatureLength { bytes: usize },
    #[error("record of {writer:?} is not signed by its replication key")]
    Signature { writer: ClusterId },
    #[error("candidate {name} gives the id {given:?}, its root and key make {made:?}")]
    CandidateId { name: String, given: ClusterId, made: ClusterId },
    #[error("candidate {name} brings a root that is none of its trust domain's ({reason})")]
    CandidateRoot { name: String, reason: &'static str },
    #[error("record does not found a federation: {0}")]
    NotFounding(&'static str),
}

impl RecordError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::Envelope => "envelope",
            Self::SignatureLength { .. } => "signature_length",
            Self::Signature { .. } => "signature",
            Self::CandidateId { .. } => "candidate_id",
            Self::CandidateRoot { .. } => "candidate_root",
            Self::NotFounding(_) => "not_founding",
        }
    }
}

/// Signs a serialized record.
///
/// # Errors
/// See [`Signer::sign_record`].
pub fn sign(signer: &dyn Signer, record: &[u8]) -> Result<[u8; SIGNATURE_BYTES], SignerError> {
    signer.sign_record(record)
}

pub(crate) fn signed_bytes(record: &[u8]) -> Vec<u8> {
    [DOMAIN, record].concat()
}

/// Makes a record authentic.
///
/// `raw` is the envelope, `record_bytes` and `signature` its two fields, and `record` what the bytes say: the caller
/// decoded all three from `raw`. `key` is the writer's replication key, from its admission.
///
/// # Errors
/// The envelope is not in its one canonical form (else one record could travel in many forms), it is too long, the
/// signature is not the writer's, or a candidate in it is not who it says.
pub fn verify(
    record: Record,
    raw: Arc<[u8]>,
    record_bytes: &[u8],
    signature: &[u8],
    key: &ReplicationKey,
) -> Result<Authentic<Record>, RecordError> {
    if raw.len() > RECORD_BYTES_MAX {
        return Err(RecordError::TooLong { bytes: raw.len() });
    }
    if signature.len() != SIGNATURE_BYTES {
        return Err(RecordError::SignatureLength { bytes: signature.len() });
    }
    if !is_canonical(&raw, record_bytes, signature) {
        return Err(RecordError::Envelope);
    }
    UnparsedPublicKey::new(&ED25519, &key.0)
        .verify(&signed_bytes(record_bytes), signature)
        .map_err(|_| RecordError::Signature { writer: record.writer })?;
    match &record.body {
        Body::Founding(candidate) => check_candidate(candidate)?,
        Body::Admission(admission) => check_candidate(&admission.candidate)?,
        _ => {}
    }
    let digest = sha256(record_bytes);
    Ok(Authentic::assertion(record, raw, digest))
}

/// Makes a founding record authentic, by the key that it brings itself, and tells which federation it founds.
///
/// # Errors
/// As [`verify`], or the record is not the first of its writer's public log, about the writer itself.
pub fn verify_founding(
    record: Record,
    raw: Arc<[u8]>,
    record_bytes: &[u8],
    signature: &[u8],
) -> Result<(Authentic<Record>, FederationId), RecordError> {
    let Body::Founding(candidate) = &record.body else {
        return Err(RecordError::NotFounding("it says something else"));
    };
    if record.writer != candidate.id {
        return Err(RecordError::NotFounding("its writer is not the founder"));
    }
    if record.audience != Audience::Law || (record.epoch, record.seq) != (1, 1) || record.previous != Digest::ZERO {
        return Err(RecordError::NotFounding("it is not the first of the public log"));
    }
    if *record.federation.digest() != Digest::ZERO {
        return Err(RecordError::NotFounding("it belongs to a federation already"));
    }
    if !record.replaces.is_empty() {
        return Err(RecordError::NotFounding("it replaces something"));
    }
    let key = candidate.replication_key;
    let authentic = verify(record, raw, record_bytes, signature, &key)?;
    let federation = federation_id(authentic.digest());
    Ok((authentic, federation))
}

/// Whether a candidate is who it says: its id follows from its root and key, and its root is one of its trust domain.
///
/// # Errors
/// It is not.
pub fn check_candidate(candidate: &Candidate) -> Result<(), RecordError> {
    let name = || candidate.name.to_string();
    let made = cluster_id(&candidate.root, &candidate.replication_key);
    if made != candidate.id {
        return Err(RecordError::CandidateId { name: name(), given: candidate.id, made });
    }
    check_root(&candidate.trust_domain, &candidate.root)
        .map_err(|reason| RecordError::CandidateRoot { name: name(), reason })
}

/// Whether the envelope is field 1 (the record) and field 2 (the signature), each once, with the shortest lengths, and
/// nothing else: the one form in which records are stored, compared and forwarded.
fn is_canonical(raw: &[u8], record: &[u8], signature: &[u8]) -> bool {
    let rest = raw.strip_prefix(&[0x0a]).and_then(|rest| strip_length(rest, record.len()));
    let rest = rest.and_then(|rest| rest.strip_prefix(record)).and_then(|rest| rest.strip_prefix(&[0x12]));
    rest.and_then(|rest| strip_length(rest, signature.len())) == Some(signature) && !record.is_empty()
}

/// Strips a protobuf varint that says exactly `length` in the fewest bytes.
fn strip_length(mut bytes: &[u8], mut length: usize) -> Option<&[u8]> {
    loop {
        let (&byte, rest) = bytes.split_first()?;
        let last = length < 0x80;
        let wanted = u8::try_from(length & 0x7f).ok()? | if last { 0 } else { 0x80 };
        if byte != wanted {
            return None;
        }
        if last {
            return Some(rest);
        }
        (bytes, length) = (rest, length >> 7);
    }
}

#[cfg(test)]
mod tests;
