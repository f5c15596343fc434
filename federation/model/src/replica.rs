//! Replication as a pure machine: authentic records and vectors in, effects out.
//!
//! In: records whose signature was checked, vectors of peers, peers that come and go. Out: what to make durable, to send,
//! to publish. Never: computes a digest, checks a signature, reads a clock or moves a byte: `federation/link` does that
//! around it.
//!
//! Every log is gapless: a record is taken only right behind the one that it names as its predecessor. Two records at
//! one place freeze their epoch there; what the replicas then hold is a function of the set of records seen, so they
//! agree whatever the order was.

mod intake;
mod log;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::log::Log;
use crate::{
    Audience, Authentic, Body, ClusterId, Digest, EPOCHS_MAX, FederationId, Fold, Head, Intention, Position,
    REPLACES_MAX, Record, RecordId, RecordKey, Records, ReplicationKey, RuleState, Snapshot, Vector,
    files::Filed,
    mutation::{Mutation, planted},
    standing::{self, Capacities},
};

/// Most records in one message.
pub const MESSAGE_RECORDS_MAX: usize = 500;
/// Most bytes of envelopes in one message; a single longer one goes alone.
pub const MESSAGE_BYTES_MAX: usize = 512 * 1024;
/// Most records of one epoch of one log.
pub const EPOCH_RECORDS_MAX: u64 = 1 << 20;

/// What replicas say to each other.
#[derive(Clone, Debug)]
pub enum Message {
    /// How far the sender has each log; the receiver answers with what the sender lacks. With `ask` the sender has lost
    /// track of the receiver: it answers with a vector of its own, too.
    Vector { vector: Vector, ask: bool },
    /// Signed envelopes, logs in an order in which admissions come before what they vouch for.
    Records(Vec<Arc<[u8]>>),
}

/// What the driver must do, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Make durable before any later effect is carried out.
    Persist(Vec<Authentic<Record>>),
    Send {
        peer: ClusterId,
        message: Message,
    },
    /// Fold and publish a new snapshot.
    Publish,
    Alarm(Alarm),
}

/// Something a person should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Two records at one place in a log: the epoch is frozen there.
    Equivocation { writer: ClusterId, audience: Audience, epoch: u64, seq: u64 },
}

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    #[error("record {id} belongs to another federation")]
    OtherFederation { id: RecordId },
    #[error("record {id}: nothing admits its writer yet")]
    UnknownWriter { id: RecordId },
    #[error("record {id} is not for this cluster to see from that peer")]
    Audience { id: RecordId },
    #[error("record {id} lies past a bound: at most 256 epochs of 1048576 records, and 16384 logs")]
    Bound { id: RecordId },
    #[error("record {id} does not follow what is held of its log")]
    Gap { id: RecordId },
    #[error("record {id} lies behind two records at one place, which void what follows in that epoch")]
    Void { id: RecordId },
    #[error("record {id} is another cluster's: only this one's own are written here")]
    NotOwn { id: RecordId },
}

impl ReplicaError {
    /// Short fixed word for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OtherFederation { .. } => "other_federation",
            Self::UnknownWriter { .. } => "unknown_writer",
            Self::Audience { .. } => "audience",
            Self::Bound { .. } => "bound",
            Self::Gap { .. } => "gap",
            Self::Void { .. } => "void",
            Self::NotOwn { .. } => "not_own",
        }
    }
}

/// What is known of a connected peer.
#[derive(Clone, Debug, Default)]
struct Peer {
    /// Where it is further than this replica, as it said; level with this one in all else, since what it lacked was sent.
    /// `None` until it said so.
    ahead: Option<Vector>,
    /// Whether it was asked again since the last progress.
    asked: bool,
}

/// One cluster's copy of every log that it may read.
#[derive(Clone, Debug)]
pub struct Replica {
    own: ClusterId,
    federation: FederationId,
    /// All that is held, by order of arrival.
    records: Records,
    /// The same under their keys, as snapshots are made from it.
    fold: Fold,
    logs: BTreeMap<(ClusterId, Audience), Log>,
    /// Whoever a chain of admissions leads to, with its key. Names play no part: all replicas must agree on it.
    writers: BTreeMap<ClusterId, ReplicationKey>,
    peers: BTreeMap<ClusterId, Peer>,
    /// Lowest epoch for the next write of this cluster, per audience.
    floors: BTreeMap<Audience, u64>,
    floor: u64,
    /// What the store held behind something that it lacked: taken as soon as a peer brings that.
    waiting: Vec<Authentic<Record>>,
    /// Peers that named heads of this cluster which it does not have, and showed no record of them since.
    doubted: BTreeSet<ClusterId>,
}

