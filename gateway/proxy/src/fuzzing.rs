//! What must hold of all bytes that a connection may begin with; `fuzz/` looks for some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use std::{
    future::Future,
    net::Ipv4Addr,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use federation_identity::{passthrough, tls::ALPN_MESH};
use federation_model::{ConnectionId, InstanceId, ServiceRef};

use crate::{
    accept::socks5,
    frame::{Answer, DETAIL_BYTES_MAX, FRAME_BYTES_MAX, Opening, REASON_BYTES_MAX, RENEWS_MAX, body_length, read_body},
    limits::{HEADER_BYTES_MAX, HELLO_BYTES_MAX},
    sni::{self, GreetingError},
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("greeting", greeting), ("mesh_frame", mesh_frame), ("socks5", socks5)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "greeting" => {
            let header = include_bytes!("../../../federation/identity/testdata/passthrough-open.bin");
            let hello = hello("payments.billing.east.mesh.internal");
            let (head, message) = hello.split_at(5);
            let halves = message.split_at(message.len() / 2);
            let record = |part: &[u8]| [&head[..3], &(part.len() as u16).to_be_bytes(), part].concat();
            vec![
                [&header[..], &hello].concat(),
                [&header[..], &record(halves.0), &record(halves.1), b"behind it"].concat(),
                header.to_vec(),
            ]
        }
        "mesh_frame" => {
            let opening = Opening {
                versions: (1, 1),
                service: "web.shop.east".parse().expect("a name"),
                connection: ConnectionId([1; 16]),
                features: 5,
                renews: vec![[9; 32]; 2],
            };
            let permit = Answer::Permit { version: 1, instance: InstanceId([2; 16]), features: 1, renewed: 3 };
            let denial = Answer::Denial { reason: "rule".into(), detail: "a rule".into(), audit: [3; 16] };
            vec![opening.encode(), permit.encode(), denial.encode()]
        }
        "socks5" => vec![
            [&[5, 1, 0, 5, 1, 0, 3, 31][..], b"web.shop.east.mesh.internal", &[0, 80]].concat(),
            [&[5, 1, 0, 5, 1, 0, 3, 27][..], b"web.shop.east.mesh.internal", &[0, 80]].concat(),
            vec![5, 2, 1, 0, 5, 1, 0, 1, 127, 64, 0, 1, 0, 80],
            vec![5, 1, 0, 5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80],
            vec![5, 1, 2],
        ],
        _ => Vec::new(),
    }
}

/// The records of a ClientHello that names `server`.
fn hello(server: &'static str) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(federation_identity::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    let name = server.try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("written");
    }
    bytes
}

/// Header and ClientHello: parts that lie where they were sent, names that agree, and the same whatever comes behind.
pub fn greeting(data: &[u8]) {
    let mut stream = data;
    match at_once(sni::read(&mut stream)) {
        Ok(greeting) => {
            assert_eq!(greeting.raw(), &data[..data.len() - stream.len()], "bytes were lost or made up");
            let (_, length) = passthrough::parse(data).expect("a header").expect("all of it");
            assert!(length <= HEADER_BYTES_MAX && greeting.hello().len() <= HELLO_BYTES_MAX);
            let rest = &data[length..];
            assert!(rest.starts_with(greeting.hello()), "the hello is not what follows the header");
            // The record that ends the hello holds nothing else: the signature covers all that was understood.
            assert_eq!(records(greeting.hello()), Some(message_length(greeting.hello())));
            assert_eq!(ServiceRef::from_dns(&greeting.header.destination).as_ref(), Ok(&greeting.service));
            let (hello, service) = (greeting.hello().to_vec(), greeting.service.clone());
            let whole = length + hello.len();
            let behind = greeting.into_handshake().1;
            assert!(data[whole..].starts_with(&behind));
            // What comes behind changes nothing, and without its last byte there is no greeting.
            let mut cut = &data[..whole - 1];
            assert!(matches!(at_once(sni::read(&mut cut)), Err(GreetingError::Stream(_))));
            let Ok(alone) = at_once(sni::read(&mut &data[..whole])) else { panic!("it is no greeting alone") };
            assert_eq!((alone.hello(), &alone.service), (hello.as_slice(), &service));
        }
        Err(error) => {
            assert!(!error.reason().is_empty());
            if !matches!(error, GreetingError::Stream(_)) {
                // A refusal is final: more bytes do not turn it into a greeting.
                let longer = [data, &[0; 40]].concat();
                assert!(at_once(sni::read(&mut longer.as_slice())).is_err());
            }
        }
    }
}

