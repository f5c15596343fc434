//! One world of very many members: does what it costs stay within bounds?
//!
//! In: how many. Out: figures, or what broke. A partial mesh in which nothing fails: every member starts with the
//! admissions of all, says its terms and its bundle, and some write rules; then all must have all. Never: folds before
//! the end, since a thousand folds of each change would say nothing about replication.

use std::{cmp::Reverse, collections::BTreeSet};

use anyhow::{Context, Result, ensure};
use federation_model::{Admission, Audience, Authentic, Body, Message, Record, RecordId, fold};
use proto::convert::{encode_envelope, encode_record};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Event, Figures, Options, World, network::pair};
use crate::node::{Node, candidate};

/// Links that each member makes; it has about twice as many.
const LINKS: usize = 4;
/// Rules that are written while the mesh comes up.
const RULES: usize = 100;
/// Time over which the links come up and the rules are written.
const START_MS: u64 = 10_000;
/// When everybody asks once more: the product's default interval.
const ASK_MS: u64 = 30_000;
/// Members whose snapshots are folded and compared at the end.
const FOLDED: usize = 8;
/// Bytes of one head in a vector: writer and digest of 32 bytes each, and the fields around them.
const HEAD_BYTES: u64 = 80;
/// Bytes of a signature.
const SIGNATURE: [u8; 64] = [0; 64];

impl World {
    /// A world of `members` in which nothing fails.
    pub(crate) fn large(members: usize, seed: u64) -> Self {
        let mut world = Self::new(Options { seed, mutation: None, trace: false });
        world.random = StdRng::seed_from_u64(seed);
        world.nodes = (0..members).map(Node::new).collect();
        world.plan = BTreeSet::new();
        world.crooked = None;
        world.network.raw = false;
        world.sizes = Some(Vec::new());
        world
    }

    /// Tells its story.
    ///
    /// # Errors
    /// Somebody lacks something at the end, or more was said than the bound allows.
    pub(crate) fn run_large(&mut self) -> Result<Figures> {
        let members = self.nodes.len();
        self.found()?;
        for number in 1..members {
            let admission = Admission { candidate: candidate(number), lawmaker: number % 10 == 0 };
            self.write(0, Audience::Law, Body::Admission(admission), true);
            self.drain(0)?;
        }
        let law: Vec<Authentic<Record>> = self.node(0).disk.records().to_vec();
        for number in 1..members {
            let node = self.node(number);
            law.iter().for_each(|record| node.disk.put(record.clone()));
            node.joined = true;
            // One link keeps the mesh in one piece, the others are by chance.
            self.network.links.insert(pair(number, number - 1));
            for _ in 1..LINKS {
                let other = self.random.random_range(0..members);
                if other != number {
                    self.network.links.insert(pair(number, other));
                }
            }
        }
        for number in 1..members {
            self.restart(number)?;
            self.introduce(number)?;
            self.at(ASK_MS, Event::Compare(number));
        }
        for rule in 0..RULES as u64 {
            self.at(START_MS * rule / RULES as u64, Event::Write);
        }
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now = due.at;
            self.figures.events += 1;
            match due.event {
                Event::Compare(number) => self.input(number, crate::node::Input::AntiEntropy),
                Event::Write => {
                    let number = self.random.random_range(0..members);
                    self.random_write(number)?;
                }
                event => self.happen(event)?,
            }
        }
        self.figures.converged_ms = self.last_change;
        self.all_have_all()?;
        Ok(self.figures)
    }

    fn all_have_all(&self) -> Result<()> {
        let public = |node: &Node| -> Result<BTreeSet<RecordId>> {
            let replica = node.replica.as_ref().context("it is up")?;
            let ids = replica.records().map(Authentic::<Record>::id);
            Ok(ids.filter(|id| !matches!(id.audience, Audience::Member(_))).collect())
        };
        let first = self.nodes.first().context("a founder")?;
        let held = public(first)?;
        for node in &self.nodes {
            ensure!(public(node)? == held, "c0 and c{} did not converge", node.number);
        }
        let step = (self.nodes.len() / FOLDED).max(1);
        let mut seen = None;
        for node in self.nodes.iter().step_by(step) {
            let replica = node.replica.as_ref().context("it is up")?;
            let snapshot = fold(node.id, self.federation, 1, replica.records()).context("a member")?;
            ensure!(snapshot.members.len() == self.nodes.len(), "c{} does not see all members", node.number);
            let (members, bundles) = seen.get_or_insert((snapshot.members.clone(), snapshot.bundles.clone()));
            ensure!(*members == snapshot.members && *bundles == snapshot.bundles, "c{} sees others", node.number);
        }
        // Each record crosses each link at most once in each direction, and nobody starts with nothing.
        let links = self.network.links.len() as u64;
        let bound = 2 * links * held.len() as u64;
        let sent = self.figures.records_sent;
        ensure!(sent <= bound, "{sent} records were sent over {links} links, at most {bound} are allowed");
        Ok(())
    }

    /// Members, links and records of a world of very many.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.network.links.len(), self.signed.len())
    }

    /// Notes how long an envelope is on the wire.
    pub(super) fn weigh(&mut self, record: &Record) {
        if let Some(sizes) = &mut self.sizes {
            sizes.push(encode_envelope(&encode_record(record), &SIGNATURE).len() as u64);
        }
    }

    /// Counts what a message takes on the wire.
    pub(super) fn count_bytes(&mut self, message: &Message) {
        let Some(sizes) = &self.sizes else { return };
        self.figures.bytes += match message {
            Message::Vector { vector, .. } => vector.0.values().map(|epochs| epochs.len() as u64 * HEAD_BYTES).sum(),
            Message::Records(envelopes) => {
                let number = |envelope: &[u8]| envelope.try_into().ok().map(u64::from_be_bytes);
                let size = |envelope: &[u8]| number(envelope).and_then(|number| sizes.get(number as usize));
                envelopes.iter().filter_map(|envelope| size(envelope)).sum::<u64>()
            }
        };
    }
}
