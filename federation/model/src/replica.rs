//! Replication as a pure machine: authentic records and messages in, effects out.
//!
//! Computes no digest, checks no signature, moves no byte: `federation/link` does that around it.

use std::sync::Arc;

use crate::{Audience, Authentic, ClusterId, FederationId, Position, Record, ReplicationKey, Vector};

/// What replicas say to each other.
#[derive(Clone, Debug)]
pub enum Message {
    /// How far the sender has each log; the receiver answers with what the sender lacks.
    Vector(Vector),
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
    /// Two records at one place in a log.
    Equivocation { writer: ClusterId, audience: Audience, epoch: u64, seq: u64 },
}

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    #[error("record belongs to another federation")]
    OtherFederation,
}

/// One cluster's copy of every log that it may read.
#[derive(Clone, Debug)]
pub struct Replica {
    own: ClusterId,
    federation: FederationId,
}

impl Replica {
    pub fn new(own: ClusterId, federation: FederationId) -> Self {
        Self { own, federation }
    }

    pub fn own(&self) -> ClusterId {
        self.own
    }

    pub fn federation(&self) -> FederationId {
        self.federation
    }

    /// Where this cluster's next record to `audience` goes.
    pub fn next_position(&self, _audience: Audience) -> Position {
        Position { epoch: 1, seq: 1, previous: crate::Digest::ZERO }
    }

    /// The replication key with which records of `writer` must be signed; `None` while nothing admits it.
    pub fn replication_key(&self, _writer: &ClusterId) -> Option<ReplicationKey> {
        None
    }
}
