//! The compiled law beside its specification: tables of single rules here, random worlds in `random`.

mod random;

use super::*;
use crate::{
    Accept, Audience, Body, Digest, Label, Layer, MemberState, SourcePattern, Staleness, WhenStale,
    testing::{ALLOW, DENY, Writer, cluster, domain, key, member, members, service, workload},
};
use crate::{Authentic, FederationId};

/// A world of rules in which each line is `writer: source -> destination` by writer number.
struct World {
    members: Members,
    writers: Vec<Writer>,
    records: Vec<Authentic<Record>>,
}

impl World {
    fn new(members: Members) -> Self {
        let federation = FederationId::from_digest(Digest::ZERO);
        Self { members, writers: (0..6).map(|number| Writer::new(number, federation)).collect(), records: Vec::new() }
    }

    fn write(&mut self, writer: u8, text: &str, layer: Layer, state: RuleState, replaces: &[RecordId]) -> RecordId {
        let key = key(text, layer, &self.members);
        let record = self.writers[writer as usize].rule(&key, state, replaces);
        self.records.push(record);
        self.records.last().expect("just pushed").id()
    }

    fn rule(&mut self, writer: u8, text: &str, state: RuleState) -> RecordId {
        self.write(writer, text, Layer::Rule, state, &[])
    }

    fn compile(&self) -> Authorizer {
        Authorizer::compile(self.records.iter().map(|record| (record.id(), record.value())), &self.members)
    }

    /// Whether `web.shop` of cluster `from` may call `payments.billing` of cluster `to`.
    fn allows(&self, from: u8, to: u8) -> bool {
        self.compile().allows(&workload("web.shop", from), &service("payments.billing", to))
    }

    fn reason(&self, from: u8, to: u8) -> Option<DenialReason> {
        match self.compile().law.judge(&workload("web.shop", from), &service("payments.billing", to)) {
            Verdict::Allow(_) => None,
            Verdict::Deny(reason, _) => Some(reason),
        }
    }

    fn standing(&self, id: RecordId) -> Option<Standing> {
        self.compile().explain().iter().find(|standing| standing.id == id).cloned()
    }
}

/// East (0) makes law; west (1) owns the destination; onprem (2) is a plain member.
fn world() -> World {
    World::new(members())
}

fn own_law_in_west() -> World {
    let mut members = members();
    members.insert(member(1, false, Accept::Own));
    World::new(members)
}

const PAIR: &str = "web.shop.onprem -> payments.billing.west";

/// Consul's nine rows, highest first, for web.shop -> payments.billing.
const ROWS: [(u8, &str); 9] = [
    (9, "web.shop -> payments.billing"),
    (8, "*.shop -> payments.billing"),
    (7, "*.* -> payments.billing"),
    (6, "web.shop -> *.billing"),
    (5, "*.shop -> *.billing"),
    (4, "*.* -> *.billing"),
    (3, "web.shop -> *.*"),
    (2, "*.shop -> *.*"),
    (1, "*.* -> *.*"),
];

#[test]
fn empty_law_denies() {
    assert_eq!(world().reason(2, 1), Some(DenialReason::DefaultDeny));
    let nobody = Authorizer::default();
    assert!(!nobody.allows(&workload("web.shop", 0), &service("payments.billing", 1)));
}

#[test]
fn rows_have_the_precedence_of_consul() {
    for (row, text) in ROWS {
        assert_eq!(compile::precedence(&key(text, Layer::Rule, &members())), row, "{text}");
    }
}

#[test]
fn a_whole_spiffe_id_counts_as_exact() {
    let text = format!("{} -> payments.billing", workload("web.shop", 2));
    assert_eq!(compile::precedence(&key(&text, Layer::Rule, &members())), 9);
}

#[test]
fn the_higher_row_decides_whatever_the_lower_says() {
    for (high, high_text) in ROWS {
        for (low, low_text) in ROWS.into_iter().filter(|(low, _)| *low < high) {
            for (above, below) in [(ALLOW, DENY), (DENY, ALLOW)] {
                let mut world = world();
                world.rule(1, low_text, below);
                world.rule(1, high_text, above);
                assert_eq!(world.allows(2, 1), above == ALLOW, "{high} over {low}");
            }
        }
    }
}

