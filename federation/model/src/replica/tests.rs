//! The replica alone and in small companies; the simulation in the testbed has the large ones.

use std::collections::BTreeMap;

use super::*;
use crate::{
    Accept, Body, Layer, RuleState,
    testing::{ALLOW, DENY, Writer, authentic, cluster, export, key, members},
};

/// Replicas that hear each other at once, with the records by their bytes.
#[derive(Default)]
struct Company {
    replicas: BTreeMap<ClusterId, Replica>,
    by_bytes: BTreeMap<Vec<u8>, Authentic<Record>>,
    links: BTreeSet<(ClusterId, ClusterId)>,
    alarms: BTreeMap<ClusterId, Vec<Alarm>>,
}

impl Company {
    fn add(&mut self, replica: Replica) {
        self.replicas.insert(replica.own(), replica);
    }

    fn know(&mut self, record: &Authentic<Record>) {
        self.by_bytes.insert(record.raw().to_vec(), record.clone());
    }

    fn replica(&mut self, number: u8) -> &mut Replica {
        self.replicas.get_mut(&cluster(number)).expect("in the company")
    }

    fn connect(&mut self, a: u8, b: u8) {
        let (a, b) = (cluster(a), cluster(b));
        self.links.extend([(a, b), (b, a)]);
        let begun = [(a, b), (b, a)]
            .map(|(one, other)| (one, self.replicas.get_mut(&one).expect("in the company").on_connected(other)));
        begun.into_iter().for_each(|(one, effects)| self.carry(one, effects));
    }

    fn disconnect(&mut self, a: u8, b: u8) {
        let (a, b) = (cluster(a), cluster(b));
        for (one, other) in [(a, b), (b, a)] {
            self.links.remove(&(one, other));
            self.replicas.get_mut(&one).expect("in the company").on_disconnected(other);
        }
    }

    fn local(&mut self, record: &Authentic<Record>) {
        self.know(record);
        let own = record.value().writer;
        let effects =
            self.replicas.get_mut(&own).expect("in the company").on_local(record.clone()).expect("own record");
        self.carry(own, effects);
    }

    /// Carries out effects until nobody has anything left to say.
    fn carry(&mut self, from: ClusterId, effects: Vec<Effect>) {
        let mut queue: Vec<(ClusterId, Effect)> = effects.into_iter().map(|effect| (from, effect)).collect();
        let mut steps = 0;
        while !queue.is_empty() {
            steps += 1;
            assert!(steps < 10_000, "the replicas never fall silent");
            let (from, effect) = queue.remove(0);
            match effect {
                Effect::Send { peer, message } if self.links.contains(&(from, peer)) => {
                    let replica = self.replicas.get_mut(&peer).expect("in the company");
                    let effects = match message {
                        Message::Vector { vector, ask } => replica.on_vector(from, vector, ask),
                        Message::Records(envelopes) => {
                            let mut effects = Vec::new();
                            for envelope in envelopes {
                                let record = self.by_bytes.get(envelope.as_ref()).expect("a known record").clone();
                                effects.extend(replica.on_records(from, vec![record], 0));
                            }
                            effects
                        }
                    };
                    queue.extend(effects.into_iter().map(|effect| (peer, effect)));
                }
                Effect::Alarm(alarm) => self.alarms.entry(from).or_default().push(alarm),
                _ => {}
            }
        }
    }

    fn ids(&self, number: u8) -> BTreeSet<RecordId> {
        self.replicas[&cluster(number)].records().map(Authentic::<Record>::id).collect()
    }
}

/// East with the founding record and both admissions; the two others empty.
fn company() -> (Company, Writer, Vec<Writer>) {
    let (mut east, founding) = Writer::found();
    let mut company = Company::default();
    for number in 0..3 {
        company.add(Replica::new(cluster(number), east.federation));
    }
    company.local(&founding);
    for record in [east.admit(1, false), east.admit(2, false)] {
        company.local(&record);
    }
    let others = (1..3).map(|number| Writer::new(number, east.federation)).collect();
    (company, east, others)
}

