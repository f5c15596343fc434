//! The fold that goes on beside one from the start and beside the slow reading of the law, over random histories: late
//! admissions, grants, replacements that come before what they replace, forks that make records void.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    Accept, AccountRef, Admission, Approval, DestinationPattern, Digest, Eviction, Export, Head, Intention,
    IntentionKey, Label, Layer, MemberState, MemberTerms, Replica, Revocation, RuleState, ServiceId, SourcePattern,
    SpiffeId, Staleness, Stance, Timestamp, TrustBundle, WhenStale, evaluator, fold,
    testing::{ALLOW, DENY, Dice, Writer, candidate, cluster, domain, label, on_all_cores, service, workload},
};

const OWN: u8 = 1;
const CLUSTERS: usize = 5;
const NAMES: [&str; 2] = ["web", "pay"];

fn any_cluster(dice: &mut Dice) -> Label<ClusterId> {
    if dice.one_in(2) { Label::Any } else { Label::Is(cluster(dice.below(CLUSTERS) as u8)) }
}

fn random_key(dice: &mut Dice) -> IntentionKey {
    let source = if dice.one_in(8) {
        SourcePattern::Spiffe(random_source(dice))
    } else {
        let (account, namespace) = (label(dice, &NAMES), label(dice, &NAMES));
        SourcePattern::Account { account, namespace, cluster: any_cluster(dice) }
    };
    let (service, namespace) = (label(dice, &NAMES), label(dice, &NAMES));
    let destination = DestinationPattern { service, namespace, cluster: any_cluster(dice) };
    let layer = *dice.pick(&[Layer::Rule, Layer::Rule, Layer::Rule, Layer::Rule, Layer::Guardrail, Layer::Shadow]);
    IntentionKey { source, destination, layer }
}

fn random_source(dice: &mut Dice) -> SpiffeId {
    let number = dice.below(CLUSTERS) as u8;
    workload(&format!("{}.{}", dice.pick(&NAMES), dice.pick(&NAMES)), number)
}

fn random_service(dice: &mut Dice) -> ServiceId {
    service(&format!("{}.{}", dice.pick(&NAMES), dice.pick(&NAMES)), dice.below(CLUSTERS) as u8)
}

fn random_export(dice: &mut Dice) -> Export {
    let account = |dice: &mut Dice| AccountRef {
        account: dice.pick(&NAMES).parse().expect("name"),
        namespace: dice.pick(&NAMES).parse().expect("name"),
    };
    Export {
        service: dice.pick(&NAMES).parse().expect("name"),
        namespace: dice.pick(&NAMES).parse().expect("name"),
        port: 1 + dice.below(3) as u16,
        accounts: (0..dice.below(3)).map(|_| account(dice)).collect(),
        staleness: Staleness {
            when: *dice.pick(&[WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny]),
            lease: Duration::from_secs(10 * (1 + dice.below(3) as u64)),
        },
    }
}

/// What a writer says next, and to whom.
fn random_body(dice: &mut Dice, writer: u8, keys: &[IntentionKey]) -> (Audience, Body) {
    let some = |dice: &mut Dice| cluster(dice.below(CLUSTERS) as u8);
    let audience = match dice.below(3) {
        0 => Audience::All,
        1 => Audience::Member(cluster(OWN)),
        _ => Audience::Member(cluster(writer)),
    };
    match dice.below(46) {
        0..=20 => {
            let state = *dice.pick(&[ALLOW, ALLOW, ALLOW, DENY, DENY, RuleState::Deleted, RuleState::NotUnderstood]);
            let audience = if dice.one_in(40) { Audience::All } else { Audience::Law };
            (audience, Body::Intention(Intention { key: dice.pick(keys).clone(), state }))
        }
        21..=26 => (audience, Body::Service(random_export(dice))),
        27..=28 => {
            let Export { service, namespace, .. } = random_export(dice);
            (audience, Body::ServiceGone { service, namespace })
        }
        29..=31 => {
            let accept = if dice.one_in(2) { Accept::Own } else { Accept::Federation };
            let endpoints = (0..dice.below(2)).map(|_| "a.example:1".parse().expect("endpoint")).collect();
            let approval = if dice.one_in(3) { Approval::Manual } else { Approval::Auto };
            (Audience::Law, Body::Terms(MemberTerms { accept, approval, endpoints, ..MemberTerms::default() }))
        }
        32..=33 => (Audience::Law, Body::Lawmaker { cluster: some(dice), on: dice.one_in(2) }),
        34..=36 => {
            let mut candidate = candidate(dice.below(CLUSTERS) as u8);
            if dice.one_in(6) {
                candidate.name = "taken".parse().expect("name");
            }
            (Audience::Law, Body::Admission(Admission { candidate, lawmaker: dice.one_in(3) }))
        }
        37..=38 => {
            let roots = (0..dice.below(3)).map(|root| vec![root as u8]).collect();
            let bundle = TrustBundle { trust_domain: domain(writer), sequence: dice.below(4) as u64, roots };
            (Audience::Law, Body::Bundle(bundle))
        }
        39 => (Audience::Law, Body::Unknown { kind: 99, critical: true }),
        40..=41 => {
            let mut heads = BTreeMap::new();
            for epoch in 1..=dice.below(4) as u64 {
                heads.insert(epoch, Head { seq: dice.below(9) as u64, digest: Digest::ZERO });
            }
            (Audience::Law, Body::Eviction(Eviction { cluster: some(dice), heads }))
        }
        42..=43 => {
            let (key, end) = (Digest([dice.below(3) as u8; 32]), Timestamp::from_secs(dice.below(3) as u64));
            (Audience::Law, Body::Revocation(Revocation { key, serial: vec![1], not_after: end }))
        }
        _ => {
            let despite = (0..dice.below(3)).map(|_| some(dice)).collect();
            let stance = if dice.one_in(2) { Stance::Blocked } else { Stance::Approved { despite } };
            (Audience::Member(cluster(writer)), Body::Stance { cluster: some(dice), stance })
        }
    }
}

