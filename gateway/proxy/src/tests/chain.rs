//! What an allowed call looks like, and who refuses one that is not.

use std::time::Duration;

use federation_model::DenialReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{Chain, NOTHING, eventually, pair, ping};
use crate::{Access, Direction};

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_call_works_and_everybody_saw_who_called() {
    let chain = Chain::start().await;
    let (mut application, task) = chain.call().await;
    ping(&mut application, b"ask").await.expect("an answer");
    for (node, direction) in
        chain.nodes().into_iter().zip([Direction::Outbound, Direction::Passage, Direction::Passage, Direction::Inbound])
    {
        let event = node.audit.until("a permit", |event| event.access == Access::Permitted).await;
        assert_eq!(event.direction, direction);
        assert_eq!(event.source.expect("a source").to_string(), "spiffe://east.mesh.internal/ns/shop/sa/web");
        assert_eq!(event.destination, "payments.billing.west");
        assert!(event.rule.is_some() && event.credential.is_some() && event.policy == 1);
        let listed = node.proxy.connections().list();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].direction, direction);
    }
    let server = chain.source.proxy.connections().list()[0].server.clone().expect("a server");
    assert_eq!(server.to_string(), "spiffe://west.mesh.internal/ns/billing/sa/payments");
    application.shutdown().await.expect("shutdown");
    application.read_to_end(&mut Vec::new()).await.expect("a clean end");
    task.await.expect("task").expect("served");
    for node in chain.nodes() {
        let event = node.audit.until("an end", |event| event.access == Access::Closed).await;
        assert_eq!(event.reason, None, "{event:?}");
        assert!(event.bytes_to_server > 0 && event.bytes_to_client > 0);
        eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_pass_unchanged_both_ways_at_once() {
    let chain = Chain::start().await;
    let (application, _task) = chain.call().await;
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = application.into_split();
    let bytes = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&bytes).await.expect("sent");
        write.shutdown().await.expect("shutdown");
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.expect("a clean end");
    assert!(got == sent, "{} bytes came back", got.len());
    writer.await.expect("writer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_finished_still_gets_the_answer() {
    let chain = Chain::start().await;
    let (mut application, task) = chain.call().await;
    application.write_all(b"the whole question").await.expect("sent");
    application.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    application.read_to_end(&mut got).await.expect("a clean end");
    assert_eq!(got, b"the whole question");
    task.await.expect("task").expect("served");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_four_refuses_by_default_and_the_caller_learns_why() {
    let chain = Chain::start().await;
    for (place, node) in chain.nodes().into_iter().enumerate() {
        chain.law(node, NOTHING);
        let denial = chain.refused().await;
        assert_eq!(denial.reason, DenialReason::DefaultDeny, "node {place}: {denial}");
        let event = node.audit.until("a denial", |event| event.access == Access::Denied).await;
        assert_eq!(event.reason, Some("default_deny"));
        assert!(event.detail.contains("no intention allows it"), "{}", event.detail);
        assert_eq!(event.source.expect("a source").to_string(), "spiffe://east.mesh.internal/ns/shop/sa/web");
        // Whoever told the source, its own log has the reason.
        let own = chain.source.audit.until("a denial", |event| event.access == Access::Denied).await;
        assert_eq!(own.reason, Some("default_deny"));
        chain.law(node, super::world::ALLOW);
        for node in chain.nodes() {
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
    }
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"allowed again").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_each_of_the_four_refuses() {
    let chain = Chain::start().await;
    for node in chain.nodes() {
        let held = node.snapshot.send_replace(None);
        assert_eq!(chain.refused().await.reason, DenialReason::NoSnapshot);
        node.snapshot.send_replace(held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_enforcer_each_of_the_four_refuses() {
    for place in 0..4 {
        let chain = Chain::start().await;
        let node = chain.nodes()[place];
        node.enforcer.abort();
        let gone = || (!node.proxy.0.enforcing.load(std::sync::atomic::Ordering::Acquire)).then_some(());
        eventually("the enforcer's end", gone).await;
        assert_eq!(chain.refused().await.reason, DenialReason::NoSnapshot, "node {place}");
        let event = node.audit.until("a denial", |event| event.access == Access::Denied).await;
        assert_eq!(event.check, Some("no_enforcer"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_and_a_wrong_port_are_refused_before_anything_is_dialled() {
    let chain = Chain::start().await;
    for (service, port, check) in [
        ("nothing.billing.west", 8080, "unknown_service"),
        ("payments.billing.north", 8080, "unknown_service"),
        ("payments.billing.west", 8081, "wrong_port"),
    ] {
        let (_application, captured) = pair().await;
        let denial = chain.source.proxy.connect(captured, &service.parse().expect("a name"), port).await;
        assert_eq!(denial.expect_err("refused").reason, DenialReason::UnknownService);
        chain.source.audit.until(check, |event| event.check == Some(check)).await;
    }
    assert!(chain.near.audit.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_not_exported_does_not_exist_for_another_cluster() {
    let chain = Chain::start().await;
    let held = chain.far.snapshot.borrow().clone().expect("a snapshot");
    let mut hidden = (*held).clone();
    let mut service = chain.world.service("payments.billing.west");
    service.exported = false;
    hidden.catalog.insert(service);
    hidden.revision += 1;
    let hidden = std::sync::Arc::new(hidden);
    for node in [&chain.far, &chain.destination] {
        node.snapshot.send_replace(Some(hidden.clone()));
        let denial = chain.refused().await;
        assert_eq!(denial.reason, DenialReason::UnknownService, "{denial}");
        node.snapshot.send_replace(Some(held.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_does_not_listen_is_told_as_such() {
    let chain = Chain::start().await;
    chain.app.abort();
    eventually("a closed port", || chain.app.is_finished().then_some(())).await;
    let denial = chain.refused().await;
    assert_eq!(denial.reason, DenialReason::NoInstance, "{denial}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_past_the_bound_is_refused_as_overloaded() {
    let limits = crate::Limits { connections: 1, ..Default::default() };
    let chain = Chain::start_with(limits, Duration::from_secs(3600)).await;
    let (mut first, _task) = chain.call().await;
    ping(&mut first, b"live").await.expect("an answer");
    assert_eq!(chain.refused().await.reason, DenialReason::Overloaded);
    ping(&mut first, b"still live").await.expect("an answer");
    drop(first);
    for node in chain.nodes() {
        eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
    }
    let (mut next, _task) = chain.call().await;
    ping(&mut next, b"room").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard() {
    let mut chain = Chain::start().await;
    chain.app.abort();
    eventually("a closed port", || chain.app.is_finished().then_some(())).await;
    let listener = tokio::net::TcpListener::bind(chain.app_address).await.expect("the same port");
    chain.app = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        stream.write_all(b"220 ready").await.expect("sent");
        stream.shutdown().await.expect("shutdown");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let (mut application, _task) = chain.call().await;
    let mut got = Vec::new();
    application.read_to_end(&mut got).await.expect("a clean end");
    assert_eq!(got, b"220 ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_breaks_off_looks_broken_to_the_caller() {
    let mut chain = Chain::start().await;
    chain.app.abort();
    eventually("a closed port", || chain.app.is_finished().then_some(())).await;
    let listener = tokio::net::TcpListener::bind(chain.app_address).await.expect("the same port");
    chain.app = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        stream.write_all(b"half of an ans").await.expect("sent");
        stream.read_u8().await.expect("a byte");
        stream.set_zero_linger().expect("set");
    });
    let (mut application, _task) = chain.call().await;
    let mut got = [0; 14];
    application.read_exact(&mut got).await.expect("half");
    application.write_all(b"x").await.expect("sent");
    application.read_u8().await.expect_err("reset, not finished");
}
