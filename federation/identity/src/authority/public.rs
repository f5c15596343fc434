//! What everybody may know of an authority, and what can be judged by that alone.

use std::time::Duration;

use federation_model::{
    Candidate, ClusterName, Digest, ReplicationKey, Role, SealingKey, SpiffeId, Timestamp, TrustBundle, TrustDomain,
};

use super::{AuthorityError, IssueError, SVID_TTL_MAX, SVID_TTL_MIN};
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

/// A cluster's authority without its private keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    domain: TrustDomain,
    name: ClusterName,
    root_der: Vec<u8>,
    intermediate_der: Vec<u8>,
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
        root_der: Vec<u8>,
        intermediate_der: Vec<u8>,
        replication_key: ReplicationKey,
        sealing_key: SealingKey,
    ) -> Result<Self, AuthorityError> {
        let unusable = |what| AuthorityError::Unusable { what };
        let root = summary("root", domain, &root_der).ok_or(unusable("root certificate"))?;
        let intermediate =
            summary("intermediate", domain, &intermediate_der).ok_or(unusable("intermediate certificate"))?;
        Ok(Self {
            domain: domain.clone(),
            name: name.clone(),
            root_der,
            intermediate_der,
            replication_key,
            sealing_key,
            summaries: [root, intermediate],
        })
    }

    /// What this cluster says of itself when it founds or joins.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            id: cluster_id(&self.root_der, &self.replication_key),
            name: self.name.clone(),
            trust_domain: self.domain.clone(),
            root: self.root_der.clone(),
            replication_key: self.replication_key,
            sealing_key: self.sealing_key,
        }
    }

    /// This cluster's trust bundle, as the `sequence`-th publication.
    pub fn bundle(&self, sequence: u64) -> TrustBundle {
        TrustBundle { trust_domain: self.domain.clone(), sequence, roots: vec![self.root_der.clone()] }
    }

    /// SHA-256 of the root's public key (SPKI DER): what tokens pin.
    pub fn root_pin(&self) -> Digest {
        let [root, _] = &self.summaries;
        root.key_sha256
    }

    /// Root, then intermediate.
    pub fn certificates(&self) -> &[CertificateSummary; 2] {
        &self.summaries
    }

    pub(crate) fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    pub(crate) fn intermediate_der(&self) -> &[u8] {
        &self.intermediate_der
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
