//! How the clusters of a world write and sign.
//!
//! In: what an operator wants to say. Out: a record at the next place of its log. Never: signs twice for one place on
//! behalf of an honest cluster.

use std::sync::Arc;

use anyhow::Result;
use federation_model::{Audience, Authentic, Body, ClusterId, Digest, Message, Position, Record, RecordId, Timestamp};
use rand::RngExt;

use super::World;
use crate::{workload, world::nemesis::Nemesis};

/// The true time at the start of every world.
const EPOCH_MS: u64 = 1_700_000_000_000;

impl World {
    pub(super) fn random_write(&mut self, number: usize) -> Result<()> {
        self.sequence += 1;
        let (clusters, sequence) = (self.nodes.len(), self.sequence);
        let (audience, body) = workload::write(&mut self.random, number, clusters, &self.keys, sequence);
        if !self.can_write(number, audience) {
            return Ok(());
        }
        let sees_others = self.random.random_bool(0.9);
        self.write(number, audience, body, sees_others);
        if !self.calm && self.has(Nemesis::Kill) && self.random.random_bool(0.08) {
            // A crash between two effects of a write is what tells whether their order is right.
            let effects = self.node(number).pending.len();
            let done = self.random.random_range(0..=effects);
            for _ in 0..done {
                // A write that fails takes the rest with it.
                let Some(effect) = self.node(number).pending.pop_front() else { break };
                self.carry_out(number, effect)?;
            }
            self.crash(number)?;
        }
        Ok(())
    }

    /// Whether a cluster may write to an audience now: it is done with what came before, and knows of every place that
    /// it took itself. Whoever lost records without being told finds out by hearing of them; until then no replica can
    /// know better.
    pub(super) fn can_write(&mut self, number: usize, audience: Audience) -> bool {
        let node = self.node(number);
        node.lost.retain(|id| !node.disk.has(&id.digest));
        let unheard = |id: &&RecordId| id.epoch >= node.disk.floor && !node.heard.contains(&id.digest);
        let unaware = node.lost.iter().filter(unheard).any(|id| id.audience == audience);
        let admitted = node.replica.as_ref().is_some_and(|replica| replica.replication_key(&node.id).is_some());
        admitted && node.works() && node.pending.is_empty() && !unaware
    }

    /// Writes as the link does: at the next position, over what may be replaced.
    pub(super) fn write(&mut self, number: usize, audience: Audience, mut body: Body, sees_others: bool) {
        let id = self.node(number).id;
        let Some(replica) = &self.node(number).replica else { return };
        if let Body::Eviction(eviction) = &mut body {
            if eviction.cluster != id {
                eviction.heads = replica.heads(eviction.cluster, Audience::Law);
            }
            self.figures.evictions += 1;
        }
        let Some(replica) = &self.node(number).replica else { return };
        let position = replica.next_position(audience);
        let draft = self.record(id, audience, position, body, Vec::new());
        let Some(replica) = &mut self.nodes[number].replica else { return };
        let key = Authentic::assertion(draft.clone(), Arc::from([]), Digest::ZERO).key();
        let replaces = if sees_others { replica.replaceable(&key) } else { Vec::new() };
        let record = self.seal(Record { replaces, ..draft });
        self.figures.writes += 1;
        self.tell(|_| format!("c{number} writes {}: {:?}", record.id(), record.value().body));
        let Some(replica) = &mut self.nodes[number].replica else { return };
        // It is refused only past the bounds on epochs, which a flood of its own brings a crooked member to.
        let effects = replica.on_local(record).unwrap_or_default();
        self.node(number).pending.extend(effects);
        self.wake(number, 1);
    }

    pub(super) fn sign(
        &mut self,
        writer: ClusterId,
        audience: Audience,
        position: Position,
        body: Body,
        replaces: Vec<RecordId>,
    ) -> Authentic<Record> {
        let record = self.record(writer, audience, position, body, replaces);
        self.seal(record)
    }

    fn record(
        &self,
        writer: ClusterId,
        audience: Audience,
        Position { epoch, seq, previous }: Position,
        body: Body,
        replaces: Vec<RecordId>,
    ) -> Record {
        let clock = self.nodes.iter().find(|node| node.id == writer).map_or(0, |node| node.clock);
        Record {
            federation: self.federation,
            writer,
            audience,
            epoch,
            seq,
            previous,
            replaces,
            // Tells two records apart that say the same.
            author: self.signed.len().to_string(),
            written_at: Timestamp::from_millis((EPOCH_MS + self.now).saturating_add_signed(clock)),
            body,
        }
    }

    /// Signs a record: its envelope is its number in the list of all, its digest a made-up one of its words.
    fn seal(&mut self, record: Record) -> Authentic<Record> {
        if let Body::Bundle(bundle) = &record.body {
            let issued = self.issued.entry((bundle.trust_domain.clone(), bundle.sequence)).or_default();
            issued.extend(bundle.roots.iter().cloned());
        }
        self.weigh(&record);
        let digest = digest(&format!("{record:?}"));
        let raw: Arc<[u8]> = Arc::from((self.signed.len() as u64).to_be_bytes());
        let record = Authentic::assertion(record, raw, digest);
        self.signed.push(record.clone());
        record
    }

    /// The record of an envelope.
    pub(crate) fn read(&self, envelope: &[u8]) -> Option<Authentic<Record>> {
        let number = u64::from_be_bytes(envelope.try_into().ok()?);
        self.signed.get(usize::try_from(number).ok()?).cloned()
    }

    /// Remembers which of its own records an honest cluster ever let out.
    pub(super) fn note_sent(&mut self, from: usize, message: &Message) {
        let Message::Records(envelopes) = message else { return };
        let own = self.node(from).id;
        let records: Vec<_> = envelopes.iter().filter_map(|envelope| self.read(envelope)).collect();
        self.shown.extend(records.iter().filter(|record| record.value().writer == own).map(Authentic::digest));
    }
}

/// Four lanes of FNV-1a: no hash to trust, but one that tells the records of a simulation apart.
fn digest(text: &str) -> Digest {
    let mut lanes = [0xcbf2_9ce4_8422_2325_u64, 0x9e37_79b9_7f4a_7c15, 0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53];
    for byte in text.bytes() {
        for lane in &mut lanes {
            *lane = (*lane ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            *lane ^= *lane >> 29;
        }
    }
    let mut bytes = [0; 32];
    bytes.chunks_exact_mut(8).zip(lanes).for_each(|(chunk, lane)| chunk.copy_from_slice(&lane.to_be_bytes()));
    Digest(bytes)
}
