//! How old what this edge knows of the others is: told to metrics and to `/readyz` in words, once a second.
//!
//! In: the age of each member's data, the services of the snapshot. Out: gauges and a few sentences. Never: decides
//! anything; the proxy asks for ages itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ::metrics::gauge;
use federation_identity::now;
use federation_link::Link;
use federation_model::{ClusterId, Snapshot, Staleness, WhenStale};
use gateway_admin::Readiness;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::{DATA_AGE, LEASE_LEFT, SERVICES_STALE, STATIC_SINCE};

/// Age from which a member counts as silent here: three times the interval at which it says something.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most silent members that `/readyz` names.
const NAMED_MAX: usize = 16;
const POLICIES: [WhenStale; 3] = [WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny];

/// Looks and tells until `stop`.
pub(crate) async fn watch(link: Link, readiness: Readiness, stop: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut snapshots = link.snapshot();
    let mut leases = Leases::default();
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(snapshot) = snapshots.borrow_and_update().clone() else { continue };
        leases.follow(&snapshot);
        let seen = look(&snapshot, &leases, |member| link.data_age(member));
        seen.publish(&mut told);
        readiness.note("freshness", seen.words());
    }
}

/// How many services of each other member have which policy; read anew only when a snapshot came.
#[derive(Default)]
struct Leases {
    revision: u64,
    counts: BTreeMap<(ClusterId, WhenStale, Duration), usize>,
}

impl Leases {
    fn follow(&mut self, snapshot: &Snapshot) {
        if self.revision == snapshot.revision {
            return;
        }
        (self.revision, self.counts) = (snapshot.revision, BTreeMap::new());
        for service in snapshot.catalog.iter().filter(|service| service.id.cluster != snapshot.own) {
            let Staleness { when, lease } = service.staleness;
            *self.counts.entry((service.id.cluster, when, lease)).or_default() += 1;
        }
    }
}

/// What was found at one look.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Name and age of each other active member, by name.
    members: Vec<(String, Option<Duration>)>,
    /// What is left of the lease that ends first; `None` without any service of others.
    lease_left: Option<Duration>,
    /// Services past their lease, in the order of [`POLICIES`].
    stale: [usize; 3],
}

fn look(snapshot: &Snapshot, leases: &Leases, age: impl Fn(&ClusterId) -> Option<Duration>) -> Seen {
    let mut seen = Seen::default();
    for member in snapshot.members.present().filter(|held| held.state.is_active() && held.id != snapshot.own) {
        seen.members.push((member.name.to_string(), age(&member.id)));
    }
    seen.members.sort();
    for ((cluster, when, lease), count) in &leases.counts {
        let (age, policy) = (age(cluster), Staleness { when: *when, lease: *lease });
        let left = policy.left(age);
        seen.lease_left = Some(seen.lease_left.map_or(left, |least| least.min(left)));
        if policy.is_over(age) {
            POLICIES.iter().zip(&mut seen.stale).filter(|(held, _)| *held == when).for_each(|(_, sum)| *sum += count);
        }
    }
    seen
}

impl Seen {
    /// `told` are the members that have gauges: of one that is gone nothing is said any more.
    fn publish(&self, told: &mut BTreeSet<String>) {
        let wall = Duration::from_millis(now().as_millis());
        let present: BTreeSet<String> = self.members.iter().map(|(name, _)| name.clone()).collect();
        for gone in told.difference(&present) {
            gauge!(DATA_AGE, "cluster" => gone.clone()).set(f64::NAN);
            gauge!(STATIC_SINCE, "cluster" => gone.clone()).set(f64::NAN);
        }
        *told = present;
        for (name, age) in &self.members {
            let Some(age) = age else { continue };
            let since = if *age > SILENT_AFTER { wall.saturating_sub(*age) } else { Duration::ZERO };
            gauge!(DATA_AGE, "cluster" => name.clone()).set(age.as_secs_f64());
            gauge!(STATIC_SINCE, "cluster" => name.clone()).set(since.as_secs_f64());
        }
        if let Some(left) = self.lease_left {
            gauge!(LEASE_LEFT).set(left.as_secs_f64());
        }
        for (policy, count) in POLICIES.iter().zip(self.stale) {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            gauge!(SERVICES_STALE, "policy" => policy.as_str()).set(count as f64);
        }
    }

    /// For people: nothing while all is fresh.
    fn words(&self) -> Vec<String> {
        let silent = self.members.iter().filter(|(_, age)| age.is_none_or(|age| age > SILENT_AFTER));
        let mut lines: Vec<String> = silent
            .take(NAMED_MAX)
            .map(|(name, age)| match age {
                Some(age) => format!("{name}: static since {} s", age.as_secs()),
                None => format!("{name}: not heard since this edge started"),
            })
            .collect();
        for (policy, count) in POLICIES.iter().zip(self.stale).filter(|(_, count)| *count > 0) {
            lines.push(format!("{count} services of others are past their lease ({policy})"));
        }
        if let Some(left) = self.lease_left.filter(|_| !lines.is_empty()) {
            lines.push(format!("oldest lease: {} s left", left.as_secs()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Option<Duration> {
        Some(Duration::from_secs(secs))
    }

    #[test]
    fn nothing_is_said_while_everything_is_fresh() {
        let members = vec![("east".to_owned(), secs(1)), ("west".to_owned(), secs(3))];
        let seen = Seen { members, lease_left: secs(897), stale: [0; 3] };
        assert!(seen.words().is_empty());
    }

    #[test]
    fn silence_is_told_in_words_with_what_it_means_for_services() {
        let members = vec![("east".to_owned(), secs(912)), ("north".to_owned(), None), ("west".to_owned(), secs(0))];
        let seen = Seen { members, lease_left: secs(0), stale: [4, 0, 2] };
        let wanted = [
            "east: static since 912 s",
            "north: not heard since this edge started",
            "4 services of others are past their lease (keep)",
            "2 services of others are past their lease (deny)",
            "oldest lease: 0 s left",
        ];
        assert_eq!(seen.words(), wanted);
    }

    #[test]
    fn no_more_members_are_named_than_a_person_reads() {
        let members = (0..100).map(|number| (format!("c{number}"), None)).collect();
        assert_eq!(Seen { members, ..Seen::default() }.words().len(), NAMED_MAX);
    }
}
