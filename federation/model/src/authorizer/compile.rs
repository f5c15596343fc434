//! From records to the compiled table: which versions live, what counts, and why not.

use std::collections::{BTreeSet, HashMap};

use super::{
    Standing,
    index::{ANY, Law, Number, Rule},
};
use crate::{
    Accept, Action, Audience, Body, ClusterId, DestinationPattern, IntentionKey, Label, Layer, Members, Record,
    RecordId, RuleState, SourcePattern,
    standing::{self, Capacities, Version},
};

/// Consul's precedence, 1 to 9, from how many parts of each side are exact.
pub(super) fn precedence(key: &IntentionKey) -> u8 {
    let highest = match key.destination.count() {
        2 => 9,
        1 => 6,
        _ => 3,
    };
    highest - (2 - key.source.count())
}

pub(super) fn law<'a>(records: impl Iterator<Item = (RecordId, &'a Record)>, members: &Members) -> Law {
    let mut law = Law::default();
    for member in members.iter() {
        let number = law.clusters.len() as Number;
        law.clusters.push((member.id, member.accept));
        law.by_id.insert(member.id, number);
        // Who is gone has no identities any more; its domain may be another's by now.
        if !member.state.is_gone() {
            law.by_domain.insert(member.trust_domain.clone(), number);
        }
    }
    let mut versions: HashMap<&IntentionKey, Vec<Version<'_>>> = HashMap::new();
    let mut opaque: Vec<(RecordId, u32)> = Vec::new();
    let mut all: Vec<&Record> = Vec::new();
    for (id, record) in records {
        match &record.body {
            Body::Intention(intention) if record.audience == Audience::Law => {
                let version = Version { id, record, state: intention.state };
                versions.entry(&intention.key).or_default().push(version);
            }
            Body::Unknown { kind, critical: true } => opaque.push((id, *kind)),
            _ => {}
        }
        all.push(record);
    }
    // What cannot be understood is replaced by its own writer or not at all, and is rare.
    let replaced: BTreeSet<RecordId> = if opaque.is_empty() {
        BTreeSet::new()
    } else {
        all.iter().flat_map(|record| crate::roll::own_replaced(record)).collect()
    };
    for (id, kind) in opaque.into_iter().filter(|(id, _)| !replaced.contains(id)) {
        if let Some(&writer) = law.by_id.get(&id.writer) {
            let text = format!("a record of kind {kind} that this version does not understand");
            law.opaque.entry(writer).or_insert((id, text));
        }
    }
    let mut keys: Vec<_> = versions.into_iter().collect();
    keys.sort_unstable_by_key(|(key, _)| (std::cmp::Reverse(precedence(key)), *key));
    let mut placed = Vec::new();
    for (key, mut versions) in keys {
        versions.sort_unstable_by_key(|version| version.id);
        place(&mut law, key, &versions, members, &mut placed);
    }
    placed.sort_by_key(|(place, _)| *place);
    for (place, rule) in placed {
        let at = law.rules.len();
        law.buckets.entry(place).or_insert(at..at).end = at + 1;
        law.rules.push(rule);
    }
    law
}

/// A version that still stands.
struct Live<'a> {
    version: Version<'a>,
    left: Capacities,
    /// Writers whose concurrent allows this tombstone may void.
    voids: Vec<ClusterId>,
    /// For an allow: whether such a tombstone exists, and one that voids it for every pair.
    contested: bool,
    void: Option<ClusterId>,
}

/// The versions of one key that stand, without tombstones that void nothing.
fn living<'a>(key: &IntentionKey, versions: &[Version<'a>], members: &Members) -> Vec<Live<'a>> {
    let left = standing::remaining(versions, key, members);
    let mut live: Vec<Live<'a>> = versions
        .iter()
        .zip(left)
        .filter(|(version, left)| standing::is_live(version, *left, key, members))
        .map(|(version, left)| Live { version: *version, left, voids: Vec::new(), contested: false, void: None })
        .collect();
    let allows: Vec<Version<'a>> =
        live.iter().map(|live| live.version).filter(|version| version.state == RuleState::Is(Action::Allow)).collect();
    let mut voided: HashMap<RecordId, bool> = HashMap::new();
    for tombstone in live.iter_mut().filter(|live| live.version.state == RuleState::Deleted) {
        let writer = tombstone.version.id.writer;
        for allow in allows.iter().filter(|allow| standing::voids(writer, allow, key, members)) {
            tombstone.voids.push(allow.id.writer);
            *voided.entry(allow.id).or_default() |= tombstone.left == Capacities::ALL;
        }
    }
    let always: Vec<ClusterId> = live
        .iter()
        .filter(|live| live.left == Capacities::ALL && !live.voids.is_empty())
        .map(|live| live.version.id.writer)
        .collect();
    for allow in &mut live {
        if let Some(entirely) = voided.get(&allow.version.id) {
            allow.contested = true;
            let by = always.iter().find(|writer| standing::voids(**writer, &allow.version, key, members));
            allow.void = by.filter(|_| *entirely).copied();
        }
    }
    live.retain(|live| live.version.state != RuleState::Deleted || !live.voids.is_empty());
    live
}

