//! What a snapshot makes of records.

use std::time::Duration;

use super::*;
use crate::{
    Accept, AccountRef, Admission, DenialReason, Export, Layer, MemberTerms, Revocation, RuleState, Service, Staleness,
    Timestamp, TrustBundle, WhenStale,
    testing::{ALLOW, DENY, Writer, authentic, candidate, cluster, domain, export, key, service, workload},
};

/// East founds; west and onprem are admitted by it.
struct World {
    federation: FederationId,
    east: Writer,
    west: Writer,
    onprem: Writer,
    records: Vec<Authentic<Record>>,
}

fn world() -> World {
    let (mut east, founding) = Writer::found();
    let federation = east.federation;
    let records = vec![founding, east.admit(1, false), east.admit(2, false)];
    World { federation, east, west: Writer::new(1, federation), onprem: Writer::new(2, federation), records }
}

impl World {
    fn add(&mut self, record: Authentic<Record>) -> RecordId {
        let id = record.id();
        self.records.push(record);
        id
    }

    fn fold(&self, own: u8) -> Option<Snapshot> {
        fold(cluster(own), self.federation, 1, self.records.iter())
    }

    fn snapshot(&self) -> Snapshot {
        self.fold(1).expect("west is admitted")
    }

    fn lawmakers(&self) -> Vec<String> {
        let snapshot = self.snapshot();
        let makes = snapshot.members.iter().filter(|member| member.lawmaker);
        makes.map(|member| member.name.to_string()).collect()
    }
}

fn bundle(number: u8, sequence: u64, roots: &[u8]) -> Body {
    let roots = roots.iter().map(|root| vec![*root]).collect();
    Body::Bundle(TrustBundle { trust_domain: domain(number), sequence, roots })
}

#[test]
fn there_is_no_snapshot_without_ones_own_admission() {
    let world = world();
    assert!(world.fold(3).is_none());
    assert!(fold(cluster(0), world.federation, 1, std::iter::empty()).is_none());
    let other = FederationId::from_digest(Digest([9; 32]));
    assert!(fold(cluster(0), other, 1, world.records.iter()).is_none(), "the founding record is another federation's");
}

#[test]
fn names_itself() {
    let snapshot = world().snapshot();
    assert_eq!(snapshot.own_name.as_str(), "west");
    assert_eq!(snapshot.own_trust_domain, domain(1));
    assert_eq!(snapshot.members.len(), 3);
    assert_eq!(snapshot.members.get(&cluster(2)).map(|member| member.sponsor), Some(cluster(0)));
}

#[test]
fn members_admit_members_and_strangers_nobody() {
    let mut world = world();
    world.add(world.west.clone().admit(3, false));
    world.add(Writer::new(5, world.federation).admit(4, false));
    let members = world.snapshot().members;
    assert!(members.get(&cluster(3)).is_some());
    assert!(members.get(&cluster(4)).is_none());
}

#[test]
fn an_admission_may_arrive_before_its_sponsors() {
    let mut world = world();
    let late = world.west.admit(3, false);
    world.records.insert(0, late);
    assert!(world.snapshot().members.get(&cluster(3)).is_some());
}

#[test]
fn the_first_admission_of_a_name_stays_and_the_other_is_held() {
    for by_domain in [false, true] {
        let mut world = world();
        let mut thief = candidate(4);
        if by_domain {
            thief.trust_domain = domain(2);
        } else {
            thief.name = candidate(2).name;
        }
        let admission = world.west.law(Body::Admission(Admission { candidate: thief, lawmaker: false }));
        let id = world.add(admission);
        let snapshot = world.snapshot();
        assert_eq!(snapshot.held, vec![id]);
        assert!(snapshot.members.get(&cluster(4)).is_none());
    }
}

#[test]
fn a_second_admission_cannot_rename() {
    let mut world = world();
    let mut renamed = candidate(2);
    renamed.name = "other".parse().expect("name");
    let admission = world.west.law(Body::Admission(Admission { candidate: renamed, lawmaker: false }));
    let id = world.add(admission);
    assert_eq!(world.snapshot().held, vec![id]);
    assert_eq!(world.snapshot().members.get(&cluster(2)).map(|member| member.name.to_string()), Some("onprem".into()));
}

#[test]
fn only_lawmakers_make_lawmakers() {
    let mut world = world();
    assert_eq!(world.lawmakers(), ["east"]);
    let by_plain = world.west.law(Body::Lawmaker { cluster: cluster(2), on: true });
    world.add(by_plain);
    let admitted = world.west.admit(3, true);
    world.add(admitted);
    let itself = world.onprem.law(Body::Lawmaker { cluster: cluster(2), on: true });
    world.add(itself);
    assert_eq!(world.lawmakers(), ["east"]);
    let by_founder = world.east.law(Body::Lawmaker { cluster: cluster(1), on: true });
    world.add(by_founder);
    assert_eq!(world.lawmakers(), ["east", "west", "onprem", "north"], "west's grants count now, and so on");
}

