//! Frames: what is written is read back, and nothing else is taken.

use proptest::prelude::*;

use super::*;

fn opening() -> Opening {
    Opening {
        versions: (1, 3),
        service: "payments.billing.west".parse().unwrap(),
        connection: ConnectionId([7; 16]),
        features: 5,
        renews: vec![[1; 32], [2; 32]],
    }
}

fn body(frame: &[u8]) -> &[u8] {
    let length = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
    assert_eq!(length, frame.len() - 2);
    &frame[2..]
}

/// A body by hand: kind, then (type, value).
fn made(kind: u8, fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut frame = Writer::new(kind);
    fields.iter().for_each(|(field, value)| frame.field(*field, value));
    body(&frame.finish()).to_vec()
}

#[test]
fn an_opening_is_read_back() {
    assert_eq!(Opening::decode(body(&opening().encode())), Ok(opening()));
    let plain = Opening { features: 0, renews: vec![], ..opening() };
    assert_eq!(Opening::decode(body(&plain.encode())), Ok(plain));
}

#[test]
fn a_full_renewal_fits_its_frame() {
    let full = Opening { renews: vec![[9; 32]; RENEWS_MAX], ..opening() };
    let frame = full.encode();
    assert!(frame.len() <= FRAME_BYTES_MAX + 2);
    assert_eq!(Opening::decode(body(&frame)).unwrap().renews.len(), RENEWS_MAX);
    let more = Opening { renews: vec![[9; 32]; RENEWS_MAX + 9], ..opening() };
    assert_eq!(Opening::decode(body(&more.encode())).unwrap().renews.len(), RENEWS_MAX);
}

#[test]
fn answers_are_read_back() {
    let permit = Answer::Permit { version: 1, instance: InstanceId([3; 16]), features: 8, renewed: u64::MAX };
    assert_eq!(Answer::decode(body(&permit.encode())), Ok(permit));
    let denial = Answer::Denial { reason: "default_deny".into(), detail: "no rule".into(), audit: [4; 16] };
    assert_eq!(Answer::decode(body(&denial.encode())), Ok(denial));
}

#[test]
fn a_denial_is_cut_and_cleaned_for_terminals() {
    let denial = Answer::Denial { reason: "rule".into(), detail: "é\n\u{1b}[31m".repeat(1000), audit: [0; 16] };
    let Ok(Answer::Denial { detail, .. }) = Answer::decode(body(&denial.encode())) else { panic!("no denial") };
    assert!(detail.len() <= DETAIL_BYTES_MAX && !detail.chars().any(char::is_control));
    // What a peer sends uncleaned is cleaned on arrival.
    let raw = made(DENIAL, &[(REASON, b"rule"), (DETAIL, b"a\x1bb"), (AUDIT, &[0; 16])]);
    assert!(matches!(Answer::decode(&raw), Ok(Answer::Denial { detail, .. }) if detail == "a b"));
}

#[test]
fn every_bad_opening_has_its_reason() {
    let name: &[u8] = b"payments.billing.west.mesh.internal";
    let id: &[u8] = &[7; 16];
    let long = [b'a'; 255];
    let good: [(u8, &[u8]); 3] = [(VERSIONS, &[1, 1]), (SERVICE, name), (CONNECTION, id)];
    assert!(Opening::decode(&made(OPENING, &good)).is_ok());
    let with = |extra: &[(u8, &[u8])]| made(OPENING, &[&good[..], extra].concat());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "frame_empty"),
        (vec![0; FRAME_BYTES_MAX + 1], "frame_too_long"),
        (made(PERMIT, &good), "frame_kind"),
        (made(0, &good), "frame_kind"),
        (made(OPENING, &[]), "frame_missing_field"),
        (made(OPENING, &good[1..]), "frame_missing_field"),
        (made(OPENING, &good[..2]), "frame_missing_field"),
        (with(&[(VERSIONS, &[1, 1])]), "frame_duplicate_field"),
        (with(&[(6, id)]), "frame_unknown_field"),
        (with(&[(127, id)]), "frame_unknown_field"),
        (with(&[(FEATURES, &[1])]), "frame_field_length"),
        (with(&[(RENEWS, &[1; 33])]), "frame_field_length"),
        (with(&[(RENEWS, &[1; 65 * 32])]), "frame_field_length"),
        (made(OPENING, &[(VERSIONS, &[1]), good[1], good[2]]), "frame_field_length"),
        (made(OPENING, &[(VERSIONS, &[2, 1]), good[1], good[2]]), "frame_versions"),
        (made(OPENING, &[good[0], good[1], (CONNECTION, &[7; 15])]), "frame_field_length"),
        (made(OPENING, &[good[0], (SERVICE, &long), good[2]]), "frame_field_length"),
        (made(OPENING, &[good[0], (SERVICE, b"\xff"), good[2]]), "frame_field_text"),
        (made(OPENING, &[good[0], (SERVICE, b"example.com"), good[2]]), "frame_field_text"),
        ([made(OPENING, &good), vec![RENEWS, 0]].concat(), "frame_truncated"),
        ([made(OPENING, &good), vec![RENEWS, 0, 2, 1]].concat(), "frame_truncated"),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(Opening::decode(&bytes).map_err(|error| error.reason()), Err(wanted), "{bytes:?}");
    }
    assert!(Opening::decode(&with(&[(128, b"later"), (128, b"twice")])).is_ok(), "optional fields are skipped");
}

