//! Receipts on their way: this cluster's own as its snapshots change, others' as they come, both passed on.
//!
//! In: how far the replica is, at each publication; signed receipts of members. Out: frames on control streams, and the
//! table that lists and statuses read; `relay` does the passing on. Never: believes a receipt without its signature, or lets
//! one allow anything: all it can do is be missing.
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
    relay::Relay,
    wire::Frame,
};

/// Feature word of a greeting: the peer reads receipts.
pub(crate) const FEATURE: &str = "receipts";
/// The same: the peer reads many of them in one frame.
pub(crate) const BATCHES: &str = "receipt_batches";
/// Publications within this time share a receipt, for up to [`MEMBERS_PER_SECOND`] members; in proportion for more.
const GATHER: Duration = Duration::from_millis(10);
/// Time between two receipts when nothing changed. In proportion for more members, too.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many receipts of as many members a second are read without being noticed.
const MEMBERS_PER_SECOND: usize = 32;
/// Longest time between two receipts when nothing changed.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Time between two whole receipts. In proportion for more members, too.
const WHOLE_INTERVAL: Duration = Duration::from_secs(30);
/// Receipts after a whole one, before the next is whole again: for everybody while members are few, and for those that
/// came later where they are many.
const PARTS_MAX: usize = 40;
/// Parts of an interval in which a link gets what others said, where members are many.
const TURNS_PER_INTERVAL: u32 = 4;
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

/// How much slower one of so many members speaks than one of a few.
fn times(members: usize) -> u32 {
    u32::try_from(members.div_ceil(MEMBERS_PER_SECOND)).unwrap_or(u32::MAX).max(1)
}

fn are_many(members: usize) -> bool {
    members > MEMBERS_PER_SECOND
}

/// How long publications are gathered by one of so many members.
pub(crate) fn gather(members: usize) -> Duration {
    GATHER.saturating_mul(times(members)).min(INTERVAL)
}

/// Time between two receipts of one of so many members.
pub(crate) fn interval(members: usize) -> Duration {
    INTERVAL.saturating_mul(times(members)).min(INTERVAL_MAX)
}

/// Time between two whole receipts of one of so many members.
pub(crate) fn whole_interval(members: usize) -> Duration {
    WHOLE_INTERVAL.saturating_mul(times(members))
}

/// An interval of one of so many members, a little shorter by chance where they are many: they do not speak at once.
pub(crate) fn spread(interval: Duration, members: usize) -> Duration {
    if are_many(members) { interval.mul_f64(rand::random_range(0.8..1.0)) } else { interval }
}

/// Age at which the data of one of so many members counts as stale.
pub(crate) fn stale_after(members: usize) -> Duration {
    interval(members) * INTERVALS_MISSED_MAX
}

type Heads = BTreeMap<(ClusterId, u64), u64>;

/// What this cluster has said of itself, and what it passes on.
pub(crate) struct Speaker {
    said: Heads,
    neighbours: BTreeSet<ClusterId>,
    number: u64,
    parts: usize,
    whole_at: Option<Instant>,
    due: Instant,
    /// Number of members, as far as is known.
    members: usize,
    relay: Relay,
}

impl Speaker {
    pub(crate) fn new() -> Self {
        Self {
            said: Heads::new(),
            neighbours: BTreeSet::new(),
            number: 0,
            parts: 0,
            whole_at: None,
            due: Instant::now(),
            members: 0,
            relay: Relay::new(),
        }
    }

    /// A snapshot was published: it is told soon.
    pub(crate) fn published(&mut self) {
        self.due = self.due.min(Instant::now() + gather(self.members));
    }

    /// Waits until a receipt is due, or somebody's turn to get others'.
    pub(crate) async fn due(&self) {
        sleep_until(self.relay.due(self.turns()).map_or(self.due, |turn| turn.min(self.due))).await;
    }

    /// Time between two turns of a link; none while members are few.
    fn turns(&self) -> Duration {
        if are_many(self.members) { interval(self.members) / TURNS_PER_INTERVAL } else { Duration::ZERO }
    }

    /// Passes on what waits for those whose turn it is.
    pub(crate) fn pass_on(&mut self, shared: &Shared, connected: &BTreeMap<ClusterId, Arc<Session>>) {
        self.relay.serve(shared, connected, self.turns());
    }

    /// Says how far the published snapshot is, to every session, if that is due. `connected` are those in use.
    pub(crate) fn speak(
        &mut self,
        shared: &Shared,
        replica: &Replica,
        connected: &BTreeMap<ClusterId, Arc<Session>>,
        members: usize,
    ) {
        self.members = members;
        if self.due <= Instant::now() {
            self.due = Instant::now() + spread(interval(members), members);
            self.say(shared, replica, connected);
        }
        self.pass_on(shared, connected);
    }

