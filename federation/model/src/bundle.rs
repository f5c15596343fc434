//! Trust bundles: the roots of one trust domain each, never merged; and the keys of it that are believed no more.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Digest, Timestamp, TrustDomain};

/// Most roots in one bundle.
pub const ROOTS_MAX: usize = 64;
/// Most bytes of one root certificate.
pub const ROOT_BYTES_MAX: usize = 16 * 1024;

/// Most revoked keys of one trust domain that are minded at once. Beyond it those whose certificates end first are
/// forgotten, which are those that have ended already: an issuer writes no more than so many that have not.
pub const REVOCATIONS_MAX: usize = 4096;
/// Longest serial number in bytes (RFC 5280, 4.1.2.2).
pub const SERIAL_BYTES_MAX: usize = 20;

/// The issuer's word that a key of its own trust domain is believed no more, whatever certificate shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revocation {
    /// SHA-256 of the public key (SPKI DER).
    pub key: Digest,
    /// Serial number of the certificate that was named, for people: 1 to [`SERIAL_BYTES_MAX`] bytes, big-endian.
    pub serial: Vec<u8>,
    /// When the last certificate of this key ends; from then on nothing depends on the revocation.
    pub not_after: Timestamp,
}

/// The roots of one trust domain, as its owner published them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    pub trust_domain: TrustDomain,
    /// `spiffe_sequence`: grows with each publication; a lower one is never accepted.
    pub sequence: u64,
    /// DER of each root, at most [`ROOTS_MAX`]. Empty revokes every SVID of the domain (SPIFFE bundle, 4.1.4).
    pub roots: Vec<Vec<u8>>,
}

/// Why a bundle is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    #[error("bundle of {domain} has sequence {got}, {held} is held already: an older bundle is never accepted")]
    Rollback { domain: TrustDomain, held: u64, got: u64 },
    #[error("bundle of {domain} has sequence {sequence} like the one held, but other roots")]
    Equivocation { domain: TrustDomain, sequence: u64 },
    #[error("bundle of {domain} has {count} roots, at most 64 are allowed")]
    TooManyRoots { domain: TrustDomain, count: usize },
    #[error("bundle of {domain} has a root of {bytes} bytes, at most 16384 are allowed")]
    RootTooLong { domain: TrustDomain, bytes: usize },
}

/// Per trust domain, the keys that are believed no more.
pub type Revocations = BTreeMap<TrustDomain, BTreeMap<Digest, Revocation>>;

/// One bundle per trust domain. There is no way to look up roots, or to revoke a key, without naming the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles {
    held: BTreeMap<TrustDomain, TrustBundle>,
    revoked: Arc<Revocations>,
}

impl Bundles {
    pub fn get(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.held.get(domain)
    }

    /// Takes a newer bundle.
    ///
    /// # Errors
    /// A lower sequence, an equal one with other content, or one past the bounds; the held bundle stays.
    pub fn update(&mut self, bundle: TrustBundle) -> Result<(), BundleError> {
        let domain = || bundle.trust_domain.clone();
        if bundle.roots.len() > ROOTS_MAX {
            return Err(BundleError::TooManyRoots { domain: domain(), count: bundle.roots.len() });
        }
        if let Some(root) = bundle.roots.iter().find(|root| root.len() > ROOT_BYTES_MAX) {
            return Err(BundleError::RootTooLong { domain: domain(), bytes: root.len() });
        }
        if let Some(held) = self.held.get(&bundle.trust_domain) {
            if bundle.sequence < held.sequence {
                return Err(BundleError::Rollback { domain: domain(), held: held.sequence, got: bundle.sequence });
            }
            if bundle.sequence == held.sequence && bundle.roots != held.roots {
                return Err(BundleError::Equivocation { domain: domain(), sequence: bundle.sequence });
            }
        }
        self.held.insert(bundle.trust_domain.clone(), bundle);
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.held.values()
    }

    /// Believes a key of `domain` no more. Of two words on one key the later end counts.
    pub fn revoke(&mut self, domain: &TrustDomain, revocation: Revocation) {
        let keys = Arc::make_mut(&mut self.revoked).entry(domain.clone()).or_default();
        match keys.get_mut(&revocation.key) {
            Some(held) if held.not_after >= revocation.not_after => {}
            Some(held) => *held = revocation,
            None => {
                keys.insert(revocation.key, revocation);
                if keys.len() > REVOCATIONS_MAX
                    && let Some(first) =
                        keys.values().min_by_key(|held| (held.not_after, held.key)).map(|held| held.key)
                {
                    keys.remove(&first);
                }
            }
        }
    }

    /// Whether a key of `domain`, by the SHA-256 of its SPKI DER, is believed no more.
    pub fn is_revoked(&self, domain: &TrustDomain, key: &Digest) -> bool {
        self.revoked.get(domain).is_some_and(|keys| keys.contains_key(key))
    }

