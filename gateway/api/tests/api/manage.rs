//! What an operator does over the Unix socket.

use std::time::Duration;

use federation_identity::now;
use federation_model::{
    Action, Audience, Body, DestinationPattern, Export, Intention, IntentionKey, JoinToken, Layer, RuleState,
    SourcePattern, Staleness, TokenId, TokenSecret, WhenStale,
};
use gateway_api::LinkPhase;
use proto::{
    convert::join_token_text,
    manage::{self as wire, manage_client::ManageClient},
};
use tonic::{Code, Status, transport::Channel};

use crate::support::{TTL, World, account, federation::Federation, reason};

/// West, with east beside it; east is a lawmaker or not.
async fn two(lawmaker: bool) -> (World, ManageClient<Channel>) {
    let mut federation = Federation::found("west");
    let east = federation.admit("east", lawmaker);
    let world = World::with(federation, vec![], TTL).await;
    world.links.link(east.id, "east", LinkPhase::Up);
    let client = world.manage().await;
    (world, client)
}

fn write(source: &str, destination: &str, action: &str) -> wire::WriteIntentionRequest {
    wire::WriteIntentionRequest {
        source: source.into(),
        destination: destination.into(),
        action: action.into(),
        ..Default::default()
    }
}

fn delete(source: &str, destination: &str, action: &str) -> wire::DeleteIntentionRequest {
    let layer = "rule".into();
    wire::DeleteIntentionRequest {
        source: source.into(),
        destination: destination.into(),
        layer,
        action: action.into(),
        wait_ms: 0,
    }
}

fn register(service: &str, port: u32) -> wire::RegisterServiceRequest {
    wire::RegisterServiceRequest { service: service.into(), port, accounts: vec![], ..Default::default() }
}

