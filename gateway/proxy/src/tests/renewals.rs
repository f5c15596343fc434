//! Renewals keep what is live alive, and only for whom it is meant.

use std::{sync::Arc, time::Duration};

use federation_identity::{now, passthrough};
use federation_model::ConnectionId;
use tokio::time::{Instant, sleep};

use super::world::{Chain, ping};
use crate::Limits;

/// Gives every node a fresh SVID at half life, as edge and sidecar do.
async fn renew_svids(chain: Arc<Chain>, ttl: Duration) {
    loop {
        sleep(ttl / 2).await;
        chain.source.svid.set(chain.world.workload_for("web.shop.east", ttl));
        chain.near.svid.set(chain.world.edge_for("east", ttl));
        chain.far.svid.set(chain.world.edge_for("west", ttl));
        chain.destination.svid.set(chain.world.workload_for("payments.billing.west", ttl));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_connection_outlives_five_svids_and_new_laws_on_the_way() {
    let ttl = Duration::from_secs(3);
    let chain = Arc::new(Chain::start_with(Limits::default(), ttl).await);
    let renewing = tokio::spawn(renew_svids(chain.clone(), ttl));
    let mut live = Vec::new();
    for _ in 0..70 {
        let (mut application, _task) = chain.call().await;
        ping(&mut application, b"live").await.expect("an answer");
        live.push(application);
    }
    let started = Instant::now();
    while started.elapsed() < ttl * 5 + Duration::from_secs(1) {
        for application in &mut live {
            ping(application, b"still live").await.expect("an answer");
        }
        // A new snapshot asks the law again at each hop, by the newest proof.
        for node in chain.nodes() {
            chain.law(node, super::world::ALLOW);
        }
        sleep(Duration::from_millis(200)).await;
    }
    for node in chain.nodes() {
        // More than 64 exporter values, so a renewal took two connections; they are gone when it is over.
        let listed = node.proxy.connections().list();
        assert!(listed.len() >= 70, "{} connections", listed.len());
    }
    renewing.abort();
    let _ = renewing.await;
    // Nobody renews SVIDs any more: all ends with the last of them.
    let ends = [&chain.source, &chain.destination].map(|node| node.svid.get().expect("an SVID").not_after());
    let ends = ends.into_iter().max().expect("two");
    for application in &mut live {
        while ping(application, b"last").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(now().since(ends) < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_the_destination_refuses_moves_nothing() {
    let ttl = Duration::from_secs(4);
    let chain = Chain::start_with(Limits::default(), ttl).await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    let before = chain.source.proxy.connections().list()[0].deadline;
    // The destination comes back as another of the service's processes: the old connection is not its to renew.
    chain.source.svid.set(chain.world.workload("web.shop.east"));
    chain.destination.svid.set(chain.world.workload("ledger.billing.west"));
    while ping(&mut application, b"until the end").await.is_ok() {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(now() >= before, "it was cut early");
    assert!(now().since(before) < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_is_taken_only_from_the_source_and_the_side_it_came_from() {
    let chain = Chain::start().await;
    let (mut application, _task) = chain.call().await;
    ping(&mut application, b"live").await.expect("an answer");
    let connection = chain.source.proxy.0.connections.all()[0].clone();
    let heading = connection.state().heading.clone().expect("a heading");
    let (id, east, west) = (connection.id, chain.world.id("east"), chain.world.id("west"));
    let sign = |account: &str, destination: &str, id| {
        let svid = chain.world.workload(account);
        passthrough::sign_extension(&svid, destination, id, None, heading.hello, now()).expect("a header")
    };
    sleep(Duration::from_millis(5)).await;
    let good = sign("web.shop.east", &heading.destination, id);
    let far = &chain.far.proxy;
    let deadline = || chain.far.proxy.connections().list()[0].deadline;
    let before = deadline();
    for (header, from, why) in [
        (good.clone(), None, "no session"),
        (good.clone(), Some(west), "the other side"),
        (good[..good.len() - 1].to_vec(), Some(east), "cut short"),
        ([&good[..], b"x"].concat(), Some(east), "followed by something"),
        (sign("thief.shop.east", &heading.destination, id), Some(east), "another source"),
        (sign("web.shop.east", "ledger.billing.west.mesh.internal", id), Some(east), "another destination"),
        (sign("web.shop.east", &heading.destination, ConnectionId([0; 16])), Some(east), "another connection"),
    ] {
        far.extend(id, &header, from).expect_err(why);
        assert_eq!(deadline(), before, "{why}");
    }
    far.extend(ConnectionId([0; 16]), &good, Some(east)).expect_err("unknown connection");
    sleep(Duration::from_millis(1100)).await;
    let fresh = sign("web.shop.east", &heading.destination, id);
    far.extend(id, &fresh, Some(east)).expect("extended");
    assert!(deadline() > before);
    far.extend(id, &fresh, Some(east)).expect_err("presented before");
    far.extend(id, &good, Some(east)).expect_err("older than the last one");
}
