//! A sidecar's feed over real mTLS: what it is sent, and what it may say.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{TTL, World, account, federation::Federation, reason};
use federation_identity::token::{connection_id, instance_id};
use federation_model::{
    Action, Audience, Body, DestinationPattern, Digest, Intention, IntentionKey, Layer, RuleState, SourcePattern,
};
use proto::{
    convert::decode_envelope,
    manage as wire,
    workload::{
        Extend, FeedEvent, FeedRequest, Inbound, Serves, Subscribe, Withdraw, discovery_client::DiscoveryClient,
        feed_event::Event, feed_request::Request,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

const SOON: Duration = Duration::from_secs(5);

struct Feed {
    requests: mpsc::Sender<FeedRequest>,
    events: Streaming<FeedEvent>,
    held: BTreeSet<Digest>,
    instances: Option<Vec<proto::workload::Instance>>,
    denied: Vec<proto::workload::Denied>,
    ages: Vec<proto::workload::Ages>,
    leaving: Vec<proto::workload::Leaving>,
    synced: u32,
}

impl Feed {
    async fn open(world: &World, account: &str, subscribe: Subscribe) -> Result<Self, Status> {
        let svid = world.svid(account, TTL);
        let mut client = DiscoveryClient::new(world.as_workload(&svid).await);
        let (requests, stream) = mpsc::channel(8);
        requests.send(FeedRequest { request: Some(Request::Subscribe(subscribe)) }).await.expect("channel");
        let events = client.feed(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self {
            requests,
            events,
            held: BTreeSet::new(),
            instances: None,
            denied: Vec::new(),
            ages: Vec::new(),
            leaving: Vec::new(),
            synced: 0,
        })
    }

    /// Takes the next event.
    async fn step(&mut self) -> Result<(), Status> {
        let event = timeout(SOON, self.events.message()).await.expect("an event in time")?;
        match event.expect("the feed goes on").event {
            Some(Event::Records(records)) => {
                for raw in records.added {
                    let envelope = decode_envelope(&raw).expect("an envelope");
                    assert!(self.held.insert(federation_identity::sha256(&envelope.record_bytes)), "sent twice");
                }
                for digest in records.removed {
                    assert!(self.held.remove(&Digest(digest.as_slice().try_into().expect("digest"))), "not held");
                }
                self.synced += u32::from(records.synced);
            }
            Some(Event::Instances(instances)) => self.instances = Some(instances.instances),
            Some(Event::Denied(denied)) => self.denied.push(denied),
            Some(Event::Ages(ages)) => self.ages.push(ages),
            Some(Event::Leaving(leaving)) => self.leaving.push(leaving),
            None => panic!("an empty event"),
        }
        Ok(())
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let all = async {
            while !done(self) {
                self.step().await.expect(what);
            }
        };
        assert!(timeout(SOON, all).await.is_ok(), "never: {what}");
    }

    /// How it ends.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.step().await {
                return status;
            }
        }
    }
}

fn serving(name: &str, inbound: &str) -> Subscribe {
    let (service, namespace) = name.split_once('.').expect("service.namespace");
    Subscribe {
        instance: instance_id().0.to_vec(),
        inbound: inbound.into(),
        serves: vec![Serves { service: service.into(), namespace: namespace.into(), port: 8080, ..Serves::default() }],
        held: Vec::new(),
    }
}

fn calling() -> Subscribe {
    Subscribe { instance: instance_id().0.to_vec(), ..Subscribe::default() }
}

fn rule(world: &World, source: &str, destination: &str) -> federation_model::RecordId {
    let snapshot = world.links.current();
    let body = Body::Intention(Intention {
        key: IntentionKey {
            source: SourcePattern::parse(source, Action::Deny, snapshot.own, &snapshot.members).expect("source"),
            destination: DestinationPattern::parse(destination, &snapshot.members).expect("destination"),
            layer: Layer::Rule,
        },
        state: RuleState::Is(Action::Deny),
    });
    let id = world.links.federation().write(Audience::Law, body, "test");
    world.links.publish();
    id
}

