//! Callers that are not who they say, and greetings that are not what they seem.

use std::{net::SocketAddr, time::Duration};

use federation_identity::{LiveSvid, Svid, now, passthrough, tls};
use federation_model::{ConnectionId, DenialReason};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::world::{Chain, Hello, Node, hello, name};
use crate::{
    Access, Limits,
    frame::{Answer, Opening, read_body},
};

const NAME: &str = "payments.billing.west.mesh.internal";

fn signed(svid: &Svid, destination: &str, hello: &[u8]) -> Vec<u8> {
    passthrough::sign(svid, destination, ConnectionId(rand::random()), None, hello, now()).expect("a header")
}

/// Sends bytes and waits for the end of the stream, which must come without an answer.
async fn sent(address: SocketAddr, bytes: &[u8]) {
    // A reset may come before the connect or the write is over.
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let _ = stream.write_all(bytes).await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut got)).await.expect("closed");
    assert!(got.is_empty(), "nothing is answered to a greeting that is refused");
}

/// Sends bytes to both listeners of the mesh, which must refuse for the same cause.
async fn refused_everywhere(chain: &Chain, bytes: &[u8], check: &'static str, reason: &'static str) {
    for (address, node) in [(chain.near_address, &chain.near), (chain.destination_address, &chain.destination)] {
        let before = count(node, check);
        sent(address, bytes).await;
        super::world::eventually(check, || (count(node, check) == before + 1).then_some(())).await;
        let event = node.audit.until(check, |event| event.check == Some(check)).await;
        assert_eq!((event.access, event.reason), (Access::Denied, Some(reason)), "{event:?}");
    }
}

