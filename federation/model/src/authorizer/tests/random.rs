//! Random worlds: the compiled law beside the slow one, and what no pushed record may ever do.

use std::collections::BTreeMap;

use super::*;
use crate::{
    Intention, Member, MemberState, evaluator,
    testing::{Dice, label, on_all_cores},
};

const SERVICES: [&str; 2] = ["payments", "orders"];
const NAMESPACES: [&str; 2] = ["billing", "shop"];
const ACCOUNTS: [&str; 2] = ["web", "batch"];

/// Members 0 to 3 with random standing; 5 writes too, and is none.
fn random_members(dice: &mut Dice) -> Members {
    let mut members = Members::default();
    for number in 0..4 {
        let accept = if dice.one_in(3) { Accept::Own } else { Accept::Federation };
        let state = match dice.below(10) {
            0 => MemberState::Suspended,
            // One that is gone has no name, so that no pair is its own; what it wrote stays.
            1 => MemberState::Evicted,
            2 => MemberState::Blocked,
            _ => MemberState::Active,
        };
        members.insert(Member { state, ..member(number, dice.one_in(2), accept) });
    }
    members
}

fn random_key(dice: &mut Dice) -> IntentionKey {
    let any_cluster = |dice: &mut Dice| match dice.below(6) {
        0..=2 => Label::Any,
        number => Label::Is(cluster(number as u8 - 3)),
    };
    let source = if dice.one_in(8) {
        SourcePattern::Spiffe(random_source(dice))
    } else {
        SourcePattern::Account {
            account: label(dice, &ACCOUNTS),
            namespace: label(dice, &NAMESPACES),
            cluster: any_cluster(dice),
        }
    };
    let destination = crate::DestinationPattern {
        service: label(dice, &SERVICES),
        namespace: label(dice, &NAMESPACES),
        cluster: any_cluster(dice),
    };
    let layer = match dice.below(12) {
        0 => Layer::Guardrail,
        1 => Layer::Timed,
        2 => Layer::Shadow,
        _ => Layer::Rule,
    };
    IntentionKey { source, destination, layer }
}

fn random_source(dice: &mut Dice) -> SpiffeId {
    let number = if dice.one_in(40) { 5 } else { dice.below(3) as u8 };
    if dice.one_in(16) {
        return domain(number).edge(&"edge".parse().expect("name"));
    }
    let (account, namespace) = (*dice.pick(&ACCOUNTS), *dice.pick(&NAMESPACES));
    workload(&format!("{account}.{namespace}"), number)
}

fn random_service(dice: &mut Dice) -> ServiceId {
    let number = if dice.one_in(40) { 5 } else { dice.below(3) as u8 };
    let (name, namespace) = (*dice.pick(&SERVICES), *dice.pick(&NAMESPACES));
    service(&format!("{name}.{namespace}"), number)
}

/// Up to fourteen records over a few keys, so that keys meet; each replaces some of what was written before.
fn random_records(dice: &mut Dice) -> Vec<(RecordId, Record)> {
    let keys: Vec<IntentionKey> = (0..1 + dice.below(5)).map(|_| random_key(dice)).collect();
    let mut records: Vec<(RecordId, Record)> = Vec::new();
    for seq in 1..=dice.below(15) as u64 {
        let writer = cluster(if dice.one_in(30) { 5 } else { dice.below(4) as u8 });
        let state = match dice.below(12) {
            0..=5 => ALLOW,
            6..=8 => DENY,
            9..=10 => RuleState::Deleted,
            _ => RuleState::NotUnderstood,
        };
        let body = if dice.one_in(60) {
            Body::Unknown { kind: 99, critical: !dice.one_in(4) }
        } else {
            Body::Intention(Intention { key: dice.pick(&keys).clone(), state })
        };
        let replaces = records.iter().map(|(id, _)| *id).filter(|_| dice.one_in(3)).collect();
        let audience = if dice.one_in(50) { Audience::All } else { Audience::Law };
        let mut digest = Digest::ZERO;
        digest.0[..8].copy_from_slice(&dice.roll().to_le_bytes());
        let id = RecordId { writer, audience, epoch: 1, seq, digest };
        let record = Record {
            federation: FederationId::from_digest(Digest::ZERO),
            writer,
            audience,
            epoch: 1,
            seq,
            previous: Digest::ZERO,
            replaces,
            author: String::new(),
            written_at: Timestamp::ZERO,
            body,
        };
        records.push((id, record));
    }
    records
}