fn asked(source: &str, destination: &str) -> wire::CheckIntentionRequest {
    wire::CheckIntentionRequest { source: source.into(), destination: destination.into() }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(reply: Result<tonic::Response<T>, Status>, code: Code, word: &str, says: &str) {
    let status = reply.expect_err(word);
    assert_eq!((status.code(), reason(&status).as_str()), (code, word), "{}", status.message());
    assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
}

#[tokio::test]
async fn status_tells_how_things_are_even_without_a_snapshot() {
    let (world, mut client) = two(false).await;
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    assert_eq!((status.cluster.as_str(), status.trust_domain.as_str()), ("west", "west.mesh.internal"));
    assert_eq!((status.members, status.sessions, status.connections, status.lawmaker), (2, 1, 7, true));
    assert!(status.revision > 0);
    assert_eq!(status.problems, ["row 3 cannot be read"]);
    world.links.states.lock().expect("lock").clear();
    world.links.link(world.links.current().own, "north", LinkPhase::Connecting);
    world.links.forget();
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    assert_eq!((status.revision, status.federation.as_str()), (0, ""));
    assert!(status.problems.iter().any(|problem| problem.contains("north is down: connection refused")), "{status:?}");
    refused(client.list_services(wire::ListServicesRequest {}).await, Code::Unavailable, "no_snapshot", "try again");
    refused(client.check_intention(asked("a", "b")).await, Code::Unavailable, "no_snapshot", "try again");
}

#[tokio::test]
async fn a_join_token_is_issued_to_a_name_that_is_free() {
    let (_world, mut client) = two(false).await;
    let issue =
        |cluster: &str, ttl_seconds| wire::IssueTokenRequest { cluster: cluster.into(), ttl_seconds, lawmaker: true };
    let reply = client.issue_token(issue("north", 0)).await.expect("token").into_inner();
    assert_eq!((reply.token.as_str(), reply.cluster.as_str()), ("token-for-north", "north"));
    let life = reply.expires_at_ms - now().as_millis();
    assert!((890_000..=900_000).contains(&life), "{life}");
    refused(client.issue_token(issue("west", 0)).await, Code::InvalidArgument, "own_cluster", "this very cluster");
    refused(client.issue_token(issue("east", 0)).await, Code::AlreadyExists, "member_already", "hanse link list");
    refused(client.issue_token(issue("North", 0)).await, Code::InvalidArgument, "bad_name", "a-z");
    refused(client.issue_token(issue("default", 0)).await, Code::InvalidArgument, "bad_name", "default");
    refused(client.issue_token(issue("north", 86_401)).await, Code::InvalidArgument, "ttl_too_long", "24h");
    let tokens = client.list_tokens(wire::ListTokensRequest {}).await.expect("list").into_inner().tokens;
    assert_eq!((tokens[0].state.as_str(), tokens[0].refusals), ("burned", 5));
}

#[tokio::test]
async fn what_a_join_token_itself_tells_is_wrong_is_said_before_anybody_is_dialled() {
    let (world, mut client) = two(false).await;
    let token = |issuer: &str, joiner: &str, expires_at| {
        let token = JoinToken {
            id: TokenId([1; 16]),
            secret: TokenSecret([2; 32]),
            issuer: issuer.parse().expect("name"),
            issuer_trust_domain: "north.mesh.internal".parse().expect("domain"),
            issuer_pin: federation_identity::sha256(b""),
            endpoints: vec!["10.0.0.1:1".parse().expect("endpoint")],
            joiner: joiner.parse().expect("name"),
            expires_at,
        };
        wire::JoinRequest { token: join_token_text(&token) }
    };
    let later = now().after(TTL);
    refused(client.join(token("north", "west", later)).await, Code::FailedPrecondition, "refused", "issuer");
    let wrong = Code::FailedPrecondition;
    refused(client.join(token("north", "east", later)).await, wrong, "token_other_joiner", "hanse link token west");
    refused(client.join(token("west", "north", later)).await, wrong, "token_own_cluster", "on the other one");
    let past = now().before(TTL);
    refused(client.join(token("north", "west", past)).await, wrong, "token_expired", "hanse link token west");
    let (_, secret) = world.token("web.shop").await;
    assert_eq!(secret.len(), 32);
    for (text, word) in
        [("", "empty"), ("hello", "prefix"), ("hansew1.AAAA", "is_workload_token"), ("hanse1.%", "base64")]
    {
        refused(client.join(wire::JoinRequest { token: text.into() }).await, Code::InvalidArgument, word, "token");
    }
}

#[tokio::test]
async fn links_and_members_are_shown_and_removed_by_name() {
    let (world, mut client) = two(true).await;
    let links = |cluster: &str| wire::ListLinksRequest { cluster: cluster.into() };
    let all = client.list_links(links("")).await.expect("links").into_inner().links;
    assert_eq!((all[0].cluster.as_str(), all[0].state.as_str(), all[0].direction.as_str()), ("east", "up", "dialled"));
    assert_eq!((all[0].rtt_us, all[0].data_age_ms), (1500, 1));
    let id = world.links.current().members.by_name(&"east".parse().expect("name")).expect("east").id;
    let named = format!("east@{}", &id.to_string()[..8]);
    assert_eq!(client.list_links(links(&named)).await.expect("by id").into_inner().links.len(), 1);
    refused(
        client.list_links(links("east@000000")).await,
        Code::NotFound,
        "unknown_cluster",
        "no east has an id that starts with",
    );
    refused(client.list_links(links("east@0")).await, Code::InvalidArgument, "short_id", "6 hexadecimal digits");
    refused(client.list_links(links("north")).await, Code::NotFound, "unknown_cluster", "hanse cluster list");
    let remove = |cluster: &str| wire::ClusterRequest { cluster: cluster.into() };
    refused(client.remove_link(remove("west")).await, Code::InvalidArgument, "own_cluster", "another member");
    client.remove_link(remove("east")).await.expect("removed");
    let clusters = client.list_clusters(wire::ListClustersRequest {}).await.expect("list").into_inner().clusters;
    let mut states: Vec<_> = clusters.iter().map(|c| (c.name.as_str(), c.state.as_str(), c.sponsor.as_str())).collect();
    states.sort_unstable();
    assert_eq!(states, [("east", "blocked", "west"), ("west", "own", "west")]);
    let approve = |cluster: &str| wire::ClusterRequest { cluster: cluster.into() };
    refused(client.approve_cluster(approve("west")).await, Code::InvalidArgument, "own_cluster", "another member");
    client.approve_cluster(approve("east")).await.expect("approved");
    assert_eq!(client.list_links(links("east")).await.expect("links").into_inner().links[0].state, "up");
    assert!(clusters.iter().all(|cluster| cluster.lawmaker));
    // Nothing of a cluster that is blocked is believed.
    assert!(clusters.iter().all(|cluster| cluster.bundle_sequence == u64::from(cluster.own)));
}

#[tokio::test]
async fn an_intention_says_who_enforces_it_and_a_write_waits_for_all() {
    let (world, mut client) = two(true).await;
    let east = world.links.current().members.by_name(&"east".parse().expect("name")).expect("east").id;
    let written = client.write_intention(write("web.shop", "payments.billing.west", "allow")).await.expect("written");
    let written = written.into_inner().intention.expect("intention");
    assert_eq!((written.enforced, written.members), (1, 2));
    assert_eq!((written.behind[0].cluster.as_str(), written.behind[0].data_age_ms), ("east", 40_000));

    let waiting =
        wire::WriteIntentionRequest { wait_ms: 20_000, ..write("cron.shop", "payments.billing.west", "deny") };
    let links = world.links.clone();
    let confirming = tokio::spawn(async move {
        // Whatever is newest in this cluster's law when it is there.
        let mut snapshots = gateway_api::Links::snapshot(&*links);
        let stands = |held: &federation_model::Snapshot| held.authorizer.explain().len() == 2;
        let held = snapshots.wait_for(|held| held.as_deref().is_some_and(stands)).await.expect("open").clone();
        let newest =
            held.expect("some").authorizer.explain().iter().map(|standing| standing.id).max_by_key(|id| id.seq);
        links.confirm(newest.expect("a rule"), east);
    });
    let reply = client.write_intention(waiting).await.expect("written").into_inner().intention.expect("intention");
    assert_eq!((reply.enforced, reply.members, reply.behind.len()), (2, 2, 0));
    confirming.await.expect("confirmed");
    let listed = client.list_intentions(wire::ListIntentionsRequest {}).await.expect("listed").into_inner().intentions;
    let enforced: Vec<_> = listed.iter().map(|rule| (rule.action.as_str(), rule.enforced)).collect();
    assert_eq!(enforced, [("deny", 2), ("allow", 1)]);
}

#[tokio::test]
async fn a_service_is_registered_here_and_then_shown_to_others() {
    let (world, mut client) = two(false).await;
    let export = |service: &str, to: &[&str]| wire::ExportServiceRequest {
        service: service.into(),
        to: to.iter().map(|&name| name.to_owned()).collect(),
        ..wire::ExportServiceRequest::default()
    };
    refused(
        client.export_service(export("payments.billing", &[])).await,
        Code::NotFound,
        "unknown_service",
        "hanse service register payments.billing",
    );
    let service = client.register_service(register("payments.billing", 8080)).await.expect("registered");
    let service = service.into_inner().service.expect("service");
    assert_eq!((service.name.as_str(), service.port, service.own), ("payments.billing.west", 8080, true));
    assert_eq!(service.dns, "payments.billing.west.mesh.internal");
    assert_eq!(service.accounts, ["payments.billing"]);
    assert!(service.exported_to.is_empty());
    // Twice the same writes once.
    let records = world.links.federation().records().len();
    client.register_service(register("payments.billing", 8080)).await.expect("again");
    assert_eq!(world.links.federation().records().len(), records);
    let shown = client.export_service(export("payments.billing", &["east"])).await.expect("to east").into_inner();
    assert_eq!(shown.service.expect("service").exported_to, ["east"]);
    let shown = client.export_service(export("payments.billing", &[])).await.expect("to all").into_inner();
    assert_eq!(shown.service.expect("service").exported_to, ["all"]);
    // A change goes to whoever sees it.
    let changed = client.register_service(register("payments.billing.west", 9090)).await.expect("changed").into_inner();
    assert_eq!(changed.service.expect("service").port, 9090);
    let told = |audience| {
        let records = world.links.federation().records();
        let last = records.iter().rev().find_map(|record| match &record.value().body {
            Body::Service(export) if record.value().audience == audience => Some(export.port),
            _ => None,
        });
        last.expect("told")
    };
    let current = world.links.current();
    let east = current.members.by_name(&"east".parse().expect("name")).expect("east").id;
    for audience in [Audience::All, Audience::Member(current.own)] {
        assert_eq!(told(audience), 9090, "{audience:?}");
    }
    assert_eq!(told(Audience::Member(east)), 8080, "east sees it as one of all");
    for (request, code, word) in [
        (register("payments.billing", 0), Code::InvalidArgument, "bad_port"),
        (register("payments.billing", 65_536), Code::InvalidArgument, "bad_port"),
        (register("payments.billing.east", 80), Code::PermissionDenied, "anothers_service"),
        (register("pay_ments", 80), Code::InvalidArgument, "bad_reference"),
        (register("a.b.c.d", 80), Code::InvalidArgument, "bad_reference"),
        (register("*", 80), Code::InvalidArgument, "bad_reference"),
    ] {
        refused(client.register_service(request).await, code, word, "");
    }
    refused(
        client.export_service(export("payments.billing", &["west"])).await,
        Code::InvalidArgument,
        "own_cluster",
        "",
    );
    refused(client.export_service(export("payments.billing", &["north"])).await, Code::NotFound, "unknown_cluster", "");
}

#[tokio::test]
async fn what_happens_to_stale_callers_is_chosen_at_registration_or_export_and_told_to_everybody() {
    let (world, mut client) = two(false).await;
    let chosen = |service: &wire::Service| (service.when_stale.clone(), service.lease_ms);
    let of = |reply: wire::ServiceReply| chosen(&reply.service.expect("service"));
    let registered = client.register_service(register("payments.billing", 8080)).await.expect("registered");
    assert_eq!(of(registered.into_inner()), ("keep".into(), 900_000));
    let export = |when_stale: &str, lease_ms| wire::ExportServiceRequest {
        service: "payments.billing".into(),
        when_stale: when_stale.into(),
        lease_ms,
        ..wire::ExportServiceRequest::default()
    };
    let exported = client.export_service(export("deny", 60_000)).await.expect("exported");
    assert_eq!(of(exported.into_inner()), ("deny".into(), 60_000));
    // What is not named stays, there and here.
    let again = wire::RegisterServiceRequest { lease_ms: 10_000, ..register("payments.billing", 8080) };
    assert_eq!(of(client.register_service(again).await.expect("again").into_inner()), ("deny".into(), 10_000));
    assert_eq!(of(client.export_service(export("", 0)).await.expect("again").into_inner()), ("deny".into(), 10_000));
    let records = world.links.federation().records();
    let told = |audience| {
        let last = records.iter().rev().find_map(|record| match &record.value().body {
            Body::Service(export) if record.value().audience == audience => Some(export.staleness),
            _ => None,
        });
        last.map(|staleness| (staleness.when.to_string(), staleness.lease))
    };
    for audience in [Audience::All, Audience::Member(world.links.current().own)] {
        assert_eq!(told(audience), Some(("deny".into(), Duration::from_secs(10))), "{audience:?}");
    }
    for (when, lease_ms, word) in [
        ("Deny", 0, "bad_when_stale"),
        ("prefer_local", 0, "bad_when_stale"),
        ("", 9_999, "bad_lease"),
        ("deny", 1, "bad_lease"),
        ("keep", 86_400_001, "bad_lease"),
        ("keep", u64::MAX, "bad_lease"),
    ] {
        refused(client.export_service(export(when, lease_ms)).await, Code::InvalidArgument, word, "");
        let request =
            wire::RegisterServiceRequest { when_stale: when.into(), lease_ms, ..register("payments.billing", 8080) };
        refused(client.register_service(request).await, Code::InvalidArgument, word, "");
    }
}

#[tokio::test]
async fn lists_and_names_tell_how_old_the_owners_data_is() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    let ledger = |name: &str, when| Export {
        service: name.parse().expect("name"),
        namespace: "books".parse().expect("name"),
        port: 1,
        accounts: vec![account("ledger.books")],
        staleness: Staleness { when, lease: Duration::from_secs(60) },
    };
    for (name, when) in [("a", WhenStale::Keep), ("b", WhenStale::PreferLocal), ("c", WhenStale::Deny)] {
        federation.hear(&mut east, Audience::All, Body::Service(ledger(name, when)));
    }
    let key = IntentionKey {
        source: SourcePattern::parse("web.shop.west", Action::Allow, federation.own.id, &federation.snapshot().members)
            .expect("source"),
        destination: DestinationPattern::parse("c.books.east", &federation.snapshot().members).expect("destination"),
        layer: Layer::Rule,
    };
    federation.hear(&mut east, Audience::Law, Body::Intention(Intention { key, state: RuleState::Is(Action::Allow) }));
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let freshness = async |client: &mut ManageClient<_>| {
        let list = client.list_services(wire::ListServicesRequest {}).await.expect("list").into_inner().services;
        list.into_iter().map(|service| (service.freshness, service.data_age_ms)).collect::<Vec<_>>()
    };
    let stale = |age| ["keep", "prefer-local", "deny"].map(|when| (format!("stale ({when})"), age));
    assert_eq!(freshness(&mut client).await, stale(0), "never heard");
    let rcode = async |client: &mut ManageClient<_>| {
        let request = wire::LookupDnsRequest { name: "c.books.east.mesh.internal".into(), ..Default::default() };
        let reply = client.lookup_dns(request).await.expect("looked up").into_inner();
        (reply.rcode, reply.why, reply.data_age_ms)
    };
    // The rule stands all the while.
    let destination = "c.books.east".to_owned();
    let judged = async |client: &mut ManageClient<_>| {
        let request = wire::CheckIntentionRequest { source: "web.shop".into(), destination: destination.clone() };
        let reply = client.check_intention(request).await.expect("judged").into_inner();
        (reply.allowed, reply.reason, reply.detail)
    };
    let (allowed, reason, detail) = judged(&mut client).await;
    assert_eq!((allowed, reason.as_str()), (false, "stale"), "{detail}");
    assert!(detail.contains("no data since this process started, lease 60 s"), "{detail}");
    let (code, why, age) = rcode(&mut client).await;
    assert_eq!((code.as_str(), age), ("SERVFAIL", 0), "{why}");
    assert!(why.contains("hanse link status east") && why.contains("past the lease of 60 s"), "{why}");
    world.links.heard(east.id, "east", Duration::from_secs(59));
    assert_eq!(freshness(&mut client).await, [(); 3].map(|()| ("fresh".to_owned(), 59_000)));
    let (code, why, age) = rcode(&mut client).await;
    assert_eq!((code.as_str(), age), ("NOERROR", 59_000), "{why}");
    assert!(why.contains("what its owner last said is 59 s old, within the lease of 60 s"), "{why}");
    let (allowed, _, detail) = judged(&mut client).await;
    assert!(allowed, "{detail}");
    let clusters = client.list_clusters(wire::ListClustersRequest {}).await.expect("list").into_inner().clusters;
    let ages: Vec<_> = clusters.iter().map(|cluster| (cluster.own, cluster.data_age_ms)).collect();
    assert!(ages.contains(&(true, 0)) && ages.contains(&(false, 59_000)), "{ages:?}");
}

