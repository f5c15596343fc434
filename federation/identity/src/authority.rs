//! A cluster's own authority: its root, the intermediate that signs, and the keys that speak for the cluster.
//!
//! In: a trust domain and a name, or the keys made of them before; signing requests of those who were attested.
//! Out: SVIDs, signatures over records, the cluster as a candidate, its trust bundle. Never: decides who is attested,
//! and never takes a name from a signing request.

mod public;
mod rotation;

use std::{fmt, time::Duration};

use aws_lc_rs::{
    agreement,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use federation_model::{
    Candidate, ClusterName, Digest, ReplicationKey, SealingKey, SpiffeId, Timestamp, TrustBundle, TrustDomain,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

pub(crate) use self::public::Roots;
use self::rotation::Pair;
pub use self::{
    public::{Authority, CertificateSummary},
    rotation::{Above, NextKeys, RotationError, RotationStage, RotationStep},
};
use crate::{
    CsrError, SignerError, SvidError,
    seal::{self, UnsealError},
    sha256, token,
    verifier::verify_issued,
};

/// Life of an SVID unless said otherwise.
pub const SVID_TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// Shortest life that can be asked for.
pub const SVID_TTL_MIN: Duration = Duration::from_secs(1);
/// Longest life that can be asked for.
pub const SVID_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// How far before its making an SVID begins at most, for peers whose clock is late; never more than a tenth of its life,
/// so that half its life is still to come when it is made.
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(300);
/// Life of root and intermediate. Both end together: the intermediate is renewed with the root.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why an authority cannot be made or taken up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    #[error("a key could not be made")]
    Generate,
    #[error("certificate of the {what} could not be made")]
    Certificate { what: &'static str, source: rcgen::Error },
    #[error("{what} among the stored keys is not usable: were they made by another version, or for another cluster?")]
    Unusable { what: &'static str },
}

/// Why an SVID is not issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("{id} is of another trust domain, this authority signs for {domain} alone")]
    ForeignDomain { id: SpiffeId, domain: TrustDomain },
    #[error("{id} has no role that is issued: accounts are spiffe://{domain}/ns/<namespace>/sa/<account>")]
    Role { id: SpiffeId, domain: TrustDomain },
    #[error("{id} is another cluster's edge")]
    ForeignEdge { id: SpiffeId },
    #[error("a life of {ttl:?} is not between 1 s and 24 h")]
    Ttl { ttl: Duration },
    #[error("the authority's own certificate ends before that")]
    AuthorityEnded,
    #[error("certificate could not be made")]
    Certificate(#[source] rcgen::Error),
    #[error("the certificate that was made does not pass our own checks")]
    Unfit(#[source] SvidError),
    #[error(transparent)]
    Signer(#[from] SignerError),
}

impl IssueError {
    /// Short fixed word for metrics and audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Csr(error) => error.reason(),
            Self::ForeignDomain { .. } => "foreign_domain",
            Self::Role { .. } => "role",
            Self::ForeignEdge { .. } => "foreign_edge",
            Self::Ttl { .. } => "ttl",
            Self::AuthorityEnded => "authority_ended",
            Self::Certificate(_) => "certificate",
            Self::Unfit(_) => "unfit",
            Self::Signer(error) => error.reason(),
        }
    }
}

/// An SVID as its signer made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// DER of leaf and intermediate; while a rotation is turned, then the root's key certified by the root before.
    pub chain: Vec<Vec<u8>>,
    /// DER of the root above them.
    pub root: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Big-endian, 16 bytes.
    pub serial: Vec<u8>,
}

impl Issued {
    /// Leaf, intermediate, root: what an edge shows, so that strangers can compare the root with a pin.
    pub fn full_chain(&self) -> Vec<Vec<u8>> {
        self.chain.iter().chain([&self.root]).cloned().collect()
    }
}

/// Whoever holds a cluster's keys: in this process ([`LocalSigner`]), or in one without a network
/// ([`RemoteSigner`](crate::RemoteSigner)). Calls block: for less than a millisecond as a rule, and never longer than
/// [`ANSWER_LIMIT`](crate::signer::ANSWER_LIMIT).
pub trait Signer: Send + Sync {
    /// Signs an SVID for an identity that the caller attested. Of the request (PKCS #10 DER) only the key counts. A
    /// signer apart goes by its own clock instead of `now`.
    ///
    /// # Errors
    /// The identity is not this authority's to give, the life is out of bounds, the request is bad, or there is no
    /// signer to ask.
    fn sign_svid(&self, id: &SpiffeId, csr: &[u8], ttl: Duration, now: Timestamp) -> Result<Issued, IssueError>;

    /// Ed25519 over "hanse-record-v1" ‖ 0x00 ‖ `record`.
    ///
    /// # Errors
    /// There is no signer to ask, or it was asked too often.
    fn sign_record(&self, record: &[u8]) -> Result<[u8; 64], SignerError>;

    /// Ed25519 over "hanse-receipt-v1" ‖ 0x00 ‖ `receipt`.
    ///
    /// # Errors
    /// There is no signer to ask, or it was asked too often.
    fn sign_receipt(&self, receipt: &[u8]) -> Result<[u8; 64], SignerError>;

    /// Ed25519 over "hanse-backup-v1" ‖ 0x00 ‖ the digest `backup`.
    ///
    /// # Errors
    /// There is no signer to ask, or it was asked too often.
    fn sign_backup(&self, backup: &Digest) -> Result<[u8; 64], SignerError>;

    /// Opens what another sealed to this cluster's sealing key with [`crate::seal::seal_to`].
    ///
    /// # Errors
    /// It was sealed to another key, under another `aad`, or was changed; or there is no signer to ask.
    fn unseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError>;
}

/// The keys of an authority in the clear, on their way into or out of a sealed row. Wiped when dropped.
#[derive(Clone)]
pub struct AuthorityKeys {
    /// PKCS #8 DER.
    pub root_key: Zeroizing<Vec<u8>>,
    /// DER.
    pub root_certificate: Vec<u8>,
    /// PKCS #8 DER.
    pub intermediate_key: Zeroizing<Vec<u8>>,
    /// DER.
    pub intermediate_certificate: Vec<u8>,
    /// Ed25519, PKCS #8 DER.
    pub replication_key: Zeroizing<Vec<u8>>,
    /// X25519 private key, 32 bytes.
    pub sealing_key: Zeroizing<Vec<u8>>,
    /// DER of the root that the cluster's id was made of; empty while that is the one that signs.
    pub first_root: Vec<u8>,
    /// While a rotation is prepared.
    pub next: Option<NextKeys>,
    /// While a rotation is turned.
    pub above: Option<Above>,
}

impl fmt::Debug for AuthorityKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityKeys(hidden)")
    }
}