/// Bytes of the handshake message that the records carry; `None` if they are no whole records.
fn records(mut bytes: &[u8]) -> Option<usize> {
    let mut total = 0;
    while let Some((&[22, 3, _, high, low], rest)) = bytes.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        bytes = rest.get(length..)?;
        total += length;
    }
    bytes.is_empty().then_some(total)
}

/// What the message says of its own length, its head included.
fn message_length(mut bytes: &[u8]) -> usize {
    let mut head = Vec::new();
    while let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        head.extend_from_slice(rest.get(..length).unwrap_or_default());
        bytes = rest.get(length..).unwrap_or_default();
    }
    4 + u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize
}

/// The frames of `hanse-mesh/1`: one value for one meaning, within the bounds of both sides.
pub fn mesh_frame(data: &[u8]) {
    let mut stream = data;
    let Ok(body) = at_once(read_body(&mut stream)) else { return };
    assert_eq!(data.len() - stream.len(), body.len() + 2, "more was taken than the frame has");
    assert!(body.len() <= FRAME_BYTES_MAX);
    let (opening, answer) = (Opening::decode(&body), Answer::decode(&body));
    assert!(opening.is_err() || answer.is_err(), "one frame is two");
    if let Ok(opening) = opening {
        assert!(opening.renews.len() <= RENEWS_MAX && opening.versions.0 <= opening.versions.1);
        assert_eq!(Opening::decode(own(&opening.encode())), Ok(opening));
    }
    if let Ok(answer) = answer {
        if let Answer::Denial { reason, detail, .. } = &answer {
            assert!(reason.len() <= REASON_BYTES_MAX && detail.len() <= DETAIL_BYTES_MAX);
            assert!(!detail.chars().any(char::is_control), "a control character passes");
        }
        assert_eq!(Answer::decode(own(&answer.encode())), Ok(answer));
    }
}

/// The body of a frame that was just written.
fn own(frame: &[u8]) -> &[u8] {
    let (&length, body) = frame.split_first_chunk::<2>().expect("a length");
    assert_eq!(body_length(length), Ok(body.len()), "it says another length than it has");
    body
}

/// SOCKS5: only names in the mesh and addresses that stand for them, and never a byte of the application's.
pub fn socks5(data: &[u8]) {
    let service: ServiceRef = "web.shop.east".parse().expect("a name");
    let known = Ipv4Addr::new(127, 64, 0, 1);
    let lookup = |address| (address == known).then(|| service.clone());
    let mut client = tokio::io::join(data, Vec::new());
    let asked = at_once(socks5::ask(&mut client, lookup));
    let (left, said) = client.into_inner();
    assert!(said.len() <= 2, "{said:?}");
    let Ok((wanted, port)) = asked else { return };
    assert_ne!(port, 0);
    assert_eq!(said, [5, 0]);
    let taken = &data[..data.len() - left.len()];
    assert!(taken.ends_with(&port.to_be_bytes()), "bytes behind the request were taken");
    let by_name = taken.to_ascii_lowercase().windows(4).any(|part| part == b".mes");
    assert!(by_name || wanted == service, "{wanted} was asked for by no name and no address of its own");
}

/// What a future gives that never waits: all its bytes are there.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("bytes in memory were waited for"),
    }
}