#[tokio::test]
async fn services_of_others_are_listed_as_theirs() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    let ledger = Export {
        service: "ledger".parse().expect("name"),
        namespace: "books".parse().expect("name"),
        port: 1,
        accounts: vec![account("ledger.books")],
        staleness: Default::default(),
    };
    federation.hear(&mut east, Audience::All, Body::Service(ledger));
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let services = client.list_services(wire::ListServicesRequest {}).await.expect("list").into_inner().services;
    assert_eq!((services[0].name.as_str(), services[0].own), ("ledger.books.east", false));
    assert_eq!((services[0].exported_to.as_slice(), services[0].instances), (&["all".to_owned()][..], 0));
}

#[tokio::test]
async fn a_rule_is_written_enforced_and_taken_back() {
    let (_world, mut client) = two(false).await;
    client.register_service(register("payments.billing", 80)).await.expect("registered");
    let check = asked("web.shop", "payments.billing");
    let before = client.check_intention(check.clone()).await.expect("check").into_inner();
    assert_eq!((before.allowed, before.reason.as_str(), before.rule.as_str()), (false, "default_deny", ""));
    assert!(before.detail.contains("no intention allows it"), "{}", before.detail);
    let written = client.write_intention(write("web.shop", "payments.billing", "allow")).await.expect("written");
    let written = written.into_inner().intention.expect("intention");
    // A missing cluster: this one in the source of an allow, any in a destination.
    assert_eq!((written.source.as_str(), written.destination.as_str()), ("web.shop.west", "payments.billing.*"));
    assert_eq!((written.action.as_str(), written.layer.as_str(), written.precedence), ("allow", "rule", 9));
    assert!(written.counts && !written.conflict, "{written:?}");
    assert_eq!(written.writer, "west");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("users").map(|user| user.name);
    assert_eq!(Some(written.author.clone()), user.or(Some(format!("uid {}", nix::unistd::geteuid()))));
    let after = client.check_intention(check.clone()).await.expect("check").into_inner();
    assert!(after.allowed && after.reason.is_empty(), "{after:?}");
    assert_eq!(after.rule_id, written.id);
    assert!(after.detail.contains(&after.rule), "{after:?}");
    // Without an action: whichever exists.
    let gone = client.delete_intention(delete("web.shop", "payments.billing", "")).await.expect("deleted");
    let gone = gone.into_inner().intention.expect("intention");
    assert_eq!((gone.action.as_str(), gone.note.as_str(), gone.precedence), ("deleted", "", 9));
    assert!(!client.check_intention(check).await.expect("check").into_inner().allowed);
    let list = client.list_intentions(wire::ListIntentionsRequest {}).await.expect("list").into_inner();
    assert!(list.intentions.is_empty(), "{list:?}");
    let again = client.delete_intention(delete("web.shop", "payments.billing", "")).await;
    refused(again, Code::NotFound, "unknown_intention", "hanse intention list");
}