fn single() -> (Replica, Writer) {
    let (east, founding) = Writer::found();
    let mut replica = Replica::new(cluster(0), east.federation);
    replica.on_local(founding).expect("founding");
    (replica, east)
}

#[test]
fn a_record_is_made_durable_before_anybody_hears_of_it() {
    let (mut replica, mut east) = single();
    replica.on_connected(cluster(1));
    replica.on_vector(cluster(1), Vector::default(), false);
    let effects = replica.on_local(east.admit(1, false)).expect("own record");
    assert!(matches!(effects.as_slice(), [Effect::Persist(_), Effect::Publish, Effect::Send { .. }]), "{effects:?}");
}

#[test]
fn a_connected_peer_hears_of_a_write_at_once_and_a_neighbour_through_it() {
    let (mut company, mut east, mut others) = company();
    company.connect(0, 1);
    company.connect(1, 2);
    assert_eq!(company.ids(0), company.ids(2), "onprem hears all through west");
    company.local(&east.terms(Accept::Own));
    company.local(&others[1].terms(Accept::Own));
    assert_eq!(company.ids(0), company.ids(1));
    assert_eq!(company.ids(0), company.ids(2));
    assert_eq!(company.ids(0).len(), 5);
}

#[test]
fn what_was_written_apart_meets_when_the_link_is_back() {
    let (mut company, mut east, mut others) = company();
    company.connect(0, 1);
    company.disconnect(0, 1);
    for _ in 0..3 {
        company.local(&east.terms(Accept::Own));
        company.local(&others[0].terms(Accept::Own));
    }
    assert_ne!(company.ids(0), company.ids(1));
    company.connect(0, 1);
    assert_eq!(company.ids(0), company.ids(1));
    assert_eq!(company.replica(0).vector(), company.replica(1).vector());
}

#[test]
fn services_for_one_member_travel_to_it_alone_and_over_no_third() {
    let (mut company, _, mut others) = company();
    company.connect(0, 1);
    company.connect(0, 2);
    company.local(&others[0].write(Audience::Member(cluster(2)), export("shown.x", 1), &[]));
    company.local(&others[0].write(Audience::Member(cluster(1)), export("secret.x", 1), &[]));
    assert_eq!(company.ids(1).len(), 5);
    assert_eq!((company.ids(0).len(), company.ids(2).len()), (3, 3));
    company.connect(1, 2);
    assert_eq!(company.ids(2).len(), 4);
    assert_eq!(company.ids(0).len(), 3);
    company.disconnect(0, 2);
    company.connect(0, 2);
    assert_eq!(company.ids(0).len(), 3, "nor does its reader pass it on");
}

#[test]
fn a_private_record_from_the_wrong_peer_is_refused() {
    let (mut company, _, mut others) = company();
    let shown = others[0].write(Audience::Member(cluster(2)), export("shown.x", 1), &[]);
    let secret = others[0].write(Audience::Member(cluster(1)), export("secret.x", 1), &[]);
    company.replica(0).on_connected(cluster(1));
    for record in [shown, secret] {
        assert!(company.replica(0).on_records(cluster(1), vec![record], 0).is_empty());
    }
    assert_eq!(company.ids(0).len(), 3);
}

#[test]
fn a_gap_is_refused_and_asked_about_once() {
    let (mut company, _, mut others) = company();
    let east = company.replica(0);
    east.on_connected(cluster(1));
    let first = others[0].terms(Accept::Own);
    let second = others[0].terms(Accept::Own);
    let third = others[0].terms(Accept::Own);
    let effects = east.on_records(cluster(1), vec![third.clone()], 0);
    assert!(matches!(effects.as_slice(), [Effect::Send { message: Message::Vector { .. }, .. }]), "{effects:?}");
    assert!(east.on_records(cluster(1), vec![third.clone()], 0).is_empty(), "not again before there is progress");
    east.on_records(cluster(1), vec![first], 0);
    assert_eq!(east.on_records(cluster(1), vec![third.clone()], 0).len(), 1);
    east.on_records(cluster(1), vec![second, third], 0);
    assert_eq!(east.vector().head(cluster(1), Audience::Law, 1).map(|head| head.seq), Some(3));
}

