//! The one place where a chain of certificates becomes a [`VerifiedPeer`].
//!
//! In: a chain as presented, the trust bundles in force, the time, and what the caller expects. Out: a proof of
//! identity, or the one check that failed. Never: merges bundles, follows a name to another domain's roots, or decides
//! what the identity may do.
//!
//! Order: bounds, then the leaf read, then its trust domain picks the only roots that count, then each X509-SVID check
//! of the leaf (cheap), then the path and its signatures (dear), then each check of the issuers along it, then whether a
//! key was revoked, then what the caller expects. Chains that passed are remembered by their digest, so that the same chain costs one hash the next
//! time; what is remembered falls with its bundle and with its first end.

mod anchors;
mod cache;
mod checks;
mod path;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use federation_model::{
    Bundles, Digest, Proof, Revocations, Role, SpiffeId, Timestamp, TrustBundle, TrustDomain, VerifiedPeer,
};
use rustls_pki_types::CertificateDer;

use self::{anchors::Anchors, cache::Cache};
use crate::{
    Svid, SvidError,
    certificate::{Certificate, P256_POINT_BYTES},
};

pub use self::anchors::IgnoredRoot;
pub use self::cache::CACHE_CHAINS_MAX;
pub(crate) use self::{anchors::check_root, checks::Expected};

/// Most certificates in a chain: leaf, two intermediates, root.
pub const CHAIN_LENGTH_MAX: usize = 4;
/// Most bytes of one certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
/// Longest life of a leaf that is accepted: the longest that a signer gives, and as much again as it may backdate.
pub const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600 + 600);

/// What verification yields: enough for a proof, for a signature by the leaf, and for remembering it.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) id: SpiffeId,
    /// SHA-256 of the issuing certificate's public key.
    pub(crate) issuer: Digest,
    /// SHA-256 of the leaf's DER.
    pub(crate) leaf: Digest,
    /// SHA-256 of the leaf's public key.
    pub(crate) key_digest: Digest,
    /// Latest beginning and earliest end along the chain, root included.
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// The leaf's P-256 key, uncompressed.
    pub(crate) key: [u8; P256_POINT_BYTES],
}

impl Verified {
    /// The proof, in the hand of the one who knows how it was given.
    pub(crate) fn peer(&self, proof: Proof) -> VerifiedPeer {
        VerifiedPeer::assertion(self.id.clone(), proof, self.issuer, self.leaf, self.key_digest, self.not_after)
    }
}

/// Verifies SVIDs against the trust bundles in force. Clones share both the bundles and what is remembered.
///
/// A fresh one holds no bundle and refuses everything.
#[derive(Clone, Default)]
pub struct Verifier {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    in_force: ArcSwap<InForce>,
    /// One publication at a time, so that the later one stays.
    publishing: Mutex<()>,
    cache: Mutex<Cache>,
}

/// What was published last, all at once.
#[derive(Default)]
struct InForce {
    /// Per trust domain, its roots. There is no other way to find a root.
    anchors: HashMap<TrustDomain, Arc<Anchors>>,
    revoked: Arc<Revocations>,
}

impl InForce {
    /// Nobody is asked about a key of another domain than the identity's own.
    fn is_revoked(&self, verified: &Verified) -> bool {
        let revoked = self.revoked.get(verified.id.trust_domain());
        revoked.is_some_and(|keys| keys.contains_key(&verified.key_digest) || keys.contains_key(&verified.issuer))
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("trust_domains", &self.trust_domains()).finish()
    }
}

impl Verifier {
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bundles in force, all at once; a domain that is not among them is unknown from here on.
    ///
    /// Roots are parsed once: those of a bundle that did not change are kept, and so is what was remembered of its
    /// chains; what was remembered of a changed bundle falls. A root that cannot be used is left out and returned.
    pub fn publish(&self, bundles: &Bundles) -> Vec<IgnoredRoot> {
        let _one = self.inner.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.inner.in_force.load();
        let mut ignored = Vec::new();
        let mut next = HashMap::new();
        let mut changed = false;
        for bundle in bundles.iter() {
            let anchors = match held.anchors.get(&bundle.trust_domain) {
                Some(anchors) if anchors.is_of(bundle) => anchors.clone(),
                _ => {
                    changed = true;
                    Arc::new(Anchors::of_bundle(bundle, &mut ignored))
                }
            };
            next.insert(bundle.trust_domain.clone(), anchors);
        }
        let revoked = bundles.revocations();
        changed |= !Arc::ptr_eq(revoked, &held.revoked) && *revoked != held.revoked;
        if changed || next.len() != held.anchors.len() {
            self.inner.in_force.store(Arc::new(InForce { anchors: next, revoked: revoked.clone() }));
        }
        for root in &ignored {
            tracing::warn!(trust_domain = %root.trust_domain, reason = root.reason, "root in bundle is not usable");
        }
        ignored
    }

