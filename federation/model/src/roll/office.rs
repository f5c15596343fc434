//! Who makes law, and whom lawmakers put out.
//!
//! In: grants, switches, evictions and departures, with the places at which their writers signed them. Out: lawmakers,
//! whose evictions count, which are final, and how far the logs of those that are out count. Never: looks at an order of
//! arrival or at what one cluster decided for itself, so every replica with the same records judges alike.
//!
//! Evictions may contradict each other and reach back into the grants that made their signers lawmakers. They are
//! weighed in order of generation: the founder first, then whom it made a lawmaker, and so on; a signer whose office an
//! earlier one cut off at the root has no say.

use std::collections::{BTreeMap, BTreeSet};

use super::{Papers, own_replaced};
use crate::{ClusterId, Digest, Eviction, Head, RecordId};

/// How far a public log counts, by epoch; an epoch that is not named does not count.
pub(crate) type Heads = BTreeMap<u64, Head>;

/// What lawmakers and leavers brought about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Office {
    pub(super) lawmakers: BTreeSet<ClusterId>,
    /// Whose evictions of a member count, by member.
    pub(super) signers: BTreeMap<ClusterId, BTreeSet<ClusterId>>,
    /// Out for good by the lawmakers' word.
    pub(super) evicted: BTreeSet<ClusterId>,
    /// Out for good by their own word.
    pub(super) left: BTreeSet<ClusterId>,
    /// How far the logs of those that are out count.
    pub(super) limits: BTreeMap<ClusterId, Heads>,
}

/// Somebody was made a lawmaker.
struct Grant {
    by: RecordId,
    cluster: ClusterId,
}

/// Whether the record at `id` counts if its writer's public log counts as far as `heads`.
pub(super) fn within(heads: &Heads, id: &RecordId) -> bool {
    heads.get(&id.epoch).is_some_and(|head| id.seq < head.seq || (id.seq == head.seq && id.digest == head.digest))
}

impl Office {
    pub(super) fn judge(founder: ClusterId, papers: &Papers<'_>) -> Self {
        let grants = grants(papers);
        let departures = departures(papers);
        let laid_down = laid_down(papers);
        let left_limits = || departures.iter().map(|id| (id.writer, up_to(id))).collect::<BTreeMap<_, _>>();

        let mut limits = left_limits();
        let mut signed: BTreeMap<ClusterId, Vec<(RecordId, &Eviction)>> = BTreeMap::new();
        let notices: Vec<_> = papers.evictions.iter().filter(|(id, notice)| id.writer != notice.cluster).collect();
        let ranks = if notices.is_empty() { Vec::new() } else { made(founder, &grants, &limits) };
        for signer in ranks {
            let mut own = notices.iter().filter(|(id, _)| id.writer == signer).peekable();
            if own.peek().is_none() || !made(founder, &grants, &limits).contains(&signer) {
                continue;
            }
            for (id, notice) in own {
                // Who laid the office down signs nothing afterwards.
                if laid_down.get(&signer).is_none_or(|off| (id.epoch, id.seq) < (off.epoch, off.seq)) {
                    narrow(&mut limits, notice.cluster, &notice.heads);
                    signed.entry(notice.cluster).or_default().push((*id, notice));
                }
            }
        }

        let ever: BTreeSet<ClusterId> = made(founder, &grants, &limits).into_iter().collect();
        let deposed = deposed(papers, &ever, &laid_down);
        let in_office = |made: Vec<ClusterId>| -> BTreeSet<ClusterId> {
            made.into_iter().filter(|id| !laid_down.contains_key(id) && !deposed.contains(id)).collect()
        };
        let signers_of = |cluster: &ClusterId| -> BTreeSet<ClusterId> {
            signed.get(cluster).into_iter().flatten().map(|(id, _)| id.writer).collect()
        };
        // The word of the only other lawmaker is final; whom it made one afterwards, to have a second, is not counted.
        let is_only_other = |cluster: ClusterId, (id, _): &(RecordId, &Eviction)| {
            let mut then = limits.clone();
            narrow(&mut then, id.writer, &before(id));
            let mut others = in_office(made(founder, &grants, &then));
            others.remove(&cluster);
            others.remove(&id.writer);
            others.is_empty() && !signers_of(&id.writer).contains(&cluster)
        };
        let is_final = |(cluster, notices): (&ClusterId, &Vec<(RecordId, &Eviction)>)| {
            let alone = || notices.iter().any(|notice| is_only_other(*cluster, notice));
            (signers_of(cluster).len() >= 2 || alone()).then_some(*cluster)
        };
        let evicted: BTreeSet<ClusterId> = signed.iter().filter_map(is_final).collect();
        let left: BTreeSet<ClusterId> = departures.iter().map(|id| id.writer).collect();

        // What those said who are out for good themselves, or were deposed, suspends nobody.
        let mut limits = left_limits();
        let mut signers: BTreeMap<ClusterId, BTreeSet<ClusterId>> = BTreeMap::new();
        for (cluster, notices) in &signed {
            for (id, notice) in notices {
                let stands =
                    !evicted.contains(&id.writer) && !left.contains(&id.writer) && !deposed.contains(&id.writer);
                if evicted.contains(cluster) || stands {
                    narrow(&mut limits, *cluster, &notice.heads);
                    signers.entry(*cluster).or_default().insert(id.writer);
                }
            }
        }
        let lawmakers = in_office(made(founder, &grants, &limits));
        Self { lawmakers, signers, evicted, left, limits }
    }
}

