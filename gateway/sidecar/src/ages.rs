//! How old what this sidecar knows of each other cluster is.
//!
//! In: the ages that the edge tells over the feed. Out: the age of a cluster's data, at any time. Never: takes a cluster
//! for fresher because the edge went away: between two words of the edge, and after its last, ages grow by the clock of
//! this process, which never steps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use federation_model::{ClusterId, LEASE_MAX};
use proto::workload;
use tokio::time::Instant;

/// Most clusters of which an age is kept.
const CLUSTERS_MAX: usize = 4_096;

/// Ages past it are as good as none: every lease is over by then. A feed does not last so long either.
const AGE_MAX: Duration = Duration::from_secs(2 * LEASE_MAX.as_secs());

/// When each other cluster was last heard, by the edge. A clone is another handle on the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<ClusterId, Instant>>>);

impl Heard {
    /// The age of a cluster's data; `None` if its edge was never heard since this process started.
    pub(crate) fn age(&self, cluster: &ClusterId) -> Option<Duration> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(cluster).copied();
        heard.map(|heard| heard.elapsed())
    }

    /// Takes what the edge said, `late` ago.
    fn take(&self, ages: &[workload::Age], late: Duration) {
        let now = Instant::now();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for told in ages.iter().take(CLUSTERS_MAX) {
            let age = Duration::from_millis(told.age_ms).saturating_add(late);
            let heard = now.checked_sub(age).filter(|_| age <= AGE_MAX);
            let (Ok(cluster), Some(heard)) = (ClusterId::try_from(&*told.cluster), heard) else { continue };
            if held.len() < CLUSTERS_MAX || held.contains_key(&cluster) {
                let last = held.entry(cluster).or_insert(heard);
                *last = heard.max(*last);
            }
        }
    }

    /// Another federation: nothing that was heard counts.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The clock of one feed's edge, by this process's clock: what was long on its way, or waited here while this process
/// was stopped, is older than it says.
#[derive(Debug, Default)]
pub(crate) struct EdgeClock {
    /// When the feed was opened there, as the quickest message so far tells it.
    opened: Option<Instant>,
}

impl EdgeClock {
    /// Takes a list of ages into `heard`.
    pub(crate) fn take(&mut self, heard: &Heard, ages: &workload::Ages) {
        let said_at = Duration::from_millis(ages.said_at_ms);
        let Some(opened) = Instant::now().checked_sub(said_at).filter(|_| said_at <= AGE_MAX) else { return };
        let first = self.opened.map_or(opened, |first| first.min(opened));
        self.opened = Some(first);
        heard.take(&ages.ages, opened - first);
    }
}

#[cfg(test)]
mod tests {
    use federation_model::Digest;
    use tokio::time::advance;

    use super::*;

    fn cluster(number: u8) -> ClusterId {
        ClusterId::from_digest(Digest([number; 32]))
    }

    fn ages(said_at_secs: u64, ages: &[(u8, u64)]) -> workload::Ages {
        let age = |(number, secs): &(u8, u64)| workload::Age {
            cluster: cluster(*number).as_bytes().to_vec(),
            age_ms: secs * 1000,
        };
        workload::Ages { ages: ages.iter().map(age).collect(), said_at_ms: said_at_secs * 1000 }
    }

    fn secs(secs: u64) -> Option<Duration> {
        Some(Duration::from_secs(secs))
    }

    /// A paused clock starts near zero, and a test looks back.
    async fn begin() -> (Heard, EdgeClock) {
        advance(Duration::from_secs(100)).await;
        Default::default()
    }

    #[tokio::test(start_paused = true)]
    async fn ages_grow_by_themselves_when_the_edge_says_nothing_more() {
        let (heard, mut clock) = begin().await;
        assert_eq!(heard.age(&cluster(1)), None);
        clock.take(&heard, &ages(0, &[(1, 3)]));
        assert_eq!((heard.age(&cluster(1)), heard.age(&cluster(2))), (secs(3), None));
        advance(Duration::from_secs(900)).await;
        assert_eq!(heard.age(&cluster(1)), secs(903));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_while_this_process_was_stopped_is_as_old_as_it_is() {
        let (heard, mut clock) = begin().await;
        clock.take(&heard, &ages(0, &[(1, 0)]));
        // Said a second later, read an hour later.
        advance(Duration::from_secs(3600)).await;
        clock.take(&heard, &ages(1, &[(1, 0)]));
        assert_eq!(heard.age(&cluster(1)), secs(3599));
        clock.take(&heard, &ages(3600, &[(1, 0)]));
        assert_eq!(heard.age(&cluster(1)), secs(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_word_never_makes_older_what_was_heard_before() {
        let (heard, mut clock) = begin().await;
        clock.take(&heard, &ages(0, &[(1, 2)]));
        // An edge that was started again has not heard of it yet, or less.
        clock.take(&heard, &ages(0, &[]));
        clock.take(&heard, &ages(0, &[(1, 50)]));
        assert_eq!(heard.age(&cluster(1)), secs(2));
        heard.forget();
        assert_eq!(heard.age(&cluster(1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nonsense_is_passed_over_and_the_table_is_bounded() {
        let (heard, mut clock) = begin().await;
        let bad = workload::Age { cluster: vec![1; 31], age_ms: 0 };
        clock.take(&heard, &workload::Ages { ages: vec![bad], said_at_ms: 0 });
        let old = workload::Age { cluster: cluster(1).as_bytes().to_vec(), age_ms: u64::MAX };
        clock.take(&heard, &workload::Ages { ages: vec![old.clone()], said_at_ms: 0 });
        clock.take(&heard, &workload::Ages { ages: vec![workload::Age { age_ms: 0, ..old }], said_at_ms: u64::MAX });
        assert_eq!(heard.age(&cluster(1)), None);
        let many = (0..5_000_u32).map(|number| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            workload::Age { cluster: id.to_vec(), age_ms: 0 }
        });
        clock.take(&heard, &workload::Ages { ages: many.collect(), said_at_ms: 0 });
        assert_eq!(heard.0.lock().expect("whole").len(), CLUSTERS_MAX);
    }
}
