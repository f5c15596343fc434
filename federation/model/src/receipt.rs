//! Receipts: what each member says it enforces, signed by it, so that a writer sees where its rules are in force.
//!
//! In: authentic receipts, in any order. Out: how far each member enforces each public log, who has not confirmed a
//! record, and how old a member's data is. Never: a record, and nothing is judged by one: a member that lies about what
//! it enforces deceives its own federation's operators and nobody's gateway. The age of its data only measures the leases
//! of its own services.
//!
//! Each statement in a receipt ("I enforce this log as far as that") only ever grows, so receipts merge in any order and
//! one that is lost costs nothing but time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{ClusterId, FederationId, RecordId, Timestamp};

/// Most statements in one receipt.
pub const RECEIPT_LOGS_MAX: usize = 256;
/// Most neighbours that a receipt may name.
pub const RECEIPT_NEIGHBOURS_MAX: usize = 256;
/// Most members of which receipts are kept.
pub const RECEIPT_MEMBERS_MAX: usize = 4_096;
/// Most receipts of one member that are kept for those who come later: a whole one, and what came since.
pub(crate) const RECEIPTS_KEPT_MAX: usize = 48;

/// One member's word on how far it enforces public logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub federation: FederationId,
    pub member: ClusterId,
    /// Grows with each receipt of a member, restarts included.
    pub number: u64,
    /// By the member's clock: for people.
    pub at: Timestamp,
    /// Whether it begins a complete account; if not, it adds to what was said before.
    pub whole: bool,
    /// Last record enforced, by writer and epoch of its public log.
    pub law: BTreeMap<(ClusterId, u64), u64>,
    /// Members with which it has a session, and the round trip to each: they need nobody to pass this on to them, and
    /// it can carry tunnels to them.
    pub neighbours: BTreeMap<ClusterId, Duration>,
}

/// A receipt whose signature was checked, with the bytes to pass on.
#[derive(Clone, Debug)]
pub struct SignedReceipt {
    pub receipt: Receipt,
    pub raw: Arc<[u8]>,
}

/// What is known of one member.
#[derive(Clone, Debug, Default)]
struct Account {
    number: u64,
    law: BTreeMap<(ClusterId, u64), u64>,
    neighbours: BTreeMap<ClusterId, Duration>,
    /// The last whole receipt and those after it.
    raw: Vec<Arc<[u8]>>,
    /// When the newest receipt was heard.
    heard: Timestamp,
    /// When this cluster last held all that the member had said by then.
    complete: Option<Timestamp>,
}

/// Who has confirmed a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforcement {
    pub by: Vec<ClusterId>,
    /// Who has not, and how old what is known of it is; `None` if it never said anything.
    pub behind: Vec<(ClusterId, Option<Duration>)>,
}

/// What every member enforces, as far as this one heard. Times are of any clock that never steps.
#[derive(Clone, Debug, Default)]
pub struct Receipts(BTreeMap<ClusterId, Account>);

impl Receipts {
    /// Takes a receipt unless one as new is held; says whether it was new.
    pub fn take(&mut self, signed: &SignedReceipt, now: Timestamp) -> bool {
        let SignedReceipt { receipt, raw } = signed;
        if !self.0.contains_key(&receipt.member) && self.0.len() >= RECEIPT_MEMBERS_MAX {
            return false;
        }
        let account = self.0.entry(receipt.member).or_default();
        if receipt.number <= account.number {
            return false;
        }
        (account.number, account.heard) = (receipt.number, now);
        if receipt.whole {
            account.raw.clear();
            account.neighbours.clone_from(&receipt.neighbours);
        }
        // What does not follow a whole one is of no use to those who come later, and neither is more than they need.
        if receipt.whole || (!account.raw.is_empty() && account.raw.len() < RECEIPTS_KEPT_MAX) {
            account.raw.push(raw.clone());
        }
        for (log, seq) in &receipt.law {
            let held = account.law.entry(*log).or_default();
            *held = (*held).max(*seq);
        }
        true
    }

