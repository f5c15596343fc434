//! The roll and the office under test: evictions, approval, leaving, and what each makes count.

use super::*;
use crate::{
    Digest, Head,
    testing::{Writer, candidate, cluster, digest, export, name},
};

/// A federation whose records are kept in the order in which they were written.
struct World {
    federation: FederationId,
    writers: Vec<Writer>,
    records: Vec<Authentic<Record>>,
}

impl World {
    /// East founds; it admits west, onprem and north, of which those named make law too.
    fn new(lawmakers: &[u8]) -> Self {
        let (mut east, founding) = Writer::found();
        let mut records = vec![founding];
        records.extend((1..4).map(|number| east.admit(number, lawmakers.contains(&number))));
        let federation = east.federation;
        let others = (1..6).map(|number| Writer::new(number, federation));
        Self { federation, writers: std::iter::once(east).chain(others).collect(), records }
    }

    fn law(&mut self, writer: u8, body: Body) -> RecordId {
        self.write(writer, Audience::Law, body, &[])
    }

    fn write(&mut self, writer: u8, audience: Audience, body: Body, replaces: &[RecordId]) -> RecordId {
        let record = self.writers[writer as usize].write(audience, body, replaces);
        self.records.push(record);
        self.records.last().expect("just written").id()
    }

    /// The eviction of a cluster by one that has all of its log.
    fn evict(&mut self, writer: u8, target: u8) -> RecordId {
        let heads = self.heads(target);
        self.law(writer, Body::Eviction(Eviction { cluster: cluster(target), heads }))
    }

    fn heads(&self, target: u8) -> Heads {
        let of_target = self.records.iter().filter(|record| record.value().writer == cluster(target));
        let law = of_target.filter(|record| record.value().audience == Audience::Law);
        law.map(|record| (record.value().epoch, Head { seq: record.value().seq, digest: record.digest() })).collect()
    }

    fn leave(&mut self, writer: u8) -> RecordId {
        self.law(writer, Body::Eviction(Eviction { cluster: cluster(writer), heads: Heads::new() }))
    }

    fn switch(&mut self, writer: u8, target: u8, on: bool) -> RecordId {
        self.law(writer, Body::Lawmaker { cluster: cluster(target), on })
    }

    fn stance(&mut self, writer: u8, target: u8, stance: Stance) -> RecordId {
        let body = Body::Stance { cluster: cluster(target), stance };
        self.write(writer, Audience::Member(cluster(writer)), body, &[])
    }

    fn roll(&self, own: u8) -> Roll {
        let roll = call(cluster(own), self.federation, self.records.iter());
        // What the federation says must not depend on the order of arrival, where no names collide.
        let backwards = call(cluster(own), self.federation, self.records.iter().rev());
        assert_eq!(roll.members, backwards.members);
        roll
    }

    #[track_caller]
    fn check(&self, own: u8, expected: [MemberState; 4]) {
        let roll = self.roll(own);
        let states = [0, 1, 2, 3].map(|number| match number == own {
            true => roll.own_state,
            false => roll.members.get(&cluster(number)).expect("a member").state,
        });
        assert_eq!(states, expected, "as {} sees it", name(own));
    }
}

use MemberState::{Active, Blocked, Evicted, Held, Left, Suspended};

#[test]
fn one_lawmaker_of_several_suspends_everywhere_at_once() {
    let mut world = World::new(&[1]);
    world.evict(0, 2);
    for own in 0..4 {
        world.check(own, [Active, Active, Suspended, Active]);
    }
    assert_eq!(world.roll(1).members.get(&cluster(2)).expect("member").evicted_by, [cluster(0)]);
}

#[test]
fn two_lawmakers_evict_for_good_and_the_name_is_free() {
    let mut world = World::new(&[1]);
    world.evict(0, 2);
    world.evict(1, 2);
    world.check(3, [Active, Active, Evicted, Active]);
    let roll = world.roll(3);
    assert!(roll.members.by_name(&candidate(2).name).is_none());
    let mut again = candidate(4);
    (again.name, again.trust_domain) = (candidate(2).name, candidate(2).trust_domain);
    world.law(1, Body::Admission(Admission { candidate: again, lawmaker: false }));
    let roll = world.roll(3);
    assert_eq!(roll.members.by_name(&candidate(2).name).expect("named again").id, cluster(4));
    assert_eq!(roll.members.get(&cluster(2)).expect("known").state, Evicted);
}

