//! What is live does not outlive the law or its credential.

use std::{sync::Arc, time::Duration};

use federation_identity::Svid;
use federation_model::{Action, ClusterId, DenialReason, MemberState, Revocation, Snapshot};
use tokio::{io::AsyncReadExt, task::JoinSet, time::Instant};

use super::world::{ALLOW, Chain, NOTHING, Node, eventually, ping};
use crate::{Access, Cut, Limits};

#[tokio::test(flavor = "multi_thread")]
async fn a_deny_at_any_hop_cuts_the_live_connection_everywhere() {
    let chain = Chain::start().await;
    for (place, node) in chain.nodes().into_iter().enumerate() {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        chain.law(node, &[(Action::Deny, "web.shop.east", "payments.billing.west")]);
        application.read_u8().await.expect_err("cut, and not finished");
        let event = node.audit.until("a cut", |event| event.access == Access::Cut).await;
        assert_eq!(event.reason, Some("rule"), "node {place}");
        assert!(event.detail.contains("deny web.shop.east -> payments.billing.west"), "{}", event.detail);
        for node in chain.nodes() {
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
        chain.law(node, ALLOW);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deny_at_an_edge_reaches_the_sources_log() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    chain.law(&chain.far, NOTHING);
    application.read_u8().await.expect_err("cut");
    for node in [&chain.far, &chain.near, &chain.source] {
        let event = node.audit.until("a cut", |event| event.access == Access::Cut).await;
        assert_eq!(event.reason, Some("default_deny"));
        assert!(event.detail.contains("no intention allows it"), "{}", event.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deny_cuts_a_thousand_in_under_a_second_and_leaves_the_others() {
    const CUT: usize = 1_000;
    let chain = Arc::new(Chain::start().await);
    let ledger = &[ALLOW[0], (Action::Allow, "web.shop.east", "ledger.billing.west")];
    for node in chain.nodes() {
        chain.law(node, ledger);
    }
    let mut opening = JoinSet::new();
    let gate = Arc::new(tokio::sync::Semaphore::new(32));
    for _ in 0..CUT {
        let (chain, gate) = (chain.clone(), gate.clone());
        opening.spawn(async move {
            let _place = gate.acquire().await.expect("open");
            let (mut application, _task) = chain.call().await;
            ping(&mut application, b"live").await.expect("an answer");
            application
        });
    }
    let mut live = opening.join_all().await;
    // Others, which no rule touches.
    let other = Chain::start().await;
    let (mut untouched, _task) = other.call().await;
    ping(&mut untouched, b"live").await.expect("an answer");

    let before = Instant::now();
    chain.law(&chain.near, &[(Action::Allow, "web.shop.east", "ledger.billing.west")]);
    for application in &mut live {
        application.read_u8().await.expect_err("cut");
    }
    let took = before.elapsed();
    println!("{CUT} connections were cut in {took:?}");
    assert!(took < Duration::from_secs(1), "{CUT} connections took {took:?}");
    ping(&mut untouched, b"still live").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deny_leaves_connections_that_it_does_not_name() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    for node in chain.nodes() {
        let rules =
            &[ALLOW[0], (Action::Deny, "web.shop.east", "ledger.billing.west"), (Action::Deny, "api.shop.east", "*")];
        chain.law(node, rules);
        let judged = || (node.proxy.connections().list()[0].policy == 2).then_some(());
        eventually("the law asked again", judged).await;
    }
    ping(&mut application, b"untouched").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_trust_domain_and_a_vanished_service_cut() {
    let chain = Chain::start().await;
    for change in ["bundle", "service"] {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        let held = chain.destination.snapshot.borrow().clone().expect("a snapshot");
        let mut snapshot = (*held).clone();
        snapshot.revision += 1;
        if change == "bundle" {
            let domain = "east.mesh.internal".parse().expect("a domain");
            let mut bundle = snapshot.bundles.get(&domain).expect("a bundle").clone();
            bundle.roots.clear();
            bundle.sequence += 1;
            Arc::make_mut(&mut snapshot.bundles).update(bundle).expect("newer");
        } else {
            snapshot.catalog = Default::default();
        }
        chain.destination.snapshot.send_replace(Some(Arc::new(snapshot)));
        application.read_u8().await.expect_err("cut");
        chain.destination.snapshot.send_replace(Some(held));
    }
    let reasons: Vec<_> =
        chain.destination.audit.all().into_iter().filter(|event| event.access == Access::Cut).collect();
    assert_eq!(reasons[0].reason, Some("unknown_source"));
    assert_eq!(reasons[1].reason, Some("unknown_service"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_cuts_what_stands_on_it_at_every_node_and_nothing_else() {
    let chain = Chain::start().await;
    let revoke = |node: &Node, svid: &Svid| {
        let held = node.snapshot.borrow().clone().expect("a snapshot");
        let mut snapshot = (*held).clone();
        snapshot.revision += 1;
        let revocation =
            Revocation { key: svid.key_digest(), serial: svid.serial().to_vec(), not_after: svid.not_after() };
        Arc::make_mut(&mut snapshot.bundles).revoke(svid.id().trust_domain(), revocation);
        node.snapshot.send_replace(Some(Arc::new(snapshot)));
        held
    };
    let (web, payments) = (chain.source.svid.get().expect("web"), chain.destination.svid.get().expect("payments"));
    // The source's key is seen by all four; the server's by the source, which alone sees it in TLS.
    let cases = chain.nodes().into_iter().map(|node| (node, &web)).chain([(&chain.source, &payments)]);
    for (place, (node, svid)) in cases.enumerate() {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        revoke(node, &chain.world.workload(if place == 4 { "payments.billing.west" } else { "web.shop.east" }));
        ping(&mut application, b"another key of the same account").await.expect("an answer");
        let held = revoke(node, svid);
        application.read_u8().await.expect_err("cut, and not finished");
        let event = node.audit.until("a cut", |event| event.access == Access::Cut).await;
        assert_eq!(event.reason, Some("revoked"), "case {place}");
        let refused = chain.refused().await;
        assert!(
            matches!(refused.reason, DenialReason::Revoked | DenialReason::Unreachable),
            "case {place}: {refused:?}"
        );
        node.snapshot.send_replace(Some(held));
        for node in chain.nodes() {
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
    }
}

/// The picture that a cluster has of the federation once another one is out: no bundle of it, and no service.
fn without(held: &Snapshot, out: ClusterId) -> Snapshot {
    let mut snapshot = held.clone();
    snapshot.revision += 1;
    let member = Arc::make_mut(&mut snapshot.members).get_mut(&out).expect("a member");
    member.state = MemberState::Suspended;
    let domain = member.trust_domain.clone();
    (snapshot.bundles, snapshot.catalog) = Default::default();
    for bundle in held.bundles.iter().filter(|bundle| bundle.trust_domain != domain) {
        Arc::make_mut(&mut snapshot.bundles).update(bundle.clone()).expect("as before");
    }
    held.catalog
        .iter()
        .filter(|service| service.id.cluster != out)
        .for_each(|held| snapshot.catalog.insert(held.clone()));
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_put_out_is_cut_by_whichever_hop_hears_of_it() {
    let chain = Chain::start().await;
    let (east, west) = (chain.world.id("east"), chain.world.id("west"));
    for (place, node) in chain.nodes().into_iter().enumerate() {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        let held = node.snapshot.borrow().clone().expect("a snapshot");
        let (other, reason) = if held.own == west { (east, "unknown_source") } else { (west, "unknown_service") };
        let cuts = |node: &super::world::Node| {
            node.audit.all().into_iter().filter(|event| event.access == Access::Cut).collect::<Vec<_>>()
        };
        let before = cuts(node).len();
        node.snapshot.send_replace(Some(Arc::new(without(&held, other))));
        application.read_u8().await.expect_err("cut, and not finished");
        let event = eventually("a cut", || cuts(node).into_iter().nth(before)).await;
        assert_eq!(event.reason, Some(reason), "node {place}");
        for node in chain.nodes() {
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
        // And nothing new gets past it.
        chain.refused().await;
        node.snapshot.send_replace(Some(held));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_snapshot_cuts() {
    let chain = Chain::start().await;
    for node in chain.nodes() {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        let held = node.snapshot.send_replace(None);
        application.read_u8().await.expect_err("cut");
        node.snapshot.send_replace(held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforcer_that_ends_takes_every_connection_with_it() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    chain.destination.enforcer.abort();
    application.read_u8().await.expect_err("cut");
    let event = chain.destination.audit.until("a cut", |event| event.access == Access::Cut).await;
    assert_eq!(event.reason, Some("shutdown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_nobody_renews_is_cut_when_its_credential_ends() {
    let chain = Chain::start_with(Limits::default(), Duration::from_secs(3)).await;
    let mut live = Vec::new();
    for _ in 0..20 {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        live.push(application);
    }
    let ends = chain.nodes().iter().flat_map(|node| node.proxy.connections().list()).map(|one| one.deadline).max();
    let ends = ends.expect("a deadline");
    for application in &mut live {
        application.read_u8().await.expect_err("cut");
    }
    let late = federation_identity::now().since(ends);
    assert!(late < Duration::from_secs(1), "{late:?} late");
    for node in chain.nodes() {
        eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
    }
    let cut = |event: &crate::AccessEvent| event.access == Access::Cut && event.reason == Some("expired");
    let by_expiry: usize = chain.nodes().iter().map(|node| node.audit.all().into_iter().filter(&cut).count()).sum();
    assert!(by_expiry >= 20, "{by_expiry} were cut by expiry");
    // And the ended credential opens nothing.
    assert_eq!(chain.refused().await.reason, DenialReason::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_told_denial_is_heard_only_from_where_the_connection_goes() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    let id = chain.source.proxy.connections().list()[0].id;
    let (east, west) = (chain.world.id("east"), chain.world.id("west"));
    let reason = DenialReason::Rule;
    assert!(!chain.near.proxy.denied(id, Some(east), reason, "not yours"));
    assert!(!chain.near.proxy.denied(id, None, reason, "not yours"));
    assert!(!chain.near.proxy.denied(federation_model::ConnectionId([0; 16]), Some(west), reason, "unknown"));
    ping(&mut application, b"still live").await.expect("an answer");
    assert!(chain.near.proxy.denied(id, Some(west), reason, "by\nhand"));
    application.read_u8().await.expect_err("cut");
    let event = chain.source.audit.until("a cut", |event| event.access == Access::Cut).await;
    assert_eq!((event.reason, &event.detail[..]), (Some("rule"), "by hand"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_cut_what_a_list_shows() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    let why = Cut::Asked("link to east removed".into());
    let east = chain.world.id("east");
    assert_eq!(chain.near.proxy.cut_where(&why, |one| one.from == Some(east)), 0);
    assert_eq!(chain.far.proxy.cut_where(&why, |one| one.from == Some(east)), 1);
    assert_eq!(chain.far.proxy.cut_where(&why, |one| one.from == Some(east)), 0);
    application.read_u8().await.expect_err("cut");
    let event = chain.far.audit.until("a cut", |event| event.access == Access::Cut).await;
    assert_eq!((event.reason, &event.detail[..]), (Some("operator"), "link to east removed"));
}
