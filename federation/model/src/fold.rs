//! The fold: from records to snapshots, at a cost that follows what changed.
//!
//! In: records as they are taken, in order of arrival, and as a fork makes them void. Out: a [`Snapshot`] of what is held
//! whenever one is asked for. Never: goes through all records, except when the roll comes out differently: who is a
//! member, under which name, with which say. Two folds that hold the same records in one order say the same, however
//! they came to hold them.

mod bundles;
mod services;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    Audience, Authentic, Authorizer, Body, Bundles, ClusterId, FederationId, Members, Record, RecordId, RecordKey,
    ServiceCatalog, ServiceId, Snapshot,
    files::{Filed, Files},
    roll::{self, Roll},
};

/// Records filed for snapshots of one cluster's view, and the last one made.
#[derive(Clone, Debug)]
pub struct Fold {
    own: ClusterId,
    federation: FederationId,
    /// By arrival: what the roll and the bundles are read from.
    papers: BTreeMap<u64, Authentic<Record>>,
    files: Files,
    /// Of which kind, what is critical and not understood.
    opaque: BTreeMap<RecordId, u32>,
    /// Whom this cluster knows to be told of a service.
    audiences: HashMap<ServiceId, BTreeSet<Audience>>,
    roll: Roll,
    stale: Stale,
    members: Arc<Members>,
    bundles: Arc<Bundles>,
    catalog: ServiceCatalog,
    authorizer: Authorizer,
}

/// What of the last snapshot no longer holds.
#[derive(Clone, Debug, Default)]
struct Stale {
    /// The roll was not called since a paper came or went.
    roll: bool,
    members: bool,
    bundles: bool,
    opaque: bool,
    /// Everything: the roll came out differently.
    law: bool,
    keys: HashSet<RecordKey>,
}

impl Fold {
    pub fn new(own: ClusterId, federation: FederationId) -> Self {
        Self {
            own,
            federation,
            papers: BTreeMap::new(),
            files: Files::default(),
            opaque: BTreeMap::new(),
            audiences: HashMap::new(),
            roll: Roll::default(),
            stale: Stale::default(),
            members: Arc::default(),
            bundles: Arc::default(),
            catalog: ServiceCatalog::default(),
            authorizer: Authorizer::default(),
        }
    }

    /// Takes a record, the `arrival`-th: of two admissions of one name the one with the lower number came first.
    ///
    /// One of another federation is passed over. What lies behind a fork must not be handed in.
    pub fn take(&mut self, arrival: u64, record: &Authentic<Record>) {
        let value = record.value();
        if value.federation != self.federation && !matches!(value.body, Body::Founding(_)) {
            return;
        }
        self.touch(value);
        if is_paper(value) {
            self.papers.insert(arrival, record.clone());
        }
        if let Body::Unknown { kind, critical: true } = value.body {
            self.opaque.insert(record.id(), kind);
        }
        if let Some(key) = self.files.take(record.id(), record.shared(), &self.roll) {
            if let (RecordKey::Service { audience, .. }, Some(id)) = (&key, services::id(value)) {
                self.audiences.entry(id).or_default().insert(*audience);
            }
            self.mark(key);
        }
    }

    /// Forgets a record that a fork made void, by the number with which it was taken.
    pub fn forget(&mut self, arrival: u64, record: &Authentic<Record>) {
        self.touch(record.value());
        self.papers.remove(&arrival);
        self.opaque.remove(&record.id());
        if let Some(key) = self.files.forget(&record.id(), record.value(), &self.roll) {
            self.mark(key);
        }
    }

    /// Notes what a record that comes or goes makes stale.
    fn touch(&mut self, record: &Record) {
        self.stale.opaque |= matches!(record.body, Body::Unknown { critical: true, .. })
            || record.replaces.iter().any(|id| self.opaque.contains_key(id));
        if is_paper(record) {
            self.stale.bundles = true;
            self.stale.roll |= !is_about_keys(record);
        }
    }

