//! A member that does not keep to the rules, as far as signatures let it.
//!
//! In: what its honest replica would say. Out: what it says instead, and records that it signs beside its replica.
//! Never: signs for another, since that is stopped before a replica sees it.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use federation_model::{
    Accept, Audience, Authentic, Body, Digest, EPOCHS_MAX, Head, MemberTerms, Message, Position, Record, Vector,
};
use rand::{
    RngExt,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

use super::{Event, World};
use crate::{node::candidate, workload};

/// Records of one flood.
const FLOOD_RECORDS: usize = 100;
/// Old vectors kept to say them again.
const OLD_VECTORS: usize = 8;

/// A way to break the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trick {
    /// Signs two records at one place, in any of its logs.
    Equivocate,
    /// Keeps some records from some peers.
    Withhold,
    /// Says again how far it was before.
    OldVector,
    /// Claims heads that it does not have, some of them of the peer's own logs.
    ClaimMore,
    /// Denies logs that it has.
    ClaimLess,
    /// Writes many records, and opens many epochs.
    Flood,
    /// Relays records in another order.
    Shuffle,
    /// Shows what is for one member to another.
    WrongAudience,
    /// Sends bytes that are no records.
    Garble,
}

/// Every trick by the name under which it is counted.
pub(crate) const TRICKS: [(&str, Trick); 9] = [
    ("equivocate", Trick::Equivocate),
    ("withhold", Trick::Withhold),
    ("old-vector", Trick::OldVector),
    ("claim-more", Trick::ClaimMore),
    ("claim-less", Trick::ClaimLess),
    ("flood", Trick::Flood),
    ("shuffle", Trick::Shuffle),
    ("wrong-audience", Trick::WrongAudience),
    ("garble", Trick::Garble),
];

/// The member that cheats.
pub(crate) struct Crooked {
    pub(crate) number: usize,
    pub(crate) tricks: BTreeSet<Trick>,
    /// Whether it goes on after all faults have stopped: then only the others have to agree.
    pub(crate) stubborn: bool,
    vectors: Vec<Vector>,
}

impl Crooked {
    /// Three worlds in ten have one; never the founder.
    pub(crate) fn perhaps(clusters: usize, random: &mut StdRng) -> Option<Self> {
        if !random.random_bool(0.3) {
            return None;
        }
        let number = random.random_range(1..clusters);
        let mut tricks = BTreeSet::new();
        for _ in 0..random.random_range(1..=3) {
            // Half of all tricks are the one that the model has most to say about.
            let trick = if random.random_bool(0.4) { None } else { TRICKS.choose(random) };
            tricks.insert(trick.map_or(Trick::Equivocate, |(_, trick)| *trick));
        }
        Some(Self { number, tricks, stubborn: random.random_bool(0.5), vectors: Vec::new() })
    }
}

/// The tricks of a world, a bit each.
pub(crate) fn bits(crooked: Option<&Crooked>) -> u32 {
    let does = |trick: &Trick| crooked.is_some_and(|crooked| crooked.tricks.contains(trick));
    let places = TRICKS.iter().enumerate().filter(|(_, (_, trick))| does(trick));
    places.fold(0, |bits, (at, _)| bits | 1 << at)
}

impl World {
    pub(super) fn is_crooked(&self, number: usize) -> bool {
        self.crooked.as_ref().is_some_and(|crooked| crooked.number == number)
    }

    pub(crate) fn crooked_number(&self) -> Option<usize> {
        self.crooked.as_ref().map(|crooked| crooked.number)
    }

    fn does(&mut self, trick: Trick, chance: f64) -> bool {
        let does = self.crooked.as_ref().is_some_and(|crooked| crooked.tricks.contains(&trick));
        does && (!self.calm || self.is_stubborn()) && self.random.random_bool(chance)
    }

    pub(super) fn is_stubborn(&self) -> bool {
        self.crooked.as_ref().is_some_and(|crooked| crooked.stubborn)
    }

    /// What the crooked member says to `to` in place of `message`; `None` if nothing.
    pub(super) fn distort(&mut self, to: usize, message: Message) -> Option<Message> {
        match message {
            Message::Vector { vector, ask } => Some(Message::Vector { vector: self.distort_vector(to, vector), ask }),
            Message::Records(mut envelopes) => {
                if self.does(Trick::Withhold, 1.0) {
                    let kept = |envelope: &Arc<[u8]>| {
                        let digest = self.read(envelope).map_or(Digest::ZERO, |record| record.digest());
                        !(usize::from(digest.0[0]) + to).is_multiple_of(3)
                    };
                    envelopes.retain(kept);
                }
                if self.does(Trick::Shuffle, 0.5) {
                    envelopes.shuffle(&mut self.random);
                }
                if self.does(Trick::Garble, 0.3) {
                    let at = self.random.random_range(0..=envelopes.len());
                    envelopes.insert(at, Arc::from([0xff; 8]));
                }
                (!envelopes.is_empty()).then_some(Message::Records(envelopes))
            }
        }
    }

