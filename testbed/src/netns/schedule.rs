//! What the emulated WAN shall do: clusters, the quality of each path between them, and changes at times.
//!
//! In: a TOML file. Out: a [`Schedule`] whose every name and number was understood. Never: looks at a clock.
//!
//! ```toml
//! clusters = ["east", "west", "onprem"]
//!
//! [[link]]                # every pair, both ways
//! delay = "25ms"
//! jitter = "2ms"
//!
//! [[link]]                # later tables change what earlier ones said
//! from = ["east"]
//! to = ["onprem"]
//! loss = 0.01
//!
//! [[event]]               # west hears onprem, but not the other way
//! at = "30s"
//! from = ["west"]
//! to = ["onprem"]
//! one_way = true
//! cut = true
//!
//! [[event]]               # as at the start
//! at = "40s"
//! reset = true
//! ```

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, de::Error as _};

/// Most clusters of one WAN: each has a number that fits the third byte of its address.
pub const CLUSTERS_MAX: usize = 250;
/// Longest name of a cluster, in bytes: its namespace is `hanse-<name>`.
pub const NAME_BYTES_MAX: usize = 48;
/// Most tables of links and of events in one schedule, each.
pub const CHANGES_MAX: usize = 10_000;
/// Longest delay and jitter of a path.
pub const DELAY_MAX: Duration = Duration::from_secs(60);
/// Bytes that wait for a path with a rate, unless the schedule says otherwise; what is beyond is dropped.
pub const QUEUE_BYTES_DEFAULT: u64 = 128 * 1024;
/// Most bytes that a schedule may let wait for one path.
pub const QUEUE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How one path, from one cluster to another, treats its packets.
#[derive(Clone, Debug, PartialEq)]
pub struct Quality {
    /// Time on the way, one way. Default 0.
    pub delay: Duration,
    /// Most that `delay` varies, up and down, evenly. It never makes one packet overtake another. Default 0.
    pub jitter: Duration,
    /// Share of packets that are lost, 0 to 1. Default 0.
    pub loss: f64,
    /// Share of packets that skip the delay and so overtake those before them, 0 to 1. Default 0.
    pub reorder: f64,
    /// Share of packets that arrive twice, 0 to 1. Default 0.
    pub duplicate: f64,
    /// Bits per second. Default 0: without a limit.
    pub rate: u64,
    /// Bytes that may wait for their turn when there is a rate. Default [`QUEUE_BYTES_DEFAULT`].
    pub queue: u64,
    /// Bytes of the largest IP packet that passes; larger ones vanish, and nobody is told. Default 0: no limit.
    pub mtu: usize,
    /// Nothing passes. Default false.
    pub cut: bool,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            rate: 0,
            queue: QUEUE_BYTES_DEFAULT,
            mtu: 0,
            cut: false,
        }
    }
}

/// A `[[link]]` or an `[[event]]`: for these paths, these qualities. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    /// When, counted from the start. An event has it, a link does not.
    #[serde(deserialize_with = "duration")]
    pub at: Option<Duration>,
    /// Clusters on the one side. Default: all.
    pub from: Option<Vec<String>>,
    /// Clusters on the other side. Default: all.
    pub to: Option<Vec<String>>,
    /// Only from `from` to `to`. Default: both ways.
    pub one_way: bool,
    /// First puts the paths back to what they were at the start.
    pub reset: bool,
    #[serde(deserialize_with = "duration")]
    pub delay: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub jitter: Option<Duration>,
    pub loss: Option<f64>,
    pub reorder: Option<f64>,
    pub duplicate: Option<f64>,
    pub rate: Option<u64>,
    pub queue: Option<u64>,
    pub mtu: Option<usize>,
    pub cut: Option<bool>,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
}

impl Change {
    /// This change for the paths between two sides.
    pub fn between(mut self, from: &[String], to: &[String]) -> Self {
        (self.from, self.to) = (Some(from.to_vec()), Some(to.to_vec()));
        self
    }

