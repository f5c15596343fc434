//! What must hold of all bytes that are sent to the DNS port; `fuzz/` looks for some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use std::sync::LazyLock;

use federation_model::Snapshot;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};

use crate::{
    Addresses, QueryType, Rcode, UDP_BYTES_MAX,
    answer::answer,
    testing::{fresh, world},
    wire::{Reply, Transport, respond},
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("dns_query", dns_query), ("dns_name", dns_name)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts = ["web.shop.east.mesh.internal.", "x.y.EAST.mesh.internal.", "mesh.internal.", "example.com."];
    match target {
        "dns_query" => {
            let kinds = [RecordType::A, RecordType::AAAA, RecordType::SOA, RecordType::AXFR, RecordType::ANY];
            texts
                .iter()
                .zip(kinds)
                .flat_map(|(text, kind)| [asked(text, kind, false), asked(text, kind, true)])
                .collect()
        }
        "dns_name" => texts.iter().chain(&["TYPE65", "A"]).map(|text| text.as_bytes().to_vec()).collect(),
        _ => Vec::new(),
    }
}

fn asked(text: &str, kind: RecordType, edns: bool) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(text).expect("a name"), kind));
    if edns {
        let mut options = Edns::new();
        options.set_max_payload(1400).set_dnssec_ok(true);
        message.set_edns(options);
    }
    message.to_vec().expect("it encodes")
}

static WORLD: LazyLock<(Snapshot, Addresses)> = LazyLock::new(world);

/// A message from anybody: an answer that is one, is small, and holds nothing that is not ours.
pub fn dns_query(data: &[u8]) {
    let (snapshot, addresses) = &*WORLD;
    for transport in [Transport::Udp, Transport::Tcp] {
        let Reply::Send { bytes, rcode, truncated } = respond(Some(snapshot), addresses, &fresh(), data, transport)
        else {
            assert!(data.len() < 12 || data[2] & 0x80 != 0, "a question was dropped");
            continue;
        };
        assert!(data[2] & 0x80 == 0, "an answer was answered");
        assert_eq!(bytes[..2], data[..2], "the answer is to another question");
        if transport == Transport::Udp {
            assert!(bytes.len() <= UDP_BYTES_MAX, "{} bytes", bytes.len());
            assert!(bytes.len() <= (2 * data.len()).max(12), "{} bytes for {}", bytes.len(), data.len());
        } else {
            assert!(!truncated);
        }
        let message = Message::from_vec(&bytes).expect("an answer that can be read");
        assert_eq!(message.metadata.message_type, MessageType::Response);
        assert!(!message.metadata.recursion_available);
        for record in message.answers {
            assert_eq!(rcode, Rcode::NoError);
            if let RData::A(address) = record.data {
                assert!(address.0.octets()[0] == 127 && address.0.octets()[1] & 0xc0 == 64, "{address} is not ours");
            }
        }
    }
    if data.len() >= 12 {
        // Without a snapshot nothing is said to be absent.
        if let Reply::Send { rcode, .. } = respond(None, addresses, &fresh(), data, Transport::Tcp) {
            assert!(!matches!(rcode, Rcode::NxDomain | Rcode::NoError));
        }
    }
}

/// A name and a type as an operator writes them.
pub fn dns_name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(kind) = text.parse::<QueryType>() {
        assert_eq!(kind.to_string().parse::<QueryType>().as_ref(), Ok(&kind));
    }
    let (snapshot, addresses) = &*WORLD;
    let found = answer(snapshot, addresses, &fresh(), text, QueryType::A);
    let again = answer(snapshot, addresses, &fresh(), &text.to_ascii_uppercase(), QueryType::A);
    assert_eq!(found.rcode, again.rcode, "case makes a difference");
    for record in &found.records {
        assert_eq!(record.name, text.to_ascii_lowercase().trim_end_matches('.'));
    }
    assert!(found.why.to_string().len() < 1024);
}
