//! Receipts: what each member says it enforces, signed by it, so that a writer sees where its rules are in force.
//!
//! In: authentic receipts, in any order. Out: how far each member enforces each public log, who has not confirmed a
//! record, and how old a member's data is. Never: a record, and nothing is judged by one: a member that lies about what
//! it enforces deceives its own federation's operators and nobody's gateway. The age of its data only measures the leases
//! of its own services.
//!
//! Each statement in a receipt ("I enforce this log as far as that") only ever grows, so receipts merge in any order and
//! one that is lost costs nothing but time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{ClusterId, EPOCHS_MAX, FederationId, LOGS_MAX, RecordId, Timestamp};

/// Most statements in one receipt.
pub const RECEIPT_LOGS_MAX: usize = 256;
/// Most neighbours that a receipt may name.
pub const RECEIPT_NEIGHBOURS_MAX: usize = 256;
/// Most members of which receipts are kept.
pub const RECEIPT_MEMBERS_MAX: usize = 4_096;
/// Most receipts of one member that are kept for those who come later: a whole one, and what came since.
pub(crate) const RECEIPTS_KEPT_MAX: usize = 48;
/// Most bytes of them, of one member and of all: each of many members has its share of the second, as of its last whole
/// receipt; one that is longer than that is kept by itself.
const KEPT_BYTES_MAX: usize = 64 * 1024;
const KEPT_BYTES_TOTAL: usize = 4 * 1024 * 1024;

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
    /// Last place enforced of each log, by the log's number; 0 where nothing was said. Places stay below 2^20.
    law: Vec<u32>,
    /// The same of its own log, by epoch.
    own: BTreeMap<u64, u64>,
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

/// The numbers of logs: an account has an entry for each log of each member, so it must be a small one.
#[derive(Clone, Debug, Default)]
struct Logs(HashMap<(ClusterId, u64), u32>);

impl Logs {
    /// The number of a log, a new one if need be; `None` past the bounds that every replica has.
    fn number(&mut self, log: &(ClusterId, u64)) -> Option<usize> {
        let next = u32::try_from(self.0.len()).ok()?;
        let (fits, room) = (log.1 < EPOCHS_MAX as u64, self.0.len() < LOGS_MAX);
        let known = self.0.get(log).copied();
        known.or_else(|| (fits && room).then(|| *self.0.entry(*log).or_insert(next))).map(|number| number as usize)
    }

    fn find(&self, log: &(ClusterId, u64)) -> Option<usize> {
        self.0.get(log).map(|number| *number as usize)
    }
}

/// What every member enforces, as far as this one heard. Times are of any clock that never steps.
///
/// Memory grows with the square of the number of members: four bytes for what each says of each other's log.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    accounts: BTreeMap<ClusterId, Account>,
    logs: Logs,
}

impl Receipts {
    /// Takes a receipt unless one as new is held; says whether it was new.
    pub fn take(&mut self, signed: &SignedReceipt, now: Timestamp) -> bool {
        let SignedReceipt { receipt, raw } = signed;
        if !self.accounts.contains_key(&receipt.member) && self.accounts.len() >= RECEIPT_MEMBERS_MAX {
            return false;
        }
        let kept_max = (KEPT_BYTES_TOTAL / (self.accounts.len() + 1)).min(KEPT_BYTES_MAX);
        let account = self.accounts.entry(receipt.member).or_default();
        if receipt.number <= account.number {
            return false;
        }
        (account.number, account.heard) = (receipt.number, now);
        if receipt.whole {
            account.raw.clear();
            account.neighbours.clone_from(&receipt.neighbours);
        }
        // What does not follow a whole one is of no use to those who come later, and neither is more than they need.
        let kept: usize = account.raw.iter().map(|raw| raw.len()).sum();
        let room = account.raw.len() < RECEIPTS_KEPT_MAX && kept + raw.len() <= kept_max;
        if receipt.whole || (!account.raw.is_empty() && room) {
            account.raw.push(raw.clone());
        }
        for (log, seq) in &receipt.law {
            if log.0 == receipt.member && log.1 < EPOCHS_MAX as u64 {
                let own = account.own.entry(log.1).or_default();
                *own = (*own).max(*seq);
            }
            let Some(number) = self.logs.number(log) else { continue };
            if account.law.len() <= number {
                // One step to the number of logs there are: a whole account follows the first statement.
                account.law.reserve_exact(self.logs.0.len().max(number + 1) - account.law.len());
                account.law.resize(number + 1, 0);
            }
            if let Some(held) = account.law.get_mut(number) {
                *held = (*held).max(u32::try_from(*seq).unwrap_or(u32::MAX));
            }
        }
        true
    }

    /// The newest number of a member; 0 if it never said anything.
    pub fn number(&self, member: &ClusterId) -> u64 {
        self.accounts.get(member).map_or(0, |account| account.number)
    }

