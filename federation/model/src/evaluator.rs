//! A slow and obvious reading of the law, beside which the compiled one is tested.
//!
//! In: the same records and members. Out: the decision for one pair, found by going through every record each time.
//! Never: shares code with the authorizer; what both use is only the nouns.

use crate::{
    Accept, Action, Audience, Body, ClusterId, DenialReason, Intention, Label, Layer, MemberState, Members, Record,
    RecordId, RuleState, ServiceId, SourcePattern, SpiffeId,
};

/// A rule that matches the pair, in the words of the specification.
#[derive(Clone, Copy)]
struct Rule<'a> {
    id: &'a RecordId,
    replaces: &'a [RecordId],
    intention: &'a Intention,
}

/// The pair, and what entitlement depends on.
struct Pair<'a> {
    members: &'a Members,
    /// The source's cluster.
    cs: ClusterId,
    /// The destination's cluster.
    cd: ClusterId,
}

/// Whether `source` may call `service`: `Ok` if so, else why not.
///
/// # Errors
/// The kind of refusal.
pub fn decide(
    records: &[(RecordId, &Record)],
    members: &Members,
    source: &SpiffeId,
    service: &ServiceId,
) -> Result<(), DenialReason> {
    let cs = members.by_trust_domain(source.trust_domain()).ok_or(DenialReason::UnknownSource)?.id;
    let cd = members.get(&service.cluster).ok_or(DenialReason::UnknownService)?.id;
    let pair = Pair { members, cs, cd };

    let mut matching: Vec<Rule<'_>> = Vec::new();
    for (id, record) in records {
        if let Body::Intention(intention) = &record.body
            && record.audience == Audience::Law
            && intention.key.source.matches(source, Some(&cs))
            && intention.key.destination.matches(service)
        {
            matching.push(Rule { id, replaces: &record.replaces, intention });
        }
    }
    let valid: Vec<Rule<'_>> = matching
        .iter()
        .copied()
        .filter(|rule| !(is_allow(rule) && (pair.is_out(&rule.id.writer) || pair.is_void(rule, &matching))))
        .collect();
    let entitled_deny = |layer| {
        let mut denies = valid.iter().filter(|rule| is_deny(rule) && rule.intention.key.layer == layer);
        denies.any(|rule| EVERY_CAPACITY.iter().any(|capacity| pair.counts(rule, *capacity, &matching)))
    };

    // Guardrails: any entitled deny denies.
    if entitled_deny(Layer::Guardrail) {
        return Err(DenialReason::Guardrail);
    }
    // Timed: any entitled deny denies.
    if entitled_deny(Layer::Timed) {
        return Err(DenialReason::Rule);
    }
    // A critical record that nobody understands denies its writer's own services and accounts.
    for (id, record) in records {
        let critical = matches!(record.body, Body::Unknown { critical: true, .. });
        let replaced = records.iter().any(|(by, later)| by.writer == id.writer && later.replaces.contains(id));
        if critical && !replaced && (id.writer == cs || id.writer == cd) {
            return Err(DenialReason::Rule);
        }
    }
    // Rules: of each group the highest.
    let group = |capacities: &[Capacity]| -> Vec<Rule<'_>> {
        let rules = valid.iter().filter(|rule| rule.intention.key.layer == Layer::Rule);
        rules
            .filter(|rule| is_allow(rule) || is_deny(rule))
            .filter(|rule| {
                capacities.iter().any(|capacity| {
                    // A lawmaker's allow needs the destination's cluster to accept the federation's law.
                    let accepted = *capacity != Capacity::Global || is_deny(rule) || pair.accepts_federation();
                    accepted && pair.counts(rule, *capacity, &matching)
                })
            })
            .copied()
            .collect()
    };
    let owner = top(&group(&[Capacity::Owner]));
    let source_cluster = top(&group(&[Capacity::Source]));
    let together = top(&group(&[Capacity::Owner, Capacity::Global]));
    if owner == Some(Action::Deny) || source_cluster == Some(Action::Deny) {
        return Err(DenialReason::Rule);
    }
    match together {
        Some(Action::Allow) => Ok(()),
        Some(Action::Deny) => Err(DenialReason::Rule),
        None => Err(DenialReason::DefaultDeny),
    }
}

fn is_allow(rule: &Rule<'_>) -> bool {
    rule.intention.state == RuleState::Is(Action::Allow)
}

/// What is not understood counts as a deny.
fn is_deny(rule: &Rule<'_>) -> bool {
    matches!(rule.intention.state, RuleState::Is(Action::Deny) | RuleState::NotUnderstood)
}

/// Consul's nine rows, from the table in its documentation: source parts, destination parts, precedence.
const ROWS: [(&str, &str, u8); 9] = [
    ("exact", "exact", 9),
    ("ns", "exact", 8),
    ("any", "exact", 7),
    ("exact", "ns", 6),
    ("ns", "ns", 5),
    ("any", "ns", 4),
    ("exact", "any", 3),
    ("ns", "any", 2),
    ("any", "any", 1),
];

