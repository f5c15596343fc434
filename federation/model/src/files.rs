//! Records under their keys, and what is left of each once every replacement is taken into account.
//!
//! In: records in any order, as they are taken and as a fork makes them void. Out: per key, the records that still
//! stand. Never: goes through more than what stands of one key when a record comes, however often the key was written.
//!
//! A record that nothing is left of is kept aside: what it replaces stays replaced. A replacement that comes before what
//! it replaces waits for it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    Audience, Body, ClusterId, Digest, Members, Record, RecordId, RecordKey, RuleState,
    roll::Roll,
    standing::{self, Capacities, Version},
};

/// A record under its key.
#[derive(Clone, Debug)]
pub(crate) struct Filed {
    pub(crate) record: Arc<Record>,
    pub(crate) digest: Digest,
    /// The capacities of its writer in which nobody replaced it: none or all for what is no intention.
    pub(crate) left: Capacities,
}

impl Filed {
    fn new(digest: Digest, record: Arc<Record>) -> Self {
        Self { record, digest, left: Capacities::ALL }
    }

    pub(crate) fn id(&self) -> RecordId {
        let Record { writer, audience, epoch, seq, .. } = *self.record;
        RecordId { writer, audience, epoch, seq, digest: self.digest }
    }

    fn is(&self, id: &RecordId) -> bool {
        self.digest == id.digest && self.id() == *id
    }

    /// What it says of its key; `None` for what is no intention.
    pub(crate) fn state(&self) -> Option<RuleState> {
        match &self.record.body {
            Body::Intention(intention) => Some(intention.state),
            _ => None,
        }
    }

    pub(crate) fn version(&self) -> Option<Version> {
        Some(Version { id: self.id(), state: self.state()? })
    }

    fn stands(&self, key: &RecordKey, members: &Members) -> bool {
        match (key, self.version()) {
            (RecordKey::Intention(key), Some(version)) => standing::is_live(&version, self.left, key, members),
            _ => self.left == Capacities::ALL,
        }
    }
}

/// All records of one key.
#[derive(Clone, Debug, Default)]
struct File {
    standing: Vec<Filed>,
    /// Replaced, or of a writer whose word does not count.
    fallen: Vec<Filed>,
}

impl File {
    fn take(&mut self, key: &RecordKey, mut new: Filed, early: &mut Early, roll: &Roll) {
        let id = new.id();
        if !roll.counts(&id) {
            self.fallen.reserve_exact(usize::from(self.fallen.is_empty()));
            self.fallen.push(new);
            return;
        }
        let members = &roll.members;
        for target in &new.record.replaces {
            match self.standing.iter_mut().rev().find(|held| held.is(target)) {
                Some(held) => held.left = held.left & !taken(id.writer, held, key, members),
                None => wait(early, target, id, Some(key.clone())),
            }
        }
        let waiting = early.get(&id).into_iter().flatten();
        for (by, _) in waiting.filter(|(by, under)| under.as_ref() == Some(key) && roll.counts(by)) {
            new.left = new.left & !taken(by.writer, &new, key, members);
        }
        // Most keys are written once.
        self.standing.reserve_exact(usize::from(self.standing.is_empty()));
        self.standing.push(new);
        self.fallen.extend(self.standing.extract_if(.., |held| !held.stands(key, members)));
    }
}

/// Every record, by its key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    files: HashMap<RecordKey, File>,
    /// By what is replaced: replacements of what did not stand under the same key when they came, with their own key.
    early: Early,
}

type Early = HashMap<RecordId, BTreeMap<RecordId, Option<RecordKey>>>;

impl Files {
    /// Files a record. Its key, unless it has none under which it could be replaced.
    pub(crate) fn take(&mut self, id: RecordId, record: Arc<Record>, roll: &Roll) -> Option<RecordKey> {
        let key = has_key(&record).then(|| record.key(id.digest));
        match &key {
            Some(key) => self.file(key, Filed::new(id.digest, record), roll),
            None => record.replaces.iter().for_each(|target| wait(&mut self.early, target, id, None)),
        }
        key
    }

    fn file(&mut self, key: &RecordKey, new: Filed, roll: &Roll) {
        let Self { files, early } = self;
        match files.get_mut(key) {
            Some(file) => file.take(key, new, early, roll),
            None => files.entry(key.clone()).or_default().take(key, new, early, roll),
        }
    }

    fn wait_no_more(&mut self, record: &Record, by: &RecordId) {
        for target in &record.replaces {
            if let Entry::Occupied(mut waiting) = self.early.entry(*target) {
                waiting.get_mut().remove(by);
                if waiting.get().is_empty() {
                    waiting.remove();
                }
            }
        }
    }

    /// Forgets a record, as if it had never come. The key that this changes.
    pub(crate) fn forget(&mut self, id: &RecordId, record: &Record, roll: &Roll) -> Option<RecordKey> {
        self.wait_no_more(record, id);
        let key = has_key(record).then(|| record.key(id.digest))?;
        if let Some(File { standing, fallen }) = self.files.remove(&key) {
            let held: Vec<Filed> = standing.into_iter().chain(fallen).filter(|held| !held.is(id)).collect();
            held.iter().for_each(|held| self.wait_no_more(&held.record, &held.id()));
            held.into_iter().for_each(|held| self.file(&key, Filed::new(held.digest, held.record), roll));
        }
        Some(key)
    }

    /// Judges every replacement anew: who counts, or who makes law, is no longer the same.
    pub(crate) fn recount(&mut self, roll: &Roll) {
        let Self { files, early } = self;
        for waiting in early.values_mut() {
            waiting.retain(|_, under| under.is_none());
        }
        early.retain(|_, waiting| !waiting.is_empty());
        for (key, file) in files {
            let mut held = std::mem::take(&mut file.fallen);
            held.append(&mut file.standing);
            held.into_iter().for_each(|held| file.take(key, Filed::new(held.digest, held.record), early, roll));
        }
    }

    /// What stands under a key, in no order that means anything.
    pub(crate) fn standing(&self, key: &RecordKey) -> &[Filed] {
        self.files.get(key).map_or(&[], |file| &file.standing)
    }

    /// Every key under which something is held.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &RecordKey> {
        self.files.keys()
    }

    /// Whether the writer of `id`, which has no key, replaced it.
    pub(crate) fn is_replaced(&self, id: &RecordId, roll: &Roll) -> bool {
        let by = self.early.get(id).into_iter().flat_map(BTreeMap::keys);
        by.into_iter().any(|by| by.writer == id.writer && roll.counts(by))
    }
}

/// Notes that what `by` says, under that key, replaces `target`.
fn wait(early: &mut Early, target: &RecordId, by: RecordId, under: Option<RecordKey>) {
    early.entry(*target).or_default().insert(by, under);
}

/// The capacities that a replacement by `writer` takes from `old`.
fn taken(writer: ClusterId, old: &Filed, key: &RecordKey, members: &Members) -> Capacities {
    match (key, old.version()) {
        (RecordKey::Intention(key), Some(old)) => standing::taken(writer, &old, key, members),
        _ if writer == old.record.writer => Capacities::ALL,
        _ => Capacities::NONE,
    }
}

/// Whether a record is filed: what cannot be understood, or is said in the wrong log, is not.
fn has_key(record: &Record) -> bool {
    match record.body {
        Body::Unknown { .. } => false,
        Body::Service(_) | Body::ServiceGone { .. } => true,
        Body::Stance { .. } => record.audience == Audience::Member(record.writer),
        _ => record.audience == Audience::Law,
    }
}
