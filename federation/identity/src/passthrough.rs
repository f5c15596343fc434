//! The passthrough header: who sends the sealed bytes that follow, and where to, for edges that cannot read them.
//!
//! A PROXY protocol v2 header (command PROXY, family UNSPEC, no addresses) whose TLVs carry the destination, the
//! connection, the source's chain and its signature. Every byte of it but the signature is signed, in the one form in
//! which it can be written, so that a header reads one way only and none of it can be changed on the way.
//!
//! In: header bytes from anybody. Out: [`Header`], a claim; [`verify`] makes it a proof, for one ClientHello and a few
//! minutes. Never: says that the sender may pass, or who answers at the far end; mTLS between the sidecars does.
//!
//! Layout, integers big-endian:
//!
//! ```text
//! 0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a   signature of PROXY v2
//! 21 00                                 version 2, command PROXY; family and transport UNSPEC
//! <u16>                                 bytes that follow
//! e0 <u16> version u8 = 1, purpose u8   1 opens a connection, 2 extends a live one
//! e1 <u16> destination                  1 to 254 bytes of visible ASCII
//! e2 <u16> connection id                16 bytes
//! e3 <u16> instance id                  16 bytes; only in a renewal
//! e4 <u16> time                         u64, milliseconds since 1970
//! e5 <u16> certificate                  DER; leaf, then issuers without the root; 1 to 3 times
//! e6 <u16> digest                       SHA-256 of the TLS records that carry the ClientHello
//! e7 <u16> signature                    ECDSA P-256 with SHA-256, r ‖ s, 64 bytes, by the leaf's key over
//!                                       "hanse-passthrough-v1" 00 and every byte above
//! ```

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use federation_model::{ConnectionId, Digest, InstanceId, Proof, Role, SpiffeId, Timestamp, VerifiedPeer};
use rustls_pki_types::CertificateDer;

use crate::{
    Svid, SvidError, Verifier,
    certificate::Certificate,
    sha256,
    verifier::{Expected, RoleIs, Verified},
};

/// Most bytes of a header, PROXY preamble included.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a destination: a DNS name and a final dot.
pub const DESTINATION_BYTES_MAX: usize = 254;
/// How far the time in a header may be from the reader's.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Bytes of the preamble: PROXY v2 signature, version and command, family, length.
pub const PREAMBLE_BYTES: usize = 16;

/// Most certificates in a header: leaf and two intermediates. The root is never needed: the reader has it or refuses.
const CERTIFICATES_MAX: usize = 3;
const PREAMBLE: [u8; 14] = *b"\r\n\r\n\0\r\nQUIT\n\x21\x00";
const SIGNED_DOMAIN: &[u8] = b"hanse-passthrough-v1\0";
const VERSION: u8 = 1;
const SIGNATURE_BYTES: usize = 64;
/// Type and length of a TLV.
const TLV_HEAD_BYTES: usize = 3;

/// Types from the range that PROXY v2 leaves to applications (2.2.8: 0xe0 to 0xef).
mod tlv {
    pub(super) const PURPOSE: u8 = 0xe0;
    pub(super) const DESTINATION: u8 = 0xe1;
    pub(super) const CONNECTION: u8 = 0xe2;
    pub(super) const INSTANCE: u8 = 0xe3;
    pub(super) const TIME: u8 = 0xe4;
    pub(super) const CERTIFICATE: u8 = 0xe5;
    pub(super) const HELLO: u8 = 0xe6;
    pub(super) const SIGNATURE: u8 = 0xe7;
}

/// What a header is for. One can never stand in for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It opens a connection: the ClientHello follows it.
    Open,
    /// It extends a connection that lives, and comes on a control stream.
    Extend,
}