#[test]
fn unknown_writers_are_asked_about_too() {
    let (mut company, ..) = company();
    let east = company.replica(0);
    east.on_connected(cluster(1));
    assert_eq!(east.on_records(cluster(1), Vec::new(), 2).len(), 1);
    let stranger = Writer::new(4, east.federation()).terms(Accept::Own);
    assert!(east.on_records(cluster(1), vec![stranger], 0).is_empty());
    assert_eq!(east.len(), 3);
}

#[test]
fn a_record_of_another_federation_is_refused() {
    let (mut company, ..) = company();
    let other = Writer::new(1, FederationId::from_digest(Digest([9; 32]))).terms(Accept::Own);
    company.replica(0).on_records(cluster(1), vec![other.clone()], 0);
    assert_eq!(company.ids(0).len(), 3);
    assert_eq!(company.replica(0).load([other.clone()]), vec![ReplicaError::OtherFederation { id: other.id() }]);
    let (_, founding) = Writer::found();
    let mut elsewhere = Replica::new(cluster(0), FederationId::from_digest(Digest([9; 32])));
    assert!(elsewhere.on_local(founding).is_err());
}

#[test]
fn places_past_the_bounds_are_refused() {
    let (mut company, _, others) = company();
    for (epoch, seq) in [(0, 1), (257, 1), (1, 0), (1, EPOCH_RECORDS_MAX + 1), (u64::MAX, u64::MAX)] {
        let mut record = others[0].clone().terms(Accept::Own).value().clone();
        (record.epoch, record.seq) = (epoch, seq);
        let errors = company.replica(0).load([authentic(record)]);
        assert!(matches!(errors.as_slice(), [ReplicaError::Bound { .. }]), "{epoch}.{seq}: {errors:?}");
    }
}

#[test]
fn a_predecessor_that_is_not_the_one_held_is_a_gap() {
    let (mut company, _, mut others) = company();
    let first = others[0].terms(Accept::Own);
    let mut second = others[0].terms(Accept::Own).value().clone();
    second.previous = Digest([7; 32]);
    let errors = company.replica(0).load([first, authentic(second)]);
    assert!(matches!(errors.as_slice(), [ReplicaError::Gap { .. }]), "{errors:?}");
}

#[test]
fn own_writes_go_to_the_next_position_only() {
    let (mut replica, mut east) = single();
    let next = replica.next_position(Audience::Law);
    assert_eq!((next.epoch, next.seq), (1, 2));
    let first = east.terms(Accept::Own);
    let second = east.terms(Accept::Own);
    assert!(matches!(replica.on_local(second.clone()), Err(ReplicaError::Gap { .. })));
    replica.on_local(first.clone()).expect("next");
    assert!(matches!(replica.on_local(first), Err(ReplicaError::Gap { .. })), "twice");
    let foreign = Writer::new(1, east.federation).terms(Accept::Own);
    assert!(matches!(replica.on_local(foreign), Err(ReplicaError::NotOwn { .. })));
    replica.on_local(second).expect("next");
    assert_eq!(replica.next_position(Audience::All), Position { epoch: 1, seq: 1, previous: Digest::ZERO });
}

#[test]
fn what_was_stored_is_loaded_in_any_order() {
    let (mut company, mut east, mut others) = company();
    company.connect(0, 1);
    company.connect(0, 2);
    for _ in 0..3 {
        company.local(&others[1].terms(Accept::Own));
        company.local(&east.terms(Accept::Own));
    }
    company.local(&others[0].admit(3, false));
    let held: Vec<_> = company.replica(1).records().cloned().collect();
    for rotation in 0..held.len() {
        let mut shuffled = held.clone();
        shuffled.rotate_left(rotation);
        shuffled.reverse();
        let mut loaded = Replica::new(cluster(1), east.federation);
        assert_eq!(loaded.load(shuffled), vec![]);
        assert_eq!(loaded.vector(), company.replica(1).vector());
        assert_eq!(loaded.next_position(Audience::Law), company.replica(1).next_position(Audience::Law));
    }
}