    fn distort_vector(&mut self, to: usize, vector: Vector) -> Vector {
        let old = if self.does(Trick::OldVector, 0.5) {
            self.crooked.as_ref().and_then(|crooked| crooked.vectors.choose(&mut self.random).cloned())
        } else {
            None
        };
        if let Some(crooked) = &mut self.crooked
            && crooked.vectors.len() < OLD_VECTORS
        {
            crooked.vectors.push(vector.clone());
        }
        let mut said = old.unwrap_or(vector);
        if self.does(Trick::ClaimLess, 0.5) {
            said.0.retain(|_, _| self.random.random_bool(0.6));
        }
        if self.does(Trick::ClaimMore, 0.5) {
            let logs: Vec<_> = said.0.keys().copied().chain([(candidate(to).id, Audience::Law)]).collect();
            for (writer, audience) in logs {
                if self.random.random_bool(0.3) {
                    let epoch = self.random.random_range(1..5);
                    let head = Head { seq: self.random.random_range(1..60), digest: Digest([0xee; 32]) };
                    said.set(writer, audience, epoch, head);
                }
            }
        }
        said
    }

    /// Something that it does on its own.
    pub(super) fn mischief(&mut self) -> Result<()> {
        let Some(number) = self.crooked.as_ref().map(|crooked| crooked.number) else { return Ok(()) };
        if self.calm {
            return Ok(());
        }
        let ms = self.random.random_range(200..3_000);
        self.after(ms, Event::Mischief);
        if !self.node(number).works() {
            return Ok(());
        }
        if self.does(Trick::Equivocate, 0.5) {
            self.equivocate(number)?;
        }
        if self.does(Trick::Flood, 0.1) {
            self.flood(number)?;
        }
        if self.does(Trick::WrongAudience, 0.5) {
            self.show_to_another(number)?;
        }
        Ok(())
    }

    /// Signs a second record for the place of the next one and shows it to one peer, sometimes with another behind it.
    fn equivocate(&mut self, number: usize) -> Result<()> {
        let id = self.node(number).id;
        let Some(peer) = self.network.peers(number).choose(&mut self.random).copied() else { return Ok(()) };
        let audience = match self.random.random_range(0..4) {
            0 => Audience::All,
            1 => Audience::Member(candidate(peer).id),
            _ => Audience::Law,
        };
        let Some(replica) = &self.node(number).replica else { return Ok(()) };
        let mut position = replica.next_position(audience);
        let mut envelopes = Vec::new();
        for _ in 0..self.random.random_range(1..3) {
            let body = if audience == Audience::Law {
                let accept = if self.random.random_bool(0.5) { Accept::Own } else { Accept::Federation };
                Body::Terms(MemberTerms { accept, ..MemberTerms::default() })
            } else {
                workload::service(&mut self.random)
            };
            let record = self.sign(id, audience, position, body, Vec::new());
            position = Position { seq: position.seq + 1, previous: record.digest(), ..position };
            envelopes.push(record.raw().clone());
        }
        self.figures.equivocations += 1;
        self.tell(|_| format!("c{number} shows c{peer} {} records that it shows nobody else", envelopes.len()));
        self.send(number, peer, Message::Records(envelopes))
    }

    /// Many records in one epoch, or one in each of more epochs than anybody keeps.
    fn flood(&mut self, number: usize) -> Result<()> {
        let id = self.node(number).id;
        let Some(peer) = self.network.peers(number).choose(&mut self.random).copied() else { return Ok(()) };
        let audience = if self.random.random_bool(0.5) { Audience::All } else { Audience::Law };
        let Some(replica) = &self.node(number).replica else { return Ok(()) };
        let Position { epoch, .. } = replica.next_position(audience);
        let wide = self.random.random_bool(0.5);
        let mut envelopes = Vec::new();
        let mut place = Position { epoch: epoch + 1, seq: 1, previous: Digest::ZERO };
        if wide {
            place.epoch = EPOCHS_MAX as u64 - FLOOD_RECORDS as u64 / 2;
        }
        for _ in 0..FLOOD_RECORDS {
            let body = workload::service(&mut self.random);
            let record = self.sign(id, audience, place, body, Vec::new());
            place = if wide {
                Position { epoch: place.epoch + 1, ..place }
            } else {
                Position { seq: place.seq + 1, previous: record.digest(), ..place }
            };
            envelopes.push(record.raw().clone());
        }
        self.tell(|_| format!("c{number} floods c{peer}, over many epochs: {wide}"));
        self.send(number, peer, Message::Records(envelopes))
    }

    /// Shows a record for one member to whoever else is connected.
    fn show_to_another(&mut self, number: usize) -> Result<()> {
        let private = |record: &&Authentic<Record>| matches!(record.value().audience, Audience::Member(_));
        let held: Vec<Arc<[u8]>> =
            self.node(number).disk.records().iter().filter(private).map(|record| record.raw().clone()).collect();
        let Some(envelope) = held.choose(&mut self.random).cloned() else { return Ok(()) };
        for peer in self.network.peers(number) {
            self.send(number, peer, Message::Records(vec![envelope.clone()]))?;
        }
        Ok(())
    }
}