/// A header as read: a claim until [`verify`] or [`verify_extension`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub purpose: Purpose,
    /// DNS name of the service, as the source asked for it.
    pub destination: String,
    pub connection: ConnectionId,
    /// The process that a renewal must reach.
    pub instance: Option<InstanceId>,
    /// When it was signed, by the source's clock.
    pub at: Timestamp,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the TLS records that carry the ClientHello.
    pub hello_digest: Digest,
    pub signature: [u8; SIGNATURE_BYTES],
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    #[error("connection does not start with a passthrough header: only sidecars of this mesh may connect here")]
    NotAHeader,
    #[error("passthrough header has {bytes} bytes, at most 16384 are allowed")]
    TooLong { bytes: usize },
    #[error("passthrough header is malformed: {0}")]
    Malformed(&'static str),
    #[error("passthrough header is of version {version}, this one reads 1: upgrade this side")]
    Version { version: u8 },
    #[error("destination is not 1 to 254 bytes of visible ASCII")]
    Destination,
    #[error("passthrough header is for another purpose")]
    Purpose,
    #[error("passthrough header was signed {skew:?} {side} this clock, at most 5 min are allowed: is a clock wrong?")]
    Clock { skew: Duration, side: &'static str },
    #[error("passthrough header was signed for another ClientHello")]
    Hello,
    #[error("chain in passthrough header: {0}")]
    Svid(#[from] SvidError),
    #[error("passthrough header is not signed by the leaf that it carries")]
    Signature,
    #[error("extension is of another connection: {0} differs")]
    OtherConnection(&'static str),
    #[error("extension is not newer than the last one")]
    NotNewer,
}

impl HeaderError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAHeader => "not_a_header",
            Self::TooLong { .. } => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Version { .. } => "version",
            Self::Destination => "destination",
            Self::Purpose => "purpose",
            Self::Clock { .. } => "clock",
            Self::Hello => "hello",
            Self::Svid(error) => error.reason(),
            Self::Signature => "signature",
            Self::OtherConnection(_) => "other_connection",
            Self::NotNewer => "not_newer",
        }
    }
}

/// Signs the header that opens a connection.
///
/// `hello` holds the TLS records that carry the ClientHello, byte for byte as they will be sent behind the header.
///
/// # Errors
/// A destination that no DNS name can be, or a chain too long for a header.
pub fn sign(
    svid: &Svid,
    destination: &str,
    connection: ConnectionId,
    instance: Option<InstanceId>,
    hello: &[u8],
    now: Timestamp,
) -> Result<Vec<u8>, HeaderError> {
    signed(svid, Purpose::Open, destination, connection, instance, sha256(hello), now)
}

/// Signs a header that extends a live connection: everything as in the one that opened it, but the time and the SVID.
///
/// # Errors
/// As [`sign`].
pub fn sign_extension(
    svid: &Svid,
    destination: &str,
    connection: ConnectionId,
    instance: Option<InstanceId>,
    hello_digest: Digest,
    now: Timestamp,
) -> Result<Vec<u8>, HeaderError> {
    signed(svid, Purpose::Extend, destination, connection, instance, hello_digest, now)
}

fn signed(
    svid: &Svid,
    purpose: Purpose,
    destination: &str,
    connection: ConnectionId,
    instance: Option<InstanceId>,
    hello_digest: Digest,
    now: Timestamp,
) -> Result<Vec<u8>, HeaderError> {
    check_destination(destination.as_bytes())?;
    let mut header = Header {
        purpose,
        destination: destination.to_owned(),
        connection,
        instance,
        at: now,
        chain: without_root(svid.chain()),
        hello_digest,
        signature: [0; SIGNATURE_BYTES],
    };
    if header.chain.len() > CERTIFICATES_MAX {
        return Err(HeaderError::Malformed("more certificates than leaf and two intermediates"));
    }
    let bytes = header.unsigned_bytes();
    if bytes.len() + TLV_HEAD_BYTES + SIGNATURE_BYTES > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong { bytes: bytes.len() + TLV_HEAD_BYTES + SIGNATURE_BYTES });
    }
    header.signature = svid.sign(&[SIGNED_DOMAIN, &bytes].concat()).ok_or(HeaderError::Signature)?;
    Ok(header.to_bytes())
}

/// The chain as it goes into a header: an edge's SVID carries its root, which readers have.
fn without_root(chain: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let is_root = |der: &CertificateDer<'_>| Certificate::parse(der, 0).is_ok_and(|one| one.is_self_issued());
    match chain.split_last() {
        Some((last, rest)) if !rest.is_empty() && is_root(last) => rest.to_vec(),
        _ => chain.to_vec(),
    }
}

