//! What must hold, at each publication and once all is quiet.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use federation_model::{Alarm, Audience, Authentic, ClusterId, Digest, Record, RecordId, Replica, Snapshot, evaluator};
use rand::rngs::StdRng;

use crate::{
    node::{Node, candidate},
    workload,
    world::{Pair, pair},
};

/// Pairs that are judged at each publication.
const PAIRS_PER_PUBLICATION: usize = 6;
/// Pairs per destination on which all clusters must agree at the end.
const PAIRS_AT_THE_END: usize = 30;

/// What a cluster publishes is durable, not behind what it published before, and allows nothing at its own services
/// that the law on its disk forbids.
pub(crate) fn publication(
    node: &mut Node,
    snapshot: &Snapshot,
    replica: &Replica,
    crooked: Option<ClusterId>,
    clusters: usize,
    random: &mut StdRng,
) -> Result<u64> {
    let durable: BTreeSet<RecordId> = node.disk.iter().map(Authentic::<Record>::id).collect();
    for record in replica.records() {
        ensure!(durable.contains(&record.id()), "c{} published {} before it was durable", node.number, record.id());
    }
    if let Some(before) = &node.snapshot {
        ensure!(snapshot.revision > before.revision, "c{} published revision {} twice", node.number, before.revision);
        for bundle in before.bundles.iter().filter(|bundle| !is_of(crooked, &bundle.trust_domain)) {
            let now = snapshot.bundles.get(&bundle.trust_domain).map(|bundle| bundle.sequence);
            ensure!(
                now >= Some(bundle.sequence),
                "c{}: bundle of {} went from {} to {now:?}",
                node.number,
                bundle.trust_domain,
                bundle.sequence
            );
        }
    }
    not_behind(node, replica, crooked)?;
    let law = counted(&node.disk);
    let law: Vec<(RecordId, &Record)> = law.iter().map(|record| (record.id(), record.value())).collect();
    for _ in 0..PAIRS_PER_PUBLICATION {
        let (source, service) = workload::pair(random, clusters, node.number);
        let slow = evaluator::decide(&law, &snapshot.members, &source, &service);
        let fast = snapshot.authorizer.allows(&source, &service);
        ensure!(
            fast == slow.is_ok(),
            "c{}: {source} -> {service:?} is {fast} in the snapshot and {slow:?} by the law on disk",
            node.number
        );
    }
    node.reached = replica.vector();
    Ok(PAIRS_PER_PUBLICATION as u64)
}

fn is_of(crooked: Option<ClusterId>, domain: &federation_model::TrustDomain) -> bool {
    crooked
        .is_some_and(|id| (0..8).any(|number| candidate(number).id == id && candidate(number).trust_domain == *domain))
}

/// No log of an honest writer goes back.
pub(crate) fn not_behind(node: &Node, replica: &Replica, crooked: Option<ClusterId>) -> Result<()> {
    let now = replica.vector();
    for ((writer, audience), epochs) in node.reached.0.iter().filter(|((writer, _), _)| Some(*writer) != crooked) {
        for (epoch, head) in epochs {
            let seq = now.head(*writer, *audience, *epoch).map_or(0, |head| head.seq);
            ensure!(
                seq >= head.seq,
                "c{}: log {writer:?} {audience:?} epoch {epoch} went from {} to {seq}",
                node.number,
                head.seq
            );
        }
    }
    Ok(())
}

/// The records that no fork makes void, found the slow way.
fn counted(disk: &[Authentic<Record>]) -> Vec<&Authentic<Record>> {
    let mut places: BTreeMap<(ClusterId, Audience, u64, u64), BTreeSet<Digest>> = BTreeMap::new();
    for record in disk {
        let id = record.id();
        places.entry((id.writer, id.audience, id.epoch, id.seq)).or_default().insert(id.digest);
    }
    let void = |id: &RecordId| {
        let before = places.range((id.writer, id.audience, id.epoch, 0)..(id.writer, id.audience, id.epoch, id.seq));
        before.into_iter().any(|(_, digests)| digests.len() > 1)
    };
    let surplus = |id: &RecordId| {
        let rivals = places.get(&(id.writer, id.audience, id.epoch, id.seq));
        rivals.is_some_and(|digests| digests.iter().take(2).all(|digest| *digest != id.digest))
    };
    let mut seen = BTreeSet::new();
    let stands = |record: &&Authentic<Record>| {
        let id = record.id();
        !void(&id) && !surplus(&id) && seen.insert(id)
    };
    disk.iter().filter(stands).collect()
}

/// Only the crooked writer is ever said to equivocate.
pub(crate) fn alarm(node: &Node, alarm: &Alarm, crooked: Option<ClusterId>) -> Result<()> {
    let Alarm::Equivocation { writer, audience, epoch, seq } = alarm;
    ensure!(
        Some(*writer) == crooked,
        "c{}: honest {writer:?} is said to equivocate at {audience:?} {epoch}.{seq}",
        node.number
    );
    Ok(())
}

