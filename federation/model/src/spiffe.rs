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

impl SpiffeId {
    /// Namespace and account of a workload, without a copy: what [`Role::Workload`] would hold.
    pub(crate) fn workload(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path.strip_prefix("/ns/")?.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (crate::name::is_label(namespace) && crate::name::is_label(account)).then_some((namespace, account))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(text: &str, expected: SpiffeIdError) {
        assert_eq!(text.parse::<SpiffeId>(), Err(expected), "{text:?}");
    }

    #[test]
    fn reads_what_the_specification_allows() {
        for good in [
            "spiffe://td",
            "spiffe://td.example-1_x/a",
            "spiffe://10.0.0.1/9eebccd2-12bf-40a6-b262-65fe0487d453",
            "spiffe://td/A/b.c/_-/...",
            "spiffe://east.mesh.internal/ns/shop/sa/web",
        ] {
            assert_eq!(good.parse::<SpiffeId>().expect(good).to_string(), good);
        }
    }

    #[test]
    fn refuses_what_the_specification_forbids() {
        check_refused("", SpiffeIdError::Scheme);
        check_refused("https://td/a", SpiffeIdError::Scheme);
        check_refused("SPIFFE://td/a", SpiffeIdError::Scheme);
        check_refused("spiffe:/td/a", SpiffeIdError::Scheme);
        check_refused(" spiffe://td/a", SpiffeIdError::Scheme);
        check_refused("spiffe://", SpiffeIdError::EmptyTrustDomain);
        check_refused("spiffe:///a", SpiffeIdError::EmptyTrustDomain);
        check_refused("spiffe://td:443/a", SpiffeIdError::TrustDomainCharacter(':'));
        check_refused("spiffe://user@td/a", SpiffeIdError::TrustDomainCharacter('@'));
        check_refused("spiffe://TD/a", SpiffeIdError::TrustDomainCharacter('T'));
        check_refused("spiffe://t%64/a", SpiffeIdError::TrustDomainCharacter('%'));
        check_refused("spiffe://té/a", SpiffeIdError::TrustDomainCharacter('é'));
        check_refused("spiffe://td?q=1", SpiffeIdError::TrustDomainCharacter('?'));
        check_refused("spiffe://td#f", SpiffeIdError::TrustDomainCharacter('#'));
        check_refused("spiffe://td/", SpiffeIdError::TrailingSlash);
        check_refused("spiffe://td/a/", SpiffeIdError::TrailingSlash);
        check_refused("spiffe://td//a", SpiffeIdError::EmptySegment);
        check_refused("spiffe://td/a//b", SpiffeIdError::EmptySegment);
        check_refused("spiffe://td/.", SpiffeIdError::RelativeSegment);
        check_refused("spiffe://td/a/../b", SpiffeIdError::RelativeSegment);
        check_refused("spiffe://td/a?q", SpiffeIdError::PathCharacter('?'));
        check_refused("spiffe://td/a#f", SpiffeIdError::PathCharacter('#'));
        check_refused("spiffe://td/%61", SpiffeIdError::PathCharacter('%'));
        check_refused("spiffe://td/a\0", SpiffeIdError::PathCharacter('\0'));
        check_refused("spiffe://td/a b", SpiffeIdError::PathCharacter(' '));
        check_refused("spiffe://td/é", SpiffeIdError::PathCharacter('é'));
    }

    #[test]
    fn lengths_are_bounded() {
        let id = |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - "spiffe://td/".len()));
        assert!(id(2048).parse::<SpiffeId>().is_ok());
        check_refused(&id(2049), SpiffeIdError::TooLong(2049));
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(SpiffeIdError::TrustDomainTooLong(256)));
    }

    #[test]
    fn equality_includes_the_trust_domain_and_the_case_of_the_path() {
        let id = |text: &str| text.parse::<SpiffeId>().expect("SPIFFE ID");
        assert_ne!(id("spiffe://a/x"), id("spiffe://b/x"));
        assert_ne!(id("spiffe://a/x"), id("spiffe://a/X"));
    }

    #[test]
    fn roles_are_read_from_the_path() {
        let role = |path: &str| format!("spiffe://td{path}").parse::<SpiffeId>().expect(path).role();
        assert!(matches!(role("/ns/shop/sa/web"), Role::Workload(_)));
        assert_eq!(role("/hanse/edge/east"), Role::Edge);
        assert_eq!(role("/user/ann"), Role::User);
        for other in
            ["", "/ns/shop/sa", "/ns/shop/sa/web/x", "/ns/Shop/sa/web", "/ns/shop/SA/web", "/hanse/edge", "/user"]
        {
            assert_eq!(role(other), Role::Other, "{other}");
        }
    }

    #[test]
    fn the_quick_reading_of_a_workload_agrees_with_its_role() {
        for path in [
            "",
            "/ns/shop/sa/web",
            "/ns/shop/sa",
            "/ns/shop/sa/web/x",
            "/ns/Shop/sa/web",
            "/ns/shop/sa/-web",
            "/ns/sa/sa/sa",
            "/nsx/shop/sa/web",
            "/ns/shop/sax/web",
            "/x/ns/shop/sa/web",
            "/ns/a.b/sa/web",
            "/user/ann",
        ] {
            let id: SpiffeId = format!("spiffe://td{path}").parse().expect(path);
            let quick = id.workload().map(|(namespace, account)| format!("{account}.{namespace}"));
            let role = match id.role() {
                Role::Workload(account) => Some(account.to_string()),
                _ => None,
            };
            assert_eq!(quick, role, "{path}");
        }
        let long = "a".repeat(64);
        let id: SpiffeId = format!("spiffe://td/ns/shop/sa/{long}").parse().expect("SPIFFE ID");
        assert_eq!((id.workload(), id.role()), (None, Role::Other));
    }

    #[test]
    fn an_account_has_the_path_of_the_convention() {
        let domain: TrustDomain = "east.mesh.internal".parse().expect("trust domain");
        let account = AccountRef { account: "web".parse().expect("name"), namespace: "shop".parse().expect("name") };
        let id = domain.account(&account);
        assert_eq!(id.to_string(), "spiffe://east.mesh.internal/ns/shop/sa/web");
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!(id.role(), Role::Workload(account));
        assert_eq!(domain.edge(&"east".parse().expect("name")).role(), Role::Edge);
        assert_eq!(domain.id().path(), "");
    }
}