impl Header {
    /// The whole header as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.unsigned_bytes();
        put(&mut bytes, tlv::SIGNATURE, &[&self.signature]);
        bytes
    }

    /// Everything before the signature; the length in it counts the signature too.
    fn unsigned_bytes(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(2048);
        let purpose = match self.purpose {
            Purpose::Open => 1,
            Purpose::Extend => 2,
        };
        put(&mut body, tlv::PURPOSE, &[&[VERSION, purpose]]);
        put(&mut body, tlv::DESTINATION, &[self.destination.as_bytes()]);
        put(&mut body, tlv::CONNECTION, &[&self.connection.0]);
        if let Some(instance) = &self.instance {
            put(&mut body, tlv::INSTANCE, &[&instance.0]);
        }
        put(&mut body, tlv::TIME, &[&self.at.as_millis().to_be_bytes()]);
        for certificate in &self.chain {
            put(&mut body, tlv::CERTIFICATE, &[certificate]);
        }
        put(&mut body, tlv::HELLO, &[&self.hello_digest.0]);
        let length = body.len() + TLV_HEAD_BYTES + SIGNATURE_BYTES;
        // A header that was read or that `sign` made is short enough; a longer one made by hand verifies nowhere.
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        [&PREAMBLE[..], &length.to_be_bytes(), &body].concat()
    }
}

fn put(into: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    into.push(kind);
    into.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    parts.iter().for_each(|part| into.extend_from_slice(part));
}

fn check_destination(bytes: &[u8]) -> Result<(), HeaderError> {
    let visible = bytes.iter().all(u8::is_ascii_graphic);
    if bytes.is_empty() || bytes.len() > DESTINATION_BYTES_MAX || !visible {
        return Err(HeaderError::Destination);
    }
    Ok(())
}

/// Reads a header from the front of `bytes`, and tells how many bytes it took. `None`: more bytes are needed.
///
/// Refuses as soon as it can tell: a first byte that starts no header, or a length over the bound, is not waited out.
///
/// # Errors
/// The bytes are no header, or not in the one form that is written.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let here = bytes.len().min(PREAMBLE.len());
    if bytes.get(..here) != PREAMBLE.get(..here) {
        return Err(HeaderError::NotAHeader);
    }
    let Some(&[high, low]) = bytes.get(PREAMBLE.len()..PREAMBLE_BYTES) else { return Ok(None) };
    let total = PREAMBLE_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if total > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong { bytes: total });
    }
    let Some(body) = bytes.get(PREAMBLE_BYTES..total) else { return Ok(None) };
    Ok(Some((parse_body(body)?, total)))
}

fn parse_body(body: &[u8]) -> Result<Header, HeaderError> {
    let mut tlvs = Tlvs { rest: body };
    let [version, purpose] = tlvs.array(tlv::PURPOSE, "no version and purpose")?;
    if version != VERSION {
        return Err(HeaderError::Version { version });
    }
    let purpose = match purpose {
        1 => Purpose::Open,
        2 => Purpose::Extend,
        _ => return Err(HeaderError::Malformed("unknown purpose")),
    };
    let destination = tlvs.take(tlv::DESTINATION).ok_or(HeaderError::Malformed("no destination"))?;
    check_destination(destination)?;
    let destination = std::str::from_utf8(destination).map_err(|_| HeaderError::Destination)?.to_owned();
    let connection = ConnectionId(tlvs.array(tlv::CONNECTION, "no connection id")?);
    let instance = match tlvs.next_is(tlv::INSTANCE) {
        true => Some(InstanceId(tlvs.array(tlv::INSTANCE, "no instance id")?)),
        false => None,
    };
    let at = Timestamp::from_millis(u64::from_be_bytes(tlvs.array(tlv::TIME, "no time")?));
    let mut chain = Vec::new();
    while tlvs.next_is(tlv::CERTIFICATE) {
        let der = tlvs.take(tlv::CERTIFICATE).ok_or(HeaderError::Malformed("a certificate is cut short"))?;
        if chain.len() == CERTIFICATES_MAX {
            return Err(HeaderError::Malformed("more than three certificates"));
        }
        chain.push(CertificateDer::from(der.to_vec()));
    }
    if chain.is_empty() {
        return Err(HeaderError::Malformed("no certificate"));
    }
    let hello_digest = Digest(tlvs.array(tlv::HELLO, "no digest of the ClientHello")?);
    let signature = tlvs.array(tlv::SIGNATURE, "no signature")?;
    if !tlvs.rest.is_empty() {
        return Err(HeaderError::Malformed("bytes after the signature"));
    }
    Ok(Header { purpose, destination, connection, instance, at, chain, hello_digest, signature })
}

