//! Sessions between clusters, and the ways that lie under them.
//!
//! In: what nodes send, which ways are blocked, slow or lossy. Out: messages that arrive, sessions that come and go.
//! Never: tells both ends of a session of its end at once. Each end has a view of its own: it notices a dead peer only
//! after a while, and what was sent before a crash still arrives.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use federation_model::Message;
use rand::RngExt;

use super::{Event, World};
use crate::{checks, node::Input};

/// Silence after which an end takes its session for dead.
const IDLE_MS: u64 = 3_000;
/// Longest pause between two attempts to connect.
const DIAL_MS: u64 = 1_000;
/// What a lost packet costs where the transport sends it again: a probe timeout.
const PROBE_MS: u64 = 120;
/// Most messages that wait at one cluster.
const INBOX_MAX: usize = 20_000;

/// Two clusters by number, the lower first.
pub(crate) type Pair = (usize, usize);
/// From one cluster to another.
pub(crate) type Way = (usize, usize);

pub(crate) fn pair(a: usize, b: usize) -> Pair {
    (a.min(b), a.max(b))
}

/// How bad a way is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    /// Lost packets, in permille.
    pub(crate) loss: u32,
    /// Delay added, give or take half of it.
    pub(crate) delay_ms: u64,
    /// Whether messages are doubled and overtake each other.
    pub(crate) disorder: bool,
}

#[derive(Default)]
pub(crate) struct Network {
    /// Pairs that may have a session.
    pub(crate) links: BTreeSet<Pair>,
    /// The session that each end takes for its own with the other.
    views: BTreeMap<Way, u64>,
    sessions: u64,
    /// Pairs that will try to connect.
    dialling: BTreeSet<Pair>,
    /// Ways over which nothing passes, and how many reasons there are for it.
    blocked: BTreeMap<Way, u32>,
    /// What was sent over a blocked way, with its session: the transport keeps sending it.
    held: BTreeMap<Way, Vec<(u64, Message)>>,
    /// Until when a way is bad, and how.
    qualities: BTreeMap<Way, (u64, Quality)>,
    /// When the last message of a way arrives: within a session none overtakes another.
    arrivals: BTreeMap<Way, u64>,
    /// Whether what is lost is lost, in place of being sent again.
    pub(crate) raw: bool,
}

impl Network {
    fn is_blocked(&self, (a, b): Pair) -> bool {
        self.blocked.contains_key(&(a, b)) || self.blocked.contains_key(&(b, a))
    }

    /// Whom `number` takes for connected.
    pub(crate) fn peers(&self, number: usize) -> Vec<usize> {
        self.views.range((number, 0)..(number + 1, 0)).map(|((_, peer), _)| *peer).collect()
    }

    pub(crate) fn links_of(&self, number: usize) -> Vec<Pair> {
        self.links.iter().copied().filter(|(a, b)| *a == number || *b == number).collect()
    }
}

impl World {
    /// Lets nothing pass over these ways until they are unblocked.
    pub(super) fn block(&mut self, ways: &[Way]) {
        for way in ways {
            *self.network.blocked.entry(*way).or_default() += 1;
            for (me, peer) in [*way, (way.1, way.0)] {
                if self.network.views.contains_key(&(me, peer)) {
                    // Now and then an error tells at once.
                    let ms = if self.random.random_bool(0.5) { IDLE_MS } else { self.random.random_range(1..IDLE_MS) };
                    self.notice(me, peer, ms);
                }
            }
        }
    }

    pub(super) fn unblock(&mut self, ways: &[Way]) {
        for way in ways {
            if let Some(reasons) = self.network.blocked.get_mut(way) {
                *reasons -= 1;
                if *reasons == 0 {
                    self.open(*way);
                }
            }
        }
    }

    fn open(&mut self, way: Way) {
        self.network.blocked.remove(&way);
        for (session, message) in self.network.held.remove(&way).unwrap_or_default() {
            self.carry(way.0, way.1, session, message);
        }
    }

    /// Makes ways bad for a while.
    pub(super) fn worsen(&mut self, ways: &[Way], quality: Quality, ms: u64) {
        let until = self.now + ms;
        self.network.qualities.extend(ways.iter().map(|way| (*way, (until, quality))));
    }

    /// Every way is open and good again.
    pub(super) fn mend_network(&mut self) {
        self.network.raw = false;
        self.network.qualities.clear();
        let blocked: Vec<Way> = self.network.blocked.keys().copied().collect();
        blocked.into_iter().for_each(|way| self.open(way));
        let links: Vec<Pair> = self.network.links.iter().copied().collect();
        links.into_iter().for_each(|pair| self.dial(pair, 0));
    }

    /// Both ends try to connect soon, unless they do already.
    pub(super) fn dial(&mut self, pair: Pair, ms: u64) {
        if self.network.dialling.insert(pair) {
            self.after(ms, Event::Dial(pair));
        }
    }

    pub(super) fn dialled(&mut self, pair: Pair) {
        self.network.dialling.remove(&pair);
        let (a, b) = pair;
        let ends = (self.network.views.get(&(a, b)), self.network.views.get(&(b, a)));
        if ends.0.is_some() && ends.0 == ends.1 {
            return;
        }
        let work = self.node(a).works() && self.node(b).works();
        if !work || self.network.is_blocked(pair) {
            let ms = self.random.random_range(100..DIAL_MS);
            self.dial(pair, ms);
            return;
        }
        self.network.sessions += 1;
        let session = self.network.sessions;
        for (me, peer) in [(a, b), (b, a)] {
            // The newer of two sessions takes the place of the older.
            self.part(me, peer);
            self.network.views.insert((me, peer), session);
            self.network.arrivals.remove(&(me, peer));
            self.change(me, Input::Connected(peer));
        }
    }

