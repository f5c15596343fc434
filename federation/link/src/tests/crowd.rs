//! One edge with hundreds of links, in this process: a tenth of what `bench links` asks of thousands.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use federation_model::{Action, Audience, Body, ClusterId, Intention, RuleState};

use crate::{
    Incoming, Link, LinkState,
    crowd::{Cast, Crowd},
    testing::{SOON, rule},
};

const MEMBERS: usize = 200;
/// Within which a new rule is everywhere, and confirmed.
const RULE_LIMIT: Duration = Duration::from_secs(6);

async fn hub(cast: &Cast) -> (Link, Incoming) {
    let store = federation_store::memory();
    cast.fill(store.as_ref()).await.expect("filled");
    let options = cast.options(store, "127.0.0.1:0".parse().expect("address")).expect("keys");
    Link::open(options).await.expect("opens")
}

async fn within(limit: Duration, what: &str, mut wanted: impl FnMut() -> bool) {
    let held = async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, held).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
}

fn up(link: &Link) -> usize {
    link.statuses().iter().filter(|link| link.state == LinkState::Up).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_members_connect_confirm_a_rule_and_come_back() {
    let cast = Cast::make(MEMBERS).expect("keys");
    let (link, _incoming) = hub(&cast).await;
    let address = link.local_addr().expect("listens");
    let crowd = Crowd::start(&cast, address).expect("sockets");
    within(SOON, "all up", || up(&link) == MEMBERS && crowd.seen().up == MEMBERS).await;

    let mut got = 0;
    let before = crowd.seen().sessions;
    let body = Body::Intention(Intention { key: rule("web"), state: RuleState::Is(Action::Allow) });
    let record = link.write(Audience::Law, body, "test".into()).await.expect("written");
    within(RULE_LIMIT, "every member has the rule", || {
        // One that had to dial again meanwhile says that it holds what the hub does.
        let seen = crowd.seen();
        got += seen.arrivals.len();
        got + (seen.sessions - before) as usize >= MEMBERS
    })
    .await;
    within(SOON, "every member confirms it", || link.enforcement(&record).by.len() == MEMBERS + 1).await;
    within(SOON, "what others said is passed on", || crowd.seen().receipts as usize > 2 * MEMBERS).await;

    crowd.stop().await;
    within(SOON, "the dead are noticed", || up(&link) == 0).await;
    let crowd = Crowd::start(&cast, address).expect("sockets");
    within(SOON, "all up again", || up(&link) == MEMBERS).await;
    crowd.stop().await;
    link.shutdown().await;
}

#[tokio::test]
async fn a_cast_comes_back_from_its_file_with_keys_that_fit() {
    let cast = Cast::make(3).expect("keys");
    let folder = std::env::temp_dir().join(format!("hanse-cast-{}-{}", std::process::id(), rand::random::<u32>()));
    cast.write(&folder).expect("written");
    let read = Cast::read(&folder).expect("read");
    std::fs::remove_file(&folder).expect("removed");
    assert_eq!(read.members(), 3);
    let (link, _incoming) = hub(&read).await;
    let members: BTreeSet<ClusterId> = {
        let snapshot = link.snapshot().borrow().clone().expect("readable");
        snapshot.members.iter().filter(|member| member.state.is_active()).map(|member| member.id).collect()
    };
    assert_eq!(members.len(), 4);
    drop(Arc::new(link));
}