#[test]
fn a_row_lost_from_the_own_log_opens_a_new_epoch() {
    let (mut company, mut east, _) = company();
    for _ in 0..3 {
        company.local(&east.terms(Accept::Own));
    }
    let mut held: Vec<_> = company.replica(0).records().cloned().collect();
    held.remove(3);
    let mut loaded = Replica::new(cluster(0), east.federation);
    assert_eq!(loaded.load(held).len(), 2);
    let next = loaded.next_position(Audience::Law);
    assert_eq!((next.epoch, next.seq, next.previous), (2, 1, Digest::ZERO));
}

#[test]
fn what_lies_behind_a_lost_row_counts_again_once_a_peer_brings_it() {
    let (mut company, mut east, mut others) = company();
    company.connect(0, 1);
    company.local(&others[0].terms(Accept::Own));
    company.disconnect(0, 1);
    let private = east.write(Audience::Member(cluster(0)), export("kept.x", 1), &[]);
    company.local(&private);
    let admission = company.replica(0).records().nth(1).expect("the admission of west").clone();
    for lost in [admission.id(), company.ids(1).into_iter().nth(3).expect("west's terms")] {
        let newest = company.ids(0);
        let held: Vec<_> = company.replica(0).records().filter(|record| record.id() != lost).cloned().collect();
        let mut loaded = Replica::new(cluster(0), east.federation);
        loaded.load(held);
        company.add(loaded);
        company.connect(0, 1);
        assert_eq!(company.ids(0), newest);
        company.disconnect(0, 1);
    }
}

#[test]
fn what_only_this_store_has_behind_a_lost_row_is_not_lost_with_it() {
    let (mut company, mut east, _) = company();
    company.connect(0, 1);
    company.local(&east.terms(Accept::Own));
    company.disconnect(0, 1);
    let alone = east.terms(Accept::Federation);
    company.local(&alone);
    let mut held: Vec<_> = company.replica(0).records().cloned().collect();
    held.remove(3);
    let mut loaded = Replica::new(cluster(0), east.federation);
    loaded.load(held);
    assert!(loaded.records().all(|record| record.id() != alone.id()), "nobody knows yet what is before it");
    company.add(loaded);
    company.connect(0, 1);
    assert!(company.ids(0).contains(&alone.id()));
    assert!(company.ids(1).contains(&alone.id()), "and others hear of it");
    assert_eq!(company.replica(0).next_position(Audience::Law).epoch, 2);
}

#[test]
fn a_place_that_an_uncertain_write_took_is_never_taken_again() {
    let (mut replica, mut east) = single();
    let durable: Vec<_> = replica.records().cloned().collect();
    replica.on_local(east.terms(Accept::Own)).expect("next");
    replica.reload(durable.clone(), true);
    assert_eq!(replica.next_position(Audience::Law).epoch, 2);
    east.next_epoch(Audience::Law);
    replica.on_local(east.terms(Accept::Own)).expect("next");
    replica.reload(durable.clone(), true);
    assert_eq!(replica.next_position(Audience::Law).epoch, 3, "the second may be on the disk, too");
    replica.reload(durable, false);
    assert_eq!(replica.next_position(Audience::Law).epoch, 3, "nor does a later failure make it forget");
}

#[test]
fn what_a_peer_claimed_of_the_own_log_counts_though_it_went_meanwhile() {
    let (mut replica, mut east) = single();
    replica.on_local(east.admit(1, false)).expect("next");
    replica.on_connected(cluster(1));
    replica.on_disconnected(cluster(1));
    let mut vector = Vector::default();
    vector.set(cluster(0), Audience::Law, 1, Head { seq: 9, digest: Digest([7; 32]) });
    assert!(replica.on_vector(cluster(1), vector, false).is_empty());
    assert_eq!(replica.next_position(Audience::Law).epoch, 2);
}

