//! Trust bundles: the roots of one trust domain each, never merged.

use std::collections::BTreeMap;

use crate::TrustDomain;

/// Most roots in one bundle.
pub const ROOTS_MAX: usize = 64;
/// Most bytes of one root certificate.
pub const ROOT_BYTES_MAX: usize = 16 * 1024;

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

/// One bundle per trust domain. There is no way to look up roots without naming the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles(BTreeMap<TrustDomain, TrustBundle>);

impl Bundles {
    pub fn get(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(domain)
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
        if let Some(held) = self.0.get(&bundle.trust_domain) {
            if bundle.sequence < held.sequence {
                return Err(BundleError::Rollback { domain: domain(), held: held.sequence, got: bundle.sequence });
            }
            if bundle.sequence == held.sequence && bundle.roots != held.roots {
                return Err(BundleError::Equivocation { domain: domain(), sequence: bundle.sequence });
            }
        }
        self.0.insert(bundle.trust_domain.clone(), bundle);
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.values()
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

    #[test]
    fn domains_are_never_merged() {
        let mut bundles = held();
        bundles.update(bundle("west", 1, &[b"two"])).expect("another domain");
        assert_eq!(bundles.iter().count(), 2);
        let east = "east".parse().expect("trust domain");
        assert_eq!(bundles.get(&east).map(|bundle| bundle.roots.clone()), Some(vec![b"one".to_vec()]));
    }
}
