//! Certificates that were issued, and what is left of one whose key is revoked.

use std::time::Duration;

use federation_identity::{LiveSvid, SvidKey};
use federation_model::{Audience, Body, Digest, REVOCATIONS_MAX, Revocation};
use proto::{
    manage as wire,
    workload::{
        FeedRequest, RenewRequest, Subscribe, discovery_client::DiscoveryClient, feed_request::Request,
        workload_identity_client::WorkloadIdentityClient,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{World, live, reason, with_token};

fn revoke(serial: &str) -> wire::RevokeCertificateRequest {
    wire::RevokeCertificateRequest { serial: serial.into() }
}

async fn issued(world: &World) -> Vec<wire::IssuedCertificate> {
    world.manage().await.list_certificates(wire::ListCertificatesRequest {}).await.expect("list").into_inner().issued
}

/// A workload that enrolled, its first certificate's serial number, and its key in a form that can be used again.
async fn enrolled(world: &World) -> (LiveSvid, String, Vec<u8>) {
    let token = world.token("web.shop").await;
    let key = SvidKey::generate();
    let kept = key.to_pkcs8().to_vec();
    let identity = world.enrol(with_token(&token, &key)).await.expect("enrolled");
    let svid = live(key, &identity);
    let listed = issued(world).await;
    assert_eq!(listed.len(), 1);
    assert!(!listed[0].revoked && listed[0].spiffe_id.ends_with("/ns/shop/sa/web"), "{listed:?}");
    (svid, listed[0].serial.clone(), kept)
}

#[tokio::test]
async fn a_revoked_key_ends_its_feed_and_is_neither_renewed_nor_certified_again() {
    let world = World::new().await;
    let (svid, serial, kept) = enrolled(&world).await;
    let channel = world.as_workload(&svid).await;
    let (requests, stream) = mpsc::channel(8);
    let subscribe = Subscribe { instance: vec![7; 16], ..Subscribe::default() };
    requests.send(FeedRequest { request: Some(Request::Subscribe(subscribe)) }).await.expect("channel");
    let feed = DiscoveryClient::new(channel.clone()).feed(ReceiverStream::new(stream)).await;
    let mut events = feed.expect("a feed").into_inner();
    events.message().await.expect("an event");
    let mut renewing = WorkloadIdentityClient::new(channel);
    renewing.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect("renewed before");

    let reply = world.manage().await.revoke_certificate(revoke(&serial)).await.expect("revoked").into_inner();
    assert!(reply.certificate.is_some_and(|one| one.revoked && one.serial == serial));
    let ended = async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the feed ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let ended: Status = timeout(Duration::from_secs(5), ended).await.expect("the feed ends");
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unauthenticated, "revoked"));
    let refused = renewing.renew(RenewRequest { csr: SvidKey::generate().csr() }).await.expect_err("the thief renews");
    assert_eq!(reason(&refused), "revoked");
    let again = with_token(&world.token("web.shop").await, &SvidKey::from_pkcs8(&kept).expect("key"));
    let refused = world.enrol(again).await.expect_err("the same key");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "key_revoked"));
    let token = world.token("web.shop").await;
    world.enrol(with_token(&token, &SvidKey::generate())).await.expect("another key of the same account");

    let states: Vec<bool> = issued(&world).await.iter().map(|one| one.revoked).collect();
    assert_eq!(states.iter().filter(|revoked| **revoked).count(), 1, "{states:?}");
    let status = world.manage().await.cert_status(wire::CertStatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.revoked.iter().map(|one| one.serial.clone()).collect::<Vec<_>>(), [serial]);
}

#[tokio::test]
async fn what_cannot_be_revoked_is_told_apart() {
    let world = World::new().await;
    let (_, serial, _) = enrolled(&world).await;
    let mut client = world.manage().await;
    client.revoke_certificate(revoke(&serial.to_uppercase())).await.expect("revoked");
    for (given, code, word) in [
        (serial.as_str(), Code::AlreadyExists, "already_revoked"),
        ("0123456789", Code::NotFound, "not_issued_here"),
        ("", Code::InvalidArgument, "bad_serial"),
        ("web.shop", Code::InvalidArgument, "bad_serial"),
    ] {
        let refused = client.revoke_certificate(revoke(given)).await.expect_err(word);
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, word), "{}", refused.message());
    }
}

#[tokio::test]
async fn no_more_keys_are_revoked_than_members_mind() {
    let world = World::new().await;
    let (_, serial, _) = enrolled(&world).await;
    {
        let mut federation = world.links.federation();
        for number in 0..REVOCATIONS_MAX as u64 {
            let mut key = Digest::ZERO;
            key.0[..8].copy_from_slice(&number.to_be_bytes());
            // All but one have not ended.
            let not_after = match number {
                0 => federation_identity::now().before(Duration::from_secs(1)),
                _ => federation_identity::now().after(Duration::from_secs(60)),
            };
            let revocation = Revocation { key, serial: vec![1], not_after };
            federation.write(Audience::Law, Body::Revocation(revocation), "ada");
        }
    }
    world.links.publish();
    let mut client = world.manage().await;
    client.revoke_certificate(revoke(&serial)).await.expect("there is room for one");
    let token = world.token("api.shop").await;
    world.enrol(with_token(&token, &SvidKey::generate())).await.expect("enrolled");
    let next = issued(&world).await.iter().find(|one| !one.revoked).expect("one").serial.clone();
    let refused = client.revoke_certificate(revoke(&next)).await.expect_err("full");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "too_many_revocations"));
}
