//! What must hold once all faults have stopped and all is said.
//!
//! In: every cluster. Out: `Ok`, or what broke. Never: demands anything of a member that goes on cheating.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use federation_model::{Alarm, Audience, Authentic, ClusterId, Digest, Record, RecordId, Replica, Snapshot};
use rand::rngs::StdRng;

use crate::{
    node::Node,
    workload,
    world::{Pair, pair},
};

/// Pairs per destination on which all clusters must agree.
const PAIRS: usize = 30;

type Member<'a> = (&'a Node, &'a Replica, &'a Snapshot);

/// The world when it is over.
pub(crate) struct Quiet<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) links: &'a BTreeSet<Pair>,
    pub(crate) crooked: Option<ClusterId>,
    /// Whether the crooked member still cheats.
    pub(crate) stubborn: bool,
}

impl Quiet<'_> {
    /// Every cluster has the same law, and nothing that was acknowledged is lost; returns how many decisions it took.
    pub(crate) fn check(&self, random: &mut StdRng) -> Result<u64> {
        let cheats = |node: &Node| self.stubborn && Some(node.id) == self.crooked;
        let void = |node: &Node| node.is_up() && node.snapshot.is_none() && node.may_be_void();
        let judged = |node: &&Node| node.joined && !cheats(node) && !void(node) && self.is_admitted(node);
        let joined = self.nodes.iter().filter(judged).count();
        let up = |node| -> Option<Member<'_>> {
            let node: &Node = node;
            Some((node, node.replica.as_ref()?, node.snapshot.as_ref()?))
        };
        let members: Vec<Member<'_>> = self.nodes.iter().filter(judged).filter_map(up).collect();
        ensure!(members.len() == joined, "only {} of {joined} clusters are up with a snapshot", members.len());
        let Some((first, replica, _)) = members.first() else { return Ok(0) };
        for (node, other, _) in &members {
            same_records(first, replica, node, other)?;
        }
        // Nobody sees itself evicted: only those that see each other as members see the same.
        let mutual = |a: &Member<'_>, b: &Member<'_>| a.2.members.is_active(&b.0.id) && b.2.members.is_active(&a.0.id);
        for (one, two) in members.iter().flat_map(|one| members.iter().map(move |two| (one, two))) {
            if !mutual(one, two) {
                continue;
            }
            let ((first, _, snapshot), (node, _, other_snapshot)) = (one, two);
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
        self.private_logs(&members)?;
        self.acknowledged(&members)?;
        forks(&members)?;
        self.decisions(&members, random)
    }

    /// Whether anybody still knows it as a member: its membership is lost with the last copy of what made it one, or of
    /// a record before that.
    fn is_admitted(&self, node: &Node) -> bool {
        let knows = |replica: &Replica| replica.replication_key(&node.id).is_some();
        !node.damaged || self.nodes.iter().filter_map(|node| node.replica.as_ref()).any(knows)
    }

    fn decisions(&self, members: &[Member<'_>], random: &mut StdRng) -> Result<u64> {
        let mut judged = 0;
        for (owner, _, snapshot) in members {
            for _ in 0..PAIRS {
                let (source, service) = workload::pair(random, self.nodes.len(), owner.number);
                let allowed = snapshot.authorizer.allows(&source, &service);
                for (node, _, other) in members {
                    if !(snapshot.members.is_active(&node.id) && other.members.is_active(&owner.id)) {
                        continue;
                    }
                    ensure!(
                        allowed == other.authorizer.allows(&source, &service),
                        "c{} and c{} judge {source} -> {service:?} differently",
                        owner.number,
                        node.number
                    );
                    judged += 1;
                }
            }
        }
        Ok(judged)
    }

    /// What one member alone may see is with its writer and that member, whole, and nowhere else.
    fn private_logs(&self, members: &[Member<'_>]) -> Result<()> {
        for (node, replica, _) in members {
            for record in replica.records() {
                let id = record.id();
                let Audience::Member(reader) = id.audience else { continue };
                let concerned = id.writer == node.id || reader == node.id;
                ensure!(concerned, "c{} holds {id}, which is for another", node.number);
                let other = if id.writer == node.id { reader } else { id.writer };
                let peer = members.iter().find(|(peer, ..)| peer.id == other);
                // It travels over their own session alone, so they need a link of their own.
                let linked = |peer: &Node| self.links.contains(&pair(node.number, peer.number));
                if let Some((peer, theirs, _)) = peer.filter(|(peer, ..)| linked(peer)) {
                    let has = theirs.records().any(|held| held.digest() == id.digest);
                    ensure!(has, "c{} lacks {id}, which c{} holds", peer.number, node.number);
                }
            }
        }
        Ok(())
    }

    fn acknowledged(&self, members: &[Member<'_>]) -> Result<()> {
        let held: Vec<BTreeSet<Digest>> =
            members.iter().map(|(_, replica, _)| replica.records().map(Authentic::digest).collect()).collect();
        for (writer, ..) in members.iter().filter(|(node, ..)| Some(node.id) != self.crooked) {
            for ((node, ..), held) in members.iter().zip(&held) {
                for id in &writer.acked {
                    let sees = node.id == writer.id || matches!(id.audience, Audience::Law | Audience::All);
                    ensure!(!sees || held.contains(&id.digest), "acknowledged write {id} is lost at c{}", node.number);
                }
            }
        }
        Ok(())
    }
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

/// Whoever signed two records at one place is known for it everywhere.
fn forks(members: &[Member<'_>]) -> Result<()> {
    let mut places: BTreeMap<(ClusterId, Audience, u64, u64), BTreeSet<Digest>> = BTreeMap::new();
    for record in members.iter().flat_map(|(node, ..)| node.disk.records()) {
        let id = record.id();
        places.entry((id.writer, id.audience, id.epoch, id.seq)).or_default().insert(id.digest);
    }
    let forked = places
        .into_iter()
        .filter(|((_, audience, ..), digests)| digests.len() > 1 && matches!(audience, Audience::Law | Audience::All));
    for ((writer, audience, epoch, seq), _) in forked {
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