#[tokio::test]
async fn a_source_without_a_cluster_is_told_apart_by_the_action() {
    let (_world, mut client) = two(false).await;
    client.write_intention(write("web.shop", "payments.billing.west", "allow")).await.expect("allow");
    let denied = client.write_intention(write("web.shop", "payments.billing.west", "deny")).await.expect("deny");
    assert_eq!(denied.into_inner().intention.expect("intention").source, "web.shop.*");
    let both = client.delete_intention(delete("web.shop", "payments.billing.west", "")).await;
    refused(both, Code::InvalidArgument, "ambiguous", "--action");
    let gone = client.delete_intention(delete("web.shop", "payments.billing.west", "deny")).await.expect("deleted");
    assert_eq!(gone.into_inner().intention.expect("intention").source, "web.shop.*");
    let list = client.list_intentions(wire::ListIntentionsRequest {}).await.expect("list").into_inner().intentions;
    assert_eq!((list.len(), list[0].action.as_str()), (1, "allow"));
}

#[tokio::test]
async fn rules_that_make_no_sense_are_refused() {
    let (_world, mut client) = two(false).await;
    let layered = |action: &str, guardrail, shadow| wire::WriteIntentionRequest {
        guardrail,
        shadow,
        ..write("web.shop", "payments.billing", action)
    };
    for (request, word, says) in [
        (layered("allow", true, false), "layer", "only denies"),
        (layered("deny", true, true), "layer", "on trial"),
        (write("web.shop", "payments.billing", "permit"), "bad_action", "neither allow nor deny"),
        (write("web.shop", "payments.billing.north", "allow"), "bad_reference", "no member is called north"),
        (write("web.shop.north", "payments.billing", "deny"), "bad_reference", "hanse cluster list"),
        (write("web", "pay*", "deny"), "bad_reference", "whole label"),
        (write("web.*", "pay", "deny"), "bad_reference", "*.*"),
        (write("web", "spiffe://west.mesh.internal/ns/a/sa/b", "deny"), "bad_reference", "not a SPIFFE ID"),
        (write("spiffe://West/x", "pay", "deny"), "bad_reference", "a-z"),
        (write("a.b.c.d", "pay", "deny"), "bad_reference", "too many labels"),
        (write("", "pay", "deny"), "bad_reference", "empty"),
    ] {
        refused(client.write_intention(request).await, Code::InvalidArgument, word, says);
    }
    let guardrail = client.write_intention(layered("deny", true, false)).await.expect("guardrail").into_inner();
    assert_eq!(guardrail.intention.expect("intention").layer, "guardrail");
    let timed = wire::DeleteIntentionRequest { layer: "timed".into(), ..delete("web.shop", "payments.billing", "") };
    refused(client.delete_intention(timed).await, Code::InvalidArgument, "layer", "guardrail");
}