fn compile(records: &[(RecordId, Record)], members: &Members) -> Authorizer {
    Authorizer::compile(records.iter().map(|(id, record)| (*id, record)), members)
}

fn reason(authorizer: &Authorizer, source: &SpiffeId, service: &ServiceId) -> Result<(), DenialReason> {
    match authorizer.law.judge(source, service) {
        Verdict::Allow(_) => Ok(()),
        Verdict::Deny(reason, _) => Err(reason),
    }
}

const PAIRS_PER_WORLD: u64 = 25;

#[test]
fn compiled_law_decides_as_the_slow_one_in_a_million_cases() {
    let counts = on_all_cores(1_000_000 / PAIRS_PER_WORLD, |seed| {
        let mut dice = Dice(seed);
        let members = random_members(&mut dice);
        let records = random_records(&mut dice);
        let borrowed: Vec<(RecordId, &Record)> = records.iter().map(|(id, record)| (*id, record)).collect();
        let authorizer = compile(&records, &members);
        let mut counts = BTreeMap::new();
        let mut count = |what| *counts.entry(what).or_default() += 1;
        for _ in 0..PAIRS_PER_WORLD {
            let (source, service) = (random_source(&mut dice), random_service(&mut dice));
            let fast = reason(&authorizer, &source, &service);
            let slow = evaluator::decide(&borrowed, &members, &source, &service);
            assert_eq!(fast, slow, "seed {seed}: {source} -> {service:?}\n{members:#?}\n{records:#?}");
            count("case");
            count(match fast {
                Ok(()) => "allow",
                Err(reason) => reason.as_str(),
            });
            let to = members.get(&service.cluster);
            if fast.is_ok() && to.is_some_and(|member| member.accept == Accept::Own) {
                count("allow under own");
            }
            if let Verdict::Allow(rule) = authorizer.law.judge(&source, &service) {
                count(if rule.id().writer == service.cluster { "allow by owner" } else { "allow by lawmaker" });
            }
        }
        if !authorizer.conflicts().is_empty() {
            count("siblings");
        }
        let standings = authorizer.explain();
        if standings.iter().any(|standing| standing.note.starts_with("replaced by another writer, except")) {
            count("partly replaced");
        }
        if standings.iter().any(|standing| standing.note.contains("deleted it at the same time")) {
            count("voided");
        }
        counts
    });
    let seen = [
        "allow",
        "default_deny",
        "rule",
        "guardrail",
        "unknown_source",
        "unknown_service",
        "allow under own",
        "allow by owner",
        "allow by lawmaker",
        "siblings",
        "partly replaced",
        "voided",
    ];
    assert_eq!(counts.get("case"), Some(&1_000_000));
    for what in seen {
        assert!(counts.get(what).is_some_and(|count| *count >= 1_000), "{what} is too rare: {counts:?}");
    }
}

/// R1 of the threats: whatever a member without a say pushes, nothing opens at others.
#[test]
fn records_of_one_who_makes_no_law_never_open_anything_at_others() {
    let counts = on_all_cores(20_000, |seed| {
        let mut dice = Dice(seed ^ 0x5eed_0000);
        let members = random_members(&mut dice);
        let records = random_records(&mut dice);
        let all = compile(&records, &members);
        let mut counts = BTreeMap::new();
        for number in [0, 1, 2, 3, 5] {
            let pusher = cluster(number);
            if members.get(&pusher).is_some_and(|member| member.lawmaker) {
                continue;
            }
            let without: Vec<_> = records.iter().filter(|(id, _)| id.writer != pusher).cloned().collect();
            let before = compile(&without, &members);
            for _ in 0..5 {
                let (source, service) = (random_source(&mut dice), random_service(&mut dice));
                if service.cluster == pusher {
                    continue;
                }
                let (now, then) = (all.allows(&source, &service), before.allows(&source, &service));
                assert!(!now || then, "seed {seed}: {pusher:?} opened {source} -> {service:?}\n{records:#?}");
                *counts
                    .entry(if now {
                        "open"
                    } else if then {
                        "closed by it"
                    } else {
                        "shut"
                    })
                    .or_default() += 1;
            }
        }
        counts
    });
    assert!(counts.values().all(|count| *count >= 100) && counts.len() == 3, "{counts:?}");
}