/// The authority in this very process.
pub struct LocalSigner {
    public: Authority,
    issuer: Issuer<'static, KeyPair>,
    replication: Ed25519KeyPair,
    sealing_private: Zeroizing<Vec<u8>>,
}

impl LocalSigner {
    /// Makes a new authority: root, intermediate, replication key and sealing key.
    ///
    /// # Errors
    /// The cryptographic library refused, which it does only without randomness.
    pub fn generate(
        domain: &TrustDomain,
        name: &ClusterName,
        now: Timestamp,
    ) -> Result<(Self, AuthorityKeys), AuthorityError> {
        let pair = Pair::generate(domain, name, now)?;
        let replication = Ed25519KeyPair::generate().map_err(|_| AuthorityError::Generate)?;
        let replication = replication.to_pkcs8().map_err(|_| AuthorityError::Generate)?;
        let keys = AuthorityKeys {
            root_key: Zeroizing::new(pair.root_key.serialize_der()),
            root_certificate: pair.root_certificate,
            intermediate_key: Zeroizing::new(pair.intermediate_key.serialize_der()),
            intermediate_certificate: pair.intermediate_certificate,
            replication_key: Zeroizing::new(replication.as_ref().to_vec()),
            sealing_key: Zeroizing::new(token::random::<32>().to_vec()),
            first_root: Vec::new(),
            next: None,
            above: None,
        };
        Ok((Self::from_keys(domain, name, keys.clone())?, keys))
    }

    /// Takes up an authority that was made before.
    ///
    /// # Errors
    /// A key or certificate cannot be read, they do not belong together, or they are another trust domain's.
    pub fn from_keys(domain: &TrustDomain, name: &ClusterName, keys: AuthorityKeys) -> Result<Self, AuthorityError> {
        let unusable = |what| AuthorityError::Unusable { what };
        let replication = Ed25519KeyPair::from_pkcs8(&keys.replication_key).map_err(|_| unusable("replication key"))?;
        let replication_key = replication
            .public_key()
            .as_ref()
            .try_into()
            .map(ReplicationKey)
            .map_err(|_| unusable("replication key"))?;
        let sealing = agreement::PrivateKey::from_private_key(&agreement::X25519, &keys.sealing_key)
            .ok()
            .and_then(|private| private.compute_public_key().ok());
        let sealing_key = sealing
            .and_then(|public| public.as_ref().try_into().ok())
            .map(SealingKey)
            .ok_or(unusable("sealing key"))?;
        let roots = Roots {
            root: keys.root_certificate,
            intermediate: keys.intermediate_certificate,
            first: keys.first_root,
            next: keys.next.as_ref().map(|next| next.root_certificate.clone()),
            above: keys.above,
        };
        let public = Authority::new(domain, name, roots, replication_key, sealing_key)?;

        let [root, intermediate] = public.certificates();
        let pair = |der: &[u8], of: &CertificateSummary, what| {
            let pair = KeyPair::try_from(der).map_err(|_| unusable(what))?;
            let matches = sha256(&pair.subject_public_key_info()) == of.key_sha256;
            if matches { Ok(pair) } else { Err(unusable(what)) }
        };
        // The root's key is checked, then left in its sealed row: signing leaves does not need it.
        pair(&keys.root_key, root, "root key")?;
        let intermediate_key = pair(&keys.intermediate_key, intermediate, "intermediate key")?;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(public.intermediate_der()), intermediate_key)
            .map_err(|_| unusable("intermediate certificate"))?;
        Ok(Self { public, issuer, replication, sealing_private: keys.sealing_key })
    }

    /// What everybody may know of it.
    pub fn authority(&self) -> &Authority {
        &self.public
    }

    /// See [`Authority::candidate`].
    pub fn candidate(&self) -> Candidate {
        self.public.candidate()
    }

    /// See [`Authority::bundle`].
    pub fn bundle(&self, sequence: u64) -> TrustBundle {
        self.public.bundle(sequence)
    }

    /// See [`Authority::root_pin`].
    pub fn root_pin(&self) -> Digest {
        self.public.root_pin()
    }
}

