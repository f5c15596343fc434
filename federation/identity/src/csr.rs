//! Certificate signing requests (PKCS #10, RFC 2986): a public key and the proof that its holder asks.
//!
//! Nothing else in a request counts. Names in particular: who somebody is, the attestation decides; a request that
//! brings names of its own is refused, so that nobody learns to rely on them.

use federation_model::Digest;
use x509_parser::{certification_request::X509CertificationRequest, extensions::ParsedExtension, prelude::FromDer};

use crate::{
    certificate::{is_one_value, p256_point},
    sha256,
};

/// Most bytes of a request; one with a P-256 key has about 300.
pub const CSR_BYTES_MAX: usize = 4 * 1024;

/// Why a signing request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    #[error("signing request has {bytes} bytes, at most 4096 are allowed")]
    TooLong { bytes: usize },
    #[error("signing request is not DER of a PKCS #10 request")]
    Malformed,
    #[error("signing request is not signed by the key that it carries")]
    Signature,
    #[error("signing request carries a key that is not an uncompressed P-256 key")]
    KeyAlgorithm,
    #[error("signing request asks for names: leave them out, the identity follows from who you proved to be")]
    Names,
}

impl CsrError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "csr_too_long",
            Self::Malformed => "csr_malformed",
            Self::Signature => "csr_signature",
            Self::KeyAlgorithm => "csr_key_algorithm",
            Self::Names => "csr_names",
        }
    }
}

/// Checks a request and gives the DER of its SubjectPublicKeyInfo.
pub(crate) fn requested_key(csr: &[u8]) -> Result<Vec<u8>, CsrError> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLong { bytes: csr.len() });
    }
    if !is_one_value(csr) {
        return Err(CsrError::Malformed);
    }
    let (_, request) = X509CertificationRequest::from_der(csr).map_err(|_| CsrError::Malformed)?;
    let spki = request.certification_request_info.subject_pki.raw;
    // Before the signature, so that nobody has us verify with a key of their choosing.
    if p256_point(spki).is_none() {
        return Err(CsrError::KeyAlgorithm);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    let names = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::SubjectAlternativeName(_));
    if request.requested_extensions().is_some_and(|mut requested| requested.any(names)) {
        return Err(CsrError::Names);
    }
    Ok(spki.to_vec())
}

/// SHA-256 of the public key (SPKI DER) in a request: tells whether the same key asks again.
///
/// # Errors
/// The request is malformed or not signed by its own key.
pub fn csr_key_digest(csr: &[u8]) -> Result<Digest, CsrError> {
    requested_key(csr).map(|spki| sha256(&spki))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, SanType};

    use super::*;
    use crate::SvidKey;

    #[test]
    fn a_request_of_our_own_making_yields_its_key() {
        let key = SvidKey::generate();
        assert_eq!(csr_key_digest(&key.csr()).expect("own request"), key.spki_digest());
    }

    #[test]
    fn names_in_a_request_are_refused() {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://west.mesh.internal/ns/a/sa/b".try_into().expect("uri"))];
        let csr = params.serialize_request(&key).expect("request");
        assert_eq!(csr_key_digest(csr.der()), Err(CsrError::Names));
    }

    #[test]
    fn keys_other_than_p256_are_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("key");
        let csr = CertificateParams::default().serialize_request(&key).expect("request");
        assert_eq!(csr_key_digest(csr.der()), Err(CsrError::KeyAlgorithm));
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let (mine, theirs) = (SvidKey::generate(), SvidKey::generate());
        let mut forged = mine.csr();
        // Same shape, so the foreign point lands where ours was.
        let (from, to) = (mine.point(), theirs.point());
        let at = forged.windows(from.len()).position(|window| window == from).expect("point");
        forged[at..at + to.len()].copy_from_slice(&to);
        assert_eq!(csr_key_digest(&forged), Err(CsrError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = SvidKey::generate().csr();
        let mut long = good.clone();
        long.push(0);
        for bad in [&[][..], &[0x30], &[0x30, 0x00], &good[..good.len() - 1], &long, &[0x30; 64]] {
            assert_eq!(csr_key_digest(bad), Err(CsrError::Malformed), "{bad:02x?}");
        }
        assert_eq!(csr_key_digest(&vec![0; CSR_BYTES_MAX + 1]), Err(CsrError::TooLong { bytes: CSR_BYTES_MAX + 1 }));
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_requests_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), at in 0usize..400, with: u8) {
            let _ = csr_key_digest(&bytes);
            let mut damaged = SvidKey::generate().csr();
            let place = at % damaged.len();
            damaged[place] ^= with;
            let _ = csr_key_digest(&damaged);
        }
    }
}
