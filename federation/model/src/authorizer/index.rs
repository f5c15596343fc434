//! The compiled table, how a pair is looked up in it, and how one key's ruling takes the place of another.
//!
//! A pattern has one of eight shapes (name, namespace, cluster: exact or any), a source one more (a whole SPIFFE ID).
//! There is one table per layer and pair of shapes that occurs, so a pair is found with at most one probe in each,
//! however many rules there are. Tables are persistent: a copy shares all but what was changed since.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rpds::RedBlackTreeSetSync;
use smallvec::SmallVec;

use super::{
    mixer::{Mixer, Role},
    table::Table,
};
use crate::{
    Accept, Action, Body, ClusterId, DenialReason, Digest, IntentionKey, Label, Layer, Members, Record, RecordId,
    RuleState, ServiceId, SourcePattern, SpiffeId, TrustDomain, standing::Capacities,
};

/// Number of a cluster.
pub(super) type Number = u32;
/// Number of a cluster that is no member: no pair has it.
const NOBODY: Number = Number::MAX;
/// In the place of a cluster's number: any.
const ANY: Number = Number::MAX - 1;
/// The shape of a whole SPIFFE ID, beside the eight of labels.
const WHOLE: u8 = 8;

/// What decided.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause<'a> {
    Rule(&'a Rule),
    /// A record of this kind, which this version does not understand.
    Opaque(RecordId, u32),
}

impl Cause<'_> {
    pub(super) fn id(&self) -> RecordId {
        match self {
            Self::Rule(rule) => rule.id(),
            Self::Opaque(id, _) => *id,
        }
    }
}

pub(super) enum Verdict<'a> {
    Allow(Cause<'a>),
    Deny(DenialReason, Option<Cause<'a>>),
}

/// One version of an intention that stands.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// The record, an intention's, and its digest.
    pub(super) record: Arc<Record>,
    pub(super) digest: Digest,
    pub(super) writer: Number,
    pub(super) lawmaker: bool,
    pub(super) state: RuleState,
    /// Precedence and, at a tie, whether the destination's cluster is named.
    pub(super) rank: u8,
    /// The capacities in which nobody replaced it.
    pub(super) left: Capacities,
    /// For an allow: whether tombstones beside it may void it.
    pub(super) contested: bool,
    /// For a tombstone: it may void allows of these writers.
    pub(super) voids: Box<[ClusterId]>,
    /// For an allow: whose tombstone voids it for every pair.
    pub(super) void_by: Option<Box<ClusterId>>,
}

impl Rule {
    pub(super) fn id(&self) -> RecordId {
        let Record { writer, audience, epoch, seq, .. } = *self.record;
        RecordId { writer, audience, epoch, seq, digest: self.digest }
    }
}

/// What stands of one key, in order of id. Its tests come first and lie together: most that is looked at is not meant.
#[derive(Clone, Debug)]
pub(super) struct Ruling {
    /// The exact labels of service, account and their namespaces, each with a full stop; empty for a whole SPIFFE ID.
    labels: SmallVec<[u8; 40]>,
    to: Number,
    from: Number,
    pub(super) conflict: bool,
    /// At least one, each of an intention with that key.
    pub(super) rules: SmallVec<[Rule; 1]>,
}

/// In which order rulings are weighed and shown.
pub(super) type Weight = (Reverse<u8>, Arc<IntentionKey>);

impl Ruling {
    pub(super) fn key(&self) -> Option<&IntentionKey> {
        match &self.rules.first()?.record.body {
            Body::Intention(intention) => Some(&intention.key),
            _ => None,
        }
    }

    fn is_of(&self, key: &IntentionKey) -> bool {
        self.key() == Some(key)
    }
}

pub(super) fn weight(key: &IntentionKey) -> Weight {
    (Reverse(super::compile::precedence(key)), Arc::new(key.clone()))
}

/// Who is who among the members.
#[derive(Clone, Debug, Default)]
struct Clusters {
    list: Vec<(ClusterId, Accept)>,
    by_id: HashMap<ClusterId, Number, Mixer>,
    by_domain: HashMap<TrustDomain, Number, Mixer>,
}

/// Where a key is filed: the table, and its number there.
type Place = ((Layer, u8, u8), u64);

