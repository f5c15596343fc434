//! From what stands of one key to its ruling: what counts, why not, and in which words.

use std::{collections::HashMap, sync::Arc};

use smallvec::SmallVec;

use super::{
    Standing,
    index::{Cause, Law, Rule, Ruling},
};
use crate::{
    Accept, Action, Body, ClusterId, IntentionKey, Label, Layer, Members, RecordId, RuleState,
    files::Filed,
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

/// Puts what stands of one key into the law. Tombstones that void nothing are left out.
pub(super) fn rule(law: &mut Law, key: &IntentionKey, standing: &[Filed]) {
    let members = &law.members;
    let precedence = precedence(key);
    let rule = |live: Live<'_>| Rule {
        record: Arc::clone(&live.filed.record),
        digest: live.filed.digest,
        writer: law.number(&live.filed.record.writer),
        lawmaker: members.get(&live.filed.record.writer).is_some_and(|member| member.lawmaker),
        state: live.state,
        rank: precedence * 2 + u8::from(key.destination.cluster != Label::Any),
        left: match standing::is_void(&live.filed.record.writer, live.state, members) {
            true => Capacities::NONE,
            false => live.filed.left,
        },
        contested: live.contested,
        voids: live.voids.into(),
        void_by: live.void.map(Box::new),
    };
    let rules: SmallVec<[Rule; 1]> = living(key, standing, members).into_iter().map(rule).collect();
    // What does not count resolves nothing and is no conflict, or any member could raise one about anything.
    let conflict = rules.len() > 1 && rules.iter().filter(|rule| judge(rule, key, members).0).count() > 1;
    law.rule(key, rules, conflict);
}

/// How every version of a ruling stands.
pub(super) fn standings<'a>(ruling: &'a Ruling, members: &'a Members) -> impl Iterator<Item = Standing> + 'a {
    let rules = ruling.key().into_iter().flat_map(|key| ruling.rules.iter().map(move |rule| (key, rule)));
    rules.map(|(key, rule)| {
        let (counts, note) = judge(rule, key, members);
        Standing {
            id: rule.id(),
            key: key.clone(),
            state: rule.state,
            precedence: precedence(key),
            writer: rule.record.writer,
            author: rule.record.author.clone(),
            written_at: rule.record.written_at,
            counts,
            note,
            conflict: ruling.conflict && counts,
            text: text(key, rule.state, members),
        }
    })
}

/// What decided, in words.
pub(super) fn words(cause: &Cause<'_>, members: &Members) -> String {
    match cause {
        Cause::Rule(rule) => match &rule.record.body {
            Body::Intention(intention) => text(&intention.key, rule.state, members),
            _ => String::new(),
        },
        Cause::Opaque(_, kind) => format!("a record of kind {kind} that this version does not understand"),
    }
}

/// A version that still stands.
struct Live<'a> {
    filed: &'a Filed,
    state: RuleState,
    /// Writers whose concurrent allows this tombstone may void.
    voids: Vec<ClusterId>,
    /// For an allow: whether such a tombstone exists, and one that voids it for every pair.
    contested: bool,
    void: Option<ClusterId>,
}

/// The versions of one key that stand, in order of id, without tombstones that void nothing.
fn living<'a>(key: &IntentionKey, standing: &'a [Filed], members: &Members) -> Vec<Live<'a>> {
    let mut live: Vec<Live<'a>> = standing
        .iter()
        .filter_map(|filed| filed.state().map(|state| (filed, state)))
        .map(|(filed, state)| Live { filed, state, voids: Vec::new(), contested: false, void: None })
        .collect();
    live.sort_unstable_by_key(|live| live.filed.id());
    let allows: Vec<Version> = standing
        .iter()
        .filter_map(Filed::version)
        .filter(|version| version.state == RuleState::Is(Action::Allow))
        .collect();
    let mut voided: HashMap<RecordId, bool> = HashMap::new();
    for tombstone in live.iter_mut().filter(|live| live.state == RuleState::Deleted) {
        let writer = tombstone.filed.record.writer;
        for allow in allows.iter().filter(|allow| standing::voids(writer, allow, key, members)) {
            tombstone.voids.push(allow.id.writer);
            *voided.entry(allow.id).or_default() |= tombstone.filed.left == Capacities::ALL;
        }
    }
    let always: Vec<ClusterId> = live
        .iter()
        .filter(|live| live.filed.left == Capacities::ALL && !live.voids.is_empty())
        .map(|live| live.filed.record.writer)
        .collect();
    for allow in live.iter_mut().filter(|_| !voided.is_empty()) {
        if let Some(entirely) = voided.get(&allow.filed.id())
            && let Some(version) = allow.filed.version()
        {
            allow.contested = true;
            let by = always.iter().find(|writer| standing::voids(**writer, &version, key, members));
            allow.void = by.filter(|_| *entirely).copied();
        }
    }
    live.retain(|live| live.state != RuleState::Deleted || !live.voids.is_empty());
    live
}

/// Whether a version counts for any pair at all, and what to say about that.
fn judge(rule: &Rule, key: &IntentionKey, members: &Members) -> (bool, String) {
    let (writer, state) = (rule.record.writer, rule.state);
    let name =
        |id: ClusterId| members.get(&id).map_or_else(|| format!("@{}", id.short()), |member| member.name.to_string());
    let no = |why: &str| (false, why.to_owned());
    let allow = state == RuleState::Is(Action::Allow);
    if standing::is_void(&writer, state, members) {
        return no("its writer was put out of the federation, or left: its allows are void");
    }
    let says = Capacities::possible(writer, key, members) & rule.left;
    match key.layer {
        Layer::Shadow => return no("a shadow rule is shown, never enforced"),
        Layer::Guardrail if allow => return no("a guardrail can only deny"),
        Layer::Timed if allow => return no("this version enforces only denies of the timed layer"),
        _ if says.is_empty() => return no("its writer owns neither side and is no lawmaker"),
        _ => {}
    }
    if let Some(by) = rule.void_by.as_deref() {
        return (false, format!("{} deleted it at the same time: write over it to resolve", name(*by)));
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
    let note = if rule.contested {
        "deleted at the same time, for part of its scope: write over it to resolve"
    } else if rule.left != Capacities::ALL {
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