#[test]
fn the_only_other_lawmaker_evicts_alone_and_a_second_made_later_does_not_undo_it() {
    let mut world = World::new(&[]);
    world.evict(0, 2);
    world.check(1, [Active, Active, Evicted, Active]);
    world.switch(0, 1, true);
    world.check(1, [Active, Active, Evicted, Active]);
}

#[test]
fn an_eviction_by_one_that_makes_no_law_counts_for_nothing() {
    let mut world = World::new(&[1]);
    world.evict(2, 3);
    world.evict(2, 0);
    world.check(1, [Active, Active, Active, Active]);
}

#[test]
fn mutual_evictions_suspend_both_until_a_third_signs_one() {
    let mut world = World::new(&[1, 2]);
    world.evict(0, 1);
    world.evict(1, 0);
    world.check(2, [Suspended, Suspended, Active, Active]);
    world.evict(2, 1);
    // With west out for good, what it said of east suspends nobody.
    world.check(2, [Active, Evicted, Active, Active]);
}

#[test]
fn of_two_lawmakers_that_evict_each_other_neither_is_out_for_good() {
    let mut world = World::new(&[1]);
    world.evict(0, 1);
    world.check(2, [Active, Evicted, Active, Active]);
    world.evict(1, 0);
    world.check(2, [Suspended, Suspended, Active, Active]);
}

#[test]
fn what_an_evicted_lawmaker_signs_afterwards_suspends_nobody() {
    let mut world = World::new(&[1, 2]);
    world.evict(0, 1);
    world.evict(2, 1);
    world.evict(1, 0);
    world.evict(1, 2);
    world.evict(1, 3);
    world.check(3, [Active, Evicted, Active, Active]);
}

#[test]
fn of_an_evicted_cluster_only_what_its_evictors_name_counts() {
    let mut world = World::new(&[1]);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let rule = |number: u16| export("a.b", number);
    before.push(world.law(2, Body::Terms(MemberTerms::default())));
    let hidden = world.write(2, Audience::All, rule(1), &[]);
    world.evict(0, 2);
    after.push(world.law(2, Body::Terms(MemberTerms::default())));
    after.push(world.law(2, Body::Admission(Admission { candidate: candidate(4), lawmaker: true })));
    let roll = world.roll(3);
    let counts = |id: &RecordId| {
        let record = world.records.iter().find(|record| record.id() == *id).expect("written");
        roll.counts(&record.id())
    };
    assert!(before.iter().all(counts) && !after.iter().any(counts));
    assert!(!counts(&hidden), "its services are void whole");
    assert!(roll.members.get(&cluster(4)).is_none(), "an admission by one that is out admits nobody");
}

#[test]
fn the_narrowest_head_that_was_named_counts() {
    let mut world = World::new(&[1]);
    let first = world.law(2, Body::Terms(MemberTerms::default()));
    world.evict(0, 2);
    let second = world.law(2, Body::Terms(MemberTerms::default()));
    world.evict(1, 2);
    let roll = world.roll(3);
    assert!(roll.counts(&first) && !roll.counts(&second));
}

#[test]
fn a_record_at_the_named_place_with_other_content_does_not_count() {
    let id = |digest| RecordId { writer: cluster(0), audience: Audience::Law, epoch: 1, seq: 3, digest };
    let heads = Heads::from([(1, Head { seq: 3, digest: digest("named") })]);
    assert!(within(&heads, &id(digest("named"))));
    assert!(!within(&heads, &id(digest("another"))));
    assert!(within(&heads, &RecordId { seq: 2, ..id(Digest::ZERO) }));
    assert!(!within(&heads, &RecordId { epoch: 2, seq: 1, ..id(Digest::ZERO) }), "an epoch that nobody named");
}

#[test]
fn members_that_an_evicted_one_sponsored_before_stay() {
    let mut world = World::new(&[1]);
    world.law(2, Body::Admission(Admission { candidate: candidate(4), lawmaker: false }));
    world.evict(0, 2);
    world.evict(1, 2);
    assert_eq!(world.roll(1).members.get(&cluster(4)).expect("stays").state, Active);
}

#[test]
fn an_operator_lets_a_suspended_member_in_again_for_its_own_cluster() {
    let mut world = World::new(&[1, 3]);
    world.evict(0, 2);
    world.stance(1, 2, Stance::Approved { despite: [cluster(0)].into() });
    world.check(1, [Active, Active, Active, Active]);
    world.check(3, [Active, Active, Suspended, Active]);
}

#[test]
fn an_approval_before_an_eviction_does_not_outlast_it() {
    let mut world = World::new(&[1]);
    world.stance(1, 2, Stance::Approved { despite: BTreeSet::new() });
    world.evict(0, 2);
    world.check(1, [Active, Active, Suspended, Active]);
}

