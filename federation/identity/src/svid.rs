//! The SVID that this process holds: its key, its chain, and the place from which TLS takes it.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use federation_model::{Digest, SpiffeId, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{crypto::aws_lc_rs::sign::any_ecdsa_type, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::{
    SvidError,
    certificate::{Certificate, p256_spki},
    sha256,
    verifier::{CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX},
};

/// A private key that waits for its certificate: P-256, made here, shown to no other process.
pub struct SvidKey {
    pair: KeyPair,
}

impl SvidKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        Self { pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the operating system gives random bytes") }
    }

    /// A signing request for this key (PKCS #10 DER). It names nobody: the signer decides who we are.
    pub fn csr(&self) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&self.pair).expect("a request without names encodes").der().to_vec()
    }

    /// SHA-256 of the public key (SPKI DER).
    pub fn spki_digest(&self) -> Digest {
        sha256(&self.pair.subject_public_key_info())
    }

    /// The key as PKCS #8 DER: for the file (mode 0600) in which its own process keeps it over a restart.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.serialize_der())
    }

    /// A key that [`SvidKey::to_pkcs8`] wrote.
    ///
    /// # Errors
    /// The bytes are no P-256 key in PKCS #8.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SvidError> {
        let key = PrivatePkcs8KeyDer::from(der);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        Ok(Self { pair: pair.map_err(|_| SvidError::KeyUnusable)? })
    }

    #[cfg(test)]
    pub(crate) fn point(&self) -> Vec<u8> {
        self.pair.public_key_raw().to_vec()
    }
}

impl fmt::Debug for SvidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidKey(hidden)")
    }
}

/// An SVID with its private key. The chain is what peers are shown: leaf, intermediates, and for edges the root too.
pub struct Svid {
    id: SpiffeId,
    not_before: Timestamp,
    not_after: Timestamp,
    serial: Vec<u8>,
    certified: Arc<CertifiedKey>,
    header_key: EcdsaKeyPair,
}

impl Svid {
    /// Joins a key and the chain that was issued for it.
    ///
    /// `chain` holds the leaf, then each issuer in order; an edge appends its root, so that strangers can compare it
    /// with a pin. Reads the chain but does not verify it: [`crate::Verifier::own_peer`] does.
    ///
    /// # Errors
    /// A chain that cannot be read or that was issued for another key.
    pub fn assemble(key: SvidKey, chain: Vec<Vec<u8>>) -> Result<Self, SvidError> {
        if chain.len() > CHAIN_LENGTH_MAX {
            return Err(SvidError::ChainTooLong { count: chain.len() });
        }
        if let Some((index, der)) = chain.iter().enumerate().find(|(_, der)| der.len() > CERTIFICATE_BYTES_MAX) {
            return Err(SvidError::CertificateTooLong { index, bytes: der.len() });
        }
        let leaf = Certificate::parse(chain.first().ok_or(SvidError::ChainEmpty)?, 0)?;
        let id: SpiffeId = match leaf.uris.as_slice() {
            [Some(uri)] => uri.parse().map_err(SvidError::SpiffeId)?,
            [None] => return Err(SvidError::UriSanNotText),
            [] => return Err(SvidError::NoUriSan),
            many => return Err(SvidError::ManyUriSans { count: many.len() }),
        };
        if sha256(leaf.spki) != key.spki_digest() {
            return Err(SvidError::KeyMismatch);
        }
        let (not_before, not_after, serial) = (leaf.not_before, leaf.not_after, leaf.serial.to_vec());
        let pkcs8 = Zeroizing::new(key.pair.serialize_der());
        let header_key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).map_err(|_| SvidError::KeyUnusable)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        let tls_key = any_ecdsa_type(&private).map_err(|_| SvidError::KeyUnusable)?;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Ok(Self {
            id,
            not_before,
            not_after,
            serial,
            certified: Arc::new(CertifiedKey::new(chain, tls_key)),
            header_key,
        })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Serial number of the leaf, big-endian.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// ECDSA with SHA-256 by the leaf's key: r ‖ s, 32 bytes each (IEEE P1363).
    pub(crate) fn sign(&self, message: &[u8]) -> Option<[u8; 64]> {
        let signature = self.header_key.sign(&SystemRandom::new(), message).ok()?;
        signature.as_ref().try_into().ok()
    }