fn count(node: &Node, check: &str) -> usize {
    node.audit.all().iter().filter(|event| event.check == Some(check)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_that_was_tampered_with_is_refused() {
    let chain = Chain::start().await;
    let svid = chain.world.workload("web.shop.east");
    let hello = hello(&Hello::default());
    let header = signed(&svid, NAME, &hello);
    let good = [&header[..], &hello].concat();

    // Another hello behind a header that is all right: stolen, with another key share.
    let other = super::world::hello(&Hello::default());
    refused_everywhere(&chain, &[&header[..], &other].concat(), "hello", "wrong_proof").await;

    // One bit of what is signed: the connection id, the time, the signature itself.
    let find = |needle: &[u8]| good.windows(needle.len()).position(|window| window == needle).expect("found");
    for (place, check) in [
        (find(&[0xe2, 0, 16]) + 5, "signature"),
        (find(&[0xe4, 0, 8]) + 10, "signature"),
        (find(&[0xe7, 0, 64]) + 40, "signature"),
    ] {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        refused_everywhere(&chain, &bytes, check, "wrong_proof").await;
    }
    let mut bytes = good.clone();
    bytes[find(&[0xe0, 0, 2]) + 3] = 9;
    refused_everywhere(&chain, &bytes, "version", "malformed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_agree_or_do_not_exist_are_refused() {
    let chain = Chain::start().await;
    let svid = chain.world.workload("web.shop.east");
    let make = |destination: &str, wanted: &Hello<'_>| {
        let hello = hello(wanted);
        [signed(&svid, destination, &hello), hello].concat()
    };
    let other = Hello { name: Some("ledger.billing.west.mesh.internal"), ..Hello::default() };
    refused_everywhere(&chain, &make(NAME, &other), "sni_mismatch", "malformed").await;
    let unnamed = Hello { name: None, ..Hello::default() };
    refused_everywhere(&chain, &make(NAME, &unnamed), "no_sni", "malformed").await;
    let foreign = Hello { name: Some("example.com"), ..Hello::default() };
    refused_everywhere(&chain, &make("example.com", &foreign), "foreign_sni", "unknown_service").await;
    let h2 = Hello { alpn: b"h2", ..Hello::default() };
    refused_everywhere(&chain, &make(NAME, &h2), "alpn", "malformed").await;
    let unknown = "nothing.billing.west.mesh.internal";
    let bytes = make(unknown, &Hello { name: Some(unknown), ..Hello::default() });
    let before = chain.near.audit.all().len();
    sent(chain.near_address, &bytes).await;
    let event = chain.near.audit.until("unknown", |event| event.check == Some("unknown_service")).await;
    assert_eq!(chain.near.audit.all().len(), before + 1);
    assert_eq!(event.destination, "nothing.billing.west");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_works_once() {
    let chain = Chain::start().await;
    let svid = chain.world.workload("web.shop.east");
    let hello = hello(&Hello::default());
    let bytes = [signed(&svid, NAME, &hello), hello].concat();
    let mut first = TcpStream::connect(chain.near_address).await.expect("connected");
    first.write_all(&bytes).await.expect("sent");
    // The destination answers with its part of a handshake that nobody can finish.
    let mut answer = [0; 5];
    first.read_exact(&mut answer).await.expect("a ServerHello");
    assert_eq!(answer[0], 22);
    refused_everywhere(&chain, &bytes, "replayed", "wrong_proof").await;
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_bring_another_clusters_workload() {
    let chain = Chain::start().await;
    // Over the session of east's edge, a header that a workload of west signed; and without any session, one of west's.
    let svid = chain.world.workload("web.shop.west");
    for (node, session) in [(&chain.far, true), (&chain.near, false)] {
        let hello = hello(&Hello::default());
        let bytes = [signed(&svid, NAME, &hello), hello].concat();
        let (here, there) = tokio::io::duplex(64 * 1024);
        let peer = chain.world.verifier().session_peer(chain.near.svid.get().expect("svid").chain(), now());
        let from = session.then(|| (chain.world.id("east"), peer.expect("a peer")));
        let (mut read, mut write) = tokio::io::split(here);
        write.write_all(&bytes).await.expect("sent");
        node.proxy.pass(crate::boxed(there), from).await;
        read.read_u8().await.expect_err("nothing comes back");
        let event = node.audit.until("a denial", |event| event.access == Access::Denied).await;
        assert_eq!(event.reason, Some("wrong_proof"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn greetings_that_are_too_long_or_too_slow_are_refused() {
    let limits = Limits { hello_timeout: Duration::from_millis(300), ..Limits::default() };
    let chain = Chain::start_with(limits, Duration::from_secs(3600)).await;
    let svid = chain.world.workload("web.shop.east");
    let mut long = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb];
    long.resize(20_000, 0);
    let bytes = [signed(&svid, NAME, &long), long[..9].to_vec()].concat();
    refused_everywhere(&chain, &bytes, "hello_too_long", "malformed").await;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x00".to_vec();
    header.extend_from_slice(&[0xff, 0xff]);
    refused_everywhere(&chain, &header, "too_long", "malformed").await;
    let hello = hello(&Hello::default());
    let good = [signed(&svid, NAME, &hello), hello].concat();
    for kept in [0, 1, 20, good.len() - 1] {
        refused_everywhere(&chain, &good[..kept], "hello_timeout", "malformed").await;
    }
    refused_everywhere(&chain, b"GET / HTTP/1.1\r\n\r\n", "not_a_header", "malformed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_do_not_prove_themselves_cannot_take_every_place() {
    let limits = Limits { handshakes: 2, hello_timeout: Duration::from_secs(3), ..Limits::default() };
    let chain = Chain::start_with(limits, Duration::from_secs(3600)).await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(chain.near_address).await.expect("connected"));
    }
    let places = || (chain.near.proxy.0.unproved.available_permits() == 0).then_some(());
    super::world::eventually("full places", places).await;
    sent(chain.near_address, b"").await;
    assert!(chain.near.audit.all().is_empty(), "a flood fills no log");
    // Their time runs out, and there is room again.
    super::world::eventually("a place", || (chain.near.proxy.0.unproved.available_permits() == 2).then_some(())).await;
    let (mut application, _task) = chain.call().await;
    super::world::ping(&mut application, b"room").await.expect("an answer");
}

/// A TLS handshake straight to the destination, with one SVID for TLS and any header.
async fn handshake(
    chain: &Chain,
    shown: Svid,
    header: impl Fn(&[u8]) -> Vec<u8>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let live = LiveSvid::new();
    live.set(shown);
    let expected = chain.world.service("payments.billing.west").server_ids();
    let config = tls::mesh_client(&live, &chain.world.verifier(), expected).expect("a configuration");
    let stream = TcpStream::connect(chain.destination_address).await?;
    let mut hello = Vec::new();
    let name = NAME.to_owned().try_into().expect("a name");
    let mut connecting = TlsConnector::from(config).connect_with(name, stream, |tls| {
        tls.write_tls(&mut hello).expect("a hello");
    });
    let bytes = [header(&hello), hello].concat();
    connecting.get_mut().expect("a stream").write_all(&bytes).await?;
    connecting.await
}

fn opening(connection: ConnectionId) -> Opening {
    Opening { versions: (1, 1), service: name(), connection, features: 0, renews: vec![] }
}

/// The destination's answer to a frame.
async fn answer(mut stream: TlsStream<TcpStream>, frame: &[u8]) -> Answer {
    stream.write_all(frame).await.expect("sent");
    stream.flush().await.expect("sent");
    Answer::decode(&read_body(&mut stream).await.expect("a frame")).expect("an answer")
}

fn denied(answer: Answer) -> (DenialReason, String, [u8; 16]) {
    match answer {
        Answer::Denial { reason, detail, audit } => (DenialReason::from_word(&reason).expect("a word"), detail, audit),
        permit => panic!("{permit:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_in_tls_must_be_the_one_that_signed_the_header() {
    let chain = Chain::start().await;
    let (thief, owner) = (chain.world.workload("thief.shop.east"), chain.world.workload("web.shop.east"));
    let stream = handshake(&chain, thief, |hello| signed(&owner, NAME, hello)).await.expect("TLS is up");
    let (reason, detail, audit) = denied(answer(stream, &opening(ConnectionId([1; 16])).encode()).await);
    assert_eq!(reason, DenialReason::IdentityMismatch);
    assert!(detail.contains("sa/web") && detail.contains("sa/thief"), "{detail}");
    let event = chain.destination.audit.until("a denial", |event| event.access == Access::Denied).await;
    assert_eq!((event.audit, event.reason), (audit, Some("identity_mismatch")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_svid_of_the_same_identity_is_no_mismatch() {
    let chain = Chain::start().await;
    let id = ConnectionId([4; 16]);
    let svid = chain.world.workload("web.shop.east");
    let header = |hello: &[u8]| passthrough::sign(&svid, NAME, id, None, hello, now()).expect("a header");
    let stream = handshake(&chain, chain.world.workload("web.shop.east"), header).await.expect("TLS");
    assert!(matches!(answer(stream, &opening(id).encode()).await, Answer::Permit { version: 1, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_contradicts_the_header_or_cannot_be_read_is_refused_with_the_reason() {
    let chain = Chain::start().await;
    let id = ConnectionId([2; 16]);
    let other = "ledger.billing.west".parse().expect("a name");
    for (frame, check, words) in [
        (opening(ConnectionId([3; 16])).encode(), "frame_connection", "different connection ids"),
        (Opening { service: other, ..opening(id) }.encode(), "frame_service", "frame is for ledger.billing.west"),
        (Opening { versions: (2, 3), ..opening(id) }.encode(), "frame_version", "versions 2 to 3"),
        (vec![0, 0], "frame", "empty"),
        (vec![0xff, 0xff], "frame", "65535"),
        (vec![0, 1, 9], "frame_kind", "kind 9"),
    ] {
        let svid = chain.world.workload("web.shop.east");
        // A fresh id each time for the header, since each works once; only the frame is compared with it.
        let fresh = ConnectionId(rand::random());
        let frame = match Opening::decode(frame.get(2..).unwrap_or_default()) {
            Ok(mut good) if check != "frame_connection" => {
                good.connection = fresh;
                good.encode()
            }
            _ => frame,
        };
        let header = |hello: &[u8]| passthrough::sign(&svid, NAME, fresh, None, hello, now()).expect("a header");
        let stream = handshake(&chain, chain.world.workload("web.shop.east"), header).await.expect("TLS");
        let (reason, detail, _) = denied(answer(stream, &frame).await);
        assert_eq!(reason, DenialReason::Malformed, "{check}");
        assert!(detail.contains(words), "{check}: {detail}");
        chain.destination.audit.until(check, |event| event.check == Some(check)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_frame_is_not_waited_for() {
    let limits = Limits { handshake_timeout: Duration::from_millis(500), ..Limits::default() };
    let chain = Chain::start_with(limits, Duration::from_secs(3600)).await;
    let svid = chain.world.workload("web.shop.east");
    let stream = handshake(&chain, chain.world.workload("web.shop.east"), |hello| signed(&svid, NAME, hello)).await;
    let (reason, detail, _) = denied(answer(stream.expect("TLS"), &[]).await);
    assert_eq!(reason, DenialReason::Malformed);
    assert!(detail.contains("500ms"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_for_another_process_is_not_taken() {
    let chain = Chain::start().await;
    let (svid, id) = (chain.world.workload("web.shop.east"), ConnectionId(rand::random()));
    let instance = Some(federation_model::InstanceId([9; 16]));
    let header = |hello: &[u8]| passthrough::sign(&svid, NAME, id, instance, hello, now()).expect("a header");
    let stream = handshake(&chain, chain.world.workload("web.shop.east"), header).await.expect("TLS");
    let (reason, ..) = denied(answer(stream, &opening(id).encode()).await);
    assert_eq!(reason, DenialReason::NoInstance);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_refuses_a_server_with_another_identity() {
    let chain = Chain::start().await;
    // Same cluster, good SVID, allowed by every rule that there is: but not an account that may serve payments.
    chain.destination.svid.set(chain.world.workload("ledger.billing.west"));
    let denial = chain.refused().await;
    assert_eq!(denial.reason, DenialReason::IdentityMismatch, "{denial}");
    let event = chain.source.audit.until("a denial", |event| event.access == Access::Denied).await;
    assert_eq!(event.check, Some("unexpected_id"));
    // And one of the right name in the wrong trust domain.
    chain.destination.svid.set(chain.world.workload("payments.billing.east"));
    assert_eq!(chain.refused().await.reason, DenialReason::IdentityMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_svid_nothing_goes_out() {
    let chain = Chain::start().await;
    let proxy = crate::Proxy::new(crate::Inputs { svid: LiveSvid::new(), ..chain.source.proxy.0.inputs.clone() });
    let (_application, captured) = super::world::pair().await;
    let denial = proxy.connect(captured, &name(), 8080).await.expect_err("refused");
    assert_eq!(denial.reason, DenialReason::WrongProof);
}