#[test]
fn at_one_row_the_rule_naming_the_cluster_decides_then_deny() {
    for (_, text) in ROWS {
        let named = format!("{}.west", text);
        for (with_name, without) in [(ALLOW, DENY), (DENY, ALLOW)] {
            let mut world = world();
            world.rule(1, text, without);
            world.rule(1, &named, with_name);
            assert_eq!(world.allows(2, 1), with_name == ALLOW, "{named}");
        }
        let mut world = world();
        world.rule(1, text, ALLOW);
        world.rule(0, &text.replace(" ->", ".onprem ->"), DENY);
        assert!(!world.allows(2, 1), "{text}: the source's cluster breaks no tie, deny does");
    }
}

#[test]
fn owner_allows_and_denies() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    assert!(world.allows(2, 1));
    assert!(!world.allows(0, 1), "another cluster's account of that name is not meant");
    world.rule(1, "web.shop.onprem -> payments.billing", DENY);
    assert!(world.allows(2, 1), "the one that names the cluster stands");
}

#[test]
fn a_third_cluster_has_no_say() {
    let mut members = members();
    members.insert(member(3, false, Accept::Federation));
    let mut world = World::new(members);
    let allow = world.rule(3, PAIR, ALLOW);
    assert_eq!(world.reason(2, 1), Some(DenialReason::DefaultDeny));
    assert!(!world.standing(allow).expect("shown").counts);
    world.rule(1, PAIR, ALLOW);
    world.rule(3, PAIR, DENY);
    world.write(3, PAIR, Layer::Guardrail, DENY, &[]);
    assert!(world.allows(2, 1));
}

#[test]
fn a_writer_that_is_no_member_has_no_say() {
    let mut world = world();
    let id = world.rule(5, "* -> *", ALLOW);
    assert!(!world.allows(2, 1));
    assert_eq!(world.standing(id), None);
}

#[test]
fn source_denies_for_its_own_and_only_its_own_allow_lifts_that() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    world.rule(2, "*.shop.onprem -> payments.billing.west", DENY);
    assert!(!world.allows(2, 1), "the owner's more exact allow does not outrank it");
    world.rule(0, PAIR, ALLOW);
    assert!(!world.allows(2, 1), "nor does a lawmaker's");
    world.rule(2, PAIR, ALLOW);
    assert!(world.allows(2, 1), "its own does");
}

#[test]
fn source_cannot_allow_for_others() {
    let mut world = world();
    let id = world.rule(2, PAIR, ALLOW);
    assert_eq!(world.reason(2, 1), Some(DenialReason::DefaultDeny));
    assert_eq!(world.standing(id).expect("shown").note, "lifts only its writer's own denies");
}

#[test]
fn lawmaker_allows_where_the_owner_accepts_the_federation() {
    let mut open = world();
    open.rule(0, PAIR, ALLOW);
    assert!(open.allows(2, 1));
    let mut closed = own_law_in_west();
    let id = closed.rule(0, PAIR, ALLOW);
    assert_eq!(closed.reason(2, 1), Some(DenialReason::DefaultDeny));
    let standing = closed.standing(id).expect("shown");
    assert!(!standing.counts);
    assert_eq!(standing.note, "west accepts only its own allows");
}

#[test]
fn lawmaker_denies_under_either_accept() {
    for mut world in [world(), own_law_in_west()] {
        world.rule(1, "*.shop -> payments.billing.west", ALLOW);
        world.rule(0, PAIR, DENY);
        assert_eq!(world.reason(2, 1), Some(DenialReason::Rule));
        world.rule(1, "web.shop.onprem -> payments.billing.west", ALLOW);
        assert!(!world.allows(2, 1), "deny wins the tie");
    }
}

