//! A stable loopback address for every service that this process may see.
//!
//! In: catalogs, and the assignments that an earlier run kept. Out: one address in 127.64.0.0/10 per service, the same
//! for as long as the table lives. Never: binds anything, or hands out an address outside that block.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use federation_model::{ClusterName, NamespaceName, ServiceCatalog, ServiceId, ServiceRef};

/// Most services that hold an address. A sixteenth of the block, so that a free address is found at once.
pub const ADDRESSES_MAX: usize = 262_144;

/// Most places looked at for one service. Names chosen so that they collide end here instead of costing time.
const PROBES_MAX: u32 = 1024;

/// 127.64.0.0/10: the whole of 127/8 is loopback (RFC 1122, 3.2.1.3), and this part is far from what people use by hand.
const BLOCK: u32 = u32::from_be_bytes([127, 64, 0, 0]);
const BLOCK_MASK: u32 = (1 << 22) - 1;

/// The addresses of services. A clone is another handle on the same table.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    by_name: BTreeMap<ServiceRef, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, ServiceRef>,
    /// What the last catalog held. Others keep their address in case they come back.
    visible: BTreeSet<ServiceRef>,
    /// Namespaces of what is visible: they exist in DNS although they hold no records (RFC 8020, 2).
    namespaces: BTreeSet<(ClusterName, NamespaceName)>,
}

/// What an update did, for whoever listens on the addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services that became visible, with their addresses.
    pub added: Vec<(ServiceRef, Ipv4Addr)>,
    /// Services that are gone; their addresses stay theirs.
    pub removed: Vec<(ServiceRef, Ipv4Addr)>,
    /// Visible services that got no address, because the table is full; their names answer SERVFAIL.
    pub unassigned: usize,
}

impl Addresses {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over what an earlier [`export`](Self::export) gave. Call it before the first update: kept addresses win.
    ///
    /// Returns how many entries were refused: outside 127.64.0.0/10, a name or an address twice, or beyond
    /// [`ADDRESSES_MAX`]. A refused service simply gets a new address.
    pub fn import(&self, kept: impl IntoIterator<Item = (ServiceRef, Ipv4Addr)>) -> usize {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut refused = 0;
        for (name, address) in kept {
            let taken = table.by_name.contains_key(&name) || table.by_address.contains_key(&address);
            if taken || !usable(address) || table.by_name.len() >= ADDRESSES_MAX {
                refused += 1;
            } else {
                table.insert(name, address);
            }
        }
        refused
    }

    /// Every assignment, in order of name: what to keep over a restart.
    pub fn export(&self) -> Vec<(ServiceRef, Ipv4Addr)> {
        self.read().by_name.iter().map(|(name, address)| (name.clone(), *address)).collect()
    }

    /// Gives every service of `catalog` an address. Services that left keep theirs unless the table is full.
    pub fn update(&self, catalog: &ServiceCatalog) -> Changes {
        self.0.write().unwrap_or_else(PoisonError::into_inner).update(catalog)
    }

    /// The address of a service that the last catalog held.
    pub fn address(&self, name: &ServiceRef) -> Option<Ipv4Addr> {
        let table = self.read();
        table.visible.contains(name).then(|| table.by_name.get(name).copied()).flatten()
    }

    /// The service to which an address was given, visible or not.
    pub fn service(&self, address: Ipv4Addr) -> Option<ServiceRef> {
        self.read().by_address.get(&address).cloned()
    }

    /// Whether any visible service lives in that namespace.
    pub(crate) fn has_namespace(&self, cluster: &ClusterName, namespace: &NamespaceName) -> bool {
        self.read().namespaces.contains(&(cluster.clone(), namespace.clone()))
    }

    /// No code panics while it holds the lock half way through a change, so a poisoned table is still whole.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn update(&mut self, catalog: &ServiceCatalog) -> Changes {
        let mut changes = Changes::default();
        let before = std::mem::take(&mut self.visible);
        self.visible = catalog.iter().map(|service| service.name.clone()).collect();
        self.namespaces = self.visible.iter().map(|name| (name.cluster.clone(), name.namespace.clone())).collect();
        for service in catalog.iter() {
            match self.assign(&service.id, &service.name) {
                Some(address) if !before.contains(&service.name) => {
                    changes.added.push((service.name.clone(), address));
                }
                Some(_) => {}
                None => changes.unassigned += 1,
            }
        }
        for name in before.difference(&self.visible) {
            if let Some(address) = self.by_name.get(name) {
                changes.removed.push((name.clone(), *address));
            }
        }
        changes
    }

    fn assign(&mut self, id: &ServiceId, name: &ServiceRef) -> Option<Ipv4Addr> {
        if let Some(held) = self.by_name.get(name) {
            return Some(*held);
        }
        if self.by_name.len() >= ADDRESSES_MAX {
            self.forget_invisible();
        }
        if self.by_name.len() >= ADDRESSES_MAX {
            return None;
        }
        let address = candidates(id).find(|address| usable(*address) && !self.by_address.contains_key(address))?;
        self.insert(name.clone(), address);
        Some(address)
    }

    fn insert(&mut self, name: ServiceRef, address: Ipv4Addr) {
        self.by_address.insert(address, name.clone());
        self.by_name.insert(name, address);
    }

    fn forget_invisible(&mut self) {
        self.by_name.retain(|name, _| self.visible.contains(name));
        self.by_address.retain(|_, name| self.visible.contains(name));
    }
}

/// Inside the block, and neither its first nor its last address.
fn usable(address: Ipv4Addr) -> bool {
    let offset = u32::from(address) & BLOCK_MASK;
    u32::from(address) & !BLOCK_MASK == BLOCK && offset != 0 && offset != BLOCK_MASK
}

/// Where a service looks for its address: two processes that never met mostly agree on the first.
fn candidates(id: &ServiceId) -> impl Iterator<Item = Ipv4Addr> {
    let hash = hash(id);
    let [high, low] = [(hash >> 32) as u32, hash as u32];
    // An odd stride visits every offset of a block whose size is a power of two.
    let stride = high | 1;
    (0..PROBES_MAX)
        .map(move |probe| Ipv4Addr::from(BLOCK | (low.wrapping_add(stride.wrapping_mul(probe)) & BLOCK_MASK)))
}

/// FNV-1a over the cluster's id and the names, then a mix of all bits (the finaliser of MurmurHash3). Fixed for ever,
/// unlike the standard library's hasher; nothing rests on it being hard to invert.
fn hash(id: &ServiceId) -> u64 {
    let names = [id.namespace.as_str().as_bytes(), b".", id.service.as_str().as_bytes()];
    let bytes = id.cluster.as_bytes().iter().chain(names.into_iter().flatten());
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
