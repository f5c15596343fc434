//! Headers that are good, changed in one field, cut, replayed, or somebody else's; and the published vectors.

use std::path::PathBuf;

use federation_model::TrustBundle;
use proptest::prelude::*;

use super::*;
use crate::{
    SvidKey, now,
    testing::{Cluster, bundles, verifier},
    testing_vectors,
    token::{connection_id, instance_id},
};

const HELLO: &[u8] = b"the records of a ClientHello";
const DESTINATION: &str = "payments.billing.east.mesh.internal";

struct World {
    west: Cluster,
    web: Svid,
    verifier: Verifier,
    connection: ConnectionId,
}

impl World {
    fn new() -> Self {
        let west = Cluster::new("west");
        Self { web: west.workload("web"), verifier: verifier(&[&west]), connection: connection_id(), west }
    }

    fn open(&self) -> Vec<u8> {
        sign(&self.web, DESTINATION, self.connection, None, HELLO, now()).expect("signed")
    }

    fn verify(&self, bytes: &[u8]) -> Result<VerifiedPeer, HeaderError> {
        let (header, taken) = parse(bytes)?.ok_or(HeaderError::Malformed("more bytes are needed"))?;
        assert_eq!(taken, bytes.len());
        verify(&header, HELLO, &self.verifier, now())
    }
}

fn read(bytes: &[u8]) -> Header {
    parse(bytes).expect("well-formed").expect("whole").0
}

#[test]
fn a_header_says_who_sends_where_to() {
    let world = World::new();
    let instance = instance_id();
    let at = now();
    let bytes = sign(&world.web, DESTINATION, world.connection, Some(instance), HELLO, at).expect("signed");
    let header = read(&bytes);
    assert_eq!((header.destination.as_str(), header.connection), (DESTINATION, world.connection));
    assert_eq!((header.instance, header.at, header.purpose), (Some(instance), at, Purpose::Open));
    assert_eq!((header.hello_digest, &header.chain[..]), (sha256(HELLO), world.web.chain()));
    assert_eq!(header.to_bytes(), bytes, "there is one form");
    let peer = verify(&header, HELLO, &world.verifier, at).expect("verified");
    assert_eq!((peer.proof(), peer.id(), peer.not_after()), (Proof::Signed, world.web.id(), world.web.not_after()));
}

#[test]
fn a_header_is_awaited_to_its_end_and_not_beyond() {
    let world = World::new();
    let bytes = world.open();
    for cut in 0..bytes.len() {
        assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut}");
    }
    let behind = [&bytes[..], b"\x16\x03\x01 and what follows"].concat();
    let (header, taken) = parse(&behind).expect("well-formed").expect("whole");
    assert_eq!((taken, header), (bytes.len(), read(&bytes)));
}

#[test]
fn what_starts_otherwise_is_refused_at_once() {
    let world = World::new();
    let good = world.open();
    let with = |at: usize, byte: u8| {
        let mut bad = good[..PREAMBLE_BYTES].to_vec();
        bad[at] = byte;
        bad
    };
    for bad in [&b"G"[..], b"GET / HTTP/1.1", b"\x16\x03\x01", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIX", &[0]] {
        assert_eq!(parse(bad), Err(HeaderError::NotAHeader), "{bad:?}");
    }
    // Version 1 of PROXY, command LOCAL, family INET.
    for bad in [with(12, 0x11), with(12, 0x20), with(13, 0x11)] {
        assert_eq!(parse(&bad), Err(HeaderError::NotAHeader));
    }
    let long = [&PREAMBLE[..], &[0x40, 0x00]].concat();
    assert_eq!(parse(&long), Err(HeaderError::TooLong { bytes: HEADER_BYTES_MAX + 16 }), "before its bytes come");
    assert_eq!(parse(&[&PREAMBLE[..], &[0x3f, 0xf0]].concat()), Ok(None), "the longest that is awaited");
    assert!(parse(&[]).expect("nothing yet").is_none());
}

