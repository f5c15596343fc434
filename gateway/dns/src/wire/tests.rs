//! Messages that are read, refused or cut.

use federation_model::WhenStale;
use hickory_proto::{
    op::Query,
    rr::{RecordType, rdata::opt::EdnsCode},
};
use proptest::prelude::*;

use super::*;
use crate::testing::{fresh, heard, world};

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

fn with_edns(mut message: Message, payload: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(version).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn ask_bytes(request: &[u8], transport: Transport) -> Option<(Message, usize)> {
    let (snapshot, addresses) = world();
    match respond(Some(&snapshot), &addresses, &fresh(), request, transport) {
        Reply::Send { bytes, .. } => Some((Message::from_vec(&bytes).expect("an answer that decodes"), bytes.len())),
        Reply::Drop(_) => None,
    }
}

fn ask(message: &Message, transport: Transport) -> Message {
    ask_bytes(&message.to_vec().expect("encodes"), transport).expect("an answer").0
}

#[test]
fn the_answer_repeats_the_case_of_the_question() {
    let asked = question("PayMents.biLLing.WEST.mesh.INTERNAL.", RecordType::A);
    let reply = ask(&asked, Transport::Udp);
    let shown = |name: &Name| name.to_ascii();
    assert_eq!(reply.queries.first().map(|q| shown(q.name())), Some("PayMents.biLLing.WEST.mesh.INTERNAL.".into()));
    assert_eq!(reply.answers.first().map(|r| shown(&r.name)), Some("PayMents.biLLing.WEST.mesh.INTERNAL.".into()));
    let metadata = &reply.metadata;
    assert_eq!((metadata.id, metadata.message_type, metadata.authoritative), (4711, MessageType::Response, true));
    assert!(metadata.recursion_desired && !metadata.recursion_available && !metadata.truncation);
    let absent = ask(&question("x.y.EAST.Mesh.internal.", RecordType::A), Transport::Udp);
    assert_eq!(absent.authorities.first().map(|r| shown(&r.name)), Some("Mesh.internal.".into()));
}

#[test]
fn an_address_is_kept_for_5_seconds_and_an_absence_for_2() {
    let found = ask(&question("web.shop.east.mesh.internal.", RecordType::A), Transport::Udp);
    assert_eq!(found.answers.first().map(|record| record.ttl), Some(5));
    for (asked, code) in [
        (question("web.shop.east.mesh.internal.", RecordType::AAAA), ResponseCode::NoError),
        (question("api.shop.east.mesh.internal.", RecordType::A), ResponseCode::NXDomain),
    ] {
        let reply = ask(&asked, Transport::Udp);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0));
        let soa = reply.authorities.first().expect("an SOA");
        let RData::SOA(data) = &soa.data else { panic!("{soa:?}") };
        assert_eq!((soa.ttl, data.minimum, data.serial), (2, 2, 7));
    }
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    let plain = question("web.shop.east.mesh.internal.", RecordType::A);
    assert!(ask(&plain, Transport::Udp).edns.is_none());
    let edns = ask(&with_edns(plain, 4096, 0), Transport::Udp).edns.expect("EDNS");
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    assert_eq!(edns.options().as_ref().len(), 0);
}

