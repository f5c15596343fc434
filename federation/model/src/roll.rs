//! The roll of members: who was admitted under which name, who makes law, and how each stands.
//!
//! In: founding, admission, lawmaker, terms, eviction and stance records, in the order in which they arrived. Out:
//! [`Members`], and which records count. Never: judges a rule, or trusts a writer that no chain of admissions leads to
//! from the founder.

mod office;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::office::{Heads, Office, within};
use crate::{
    Accept, Admission, Approval, Audience, Authentic, Body, Candidate, ClusterId, Eviction, FederationId, Member,
    MemberState, MemberTerms, Members, Record, RecordId, Relay, Stance,
};

/// The members, and what of their words counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roll {
    pub(crate) members: Members,
    /// Admissions whose name or trust domain was another's already, in order of arrival.
    pub(crate) held: Vec<RecordId>,
    /// How the others see this cluster; it sees itself as active.
    pub(crate) own_state: MemberState,
    /// How far the public logs of those that are out count.
    limits: BTreeMap<ClusterId, Heads>,
}

impl Roll {
    /// A roll of these members, of whom everything counts that their states let count.
    pub(crate) fn of(members: Members) -> Self {
        Self { members, ..Self::default() }
    }

    /// Whether a record counts, given who its writer is: a member, and of one that is out only what it said before, of one
    /// that is not active no service. Bundles of those that are not active are left out where bundles are gathered.
    pub(crate) fn counts(&self, id: &RecordId) -> bool {
        let Some(member) = self.members.get(&id.writer) else { return false };
        match id.audience {
            Audience::Law if member.state.is_out() => self.limits.get(&id.writer).is_none_or(|heads| within(heads, id)),
            Audience::Law => true,
            Audience::All | Audience::Member(_) => member.state.is_active(),
        }
    }

    /// Whether every record means the same under both: they differ in nothing but where members are reached.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let meaning = |member: &Member| Member { endpoints: Vec::new(), ..member.clone() };
        self.limits == other.limits && self.members.iter().map(meaning).eq(other.members.iter().map(meaning))
    }
}

/// What of the records decides the roll.
#[derive(Default)]
struct Papers<'a> {
    founder: Option<(&'a Record, &'a Candidate)>,
    admissions: Vec<(RecordId, &'a Record, &'a Admission)>,
    switches: Vec<(RecordId, &'a Record, ClusterId, bool)>,
    terms: Vec<(RecordId, &'a Record, &'a MemberTerms)>,
    evictions: Vec<(RecordId, &'a Eviction)>,
    /// Of the own cluster alone.
    stances: Vec<(RecordId, &'a Record, ClusterId, &'a Stance)>,
}

/// Whether the roll is read from such a record.
pub(crate) fn is_paper(record: &Record) -> bool {
    match record.body {
        Body::Founding(_) | Body::Admission(_) | Body::Terms(_) | Body::Lawmaker { .. } | Body::Eviction(_) => {
            record.audience == Audience::Law
        }
        Body::Stance { .. } => record.audience == Audience::Member(record.writer),
        _ => false,
    }
}

/// Reads the roll out of records as cluster `own` sees it; others are passed over.
pub(crate) fn call<'a>(
    own: ClusterId,
    federation: FederationId,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Roll {
    let papers = sort(own, federation, records);
    let mut roll = Roll::default();
    let Some((record, founder)) = papers.founder else { return roll };
    let office = Office::judge(founder.id, &papers);
    // A cluster never thinks itself out: what the others think of it is told beside.
    roll.own_state = state_of(own, &office);
    let state = |id: ClusterId| if id == own { MemberState::Active } else { state_of(id, &office) };
    roll.members.insert(member(founder, record, state(founder.id)));
    admit(&mut roll, &papers.admissions, &office, state);
    for id in &office.lawmakers {
        if let Some(member) = roll.members.get_mut(id) {
            member.lawmaker = true;
        }
    }
    for (id, signers) in &office.signers {
        if let Some(member) = roll.members.get_mut(id) {
            member.evicted_by = signers.iter().copied().collect();
        }
    }
    apply_terms(&mut roll.members, &papers.terms);
    roll.limits = office.limits;
    take_stances(&mut roll, own, &papers.stances);
    roll
}

fn sort<'a>(
    own: ClusterId,
    federation: FederationId,
    records: impl Iterator<Item = &'a Authentic<Record>>,
) -> Papers<'a> {
    let mut papers = Papers::default();
    for authentic in records.filter(|record| is_paper(record.value())) {
        let (id, record) = (authentic.id(), authentic.value());
        match &record.body {
            Body::Founding(candidate) if FederationId::from_digest(authentic.digest()) == federation => {
                papers.founder = Some((record, candidate));
            }
            Body::Admission(admission) => papers.admissions.push((id, record, admission)),
            Body::Lawmaker { cluster, on } => papers.switches.push((id, record, *cluster, *on)),
            Body::Terms(terms) => papers.terms.push((id, record, terms)),
            Body::Eviction(eviction) => papers.evictions.push((id, eviction)),
            Body::Stance { cluster, stance } if record.writer == own => {
                papers.stances.push((id, record, *cluster, stance));
            }
            _ => {}
        }
    }
    papers
}

