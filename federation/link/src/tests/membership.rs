//! Who is put out, everywhere at once, and who comes back.

use std::time::Duration;

use federation_model::{Approval, Body, MemberState, MemberTerms};

use crate::{
    JoinError, LinkState,
    testing::{Cluster, Disk, Setup, until},
};

/// East founds and makes law with west; onprem is a member. All linked.
async fn three() -> [Cluster; 3] {
    let clusters = [Cluster::start("east").await, Cluster::start("west").await, Cluster::start("onprem").await];
    let [east, west, onprem] = &clusters;
    let token = east.link.issue_token("west".parse().expect("name"), Duration::from_secs(600), true).await;
    west.link.join(&token.expect("issued").0).await.expect("joins");
    onprem.join(east).await;
    for (one, other) in [(east, west), (east, onprem), (west, onprem)] {
        one.linked(other).await;
        other.linked(one).await;
    }
    clusters
}

async fn sees(cluster: &Cluster, other: &Cluster, wanted: MemberState) {
    let what = format!("{} is {wanted}", other.disk.name);
    let id = other.id();
    cluster
        .snapshot_where(&what, |held| {
            let state = if id == held.own { held.own_state } else { held.members.get(&id).expect("a member").state };
            state == wanted
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_member_is_cut_off_everywhere_and_an_approval_is_for_one_cluster() {
    let [east, west, onprem] = three().await;
    east.link.evict(onprem.id(), "test".into()).await.expect("durable");
    for cluster in [&east, &west, &onprem] {
        sees(cluster, &onprem, MemberState::Suspended).await;
    }
    until("no session with it", || {
        onprem.link.session_peer(east.id()).is_none() && onprem.link.session_peer(west.id()).is_none()
    })
    .await;
    let held = west.link.snapshot().borrow().clone().expect("some");
    assert!(held.bundles.get(&onprem.disk.domain).is_none(), "its identities are believed no more");
    assert_eq!(held.members.get(&onprem.id()).expect("known").evicted_by, [east.id()]);
    assert_eq!(west.link.open_tunnel(onprem.id()).await.expect_err("out").reason(), "suspended");

    assert!(west.link.approve(onprem.id(), "test".into()).await.expect("durable"));
    assert!(!west.link.approve(onprem.id(), "test".into()).await.expect("durable"), "twice is once");
    west.linked(&onprem).await;
    assert!(east.link.session_peer(onprem.id()).is_none());
    sees(&east, &onprem, MemberState::Suspended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_lawmakers_evict_for_good_and_only_a_new_cluster_may_take_the_name() {
    let [east, west, onprem] = three().await;
    west.link.evict(onprem.id(), "test".into()).await.expect("durable");
    sees(&east, &onprem, MemberState::Suspended).await;
    east.link.evict(onprem.id(), "test".into()).await.expect("durable");
    for cluster in [&east, &west] {
        sees(cluster, &onprem, MemberState::Evicted).await;
    }
    assert!(!east.link.approve(onprem.id(), "test".into()).await.expect("no error"), "nobody approves what is final");
    assert!(east.link.statuses().iter().all(|link| link.member != onprem.id()));

    // The same cluster, set up again elsewhere with a token: its id is out for good.
    let token = east.token_for("onprem").await;
    let disk = Disk { store: federation_store::memory(), ..onprem.kill().await };
    let same = Cluster::open(disk, Setup::default()).await;
    let refused = same.link.join(&token).await.expect_err("evicted");
    assert!(matches!(&refused, JoinError::Refused { reason, .. } if reason == "evicted"), "{refused}");
    let fresh = Cluster::start("onprem").await;
    fresh.link.join(&token).await.expect("another id under the free name");
    east.linked(&fresh).await;
    fresh.linked(&west).await;
    let held = west.snapshot_where("its name", |held| held.members.by_name(&fresh.disk.name).is_some()).await;
    assert_eq!(held.members.by_name(&fresh.disk.name).expect("named").id, fresh.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_approves_by_hand_has_no_session_with_a_newcomer_before() {
    let [east, west, onprem] = three().await;
    let disk = west.kill().await;
    let by_hand = MemberTerms { approval: Approval::Manual, ..MemberTerms::default() };
    let west = Cluster::open(disk, Setup { terms: by_hand, ..Setup::default() }).await;
    // Those it had before stay.
    west.linked(&onprem).await;
    west.linked(&east).await;

    let north = Cluster::start("north").await;
    north.join(&east).await;
    sees(&west, &north, MemberState::Held).await;
    north.linked(&onprem).await;
    assert!(west.link.session_peer(north.id()).is_none());
    let status = west.link.statuses().into_iter().find(|link| link.member == north.id()).expect("shown");
    assert_eq!(status.state, LinkState::Out(MemberState::Held));
    // Its law is known all the same, by those in between.
    north.allow("from-north").await;
    west.holds("from-north").await;
    west.link.approve(north.id(), "test".into()).await.expect("durable");
    west.linked(&north).await;
    // Whom it invites itself needs no second word.
    let south = Cluster::start("south").await;
    south.join(&west).await;
    south.linked(&west).await;
    sees(&west, &south, MemberState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_an_older_version_kept_in_its_row_becomes_a_record() {
    let [east, west, _onprem] = three().await;
    let federation = east.link.snapshot().borrow().as_ref().expect("some").federation;
    let (own, member) = (east.id(), west.id());
    let disk = east.kill().await;
    let state = crate::state::State { own, federation, blocked: [member].into() };
    let row = federation_store::Change::put(crate::state::key(), state.encode());
    disk.store.apply(vec![row]).await.expect("written");
    let east = Cluster::open(disk, Setup::default()).await;
    sees(&east, &west, MemberState::Blocked).await;
    let mine = east.link.records().borrow().iter().any(|record| matches!(record.value().body, Body::Stance { .. }));
    assert!(mine);
    east.link.approve(member, "test".into()).await.expect("durable");
    let east = Cluster::open(east.kill().await, Setup::default()).await;
    sees(&east, &west, MemberState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_leaves_is_forgotten_by_all_and_comes_back_with_a_token() {
    let [east, west, onprem] = three().await;
    onprem.allow("kept").await;
    let before = onprem.link.snapshot().borrow().as_ref().expect("some").federation;
    let departure = onprem.link.leave("test".into()).await.expect("leaves");
    assert!(departure.untold.is_empty(), "{departure:?}");
    assert_ne!(departure.federation, before);
    for cluster in [&east, &west] {
        sees(cluster, &onprem, MemberState::Left).await;
    }
    let held = onprem.snapshot_where("alone", |held| held.members.len() == 1).await;
    assert_eq!(held.federation, departure.federation);
    onprem.holds("kept").await;
    assert!(matches!(onprem.link.leave("test".into()).await, Err(crate::WriteError::Alone)));
    // It is the same after a restart, and the way back is a token of anybody.
    let onprem = Cluster::open(onprem.kill().await, Setup::default()).await;
    assert_eq!(onprem.link.snapshot().borrow().as_ref().expect("some").federation, departure.federation);
    onprem.join(&west).await;
    for (one, other) in [(&east, &onprem), (&onprem, &west)] {
        one.linked(other).await;
        sees(one, other, MemberState::Active).await;
    }
    onprem.allow("again").await;
    east.holds("again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_could_not_be_told_of_a_leaving_is_named_and_learns_it_from_the_others() {
    let [east, west, onprem] = three().await;
    let west_id = west.id();
    let disk = west.kill().await;
    until("no session", || onprem.link.session_peer(west_id).is_none()).await;
    let departure = onprem.link.leave("test".into()).await.expect("leaves");
    assert_eq!(departure.untold, std::slice::from_ref(&disk.name));
    let west = Cluster::open(disk, Setup::default()).await;
    west.linked(&east).await;
    sees(&west, &onprem, MemberState::Left).await;
}
