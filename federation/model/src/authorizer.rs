//! Compiles intentions into an [`Authorizer`].
//!
//! In: what stands of every intention, local and replicated. Out: one table, found by destination and source in a bounded
//! number of probes; copies share it, and changing one key costs the same however many there are. Never: looks at
//! sockets, certificates or the clock. Empty input denies everything.
//!
//! The order of judgement: a guardrail, a timed deny, a record that cannot be understood, then the rules. Among the
//! rules a call needs an allow as the highest of what the destination's cluster and the lawmakers say, and no deny as
//! the highest of what the destination's cluster says by itself, nor of what the source's cluster says.

mod compile;
mod index;
mod mixer;
mod table;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use self::index::{Law, Verdict};
use crate::{
    Action, Body, ClusterId, Conflict, Denial, DenialReason, IntentionKey, Member, Members, Passage, Permit, Proof,
    Record, RecordId, RecordKey, Relay, RuleState, Service, ServiceId, SpiffeId, Stale, Timestamp, VerifiedPeer,
    files::{Filed, Files},
    roll::Roll,
};

/// What the law says of a pair, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// `None` when allowed.
    pub reason: Option<DenialReason>,
    /// The rule that decided; `None` for the default.
    pub rule: Option<RecordId>,
    /// The rule in words.
    pub rule_text: Option<String>,
}

/// How one live version of an intention stands: what `intention list` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub id: RecordId,
    pub key: IntentionKey,
    pub state: RuleState,
    /// Consul's precedence, 1 to 9.
    pub precedence: u8,
    pub writer: ClusterId,
    pub author: String,
    pub written_at: Timestamp,
    /// Whether it counts for any pair at all.
    pub counts: bool,
    /// Why it does not count, or only in part; empty otherwise.
    pub note: String,
    /// Whether other live versions of its key exist that nobody has resolved.
    pub conflict: bool,
    /// The rule in words: `deny web.shop.* -> payments.billing.west`.
    pub text: String,
}

/// The compiled law. The default denies everything.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    law: Law,
    /// Made when somebody asks: a list of all that stands.
    explained: Arc<OnceLock<Vec<Standing>>>,
    own: Option<ClusterId>,
    revision: u64,
}