    /// Whether a receipt of `member` has to be passed on to `to`.
    pub fn needs(&self, to: &ClusterId, member: &ClusterId) -> bool {
        to != member && self.accounts.get(member).is_none_or(|account| !account.neighbours.contains_key(to))
    }

    /// The round trip between two members, if the first said that it has a session with the second.
    pub fn round_trip(&self, from: &ClusterId, to: &ClusterId) -> Option<Duration> {
        self.accounts.get(from)?.neighbours.get(to).copied()
    }

    /// All that somebody who knows nothing yet needs of each member from `first` on, oldest first.
    pub fn kept_from(&self, first: &ClusterId) -> impl Iterator<Item = (&ClusterId, &[Arc<[u8]>])> {
        self.accounts.range(first..).map(|(member, account)| (member, account.raw.as_slice()))
    }

    /// Notes which members' words this cluster holds whole: `holds` says how far it has a public log's epoch.
    pub fn refresh(&mut self, holds: impl Fn(&ClusterId, u64) -> u64) {
        self.accounts.iter_mut().for_each(|(member, account)| account.refresh(member, &holds));
    }

    /// The same of one member.
    pub fn refresh_one(&mut self, member: &ClusterId, holds: impl Fn(&ClusterId, u64) -> u64) {
        if let Some(account) = self.accounts.get_mut(member) {
            account.refresh(member, &holds);
        }
    }

    /// How old this cluster's picture of a member is: time since it last held all that the member had said by then.
    pub fn age(&self, member: &ClusterId, now: Timestamp) -> Option<Duration> {
        self.accounts.get(member)?.complete.map(|complete| now.since(complete))
    }

    /// Whether a member enforces a record of a public log.
    pub fn enforces(&self, member: &ClusterId, record: &RecordId) -> bool {
        let said = self.accounts.get(member).zip(self.logs.find(&(record.writer, record.epoch)));
        let seq = said.and_then(|(account, log)| account.law.get(log));
        seq.is_some_and(|seq| *seq > 0 && u64::from(*seq) >= record.seq)
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
        self.accounts.retain(|member, _| wanted(member));
    }
}

impl Account {
    fn refresh(&mut self, member: &ClusterId, holds: impl Fn(&ClusterId, u64) -> u64) {
        if !self.own.is_empty() && self.own.iter().all(|(epoch, seq)| holds(member, *epoch) >= *seq) {
            self.complete = Some(self.heard);
        }
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

    fn kept(receipts: &Receipts) -> usize {
        receipts.accounts.values().map(|account| account.raw.len()).sum()
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
        assert_eq!(kept(&receipts), 0, "a part without a whole tells nothing");
        receipts.take(&receipt(1, 2, true, &[]), at(1));
        for number in 3..500 {
            receipts.take(&receipt(1, number, false, &[]), at(1));
        }
        assert_eq!(kept(&receipts), RECEIPTS_KEPT_MAX);
        receipts.take(&receipt(1, 500, true, &[]), at(1));
        assert_eq!(kept(&receipts), 1);
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
    fn of_many_members_fewer_bytes_are_kept_for_who_comes_later() {
        let long = |member: u8, number: u64, whole: bool| SignedReceipt {
            raw: Arc::from(vec![0; KEPT_BYTES_MAX / 4]),
            ..receipt(member, number, whole, &[])
        };
        let bytes = |receipts: &Receipts| {
            receipts.accounts.values().flat_map(|account| &account.raw).map(|raw| raw.len()).sum::<usize>()
        };
        let mut receipts = Receipts::default();
        for number in 1..40 {
            receipts.take(&long(1, number, number == 1), at(1));
        }
        assert_eq!(bytes(&receipts), KEPT_BYTES_MAX, "and the one that began it stays");
        // By their second whole ones all know how many they are.
        for first in [40, 50] {
            for member in 0..=254 {
                for number in first..first + 10 {
                    receipts.take(&long(member, number, number == first), at(1));
                }
            }
        }
        assert!(bytes(&receipts) <= KEPT_BYTES_TOTAL, "{}", bytes(&receipts));
    }

    #[test]
    fn made_up_logs_are_not_kept_without_end() {
        let mut receipts = Receipts::default();
        for number in 0..2 * LOGS_MAX as u64 / 200 {
            let mut made_up = receipt(1, number + 1, false, &[]);
            let writer = |at: u64| ClusterId::from_digest(Digest([number as u8 ^ (at as u8); 32]));
            made_up.receipt.law = (0..200).map(|at| ((writer(at), number % 300 * 7 + at), u64::MAX)).collect();
            receipts.take(&made_up, at(1));
        }
        assert!(receipts.logs.0.len() <= LOGS_MAX);
        assert!(receipts.logs.0.keys().all(|(_, epoch)| *epoch < EPOCHS_MAX as u64));
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
