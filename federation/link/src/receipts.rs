//! Receipts on their way: this cluster's own as its snapshots change, others' as they come, both passed on.
//!
//! In: how far the replica is, at each publication; signed receipts of members. Out: frames on control streams, and the
//! table that lists and statuses read. Never: believes a receipt without its signature, or lets one change a decision.
//!
//! The driver makes them, so a member whose driver hangs says nothing more, however alive its sockets are: the age of a
//! member's data is a watch on its progress.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use federation_identity::{now, receipt as signatures};
use federation_model::{
    ClusterId, RECEIPT_LOGS_MAX, RECEIPT_NEIGHBOURS_MAX, Receipt, Receipts, Replica, SignedReceipt, Timestamp,
};
use prost::Message;
use proto::{
    convert::{RECEIPT_BYTES_MAX, decode_receipt, encode_receipt},
    federation as wire,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    Shared,
    endpoint::code,
    registry::{Session, lock},
    wire::Frame,
};

/// Feature word of a greeting: the peer reads receipts.
pub(crate) const FEATURE: &str = "receipts";
/// Publications within this time share a receipt.
pub(crate) const GATHER: Duration = Duration::from_millis(10);
/// Time between two receipts when nothing changed, for up to [`MEMBERS_PER_SECOND`] members; in proportion for more.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many receipts of as many members a second are read without being noticed.
const MEMBERS_PER_SECOND: usize = 32;
/// Longest time between two receipts when nothing changed.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Time between two whole receipts.
const WHOLE_INTERVAL: Duration = Duration::from_secs(30);
/// Receipts after a whole one, before the next is whole again.
const PARTS_MAX: usize = 40;
/// Intervals after which a member that says nothing more counts as stale.
const INTERVALS_MISSED_MAX: u32 = 3;

/// Every member's receipts, and a tick for each that comes.
pub(crate) struct Table {
    receipts: Mutex<Receipts>,
    changed: watch::Sender<u64>,
    /// What ages are measured from: a clock that never steps.
    started: Instant,
}

impl Default for Table {
    fn default() -> Self {
        Self { receipts: Mutex::default(), changed: watch::Sender::new(0), started: Instant::now() }
    }
}

impl Table {
    /// Reads the table as it is, with the time by which it counts.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Receipts, Timestamp) -> T) -> T {
        read(&lock(&self.receipts), self.now())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO.after(self.started.elapsed())
    }
}

/// Time between two receipts of one of so many members.
pub(crate) fn interval(members: usize) -> Duration {
    let times = u32::try_from(members.div_ceil(MEMBERS_PER_SECOND)).unwrap_or(u32::MAX).max(1);
    INTERVAL.saturating_mul(times).min(INTERVAL_MAX)
}

/// Time between two whole receipts of one of so many members.
pub(crate) fn whole_interval(members: usize) -> Duration {
    let times = u32::try_from(members.div_ceil(MEMBERS_PER_SECOND)).unwrap_or(u32::MAX).max(1);
    WHOLE_INTERVAL.saturating_mul(times)
}

/// An interval a little shorter or longer by chance, so that many members do not speak at once.
pub(crate) fn spread(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.8..1.0))
}

/// Age at which the data of one of so many members counts as stale.
pub(crate) fn stale_after(members: usize) -> Duration {
    interval(members) * INTERVALS_MISSED_MAX
}

/// What this cluster has said of itself.
pub(crate) struct Speaker {
    said: BTreeMap<(ClusterId, u64), u64>,
    neighbours: BTreeSet<ClusterId>,
    number: u64,
    parts: usize,
    whole_at: Option<Instant>,
    due: Instant,
}

impl Speaker {
    pub(crate) fn new() -> Self {
        let due = Instant::now();
        let (said, neighbours) = (BTreeMap::new(), BTreeSet::new());
        Self { said, neighbours, number: 0, parts: 0, whole_at: None, due }
    }

    /// A snapshot was published: it is told soon.
    pub(crate) fn published(&mut self) {
        self.due = self.due.min(Instant::now() + GATHER);
    }

    /// Waits until a receipt is due.
    pub(crate) async fn due(&self) {
        sleep_until(self.due).await;
    }

