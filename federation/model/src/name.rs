//! Names that people give: clusters, namespaces, services, accounts.
//!
//! All are RFC 1123 labels: 1 to 63 bytes of `[a-z0-9-]`, neither starting nor ending with a hyphen, so each is a DNS
//! label, a SPIFFE path segment and a Kubernetes name without any escaping.

use std::{fmt, str::FromStr};

/// Longest label in bytes (RFC 1123, 2.1; RFC 1035, 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    #[error("{what} name is empty: give 1 to 63 characters of a-z, 0-9 and '-'")]
    Empty { what: &'static str },
    #[error("{what} name {text:?} has {bytes} bytes, at most 63 are allowed")]
    TooLong { what: &'static str, text: String, bytes: usize },
    #[error("{what} name {text:?} holds {found:?}: only a-z, 0-9 and '-' are allowed")]
    Character { what: &'static str, text: String, found: char },
    #[error("{what} name {text:?} starts or ends with '-'")]
    Hyphen { what: &'static str, text: String },
    #[error("cluster name \"default\" is refused: name the cluster, so that its peers can tell it from theirs")]
    DefaultCluster,
}

/// Whether `text` is an RFC 1123 label, without the words that [`NameError`] would find for it.
pub(crate) fn is_label(text: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    // The quoted text is cut so that a hostile megabyte does not end in a log line.
    let shown = || text.chars().take(80).collect::<String>();
    if text.len() > LABEL_BYTES_MAX {
        return Err(NameError::TooLong { what, text: shown(), bytes: text.len() });
    }
    if let Some(found) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::Character { what, text: shown(), found });
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::Hyphen { what, text: shown() });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label($what, text)?;
                Self::refine(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

name_type!(
    /// The name of a cluster in its federation. `default` is refused.
    ClusterName,
    "cluster"
);
name_type!(
    /// A namespace: what services and accounts live in. `default` when a reference leaves it out.
    NamespaceName,
    "namespace"
);
name_type!(
    /// The short name of a service within its namespace.
    ServiceName,
    "service"
);
name_type!(
    /// The short name of an account (the identity a workload runs as) within its namespace.
    AccountName,
    "account"
);

impl ClusterName {
    fn refine(text: &str) -> Result<Self, NameError> {
        if text == "default" { Err(NameError::DefaultCluster) } else { Ok(Self(text.into())) }
    }
}

impl NamespaceName {
    fn refine(text: &str) -> Result<Self, NameError> {
        Ok(Self(text.into()))
    }
}

impl ServiceName {
    fn refine(text: &str) -> Result<Self, NameError> {
        Ok(Self(text.into()))
    }
}

impl AccountName {
    fn refine(text: &str) -> Result<Self, NameError> {
        Ok(Self(text.into()))
    }
}

impl Default for NamespaceName {
    fn default() -> Self {
        Self("default".into())
    }
}

impl From<&ServiceName> for AccountName {
    /// A service is served by the account of its own name unless it says otherwise.
    fn from(service: &ServiceName) -> Self {
        Self(service.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_labels() {
        for good in ["a", "web", "web-2", "0", &"a".repeat(63)] {
            assert_eq!(good.parse::<ServiceName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn refuses_what_is_no_label() {
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a b", "é", "a\0", "*", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refuses_a_cluster_called_default() {
        assert_eq!("default".parse::<ClusterName>(), Err(NameError::DefaultCluster));
        assert!("default".parse::<NamespaceName>().is_ok());
    }

    #[test]
    fn long_text_is_cut_in_the_message() {
        let message = "x".repeat(10_000).parse::<ServiceName>().expect_err("too long").to_string();
        assert!(message.len() < 200);
        assert!(message.contains("10000"));
    }
}