#[test]
fn owner_outranks_a_broad_deny_of_a_lawmaker() {
    let mut world = world();
    world.rule(0, "* -> *", DENY);
    world.rule(1, PAIR, ALLOW);
    assert!(world.allows(2, 1));
}

#[test]
fn lawmaker_does_not_outrank_a_deny_of_the_owner() {
    let mut world = world();
    world.rule(1, "* -> *", DENY);
    world.rule(0, PAIR, ALLOW);
    assert!(!world.allows(2, 1));
}

#[test]
fn nothing_outranks_a_guardrail() {
    for writer in [0, 1, 2] {
        let mut world = world();
        for allower in [0, 1, 2] {
            world.rule(allower, PAIR, ALLOW);
        }
        assert!(world.allows(2, 1));
        world.write(writer, "* -> *", Layer::Guardrail, DENY, &[]);
        assert_eq!(world.reason(2, 1), Some(DenialReason::Guardrail), "by {writer}");
    }
}

#[test]
fn a_guardrail_or_timed_allow_counts_for_nothing() {
    let mut world = world();
    let guardrail = world.write(1, PAIR, Layer::Guardrail, ALLOW, &[]);
    let timed = world.write(1, PAIR, Layer::Timed, ALLOW, &[]);
    assert_eq!(world.reason(2, 1), Some(DenialReason::DefaultDeny));
    assert!(!world.standing(guardrail).expect("shown").counts);
    assert!(!world.standing(timed).expect("shown").counts);
}

#[test]
fn timed_denies_count_and_shadows_do_not() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    world.write(1, PAIR, Layer::Shadow, DENY, &[]);
    assert!(world.allows(2, 1));
    world.write(1, "* -> *", Layer::Timed, DENY, &[]);
    assert_eq!(world.reason(2, 1), Some(DenialReason::Rule));
}

#[test]
fn what_is_not_understood_denies_what_its_writer_may_deny() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    world.rule(2, "web.shop.onprem -> payments.billing", RuleState::NotUnderstood);
    assert_eq!(world.reason(2, 1), Some(DenialReason::Rule));
}

#[test]
fn an_unknown_critical_record_denies_its_writers_services_and_accounts() {
    let mut world = world();
    world.rule(1, "*.*.* -> payments.billing.west", ALLOW);
    world.rule(0, "*.*.* -> payments.billing.*", ALLOW);
    assert!(world.allows(2, 1) && world.allows(2, 0) && world.allows(0, 1));
    let unknown = world.writers[2].law(Body::Unknown { kind: 99, critical: true });
    world.records.push(unknown.clone());
    assert_eq!(world.reason(2, 1), Some(DenialReason::Rule));
    assert_eq!(world.reason(0, 2), Some(DenialReason::Rule));
    assert!(world.allows(0, 1), "of others it says nothing");
    let later = world.writers[2].write(Audience::Law, Body::Unknown { kind: 99, critical: false }, &[unknown.id()]);
    world.records.push(later);
    assert!(world.allows(2, 1), "its writer replaced it");
}

#[test]
fn unknown_parties_are_named_as_such() {
    let mut world = world();
    world.rule(1, "* -> *", ALLOW);
    assert_eq!(world.reason(5, 1), Some(DenialReason::UnknownSource));
    assert_eq!(world.reason(2, 5), Some(DenialReason::UnknownService));
}

#[test]
fn wildcards_reach_workloads_only() {
    let mut world = world();
    world.rule(1, "* -> payments.billing.west", ALLOW);
    let edge = domain(2).edge(&"onprem".parse().expect("name"));
    let payments = service("payments.billing", 1);
    assert!(!world.compile().allows(&edge, &payments));
    assert!(!world.compile().allows(&domain(2).id(), &payments));
    world.rule(1, &format!("{edge} -> payments.billing.west"), ALLOW);
    assert!(world.compile().allows(&edge, &payments), "named whole it is meant");
}

#[test]
fn the_trust_domain_is_part_of_every_match() {
    let mut world = world();
    world.rule(1, &format!("{} -> payments.billing.west", workload("web.shop", 2)), ALLOW);
    assert!(world.allows(2, 1));
    assert!(!world.allows(0, 1));
}

