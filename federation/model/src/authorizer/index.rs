//! The compiled table and how a pair is looked up in it.
//!
//! Names become numbers once. A pattern has one of eight shapes (name, namespace, cluster: exact or any), so a pair can
//! match at most eight destination patterns and nine source patterns, and only shapes that occur are probed. Each
//! (destination pattern, source pattern) has one bucket with the versions of its intentions.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    ops::Range,
};

use super::Standing;
use crate::{
    Accept, Action, ClusterId, DenialReason, Layer, RecordId, RuleState, ServiceId, SpiffeId, TrustDomain,
    standing::Capacities,
};

/// Number of a name, a cluster or a pattern; [`ANY`] for a wildcard.
pub(super) type Number = u32;
/// Stands for `*` in a pattern.
pub(super) const ANY: Number = Number::MAX;

/// What decided: a rule, or a record that cannot be understood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause<'a> {
    pub(super) id: RecordId,
    pub(super) text: &'a str,
}

pub(super) enum Verdict<'a> {
    Allow(Cause<'a>),
    Deny(DenialReason, Option<Cause<'a>>),
}

/// One version of an intention, as small as judging it needs.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Index into the standings.
    pub(super) standing: usize,
    pub(super) writer: Number,
    pub(super) lawmaker: bool,
    pub(super) layer: Layer,
    pub(super) state: RuleState,
    /// Precedence and, at a tie, whether the destination's cluster is named.
    pub(super) rank: u8,
    /// The capacities in which nobody replaced it.
    pub(super) left: Capacities,
    /// For an allow: whether tombstones in its bucket may void it.
    pub(super) contested: bool,
    /// For a tombstone: its version may void allows of these writers.
    pub(super) voids: Vec<Number>,
}

/// The compiled law.
#[derive(Clone, Debug, Default)]
pub(super) struct Law {
    pub(super) clusters: Vec<(ClusterId, Accept)>,
    pub(super) by_id: HashMap<ClusterId, Number, Mixer>,
    pub(super) by_domain: HashMap<TrustDomain, Number, Mixer>,
    pub(super) names: HashMap<Box<str>, Number, Mixer>,
    patterns: Number,
    pub(super) destinations: Patterns,
    pub(super) sources: Patterns,
    pub(super) spiffe: HashMap<SpiffeId, Number>,
    pub(super) buckets: HashMap<(Number, Number), Range<usize>, Mixer>,
    pub(super) rules: Vec<Rule>,
    /// By cluster: a critical record of its that this version does not understand.
    pub(super) opaque: HashMap<Number, (RecordId, String)>,
    pub(super) standings: Vec<Standing>,
}

/// Patterns of (name, namespace, cluster) by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    /// One bit per shape that occurs.
    shapes: u8,
    numbers: HashMap<(Number, Number, Number), Number, Mixer>,
}

impl Patterns {
    /// The pattern's number; `next` if it is new.
    pub(super) fn number(&mut self, pattern: [Number; 3], next: Number) -> Number {
        let shape =
            pattern.iter().enumerate().filter(|(_, part)| **part != ANY).fold(0, |shape, (bit, _)| shape | 1 << bit);
        self.shapes |= 1 << shape;
        *self.numbers.entry(pattern.into()).or_insert(next)
    }

    /// Numbers of the patterns that match; a part without a number can only match a wildcard.
    fn matching(&self, parts: [Option<Number>; 3], found: &mut Matches) {
        for shape in (0..8_u8).filter(|shape| self.shapes & (1 << shape) != 0) {
            let mut pattern = [ANY; 3];
            let mut possible = true;
            for (bit, (place, part)) in pattern.iter_mut().zip(parts).enumerate() {
                if shape & (1 << bit) != 0 {
                    match part {
                        Some(number) => *place = number,
                        None => possible = false,
                    }
                }
            }
            if possible && let Some(number) = self.numbers.get(&pattern.into()) {
                found.push(*number);
            }
        }
    }
}

/// At most nine pattern numbers: eight shapes and a whole SPIFFE ID.
#[derive(Default)]
struct Matches {
    numbers: [Number; 9],
    len: usize,
}

impl Matches {
    fn push(&mut self, number: Number) {
        if let Some(place) = self.numbers.get_mut(self.len) {
            *place = number;
            self.len += 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = Number> {
        self.numbers.iter().take(self.len).copied()
    }
}

/// The highest of a group: weight, and what says so.
#[derive(Clone, Copy, Default)]
struct Top<'a>(Option<(u8, &'a Rule)>);

impl<'a> Top<'a> {
    /// Rank first, then deny over allow; the first in the table's order stays at a full tie.
    fn offer(&mut self, rule: &'a Rule) {
        let weight = rule.rank * 2 + u8::from(denies(rule.state));
        if self.0.is_none_or(|(held, _)| weight > held) {
            self.0 = Some((weight, rule));
        }
    }

    fn deny(self) -> Option<&'a Rule> {
        self.0.map(|(_, rule)| rule).filter(|rule| denies(rule.state))
    }
}

fn denies(state: RuleState) -> bool {
    matches!(state, RuleState::Is(Action::Deny) | RuleState::NotUnderstood)
}

impl Law {
    /// The number of a name, made if it is new.
    pub(super) fn name(&mut self, name: &str) -> Number {
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        let next = self.names.len() as Number;
        self.names.insert(name.into(), next);
        next
    }

