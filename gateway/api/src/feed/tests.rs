//! What a feed sends to whom.

use federation_model::{
    Action, DestinationPattern, Export, IntentionKey, Layer, MemberTerms, Position, RuleState, Snapshot, Stance, fold,
};

use super::*;

#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
#[path = "../../tests/api/support/federation.rs"]
mod federation;

use federation::Federation;

fn scope(federation: &Federation, account: &str) -> Scope {
    let account = AccountRef { account: account.parse().expect("account"), namespace: "shop".parse().expect("ns") };
    let domain = federation.own.signer.candidate().trust_domain;
    Scope { own: federation.own.id, id: domain.account(&account), account, serves: BTreeSet::new() }
}

fn rule(snapshot: &Snapshot, source: &str, destination: &str, action: Action) -> Body {
    let members = &snapshot.members;
    Body::Intention(Intention {
        key: IntentionKey {
            source: SourcePattern::parse(source, action, snapshot.own, members).expect("source"),
            destination: DestinationPattern::parse(destination, members).expect("destination"),
            layer: Layer::Rule,
        },
        state: RuleState::Is(action),
    })
}

fn service(name: &str, accounts: &[&str]) -> Body {
    let account =
        |name: &&str| AccountRef { account: name.parse().expect("account"), namespace: "shop".parse().expect("ns") };
    Body::Service(Export {
        service: name.parse().expect("service"),
        namespace: "shop".parse().expect("namespace"),
        port: 80,
        accounts: accounts.iter().map(account).collect(),
        staleness: Default::default(),
    })
}

/// Whether the record `body` of the own cluster goes to the account `web.shop`.
fn check(source: &str, destination: &str, action: Action, wanted: bool) {
    let mut federation = Federation::found("west");
    federation.admit("east", false);
    let own = federation.own.id;
    federation.write(Audience::Member(own), service("api", &["web"]), "test");
    let body = rule(&federation.snapshot(), source, destination, action);
    let id = federation.write(Audience::Law, body, "test");
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    feed.update(&federation.records(), &Forks::default());
    assert_eq!(feed.held.contains(&id.digest), wanted, "{action} {source} -> {destination}");
}

#[test]
fn a_workload_gets_the_rules_that_may_concern_it_and_no_others() {
    for (source, destination, wanted) in [
        // As a caller.
        ("web.shop", "pay.billing.east", true),
        ("web.shop.west", "*", true),
        ("*.shop", "pay.billing", true),
        ("*", "pay.billing.east", true),
        ("spiffe://west.mesh.internal/ns/shop/sa/web", "pay.billing", true),
        // As a server of api.shop.
        ("clerk.books.east", "api.shop", true),
        ("clerk.books.east", "*.shop.west", true),
        ("clerk.books.east", "*", true),
        // Another's.
        ("clerk.shop", "pay.billing", false),
        ("web.books", "pay.billing", false),
        ("web.shop.east", "pay.billing", false),
        ("*.books", "pay.billing", false),
        ("spiffe://east.mesh.internal/ns/shop/sa/web", "pay.billing", false),
        ("clerk.books.east", "api.shop.east", false),
        ("clerk.books.east", "*.books.west", false),
        ("clerk.books.east", "other.shop", false),
    ] {
        check(source, destination, Action::Deny, wanted);
    }
    // A missing cluster is this one in the source of an allow.
    check("web.shop", "pay.billing", Action::Allow, true);
}

#[test]
fn the_papers_of_the_federation_go_to_everybody() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    federation.hear(&mut east, Audience::Law, Body::Terms(MemberTerms::default()));
    federation.hear(&mut east, Audience::All, service("ledger", &["ledger"]));
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    let update = feed.update(&federation.records(), &Forks::default());
    assert_eq!(update.added.len(), federation.records().len());
    assert!(update.removed.is_empty());
}

#[test]
fn evictions_and_the_own_clusters_decisions_go_to_everybody_and_those_of_others_do_not() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", true);
    let north = federation.admit("north", false);
    let (own, cluster) = (federation.own.id, north.id);
    let blocked = || Body::Stance { cluster, stance: Stance::Blocked };
    let mine = federation.write(Audience::Member(own), blocked(), "test");
    let evicted = federation.hear_eviction(&mut east, cluster);
    // Nobody hears of another's; were it held all the same, it would be nothing to this workload.
    let at = Position { epoch: 1, seq: 1, previous: Digest::ZERO };
    let theirs = east.sign(federation.id, Audience::Member(east.id), at, blocked());
    assert!(scope(&federation, "web").concerns(&Record { writer: own, ..theirs.value().clone() }));
    assert!(!scope(&federation, "web").concerns(theirs.value()));
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    feed.update(&federation.records(), &Forks::default());
    assert!(feed.held.contains(&mine.digest) && feed.held.contains(&evicted.digest));
}

