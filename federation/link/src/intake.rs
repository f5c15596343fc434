//! What a member's replication stream brings, before the driver takes it: read, checked, and within its budget.
//!
//! In: envelopes as they came. Out: authentic records, and what only the driver can check, since an admission among them
//! may name its writer. Signatures are checked here, in the session's own time: sessions work beside each other and
//! beside the driver, and one that floods slows itself down. Never: decides whether a record counts.

use std::sync::Arc;

use federation_model::{Authentic, Record, Snapshot};
use tokio::time::Instant;

use crate::records::{Unchecked, Unfit};

/// Envelopes from which on checking is worth another thread: each signature costs some 50 µs.
const THREAD_FROM: usize = 16;
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

/// Checks what can be checked by the members of a snapshot; the order stays.
pub(crate) async fn check(envelopes: Vec<Vec<u8>>, snapshot: Option<Arc<Snapshot>>) -> Vec<Checked> {
    let few = envelopes.len() < THREAD_FROM;
    let all = move || envelopes.into_iter().map(|raw| one(raw, snapshot.as_deref())).collect();
    if few {
        return all();
    }
    // A task that panicked or was cancelled brings nothing, and the peer is asked again.
    tokio::task::spawn_blocking(all).await.unwrap_or_default()
}

fn one(raw: Vec<u8>, snapshot: Option<&Snapshot>) -> Checked {
    let unchecked = match Unchecked::read(raw.into()) {
        Ok(unchecked) => unchecked,
        Err(unfit) => return Checked::Bad(unfit),
    };
    let writer = snapshot.and_then(|held| held.members.get(&unchecked.writer()));
    match writer.map(|member| member.replication_key).filter(|_| !unchecked.founds()) {
        Some(key) => unchecked.check(None, |_| Some(key)).map_or_else(Checked::Bad, Checked::Good),
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
}