// Replacement and siblings.

#[test]
fn a_writer_replaces_its_own_rule() {
    let mut world = world();
    let deny = world.rule(1, PAIR, DENY);
    world.write(1, PAIR, Layer::Rule, ALLOW, &[deny]);
    assert!(world.allows(2, 1));
    assert_eq!(world.compile().explain().len(), 1);
}

#[test]
fn a_second_rule_that_replaces_nothing_stays_beside_the_first() {
    let mut world = world();
    world.rule(1, PAIR, DENY);
    world.rule(1, PAIR, ALLOW);
    assert!(!world.allows(2, 1));
    let conflicts = world.compile().conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].siblings.len(), 2);
}

#[test]
fn destinations_cluster_replaces_a_lawmakers_rule_that_names_it() {
    let mut world = world();
    let deny = world.rule(0, PAIR, DENY);
    world.write(1, PAIR, Layer::Rule, ALLOW, &[deny]);
    assert!(world.allows(2, 1));
    assert!(world.compile().conflicts().is_empty());
}

#[test]
fn destinations_cluster_does_not_replace_a_rule_that_names_no_cluster() {
    let mut world = world();
    let text = "web.shop.onprem -> payments.billing";
    let deny = world.rule(0, text, DENY);
    world.write(1, text, Layer::Rule, ALLOW, &[deny]);
    assert!(!world.allows(2, 1), "both stay");
}

#[test]
fn destinations_cluster_replaces_neither_guardrail_nor_the_sources_deny() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let guardrail = world.write(0, PAIR, Layer::Guardrail, DENY, &[]);
    world.write(1, PAIR, Layer::Guardrail, RuleState::Deleted, &[guardrail]);
    assert_eq!(world.reason(2, 1), Some(DenialReason::Guardrail));

    let mut world = self::world();
    let deny = world.rule(2, PAIR, DENY);
    world.write(1, PAIR, Layer::Rule, ALLOW, &[deny]);
    assert_eq!(world.reason(2, 1), Some(DenialReason::Rule));
}

#[test]
fn destinations_cluster_clears_away_a_deny_of_the_source_only_for_others() {
    // The source is any cluster: onprem's deny is its own for its accounts, and nobody's for those of others.
    let mut world = world();
    let text = "web.shop.* -> payments.billing.west";
    let deny = world.rule(2, text, DENY);
    world.write(1, text, Layer::Rule, ALLOW, &[deny]);
    assert!(!world.allows(2, 1));
    assert!(world.allows(0, 1));
}

#[test]
fn nobody_else_replaces() {
    let mut world = world();
    let deny = world.rule(1, PAIR, DENY);
    world.write(2, PAIR, Layer::Rule, ALLOW, &[deny]);
    world.write(0, PAIR, Layer::Rule, ALLOW, &[deny]);
    assert!(!world.allows(2, 1), "neither the source nor a lawmaker lifts the owner's deny");
}

#[test]
fn a_replacement_under_another_key_does_not_count() {
    let mut world = world();
    let deny = world.rule(1, PAIR, DENY);
    world.write(1, "web.shop -> payments.billing", Layer::Rule, ALLOW, &[deny]);
    world.write(1, PAIR, Layer::Shadow, ALLOW, &[deny]);
    assert!(!world.allows(2, 1));
}

/// East and north make law, west owns the destination.
fn two_lawmakers() -> World {
    let mut members = members();
    members.insert(member(3, true, Accept::Federation));
    World::new(members)
}

#[test]
fn lawmakers_replace_each_others_rules_about_others() {
    let mut world = two_lawmakers();
    let deny = world.rule(0, PAIR, DENY);
    world.write(3, PAIR, Layer::Rule, ALLOW, &[deny]);
    assert!(world.allows(2, 1));
    assert!(world.compile().conflicts().is_empty());
    let guardrail = world.write(0, PAIR, Layer::Guardrail, DENY, &[]);
    assert!(!world.allows(2, 1));
    world.write(3, PAIR, Layer::Guardrail, RuleState::Deleted, &[guardrail]);
    assert!(world.allows(2, 1));
}