/// The compiled law.
#[derive(Clone, Debug, Default)]
pub(super) struct Law {
    pub(super) members: Arc<Members>,
    clusters: Arc<Clusters>,
    mixer: Mixer,
    /// By layer, shape of the destination and shape of the source; none is empty.
    tables: BTreeMap<(Layer, u8, u8), Table<Arc<Ruling>>>,
    /// By cluster: a critical record of its that this version does not understand, and of which kind.
    opaque: Arc<HashMap<Number, (RecordId, u32)>>,
    conflicts: RedBlackTreeSetSync<Weight>,
    versions: usize,
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
    /// A law without rules among these members.
    pub(super) fn new(members: Arc<Members>) -> Self {
        let mut clusters = Clusters::default();
        for (number, member) in (0..).zip(members.iter()) {
            clusters.list.push((member.id, member.accept));
            clusters.by_id.insert(member.id, number);
            // Who is gone has no identities any more; its domain may be another's by now.
            if !member.state.is_gone() {
                clusters.by_domain.insert(member.trust_domain.clone(), number);
            }
        }
        Self { members, clusters: Arc::new(clusters), ..Self::default() }
    }

    pub(super) fn cluster_of(&self, domain: &TrustDomain) -> Option<ClusterId> {
        let number = self.clusters.by_domain.get(domain)?;
        self.clusters.list.get(*number as usize).map(|(id, _)| *id)
    }

    pub(super) fn number(&self, cluster: &ClusterId) -> Number {
        self.clusters.by_id.get(cluster).copied().unwrap_or(NOBODY)
    }

    /// How many versions of intentions stand.
    pub(super) fn versions(&self) -> usize {
        self.versions
    }

