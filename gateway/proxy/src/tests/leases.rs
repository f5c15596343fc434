//! What becomes of connections once the owner of their service was not heard for its lease.

use std::{sync::Arc, time::Duration};

use federation_model::{Action, DenialReason, Staleness, WhenStale};
use tokio::{io::AsyncReadExt, time::Instant};

use super::world::{ALLOW, Chain, Node, Rule, eventually, ping};
use crate::Access;

/// The service's lease in these tests; shorter than may be chosen, so that they are.
const LEASE: Duration = Duration::from_millis(1_500);

/// Puts a snapshot in force at one node in which west's services have a policy; `local` stands beside them in east.
fn publish(chain: &Chain, node: &Node, when: WhenStale, rules: &[Rule], local: Option<u16>) {
    let held = node.snapshot.borrow().clone().expect("a snapshot");
    let mut snapshot = chain.world.snapshot(held.own_name.as_str(), held.revision + 1, rules);
    let mut service = chain.world.service("payments.billing.west");
    service.staleness = Staleness { when, lease: LEASE };
    snapshot.catalog.insert(service);
    if let Some(port) = local {
        let mut service = chain.world.service("payments.billing.east");
        service.port = port;
        snapshot.catalog.insert(service);
    }
    node.snapshot.send_replace(Some(Arc::new(snapshot)));
}

/// West is silent from now on, for this node.
fn silence(node: &Node, since: Duration) {
    *node.heard.lock().expect("whole") = Some(Instant::now() - since);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_deny_a_live_connection_ends_with_the_lease_at_whichever_side_of_the_source_knows() {
    let chain = Chain::start().await;
    for node in [&chain.source, &chain.near] {
        publish(&chain, node, WhenStale::Deny, ALLOW, None);
        silence(node, Duration::ZERO);
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        silence(node, Duration::ZERO);
        let from = Instant::now();
        application.read_u8().await.expect_err("cut, and not finished");
        let took = from.elapsed();
        assert!(took >= LEASE, "cut after {took:?}, before the lease was over");
        assert!(took < LEASE + Duration::from_secs(1), "cut only after {took:?}");
        let event = node.audit.until("a cut", |event| event.access == Access::Cut).await;
        assert_eq!(event.reason, Some("stale"));
        assert!(event.detail.contains("its policy is to deny"), "{}", event.detail);
        assert!(event.detail.contains("hanse link status"), "{}", event.detail);
        // Nothing new either, until it is heard again.
        assert_eq!(chain.refused().await.reason, DenialReason::Stale);
        silence(node, Duration::ZERO);
        let (mut again, _task) = chain.call().await;
        ping(&mut again, b"heard again").await.expect("an answer");
        publish(&chain, node, WhenStale::Keep, ALLOW, None);
        drop((application, again));
        for node in chain.nodes() {
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_never_heard_is_older_than_any_lease() {
    let chain = Chain::start().await;
    publish(&chain, &chain.near, WhenStale::Deny, ALLOW, None);
    *chain.near.heard.lock().expect("whole") = None;
    assert_eq!(chain.refused().await.reason, DenialReason::Stale);
    let event = chain.near.audit.until("a refusal", |event| event.access == Access::Denied).await;
    assert!(event.detail.contains("no data since this process started"), "{}", event.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_silence_of_a_source_is_nothing_to_the_owner() {
    let chain = Chain::start().await;
    for node in [&chain.far, &chain.destination] {
        publish(&chain, node, WhenStale::Deny, ALLOW, None);
        *node.heard.lock().expect("whole") = None;
    }
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_becomes_deny_cuts_what_was_opened_before_it() {
    let chain = Chain::start().await;
    silence(&chain.source, LEASE);
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    publish(&chain, &chain.source, WhenStale::Deny, ALLOW, None);
    application.read_u8().await.expect_err("cut");
    let event = chain.source.audit.until("a cut", |event| event.access == Access::Cut).await;
    assert_eq!(event.reason, Some("stale"));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_keep_and_prefer_local_a_live_connection_outlives_the_lease() {
    let chain = Chain::start().await;
    for when in [WhenStale::Keep, WhenStale::PreferLocal] {
        for node in [&chain.source, &chain.near] {
            publish(&chain, node, when, ALLOW, None);
            silence(node, 2 * LEASE);
        }
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"nobody stands in").await.expect("an answer");
        publish(&chain, &chain.source, when, ALLOW, Some(8080));
        ping(&mut application, b"live").await.expect("an answer");
    }
}

/// Whom a call reaches that was asked for payments.billing.west: the destination names the one it was dialled as.
async fn reached(chain: &Chain) -> String {
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    let list = chain.source.proxy.connections().list();
    let found = list.iter().map(|one| one.service.to_string()).collect();
    drop(application);
    eventually("an empty registry", || (chain.source.proxy.connections().count() == 0).then_some(())).await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_service_stands_in_only_for_a_stale_one_that_prefers_it_and_only_if_both_may_be_called() {
    const BOTH: &[Rule] =
        &[(Action::Allow, "web.shop.east", "payments.billing.west"), (Action::Allow, "web.shop.east", "*")];
    let chain = Chain::start().await;
    let stand_in = |node: &Node| crate::connect::stand_in(&node.proxy.0, &super::world::name());
    let node = &chain.source;
    for (when, silent, rules, port, wanted) in [
        (WhenStale::PreferLocal, true, BOTH, Some(8080), true),
        (WhenStale::PreferLocal, false, BOTH, Some(8080), false),
        (WhenStale::Keep, true, BOTH, Some(8080), false),
        (WhenStale::Deny, true, BOTH, Some(8080), false),
        (WhenStale::PreferLocal, true, BOTH, None, false),
        (WhenStale::PreferLocal, true, BOTH, Some(9090), false),
        (WhenStale::PreferLocal, true, &[], Some(8080), false),
    ] {
        publish(&chain, node, when, rules, port);
        silence(node, if silent { LEASE } else { Duration::ZERO });
        let found = stand_in(node).map(|name| name.to_string());
        assert_eq!(found.as_deref(), wanted.then_some("payments.billing.east"), "{when} {silent} {rules:?} {port:?}");
    }
    // One that cannot be called itself is no reason to fail.
    publish(&chain, node, WhenStale::PreferLocal, ALLOW, Some(8080));
    silence(node, LEASE);
    assert_eq!(stand_in(node).map(|name| name.to_string()).as_deref(), Some("payments.billing.east"));
    assert_eq!(reached(&chain).await, "payments.billing.west");
}
