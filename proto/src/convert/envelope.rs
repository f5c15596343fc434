//! A record with its signature, as it is stored and forwarded.

use federation_model::{RECORD_BYTES_MAX, Record};
use prost::Message;

use super::{ConvertError, decode_record, field};
use crate::record as wire;

/// Length of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// A record with the very bytes that its writer signed. Nobody has checked the signature yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What was signed and what the digest is of.
    pub record_bytes: Vec<u8>,
    pub signature: [u8; SIGNATURE_BYTES],
    /// What the bytes say.
    pub record: Record,
}

/// Puts a record's bytes and its signature together.
pub fn encode_envelope(record_bytes: &[u8], signature: &[u8]) -> Vec<u8> {
    wire::Envelope { record: record_bytes.to_vec(), signature: signature.to_vec() }.encode_to_vec()
}

/// Reads an envelope of at most [`RECORD_BYTES_MAX`].
///
/// # Errors
/// Too long, no protobuf, or a field that is missing or wrong. A kind or critical feature that this version does not
/// know is no error: see [`decode_record`].
pub fn decode_envelope(raw: &[u8]) -> Result<Envelope, ConvertError> {
    let message: wire::Envelope = field::message("envelope", raw, RECORD_BYTES_MAX)?;
    let signature = field::fixed("envelope.signature", &message.signature)?;
    let record = decode_record(&message.record)?;
    Ok(Envelope { record_bytes: message.record, signature, record })
}
