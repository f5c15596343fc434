//! Workloads prove who they are: by token over TLS, by uid over the Unix socket; and renew.

use std::time::Duration;

use crate::support::{TTL, World, account, federation::Federation, live, own_uid, reason, with_token};
use federation_identity::{SvidKey, now, tls};
use federation_store::{Change, Key, Kind};
use prost::Message;
use proto::{
    store::IssuedWorkloadToken,
    workload::{EnrolRequest, RenewRequest, workload_identity_client::WorkloadIdentityClient},
};
use tonic::Code;

#[tokio::test]
async fn a_token_gives_its_account_once_and_the_same_key_may_ask_again() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let key = SvidKey::generate();
    let identity = world.enrol(with_token(&token, &key)).await.expect("enrolled");
    assert_eq!(identity.spiffe_id, "spiffe://west.mesh.internal/ns/shop/sa/web");
    assert_eq!((identity.chain.len(), identity.roots.len()), (2, 1));
    assert_eq!(identity.cluster_name, "west");
    assert_eq!(identity.federation, world.links.current().federation.as_bytes());
    assert_eq!(identity.discovery_endpoint, world.discovery.to_string());
    // The answer was lost: the same key gets it again.
    let again = world.enrol(with_token(&token, &key)).await.expect("again");
    assert_eq!(again.spiffe_id, identity.spiffe_id);
    // Whoever stole the token came too late.
    let thief = world.enrol(with_token(&token, &SvidKey::generate())).await.expect_err("replay");
    assert_eq!((thief.code(), reason(&thief).as_str()), (Code::Unauthenticated, "token_used"));
    assert!(thief.message().contains("hanse workload token web.shop"), "{}", thief.message());
    // The SVID is good: it renews itself.
    let live = live(key, &identity);
    let mut client = WorkloadIdentityClient::new(world.as_workload(&live).await);
    let renewed = client.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect("renewed").into_inner();
    assert_eq!(renewed.spiffe_id, identity.spiffe_id);
    assert_ne!(renewed.chain.first(), identity.chain.first());
}

#[tokio::test]
async fn of_many_that_use_one_token_at_once_one_wins() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let channel = world.stranger().await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let mut client = WorkloadIdentityClient::new(channel.clone());
        let request = with_token(&token, &SvidKey::generate());
        tries.spawn(async move { client.enrol(request).await.map_err(|status| reason(&status)) });
    }
    let (mut won, mut lost) = (0, Vec::new());
    while let Some(tried) = tries.join_next().await {
        match tried.expect("task") {
            Ok(_) => won += 1,
            Err(word) => lost.push(word),
        }
    }
    assert_eq!(won, 1, "{lost:?}");
    assert!(lost.iter().all(|word| word == "token_used" || word == "busy"), "{lost:?}");
}

#[tokio::test]
async fn whoever_guesses_learns_nothing_and_voids_the_token() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let key = SvidKey::generate();
    let unknown = world.enrol(with_token(&(vec![9; 16], vec![9; 32]), &key)).await.expect_err("unknown");
    for _ in 0..5 {
        let wrong = world.enrol(with_token(&(token.0.clone(), vec![9; 32]), &key)).await.expect_err("wrong");
        assert_eq!((wrong.code(), wrong.message()), (unknown.code(), unknown.message()));
        assert_eq!(reason(&wrong), "token_unknown");
    }
    let burned = world.enrol(with_token(&token, &key)).await.expect_err("burned");
    assert_eq!(reason(&burned), "token_unknown");
}

#[tokio::test]
async fn an_expired_token_says_so_to_whoever_holds_it() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let key = Key::new(Kind::WorkloadToken, token.0.clone());
    let row = world.store.get(&key).await.expect("store").expect("row");
    let mut stored = IssuedWorkloadToken::decode(row.value.as_slice()).expect("token");
    assert_eq!(stored.expires_at_ms - stored.issued_at_ms, 900_000);
    stored.expires_at_ms = now().before(Duration::from_secs(5)).as_millis();
    world.store.apply(vec![Change::put(key, stored.encode_to_vec())]).await.expect("store");
    let expired = world.enrol(with_token(&token, &SvidKey::generate())).await.expect_err("expired");
    assert_eq!((expired.code(), reason(&expired).as_str()), (Code::Unauthenticated, "token_expired"));
    assert!(expired.message().contains("expired 5 s ago"), "{}", expired.message());
    let guess = world.enrol(with_token(&(token.0, vec![1; 32]), &SvidKey::generate())).await.expect_err("guess");
    assert_eq!(reason(&guess), "token_unknown");
}

#[tokio::test]
async fn a_workload_that_claims_anothers_account_is_refused_and_the_token_stays_good() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let key = SvidKey::generate();
    let claims = |name: &str, namespace: &str| EnrolRequest {
        account: name.into(),
        namespace: namespace.into(),
        ..with_token(&token, &key)
    };
    for (name, namespace) in [("admin", "shop"), ("web", "books"), ("web", "")] {
        let refused = world.enrol(claims(name, namespace)).await.expect_err("another's");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "anothers_account"));
        assert!(refused.message().contains("claims another's account"), "{}", refused.message());
    }
    world.enrol(claims("web", "shop")).await.expect("its own");
}

