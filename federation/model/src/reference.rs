//! References as people write them: `service[.namespace[.cluster]]`, `account[.namespace[.cluster]]`, `*`.
//!
//! A [`ServiceRef`] names one service. A [`SourcePattern`] and a [`DestinationPattern`] name the two sides of an
//! intention and hold the cluster's *id*, so that a freed name given to another cluster never inherits a rule; parsing
//! them therefore takes the members.

use std::{fmt, str::FromStr};

use crate::{
    AccountName, Action, ClusterId, ClusterName, Members, NameError, NamespaceName, Role, ServiceId, ServiceName,
    SpiffeId, SpiffeIdError, service::AccountRef,
};

/// The zone in which every service has its name: `<service>.<namespace>.<cluster>.mesh.internal`.
pub const MESH_ZONE: &str = "mesh.internal";

/// Longest reference in bytes: three labels and two dots, or a SPIFFE ID.
const REFERENCE_BYTES_MAX: usize = 2048;

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    #[error("reference {text:?}: {source}")]
    Name { text: String, source: NameError },
    #[error("reference has {0} bytes, at most 2048 are allowed")]
    TooLong(usize),
    #[error("reference {0:?} has too many labels: write service[.namespace[.cluster]]")]
    Labels(String),
    #[error("reference {0:?} names no cluster: write service.namespace.cluster")]
    NoCluster(String),
    #[error("reference {0:?}: '*' stands for a whole label and cannot be part of one")]
    PartialWildcard(String),
    #[error("reference {0:?}: a '*' namespace needs a '*' name before it (write '*.*' or name the namespace)")]
    NameUnderAnyNamespace(String),
    #[error("no member is called {0}; `hanse cluster list` shows them")]
    UnknownCluster(ClusterName),
    #[error("reference {text:?}: {source}")]
    Spiffe { text: String, source: SpiffeIdError },
    #[error("reference {0:?}: a destination is a service, not a SPIFFE ID")]
    SpiffeDestination(String),
    #[error("{0:?} is not a name in mesh.internal: it has the form service.namespace.cluster.mesh.internal")]
    NotInZone(String),
}

/// One service by name: `service.namespace.cluster`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    pub service: ServiceName,
    pub namespace: NamespaceName,
    pub cluster: ClusterName,
}

impl ServiceRef {
    /// Reads `service[.namespace[.cluster]]`; what is missing is `default` and `own`.
    pub fn parse(text: &str, own: &ClusterName) -> Result<Self, ReferenceError> {
        let labels = split(text)?;
        let named = |source| ReferenceError::Name { text: shown(text), source };
        let [service, namespace, cluster] = labels;
        Ok(Self {
            service: service.unwrap_or_default().parse().map_err(named)?,
            namespace: namespace.map_or_else(|| Ok(NamespaceName::default()), str::parse).map_err(named)?,
            cluster: cluster.map_or_else(|| Ok(own.clone()), str::parse).map_err(named)?,
        })
    }

    /// Reads `<service>.<namespace>.<cluster>.mesh.internal`, with or without a final dot, in any case (RFC 4343).
    pub fn from_dns(name: &str) -> Result<Self, ReferenceError> {
        if name.len() > 254 {
            return Err(ReferenceError::TooLong(name.len()));
        }
        let lower = name.to_ascii_lowercase();
        let outside = || ReferenceError::NotInZone(shown(name));
        let labels = lower
            .strip_suffix('.')
            .unwrap_or(&lower)
            .strip_suffix(MESH_ZONE)
            .and_then(|rest| rest.strip_suffix('.'))
            .ok_or_else(outside)?;
        if labels.split('.').count() != 3 {
            return Err(outside());
        }
        labels.parse()
    }

    /// The name in mesh DNS, without a final dot.
    pub fn dns(&self) -> String {
        format!("{self}.{MESH_ZONE}")
    }
}

impl FromStr for ServiceRef {
    type Err = ReferenceError;
    /// The full form only; [`ServiceRef::parse`] fills in what is missing.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let [service, namespace, cluster] = split(text)?;
        let named = |source| ReferenceError::Name { text: shown(text), source };
        let missing = || ReferenceError::NoCluster(shown(text));
        Ok(Self {
            service: service.unwrap_or_default().parse().map_err(named)?,
            namespace: namespace.ok_or_else(missing)?.parse().map_err(named)?,
            cluster: cluster.ok_or_else(missing)?.parse().map_err(named)?,
        })
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.service, self.namespace, self.cluster)
    }
}