#[test]
fn nobody_approves_against_a_final_eviction() {
    let mut world = World::new(&[1]);
    world.evict(0, 2);
    world.evict(1, 2);
    world.stance(3, 2, Stance::Approved { despite: [cluster(0), cluster(1)].into() });
    world.check(3, [Active, Active, Evicted, Active]);
}

#[test]
fn a_block_is_this_clusters_own_and_the_last_word_counts() {
    let mut world = World::new(&[1]);
    let blocked = world.stance(1, 2, Stance::Blocked);
    world.check(1, [Active, Active, Blocked, Active]);
    world.check(3, [Active, Active, Active, Active]);
    let body = Body::Stance { cluster: cluster(2), stance: Stance::Approved { despite: BTreeSet::new() } };
    world.write(1, Audience::Member(cluster(1)), body, &[blocked]);
    world.check(1, [Active, Active, Active, Active]);
}

#[test]
fn a_stance_in_any_other_log_or_by_another_says_nothing() {
    let mut world = World::new(&[1]);
    let body = Body::Stance { cluster: cluster(2), stance: Stance::Blocked };
    world.law(1, body.clone());
    world.write(1, Audience::All, body.clone(), &[]);
    world.write(3, Audience::Member(cluster(1)), body.clone(), &[]);
    world.write(3, Audience::Member(cluster(3)), body, &[]);
    world.check(1, [Active, Active, Active, Active]);
}

#[test]
fn who_approves_by_hand_holds_whom_others_admit() {
    let mut world = World::new(&[]);
    world.law(1, Body::Admission(Admission { candidate: candidate(4), lawmaker: false }));
    world.law(1, Body::Terms(MemberTerms { approval: Approval::Manual, ..MemberTerms::default() }));
    // East admitted west, and west admitted cluster 4: these two are known to it.
    world.check(1, [Active, Active, Held, Held]);
    assert_eq!(world.roll(1).members.get(&cluster(4)).expect("admitted").state, Active);
    world.stance(1, 2, Stance::Approved { despite: BTreeSet::new() });
    world.check(1, [Active, Active, Active, Held]);
    world.check(0, [Active, Active, Active, Active]);
}

#[test]
fn one_that_left_is_gone_until_somebody_admits_it_over_that() {
    let mut world = World::new(&[]);
    let left = world.leave(2);
    world.check(0, [Active, Active, Left, Active]);
    world.law(1, Body::Admission(Admission { candidate: candidate(2), lawmaker: false }));
    world.check(0, [Active, Active, Left, Active]);
    let again = Body::Admission(Admission { candidate: candidate(2), lawmaker: false });
    world.write(1, Audience::Law, again, &[left]);
    world.check(0, [Active, Active, Active, Active]);
}

#[test]
fn two_other_lawmakers_depose_one_and_one_does_not() {
    let mut world = World::new(&[1, 2]);
    let makes_law = |world: &World, number| world.roll(3).members.get(&cluster(number)).expect("member").lawmaker;
    world.switch(0, 1, false);
    assert!(makes_law(&world, 1));
    world.switch(2, 1, false);
    assert!(!makes_law(&world, 1));
    // What it signs of others is void too.
    world.evict(1, 3);
    world.check(2, [Active, Active, Active, Active]);
}

#[test]
fn the_only_other_lawmaker_deposes_alone_unless_both_depose_each_other() {
    let mut world = World::new(&[1]);
    let makes_law = |world: &World, number| world.roll(3).members.get(&cluster(number)).expect("member").lawmaker;
    world.switch(0, 1, false);
    assert!(!makes_law(&world, 1) && makes_law(&world, 0));
    world.switch(1, 0, false);
    assert!(makes_law(&world, 1) && makes_law(&world, 0));
}

#[test]
fn who_laid_the_office_down_signs_nothing_after() {
    let mut world = World::new(&[1]);
    world.evict(1, 3);
    world.switch(1, 1, false);
    world.check(0, [Active, Active, Active, Suspended]);
    world.evict(1, 2);
    world.check(0, [Active, Active, Active, Suspended]);
}

#[test]
fn a_grant_by_one_that_is_out_makes_nobody_a_lawmaker() {
    let mut world = World::new(&[1]);
    world.evict(0, 1);
    world.switch(1, 2, true);
    world.evict(2, 0);
    assert!(!world.roll(3).members.get(&cluster(2)).expect("member").lawmaker);
    world.check(3, [Active, Evicted, Active, Active]);
}
