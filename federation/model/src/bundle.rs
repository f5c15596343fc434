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