impl fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSigner").field("public", &self.public).finish_non_exhaustive()
    }
}

impl LocalSigner {
    fn signature(&self, bytes: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.replication.sign(bytes).as_ref());
        signature
    }
}

impl Signer for LocalSigner {
    fn sign_svid(&self, id: &SpiffeId, csr: &[u8], ttl: Duration, now: Timestamp) -> Result<Issued, IssueError> {
        let spki = self.public.requested(id, csr, ttl)?;
        // Certificates count whole seconds.
        let not_before = Timestamp::from_secs(now.before(CERTIFICATE_BACKDATE.min(ttl / 10)).as_secs());
        let not_after = Timestamp::from_secs(now.after(ttl).as_secs());
        let [root, intermediate] = self.public.certificates();
        if not_after > intermediate.not_after.min(root.not_after) {
            return Err(IssueError::AuthorityEnded);
        }
        let serial = serial();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_before);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // No subject: the SPIFFE ID is the only name, and the SAN is critical for it (RFC 5280, 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        let uri = id.to_string().try_into().map_err(IssueError::Certificate)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(&spki).map_err(IssueError::Certificate)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(IssueError::Certificate)?;
        let mut chain = vec![leaf.der().to_vec(), self.public.intermediate_der().to_vec()];
        let above = self.public.above();
        chain.extend(above.map(|above| above.cross.clone()));
        let top = above.map_or(self.public.root_der(), |above| &above.root).to_vec();
        // What leaves this house passes its own gate: one URI SAN, the right one, and every other check.
        verify_issued(&chain, &self.bundle(0), id, now).map_err(IssueError::Unfit)?;
        Ok(Issued { chain, root: top, not_before, not_after, serial: serial.to_vec() })
    }

    fn sign_record(&self, record: &[u8]) -> Result<[u8; 64], SignerError> {
        Ok(self.signature(&crate::record::signed_bytes(record)))
    }

    fn sign_backup(&self, backup: &Digest) -> Result<[u8; 64], SignerError> {
        Ok(self.signature(&crate::backup::signed_bytes(backup)))
    }

    fn sign_receipt(&self, receipt: &[u8]) -> Result<[u8; 64], SignerError> {
        Ok(self.signature(&crate::receipt::signed_bytes(receipt)))
    }

    fn unseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        Ok(seal::unseal(&self.sealing_private, aad, sealed)?)
    }
}

/// A CA certificate with the trust domain's own SPIFFE ID (X509-SVID, 4.2: no path).
fn ca_params(
    domain: &TrustDomain,
    name: &ClusterName,
    kind: &str,
    constraints: BasicConstraints,
    now: Timestamp,
) -> Result<CertificateParams, AuthorityError> {
    let what = if kind == "root" { "root" } else { "intermediate" };
    let serial = serial();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now.before(CERTIFICATE_BACKDATE));
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now.after(ROOT_LIFETIME));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // Names that no two authorities share: path building goes by them.
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Hanse");
    let short: String = serial.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    subject.push(DnType::CommonName, format!("{name} {kind} {short}"));
    params.distinguished_name = subject;
    let uri = domain.id().to_string().try_into().map_err(|source| AuthorityError::Certificate { what, source })?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 random bits, positive and never shortened: the first byte lies between 0x40 and 0x7f.
fn serial() -> [u8; 16] {
    let mut serial = token::random::<16>();
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

/// Whole seconds, to be added to the first day of 1970: rcgen counts in a calendar.
fn since_epoch(at: Timestamp) -> Duration {
    Duration::from_secs(at.as_secs())
}
