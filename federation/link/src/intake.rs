//! What a member's replication stream brings, before the driver takes it: read, checked, and within its budget.
//!
//! In: envelopes as they came. Out: authentic records, and what only the driver can check, since an admission among them
//! may name its writer. Signatures are checked here, in the session's own time: sessions work beside each other and
//! beside the driver, and one that floods slows itself down. Never: decides whether a record counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use federation_model::{Authentic, Record, Snapshot};
use tokio::time::Instant;

use crate::{
    records::{Unchecked, Unfit},
    registry::lock,
};

/// Envelopes from which on checking is worth another thread: each signature costs some 50 µs.
const THREAD_FROM: usize = 16;
/// Records whose signature was found good a moment ago, at most twice as many: each neighbour brings a new one.
const RECENT_MAX: usize = 4_096;
/// Records a second that a member may send in vain, on average: held already, void, or unreadable.
const VAIN_PER_SECOND: f64 = 1_000.0;
/// How many it may send in vain at once, besides twice as many as are held here: several members bring one that was
/// away the same.
const VAIN_BURST: f64 = 10_000.0;

/// An envelope on its way to the replica.
pub(crate) enum Checked {
    Good(Authentic<Record>),
    /// Its writer is no member of the snapshot, or it founds a federation.
    Later(Box<Unchecked>),
    Bad(Unfit),
}

/// The envelopes that were found good last, so that the same bytes from another neighbour are not checked again.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Generations<Authentic<Record>>>);

impl Recent {
    fn get(&self, raw: &[u8]) -> Option<Authentic<Record>> {
        lock(&self.0).get(raw)
    }

    fn put(&self, record: &Authentic<Record>) {
        lock(&self.0).put(record.raw().clone(), record.clone());
    }
}

/// A map that forgets its older half whenever the newer one is full.
struct Generations<T> {
    newer: HashMap<Arc<[u8]>, T>,
    older: HashMap<Arc<[u8]>, T>,
}

impl<T> Default for Generations<T> {
    fn default() -> Self {
        Self { newer: HashMap::new(), older: HashMap::new() }
    }
}

impl<T: Clone> Generations<T> {
    fn get(&self, raw: &[u8]) -> Option<T> {
        self.newer.get(raw).or_else(|| self.older.get(raw)).cloned()
    }

    fn put(&mut self, raw: Arc<[u8]>, value: T) {
        if self.newer.len() >= RECENT_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(raw, value);
    }
}

/// Checks what can be checked by the members of a snapshot; the order stays.
pub(crate) async fn check(
    envelopes: Vec<Vec<u8>>,
    snapshot: Option<Arc<Snapshot>>,
    recent: &Arc<Recent>,
) -> Vec<Checked> {
    let few = envelopes.len() < THREAD_FROM;
    let recent = recent.clone();
    let all = move || envelopes.into_iter().map(|raw| one(raw, snapshot.as_deref(), &recent)).collect();
    if few {
        return all();
    }
    // A task that panicked or was cancelled brings nothing, and the peer is asked again.
    tokio::task::spawn_blocking(all).await.unwrap_or_default()
}

fn one(raw: Vec<u8>, snapshot: Option<&Snapshot>, recent: &Recent) -> Checked {
    if let Some(record) = recent.get(&raw) {
        return Checked::Good(record);
    }
    let unchecked = match Unchecked::read(raw.into()) {
        Ok(unchecked) => unchecked,
        Err(unfit) => return Checked::Bad(unfit),
    };
    let writer = snapshot.and_then(|held| held.members.get(&unchecked.writer()));
    match writer.map(|member| member.replication_key).filter(|_| !unchecked.founds()) {
        Some(key) => match unchecked.check(None, |_| Some(key)) {
            Ok(record) => {
                recent.put(&record);
                Checked::Good(record)
            }
            Err(unfit) => Checked::Bad(unfit),
        },
        None => Checked::Later(Box::new(unchecked)),
    }
}

/// How many records a member may still send in vain.
pub(crate) struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { left: f64::MAX, at: Instant::now() }
    }

    /// Takes off what came in vain; says whether that was too much. `held`: records held here.
    pub(crate) fn exceeded(&mut self, vain: usize, held: usize) -> bool {
        let most = VAIN_BURST + 2.0 * held as f64;
        let earned = self.at.elapsed().as_secs_f64() * VAIN_PER_SECOND;
        self.at = Instant::now();
        self.left = (self.left + earned).min(most) - vain as f64;
        self.left < 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_spent_at_once_or_over_time() {
        let mut budget = Budget::new();
        assert!(!budget.exceeded(10_200, 100), "a burst, and twice what is held");
        assert!(budget.exceeded(1, 100));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!budget.exceeded(9_000, 100));
        assert!(budget.exceeded(2_000, 100));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(!budget.exceeded(10_200, 100), "idling earns no more than one burst");
        assert!(budget.exceeded(1, 100));
    }

    #[tokio::test]
    async fn bytes_found_good_are_good_again_and_no_others_are() {
        let east = crate::testing::Cluster::start("east").await;
        east.allow("web").await;
        let snapshot = east.link.snapshot().borrow().clone();
        let raw: Vec<Vec<u8>> =
            east.link.records().borrow().iter().skip(1).map(|record| record.raw().to_vec()).collect();
        let recent = Arc::new(Recent::default());
        let good = |checked: &[Checked]| checked.iter().filter(|one| matches!(one, Checked::Good(_))).count();
        assert_eq!(good(&check(raw.clone(), None, &recent).await), 0, "nobody is known yet");
        assert_eq!(good(&check(raw.clone(), snapshot.clone(), &recent).await), raw.len());
        assert_eq!(good(&check(raw.clone(), None, &recent).await), raw.len(), "now the bytes are");
        for at in 0..raw[0].len() {
            let mut altered = raw[0].clone();
            altered[at] ^= 1;
            assert_eq!(good(&check(vec![altered], snapshot.clone(), &recent).await), 0, "byte {at}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = Generations::default();
        let raw = |number: usize| Arc::from(number.to_be_bytes().as_slice());
        for number in 0..3 * RECENT_MAX + 1 {
            recent.put(raw(number), number);
            assert_eq!(recent.get(&raw(number)), Some(number));
            assert!(recent.newer.len() + recent.older.len() <= 2 * RECENT_MAX);
        }
        assert_eq!(recent.get(&raw(0)), None);
    }
}