#[test]
fn no_lawmaker_lifts_what_another_denies_for_its_own() {
    let mut world = two_lawmakers();
    let deny = world.rule(0, "* -> *", DENY);
    world.write(3, "* -> *", Layer::Rule, ALLOW, &[deny]);
    assert!(world.allows(2, 1), "between others it is lifted");
    assert!(!world.allows(2, 0), "east's services stay closed");
    assert!(!world.allows(0, 1), "and so do calls of its accounts");
    let note = world.standing(deny).expect("shown").note;
    assert!(note.starts_with("replaced by another writer, except"), "{note}");
    world.write(0, "* -> *", Layer::Rule, ALLOW, &[deny]);
    assert!(world.allows(2, 0), "until east does");
}

#[test]
fn a_tombstone_voids_a_concurrent_allow_that_it_could_have_replaced() {
    for (tombstone, allow, voided) in [(1, 1, true), (1, 0, true), (3, 0, true), (0, 1, false), (2, 1, false)] {
        let mut world = two_lawmakers();
        let id = world.rule(allow, PAIR, ALLOW);
        world.rule(tombstone, PAIR, RuleState::Deleted);
        assert_eq!(world.allows(2, 1), !voided, "{tombstone} over {allow}");
        let standing = world.standing(id).expect("shown");
        assert_eq!(standing.counts, !voided, "{tombstone} over {allow}: {}", standing.note);
    }
}

#[test]
fn a_voided_allow_leaves_what_holds_without_it() {
    let mut world = world();
    world.rule(1, "*.shop.onprem -> payments.billing.west", ALLOW);
    world.rule(1, PAIR, ALLOW);
    world.rule(1, PAIR, RuleState::Deleted);
    assert!(world.allows(2, 1));
}

#[test]
fn a_tombstone_beside_a_deny_changes_nothing() {
    let mut world = world();
    world.rule(1, PAIR, DENY);
    world.rule(1, PAIR, RuleState::Deleted);
    assert!(!world.allows(2, 1));
}

#[test]
fn a_lone_tombstone_is_not_shown() {
    let mut world = world();
    let allow = world.rule(1, PAIR, ALLOW);
    world.write(1, PAIR, Layer::Rule, RuleState::Deleted, &[allow]);
    assert!(!world.allows(2, 1));
    assert!(world.compile().explain().is_empty());
}

#[test]
fn names_under_any_namespace_are_judged_though_nobody_can_write_them_here() {
    let mut world = world();
    let mut key = key("*.* -> *.*.west", Layer::Rule, &world.members);
    key.destination.service = Label::Is("payments".parse().expect("name"));
    let record = world.writers[1].rule(&key, ALLOW, &[]);
    world.records.push(record);
    assert!(world.allows(2, 1));
    assert!(!world.compile().allows(&workload("web.shop", 2), &service("orders.billing", 1)));
}

#[test]
fn a_rule_about_a_cluster_that_is_gone_matches_nobody() {
    let mut world = world();
    let mut key = key("*.* -> *.*.west", Layer::Rule, &world.members);
    key.source = SourcePattern::Account { account: Label::Any, namespace: Label::Any, cluster: Label::Is(cluster(5)) };
    let record = world.writers[1].rule(&key, ALLOW, &[]);
    world.records.push(record);
    assert!(!world.allows(2, 1));
    assert!(world.compile().explain()[0].text.contains('@'));
}

// Proofs.

fn peer(proof: Proof, id: SpiffeId, not_after: u64) -> VerifiedPeer {
    VerifiedPeer::assertion(id, proof, Digest::ZERO, Digest::ZERO, Digest::ZERO, Timestamp::from_secs(not_after))
}

fn payments() -> Service {
    Service {
        id: service("payments.billing", 1),
        name: "payments.billing.west".parse().expect("name"),
        trust_domain: domain(1),
        port: 8080,
        accounts: Vec::new(),
        exported: true,
        staleness: Staleness::default(),
    }
}