/// What five clusters write, two of them crookedly, in no order in which it must arrive.
fn random_history(dice: &mut Dice) -> (FederationId, Vec<Authentic<Record>>, Vec<IntentionKey>) {
    let (mut east, founding) = Writer::found();
    let federation = east.federation;
    let keys: Vec<IntentionKey> = (0..2 + dice.below(4)).map(|_| random_key(dice)).collect();
    let mut records = vec![founding, east.admit(OWN, false)];
    let mut writers = vec![east];
    writers.extend((1..CLUSTERS as u8).map(|number| Writer::new(number, federation)));
    let mut doubles = Vec::new();
    for _ in 0..10 + dice.below(40) {
        let number = dice.below(CLUSTERS);
        let writer = writers.get_mut(number).expect("a writer");
        let (audience, body) = random_body(dice, number as u8, &keys);
        if dice.one_in(12) {
            writer.next_epoch(audience);
        }
        let replaces: Vec<RecordId> = records.iter().map(Authentic::<Record>::id).filter(|_| dice.one_in(6)).collect();
        if number >= 3 && dice.one_in(4) {
            let (_, other) = random_body(dice, number as u8, &keys);
            let mut double = writer.clone();
            doubles.push(double.write(audience, other.clone(), &[]));
            // Sometimes more follows on that side.
            if dice.one_in(2) {
                doubles.push(double.write(audience, other, &replaces));
            }
        }
        records.push(writer.write(audience, body, &replaces));
    }
    // By then much was built on what they belie.
    records.extend(doubles);
    (federation, records, keys)
}

fn check(replica: &mut Replica, keys: &[IntentionKey], dice: &mut Dice, seed: u64) -> Option<Snapshot> {
    let made = replica.snapshot(7);
    let fresh = fold(replica.own(), replica.federation(), 7, replica.records());
    assert_eq!(made.is_some(), fresh.is_some(), "seed {seed}");
    let mut again = Replica::new(replica.own(), replica.federation());
    assert!(again.load(replica.records().cloned()).is_empty(), "seed {seed}");
    let other_keys = [RecordKey::Terms(cluster(OWN)), RecordKey::Bundle(cluster(OWN))];
    for key in keys.iter().cloned().map(RecordKey::Intention).chain(other_keys) {
        let ids = |replica: &Replica| replica.replaceable(&key).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(ids(replica), ids(&again), "seed {seed}: {key:?}");
    }
    let (made, fresh) = (made?, fresh?);
    assert_eq!(made.members, fresh.members, "seed {seed}");
    assert_eq!(made.held, fresh.held, "seed {seed}");
    assert_eq!(made.own_state, fresh.own_state, "seed {seed}");
    assert_eq!(made.bundles, fresh.bundles, "seed {seed}");
    assert_eq!(made.catalog, fresh.catalog, "seed {seed}");
    assert_eq!(made.authorizer.explain(), fresh.authorizer.explain(), "seed {seed}");
    assert_eq!(made.conflicts(), fresh.conflicts(), "seed {seed}");
    assert_eq!(made.authorizer.len(), made.authorizer.explain().len(), "seed {seed}");
    assert_eq!(made.authorizer.conflict_count(), made.conflicts().len(), "seed {seed}");
    for standing in made.authorizer.explain() {
        assert!(made.authorizer.standings(&standing.key).contains(standing), "seed {seed}: {standing:?}");
    }
    let roll = roll::call(replica.own(), replica.federation(), replica.records());
    let that_count = replica.records().filter(|record| roll.counts(&record.id()));
    let records: Vec<(RecordId, &Record)> = that_count.map(|record| (record.id(), record.value())).collect();
    for _ in 0..6 {
        let (source, service) = (random_source(dice), random_service(dice));
        let slow = evaluator::decide(&records, &made.members, &source, &service);
        let allowed = made.authorizer.allows(&source, &service);
        assert_eq!(allowed, slow.is_ok(), "seed {seed}: {source} -> {service:?}: {slow:?}");
    }
    Some(made)
}