/// Reads TLVs in the one order in which they are written.
struct Tlvs<'a> {
    rest: &'a [u8],
}

impl<'a> Tlvs<'a> {
    fn next_is(&self, kind: u8) -> bool {
        self.rest.first() == Some(&kind)
    }

    fn take(&mut self, kind: u8) -> Option<&'a [u8]> {
        let (&[found, high, low], rest) = self.rest.split_first_chunk::<TLV_HEAD_BYTES>()?;
        if found != kind {
            return None;
        }
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        self.rest = rest;
        Some(value)
    }

    fn array<const N: usize>(&mut self, kind: u8, missing: &'static str) -> Result<[u8; N], HeaderError> {
        self.take(kind).and_then(|value| value.try_into().ok()).ok_or(HeaderError::Malformed(missing))
    }
}

/// Proves who sends the bytes behind an opening header: a workload whose SVID verifies, whose key signed this header
/// for this ClientHello, within five minutes of `now`.
///
/// # Errors
/// Any of it is not so. Cheap reasons are found before dear ones.
pub fn verify(header: &Header, hello: &[u8], verifier: &Verifier, now: Timestamp) -> Result<VerifiedPeer, HeaderError> {
    if header.purpose != Purpose::Open {
        return Err(HeaderError::Purpose);
    }
    check_clock(header.at, now)?;
    if sha256(hello) != header.hello_digest {
        return Err(HeaderError::Hello);
    }
    prove(header, verifier, now)
}

/// The live connection that an extension claims to extend, as its last accepted header told.
#[derive(Clone, Copy, Debug)]
pub struct Extended<'a> {
    pub source: &'a SpiffeId,
    pub destination: &'a str,
    pub connection: ConnectionId,
    pub hello_digest: Digest,
    /// Time in the last header that was accepted for it; an extension must be newer.
    pub at: Timestamp,
}

/// Proves that the source of a live connection extends it: same source, destination, connection and ClientHello, and a
/// newer time. What it stands on then ends with the proof's `not_after`.
///
/// # Errors
/// Any of it is not so.
pub fn verify_extension(
    header: &Header,
    live: &Extended<'_>,
    verifier: &Verifier,
    now: Timestamp,
) -> Result<VerifiedPeer, HeaderError> {
    if header.purpose != Purpose::Extend {
        return Err(HeaderError::Purpose);
    }
    if header.connection != live.connection {
        return Err(HeaderError::OtherConnection("connection id"));
    }
    if header.destination != live.destination {
        return Err(HeaderError::OtherConnection("destination"));
    }
    if header.hello_digest != live.hello_digest {
        return Err(HeaderError::OtherConnection("ClientHello"));
    }
    check_clock(header.at, now)?;
    if header.at <= live.at {
        return Err(HeaderError::NotNewer);
    }
    let peer = prove(header, verifier, now)?;
    if peer.id() != live.source {
        return Err(HeaderError::OtherConnection("source"));
    }
    Ok(peer)
}

fn check_clock(at: Timestamp, now: Timestamp) -> Result<(), HeaderError> {
    let (behind, ahead) = (now.since(at), at.since(now));
    if behind > CLOCK_SKEW_MAX {
        return Err(HeaderError::Clock { skew: behind, side: "behind" });
    }
    if ahead > CLOCK_SKEW_MAX {
        return Err(HeaderError::Clock { skew: ahead, side: "ahead of" });
    }
    Ok(())
}

fn prove(header: &Header, verifier: &Verifier, now: Timestamp) -> Result<VerifiedPeer, HeaderError> {
    let verified = verifier.verify(&header.chain, now, &Expected::role(&[Role::is_workload]))?;
    verify_signature(header, &verified)?;
    Ok(verified.peer(Proof::Signed))
}

/// Over the header written anew from what was read: what is believed is what was signed.
fn verify_signature(header: &Header, verified: &Verified) -> Result<(), HeaderError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &verified.key)
        .verify(&[SIGNED_DOMAIN, &header.unsigned_bytes()].concat(), &header.signature)
        .map_err(|_| HeaderError::Signature)
}

#[cfg(test)]
mod tests;