const NOW: Timestamp = Timestamp::from_secs(100);
const FRESH: Option<Duration> = Some(Duration::ZERO);

#[test]
fn only_tls_and_own_yield_a_permit() {
    let mut world = world();
    let id = world.rule(1, PAIR, ALLOW);
    let authorizer = world.compile().at(cluster(1), 7);
    for proof in [Proof::Tls, Proof::Own] {
        let permit =
            authorizer.authorize(&peer(proof, workload("web.shop", 2), 200), &payments(), NOW, FRESH).expect("allowed");
        assert_eq!((*permit.rule(), permit.policy(), permit.deadline()), (id, 7, Timestamp::from_secs(200)));
        assert_eq!((permit.source(), permit.service()), (&workload("web.shop", 2), &payments().id));
    }
    for proof in [Proof::Session, Proof::Signed] {
        let denial = authorizer.authorize(&peer(proof, workload("web.shop", 2), 200), &payments(), NOW, FRESH);
        assert_eq!(denial.expect_err("refused").reason, DenialReason::WrongProof);
    }
}

#[test]
fn an_ended_credential_yields_nothing() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let authorizer = world.compile();
    for end in [0, 99, 100] {
        let ended = peer(Proof::Tls, workload("web.shop", 2), end);
        let denial = authorizer.authorize(&ended, &payments(), NOW, FRESH).expect_err("ended");
        assert_eq!(denial.reason, DenialReason::Expired);
    }
}

#[test]
fn a_denial_names_the_rule() {
    let mut world = world();
    let id = world.rule(1, "web.shop.* -> payments.billing.west", DENY);
    let denial = world.compile().authorize(&peer(Proof::Tls, workload("web.shop", 2), 200), &payments(), NOW, FRESH);
    let denial = denial.expect_err("denied");
    assert_eq!(denial.rule, Some(id));
    assert_eq!(denial.rule_text.as_deref(), Some("deny web.shop.* -> payments.billing.west"));
    assert!(denial.to_string().contains("may not reach payments.billing.west"), "{denial}");
    let decision = world.compile().decide(&workload("web.shop", 2), &payments());
    assert_eq!((decision.action, decision.rule), (Action::Deny, Some(id)));
}

#[test]
fn a_passage_needs_the_signed_header_and_the_members_own_session() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let authorizer = world.compile().at(cluster(1), 1);
    let edge = |number: u8| domain(number).edge(&crate::testing::name(number).parse().expect("name"));
    let signed = peer(Proof::Signed, workload("web.shop", 2), 200);
    let session = peer(Proof::Session, edge(2), 300);
    let passage = authorizer
        .authorize_passage(&signed, Some(&session), &world.members, &payments(), NOW, FRESH)
        .expect("allowed");
    assert_eq!(passage.deadline(), Timestamp::from_secs(200), "the leaf that signed ends it");

    let check = |signed: &VerifiedPeer, session: Option<&VerifiedPeer>, reason| {
        let denial = authorizer
            .authorize_passage(signed, session, &world.members, &payments(), NOW, FRESH)
            .expect_err("refused");
        assert_eq!(denial.reason, reason, "{signed:?} over {session:?}");
    };
    check(&signed, None, DenialReason::WrongProof);
    check(&signed, Some(&peer(Proof::Session, edge(0), 300)), DenialReason::WrongProof);
    check(&signed, Some(&peer(Proof::Session, workload("web.shop", 2), 300)), DenialReason::WrongProof);
    check(&signed, Some(&peer(Proof::Tls, edge(2), 300)), DenialReason::WrongProof);
    check(&signed, Some(&peer(Proof::Session, edge(2), 100)), DenialReason::Expired);
    check(&peer(Proof::Signed, workload("web.shop", 2), 100), Some(&session), DenialReason::Expired);
    for proof in [Proof::Tls, Proof::Own, Proof::Session] {
        check(&peer(proof, workload("web.shop", 2), 200), Some(&session), DenialReason::WrongProof);
    }
}