/// The extended error of an answer for a name, all of west's services being strict or not, and west silent or not.
fn extended_error(name: &str, when: WhenStale, heard: Ages) -> Option<Vec<u8>> {
    let (mut snapshot, addresses) = world();
    let mut service = crate::testing::service(2, "payments.billing.west");
    service.staleness.when = when;
    snapshot.catalog.insert(service);
    let asked = with_edns(question(name, RecordType::A), 1232, 0).to_vec().expect("encodes");
    let Reply::Send { bytes, .. } = respond(Some(&snapshot), &addresses, &heard, &asked, Transport::Udp) else {
        panic!("an answer")
    };
    let edns = Message::from_vec(&bytes).expect("decodes").edns.expect("EDNS");
    edns.option(EdnsCode::Unknown(15)).map(|option| match option {
        EdnsOption::Unknown(_, data) => data.clone(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn an_answer_past_the_lease_says_so_in_an_extended_error() {
    let payments = "payments.billing.west.mesh.internal.";
    for (name, when, heard, wanted) in [
        (payments, WhenStale::Keep, heard(None), Some(vec![0, 3])),
        (payments, WhenStale::PreferLocal, heard(None), Some(vec![0, 3])),
        (payments, WhenStale::Deny, heard(None), Some(vec![0, 22])),
        (payments, WhenStale::Deny, fresh(), None),
        ("web.shop.east.mesh.internal.", WhenStale::Deny, heard(None), None),
        ("web.shop.west.mesh.internal.", WhenStale::Deny, heard(None), None),
    ] {
        assert_eq!(extended_error(name, when, heard), wanted, "{name} {when}");
    }
}

#[test]
fn refuses_a_later_version_of_edns() {
    let reply = ask(&with_edns(question("web.shop.east.mesh.internal.", RecordType::A), 1232, 1), Transport::Udp);
    // 16 has two names, and the codec reads it as the other one.
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!((reply.answers.len(), reply.edns.map(|edns| edns.version())), (0, Some(0)));
}

#[test]
fn says_nothing_to_an_answer_so_that_two_servers_cannot_play_ping_pong() {
    let mut message = question("web.shop.east.mesh.internal.", RecordType::A);
    message.metadata.message_type = MessageType::Response;
    assert!(ask_bytes(&message.to_vec().expect("encodes"), Transport::Udp).is_none());
    // Neither to what its own answers are, sent back to it.
    for own in [question("nowhere.example.", RecordType::A), question("web.shop.east.mesh.internal.", RecordType::A)] {
        let (snapshot, addresses) = world();
        let bytes = own.to_vec().expect("encodes");
        let Reply::Send { bytes, .. } = respond(Some(&snapshot), &addresses, &fresh(), &bytes, Transport::Udp) else {
            panic!()
        };
        assert!(ask_bytes(&bytes, Transport::Udp).is_none());
    }
}

#[test]
fn says_nothing_to_less_than_a_header() {
    for length in 0..12 {
        assert!(ask_bytes(&vec![0; length], Transport::Udp).is_none(), "{length}");
    }
}

#[test]
fn answers_other_operations_with_notimp() {
    for code in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(9)] {
        let mut bytes = question("mesh.internal.", RecordType::SOA).to_vec().expect("encodes");
        bytes[2] = (bytes[2] & 0x87) | (u8::from(code) << 3);
        let (reply, length) = ask_bytes(&bytes, Transport::Udp).expect("an answer");
        assert_eq!((reply.metadata.response_code, length), (ResponseCode::NotImp, 12), "{code}");
    }
}

#[test]
fn answers_what_is_no_single_question_with_formerr() {
    let good = question("web.shop.east.mesh.internal.", RecordType::A).to_vec().expect("encodes");
    let counts = |at: usize, count: u16| {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        bytes
    };
    let mut two = question("web.shop.east.mesh.internal.", RecordType::A);
    two.add_query(Query::query(name("mesh.internal."), RecordType::SOA));
    let mut doubled = with_edns(question("web.shop.east.mesh.internal.", RecordType::A), 1232, 0).to_vec().expect("");
    let edns = doubled[doubled.len() - 11..].to_vec();
    doubled.extend(edns);
    doubled[11] = 2;
    let cases = [
        ("no question", counts(4, 0)),
        ("two questions", two.to_vec().expect("encodes")),
        ("65535 questions", counts(4, u16::MAX)),
        ("an answer", counts(6, 1)),
        ("an authority", counts(8, 1)),
        ("65535 additionals", counts(10, u16::MAX)),
        ("an additional that is not there", counts(10, 1)),
        ("two EDNS records", doubled),
        ("cut in the name", good[..20].to_vec()),
        ("cut in the class", good[..good.len() - 1].to_vec()),
        ("only a header", good[..12].to_vec()),
        ("a name that points at itself", [&good[..12], b"\xc0\x0c\x00\x01\x00\x01"].concat()),
        ("a name that points forward", [&good[..12], b"\xc0\x20\x00\x01\x00\x01"].concat()),
        ("a reserved label type", [&good[..12], b"\x80abc\x00\x00\x01\x00\x01"].concat()),
        ("a name over 255 bytes", [&good[..12], &b"\x3f".repeat(320), b"\0\x00\x01\x00\x01"].concat()),
        ("over the bound", [&good[..], &[0; REQUEST_BYTES_MAX]].concat()),
    ];
    for (what, bytes) in cases {
        let (reply, length) = ask_bytes(&bytes, Transport::Udp).expect(what);
        assert_eq!((reply.metadata.response_code, length), (ResponseCode::FormErr, 12), "{what}");
        assert_eq!(reply.metadata.id, 4711, "{what}");
    }
}

#[test]
fn refuses_other_classes_and_other_zones_without_authority() {
    let mut chaos = question("web.shop.east.mesh.internal.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    for asked in [chaos, question("version.bind.", RecordType::TXT), question(".", RecordType::NS)] {
        let reply = ask(&asked, Transport::Udp);
        assert_eq!((reply.metadata.response_code, reply.metadata.authoritative), (ResponseCode::Refused, false));
        assert!(reply.answers.is_empty() && reply.authorities.is_empty());
    }
}

#[test]
fn a_dot_within_a_label_separates_nothing() {
    let dotted = Name::from_labels([&b"web.shop"[..], b"east", b"mesh", b"internal"]).expect("a name");
    let mut asked = Message::new(1, MessageType::Query, OpCode::Query);
    asked.add_query(Query::query(dotted, RecordType::A));
    assert_eq!(ask(&asked, Transport::Udp).metadata.response_code, ResponseCode::NXDomain);
    let outside = Name::from_labels([&b"web"[..], b"shop", b"east", b"mesh.internal"]).expect("a name");
    let mut asked = Message::new(1, MessageType::Query, OpCode::Query);
    asked.add_query(Query::query(outside, RecordType::A));
    assert_eq!(ask(&asked, Transport::Udp).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn sends_over_udp_at_most_twice_what_was_asked() {
    let names = [
        "mesh.internal.",
        "x.mesh.internal.",
        "east.mesh.internal.",
        "a.b.east.mesh.internal.",
        "web.shop.east.mesh.internal.",
        ".",
    ];
    for text in names {
        for kind in
            [RecordType::A, RecordType::AAAA, RecordType::SOA, RecordType::NS, RecordType::ANY, RecordType::AXFR]
        {
            for asked in [question(text, kind), with_edns(question(text, kind), 65_535, 0)] {
                let bytes = asked.to_vec().expect("encodes");
                let (_, length) = ask_bytes(&bytes, Transport::Udp).expect("an answer");
                assert!(length <= 2 * bytes.len(), "{text} {kind}: {length} for {}", bytes.len());
            }
        }
    }
}

#[test]
fn a_normal_answer_is_never_cut() {
    for asked in [
        question("web.shop.east.mesh.internal.", RecordType::A),
        question("web.shop.east.mesh.internal.", RecordType::AAAA),
        question("WEB.SHOP.EAST.MESH.INTERNAL.", RecordType::AAAA),
        question("a.b.east.mesh.internal.", RecordType::A),
        with_edns(question("mesh.internal.", RecordType::SOA), 512, 0),
    ] {
        assert!(!ask(&asked, Transport::Udp).metadata.truncation, "{asked}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
    let asked = question("mesh.internal.", RecordType::ANY);
    let cut = ask(&asked, Transport::Udp);
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.authorities.is_empty());
    assert_eq!((cut.queries.len(), cut.metadata.response_code), (1, ResponseCode::NoError));
    let whole = ask(&asked, Transport::Tcp);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 2);
}

#[test]
fn a_64_kib_message_costs_next_to_nothing() {
    // A name of 127 labels, then pointers into it, over and over: quadratic for a reader that follows each.
    let mut bytes = vec![0x12, 0x67, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    bytes.extend(b"\x01a".repeat(126));
    bytes.extend(b"\0\0\x01\0\x01");
    while bytes.len() < 65_000 {
        bytes.extend(b"\xc0\x0c\0\x01\0\x01");
    }
    let begun = tokio::time::Instant::now();
    for _ in 0..100 {
        assert!(ask_bytes(&bytes, Transport::Tcp).is_some());
    }
    // 5 ms each, ten times what it should be; the worlds made for it are in it too.
    assert!(begun.elapsed() < std::time::Duration::from_millis(500), "{:?}", begun.elapsed());
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = ask_bytes(&bytes, Transport::Udp);
    }

    #[test]
    fn never_panics_on_a_broken_question(
        at in proptest::collection::vec((0_usize..60, any::<u8>()), 1..6),
        cut in 0_usize..60,
    ) {
        let asked = with_edns(question("web.shop.east.mesh.internal.", RecordType::A), 1232, 0);
        let mut bytes = asked.to_vec().expect("encodes");
        for (index, value) in at {
            if let Some(byte) = bytes.get_mut(index) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        if let Some((reply, length)) = ask_bytes(&bytes, Transport::Udp) {
            prop_assert!(length <= bytes.len() * 2);
            prop_assert_eq!(reply.metadata.message_type, MessageType::Response);
        }
    }

    #[test]
    fn every_address_is_one_that_we_gave(label in "[a-zA-Z0-9_*.-]{0,40}") {
        if let Ok(name) = Name::from_ascii(format!("{label}.mesh.internal.")) {
            let mut asked = Message::new(1, MessageType::Query, OpCode::Query);
            asked.add_query(Query::query(name, RecordType::A));
            for record in ask(&asked, Transport::Tcp).answers {
                let RData::A(address) = &record.data else { continue };
                prop_assert_eq!(u32::from(address.0) >> 22, u32::from_be_bytes([127, 64, 0, 0]) >> 22);
            }
        }
    }
}
