//! One seed's story: clusters, links, faults, and virtual time.
//!
//! In: a seed. Out: `Ok`, or what broke. A first part has writes, cuts, crashes, restores, latecomers, and in some worlds
//! messages that are lost, doubled or overtaken, or a member that signs two records at one place. Then all links are
//! mended, and what must hold is checked once nobody has anything left to say.

mod writing;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use anyhow::{Context, Result, ensure};
use federation_model::{
    Accept, Admission, Audience, Authentic, Body, ClusterId, Digest, Effect, FederationId, IntentionKey, MemberTerms,
    Message, Mutation, Position, Record, TrustBundle,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    checks,
    node::{Input, Node, candidate},
    workload,
};

/// How long writes and faults go on, in virtual milliseconds.
const STORM_MS: u64 = 20_000;
/// How long the calm after it lasts: enough for several rounds of anti-entropy.
const CALM_MS: u64 = 20_000;
/// How often each cluster asks its peers again.
const ANTI_ENTROPY_MS: u64 = 2_000;
/// Events past which a world counts as one that never falls silent.
const EVENTS_MAX: u64 = 400_000;

/// Two clusters by number, the lower first.
pub(crate) type Pair = (usize, usize);

pub(crate) fn pair(a: usize, b: usize) -> Pair {
    (a.min(b), a.max(b))
}

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
    pub(crate) crashes: u64,
    pub(crate) restores: u64,
    pub(crate) partitions: u64,
    pub(crate) equivocations: u64,
    pub(crate) decisions: u64,
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
    Write,
    Fault,
    Join(usize),
    Restart(usize),
    Mend(Pair),
    AntiEntropy(usize),
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

pub(crate) struct World {
    random: StdRng,
    mutation: Option<Mutation>,
    tracing: bool,
    pub(crate) trace: Vec<String>,
    pub(crate) figures: Figures,
    now: u64,
    counter: u64,
    queue: BinaryHeap<Reverse<Due>>,
    nodes: Vec<Node>,
    federation: FederationId,
    /// Every record that was ever signed, by its envelope: an index into this list.
    signed: Vec<Authentic<Record>>,
    /// Pairs that may have a session.
    links: BTreeSet<Pair>,
    cut: BTreeSet<Pair>,
    sessions: BTreeMap<Pair, u64>,
    session: u64,
    /// Sessions whose one end crashed: what it sent before still arrives.
    lingering: BTreeSet<(u64, usize)>,
    /// When the last message of a direction arrives, for worlds in which none overtakes another.
    arrivals: BTreeMap<(usize, usize), u64>,
    /// Whether messages may be lost, doubled and overtaken within a session.
    wild: bool,
    calm: bool,
    may_restore: bool,
    /// The member that signs two records at one place, if this world has one.
    crooked: Option<usize>,
    keys: Vec<IntentionKey>,
    sequence: u64,
}