    /// The leaf's public key, uncompressed.
    pub fn public_key(&self) -> &[u8] {
        self.header_key.public_key().as_ref()
    }

    /// SHA-256 of the leaf's public key (SPKI DER).
    pub fn key_digest(&self) -> Digest {
        sha256(&p256_spki(self.public_key()))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The SVID in use. TLS configurations read it at each handshake, so that renewal needs no new configuration.
///
/// Clones share it. Empty until the first SVID is set; a handshake before that fails.
#[derive(Clone, Default)]
pub struct LiveSvid {
    held: Arc<ArcSwapOption<Svid>>,
}

impl LiveSvid {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&self, svid: Svid) {
        self.held.store(Some(Arc::new(svid)));
    }

    pub fn get(&self) -> Option<Arc<Svid>> {
        self.held.load_full()
    }
}

impl fmt::Debug for LiveSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveSvid").field(&self.get()).finish()
    }
}

/// When to renew what lives from `not_before` to `not_after`: at half its life, or up to a tenth of its life earlier.
///
/// `jitter` from 0 (half life) to 1 (a tenth earlier) keeps the members of a cluster apart; what lies outside is held
/// there, and no number at all reads as 0.
pub fn renewal_due(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let life = not_after.since(not_before);
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    not_before.after(life / 2).before((life / 10).mul_f64(jitter))
}

#[cfg(test)]
mod tests {
    use federation_model::TrustDomain;

    use super::*;
    use crate::{LocalSigner, Signer, now};

    #[test]
    fn renewal_is_due_at_half_life_or_a_little_earlier() {
        let (from, to) = (Timestamp::from_secs(1000), Timestamp::from_secs(2000));
        assert_eq!(renewal_due(from, to, 0.0), Timestamp::from_secs(1500));
        assert_eq!(renewal_due(from, to, 1.0), Timestamp::from_secs(1400));
        assert_eq!(renewal_due(from, to, 0.5), Timestamp::from_secs(1450));
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(renewal_due(from, to, odd), Timestamp::from_secs(1500));
        }
        assert_eq!(renewal_due(from, to, f64::INFINITY), Timestamp::from_secs(1400));
        assert_eq!(renewal_due(to, from, 0.3), to, "a life that ends before it begins is over");
    }

    #[test]
    fn a_key_comes_back_from_its_file_and_from_nothing_else() {
        let key = SvidKey::generate();
        let kept = key.to_pkcs8();
        assert_eq!(SvidKey::from_pkcs8(&kept).expect("kept").spki_digest(), key.spki_digest());
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key").serialize_der();
        let larger = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key").serialize_der();
        for bad in [&[][..], &[0x30], &kept[..kept.len() - 1], &[0; 138], &other, &larger] {
            assert_eq!(SvidKey::from_pkcs8(bad).expect_err("no key"), SvidError::KeyUnusable);
        }
    }

    #[test]
    fn an_svid_needs_the_key_that_it_was_issued_for() {
        let domain: TrustDomain = "west.mesh.internal".parse().expect("domain");
        let (signer, _) = LocalSigner::generate(&domain, &"west".parse().expect("name"), now()).expect("signer");
        let key = SvidKey::generate();
        let id = "spiffe://west.mesh.internal/ns/shop/sa/web".parse().expect("id");
        let issued = signer.sign_svid(&id, &key.csr(), crate::SVID_TTL_DEFAULT, now()).expect("issued");
        let other = Svid::assemble(SvidKey::generate(), issued.chain.clone()).expect_err("other key");
        assert_eq!(other, SvidError::KeyMismatch);
        assert_eq!(Svid::assemble(SvidKey::generate(), vec![]).expect_err("empty"), SvidError::ChainEmpty);
        let spki = key.spki_digest();
        let svid = Svid::assemble(key, issued.chain.clone()).expect("svid");
        assert_eq!(svid.key_digest(), spki);
        assert_eq!((svid.id(), svid.serial(), svid.not_after()), (&id, &issued.serial[..], issued.not_after));

        let live = LiveSvid::new();
        let seen = live.clone();
        assert!(seen.get().is_none());
        live.set(svid);
        assert_eq!(seen.get().expect("set").id(), &id);
        assert!(!format!("{seen:?} {:?}", SvidKey::generate()).contains("pkcs8"));
    }
}
