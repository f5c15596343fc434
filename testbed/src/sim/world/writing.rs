//! How the clusters of a world write and sign, and how one of them cheats.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use federation_model::{
    Accept, Audience, Authentic, Body, ClusterId, Digest, MemberTerms, Message, Position, Record, RecordId, Timestamp,
};
use rand::{RngExt, seq::IndexedRandom};

use super::World;
use crate::workload;

impl World {
    pub(super) fn random_write(&mut self, number: usize) -> Result<()> {
        let node = self.node(number);
        // A cluster writes when it is done with what came before.
        if !node.is_up() || !node.pending.is_empty() {
            return Ok(());
        }
        self.sequence += 1;
        let (clusters, sequence) = (self.nodes.len(), self.sequence);
        let (audience, body) = workload::write(&mut self.random, number, clusters, &self.keys, sequence);
        if self.crooked == Some(number) && audience == Audience::Law && self.random.random_bool(0.2) {
            self.equivocate(number)?;
        }
        let sees_others = self.random.random_bool(0.9);
        self.write(number, audience, body, sees_others)?;
        if !self.calm && self.random.random_bool(0.08) {
            // A crash between two effects of a write is what tells whether their order is right.
            let effects = self.node(number).pending.len();
            let done = self.random.random_range(0..=effects);
            for _ in 0..done {
                let effect = self.node(number).pending.pop_front().context("an effect that was counted")?;
                self.carry_out(number, effect)?;
            }
            self.crash(number);
        }
        Ok(())
    }

    /// Signs a second record for the place of the next one and shows it to one peer, sometimes with another behind it.
    fn equivocate(&mut self, number: usize) -> Result<()> {
        let id = self.node(number).id;
        let peers: Vec<usize> = self
            .sessions
            .keys()
            .filter_map(|(a, b)| if *a == number { Some(*b) } else { (*b == number).then_some(*a) })
            .collect();
        let (Some(replica), Some(peer)) = (&self.nodes[number].replica, peers.choose(&mut self.random).copied()) else {
            return Ok(());
        };
        let mut position = replica.next_position(Audience::Law);
        let mut envelopes = Vec::new();
        for _ in 0..self.random.random_range(1..3) {
            let accept = if self.random.random_bool(0.5) { Accept::Own } else { Accept::Federation };
            let body = Body::Terms(MemberTerms { accept, ..MemberTerms::default() });
            let record = self.sign(id, Audience::Law, position, body, Vec::new());
            position = Position { seq: position.seq + 1, previous: record.digest(), ..position };
            envelopes.push(record.raw().clone());
        }
        self.figures.equivocations += 1;
        self.tell(|_| format!("c{number} shows c{peer} {} records that it shows nobody else", envelopes.len()));
        self.send(number, peer, Message::Records(envelopes));
        Ok(())
    }

    /// Writes as the link does: at the next position, over what may be replaced.
    pub(super) fn write(&mut self, number: usize, audience: Audience, body: Body, sees_others: bool) -> Result<()> {
        let id = self.node(number).id;
        let Some(replica) = &self.nodes[number].replica else { bail!("c{number} is down and writes") };
        let position = replica.next_position(audience);
        let draft = self.sign(id, audience, position, body.clone(), Vec::new());
        self.signed.pop();
        let replica = self.nodes[number].replica.as_mut().context("up")?;
        let replaces = if sees_others { replica.replaceable(&draft.key()) } else { Vec::new() };
        let record = self.sign(id, audience, position, body, replaces);
        self.figures.writes += 1;
        self.tell(|_| format!("c{number} writes {}: {:?}", record.id(), record.value().body));
        let replica = self.nodes[number].replica.as_mut().context("up")?;
        let effects = replica.on_local(record).context("a write at the next position")?;
        self.node(number).pending.extend(effects);
        self.wake(number, 1);
        Ok(())
    }

    /// Signs a record: its envelope is its number in the list of all, its digest a made-up one of its words.
    pub(super) fn sign(
        &mut self,
        writer: ClusterId,
        audience: Audience,
        Position { epoch, seq, previous }: Position,
        body: Body,
        replaces: Vec<RecordId>,
    ) -> Authentic<Record> {
        let record = Record {
            federation: self.federation,
            writer,
            audience,
            epoch,
            seq,
            previous,
            replaces,
            author: String::new(),
            // Tells two records apart that say the same.
            written_at: Timestamp::from_millis(self.signed.len() as u64),
            body,
        };
        let digest = digest(&format!("{record:?}"));
        let raw: Arc<[u8]> = Arc::from((self.signed.len() as u64).to_be_bytes());
        let record = Authentic::assertion(record, raw, digest);
        self.signed.push(record.clone());
        record
    }

    /// The record of an envelope.
    pub(super) fn open(&self, envelope: &[u8]) -> Option<Authentic<Record>> {
        let number = u64::from_be_bytes(envelope.try_into().ok()?);
        self.signed.get(usize::try_from(number).ok()?).cloned()
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
