//! Which versions of one intention still stand, and in which capacity of their writers.
//!
//! In: versions of one key, and who replaces which. Out: the capacities that this takes, and what it leaves standing.
//! Never: looks at other keys, or at the pair that asks.
//!
//! A cluster speaks in up to three capacities: for its own services (owner), for its own accounts (source), and, if it
//! is a lawmaker, for everybody's (global). A replacement by another cluster takes a restriction away only in the
//! capacities over which that other cluster has a say: nobody but its writer lifts what a cluster denies for its own.

use std::ops::{BitAnd, BitOr, Not};

use crate::{
    Action, ClusterId, IntentionKey, Label, Layer, Members, RecordId, RuleState,
    mutation::{Mutation, planted},
};

/// A set of capacities in which a writer's word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacities(u8);

impl Capacities {
    pub(crate) const NONE: Self = Self(0);
    /// The writer owns the destination.
    pub(crate) const OWNER: Self = Self(1);
    /// The source is of the writer's cluster.
    pub(crate) const SOURCE: Self = Self(2);
    /// The writer is a lawmaker, and the destination is another's.
    pub(crate) const GLOBAL: Self = Self(4);
    pub(crate) const ALL: Self = Self(7);

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What a writer may say of one pair.
    pub(crate) fn of_pair(owner: bool, source: bool, lawmaker: bool) -> Self {
        let either = if owner {
            Self::OWNER
        } else if lawmaker {
            Self::GLOBAL
        } else {
            Self::NONE
        };
        if source { either | Self::SOURCE } else { either }
    }

    /// What `writer` may say of any pair that `key` can match.
    pub(crate) fn possible(writer: ClusterId, key: &IntentionKey, members: &Members) -> Self {
        let Some(member) = members.get(&writer) else { return Self::NONE };
        let mut found = if member.lawmaker { Self::GLOBAL } else { Self::NONE };
        if key.destination.cluster.matches(&writer) {
            found = found | Self::OWNER;
        }
        if names_source(key, writer, members) {
            found = found | Self::SOURCE;
        }
        found
    }
}

impl BitOr for Capacities {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Capacities {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Capacities {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0 & Self::ALL.0)
    }
}

/// Whether the key can match accounts of `cluster`.
fn names_source(key: &IntentionKey, cluster: ClusterId, members: &Members) -> bool {
    match &key.source {
        crate::SourcePattern::Spiffe(_) => key.source.cluster(members) == Some(cluster),
        crate::SourcePattern::Account { cluster: wanted, .. } => wanted.matches(&cluster),
    }
}

/// One version of an intention: what one record says of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) id: RecordId,
    pub(crate) state: RuleState,
}

/// The capacities that a replacement by `writer` takes from `old`: none if it does not count.
pub(crate) fn taken(writer: ClusterId, old: &Version, key: &IntentionKey, members: &Members) -> Capacities {
    if writer == old.id.writer || planted(Mutation::ReplaceAnyones) {
        return Capacities::ALL;
    }
    // Whoever is out neither allows nor lifts anything; what it wrote over stands again.
    if members.get(&writer).is_none_or(|member| member.state.is_out()) {
        return Capacities::NONE;
    }
    // An allow is lost altogether: that only restricts. Whatever restricts is kept where its writer speaks for its own.
    let restricts = old.state != RuleState::Is(Action::Allow);
    let mut taken = Capacities::NONE;
    if is_lawmaker(writer, members) {
        if members.get(&old.id.writer).is_some_and(|member| member.state.is_gone()) {
            return Capacities::ALL;
        }
        if is_lawmaker(old.id.writer, members) {
            taken = taken | if restricts { Capacities::GLOBAL } else { Capacities::ALL };
        }
    }
    if owns(writer, key, members) && key.layer != Layer::Guardrail {
        taken = taken | if restricts { !Capacities::SOURCE } else { Capacities::ALL };
    }
    taken
}

/// Whether a version is an allow whose writer is out: it counts no more, whatever it replaced.
pub(crate) fn is_void(writer: &ClusterId, state: RuleState, members: &Members) -> bool {
    let out = members.get(writer).is_some_and(|member| member.state.is_out());
    out && state == RuleState::Is(Action::Allow)
}

/// Whether a tombstone by `writer` voids a concurrent allow: if it could have replaced it.
pub(crate) fn voids(writer: ClusterId, allow: &Version, key: &IntentionKey, members: &Members) -> bool {
    taken(writer, allow, key, members) == Capacities::ALL
}

fn is_lawmaker(writer: ClusterId, members: &Members) -> bool {
    members.get(&writer).is_some_and(|member| member.lawmaker)
}

/// Whether the key names the writer's own cluster as its destination.
fn owns(writer: ClusterId, key: &IntentionKey, members: &Members) -> bool {
    key.destination.cluster == Label::Is(writer) && members.get(&writer).is_some()
}

/// Whether a version is still part of what the key says: untouched, or left with a capacity that can ever apply.
pub(crate) fn is_live(version: &Version, left: Capacities, key: &IntentionKey, members: &Members) -> bool {
    left == Capacities::ALL || !(left & Capacities::possible(version.id.writer, key, members)).is_empty()
}