    /// Keys with versions that nobody has resolved, in order of weight.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = &Ruling> {
        self.conflicts.iter().filter_map(|(_, key)| self.ruling(key))
    }

    pub(super) fn conflict_count(&self) -> usize {
        self.conflicts.size()
    }

    pub(super) fn rulings(&self) -> impl Iterator<Item = &Ruling> {
        self.tables.values().flat_map(Table::iter).map(Arc::as_ref)
    }

    pub(super) fn ruling(&self, key: &IntentionKey) -> Option<&Ruling> {
        let (table, number) = self.place(key);
        self.tables.get(&table)?.find(number).find(|ruling| ruling.is_of(key)).map(Arc::as_ref)
    }

    /// Puts what now stands of a key in the place of what stood: these rules, in order of id, or nothing.
    pub(super) fn rule(&mut self, key: &IntentionKey, rules: SmallVec<[Rule; 1]>, conflict: bool) {
        let (at, number) = self.place(key);
        let mut table = self.tables.remove(&at).unwrap_or_default();
        if let Some(before) = table.take(number, |held| held.is_of(key)) {
            self.versions -= before.rules.len();
            if before.conflict {
                self.conflicts.remove_mut(&weight(key));
            }
        }
        if !rules.is_empty() {
            self.versions += rules.len();
            if conflict {
                self.conflicts.insert_mut(weight(key));
            }
            let cluster = |label: &Label<ClusterId>| match label {
                Label::Any => ANY,
                Label::Is(id) => self.number(id),
            };
            let from = match &key.source {
                SourcePattern::Spiffe(_) => ANY,
                SourcePattern::Account { cluster: of, .. } => cluster(of),
            };
            let to = cluster(&key.destination.cluster);
            table.put(number, Arc::new(Ruling { labels: labels(key), to, from, conflict, rules }));
        }
        if !table.is_empty() {
            self.tables.insert(at, table);
        }
    }

    /// Sets which clusters wrote what cannot be understood.
    pub(super) fn set_opaque(&mut self, opaque: impl Iterator<Item = (RecordId, u32)>) {
        let mut found = HashMap::new();
        for (id, kind) in opaque {
            if let Some(writer) = self.clusters.by_id.get(&id.writer) {
                found.entry(*writer).or_insert((id, kind));
            }
        }
        self.opaque = Arc::new(found);
    }

    /// The decision of one pair. Bounded by the number of tables, however many rules there are.
    pub(super) fn judge(&self, source: &SpiffeId, service: &ServiceId) -> Verdict<'_> {
        let clusters = &self.clusters;
        let Some(&from) = clusters.by_domain.get(source.trust_domain()) else {
            return Verdict::Deny(DenialReason::UnknownSource, None);
        };
        let of_id = |to: &Number| clusters.list.get(*to as usize).map(|(_, accept)| (*to, *accept));
        let Some((to, accept)) = clusters.by_id.get(&service.cluster).and_then(of_id) else {
            return Verdict::Deny(DenialReason::UnknownService, None);
        };
        let pair = Pair::new(self, source, from, service, to);
        let (mut timed, mut owner, mut source_says, mut together) =
            (None, Top::default(), Top::default(), Top::default());
        for (&shapes, table) in &self.tables {
            let Some(number) = pair.number(self.mixer, shapes) else { continue };
            for rules in table.find(number).filter(|ruling| pair.is_meant(ruling, shapes)).map(|ruling| &ruling.rules) {
                for rule in rules {
                    let says = capacities(rule, from, to) & rule.left;
                    if says.is_empty() || rule.state == RuleState::Deleted {
                        continue;
                    }
                    let deny = denies(rule.state);
                    match shapes.0 {
                        Layer::Guardrail if deny => {
                            return Verdict::Deny(DenialReason::Guardrail, Some(Cause::Rule(rule)));
                        }
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
            return Verdict::Deny(DenialReason::Rule, Some(Cause::Rule(rule)));
        }
        if !self.opaque.is_empty()
            && let Some((id, kind)) = self.opaque.get(&to).or_else(|| self.opaque.get(&from))
        {
            return Verdict::Deny(DenialReason::Rule, Some(Cause::Opaque(*id, *kind)));
        }
        if let Some(rule) = owner.deny().or_else(|| source_says.deny()).or_else(|| together.deny()) {
            return Verdict::Deny(DenialReason::Rule, Some(Cause::Rule(rule)));
        }
        match together.0 {
            Some((_, rule)) => Verdict::Allow(Cause::Rule(rule)),
            None => Verdict::Deny(DenialReason::DefaultDeny, None),
        }
    }

    /// Where a key is filed.
    fn place(&self, key: &IntentionKey) -> Place {
        let mixer = self.mixer;
        let cluster = |role, label: &Label<ClusterId>| exact(label).map(|id| mixer.number(role, self.number(id)));
        let to = &key.destination;
        let (destination, to) = pattern([
            exact(&to.service).map(|name| mixer.text(Role::Service, name.as_str())),
            exact(&to.namespace).map(|name| mixer.text(Role::ServiceNamespace, name.as_str())),
            cluster(Role::ServiceCluster, &to.cluster),
        ]);
        let (source, from) = match &key.source {
            SourcePattern::Spiffe(id) => (WHOLE, whole(mixer, id)),
            SourcePattern::Account { account, namespace, cluster: of } => pattern([
                exact(account).map(|name| mixer.text(Role::Account, name.as_str())),
                exact(namespace).map(|name| mixer.text(Role::AccountNamespace, name.as_str())),
                cluster(Role::AccountCluster, of),
            ]),
        };
        ((key.layer, destination, source), to ^ from)
    }
}

fn exact<T>(label: &Label<T>) -> Option<&T> {
    match label {
        Label::Any => None,
        Label::Is(name) => Some(name),
    }
}

/// The shape of a pattern, one bit for each part that is exact, and its number.
fn pattern(parts: [Option<u64>; 3]) -> (u8, u64) {
    parts.into_iter().zip(0_u8..).fold((0, 0), |(shape, number), (part, bit)| match part {
        Some(part) => (shape | 1 << bit, number ^ part),
        None => (shape, number),
    })
}

fn whole(mixer: Mixer, id: &SpiffeId) -> u64 {
    mixer.text(Role::TrustDomain, id.trust_domain().as_str()) ^ mixer.text(Role::Path, id.path())
}

/// The exact labels of a key as [`Ruling`] holds them.
fn labels(key: &IntentionKey) -> SmallVec<[u8; 40]> {
    let to = &key.destination;
    let (account, account_namespace) = match &key.source {
        SourcePattern::Spiffe(_) => (None, None),
        SourcePattern::Account { account, namespace, .. } => (exact(account), exact(namespace)),
    };
    let parts = [
        exact(&to.service).map(|name| name.as_str()),
        exact(&to.namespace).map(|name| name.as_str()),
        account.map(|name| name.as_str()),
        account_namespace.map(|name| name.as_str()),
    ];
    parts.into_iter().flatten().flat_map(|label| label.bytes().chain([b'.'])).collect()
}

/// A pair that is judged, with its number in every shape.
struct Pair<'a> {
    source: &'a SpiffeId,
    /// Whether the source is a workload: wildcards reach no others.
    workload: bool,
    /// Service, its namespace, account, its namespace.
    labels: [&'a str; 4],
    from: Number,
    to: Number,
    destinations: [u64; 8],
    sources: [u64; 8],
}

impl<'a> Pair<'a> {
    fn new(law: &Law, source: &'a SpiffeId, from: Number, service: &'a ServiceId, to: Number) -> Self {
        let shapes = |parts: [u64; 3]| {
            let [name, namespace, cluster] = parts;
            let of = |shape: usize, bit: usize, part: u64| if shape & bit == 0 { 0 } else { part };
            std::array::from_fn(|shape| of(shape, 1, name) ^ of(shape, 2, namespace) ^ of(shape, 4, cluster))
        };
        let mixer = law.mixer;
        let workload = source.workload();
        let (account_namespace, account) = workload.unwrap_or_default();
        Self {
            source,
            workload: workload.is_some(),
            labels: [service.service.as_str(), service.namespace.as_str(), account, account_namespace],
            from,
            to,
            destinations: shapes([
                mixer.text(Role::Service, service.service.as_str()),
                mixer.text(Role::ServiceNamespace, service.namespace.as_str()),
                mixer.number(Role::ServiceCluster, to),
            ]),
            sources: shapes([
                mixer.text(Role::Account, account),
                mixer.text(Role::AccountNamespace, account_namespace),
                mixer.number(Role::AccountCluster, from),
            ]),
        }
    }

    /// Where rules of these shapes for this pair are filed; `None` if there can be none that count.
    fn number(&self, mixer: Mixer, (layer, destination, source): (Layer, u8, u8)) -> Option<u64> {
        let from = match source {
            _ if layer == Layer::Shadow => return None,
            WHOLE => whole(mixer, self.source),
            _ if !self.workload => return None,
            shape => *self.sources.get(usize::from(shape))?,
        };
        Some(*self.destinations.get(usize::from(destination))? ^ from)
    }

    /// Whether a ruling that was found under these shapes is about this pair: its number alone does not say so for sure.
    fn is_meant(&self, ruling: &Ruling, (_, destination, source): (Layer, u8, u8)) -> bool {
        let clusters = (ruling.to == ANY || ruling.to == self.to) && (ruling.from == ANY || ruling.from == self.from);
        let whole = source == WHOLE;
        let exact = (destination & 3) | if whole { 0 } else { (source & 3) << 2 };
        let mut rest: &[u8] = &ruling.labels;
        for (_, label) in (0..).zip(self.labels).filter(|(bit, _)| exact & (1 << bit) != 0) {
            match rest.strip_prefix(label.as_bytes()).and_then(|rest| rest.strip_prefix(b".")) {
                Some(left) => rest = left,
                None => return false,
            }
        }
        let named = || match ruling.key().map(|key| &key.source) {
            Some(SourcePattern::Spiffe(id)) => id == self.source,
            _ => false,
        };
        clusters && rest.is_empty() && (!whole || named())
    }
}

fn capacities(rule: &Rule, from: Number, to: Number) -> Capacities {
    Capacities::of_pair(rule.writer == to, rule.writer == from, rule.lawmaker)
}

/// Whether a tombstone beside this allow, which could have replaced it and itself stands for this pair, voids it.
fn is_void(allow: &Rule, beside: &[Rule], from: Number, to: Number) -> bool {
    beside.iter().any(|rule| {
        rule.state == RuleState::Deleted
            && rule.voids.contains(&allow.record.writer)
            && !(capacities(rule, from, to) & rule.left).is_empty()
    })
}
