//! Who is in and who is out, as an operator decides it: what is said afterwards, and what is refused.

use std::collections::BTreeSet;

use federation_model::{Approval, Audience, Body, Export, MemberState, MemberTerms};
use gateway_api::LinkPhase;
use proto::manage::{self as wire, manage_client::ManageClient};
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    TTL, World, account,
    federation::{Cluster, Federation},
    reason,
};

/// West founded; east and north are there, lawmakers or not.
async fn three(east: bool, north: bool) -> (World, ManageClient<Channel>, Cluster, Cluster) {
    let mut federation = Federation::found("west");
    let (east, north) = (federation.admit("east", east), federation.admit("north", north));
    let world = World::with(federation, vec![], TTL).await;
    world.links.link(east.id, "east", LinkPhase::Up);
    world.links.link(north.id, "north", LinkPhase::Up);
    let client = world.manage().await;
    (world, client, east, north)
}

fn named(cluster: &str) -> wire::ClusterRequest {
    wire::ClusterRequest { cluster: cluster.into() }
}

fn switch(cluster: &str, on: bool) -> wire::SetLawmakerRequest {
    wire::SetLawmakerRequest { cluster: cluster.into(), on }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(reply: Result<tonic::Response<T>, Status>, code: Code, word: &str, says: &str) {
    let status = reply.expect_err(word);
    assert_eq!((status.code(), reason(&status).as_str()), (code, word), "{}", status.message());
    assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
}

#[track_caller]
fn says(reply: &wire::MembershipReply, state: &str, changed: bool, needs: &[&str], words: &str) {
    assert_eq!((reply.state.as_str(), reply.changed), (state, changed), "{reply:?}");
    assert_eq!(reply.needs, needs, "{reply:?}");
    assert!(reply.detail.contains(words), "{:?} does not say {words:?}", reply.detail);
}

async fn listed(client: &mut ManageClient<Channel>) -> Vec<(String, String, Vec<String>)> {
    let clusters = client.list_clusters(wire::ListClustersRequest {}).await.expect("list").into_inner().clusters;
    let mut all: Vec<_> = clusters.into_iter().map(|one| (one.name, one.state, one.evicted_by)).collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_block_is_for_this_cluster_and_an_approval_ends_it() {
    let (_world, mut client, ..) = three(false, false).await;
    let reply = client.block_cluster(named("east")).await.expect("blocked").into_inner();
    says(&reply, "blocked", true, &[], "until `hanse cluster approve east`");
    let reply = client.block_cluster(named("east")).await.expect("again").into_inner();
    says(&reply, "blocked", false, &[], "blocked");
    let link = client.list_links(wire::ListLinksRequest { cluster: "east".into() }).await.expect("link").into_inner();
    assert_eq!(link.links[0].state, "blocked");
    let reply = client.approve_cluster(named("east")).await.expect("approved").into_inner();
    says(&reply, "active", true, &[], "east is let in here");
    let reply = client.approve_cluster(named("east")).await.expect("again").into_inner();
    says(&reply, "active", false, &[], "already");
    refused(client.block_cluster(named("west")).await, Code::InvalidArgument, "own_cluster", "another member");
    refused(client.approve_cluster(named("south")).await, Code::NotFound, "unknown_cluster", "hanse cluster list");
}

#[tokio::test]
async fn an_eviction_says_whose_word_is_missing_and_then_that_it_is_final() {
    let (world, mut client, mut east, north) = three(true, false).await;
    let reply = client.evict_cluster(named("north")).await.expect("evicted").into_inner();
    says(&reply, "suspended", true, &["east"], "it is final once east says the same");
    assert_eq!((reply.for_good, reply.evicted_by.as_slice()), (false, &["west".to_owned()][..]));
    let reply = client.evict_cluster(named("north")).await.expect("again").into_inner();
    says(&reply, "suspended", false, &["east"], "suspended everywhere by west");
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    let words = "north is suspended: evicted by west; `hanse cluster approve north` lets it in here";
    assert!(status.problems.iter().any(|problem| problem.contains(words)), "{:?}", status.problems);
    let reply = client.approve_cluster(named("north")).await.expect("approved").into_inner();
    says(&reply, "active", true, &[], "although west evicted it");

    world.links.federation().hear_eviction(&mut east, north.id);
    world.links.publish();
    let all = listed(&mut client).await;
    let by = vec!["east".to_owned(), "west".to_owned()];
    assert!(all.contains(&("north".into(), "evicted".into(), by)), "{all:?}");
    for reply in [client.evict_cluster(named("north")).await, client.approve_cluster(named("north")).await] {
        refused(reply, Code::FailedPrecondition, "out_for_good", "needs a new token");
    }
    refused(client.block_cluster(named("north")).await, Code::FailedPrecondition, "out_for_good", "evicted for good");
}

#[tokio::test]
async fn the_only_lawmaker_evicts_for_good_and_the_name_is_free() {
    let (world, mut client, _, north) = three(false, false).await;
    let reply = client.evict_cluster(named("north")).await.expect("evicted").into_inner();
    says(&reply, "evicted", true, &[], "its denies stand until a lawmaker deletes them");
    assert!(reply.for_good);
    let fresh = world.links.federation().admit("north", false);
    world.links.publish();
    let old = format!("north@{}", north.id.short());
    let states: Vec<_> = listed(&mut client).await.into_iter().map(|(name, state, _)| (name, state)).collect();
    let row = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let wanted = [row("east", "up"), row("north", "down"), row(&old, "evicted"), row("west", "own")];
    assert_eq!(states, wanted);
    refused(client.approve_cluster(named(&old)).await, Code::FailedPrecondition, "out_for_good", &old);
    let reply = client.block_cluster(named("north")).await.expect("the one that is in").into_inner();
    assert_eq!(reply.cluster_id, fresh.id.to_string());
    let export = wire::ExportServiceRequest {
        service: "a.b".into(),
        to: vec![old.clone()],
        ..wire::ExportServiceRequest::default()
    };
    refused(client.export_service(export).await, Code::NotFound, "unknown_cluster", "out for good (evicted)");
}

#[tokio::test]
async fn who_makes_no_law_evicts_nobody_and_is_told_who_may() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", true);
    let north = federation.admit("north", false);
    // West lays its office down: east alone makes law then.
    federation.write(Audience::Law, Body::Lawmaker { cluster: federation.own.id, on: false }, "test");
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let denied = Code::PermissionDenied;
    refused(
        client.evict_cluster(named("north")).await,
        denied,
        "not_a_lawmaker",
        "east may; `hanse cluster block north`",
    );
    refused(client.set_lawmaker(switch("north", true)).await, denied, "not_a_lawmaker", "east may");
    refused(client.evict_cluster(named("west")).await, Code::InvalidArgument, "own_cluster", "hanse cluster leave");

    world.links.federation().hear_eviction(&mut east, north.id);
    let own = world.links.current().own;
    world.links.federation().hear_eviction(&mut east, own);
    world.links.publish();
    assert_eq!(world.links.current().own_state, MemberState::Evicted);
    refused(client.evict_cluster(named("east")).await, Code::FailedPrecondition, "own_cluster_out", "out for good");
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    let words = "east evicted this cluster for good";
    assert!(status.problems.iter().any(|problem| problem.starts_with(words)), "{:?}", status.problems);
}

#[tokio::test]
async fn a_cluster_that_others_suspended_is_told_by_whom() {
    let (world, mut client, mut east, _) = three(true, true).await;
    let own = world.links.current().own;
    world.links.federation().hear_eviction(&mut east, own);
    world.links.publish();
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    let words = "east evicted this cluster: the others cut it off";
    assert!(status.problems.iter().any(|problem| problem.starts_with(words)), "{:?}", status.problems);
    // It may answer in kind: both are out until a third says which.
    let reply = client.evict_cluster(named("east")).await.expect("evicted").into_inner();
    says(&reply, "suspended", true, &["north"], "final once north says the same");
}

#[tokio::test]
async fn a_lawmaker_is_made_by_one_and_unmade_by_two() {
    let (world, mut client, mut east, north) = three(true, false).await;
    let reply = client.set_lawmaker(switch("north", true)).await.expect("made").into_inner();
    says(&reply, "active", true, &[], "north makes law");
    assert!(reply.lawmaker);
    let reply = client.set_lawmaker(switch("north", true)).await.expect("again").into_inner();
    says(&reply, "active", false, &[], "north makes law");
    let reply = client.set_lawmaker(switch("north", false)).await.expect("said").into_inner();
    says(&reply, "active", true, &["east"], "still makes law: east has to say the same");
    let reply = client.set_lawmaker(switch("north", false)).await.expect("again").into_inner();
    says(&reply, "active", false, &["east"], "still makes law");
    let off = Body::Lawmaker { cluster: north.id, on: false };
    world.links.federation().hear(&mut east, Audience::Law, off);
    world.links.publish();
    let reply = client.set_lawmaker(switch("north", false)).await.expect("by now").into_inner();
    says(&reply, "active", false, &[], "makes no law any more");
    let reply = client.set_lawmaker(switch("north", true)).await.expect("taken back").into_inner();
    assert!(reply.changed && reply.lawmaker, "one of two votes is gone: {reply:?}");
}

#[tokio::test]
async fn nobody_leaves_a_federation_without_a_lawmaker() {
    let (_world, mut client, ..) = three(false, false).await;
    let words = "hanse cluster lawmaker CLUSTER on";
    refused(client.set_lawmaker(switch("west", false)).await, Code::FailedPrecondition, "only_lawmaker", words);
    let leave = || wire::LeaveFederationRequest {};
    refused(client.leave_federation(leave()).await, Code::FailedPrecondition, "only_lawmaker", "2 members would stay");
    client.set_lawmaker(switch("east", true)).await.expect("made");
    let reply = client.set_lawmaker(switch("west", false)).await.expect("laid down").into_inner();
    says(&reply, "own", true, &[], "west makes no law any more");
    let left = client.leave_federation(leave()).await.expect("left").into_inner();
    assert_eq!(left.untold, ["north"]);
    assert_ne!(left.left, left.federation);
}

#[tokio::test]
async fn a_cluster_that_approves_by_hand_says_who_waits() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    federation.write(
        Audience::Law,
        Body::Terms(MemberTerms { approval: Approval::Manual, ..MemberTerms::default() }),
        "test",
    );
    let guest = Cluster::new("guest");
    let admission = federation_model::Admission { candidate: guest.signer.candidate(), lawmaker: false };
    federation.hear(&mut east, Audience::Law, Body::Admission(admission));
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let status = client.status(wire::StatusRequest {}).await.expect("status").into_inner();
    let words = "waiting for approval: guest; `hanse cluster approve guest`";
    assert!(status.problems.iter().any(|problem| problem.starts_with(words)), "{:?}", status.problems);
    let reply = client.approve_cluster(named("guest")).await.expect("approved").into_inner();
    says(&reply, "active", true, &[], "guest is let in");
    let clusters = client.list_clusters(wire::ListClustersRequest {}).await.expect("list").into_inner().clusters;
    let own = clusters.iter().find(|cluster| cluster.own).expect("own");
    assert_eq!(own.approval, "manual");
}