    /// `me` looks after a while whether its session with `peer` still lives.
    fn notice(&mut self, me: usize, peer: usize, ms: u64) {
        if let Some(session) = self.network.views.get(&(me, peer)).copied() {
            self.after(ms, Event::Notice { me, peer, session });
        }
    }

    pub(super) fn noticed(&mut self, me: usize, peer: usize, session: u64) {
        let lives = self.network.views.get(&(peer, me)) == Some(&session) && self.node(peer).works();
        let current = self.network.views.get(&(me, peer)) == Some(&session);
        if current && (!lives || self.network.is_blocked(pair(me, peer))) {
            self.part(me, peer);
            self.notice(peer, me, 1);
            let ms = self.random.random_range(1..DIAL_MS);
            self.dial(pair(me, peer), ms);
        }
    }

    fn part(&mut self, me: usize, peer: usize) {
        if self.network.views.remove(&(me, peer)).is_some() {
            self.change(me, Input::Disconnected(peer));
        }
    }

    /// One end ends a session on purpose; the other hears of it at once.
    pub(super) fn hang_up(&mut self, (a, b): Pair) {
        self.part(a, b);
        self.part(b, a);
        self.dial((a, b), 1);
    }

    /// `number` crashed: it has no session any more, and its peers notice in their own time.
    pub(super) fn vanish(&mut self, number: usize) {
        for peer in self.network.peers(number) {
            self.network.views.remove(&(number, peer));
            let ms = if self.random.random_bool(0.5) { 1 } else { self.random.random_range(1..IDLE_MS) };
            self.notice(peer, number, ms);
        }
    }

    /// `number` stands still: whoever is connected to it notices, unless it goes on before.
    pub(super) fn grow_silent(&mut self, number: usize) {
        for peer in self.network.peers(number) {
            self.notice(peer, number, IDLE_MS);
        }
    }

    /// `number` goes on: it finds which of its sessions are dead.
    pub(super) fn look_around(&mut self, number: usize) {
        for peer in self.network.peers(number) {
            self.notice(number, peer, 1);
        }
    }

    /// Sends over the session that the sender takes for its own. A crooked sender may say something else instead.
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) -> Result<()> {
        self.figures.message(&message);
        self.count_bytes(&message);
        let message = if self.is_crooked(from) {
            let Some(message) = self.distort(to, message) else { return Ok(()) };
            message
        } else {
            self.note_sent(from, &message);
            checks::sending(self, from, to, &message)?;
            message
        };
        if let Some(session) = self.network.views.get(&(from, to)).copied() {
            self.carry(from, to, session, message);
        }
        Ok(())
    }

    fn carry(&mut self, from: usize, to: usize, session: u64, message: Message) {
        if self.network.blocked.contains_key(&(from, to)) {
            if !self.network.raw {
                self.network.held.entry((from, to)).or_default().push((session, message));
            }
            return;
        }
        let (until, quality) = self.network.qualities.get(&(from, to)).copied().unwrap_or_default();
        let quality = if self.now < until { quality } else { Quality::default() };
        let mut delay = self.random.random_range(1..40);
        if quality.delay_ms > 0 {
            delay += self.random.random_range(quality.delay_ms / 2..quality.delay_ms * 3 / 2);
        }
        let mut probe = PROBE_MS;
        // Past that the session counts as dead, and what it carried is sent anew in the next.
        while quality.loss > 0 && probe < IDLE_MS / 2 && self.random.random_ratio(quality.loss, 1_000) {
            if self.network.raw {
                self.tell(|_| format!("c{from} -> c{to}: a message is lost"));
                return;
            }
            delay += probe;
            probe *= 2;
        }
        let copies = if quality.disorder && self.random.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = self.now + delay;
            if quality.disorder {
                at += self.random.random_range(0..200);
            } else {
                let last = self.network.arrivals.entry((from, to)).or_default();
                at = at.max(*last);
                *last = at;
            }
            self.at(at, Event::Deliver { from, to, session, message: message.clone() });
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, session: u64, message: Message) -> Result<()> {
        if self.network.views.get(&(to, from)) != Some(&session) {
            return Ok(());
        }
        let input = match message {
            Message::Vector { vector, ask } => Input::Vector { peer: from, vector, ask },
            Message::Records(envelopes) => {
                let records = envelopes.iter().filter_map(|envelope| self.read(envelope)).collect();
                Input::Records(from, records)
            }
        };
        self.input(to, input);
        anyhow::ensure!(self.node(to).inbox.len() < INBOX_MAX, "c{to} drowns: {INBOX_MAX} messages wait");
        Ok(())
    }

    pub(super) fn input(&mut self, number: usize, input: Input) {
        self.node(number).inbox.push_back(input);
        self.wake(number, 0);
    }

    fn change(&mut self, number: usize, input: Input) {
        if self.node(number).is_up() {
            self.node(number).changes.push_back(input);
            self.wake(number, 0);
        }
    }
}