fn row(rule: &Rule<'_>) -> u8 {
    let key = &rule.intention.key;
    let source = match &key.source {
        SourcePattern::Account { namespace: Label::Any, .. } => "any",
        SourcePattern::Account { account: Label::Any, .. } => "ns",
        SourcePattern::Account { .. } | SourcePattern::Spiffe(_) => "exact",
    };
    let destination = match (&key.destination.namespace, &key.destination.service) {
        (Label::Any, _) => "any",
        (_, Label::Any) => "ns",
        _ => "exact",
    };
    ROWS.iter().find(|(from, to, _)| (*from, *to) == (source, destination)).map_or(0, |(_, _, row)| *row)
}

/// The highest row; at a tie those that name the destination's cluster; then deny.
fn top(group: &[Rule<'_>]) -> Option<Action> {
    let highest = group.iter().map(row).max()?;
    let mut best: Vec<&Rule<'_>> = group.iter().filter(|rule| row(rule) == highest).collect();
    let names = |rule: &&Rule<'_>| rule.intention.key.destination.cluster != Label::Any;
    if best.iter().any(names) {
        best.retain(names);
    }
    Some(if best.into_iter().any(is_deny) { Action::Deny } else { Action::Allow })
}

/// In what capacity a writer speaks of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capacity {
    /// Of its own services.
    Owner,
    /// Of its own accounts.
    Source,
    /// As a lawmaker, of others' services.
    Global,
}

const EVERY_CAPACITY: [Capacity; 3] = [Capacity::Owner, Capacity::Source, Capacity::Global];

impl Pair<'_> {
    fn is_lawmaker(&self, cluster: &ClusterId) -> bool {
        self.members.get(cluster).is_some_and(|member| member.lawmaker)
    }

    fn is_out(&self, cluster: &ClusterId) -> bool {
        let out = [MemberState::Suspended, MemberState::Evicted, MemberState::Left];
        self.members.get(cluster).is_none_or(|member| out.contains(&member.state))
    }

    fn accepts_federation(&self) -> bool {
        self.members.get(&self.cd).is_some_and(|member| member.accept == Accept::Federation)
    }

    /// Whether the writer has this capacity for this pair.
    fn speaks(&self, writer: &ClusterId, capacity: Capacity) -> bool {
        match capacity {
            Capacity::Owner => *writer == self.cd,
            Capacity::Source => *writer == self.cs,
            Capacity::Global => *writer != self.cd && self.is_lawmaker(writer),
        }
    }

    /// Whether a rule counts in a capacity: its writer has it, and nobody replaced the rule in it.
    fn counts(&self, rule: &Rule<'_>, capacity: Capacity, all: &[Rule<'_>]) -> bool {
        let replaced = all.iter().any(|by| {
            by.replaces.contains(rule.id)
                && by.intention.key == rule.intention.key
                && self.may_replace(&by.id.writer, rule, capacity)
        });
        self.speaks(&rule.id.writer, capacity) && !replaced
    }

    /// The replacement rule. An allow is replaced whole; what restricts is lifted by another cluster only where that
    /// cluster has the say: nobody lifts what a cluster restricts for its own services or accounts.
    fn may_replace(&self, writer: &ClusterId, old: &Rule<'_>, capacity: Capacity) -> bool {
        let key = &old.intention.key;
        let own = *writer == old.id.writer;
        // What one who is out wrote over stands again, but for its own words.
        if !own && self.is_out(writer) {
            return false;
        }
        let gone = [MemberState::Evicted, MemberState::Left];
        let of_gone = self.members.get(&old.id.writer).is_some_and(|member| gone.contains(&member.state));
        if self.is_lawmaker(writer) && of_gone {
            return true;
        }
        let lawmakers = self.is_lawmaker(writer) && self.is_lawmaker(&old.id.writer);
        let destination = key.destination.cluster == Label::Is(*writer)
            && self.members.get(writer).is_some()
            && key.layer != Layer::Guardrail;
        own || (lawmakers && (is_allow(old) || capacity == Capacity::Global))
            || (destination && (is_allow(old) || capacity != Capacity::Source))
    }

    /// Whether a concurrent tombstone voids this allow: by one who could have replaced it, and whose tombstone counts.
    fn is_void(&self, allow: &Rule<'_>, all: &[Rule<'_>]) -> bool {
        all.iter().any(|rule| {
            rule.intention.state == RuleState::Deleted
                && rule.intention.key == allow.intention.key
                && EVERY_CAPACITY.iter().any(|capacity| self.counts(rule, *capacity, all))
                && self.may_replace(&rule.id.writer, allow, Capacity::Owner)
        })
    }
}