    fn mark(&mut self, key: RecordKey) {
        // Everything is made anew then.
        if !self.stale.law && matches!(key, RecordKey::Intention(_) | RecordKey::Service { .. }) {
            self.stale.keys.insert(key);
        }
    }

    /// Calls the roll, if a paper came or went since.
    pub(crate) fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale.roll) {
            return;
        }
        let roll = roll::call(self.own, self.federation, self.papers.values());
        if !roll.agrees(&self.roll) {
            self.files.recount(&roll);
            self.stale.law = true;
            self.stale.keys = HashSet::new();
        }
        self.roll = roll;
        self.stale.members = true;
    }

    /// The members as the roll was last called.
    pub(crate) fn roll(&self) -> &Roll {
        &self.roll
    }

    /// What stands under a key.
    pub(crate) fn standing(&self, key: &RecordKey) -> &[Filed] {
        self.files.standing(key)
    }

    /// Papers in order of arrival, each with its number.
    pub(crate) fn papers(&self) -> impl Iterator<Item = &Authentic<Record>> {
        self.papers.values()
    }

    /// A snapshot of all that is held; `None` while the own cluster's admission is not among it: no snapshot means deny.
    pub fn snapshot(&mut self, revision: u64) -> Option<Snapshot> {
        self.refresh();
        let member = self.roll.members.get(&self.own)?;
        let (own_name, own_trust_domain) = (member.name.clone(), member.trust_domain.clone());
        self.make();
        Some(Snapshot {
            revision,
            own: self.own,
            own_name,
            own_trust_domain,
            own_state: self.roll.own_state,
            federation: self.federation,
            members: Arc::clone(&self.members),
            bundles: Arc::clone(&self.bundles),
            catalog: self.catalog.clone(),
            authorizer: self.authorizer.clone().at(self.own, revision),
            held: self.roll.held.clone(),
        })
    }

    /// Makes anew what is stale.
    fn make(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        if stale.members {
            self.members = Arc::new(self.roll.members.clone());
            self.authorizer.set_members(Arc::clone(&self.members));
        }
        if stale.bundles {
            self.bundles = Arc::new(bundles::newest(self.papers.values(), &self.roll));
        }
        if stale.law {
            self.authorizer = Authorizer::new(Arc::clone(&self.members));
            self.catalog = ServiceCatalog::default();
        }
        if stale.law || stale.opaque {
            let (files, roll) = (&self.files, &self.roll);
            let stands = |id: &RecordId| roll.counts(id) && !files.is_replaced(id, roll);
            let opaque = self.opaque.iter().filter(|(id, _)| stands(id));
            self.authorizer.set_opaque(opaque.map(|(id, kind)| (*id, *kind)));
        }
        if stale.law {
            let Self { files, authorizer, .. } = self;
            for key in files.keys() {
                if let RecordKey::Intention(intention) = key {
                    authorizer.rule(intention, files.standing(key));
                }
            }
            let services: Vec<ServiceId> = self.audiences.keys().cloned().collect();
            services.iter().for_each(|id| self.show(id));
            return;
        }
        for key in &stale.keys {
            match key {
                RecordKey::Intention(intention) => self.authorizer.rule(intention, self.files.standing(key)),
                RecordKey::Service { writer, namespace, service, .. } => {
                    let (service, namespace) = (service.clone(), namespace.clone());
                    self.show(&ServiceId { service, namespace, cluster: *writer });
                }
                _ => {}
            }
        }
    }
}

/// Whether a record is about the federation itself: its members, what they may and by which roots they are known.
fn is_paper(record: &Record) -> bool {
    roll::is_paper(record) || is_about_keys(record)
}

/// Whether a record says by which keys its writer's own identities are believed, or are not.
fn is_about_keys(record: &Record) -> bool {
    matches!(record.body, Body::Bundle(_) | Body::Revocation(_)) && record.audience == Audience::Law
}
