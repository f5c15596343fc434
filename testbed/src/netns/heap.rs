//! Everything that is on its way between all clusters: pure, driven by whoever has a clock and devices.
//!
//! In: packets with the cluster that sent them and the time. Out: packets with the cluster that gets them, when they are
//! due. Never: reads a clock, changes a packet, or holds more than [`path`](super::path) allows each path.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    packet,
    path::{Dropped, Path},
    schedule::{Change, Quality, Schedule},
};

/// What became of the packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Came from a namespace.
    pub packets: u64,
    /// Were handed to a namespace, copies included.
    pub delivered: u64,
    pub cut: u64,
    pub too_large: u64,
    pub lost: u64,
    pub full: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Were for nobody here.
    pub unroutable: u64,
}

/// One packet on its way. The order of two is that of their arrival; of one time, that of their departure.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Duration,
    order: u64,
    path: usize,
    to: usize,
    packet: Vec<u8>,
}

/// A packet that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Number of the cluster that gets it.
    pub to: usize,
    /// When it was to arrive.
    pub at: Duration,
    pub packet: Vec<u8>,
}

/// The WAN between all clusters.
#[derive(Debug)]
pub struct Emulator {
    schedule: Schedule,
    qualities: Vec<Quality>,
    paths: Vec<Path>,
    /// Events that have come to pass.
    events: usize,
    flights: BinaryHeap<Reverse<Flight>>,
    order: u64,
    counts: Counts,
}

impl Emulator {
    /// A WAN at time zero, with nothing on its way.
    pub fn new(schedule: Schedule, seed: u64) -> Self {
        let paths = (0..schedule.start().len()).map(|number| Path::new(seed, number)).collect();
        let qualities = schedule.start().to_vec();
        Self { schedule, qualities, paths, events: 0, flights: BinaryHeap::new(), order: 0, counts: Counts::default() }
    }

    /// What became of the packets so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Changes paths from now on.
    ///
    /// # Errors
    /// It names a cluster that is not there, or a number that makes no sense.
    pub fn change(&mut self, change: &Change) -> Result<()> {
        self.schedule.apply(change, &mut self.qualities)
    }

    /// A packet leaves a cluster.
    pub fn packet(&mut self, now: Duration, from: usize, packet: &[u8]) {
        self.events_until(now);
        self.counts.packets += 1;
        let to = packet::destination(packet).filter(|to| *to < self.schedule.clusters().len() && *to != from);
        let number = to.map(|to| self.schedule.path(from, to));
        let parts = number.and_then(|number| Some((self.paths.get_mut(number)?, self.qualities.get(number)?)));
        let (Some(to), Some(number), Some((path, quality))) = (to, number, parts) else {
            self.counts.unroutable += 1;
            return;
        };
        match path.fate(quality, now, packet.len()) {
            Ok(arrival) => {
                self.counts.reordered += u64::from(arrival.reordered);
                self.counts.duplicated += u64::from(arrival.copy.is_some());
                for at in [Some(arrival.at), arrival.copy].into_iter().flatten() {
                    let flight = Flight { at, order: self.order, path: number, to, packet: packet.to_vec() };
                    self.order += 1;
                    self.flights.push(Reverse(flight));
                }
            }
            Err(Dropped::Cut) => self.counts.cut += 1,
            Err(Dropped::TooLarge) => self.counts.too_large += 1,
            Err(Dropped::Lost) => self.counts.lost += 1,
            Err(Dropped::Full) => self.counts.full += 1,
        }
    }

    /// The next packet that is due.
    pub fn due(&mut self, now: Duration) -> Option<Delivery> {
        let Reverse(first) = self.flights.peek()?;
        if first.at > now {
            return None;
        }
        let Reverse(flight) = self.flights.pop()?;
        if let Some(path) = self.paths.get_mut(flight.path) {
            path.arrived(flight.packet.len());
        }
        self.counts.delivered += 1;
        Some(Delivery { to: flight.to, at: flight.at, packet: flight.packet })
    }

    /// When the next packet is due.
    pub fn next(&self) -> Option<Duration> {
        self.flights.peek().map(|Reverse(flight)| flight.at)
    }