#[test]
fn nobody_but_itself_takes_a_lawmakers_say_away() {
    let mut world = world();
    let on = world.east.law(Body::Lawmaker { cluster: cluster(1), on: true });
    let on = world.add(on);
    let off = world.east.write(Audience::Law, Body::Lawmaker { cluster: cluster(1), on: false }, &[on]);
    world.add(off);
    let west_on_east = world.west.law(Body::Lawmaker { cluster: cluster(0), on: false });
    world.add(west_on_east);
    assert_eq!(world.lawmakers(), ["east", "west"]);
    let own = world.west.law(Body::Lawmaker { cluster: cluster(1), on: false });
    let own = world.add(own);
    assert_eq!(world.lawmakers(), ["east"]);
    let again = world.west.write(Audience::Law, Body::Lawmaker { cluster: cluster(1), on: true }, &[own]);
    world.add(again);
    assert_eq!(world.lawmakers(), ["east", "west"]);
}

#[test]
fn terms_are_the_members_own_and_the_narrower_of_siblings() {
    let mut world = world();
    let accept = |world: &World| world.snapshot().members.get(&cluster(1)).map(|member| member.accept);
    assert_eq!(accept(&world), Some(Accept::Federation));
    let own = world.west.terms(Accept::Own);
    let own = world.add(own);
    assert_eq!(accept(&world), Some(Accept::Own));
    let beside = world.west.terms(Accept::Federation);
    world.add(beside);
    assert_eq!(accept(&world), Some(Accept::Own), "it replaced nothing");
    let terms =
        MemberTerms { endpoints: vec!["west.example:7000".parse().expect("endpoint")], ..MemberTerms::default() };
    let over = world.west.write(Audience::Law, Body::Terms(terms.clone()), &[own]);
    world.add(over);
    assert_eq!(accept(&world), Some(Accept::Federation));
    assert_eq!(world.snapshot().members.get(&cluster(1)).map(|member| member.endpoints.clone()), Some(terms.endpoints));
}

#[test]
fn a_bundle_is_taken_from_its_owner_alone_and_never_rolls_back() {
    let mut world = world();
    let first = world.west.law(bundle(1, 7, &[1, 2]));
    let first = world.add(first);
    let foreign = world.onprem.law(bundle(1, 9, &[66]));
    world.add(foreign);
    let older = world.west.write(Audience::Law, bundle(1, 3, &[3]), &[first]);
    world.add(older);
    let snapshot = world.snapshot();
    let held = snapshot.bundles.get(&domain(1)).expect("west's bundle");
    assert_eq!((held.sequence, held.roots.clone()), (7, vec![vec![1], vec![2]]));
}

#[test]
fn until_its_own_bundle_comes_a_member_is_known_by_the_root_of_its_admission() {
    let mut world = world();
    let held = |world: &World| {
        let bundle = world.snapshot().bundles.get(&domain(2)).cloned().expect("onprem's bundle");
        (bundle.sequence, bundle.roots)
    };
    assert_eq!(held(&world), (0, vec![vec![2]]));
    assert!(world.snapshot().bundles.get(&domain(0)).is_some(), "and so is the founder");
    let revoked = world.onprem.law(bundle(2, 1, &[]));
    world.add(revoked);
    assert_eq!(held(&world), (1, vec![]), "an empty bundle revokes that root too");
    let again = world.west.admit(2, false);
    world.add(again);
    assert_eq!(held(&world), (1, vec![]), "and no second admission brings it back");
}

#[test]
fn of_two_bundles_with_one_sequence_only_common_roots_count() {
    let mut world = world();
    for roots in [&[1, 2][..], &[2, 3]] {
        let record = world.west.law(bundle(1, 7, roots));
        world.add(record);
    }
    assert_eq!(world.snapshot().bundles.get(&domain(1)).map(|bundle| bundle.roots.clone()), Some(vec![vec![2]]));
}

fn revocation(key: u8, until: u64) -> Body {
    let not_after = Timestamp::from_secs(until);
    Body::Revocation(Revocation { key: Digest([key; 32]), serial: vec![key], not_after })
}

#[test]
fn a_key_is_revoked_by_the_cluster_of_its_own_trust_domain_alone() {
    let mut world = world();
    let said = world.west.law(revocation(7, 10));
    world.add(said);
    let said = world.onprem.write(Audience::All, revocation(8, 10), &[]);
    world.add(said);
    let bundles = world.snapshot().bundles;
    assert!(bundles.is_revoked(&domain(1), &Digest([7; 32])));
    assert!(!bundles.is_revoked(&domain(0), &Digest([7; 32])), "it says nothing of another's keys");
    assert!(!bundles.is_revoked(&domain(2), &Digest([8; 32])), "only the law tells of it");
}

