//! Short-lived SVIDs: a session lives on by its successors, and ends with its credentials without them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use federation_identity::{now, renewal_due};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::{
    Event,
    testing::{Cluster, Disk, SOON, Setup, until},
};

const LIFE: Duration = Duration::from_secs(3);

/// Renews the SVID of a cluster at half life, until told to stop.
fn renewing(cluster: &Cluster) -> Arc<AtomicBool> {
    let on = Arc::new(AtomicBool::new(true));
    let (disk, live, go) = (cluster.disk.clone(), cluster.live.clone(), on.clone());
    tokio::spawn(async move {
        while go.load(Ordering::SeqCst) {
            let held = live.get().expect("set");
            if now() >= renewal_due(held.not_before(), held.not_after(), 0.0) {
                live.set(disk.svid(LIFE));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    on
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_its_tunnel_outlive_five_svids_and_end_when_renewal_stops() {
    let short = |listen: bool| Setup { ttl: LIFE, ..if listen { Setup::default() } else { Setup::outbound_only() } };
    let east = Cluster::open(Disk::new("east"), short(true)).await;
    let mut west = Cluster::open(Disk::new("west"), short(false)).await;
    let (east_on, west_on) = (renewing(&east), renewing(&west));
    west.join(&east).await;
    east.linked(&west).await;
    let mut near = tokio::time::timeout(SOON, east.link.open_tunnel(west.id())).await.expect("in time").expect("opens");
    let mut far = tokio::time::timeout(SOON, west.incoming.tunnels.recv()).await.expect("in time").expect("arrives");
    let begun = Instant::now();
    let mut echoed = 0_u32;
    while begun.elapsed() < LIFE * 5 {
        near.write_u32(echoed).await.expect("the tunnel lives");
        assert_eq!(far.read_u32().await.expect("the tunnel lives"), echoed);
        far.write_u32(echoed).await.expect("the tunnel lives");
        assert_eq!(near.read_u32().await.expect("the tunnel lives"), echoed);
        echoed += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(west.incoming.events.try_recv().is_err(), "the last session with a member never ended");
    until("replaced sessions without tunnels are closed", || east.link.statuses()[0].sessions <= 3).await;
    // One side stops: nothing that stands on its SVID outlives it.
    west_on.store(false, Ordering::SeqCst);
    let error = tokio::time::timeout(SOON, near.read_u32()).await.expect("cut in time");
    let cut_at = now();
    error.expect_err("cut");
    let ended = west.live.get().expect("set").not_after();
    assert!(cut_at >= ended.before(Duration::from_millis(50)), "not before its end: {cut_at} against {ended}");
    assert!(cut_at <= ended.after(Duration::from_secs(1)), "within a second of it: {cut_at} against {ended}");
    until("no session is left", || east.link.session_peer(west.id()).is_none()).await;
    let event = tokio::time::timeout(SOON, west.incoming.events.recv()).await.expect("in time").expect("an event");
    assert!(matches!(event, Event::SessionClosed { .. }), "{event:?}");
    // With a fresh SVID it comes back by itself.
    west.live.set(west.disk.svid(Duration::from_secs(600)));
    east.linked(&west).await;
    drop(east_on);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_is_renewed_whichever_side_dialled_it() {
    let setup = || Setup { ttl: LIFE, ..Setup::default() };
    let east = Cluster::open(Disk::new("east"), setup()).await;
    let west = Cluster::open(Disk::new("west"), setup()).await;
    let _on = (renewing(&east), renewing(&west));
    west.join(&east).await;
    east.linked(&west).await;
    west.linked(&east).await;
    let begun = Instant::now();
    while begun.elapsed() < LIFE * 3 {
        for (one, other) in [(&east, &west), (&west, &east)] {
            let peer = one.link.session_peer(other.id()).expect("never without a session");
            assert!(peer.not_after() > now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