#[test]
fn what_was_told_to_one_other_member_stays_here() {
    let mut federation = Federation::found("west");
    let east = federation.admit("east", false);
    let own = federation.own.id;
    let mine = federation.write(Audience::Member(own), service("api", &["api"]), "test");
    let theirs = federation.write(Audience::Member(east.id), service("api", &["api"]), "test");
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    feed.update(&federation.records(), &Forks::default());
    assert!(feed.held.contains(&mine.digest) && !feed.held.contains(&theirs.digest));
}

#[test]
fn only_what_is_new_is_sent_and_what_was_kept_is_not_sent_again() {
    let mut federation = Federation::found("west");
    let forks = Forks::default();
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    let first = feed.update(&federation.records(), &forks);
    assert_eq!(first.added.len(), 2);
    assert!(feed.update(&federation.records(), &forks).added.is_empty());
    let body = rule(&federation.snapshot(), "web.shop", "*", Action::Allow);
    let id = federation.write(Audience::Law, body, "test");
    let next = feed.update(&federation.records(), &forks);
    assert_eq!((next.added.len(), next.removed.len()), (1, 0));
    // After a restart the sidecar says what it holds, one of it unknown here.
    let stray = Digest([7; 32]);
    let mut held = feed.held.clone();
    held.remove(&id.digest);
    held.insert(stray);
    let mut again = Feed::new(scope(&federation, "web"), held);
    let update = again.update(&federation.records(), &forks);
    assert_eq!(update.removed, [stray]);
    assert_eq!(update.added.len(), 1);
}

#[test]
fn a_service_that_becomes_the_workloads_brings_the_rules_about_it() {
    let mut federation = Federation::found("west");
    let own = federation.own.id;
    let forks = Forks::default();
    let body = rule(&federation.snapshot(), "clerk.books", "api.shop.west", Action::Deny);
    let id = federation.write(Audience::Law, body, "test");
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    feed.update(&federation.records(), &forks);
    assert!(!feed.held.contains(&id.digest), "nobody said that web may serve api");
    federation.write(Audience::Member(own), service("api", &["api", "web"]), "test");
    let update = feed.update(&federation.records(), &forks);
    assert!(feed.held.contains(&id.digest));
    assert_eq!(update.added.len(), 2);
}

#[test]
fn another_federation_replaces_everything() {
    let (old, new) = (Federation::found("west"), Federation::found("west"));
    let forks = Forks::default();
    let mut feed = Feed::new(scope(&old, "web"), HashSet::new());
    feed.update(&old.records(), &forks);
    let update = feed.update(&new.records(), &forks);
    assert_eq!((update.added.len(), update.removed.len()), (2, 2));
}

#[test]
fn both_records_of_a_fork_go_along_so_that_the_sidecar_finds_void_what_the_edge_does() {
    let mut federation = Federation::found("west");
    let forks = Forks::default();
    let mut east = federation.admit("east", true);
    let mut feed = Feed::new(scope(&federation, "web"), HashSet::new());
    feed.update(&federation.records(), &forks);
    // Two records at one place, neither about web; then one that is, which the fork makes void.
    let snapshot = federation.snapshot();
    let mine = rule(&snapshot, "clerk.books.east", "pay.billing.east", Action::Deny);
    let twin = rule(&snapshot, "clerk.books.east", "pay.billing.east", Action::Allow);
    let first = federation.hear(&mut east, Audience::Law, mine);
    let previous = federation.records().iter().find(|record| record.id() == first).expect("held").value().previous;
    let void = rule(&snapshot, "web.shop.west", "*.*.*", Action::Allow);
    federation.hear(&mut east, Audience::Law, void);
    let at = Position { epoch: 1, seq: first.seq, previous };
    let twin = east.sign(federation.id, Audience::Law, at, twin);
    let second = federation.take(&east, twin);
    feed.update(&federation.records(), &forks);
    let held: HashSet<Digest> = federation.records().iter().map(Authentic::digest).collect();
    for id in [first, second] {
        assert!(held.contains(&id.digest), "the edge itself does not hold {id}");
        assert!(feed.held.contains(&id.digest), "{id} is kept back");
    }
    // The sidecar's fold of its part agrees with the edge's fold of all.
    let all = federation.records();
    let part: Vec<_> = all.iter().filter(|record| feed.held.contains(&record.digest())).cloned().collect();
    let sidecar = fold(federation.own.id, federation.id, 1, part.iter()).expect("snapshot");
    let edge = federation.snapshot();
    let about_web = |snapshot: &Snapshot| {
        let all = snapshot.authorizer.explain().iter();
        all.filter(|standing| standing.text.contains("web.shop")).map(|standing| standing.id).collect::<Vec<_>>()
    };
    assert_eq!(about_web(&sidecar), about_web(&edge));
}