#[tokio::test]
async fn a_sidecar_is_sent_what_concerns_it_and_then_what_changes() {
    let mut federation = Federation::found("west");
    federation.admit("east", false);
    let world = World::with(federation, vec![], TTL).await;
    let mine = rule(&world, "web.shop", "ledger.books.east");
    let others = rule(&world, "clerk.books", "ledger.books.east");
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("feed");
    feed.until("synced", |feed| feed.synced > 0 && feed.instances.is_some()).await;
    assert!(feed.held.contains(&mine.digest), "its own rule is missing");
    assert!(!feed.held.contains(&others.digest), "another workload's rule came along");
    assert_eq!(feed.held.len(), world.links.federation().records().len() - 1);

    let everybody = rule(&world, "*", "ledger.books.east");
    feed.until("the new rule", |feed| feed.held.contains(&everybody.digest)).await;
    // What changed for others does not wake it.
    let before = feed.synced;
    rule(&world, "clerk.books", "*");
    let last = rule(&world, "web.shop", "*");
    feed.until("the last rule", |feed| feed.held.contains(&last.digest)).await;
    assert_eq!(feed.synced, before + 1);

    // After a restart only the difference comes.
    let stray = Digest([7; 32]);
    let held = feed.held.iter().filter(|digest| **digest != mine.digest).chain([&stray]);
    let held = held.map(|digest| digest.0.to_vec()).collect();
    let mut again = Feed::open(&world, "web.shop", Subscribe { held, ..calling() }).await.expect("feed");
    again.held.insert(stray);
    again.until("synced", |feed| feed.synced > 0).await;
    assert_eq!(again.held, BTreeSet::from([mine.digest]));
}

#[tokio::test]
async fn a_service_that_nobody_knew_is_registered_by_the_sidecar_that_serves_it() {
    let world = World::new().await;
    let before = rule(&world, "clerk.books", "payments.billing.west");
    let mut feed =
        Feed::open(&world, "payments.billing", serving("payments.billing", "127.0.0.1:9000")).await.expect("feed");
    feed.until("instances", |feed| feed.instances.is_some() && feed.synced > 0).await;
    assert!(feed.held.contains(&before.digest), "the rules about its service are missing");
    let instances = feed.instances.clone().expect("instances");
    assert_eq!(instances.len(), 1);
    assert_eq!((instances[0].service.as_str(), instances[0].address.as_str()), ("payments", "127.0.0.1:9000"));
    let services =
        world.manage().await.list_services(wire::ListServicesRequest {}).await.expect("list").into_inner().services;
    assert_eq!(services.len(), 1);
    let service = &services[0];
    assert_eq!((service.name.as_str(), service.port, service.instances), ("payments.billing.west", 8080, 1));
    assert_eq!((service.accounts.as_slice(), service.exported_to.len()), (&["payments.billing".to_owned()][..], 0));
    // A second process of it registers nothing anew.
    let records = world.links.federation().records().len();
    let mut second =
        Feed::open(&world, "payments.billing", serving("payments.billing", "127.0.0.1:9001")).await.expect("feed");
    second.until("both", |feed| feed.instances.as_ref().is_some_and(|instances| instances.len() == 2)).await;
    assert_eq!(world.links.federation().records().len(), records);
    let known = world.api.registry().instances(&"payments".parse().expect("name"), &"billing".parse().expect("name"));
    assert_eq!(known.len(), 2);
    assert_eq!(world.api.registry().instance(&known[0].id), Some(known[0].clone()));
    // And is gone when its feed is.
    drop(second);
    feed.until("one", |feed| feed.instances.as_ref().is_some_and(|instances| instances.len() == 1)).await;
}

