//! The fate of each packet on one path: pure, seeded and bounded.
//!
//! In: the seed, the path's number, how many packets came before, the time and the size. Out: when it arrives, or why it
//! does not. Never: reads a clock, or lets one packet's fate depend on another's dice.
//!
//! Each packet has dice of its own, drawn from (seed, path, index) alone. So the same seed and schedule give the same
//! packet the same luck, however the packets before it were treated and whenever it came.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::schedule::Quality;

/// Most packets on their way on one path; what is beyond is dropped.
pub const PACKETS_MAX: usize = 65_536;
/// Most bytes on their way on one path; what is beyond is dropped.
pub const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What luck decides about one packet, each an even number from 0 up to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dice {
    loss: f64,
    jitter: f64,
    reorder: f64,
    duplicate: f64,
    jitter_of_copy: f64,
}

impl Dice {
    fn of(seed: u64, path: u64, index: u64) -> Self {
        let mut key = [0; 32];
        for (place, word) in key.chunks_exact_mut(8).zip([seed, path, index]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let mut random = StdRng::from_seed(key);
        let [loss, jitter, reorder, duplicate, jitter_of_copy] = random.random::<[f64; 5]>();
        Self { loss, jitter, reorder, duplicate, jitter_of_copy }
    }
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The path is cut.
    Cut,
    /// It is larger than the path's MTU.
    TooLarge,
    /// By chance.
    Lost,
    /// Too much waits for the path's rate, or is on its way.
    Full,
}

/// When a packet arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Time since the start.
    pub at: Duration,
    /// When its duplicate does, if it has one.
    pub copy: Option<Duration>,
    /// It may overtake those before it.
    pub reordered: bool,
}

/// One path and what is on its way.
#[derive(Clone, Debug)]
pub struct Path {
    seed: u64,
    number: u64,
    /// Of the next packet.
    index: u64,
    /// When the transmitter has sent everything that waits for it.
    free: Duration,
    /// When the last one arrives that may not be overtaken.
    last: Duration,
    packets: usize,
    bytes: u64,
}

impl Path {
    /// An empty path.
    pub fn new(seed: u64, number: usize) -> Self {
        let number = number as u64;
        Self { seed, number, index: 0, free: Duration::ZERO, last: Duration::ZERO, packets: 0, bytes: 0 }
    }

    /// Packets and bytes on their way.
    pub fn load(&self) -> (usize, u64) {
        (self.packets, self.bytes)
    }

    /// Decides about the next packet, of `bytes` bytes, which comes at `now`.
    ///
    /// What is said to arrive counts as on its way until [`Path::arrived`]. A packet on its way arrives, also when the
    /// path is cut behind it.
    ///
    /// # Errors
    /// It does not arrive.
    pub fn fate(&mut self, quality: &Quality, now: Duration, bytes: usize) -> Result<Arrival, Dropped> {
        let dice = Dice::of(self.seed, self.number, self.index);
        self.index += 1;
        if quality.cut {
            return Err(Dropped::Cut);
        }
        if quality.mtu != 0 && bytes > quality.mtu {
            return Err(Dropped::TooLarge);
        }
        if dice.loss < quality.loss {
            return Err(Dropped::Lost);
        }
        let copies = if dice.duplicate < quality.duplicate { 2 } else { 1 };
        let size = bytes as u64;
        if self.packets + copies > PACKETS_MAX || self.bytes + size * copies as u64 > BYTES_MAX {
            return Err(Dropped::Full);
        }
        let sent = self.sent(quality, now, size)?;
        let reordered = dice.reorder < quality.reorder;
        let at = if reordered { sent } else { self.in_order(sent + varied(quality, dice.jitter)) };
        let copy = (copies == 2).then(|| self.in_order(sent + varied(quality, dice.jitter_of_copy)));
        self.packets += copies;
        self.bytes += size * copies as u64;
        Ok(Arrival { at, copy, reordered })
    }

