//! SPIFFE IDs and trust domains, parsed by every MUST of the SPIFFE-ID specification.

use std::{fmt, str::FromStr};

use crate::{AccountName, NamespaceName, service::AccountRef};

/// Longest SPIFFE ID in bytes (SPIFFE-ID, 2.3: implementations MUST support up to 2048).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain name in bytes (SPIFFE-ID, 2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    #[error("SPIFFE ID has {0} bytes, at most 2048 are allowed")]
    TooLong(usize),
    #[error("SPIFFE ID does not start with \"spiffe://\"")]
    Scheme,
    #[error("trust domain is empty")]
    EmptyTrustDomain,
    #[error("trust domain has {0} bytes, at most 255 are allowed")]
    TrustDomainTooLong(usize),
    #[error("trust domain holds {0:?}: only a-z, 0-9, '.', '-' and '_' are allowed")]
    TrustDomainCharacter(char),
    #[error("SPIFFE ID path ends with '/'")]
    TrailingSlash,
    #[error("SPIFFE ID path has an empty segment")]
    EmptySegment,
    #[error("SPIFFE ID path has a relative segment ('.' or '..')")]
    RelativeSegment,
    #[error("SPIFFE ID path holds {0:?}: only letters, digits, '.', '-' and '_' are allowed")]
    PathCharacter(char),
}

/// A trust domain: the name of one root of trust. Compared byte for byte, never treated as a DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the domain itself (no path): what a signing certificate carries.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { trust_domain: self.clone(), path: "".into() }
    }

    /// `spiffe://<domain>/ns/<namespace>/sa/<account>`, the Kubernetes convention.
    pub fn account(&self, account: &AccountRef) -> SpiffeId {
        SpiffeId {
            trust_domain: self.clone(),
            path: format!("/ns/{}/sa/{}", account.namespace, account.account).into(),
        }
    }

    /// `spiffe://<domain>/hanse/edge/<name>`: the reserved identity of an edge.
    pub fn edge(&self, name: &crate::ClusterName) -> SpiffeId {
        SpiffeId { trust_domain: self.clone(), path: format!("/hanse/edge/{name}").into() }
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::EmptyTrustDomain);
        }
        if text.len() > TRUST_DOMAIN_BYTES_MAX {
            return Err(SpiffeIdError::TrustDomainTooLong(text.len()));
        }
        match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(found) => Err(SpiffeIdError::TrustDomainCharacter(found)),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// A SPIFFE ID: trust domain and path. Equality always includes the trust domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or `/segment[/segment…]`.
    path: Box<str>,
}

/// What an identity is for; each listener accepts its roles only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// `/ns/<namespace>/sa/<account>`: a workload.
    Workload(AccountRef),
    /// `/hanse/edge/<name>`: the gateway at a cluster's border.
    Edge,
    /// `/user/<name>`: a person.
    User,
    /// A well-formed path that this version gives no role.
    Other,
}

impl SpiffeId {
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for the trust domain itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn role(&self) -> Role {
        let mut segments = self.path.split('/').skip(1);
        let parts = (segments.next(), segments.next(), segments.next(), segments.next(), segments.next());
        match parts {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                match (namespace.parse::<NamespaceName>(), account.parse::<AccountName>()) {
                    (Ok(namespace), Ok(account)) => Role::Workload(AccountRef { account, namespace }),
                    _ => Role::Other,
                }
            }
            (Some("hanse"), Some("edge"), Some(_), None, None) => Role::Edge,
            (Some("user"), Some(_), None, None, None) => Role::User,
            _ => Role::Other,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = domain.parse()?;
        if path.ends_with('/') {
            return Err(SpiffeIdError::TrailingSlash);
        }
        for segment in path.split('/').skip(1) {
            match segment {
                "" => return Err(SpiffeIdError::EmptySegment),
                "." | ".." => return Err(SpiffeIdError::RelativeSegment),
                _ => {}
            }
            let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if let Some(found) = segment.chars().find(|c| !allowed(c)) {
                return Err(SpiffeIdError::PathCharacter(found));
            }
        }
        Ok(Self { trust_domain, path: path.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