/// Changes the value of the TLV of this type (of the `nth` such), and sets all lengths right.
fn change(bytes: &[u8], kind: u8, nth: usize, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut tlvs: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut rest = &bytes[PREAMBLE_BYTES..];
    while let [kind, high, low, ..] = rest {
        let end = 3 + usize::from(u16::from_be_bytes([*high, *low]));
        tlvs.push((*kind, rest[3..end].to_vec()));
        rest = &rest[end..];
    }
    let value = tlvs.iter_mut().filter(|(found, _)| *found == kind).nth(nth).expect("present");
    edit(&mut value.1);
    write(&tlvs)
}

fn write(tlvs: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    tlvs.iter().for_each(|(kind, value)| put(&mut body, *kind, &[value]));
    [&PREAMBLE[..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

#[test]
fn no_field_can_be_changed_on_the_way() {
    let world = World::new();
    let instance = instance_id();
    let bytes = sign(&world.web, DESTINATION, world.connection, Some(instance), HELLO, now()).expect("signed");
    assert!(world.verify(&bytes).is_ok());
    let other = world.west.workload("web");
    let admin = world.west.workload("admin");
    let flip = |value: &mut Vec<u8>| *value.last_mut().expect("byte") ^= 1;
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "destination",
            "signature",
            change(&bytes, tlv::DESTINATION, 0, |v| *v = b"ledger.billing.east.mesh.internal".to_vec()),
        ),
        ("case of the destination", "signature", change(&bytes, tlv::DESTINATION, 0, |v| v[0] = b'P')),
        ("connection", "signature", change(&bytes, tlv::CONNECTION, 0, flip)),
        ("instance", "signature", change(&bytes, tlv::INSTANCE, 0, flip)),
        ("time", "signature", change(&bytes, tlv::TIME, 0, flip)),
        ("ClientHello", "hello", change(&bytes, tlv::HELLO, 0, flip)),
        ("signature", "signature", change(&bytes, tlv::SIGNATURE, 0, flip)),
        ("signature of nought", "signature", change(&bytes, tlv::SIGNATURE, 0, |v| v.fill(0))),
        (
            "leaf of the same account",
            "signature",
            change(&bytes, tlv::CERTIFICATE, 0, |v| *v = other.chain()[0].to_vec()),
        ),
        (
            "leaf of another account",
            "signature",
            change(&bytes, tlv::CERTIFICATE, 0, |v| *v = admin.chain()[0].to_vec()),
        ),
        ("bit of the leaf", "bad_signature", change(&bytes, tlv::CERTIFICATE, 0, flip)),
        ("bit of the intermediate", "bad_signature", change(&bytes, tlv::CERTIFICATE, 1, flip)),
        ("purpose", "purpose", change(&bytes, tlv::PURPOSE, 0, |v| v[1] = 2)),
        ("unknown purpose", "malformed", change(&bytes, tlv::PURPOSE, 0, |v| v[1] = 3)),
        ("version", "version", change(&bytes, tlv::PURPOSE, 0, |v| v[0] = 2)),
    ];
    for (what, reason, changed) in cases {
        assert_ne!(changed, bytes, "{what}");
        assert_eq!(world.verify(&changed).expect_err(what).reason(), reason, "{what}");
    }
}

#[test]
fn there_is_one_way_to_write_a_header() {
    let world = World::new();
    let instance = instance_id();
    let bytes = sign(&world.web, DESTINATION, world.connection, Some(instance), HELLO, now()).expect("signed");
    let all: Vec<(u8, Vec<u8>)> = {
        let mut all = Vec::new();
        let mut rest = &bytes[PREAMBLE_BYTES..];
        while let [kind, high, low, ..] = rest {
            let end = 3 + usize::from(u16::from_be_bytes([*high, *low]));
            all.push((*kind, rest[3..end].to_vec()));
            rest = &rest[end..];
        }
        all
    };
    assert_eq!(write(&all), bytes);
    let malformed = |tlvs: &[(u8, Vec<u8>)], what: &str| {
        assert!(matches!(parse(&write(tlvs)), Err(HeaderError::Malformed(_))), "{what}: {:?}", parse(&write(tlvs)));
    };
    for number in 0..all.len() {
        let mut without = all.clone();
        let (kind, _) = without.remove(number);
        // A header may be without an instance, and with one certificate less; its signature then is none.
        if kind == tlv::INSTANCE || kind == tlv::CERTIFICATE {
            assert!(world.verify(&write(&without)).is_err(), "without {kind:#x}");
        } else {
            malformed(&without, &format!("without {kind:#x}"));
        }
        let mut twice = all.clone();
        twice.insert(number, all[number].clone());
        if kind == tlv::CERTIFICATE {
            assert!(world.verify(&write(&twice)).is_err(), "twice {kind:#x}");
        } else {
            malformed(&twice, &format!("twice {kind:#x}"));
        }
        if number + 1 < all.len() && all[number].0 != all[number + 1].0 {
            let mut swapped = all.clone();
            swapped.swap(number, number + 1);
            malformed(&swapped, &format!("{kind:#x} late"));
        }
        for foreign in [0x00, 0x01, 0x04, 0xdf, 0xe8, 0xef, 0xff] {
            let mut more = all.clone();
            more.insert(number, (foreign, vec![1, 2, 3]));
            malformed(&more, &format!("{foreign:#x} before {kind:#x}"));
        }
        for change in [-1isize, 1] {
            let mut sized = all.clone();
            let length = sized[number].1.len().saturating_add_signed(change);
            sized[number].1.resize(length, 0);
            if ![tlv::DESTINATION, tlv::CERTIFICATE].contains(&kind) {
                malformed(&sized, &format!("{kind:#x} of {length} bytes"));
            }
        }
    }
    let mut behind = all.clone();
    behind.push((0x04, Vec::new()));
    malformed(&behind, "behind the signature");
    let mut crowd = all.clone();
    crowd.splice(5..5, std::iter::repeat_n(all[5].clone(), 2));
    malformed(&crowd, "four certificates");
    let mut none = all.clone();
    none.retain(|(kind, _)| *kind != tlv::CERTIFICATE);
    malformed(&none, "no certificate");
    malformed(&[], "nothing");
    // A length inside that reaches beyond the header.
    let mut lying = bytes.clone();
    lying[PREAMBLE_BYTES + 1] = 0xff;
    assert!(matches!(parse(&lying), Err(HeaderError::Malformed(_))));
}

#[test]
fn a_destination_is_visible_ascii_of_254_bytes_at_most() {
    let world = World::new();
    let sign = |destination: &str| sign(&world.web, destination, world.connection, None, HELLO, now());
    for good in ["a", &"a".repeat(254), "*", "payments.billing.west.mesh.internal."] {
        assert!(world.verify(&sign(good).expect(good)).is_ok(), "{good}");
    }
    let bytes = sign("a").expect("signed");
    for bad in ["", &"a".repeat(255), "a b", "a\0", "a\n", "é", "\x7f", "\u{202e}a"] {
        assert_eq!(sign(bad), Err(HeaderError::Destination), "{bad:?}");
        let changed = change(&bytes, tlv::DESTINATION, 0, |value| *value = bad.as_bytes().to_vec());
        assert_eq!(parse(&changed), Err(HeaderError::Destination), "{bad:?}");
    }
}

#[test]
fn a_header_is_good_for_five_minutes_each_way() {
    let world = World::new();
    let at = now();
    let header = read(&sign(&world.web, DESTINATION, world.connection, None, HELLO, at).expect("signed"));
    let judge = |now| verify(&header, HELLO, &world.verifier, now).map(drop);
    let (edge, beyond) = (CLOCK_SKEW_MAX, CLOCK_SKEW_MAX + Duration::from_millis(1));
    assert_eq!(judge(at.after(edge)), Ok(()));
    assert_eq!(judge(at.after(beyond)), Err(HeaderError::Clock { skew: beyond, side: "behind" }));
    assert_eq!(judge(at.before(beyond)), Err(HeaderError::Clock { skew: beyond, side: "ahead of" }));
    for odd in [Timestamp::ZERO, Timestamp::MAX] {
        let mut header = header.clone();
        header.at = odd;
        assert_eq!(verify(&header, HELLO, &world.verifier, at).expect_err("odd").reason(), "clock");
    }
}

#[test]
fn a_header_is_for_one_client_hello() {
    let world = World::new();
    let header = read(&world.open());
    for other in [&b""[..], b"another ClientHello", &HELLO[1..]] {
        assert_eq!(verify(&header, other, &world.verifier, now()), Err(HeaderError::Hello));
    }
}

#[test]
fn only_workloads_of_known_clusters_send_headers() {
    let world = World::new();
    let signed = |svid: &Svid| sign(svid, DESTINATION, world.connection, None, HELLO, now()).expect("signed");
    let reason = |svid: &Svid| world.verify(&signed(svid)).expect_err("refused").reason();
    assert_eq!(reason(&world.west.edge()), "wrong_role");
    assert_eq!(reason(&Cluster::new("north").workload("web")), "unknown_trust_domain");
    assert_eq!(reason(&Cluster::of("mallory", "west.mesh.internal").workload("web")), "unknown_issuer");

    // The bundle goes while the chain is remembered.
    let bytes = world.open();
    assert!(world.verify(&bytes).is_ok());
    world.verifier.publish(&bundles(Vec::<TrustBundle>::new()));
    assert_eq!(world.verify(&bytes).expect_err("gone").reason(), "unknown_trust_domain");
}

#[test]
fn a_root_is_not_sent_in_a_header() {
    let west = Cluster::new("west");
    let key = SvidKey::generate();
    let issued = west.issue("/ns/default/sa/web", &key);
    let web = Svid::assemble(key, issued.full_chain()).expect("svid");
    let header = read(&sign(&web, DESTINATION, connection_id(), None, HELLO, now()).expect("signed"));
    assert_eq!((web.chain().len(), header.chain.len()), (3, 2));
    assert!(verify(&header, HELLO, &verifier(&[&west]), now()).is_ok());
}

#[test]
fn an_extension_extends_its_own_connection_alone() {
    let world = World::new();
    let (opened, later) = (now(), now().after(Duration::from_secs(60)));
    let live = Extended {
        source: world.web.id(),
        destination: DESTINATION,
        connection: world.connection,
        hello_digest: sha256(HELLO),
        at: opened,
    };
    let renewed = world.west.workload("web");
    let extend = |svid: &Svid, destination: &str, connection, digest, at| {
        read(&sign_extension(svid, destination, connection, None, digest, at).expect("signed"))
    };
    let judge = |header: &Header, now| verify_extension(header, &live, &world.verifier, now);
    let good = extend(&renewed, DESTINATION, world.connection, sha256(HELLO), later);
    let peer = judge(&good, later).expect("extended");
    assert_eq!((peer.proof(), peer.not_after()), (Proof::Signed, renewed.not_after()));

    let other = connection_id();
    let reason = |header: &Header| judge(header, later).expect_err("refused").reason();
    assert_eq!(reason(&extend(&renewed, DESTINATION, other, sha256(HELLO), later)), "other_connection");
    assert_eq!(reason(&extend(&renewed, "other.east", world.connection, sha256(HELLO), later)), "other_connection");
    assert_eq!(reason(&extend(&renewed, DESTINATION, world.connection, sha256(b""), later)), "other_connection");
    let admin = world.west.workload("admin");
    assert_eq!(reason(&extend(&admin, DESTINATION, world.connection, sha256(HELLO), later)), "other_connection");
    assert_eq!(reason(&extend(&renewed, DESTINATION, world.connection, sha256(HELLO), opened)), "not_newer");
    let far = later.after(Duration::from_secs(301));
    assert_eq!(reason(&extend(&renewed, DESTINATION, world.connection, sha256(HELLO), far)), "clock");
    let foreign = Cluster::new("north").workload("web");
    assert_eq!(reason(&extend(&foreign, DESTINATION, world.connection, sha256(HELLO), later)), "unknown_trust_domain");

    // Neither purpose serves for the other, even rewritten.
    let mut opening = read(&sign(&renewed, DESTINATION, world.connection, None, HELLO, later).expect("signed"));
    assert_eq!(reason(&opening), "purpose");
    opening.purpose = Purpose::Extend;
    assert_eq!(reason(&opening), "signature");
    assert_eq!(verify(&good, HELLO, &world.verifier, later), Err(HeaderError::Purpose));
    let mut extending = good.clone();
    extending.purpose = Purpose::Open;
    assert_eq!(verify(&extending, HELLO, &world.verifier, later), Err(HeaderError::Signature));
}

#[test]
fn what_is_believed_is_what_was_signed_even_if_a_caller_changed_it() {
    let world = World::new();
    let header = read(&world.open());
    let mut changed = header.clone();
    changed.destination = "ledger.billing.east.mesh.internal".into();
    assert_eq!(verify(&changed, HELLO, &world.verifier, now()), Err(HeaderError::Signature));
    let mut huge = header;
    huge.chain = vec![CertificateDer::from(vec![0; 70_000]); 3];
    assert!(verify(&huge, HELLO, &world.verifier, now()).is_err());
    assert!(huge.to_bytes().len() > HEADER_BYTES_MAX);
}

fn vector_file(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).expect(name)
}