    fn events_until(&mut self, now: Duration) {
        while let Some((at, event)) = self.schedule.events().get(self.events)
            && *at <= now
        {
            // The schedule was checked when it was made.
            let applied = self.schedule.apply(event, &mut self.qualities);
            debug_assert!(applied.is_ok(), "{applied:?}");
            self.events += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::packet::tests::four, *};

    const MS: Duration = Duration::from_millis(1);

    fn emulator(more: &str, seed: u64) -> Emulator {
        let text = format!("clusters = [\"a\", \"b\", \"c\"]\n[[link]]\ndelay = \"10ms\"\n{more}");
        Emulator::new(Schedule::parse(&text).unwrap(), seed)
    }

    fn marks(emulator: &mut Emulator, now: Duration) -> Vec<(usize, u8)> {
        std::iter::from_fn(|| emulator.due(now)).map(|due| (due.to, due.packet[20])).collect()
    }

    #[test]
    fn delivers_to_whom_it_is_for_when_it_is_due_and_in_order() {
        let mut wan = emulator("", 1);
        wan.packet(MS, 0, &four(1, 100, 1));
        wan.packet(MS, 0, &four(2, 100, 2));
        wan.packet(2 * MS, 1, &four(0, 100, 3));
        assert_eq!(wan.next(), Some(11 * MS));
        assert_eq!(marks(&mut wan, 10 * MS), []);
        assert_eq!(marks(&mut wan, 11 * MS), [(1, 1), (2, 2)]);
        assert_eq!(marks(&mut wan, 60 * MS), [(0, 3)]);
        assert_eq!(wan.next(), None);
    }

    #[test]
    fn events_come_at_their_time_and_cut_one_way_only() {
        let cut = "[[event]]\nat = \"1s\"\nfrom = [\"a\"]\nto = [\"b\"]\none_way = true\ncut = true\n\
                   [[event]]\nat = \"2s\"\nreset = true\n";
        let mut wan = emulator(cut, 1);
        for (time, mark) in [(999, 1), (1_000, 2), (1_999, 3), (2_000, 4)] {
            wan.packet(time * MS, 0, &four(1, 100, mark));
            wan.packet(time * MS, 1, &four(0, 100, mark));
        }
        let seen = marks(&mut wan, 3_000 * MS);
        assert_eq!(seen, [(1, 1), (0, 1), (0, 2), (0, 3), (1, 4), (0, 4)]);
        assert_eq!(wan.counts().cut, 2);
    }

    #[test]
    fn a_change_by_hand_counts_until_it_is_reset() {
        let mut wan = emulator("", 1);
        let (a, b) = (["a".to_owned()], ["b".to_owned()]);
        wan.change(&Change { cut: Some(true), ..Change::default() }.between(&a, &b)).unwrap();
        wan.packet(MS, 0, &four(1, 100, 1));
        wan.packet(MS, 0, &four(2, 100, 2));
        wan.change(&Change { reset: true, ..Change::default() }).unwrap();
        wan.packet(MS, 0, &four(1, 100, 3));
        assert_eq!(marks(&mut wan, 60 * MS), [(2, 2), (1, 3)]);
        let unknown = ["z".to_owned()];
        assert!(wan.change(&Change::default().between(&a, &unknown)).is_err());
    }

    #[test]
    fn what_is_for_nobody_goes_nowhere() {
        let mut wan = emulator("", 1);
        for packet in [four(3, 100, 0), four(0, 100, 0), vec![], vec![0x60; 40]] {
            wan.packet(MS, 0, &packet);
        }
        assert_eq!((wan.counts().unroutable, wan.next()), (4, None));
    }

    #[test]
    fn one_seed_tells_the_same_story_twice_and_another_one_another() {
        let rough = "[[link]]\njitter = \"5ms\"\nloss = 0.2\nreorder = 0.2\nduplicate = 0.2\nrate = 5000000\n";
        let story = |seed| {
            let mut wan = emulator(rough, seed);
            for step in 0..300u32 {
                wan.packet(MS * step, (step % 3) as usize, &four(((step + 1) % 3) as usize, 500, step as u8));
            }
            std::iter::from_fn(|| wan.due(Duration::from_secs(9))).collect::<Vec<_>>()
        };
        assert_eq!(story(1), story(1));
        assert_ne!(story(1), story(2));
    }

    #[test]
    fn every_packet_is_accounted_for() {
        let rough = "[[link]]\nloss = 0.2\nduplicate = 0.2\nmtu = 900\nrate = 3000000\nqueue = 3000\n";
        let mut wan = emulator(rough, 3);
        for step in 0..2_000u32 {
            wan.packet(MS * step, 0, &four(1, 500 + step as usize % 500, 0));
        }
        while wan.due(Duration::from_secs(60)).is_some() {}
        let counts = wan.counts();
        assert_eq!(counts.packets, counts.lost + counts.too_large + counts.full + counts.delivered - counts.duplicated);
        assert!(counts.lost > 0 && counts.too_large > 0 && counts.full > 0 && counts.duplicated > 0, "{counts:?}");
        assert!(wan.paths.iter().all(|path| path.load() == (0, 0)), "nothing is on its way any more");
    }
}
