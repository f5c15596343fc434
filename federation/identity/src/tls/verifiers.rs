//! What rustls asks about the peer's certificate, answered by the one verifier.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use federation_model::{Digest, Role, SpiffeId, Timestamp, TrustDomain};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::provider;
use crate::{
    SvidError, Verifier, stranger,
    verifier::{CHAIN_LENGTH_MAX, Expected, verify_pinned},
};

type RoleCheck = fn(&Role) -> bool;

/// A server whose trust domain we hold a bundle of. The name that was dialled is not looked at: SPIFFE IDs count.
#[derive(Debug)]
pub(super) struct BundledServer {
    pub(super) verifier: Verifier,
    pub(super) role: RoleCheck,
    pub(super) domain: Option<TrustDomain>,
    pub(super) ids: Option<Vec<SpiffeId>>,
}

/// A server of which only the root's key is known.
#[derive(Debug)]
pub(super) struct PinnedServer {
    pub(super) pin: Digest,
    pub(super) domain: TrustDomain,
}

/// Whom a server lets pass besides clients of known trust domains.
#[derive(Debug)]
pub(super) enum ClientPolicy {
    Mandatory,
    /// Clients that show no certificate at all.
    OrNone,
    /// While the flag holds: edges of trust domains that nobody here knows, under a root of their own.
    OrStranger {
        joins_open: Arc<AtomicBool>,
    },
}

#[derive(Debug)]
pub(super) struct BundledClient {
    verifier: Verifier,
    role: RoleCheck,
    policy: ClientPolicy,
}

impl BundledClient {
    pub(super) fn new(verifier: &Verifier, role: RoleCheck, policy: ClientPolicy) -> Self {
        Self { verifier: verifier.clone(), role, policy }
    }
}

/// The chain in one piece. rustls bounds its bytes, we bound its length before anything is copied.
fn joined<'a>(leaf: &CertificateDer<'a>, issuers: &[CertificateDer<'a>]) -> Result<Vec<CertificateDer<'a>>, SvidError> {
    if issuers.len() >= CHAIN_LENGTH_MAX {
        return Err(SvidError::ChainTooLong { count: issuers.len().saturating_add(1) });
    }
    Ok(std::iter::once(leaf).chain(issuers).cloned().collect())
}

/// What the peer is told is the alert alone; what we know stays on this side, for [`svid_error`].
fn refused(error: SvidError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

pub(super) fn svid_error(error: &Error) -> Option<&SvidError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

fn at(now: UnixTime) -> Timestamp {
    Timestamp::from_secs(now.as_secs())
}

macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
        }

        /// Leaves have P-256 keys, all of them.
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    };
}

impl ServerCertVerifier for BundledServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roles = [self.role];
        let expected = Expected { roles: &roles, domain: self.domain.as_ref(), ids: self.ids.as_deref() };
        joined(leaf, issuers)
            .and_then(|chain| self.verifier.verify(&chain, at(now), &expected))
            .map(|_| ServerCertVerified::assertion())
            .map_err(refused)
    }

    handshake_signatures!();
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        joined(leaf, issuers)
            .and_then(|chain| verify_pinned(&chain, &self.pin, &self.domain, at(now)))
            .map(|()| ServerCertVerified::assertion())
            .map_err(refused)
    }

    handshake_signatures!();
}

impl ClientCertVerifier for BundledClient {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        !matches!(self.policy, ClientPolicy::OrNone)
    }

    /// None: who our neighbours are is not told to whoever asks.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = joined(leaf, issuers).map_err(refused)?;
        let outcome = self.verifier.verify(&chain, at(now), &Expected::role(&[self.role]));
        let outcome = match (outcome, &self.policy) {
            (Err(SvidError::UnknownTrustDomain(domain)), ClientPolicy::OrStranger { joins_open }) => {
                if joins_open.load(Ordering::Acquire) {
                    stranger(&chain, at(now)).map(drop)
                } else {
                    Err(SvidError::UnknownTrustDomain(domain))
                }
            }
            (outcome, _) => outcome.map(drop),
        };
        outcome.map(|()| ClientCertVerified::assertion()).map_err(refused)
    }

    handshake_signatures!();
}
