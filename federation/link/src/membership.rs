//! Who is in and who is out: what an operator decides for this cluster, and for the federation.
//!
//! In: a member's id and the operator's name. Out: a durable record. Never: judges whether a decision counts (the roll of
//! `federation/model` does), or closes a session: the supervisor follows the snapshot.

use std::{collections::BTreeSet, time::Duration};

use federation_model::{
    Audience, Body, ClusterId, ClusterName, Eviction, FederationId, Member, MemberState, RecordId, Stance,
};
use tokio::sync::oneshot;

use crate::{
    Link, WriteError,
    replicate::{Command, RejoinError},
};

/// Longest wait for members to confirm that this cluster leaves.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// What became of a cluster that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The federation that it founded, alone.
    pub federation: FederationId,
    /// Members that did not confirm that it left: they hear of it from the others, if any of them was told.
    pub untold: Vec<ClusterName>,
}

impl Link {
    /// Shuts a member out here: its session ends, its identities are believed no more, its services are gone. Others
    /// keep their links with it. Lasts until [`Link::approve`]. Says whether anything changed.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn block(&self, member: ClusterId, author: String) -> Result<bool, WriteError> {
        if self.member(&member).is_some_and(|(state, _)| state == MemberState::Blocked) {
            return Ok(false);
        }
        self.decide(member, Stance::Blocked, author).await.map(|_| true)
    }

    /// Lets a member in that was blocked, that waits for approval, or that lawmakers suspended and no two of them
    /// evicted: for this cluster alone. An eviction signed later shuts it out again. Says whether anything changed.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn approve(&self, member: ClusterId, author: String) -> Result<bool, WriteError> {
        let Some((state, despite)) = self.member(&member).filter(|(state, _)| !state.is_active()) else {
            return Ok(false);
        };
        if state.is_gone() {
            return Ok(false);
        }
        self.decide(member, Stance::Approved { despite }, author).await.map(|_| true)
    }

    /// Signs that a member is out: suspended everywhere at once, for good when a second lawmaker signs it or none but
    /// this one is left. What it said up to what this cluster holds of it stays, its allows excepted.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn evict(&self, member: ClusterId, author: String) -> Result<RecordId, WriteError> {
        // The driver names the heads as they are when it signs.
        let body = Body::Eviction(Eviction { cluster: member, heads: Default::default() });
        self.say(Audience::Law, body, author).await
    }

    /// Leaves the federation: says so to every member that can be told, then founds one of this cluster alone, with its
    /// own services, rules and bundle. Its name there is free; a token of any member brings it back.
    ///
    /// # Errors
    /// There is nobody else, or the store refuses. If this fails half way, it can be asked for again.
    pub async fn leave(&self, author: String) -> Result<Departure, WriteError> {
        let shared = &self.shared;
        let snapshot = shared.snapshot.borrow().clone().ok_or(WriteError::Closed)?;
        let others = || snapshot.members.present().filter(|member| member.id != shared.own);
        if others().next().is_none() {
            return Err(WriteError::Alone);
        }
        // Asked for again after it was said: it is known by whoever was told then.
        let untold = match snapshot.own_state {
            MemberState::Left => Vec::new(),
            _ => self.say_goodbye(author, others().collect()).await?,
        };
        let (reply, replied) = oneshot::channel();
        shared.driver.send(Command::Refound { reply }).await.map_err(|_| WriteError::Closed)?;
        match replied.await.map_err(|_| WriteError::Closed)? {
            Ok(federation) => Ok(Departure { federation, untold }),
            Err(RejoinError::Store(detail) | RejoinError::Records(detail)) => Err(WriteError::Store(detail)),
            Err(RejoinError::HasMembers(_)) => Err(WriteError::Closed),
        }
    }

    /// Says that this cluster leaves and waits until those with a session have it. Returns who could not be told.
    async fn say_goodbye(&self, author: String, others: Vec<&Member>) -> Result<Vec<ClusterName>, WriteError> {
        let shared = &self.shared;
        let linked: BTreeSet<ClusterId> = shared.registry.all_preferred().into_keys().collect();
        let body = Body::Eviction(Eviction { cluster: shared.own, heads: Default::default() });
        let record = self.say(Audience::Law, body, author).await?;
        // Whoever has it confirms it, or closes the session before that.
        let knows = |member: &ClusterId| {
            let confirmed = shared.receipts.read(|receipts, _| receipts.enforces(member, &record));
            confirmed || (linked.contains(member) && shared.registry.preferred(member).is_none())
        };
        let (mut receipts, mut sessions) = (shared.receipts.changes(), shared.registry.changes());
        let told = async {
            while !linked.iter().all(knows) {
                tokio::select! {
                    _ = receipts.changed() => {}
                    _ = sessions.changed() => {}
                }
            }
        };
        let _ = tokio::time::timeout(LEAVE_LIMIT, told).await;
        Ok(others.into_iter().filter(|member| !knows(&member.id)).map(|member| member.name.clone()).collect())
    }

    async fn decide(&self, cluster: ClusterId, stance: Stance, author: String) -> Result<RecordId, WriteError> {
        self.say(Audience::Member(self.shared.own), Body::Stance { cluster, stance }, author).await
    }

    /// How a member stands here, and who signed its eviction.
    fn member(&self, id: &ClusterId) -> Option<(MemberState, BTreeSet<ClusterId>)> {
        let snapshot = self.shared.snapshot.borrow();
        let member = snapshot.as_ref()?.members.get(id)?;
        Some((member.state, member.evicted_by.iter().copied().collect()))
    }
}