    /// The newest number of a member; 0 if it never said anything.
    pub fn number(&self, member: &ClusterId) -> u64 {
        self.0.get(member).map_or(0, |account| account.number)
    }

    /// Whether a receipt of `member` has to be passed on to `to`.
    pub fn needs(&self, to: &ClusterId, member: &ClusterId) -> bool {
        to != member && self.0.get(member).is_none_or(|account| !account.neighbours.contains_key(to))
    }

    /// The round trip between two members, if the first said that it has a session with the second.
    pub fn round_trip(&self, from: &ClusterId, to: &ClusterId) -> Option<Duration> {
        self.0.get(from)?.neighbours.get(to).copied()
    }

    /// All that somebody who knows nothing yet needs, oldest first of each member.
    pub fn all(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        self.0.values().flat_map(|account| &account.raw)
    }

    /// Notes which members' words this cluster holds whole: `holds` says how far it has a public log's epoch.
    pub fn refresh(&mut self, holds: impl Fn(&ClusterId, u64) -> u64) {
        for (member, account) in &mut self.0 {
            let own = account.law.range((*member, 0)..=(*member, u64::MAX));
            if own.clone().next().is_some() && own.into_iter().all(|((_, epoch), seq)| holds(member, *epoch) >= *seq) {
                account.complete = Some(account.heard);
            }
        }
    }

    /// How old this cluster's picture of a member is: time since it last held all that the member had said by then.
    pub fn age(&self, member: &ClusterId, now: Timestamp) -> Option<Duration> {
        self.0.get(member)?.complete.map(|complete| now.since(complete))
    }

    /// Whether a member enforces a record of a public log.
    pub fn enforces(&self, member: &ClusterId, record: &RecordId) -> bool {
        let account = self.0.get(member);
        account
            .and_then(|account| account.law.get(&(record.writer, record.epoch)))
            .is_some_and(|seq| *seq >= record.seq)
    }

    /// Who of `members` enforces a record.
    pub fn enforcement(
        &self,
        record: &RecordId,
        members: impl Iterator<Item = ClusterId>,
        now: Timestamp,
    ) -> Enforcement {
        let mut found = Enforcement::default();
        for member in members {
            if self.enforces(&member, record) {
                found.by.push(member);
            } else {
                found.behind.push((member, self.age(&member, now)));
            }
        }
        found
    }

    /// Forgets who is no member any more.
    pub fn keep(&mut self, wanted: impl Fn(&ClusterId) -> bool) {
        self.0.retain(|member, _| wanted(member));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Audience, Digest, testing::cluster};

    fn receipt(member: u8, number: u64, whole: bool, law: &[(u8, u64, u64)]) -> SignedReceipt {
        let receipt = Receipt {
            federation: FederationId::from_digest(Digest::ZERO),
            member: cluster(member),
            number,
            at: Timestamp::ZERO,
            whole,
            law: law.iter().map(|(writer, epoch, seq)| ((cluster(*writer), *epoch), *seq)).collect(),
            neighbours: BTreeMap::from([(cluster(0), Duration::from_millis(3))]),
        };
        SignedReceipt { receipt, raw: Arc::from(number.to_be_bytes().as_slice()) }
    }

