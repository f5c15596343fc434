//! Another root in place of this one: the steps that an authority's keys take, one after another.
//!
//! In: the keys, a step. Out: the keys after it, or why it cannot be taken. A step that was taken already changes nothing,
//! so that whoever asks for one may ask again after a crash. Never: says when a step is due; who publishes and waits does.
//!
//! ```text
//! settled --prepare--> prepared --turn over--> turned --retire--> settled
//!    ^                    |
//!    +------abandon-------+
//! ```
//!
//! While it is turned, chains carry the new root's key as the old root certified it, and the old root above that: who
//! knows but one of the two roots, whichever it is, accepts them. The old private keys are gone by then.

use federation_model::{ClusterName, Timestamp, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SerialNumber};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{AuthorityError, AuthorityKeys, ca_params, serial, since_epoch};
use crate::certificate::Certificate;

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStep {
    /// Makes the next root and intermediate. Nothing is signed with them yet.
    Prepare,
    /// From now on the next intermediate signs. The keys before are forgotten.
    TurnOver,
    /// Chains no longer carry the root before.
    Retire,
    /// Forgets the next root and intermediate.
    Abandon,
    /// Another intermediate under the root that signs, whatever the rotation of that is at. The key before is forgotten.
    Intermediate,
}

/// How far an authority's rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStage {
    /// One root, no rotation.
    Settled,
    /// The next root is made and does not sign.
    Prepared,
    /// The new root signs, and chains carry the one before.
    Turned,
}

/// Why a step cannot be taken. Nothing changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    #[error("no next root was prepared: a rotation begins with that")]
    NotPrepared,
    #[error("the new root signs already: the rotation can only be brought to its end")]
    Turned,
    #[error("the next root does not sign yet: turn over first, or abandon it")]
    NotTurned,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Keys that wait to sign.
#[derive(Clone)]
pub struct NextKeys {
    /// PKCS #8 DER.
    pub root_key: Zeroizing<Vec<u8>>,
    /// DER.
    pub root_certificate: Vec<u8>,
    /// PKCS #8 DER.
    pub intermediate_key: Zeroizing<Vec<u8>>,
    /// DER.
    pub intermediate_certificate: Vec<u8>,
    /// DER: the next root's key, certified by the root before it.
    pub cross: Vec<u8>,
}

/// What stands above the root that signs, for those who know only the root before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    /// DER: the root's key, certified by the root before it.
    pub cross: Vec<u8>,
    /// DER: the root before.
    pub root: Vec<u8>,
}

impl AuthorityKeys {
    /// How far the rotation is.
    pub fn stage(&self) -> RotationStage {
        match (&self.next, &self.above) {
            (Some(_), _) => RotationStage::Prepared,
            (None, Some(_)) => RotationStage::Turned,
            (None, None) => RotationStage::Settled,
        }
    }

    /// The keys after a step; the same if it was taken already. [`RotationStep::Intermediate`] makes another each time.
    ///
    /// # Errors
    /// The rotation is not where this step begins or ends.
    pub fn step(
        mut self,
        step: RotationStep,
        domain: &TrustDomain,
        name: &ClusterName,
        now: Timestamp,
    ) -> Result<Self, RotationError> {
        match (step, self.stage()) {
            (RotationStep::Prepare, RotationStage::Settled) => self.next = Some(self.prepare(domain, name, now)?),
            (RotationStep::TurnOver, RotationStage::Prepared) => {
                let next = self.next.take().ok_or(RotationError::NotPrepared)?;
                let old = std::mem::replace(&mut self.root_certificate, next.root_certificate);
                if self.first_root.is_empty() {
                    self.first_root.clone_from(&old);
                }
                self.above = Some(Above { cross: next.cross, root: old });
                self.root_key = next.root_key;
                self.intermediate_key = next.intermediate_key;
                self.intermediate_certificate = next.intermediate_certificate;
            }
            (RotationStep::Intermediate, _) => {
                let (key, certificate) = self.intermediate(domain, name, now)?;
                self.intermediate_key = Zeroizing::new(key.serialize_der());
                self.intermediate_certificate = certificate;
            }
            (RotationStep::Retire, RotationStage::Turned) => self.above = None,
            (RotationStep::Abandon, RotationStage::Prepared) => self.next = None,
            (RotationStep::Prepare, RotationStage::Prepared)
            | (RotationStep::TurnOver, RotationStage::Turned)
            | (RotationStep::Retire | RotationStep::Abandon, RotationStage::Settled) => {}
            (RotationStep::Prepare | RotationStep::Abandon, RotationStage::Turned) => {
                return Err(RotationError::Turned);
            }
            (RotationStep::TurnOver, RotationStage::Settled) => return Err(RotationError::NotPrepared),
            (RotationStep::Retire, RotationStage::Prepared) => return Err(RotationError::NotTurned),
        }
        Ok(self)
    }