#[test]
fn an_own_workload_passes_without_a_session_and_nobody_brings_it_from_outside() {
    let mut world = world();
    world.rule(1, "web.shop.west -> payments.billing.west", ALLOW);
    let signed = peer(Proof::Signed, workload("web.shop", 1), 200);
    let here = world.compile().at(cluster(1), 1);
    assert!(here.authorize_passage(&signed, None, &world.members, &payments(), NOW, FRESH).is_ok());
    let session = peer(Proof::Session, domain(2).edge(&"onprem".parse().expect("name")), 300);
    let denial =
        here.authorize_passage(&signed, Some(&session), &world.members, &payments(), NOW, FRESH).expect_err("refused");
    assert_eq!(denial.reason, DenialReason::WrongProof);
    let nowhere = world.compile();
    assert!(
        nowhere.authorize_passage(&signed, None, &world.members, &payments(), NOW, FRESH).is_err(),
        "a law of no cluster has no own"
    );
}

#[test]
fn one_member_that_relays_may_carry_anothers_passage() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let edge = |number: u8| domain(number).edge(&crate::testing::name(number).parse().expect("name"));
    // Onprem's workload calls west's payments over east.
    let signed = peer(Proof::Signed, workload("web.shop", 2), 200);
    let (straight, over_east) = (peer(Proof::Session, edge(2), 300), peer(Proof::Session, edge(0), 300));
    let outcome = |world: &World, at: u8, session: &VerifiedPeer| {
        let authorizer = world.compile().at(cluster(at), 1);
        let passage = authorizer.authorize_passage(&signed, Some(session), &world.members, &payments(), NOW, FRESH);
        passage.map(drop).map_err(|denial| denial.reason)
    };
    assert_eq!(outcome(&world, 0, &straight), Err(DenialReason::Unreachable), "east does not relay");
    assert_eq!(outcome(&world, 1, &over_east), Err(DenialReason::WrongProof), "nor may west take it from there");
    world.members.get_mut(&cluster(0)).expect("east").relay = Relay::Members;
    assert_eq!(outcome(&world, 0, &straight), Ok(()));
    assert_eq!(outcome(&world, 1, &over_east), Ok(()));
    // A second relay behind the first is one too many.
    let mut members = world.members.clone();
    members.insert(Member { relay: Relay::Members, ..member(3, false, Accept::Federation) });
    let north = world.compile().at(cluster(3), 1);
    let denial =
        north.authorize_passage(&signed, Some(&over_east), &members, &payments(), NOW, FRESH).expect_err("refused");
    assert_eq!(denial.reason, DenialReason::Unreachable);
    // What east may carry, the law still judges; and one that is out carries nothing.
    world.rule(1, PAIR, DENY);
    assert_eq!(outcome(&world, 0, &straight), Err(DenialReason::Rule));
    let mut world = self::world();
    world.rule(1, PAIR, ALLOW);
    let east = world.members.get_mut(&cluster(0)).expect("east");
    (east.relay, east.state) = (Relay::Members, MemberState::Blocked);
    assert_eq!(outcome(&world, 1, &over_east), Err(DenialReason::WrongProof));
}

