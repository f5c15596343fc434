//! What goes wrong: every nemesis that needs no kernel, alone, in pairs, or many at once.
//!
//! In: the seed's plan. Out: ways that are blocked or bad, clusters that crash, stand still, lose what they wrote.
//! Never: goes on once the calm has come.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;
use federation_model::{Admission, Audience, Authentic, Body, Digest, Record};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use super::{
    Event, World,
    network::{Pair, Quality, Way},
};
use crate::{
    node::{Failure, candidate},
    workload,
};

/// A kind of misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nemesis {
    Cut,
    OneWayCut,
    Isolation,
    Bridge,
    Ring,
    Flap,
    Loss1,
    Loss5,
    Loss20,
    Delay100,
    Delay300,
    Disorder,
    Kill,
    Stop,
    ClockSeconds,
    ClockHour,
    DiskFull,
    DiskError,
    BitFlip,
    Rotate,
    Block,
    Restore,
    SilentRestore,
}

/// Every nemesis by the name under which it is counted.
pub(crate) const NEMESES: [(&str, Nemesis); 23] = [
    ("cut", Nemesis::Cut),
    ("one-way-cut", Nemesis::OneWayCut),
    ("isolation", Nemesis::Isolation),
    ("bridge", Nemesis::Bridge),
    ("ring", Nemesis::Ring),
    ("flap", Nemesis::Flap),
    ("loss-1", Nemesis::Loss1),
    ("loss-5", Nemesis::Loss5),
    ("loss-20", Nemesis::Loss20),
    ("delay-100", Nemesis::Delay100),
    ("delay-300", Nemesis::Delay300),
    ("disorder", Nemesis::Disorder),
    ("kill", Nemesis::Kill),
    ("stop", Nemesis::Stop),
    ("clock-30s", Nemesis::ClockSeconds),
    ("clock-1h", Nemesis::ClockHour),
    ("disk-full", Nemesis::DiskFull),
    ("disk-error", Nemesis::DiskError),
    ("bit-flip", Nemesis::BitFlip),
    ("rotate", Nemesis::Rotate),
    ("block", Nemesis::Block),
    ("restore", Nemesis::Restore),
    ("silent-restore", Nemesis::SilentRestore),
];

/// Which nemeses a seed's world has: in turn each alone, pairs by chance, many by chance, and now and then none.
pub(crate) fn plan(seed: u64, random: &mut StdRng) -> BTreeSet<Nemesis> {
    let mut any = || NEMESES.choose(random).map_or(Nemesis::Kill, |(_, nemesis)| *nemesis);
    match seed % 8 {
        0 => BTreeSet::new(),
        1..=3 => {
            let turn = (seed / 8 * 3 + seed % 8 - 1) as usize % NEMESES.len();
            NEMESES.iter().skip(turn).take(1).map(|(_, nemesis)| *nemesis).collect()
        }
        4..=6 => {
            let mut pair = BTreeSet::from([any()]);
            while pair.len() < 2 {
                pair.insert(any());
            }
            pair
        }
        _ => (0..6).map(|_| any()).collect(),
    }
}

/// The nemeses of a plan, a bit each.
pub(crate) fn bits(plan: &BTreeSet<Nemesis>) -> u32 {
    let places = NEMESES.iter().enumerate().filter(|(_, (_, nemesis))| plan.contains(nemesis));
    places.fold(0, |bits, (at, _)| bits | 1 << at)
}