    /// Proves the far end of a TLS connection to be a workload. For connections on which that workload's key signed the
    /// handshake, and after it.
    pub fn tls_peer(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<VerifiedPeer, SvidError> {
        Ok(self.verify(chain, now, &Expected::role(&[Role::is_workload]))?.peer(Proof::Tls))
    }

    /// Proves the far end of a session to be a member's edge. To be called on every session after its handshake: the
    /// handshake alone may have let a stranger in, to join (see [`crate::tls::session_server`]).
    pub fn session_peer(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<VerifiedPeer, SvidError> {
        Ok(self.verify(chain, now, &Expected::role(&[Role::is_edge]))?.peer(Proof::Session))
    }

    /// Proves this process's own SVID, so that the law is asked about it as about any other.
    pub fn own_peer(&self, svid: &Svid, now: Timestamp) -> Result<VerifiedPeer, SvidError> {
        let expected = Expected::role(&[Role::is_workload, Role::is_edge]);
        Ok(self.verify(svid.chain(), now, &expected)?.peer(Proof::Own))
    }

    /// How many trust domains are known.
    pub fn trust_domains(&self) -> usize {
        self.inner.in_force.load().anchors.len()
    }

    /// Whether a bundle of this trust domain is in force.
    pub fn knows(&self, domain: &TrustDomain) -> bool {
        self.inner.in_force.load().anchors.contains_key(domain)
    }

    /// Every check, or the memory of them, and then what the caller expects.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: Timestamp,
        expected: &Expected<'_>,
    ) -> Result<Arc<Verified>, SvidError> {
        checks::run_bounds(chain)?;
        let in_force = self.inner.in_force.load();
        let anchors = &in_force.anchors;
        let accept = |verified: Arc<Verified>| {
            if checks::enabled("revoked") && in_force.is_revoked(&verified) {
                return Err(SvidError::Revoked(verified.id.clone()));
            }
            expected.check(&verified)?;
            Ok(verified)
        };
        let digest = chain_digest(chain);
        if let Some(verified) = self.cache().get(&digest, now, |domain, generation| {
            anchors.get(domain).is_some_and(|anchors| anchors.generation() == generation)
        }) {
            return accept(verified);
        }
        let certificates = parse(chain)?;
        let id = leaf_id(&certificates)?;
        let domain = id.trust_domain().clone();
        let roots = match anchors.get(&domain) {
            #[cfg(test)]
            Some(_) if !checks::enabled("own-roots-only") => Arc::new(Anchors::pooled(anchors.values())),
            Some(roots) => roots.clone(),
            None => return Err(SvidError::UnknownTrustDomain(domain)),
        };
        let verified = Arc::new(verify_chain(&certificates, id, &roots, now)?);
        self.cache().insert(digest, verified.clone(), roots.generation());
        accept(verified)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cluster whose bundle nobody here holds yet: it proved its edge's SVID under the root that it presented itself.
///
/// That says who it claims to be and that it holds the keys; whether to believe it is for a join proof or a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// DER of the presented root, for comparison with the candidate's.
    pub root_der: Vec<u8>,
    /// SHA-256 of the presented root's public key (SPKI DER): what a token pins.
    pub root_pin: Digest,
    /// The edge's SPIFFE ID.
    pub id: SpiffeId,
    pub trust_domain: TrustDomain,
    /// Earliest end along the chain.
    pub not_after: Timestamp,
}

/// Reads a stranger's chain: leaf, intermediates and its root last. Every check of the verifier applies; only the root
/// is taken on its own word. Only edges are strangers.
pub fn stranger(chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Stranger, SvidError> {
    let (verified, root_der, root_pin) = verify_presented(chain, now)?;
    Ok(Stranger {
        root_der,
        root_pin,
        trust_domain: verified.id.trust_domain().clone(),
        id: verified.id,
        not_after: verified.not_after,
    })
}

/// Verifies the edge of `domain` under a root that is known by its pin alone.
pub(crate) fn verify_pinned(
    chain: &[CertificateDer<'_>],
    pin: &Digest,
    domain: &TrustDomain,
    now: Timestamp,
) -> Result<(), SvidError> {
    let (verified, _, got) = verify_presented(chain, now)?;
    if checks::enabled("pin") && got != *pin {
        return Err(SvidError::PinMismatch { got, want: *pin });
    }
    Expected { domain: Some(domain), ..Expected::role(&[Role::is_edge]) }.check(&verified)
}

fn verify_presented(chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(Verified, Vec<u8>, Digest), SvidError> {
    checks::run_bounds(chain)?;
    let certificates = parse(chain)?;
    let id = leaf_id(&certificates)?;
    let root = match certificates.split_first() {
        Some((_, issuers)) => issuers.last().filter(|last| last.is_self_issued()).ok_or(SvidError::RootMissing)?,
        None => return Err(SvidError::ChainEmpty),
    };
    let roots = Anchors::of_presented(id.trust_domain(), root.der).map_err(SvidError::RootUnusable)?;
    let verified = verify_chain(&certificates, id, &roots, now)?;
    Expected::role(&[Role::is_edge]).check(&verified)?;
    Ok((verified, root.der.to_vec(), crate::sha256(root.spki)))
}

/// Verifies what this cluster's own authority just made, as a peer would.
pub(crate) fn verify_issued(
    chain: &[Vec<u8>],
    bundle: &TrustBundle,
    id: &SpiffeId,
    now: Timestamp,
) -> Result<(), SvidError> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    checks::run_bounds(&chain)?;
    let certificates = parse(&chain)?;
    let roots = Anchors::of_bundle(bundle, &mut Vec::new());
    let verified = verify_chain(&certificates, leaf_id(&certificates)?, &roots, now)?;
    Expected { ids: Some(std::slice::from_ref(id)), ..Expected::role(&[Role::is_workload, Role::is_edge]) }
        .check(&verified)
}

fn parse<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<Certificate<'a>>, SvidError> {
    chain.iter().enumerate().map(|(index, der)| Certificate::parse(der.as_ref(), index)).collect()
}

/// The SPIFFE ID of the leaf, once the chain is in order and the leaf has no more than one URI.
fn leaf_id(certificates: &[Certificate<'_>]) -> Result<SpiffeId, SvidError> {
    let leaf = certificates.first().ok_or(SvidError::ChainEmpty)?;
    checks::run_chain(certificates)?;
    let uri = leaf.uris.first().ok_or(SvidError::NoUriSan)?.ok_or(SvidError::UriSanNotText)?;
    uri.parse().map_err(SvidError::SpiffeId)
}

/// Everything from the leaf's own checks to the root, for roots that were picked by the leaf's trust domain.
fn verify_chain(
    certificates: &[Certificate<'_>],
    id: SpiffeId,
    roots: &Anchors,
    now: Timestamp,
) -> Result<Verified, SvidError> {
    let leaf = certificates.first().ok_or(SvidError::ChainEmpty)?;
    checks::run_leaf(leaf, &id)?;
    let key = leaf.p256_point().ok_or(SvidError::LeafKeyAlgorithm)?;
    let path = path::find(certificates, &id, roots, now)?;
    checks::run_path(&path, &id, now)?;
    let along = || std::iter::once(leaf).chain(path.issuers.iter().copied());
    Ok(Verified {
        issuer: path.issuer_key,
        leaf: crate::sha256(leaf.der),
        key_digest: crate::sha256(leaf.spki),
        not_before: along().map(|one| one.not_before).fold(path.root_not_before, Timestamp::max),
        not_after: along().map(|one| one.not_after).fold(path.root_not_after, Timestamp::min),
        key,
        id,
    })
}

/// SHA-256 over the certificates, each after its length, so that no two chains read alike.
fn chain_digest(chain: &[CertificateDer<'_>]) -> Digest {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for der in chain {
        context.update(&(der.len() as u64).to_be_bytes());
        context.update(der);
    }
    crate::finish(context)
}

/// The roles that listeners ask for, by name.
pub(crate) trait RoleIs {
    fn is_workload(&self) -> bool;
    fn is_edge(&self) -> bool;
}

impl RoleIs for Role {
    fn is_workload(&self) -> bool {
        matches!(self, Self::Workload(_))
    }

    fn is_edge(&self) -> bool {
        *self == Self::Edge
    }
}

#[cfg(test)]
mod tests;