#[tokio::test]
async fn a_bad_request_costs_no_token() {
    let world = World::new().await;
    let token = world.token("web.shop").await;
    let key = SvidKey::generate();
    for csr in [vec![], vec![0x30; 100], vec![0; 100_000]] {
        let request = EnrolRequest { csr, ..with_token(&token, &key) };
        let refused = world.enrol(request).await.expect_err("bad");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    for (id, secret) in [(vec![], vec![]), (vec![1; 15], vec![1; 32]), (vec![1; 16], vec![1; 33])] {
        let refused = world.enrol(with_token(&(id, secret), &key)).await.expect_err("malformed");
        assert_eq!(reason(&refused), "token_malformed");
    }
    // Not ready is no reason to give up, and no reason to lose the token.
    world.links.forget();
    let waiting = world.enrol(with_token(&token, &key)).await.expect_err("not ready");
    assert_eq!(waiting.code(), Code::Unavailable);
    world.links.publish();
    world.enrol(with_token(&token, &key)).await.expect("enrolled");
}

#[tokio::test]
async fn the_uid_decides_on_the_socket() {
    let workloads = vec![(own_uid(), account("web.shop"))];
    let world = World::with(Federation::found("west"), workloads, TTL).await;
    let mut client = WorkloadIdentityClient::new(world.unix().await);
    let key = SvidKey::generate();
    let by_uid = EnrolRequest { csr: key.csr(), ..EnrolRequest::default() };
    let identity = client.enrol(by_uid.clone()).await.expect("enrolled").into_inner();
    assert_eq!(identity.spiffe_id, "spiffe://west.mesh.internal/ns/shop/sa/web");
    // Any number of processes of that user.
    client.enrol(EnrolRequest { csr: SvidKey::generate().csr(), ..by_uid.clone() }).await.expect("another process");
    let claims = EnrolRequest { account: "admin".into(), namespace: "shop".into(), ..by_uid.clone() };
    let refused = client.enrol(claims).await.expect_err("another's account");
    assert_eq!(reason(&refused), "anothers_account");
    let token = world.token("admin.shop").await;
    let refused = client.enrol(with_token(&token, &key)).await.expect_err("token on the socket");
    assert_eq!(reason(&refused), "token_on_socket");
    let refused = client.renew(RenewRequest { csr: key.csr() }).await.expect_err("no SVID");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "no_svid"));
    let workloads = world.manage().await.list_workloads(proto::manage::ListWorkloadsRequest {}).await.expect("list");
    let listed = workloads.into_inner().workloads;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].account.as_str(), listed[0].enrolled_by.as_str()), ("web.shop", "uid"));
    assert!(!listed[0].connected && listed[0].not_after_ms > now().as_millis());
}

#[tokio::test]
async fn a_uid_that_no_table_names_is_refused() {
    let workloads = vec![(own_uid().wrapping_add(1), account("web.shop"))];
    let world = World::with(Federation::found("west"), workloads, TTL).await;
    let mut client = WorkloadIdentityClient::new(world.unix().await);
    let request = EnrolRequest { csr: SvidKey::generate().csr(), ..EnrolRequest::default() };
    let refused = client.enrol(request.clone()).await.expect_err("unknown uid");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "unknown_uid"));
    assert!(refused.message().contains(&format!("uid {}", own_uid())), "{}", refused.message());
    // The table may change while the gateway runs.
    world.api.set_workloads(vec![(own_uid(), account("web.shop"))]);
    client.enrol(request).await.expect("named now");
}

#[tokio::test]
async fn a_stranger_can_enrol_and_nothing_else() {
    let world = World::new().await;
    let channel = world.stranger().await;
    let mut client = WorkloadIdentityClient::new(channel.clone());
    let refused = client.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect_err("no SVID");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "no_svid"));
    let mut manage = proto::manage::manage_client::ManageClient::new(channel);
    let refused = manage.status(proto::manage::StatusRequest {}).await.expect_err("not here");
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn other_clusters_workloads_get_nothing_here() {
    let mut federation = Federation::found("west");
    let east = federation.admit("east", false);
    let world = World::with(federation, vec![], TTL).await;
    let id = east.signer.candidate().trust_domain.account(&account("web.shop"));
    let svid = east.svid(&id, TTL);
    let mut client = WorkloadIdentityClient::new(world.as_workload(&svid).await);
    let refused = client.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect_err("foreign");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "foreign_domain"));
}

#[tokio::test]
async fn a_certificate_of_nobody_we_know_ends_the_handshake() {
    let world = World::new().await;
    let east = Federation::found("east");
    let id = east.own.signer.candidate().trust_domain.account(&account("web.shop"));
    let svid = east.own.svid(&id, TTL);
    let own = world.links.federation().own.signer.candidate();
    let edge = own.trust_domain.edge(&own.name);
    let config = tls::workload_client(&svid, &world.verifier, edge).expect("configuration");
    // TLS 1.3 tells a client late that its certificate was refused: the first call fails at the latest.
    if let Ok(channel) = world.channel(config).await {
        let request = RenewRequest { csr: SvidKey::generate().csr() };
        let status = WorkloadIdentityClient::new(channel).renew(request).await.expect_err("refused");
        assert_eq!(reason(&status), "", "{status:?}");
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_svid_that_opened_it() {
    let world = World::new().await;
    let svid = world.svid("web.shop", Duration::from_secs(2));
    let channel = world.as_workload(&svid).await;
    let mut client = WorkloadIdentityClient::new(channel);
    client.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect("while it lasts");
    let not_after = svid.get().expect("svid").not_after();
    while now() < not_after {
        tokio::time::sleep(not_after.since(now())).await;
    }
    assert!(client.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.is_err(), "it renewed after its end");
}