#[tokio::test]
async fn what_cannot_be_taken_back_here_is_named() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    // East denies its own accounts: as the source's cluster it may, and west may not replace that.
    let snapshot = federation.snapshot();
    let body = Body::Intention(Intention {
        key: IntentionKey {
            source: SourcePattern::parse("web.shop.east", Action::Deny, east.id, &snapshot.members).expect("source"),
            destination: DestinationPattern::parse("payments.billing.west", &snapshot.members).expect("destination"),
            layer: Layer::Rule,
        },
        state: RuleState::Is(Action::Deny),
    });
    federation.hear(&mut east, Audience::Law, body);
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let request = delete("web.shop.east", "payments.billing.west", "deny");
    let reply = client.delete_intention(request).await.expect("written").into_inner().intention.expect("intention");
    let list = client.list_intentions(wire::ListIntentionsRequest {}).await.expect("list").into_inner().intentions;
    assert!(list.iter().any(|intention| intention.writer == "east" && intention.action == "deny"), "{list:?}");
    assert!(reply.note.contains("by east") && reply.note.contains("may not replace"), "{reply:?}");
}

#[tokio::test]
async fn a_check_names_what_it_does_not_know() {
    let (_world, mut client) = two(false).await;
    let unknown = client.check_intention(asked("web.shop", "nothing.here")).await.expect("check").into_inner();
    assert_eq!((unknown.allowed, unknown.reason.as_str()), (false, "unknown_service"));
    assert!(unknown.detail.contains("is it exported?"), "{}", unknown.detail);
    client.register_service(register("payments.billing", 80)).await.expect("registered");
    let id = "spiffe://north.mesh.internal/ns/shop/sa/web";
    let foreign = client.check_intention(asked(id, "payments.billing")).await.expect("check").into_inner();
    assert_eq!((foreign.allowed, foreign.reason.as_str()), (false, "unknown_source"));
    client.write_intention(write("web.shop.east", "payments.billing", "allow")).await.expect("written");
    let id = "spiffe://east.mesh.internal/ns/shop/sa/web";
    assert!(client.check_intention(asked(id, "payments.billing.west")).await.expect("check").into_inner().allowed);
    for (source, destination) in [("web.shop.north", "payments.billing"), ("web.shop", "payments.billing.north")] {
        refused(client.check_intention(asked(source, destination)).await, Code::NotFound, "unknown_cluster", "north");
    }
    for (source, destination) in [("spiffe://", "payments"), ("*", "payments"), ("web", "*"), ("web", "")] {
        refused(client.check_intention(asked(source, destination)).await, Code::InvalidArgument, "bad_reference", "");
    }
}

