//! Why a chain of certificates proves nothing.

use federation_model::{Digest, SpiffeId, SpiffeIdError, Timestamp, TrustDomain};

/// Why an SVID is refused. Each is one check of the verifier; [`SvidError::reason`] is its fixed word.
///
/// `index` is the place in the chain as it was presented; the leaf is 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    // The chain as bytes.
    #[error("no certificate was presented")]
    ChainEmpty,
    #[error("chain has {count} certificates, at most 4 are allowed")]
    ChainTooLong { count: usize },
    #[error("certificate {index} has {bytes} bytes, at most 16384 are allowed")]
    CertificateTooLong { index: usize, bytes: usize },
    #[error("certificate {index} is not DER of an X.509 certificate")]
    Malformed { index: usize },
    #[error("certificate {index} is followed by {bytes} bytes that belong to nothing")]
    TrailingBytes { index: usize, bytes: usize },
    #[error("certificate {index} carries extension {oid} twice (RFC 5280, 4.2)")]
    DuplicateExtension { index: usize, oid: String },
    #[error("extension {oid} of certificate {index} cannot be read")]
    MalformedExtension { index: usize, oid: String },
    #[error("certificate {index} was not issued by the one after it: send leaf, intermediates, root in this order")]
    ChainOrder { index: usize },

    // The leaf as an X509-SVID.
    #[error("leaf has no URI in its subject alternative name, so it names no SPIFFE ID (X509-SVID, 2)")]
    NoUriSan,
    #[error("leaf has {count} URIs in its subject alternative name, exactly one is allowed (X509-SVID, 2)")]
    ManyUriSans { count: usize },
    #[error("the URI in the leaf's subject alternative name is not text")]
    UriSanNotText,
    #[error("leaf's SPIFFE ID: {0}")]
    SpiffeId(SpiffeIdError),
    #[error("leaf's SPIFFE ID {0} has no path, which only a signing certificate may have (X509-SVID, 5.2)")]
    IdWithoutPath(SpiffeId),
    #[error("leaf's subject is empty, but its subject alternative name is not critical (RFC 5280, 4.1.2.6)")]
    SanNotCritical,
    #[error("leaf does not say that it is no CA: basic constraints are missing")]
    BasicConstraintsMissing,
    #[error("leaf is a CA certificate (X509-SVID, 4.1)")]
    LeafIsCa,
    #[error("leaf carries a path length, which only a CA certificate may (RFC 5280, 4.2.1.9)")]
    LeafPathLength,
    #[error("leaf has no key usage (X509-SVID, 4.3)")]
    KeyUsageMissing,
    #[error("leaf's key usage is not critical (X509-SVID, 4.3)")]
    KeyUsageNotCritical,
    #[error("leaf's key usage lacks digitalSignature (X509-SVID, 4.3)")]
    NoDigitalSignature,
    #[error("leaf's key may sign certificates (X509-SVID, 4.3)")]
    LeafSignsCertificates,
    #[error("leaf's key may sign revocation lists (X509-SVID, 4.3)")]
    LeafSignsCrls,
    #[error("leaf's extended key usage does not hold both serverAuth and clientAuth (X509-SVID, 4.4)")]
    ExtendedKeyUsage,
    #[error("leaf's key is not an uncompressed P-256 key")]
    LeafKeyAlgorithm,
    #[error("leaf's serial number is not a positive number of at most 20 bytes (RFC 5280, 4.1.2.2)")]
    SerialNumber,
    #[error("leaf lives {hours} h, at most 24 h are allowed")]
    LifetimeTooLong { hours: u64 },

    // The path to a root of the leaf's own trust domain.
    #[error("trust domain {0} belongs to no known cluster")]
    UnknownTrustDomain(TrustDomain),
    #[error("trust domain {0} has no usable root: its bundle is empty, so all its SVIDs are revoked")]
    NoRoots(TrustDomain),
    #[error("no root of trust domain {0} issued this chain")]
    UnknownIssuer(TrustDomain),
    #[error("the key of {0}, or of its issuer, was revoked by its own cluster")]
    Revoked(SpiffeId),
    #[error("a signature in the chain does not match")]
    BadSignature,
    #[error("a signature in the chain is of an algorithm other than ECDSA with P-256 or P-384")]
    SignatureAlgorithm,
    #[error("a certificate names one signature algorithm inside and another outside")]
    SignatureAlgorithmMismatch,
    #[error("a certificate in the chain is not X.509 version 3")]
    Version,
    #[error("a certificate in the chain has a critical extension that is not understood")]
    CriticalExtension,
    #[error("a certificate in the chain ends before it begins")]
    ValidityOrder,
    #[error("leaf ended at {not_after}, it is {now}")]
    Expired { not_after: Timestamp, now: Timestamp },
    #[error("leaf begins at {not_before}, it is {now}: is a clock wrong?")]
    NotYetValid { not_before: Timestamp, now: Timestamp },
    #[error("an issuing certificate has ended")]
    IssuerExpired,
    #[error("an issuing certificate has not begun: is a clock wrong?")]
    IssuerNotYetValid,
    #[error("an issuing certificate is no CA certificate")]
    IssuerNotCa,
    #[error("more intermediates than an issuer's path length allows (RFC 5280, 4.2.1.9)")]
    PathLength,
    #[error("a name is outside the name constraints of an issuer")]
    NameConstraints,
    #[error("the path could not be verified: {0}")]
    Path(String),

    // The issuers along that path.
    #[error("issuer has no key usage (X509-SVID, 4.3)")]
    IssuerKeyUsageMissing,
    #[error("issuer's key usage is not critical (X509-SVID, 4.3)")]
    IssuerKeyUsageNotCritical,
    #[error("issuer's key usage lacks keyCertSign (X509-SVID, 4.3)")]
    IssuerNoKeyCertSign,
    #[error("issuer's extended key usage does not hold both serverAuth and clientAuth")]
    IssuerExtendedKeyUsage,
    #[error("issuer names no SPIFFE ID")]
    IssuerWithoutId,
    #[error("issuer has {count} URIs in its subject alternative name, exactly one is allowed")]
    IssuerManyIds { count: usize },
    #[error("issuer's SPIFFE ID cannot be read")]
    IssuerIdMalformed,
    #[error("issuer's SPIFFE ID {0} has a path, which a signing certificate must not have (X509-SVID, 4.2)")]
    IssuerIdWithPath(SpiffeId),
    #[error("issuer is of trust domain {issuer}, leaf of {leaf}")]
    IssuerForeignDomain { issuer: TrustDomain, leaf: TrustDomain },
    #[error("the root of this chain has ended")]
    RootExpired,
    #[error("the root of this chain has not begun: is a clock wrong?")]
    RootNotYetValid,

    // What this listener or dialler expects.
    #[error("{0} has a role that is not accepted here")]
    WrongRole(SpiffeId),
    #[error("peer is of trust domain {got}, expected is {want}")]
    WrongTrustDomain { got: TrustDomain, want: TrustDomain },
    #[error("peer is {0}, which may not serve what was asked for")]
    UnexpectedId(SpiffeId),
    #[error("chain does not end in a self-issued root, which is needed where no bundle is held")]
    RootMissing,
    #[error("presented root is no usable root: {0}")]
    RootUnusable(&'static str),
    #[error("presented root has key {got}, pinned is {want}")]
    PinMismatch { got: Digest, want: Digest },
    #[error("leaf holds another key than the one it was asked for")]
    KeyMismatch,
    #[error("private key cannot be used")]
    KeyUnusable,
}

