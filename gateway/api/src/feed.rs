//! What of the law concerns one workload.
//!
//! In: every record that the cluster holds, in order of arrival. Out: for one sidecar, which signed originals to add to
//! what it holds and which to take away. Never: changes a record, or guesses whether one counts; the sidecar's fold does
//! that. Whatever could matter to the workload is in: all versions of a key, replaced ones too, and both records of a
//! fork, since that voids what follows it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use federation_model::{
    AccountRef, Audience, Authentic, Body, ClusterId, Digest, Intention, NamespaceName, Record, Records, ServiceName,
    SourcePattern, SpiffeId,
};

type Place = (ClusterId, Audience, u64, u64);

/// Whom a feed is for.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) own: ClusterId,
    pub(crate) id: SpiffeId,
    pub(crate) account: AccountRef,
    /// Services of the own cluster that it serves or may serve.
    pub(crate) serves: BTreeSet<(NamespaceName, ServiceName)>,
}

impl Scope {
    fn concerns(&self, record: &Record) -> bool {
        match &record.body {
            Body::Founding(_)
            | Body::Admission(_)
            | Body::Terms(_)
            | Body::Lawmaker { .. }
            | Body::Eviction(_)
            | Body::Bundle(_)
            | Body::Revocation(_)
            // Its scope cannot be read, so it may be ours.
            | Body::Unknown { .. } => true,
            // Whom this cluster shut out or let in; what others decided for themselves is nothing to it.
            Body::Stance { .. } => record.writer == self.own,
            // What is not told to this cluster never came here; what it told one other member is not for its workloads.
            Body::Service(_) | Body::ServiceGone { .. } => match record.audience {
                Audience::Member(id) => id == self.own,
                Audience::All | Audience::Law => true,
            },
            Body::Intention(intention) => self.may_call(intention) || self.may_serve(intention),
        }
    }

    fn may_call(&self, intention: &Intention) -> bool {
        match &intention.key.source {
            SourcePattern::Spiffe(id) => *id == self.id,
            SourcePattern::Account { account, namespace, cluster } => {
                cluster.matches(&self.own)
                    && namespace.matches(&self.account.namespace)
                    && account.matches(&self.account.account)
            }
        }
    }

    fn may_serve(&self, intention: &Intention) -> bool {
        let destination = &intention.key.destination;
        destination.cluster.matches(&self.own)
            && self.serves.iter().any(|(namespace, service)| {
                destination.namespace.matches(namespace) && destination.service.matches(service)
            })
    }

    /// Widens the scope by a service that, by this record, the account may serve. Whether that changed it.
    fn learn(&mut self, record: &Record) -> bool {
        let Body::Service(export) = &record.body else { return false };
        let own_name = self.account.namespace == export.namespace && self.account.account == (&export.service).into();
        let may = if export.accounts.is_empty() { own_name } else { export.accounts.contains(&self.account) };
        if record.writer != self.own || !may {
            return false;
        }
        self.serves.insert((export.namespace.clone(), export.service.clone()))
    }
}

/// Records at one place with different contents, found once for all feeds.
#[derive(Default)]
pub(crate) struct Forks(Mutex<ForkTable>);

#[derive(Default)]
struct ForkTable {
    seen: Seen,
    places: HashMap<Place, Digest>,
    forked: Arc<HashSet<Digest>>,
}

impl Forks {
    /// Digests of every record that shares its place with another.
    fn of(&self, records: &Records) -> Arc<HashSet<Digest>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &mut *table;
        let Some(from) = table.seen.continues(records) else {
            // Another feed saw a newer publication already: what it found holds for this one too.
            if table.seen.is_newer_than(records) {
                return Arc::clone(&table.forked);
            }
            *table = ForkTable::default();
            return table.take(records, 0);
        };
        table.take(records, from)
    }
}

impl ForkTable {
    fn take(&mut self, records: &Records, from: u64) -> Arc<HashSet<Digest>> {
        let mut found = Vec::new();
        for record in records.since(from) {
            let id = record.id();
            let held = *self.places.entry((id.writer, id.audience, id.epoch, id.seq)).or_insert(id.digest);
            if held != id.digest {
                found.extend([held, id.digest]);
            }
        }
        if !found.is_empty() {
            Arc::make_mut(&mut self.forked).extend(found);
        }
        self.seen = Seen::of(records);
        Arc::clone(&self.forked)
    }
}

/// How far a list was read.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Arrival of what comes next.
    next: u64,
    /// The record before that.
    last: Option<Digest>,
    removed: u64,
}

impl Seen {
    fn of(records: &Records) -> Self {
        let next = records.next();
        Self { next, last: before(records, next), removed: records.removed() }
    }

    /// Where to read on, if `records` is the same list, perhaps longer, and nothing went from it.
    fn continues(&self, records: &Records) -> Option<u64> {
        let same = before(records, self.next) == self.last && records.removed() == self.removed;
        (same && self.next <= records.next()).then_some(self.next)
    }

    fn is_newer_than(&self, records: &Records) -> bool {
        self.next > records.next()
    }
}

/// The record that came right before the `next`-th.
fn before(records: &Records, next: u64) -> Option<Digest> {
    records.get(next.checked_sub(1)?).map(Authentic::digest)
}

/// What to tell a sidecar.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// Signed envelopes, in order of arrival: admissions before what they vouch for.
    pub(crate) added: Vec<Arc<[u8]>>,
    pub(crate) removed: Vec<Digest>,
}

/// What one sidecar holds.
pub(crate) struct Feed {
    scope: Scope,
    held: HashSet<Digest>,
    seen: Seen,
    /// Forked records when they were last looked at.
    forked: usize,
}

impl Feed {
    /// `held`: what the sidecar says that it holds from before.
    pub(crate) fn new(scope: Scope, held: HashSet<Digest>) -> Self {
        Self { scope, held, seen: Seen::default(), forked: 0 }
    }

    /// What changed for this sidecar since the last call. Reads only what is new, unless the scope became wider.
    pub(crate) fn update(&mut self, records: &Records, forks: &Forks) -> Update {
        let forked = forks.of(records);
        let from = self.seen.continues(records).filter(|_| self.seen.next > 0 && forked.len() == self.forked);
        let new = from.unwrap_or(0);
        let mut widened = false;
        for record in records.since(new) {
            widened |= self.scope.learn(record.value());
        }
        let whole = from.is_none() || widened;
        let wanted =
            |record: &&Authentic<Record>| self.scope.concerns(record.value()) || forked.contains(&record.digest());
        let mut update = Update::default();
        if whole {
            let keep: HashSet<Digest> = records.iter().filter(wanted).map(Authentic::digest).collect();
            update.removed = self.held.difference(&keep).copied().collect();
            update.added = records
                .iter()
                .filter(|record| keep.contains(&record.digest()) && !self.held.contains(&record.digest()))
                .map(|record| Arc::clone(record.raw()))
                .collect();
            self.held = keep;
        } else {
            let fresh: Vec<_> = records.since(new).filter(wanted).collect();
            for record in fresh {
                if self.held.insert(record.digest()) {
                    update.added.push(Arc::clone(record.raw()));
                }
            }
        }
        self.seen = Seen::of(records);
        self.forked = forked.len();
        update
    }
}

#[cfg(test)]
mod tests;