/// Whoever is out opens nothing to anybody, lawmaker or not, whatever it wrote and wrote over.
#[test]
fn records_of_one_that_is_out_never_open_anything() {
    let counts = on_all_cores(20_000, |seed| {
        let mut dice = Dice(seed ^ 0x0075_0000);
        let members = random_members(&mut dice);
        let records = random_records(&mut dice);
        let all = compile(&records, &members);
        let mut counts = BTreeMap::new();
        for out in members.iter().filter(|member| member.state.is_out()) {
            let without: Vec<_> = records.iter().filter(|(id, _)| id.writer != out.id).cloned().collect();
            let before = compile(&without, &members);
            for _ in 0..10 {
                let (source, service) = (random_source(&mut dice), random_service(&mut dice));
                let (now, then) = (all.allows(&source, &service), before.allows(&source, &service));
                assert!(!now || then, "seed {seed}: {:?} opened {source} -> {service:?}\n{records:#?}", out.id);
                let kind = if now {
                    "open"
                } else if then {
                    "closed by it"
                } else {
                    "shut"
                };
                *counts.entry(kind).or_default() += 1;
            }
        }
        counts
    });
    assert!(counts.values().all(|count| *count >= 100) && counts.len() == 3, "{counts:?}");
}

/// The other half of R1: where a cluster keeps its own law, all foreign records together can only restrict.
#[test]
fn foreign_records_only_restrict_a_cluster_that_keeps_its_own_law() {
    let counts = on_all_cores(20_000, |seed| {
        let mut dice = Dice(seed ^ 0x0a11_0000);
        let mut members = random_members(&mut dice);
        members.insert(member(1, dice.one_in(2), Accept::Own));
        let records = random_records(&mut dice);
        let all = compile(&records, &members);
        let own: Vec<_> = records.iter().filter(|(id, _)| id.writer == cluster(1)).cloned().collect();
        let alone = compile(&own, &members);
        let mut counts = BTreeMap::new();
        for _ in 0..20 {
            let source = random_source(&mut dice);
            let service = ServiceId { cluster: cluster(1), ..random_service(&mut dice) };
            let (now, then) = (all.allows(&source, &service), alone.allows(&source, &service));
            assert!(!now || then, "seed {seed}: {source} -> {service:?}\n{members:#?}\n{records:#?}");
            *counts
                .entry(if now {
                    "open"
                } else if then {
                    "closed by others"
                } else {
                    "shut"
                })
                .or_default() += 1;
        }
        counts
    });
    assert!(counts.values().all(|count| *count >= 500) && counts.len() == 3, "{counts:?}");
}

/// Whatever replaces what, nobody but its writer lifts a deny that it wrote for its own services or accounts.
#[test]
fn a_guardrail_for_ones_own_is_lifted_by_nobody_else() {
    let counts = on_all_cores(20_000, |seed| {
        let mut dice = Dice(seed ^ 0x6a2d_0000);
        let members = random_members(&mut dice);
        let mut records = random_records(&mut dice);
        let key = IntentionKey { layer: Layer::Guardrail, ..random_key(&mut dice) };
        let writer = cluster(dice.below(4) as u8);
        // What one that is gone denied, lawmakers may lift.
        if members.get(&writer).is_none_or(|member| member.state.is_gone()) {
            return BTreeMap::new();
        }
        let mut federation = Writer::new(0, FederationId::from_digest(Digest::ZERO));
        federation.own = writer;
        let deny = federation.rule(&key, DENY, &[]);
        records.retain(|(id, _)| id.writer != writer);
        records.insert(0, (deny.id(), deny.value().clone()));
        for (id, record) in records.iter_mut().skip(1) {
            if dice.one_in(2) {
                record.replaces.push(deny.id());
                record.body = Body::Intention(Intention { key: key.clone(), state: RuleState::Deleted });
                assert_ne!(id.writer, writer);
            }
        }
        let authorizer = compile(&records, &members);
        let mut counts = BTreeMap::new();
        for _ in 0..20 {
            let (source, service) = (random_source(&mut dice), random_service(&mut dice));
            let from = members.by_trust_domain(source.trust_domain()).map(|member| member.id);
            let matches = key.source.matches(&source, from.as_ref()) && key.destination.matches(&service);
            let known = from.is_some() && members.get(&service.cluster).is_some();
            if matches && known && (from == Some(writer) || service.cluster == writer) {
                let verdict = reason(&authorizer, &source, &service);
                assert_eq!(verdict, Err(DenialReason::Guardrail), "seed {seed}");
                *counts.entry("held").or_default() += 1;
            }
        }
        counts
    });
    assert!(counts.get("held").is_some_and(|count| *count >= 1_000), "{counts:?}");
}