#[test]
fn headers_are_those_of_the_published_vectors() {
    let vector = testing_vectors::read("passthrough.txt");
    let domain = vector.text("trust_domain").parse().expect("domain");
    let verifier = Verifier::new();
    let ignored = verifier.publish(&bundles([TrustBundle {
        trust_domain: domain,
        sequence: 1,
        roots: vec![vector.bytes("root")],
    }]));
    assert!(ignored.is_empty(), "{ignored:?}");
    let source: SpiffeId = vector.text("source").parse().expect("id");
    let instance = Some(InstanceId(vector.array("instance")));
    let files = [("open", Purpose::Open, None), ("renew", Purpose::Open, instance), ("extend", Purpose::Extend, None)];
    for (name, purpose, instance) in files {
        let bytes = vector_file(&format!("passthrough-{name}.bin"));
        let header = read(&bytes);
        let at = Timestamp::from_millis(vector.number(&format!("{name}_at")));
        let wanted = Header {
            purpose,
            destination: vector.text("destination"),
            connection: ConnectionId(vector.array("connection")),
            instance,
            at,
            chain: ["leaf", "intermediate"].map(|one| CertificateDer::from(vector.bytes(one))).to_vec(),
            hello_digest: Digest(vector.array("hello_digest")),
            signature: header.signature,
        };
        assert_eq!(header, wanted, "{name}");
        assert_eq!(wanted.to_bytes(), bytes, "{name}");
        let peer = match purpose {
            Purpose::Open => verify(&header, &vector.bytes("hello"), &verifier, at),
            Purpose::Extend => {
                let live = Extended {
                    source: &source,
                    destination: &wanted.destination,
                    connection: wanted.connection,
                    hello_digest: wanted.hello_digest,
                    at: at.before(Duration::from_secs(1)),
                };
                verify_extension(&header, &live, &verifier, at)
            }
        };
        assert_eq!(*peer.expect(name).id(), source);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse(&bytes);
        let _ = parse(&[&PREAMBLE[..], &(bytes.len() as u16).to_be_bytes(), &bytes].concat());
    }

    #[test]
    fn headers_of_arbitrary_parts_read_back_as_written(
        destination in "[!-~]{1,254}", connection: [u8; 16], instance: Option<[u8; 16]>, at: u64,
        chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 1..=3), hello: [u8; 32],
        extend: bool,
    ) {
        let header = Header {
            purpose: if extend { Purpose::Extend } else { Purpose::Open },
            destination,
            connection: ConnectionId(connection),
            instance: instance.map(InstanceId),
            at: Timestamp::from_millis(at),
            chain: chain.into_iter().map(CertificateDer::from).collect(),
            hello_digest: Digest(hello),
            signature: [7; 64],
        };
        let bytes = header.to_bytes();
        prop_assert_eq!(parse(&bytes), Ok(Some((header, bytes.len()))));
    }

    #[test]
    fn no_changed_byte_is_believed(at in any::<prop::sample::Index>(), with in 1u8..) {
        thread_local!(static WORLD: (World, Vec<u8>) = {
            let world = World::new();
            let bytes = world.open();
            (world, bytes)
        });
        WORLD.with(|(world, bytes)| -> Result<(), TestCaseError> {
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= with;
            if let Ok(Some((header, _))) = parse(&changed) {
                prop_assert!(verify(&header, HELLO, &world.verifier, now()).is_err());
            }
            Ok(())
        })?;
    }
}