#[test]
fn what_a_peer_claimed_of_the_own_log_outlives_a_failed_write() {
    let (mut replica, mut east) = single();
    replica.on_local(east.admit(1, false)).expect("next");
    let durable: Vec<_> = replica.records().cloned().collect();
    replica.on_connected(cluster(1));
    let mut vector = Vector::default();
    vector.set(cluster(0), Audience::Law, 1, Head { seq: 9, digest: Digest([7; 32]) });
    replica.on_vector(cluster(1), vector, false);
    assert_eq!(replica.next_position(Audience::Law).epoch, 2);
    replica.reload(durable, false);
    assert_eq!(replica.next_position(Audience::Law).epoch, 2);
}

#[test]
fn broken_continuity_opens_a_new_epoch_everywhere() {
    let (mut replica, mut east) = single();
    assert_eq!(replica.break_continuity(), 2);
    assert_eq!(replica.next_position(Audience::Law).epoch, 2);
    assert_eq!(replica.next_position(Audience::All).epoch, 2);
    east.next_epoch(Audience::Law);
    replica.on_local(east.terms(Accept::Own)).expect("next");
    let next = replica.next_position(Audience::Law);
    assert_eq!((next.epoch, next.seq), (2, 2));
    replica.set_floor(1);
    assert_eq!(replica.next_position(Audience::All).epoch, 2, "a floor is never lowered");
    replica.set_floor(5);
    assert_eq!(replica.next_position(Audience::Law).epoch, 5);
}

#[test]
fn a_restored_store_gets_its_records_back_and_goes_on_in_a_new_epoch() {
    let (mut company, mut east, _) = company();
    company.connect(0, 1);
    let backup: Vec<_> = company.replica(0).records().cloned().collect();
    company.local(&east.terms(Accept::Own));
    let newest = company.ids(0);
    company.disconnect(0, 1);
    let mut restored = Replica::new(cluster(0), east.federation);
    restored.load(backup);
    company.add(restored);
    company.connect(0, 1);
    assert_eq!(company.ids(0), newest);
    assert_eq!(company.replica(0).next_position(Audience::Law).epoch, 2);
}

#[test]
fn a_peer_that_only_claims_a_higher_head_of_ours_is_believed_once() {
    let (mut replica, mut east) = single();
    replica.on_local(east.admit(1, false)).expect("next");
    let mut vector = Vector::default();
    for (epoch, expected) in [(1, 2), (200, 2), (u64::MAX, 2)] {
        replica.on_connected(cluster(1));
        vector.set(cluster(0), Audience::Law, epoch, Head { seq: 99, digest: Digest([9; 32]) });
        replica.on_vector(cluster(1), vector.clone(), false);
        assert_eq!(replica.next_position(Audience::Law).epoch, expected, "claim of epoch {epoch}");
    }
}

#[test]
fn a_claim_past_the_bound_moves_nothing() {
    let (mut replica, _) = single();
    replica.on_connected(cluster(1));
    let mut vector = Vector::default();
    vector.set(cluster(0), Audience::Law, u64::MAX, Head { seq: 1, digest: Digest([9; 32]) });
    replica.on_vector(cluster(1), vector, false);
    assert_eq!(replica.next_position(Audience::Law).epoch, 1);
}

/// West signs two records at place `at` of its log and goes on behind the first.
fn forked(writer: &mut Writer, before: usize, behind: usize) -> (Vec<Authentic<Record>>, Vec<Authentic<Record>>) {
    let common: Vec<_> = (0..before).map(|_| writer.terms(Accept::Own)).collect();
    let mut second = writer.clone();
    let chain = |writer: &mut Writer, accept| (0..=behind).map(|_| writer.terms(accept)).collect::<Vec<_>>();
    let (one, two) = (chain(writer, Accept::Own), chain(&mut second, Accept::Federation));
    ([common.clone(), one].concat(), [common, two].concat())
}