    /// What a path of this quality has afterwards.
    fn applied(&self, now: &Quality, start: &Quality) -> Quality {
        let base = if self.reset { start } else { now };
        Quality {
            delay: self.delay.unwrap_or(base.delay),
            jitter: self.jitter.unwrap_or(base.jitter),
            loss: self.loss.unwrap_or(base.loss),
            reorder: self.reorder.unwrap_or(base.reorder),
            duplicate: self.duplicate.unwrap_or(base.duplicate),
            rate: self.rate.unwrap_or(base.rate),
            queue: self.queue.unwrap_or(base.queue),
            mtu: self.mtu.unwrap_or(base.mtu),
            cut: self.cut.unwrap_or(base.cut),
        }
    }

    fn check(&self) -> Result<()> {
        for (name, share) in [("loss", self.loss), ("reorder", self.reorder), ("duplicate", self.duplicate)] {
            if let Some(share) = share {
                ensure!((0.0..=1.0).contains(&share), "{name} = {share} is no share: give 0 to 1");
            }
        }
        for (name, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            if let Some(time) = time {
                ensure!(time <= DELAY_MAX, "{name} = {time:?} is longer than {DELAY_MAX:?}");
            }
        }
        if let Some(queue) = self.queue {
            ensure!(queue <= QUEUE_BYTES_MAX, "queue = {queue} is more than {QUEUE_BYTES_MAX} bytes");
        }
        Ok(())
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    clusters: Vec<String>,
    #[serde(default, rename = "link")]
    links: Vec<Change>,
    #[serde(default, rename = "event")]
    events: Vec<Change>,
}

/// A schedule whose every value was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    clusters: Vec<String>,
    /// At the start, by [`Schedule::path`].
    start: Vec<Quality>,
    /// By time; those of one time in the order in which they were written.
    events: Vec<(Duration, Change)>,
}

