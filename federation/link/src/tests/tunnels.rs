//! Tunnels both ways, their ends, their bounds, and the notices beside them.

use std::time::Duration;

use federation_model::{ConnectionId, DenialReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    Event, Limits,
    limits::TUNNELS_QUEUE,
    testing::{Cluster, Disk, SOON, Setup, limits, until},
};

async fn pair() -> (Cluster, Cluster) {
    let (east, west) = (Cluster::start("east").await, Cluster::open(Disk::new("west"), Setup::outbound_only()).await);
    west.join(&east).await;
    east.linked(&west).await;
    west.linked(&east).await;
    (east, west)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_both_ways_whoever_opened_the_tunnel() {
    let (mut east, mut west) = pair().await;
    for east_opens in [true, false] {
        let (opener, taker) = if east_opens { (&mut east, &mut west) } else { (&mut west, &mut east) };
        let mut near = soon(opener.link.open_tunnel(taker.id())).await.expect("opens");
        let mut far = soon(taker.incoming.tunnels.recv()).await.expect("arrives");
        assert_eq!(far.member, opener.id());
        assert_eq!(far.peer.id(), &opener.disk.domain.edge(&opener.disk.name));
        assert_eq!(near.peer.id(), &taker.disk.domain.edge(&taker.disk.name));
        near.write_all(b"ping").await.expect("sent");
        let mut bytes = [0; 4];
        soon(far.read_exact(&mut bytes)).await.expect("read");
        assert_eq!(&bytes, b"ping");
        far.write_all(b"pong").await.expect("sent");
        // A half close is an end, and the other half goes on.
        near.shutdown().await.expect("half closed");
        let mut rest = Vec::new();
        soon(far.read_to_end(&mut rest)).await.expect("a clean end");
        assert!(rest.is_empty());
        far.write_all(b"!").await.expect("sent");
        far.shutdown().await.expect("closed");
        soon(near.read_to_end(&mut rest)).await.expect("a clean end");
        assert_eq!(rest, b"pong!");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_pass_unchanged_and_more_than_the_window() {
    let (east, mut west) = pair().await;
    let sent: Vec<u8> = (0..6_000_000_u32).map(|number| (number % 251) as u8).collect();
    let near = soon(east.link.open_tunnel(west.id())).await.expect("opens");
    let mut far = soon(west.incoming.tunnels.recv()).await.expect("arrives");
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        let mut near = near;
        near.write_all(&sent).await.expect("sent");
        near.shutdown().await.expect("closed");
        // Held until the far end closes, so that nothing is cut.
        let _ = near.read_to_end(&mut Vec::new()).await;
    });
    let mut received = Vec::new();
    soon(far.read_to_end(&mut received)).await.expect("read");
    assert!(received == expected, "{} bytes of {}", received.len(), expected.len());
    far.shutdown().await.expect("closed");
    soon(sending).await.expect("done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_dropped_is_a_cut_and_not_an_end() {
    let (east, mut west) = pair().await;
    let mut near = soon(east.link.open_tunnel(west.id())).await.expect("opens");
    let mut far = soon(west.incoming.tunnels.recv()).await.expect("arrives");
    near.write_all(b"half a message").await.expect("sent");
    let mut bytes = [0; 4];
    soon(far.read_exact(&mut bytes)).await.expect("read");
    drop(near);
    soon(far.read_to_end(&mut Vec::new())).await.expect_err("a reset");
    until("counted down", || east.link.statuses()[0].tunnels == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_session_takes_no_tunnel() {
    let (east, west) = pair().await;
    let west_id = west.id();
    west.kill().await;
    until("the end is noticed", || east.link.session_peer(west_id).is_none()).await;
    assert_eq!(east.link.open_tunnel(west_id).await.expect_err("none").reason(), "no_session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_that_nobody_takes_are_reset_once_the_queue_is_full() {
    let (east, west) = pair().await;
    let mut held = Vec::new();
    for _ in 0..TUNNELS_QUEUE {
        held.push(soon(east.link.open_tunnel(west.id())).await.expect("opens"));
    }
    until("all wait to be taken", || west.link.statuses()[0].tunnels as usize == TUNNELS_QUEUE).await;
    let mut surplus = soon(east.link.open_tunnel(west.id())).await.expect("opens");
    soon(surplus.read_to_end(&mut Vec::new())).await.expect_err("reset as overloaded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_of_one_session_are_bounded() {
    let bounded = || Setup { limits: Limits { tunnels_max: 8, ..limits() }, ..Setup::default() };
    let east = Cluster::open(Disk::new("east"), bounded()).await;
    let mut west = Cluster::open(Disk::new("west"), Setup { listen: None, ..bounded() }).await;
    west.join(&east).await;
    east.linked(&west).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let tunnel = soon(east.link.open_tunnel(west.id())).await.expect("opens");
        held.push((tunnel, soon(west.incoming.tunnels.recv()).await.expect("arrives")));
    }
    assert_eq!(east.link.open_tunnel(west.id()).await.expect_err("full").reason(), "too_many");
    held.clear();
    until("counted down", || east.link.statuses()[0].tunnels == 0).await;
    soon(east.link.open_tunnel(west.id())).await.expect("opens again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_live_in_one_session() {
    let (east, mut west) = pair().await;
    // More than a peer has before it was greeted.
    let mut held = Vec::new();
    for number in 0..300_u32 {
        let mut tunnel = soon(east.link.open_tunnel(west.id())).await.expect("opens");
        tunnel.write_all(&number.to_be_bytes()).await.expect("sent");
        held.push((tunnel, soon(west.incoming.tunnels.recv()).await.expect("arrives")));
    }
    let mut seen: Vec<u32> = Vec::new();
    for (_, far) in &mut held {
        seen.push(soon(far.read_u32()).await.expect("read"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    assert_eq!(east.link.statuses()[0].tunnels, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_tunnels_that_fill_the_window_do_not_kill_the_session() {
    let small = || Limits { stream_window: 16 * 1024, connection_window: 64 * 1024, ..limits() };
    let east = Cluster::open(Disk::new("east"), Setup { limits: small(), ..Setup::default() }).await;
    let mut west = Cluster::open(Disk::new("west"), Setup { limits: small(), ..Setup::outbound_only() }).await;
    west.join(&east).await;
    east.linked(&west).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let tunnel = soon(east.link.open_tunnel(west.id())).await.expect("opens");
        open.push((tunnel, soon(west.incoming.tunnels.recv()).await.expect("arrives")));
    }
    let mut stalled = Vec::new();
    for (mut tunnel, far) in open {
        stalled.push((tokio::spawn(async move { tunnel.write_all(&[1; 1 << 20]).await.map(|()| tunnel) }), far));
    }
    // Heartbeats from east cannot pass now; three of them, and again as long, go by.
    let started = tokio::time::Instant::now();
    until("a second and a half", || started.elapsed() > Duration::from_millis(1_500)).await;
    assert!(east.link.session_peer(west.id()).is_some());
    let mut reading = Vec::new();
    for (sending, mut far) in stalled {
        reading.push(tokio::spawn(async move {
            let mut bytes = vec![0; 1 << 20];
            far.read_exact(&mut bytes).await.expect("all of it");
            drop(soon(sending).await.expect("task").expect("sent"));
        }));
    }
    for task in reading {
        soon(task).await.expect("read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_and_extensions_reach_the_other_edge() {
    let (mut east, mut west) = pair().await;
    let connection = ConnectionId([5; 16]);
    let (reason, detail) = (DenialReason::Guardrail, "guardrail \"deny * -> payments.billing.west\"");
    assert!(west.link.notify_denied(east.id(), connection, reason, detail));
    match soon(east.incoming.events.recv()).await.expect("an event") {
        Event::Denied { member, connection: told, reason, detail } => {
            assert_eq!((member, told, reason.as_str()), (west.id(), connection, "guardrail"));
            assert!(detail.contains("payments.billing.west"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(east.link.notify_extend(west.id(), connection, vec![1, 2, 3]));
    match soon(west.incoming.events.recv()).await.expect("an event") {
        Event::Extend { member, peer, connection: told, header } => {
            assert_eq!((member, told, header), (east.id(), connection, vec![1, 2, 3]));
            assert_eq!(peer.id(), &east.disk.domain.edge(&east.disk.name));
        }
        other => panic!("{other:?}"),
    }
    assert!(!east.link.notify_extend(west.id(), connection, vec![0; 64 * 1024]), "past the bound");
    assert!(!east.link.notify_denied(east.id(), connection, reason, detail), "no session with oneself");
    let west_id = west.id();
    west.kill().await;
    match soon(east.incoming.events.recv()).await.expect("an event") {
        Event::SessionClosed { member } => assert_eq!(member, west_id),
        other => panic!("{other:?}"),
    }
}