#[test]
fn judging_does_not_slow_down_with_the_number_of_rules() {
    // Ten times the figure (1 µs) in an optimised build; an unoptimised one gets ten times more.
    let limit_ns: u128 = if cfg!(debug_assertions) { 100_000 } else { 10_000 };
    let mut world = world();
    let federation = FederationId::from_digest(Digest::ZERO);
    let mut writer = Writer::new(1, federation);
    for number in 0..100_000_u32 {
        let (account, namespace) = (number % 1000, number / 1000);
        let text = format!("a{account}.n{namespace}.onprem -> s{account}.n{namespace}.west");
        let key = key(&text, Layer::Rule, &world.members);
        let record = Record {
            federation,
            writer: cluster(1),
            audience: Audience::Law,
            epoch: 1,
            seq: u64::from(number) + 1,
            previous: Digest::ZERO,
            replaces: Vec::new(),
            author: String::new(),
            written_at: Timestamp::ZERO,
            body: Body::Intention(crate::Intention { key, state: ALLOW }),
        };
        let digest = Digest(std::array::from_fn(|at| number.to_le_bytes()[at % 4]));
        world.records.push(Authentic::assertion(record, std::sync::Arc::from([].as_slice()), digest));
    }
    for (_, text) in ROWS {
        world.records.push(writer.rule(&key(text, Layer::Rule, &world.members), DENY, &[]));
        world.records.push(writer.rule(&key(&format!("{text}.west"), Layer::Rule, &world.members), DENY, &[]));
    }
    let authorizer = world.compile();
    let pairs: Vec<_> = (0..10_000_u32)
        .map(|number| {
            let name = |kind: &str| format!("{kind}{}.n{}", number % 1000, number % 97);
            (workload(&name("a"), 2), service(&name("s"), 1))
        })
        .collect();
    let round = || {
        let start = std::time::SystemTime::now();
        let allowed = pairs.iter().filter(|(source, service)| authorizer.allows(source, service)).count();
        assert_eq!(allowed, pairs.len());
        start.elapsed().unwrap_or_default().as_nanos() / pairs.len() as u128
    };
    // The best of a few rounds: what else the machine does is not measured.
    let each = (0..5).map(|_| round()).min().unwrap_or(u128::MAX);
    assert!(each < limit_ns, "{each} ns per decision");
    eprintln!("{each} ns per decision among 100,000 intentions");
}

/// Payments of west, which chose this for callers that hear nothing of it for ten seconds.
fn payments_when(when: WhenStale) -> Service {
    Service { staleness: Staleness { when, lease: Duration::from_secs(10) }, ..payments() }
}

const AGES: [Option<Duration>; 6] = [
    FRESH,
    Some(Duration::from_millis(9_999)),
    Some(Duration::from_secs(10)),
    Some(Duration::from_secs(900)),
    Some(Duration::MAX),
    None,
];

#[test]
fn only_a_service_that_denies_past_its_lease_is_refused_for_its_owners_silence() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let caller = world.compile().at(cluster(2), 1);
    let (own, signed) =
        (peer(Proof::Own, workload("web.shop", 2), 200), peer(Proof::Signed, workload("web.shop", 2), 200));
    for when in [WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny] {
        for (number, age) in AGES.into_iter().enumerate() {
            let refused = when == WhenStale::Deny && number >= 2;
            let permit = caller.authorize(&own, &payments_when(when), NOW, age);
            let passage = caller.authorize_passage(&signed, None, &world.members, &payments_when(when), NOW, age);
            assert_eq!((permit.is_err(), passage.is_err()), (refused, refused), "{when} {age:?}");
            for denial in [permit.err(), passage.err()].into_iter().flatten() {
                assert_eq!(denial.reason, DenialReason::Stale);
                assert_eq!(denial.stale.as_deref(), Some(&Stale { age, lease: Duration::from_secs(10) }));
            }
        }
    }
}

#[test]
fn the_owner_is_never_stale_to_itself() {
    let mut world = world();
    world.rule(1, PAIR, ALLOW);
    let owner = world.compile().at(cluster(1), 1);
    let caller = peer(Proof::Tls, workload("web.shop", 2), 200);
    for age in AGES {
        assert!(owner.authorize(&caller, &payments_when(WhenStale::Deny), NOW, age).is_ok(), "{age:?}");
    }
}

#[test]
fn a_rule_that_denies_is_told_before_the_age_of_the_data() {
    let mut world = world();
    world.rule(1, PAIR, DENY);
    let caller = world.compile().at(cluster(2), 1);
    let own = peer(Proof::Own, workload("web.shop", 2), 200);
    let denial = caller.authorize(&own, &payments_when(WhenStale::Deny), NOW, None).expect_err("denied");
    assert_eq!(denial.reason, DenialReason::Rule);
}
