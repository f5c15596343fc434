//! The path from a leaf to a root of its own trust domain: signatures, terms, CA flags and path lengths, by webpki.

use federation_model::{Digest, SpiffeId, Timestamp};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter, aws_lc_rs};

use super::anchors::Anchors;
#[cfg(test)]
use super::checks;
use crate::{SvidError, certificate::Certificate, sha256};

/// Signature algorithms along a path.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P256_SHA384,
    aws_lc_rs::ECDSA_P384_SHA256,
    aws_lc_rs::ECDSA_P384_SHA384,
];

/// A path whose signatures hold.
pub(super) struct Path<'a> {
    /// From the one that issued the leaf up to the one below the root; empty if the root issued the leaf.
    pub(super) issuers: Vec<&'a Certificate<'a>>,
    /// SHA-256 of the public key (SPKI DER) of the leaf's issuer.
    pub(super) issuer_key: Digest,
    /// Term of the root; of several certificates of one root, the one that ends last.
    pub(super) root_not_before: Timestamp,
    pub(super) root_not_after: Timestamp,
}

/// Extended key usage is judged by the checks of leaf and issuers, which want two purposes at once.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        Ok(())
    }
}

/// Finds the path against the given roots and no others.
pub(super) fn find<'a>(
    chain: &'a [Certificate<'a>],
    id: &SpiffeId,
    roots: &Anchors,
    now: Timestamp,
) -> Result<Path<'a>, SvidError> {
    let (leaf, issuers) = chain.split_first().ok_or(SvidError::ChainEmpty)?;
    if roots.trust.is_empty() {
        return Err(SvidError::NoRoots(id.trust_domain().clone()));
    }
    #[cfg(test)]
    if !checks::enabled("path") {
        return Ok(Path {
            issuer_key: Digest::ZERO,
            issuers: issuers.iter().collect(),
            root_not_before: Timestamp::ZERO,
            root_not_after: Timestamp::MAX,
        });
    }
    let intermediates: Vec<CertificateDer<'_>> = issuers.iter().map(|one| CertificateDer::from(one.der)).collect();
    let der = CertificateDer::from(leaf.der);
    let end = EndEntityCert::try_from(&der).map_err(|error| explain(error, leaf, id, now))?;
    // Whole seconds, rounded up: a certificate ends with the first millisecond of the second that it names.
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_millis().div_ceil(1000)));
    let found = end
        .verify_for_usage(ALGORITHMS, &roots.trust, &intermediates, time, AnyPurpose, None, None)
        .map_err(|error| explain(error, leaf, id, now))?;

    // Each certificate that was used, as it was read; one that was not read cannot be checked.
    let along: Option<Vec<&Certificate<'_>>> = found
        .intermediate_certificates()
        .map(|used| issuers.iter().find(|one| one.der == used.der().as_ref()))
        .collect();
    let along = along.ok_or_else(|| SvidError::Path("a certificate of the path was not presented".to_owned()))?;
    let anchor = found.anchor();
    let same = |index: &usize| {
        roots.trust.get(*index).is_some_and(|root| {
            root.subject == anchor.subject && root.subject_public_key_info == anchor.subject_public_key_info
        })
    };
    // The same root may be in the bundle with several terms; the best one counts.
    let term = (0..roots.trust.len())
        .filter(same)
        .filter_map(|index| roots.terms.get(index))
        .max_by_key(|term| (term.not_before <= now, term.not_after))
        .ok_or_else(|| SvidError::UnknownIssuer(id.trust_domain().clone()))?;
    Ok(Path {
        issuers: along,
        issuer_key: sha256(found.issuer_spki().as_ref()),
        root_not_before: term.not_before,
        root_not_after: term.not_after,
    })
}

/// What webpki found, in our words.
fn explain(error: Error, leaf: &Certificate<'_>, id: &SpiffeId, now: Timestamp) -> SvidError {
    match error {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => SvidError::Malformed { index: 0 },
        Error::MalformedExtensions | Error::ExtensionValueInvalid => {
            SvidError::MalformedExtension { index: 0, oid: "unknown".to_owned() }
        }
        Error::CaUsedAsEndEntity => SvidError::LeafIsCa,
        Error::EndEntityUsedAsCa => SvidError::IssuerNotCa,
        // webpki looks at the leaf first; if the leaf's term is right, it was another's.
        Error::CertExpired { .. } if now > leaf.not_after => SvidError::Expired { not_after: leaf.not_after, now },
        Error::CertExpired { .. } => SvidError::IssuerExpired,
        Error::CertNotValidYet { .. } if now < leaf.not_before => {
            SvidError::NotYetValid { not_before: leaf.not_before, now }
        }
        Error::CertNotValidYet { .. } => SvidError::IssuerNotYetValid,
        Error::InvalidCertValidity => SvidError::ValidityOrder,
        Error::InvalidSignatureForPublicKey => SvidError::BadSignature,
        Error::SignatureAlgorithmMismatch => SvidError::SignatureAlgorithmMismatch,
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            SvidError::SignatureAlgorithm
        }
        Error::UnsupportedCertVersion => SvidError::Version,
        Error::UnsupportedCriticalExtension => SvidError::CriticalExtension,
        Error::PathLenConstraintViolated => SvidError::PathLength,
        Error::NameConstraintViolation | Error::MalformedNameConstraint => SvidError::NameConstraints,
        Error::UnknownIssuer => SvidError::UnknownIssuer(id.trust_domain().clone()),
        other => SvidError::Path(other.to_string()),
    }
}
