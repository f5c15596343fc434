//! A peer whose identity was proved, and how.

use crate::{Digest, SpiffeId, Timestamp, TrustDomain};

/// How an identity was proved. What it may lead to differs (see [`crate::Permit`] and [`crate::Passage`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// It holds the key of the SVID on this very TLS connection.
    Tls,
    /// A member's edge, on its session.
    Session,
    /// It signed a passthrough header for one connection that others terminate.
    Signed,
    /// The SVID that this process itself holds.
    Own,
}

/// An identity that was proved by a chain to a bundle of its own trust domain.
///
/// Made by the verifier alone; holding one means that every check was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    proof: Proof,
    issuer: Digest,
    leaf: Digest,
    key: Digest,
    not_after: Timestamp,
}

impl VerifiedPeer {
    /// Asserts that every check was made: called by `federation/identity` and nowhere else (a test holds this).
    ///
    /// `issuer` is the SHA-256 of the issuing certificate's public key, `leaf` that of the leaf's DER, `key` that of the
    /// leaf's public key, `not_after` the earliest end along the chain.
    pub fn assertion(
        id: SpiffeId,
        proof: Proof,
        issuer: Digest,
        leaf: Digest,
        key: Digest,
        not_after: Timestamp,
    ) -> Self {
        Self { id, proof, issuer, leaf, key, not_after }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        self.id.trust_domain()
    }

    pub fn proof(&self) -> Proof {
        self.proof
    }

    pub fn issuer(&self) -> Digest {
        self.issuer
    }

    pub fn leaf(&self) -> Digest {
        self.leaf
    }

    /// SHA-256 of the leaf's public key (SPKI DER).
    pub fn key(&self) -> Digest {
        self.key
    }

    /// What stands on this identity ends here.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}