    /// Every revoked key, by trust domain. Two copies share it until one changes.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revoked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(domain: &str, sequence: u64, roots: &[&[u8]]) -> TrustBundle {
        let roots = roots.iter().map(|root| root.to_vec()).collect();
        TrustBundle { trust_domain: domain.parse().expect("trust domain"), sequence, roots }
    }

    fn held() -> Bundles {
        let mut bundles = Bundles::default();
        bundles.update(bundle("east", 7, &[b"one"])).expect("first");
        bundles
    }

    fn check_refused(bundle: TrustBundle, expected: BundleError) {
        let mut bundles = held();
        assert_eq!(bundles.update(bundle), Err(expected));
        assert_eq!(bundles, held(), "the held bundle stays");
    }

    #[test]
    fn a_higher_sequence_is_taken() {
        let mut bundles = held();
        bundles.update(bundle("east", 8, &[b"two"])).expect("newer");
        let domain = "east".parse().expect("trust domain");
        assert_eq!(bundles.get(&domain).map(|bundle| bundle.sequence), Some(8));
    }

    #[test]
    fn the_same_again_is_taken() {
        assert_eq!(held().update(bundle("east", 7, &[b"one"])), Ok(()));
    }

    #[test]
    fn no_roots_revoke_all() {
        let mut bundles = held();
        bundles.update(bundle("east", 8, &[])).expect("an empty bundle is a bundle");
        let domain = "east".parse().expect("trust domain");
        assert_eq!(bundles.get(&domain).map(|bundle| bundle.roots.len()), Some(0));
    }

    #[test]
    fn bundle_with_lower_sequence_is_refused() {
        let domain = "east".parse().expect("trust domain");
        check_refused(bundle("east", 6, &[b"old"]), BundleError::Rollback { domain, held: 7, got: 6 });
    }

    #[test]
    fn bundle_with_same_sequence_and_other_roots_is_refused() {
        let domain = "east".parse().expect("trust domain");
        check_refused(bundle("east", 7, &[b"other"]), BundleError::Equivocation { domain, sequence: 7 });
    }

    #[test]
    fn too_many_or_too_long_roots_are_refused() {
        let domain = || "east".parse().expect("trust domain");
        let many = bundle("east", 8, &[b"root".as_slice(); ROOTS_MAX + 1]);
        check_refused(many, BundleError::TooManyRoots { domain: domain(), count: 65 });
        let long = vec![0; ROOT_BYTES_MAX + 1];
        check_refused(bundle("east", 8, &[&long]), BundleError::RootTooLong { domain: domain(), bytes: 16_385 });
        assert_eq!(
            held().update(bundle("east", 8, &[&long[1..]; ROOTS_MAX])),
            Ok(()),
            "the bounds themselves are fine"
        );
    }

    fn revocation(key: u16, not_after: u64) -> Revocation {
        let mut digest = Digest::ZERO;
        digest.0[..2].copy_from_slice(&key.to_be_bytes());
        Revocation { key: digest, serial: vec![1], not_after: Timestamp::from_secs(not_after) }
    }

    #[test]
    fn a_key_is_revoked_in_its_own_domain_alone() {
        let (east, west) = ("east".parse().expect("trust domain"), "west".parse().expect("trust domain"));
        let mut bundles = held();
        bundles.revoke(&east, revocation(1, 100));
        assert!(bundles.is_revoked(&east, &revocation(1, 0).key));
        assert!(!bundles.is_revoked(&west, &revocation(1, 0).key) && !bundles.is_revoked(&east, &revocation(2, 0).key));
        assert_ne!(bundles, held(), "whoever compares bundles sees it");
    }

    #[test]
    fn of_two_words_on_one_key_the_later_end_counts() {
        let east: TrustDomain = "east".parse().expect("trust domain");
        let mut bundles = Bundles::default();
        for end in [100, 300, 200] {
            bundles.revoke(&east, revocation(1, end));
        }
        let ends: Vec<_> = bundles.revocations()[&east].values().map(|held| held.not_after).collect();
        assert_eq!(ends, [Timestamp::from_secs(300)]);
    }

    #[test]
    fn past_the_bound_the_revocation_that_ends_first_is_forgotten() {
        let east: TrustDomain = "east".parse().expect("trust domain");
        let mut bundles = Bundles::default();
        for key in 0..=REVOCATIONS_MAX as u16 {
            bundles.revoke(&east, revocation(key, 1_000 + u64::from(key ^ 1)));
        }
        assert_eq!(bundles.revocations()[&east].len(), REVOCATIONS_MAX);
        assert!(!bundles.is_revoked(&east, &revocation(1, 0).key), "the one that ended first");
        assert!(bundles.is_revoked(&east, &revocation(0, 0).key));
    }

    #[test]
    fn domains_are_never_merged() {
        let mut bundles = held();
        bundles.update(bundle("west", 1, &[b"two"])).expect("another domain");
        assert_eq!(bundles.iter().count(), 2);
        let east = "east".parse().expect("trust domain");
        assert_eq!(bundles.get(&east).map(|bundle| bundle.roots.clone()), Some(vec![b"one".to_vec()]));
    }
}