    /// A packet, or its copy, arrived.
    pub fn arrived(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// When its last bit leaves.
    fn sent(&mut self, quality: &Quality, now: Duration, size: u64) -> Result<Duration, Dropped> {
        if quality.rate == 0 {
            // What waited for an earlier rate waits no more.
            self.free = now;
            return Ok(now);
        }
        let wait = self.free.saturating_sub(now);
        let waiting = wait.as_nanos() * u128::from(quality.rate) / 8 / NANOS;
        if waiting + u128::from(size) > u128::from(quality.queue) {
            return Err(Dropped::Full);
        }
        let nanos = u128::from(size) * 8 * NANOS / u128::from(quality.rate);
        self.free = now + wait + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Ok(self.free)
    }

    fn in_order(&mut self, at: Duration) -> Duration {
        self.last = self.last.max(at);
        self.last
    }
}

const NANOS: u128 = 1_000_000_000;

fn varied(quality: &Quality, dice: f64) -> Duration {
    (quality.delay + quality.jitter.mul_f64(2.0 * dice)).saturating_sub(quality.jitter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fates(seed: u64, quality: &Quality, count: u32, pace: Duration) -> Vec<Result<Arrival, Dropped>> {
        let mut path = Path::new(seed, 3);
        (0..count).map(|index| path.fate(quality, pace * index, 1_000)).collect()
    }

    #[test]
    fn a_plain_path_delays_every_packet_by_exactly_its_delay() {
        let quality = Quality { delay: 50 * MS, ..Quality::default() };
        for (index, fate) in (0..).zip(fates(1, &quality, 1_000, MS)) {
            assert_eq!(fate, Ok(Arrival { at: MS * index + 50 * MS, copy: None, reordered: false }));
        }
    }

    #[test]
    fn a_cut_lets_nothing_pass_and_a_hole_only_what_is_small() {
        let mut path = Path::new(1, 0);
        let hole = Quality { mtu: 1_280, ..Quality::default() };
        assert_eq!(path.fate(&hole, MS, 1_281), Err(Dropped::TooLarge));
        assert!(path.fate(&hole, MS, 1_280).is_ok());
        let cut = Quality { cut: true, ..hole };
        assert_eq!(path.fate(&cut, MS, 20), Err(Dropped::Cut));
    }

    #[test]
    fn shares_come_out_as_asked() {
        let quality = Quality { loss: 0.1, reorder: 0.2, duplicate: 0.3, delay: 9 * MS, ..Quality::default() };
        let fates = fates(7, &quality, 20_000, MS);
        let passed: Vec<&Arrival> = fates.iter().flatten().collect();
        let share = |count: usize, of: usize| count as f64 / of as f64;
        let lost = share(fates.len() - passed.len(), fates.len());
        let reordered = share(passed.iter().filter(|fate| fate.reordered).count(), passed.len());
        let copied = share(passed.iter().filter(|fate| fate.copy.is_some()).count(), passed.len());
        for (name, share, wanted) in [("loss", lost, 0.1), ("reorder", reordered, 0.2), ("duplicate", copied, 0.3)] {
            assert!((share - wanted).abs() < 0.02, "{name}: {share} instead of {wanted}");
        }
    }

    #[test]
    fn a_reordered_packet_overtakes_those_before_it() {
        let quality = Quality { delay: 50 * MS, reorder: 0.5, ..Quality::default() };
        let fates: Vec<Arrival> = fates(5, &quality, 100, MS).into_iter().flatten().collect();
        let overtakes = fates.windows(2).filter(|pair| pair[1].at < pair[0].at).count();
        assert!(overtakes > 10, "{overtakes}");
    }

    #[test]
    fn a_rate_spaces_packets_and_drops_the_tail_of_its_queue() {
        // 1,000 bytes at 1 Mbit/s take 8 ms; five of them fit the queue.
        let quality = Quality { rate: 1_000_000, queue: 5_000, delay: MS, ..Quality::default() };
        let fates = fates(1, &quality, 8, Duration::ZERO);
        for (index, fate) in (1..).zip(fates.iter().take(5)) {
            assert_eq!(fate.map(|fate| fate.at), Ok(8 * MS * index + MS));
        }
        assert!(fates.iter().skip(5).all(|fate| *fate == Err(Dropped::Full)), "{fates:?}");
    }

    #[test]
    fn a_path_without_a_rate_is_bounded_too() {
        let quality = Quality { delay: Duration::from_secs(60), ..Quality::default() };
        let mut path = Path::new(1, 0);
        let passed = (0..2 * PACKETS_MAX).filter(|_| path.fate(&quality, MS, 40).is_ok()).count();
        assert_eq!(passed, PACKETS_MAX);
        path.arrived(40);
        assert!(path.fate(&quality, MS, 40).is_ok(), "room again");
        let mut path = Path::new(1, 0);
        let passed = (0..2 * PACKETS_MAX).filter(|_| path.fate(&quality, MS, 65_535).is_ok()).count();
        assert_eq!(passed as u64, BYTES_MAX / 65_535);
    }

    #[test]
    fn paths_and_seeds_have_luck_of_their_own() {
        let quality = Quality { loss: 0.5, ..Quality::default() };
        let lost = |seed, number| {
            let mut path = Path::new(seed, number);
            (0..64).map(|_| path.fate(&quality, MS, 40).is_err()).collect::<Vec<_>>()
        };
        assert_eq!(lost(1, 1), lost(1, 1));
        assert_ne!(lost(1, 1), lost(1, 2));
        assert_ne!(lost(1, 1), lost(2, 1));
    }

    prop_compose! {
        fn any_quality()(
            delay in 0u64..300, jitter in 0u64..300, loss in 0.0..1.0, reorder in 0.0..1.0, duplicate in 0.0..1.0,
            rate in prop_oneof![Just(0u64), 1u64..10_000_000], queue in 0u64..200_000,
            mtu in prop_oneof![Just(0usize), 500usize..1_500], cut in prop::bool::weighted(0.1),
        ) -> Quality {
            let (delay, jitter) = (Duration::from_millis(delay), Duration::from_millis(jitter));
            Quality { delay, jitter, loss, reorder, duplicate, rate, queue, mtu, cut }
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_each_packet_the_same_fate(
            seed: u64, quality in any_quality(), packets in prop::collection::vec((0u64..50, 20usize..1_500), 1..200),
        ) {
            let run = || {
                let (mut path, mut now) = (Path::new(seed, 4), Duration::ZERO);
                packets.iter().map(|(pause, bytes)| {
                    now += Duration::from_millis(*pause);
                    path.fate(&quality, now, *bytes)
                }).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }

        #[test]
        fn nothing_arrives_before_it_can_or_out_of_order_unless_reordered(
            seed: u64, quality in any_quality(), packets in prop::collection::vec((0u64..50, 20usize..1_500), 1..200),
        ) {
            let (mut path, mut now, mut last) = (Path::new(seed, 4), Duration::ZERO, Duration::ZERO);
            for (pause, bytes) in packets {
                now += Duration::from_millis(pause);
                let Ok(fate) = path.fate(&quality, now, bytes) else { continue };
                let least = if fate.reordered { now } else { now + quality.delay.saturating_sub(quality.jitter) };
                prop_assert!(fate.at >= least);
                if !fate.reordered {
                    prop_assert!(fate.at >= last);
                    last = fate.at;
                }
                prop_assert!(fate.copy.is_none_or(|copy| copy >= now));
            }
        }

        #[test]
        fn whether_a_packet_is_lost_does_not_depend_on_when_it_came_nor_on_its_size(
            seed: u64, loss in 0.0..1.0, times in prop::collection::vec(0u64..10_000, 50),
        ) {
            let quality = Quality { loss, ..Quality::default() };
            let (mut early, mut late) = (Path::new(seed, 1), Path::new(seed, 1));
            for time in times {
                let one = early.fate(&quality, Duration::ZERO, 40).is_err();
                let other = late.fate(&quality, Duration::from_millis(time), 1_400).is_err();
                prop_assert_eq!(one, other);
            }
        }
    }
}