/// What one batch changed.
#[derive(Default)]
struct Changes {
    taken: Vec<Authentic<Record>>,
    alarms: Vec<Alarm>,
    refused: Vec<ReplicaError>,
}

impl Replica {
    pub fn new(own: ClusterId, federation: FederationId) -> Self {
        Self {
            own,
            federation,
            records: Records::default(),
            fold: Fold::new(own, federation),
            logs: BTreeMap::new(),
            writers: BTreeMap::new(),
            peers: BTreeMap::new(),
            floors: BTreeMap::new(),
            floor: 1,
            waiting: Vec::new(),
            doubted: BTreeSet::new(),
        }
    }

    pub fn own(&self) -> ClusterId {
        self.own
    }

    pub fn federation(&self) -> FederationId {
        self.federation
    }

    /// Takes what the store held, in the order in which it was written if that is known: the first admission of a name
    /// stays pinned. Any order is safe.
    ///
    /// Returns what could not be taken: void, damaged (behind a gap), or of no member's. If records of this cluster are
    /// among the damaged, its next write opens a new epoch. What lies behind a gap, or is of no member's, counts as soon
    /// as a peer brings what is lacking: nobody else may have it.
    pub fn load(&mut self, records: impl IntoIterator<Item = Authentic<Record>>) -> Vec<ReplicaError> {
        let mut waiting: Vec<Authentic<Record>> = records.into_iter().collect();
        waiting.retain(|record| !(planted(Mutation::ForgetTombstone) && is_tombstone(record)));
        let mut refused = Vec::new();
        loop {
            let before = waiting.len();
            let mut again = Vec::new();
            waiting.retain(|record| match self.take(record, None, &mut Changes::default()) {
                Ok(()) => false,
                Err(error @ (ReplicaError::Gap { .. } | ReplicaError::UnknownWriter { .. })) => {
                    again.push(error);
                    true
                }
                Err(error) => {
                    refused.push(error);
                    false
                }
            });
            if waiting.is_empty() || waiting.len() == before {
                refused.append(&mut again);
                break;
            }
            // In order of place each further round gets at least one admission further.
            waiting.sort_by_key(Authentic::<Record>::id);
        }
        self.fold.refresh();
        let own = self.own;
        for record in waiting.iter().filter(|record| record.value().writer == own) {
            let Record { audience, epoch, .. } = *record.value();
            if epoch < EPOCHS_MAX as u64 {
                self.raise_floor(audience, epoch + 1);
            }
        }
        self.waiting = waiting;
        refused
    }

    /// Goes back to what the store holds for sure, after a write that failed. If that write may have reached the disk all
    /// the same (`uncertain`), no place that it took is ever taken again. What is known of peers is forgotten, since
    /// messages of that batch may never have gone out: [`Replica::on_resumed`] takes them up again.
    ///
    /// Returns what could not be taken, as [`Replica::load`] does.
    pub fn reload(
        &mut self,
        records: impl IntoIterator<Item = Authentic<Record>>,
        uncertain: bool,
    ) -> Vec<ReplicaError> {
        if uncertain {
            self.break_continuity();
        }
        // What is known of the own epochs stays known, and so does what the disk holds beyond a gap.
        let fresh = Self::new(self.own, self.federation);
        let Self { floor, floors, waiting, .. } = std::mem::replace(self, fresh);
        (self.floor, self.floors) = (floor, floors);
        self.load(records.into_iter().chain(waiting))
    }

