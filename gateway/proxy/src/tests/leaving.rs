//! Connections whose path goes: ended where they began, at a quiet moment, and never within a question or an answer.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::world::{Chain, eventually, ping};
use crate::Access;

/// Longer than the longest silence that is asked for.
const QUIET: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn any_hop_that_goes_has_an_idle_connection_ended_cleanly_where_it_began() {
    for hop in 0..3 {
        let chain = Chain::start().await;
        let (mut application, task) = chain.call().await;
        ping(&mut application, b"ask").await.expect("an answer");
        assert_eq!(chain.nodes()[hop].proxy.wind_up(), 1);
        assert_eq!(chain.nodes()[hop].proxy.wind_up(), 0, "it was asked already");
        let mut rest = Vec::new();
        let ended = timeout(QUIET, application.read_to_end(&mut rest)).await.expect("an end");
        assert_eq!((ended.expect("no break"), rest.len()), (0, 0), "hop {hop}");
        drop(application);
        task.await.expect("task").expect("no refusal");
        let event = chain.source.audit.until("an end", |event| event.access == Access::Closed).await;
        assert_eq!(event.reason, Some("wound_up"));
        for node in chain.nodes() {
            let event = node.audit.until("an end", |event| event.access != Access::Permitted).await;
            assert_eq!(event.access, Access::Closed, "{event:?}");
            eventually("an empty registry", || (node.proxy.connections().count() == 0).then_some(())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_goes_on_asking_is_ended_between_two_questions() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"ask").await.expect("an answer");
    chain.far.proxy.wind_up();
    let (began, mut asked) = (Instant::now(), 0_u32);
    loop {
        let mut peeked = [0; 1];
        match timeout(Duration::from_millis(60), application.peek(&mut peeked)).await {
            Ok(ended) => break assert_eq!(ended.expect("no break"), 0),
            Err(_) => ping(&mut application, b"and again").await.expect("every question has its answer"),
        }
        asked += 1;
        assert!(began.elapsed() < 2 * QUIET, "it was never ended");
    }
    assert!(asked > 3, "it was ended in the first pause, after {asked} questions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_its_answer_is_waited_for_and_a_pause_of_use_is_not() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"ask").await.expect("an answer");
    let destination = &chain.destination.proxy;
    assert_eq!(destination.settle(Duration::from_secs(5)).await, 0, "it is quiet");
    // As if the application were still thinking: what went through last went to it.
    for node in chain.nodes() {
        for held in node.proxy.0.connections.all() {
            held.answered.store(false, std::sync::atomic::Ordering::Relaxed);
        }
    }
    assert_eq!(destination.settle(Duration::from_millis(100)).await, 1, "it is not answered");
    chain.near.proxy.wind_up();
    let mut byte = [0; 1];
    assert!(timeout(QUIET, application.read(&mut byte)).await.is_err(), "it was ended before the answer");
    ping(&mut application, b"and again").await.expect("it still works");
    assert_eq!(timeout(QUIET, application.read(&mut byte)).await.expect("an end").expect("no break"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_end_only_what_goes_to_it() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"ask").await.expect("an answer");
    let ids: Vec<_> = chain.near.proxy.connections().list().iter().map(|held| held.id).collect();
    let (east, west) = (chain.world.members.iter().find(|m| m.name.to_string() == "east").expect("east").id, {
        chain.world.members.iter().find(|m| m.name.to_string() == "west").expect("west").id
    });
    assert_eq!(chain.near.proxy.leaving(&ids, Some(east)), 0);
    assert_eq!(chain.near.proxy.leaving(&[federation_model::ConnectionId([7; 16])], Some(west)), 0);
    ping(&mut application, b"still").await.expect("it lives");
    assert_eq!(chain.near.proxy.leaving(&ids, Some(west)), 1);
    application.shutdown().await.expect("shutdown");
}