#[test]
fn nobody_takes_a_revocation_back() {
    let mut world = world();
    let said = world.west.law(revocation(7, 20));
    let id = world.add(said);
    let shorter = world.west.write(Audience::Law, revocation(7, 10), &[id]);
    world.add(shorter);
    let lawmaker = world.east.write(Audience::Law, revocation(9, 10), &[id]);
    world.add(lawmaker);
    let bundles = world.snapshot().bundles;
    let ends: Vec<Timestamp> = bundles.revocations()[&domain(1)].values().map(|held| held.not_after).collect();
    assert_eq!(ends, [Timestamp::from_secs(20)]);
}

#[test]
fn an_oversized_bundle_leaves_the_domain_without_one() {
    let mut world = world();
    let record = world.west.law(bundle(1, 7, &[0; 65]));
    world.add(record);
    assert!(world.snapshot().bundles.get(&domain(1)).is_none());
}

#[test]
fn a_service_is_seen_by_its_audience() {
    let mut world = world();
    let private = Audience::Member(cluster(2));
    for (audience, name) in [
        (private, "secret.x"),
        (Audience::Member(cluster(1)), "shown.x"),
        (Audience::All, "open.x"),
        (Audience::Law, "law.x"),
    ] {
        let record = world.onprem.write(audience, export(name, 80), &[]);
        world.add(record);
    }
    let names = |own| -> Vec<String> {
        world.fold(own).expect("member").catalog.iter().map(|service| service.name.service.as_str().into()).collect()
    };
    assert_eq!(names(0), ["open"]);
    assert_eq!(names(1), ["open", "shown"]);
    assert_eq!(names(2), ["open", "secret", "shown"]);
    let own = world.fold(2).expect("member").catalog;
    let exported = |name| own.get(&service(name, 2)).expect("own service").exported;
    assert!(!exported("secret.x") && exported("shown.x") && exported("open.x"));
}

#[test]
fn a_service_is_named_after_its_owner_and_served_by_the_account_of_its_name() {
    let mut world = world();
    let record = world.onprem.write(Audience::All, export("payments.billing", 8080), &[]);
    world.add(record);
    let snapshot = world.snapshot();
    let found = snapshot.catalog.by_name(&"payments.billing.onprem".parse().expect("name")).expect("visible");
    assert_eq!(found.port, 8080);
    assert_eq!(found.server_ids(), vec![workload("payments.billing", 2)]);
}

#[test]
fn the_owners_own_word_stands_before_what_it_told_others() {
    let mut world = world();
    for (audience, port) in [(Audience::All, 1), (Audience::Member(cluster(2)), 2), (Audience::Member(cluster(5)), 3)] {
        let record = world.onprem.write(audience, export("payments.billing", port), &[]);
        world.add(record);
    }
    let snapshot = world.fold(2).expect("member");
    let own = snapshot.catalog.get(&service("payments.billing", 2)).expect("own");
    assert_eq!((own.port, own.exported), (2, true));
}

#[test]
fn a_service_that_is_gone_is_gone() {
    let mut world = world();
    let shown = world.onprem.write(Audience::All, export("payments.billing", 1), &[]);
    let shown = world.add(shown);
    let gone =
        Body::ServiceGone { service: "payments".parse().expect("name"), namespace: "billing".parse().expect("name") };
    let record = world.onprem.write(Audience::All, gone, &[shown]);
    let record = world.add(record);
    assert!(world.snapshot().catalog.is_empty());
    let again = world.onprem.write(Audience::All, export("payments.billing", 2), &[record]);
    world.add(again);
    assert_eq!(world.snapshot().catalog.len(), 1);
    let beside = world.onprem.write(
        Audience::All,
        Body::ServiceGone { service: "payments".parse().expect("name"), namespace: "billing".parse().expect("name") },
        &[],
    );
    world.add(beside);
    assert!(world.snapshot().catalog.is_empty(), "gone beside shown is gone");
}

#[test]
fn rules_count_once_folded_and_conflicts_show() {
    let mut world = world();
    let members = world.snapshot().members;
    let key = key("web.shop.onprem -> payments.billing.west", Layer::Rule, &members);
    let allow = world.west.rule(&key, ALLOW, &[]);
    world.add(allow);
    let check = |world: &World| {
        let snapshot = world.snapshot();
        (
            snapshot.authorizer.allows(&workload("web.shop", 2), &service("payments.billing", 1)),
            snapshot.conflicts().len(),
        )
    };
    assert_eq!(check(&world), (true, 0));
    let deny = world.east.rule(&key, DENY, &[]);
    world.add(deny);
    assert_eq!(check(&world), (false, 1));
    let ids: Vec<RecordId> = world.records.iter().rev().take(2).map(Authentic::<Record>::id).collect();
    let resolved = world.west.rule(&key, RuleState::Is(crate::Action::Allow), &ids);
    world.add(resolved);
    assert_eq!(check(&world), (true, 0));
}