#[test]
fn equivocation_freezes_the_epoch_and_both_replicas_agree() {
    for behind in 0..3 {
        let (mut company, _, mut others) = company();
        let (one, two) = forked(&mut others[0], 2, behind);
        one.iter().chain(&two).for_each(|record| company.know(record));
        company.replica(0).load(one.clone());
        company.connect(0, 2);
        company.disconnect(0, 2);
        let mut onprem = Replica::new(cluster(2), company.replica(0).federation());
        onprem.load(company.replica(0).records().take(3).cloned().collect::<Vec<_>>());
        onprem.load(two.clone());
        company.add(onprem);
        company.connect(0, 2);
        assert_eq!(company.replica(0).vector(), company.replica(2).vector(), "{behind} behind");
        assert_eq!(company.ids(0), company.ids(2));
        let ids = company.ids(0);
        assert!(ids.contains(&one[2].id()) && ids.contains(&two[2].id()), "both stay");
        assert!(one.iter().chain(&two).skip(3).all(|record| record.value().seq <= 3 || !ids.contains(&record.id())));
        for number in [0, 2] {
            let alarms = company.alarms.get(&cluster(number)).cloned().unwrap_or_default();
            let expected = Alarm::Equivocation { writer: cluster(1), audience: Audience::Law, epoch: 1, seq: 3 };
            assert!(alarms.contains(&expected), "{number}: {alarms:?}");
            assert_eq!(company.replica(number).forks().collect::<Vec<_>>(), vec![expected]);
        }
    }
}

#[test]
fn what_follows_a_fork_is_void_and_the_next_epoch_counts() {
    let (mut company, _, mut others) = company();
    let (one, two) = forked(&mut others[0], 0, 1);
    let east = company.replica(0);
    assert_eq!(east.load([one[0].clone(), two[0].clone()]), vec![]);
    assert!(matches!(east.load([one[1].clone()]).as_slice(), [ReplicaError::Void { .. }]));
    others[0].next_epoch(Audience::Law);
    let next = others[0].terms(Accept::Own);
    assert_eq!(east.load([next.clone()]), vec![]);
    assert!(east.records().any(|record| record.id() == next.id()));
}

#[test]
fn an_equivocator_that_learns_of_it_goes_on_in_the_next_epoch() {
    let (mut company, _, mut others) = company();
    let (one, two) = forked(&mut others[0], 0, 0);
    one.iter().chain(&two).for_each(|record| company.know(record));
    company.replica(0).load(two);
    company.connect(0, 1);
    let west = company.replica(1);
    west.load(one);
    company.disconnect(0, 1);
    company.connect(0, 1);
    assert_eq!(company.replica(1).next_position(Audience::Law).epoch, 2);
    assert_eq!(company.replica(0).vector(), company.replica(1).vector());
}

#[test]
fn of_many_records_at_one_place_all_replicas_keep_the_same_two() {
    let (mut company, _, others) = company();
    let rivals: Vec<_> = (0..6_u64)
        .map(|number| {
            let mut record = others[0].clone().terms(Accept::Own).value().clone();
            record.author = format!("rival {number}");
            authentic(record)
        })
        .collect();
    let mut lowest: Vec<Digest> = rivals.iter().map(Authentic::digest).collect();
    lowest.sort();
    for rotation in 0..6 {
        let mut order = rivals.clone();
        order.rotate_left(rotation);
        let mut replica = company.replica(0).clone();
        replica.load(order);
        let mut kept: Vec<Digest> =
            replica.records().filter(|record| record.value().writer == cluster(1)).map(Authentic::digest).collect();
        kept.sort();
        assert_eq!(kept, lowest[..2]);
    }
}