    fn prepare(&self, domain: &TrustDomain, name: &ClusterName, now: Timestamp) -> Result<NextKeys, AuthorityError> {
        let Pair { root_key, root_params, root_certificate, intermediate_key, intermediate_certificate } =
            Pair::generate(domain, name, now)?;
        let (old_root, old_ends) = self.root()?;
        // The next root's own name and key; below it one intermediate and no more; no longer than the root above it.
        let mut params = root_params;
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.not_after = params.not_after.min(rcgen::date_time_ymd(1970, 1, 1) + since_epoch(old_ends));
        let cross = params.signed_by(&root_key, &old_root);
        let cross = cross.map_err(|source| AuthorityError::Certificate { what: "next root", source })?;
        Ok(NextKeys {
            root_key: Zeroizing::new(root_key.serialize_der()),
            root_certificate,
            intermediate_key: Zeroizing::new(intermediate_key.serialize_der()),
            intermediate_certificate,
            cross: cross.der().to_vec(),
        })
    }

    /// The root that signs, as an issuer, and when it ends.
    fn root(&self) -> Result<(Issuer<'static, KeyPair>, Timestamp), AuthorityError> {
        let unusable = |what| AuthorityError::Unusable { what };
        let held = Certificate::parse(&self.root_certificate, 0).map_err(|_| unusable("root certificate"))?;
        let key = KeyPair::try_from(self.root_key.as_slice()).map_err(|_| unusable("root key"))?;
        let root = Issuer::from_ca_cert_der(&CertificateDer::from(self.root_certificate.as_slice()), key)
            .map_err(|_| unusable("root certificate"))?;
        Ok((root, held.not_after))
    }

    fn intermediate(
        &self,
        domain: &TrustDomain,
        name: &ClusterName,
        now: Timestamp,
    ) -> Result<(KeyPair, Vec<u8>), AuthorityError> {
        let (root, ends) = self.root()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Generate)?;
        let mut params = ca_params(domain, name, "intermediate", BasicConstraints::Constrained(0), now)?;
        params.not_after = params.not_after.min(rcgen::date_time_ymd(1970, 1, 1) + since_epoch(ends));
        let certificate = params.signed_by(&key, &root);
        let certificate = certificate.map_err(|source| AuthorityError::Certificate { what: "intermediate", source })?;
        let der = certificate.der().to_vec();
        Ok((key, der))
    }
}

/// A new root and the intermediate under it.
pub(super) struct Pair {
    pub(super) root_key: KeyPair,
    root_params: CertificateParams,
    /// DER.
    pub(super) root_certificate: Vec<u8>,
    pub(super) intermediate_key: KeyPair,
    /// DER.
    pub(super) intermediate_certificate: Vec<u8>,
}

impl Pair {
    pub(super) fn generate(domain: &TrustDomain, name: &ClusterName, now: Timestamp) -> Result<Self, AuthorityError> {
        let p256 = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Generate);
        let (root_key, intermediate_key) = (p256()?, p256()?);
        let failed = |what| move |source| AuthorityError::Certificate { what, source };
        let root_params = ca_params(domain, name, "root", BasicConstraints::Unconstrained, now)?;
        let root_certificate = root_params.self_signed(&root_key).map_err(failed("root"))?.der().to_vec();
        let above = Issuer::from_params(&root_params, &root_key);
        // The intermediate signs leaves and nothing else.
        let params = ca_params(domain, name, "intermediate", BasicConstraints::Constrained(0), now)?;
        let intermediate = params.signed_by(&intermediate_key, &above).map_err(failed("intermediate"))?;
        let intermediate_certificate = intermediate.der().to_vec();
        Ok(Self { root_key, root_params, root_certificate, intermediate_key, intermediate_certificate })
    }
}

#[cfg(test)]
#[path = "rotation/tests.rs"]
mod tests;
