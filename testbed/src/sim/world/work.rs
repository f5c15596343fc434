//! One cluster at work: it takes one input or carries out one effect at a time, as the link's driver does.
//!
//! In: what waits in its inbox. Out: rows, messages and snapshots, each judged as it comes.
//! Never: lets an input in before the effects of the one before are carried out.

use anyhow::{Context, Result, ensure};
use federation_model::{Authentic, ClusterId, Effect, Record};
use rand::RngExt;

use super::{Event, World};
use crate::{
    checks,
    node::{Failure, Input, candidate},
    world::nemesis::Nemesis,
};

impl World {
    pub(super) fn wake(&mut self, number: usize, ms: u64) {
        if !std::mem::replace(&mut self.node(number).stepping, true) {
            self.after(ms, Event::Step(number));
        }
    }

    pub(super) fn step(&mut self, number: usize) -> Result<()> {
        let node = self.node(number);
        node.stepping = false;
        if !node.works() {
            return Ok(());
        }
        if let Some(effect) = node.pending.pop_front() {
            self.carry_out(number, effect)?;
        } else if let Some(input) = node.next_input() {
            let effects = self.take(number, input);
            self.node(number).pending.extend(effects);
        }
        let half_done = !self.node(number).pending.is_empty();
        if half_done && !self.calm && self.has(Nemesis::Kill) && self.random.random_bool(0.005) {
            return self.crash(number);
        }
        checks::at_rest(self.node(number))?;
        if !self.node(number).is_done() {
            let ms = self.random.random_range(0..3);
            self.wake(number, ms);
        }
        Ok(())
    }

    /// Carries out all that is pending at once.
    pub(super) fn drain(&mut self, number: usize) -> Result<()> {
        while let Some(effect) = self.node(number).pending.pop_front() {
            self.carry_out(number, effect)?;
        }
        checks::at_rest(self.node(number))
    }

    fn take(&mut self, number: usize, input: Input) -> Vec<Effect> {
        self.tell(|_| match &input {
            Input::Records(from, records) => format!("c{number} hears from c{from}: {}", ids(records)),
            Input::Vector { peer, .. } => format!("c{number} hears how far c{peer} is"),
            other => format!("c{number}: {other:?}"),
        });
        let crooked = self.crooked_id();
        let Some(node) = self.nodes.get_mut(number) else { return Vec::new() };
        let Some(replica) = &mut node.replica else { return Vec::new() };
        match input {
            Input::Connected(peer) => replica.on_connected(candidate(peer).id),
            Input::Disconnected(peer) => {
                replica.on_disconnected(candidate(peer).id);
                Vec::new()
            }
            Input::Vector { peer, vector, ask } => {
                let peer = candidate(peer).id;
                // Whoever names a lost record, or one behind it, tells this cluster what it must not write again.
                if Some(peer) != crooked {
                    let own = node.id;
                    let head = |id: &federation_model::RecordId| vector.head(own, id.audience, id.epoch);
                    let named = node.lost.iter().filter(|id| head(id).is_some_and(|head| head.seq >= id.seq));
                    node.heard.extend(named.map(|id| id.digest));
                }
                replica.on_vector(peer, vector, ask)
            }
            Input::AntiEntropy => replica.anti_entropy(),
            Input::Records(peer, mut batch) => {
                let peer_id = candidate(peer).id;
                // As the driver does: an admission may come before what its member signed, so what cannot be checked yet
                // is tried again once the effects of what came before are carried out.
                let known = |record: &Authentic<Record>| replica.replication_key(&record.value().writer).is_some();
                let checked = batch.iter().take_while(|record| known(record)).count();
                if checked > 0 {
                    let rest = batch.split_off(checked);
                    let effects = replica.on_records(peer_id, batch, 0);
                    if !rest.is_empty() {
                        node.inbox.push_front(Input::Records(peer, rest));
                    }
                    return effects;
                }
                let all = batch.len();
                batch.retain(known);
                let unknown = all - batch.len();
                replica.on_records(peer_id, batch, unknown)
            }
        }
    }

    pub(super) fn carry_out(&mut self, number: usize, effect: Effect) -> Result<()> {
        match effect {
            Effect::Persist(records) => self.persist(number, records)?,
            Effect::Send { peer, message } => {
                let to = self.number(peer)?;
                self.send(number, to, message)?;
            }
            Effect::Publish => self.publish(number)?,
            Effect::Alarm(alarm) => {
                self.tell(|_| format!("c{number} raises {alarm:?}"));
                let crooked = self.crooked_id();
                checks::alarm(self.node(number), &alarm, crooked)?;
            }
        }
        Ok(())
    }

    fn persist(&mut self, number: usize, records: Vec<Authentic<Record>>) -> Result<()> {
        // How fast a cheat's own words spread is the cheat's to say.
        let crooked = self.crooked_id();
        if !self.is_stubborn() || records.iter().any(|record| Some(record.value().writer) != crooked) {
            self.last_change = self.now;
        }
        if let Some(failure) = self.node(number).disk.failure {
            self.fail(number, failure, records);
            return Ok(());
        }
        self.tell(|_| format!("c{number} makes durable: {}", ids(&records)));
        let node = self.node(number);
        for record in records {
            checks::kept(node, &record)?;
            if record.value().writer == node.id {
                node.acked.insert(record.id());
            }
            node.disk.put(record);
        }
        node.unpublished = true;
        Ok(())
    }

    /// A write fails: back to what is durable for sure, and every peer is asked how far it is.
    fn fail(&mut self, number: usize, failure: Failure, records: Vec<Authentic<Record>>) {
        self.figures.failed_writes += 1;
        let uncertain = failure == Failure::Error;
        let written = uncertain && self.random.random_bool(0.5);
        self.tell(|_| format!("c{number} fails to write, uncertain: {uncertain}, written: {written}"));
        let peers = self.network.peers(number);
        let node = self.node(number);
        node.reload(uncertain);
        if written {
            records.into_iter().for_each(|record| node.disk.hide(record));
        }
        if let Some(replica) = &mut node.replica {
            let effects = peers.into_iter().flat_map(|peer| replica.on_resumed(candidate(peer).id));
            node.pending.extend(effects);
        }
    }

    pub(super) fn publish(&mut self, number: usize) -> Result<()> {
        let (clusters, crooked) = (self.nodes.len(), self.crooked_id());
        let Self { nodes, issued, random, figures, sizes, .. } = self;
        let node = nodes.get_mut(number).context("a node of this world")?;
        let Some(replica) = &mut node.replica else { return Ok(()) };
        node.revision += 1;
        node.unpublished = false;
        if sizes.is_some() {
            return Ok(());
        }
        figures.publications += 1;
        let Some(snapshot) = replica.snapshot(node.revision) else {
            // An eviction of its sponsor may name a head before its admission.
            ensure!(node.damaged || node.may_be_void(), "c{number} has all it wrote and is no member");
            node.snapshot = None;
            return Ok(());
        };
        let truth = checks::Truth { crooked, clusters, issued };
        figures.decisions += truth.publication(node, &snapshot, random)?;
        let node = nodes.get_mut(number).context("a node of this world")?;
        node.snapshot = Some(snapshot);
        Ok(())
    }

    pub(crate) fn crooked_id(&self) -> Option<ClusterId> {
        self.crooked.as_ref().map(|crooked| candidate(crooked.number).id)
    }
}

fn ids(records: &[Authentic<Record>]) -> String {
    records.iter().map(|record| record.id().to_string()).collect::<Vec<_>>().join(", ")
}