    /// A pattern number that no pattern has yet.
    pub(super) fn next_pattern(&mut self) -> Number {
        self.patterns += 1;
        self.patterns
    }

    pub(super) fn cluster_of(&self, domain: &TrustDomain) -> Option<ClusterId> {
        let number = self.by_domain.get(domain)?;
        self.clusters.get(*number as usize).map(|(id, _)| *id)
    }

    /// The decision of one pair. Bounded: at most 8 × 9 buckets, however many rules there are.
    pub(super) fn judge(&self, source: &SpiffeId, service: &ServiceId) -> Verdict<'_> {
        let Some(&from) = self.by_domain.get(source.trust_domain()) else {
            return Verdict::Deny(DenialReason::UnknownSource, None);
        };
        let Some((&to, accept)) = self
            .by_id
            .get(&service.cluster)
            .and_then(|to| self.clusters.get(*to as usize).map(|(_, accept)| (to, *accept)))
        else {
            return Verdict::Deny(DenialReason::UnknownService, None);
        };
        let (mut timed, mut owner, mut source_says, mut together) =
            (None, Top::default(), Top::default(), Top::default());
        let (destinations, sources) = self.matches(source, from, service, to);
        for destination in destinations.iter() {
            for source in sources.iter() {
                let bucket = self.buckets.get(&(destination, source)).cloned().unwrap_or_default();
                let rules = self.rules.get(bucket).unwrap_or_default();
                for rule in rules {
                    let says = capacities(rule, from, to) & rule.left;
                    if says.is_empty() || rule.state == RuleState::Deleted {
                        continue;
                    }
                    let deny = denies(rule.state);
                    match rule.layer {
                        Layer::Guardrail if deny => return Verdict::Deny(DenialReason::Guardrail, self.cause(rule)),
                        Layer::Timed if deny => timed = timed.or(Some(rule)),
                        Layer::Rule => {
                            if rule.contested && is_void(rule, rules, from, to) {
                                continue;
                            }
                            if says.has(Capacities::OWNER) {
                                owner.offer(rule);
                                together.offer(rule);
                            }
                            if says.has(Capacities::SOURCE) {
                                source_says.offer(rule);
                            }
                            if says.has(Capacities::GLOBAL) && (deny || accept == Accept::Federation) {
                                together.offer(rule);
                            }
                        }
                        Layer::Guardrail | Layer::Timed | Layer::Shadow => {}
                    }
                }
            }
        }
        if let Some(rule) = timed {
            return Verdict::Deny(DenialReason::Rule, self.cause(rule));
        }
        if !self.opaque.is_empty()
            && let Some((id, text)) = self.opaque.get(&to).or_else(|| self.opaque.get(&from))
        {
            return Verdict::Deny(DenialReason::Rule, Some(Cause { id: *id, text }));
        }
        if let Some(rule) = owner.deny().or_else(|| source_says.deny()).or_else(|| together.deny()) {
            return Verdict::Deny(DenialReason::Rule, self.cause(rule));
        }
        match together.0.and_then(|(_, rule)| self.cause(rule)) {
            Some(cause) => Verdict::Allow(cause),
            None => Verdict::Deny(DenialReason::DefaultDeny, None),
        }
    }

    fn matches(&self, source: &SpiffeId, from: Number, service: &ServiceId, to: Number) -> (Matches, Matches) {
        let number = |name: &str| self.names.get(name).copied();
        let (mut destinations, mut sources) = (Matches::default(), Matches::default());
        let parts = [number(service.service.as_str()), number(service.namespace.as_str()), Some(to)];
        self.destinations.matching(parts, &mut destinations);
        if let Some((namespace, account)) = source.workload() {
            self.sources.matching([number(account), number(namespace), Some(from)], &mut sources);
        }
        if !self.spiffe.is_empty()
            && let Some(number) = self.spiffe.get(source)
        {
            sources.push(*number);
        }
        (destinations, sources)
    }

    fn cause(&self, rule: &Rule) -> Option<Cause<'_>> {
        self.standings.get(rule.standing).map(|standing| Cause { id: standing.id, text: &standing.text })
    }
}

fn capacities(rule: &Rule, from: Number, to: Number) -> Capacities {
    Capacities::of_pair(rule.writer == to, rule.writer == from, rule.lawmaker)
}

/// Whether a tombstone beside this allow, which could have replaced it and itself stands for this pair, voids it.
fn is_void(allow: &Rule, bucket: &[Rule], from: Number, to: Number) -> bool {
    bucket.iter().any(|rule| {
        rule.state == RuleState::Deleted
            && rule.layer == allow.layer
            && rule.voids.contains(&allow.writer)
            && !(capacities(rule, from, to) & rule.left).is_empty()
    })
}

/// Hashes names and small numbers quickly. Seeded at random, since peers choose the names.
#[derive(Clone, Debug)]
pub(super) struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64) | 1)
    }
}

impl BuildHasher for Mixer {
    type Hasher = Mix;
    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(chunk.try_into().map_or(0, u64::from_le_bytes));
        }
        // The length in the last number keeps a short chunk apart from one with zeros.
        let rest = chunks.remainder().iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.write_u64(rest | (bytes.len() as u64).rotate_right(8));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Folding the upper half of a wide product into the lower mixes all bits (as wyhash does).
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