#[tokio::test]
async fn dns_answers_as_the_mesh_would_and_says_why() {
    let (_world, mut client) = two(false).await;
    client.register_service(register("payments.billing", 80)).await.expect("registered");
    let look = |name: &str, kind: &str, account: &str| wire::LookupDnsRequest {
        name: name.into(),
        r#type: kind.into(),
        account: account.into(),
    };
    let name = "payments.billing.west.mesh.internal";
    let reply = client.lookup_dns(look(name, "", "web.shop")).await.expect("answer").into_inner();
    assert_eq!((reply.rcode.as_str(), reply.r#type.as_str(), reply.answers.len()), ("NOERROR", "A", 1));
    assert!(reply.answers[0].starts_with(&format!("{name}. 5 IN A 127.")), "{reply:?}");
    assert!(reply.why.contains("visible here") && reply.why.contains("no intention allows it"), "{}", reply.why);
    let reply = client.lookup_dns(look(name, "aaaa", "")).await.expect("answer").into_inner();
    assert_eq!((reply.rcode.as_str(), reply.answers.len()), ("NOERROR", 0));
    let reply =
        client.lookup_dns(look("nothing.here.west.mesh.internal", "A", "web")).await.expect("answer").into_inner();
    assert_eq!(reply.rcode, "NXDOMAIN");
    let reply = client.lookup_dns(look("example.com", "A", "web")).await.expect("answer").into_inner();
    assert_eq!(reply.rcode, "REFUSED");
    refused(client.lookup_dns(look(name, "MANY", "")).await, Code::InvalidArgument, "bad_type", "MANY");
    refused(
        client.lookup_dns(look(name, "A", "a.b.c")).await,
        Code::InvalidArgument,
        "bad_reference",
        "account[.namespace]",
    );
    refused(client.lookup_dns(look(&"a.".repeat(200), "A", "")).await, Code::InvalidArgument, "bad_name", "253");
}

#[tokio::test]
async fn a_check_tries_the_links_and_says_what_to_do() {
    let (world, mut client) = two(false).await;
    let own = world.links.current().own;
    world.links.link(own, "north", LinkPhase::Connecting);
    client.register_service(register("payments.billing", 80)).await.expect("registered");
    let results = client.check(wire::CheckRequest {}).await.expect("check").into_inner().results;
    let state = |id: &str, subject: &str| {
        let found = results.iter().find(|result| result.id == id && result.subject == subject);
        found.unwrap_or_else(|| panic!("{id} {subject}: {results:?}")).state.as_str()
    };
    assert_eq!(state("gateway.snapshot", ""), "ok");
    assert_eq!(state("store.rows", ""), "ok");
    assert_eq!(state("identity.certificate", "edge"), "ok");
    assert_eq!(state("law.conflicts", ""), "ok");
    assert_eq!(state("service.instances", "payments.billing.west"), "warning");
    assert_eq!(state("link.handshake", "east"), "ok");
    assert_eq!(state("link.clock", "east"), "warning");
    let bad = results.iter().filter(|result| result.state != "ok");
    assert!(bad.clone().all(|result| !result.fix.is_empty()), "{results:?}");
    world.links.forget();
    let results = client.check(wire::CheckRequest {}).await.expect("check").into_inner().results;
    assert!(results.iter().any(|result| result.id == "gateway.snapshot" && result.state == "failed"), "{results:?}");
}

#[tokio::test]
async fn a_rotation_is_started_and_told_by_names_and_unknown_ones_are_refused() {
    let (_world, mut client) = two(false).await;
    let rotate =
        |without: &[&str]| wire::RotateRootRequest { without: without.iter().map(ToString::to_string).collect() };
    refused(client.rotate_root(rotate(&["north"])).await, Code::NotFound, "unknown_cluster", "north");
    refused(client.rotate_root(rotate(&["West!"])).await, Code::InvalidArgument, "bad_name", "");
    refused(client.rotate_root(rotate(&["west"])).await, Code::InvalidArgument, "own_cluster", "west");
    refused(client.rotate_root(rotate(&["east"; 257])).await, Code::InvalidArgument, "without", "257");
    assert_eq!(client.cert_status(wire::CertStatusRequest {}).await.expect("status").into_inner().rotation, None);
    let told = client.rotate_root(rotate(&["east"])).await.expect("started").into_inner().rotation.expect("told");
    assert_eq!((told.phase.as_str(), told.acknowledged, told.members), ("published", 0, 1));
    assert_eq!(told.without, ["east"]);
    assert_eq!((told.behind[0].cluster.as_str(), told.behind[0].data_age_ms), ("east", 40_000));
    let status = client.cert_status(wire::CertStatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.rotation.expect("told").without, ["east"]);
    let abort = client.abort_rotation(wire::AbortRotationRequest {}).await;
    refused(abort, Code::FailedPrecondition, "no_rotation", "no rotation is under way");
}

#[tokio::test]
async fn the_rest_of_the_verbs_answer() {
    let (_world, mut client) = two(false).await;
    let status = client.cert_status(wire::CertStatusRequest {}).await.expect("status").into_inner();
    assert_eq!((status.certificates[0].kind.as_str(), status.certificates[0].serial.as_str()), ("edge", "00ab"));
    assert_eq!(status.bundles.iter().map(|bundle| bundle.cluster.as_str()).collect::<Vec<_>>(), ["east", "west"]);
    assert!(status.bundles.iter().all(|bundle| bundle.sha256.len() == 1 && bundle.sha256[0].len() == 64));
    let set = |level: &str| wire::SetLogLevelRequest { level: level.into() };
    assert_eq!(client.set_log_level(set("debug")).await.expect("set").into_inner().level, "debug");
    refused(client.set_log_level(set("loud")).await, Code::InvalidArgument, "bad_level", "loud");
    refused(client.reload(wire::ReloadRequest {}).await, Code::FailedPrecondition, "cannot_change_live", "stays");
    let issue = |account: &str, ttl_seconds| wire::IssueWorkloadTokenRequest { account: account.into(), ttl_seconds };
    let reply = client.issue_workload_token(issue("web", 60)).await.expect("token").into_inner();
    assert_eq!(reply.account, "web.default");
    assert!(reply.token.starts_with("hansew1."));
    for account in ["", "Web", "a.b.c", "*", "web.*"] {
        refused(client.issue_workload_token(issue(account, 0)).await, Code::InvalidArgument, "bad_reference", "");
    }
    refused(client.issue_workload_token(issue("web", 90_000)).await, Code::InvalidArgument, "ttl_too_long", "24h");
}

#[tokio::test]
async fn a_backup_comes_in_pieces_and_says_when_it_is_not_whole() {
    let (_world, mut manage) = two(false).await;
    let mut pieces = manage.create_backup(wire::CreateBackupRequest {}).await.expect("begun").into_inner();
    let first = pieces.message().await.expect("a piece").expect("not the end");
    let summary = first.summary.expect("the first piece has it");
    assert_eq!((summary.cluster.as_str(), summary.rows, summary.bytes, summary.created_at_ms), ("west", 2, 7, 5));
    assert_eq!(first.data, b"");
    for wanted in [&b"back"[..], b"up!"] {
        assert_eq!(pieces.message().await.expect("a piece").expect("not the end").data, wanted);
    }
    let status = pieces.message().await.expect_err("an end like that of a whole file");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the signer does not answer"));
}