impl Authorizer {
    /// Compiles the law out of whatever records are given, replaced ones included; those that are no rules, or of no
    /// member, are passed over.
    pub fn compile<'a>(rules: impl Iterator<Item = (RecordId, &'a Record)>, members: &Members) -> Self {
        let roll = Roll::of(members.clone());
        let (mut files, mut opaque) = (Files::default(), Vec::new());
        for (id, record) in rules {
            files.take(id, Arc::new(record.clone()), &roll);
            if let Body::Unknown { kind, critical: true } = record.body {
                opaque.push((id, kind));
            }
        }
        let mut authorizer = Self::new(Arc::new(roll.members.clone()));
        for key in files.keys() {
            if let RecordKey::Intention(intention) = key {
                authorizer.rule(intention, files.standing(key));
            }
        }
        authorizer.set_opaque(opaque.into_iter().filter(|(id, _)| !files.is_replaced(id, &roll)));
        authorizer
    }

    /// A law without rules. Entitlement is judged by `members`: a change of who makes law needs a new one.
    pub(crate) fn new(members: Arc<Members>) -> Self {
        Self { law: Law::new(members), ..Self::default() }
    }

    /// The members by whose names rules are told, if they differ in nothing else from those of before.
    pub(crate) fn set_members(&mut self, members: Arc<Members>) {
        self.law.members = members;
    }

    /// What stands of one key from now on.
    pub(crate) fn rule(&mut self, key: &IntentionKey, standing: &[Filed]) {
        compile::rule(&mut self.law, key, standing);
    }

    /// The critical records that this version does not understand, each with its kind: they deny their writers' own.
    pub(crate) fn set_opaque(&mut self, opaque: impl Iterator<Item = (RecordId, u32)>) {
        self.law.set_opaque(opaque);
    }

    /// The same law as it stands in cluster `own` at a snapshot's revision, which permits then carry.
    ///
    /// Without it every passage needs a session, its source being nobody's own.
    #[must_use]
    pub fn at(self, own: ClusterId, revision: u64) -> Self {
        Self { own: Some(own), revision, explained: Arc::default(), ..self }
    }

    /// What the law says of `source` calling `service`, without any proof: for `check` and lists, never for a stream.
    pub fn decide(&self, source: &SpiffeId, service: &Service) -> Decision {
        match self.law.judge(source, &service.id) {
            Verdict::Allow(rule) => Decision {
                action: Action::Allow,
                reason: None,
                rule: Some(rule.id()),
                rule_text: Some(compile::words(&rule, &self.law.members)),
            },
            Verdict::Deny(reason, rule) => Decision {
                action: Action::Deny,
                reason: Some(reason),
                rule: rule.map(|rule| rule.id()),
                rule_text: rule.map(|rule| compile::words(&rule, &self.law.members)),
            },
        }
    }

    /// Leave for `peer` to reach `service`, where its mTLS ends. Needs a peer proved by `Tls` or `Own`.
    ///
    /// `age` is how old the data of the service's owner is to the asker, `None` if it was never heard; that of the own
    /// cluster does not matter, since nobody is stale to itself.
    ///
    /// # Errors
    /// The wrong proof, an ended credential, the law's denial, or data past a lease whose policy is to deny.
    pub fn authorize(
        &self,
        peer: &VerifiedPeer,
        service: &Service,
        now: Timestamp,
        age: Option<Duration>,
    ) -> Result<Permit, Denial> {
        if !matches!(peer.proof(), Proof::Tls | Proof::Own) {
            return Err(self.denial(DenialReason::WrongProof, peer, service, None));
        }
        let rule = self.leave(peer, service, now, age)?;
        Ok(Permit {
            source: peer.id().clone(),
            service: service.id.clone(),
            rule,
            deadline: peer.not_after(),
            policy: self.revision,
        })
    }

    /// Leave for sealed bytes of `signed` to pass on toward `service`. Needs `Signed`; and if the identity is another
    /// member's, the `Session` over which it came: of that same member, or of one that relays. From one member to
    /// another they pass only if this cluster relays, and only by one relay.
    ///
    /// The passage ends with the leaf that signed; the session's own end closes its tunnels whatever this says. `age` is
    /// that of the owner's data, as in [`Authorizer::authorize`].
    ///
    /// # Errors
    /// The wrong proof, a session of somebody else or none where one is needed, an ended credential, the law's denial, or
    /// data past a lease whose policy is to deny.
    pub fn authorize_passage(
        &self,
        signed: &VerifiedPeer,
        session: Option<&VerifiedPeer>,
        members: &Members,
        service: &Service,
        now: Timestamp,
        age: Option<Duration>,
    ) -> Result<Passage, Denial> {
        let refuse = |reason| Err(self.denial(reason, signed, service, None));
        let relays =
            |member: Option<&Member>| member.is_some_and(|held| held.relay == Relay::Members && held.state.is_active());
        if signed.proof() != Proof::Signed {
            return refuse(DenialReason::WrongProof);
        }
        match session {
            Some(session) => {
                let edge = session.proof() == Proof::Session && session.id().role() == crate::Role::Edge;
                let straight = session.trust_domain() == signed.trust_domain();
                // Nobody brings an own workload from outside.
                let own = self.law.cluster_of(signed.trust_domain()) == self.own;
                if !edge || own || !(straight || relays(members.by_trust_domain(session.trust_domain()))) {
                    return refuse(DenialReason::WrongProof);
                }
                let ours = self.own == Some(service.id.cluster);
                let carries = straight && self.own.is_some_and(|own| relays(members.get(&own)));
                if !(ours || carries) {
                    return refuse(DenialReason::Unreachable);
                }
                if now >= session.not_after() {
                    return refuse(DenialReason::Expired);
                }
            }
            None if self.own.is_none() || self.law.cluster_of(signed.trust_domain()) != self.own => {
                return refuse(DenialReason::WrongProof);
            }
            None => {}
        }
        let rule = self.leave(signed, service, now, age)?;
        Ok(Passage {
            source: signed.id().clone(),
            service: service.id.clone(),
            rule,
            deadline: signed.not_after(),
            policy: self.revision,
        })
    }

    /// How every live version of every intention stands, in the order in which they are weighed: for people.
    ///
    /// Made when it is first asked for, at a cost that grows with the law; [`Authorizer::standings`] is cheap. Lone
    /// tombstones are left out: what they deleted is gone.
    pub fn explain(&self) -> &[Standing] {
        self.explained.get_or_init(|| {
            let mut rulings: Vec<_> = self.law.rulings().collect();
            rulings.sort_by_cached_key(|ruling| ruling.key().map(index::weight));
            rulings.into_iter().flat_map(|ruling| compile::standings(ruling, &self.law.members)).collect()
        })
    }

    /// How the live versions of one intention stand, in order of id.
    pub fn standings(&self, key: &IntentionKey) -> Vec<Standing> {
        let ruling = self.law.ruling(key).into_iter();
        ruling.flat_map(|ruling| compile::standings(ruling, &self.law.members)).collect()
    }

    /// Number of live versions: of [`Authorizer::explain`].
    pub fn len(&self) -> usize {
        self.law.versions()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Intentions with concurrent versions that nobody has resolved, in the order in which they are weighed.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let siblings = |ruling| {
            let standings = compile::standings(ruling, &self.law.members);
            standings.filter(|standing| standing.conflict).map(|standing| standing.id).collect()
        };
        let found = self.law.conflicts().filter_map(|ruling| Some((ruling, ruling.key()?.clone())));
        found.map(|(ruling, key)| Conflict { key, siblings: siblings(ruling) }).collect()
    }

    /// Number of [`Authorizer::conflicts`].
    pub fn conflict_count(&self) -> usize {
        self.law.conflict_count()
    }

    /// The reason of a pair's decision without any words: for figures and comparisons.
    pub fn allows(&self, source: &SpiffeId, service: &ServiceId) -> bool {
        matches!(self.law.judge(source, service), Verdict::Allow(_))
    }

    /// The rule that allows it, or the denial. What every leave rests on.
    fn leave(
        &self,
        peer: &VerifiedPeer,
        service: &Service,
        now: Timestamp,
        age: Option<Duration>,
    ) -> Result<RecordId, Denial> {
        if now >= peer.not_after() {
            return Err(self.denial(DenialReason::Expired, peer, service, None));
        }
        let stale = self.own != Some(service.id.cluster) && service.staleness.denies(age);
        match self.law.judge(peer.id(), &service.id) {
            Verdict::Allow(_) if stale => {
                let data = Stale { age, lease: service.staleness.lease };
                Err(Denial { stale: Some(Box::new(data)), ..self.denial(DenialReason::Stale, peer, service, None) })
            }
            Verdict::Allow(rule) => Ok(rule.id()),
            Verdict::Deny(reason, rule) => Err(self.denial(reason, peer, service, rule)),
        }
    }

    fn denial(
        &self,
        reason: DenialReason,
        peer: &VerifiedPeer,
        service: &Service,
        rule: Option<index::Cause<'_>>,
    ) -> Denial {
        Denial {
            reason,
            source: Some(peer.id().clone()),
            destination: service.name.to_string(),
            rule: rule.map(|rule| rule.id()),
            rule_text: rule.map(|rule| compile::words(&rule, &self.law.members)),
            stale: None,
        }
    }
}