    /// Says how far the published snapshot is, to every session. `connected` are those in use.
    pub(crate) fn speak(
        &mut self,
        shared: &Shared,
        replica: &Replica,
        connected: &BTreeMap<ClusterId, Arc<Session>>,
        members: usize,
    ) {
        let heads: BTreeMap<(ClusterId, u64), u64> =
            replica.law_heads().map(|(writer, epoch, head)| ((writer, epoch), head.seq)).collect();
        lock(&shared.receipts.receipts)
            .refresh(|member, epoch| heads.get(&(*member, epoch)).copied().unwrap_or_default());
        self.due = Instant::now() + interval(members);
        let rtt = |session: &Arc<Session>| lock(&session.health).rtt.unwrap_or_default();
        let neighbours: BTreeMap<ClusterId, Duration> =
            connected.iter().take(RECEIPT_NEIGHBOURS_MAX).map(|(id, session)| (*id, rtt(session))).collect();
        let whole = self.parts >= PARTS_MAX
            || !self.neighbours.iter().eq(neighbours.keys())
            || self.whole_at.is_none_or(|at| at.elapsed() >= WHOLE_INTERVAL);
        let changed = heads.iter().filter(|(log, seq)| whole || self.said.get(log) != Some(seq));
        let changed: Vec<((ClusterId, u64), u64)> = changed.map(|(log, seq)| (*log, *seq)).collect();
        // One without statements says that this cluster still enforces what it said.
        let mut parts: Vec<_> = changed.chunks(RECEIPT_LOGS_MAX).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        for (at, law) in parts.into_iter().enumerate() {
            let whole = whole && at == 0;
            // Restarts must not fall behind what was said before them.
            self.number = (self.number + 1).max(now().as_millis());
            let receipt = Receipt {
                federation: replica.federation(),
                member: shared.own,
                number: self.number,
                at: now(),
                whole,
                law: law.into_iter().collect(),
                neighbours: if whole { neighbours.clone() } else { BTreeMap::new() },
            };
            let bytes = encode_receipt(&receipt);
            let signature = match shared.signer.sign_receipt(&bytes) {
                Ok(signature) => signature,
                Err(error) => {
                    tracing::warn!(%error, "no receipt: what is enforced here is not told");
                    return;
                }
            };
            let frame = wire::Receipt { enforced: bytes, signature: signature.to_vec() };
            let signed = SignedReceipt { receipt, raw: frame.encode_to_vec().into() };
            take(shared, &signed);
            tell(connected.values(), &frame);
            self.parts = if whole { 0 } else { self.parts + 1 };
        }
        if whole {
            self.whole_at = Some(Instant::now());
            self.neighbours = neighbours.into_keys().collect();
        }
        self.said = heads;
    }

    /// Takes a member's receipt and passes it on to whoever has no session with that member.
    pub(crate) fn hear(
        &mut self,
        shared: &Shared,
        replica: &Replica,
        connected: &BTreeMap<ClusterId, Arc<Session>>,
        session: &Session,
        frame: &wire::Receipt,
    ) {
        let wrong = |reason: &'static str, detail: String| {
            tracing::warn!(cluster = %session.name, error = detail, "member sent a receipt that is none");
            session.close(code::PROTOCOL, reason);
        };
        if frame.enforced.len() > RECEIPT_BYTES_MAX {
            return wrong("receipt", format!("{} bytes", frame.enforced.len()));
        }
        let receipt = match decode_receipt(&frame.enforced) {
            Ok(receipt) => receipt,
            Err(error) => return wrong("receipt", error.to_string()),
        };
        let key = replica.replication_key(&receipt.member);
        let (true, Some(key)) = (receipt.federation == replica.federation(), key) else { return };
        if receipt.number <= shared.receipts.read(|held, _| held.number(&receipt.member)) {
            return;
        }
        if let Err(error) = signatures::verify(receipt.member, &frame.enforced, &frame.signature, &key) {
            return wrong("forged_receipt", error.to_string());
        }
        if receipt.member == shared.own {
            // What this cluster said before its clock was set back, or before its store was: it goes on behind that.
            self.number = self.number.max(receipt.number);
            return;
        }
        let member = receipt.member;
        let signed = SignedReceipt { receipt, raw: frame.encode_to_vec().into() };
        take(shared, &signed);
        {
            let mut receipts = lock(&shared.receipts.receipts);
            receipts.refresh(|member, epoch| replica.law_seq(member, epoch));
        }
        let onward = |to: &&Arc<Session>| {
            to.member != session.member && shared.receipts.read(|held, _| held.needs(&to.member, &member))
        };
        tell(connected.values().filter(onward), frame);
    }

    /// Tells one that came all that is known, and everybody soon that it came.
    pub(crate) fn connected(&mut self, shared: &Shared, session: &Session) {
        if !session.reads_receipts {
            return;
        }
        let all: Vec<_> = shared.receipts.read(|held, _| held.all().cloned().collect());
        for raw in all {
            if let Ok(frame) = wire::Receipt::decode(&*raw) {
                session.tell(Frame::Receipt(frame));
            }
        }
        self.published();
    }

    /// Another federation: nothing that was said holds.
    pub(crate) fn start_over(&mut self, shared: &Shared) {
        *lock(&shared.receipts.receipts) = Receipts::default();
        *self = Self { number: self.number, ..Self::new() };
    }
}

fn take(shared: &Shared, signed: &SignedReceipt) {
    let table = &shared.receipts;
    if lock(&table.receipts).take(signed, table.now()) {
        table.changed.send_modify(|count| *count += 1);
    }
}

fn tell<'a>(sessions: impl Iterator<Item = &'a Arc<Session>>, frame: &wire::Receipt) {
    for session in sessions.filter(|session| session.reads_receipts) {
        session.tell(Frame::Receipt(frame.clone()));
    }
}

/// Forgets who is no member any more.
pub(crate) fn keep(shared: &Shared, wanted: impl Fn(&ClusterId) -> bool) {
    lock(&shared.receipts.receipts).keep(wanted);
}