    fn say(&mut self, shared: &Shared, replica: &Replica, connected: &BTreeMap<ClusterId, Arc<Session>>) {
        let heads: Heads = replica.law_heads().map(|(writer, epoch, head)| ((writer, epoch), head.seq)).collect();
        lock(&shared.receipts.receipts)
            .refresh(|member, epoch| heads.get(&(*member, epoch)).copied().unwrap_or_default());
        let rtt = |session: &Arc<Session>| lock(&session.health).rtt.unwrap_or_default();
        let neighbours: BTreeMap<ClusterId, Duration> =
            connected.iter().take(RECEIPT_NEIGHBOURS_MAX).map(|(id, session)| (*id, rtt(session))).collect();
        let many = are_many(self.members);
        let since_whole = self.whole_at.map(|at| at.elapsed());
        let late = since_whole.is_none_or(|since| since >= whole_interval(self.members));
        let news = !self.neighbours.iter().eq(neighbours.keys())
            || (self.parts >= PARTS_MAX && (!many || self.relay.has_newcomers()));
        let whole = late || (news && (!many || since_whole.is_none_or(|since| since >= interval(self.members))));
        let own = |log: &(ClusterId, u64)| log.0 == shared.own;
        // Where members are many, who hears one receipt of some needs the own log to know how old it is.
        let wanted =
            |(log, seq): &(&(ClusterId, u64), &u64)| whole || (many && own(log)) || self.said.get(*log) != Some(*seq);
        let mut law: Vec<((ClusterId, u64), u64)> =
            heads.iter().filter(wanted).map(|(log, seq)| (*log, *seq)).collect();
        law.sort_by_key(|(log, _)| !own(log));
        // A long account begins with a short receipt: of many members, that is what is kept for those who come later.
        let (first, rest) = match law.len() > RECEIPT_LOGS_MAX {
            true => law.split_at(law.iter().take(RECEIPT_LOGS_MAX).filter(|(log, _)| own(log)).count()),
            false => (law.as_slice(), [].as_slice()),
        };
        if whole {
            self.relay.begin_own(late);
        }
        // One without statements says that this cluster still enforces what it said.
        for (at, law) in std::iter::once(first).chain(rest.chunks(RECEIPT_LOGS_MAX)).enumerate() {
            let begins = whole && at == 0;
            // Restarts must not fall behind what was said before them.
            self.number = (self.number + 1).max(now().as_millis());
            let receipt = Receipt {
                federation: replica.federation(),
                member: shared.own,
                number: self.number,
                at: now(),
                whole: begins,
                law: law.iter().copied().collect(),
                neighbours: if begins { neighbours.clone() } else { BTreeMap::new() },
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
            // The rest of a long account goes out as the budget allows.
            let at_once = !(many && whole && at > 0);
            if at_once {
                tell(connected.values(), &frame);
            }
            self.relay.add_own(frame, at_once);
            self.parts = if whole { 0 } else { self.parts + 1 };
        }
        if whole {
            self.whole_at = Some(Instant::now());
            self.neighbours = neighbours.into_keys().collect();
        }
        self.said = heads;
    }

    /// Takes members' receipts and passes them on to whoever has no session with their makers.
    pub(crate) fn hear(
        &mut self,
        shared: &Shared,
        replica: &Replica,
        connected: &BTreeMap<ClusterId, Arc<Session>>,
        session: &Session,
        frames: Vec<wire::Receipt>,
    ) {
        for frame in frames {
            if let Err((reason, detail)) = self.hear_one(shared, replica, session, frame) {
                tracing::warn!(cluster = %session.name, error = detail, "member sent a receipt that is none");
                session.close(code::PROTOCOL, reason);
                break;
            }
        }
        if !are_many(self.members) {
            self.pass_on(shared, connected);
        }
    }

    fn hear_one(
        &mut self,
        shared: &Shared,
        replica: &Replica,
        session: &Session,
        frame: wire::Receipt,
    ) -> Result<(), (&'static str, String)> {
        if frame.enforced.len() > RECEIPT_BYTES_MAX {
            return Err(("receipt", format!("{} bytes", frame.enforced.len())));
        }
        let receipt = decode_receipt(&frame.enforced).map_err(|error| ("receipt", error.to_string()))?;
        let key = replica.replication_key(&receipt.member);
        let (true, Some(key)) = (receipt.federation == replica.federation(), key) else { return Ok(()) };
        if receipt.number <= shared.receipts.read(|held, _| held.number(&receipt.member)) {
            return Ok(());
        }
        let verified = signatures::verify(receipt.member, &frame.enforced, &frame.signature, &key);
        verified.map_err(|error| ("forged_receipt", error.to_string()))?;
        if receipt.member == shared.own {
            // What this cluster said before its clock was set back, or before its store was: it goes on behind that.
            self.number = self.number.max(receipt.number);
            return Ok(());
        }
        let member = receipt.member;
        let signed = SignedReceipt { receipt, raw: frame.encode_to_vec().into() };
        take(shared, &signed);
        lock(&shared.receipts.receipts).refresh_one(&member, |member, epoch| replica.law_seq(member, epoch));
        self.relay.pass(member, session.member, frame);
        Ok(())
    }

    /// One that came is told all that is known, and everybody soon that it came.
    pub(crate) fn connected(&mut self, session: &Session) {
        if session.spoken.receipts {
            self.relay.connected(session.member);
            self.published();
        }
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
    for session in sessions.filter(|session| session.spoken.receipts) {
        session.tell(Frame::Receipt(frame.clone()));
    }
}

/// Forgets who is no member any more.
pub(crate) fn keep(shared: &Shared, wanted: impl Fn(&ClusterId) -> bool) {
    lock(&shared.receipts.receipts).keep(wanted);
}
