//! Reading greetings, good and bad, in pieces of any size.

use federation_identity::passthrough;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::tests::world::{Hello, World, hello};

const NAME: &str = "payments.billing.west.mesh.internal";

fn header(world: &World, destination: &str, hello: &[u8]) -> Vec<u8> {
    let svid = world.workload("web.shop.east");
    let id = federation_model::ConnectionId([1; 16]);
    passthrough::sign(&svid, destination, id, None, hello, federation_identity::now()).expect("a header")
}

async fn refused(bytes: &[u8]) -> &'static str {
    match read(&mut &bytes[..]).await {
        Ok(_) => "taken",
        Err(error) => error.reason(),
    }
}

#[tokio::test]
async fn a_greeting_is_read_in_whatever_pieces_it_comes() {
    let world = World::new();
    let hello = hello(&Hello { name: Some(NAME), ..Hello::default() });
    let header = header(&world, NAME, &hello);
    let whole = [&header[..], &hello, b"behind it"].concat();
    for piece in [1, 7, 100, 5000] {
        let (mut far, mut near) = tokio::io::duplex(piece);
        let bytes = whole.clone();
        let writer = tokio::spawn(async move { far.write_all(&bytes).await });
        let greeting = read(&mut near).await.expect("a greeting");
        assert_eq!(greeting.service.to_string(), "payments.billing.west");
        assert_eq!(greeting.hello(), hello);
        assert!(whole.starts_with(greeting.raw()));
        drop(near);
        let _ = writer.await;
    }
    let greeting = read(&mut &whole[..]).await.expect("a greeting");
    assert_eq!(greeting.raw(), whole);
    assert_eq!(greeting.into_handshake().1, b"behind it");
}

#[tokio::test]
async fn a_hello_in_several_records_is_one_hello() {
    let world = World::new();
    let one = hello(&Hello { name: Some(NAME), ..Hello::default() });
    let mut split = Vec::new();
    for fragment in one[5..].chunks(3) {
        split.extend_from_slice(&[22, 3, 1, 0, fragment.len() as u8]);
        split.extend_from_slice(fragment);
    }
    let whole = [header(&world, NAME, &split), split.clone()].concat();
    let greeting = read(&mut &whole[..]).await.expect("a greeting");
    assert_eq!(greeting.hello(), split);
}

#[tokio::test]
async fn every_bad_greeting_has_its_reason() {
    let world = World::new();
    let good = hello(&Hello { name: Some(NAME), ..Hello::default() });
    let behind = |hello: &[u8]| [header(&world, NAME, hello), hello.to_vec()].concat();
    let mut trailing = good.clone();
    trailing.push(0);
    let length = (trailing.len() - 5) as u16;
    trailing[3..5].copy_from_slice(&length.to_be_bytes());
    let mut huge = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb];
    huge.resize(20_000, 0);
    let mut long_message = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    long_message.resize(2_000, 0);
    let tiny_records = [22, 3, 1, 0, 1, 0].repeat(10);
    let mut old = good.clone();
    old[1] = 2;
    for (bytes, wanted) in [
        (vec![], "stream"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not_a_header"),
        (good.clone(), "not_a_header"),
        (header(&world, NAME, &good), "stream"),
        (behind(b"GET / HTTP/1.1\r\n\r\n"), "no_hello"),
        (behind(&[22, 3, 1, 0, 0]), "no_hello"),
        (behind(&old), "no_hello"),
        (behind(&tiny_records), "no_hello"),
        (behind(&trailing), "no_hello"),
        (behind(&good[..good.len() - 1]), "stream"),
        (behind(&huge), "hello_too_long"),
        (behind(&long_message), "hello_too_long"),
        (behind(&[&[22, 3, 1, 0, 4, 1, 0, 0, 0][..]].concat()), "hello_malformed"),
        (behind(&hello(&Hello { name: None, ..Hello::default() })), "no_sni"),
        (behind(&hello(&Hello { name: Some("example.com"), ..Hello::default() })), "foreign_sni"),
        (behind(&hello(&Hello { name: Some("a.b.mesh.internal"), ..Hello::default() })), "foreign_sni"),
        (behind(&hello(&Hello { name: Some("other.billing.west.mesh.internal"), ..Hello::default() })), "sni_mismatch"),
        (behind(&hello(&Hello { name: Some(NAME), alpn: b"h2" })), "alpn"),
        (behind(&hello(&Hello { name: Some(NAME), alpn: b"" })), "alpn"),
        ([header(&world, "example.com", &good), good.clone()].concat(), "sni_mismatch"),
    ] {
        assert_eq!(refused(&bytes).await, wanted, "{} bytes", bytes.len());
    }
}

proptest! {
    #[test]
    fn no_bytes_behind_a_header_make_the_framing_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = hello_length(&bytes);
        if let Ok(Some(length)) = hello_length(&bytes) {
            prop_assert!(length <= bytes.len());
            let _ = understand(&bytes[..length]);
        }
    }

    #[test]
    fn no_change_of_a_hello_makes_it_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = hello(&Hello { name: Some(NAME), ..Hello::default() });
        let place = at.index(bytes.len());
        bytes[place] = to;
        if let Ok(Some(length)) = hello_length(&bytes) {
            let _ = understand(&bytes[..length]);
        }
    }
}