fn place(
    law: &mut Law,
    key: &IntentionKey,
    versions: &[Version<'_>],
    members: &Members,
    placed: &mut Vec<((Number, Number), Rule)>,
) {
    let live = living(key, versions, members);
    let first = law.standings.len();
    let precedence = precedence(key);
    for live in &live {
        let Version { id, record, state } = live.version;
        let (counts, note) = judge(live, key, members);
        law.standings.push(Standing {
            id,
            key: key.clone(),
            state,
            precedence,
            writer: id.writer,
            author: record.author.clone(),
            written_at: record.written_at,
            counts,
            note,
            conflict: false,
            text: text(key, state, members),
        });
    }
    // What does not count resolves nothing and is no conflict, or any member could raise one about anything.
    let mut counting: Vec<&mut Standing> = law.standings.iter_mut().skip(first).filter(|one| one.counts).collect();
    if counting.len() > 1 {
        counting.iter_mut().for_each(|standing| standing.conflict = true);
    }
    let at: Option<(Number, Number)> = if key.layer == Layer::Shadow { None } else { Some(pattern_numbers(law, key)) };
    for (offset, live) in live.iter().enumerate() {
        let Version { id, state, .. } = live.version;
        if standing::is_void(&live.version, members) {
            continue;
        }
        let deny_only = matches!(key.layer, Layer::Guardrail | Layer::Timed);
        if deny_only && !matches!(state, RuleState::Is(Action::Deny) | RuleState::NotUnderstood) {
            continue;
        }
        let (Some(at), Some(&writer)) = (at, law.by_id.get(&id.writer)) else { continue };
        let rule = Rule {
            standing: first + offset,
            writer,
            lawmaker: members.get(&id.writer).is_some_and(|member| member.lawmaker),
            layer: key.layer,
            state,
            rank: precedence * 2 + u8::from(key.destination.cluster != Label::Any),
            left: live.left,
            contested: live.contested,
            voids: live.voids.iter().filter_map(|writer| law.by_id.get(writer)).copied().collect(),
        };
        placed.push((at, rule));
    }
}

/// Whether a version counts for any pair at all, and what to say about that.
fn judge(live: &Live<'_>, key: &IntentionKey, members: &Members) -> (bool, String) {
    let Version { id, state, .. } = live.version;
    let name =
        |id: ClusterId| members.get(&id).map_or_else(|| format!("@{}", id.short()), |member| member.name.to_string());
    let no = |why: &str| (false, why.to_owned());
    let allow = state == RuleState::Is(Action::Allow);
    if members.get(&id.writer).is_none() {
        return no("its writer is no member");
    }
    if standing::is_void(&live.version, members) {
        return no("its writer was put out of the federation, or left: its allows are void");
    }
    let says = Capacities::possible(id.writer, key, members) & live.left;
    match key.layer {
        Layer::Shadow => return no("a shadow rule is shown, never enforced"),
        Layer::Guardrail if allow => return no("a guardrail can only deny"),
        Layer::Timed if allow => return no("this version enforces only denies of the timed layer"),
        _ if says.is_empty() => return no("its writer owns neither side and is no lawmaker"),
        _ => {}
    }
    if let Some(by) = live.void {
        return (false, format!("{} deleted it at the same time: write over it to resolve", name(by)));
    }
    if allow && !says.has(Capacities::OWNER) {
        if !says.has(Capacities::GLOBAL) {
            return (true, "lifts only its writer's own denies".to_owned());
        }
        match &key.destination.cluster {
            Label::Is(cluster) if members.get(cluster).is_some_and(|member| member.accept == Accept::Own) => {
                let why = format!("{} accepts only its own allows", name(*cluster));
                return (says.has(Capacities::SOURCE), why);
            }
            _ => {}
        }
    }
    let note = if live.contested {
        "deleted at the same time, for part of its scope: write over it to resolve"
    } else if live.left != Capacities::ALL {
        "replaced by another writer, except where its own writer speaks for its own services or accounts"
    } else if state == RuleState::NotUnderstood {
        "this version does not understand it, so it denies"
    } else if state == RuleState::Deleted {
        "deleted at the same time as another wrote it: write over it to resolve"
    } else {
        ""
    };
    (true, note.to_owned())
}

fn text(key: &IntentionKey, state: RuleState, members: &Members) -> String {
    let action = match state {
        RuleState::Is(action) => action.to_string(),
        RuleState::Deleted => "deleted".to_owned(),
        RuleState::NotUnderstood => "deny (not understood)".to_owned(),
    };
    format!("{action} {} -> {}", key.source.shown(members), key.destination.shown(members))
}

/// The numbers of a key's two patterns, made if they are new.
fn pattern_numbers(law: &mut Law, key: &IntentionKey) -> (Number, Number) {
    let next = law.next_pattern();
    let DestinationPattern { service, namespace, cluster } = &key.destination;
    let parts = [
        number(law, service, |name| name.as_str()),
        number(law, namespace, |name| name.as_str()),
        cluster_number(law, cluster),
    ];
    let destination = law.destinations.number(parts, next);
    let source = match &key.source {
        SourcePattern::Spiffe(id) => *law.spiffe.entry(id.clone()).or_insert(next),
        SourcePattern::Account { account, namespace, cluster } => {
            let parts = [
                number(law, account, |name| name.as_str()),
                number(law, namespace, |name| name.as_str()),
                cluster_number(law, cluster),
            ];
            law.sources.number(parts, next)
        }
    };
    (destination, source)
}

fn number<T>(law: &mut Law, label: &Label<T>, text: impl Fn(&T) -> &str) -> Number {
    match label {
        Label::Any => ANY,
        Label::Is(name) => law.name(text(name)),
    }
}

/// The number of a pattern's cluster. One that is no member's gets a number that no pair has.
fn cluster_number(law: &Law, cluster: &Label<ClusterId>) -> Number {
    match cluster {
        Label::Any => ANY,
        Label::Is(id) => law.by_id.get(id).copied().unwrap_or(ANY - 1),
    }
}
