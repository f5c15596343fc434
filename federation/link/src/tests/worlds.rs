//! Clusters that join, converge, restart and part.

use std::time::Duration;

use federation_model::{Audience, Body, Export, MemberState, RecordId, ServiceRef, TrustBundle};
use federation_store::{Kind, memory};

use crate::{
    Direction, LinkError, LinkState,
    testing::{Cluster, Disk, SOON, Setup, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_join_and_converge() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.allow("before-east").await;
    west.allow("before-west").await;
    west.join(&east).await;
    for (one, other) in [(&east, &west), (&west, &east)] {
        one.knows(&[&east, &west]).await;
        one.linked(other).await;
        one.holds("before-east").await;
        one.holds("before-west").await;
    }
    east.allow("after-east").await;
    west.allow("after-west").await;
    west.holds("after-east").await;
    east.holds("after-west").await;
    let (one, other) = (east.link.snapshot(), west.link.snapshot());
    let (one, other) = (one.borrow().clone().expect("some"), other.borrow().clone().expect("some"));
    assert_eq!(one.federation, other.federation);
    assert_eq!(one.members, other.members);
    assert!(one.members.get(&east.id()).expect("founder").lawmaker);
    assert!(!one.members.get(&west.id()).expect("joiner").lawmaker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_cluster_joins_with_one_token_and_is_known_to_all() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    let north = Cluster::start("north").await;
    // The sponsor need not be the founder.
    north.join(&west).await;
    let all = [&east, &west, &north];
    for one in all {
        one.knows(&all).await;
        for other in all.iter().filter(|other| other.id() != one.id()) {
            one.linked(other).await;
        }
        one.allow(&format!("by-{}", one.disk.name)).await;
    }
    for one in all {
        for other in all {
            one.holds(&format!("by-{}", other.disk.name)).await;
        }
    }
    let names: Vec<String> = east.link.statuses().iter().map(|status| status.name.to_string()).collect();
    assert_eq!(names, ["north", "west"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_per_pair_is_left_where_both_can_dial() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    east.linked(&west).await;
    until("one session, seen alike from both sides", || {
        let of = |one: &Cluster| one.link.statuses().first().map(|status| (status.sessions, status.direction));
        let (one, other) = (of(&east), of(&west));
        let lower_dialled = if east.id() < west.id() { one } else { other };
        matches!((one, other), (Some((1, Some(a))), Some((1, Some(b)))) if a != b)
            // If only the higher one ever dialled, that session stays.
            && lower_dialled.is_some()
    })
    .await;
    let status = &east.link.statuses()[0];
    assert_eq!(status.state, LinkState::Up);
    assert_eq!(status.error, None);
    until("heartbeats tell round trip and clocks", || {
        let status = &east.link.statuses()[0];
        status.rtt.is_some_and(|rtt| rtt < Duration::from_secs(2))
            && status.clock_offset_ms.is_some_and(|offset| offset.abs() < 2_000)
            && status.data_age.is_some_and(|age| age < Duration::from_secs(2))
            && status.bytes_received > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_only_dials_is_a_full_member() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    let onprem = Cluster::open(Disk::new("onprem"), Setup::outbound_only()).await;
    assert_eq!(onprem.link.local_addr(), None);
    onprem.join(&east).await;
    for other in [&east, &west] {
        onprem.linked(other).await;
        other.linked(&onprem).await;
    }
    onprem.allow("by-onprem").await;
    east.holds("by-onprem").await;
    west.holds("by-onprem").await;
    let seen = west.link.statuses().into_iter().find(|status| status.member == onprem.id()).expect("member");
    assert_eq!(seen.direction, Some(Direction::Accepted));
    assert!(onprem.link.statuses().iter().all(|status| status.direction == Some(Direction::Dialled)));
    // Nobody answers at its socket, and somebody does at theirs.
    for socket in onprem.link.sockets() {
        let at = format!("127.0.0.1:{}", socket.port()).parse().expect("address");
        let answer = crate::probe::quic(at, Duration::from_millis(700)).await.expect("tried");
        assert_eq!(answer, crate::probe::Answer::Silent);
    }
    let answer = crate::probe::quic(east.address(), SOON).await.expect("tried");
    assert!(matches!(answer, crate::probe::Answer::Answered(_)), "{answer:?}");
    let report = onprem.link.probe(east.id()).await.expect("a member");
    assert!(report.handshakes.iter().all(|(_, tried)| tried.is_ok()) && report.handshakes.len() == 1, "{report:?}");
    let report = east.link.probe(onprem.id()).await.expect("a member");
    assert!(report.handshakes.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_travel_to_those_who_may_see_them() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let export = |name: &str| {
        let service: federation_model::ServiceName = name.parse().expect("service");
        let namespace: federation_model::NamespaceName = "shop".parse().expect("namespace");
        let account = federation_model::AccountRef { account: (&service).into(), namespace: namespace.clone() };
        Body::Service(Export { service, namespace, port: 80, accounts: vec![account], staleness: Default::default() })
    };
    east.link.write(Audience::All, export("seen"), "test".into()).await.expect("written");
    east.link.write(Audience::Member(east.id()), export("own"), "test".into()).await.expect("written");
    // What a joiner said before it joined it says again.
    west.link.write(Audience::All, export("brought"), "test".into()).await.expect("written");
    west.join(&east).await;
    let name = |service: &str, cluster: &str| -> ServiceRef {
        format!("{service}.shop.{cluster}").parse().expect("reference")
    };
    west.snapshot_where("seen", |held| held.catalog.by_name(&name("seen", "east")).is_some()).await;
    east.snapshot_where("brought", |held| held.catalog.by_name(&name("brought", "west")).is_some()).await;
    east.link.write(Audience::Member(west.id()), export("for-west"), "test".into()).await.expect("written");
    let held = west.snapshot_where("for west", |held| held.catalog.by_name(&name("for-west", "east")).is_some()).await;
    assert!(held.catalog.by_name(&name("own", "east")).is_none(), "what is not exported never leaves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_the_same_store_keeps_members_rules_and_places() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    east.linked(&west).await;
    east.allow("first").await;
    west.holds("first").await;
    let address = east.address();
    let disk = east.kill().await;
    west.allow("meanwhile").await;
    let setup = Setup { listen: Some(address), ..Setup::default() };
    let east = Cluster::open(disk, setup).await;
    east.knows(&[&west]).await;
    east.holds("first").await;
    east.linked(&west).await;
    east.holds("meanwhile").await;
    east.allow("second").await;
    west.holds("second").await;
    let epochs: Vec<u64> = east.link.records().borrow().iter().map(|record| record.id().epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == 1), "nothing was lost, so no epoch was opened: {epochs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_cluster_or_a_broken_one_is_refused() {
    let disk = Disk::new("east");
    Cluster::open(disk.clone(), Setup::default()).await.kill().await;
    let open = |disk: Disk| async move {
        let live = federation_identity::LiveSvid::new();
        live.set(disk.svid(Duration::from_secs(600)));
        crate::Link::open(crate::testing::options(&disk, &live, &Setup::default())).await.expect_err("refused")
    };
    let stranger = Disk { store: disk.store.clone(), ..Disk::new("west") };
    let error = open(stranger).await;
    assert!(matches!(error, LinkError::OtherCluster { .. }), "{error}");
    // Without the row that names the federation the records are not guessed at, and no second federation is founded.
    let broken = Disk { store: memory(), ..disk.clone() };
    let rows = disk.store.list(Kind::Record, &[]).await.expect("rows");
    let changes = rows.iter().map(|row| federation_store::Change::put(row.key.clone(), row.value.clone())).collect();
    broken.store.apply(changes).await.expect("applied");
    assert_eq!(open(broken).await.reason(), "unreadable");
    // A record whose bytes were changed is not passed over.
    let row = rows.last().expect("rows");
    let mut value = row.value.clone();
    *value.last_mut().expect("bytes") ^= 1;
    let change = federation_store::Change::put(row.key.clone(), value);
    disk.store.apply(vec![change]).await.expect("applied");
    assert_eq!(open(disk).await.reason(), "unreadable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_an_error_that_names_it() {
    let east = Cluster::start("east").await;
    let disk = Disk::new("west");
    let live = federation_identity::LiveSvid::new();
    live.set(disk.svid(Duration::from_secs(600)));
    let setup = Setup { listen: Some(east.address()), ..Setup::default() };
    let error = crate::Link::open(crate::testing::options(&disk, &live, &setup)).await.expect_err("taken");
    assert!(error.to_string().contains(&east.address().to_string()), "{error}");
    assert_eq!(error.reason(), "bind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_shut_out_here_until_approved() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    east.linked(&west).await;
    west.linked(&east).await;
    assert!(east.link.block(west.id(), "test".into()).await.expect("durable"));
    assert!(!east.link.block(west.id(), "test".into()).await.expect("durable"), "twice is once");
    until("both sessions end", || {
        east.link.session_peer(west.id()).is_none() && west.link.session_peer(east.id()).is_none()
    })
    .await;
    let held = east.snapshot_where("no roots of west", |held| held.bundles.get(&west.disk.domain).is_none()).await;
    assert!(held.members.get(&west.id()).is_some(), "it is a member all the same");
    assert_eq!(east.link.statuses()[0].state, LinkState::Out(MemberState::Blocked));
    assert_eq!(east.link.open_tunnel(west.id()).await.expect_err("blocked").reason(), "blocked");
    // It lasts over a restart.
    let address = east.address();
    let disk = east.kill().await;
    let east = Cluster::open(disk, Setup { listen: Some(address), ..Setup::default() }).await;
    assert_eq!(east.link.statuses()[0].state, LinkState::Out(MemberState::Blocked));
    assert!(east.link.approve(west.id(), "test".into()).await.expect("durable"));
    east.linked(&west).await;
    west.linked(&east).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_come_together_keep_their_order_and_are_all_durable() {
    let east = Cluster::start("east").await;
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..300 {
        let link = east.link.clone();
        writes.spawn(async move {
            let state = federation_model::RuleState::Is(federation_model::Action::Deny);
            let key = crate::testing::rule(&format!("w{number}"));
            let body = Body::Intention(federation_model::Intention { key, state });
            link.write(Audience::Law, body, "test".into()).await.expect("written")
        });
    }
    let ids: Vec<RecordId> = writes.join_all().await;
    let mut places: Vec<u64> = ids.iter().map(|id| id.seq).collect();
    places.sort_unstable();
    assert_eq!(places, (places[0]..places[0] + 300).collect::<Vec<_>>(), "no gap, no place twice");
    let disk = east.kill().await;
    let rows = disk.store.list(Kind::Record, &[]).await.expect("rows");
    for id in &ids {
        let key = federation_store::record_key(id);
        assert!(rows.iter().any(|row| row.key == key), "{id} is not in the store");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_others_may_write_is_not_written_by_hand() {
    let east = Cluster::start("east").await;
    let candidate = Disk::new("west").signer.candidate();
    let admission = federation_model::Admission { candidate: candidate.clone(), lawmaker: true };
    for body in [Body::Founding(candidate), Body::Admission(admission), Body::Unknown { kind: 99, critical: true }] {
        let error = east.link.write(Audience::Law, body, "test".into()).await.expect_err("refused");
        assert_eq!(error.reason(), "kind");
    }
    let error = {
        let body = Body::Terms(federation_model::MemberTerms::default());
        east.link.write(Audience::Law, body, "x".repeat(300)).await.expect_err("author too long")
    };
    assert_eq!(error.reason(), "bounds");
    let terms = Body::Terms(federation_model::MemberTerms::default());
    let error = east.link.write(Audience::All, terms, "test".into()).await.expect_err("law is for all to read");
    assert_eq!(error.reason(), "audience");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_its_owner_withdraws_ends_the_sessions_that_stand_on_it() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    east.linked(&west).await;
    // An empty bundle revokes every SVID of the domain (SPIFFE bundle, 4.1.4).
    let bundle = TrustBundle { trust_domain: west.disk.domain.clone(), sequence: 2, roots: Vec::new() };
    west.link.write(Audience::Law, Body::Bundle(bundle), "test".into()).await.expect("written");
    until("east believes west no more", || east.link.session_peer(west.id()).is_none()).await;
    let error = east.link.open_tunnel(west.id()).await.expect_err("no session");
    assert_eq!(error.reason(), "no_session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_records_reach_a_late_joiner_in_one_answer_and_a_member_that_was_away() {
    let east = Cluster::start("east").await;
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..3_000 {
        let link = east.link.clone();
        writes.spawn(async move {
            let rule = federation_model::Intention {
                key: crate::testing::rule(&format!("w{number}")),
                state: federation_model::RuleState::Is(federation_model::Action::Deny),
            };
            link.write(Audience::Law, Body::Intention(rule), "test".into()).await.expect("written")
        });
    }
    writes.join_all().await;
    let west = Cluster::start("west").await;
    west.join(&east).await;
    west.holds("w2999").await;
    let (one, other) = (east.link.records(), west.link.records());
    let north = Cluster::open(Disk::new("north"), Setup::outbound_only()).await;
    north.join(&west).await;
    north.holds("w0").await;
    north.holds("w2999").await;
    until("all hold the same", || {
        let count = one.borrow().len();
        count > 3_000 && other.borrow().len() == count && north.link.records().borrow().len() == count
    })
    .await;
}
