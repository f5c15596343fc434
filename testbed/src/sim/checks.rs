//! What must hold at every event, and once all is quiet.
//!
//! In: one cluster and what it just did. Out: `Ok`, or what broke, in words. Never: trusts what it checks: the law is
//! read from the disk by a slow evaluator, and forks are found by going through all records.

mod quiet;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use federation_model::{
    Alarm, Audience, Authentic, ClusterId, Digest, Message, Record, RecordId, Replica, Snapshot, TrustDomain, evaluator,
};
use rand::rngs::StdRng;

pub(crate) use self::quiet::Quiet;
use crate::{
    node::{Node, candidate},
    workload,
    world::{Issued, World},
};

/// Pairs that are judged at each publication.
const PAIRS_PER_PUBLICATION: usize = 6;

/// What is known of the world beside the clusters.
pub(crate) struct Truth<'a> {
    pub(crate) crooked: Option<ClusterId>,
    pub(crate) clusters: usize,
    pub(crate) issued: &'a Issued,
}

impl Truth<'_> {
    /// What a cluster publishes is durable, not behind what it published before, holds no root that its owner did not
    /// sign, and allows nothing at its own services that the law on its disk forbids.
    pub(crate) fn publication(&self, node: &mut Node, snapshot: &Snapshot, random: &mut StdRng) -> Result<u64> {
        let replica = node.replica.as_ref().context("it is up")?;
        for record in replica.records() {
            let durable = node.disk.has(&record.digest());
            ensure!(durable, "c{} published {} before it was durable", node.number, record.id());
        }
        self.bundles(node, snapshot)?;
        not_behind(node, replica, self.crooked)?;
        let law = law(&node.disk);
        let law: Vec<(RecordId, &Record)> = law.iter().map(|record| (record.id(), record.value())).collect();
        // What of an evicted member's law counts is a matter of heads, which the slow reading knows nothing of. Nobody it
        // vouches for is believed any more, whatever the law says.
        let mut out = snapshot.members.iter().filter(|member| member.state.is_out()).peekable();
        let judged = if out.peek().is_some() { 0 } else { PAIRS_PER_PUBLICATION };
        for member in out {
            let used = snapshot.bundles.get(&member.trust_domain).is_some();
            ensure!(!used, "c{} still uses the bundle of {}, which is out", node.number, member.name);
        }
        for _ in 0..judged {
            let (source, service) = workload::pair(random, self.clusters, node.number);
            let slow = evaluator::decide(&law, &snapshot.members, &source, &service);
            let fast = snapshot.authorizer.allows(&source, &service);
            ensure!(
                fast == slow.is_ok(),
                "c{}: {source} -> {service:?} is {fast} in the snapshot and {slow:?} by the law on disk",
                node.number
            );
        }
        node.reached = replica.vector();
        Ok(judged as u64)
    }

    fn bundles(&self, node: &Node, snapshot: &Snapshot) -> Result<()> {
        let crooked = self.crooked.and_then(|id| snapshot.members.get(&id)).map(|member| &member.trust_domain);
        let honest = |domain: &TrustDomain| Some(domain) != crooked;
        for bundle in snapshot.bundles.iter() {
            let issued = self.issued.get(&(bundle.trust_domain.clone(), bundle.sequence));
            let known = |root: &Vec<u8>| {
                let founding = bundle.sequence == 0 && (0..self.clusters).any(|number| candidate(number).root == *root);
                founding || issued.is_some_and(|roots| roots.contains(root))
            };
            let domain = &bundle.trust_domain;
            ensure!(bundle.roots.iter().all(known), "c{} has a root of {domain} that nobody signed", node.number);
        }
        let Some(before) = &node.snapshot else { return Ok(()) };
        ensure!(snapshot.revision > before.revision, "c{} published revision {} twice", node.number, before.revision);
        let used =
            |domain: &TrustDomain| snapshot.members.by_trust_domain(domain).is_some_and(|held| held.state.is_active());
        let compared =
            before.bundles.iter().filter(|bundle| honest(&bundle.trust_domain) && used(&bundle.trust_domain));
        for bundle in compared {
            let now = snapshot.bundles.get(&bundle.trust_domain).map(|bundle| bundle.sequence);
            ensure!(
                now >= Some(bundle.sequence),
                "c{}: bundle of {} went from {} to {now:?}",
                node.number,
                bundle.trust_domain,
                bundle.sequence
            );
        }
        Ok(())
    }
}