#[test]
fn records_of_strangers_and_of_other_federations_say_nothing() {
    let mut world = world();
    let members = world.snapshot().members;
    let key = key("* -> *", Layer::Rule, &members);
    let stranger = Writer::new(5, world.federation).rule(&key, ALLOW, &[]);
    world.add(stranger);
    let elsewhere = Writer::new(1, FederationId::from_digest(Digest([9; 32]))).rule(&key, ALLOW, &[]);
    world.add(elsewhere);
    let shown = Writer::new(5, world.federation).write(Audience::All, export("a.b", 1), &[]);
    world.add(shown);
    let snapshot = world.snapshot();
    assert!(!snapshot.authorizer.allows(&workload("web.shop", 2), &service("payments.billing", 1)));
    assert!(snapshot.catalog.is_empty());
}

#[test]
fn a_fork_voids_what_follows_and_keeps_both_at_its_place() {
    let mut world = world();
    let members = world.snapshot().members;
    let rule = key("* -> *", Layer::Rule, &members);
    let other = key("*.shop -> *", Layer::Rule, &members);
    let mut second = world.west.clone();
    let one = world.west.rule(&rule, ALLOW, &[]);
    world.add(one);
    let check =
        |world: &World| world.snapshot().authorizer.allows(&workload("web.shop", 2), &service("payments.billing", 1));
    let void = world.west.rule(&other, DENY, &[]);
    world.add(void);
    assert!(!check(&world));
    let two = second.rule(&key("*.other -> *", Layer::Rule, &members), DENY, &[]);
    world.add(two);
    assert!(check(&world), "the deny behind the fork is void");
}

#[test]
fn a_denial_reason_is_told_for_a_member_without_rules() {
    let snapshot = world().snapshot();
    let service = Service {
        id: service("payments.billing", 1),
        name: "payments.billing.west".parse().expect("name"),
        trust_domain: domain(1),
        port: 1,
        accounts: Vec::new(),
        exported: false,
        staleness: Staleness::default(),
    };
    let decision = snapshot.authorizer.decide(&workload("web.shop", 2), &service);
    assert_eq!(decision.reason, Some(DenialReason::DefaultDeny));
}

#[test]
fn accounts_are_those_that_all_versions_name() {
    let mut world = world();
    let account =
        |name: &str| AccountRef { account: name.parse().expect("name"), namespace: "x".parse().expect("name") };
    let body = |accounts: Vec<AccountRef>| {
        Body::Service(Export {
            service: "s".parse().expect("name"),
            namespace: "x".parse().expect("name"),
            port: 1,
            accounts,
            staleness: Staleness::default(),
        })
    };
    let one = world.onprem.write(Audience::All, body(vec![account("a"), account("b")]), &[]);
    world.add(one);
    let two = world.onprem.write(Audience::All, body(vec![account("b"), account("c")]), &[]);
    world.add(two);
    let accounts = world.snapshot().catalog.get(&service("s.x", 2)).map(|service| service.accounts.clone());
    assert_eq!(accounts, Some(vec![account("b")]));
    let three = world.onprem.write(Audience::All, body(vec![account("d")]), &[]);
    world.add(three);
    assert!(world.snapshot().catalog.is_empty(), "nobody is named by all");
}

#[test]
fn a_founding_record_of_another_digest_founds_nothing() {
    let world = world();
    let mut forged = world.records[0].value().clone();
    forged.author = "somebody else".to_owned();
    let forged = authentic(forged);
    let records: Vec<_> = std::iter::once(forged).chain(world.records.iter().skip(1).cloned()).collect();
    assert!(fold(cluster(1), world.federation, 1, records.iter()).is_none());
}

#[test]
fn of_two_versions_the_stricter_word_on_stale_data_counts() {
    let mut world = world();
    let body = |when, secs| {
        let Body::Service(export) = export("s.x", 1) else { unreachable!("an export") };
        Body::Service(Export { staleness: Staleness { when, lease: Duration::from_secs(secs) }, ..export })
    };
    for (when, secs) in [(WhenStale::Deny, 600), (WhenStale::Keep, 60)] {
        let record = world.onprem.write(Audience::All, body(when, secs), &[]);
        world.add(record);
    }
    let found = world.snapshot().catalog.get(&service("s.x", 2)).map(|service| service.staleness);
    assert_eq!(found, Some(Staleness { when: WhenStale::Deny, lease: Duration::from_secs(60) }));
}