/// How the federation sees a cluster.
fn state_of(id: ClusterId, office: &Office) -> MemberState {
    if office.evicted.contains(&id) {
        MemberState::Evicted
    } else if office.left.contains(&id) {
        MemberState::Left
    } else if office.signers.contains_key(&id) {
        MemberState::Suspended
    } else {
        MemberState::Active
    }
}

/// Admits in order of arrival; an admission whose sponsor is not yet a member waits for the sponsor's.
fn admit(
    roll: &mut Roll,
    admissions: &[(RecordId, &Record, &Admission)],
    office: &Office,
    state: impl Fn(ClusterId) -> MemberState,
) {
    let counts = |id: &RecordId| office.limits.get(&id.writer).is_none_or(|heads| within(heads, id));
    let mut waiting: Vec<_> = admissions.iter().filter(|(id, ..)| counts(id)).collect();
    loop {
        let before = waiting.len();
        waiting.retain(|(id, record, admission)| {
            if roll.members.get(&record.writer).is_none() {
                return true;
            }
            let candidate = &admission.candidate;
            match roll.members.get(&candidate.id) {
                // A second sponsor's word for the same cluster under the same names adds nothing.
                Some(held) if held.name == candidate.name && held.trust_domain == candidate.trust_domain => {}
                Some(_) => roll.held.push(*id),
                None => {
                    if !roll.members.insert(member(candidate, record, state(candidate.id))) {
                        roll.held.push(*id);
                    }
                }
            }
            false
        });
        if waiting.len() == before {
            return;
        }
    }
}

fn member(candidate: &Candidate, record: &Record, state: MemberState) -> Member {
    Member {
        id: candidate.id,
        name: candidate.name.clone(),
        trust_domain: candidate.trust_domain.clone(),
        root: candidate.root.as_slice().into(),
        replication_key: candidate.replication_key,
        sealing_key: candidate.sealing_key,
        sponsor: record.writer,
        admitted_at: record.written_at,
        lawmaker: false,
        state,
        evicted_by: Vec::new(),
        accept: Accept::default(),
        approval: Approval::default(),
        relay: Relay::default(),
        endpoints: Vec::new(),
    }
}

/// A member's own word on itself. Of siblings the narrower: own law, approval by hand, no relaying if any says so;
/// endpoints of the newest.
fn apply_terms(members: &mut Members, terms: &[(RecordId, &Record, &MemberTerms)]) {
    let replaced: BTreeSet<RecordId> = terms.iter().flat_map(|(_, record, _)| own_replaced(record)).collect();
    let mut standing: Vec<_> = terms.iter().filter(|(id, ..)| !replaced.contains(id)).collect();
    standing.sort_by_key(|(id, ..)| (id.epoch, id.seq, id.digest));
    let mut said: BTreeSet<ClusterId> = BTreeSet::new();
    for (_, record, terms) in standing {
        let Some(member) = members.get_mut(&record.writer) else { continue };
        member.endpoints.clone_from(&terms.endpoints);
        if said.insert(record.writer) {
            (member.accept, member.approval, member.relay) = (terms.accept, terms.approval, terms.relay);
        } else {
            member.accept = member.accept.max(terms.accept);
            member.approval = member.approval.max(terms.approval);
            member.relay = member.relay.min(terms.relay);
        }
    }
}

/// What this cluster decided for itself alone: whom it shut out, whom it approved although it approves by hand or
/// although somebody was evicted. Of siblings blocked, and approved despite the fewest.
fn take_stances(roll: &mut Roll, own: ClusterId, stances: &[(RecordId, &Record, ClusterId, &Stance)]) {
    let replaced: BTreeSet<RecordId> = stances.iter().flat_map(|(_, record, ..)| own_replaced(record)).collect();
    let mut taken: BTreeMap<ClusterId, Stance> = BTreeMap::new();
    for (_, _, cluster, stance) in stances.iter().filter(|(id, ..)| !replaced.contains(id)) {
        match taken.get_mut(cluster) {
            None => drop(taken.insert(*cluster, (*stance).clone())),
            Some(held) => match (held, stance) {
                (Stance::Approved { despite: held }, Stance::Approved { despite }) => {
                    held.retain(|signer| despite.contains(signer));
                }
                (held, _) => *held = Stance::Blocked,
            },
        }
    }
    let Some(member) = roll.members.get(&own) else { return };
    let (by_hand, own_sponsor) = (member.approval == Approval::Manual, member.sponsor);
    let others: Vec<ClusterId> = roll.members.iter().map(|member| member.id).filter(|id| *id != own).collect();
    for id in others {
        let Some(member) = roll.members.get_mut(&id) else { continue };
        let despite = match taken.get(&id) {
            Some(Stance::Approved { despite }) => Some(despite),
            _ => None,
        };
        let approved = despite.is_some() || !by_hand || member.sponsor == own || id == own_sponsor;
        member.state = match member.state {
            gone if gone.is_gone() => gone,
            MemberState::Suspended => {
                let all =
                    despite.is_some_and(|despite| member.evicted_by.iter().all(|signer| despite.contains(signer)));
                if all { MemberState::Active } else { MemberState::Suspended }
            }
            _ if taken.get(&id) == Some(&Stance::Blocked) => MemberState::Blocked,
            _ if !approved => MemberState::Held,
            state => state,
        };
    }
}

/// What a record replaces of its own writer's: the replacement that always counts.
pub(crate) fn own_replaced(record: &Record) -> impl Iterator<Item = RecordId> {
    record.replaces.iter().filter(|id| id.writer == record.writer).copied()
}