#[test]
fn a_lower_fork_takes_the_place_of_a_higher() {
    let (mut company, _, mut others) = company();
    let mut low = others[0].clone();
    let first = others[0].terms(Accept::Own);
    let (one, two) = forked(&mut others[0], 1, 1);
    let rival = low.terms(Accept::Federation);
    let all = [vec![first.clone()], one, two, vec![rival.clone()]].concat();
    let base = company.replica(0).clone();
    let mut vectors = Vec::new();
    for rotation in 0..all.len() {
        let mut order = all.clone();
        order.rotate_left(rotation);
        let mut replica = base.clone();
        replica.load(order);
        vectors.push(replica.vector());
        assert_eq!(replica.len(), 5, "founding, two admissions and the two at the lowest fork");
    }
    assert!(vectors.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn forks_at_one_place_behind_chains_that_parted_earlier_are_told_apart() {
    let (mut company, _, mut others) = company();
    let (one, two) = forked(&mut others[0], 0, 1);
    one.iter().chain(&two).for_each(|record| company.know(record));
    let law: Vec<_> = company.replica(0).records().take(3).cloned().collect();
    let mut onprem = Replica::new(cluster(2), company.replica(0).federation());
    onprem.load(law);
    // Each has its own first record, and both second ones.
    onprem.load(two.iter().chain(&one[1..]).cloned().collect::<Vec<_>>());
    company.replica(0).load(one.iter().chain(&two[1..]).cloned().collect::<Vec<_>>());
    company.add(onprem);
    assert_ne!(company.replica(0).vector(), company.replica(2).vector());
    company.connect(0, 2);
    assert_eq!(company.replica(0).vector(), company.replica(2).vector());
    assert!(company.ids(0).contains(&one[0].id()) && company.ids(2).contains(&one[0].id()));
}

#[test]
fn whom_a_void_admission_admitted_is_a_member_no_more() {
    let (mut company, _, mut others) = company();
    let mut second = others[0].clone();
    let one = others[0].terms(Accept::Own);
    let admission = others[0].admit(3, false);
    let east = company.replica(0);
    assert_eq!(east.load([one, admission]), vec![]);
    let mut north = Writer::new(3, others[0].federation);
    assert_eq!(east.load([north.terms(Accept::Own)]), vec![]);
    assert_eq!(east.len(), 6);
    east.load([second.terms(Accept::Federation)]);
    assert_eq!(east.replication_key(&cluster(3)), None);
    assert_eq!(east.len(), 5, "its records went with it");
    assert!(east.vector().0.keys().all(|(writer, _)| *writer != cluster(3)));
}

#[test]
fn long_logs_travel_in_messages_within_the_bounds() {
    let (mut replica, mut east) = single();
    for _ in 0..1_200 {
        replica.on_local(east.terms(Accept::Own)).expect("next");
    }
    replica.on_connected(cluster(1));
    let sizes: Vec<usize> = replica
        .on_vector(cluster(1), Vector::default(), false)
        .into_iter()
        .map(|effect| match effect {
            Effect::Send { message: Message::Records(records), .. } => records.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 1_201);
    assert!(sizes.iter().all(|size| *size <= MESSAGE_RECORDS_MAX), "{sizes:?}");
}

#[test]
fn a_message_holds_no_more_bytes_than_allowed() {
    let mut effects = Vec::new();
    let envelope: Arc<[u8]> = vec![0; 200 * 1024].into();
    send(cluster(1), std::iter::repeat_n(envelope, 5), &mut effects);
    assert_eq!(effects.len(), 3);
}

#[test]
fn nobody_is_told_before_it_said_how_far_it_is() {
    let (mut replica, mut east) = single();
    replica.on_connected(cluster(1));
    let effects = replica.on_local(east.terms(Accept::Own)).expect("next");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send { .. })));
    assert!(replica.on_vector(cluster(2), Vector::default(), false).is_empty(), "and nobody who is not connected");
    assert_eq!(replica.on_vector(cluster(1), Vector::default(), false).len(), 1);
    assert_eq!(replica.anti_entropy().len(), 1);
}

