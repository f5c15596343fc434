//! Edges that go in good order: what their peers do until the successor is there.

use std::time::Duration;

use federation_model::ConnectionId;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    Event, TunnelError,
    testing::{Cluster, SOON, Setup, until},
};

const HOLD: Duration = Duration::from_secs(10);

async fn pair() -> (Cluster, Cluster) {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    west.join(&east).await;
    east.linked(&west).await;
    west.linked(&east).await;
    (east, west)
}

/// How soon nobody counts as just opened any more.
async fn settled(cluster: &Cluster, hold: Duration) {
    until("it was opened long ago", || cluster.link.shared.opened.elapsed() > hold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_goes_on_and_what_is_new_waits_for_the_successor() {
    let (east, mut west) = pair().await;
    let mut tunnel = east.link.open_tunnel(west.id()).await.expect("opens");
    let mut far = timeout(SOON, west.incoming.tunnels.recv()).await.expect("in time").expect("a tunnel");
    west.link.leave_sessions();
    until("east knows", || east.link.shared.registry.past(&west.id()).left.is_some()).await;
    let refused = east.link.open_tunnel_toward(west.id()).await.expect_err("west goes");
    assert!(matches!(refused, TunnelError::NoSession(_)), "{refused}");
    tunnel.write_all(b"still").await.expect("sent");
    let mut bytes = [0; 5];
    timeout(SOON, tokio::io::AsyncReadExt::read_exact(&mut far, &mut bytes)).await.expect("in time").expect("read");

    let (link, id) = (east.link.clone(), west.id());
    let waiting = tokio::spawn(async move { link.back(id, HOLD).await });
    let disk = west.kill().await;
    let west = Cluster::open(disk, Setup::default()).await;
    assert!(timeout(HOLD, waiting).await.expect("in time").expect("task"), "nobody came back");
    east.link.open_tunnel(west.id()).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_shall_end_are_named_to_the_member_they_came_from() {
    let (mut east, west) = pair().await;
    let ids = [ConnectionId([1; 16]), ConnectionId([2; 16])];
    assert!(west.link.notify_leaving(east.id(), &ids));
    let told = async {
        loop {
            if let Event::Leaving { member, connections } = east.incoming.events.recv().await.expect("open") {
                return (member, connections);
            }
        }
    };
    assert_eq!(timeout(SOON, told).await.expect("in time"), (west.id(), ids.to_vec()));
    assert!(!west.link.notify_leaving(west.id(), &ids), "there is no session with itself");
    // The session stands, and takes what is new.
    east.link.open_tunnel(west.id()).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_lost_without_a_word_or_is_out_is_not_waited_for() {
    let (east, west) = pair().await;
    let hold = Duration::from_millis(300);
    settled(&east, hold).await;
    let lost = east.link.shared.registry.of(&west.id());
    lost.iter().for_each(|session| session.close(crate::endpoint::code::DEAD, "dead"));
    until("the loss is noticed", || {
        let held = east.link.shared.registry.of(&west.id());
        held.iter().all(|session| lost.iter().all(|lost| lost.number != session.number))
    })
    .await;
    // Nobody said that it goes: a session comes again by itself, but nothing is held for it.
    let back = east.link.back(west.id(), hold).await;
    assert!(!back || east.link.session_peer(west.id()).is_some());
    east.link.block(west.id(), "test".into()).await.expect("durable");
    until("no session", || east.link.session_peer(west.id()).is_none()).await;
    assert!(!east.link.back(west.id(), HOLD).await, "it is blocked");
}
