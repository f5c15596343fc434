//! One simulated cluster: its replica, its disk, and what it has yet to carry out.

use std::collections::{BTreeSet, VecDeque};

use federation_model::{
    Authentic, Candidate, ClusterId, Digest, Effect, FederationId, Mutation, Record, RecordId, Replica, ReplicationKey,
    SealingKey, Snapshot, Vector,
};

/// What waits until the effects of what came before are carried out.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Connected(usize),
    Disconnected(usize),
    Vector(usize, Vector),
    Records(usize, Vec<Authentic<Record>>),
    AntiEntropy,
}

/// One cluster. What is in `disk` survives a crash; all else of its state is lost.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) id: ClusterId,
    /// `None` while it is down or not a member yet.
    pub(crate) replica: Option<Replica>,
    pub(crate) disk: Vec<Authentic<Record>>,
    pub(crate) joined: bool,
    pub(crate) pending: VecDeque<Effect>,
    pub(crate) inbox: VecDeque<Input>,
    /// Whether a step of this node is in the queue of events.
    pub(crate) stepping: bool,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) revision: u64,
    /// Own writes that were durable: nothing may ever lose them.
    pub(crate) acked: BTreeSet<RecordId>,
    /// How far it was at its last publication; it may not fall behind that.
    pub(crate) reached: Vector,
    /// Whether its disk was set back and it was told so, but did not start since.
    pub(crate) restored: bool,
    /// Lowest epoch that it may write to, kept on its disk.
    pub(crate) floor: u64,
}

impl Node {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            id: candidate(number).id,
            replica: None,
            disk: Vec::new(),
            joined: false,
            pending: VecDeque::new(),
            inbox: VecDeque::new(),
            stepping: false,
            snapshot: None,
            revision: 0,
            acked: BTreeSet::new(),
            reached: Vector::default(),
            restored: false,
            floor: 1,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Starts from the disk, as a gateway does.
    pub(crate) fn start(&mut self, federation: FederationId, mutation: Option<Mutation>) {
        let mut replica = match mutation {
            Some(mutation) => Replica::mutated(self.id, federation, mutation),
            None => Replica::new(self.id, federation),
        };
        replica.load(self.disk.iter().cloned());
        replica.set_floor(self.floor);
        if std::mem::take(&mut self.restored) {
            self.floor = replica.break_continuity();
        }
        self.replica = Some(replica);
    }

    /// Loses all but the disk.
    pub(crate) fn crash(&mut self) {
        self.replica = None;
        self.pending.clear();
        self.inbox.clear();
        self.snapshot = None;
    }
}

/// The cluster of a number, as it says of itself.
pub(crate) fn candidate(number: usize) -> Candidate {
    let byte = number as u8 + 1;
    Candidate {
        id: ClusterId::from_digest(Digest([byte; 32])),
        name: format!("c{number}").parse().expect("a short label"),
        trust_domain: format!("c{number}.mesh.internal").parse().expect("lower-case letters and dots"),
        root: vec![byte],
        replication_key: ReplicationKey([byte; 32]),
        sealing_key: SealingKey([byte; 32]),
    }
}
