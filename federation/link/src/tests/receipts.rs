//! Who says that a rule is in force, and how old is what is known of a member.

use std::time::Duration;

use federation_model::{Audience, Body, ClusterId, Intention, RecordId, RuleState};

use crate::{
    Limits, LinkState,
    testing::{Cluster, Disk, Setup, limits, rule, until},
};

async fn write(cluster: &Cluster, source: &str) -> RecordId {
    let state = RuleState::Is(federation_model::Action::Deny);
    let body = Body::Intention(Intention { key: rule(source), state });
    cluster.link.write(Audience::Law, body, "test".into()).await.expect("written")
}

async fn confirmed(cluster: &Cluster, record: &RecordId, by: &[ClusterId]) {
    let mut by = by.to_vec();
    by.sort();
    until("everyone confirms", || cluster.link.enforcement(record).by == by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_confirms_a_rule_to_its_writer_and_to_others() {
    let [east, west] = [Cluster::start("east").await, Cluster::start("west").await];
    west.join(&east).await;
    east.linked(&west).await;
    let record = write(&east, "one").await;
    confirmed(&east, &record, &[east.id(), west.id()]).await;
    confirmed(&west, &record, &[east.id(), west.id()]).await;
    assert!(east.link.enforcement(&record).behind.is_empty());
    until("fresh", || east.link.statuses()[0].data_age.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_is_passed_on_where_two_members_have_no_session() {
    let clusters = [Cluster::start("east").await, Cluster::start("west").await, Cluster::start("onprem").await];
    let [east, west, onprem] = &clusters;
    west.join(east).await;
    onprem.join(east).await;
    onprem.linked(west).await;
    // West will not talk to onprem, and onprem does not know why.
    west.link.block(onprem.id(), "test".into()).await.expect("durable");
    until("no session", || onprem.link.session_peer(west.id()).is_none()).await;
    let record = write(onprem, "after").await;
    confirmed(onprem, &record, &[east.id(), west.id(), onprem.id()]).await;
    until("its age is known", || {
        let links = onprem.link.statuses();
        let west = links.iter().find(|link| link.member == west.id()).expect("shown");
        west.state != LinkState::Up && west.data_age.is_some_and(|age| age < Duration::from_secs(5))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_gone_is_named_as_behind_and_its_data_ages() {
    let [east, west] = [Cluster::start("east").await, Cluster::start("west").await];
    west.join(&east).await;
    east.linked(&west).await;
    let first = write(&east, "one").await;
    confirmed(&east, &first, &[east.id(), west.id()]).await;
    let id = west.id();
    let disk = west.kill().await;
    until("no session", || east.link.session_peer(id).is_none()).await;
    let second = write(&east, "two").await;
    confirmed(&east, &second, &[east.id()]).await;
    let behind = east.link.enforcement(&second).behind;
    assert!(matches!(behind.as_slice(), [(member, Some(_))] if *member == id), "{behind:?}");
    let age = || east.link.statuses()[0].data_age.expect("known");
    let before = age();
    until("it ages", || age() > before).await;
    assert_ne!(east.link.statuses()[0].state, LinkState::Up);
    // Back again, it confirms what it missed, under a number behind those of its life before.
    let west = Cluster::open(disk, Setup::default()).await;
    confirmed(&east, &second, &[east.id(), west.id()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_over_which_nothing_fresh_comes_is_not_up() {
    // Heartbeats go on for ever here; only receipts tell that the driver of the other side stands still.
    let patient = Limits { heartbeat: Duration::from_secs(1), ..limits() };
    let setup = || Setup { limits: patient.clone(), ..Setup::default() };
    let east = Cluster::open(Disk::new("east"), setup()).await;
    let (slow, gate) = Disk::new("west").that_can_hang();
    let west = Cluster::open(slow, setup()).await;
    west.join(&east).await;
    east.linked(&west).await;
    until("up", || east.link.statuses()[0].state == LinkState::Up).await;
    let _held = gate.lock().await;
    east.allow("stuck").await;
    until("degraded", || east.link.statuses()[0].state == LinkState::Degraded).await;
    assert!(east.link.session_peer(west.id()).is_some(), "its socket is as alive as ever");
}