#[tokio::test]
async fn a_sidecar_serves_only_what_names_its_account() {
    let world = World::new().await;
    let mut manage = world.manage().await;
    let register = |service: &str, accounts: &[&str]| wire::RegisterServiceRequest {
        service: service.into(),
        port: 8080,
        accounts: accounts.iter().map(|&account| account.to_owned()).collect(),
        ..Default::default()
    };
    manage.register_service(register("payments.billing", &[])).await.expect("registered");
    manage.register_service(register("api.shop", &["web.shop"])).await.expect("registered");
    for (account, service) in [
        // Registered for another account.
        ("web.shop", "payments.billing"),
        ("payments.shop", "payments.billing"),
        ("api.shop", "api.shop"),
        // Unknown, and not of its own name.
        ("web.shop", "ledger.books"),
        ("web.shop", "web.books"),
    ] {
        let mut feed = Feed::open(&world, account, serving(service, "127.0.0.1:9000")).await.expect("opens");
        let refused = feed.end().await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{account} {service}");
        assert_eq!(reason(&refused), "anothers_account", "{account} {service}");
        assert!(refused.message().contains("claims another's account"), "{}", refused.message());
        assert!(refused.message().contains("hanse service register"), "{}", refused.message());
    }
    let mut feed = Feed::open(&world, "web.shop", serving("api.shop", "127.0.0.1:9000")).await.expect("feed");
    feed.until("instances", |feed| feed.instances.is_some()).await;
}

