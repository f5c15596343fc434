//! SOCKS5 as applications speak it, and as they should not.

use federation_model::DenialReason;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::world::{Chain, NOTHING, pair, ping};
use crate::SocksError;

async fn client(chain: &Chain) -> (TcpStream, JoinHandle<Result<(), SocksError>>) {
    let (client, captured) = pair().await;
    let proxy = chain.source.proxy.clone();
    let lookup = |address: std::net::Ipv4Addr| {
        (address.octets() == [127, 64, 0, 1]).then(|| "payments.billing.west".parse().expect("a name"))
    };
    (client, tokio::spawn(async move { proxy.socks5(captured, lookup).await }))
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 3, name.len() as u8];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request
}

fn by_address(address: [u8; 4], port: u16) -> Vec<u8> {
    [&[5, 1, 0, 1][..], &address, &port.to_be_bytes()].concat()
}

/// Greets and asks; the reply's code, with the rest of the reply checked.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> u8 {
    stream.write_all(&[5, 2, 0, 2]).await.expect("sent");
    let mut method = [9; 2];
    stream.read_exact(&mut method).await.expect("a method");
    assert_eq!(method, [5, 0]);
    stream.write_all(request).await.expect("sent");
    let mut reply = [9; 10];
    stream.read_exact(&mut reply).await.expect("a reply");
    assert_eq!((reply[0], &reply[2..]), (5, &[0, 1, 0, 0, 0, 0, 0, 0][..]));
    reply[1]
}

const NAME: &str = "payments.billing.west.mesh.internal";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_or_its_address_is_connected() {
    let chain = Chain::start().await;
    for request in [
        by_name(NAME, 8080),
        by_name("PAYMENTS.billing.west.mesh.internal.", 8080),
        by_address([127, 64, 0, 1], 8080),
        by_name("127.64.0.1", 8080),
    ] {
        let (mut stream, task) = client(&chain).await;
        assert_eq!(ask(&mut stream, &request).await, 0, "{request:?}");
        ping(&mut stream, b"through").await.expect("an answer");
        stream.shutdown().await.expect("shutdown");
        stream.read_to_end(&mut Vec::new()).await.expect("a clean end");
        task.await.expect("task").expect("served");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_reply() {
    let chain = Chain::start().await;
    let mut bind = by_name(NAME, 8080);
    bind[1] = 2;
    let mut udp = by_name(NAME, 8080);
    udp[1] = 3;
    let mut reserved = by_name(NAME, 8080);
    reserved[2] = 1;
    let mut version = by_name(NAME, 8080);
    version[0] = 4;
    let six = [&[5, 1, 0, 4][..], &[0; 15], &[1], &8080_u16.to_be_bytes()].concat();
    for (request, code, reason) in [
        (bind, 7, "socks_command"),
        (udp, 7, "socks_command"),
        (reserved, 1, "socks_malformed"),
        (version, 1, "socks_malformed"),
        (vec![5, 1, 0, 2], 8, "socks_address_type"),
        (six, 8, "socks_address_type"),
        (by_name("::1", 8080), 8, "socks_address_type"),
        (by_name("example.com", 80), 4, "socks_name"),
        (by_name("", 80), 4, "socks_name"),
        (by_name("a.b.c.d.mesh.internal", 80), 4, "socks_name"),
        (by_name("a_b.c.d.mesh.internal", 80), 4, "socks_name"),
        (by_name(NAME, 0), 1, "socks_malformed"),
        ([&[5, 1, 0, 3, 2][..], b"\xff\xfe", &[0, 80]].concat(), 1, "socks_malformed"),
        (by_address([127, 0, 0, 1], 80), 4, "socks_address"),
        (by_address([169, 254, 169, 254], 80), 4, "socks_address"),
        (by_address([127, 128, 0, 1], 80), 4, "socks_address"),
        (by_address([127, 64, 9, 9], 80), 4, "socks_address"),
        (by_name("10.0.0.1", 80), 4, "socks_address"),
        (by_name("nothing.billing.west.mesh.internal", 8080), 4, "unknown_service"),
        (by_name(NAME, 8081), 5, "unknown_service"),
        (by_name("ledger.billing.west.mesh.internal", 8080), 2, "default_deny"),
    ] {
        let (mut stream, task) = client(&chain).await;
        assert_eq!(ask(&mut stream, &request).await, code, "{request:?}");
        assert_eq!(stream.read(&mut [0]).await.expect("finished"), 0, "the reply is the last");
        drop(stream);
        assert_eq!(task.await.expect("task").expect_err("refused").reason(), reason);
    }
    assert!(chain.near.audit.all().is_empty(), "nothing left the sidecar");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_another_kind_are_turned_away() {
    let chain = Chain::start().await;
    for (bytes, answer, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], &b""[..], "socks_version"),
        (&[4, 1, 0, 80, 127, 0, 0, 1, 0], &[], "socks_version"),
        (&[5, 1, 2], &[5, 0xff], "socks_method"),
        (&[5, 0], &[5, 0xff], "socks_method"),
    ] {
        let (mut stream, task) = client(&chain).await;
        stream.write_all(bytes).await.expect("sent");
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        assert_eq!(got, answer);
        assert_eq!(task.await.expect("task").expect_err("refused").reason(), reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let limits = crate::Limits { hello_timeout: std::time::Duration::from_millis(200), ..Default::default() };
    let chain = Chain::start_with(limits, std::time::Duration::from_secs(3600)).await;
    for bytes in [&[][..], &[5], &[5, 1, 0], &[5, 1, 0, 5, 1, 0, 3, 200, b'a']] {
        let (mut stream, task) = client(&chain).await;
        stream.write_all(bytes).await.expect("sent");
        assert_eq!(task.await.expect("task").expect_err("refused").reason(), "socks_timeout");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_by_an_edge_is_a_reply_and_one_by_the_destination_a_reset() {
    let chain = Chain::start().await;
    chain.law(&chain.near, NOTHING);
    let (mut stream, task) = client(&chain).await;
    assert_eq!(ask(&mut stream, &by_name(NAME, 8080)).await, 2);
    drop(stream);
    assert_eq!(task.await.expect("task").expect_err("refused").reason(), "default_deny");
    chain.law(&chain.near, super::world::ALLOW);

    chain.law(&chain.destination, NOTHING);
    let (mut stream, task) = client(&chain).await;
    assert_eq!(ask(&mut stream, &by_name(NAME, 8080)).await, 0, "TLS is up");
    stream.read_u8().await.expect_err("a reset");
    match task.await.expect("task").expect_err("refused") {
        SocksError::Denied(denial) => assert_eq!(denial.reason, DenialReason::DefaultDeny),
        other => panic!("{other}"),
    }
}
