//! Clusters come, go and come back.
//!
//! In: who joins, crashes or starts. Out: disks, links, sessions to dial. Never: lets a cheat admit anybody, or hands a
//! newcomer what is not durable.

use anyhow::Result;
use federation_model::{
    Accept, Admission, Audience, Authentic, Body, Digest, FederationId, MemberTerms, Position, Record, TrustBundle,
};
use rand::{RngExt, seq::IndexedRandom};

use super::{ANTI_ENTROPY_MS, CALM_MS, Event, World, network::pair};
use crate::{
    checks,
    node::{Input, candidate},
};

impl World {
    pub(super) fn found(&mut self) -> Result<()> {
        let founder = candidate(0).id;
        let first = Position { epoch: 1, seq: 1, previous: Digest::ZERO };
        let founding = self.sign(founder, Audience::Law, first, Body::Founding(candidate(0)), Vec::new());
        self.federation = FederationId::from_digest(founding.digest());
        let node = self.node(0);
        node.disk.put(founding);
        node.joined = true;
        self.restart(0)?;
        self.at(ANTI_ENTROPY_MS, Event::Compare(0));
        self.introduce(0)
    }

    /// Who joins or founds says its terms and publishes its bundle.
    pub(super) fn introduce(&mut self, number: usize) -> Result<()> {
        self.drain(number)?;
        let accept = if self.random.random_bool(0.3) { Accept::Own } else { Accept::Federation };
        self.write(number, Audience::Law, Body::Terms(MemberTerms { accept, ..MemberTerms::default() }), true);
        self.drain(number)?;
        let trust_domain = candidate(number).trust_domain;
        let bundle = TrustBundle { trust_domain, sequence: 1, roots: vec![vec![number as u8]] };
        self.write(number, Audience::Law, Body::Bundle(bundle), true);
        self.drain(number)
    }

    /// A member that is up and honest admits the newcomer and hands it the law; both are durable before the answer.
    pub(super) fn join(&mut self, number: usize) -> Result<()> {
        let mut sponsors = Vec::new();
        for sponsor in 0..self.nodes.len() {
            let fit = self.can_write(sponsor, Audience::Law) && !self.is_crooked(sponsor);
            if fit && self.node(sponsor).disk.failure.is_none() {
                sponsors.push(sponsor);
            }
        }
        let Some(&sponsor) = sponsors.choose(&mut self.random) else {
            self.after(500, Event::Join(number));
            return Ok(());
        };
        let lawmaker = self.random.random_bool(0.3);
        let admission = Admission { candidate: candidate(number), lawmaker };
        self.write(sponsor, Audience::Law, Body::Admission(admission), true);
        self.drain(sponsor)?;
        self.tell(|_| format!("c{number} joins by c{sponsor}, lawmaker: {lawmaker}"));
        let law: Vec<Authentic<Record>> = {
            let held = self.node(sponsor).disk.records();
            held.iter().filter(|record| record.value().audience == Audience::Law).cloned().collect()
        };
        self.shown.extend(law.iter().map(Authentic::digest));
        let node = self.node(number);
        law.into_iter().for_each(|record| node.disk.put(record));
        node.joined = true;
        self.network.links.insert(pair(number, sponsor));
        let others: Vec<usize> = self.nodes.iter().filter(|node| node.joined).map(|node| node.number).collect();
        for other in others.into_iter().filter(|other| *other != number) {
            if self.random.random_bool(0.4) {
                self.network.links.insert(pair(number, other));
            }
        }
        self.restart(number)?;
        let offset = self.random.random_range(0..ANTI_ENTROPY_MS);
        self.after(offset, Event::Compare(number));
        self.introduce(number)
    }

    pub(super) fn restart(&mut self, number: usize) -> Result<()> {
        let federation = self.federation;
        let node = self.node(number);
        if node.is_up() || !node.joined {
            return Ok(());
        }
        node.start(federation);
        self.tell(|world| format!("c{number} starts with {} records", world.nodes[number].disk.records().len()));
        self.publish(number)?;
        self.network.links_of(number).into_iter().for_each(|pair| self.dial(pair, 0));
        Ok(())
    }

    pub(super) fn crash(&mut self, number: usize) -> Result<()> {
        if !self.node(number).is_up() {
            return Ok(());
        }
        self.tell(|world| format!("c{number} crashes with {} effects undone", world.nodes[number].pending.len()));
        self.figures.crashes += 1;
        checks::crash(self.node(number))?;
        self.node(number).crash();
        self.vanish(number);
        // Often back before anybody told it anything.
        let ms = if self.random.random_bool(0.5) { 1 } else { self.random.random_range(1..3_000) };
        self.after(ms, Event::Restart(number));
        Ok(())
    }

    pub(super) fn compare(&mut self, number: usize) {
        if self.node(number).works() {
            self.input(number, Input::AntiEntropy);
        }
        if self.now < self.storm_ms + CALM_MS {
            self.after(ANTI_ENTROPY_MS, Event::Compare(number));
        }
    }

    pub(super) fn calm_down(&mut self) -> Result<()> {
        self.tell(|_| "calm: every fault stops".to_owned());
        self.calm = true;
        self.last_change = self.now;
        for number in 0..self.nodes.len() {
            self.node(number).disk.failure = None;
            self.resume(number);
            self.restart(number)?;
        }
        self.mend_network();
        Ok(())
    }
}
