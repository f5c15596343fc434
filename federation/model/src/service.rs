//! Services and the catalog of those that this cluster may see.

use std::{fmt, sync::Arc};

use rpds::RedBlackTreeMapSync;

use crate::{AccountName, ClusterId, NamespaceName, ServiceName, ServiceRef, SpiffeId, Staleness, TrustDomain};

/// An account within a cluster: `account.namespace`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountRef {
    pub account: AccountName,
    pub namespace: NamespaceName,
}

impl fmt::Display for AccountRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.account, self.namespace)
    }
}

/// Which service, beyond doubt: the cluster by its id, since names can be freed and given again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    pub service: ServiceName,
    pub namespace: NamespaceName,
    pub cluster: ClusterId,
}

/// A service: what can be dialled, and who may serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    /// The same with the cluster's name: what people read and DNS answers.
    pub name: ServiceRef,
    /// Trust domain of the cluster that owns it; a server must hold an SVID of it.
    pub trust_domain: TrustDomain,
    /// The port that clients dial.
    pub port: u16,
    /// Accounts that may serve it, at least one (default: the account of its own name), at most [`ACCOUNTS_MAX`].
    pub accounts: Vec<AccountRef>,
    /// Whether the owner exported it, so that other members see it.
    pub exported: bool,
    /// What becomes of calls from other clusters once they hear nothing of the owner.
    pub staleness: Staleness,
}

/// Most accounts that a service may name.
pub const ACCOUNTS_MAX: usize = 16;

impl Service {
    /// The only identities that a client accepts as this service.
    pub fn server_ids(&self) -> Vec<SpiffeId> {
        self.accounts.iter().map(|account| self.trust_domain.account(account)).collect()
    }
}

/// Every service that this cluster may see: its own, and what others exported to it.
///
/// A copy shares all but what is changed afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCatalog {
    by_id: RedBlackTreeMapSync<ServiceId, Arc<Service>>,
    by_name: RedBlackTreeMapSync<ServiceRef, Arc<Service>>,
}

impl ServiceCatalog {
    /// Adds a service, in place of the one with its id.
    pub fn insert(&mut self, service: Service) {
        self.remove(&service.id);
        let service = Arc::new(service);
        self.by_name.insert_mut(service.name.clone(), Arc::clone(&service));
        self.by_id.insert_mut(service.id.clone(), service);
    }

    pub fn remove(&mut self, id: &ServiceId) {
        if let Some(service) = self.by_id.get(id).map(Arc::clone) {
            self.by_name.remove_mut(&service.name);
            self.by_id.remove_mut(id);
        }
    }

    pub fn get(&self, id: &ServiceId) -> Option<&Service> {
        self.by_id.get(id).map(Arc::as_ref)
    }

    pub fn by_name(&self, name: &ServiceRef) -> Option<&Service> {
        self.by_name.get(name).map(Arc::as_ref)
    }

    /// In order of id.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.by_id.values().map(Arc::as_ref)
    }

    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = &'static str;
            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(Self).map_err(|_| "an id has 16 bytes")
            }
        }
    };
}

random_id!(
    /// One process that serves a service: random, 128 bits, made at its start. A renewal must reach the same one.
    InstanceId
);
random_id!(
    /// One proxied connection, end to end: random, 128 bits, made by the sidecar that opens it.
    ConnectionId
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{domain, service, workload};

    #[test]
    fn only_accounts_of_the_services_own_trust_domain_may_serve_it() {
        let account = |name: &str| AccountRef {
            account: name.parse().expect("name"),
            namespace: "billing".parse().expect("name"),
        };
        let payments = Service {
            id: service("payments.billing", 1),
            name: "payments.billing.west".parse().expect("name"),
            trust_domain: domain(1),
            port: 8080,
            accounts: vec![account("payments"), account("batch")],
            exported: true,
            staleness: Staleness::default(),
        };
        let servers = payments.server_ids();
        assert_eq!(servers, vec![workload("payments.billing", 1), workload("batch.billing", 1)]);
        assert!(!servers.contains(&workload("payments.billing", 0)));
        let mut catalog = ServiceCatalog::default();
        assert!(catalog.is_empty());
        catalog.insert(payments.clone());
        assert_eq!(catalog.by_name(&payments.name), Some(&payments));
        assert_eq!(catalog.get(&payments.id), Some(&payments));
        assert_eq!(catalog.get(&service("payments.billing", 0)), None);
        assert_eq!(catalog.len(), 1);
    }

    #[test]
    fn random_ids_have_sixteen_bytes() {
        assert!(InstanceId::try_from([0; 16].as_slice()).is_ok());
        assert!(InstanceId::try_from([0; 15].as_slice()).is_err());
        assert_eq!(ConnectionId([0xab; 16]).to_string(), "ab".repeat(16));
    }
}