/// One label of a pattern: `*` or a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label<T> {
    Any,
    Is(T),
}

impl<T: PartialEq> Label<T> {
    pub fn matches(&self, value: &T) -> bool {
        match self {
            Self::Any => true,
            Self::Is(name) => name == value,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Label<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Is(name) => name.fmt(f),
        }
    }
}

/// The cluster of a pattern: any, or one by its id.
pub type ClusterPattern = Label<ClusterId>;

/// Which services an intention is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationPattern {
    pub service: Label<ServiceName>,
    pub namespace: Label<NamespaceName>,
    pub cluster: ClusterPattern,
}

/// Who an intention is about: accounts, or one whole SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourcePattern {
    Account { account: Label<AccountName>, namespace: Label<NamespaceName>, cluster: ClusterPattern },
    Spiffe(SpiffeId),
}

/// An account by name in a named cluster: `account.namespace.cluster`; what `intention check` asks about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRef {
    pub account: AccountRef,
    pub cluster: ClusterName,
}

impl SourceRef {
    /// Reads `account[.namespace[.cluster]]`; what is missing is `default` and `own`.
    pub fn parse(text: &str, own: &ClusterName) -> Result<Self, ReferenceError> {
        let [account, namespace, cluster] = split(text)?;
        let named = |source| ReferenceError::Name { text: shown(text), source };
        Ok(Self {
            account: AccountRef {
                account: account.unwrap_or_default().parse().map_err(named)?,
                namespace: namespace.map_or_else(|| Ok(NamespaceName::default()), str::parse).map_err(named)?,
            },
            cluster: cluster.map_or_else(|| Ok(own.clone()), str::parse).map_err(named)?,
        })
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.account, self.cluster)
    }
}

impl DestinationPattern {
    /// Reads a destination as an operator writes it. A missing namespace is `default`, a missing cluster is any.
    pub fn parse(text: &str, members: &Members) -> Result<Self, ReferenceError> {
        if text.starts_with("spiffe:") {
            return Err(ReferenceError::SpiffeDestination(shown(text)));
        }
        let (service, namespace, cluster) = pattern(text, members)?;
        Ok(Self { service, namespace, cluster: cluster.unwrap_or(Label::Any) })
    }

    pub fn matches(&self, service: &ServiceId) -> bool {
        self.cluster.matches(&service.cluster)
            && self.namespace.matches(&service.namespace)
            && self.service.matches(&service.service)
    }

    /// Consul's count of exact parts: 0 for `*.*`, 1 for `*.ns`, 2 for `service.ns`.
    pub fn count(&self) -> u8 {
        count(&self.namespace, &self.service)
    }

    /// The pattern with cluster ids shown as names.
    pub fn shown(&self, members: &Members) -> String {
        shown_pattern(&self.service, &self.namespace, &self.cluster, members)
    }
}

impl SourcePattern {
    /// Reads a source as an operator of cluster `own` writes it.
    ///
    /// A missing namespace is `default`. A missing cluster is any for a deny, and `own` for an allow: an allow that
    /// forgot the cluster must not let in the whole federation. Any is written `*`.
    pub fn parse(text: &str, action: Action, own: ClusterId, members: &Members) -> Result<Self, ReferenceError> {
        if text.starts_with("spiffe:") {
            let spiffe = |source| ReferenceError::Spiffe { text: shown(text), source };
            return text.parse().map(Self::Spiffe).map_err(spiffe);
        }
        let (account, namespace, cluster) = pattern(text, members)?;
        let missing = match action {
            Action::Allow => Label::Is(own),
            Action::Deny => Label::Any,
        };
        Ok(Self::Account { account, namespace, cluster: cluster.unwrap_or(missing) })
    }