impl World {
    pub(crate) fn new(Options { seed, mutation, trace }: Options) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let clusters = random.random_range(3..=7);
        let keys = workload::keys(&mut random, clusters);
        let crooked = random.random_bool(0.3).then(|| random.random_range(1..clusters));
        Self {
            mutation,
            tracing: trace,
            trace: Vec::new(),
            figures: Figures::default(),
            now: 0,
            counter: 0,
            queue: BinaryHeap::new(),
            nodes: (0..clusters).map(Node::new).collect(),
            federation: FederationId::from_digest(Digest::ZERO),
            signed: Vec::new(),
            links: BTreeSet::new(),
            cut: BTreeSet::new(),
            sessions: BTreeMap::new(),
            session: 0,
            lingering: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            wild: random.random_bool(0.4),
            calm: false,
            may_restore: random.random_bool(0.3),
            crooked,
            keys,
            sequence: 1,
            random,
        }
    }

    /// Tells the whole story.
    ///
    /// # Errors
    /// What broke, in words.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.found()?;
        for number in 1..self.nodes.len() {
            // Most join at the start; some come late.
            let at =
                if self.random.random_bool(0.7) { number as u64 } else { self.random.random_range(1..STORM_MS / 2) };
            self.at(at, Event::Join(number));
        }
        self.at(50, Event::Write);
        self.at(100, Event::Fault);
        self.at(STORM_MS, Event::Calm);
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now = due.at;
            self.figures.events += 1;
            ensure!(self.figures.events < EVENTS_MAX, "the replicas never fall silent");
            self.happen(due.event).with_context(|| format!("at {} ms", self.now))?;
        }
        let crooked = self.crooked_id();
        self.figures.decisions += checks::quiet(&self.nodes, &self.links, crooked, &mut self.random)?;
        Ok(())
    }

    fn crooked_id(&self) -> Option<ClusterId> {
        self.crooked.map(|number| candidate(number).id)
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
            Event::Deliver { from, to, session, message } => self.deliver(from, to, session, message),
            Event::Write => {
                let number = self.random.random_range(0..self.nodes.len());
                self.random_write(number)?;
                if !self.calm {
                    let ms = self.random.random_range(20..400);
                    self.after(ms, Event::Write);
                }
            }
            Event::Fault => {
                if !self.calm {
                    self.fault();
                    let ms = self.random.random_range(50..1_500);
                    self.after(ms, Event::Fault);
                }
            }
            Event::Join(number) => self.join(number)?,
            Event::Restart(number) => {
                self.restart(number)?;
                if !self.calm && self.random.random_bool(0.4) {
                    // Somebody who was not answered before the crash tries again at once, before any peer is heard.
                    self.random_write(number)?;
                }
            }
            Event::Mend(pair) => {
                if self.cut.remove(&pair) {
                    self.tell(|_| format!("link c{}-c{} is mended", pair.0, pair.1));
                    self.connect(pair);
                }
            }
            Event::AntiEntropy(number) => {
                if self.node(number).is_up() {
                    self.input(number, Input::AntiEntropy);
                }
                if self.now < STORM_MS + CALM_MS {
                    self.after(ANTI_ENTROPY_MS, Event::AntiEntropy(number));
                }
            }
            Event::Calm => self.calm_down()?,
        }
        Ok(())
    }

    fn node(&mut self, number: usize) -> &mut Node {
        self.nodes.get_mut(number).expect("a node of this world")
    }

    fn number(&self, id: ClusterId) -> Result<usize> {
        self.nodes.iter().position(|node| node.id == id).context("a cluster of this world")
    }

    // Clusters come, go and come back.

    fn found(&mut self) -> Result<()> {
        let founder = candidate(0).id;
        let first = Position { epoch: 1, seq: 1, previous: Digest::ZERO };
        let founding = self.sign(founder, Audience::Law, first, Body::Founding(candidate(0)), Vec::new());
        self.federation = FederationId::from_digest(founding.digest());
        let node = self.node(0);
        node.disk.push(founding);
        node.joined = true;
        self.restart(0)?;
        self.at(ANTI_ENTROPY_MS, Event::AntiEntropy(0));
        self.introduce(0)
    }

    /// Who joins or founds says its terms and publishes its bundle.
    fn introduce(&mut self, number: usize) -> Result<()> {
        self.drain(number)?;
        let accept = if self.random.random_bool(0.3) { Accept::Own } else { Accept::Federation };
        self.write(number, Audience::Law, Body::Terms(MemberTerms { accept, ..MemberTerms::default() }), true)?;
        self.drain(number)?;
        let trust_domain = candidate(number).trust_domain;
        let bundle = TrustBundle { trust_domain, sequence: 1, roots: vec![vec![number as u8]] };
        self.write(number, Audience::Law, Body::Bundle(bundle), true)?;
        self.drain(number)
    }

    /// A member that is up and honest admits the newcomer and hands it the law; both are durable before the answer.
    fn join(&mut self, number: usize) -> Result<()> {
        let sponsors: Vec<usize> = self
            .nodes
            .iter()
            .filter(|node| node.joined && node.is_up() && Some(node.number) != self.crooked)
            .map(|node| node.number)
            .collect();
        let Some(&sponsor) = sponsors.choose(&mut self.random) else {
            self.after(500, Event::Join(number));
            return Ok(());
        };
        self.drain(sponsor)?;
        let lawmaker = self.random.random_bool(0.3);
        let admission = Admission { candidate: candidate(number), lawmaker };
        self.write(sponsor, Audience::Law, Body::Admission(admission), true)?;
        self.drain(sponsor)?;
        self.tell(|_| format!("c{number} joins by c{sponsor}, lawmaker: {lawmaker}"));
        let is_law = |record: &&Authentic<Record>| record.value().audience == Audience::Law;
        let law: Vec<_> = self.node(sponsor).disk.iter().filter(is_law).cloned().collect();
        let node = self.node(number);
        node.disk = law;
        node.joined = true;
        self.links.insert(pair(number, sponsor));
        let others: Vec<usize> = self.nodes.iter().filter(|node| node.joined).map(|node| node.number).collect();
        for other in others.into_iter().filter(|other| *other != number) {
            if self.random.random_bool(0.4) {
                self.links.insert(pair(number, other));
            }
        }
        self.restart(number)?;
        let offset = self.random.random_range(0..ANTI_ENTROPY_MS);
        self.after(offset, Event::AntiEntropy(number));
        self.introduce(number)
    }

    fn restart(&mut self, number: usize) -> Result<()> {
        let (federation, mutation) = (self.federation, self.mutation);
        let node = self.node(number);
        if node.is_up() || !node.joined {
            return Ok(());
        }
        node.start(federation, mutation);
        self.tell(|world| format!("c{number} starts with {} records", world.nodes[number].disk.len()));
        self.publish(number)?;
        let links: Vec<Pair> = self.links.iter().copied().filter(|(a, b)| *a == number || *b == number).collect();
        links.into_iter().for_each(|pair| self.connect(pair));
        Ok(())
    }

    fn crash(&mut self, number: usize) {
        if !self.node(number).is_up() {
            return;
        }
        self.tell(|world| format!("c{number} crashes with {} effects undone", world.nodes[number].pending.len()));
        self.figures.crashes += 1;
        self.node(number).crash();
        let sessions: Vec<Pair> = self.sessions.keys().copied().filter(|(a, b)| *a == number || *b == number).collect();
        for pair in sessions {
            self.lingering.extend(self.sessions.get(&pair).map(|session| (*session, number)));
            self.disconnect(pair);
        }
        // Often back before anybody told it anything.
        let ms = if self.random.random_bool(0.5) { 1 } else { self.random.random_range(1..3_000) };
        self.after(ms, Event::Restart(number));
    }

    /// A crash after which the disk is an older one. What nobody else has on disk is lost with it, as it must be.
    fn restore(&mut self, number: usize) {
        self.crash(number);
        self.figures.restores += 1;
        // An older disk, but not from before it was a member.
        let id = candidate(number).id;
        let disk = &self.node(number).disk;
        let admits = |record: &Authentic<Record>| match &record.value().body {
            Body::Founding(candidate) | Body::Admission(Admission { candidate, .. }) => candidate.id == id,
            _ => false,
        };
        let total = disk.len();
        let least = disk.iter().position(admits).map_or(total, |at| at + 1).max(total / 2);
        let keep = self.random.random_range(least..=total);
        self.tell(|_| format!("c{number} is restored to its first {keep} records"));
        let elsewhere: BTreeSet<_> = self
            .nodes
            .iter()
            .filter(|node| node.number != number)
            .flat_map(|node| node.disk.iter().map(Authentic::<Record>::id))
            .collect();
        let node = self.node(number);
        node.disk.truncate(keep);
        node.restored = true;
        node.snapshot = None;
        node.reached = Default::default();
        let here: BTreeSet<_> = node.disk.iter().map(Authentic::<Record>::id).collect();
        node.acked.retain(|id| here.contains(id) || elsewhere.contains(id));
        self.may_restore = false;
    }

    fn fault(&mut self) {
        let number = self.random.random_range(0..self.nodes.len());
        match self.random.random_range(0..10) {
            0..=3 => {
                let links: Vec<Pair> = self.links.difference(&self.cut).copied().collect();
                if let Some(pair) = links.choose(&mut self.random).copied() {
                    self.tell(|_| format!("link c{}-c{} is cut", pair.0, pair.1));
                    self.figures.partitions += 1;
                    self.cut.insert(pair);
                    self.disconnect(pair);
                    let ms = self.random.random_range(100..6_000);
                    self.after(ms, Event::Mend(pair));
                }
            }
            4 if self.may_restore && self.node(number).joined && self.node(number).is_up() => self.restore(number),
            _ => self.crash(number),
        }
    }

    fn calm_down(&mut self) -> Result<()> {
        self.tell(|_| "calm: every link is mended and every cluster is up".to_owned());
        self.calm = true;
        self.wild = false;
        self.cut.clear();
        for number in 0..self.nodes.len() {
            self.restart(number)?;
        }
        let links: Vec<Pair> = self.links.iter().copied().collect();
        links.into_iter().for_each(|pair| self.connect(pair));
        Ok(())
    }

    // Sessions and messages.

    fn connect(&mut self, (a, b): Pair) {
        let up = self.node(a).is_up() && self.node(b).is_up();
        if !up || self.cut.contains(&(a, b)) || self.sessions.contains_key(&(a, b)) {
            return;
        }
        self.session += 1;
        self.sessions.insert((a, b), self.session);
        self.input(a, Input::Connected(b));
        self.input(b, Input::Connected(a));
    }

    fn disconnect(&mut self, (a, b): Pair) {
        if self.sessions.remove(&(a, b)).is_some() {
            for (one, other) in [(a, b), (b, a)] {
                if self.node(one).is_up() {
                    self.input(one, Input::Disconnected(other));
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let Some(&session) = self.sessions.get(&pair(from, to)) else { return };
        if self.wild && self.random.random_bool(0.05) {
            self.tell(|_| format!("c{from} -> c{to}: a message is lost"));
            return;
        }
        let copies = if self.wild && self.random.random_bool(0.05) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = self.now + self.random.random_range(1..40);
            if !self.wild {
                // In order of sending, as on one stream.
                let last = self.arrivals.entry((from, to)).or_default();
                at = at.max(*last);
                *last = at;
            }
            self.at(at, Event::Deliver { from, to, session, message: message.clone() });
        }
    }

    fn deliver(&mut self, from: usize, to: usize, session: u64, message: Message) {
        let up = self.sessions.get(&pair(from, to)) == Some(&session) || self.lingering.contains(&(session, from));
        if !up || !self.node(to).is_up() {
            return;
        }
        let input = match message {
            Message::Vector(vector) => Input::Vector(from, vector),
            Message::Records(envelopes) => {
                let records = envelopes.iter().filter_map(|envelope| self.open(envelope)).collect();
                Input::Records(from, records)
            }
        };
        self.input(to, input);
    }

    fn input(&mut self, number: usize, input: Input) {
        self.node(number).inbox.push_back(input);
        self.wake(number, 0);
    }

    fn wake(&mut self, number: usize, ms: u64) {
        if !std::mem::replace(&mut self.node(number).stepping, true) {
            self.after(ms, Event::Step(number));
        }
    }

    // One cluster at work.

    fn step(&mut self, number: usize) -> Result<()> {
        self.node(number).stepping = false;
        if !self.node(number).is_up() {
            return Ok(());
        }
        if let Some(effect) = self.node(number).pending.pop_front() {
            self.carry_out(number, effect)?;
        } else if let Some(input) = self.node(number).inbox.pop_front() {
            let effects = self.take(number, input);
            self.node(number).pending.extend(effects);
        }
        let node = self.node(number);
        if !node.pending.is_empty() && !self.calm && self.random.random_bool(0.005) {
            self.crash(number);
            return Ok(());
        }
        let node = self.node(number);
        if !node.pending.is_empty() || !node.inbox.is_empty() {
            let ms = self.random.random_range(0..3);
            self.wake(number, ms);
        }
        Ok(())
    }

    /// Carries out all that is pending at once.
    fn drain(&mut self, number: usize) -> Result<()> {
        while let Some(effect) = self.node(number).pending.pop_front() {
            self.carry_out(number, effect)?;
        }
        Ok(())
    }

    fn take(&mut self, number: usize, input: Input) -> Vec<Effect> {
        self.tell(|_| match &input {
            Input::Records(from, records) => {
                let ids: Vec<String> = records.iter().map(|record| record.id().to_string()).collect();
                format!("c{number} hears from c{from}: {}", ids.join(", "))
            }
            Input::Vector(from, _) => format!("c{number} hears how far c{from} is"),
            other => format!("c{number}: {other:?}"),
        });
        let ids: Vec<ClusterId> = self.nodes.iter().map(|node| node.id).collect();
        let Some(replica) = &mut self.node(number).replica else { return Vec::new() };
        let id = |number: usize| ids.get(number).copied().expect("a node of this world");
        match input {
            Input::Connected(peer) => replica.on_connected(id(peer)),
            Input::Disconnected(peer) => {
                replica.on_disconnected(id(peer));
                Vec::new()
            }
            Input::Vector(peer, vector) => replica.on_vector(id(peer), vector),
            Input::AntiEntropy => replica.anti_entropy(),
            Input::Records(peer, records) => {
                // As the driver does: an admission may come before what its member signed, so what cannot be checked yet
                // is tried again once the effects of what came before are carried out.
                let known = |record: &Authentic<Record>| replica.replication_key(&record.value().writer).is_some();
                let checked = records.iter().take_while(|record| known(record)).count();
                let mut batch = records;
                if checked > 0 {
                    let rest = batch.split_off(checked);
                    let effects = replica.on_records(id(peer), batch, 0);
                    if !rest.is_empty() {
                        self.node(number).inbox.push_front(Input::Records(peer, rest));
                    }
                    return effects;
                }
                let all = batch.len();
                batch.retain(known);
                let unknown = all - batch.len();
                replica.on_records(id(peer), batch, unknown)
            }
        }
    }

    fn carry_out(&mut self, number: usize, effect: Effect) -> Result<()> {
        match effect {
            Effect::Persist(records) => {
                let node = self.node(number);
                for record in &records {
                    if record.value().writer == node.id {
                        node.acked.insert(record.id());
                    }
                }
                node.disk.extend(records.iter().cloned());
                self.tell(|_| {
                    let ids: Vec<String> = records.iter().map(|record| record.id().to_string()).collect();
                    format!("c{number} makes durable: {}", ids.join(", "))
                });
            }
            Effect::Send { peer, message } => {
                let to = self.number(peer)?;
                self.send(number, to, message);
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

    fn publish(&mut self, number: usize) -> Result<()> {
        let (crooked, clusters) = (self.crooked_id(), self.nodes.len());
        let mut random = StdRng::seed_from_u64(self.random.next_u64());
        let node = self.node(number);
        let Some(mut replica) = node.replica.take() else { return Ok(()) };
        node.revision += 1;
        let snapshot = replica.snapshot(node.revision).context("an admitted cluster")?;
        let judged = checks::publication(node, &snapshot, &replica, crooked, clusters, &mut random)?;
        node.snapshot = Some(snapshot);
        node.replica = Some(replica);
        self.figures.decisions += judged;
        Ok(())
    }
}
