//! The join proof: both ends show that they know the token's secret, to each other alone, on this connection alone.
//!
//! The secret never crosses the wire. Each proof is an HMAC-SHA256 over the connection's TLS exporter and what both ends
//! believe of each other, so a man in the middle, who has two connections with two exporters, can use neither end's
//! proof on the other.

use aws_lc_rs::{constant_time, hmac};
use federation_model::{Digest, TokenSecret};
use zeroize::Zeroizing;

use crate::sha256;

/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;

/// The key of both proofs, derived from the token's secret: what the issuer keeps, sealed, instead of the secret.
#[derive(Clone)]
pub struct ProofKey(Zeroizing<[u8; 32]>);

impl ProofKey {
    /// HMAC-SHA256(secret, "hanse-join-proof-v1").
    pub fn derive(secret: &TokenSecret) -> Self {
        Self(Zeroizing::new(mac(&secret.0, &[b"hanse-join-proof-v1"])))
    }

    /// A key from its sealed row.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key in the clear, to be sealed.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofKey(hidden)")
    }
}

/// What the joiner sends.
///
/// `exporter`: of this connection, label [`crate::tls::EXPORTER_JOIN`], 32 bytes, no context. `candidate`: the very
/// bytes that are sent with it; they hold the joiner's root, keys, name and trust domain. `issuer_pin`: SHA-256 of the
/// issuer's root key, as the token has it.
pub fn joiner_proof(key: &ProofKey, exporter: &[u8; 32], candidate: &[u8], issuer_pin: &Digest) -> [u8; PROOF_BYTES] {
    mac(key.as_bytes(), &[b"hanse-join-v1\0joiner\0", exporter, &sha256(candidate).0, &issuer_pin.0])
}

/// What the issuer answers. `admission` is the digest of the record that admits the joiner.
pub fn issuer_proof(
    key: &ProofKey,
    exporter: &[u8; 32],
    candidate: &[u8],
    issuer_pin: &Digest,
    admission: &Digest,
) -> [u8; PROOF_BYTES] {
    let candidate = sha256(candidate);
    mac(key.as_bytes(), &[b"hanse-join-v1\0issuer\0", exporter, &candidate.0, &issuer_pin.0, &admission.0])
}

/// Whether `proof` is the joiner's, in the same time for every wrong one.
pub fn verify_joiner(key: &ProofKey, exporter: &[u8; 32], candidate: &[u8], issuer_pin: &Digest, proof: &[u8]) -> bool {
    let wanted = joiner_proof(key, exporter, candidate, issuer_pin);
    constant_time::verify_slices_are_equal(&wanted, proof).is_ok()
}

/// Whether `proof` is the issuer's, in the same time for every wrong one.
pub fn verify_issuer(
    key: &ProofKey,
    exporter: &[u8; 32],
    candidate: &[u8],
    issuer_pin: &Digest,
    admission: &Digest,
    proof: &[u8],
) -> bool {
    let wanted = issuer_proof(key, exporter, candidate, issuer_pin, admission);
    constant_time::verify_slices_are_equal(&wanted, proof).is_ok()
}

/// Every part but the label has 32 bytes, and the labels differ in length or text, so no two lists read alike.
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

#[cfg(test)]
mod tests;
