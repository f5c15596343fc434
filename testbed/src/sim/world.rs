//! One seed's story: clusters, links, faults, and virtual time.
//!
//! In: a seed. Out: `Ok`, or what broke. A storm has writes, latecomers, the nemeses of the seed's plan, and in some
//! worlds a member that cheats. Then all faults stop, and within a bound every cluster must have the same law, after
//! which nobody has anything left to say. What must hold at every event is judged at every event.

mod byzantine;
mod large;
mod membership;
mod nemesis;
mod network;
mod work;
mod writing;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet},
};

use anyhow::{Context, Result, ensure};
use federation_model::{Authentic, Digest, FederationId, IntentionKey, Message, Mutation, Record, TrustDomain, plant};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::{
    byzantine::Crooked,
    nemesis::Nemesis,
    network::{Network, Way},
};
pub(crate) use self::{
    byzantine::TRICKS,
    nemesis::NEMESES,
    network::{Pair, pair},
};
use crate::{checks, node::Node, workload};

/// How long a storm lasts, in virtual milliseconds: one of these.
const STORMS_MS: [u64; 4] = [15_000, 30_000, 60_000, 120_000];
/// Writes of one storm, more or less.
const WRITES: u64 = 100;
/// Strikes of each nemesis in one storm, more or less.
const STRIKES: u64 = 12;
/// How often each cluster asks its peers again.
const ANTI_ENTROPY_MS: u64 = 2_000;
/// Time in which everything has converged once all faults have stopped.
pub(crate) const CONVERGE_MS: u64 = 5_000;
/// How long the calm lasts: the bound, and two rounds in which nobody may have anything to say.
const CALM_MS: u64 = CONVERGE_MS + 2 * ANTI_ENTROPY_MS;
/// Events past which a world counts as one that never falls silent.
const EVENTS_MAX: u64 = 400_000;

pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) trace: bool,
}

/// What happened, in numbers: shows that the worlds are not empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    pub(crate) writes: u64,
    pub(crate) failed_writes: u64,
    pub(crate) crashes: u64,
    pub(crate) restores: u64,
    pub(crate) partitions: u64,
    pub(crate) strikes: u64,
    pub(crate) equivocations: u64,
    pub(crate) evictions: u64,
    pub(crate) publications: u64,
    pub(crate) decisions: u64,
    pub(crate) messages: u64,
    pub(crate) records_sent: u64,
    /// Bytes on the wire, in a world of very many alone.
    pub(crate) bytes: u64,
    /// How long it took to converge once all faults had stopped.
    pub(crate) converged_ms: u64,
    /// The nemeses and tricks of the world, a bit each, in the order of their lists.
    pub(crate) nemeses: u32,
    pub(crate) tricks: u32,
}

impl Figures {
    fn message(&mut self, message: &Message) {
        self.messages += 1;
        if let Message::Records(envelopes) = message {
            self.records_sent += envelopes.len() as u64;
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A node carries out one effect, or takes one input.
    Step(usize),
    Deliver {
        from: usize,
        to: usize,
        session: u64,
        message: Message,
    },
    /// An end looks whether its session still lives.
    Notice {
        me: usize,
        peer: usize,
        session: u64,
    },
    Dial(Pair),
    Block(Vec<Way>),
    Unblock(Vec<Way>),
    Write,
    Strike(Nemesis),
    Mischief,
    Join(usize),
    Restart(usize),
    Resume(usize),
    DiskWorks(usize),
    Compare(usize),
    Calm,
}

/// An event with its time; the counter keeps those of one instant in order.
struct Due {
    at: u64,
    counter: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.counter) == (other.at, other.counter)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.counter).cmp(&(other.at, other.counter))
    }
}

/// The roots that an owner ever signed for a sequence of its trust domain.
pub(crate) type Issued = BTreeMap<(TrustDomain, u64), BTreeSet<Vec<u8>>>;

pub(crate) struct World {
    random: StdRng,
    tracing: bool,
    pub(crate) trace: Vec<String>,
    pub(crate) figures: Figures,
    now: u64,
    counter: u64,
    queue: BinaryHeap<Reverse<Due>>,
    pub(crate) nodes: Vec<Node>,
    federation: FederationId,
    /// Every record that was ever signed, by its envelope: an index into this list.
    signed: Vec<Authentic<Record>>,
    /// Digests of what honest clusters let out of their own records.
    shown: HashSet<Digest>,
    issued: Issued,
    network: Network,
    plan: BTreeSet<Nemesis>,
    storm_ms: u64,
    pub(crate) calm: bool,
    /// When anybody last made something durable.
    last_change: u64,
    /// The member that cheats, if this world has one.
    crooked: Option<Crooked>,
    keys: Vec<IntentionKey>,
    sequence: u64,
    /// In a world of very many: the bytes of each envelope on the wire, and no snapshot before the end.
    sizes: Option<Vec<u64>>,
}