    /// Takes what waited for the records that just came; the store has it already, and gets it once more.
    fn take_waiting(&mut self, changes: &mut Changes) {
        let mut before = 0;
        while before < changes.taken.len() && !self.waiting.is_empty() {
            before = changes.taken.len();
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|record| {
                let taken = self.take(record, None, changes);
                matches!(taken, Err(ReplicaError::Gap { .. } | ReplicaError::UnknownWriter { .. }))
            });
            self.waiting = waiting;
        }
    }

    /// Where this cluster's next record to `audience` goes.
    pub fn next_position(&self, audience: Audience) -> Position {
        let floor = if planted(Mutation::ForgetFloor) { 1 } else { self.floor };
        let floor = self.floors.get(&audience).copied().unwrap_or(1).max(floor);
        let log = self.logs.get(&(self.own, audience));
        following(log.and_then(Log::open_head), log.map_or(0, Log::highest_epoch), floor)
    }

    /// Says that this cluster's logs may lack their newest records (a restored or rebuilt store): the next write to each
    /// audience opens a new epoch, the one returned or a higher one.
    ///
    /// Keep it durably and hand it to [`Replica::set_floor`] at every start from then on: until something is written to
    /// an audience, nothing else tells that its old epoch must not go on.
    pub fn break_continuity(&mut self) -> u64 {
        let own = self.logs.iter().filter(|((writer, _), _)| *writer == self.own);
        let highest = own.map(|(_, log)| log.highest_epoch()).max().unwrap_or(0);
        self.floor = self.floor.max(highest + 1).max(2);
        self.floor
    }

    /// Never writes to an epoch below this one again.
    pub fn set_floor(&mut self, epoch: u64) {
        self.floor = self.floor.max(epoch);
    }

    /// The live records of a key that a write by this cluster may replace, at most [`REPLACES_MAX`], newest last.
    pub fn replaceable(&self, key: &RecordKey) -> Vec<RecordId> {
        let members = &self.fold.roll().members;
        let standing = self.fold.standing(key).iter();
        let mut found: Vec<RecordId> = match key {
            RecordKey::Intention(key) => {
                let may_replace = |version: &standing::Version, left: Capacities| {
                    let useful = standing::taken(self.own, version, key, members) & left;
                    let possible = Capacities::possible(version.id.writer, key, members);
                    // What can never count may be cleared away, too.
                    let effect = if possible.is_empty() { useful } else { useful & possible };
                    version.id.writer == self.own || !effect.is_empty()
                };
                let versions = standing.filter_map(|held| Some((held.version()?, held.left)));
                versions.filter(|(version, left)| may_replace(version, *left)).map(|(version, _)| version.id).collect()
            }
            _ => {
                let own = standing.filter(|held| held.record.writer == self.own).map(Filed::id);
                match key {
                    // Whoever admits one that left takes its leaving back.
                    RecordKey::Admission { cluster, .. } => self.leaves(*cluster).chain(own).collect(),
                    _ => own.collect(),
                }
            }
        };
        // The newest are worth the most if a bound must cut.
        let surplus = found.len().saturating_sub(REPLACES_MAX);
        found.drain(..surplus);
        found
    }

    /// Records by which a cluster said that it leaves.
    fn leaves(&self, cluster: ClusterId) -> impl Iterator<Item = RecordId> {
        self.fold.standing(&RecordKey::Eviction { cluster, writer: cluster }).iter().map(Filed::id)
    }

    /// The replication key with which records of `writer` must be signed; `None` while nothing admits it.
    pub fn replication_key(&self, writer: &ClusterId) -> Option<ReplicationKey> {
        self.writers.get(writer).copied()
    }

    /// Every record that counts as seen, replaced ones included, in order of arrival: what [`crate::fold`] takes.
    pub fn records(&self) -> impl Iterator<Item = &Authentic<Record>> {
        self.records.iter()
    }

    /// The same as a list to share: a copy costs nothing and stays as it is.
    pub fn list(&self) -> &Records {
        &self.records
    }

    /// What all that is held says, as [`crate::fold`] would make it; the cost follows what changed since the last one.
    ///
    /// `None` while the records do not hold this cluster's admission: no snapshot means deny.
    pub fn snapshot(&mut self, revision: u64) -> Option<Snapshot> {
        self.fold.snapshot(revision)
    }

    /// Number of [`Replica::records`].
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How far one log is held, by epoch.
    pub fn heads(&self, writer: ClusterId, audience: Audience) -> BTreeMap<u64, Head> {
        self.logs.get(&(writer, audience)).into_iter().flat_map(Log::heads).collect()
    }

    /// How far every public log is held, by epoch.
    pub fn law_heads(&self) -> impl Iterator<Item = (ClusterId, u64, Head)> {
        let law = self.logs.iter().filter(|((_, audience), _)| *audience == Audience::Law);
        law.flat_map(|((writer, _), log)| log.heads().map(|(epoch, head)| (*writer, epoch, head)))
    }

    /// Last place that is held of one epoch of a public log; 0 without any.
    pub fn law_seq(&self, writer: &ClusterId, epoch: u64) -> u64 {
        self.logs.get(&(*writer, Audience::Law)).and_then(|log| log.head(epoch)).map_or(0, |head| head.seq)
    }

    /// How far every log is held.
    pub fn vector(&self) -> Vector {
        self.vector_where(|_, _| true)
    }

    /// Whether a place in a log was taken by two records: `(epoch, seq)` of each.
    pub fn forks(&self) -> impl Iterator<Item = Alarm> {
        self.logs.iter().flat_map(|((writer, audience), log)| {
            log.forks().map(|(epoch, seq)| Alarm::Equivocation { writer: *writer, audience: *audience, epoch, seq })
        })
    }

    /// Takes a record that this cluster just signed for [`Replica::next_position`].
    ///
    /// # Errors
    /// It is another's, of another federation, or not at that position; nothing changes then.
    pub fn on_local(&mut self, record: Authentic<Record>) -> Result<Vec<Effect>, ReplicaError> {
        let id = record.id();
        if id.writer != self.own {
            return Err(ReplicaError::NotOwn { id });
        }
        let next = self.next_position(id.audience);
        if (next.epoch, next.seq, next.previous) != (id.epoch, id.seq, record.value().previous) {
            return Err(ReplicaError::Gap { id });
        }
        let mut changes = Changes::default();
        self.take(&record, None, &mut changes)?;
        Ok(self.effects(changes, None))
    }

    /// A session with `peer` began: both sides say how far they are.
    pub fn on_connected(&mut self, peer: ClusterId) -> Vec<Effect> {
        self.peers.insert(peer, Peer::default());
        vec![self.ask(peer)]
    }

    /// The same with a peer that compares digests first, see [`Replica::on_level`].
    pub fn on_met(&mut self, peer: ClusterId) {
        self.peers.insert(peer, Peer::default());
    }

    /// A peer's vector is the one that it would be sent.
    pub fn on_level(&mut self, peer: ClusterId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            *state = Peer { ahead: Some(Vector::default()), asked: false };
        }
    }

    /// Whether a peer said how far it is.
    pub fn is_compared(&self, peer: &ClusterId) -> bool {
        self.peers.get(peer).is_some_and(|state| state.ahead.is_some())
    }

    /// Every head that a vector for `peer` would name, in its order.
    pub fn heads_shared(&self, peer: ClusterId) -> impl Iterator<Item = (ClusterId, Audience, u64, Head)> {
        let shared = self.logs.iter().filter(move |((writer, audience), _)| self.shares(peer, *writer, *audience));
        shared.flat_map(|((writer, audience), log)| log.heads().map(|(epoch, head)| (*writer, *audience, epoch, head)))
    }

    /// This cluster lost track of a peer whose session goes on: it is asked how far it is.
    pub fn on_resumed(&mut self, peer: ClusterId) -> Vec<Effect> {
        self.peers.insert(peer, Peer::default());
        vec![Effect::Send { peer, message: Message::Vector { vector: self.vector_for(peer), ask: true } }]
    }

    pub fn on_disconnected(&mut self, peer: ClusterId) {
        self.peers.remove(&peer);
    }

    /// Asks every connected peer again for what is lacking. Once a minute is plenty: it heals what a lost or refused
    /// message left behind.
    pub fn anti_entropy(&mut self) -> Vec<Effect> {
        let peers: Vec<ClusterId> = self.peers.keys().copied().collect();
        peers.into_iter().flat_map(|peer| self.anti_entropy_with(peer)).collect()
    }

    /// The same of one peer.
    pub fn anti_entropy_with(&self, peer: ClusterId) -> Option<Effect> {
        (!planted(Mutation::SkipAntiEntropy)).then(|| self.ask(peer))
    }

    /// A peer said how far it is: it gets what it lacks, and if it asks for it, this cluster's own vector.
    pub fn on_vector(&mut self, peer: ClusterId, vector: Vector, ask: bool) -> Vec<Effect> {
        if !self.peers.contains_key(&peer) {
            // It went meanwhile; what it said of this cluster's own logs holds all the same.
            self.note_claims(peer, &vector);
            return Vec::new();
        }
        let claims_more = self.note_claims(peer, &vector);
        let mut arrivals: BTreeSet<u64> = BTreeSet::new();
        for ((writer, audience), log) in &self.logs {
            if self.shares(peer, *writer, *audience) {
                log.lacking(vector.0.get(&(*writer, *audience)), &mut arrivals);
            }
        }
        let mut ahead = vector;
        ahead.0.retain(|log, epochs| {
            let held = self.logs.get(log);
            epochs.retain(|epoch, head| held.and_then(|log| log.head(*epoch)).is_none_or(|own| own.seq < head.seq));
            !epochs.is_empty()
        });
        let mut effects = Vec::new();
        self.peers.insert(peer, Peer { ahead: Some(ahead), asked: claims_more });
        if claims_more || ask {
            effects.push(self.ask(peer));
        }
        let lacking = arrivals.iter().filter_map(|arrival| self.records.get(*arrival));
        send(peer, lacking.map(|record| record.raw().clone()), &mut effects);
        effects
    }

    /// Records from `peer`, in the order in which they came, each with a good signature.
    ///
    /// `unknown` is how many more could not be checked because nothing admits their writer. An admission takes effect
    /// as soon as it is taken: hand in what comes before a record of an unknown writer, carry out the effects, then try
    /// that record again. As with every input, all effects are carried out before the next one: until then the replica
    /// holds more than the disk does.
    pub fn on_records(&mut self, peer: ClusterId, records: Vec<Authentic<Record>>, unknown: usize) -> Vec<Effect> {
        let mut changes = Changes::default();
        for record in &records {
            if let Err(error) = self.take(record, Some(peer), &mut changes) {
                changes.refused.push(error);
            }
        }
        self.take_waiting(&mut changes);
        let gaps = changes
            .refused
            .iter()
            .any(|error| matches!(error, ReplicaError::Gap { .. } | ReplicaError::UnknownWriter { .. }));
        let lacks = gaps || unknown > 0;
        if let Some(state) = self.peers.get_mut(&peer)
            && !lacks
            && !changes.taken.is_empty()
        {
            state.asked = false;
        }
        let forked = !changes.alarms.is_empty();
        let mut effects = self.effects(changes, Some(peer));
        if forked && self.peers.contains_key(&peer) {
            // The chains may have parted earlier than at the place that showed it.
            effects.push(self.ask(peer));
        } else if lacks && self.peers.get(&peer).is_some_and(|state| !state.asked) {
            effects.push(self.ask(peer));
            if let Some(state) = self.peers.get_mut(&peer) {
                state.asked = true;
            }
        }
        effects
    }

    fn ask(&self, peer: ClusterId) -> Effect {
        Effect::Send { peer, message: Message::Vector { vector: self.vector_for(peer), ask: false } }
    }

    fn vector_for(&self, peer: ClusterId) -> Vector {
        self.vector_where(|writer, audience| self.shares(peer, writer, audience))
    }

    fn vector_where(&self, wanted: impl Fn(ClusterId, Audience) -> bool) -> Vector {
        let mut vector = Vector::default();
        for ((writer, audience), log) in self.logs.iter().filter(|((writer, audience), _)| wanted(*writer, *audience)) {
            log.heads().for_each(|(epoch, head)| vector.set(*writer, *audience, epoch, head));
        }
        vector
    }

    fn shares(&self, peer: ClusterId, writer: ClusterId, audience: Audience) -> bool {
        planted(Mutation::RelayPrivateLog) || shares(self.own, peer, writer, audience)
    }

    /// A peer that names heads of this cluster's own logs which it does not have shows that the store is not the newest.
    ///
    /// Each peer is believed once until it shows such a record, so that a liar cannot use up the epochs.
    fn note_claims(&mut self, peer: ClusterId, vector: &Vector) -> bool {
        let mut claimed = Vec::new();
        for ((writer, audience), epochs) in &vector.0 {
            if *writer != self.own || !self.shares(peer, *writer, *audience) {
                continue;
            }
            let log = self.logs.get(&(*writer, *audience));
            for (epoch, head) in epochs.iter().filter(|(epoch, _)| **epoch < EPOCHS_MAX as u64) {
                if log.is_none_or(|log| log.is_ahead(*epoch, head)) {
                    claimed.push((*audience, *epoch));
                }
            }
        }
        if claimed.is_empty() || planted(Mutation::IgnoreDoubt) || !self.doubted.insert(peer) {
            return false;
        }
        for (audience, epoch) in claimed {
            self.raise_floor(audience, epoch + 1);
        }
        true
    }

    fn raise_floor(&mut self, audience: Audience, epoch: u64) {
        let floor = self.floors.entry(audience).or_insert(1);
        *floor = epoch.max(*floor);
    }

    fn effects(&mut self, mut changes: Changes, from: Option<ClusterId>) -> Vec<Effect> {
        if changes.taken.is_empty() {
            return Vec::new();
        }
        self.fold.refresh();
        let forked: BTreeSet<(ClusterId, Audience, u64)> = changes
            .alarms
            .iter()
            .map(|Alarm::Equivocation { writer, audience, epoch, .. }| (*writer, *audience, *epoch))
            .collect();
        let mut sends = Vec::new();
        let peers: Vec<ClusterId> = self.peers.keys().copied().filter(|peer| Some(*peer) != from).collect();
        for peer in peers {
            self.push(peer, &changes.taken, &forked, &mut sends);
        }
        if let Some(peer) = from {
            // Whoever sent one side of a fork is shown the other.
            self.push(peer, &[], &forked, &mut sends);
        }
        if planted(Mutation::PersistFirst) {
            changes.taken.truncate(1);
        }
        let mut effects = vec![Effect::Persist(changes.taken)];
        if changes.alarms.is_empty() || !planted(Mutation::SkipPublish) {
            effects.push(Effect::Publish);
        }
        effects.extend(changes.alarms.into_iter().map(Effect::Alarm));
        if planted(Mutation::SendBeforePersist) {
            sends.append(&mut effects);
            return sends;
        }
        effects.append(&mut sends);
        effects
    }

    /// Sends `peer` what it lacks of `taken`, and both sides of each fork.
    fn push(
        &mut self,
        peer: ClusterId,
        taken: &[Authentic<Record>],
        forked: &BTreeSet<(ClusterId, Audience, u64)>,
        effects: &mut Vec<Effect>,
    ) {
        let Self { own, records, logs, peers, .. } = self;
        // A peer that did not say yet how far it is gets all it lacks when it does.
        let Some(Peer { ahead: Some(ahead), .. }) = peers.get_mut(&peer) else { return };
        let mut bytes = Vec::new();
        for record in taken {
            let id = record.id();
            let in_fork = forked.contains(&(id.writer, id.audience, id.epoch));
            // Its writer has it, or says in a vector that it lost it.
            if !in_fork && id.writer != peer && !ahead.reaches(&id) && shares(*own, peer, id.writer, id.audience) {
                bytes.push(record.raw().clone());
            }
        }
        for (writer, audience, epoch) in forked {
            if shares(*own, peer, *writer, *audience)
                && let Some(log) = logs.get(&(*writer, *audience))
            {
                let siblings = log.siblings(*epoch).filter_map(|arrival| records.get(arrival));
                bytes.extend(siblings.map(|record| record.raw().clone()));
            }
        }
        send(peer, bytes.into_iter(), effects);
    }
}