    /// Whether this identity, whose trust domain is that of `cluster`, is meant.
    ///
    /// Wildcards reach workloads only: an edge or a person is named by its whole SPIFFE ID or not at all.
    pub fn matches(&self, id: &SpiffeId, cluster: Option<&ClusterId>) -> bool {
        match self {
            Self::Spiffe(wanted) => wanted == id,
            Self::Account { account, namespace, cluster: wanted } => match (id.role(), cluster) {
                (Role::Workload(workload), Some(cluster)) => {
                    wanted.matches(cluster)
                        && namespace.matches(&workload.namespace)
                        && account.matches(&workload.account)
                }
                _ => false,
            },
        }
    }

    /// Consul's count of exact parts; a whole SPIFFE ID counts as exact.
    pub fn count(&self) -> u8 {
        match self {
            Self::Spiffe(_) => 2,
            Self::Account { account, namespace, .. } => count(namespace, account),
        }
    }

    /// The cluster whose accounts this names: `None` when any, or when a trust domain is no member's.
    pub fn cluster(&self, members: &Members) -> Option<ClusterId> {
        match self {
            Self::Spiffe(id) => members.by_trust_domain(id.trust_domain()).map(|member| member.id),
            Self::Account { cluster: Label::Is(id), .. } => Some(*id),
            Self::Account { cluster: Label::Any, .. } => None,
        }
    }

    /// The pattern with cluster ids shown as names.
    pub fn shown(&self, members: &Members) -> String {
        match self {
            Self::Spiffe(id) => id.to_string(),
            Self::Account { account, namespace, cluster } => shown_pattern(account, namespace, cluster, members),
        }
    }
}

fn count<N, T>(namespace: &Label<N>, name: &Label<T>) -> u8 {
    match (namespace, name) {
        (Label::Any, _) => 0,
        (_, Label::Any) => 1,
        _ => 2,
    }
}

fn shown_pattern<T: fmt::Display>(
    name: &Label<T>,
    namespace: &Label<NamespaceName>,
    cluster: &ClusterPattern,
    members: &Members,
) -> String {
    let cluster = match cluster {
        Label::Any => "*".to_owned(),
        Label::Is(id) => members.get(id).map_or_else(|| format!("@{}", id.short()), |member| member.name.to_string()),
    };
    format!("{name}.{namespace}.{cluster}")
}

/// A text for a message, cut so that a hostile megabyte does not end in a log line.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

fn split(text: &str) -> Result<[Option<&str>; 3], ReferenceError> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err(ReferenceError::TooLong(text.len()));
    }
    let mut labels = text.split('.');
    let found = [labels.next(), labels.next(), labels.next()];
    match labels.next() {
        Some(_) => Err(ReferenceError::Labels(shown(text))),
        None => Ok(found),
    }
}

type Pattern<T> = (Label<T>, Label<NamespaceName>, Option<ClusterPattern>);

fn pattern<T: FromStr<Err = NameError>>(text: &str, members: &Members) -> Result<Pattern<T>, ReferenceError> {
    if text == "*" {
        return Ok((Label::Any, Label::Any, Some(Label::Any)));
    }
    let [name, namespace, cluster] = split(text)?;
    let name = label(text, name.unwrap_or_default())?;
    let namespace = namespace.map_or_else(|| Ok(Label::Is(NamespaceName::default())), |part| label(text, part))?;
    if matches!((&name, &namespace), (Label::Is(_), Label::Any)) {
        return Err(ReferenceError::NameUnderAnyNamespace(shown(text)));
    }
    let cluster = match cluster.map(|part| label::<ClusterName>(text, part)).transpose()? {
        None => None,
        Some(Label::Any) => Some(Label::Any),
        Some(Label::Is(name)) => match members.by_name(&name) {
            Some(member) => Some(Label::Is(member.id)),
            None => return Err(ReferenceError::UnknownCluster(name)),
        },
    };
    Ok((name, namespace, cluster))
}

fn label<T: FromStr<Err = NameError>>(text: &str, part: &str) -> Result<Label<T>, ReferenceError> {
    if part == "*" {
        return Ok(Label::Any);
    }
    if part.contains('*') {
        return Err(ReferenceError::PartialWildcard(shown(text)));
    }
    part.parse().map(Label::Is).map_err(|source| ReferenceError::Name { text: shown(text), source })
}

#[cfg(test)]
mod tests;
