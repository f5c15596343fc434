//! The roll of members: who was admitted under which name, and who makes law.
//!
//! In: founding, admission, lawmaker and terms records, in the order in which they arrived. Out: [`Members`].
//! Never: judges a rule, or trusts a writer that no chain of admissions leads to from the founder.

use std::collections::BTreeSet;

use crate::{
    Accept, Admission, Audience, Authentic, Body, Candidate, ClusterId, FederationId, Member, MemberTerms, Members,
    Record, RecordId,
};

/// The members, and the admissions that were held back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roll {
    pub(crate) members: Members,
    /// Admissions whose name or trust domain was another's already, in order of arrival.
    pub(crate) held: Vec<RecordId>,
}

impl Roll {
    /// Whether a record counts: its writer is a member.
    pub(crate) fn counts(&self, id: &RecordId) -> bool {
        self.members.get(&id.writer).is_some()
    }

    /// Whether every record means the same under both: they differ in nothing but where members are reached.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let meaning = |member: &Member| Member { endpoints: Vec::new(), ..member.clone() };
        self.members.iter().map(meaning).eq(other.members.iter().map(meaning))
    }
}

/// What of the records decides the roll.
#[derive(Default)]
struct Papers<'a> {
    founder: Option<(&'a Record, &'a Candidate)>,
    admissions: Vec<(RecordId, &'a Record, &'a Admission)>,
    switches: Vec<(RecordId, &'a Record, ClusterId, bool)>,
    terms: Vec<(RecordId, &'a Record, &'a MemberTerms)>,
}

/// Reads the roll out of records; others are passed over.
pub(crate) fn call<'a>(federation: FederationId, records: impl Iterator<Item = &'a Authentic<Record>>) -> Roll {
    let papers = sort(federation, records);
    let mut roll = Roll::default();
    let Some((record, candidate)) = papers.founder else { return roll };
    roll.members.insert(member(candidate, record));
    admit(&mut roll, &papers.admissions);
    for id in lawmakers(candidate.id, &papers) {
        if let Some(member) = roll.members.get_mut(&id) {
            member.lawmaker = true;
        }
    }
    apply_terms(&mut roll.members, &papers.terms);
    roll
}

fn sort<'a>(federation: FederationId, records: impl Iterator<Item = &'a Authentic<Record>>) -> Papers<'a> {
    let mut papers = Papers::default();
    for authentic in records {
        let record = authentic.value();
        if record.audience != Audience::Law {
            continue;
        }
        let id = authentic.id();
        match &record.body {
            Body::Founding(candidate) if FederationId::from_digest(authentic.digest()) == federation => {
                papers.founder = Some((record, candidate));
            }
            Body::Admission(admission) => papers.admissions.push((id, record, admission)),
            Body::Lawmaker { cluster, on } => papers.switches.push((id, record, *cluster, *on)),
            Body::Terms(terms) => papers.terms.push((id, record, terms)),
            _ => {}
        }
    }
    papers
}

/// Admits in order of arrival; an admission whose sponsor is not yet a member waits for the sponsor's.
fn admit(roll: &mut Roll, admissions: &[(RecordId, &Record, &Admission)]) {
    let mut waiting: Vec<_> = admissions.iter().collect();
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
                    if !roll.members.insert(member(candidate, record)) {
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

fn member(candidate: &Candidate, record: &Record) -> Member {
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
        accept: Accept::default(),
        endpoints: Vec::new(),
    }
}

/// Who makes law: whoever a lawmaker ever made one, less those that laid it down themselves.
///
/// A grant is never taken back by its giver alone: `off` for another needs the signatures of a final eviction.
fn lawmakers(founder: ClusterId, papers: &Papers<'_>) -> BTreeSet<ClusterId> {
    let admitted = papers.admissions.iter().filter(|(_, _, admission)| admission.lawmaker);
    let switched = papers.switches.iter().filter(|(_, _, _, on)| *on);
    let grants: Vec<(ClusterId, ClusterId)> = admitted
        .map(|(_, record, admission)| (record.writer, admission.candidate.id))
        .chain(switched.map(|(_, record, cluster, _)| (record.writer, *cluster)))
        .collect();
    let mut made = BTreeSet::from([founder]);
    loop {
        let before = made.len();
        for (giver, cluster) in &grants {
            if made.contains(giver) {
                made.insert(*cluster);
            }
        }
        if made.len() == before {
            break;
        }
    }
    let own = || papers.switches.iter().filter(|(_, record, cluster, _)| record.writer == *cluster);
    let replaced: BTreeSet<RecordId> = own().flat_map(|(_, record, ..)| own_replaced(record)).collect();
    for (id, _, cluster, on) in own() {
        if !on && !replaced.contains(id) {
            made.remove(cluster);
        }
    }
    made
}

/// A member's own word on itself. Of siblings the narrower: own law if any says so, endpoints of the newest.
fn apply_terms(members: &mut Members, terms: &[(RecordId, &Record, &MemberTerms)]) {
    let replaced: BTreeSet<RecordId> = terms.iter().flat_map(|(_, record, _)| own_replaced(record)).collect();
    let mut standing: Vec<_> = terms.iter().filter(|(id, ..)| !replaced.contains(id)).collect();
    standing.sort_by_key(|(id, ..)| (id.epoch, id.seq, id.digest));
    for (_, record, terms) in standing {
        if let Some(member) = members.get_mut(&record.writer) {
            member.endpoints.clone_from(&terms.endpoints);
            if terms.accept == Accept::Own {
                member.accept = Accept::Own;
            }
        }
    }
}

/// What a record replaces of its own writer's: the replacement that always counts.
pub(crate) fn own_replaced(record: &Record) -> impl Iterator<Item = RecordId> {
    record.replaces.iter().filter(|id| id.writer == record.writer).copied()
}