#[test]
fn a_write_may_replace_what_its_writer_has_a_say_over() {
    let (mut company, mut east, mut others) = company();
    company.connect(0, 1);
    company.connect(0, 2);
    let members = members();
    let rule = key("web.shop.onprem -> payments.billing.west", Layer::Rule, &members);
    let lawmaker = east.rule(&rule, DENY, &[]);
    let source = others[1].rule(&rule, DENY, &[]);
    let owner = others[0].rule(&rule, ALLOW, &[]);
    for record in [&lawmaker, &source, &owner] {
        company.local(record);
    }
    let key = owner.key();
    let may = |company: &mut Company, number| company.replica(number).replaceable(&key);
    assert_eq!(may(&mut company, 1), vec![lawmaker.id(), owner.id()], "not the source's deny");
    assert_eq!(may(&mut company, 0), vec![lawmaker.id()]);
    assert_eq!(may(&mut company, 2), vec![source.id()]);
    let replacement = others[0].rule(&rule, RuleState::Deleted, &[lawmaker.id(), owner.id()]);
    company.local(&replacement);
    assert_eq!(may(&mut company, 1), vec![replacement.id()]);
    assert_eq!(may(&mut company, 0), vec![], "nothing of its own is left");
}

#[test]
fn a_writer_replaces_its_newest_word_on_its_own_matters() {
    let (mut replica, mut east) = single();
    let first = east.terms(Accept::Own);
    replica.on_local(first.clone()).expect("next");
    assert_eq!(replica.replaceable(&first.key()), vec![first.id()]);
    let terms = Body::Terms(crate::MemberTerms::default());
    let second = east.write(Audience::Law, terms, &[first.id()]);
    replica.on_local(second.clone()).expect("next");
    assert_eq!(replica.replaceable(&first.key()), vec![second.id()]);
    assert_eq!(replica.replaceable(&RecordKey::Terms(cluster(1))), vec![]);
}

#[test]
fn a_writer_goes_on_in_a_new_epoch_when_one_is_full() {
    let head = |seq| Head { seq, digest: Digest([9; 32]) };
    let place = |epoch, seq, previous| Position { epoch, seq, previous };
    let table = [
        (None, 0, 1, place(1, 1, Digest::ZERO)),
        (Some((1, head(7))), 1, 1, place(1, 8, Digest([9; 32]))),
        (Some((1, head(7))), 1, 3, place(3, 1, Digest::ZERO)),
        (Some((4, head(EPOCH_RECORDS_MAX - 1))), 4, 1, place(4, EPOCH_RECORDS_MAX, Digest([9; 32]))),
        (Some((4, head(EPOCH_RECORDS_MAX))), 4, 1, place(5, 1, Digest::ZERO)),
        (None, 4, 2, place(5, 1, Digest::ZERO)),
    ];
    for (open, highest, floor, wanted) in table {
        assert_eq!(following(open, highest, floor), wanted, "{open:?} {highest} {floor}");
    }
}

#[test]
fn what_a_write_replaces_is_bounded() {
    let (mut replica, mut east) = single();
    let key = key("* -> *", Layer::Rule, &members());
    let ids: Vec<RecordId> = (0..REPLACES_MAX + 10)
        .map(|_| {
            let record = east.rule(&key, DENY, &[]);
            replica.on_local(record.clone()).expect("next");
            record.id()
        })
        .collect();
    assert_eq!(replica.replaceable(&RecordKey::Intention(key)), ids[10..]);
}

#[test]
fn reasons_are_distinct_words() {
    let id = Writer::found().1.id();
    let errors = [
        ReplicaError::OtherFederation { id },
        ReplicaError::UnknownWriter { id },
        ReplicaError::Audience { id },
        ReplicaError::Bound { id },
        ReplicaError::Gap { id },
        ReplicaError::Void { id },
        ReplicaError::NotOwn { id },
    ];
    let words: BTreeSet<&str> = errors.iter().map(ReplicaError::reason).collect();
    assert_eq!(words.len(), errors.len());
}