fn both_ways(pairs: impl IntoIterator<Item = Pair>) -> Vec<Way> {
    pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

impl World {
    /// A nemesis strikes once; how often it comes back is the world's to say.
    pub(super) fn strike(&mut self, nemesis: Nemesis) -> Result<()> {
        self.figures.strikes += 1;
        let number = self.random.random_range(0..self.nodes.len());
        let ms = self.random.random_range(100..8_000);
        // A cluster that cannot write asks its peers over and over: shorter, since it says little more.
        let disk_ms = ms / 4;
        match nemesis {
            Nemesis::Cut | Nemesis::OneWayCut | Nemesis::Flap | Nemesis::Block => self.strike_link(nemesis, ms),
            Nemesis::Isolation | Nemesis::Bridge | Nemesis::Ring => self.strike_mesh(nemesis, number, ms),
            Nemesis::Loss1 => self.degrade(Quality { loss: 10, ..Quality::default() }, ms),
            Nemesis::Loss5 => self.degrade(Quality { loss: 50, ..Quality::default() }, ms),
            Nemesis::Loss20 => self.degrade(Quality { loss: 200, ..Quality::default() }, ms),
            Nemesis::Delay100 => self.degrade(Quality { delay_ms: 100, ..Quality::default() }, ms),
            Nemesis::Delay300 => self.degrade(Quality { delay_ms: 300, ..Quality::default() }, ms),
            Nemesis::Disorder => self.degrade(Quality { disorder: true, ..Quality::default() }, ms),
            Nemesis::Kill => self.crash(number)?,
            Nemesis::Stop => self.stop(number),
            Nemesis::ClockSeconds => self.step_clock(number, 30_000),
            Nemesis::ClockHour => self.step_clock(number, 3_600_000),
            Nemesis::DiskFull => self.fail_disk(number, Failure::Full, disk_ms),
            Nemesis::DiskError => self.fail_disk(number, Failure::Error, disk_ms),
            Nemesis::BitFlip => self.flip(number)?,
            Nemesis::Rotate => self.rotate(number),
            Nemesis::Restore => self.restore(number, true)?,
            Nemesis::SilentRestore => self.restore(number, false)?,
        }
        Ok(())
    }

    fn strike_link(&mut self, nemesis: Nemesis, ms: u64) {
        let links: Vec<Pair> = self.network.links.iter().copied().collect();
        let Some(&(a, b)) = links.choose(&mut self.random) else { return };
        match nemesis {
            Nemesis::OneWayCut => {
                let way = if self.random.random_bool(0.5) { (a, b) } else { (b, a) };
                self.cut(vec![way], ms);
            }
            Nemesis::Flap => {
                let times = self.random.random_range(2..8);
                for at in 0..times {
                    self.after(2_000 * at, Event::Block(both_ways([(a, b)])));
                    self.after(2_000 * at + 1_000, Event::Unblock(both_ways([(a, b)])));
                }
            }
            // One end shuts the other out: the session ends in good order, and no other begins.
            Nemesis::Block => {
                self.hang_up((a, b));
                self.cut(both_ways([(a, b)]), ms);
            }
            _ => self.cut(both_ways([(a, b)]), ms),
        }
    }

    fn strike_mesh(&mut self, nemesis: Nemesis, number: usize, ms: u64) {
        let clusters = self.nodes.len();
        // Where each stands, seen from one chosen by chance.
        let place = |cluster: usize| (cluster + clusters - number) % clusters;
        let kept = |(a, b): &Pair| match nemesis {
            Nemesis::Isolation => *a != number && *b != number,
            Nemesis::Bridge => {
                let half = |cluster| place(cluster) <= clusters / 2;
                *a == number || *b == number || half(*a) == half(*b)
            }
            _ => {
                let apart = place(*a).abs_diff(place(*b));
                apart == 1 || apart == clusters - 1
            }
        };
        let gone: Vec<Pair> = self.network.links.iter().copied().filter(|pair| !kept(pair)).collect();
        self.cut(both_ways(gone), ms);
    }

    fn cut(&mut self, ways: Vec<Way>, ms: u64) {
        self.tell(|_| format!("cut for {ms} ms: {ways:?}"));
        self.figures.partitions += 1;
        self.block(&ways);
        self.after(ms, Event::Unblock(ways));
    }

    fn degrade(&mut self, quality: Quality, ms: u64) {
        self.tell(|_| format!("every way is bad for {ms} ms: {quality:?}"));
        let ways = both_ways(self.network.links.iter().copied());
        self.worsen(&ways, quality, ms);
    }

    fn stop(&mut self, number: usize) {
        if self.node(number).works() {
            let ms = (1_000 << self.random.random_range(0..7)).min(60_000);
            self.tell(|_| format!("c{number} stands still for {ms} ms"));
            self.node(number).stopped = true;
            self.grow_silent(number);
            self.after(ms, Event::Resume(number));
        }
    }

    pub(super) fn resume(&mut self, number: usize) {
        if std::mem::take(&mut self.node(number).stopped) {
            self.tell(|_| format!("c{number} goes on"));
            self.look_around(number);
            self.wake(number, 0);
        }
    }

    fn step_clock(&mut self, number: usize, ms: i64) {
        let ms = if self.random.random_bool(0.5) { ms } else { -ms };
        self.tell(|_| format!("the clock of c{number} is set by {ms} ms"));
        self.node(number).clock += ms;
    }

    fn fail_disk(&mut self, number: usize, failure: Failure, ms: u64) {
        self.tell(|_| format!("the disk of c{number} fails for {ms} ms: {failure:?}"));
        self.node(number).disk.failure = Some(failure);
        self.after(ms, Event::DiskWorks(number));
    }

    fn rotate(&mut self, number: usize) {
        if self.can_write(number, Audience::Law) {
            self.sequence += 1;
            let body = workload::rotation(&mut self.random, number, self.sequence);
            self.write(number, Audience::Law, body, true);
        }
    }

    /// Loses one row of the disk in a crash. The founding record is not among them: without it nothing starts.
    fn flip(&mut self, number: usize) -> Result<()> {
        let rows = self.node(number).disk.records().len();
        if !self.node(number).works() || rows < 2 {
            return Ok(());
        }
        self.crash(number)?;
        let at = self.random.random_range(0..rows);
        let disk = &mut self.node(number).disk;
        let founds = |record: &Authentic<Record>| matches!(record.value().body, Body::Founding(_));
        if disk.records().get(at).is_some_and(|record| !founds(record)) {
            disk.lose(at);
            self.tell(|_| format!("c{number} loses its row {at} of {rows}"));
            self.forget(number, false);
        }
        Ok(())
    }

    /// A crash after which the disk is an older one. What nobody else has on disk is lost with it, as it must be.
    fn restore(&mut self, number: usize, told: bool) -> Result<()> {
        if !self.node(number).works() {
            return Ok(());
        }
        self.crash(number)?;
        self.figures.restores += 1;
        // An older disk, but not from before it was a member.
        let id = candidate(number).id;
        let disk = self.node(number).disk.records();
        let admits = |record: &Authentic<Record>| match &record.value().body {
            Body::Founding(candidate) | Body::Admission(Admission { candidate, .. }) => candidate.id == id,
            _ => false,
        };
        let total = disk.len();
        let least = disk.iter().position(admits).map_or(total, |at| at + 1).max(total / 2);
        let keep = self.random.random_range(least..=total);
        self.tell(|_| format!("c{number} is restored to its first {keep} of {total} records, told so: {told}"));
        self.node(number).disk.set_back(keep);
        self.forget(number, told);
        Ok(())
    }

    /// A disk lost some of its records: what is demanded of its cluster from now on.
    fn forget(&mut self, number: usize, told: bool) {
        let shown = &self.shown;
        let Some(node) = self.nodes.get_mut(number) else { return };
        node.snapshot = None;
        node.reached = Default::default();
        if told {
            node.restored = true;
        } else {
            node.damaged = true;
        }
        let disk = &node.disk;
        node.lost.extend(node.acked.iter().filter(|id| !disk.has(&id.digest) && shown.contains(&id.digest)));
        // What a cheat alone has may never be seen again.
        let crooked = self.crooked_number();
        let honest = self.nodes.iter().filter(|node| Some(node.number) != crooked);
        let somewhere: HashSet<Digest> = honest.flat_map(|node| node.disk.records()).map(Authentic::digest).collect();
        for node in &mut self.nodes {
            // What lies behind a record that nobody has any more counts for nothing either.
            let mut gaps: BTreeMap<(Audience, u64), u64> = BTreeMap::new();
            for id in node.acked.iter().filter(|id| !somewhere.contains(&id.digest)) {
                let lowest = gaps.entry((id.audience, id.epoch)).or_insert(id.seq);
                *lowest = id.seq.min(*lowest);
            }
            node.acked.retain(|id| gaps.get(&(id.audience, id.epoch)).is_none_or(|gap| id.seq < *gap));
        }
    }
}