impl SvidError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ChainEmpty => "chain_empty",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::CertificateTooLong { .. } => "certificate_too_long",
            Self::Malformed { .. } => "malformed",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::DuplicateExtension { .. } => "duplicate_extension",
            Self::MalformedExtension { .. } => "malformed_extension",
            Self::ChainOrder { .. } => "chain_order",
            Self::NoUriSan => "no_uri_san",
            Self::ManyUriSans { .. } => "many_uri_sans",
            Self::UriSanNotText => "uri_san_not_text",
            Self::SpiffeId(error) => id_reason(error),
            Self::IdWithoutPath(_) => "id_without_path",
            Self::SanNotCritical => "san_not_critical",
            Self::BasicConstraintsMissing => "basic_constraints_missing",
            Self::LeafIsCa => "leaf_is_ca",
            Self::LeafPathLength => "leaf_path_length",
            Self::KeyUsageMissing => "key_usage_missing",
            Self::KeyUsageNotCritical => "key_usage_not_critical",
            Self::NoDigitalSignature => "no_digital_signature",
            Self::LeafSignsCertificates => "leaf_signs_certificates",
            Self::LeafSignsCrls => "leaf_signs_crls",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::LeafKeyAlgorithm => "leaf_key_algorithm",
            Self::SerialNumber => "serial_number",
            Self::LifetimeTooLong { .. } => "lifetime_too_long",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::NoRoots(_) => "no_roots",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::Revoked(_) => "revoked",
            Self::BadSignature => "bad_signature",
            Self::SignatureAlgorithm => "signature_algorithm",
            Self::SignatureAlgorithmMismatch => "signature_algorithm_mismatch",
            Self::Version => "version",
            Self::CriticalExtension => "critical_extension",
            Self::ValidityOrder => "validity_order",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::IssuerExpired => "issuer_expired",
            Self::IssuerNotYetValid => "issuer_not_yet_valid",
            Self::IssuerNotCa => "issuer_not_ca",
            Self::PathLength => "path_length",
            Self::NameConstraints => "name_constraints",
            Self::Path(_) => "path",
            Self::IssuerKeyUsageMissing => "issuer_key_usage_missing",
            Self::IssuerKeyUsageNotCritical => "issuer_key_usage_not_critical",
            Self::IssuerNoKeyCertSign => "issuer_no_key_cert_sign",
            Self::IssuerExtendedKeyUsage => "issuer_extended_key_usage",
            Self::IssuerWithoutId => "issuer_without_id",
            Self::IssuerManyIds { .. } => "issuer_many_ids",
            Self::IssuerIdMalformed => "issuer_id_malformed",
            Self::IssuerIdWithPath(_) => "issuer_id_with_path",
            Self::IssuerForeignDomain { .. } => "issuer_foreign_domain",
            Self::RootExpired => "root_expired",
            Self::RootNotYetValid => "root_not_yet_valid",
            Self::WrongRole(_) => "wrong_role",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::UnexpectedId(_) => "unexpected_id",
            Self::RootMissing => "root_missing",
            Self::RootUnusable(_) => "root_unusable",
            Self::PinMismatch { .. } => "pin_mismatch",
            Self::KeyMismatch => "key_mismatch",
            Self::KeyUnusable => "key_unusable",
        }
    }
}

fn id_reason(error: &SpiffeIdError) -> &'static str {
    match error {
        SpiffeIdError::TooLong(_) => "id_too_long",
        SpiffeIdError::Scheme => "id_scheme",
        SpiffeIdError::EmptyTrustDomain => "id_empty_trust_domain",
        SpiffeIdError::TrustDomainTooLong(_) => "id_trust_domain_too_long",
        SpiffeIdError::TrustDomainCharacter(_) => "id_trust_domain_character",
        SpiffeIdError::TrailingSlash => "id_trailing_slash",
        SpiffeIdError::EmptySegment => "id_empty_segment",
        SpiffeIdError::RelativeSegment => "id_relative_segment",
        SpiffeIdError::PathCharacter(_) => "id_path_character",
        _ => "id_malformed",
    }
}
