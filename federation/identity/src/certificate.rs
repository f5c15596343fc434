//! One certificate, read once: the few fields that the verifier judges, and nothing that it does not.
//!
//! In: DER of one certificate from anybody. Out: [`Certificate`], borrowing it. Never: judges; a certificate that can be
//! read may still be worthless.

use federation_model::Timestamp;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::SvidError;

/// SubjectPublicKeyInfo of P-256 up to the bits of the key: id-ecPublicKey with prime256v1, 65 bytes follow (RFC 5480, 2).
const P256_SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed P-256 point: 0x04, x, y (SEC 1, 2.3.3).
pub(crate) const P256_POINT_BYTES: usize = 65;

/// What basic constraints say (RFC 5280, 4.2.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BasicConstraints {
    pub(crate) ca: bool,
    pub(crate) path_length: Option<u32>,
}

/// What key usage says (RFC 5280, 4.2.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

/// What extended key usage says (RFC 5280, 4.2.1.12). `anyExtendedKeyUsage` stands for neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtendedKeyUsage {
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
}

/// A certificate as read.
#[derive(Debug)]
pub(crate) struct Certificate<'a> {
    pub(crate) der: &'a [u8],
    /// Contents of the INTEGER: two's complement, big-endian.
    pub(crate) serial: &'a [u8],
    /// DER of the issuer's name.
    pub(crate) issuer: &'a [u8],
    /// DER of the subject's name.
    pub(crate) subject: &'a [u8],
    pub(crate) subject_empty: bool,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// DER of SubjectPublicKeyInfo.
    pub(crate) spki: &'a [u8],
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage>,
    pub(crate) san_critical: bool,
    /// Each URI of the subject alternative name; `None` for one that is not UTF-8.
    pub(crate) uris: Vec<Option<&'a str>>,
}

impl<'a> Certificate<'a> {
    /// Reads one certificate; `index` is its place in the chain, for messages.
    pub(crate) fn parse(der: &'a [u8], index: usize) -> Result<Self, SvidError> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed { index })?;
        if !rest.is_empty() {
            return Err(SvidError::TrailingBytes { index, bytes: rest.len() });
        }
        // The outer length is right, but a parser that stops early would leave bytes inside.
        if !is_one_value(der) {
            return Err(SvidError::Malformed { index });
        }
        let tbs = x509.tbs_certificate;
        let mut certificate = Self {
            der,
            serial: tbs.raw_serial(),
            issuer: tbs.issuer.as_raw(),
            subject: tbs.subject.as_raw(),
            subject_empty: tbs.subject.iter_rdn().next().is_none(),
            not_before: timestamp(tbs.validity.not_before.timestamp()),
            not_after: timestamp(tbs.validity.not_after.timestamp()),
            spki: tbs.subject_pki.raw,
            basic_constraints: None,
            key_usage: None,
            extended_key_usage: None,
            san_critical: false,
            uris: Vec::new(),
        };
        for (number, extension) in tbs.extensions().iter().enumerate() {
            let oid = || extension.oid.to_id_string();
            if tbs.extensions().iter().take(number).any(|before| before.oid == extension.oid) {
                return Err(SvidError::DuplicateExtension { index, oid: oid() });
            }
            let malformed = || SvidError::MalformedExtension { index, oid: oid() };
            match extension.parsed_extension() {
                // Of an extension that we judge or that anybody could, half a reading is none.
                ParsedExtension::ParseError { .. } => return Err(malformed()),
                ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::Unparsed => continue,
                _ if !is_one_value(extension.value) => return Err(malformed()),
                ParsedExtension::BasicConstraints(basic) => {
                    certificate.basic_constraints =
                        Some(BasicConstraints { ca: basic.ca, path_length: basic.path_len_constraint });
                }
                ParsedExtension::KeyUsage(usage) => {
                    certificate.key_usage = Some(KeyUsage {
                        critical: extension.critical,
                        digital_signature: usage.digital_signature(),
                        key_cert_sign: usage.key_cert_sign(),
                        crl_sign: usage.crl_sign(),
                    });
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    certificate.extended_key_usage =
                        Some(ExtendedKeyUsage { server_auth: usage.server_auth, client_auth: usage.client_auth });
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    certificate.san_critical = extension.critical;
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => certificate.uris.push(Some(uri)),
                            // Tag 6 is uniformResourceIdentifier (RFC 5280, 4.2.1.6): unreadable, but it counts.
                            GeneralName::Invalid(tag, _) if tag.0 == 6 => certificate.uris.push(None),
                            GeneralName::Invalid(..) => return Err(malformed()),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(certificate)
    }

    /// Whether its issuer bears its own name, as a root does.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// The key, if it is an uncompressed P-256 point.
    pub(crate) fn p256_point(&self) -> Option<[u8; P256_POINT_BYTES]> {
        p256_point(self.spki)
    }
}

/// The point of a P-256 SubjectPublicKeyInfo; `None` for every other key or form.
pub(crate) fn p256_point(spki: &[u8]) -> Option<[u8; P256_POINT_BYTES]> {
    let point: [u8; P256_POINT_BYTES] = spki.strip_prefix(&P256_SPKI_HEAD)?.try_into().ok()?;
    (point[0] == 0x04).then_some(point)
}

/// SubjectPublicKeyInfo (DER) of an uncompressed P-256 point.
pub(crate) fn p256_spki(point: &[u8]) -> Vec<u8> {
    [&P256_SPKI_HEAD, point].concat()
}

/// X.509 counts seconds; what lies before 1970 is held there.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether the bytes are exactly one DER value with a definite length.
pub(crate) fn is_one_value(bytes: &[u8]) -> bool {
    let Some((&[_, first], rest)) = bytes.split_first_chunk::<2>() else { return false };
    match first {
        0..=0x7f => rest.len() == usize::from(first),
        0x81 => rest.split_first().is_some_and(|(length, rest)| *length >= 0x80 && rest.len() == usize::from(*length)),
        0x82 => rest.split_first_chunk::<2>().is_some_and(|(length, rest)| {
            let length = usize::from(u16::from_be_bytes(*length));
            length >= 0x100 && rest.len() == length
        }),
        _ => false,
    }
}
