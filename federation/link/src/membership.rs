//! Who is in and who is out: what an operator decides for this cluster, and for the federation.
//!
//! In: a member's id and the operator's name. Out: a durable record. Never: judges whether a decision counts (the roll of
//! `federation/model` does), or closes a session: the supervisor follows the snapshot.

use std::collections::BTreeSet;

use federation_model::{Audience, Body, ClusterId, Eviction, MemberState, RecordId, Stance};

use crate::{Link, WriteError};

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
