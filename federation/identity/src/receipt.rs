//! Signatures over receipts: the same key as over records, and never a signature that could stand for one.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use federation_model::{ClusterId, ReplicationKey};

/// What is signed starts with this.
const DOMAIN: &[u8] = b"hanse-receipt-v1\0";

/// A receipt is not signed by the member that it speaks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("receipt of {member:?} is not signed by its replication key")]
pub struct ReceiptError {
    pub member: ClusterId,
}

pub(crate) fn signed_bytes(receipt: &[u8]) -> Vec<u8> {
    [DOMAIN, receipt].concat()
}

/// Checks the signature over a serialized receipt of `member`, whose replication key is `key`.
///
/// # Errors
/// It is not that key's.
pub fn verify(member: ClusterId, receipt: &[u8], signature: &[u8], key: &ReplicationKey) -> Result<(), ReceiptError> {
    UnparsedPublicKey::new(&ED25519, &key.0)
        .verify(&signed_bytes(receipt), signature)
        .map_err(|_| ReceiptError { member })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalSigner, Signer, now, record};

    #[test]
    fn a_signature_over_a_receipt_is_one_over_nothing_else() {
        let domain = "east.mesh.internal".parse().expect("trust domain");
        let (signer, _) = LocalSigner::generate(&domain, &"east".parse().expect("name"), now()).expect("keys");
        let candidate = signer.candidate();
        let (id, key) = (candidate.id, candidate.replication_key);
        let signature = signer.sign_receipt(b"a receipt").expect("signed");
        assert_eq!(verify(id, b"a receipt", &signature, &key), Ok(()));
        assert!(verify(id, b"another", &signature, &key).is_err());
        assert!(verify(id, b"a receipt", &signature, &ReplicationKey([1; 32])).is_err());
        let record = record::sign(&signer, b"a receipt").expect("signed");
        assert!(verify(id, b"a receipt", &record, &key).is_err());
        for cut in 0..64 {
            assert!(verify(id, b"a receipt", &signature[..cut], &key).is_err(), "{cut}");
        }
    }
}