    fn record(writer: u8, epoch: u64, seq: u64) -> RecordId {
        RecordId { writer: cluster(writer), audience: Audience::Law, epoch, seq, digest: Digest::ZERO }
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn statements_grow_and_never_shrink() {
        let mut receipts = Receipts::default();
        assert!(receipts.take(&receipt(1, 1, true, &[(0, 1, 5)]), at(1)));
        assert!(receipts.enforces(&cluster(1), &record(0, 1, 5)));
        assert!(!receipts.enforces(&cluster(1), &record(0, 1, 6)));
        assert!(!receipts.enforces(&cluster(1), &record(0, 2, 1)), "another epoch is another chain");
        assert!(receipts.take(&receipt(1, 2, false, &[(0, 1, 3), (2, 1, 1)]), at(2)));
        assert!(receipts.enforces(&cluster(1), &record(0, 1, 5)));
        assert!(receipts.enforces(&cluster(1), &record(2, 1, 1)));
    }

    #[test]
    fn one_that_is_not_newer_is_not_taken() {
        let mut receipts = Receipts::default();
        assert!(receipts.take(&receipt(1, 7, true, &[(0, 1, 1)]), at(1)));
        for number in [7, 6, 0] {
            assert!(!receipts.take(&receipt(1, number, true, &[(0, 1, 9)]), at(2)), "{number}");
        }
        assert!(!receipts.enforces(&cluster(1), &record(0, 1, 9)));
        assert_eq!(receipts.number(&cluster(1)), 7);
    }

    #[test]
    fn who_comes_later_gets_the_last_whole_one_and_what_followed() {
        let mut receipts = Receipts::default();
        receipts.take(&receipt(1, 1, false, &[]), at(1));
        assert_eq!(receipts.all().count(), 0, "a part without a whole tells nothing");
        receipts.take(&receipt(1, 2, true, &[]), at(1));
        for number in 3..500 {
            receipts.take(&receipt(1, number, false, &[]), at(1));
        }
        assert_eq!(receipts.all().count(), RECEIPTS_KEPT_MAX);
        receipts.take(&receipt(1, 500, true, &[]), at(1));
        assert_eq!(receipts.all().count(), 1);
    }

    #[test]
    fn a_neighbour_needs_nobody_to_pass_it_on() {
        let mut receipts = Receipts::default();
        receipts.take(&receipt(1, 1, true, &[]), at(1));
        assert!(!receipts.needs(&cluster(0), &cluster(1)));
        assert!(receipts.needs(&cluster(2), &cluster(1)));
        assert_eq!(receipts.round_trip(&cluster(1), &cluster(0)), Some(Duration::from_millis(3)));
        assert_eq!(receipts.round_trip(&cluster(1), &cluster(2)), None);
        assert!(!receipts.needs(&cluster(1), &cluster(1)), "nor its maker");
    }

    #[test]
    fn a_members_data_is_as_old_as_what_it_said_that_is_held_here() {
        let mut receipts = Receipts::default();
        assert_eq!(receipts.age(&cluster(1), at(9)), None);
        receipts.take(&receipt(1, 1, true, &[(1, 1, 4)]), at(10));
        receipts.refresh(|_, _| 4);
        assert_eq!(receipts.age(&cluster(1), at(12)), Some(Duration::from_secs(2)));
        // It said more since, and that has not come: a session alone makes nothing fresh.
        receipts.take(&receipt(1, 2, false, &[(1, 1, 5)]), at(20));
        receipts.refresh(|_, _| 4);
        assert_eq!(receipts.age(&cluster(1), at(22)), Some(Duration::from_secs(12)));
        receipts.refresh(|_, _| 5);
        assert_eq!(receipts.age(&cluster(1), at(22)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn laggards_are_named_with_the_age_of_what_is_known() {
        let mut receipts = Receipts::default();
        receipts.take(&receipt(1, 1, true, &[(1, 1, 1), (0, 1, 3)]), at(10));
        receipts.take(&receipt(2, 1, true, &[(2, 1, 1), (0, 1, 2)]), at(10));
        receipts.refresh(|_, _| 9);
        let found = receipts.enforcement(&record(0, 1, 3), [1, 2, 3].map(cluster).into_iter(), at(50));
        assert_eq!(found.by, [cluster(1)]);
        assert_eq!(found.behind, [(cluster(2), Some(Duration::from_secs(40))), (cluster(3), None)]);
    }

    #[test]
    fn members_are_bounded_and_forgotten() {
        let mut receipts = Receipts::default();
        for member in 0..6 {
            receipts.take(&receipt(member, 1, true, &[]), at(1));
        }
        receipts.keep(|member| *member != cluster(3));
        assert_eq!(receipts.number(&cluster(3)), 0);
        assert_eq!(receipts.number(&cluster(4)), 1);
    }
}