/// Once all links are whole and all is said: every cluster has the same law, and nothing that was acknowledged is lost.
pub(crate) fn quiet(
    nodes: &[Node],
    links: &BTreeSet<Pair>,
    crooked: Option<ClusterId>,
    random: &mut StdRng,
) -> Result<u64> {
    let members: Vec<(&Node, &Replica, &Snapshot)> = nodes
        .iter()
        .filter(|node| node.joined)
        .filter_map(|node| Some((node, node.replica.as_ref()?, node.snapshot.as_ref()?)))
        .collect();
    let joined = nodes.iter().filter(|node| node.joined).count();
    ensure!(members.len() == joined, "only {} of {joined} clusters are up with a snapshot", members.len());
    let Some((first, replica, snapshot)) = members.first() else { return Ok(0) };
    for (node, other, other_snapshot) in &members {
        same_records(first, replica, node, other)?;
        ensure!(
            conflicts(snapshot) == conflicts(other_snapshot),
            "c{} and c{} show different conflicts",
            first.number,
            node.number
        );
        ensure!(
            snapshot.members == other_snapshot.members && snapshot.bundles == other_snapshot.bundles,
            "c{} and c{} see different members or bundles",
            first.number,
            node.number
        );
    }
    private_logs(&members, links)?;
    acknowledged(&members, crooked)?;
    forks(&members)?;
    let mut judged = 0;
    for (owner, ..) in &members {
        for _ in 0..PAIRS_AT_THE_END {
            let (source, service) = workload::pair(random, nodes.len(), owner.number);
            let allowed = snapshot.authorizer.allows(&source, &service);
            for (node, _, other) in &members {
                ensure!(
                    allowed == other.authorizer.allows(&source, &service),
                    "c{} and c{} judge {source} -> {service:?} differently",
                    first.number,
                    node.number
                );
                judged += 1;
            }
        }
    }
    Ok(judged)
}

fn conflicts(snapshot: &Snapshot) -> Vec<(String, Vec<RecordId>)> {
    let mut found: Vec<(String, Vec<RecordId>)> = snapshot
        .conflicts()
        .iter()
        .map(|conflict| (format!("{:?}", conflict.key), conflict.siblings.clone()))
        .collect();
    found.sort();
    found
}

fn public(replica: &Replica) -> BTreeSet<RecordId> {
    let is_public = |id: &RecordId| matches!(id.audience, Audience::Law | Audience::All);
    replica.records().map(Authentic::<Record>::id).filter(is_public).collect()
}

fn same_records(a: &Node, ours: &Replica, b: &Node, theirs: &Replica) -> Result<()> {
    let (ours, theirs) = (public(ours), public(theirs));
    if let Some(id) = ours.symmetric_difference(&theirs).next() {
        bail!("c{} and c{} did not converge: one of them lacks {id}", a.number, b.number);
    }
    Ok(())
}

/// What one member alone may see is with its writer and that member, whole, and nowhere else.
fn private_logs(members: &[(&Node, &Replica, &Snapshot)], links: &BTreeSet<Pair>) -> Result<()> {
    for (node, replica, _) in members {
        for record in replica.records() {
            let id = record.id();
            let Audience::Member(reader) = id.audience else { continue };
            let concerned = id.writer == node.id || reader == node.id;
            ensure!(concerned, "c{} holds {id}, which is for another", node.number);
            let other = if id.writer == node.id { reader } else { id.writer };
            let peer = members.iter().find(|(peer, ..)| peer.id == other);
            // It travels over their own session alone, so they need a link of their own.
            if let Some((peer, theirs, _)) = peer.filter(|(peer, ..)| links.contains(&pair(node.number, peer.number))) {
                let has = theirs.records().any(|held| held.id() == id);
                ensure!(has, "c{} lacks {id}, which c{} holds", peer.number, node.number);
            }
        }
    }
    Ok(())
}

fn acknowledged(members: &[(&Node, &Replica, &Snapshot)], crooked: Option<ClusterId>) -> Result<()> {
    for (writer, ..) in members.iter().filter(|(node, ..)| Some(node.id) != crooked) {
        for (node, replica, _) in members {
            let held: BTreeSet<RecordId> = replica.records().map(Authentic::<Record>::id).collect();
            for id in &writer.acked {
                let sees = node.id == writer.id || matches!(id.audience, Audience::Law | Audience::All);
                ensure!(!sees || held.contains(id), "acknowledged write {id} is lost at c{}", node.number);
            }
        }
    }
    Ok(())
}

/// Whoever signed two records at one place is known for it everywhere.
fn forks(members: &[(&Node, &Replica, &Snapshot)]) -> Result<()> {
    let mut places: BTreeMap<(ClusterId, Audience, u64, u64), BTreeSet<Digest>> = BTreeMap::new();
    for record in members.iter().flat_map(|(node, ..)| &node.disk) {
        let id = record.id();
        places.entry((id.writer, id.audience, id.epoch, id.seq)).or_default().insert(id.digest);
    }
    let forked = places.into_iter().filter(|(_, digests)| digests.len() > 1);
    for ((writer, audience, epoch, seq), _) in forked.filter(|((_, audience, ..), _)| *audience == Audience::Law) {
        for (node, replica, _) in members {
            let known = replica.forks().any(|alarm| {
                let Alarm::Equivocation { writer: found, audience: log, epoch: number, seq: at } = alarm;
                (found, log, number) == (writer, audience, epoch) && at <= seq
            });
            ensure!(known, "c{} does not know that {writer:?} equivocated at {epoch}.{seq}", node.number);
        }
    }
    Ok(())
}