/// No log of an honest writer goes back.
fn not_behind(node: &Node, replica: &Replica, crooked: Option<ClusterId>) -> Result<()> {
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

/// The records on a disk that count: each log without a gap from its first record, and nothing behind a fork.
fn law(disk: &crate::node::Disk) -> Vec<&Authentic<Record>> {
    let mut epochs: BTreeMap<(ClusterId, Audience, u64), BTreeMap<u64, BTreeSet<Digest>>> = BTreeMap::new();
    for record in disk.records() {
        let id = record.id();
        let epoch = epochs.entry((id.writer, id.audience, id.epoch)).or_default();
        epoch.entry(id.seq).or_default().insert(id.digest);
    }
    // How far each counts: up to the first gap, or the first place that two records took.
    let reach: BTreeMap<_, u64> = epochs
        .iter()
        .map(|(log, places)| {
            let mut reach = 0;
            for (seq, digests) in places {
                if *seq != reach + 1 {
                    break;
                }
                reach = *seq;
                if digests.len() > 1 {
                    break;
                }
            }
            (*log, reach)
        })
        .collect();
    let counts = |record: &&Authentic<Record>| {
        let id = record.id();
        let log = (id.writer, id.audience, id.epoch);
        let rivals = epochs.get(&log).and_then(|places| places.get(&id.seq));
        // Of more than two at one place the two lowest are kept.
        let kept = rivals.is_some_and(|digests| digests.iter().take(2).any(|digest| *digest == id.digest));
        kept && reach.get(&log).is_some_and(|reach| id.seq <= *reach)
    };
    disk.records().iter().filter(counts).collect()
}

/// Whoever has nothing left to carry out has everything in force that is durable.
pub(crate) fn at_rest(node: &Node) -> Result<()> {
    let rests = node.pending.is_empty();
    ensure!(!rests || !node.unpublished, "c{} rests, and what it made durable is not in force", node.number);
    Ok(())
}

/// A cluster keeps nothing that is for another.
pub(crate) fn kept(node: &Node, record: &Authentic<Record>) -> Result<()> {
    let id = record.id();
    let concerned = match id.audience {
        Audience::Law | Audience::All => true,
        Audience::Member(reader) => id.writer == node.id || reader == node.id,
    };
    ensure!(concerned, "c{} keeps {id}, which is for another", node.number);
    Ok(())
}

/// What an honest cluster says to a peer is durable, meant for that peer, and true.
pub(crate) fn sending(world: &World, from: usize, to: usize, message: &Message) -> Result<()> {
    let (Some(sender), Some(receiver)) = (world.nodes.get(from), world.nodes.get(to)) else { return Ok(()) };
    let may_see = |writer: ClusterId, audience: Audience| match audience {
        Audience::Law | Audience::All => true,
        Audience::Member(reader) => {
            (writer == sender.id && reader == receiver.id) || (writer == receiver.id && reader == sender.id)
        }
    };
    match message {
        Message::Records(envelopes) => {
            for envelope in envelopes {
                let record = world.read(envelope).context("an envelope that was signed")?;
                let id = record.id();
                let of_cheat = world.crooked_number() == Some(to) || world.crooked_id() == Some(id.writer);
                let late = !of_cheat && world.is_past_bound();
                ensure!(!late, "c{from} still sends {id} to c{to} when all have all");
                ensure!(sender.disk.has(&id.digest), "c{from} sends {id} to c{to} before it is durable");
                ensure!(may_see(id.writer, id.audience), "c{from} shows {id} to c{to}, which may not see it");
            }
        }
        Message::Vector { vector, .. } => {
            for ((writer, audience), epochs) in &vector.0 {
                ensure!(may_see(*writer, *audience), "c{from} names a log to c{to} that c{to} may not know of");
                for (epoch, head) in epochs {
                    // The head of a frozen epoch is no record's.
                    let at = |record: &&Authentic<Record>| {
                        let id = record.id();
                        (id.writer, id.audience, id.epoch, id.seq) == (*writer, *audience, *epoch, head.seq)
                    };
                    let held = sender.disk.has(&head.digest)
                        || sender.disk.records().iter().filter(at).count() > 1
                        || world.crooked_id() == Some(*writer);
                    ensure!(held, "c{from} claims to c{to} a head of {writer:?} that it does not have");
                }
            }
        }
    }
    Ok(())
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

/// A crash changes nothing: whoever is at rest has in memory what a start from its disk gives.
pub(crate) fn crash(node: &Node) -> Result<()> {
    let Some(replica) = node.replica.as_ref().filter(|_| node.pending.is_empty()) else { return Ok(()) };
    let mut fresh = Replica::new(node.id, replica.federation());
    fresh.load(node.disk.records().iter().cloned());
    let (disk, memory) = (fresh.vector(), replica.vector());
    let other = disk.0.iter().find(|(log, epochs)| memory.0.get(log) != Some(epochs)).map(|(log, _)| log);
    let other = other.or_else(|| memory.0.keys().find(|log| !disk.0.contains_key(log)));
    ensure!(other.is_none(), "c{} would start with another head than it has of {other:?}", node.number);
    Ok(())
}
