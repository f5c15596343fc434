//! What everybody may know of an authority, and what can be judged by that alone.

use std::time::Duration;

use federation_model::{
    Candidate, ClusterName, Digest, ReplicationKey, Role, SealingKey, SpiffeId, Timestamp, TrustBundle, TrustDomain,
};

use super::{Above, AuthorityError, IssueError, RotationStage, SVID_TTL_MAX, SVID_TTL_MIN};
use crate::{certificate::Certificate, cluster_id, csr::requested_key, sha256, verifier::check_root};

/// One certificate of the authority, for `cert status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// `root` or `intermediate`.
    pub kind: &'static str,
    pub spiffe_id: SpiffeId,
    /// Big-endian.
    pub serial: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// SHA-256 of the public key (SPKI DER).
    pub key_sha256: Digest,
}

/// The certificates of an authority, DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    /// The one that signs.
    pub(crate) root: Vec<u8>,
    pub(crate) intermediate: Vec<u8>,
    /// The one that the cluster's id was made of; empty while it is the one that signs.
    pub(crate) first: Vec<u8>,
    /// Prepared, and not signing yet.
    pub(crate) next: Option<Vec<u8>>,
    pub(crate) above: Option<Above>,
}

/// A cluster's authority without its private keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    domain: TrustDomain,
    name: ClusterName,
    roots: Roots,
    replication_key: ReplicationKey,
    sealing_key: SealingKey,
    summaries: [CertificateSummary; 2],
}

impl Authority {
    /// # Errors
    /// A certificate is not an authority's of this trust domain.
    pub(crate) fn new(
        domain: &TrustDomain,
        name: &ClusterName,
        roots: Roots,
        replication_key: ReplicationKey,
        sealing_key: SealingKey,
    ) -> Result<Self, AuthorityError> {
        let unusable = |what| AuthorityError::Unusable { what };
        let root = summary("root", domain, &roots.root).ok_or(unusable("root certificate"))?;
        let intermediate =
            summary("intermediate", domain, &roots.intermediate).ok_or(unusable("intermediate certificate"))?;
        let others = roots.next.iter().chain(roots.above.iter().flat_map(|above| [&above.cross, &above.root]));
        if others.chain([&roots.first]).any(|der| !der.is_empty() && check_root(domain, der).is_err()) {
            return Err(unusable("certificate of a rotation"));
        }
        Ok(Self {
            domain: domain.clone(),
            name: name.clone(),
            roots,
            replication_key,
            sealing_key,
            summaries: [root, intermediate],
        })
    }

    /// What this cluster says of itself when it founds or joins: always its first root, of which its id is made.
    pub fn candidate(&self) -> Candidate {
        let root = if self.roots.first.is_empty() { &self.roots.root } else { &self.roots.first };
        Candidate {
            id: cluster_id(root, &self.replication_key),
            name: self.name.clone(),
            trust_domain: self.domain.clone(),
            root: root.clone(),
            replication_key: self.replication_key,
            sealing_key: self.sealing_key,
        }
    }

    /// This cluster's trust bundle, as the `sequence`-th publication: every root of its own, the older first.
    pub fn bundle(&self, sequence: u64) -> TrustBundle {
        let above = self.roots.above.iter().map(|above| &above.root);
        let roots = above.chain([&self.roots.root]).chain(&self.roots.next).cloned().collect();
        TrustBundle { trust_domain: self.domain.clone(), sequence, roots }
    }

    /// How far the rotation of the root is.
    pub fn stage(&self) -> RotationStage {
        match (&self.roots.next, &self.roots.above) {
            (Some(_), _) => RotationStage::Prepared,
            (None, Some(_)) => RotationStage::Turned,
            (None, None) => RotationStage::Settled,
        }
    }

    /// SHA-256 of the public key (SPKI DER) of the root that signs.
    pub fn root_pin(&self) -> Digest {
        let [root, _] = &self.summaries;
        root.key_sha256
    }

    /// Root, then intermediate.
    pub fn certificates(&self) -> &[CertificateSummary; 2] {
        &self.summaries
    }

    /// The root that signs, DER.
    pub fn root_der(&self) -> &[u8] {
        &self.roots.root
    }

    pub(crate) fn intermediate_der(&self) -> &[u8] {
        &self.roots.intermediate
    }

    pub(crate) fn above(&self) -> Option<&Above> {
        self.roots.above.as_ref()
    }

    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Judges a request for an SVID as far as that needs no key: DER of the SubjectPublicKeyInfo to be signed.
    ///
    /// # Errors
    /// The identity is not this authority's to give, the life is out of bounds, or the request is bad.
    pub(crate) fn requested(&self, id: &SpiffeId, csr: &[u8], ttl: Duration) -> Result<Vec<u8>, IssueError> {
        if *id.trust_domain() != self.domain {
            return Err(IssueError::ForeignDomain { id: id.clone(), domain: self.domain.clone() });
        }
        match id.role() {
            Role::Workload(_) => {}
            Role::Edge if *id == self.domain.edge(&self.name) => {}
            Role::Edge => return Err(IssueError::ForeignEdge { id: id.clone() }),
            _ => return Err(IssueError::Role { id: id.clone(), domain: self.domain.clone() }),
        }
        if ttl < SVID_TTL_MIN || ttl > SVID_TTL_MAX {
            return Err(IssueError::Ttl { ttl });
        }
        Ok(requested_key(csr)?)
    }
}

fn summary(kind: &'static str, domain: &TrustDomain, der: &[u8]) -> Option<CertificateSummary> {
    check_root(domain, der).ok()?;
    let certificate = Certificate::parse(der, 0).ok()?;
    Some(CertificateSummary {
        kind,
        spiffe_id: domain.id(),
        serial: certificate.serial.to_vec(),
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        key_sha256: sha256(certificate.spki),
    })
}