#[tokio::test]
async fn what_an_evicted_member_served_is_gone_from_lists_and_names() {
    let mut federation = Federation::found("west");
    let mut east = federation.admit("east", false);
    let export = Export {
        service: "ledger".parse().expect("name"),
        namespace: "books".parse().expect("name"),
        port: 1,
        accounts: vec![account("ledger.books")],
        staleness: Default::default(),
    };
    federation.hear(&mut east, Audience::All, Body::Service(export));
    let world = World::with(federation, vec![], TTL).await;
    let mut client = world.manage().await;
    let name = "ledger.books.east.mesh.internal";
    let dns = || wire::LookupDnsRequest { name: name.into(), ..wire::LookupDnsRequest::default() };
    assert_eq!(client.lookup_dns(dns()).await.expect("answer").into_inner().rcode, "NOERROR");
    client.evict_cluster(named("east")).await.expect("evicted");
    assert_eq!(client.lookup_dns(dns()).await.expect("answer").into_inner().rcode, "NXDOMAIN");
    let services = client.list_services(wire::ListServicesRequest {}).await.expect("list").into_inner().services;
    assert!(services.is_empty(), "{services:?}");
}

#[tokio::test]
async fn exporting_to_fewer_takes_it_back_from_the_others() {
    let (world, mut client, east, north) = three(false, false).await;
    let register = wire::RegisterServiceRequest {
        service: "ledger.books".into(),
        port: 1,
        accounts: vec![],
        ..Default::default()
    };
    client.register_service(register).await.expect("registered");
    let to = |names: &[&str], nobody| wire::ExportServiceRequest {
        service: "ledger.books".into(),
        to: names.iter().map(|&name| name.to_owned()).collect(),
        nobody,
        ..Default::default()
    };
    let own = world.links.current().own;
    let standing = || {
        let mut told = std::collections::BTreeMap::new();
        for record in world.links.federation().records().iter() {
            match &record.value().body {
                Body::Service(_) => drop(told.insert(record.value().audience, true)),
                Body::ServiceGone { .. } => drop(told.insert(record.value().audience, false)),
                _ => {}
            }
        }
        told.into_iter().filter(|(_, shown)| *shown).map(|(audience, _)| audience).collect::<BTreeSet<_>>()
    };
    let (own, east, north) = (Audience::Member(own), Audience::Member(east.id), Audience::Member(north.id));
    for (request, shown, audiences) in [
        (to(&["east", "north"], false), vec!["east", "north"], vec![own, east, north]),
        (to(&["north"], false), vec!["north"], vec![own, north]),
        (to(&[], false), vec!["all"], vec![own, Audience::All]),
        (to(&["east"], false), vec!["east"], vec![own, east]),
        (to(&[], true), vec![], vec![own]),
    ] {
        let reply = client.export_service(request.clone()).await.expect("exported").into_inner();
        let mut exported_to = reply.service.expect("still registered here").exported_to;
        exported_to.sort();
        assert_eq!(exported_to, shown, "{request:?}");
        assert_eq!(standing(), audiences.into_iter().collect::<BTreeSet<_>>(), "{request:?}");
        let records = world.links.federation().records().len();
        client.export_service(request).await.expect("again");
        assert_eq!(world.links.federation().records().len(), records, "twice writes once");
    }
    refused(client.export_service(to(&["east"], true)).await, Code::InvalidArgument, "nobody_and_some", "not both");
}
