//! One simulated cluster: its replica, its disk, and what it has yet to carry out.

use std::collections::{BTreeSet, HashSet, VecDeque};

use federation_model::{
    Authentic, Body, Candidate, ClusterId, Digest, Effect, FederationId, Record, RecordId, Replica, ReplicationKey,
    SealingKey, Snapshot, Vector,
};

/// What waits until the effects of what came before are carried out.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Connected(usize),
    Disconnected(usize),
    Vector { peer: usize, vector: Vector, ask: bool },
    Records(usize, Vec<Authentic<Record>>),
    AntiEntropy,
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing is written, and that is known.
    Full,
    /// Nobody knows whether it was written.
    Error,
}

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    /// By order of arrival.
    records: Vec<Authentic<Record>>,
    held: HashSet<Digest>,
    /// Written, although the write was said to have failed: found at the next start.
    hidden: Vec<Authentic<Record>>,
    /// How every write fails at present.
    pub(crate) failure: Option<Failure>,
    /// Lowest epoch that its cluster may write to.
    pub(crate) floor: u64,
}

impl Disk {
    pub(crate) fn put(&mut self, record: Authentic<Record>) {
        if self.held.insert(record.digest()) {
            self.records.push(record);
        } else {
            // The same row again, with a new order of arrival.
            self.records.retain(|held| held.digest() != record.digest());
            self.records.push(record);
        }
    }

    /// Puts a record where only the next start finds it.
    pub(crate) fn hide(&mut self, record: Authentic<Record>) {
        self.hidden.push(record);
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.held.contains(digest)
    }

    pub(crate) fn records(&self) -> &[Authentic<Record>] {
        &self.records
    }

    /// Goes back to its first `keep` records.
    pub(crate) fn set_back(&mut self, keep: usize) {
        self.hidden.clear();
        self.records.truncate(keep);
        self.held = self.records.iter().map(Authentic::digest).collect();
    }

    /// Loses one row.
    pub(crate) fn lose(&mut self, at: usize) {
        let lost = self.records.remove(at);
        self.held.remove(&lost.digest());
    }

    fn surface(&mut self) {
        for record in std::mem::take(&mut self.hidden) {
            if !self.has(&record.digest()) {
                self.put(record);
            }
        }
    }
}

/// One cluster. What is in `disk` survives a crash; all else of its state is lost.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) id: ClusterId,
    /// `None` while it is down or not a member yet.
    pub(crate) replica: Option<Replica>,
    pub(crate) disk: Disk,
    pub(crate) joined: bool,
    /// Whether its process stands still.
    pub(crate) stopped: bool,
    pub(crate) pending: VecDeque<Effect>,
    /// Sessions that came and went: heard of before all that waits in `inbox`.
    pub(crate) changes: VecDeque<Input>,
    pub(crate) inbox: VecDeque<Input>,
    /// Whether a step of this node is in the queue of events.
    pub(crate) stepping: bool,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) revision: u64,
    /// Whether something is durable that is not in force yet.
    pub(crate) unpublished: bool,
    /// Own writes that were durable: nothing may ever lose them.
    pub(crate) acked: BTreeSet<RecordId>,
    /// How far it was at its last publication; it may not fall behind that.
    pub(crate) reached: Vector,
    /// Whether its disk was set back and it was told so, but did not start since.
    pub(crate) restored: bool,
    /// Whether its disk lost something of which it was not told.
    pub(crate) damaged: bool,
    /// Own records that others were sent and that its disk lost without its being told.
    pub(crate) lost: Vec<RecordId>,
    /// Those of them that somebody named since it started.
    pub(crate) heard: BTreeSet<Digest>,
    /// How far its clock is from the true time, in milliseconds.
    pub(crate) clock: i64,
}

impl Node {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            id: candidate(number).id,
            replica: None,
            disk: Disk { floor: 1, ..Disk::default() },
            joined: false,
            stopped: false,
            pending: VecDeque::new(),
            changes: VecDeque::new(),
            inbox: VecDeque::new(),
            stepping: false,
            snapshot: None,
            revision: 0,
            unpublished: false,
            acked: BTreeSet::new(),
            reached: Vector::default(),
            restored: false,
            damaged: false,
            lost: Vec::new(),
            heard: BTreeSet::new(),
            clock: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Whether its process runs and does something.
    pub(crate) fn works(&self) -> bool {
        self.is_up() && !self.stopped
    }

    /// Whether nothing waits to be carried out.
    pub(crate) fn is_done(&self) -> bool {
        self.pending.is_empty() && self.changes.is_empty() && self.inbox.is_empty()
    }

    pub(crate) fn next_input(&mut self) -> Option<Input> {
        self.changes.pop_front().or_else(|| self.inbox.pop_front())
    }

    /// Starts from the disk, as a gateway does.
    pub(crate) fn start(&mut self, federation: FederationId) {
        self.disk.surface();
        let mut replica = Replica::new(self.id, federation);
        replica.load(self.disk.records().iter().cloned());
        replica.set_floor(self.disk.floor);
        if std::mem::take(&mut self.restored) {
            self.disk.floor = replica.break_continuity();
        }
        self.replica = Some(replica);
    }

    /// Goes back to what it knows to be durable, as a driver does when a write fails.
    pub(crate) fn reload(&mut self, uncertain: bool) {
        self.pending.clear();
        if let Some(replica) = &mut self.replica {
            replica.reload(self.disk.records().iter().cloned(), uncertain);
        }
    }

    /// Whether somebody was evicted, as far as it knows: that may take its own admission with it.
    pub(crate) fn may_be_void(&self) -> bool {
        self.disk.records().iter().any(|record| matches!(record.value().body, Body::Eviction(_)))
    }

    /// Loses all but the disk.
    pub(crate) fn crash(&mut self) {
        self.replica = None;
        self.stopped = false;
        self.pending.clear();
        self.changes.clear();
        self.inbox.clear();
        self.snapshot = None;
        self.unpublished = false;
        self.heard.clear();
    }
}

/// The cluster of a number, as it says of itself.
pub(crate) fn candidate(number: usize) -> Candidate {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip((number as u64 + 1).to_be_bytes().into_iter().rev().cycle()).for_each(|(to, from)| *to = from);
    Candidate {
        id: ClusterId::from_digest(Digest(bytes)),
        name: format!("c{number}").parse().expect("a short label"),
        trust_domain: format!("c{number}.mesh.internal").parse().expect("lower-case letters and dots"),
        root: bytes.get(..8).map_or_else(Vec::new, <[u8]>::to_vec),
        replication_key: ReplicationKey(bytes),
        sealing_key: SealingKey(bytes),
    }
}