#[test]
fn every_bad_answer_has_its_reason() {
    for (bytes, wanted) in [
        (made(OPENING, &[]), "frame_kind"),
        (made(PERMIT, &[(VERSIONS, &[1])]), "frame_missing_field"),
        (made(PERMIT, &[(VERSIONS, &[1, 1]), (INSTANCE, &[0; 16])]), "frame_field_length"),
        (made(PERMIT, &[(VERSIONS, &[1]), (INSTANCE, &[0; 17])]), "frame_field_length"),
        (made(PERMIT, &[(REASON, b"rule")]), "frame_unknown_field"),
        (made(DENIAL, &[(REASON, b""), (AUDIT, &[0; 16])]), "frame_field_length"),
        (made(DENIAL, &[(REASON, &[b'a'; 33]), (AUDIT, &[0; 16])]), "frame_field_length"),
        (made(DENIAL, &[(REASON, b"Rule"), (AUDIT, &[0; 16])]), "frame_field_text"),
        (made(DENIAL, &[(REASON, b"rule"), (DETAIL, &[b'a'; 1025]), (AUDIT, &[0; 16])]), "frame_field_length"),
        (made(DENIAL, &[(REASON, b"rule"), (DETAIL, b"\xff"), (AUDIT, &[0; 16])]), "frame_field_text"),
        (made(DENIAL, &[(REASON, b"rule")]), "frame_missing_field"),
    ] {
        assert_eq!(Answer::decode(&bytes).map_err(|error| error.reason()), Err(wanted), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_length_is_judged_before_memory_is_taken_and_the_rest_is_left() {
    for (length, wanted) in [([0, 0], "frame is empty"), ([0x10, 1], "4097 bytes"), ([0xff, 0xff], "65535 bytes")] {
        let error = read_body(&mut &length[..]).await.expect_err("refused");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let mut stream: &[u8] = &[0, 2, 9, 9, 42];
    assert_eq!(read_body(&mut stream).await.expect("a body"), [9, 9]);
    assert_eq!(stream, [42]);
    assert!(read_body(&mut &[0, 5, 1][..]).await.is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Opening::decode(&bytes);
        let _ = Answer::decode(&bytes);
    }

    #[test]
    fn no_change_of_a_good_frame_makes_the_parser_panic(
        at in any::<prop::sample::Index>(), to in any::<u8>(), keep in any::<prop::sample::Index>(),
    ) {
        let frame = opening().encode();
        let mut bytes = body(&frame).to_vec();
        let place = at.index(bytes.len());
        bytes[place] = to;
        let _ = Opening::decode(&bytes);
        let _ = Opening::decode(&bytes[..keep.index(bytes.len())]);
    }

    #[test]
    fn what_is_taken_is_what_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(opening) = Opening::decode(&bytes) {
            prop_assert_eq!(Opening::decode(body(&opening.encode())), Ok(opening));
        }
    }

    #[test]
    fn any_opening_is_read_back(
        low in 0_u8..9, span in 0_u8..9, connection in any::<[u8; 16]>(), features in any::<u64>(),
        renews in prop::collection::vec(any::<[u8; 32]>(), 0..=RENEWS_MAX),
        service in "[a-z][a-z0-9]{0,20}",
    ) {
        let service = format!("{service}.shop.east").parse().unwrap();
        let opening = Opening {
            versions: (low, low + span), service, connection: ConnectionId(connection), features, renews,
        };
        prop_assert_eq!(Opening::decode(body(&opening.encode())), Ok(opening));
    }
}