/// Whether a log may travel between `own` and `peer`: what one member alone may see goes nowhere else.
fn shares(own: ClusterId, peer: ClusterId, writer: ClusterId, audience: Audience) -> bool {
    match audience {
        Audience::Law | Audience::All => true,
        Audience::Member(reader) => {
            reader != writer && ((writer == own && reader == peer) || (writer == peer && reader == own))
        }
    }
}

/// The place behind an open head; in a new epoch if that one is below the floor, or full.
fn following(open: Option<(u64, Head)>, highest: u64, floor: u64) -> Position {
    match open {
        Some((epoch, head)) if epoch >= floor && head.seq < EPOCH_RECORDS_MAX => {
            Position { epoch, seq: head.seq + 1, previous: head.digest }
        }
        _ => Position { epoch: floor.max(highest + 1), seq: 1, previous: Digest::ZERO },
    }
}

fn is_tombstone(record: &Authentic<Record>) -> bool {
    matches!(record.value().body, Body::Intention(Intention { state: RuleState::Deleted, .. }))
}

/// Cuts envelopes into messages within the bounds.
fn send(peer: ClusterId, envelopes: impl Iterator<Item = Arc<[u8]>>, effects: &mut Vec<Effect>) {
    let mut batch: Vec<Arc<[u8]>> = Vec::new();
    let mut bytes = 0;
    for envelope in envelopes {
        if batch.len() >= MESSAGE_RECORDS_MAX || (!batch.is_empty() && bytes + envelope.len() > MESSAGE_BYTES_MAX) {
            let message = Message::Records(std::mem::take(&mut batch));
            effects.push(Effect::Send { peer, message });
            bytes = 0;
        }
        bytes += envelope.len();
        batch.push(envelope);
    }
    if !batch.is_empty() {
        effects.push(Effect::Send { peer, message: Message::Records(batch) });
    }
}