#[tokio::test]
async fn a_sidecar_cannot_send_the_edge_elsewhere() {
    let world = World::new().await;
    for inbound in ["169.254.169.254:80", "metadata.internal:80", "0.0.0.0:80", ""] {
        let mut feed = Feed::open(&world, "web.shop", serving("web.shop", inbound)).await.expect("opens");
        let refused = feed.end().await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{inbound}: {refused:?}");
    }
    assert!(world.links.current().catalog.is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_feed_with_a_reason() {
    let world = World::new().await;
    let many = vec![Serves { service: "web".into(), namespace: "shop".into(), port: 1, ..Serves::default() }; 65];
    for (subscribe, wanted) in [
        (Subscribe { instance: vec![1; 15], ..calling() }, "bad_instance"),
        (Subscribe { held: vec![vec![1; 31]], ..calling() }, "bad_digest"),
        (Subscribe { serves: many, inbound: "127.0.0.1:1".into(), ..calling() }, "too_many_serves"),
        (serving("web.Shop", "127.0.0.1:1"), "bad_name"),
    ] {
        let mut feed = Feed::open(&world, "web.shop", subscribe).await.expect("opens");
        assert_eq!(reason(&feed.end().await), wanted);
    }
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("opens");
    let again = FeedRequest { request: Some(Request::Subscribe(calling())) };
    feed.requests.send(again).await.expect("channel");
    assert_eq!(reason(&feed.end().await), "subscribed_twice");
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("opens");
    let extend = Extend { connection: vec![1; 16], header: vec![0; 16 * 1024 + 1] };
    feed.requests.send(FeedRequest { request: Some(Request::Extend(extend)) }).await.expect("channel");
    assert_eq!(reason(&feed.end().await), "header_too_long");
}

#[tokio::test]
async fn an_instance_id_belongs_to_whom_it_came_from_and_a_newer_feed_replaces_the_older() {
    let world = World::new().await;
    let subscribe = calling();
    let mut first = Feed::open(&world, "web.shop", subscribe.clone()).await.expect("feed");
    first.until("synced", |feed| feed.synced > 0).await;
    let mut thief = Feed::open(&world, "clerk.shop", subscribe.clone()).await.expect("opens");
    assert_eq!(reason(&thief.end().await), "instance_taken");
    let mut second = Feed::open(&world, "web.shop", subscribe).await.expect("feed");
    second.until("synced", |feed| feed.synced > 0).await;
    assert_eq!(reason(&first.end().await), "replaced");
    assert_eq!(world.api.registry().connected(), 1);
}

#[tokio::test]
async fn denials_go_to_the_workload_and_extensions_to_the_proxy() {
    let world = World::new().await;
    let mut web = Feed::open(&world, "web.shop", calling()).await.expect("feed");
    let mut clerk = Feed::open(&world, "clerk.shop", calling()).await.expect("feed");
    for feed in [&mut web, &mut clerk] {
        feed.until("synced", |feed| feed.synced > 0 && feed.instances.is_some()).await;
    }
    let connection = connection_id();
    let id = world.links.current().own_trust_domain.account(&account("web.shop"));
    world.api.registry().denied(&id, connection, "rule", "deny web.shop.* -> *");
    web.until("the denial", |feed| !feed.denied.is_empty()).await;
    assert_eq!(web.denied[0].connection, connection.0);
    assert_eq!((web.denied[0].reason.as_str(), web.denied[0].detail.as_str()), ("rule", "deny web.shop.* -> *"));
    let extend = Extend { connection: connection.0.to_vec(), header: vec![1, 2, 3] };
    clerk.requests.send(FeedRequest { request: Some(Request::Extend(extend)) }).await.expect("channel");
    // Whatever comes after it on the feed comes after it was handed on.
    clerk.requests.send(FeedRequest { request: Some(Request::Subscribe(calling())) }).await.expect("channel");
    clerk.end().await;
    assert!(clerk.denied.is_empty());
    let extended = world.connections.0.lock().expect("lock");
    let from = world.links.current().own_trust_domain.account(&account("clerk.shop"));
    assert_eq!(extended.as_slice(), [(connection, vec![1, 2, 3], from)]);
}

#[tokio::test]
async fn a_sidecar_that_goes_gets_nothing_new_and_its_callers_are_told() {
    let world = World::new().await;
    let payments =
        Feed::open(&world, "payments.billing", serving("payments.billing", "10.0.0.7:9000")).await.expect("feed");
    let mut web = Feed::open(&world, "web.shop", calling()).await.expect("feed");
    let served = |feed: &Feed| feed.instances.as_ref().is_some_and(|all| all.len() == 1);
    web.until("the instance", |feed| feed.synced > 0 && served(feed)).await;
    let (service, namespace) = ("payments".parse().expect("name"), "billing".parse().expect("name"));
    let registry = world.api.registry().clone();
    assert_eq!(registry.instances(&service, &namespace).len(), 1);

    let connection = connection_id();
    let source = world.links.current().own_trust_domain.account(&account("web.shop"));
    let inbound = Inbound { connection: connection.0.to_vec(), source: source.to_string() };
    let withdraw = Withdraw { connections: vec![inbound] };
    payments.requests.send(FeedRequest { request: Some(Request::Withdraw(withdraw)) }).await.expect("channel");
    web.until("no instance", |feed| feed.instances.as_ref().is_some_and(Vec::is_empty)).await;
    assert!(registry.instances(&service, &namespace).is_empty());
    assert_eq!(registry.connected(), 2, "its feed goes on");
    let told = world.connections.0.lock().expect("lock").clone();
    assert_eq!(told, [(connection, b"leaving".to_vec(), source.clone())]);

    // Who waits for it goes on with its successor.
    let hold = Duration::from_secs(10);
    let waiting = tokio::spawn(async move { registry.back(&service, &namespace, hold).await });
    let mut successor =
        Feed::open(&world, "payments.billing", serving("payments.billing", "10.0.0.7:9000")).await.expect("feed");
    successor.until("synced", |feed| feed.synced > 0).await;
    assert!(timeout(SOON, waiting).await.expect("in time").expect("task"));

    // The edge itself goes, and connections of one workload do.
    world.api.registry().leaving(&source, &[connection]);
    world.api.registry().leave();
    web.until("both notices", |feed| feed.leaving.len() == 2).await;
    assert_eq!(
        (web.leaving[0].edge, web.leaving[0].connections.as_slice()),
        (false, [connection.0.to_vec()].as_slice())
    );
    assert!(web.leaving[1].edge && web.leaving[1].connections.is_empty());
    successor.until("the edge's notice", |feed| !feed.leaving.is_empty()).await;
    assert!(successor.leaving.iter().all(|leaving| leaving.edge), "another's connections are none of its business");
}

#[tokio::test]
async fn a_withdrawal_with_bad_words_ends_the_feed() {
    let world = World::new().await;
    let good = Inbound { connection: vec![1; 16], source: "spiffe://east.mesh.internal/ns/shop/sa/web".into() };
    for (connections, wanted) in [
        (vec![good.clone(); 1_001], "too_many_connections"),
        (vec![Inbound { connection: vec![1; 15], ..good.clone() }], "bad_connection"),
        (vec![Inbound { source: "web".into(), ..good.clone() }], "bad_source"),
    ] {
        let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("opens");
        let withdraw = FeedRequest { request: Some(Request::Withdraw(Withdraw { connections })) };
        feed.requests.send(withdraw).await.expect("channel");
        assert_eq!(reason(&feed.end().await), wanted);
    }
    assert!(world.connections.0.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_service_that_nobody_served_lately_is_not_waited_for() {
    let world = World::new().await;
    let registry = world.api.registry();
    let (service, namespace) = ("payments".parse().expect("name"), "billing".parse().expect("name"));
    // As if it had begun long ago.
    assert!(!registry.back(&service, &namespace, Duration::ZERO).await);
}

#[tokio::test]
async fn a_feed_ends_with_its_svid() {
    let world = World::new().await;
    let svid = world.svid("web.shop", Duration::from_secs(2));
    let mut client = DiscoveryClient::new(world.as_workload(&svid).await);
    let (requests, stream) = mpsc::channel(8);
    requests.send(FeedRequest { request: Some(Request::Subscribe(calling())) }).await.expect("channel");
    let mut events = client.feed(ReceiverStream::new(stream)).await.expect("feed").into_inner();
    let end = async { while let Ok(Some(_)) = events.message().await {} };
    assert!(timeout(SOON, end).await.is_ok(), "the feed outlives its SVID");
    assert!(federation_identity::now() >= svid.get().expect("svid").not_after());
    assert_eq!(world.api.registry().connected(), 0);
}

#[tokio::test]
async fn a_gateway_that_stops_tells_its_feeds_and_ends() {
    let mut world = World::new().await;
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("feed");
    feed.until("synced", |feed| feed.synced > 0).await;
    world.stop.cancel();
    assert_eq!(feed.end().await.code(), Code::Unavailable);
    drop(feed);
    for task in world.tasks.drain(..) {
        timeout(Duration::from_secs(10), task).await.expect("it ends").expect("cleanly");
    }
    assert!(!world.socket.exists());
}

#[tokio::test]
async fn no_snapshot_no_feed() {
    let world = World::new().await;
    world.links.forget();
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("opens");
    let refused = feed.end().await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "no_snapshot"));
}

#[tokio::test]
async fn a_sidecar_is_told_the_age_of_each_members_data_before_any_record_and_then_every_second() {
    let mut federation = Federation::found("west");
    let east = federation.admit("east", false).id;
    federation.admit("onprem", false);
    let world = World::with(federation, vec![], TTL).await;
    world.links.heard(east, "east", Duration::from_secs(7));
    let mut feed = Feed::open(&world, "web.shop", calling()).await.expect("feed");
    feed.step().await.expect("an event");
    assert_eq!((feed.ages.len(), feed.synced), (1, 0), "ages come first");
    feed.until("three lists of ages", |feed| feed.ages.len() >= 3).await;
    for list in &feed.ages {
        // Of onprem nothing was ever heard, and the own cluster has no age.
        let ages: Vec<_> = list.ages.iter().map(|age| (age.cluster.clone(), age.age_ms)).collect();
        assert_eq!(ages, [(east.as_bytes().to_vec(), 7_000)]);
    }
    let said: Vec<_> = feed.ages.iter().map(|list| list.said_at_ms).collect();
    assert!(said.is_sorted() && said[2] >= 1_900, "{said:?}");
}

#[tokio::test]
async fn a_sidecar_that_registers_its_service_says_what_happens_to_stale_callers() {
    let world = World::new().await;
    let with = |name: &str, when: &str, lease_ms| {
        let mut subscribe = serving(name, "127.0.0.1:9000");
        (subscribe.serves[0].when_stale, subscribe.serves[0].lease_ms) = (when.into(), lease_ms);
        subscribe
    };
    for (when, lease_ms, wanted) in [("never", 0, "bad_when_stale"), ("deny", 9_999, "bad_lease")] {
        let ended = match Feed::open(&world, "pay.shop", with("pay.shop", when, lease_ms)).await {
            Ok(mut feed) => feed.end().await,
            Err(status) => status,
        };
        assert_eq!(reason(&ended), wanted);
    }
    let mut feed = Feed::open(&world, "pay.shop", with("pay.shop", "deny", 60_000)).await.expect("feed");
    feed.until("synced", |feed| feed.synced > 0).await;
    let services = world.manage().await.list_services(wire::ListServicesRequest {}).await.expect("list").into_inner();
    let service = &services.services[0];
    assert_eq!((service.when_stale.as_str(), service.lease_ms, service.freshness.as_str()), ("deny", 60_000, "own"));
}
