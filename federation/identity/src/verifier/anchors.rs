//! The roots of one trust domain, parsed once.

use std::sync::atomic::{AtomicU64, Ordering};

use federation_model::{Timestamp, TrustBundle, TrustDomain};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use crate::{certificate::Certificate, sha256};

use super::CERTIFICATE_BYTES_MAX;

/// A root of a bundle that verifies nothing, because it is not fit to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredRoot {
    pub trust_domain: TrustDomain,
    /// SHA-256 of its DER.
    pub root: federation_model::Digest,
    /// Short fixed words.
    pub reason: &'static str,
}

/// When a root may be used.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// The usable roots of one bundle.
#[derive(Debug)]
pub(super) struct Anchors {
    /// Never given twice in this process: what was remembered under another generation does not count.
    generation: u64,
    bundle: Option<TrustBundle>,
    pub(super) trust: Vec<TrustAnchor<'static>>,
    /// One for each of `trust`.
    pub(super) terms: Vec<Term>,
}

impl Anchors {
    pub(super) fn of_bundle(bundle: &TrustBundle, ignored: &mut Vec<IgnoredRoot>) -> Self {
        let mut anchors = Self::empty(Some(bundle.clone()));
        for root in &bundle.roots {
            if let Err(reason) = anchors.add(&bundle.trust_domain, root) {
                let trust_domain = bundle.trust_domain.clone();
                ignored.push(IgnoredRoot { trust_domain, root: sha256(root), reason });
            }
        }
        anchors
    }

    /// One root that the peer presented itself.
    pub(super) fn of_presented(domain: &TrustDomain, root: &[u8]) -> Result<Self, &'static str> {
        let mut anchors = Self::empty(None);
        anchors.add(domain, root)?;
        Ok(anchors)
    }

    /// What must never be: the roots of all domains together. For the test that shows why.
    #[cfg(test)]
    pub(super) fn pooled<'a>(all: impl Iterator<Item = &'a std::sync::Arc<Self>>) -> Self {
        let mut anchors = Self::empty(None);
        for one in all {
            anchors.trust.extend(one.trust.iter().cloned());
            anchors.terms.extend(one.terms.iter().cloned());
        }
        anchors
    }

    fn empty(bundle: Option<TrustBundle>) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Self { generation, bundle, trust: Vec::new(), terms: Vec::new() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn is_of(&self, bundle: &TrustBundle) -> bool {
        self.bundle.as_ref() == Some(bundle)
    }

    fn add(&mut self, domain: &TrustDomain, der: &[u8]) -> Result<(), &'static str> {
        check_root(domain, der)?;
        let root = Certificate::parse(der, 0).map_err(|_| "malformed")?;
        let anchor = CertificateDer::from(der);
        let anchor = anchor_from_trusted_cert(&anchor).map_err(|_| "malformed")?.to_owned();
        self.terms.push(Term { not_before: root.not_before, not_after: root.not_after });
        self.trust.push(anchor);
        Ok(())
    }
}

/// Whether a certificate may be a root of this trust domain: a CA that may sign certificates, which names no other
/// domain (X509-SVID, 4.1 to 4.3). The reason otherwise, in short fixed words.
pub(crate) fn check_root(domain: &TrustDomain, der: &[u8]) -> Result<(), &'static str> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err("too_long");
    }
    let root = Certificate::parse(der, 0).map_err(|_| "malformed")?;
    if !root.basic_constraints.is_some_and(|basic| basic.ca) {
        return Err("not_ca");
    }
    if root.key_usage.is_some_and(|usage| !usage.key_cert_sign) {
        return Err("no_key_cert_sign");
    }
    match root.uris.as_slice() {
        [] => Ok(()),
        [Some(uri)] if *uri == domain.id().to_string() => Ok(()),
        [_] => Err("foreign_domain"),
        _ => Err("many_ids"),
    }
}