fn grants(papers: &Papers<'_>) -> Vec<Grant> {
    let admitted = papers.admissions.iter().filter(|(_, _, admission)| admission.lawmaker);
    let admitted = admitted.map(|(by, _, admission)| Grant { by: *by, cluster: admission.candidate.id });
    let switched = papers.switches.iter().filter(|(_, _, _, on)| *on);
    admitted.chain(switched.map(|(by, _, cluster, _)| Grant { by: *by, cluster: *cluster })).collect()
}

/// Those whom a chain of grants leads to, the founder first, then by generation and id.
///
/// A grant is never taken back by its giver alone.
fn made(founder: ClusterId, grants: &[Grant], limits: &BTreeMap<ClusterId, Heads>) -> Vec<ClusterId> {
    let mut made = vec![founder];
    let mut seen = BTreeSet::from([founder]);
    let mut last = BTreeSet::from([founder]);
    while !last.is_empty() {
        let counts = |grant: &&Grant| limits.get(&grant.by.writer).is_none_or(|heads| within(heads, &grant.by));
        let given = grants.iter().filter(|grant| last.contains(&grant.by.writer)).filter(counts);
        last = given.map(|grant| grant.cluster).filter(|cluster| seen.insert(*cluster)).collect();
        made.extend(&last);
    }
    made
}

/// Records by which members left, unless somebody admitted them again over it.
fn departures(papers: &Papers<'_>) -> Vec<RecordId> {
    let own = papers.evictions.iter().filter(|(id, eviction)| id.writer == eviction.cluster).map(|(id, _)| *id);
    let returned = |left: &RecordId| {
        papers
            .admissions
            .iter()
            .any(|(_, record, admission)| admission.candidate.id == left.writer && record.replaces.contains(left))
    };
    own.filter(|left| !returned(left)).collect()
}

/// Lawmakers that laid the office down, and where.
fn laid_down(papers: &Papers<'_>) -> BTreeMap<ClusterId, RecordId> {
    let own = || papers.switches.iter().filter(|(_, record, cluster, _)| record.writer == *cluster);
    let replaced: BTreeSet<RecordId> = own().flat_map(|(_, record, ..)| own_replaced(record)).collect();
    let off = own().filter(|(id, _, _, on)| !on && !replaced.contains(id));
    off.map(|(id, _, cluster, _)| (*cluster, *id)).collect()
}

/// Lawmakers that others took the office from: two others, or the only other one.
fn deposed(
    papers: &Papers<'_>,
    ever: &BTreeSet<ClusterId>,
    laid_down: &BTreeMap<ClusterId, RecordId>,
) -> BTreeSet<ClusterId> {
    let replaced: BTreeSet<RecordId> =
        papers.switches.iter().flat_map(|(_, record, ..)| own_replaced(record)).collect();
    let mut votes: BTreeMap<ClusterId, BTreeSet<ClusterId>> = BTreeMap::new();
    for (id, record, cluster, on) in &papers.switches {
        if !on && record.writer != *cluster && ever.contains(&record.writer) && !replaced.contains(id) {
            votes.entry(*cluster).or_default().insert(record.writer);
        }
    }
    let voted = |by: &ClusterId, against: &ClusterId| votes.get(against).is_some_and(|by_whom| by_whom.contains(by));
    let is_deposed = |cluster: &ClusterId, by: &BTreeSet<ClusterId>| {
        let mut others = ever.iter().filter(|id| *id != cluster && !laid_down.contains_key(id));
        let only = others.next().filter(|_| others.next().is_none());
        by.len() >= 2 || only.is_some_and(|only| by.contains(only) && !voted(cluster, only))
    };
    votes.iter().filter(|(cluster, by)| is_deposed(cluster, by)).map(|(cluster, _)| *cluster).collect()
}

/// Of two limits of one log the narrower in every epoch.
fn narrow(limits: &mut BTreeMap<ClusterId, Heads>, cluster: ClusterId, heads: &Heads) {
    let Some(held) = limits.get_mut(&cluster) else {
        limits.insert(cluster, heads.clone());
        return;
    };
    held.retain(|epoch, _| heads.contains_key(epoch));
    for (epoch, head) in held.iter_mut() {
        if let Some(other) = heads.get(epoch).filter(|other| other.seq < head.seq) {
            *head = *other;
        }
    }
}

/// Everything of a log that stands before the record at `id`. Older epochs are whole once a newer one is written to.
fn before(id: &RecordId) -> Heads {
    let whole = (1..id.epoch).map(|epoch| (epoch, Head { seq: u64::MAX, digest: Digest::ZERO }));
    whole.chain([(id.epoch, Head { seq: id.seq, digest: Digest::ZERO })]).collect()
}

/// The same with that record itself.
fn up_to(id: &RecordId) -> Heads {
    let mut heads = before(id);
    heads.insert(id.epoch, Head { seq: id.seq, digest: id.digest });
    heads
}