fn states(snapshot: &Snapshot) -> Vec<(ClusterId, MemberState)> {
    snapshot.members.iter().map(|member| (member.id, member.state)).collect()
}

#[test]
fn a_fold_that_goes_on_says_what_one_from_the_start_says() {
    let counts = on_all_cores(4_000, |seed| {
        let mut dice = Dice(seed ^ 0xf01d_0000);
        let (federation, mut waiting, keys) = random_history(&mut dice);
        let mut replica = Replica::new(cluster(OWN), federation);
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut before: Option<Snapshot> = None;
        let mut idle = 0;
        while !waiting.is_empty() && idle < 3 * waiting.len() {
            // Mostly in order, often not.
            let at = if dice.one_in(3) { dice.below(waiting.len()) } else { idle % waiting.len() };
            let record = waiting.get(at).expect("within").clone();
            let (held, removed) = (replica.list().next(), replica.list().removed());
            let peer = record.value().writer;
            if peer == cluster(OWN) && replica.on_local(record.clone()).is_ok() {
                *counts.entry("own").or_default() += 1;
            } else {
                let peer = if record.value().audience == Audience::Member(peer) { cluster(OWN) } else { peer };
                replica.on_records(peer, vec![record], 0);
            }
            *counts.entry("void").or_default() += replica.list().removed() - removed;
            if replica.list().next() == held {
                idle += 1;
                continue;
            }
            idle = 0;
            waiting.remove(at);
            *counts.entry("taken").or_default() += 1;
            if dice.one_in(3) {
                let made = check(&mut replica, &keys, &mut dice, seed);
                if let (Some(before), Some(made)) = (&before, &made) {
                    let what = |differs, what| if differs { Some(what) } else { None };
                    let differs = [
                        what(before.members.len() != made.members.len(), "other members"),
                        what(states(before) != states(made), "other states"),
                        what(before.catalog != made.catalog, "other services"),
                        what(before.bundles != made.bundles, "other bundles"),
                        what(before.authorizer.explain() != made.authorizer.explain(), "other rules"),
                        what(before.conflicts() != made.conflicts(), "other conflicts"),
                    ];
                    differs.into_iter().flatten().for_each(|what| *counts.entry(what).or_default() += 1);
                }
                *counts.entry("compared").or_default() += 1;
                before = made.or(before);
            }
        }
        check(&mut replica, &keys, &mut dice, seed);
        counts
    });
    let seen = [
        "taken",
        "void",
        "compared",
        "other members",
        "other states",
        "other services",
        "other bundles",
        "other rules",
        "other conflicts",
    ];
    for what in seen {
        assert!(counts.get(what).is_some_and(|count| *count >= 1_000), "{what} is too rare: {counts:?}");
    }
}

#[test]
fn a_snapshot_stays_as_it_was_while_the_fold_goes_on() {
    let (mut east, founding) = Writer::found();
    let mut fold = Fold::new(cluster(0), east.federation);
    fold.take(0, &founding);
    let first = fold.snapshot(1).expect("a member");
    let members = first.members.clone();
    let key = crate::testing::key("* -> *", Layer::Rule, &members);
    fold.take(1, &east.rule(&key, ALLOW, &[]));
    fold.take(2, &east.write(Audience::All, crate::testing::export("a.b", 1), &[]));
    let second = fold.snapshot(2).expect("a member");
    assert_eq!((first.authorizer.len(), first.catalog.len()), (0, 0));
    assert_eq!((second.authorizer.len(), second.catalog.len()), (1, 1));
    assert!(Arc::ptr_eq(&first.members, &second.members), "nothing about members was said");
}

#[test]
fn where_members_are_reached_is_no_reason_to_compile_the_law() {
    let (mut east, founding) = Writer::found();
    let mut fold = Fold::new(cluster(0), east.federation);
    fold.take(0, &founding);
    fold.snapshot(1).expect("a member");
    let terms = MemberTerms { endpoints: vec!["a.example:1".parse().expect("endpoint")], ..MemberTerms::default() };
    fold.take(1, &east.law(Body::Terms(terms.clone())));
    fold.refresh();
    assert!(fold.stale.members && !fold.stale.law);
    assert_eq!(
        fold.snapshot(2).expect("a member").members.get(&cluster(0)).map(|own| own.endpoints.clone()),
        Some(terms.endpoints)
    );
    fold.take(2, &east.terms(Accept::Own));
    fold.refresh();
    assert!(fold.stale.law, "what counts is another matter");
}