impl World {
    pub(crate) fn new(Options { seed, mutation, trace }: Options) -> Self {
        plant(mutation);
        let mut random = StdRng::seed_from_u64(seed);
        let clusters = random.random_range(3..=7);
        let keys = workload::keys(&mut random, clusters);
        let crooked = Crooked::perhaps(clusters, &mut random);
        let plan = nemesis::plan(seed, &mut random);
        let figures =
            Figures { nemeses: nemesis::bits(&plan), tricks: byzantine::bits(crooked.as_ref()), ..Figures::default() };
        let storm_ms = STORMS_MS.choose(&mut random).copied().unwrap_or(15_000);
        let mut network = Network::default();
        network.raw = random.random_bool(0.4);
        Self {
            tracing: trace,
            trace: Vec::new(),
            figures,
            now: 0,
            counter: 0,
            queue: BinaryHeap::new(),
            nodes: (0..clusters).map(Node::new).collect(),
            federation: FederationId::from_digest(Digest::ZERO),
            signed: Vec::new(),
            shown: HashSet::new(),
            issued: Issued::new(),
            network,
            plan,
            storm_ms,
            calm: false,
            last_change: 0,
            crooked,
            keys,
            sequence: 1,
            sizes: None,
            random,
        }
    }

    /// Tells the whole story.
    ///
    /// # Errors
    /// What broke, in words.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.tell(|world| {
            let tricks = world.crooked.as_ref().map(|crooked| (crooked.number, &crooked.tricks, crooked.stubborn));
            format!("{} clusters, nemeses {:?}, crooked {tricks:?}", world.nodes.len(), world.plan)
        });
        self.found()?;
        for number in 1..self.nodes.len() {
            // Most join at the start; some come late.
            let late = self.random.random_bool(0.3);
            let at = if late { self.random.random_range(1..self.storm_ms / 2) } else { number as u64 };
            self.at(at, Event::Join(number));
        }
        self.at(50, Event::Write);
        self.at(100, Event::Mischief);
        for nemesis in self.plan.clone() {
            let ms = self.random.random_range(50..2_000);
            self.at(ms, Event::Strike(nemesis));
        }
        self.at(self.storm_ms, Event::Calm);
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now = due.at;
            self.figures.events += 1;
            ensure!(self.figures.events < EVENTS_MAX, "the replicas never fall silent");
            self.happen(due.event).with_context(|| format!("at {} ms", self.now))?;
        }
        self.figures.converged_ms = self.last_change.saturating_sub(self.storm_ms);
        let (crooked, stubborn) = (self.crooked_id(), self.is_stubborn());
        let quiet = checks::Quiet { nodes: &self.nodes, links: &self.network.links, crooked, stubborn };
        self.figures.decisions += quiet.check(&mut self.random)?;
        let took = self.figures.converged_ms;
        ensure!(took <= CONVERGE_MS, "it took {took} ms to converge, at most {CONVERGE_MS} are allowed");
        Ok(())
    }

    /// Whether everything must have converged by now.
    pub(crate) fn is_past_bound(&self) -> bool {
        self.calm && self.now > self.storm_ms + CONVERGE_MS
    }

    pub(crate) fn has(&self, nemesis: Nemesis) -> bool {
        self.plan.contains(&nemesis)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.counter += 1;
        self.queue.push(Reverse(Due { at, counter: self.counter, event }));
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    fn tell(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.tracing {
            let line = format!("{:>6} ms  {}", self.now, line(self));
            self.trace.push(line);
        }
    }

    fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Step(number) => self.step(number)?,
            Event::Deliver { from, to, session, message } => self.deliver(from, to, session, message)?,
            Event::Notice { me, peer, session } => self.noticed(me, peer, session),
            Event::Dial(pair) => self.dialled(pair),
            Event::Compare(number) => self.compare(number),
            Event::Restart(number) => {
                self.restart(number)?;
                if !self.calm && self.random.random_bool(0.4) {
                    // Somebody who was not answered before the crash tries again at once, before any peer is heard.
                    self.random_write(number)?;
                }
            }
            Event::Resume(number) => self.resume(number),
            Event::DiskWorks(number) => self.node(number).disk.failure = None,
            Event::Unblock(ways) => self.unblock(&ways),
            Event::Calm => self.calm_down()?,
            Event::Mischief => self.mischief()?,
            // The rest is of the storm alone.
            _ if self.calm => {}
            Event::Block(ways) => self.block(&ways),
            Event::Join(number) => self.join(number)?,
            Event::Write => {
                let number = self.random.random_range(0..self.nodes.len());
                self.random_write(number)?;
                let ms = self.random.random_range(1..2 * self.storm_ms / WRITES);
                self.after(ms, Event::Write);
            }
            Event::Strike(nemesis) => {
                self.strike(nemesis)?;
                let ms = self.random.random_range(1..2 * self.storm_ms / STRIKES);
                self.after(ms, Event::Strike(nemesis));
            }
        }
        Ok(())
    }

    fn node(&mut self, number: usize) -> &mut Node {
        self.nodes.get_mut(number).expect("a node of this world")
    }

    fn number(&self, id: federation_model::ClusterId) -> Result<usize> {
        self.nodes.iter().position(|node| node.id == id).context("a cluster of this world")
    }
}