impl Schedule {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it makes no sense.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    /// Understands the text of a file.
    ///
    /// # Errors
    /// Something in it makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        Self::new(file.clusters, &file.links, file.events)
    }

    /// A schedule of these clusters: `links` in order at the start, `events` at their times.
    ///
    /// # Errors
    /// A name or a number makes no sense.
    pub fn new(clusters: Vec<String>, links: &[Change], events: Vec<Change>) -> Result<Self> {
        let count = clusters.len();
        ensure!((1..=CLUSTERS_MAX).contains(&count), "{count} clusters: give 1 to {CLUSTERS_MAX}");
        for (index, name) in clusters.iter().enumerate() {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(fits);
            ensure!(good, "cluster {name:?}: give 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -");
            ensure!(!clusters.iter().take(index).any(|other| other == name), "cluster {name:?} is named twice");
        }
        ensure!(links.len() <= CHANGES_MAX, "{} links: at most {CHANGES_MAX}", links.len());
        ensure!(events.len() <= CHANGES_MAX, "{} events: at most {CHANGES_MAX}", events.len());
        let mut schedule = Self { start: vec![Quality::default(); count * count], clusters, events: Vec::new() };
        for (index, link) in links.iter().enumerate() {
            ensure!(link.at.is_none() && !link.reset, "link {index}: `at` and `reset` are for an [[event]]");
            let mut start = schedule.start.clone();
            schedule.apply(link, &mut start).with_context(|| format!("link {index}"))?;
            schedule.start = start;
        }
        for (index, event) in events.into_iter().enumerate() {
            let at = event.at.with_context(|| format!("event {index}: it has no `at`"))?;
            schedule.apply(&event, &mut schedule.start.clone()).with_context(|| format!("event {index}"))?;
            schedule.events.push((at, event));
        }
        schedule.events.sort_by_key(|(at, _)| *at);
        Ok(schedule)
    }

    /// Every cluster, in order of its number.
    pub fn clusters(&self) -> &[String] {
        &self.clusters
    }

    /// Every path's quality at the start, by [`Schedule::path`].
    pub fn start(&self) -> &[Quality] {
        &self.start
    }

    /// Changes after the start, by time.
    pub fn events(&self) -> &[(Duration, Change)] {
        &self.events
    }

    /// Number of the path between two clusters.
    pub fn path(&self, from: usize, to: usize) -> usize {
        from * self.clusters.len() + to
    }

    /// Applies a change to the qualities of all paths.
    ///
    /// # Errors
    /// It names a cluster that is not there, or a number that makes no sense.
    pub fn apply(&self, change: &Change, qualities: &mut [Quality]) -> Result<()> {
        change.check()?;
        let (from, to) = (self.numbers(change.from.as_deref())?, self.numbers(change.to.as_deref())?);
        let mut paths = std::collections::BTreeSet::new();
        for &a in &from {
            for &b in to.iter().filter(|b| **b != a) {
                paths.insert(self.path(a, b));
                if !change.one_way {
                    paths.insert(self.path(b, a));
                }
            }
        }
        if paths.is_empty() && self.clusters.len() > 1 {
            bail!("it names no path: `from` and `to` are the same cluster");
        }
        for path in paths {
            if let (Some(now), Some(start)) = (qualities.get_mut(path), self.start.get(path)) {
                *now = change.applied(now, start);
            }
        }
        Ok(())
    }

    fn numbers(&self, names: Option<&[String]>) -> Result<Vec<usize>> {
        let Some(names) = names else { return Ok((0..self.clusters.len()).collect()) };
        let number = |name: &String| {
            let found = self.clusters.iter().position(|cluster| cluster == name);
            found.with_context(|| format!("there is no cluster {name:?}; there are {:?}", self.clusters))
        };
        names.iter().map(number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = "clusters = [\"a\", \"b\", \"c\"]\n";

    fn quality(schedule: &Schedule, from: usize, to: usize) -> &Quality {
        &schedule.start()[schedule.path(from, to)]
    }

    #[test]
    fn later_links_change_what_earlier_ones_said_and_leave_the_rest() {
        let text = format!(
            "{THREE}[[link]]\ndelay = \"25ms\"\nloss = 0.5\n\
             [[link]]\nfrom = [\"a\"]\nto = [\"b\"]\none_way = true\nloss = 0.0\nrate = 256000\n"
        );
        let schedule = Schedule::parse(&text).unwrap();
        let changed = quality(&schedule, 0, 1);
        assert_eq!((changed.delay, changed.loss, changed.rate), (Duration::from_millis(25), 0.0, 256_000));
        let back = quality(&schedule, 1, 0);
        assert_eq!((back.delay, back.loss, back.rate), (Duration::from_millis(25), 0.5, 0));
        assert_eq!(quality(&schedule, 0, 0), &Quality::default(), "a cluster has no path to itself");
    }

    #[test]
    fn a_reset_brings_back_the_start() {
        let text = format!(
            "{THREE}[[link]]\ndelay = \"5ms\"\n[[event]]\nat = \"2s\"\nreset = true\n[[event]]\nat = \"1s\"\ncut = true\n"
        );
        let schedule = Schedule::parse(&text).unwrap();
        let mut now = schedule.start().to_vec();
        let times: Vec<_> = schedule.events().iter().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(times, [1, 2], "events are in order of time");
        schedule.apply(&schedule.events()[0].1, &mut now).unwrap();
        assert!(now[schedule.path(0, 2)].cut && now[schedule.path(2, 0)].cut);
        schedule.apply(&schedule.events()[1].1, &mut now).unwrap();
        assert_eq!(now, schedule.start());
    }

    #[test]
    fn names_what_makes_no_sense() {
        for (text, wanted) in [
            ("clusters = []", "0 clusters: give 1 to 250"),
            ("clusters = [\"A\"]", "cluster \"A\": give 1 to 48 of a-z"),
            ("clusters = [\"../x\"]", "cluster \"../x\""),
            ("clusters = [\"a\", \"a\"]", "named twice"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nto = [\"z\"]", "link 0: there is no cluster \"z\""),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nfrom = [\"a\"]\nto = [\"a\"]", "link 0: it names no path"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nloss = 1.5", "loss = 1.5 is no share"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nduplicate = nan", "duplicate = NaN is no share"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\ndelay = \"2m\"", "delay = 120s is longer than 60s"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\ndelay = \"soon\"", "\"soon\""),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nat = \"1s\"", "`at` and `reset` are for an [[event]]"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nlos = 0.1", "unknown field `los`"),
            ("clusters = [\"a\", \"b\"]\n[[event]]\ncut = true", "event 0: it has no `at`"),
            ("clusters = [\"a\", \"b\"]\n[[event]]\nat = \"1s\"\nqueue = 100000000", "queue = 100000000 is more"),
            ("clusters = [\"a\", \"b\"]\n[[link]]\nrate = -1", "invalid value"),
        ] {
            let message = format!("{:#}", Schedule::parse(text).expect_err(text));
            assert!(message.contains(wanted), "{text}\n-> {message}\nwanted {wanted}");
        }
    }
}
