//! What a cluster says of itself when it founds or joins.

use federation_model::{Candidate, ClusterId, ROOT_BYTES_MAX, ReplicationKey, SealingKey};
use prost::Message;

use super::{ConvertError, field};
use crate::record as wire;

/// Longest serialized candidate in bytes: the longest root, and room for names and keys.
pub const CANDIDATE_BYTES_MAX: usize = ROOT_BYTES_MAX + 1024;

impl From<&Candidate> for wire::Candidate {
    fn from(candidate: &Candidate) -> Self {
        Self {
            id: candidate.id.as_bytes().to_vec(),
            name: candidate.name.to_string(),
            trust_domain: candidate.trust_domain.to_string(),
            root: candidate.root.clone(),
            replication_key: candidate.replication_key.0.to_vec(),
            sealing_key: candidate.sealing_key.0.to_vec(),
        }
    }
}

impl TryFrom<&wire::Candidate> for Candidate {
    type Error = ConvertError;
    /// The id is taken as it stands: whoever checks the signature recomputes it.
    fn try_from(message: &wire::Candidate) -> Result<Self, ConvertError> {
        if message.root.is_empty() {
            return Err(ConvertError::Missing { field: "candidate.root" });
        }
        field::at_most("candidate.root", message.root.len(), ROOT_BYTES_MAX)?;
        Ok(Self {
            id: field::digest("candidate.id", &message.id).map(ClusterId::from_digest)?,
            name: field::text("candidate.name", &message.name)?,
            trust_domain: field::text("candidate.trust_domain", &message.trust_domain)?,
            root: message.root.clone(),
            replication_key: field::fixed("candidate.replication_key", &message.replication_key).map(ReplicationKey)?,
            sealing_key: field::fixed("candidate.sealing_key", &message.sealing_key).map(SealingKey)?,
        })
    }
}

/// The bytes that a join proof covers.
pub fn encode_candidate(candidate: &Candidate) -> Vec<u8> {
    wire::Candidate::from(candidate).encode_to_vec()
}

/// Reads a candidate of at most [`CANDIDATE_BYTES_MAX`].
///
/// # Errors
/// Too long, no protobuf, or a field that is missing or wrong.
pub fn decode_candidate(bytes: &[u8]) -> Result<Candidate, ConvertError> {
    let message: wire::Candidate = field::message("candidate", bytes, CANDIDATE_BYTES_MAX)?;
    Candidate::try_from(&message)
}
