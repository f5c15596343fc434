//! Paths that break and heal, and stores that fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use federation_model::{Action, Audience, Body, Intention, RuleState};
use federation_store::{BoxFuture, Change, Damage, Key, Kind, Revision, Row, Store, StoreError};

use crate::{
    LinkState,
    testing::{Cluster, Disk, Path, Setup, rule, until},
};

/// East behind a path that can be cut, west that only dials.
async fn behind_a_path() -> (Cluster, Cluster, Path) {
    let port = std::net::UdpSocket::bind("127.0.0.1:0").expect("port").local_addr().expect("bound");
    let path = Path::to(port).await;
    let setup = Setup { listen: Some(port), advertise: vec![path.front], ..Setup::default() };
    let east = Cluster::open(Disk::new("east"), setup).await;
    let west = Cluster::open(Disk::new("west"), Setup::outbound_only()).await;
    west.join(&east).await;
    west.linked(&east).await;
    east.linked(&west).await;
    (east, west, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_partition_write_and_converge_once_it_heals() {
    let (east, west, path) = behind_a_path().await;
    path.cut(true);
    let cut = tokio::time::Instant::now();
    until("both sides notice", || {
        east.link.session_peer(west.id()).is_none() && west.link.session_peer(east.id()).is_none()
    })
    .await;
    // Three heartbeats of 200 ms, and slack for a busy machine.
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
    assert_eq!(east.link.statuses()[0].state, LinkState::Waiting);
    until("the reason is told", || west.link.statuses()[0].error.is_some()).await;
    for number in 0..20 {
        east.allow(&format!("east{number}")).await;
        west.allow(&format!("west{number}")).await;
    }
    // And one rule on both sides: siblings.
    let both = |action| Body::Intention(Intention { key: rule("both"), state: RuleState::Is(action) });
    east.link.write(Audience::Law, both(Action::Allow), "test".into()).await.expect("written");
    west.link.write(Audience::Law, both(Action::Deny), "test".into()).await.expect("written");
    path.cut(false);
    for number in 0..20 {
        west.holds(&format!("east{number}")).await;
        east.holds(&format!("west{number}")).await;
    }
    for one in [&east, &west] {
        one.snapshot_where("the conflict shows", |held| {
            held.conflicts().iter().any(|conflict| conflict.key == rule("both") && conflict.siblings.len() == 2)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_common_neighbour_relays_what_a_broken_link_does_not() {
    let (east, west, path) = behind_a_path().await;
    let north = Cluster::start("north").await;
    north.join(&east).await;
    north.linked(&west).await;
    path.cut(true);
    until("east and west are apart", || west.link.session_peer(east.id()).is_none()).await;
    // North reaches east by the same path, and dials it only if it lost it; east dials north.
    east.linked(&north).await;
    west.allow("by-west").await;
    east.holds("by-west").await;
    east.allow("by-east").await;
    west.holds("by-east").await;
}

/// A store that refuses writes while told so.
struct Failing {
    inner: Arc<dyn Store>,
    failing: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    uncertain: bool,
}

impl Store for Failing {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        self.inner.list(kind, prefix)
    }

    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>> {
        self.inner.all()
    }

    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if self.failing.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let detail = "told so".to_owned();
            let error =
                if self.uncertain { StoreError::Uncertain { detail } } else { StoreError::Unavailable { detail } };
            return Box::pin(async move { Err(error) });
        }
        self.inner.apply(changes)
    }

    fn damaged(&self) -> Vec<Damage> {
        self.inner.damaged()
    }
}

impl Failing {
    /// A disk whose writes can be made to fail, and how many did.
    fn disk(uncertain: bool) -> (Disk, Arc<AtomicBool>, Arc<AtomicUsize>) {
        let (failing, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let disk = Disk::new("east");
        let store = Self { inner: disk.store.clone(), failing: failing.clone(), refused: refused.clone(), uncertain };
        (Disk { store: Arc::new(store), ..disk }, failing, refused)
    }
}

async fn after_a_failing_store(uncertain: bool) -> (Cluster, Cluster) {
    let (disk, failing, _) = Failing::disk(uncertain);
    let east = Cluster::open(disk, Setup::default()).await;
    let west = Cluster::open(Disk::new("west"), Setup::outbound_only()).await;
    west.join(&east).await;
    east.linked(&west).await;
    east.allow("before").await;
    west.holds("before").await;
    failing.store(true, Ordering::SeqCst);
    let body = Body::Intention(Intention { key: rule("lost"), state: RuleState::Is(Action::Allow) });
    let error = east.link.write(Audience::Law, body, "test".into()).await.expect_err("not durable");
    assert_eq!(error.reason(), "store", "{error}");
    // What a member says meanwhile is not taken, and not lost either.
    west.allow("from-west").await;
    failing.store(false, Ordering::SeqCst);
    east.allow("after").await;
    west.holds("after").await;
    east.holds("from-west").await;
    let held = west.link.records().borrow().clone();
    let lost =
        held.iter().any(|record| matches!(&record.value().body, Body::Intention(one) if one.key == rule("lost")));
    assert!(!lost, "what was not durable was not sent");
    (east, west)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_not_durable_is_neither_sent_nor_leaves_a_gap() {
    let (east, _west) = after_a_failing_store(false).await;
    let held = east.link.records().borrow().clone();
    assert!(held.iter().filter(|record| record.id().writer == east.id()).all(|record| record.id().epoch == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_tried_ever_more_rarely_and_both_ways_go_on_once_it_has_room() {
    let (disk, failing, refused) = Failing::disk(false);
    // Nothing but what this is about brings them together again.
    let limits = crate::Limits { anti_entropy: Duration::from_secs(600), ..crate::testing::limits() };
    let east = Cluster::open(disk, Setup { limits: limits.clone(), ..Setup::default() }).await;
    let west = Cluster::open(Disk::new("west"), Setup { limits, ..Setup::outbound_only() }).await;
    west.join(&east).await;
    east.linked(&west).await;
    failing.store(true, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    west.allow("one").await;
    until("east tries, pauses, and tries again", || refused.load(Ordering::SeqCst) >= 3).await;
    // Pauses of 100 and 200 ms lie between three tries.
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    west.allow("two").await;
    assert!(refused.load(Ordering::SeqCst) <= 5, "what comes during a pause is left for later");
    failing.store(false, Ordering::SeqCst);
    east.holds("one").await;
    east.holds("two").await;
    east.allow("east").await;
    west.holds("east").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_write_that_may_have_been_made_a_new_epoch_begins() {
    let (east, _west) = after_a_failing_store(true).await;
    let held = east.link.records().borrow().clone();
    let last = held.iter().rfind(|record| record.id().writer == east.id()).expect("own");
    assert_eq!(last.id().epoch, 2, "its place may be taken");
}
