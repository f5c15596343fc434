//! What must hold of all bytes that are given to this room's readers; `fuzz/` looks for some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use federation_model::{Body, EPOCHS_MAX, LOGS_MAX, RECORD_BYTES_MAX, Record, RuleState, Vector};
use prost::Message;

use crate::convert::{
    self, CANDIDATE_BYTES_MAX, Envelope, RECEIPT_BYTES_MAX, TOKEN_TEXT_BYTES_MAX, decode_candidate, decode_envelope,
    decode_receipt, decode_record, encode_candidate, encode_envelope, encode_receipt, encode_record,
    encode_record_checked,
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[
    ("token", token),
    ("record", record),
    ("envelope", envelope),
    ("candidate", candidate),
    ("receipt", receipt),
    ("vector", vector),
];

/// Inputs from which each target starts: the golden bytes of `testdata/wire.txt`.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let golden = || include_str!("../testdata/wire.txt").lines().filter_map(|line| line.split_once(' '));
    let bytes = |name: &str| golden().find(|(found, _)| *found == name).map(|(_, value)| hex(value));
    match target {
        "token" => {
            let texts = golden().filter(|(name, _)| name.ends_with("-token"));
            texts.map(|(_, text)| text.as_bytes().to_vec()).collect()
        }
        "record" => {
            let records = golden().filter(|(name, _)| !name.ends_with("-token")).map(|(_, value)| hex(value));
            records.filter(|bytes| decode_record(bytes).is_ok()).collect()
        }
        "envelope" => {
            let record = bytes("rule-deny").expect("a record of that name");
            vec![bytes("envelope").expect("an envelope"), encode_envelope(&record, &[7; 64])]
        }
        "candidate" => vec![bytes("candidate").expect("a candidate")],
        "receipt" => vec![encode_receipt(&example_receipt())],
        "vector" => vec![example_vector()],
        _ => Vec::new(),
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|digit| digit.to_digit(16).expect("hexadecimal") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn example_receipt() -> federation_model::Receipt {
    use federation_model::{ClusterId, Digest, FederationId, Receipt, Timestamp};
    let id = |byte| ClusterId::from_digest(Digest([byte; 32]));
    Receipt {
        federation: FederationId::from_digest(Digest([9; 32])),
        member: id(1),
        number: 7,
        at: Timestamp::from_millis(8),
        whole: true,
        law: [((id(1), 1), 4), ((id(2), 1), 900)].into(),
        neighbours: [(id(2), std::time::Duration::from_micros(7))].into(),
    }
}

fn example_vector() -> Vec<u8> {
    use federation_model::{Audience, ClusterId, Digest, Head};
    let id = |byte| ClusterId::from_digest(Digest([byte; 32]));
    let mut vector = Vector::default();
    for (writer, audience, epoch) in [(1, Audience::Law, 1), (1, Audience::All, 2), (2, Audience::Member(id(1)), 1)] {
        vector.set(id(writer), audience, epoch, Head { seq: 5, digest: Digest([writer; 32]) });
    }
    crate::federation::Vector::from(&vector).encode_to_vec()
}

/// Join and workload tokens: what was read is written as a text that reads as the same, and no error quotes the text.
pub fn token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let join = convert::parse_join_token(text);
    let workload = convert::parse_workload_token(text);
    assert!(join.is_err() || workload.is_err(), "one text is two tokens");
    if let Ok(token) = &join {
        let written = convert::join_token_text(token);
        assert!(text.trim_ascii().len() <= TOKEN_TEXT_BYTES_MAX && written.len() <= TOKEN_TEXT_BYTES_MAX);
        let again = convert::parse_join_token(&written).expect("its own text");
        assert_eq!(format!("{again:?}"), format!("{token:?}"));
        assert_eq!(again.secret.0, token.secret.0);
    }
    if let Ok(token) = &workload {
        let again = convert::parse_workload_token(&convert::workload_token_text(token)).expect("its own text");
        assert_eq!(format!("{again:?}"), format!("{token:?}"));
        assert_eq!(again.secret.0, token.secret.0);
    }
    for error in [join.err(), workload.err()].into_iter().flatten() {
        assert!(error.to_string().len() < 1024, "an error as long as what it is about");
    }
}

/// A record is one value: what was read is written as bytes that read as the same, and what was not understood stays so.
pub fn record(data: &[u8]) {
    let Ok(record) = decode_record(data) else { return };
    assert!(data.len() <= RECORD_BYTES_MAX);
    same_again(&record);
}

fn same_again(record: &Record) {
    let bytes = encode_record(record);
    let again = decode_record(&bytes).expect("its own bytes");
    assert_eq!(again, *record);
    assert_eq!(encode_record_checked(record).expect("a record that was read can be written"), bytes);
    // The bytes of one value are the same whenever they are made: a digest names it.
    assert_eq!(encode_record(&again), bytes);
    assert!(!record.author.chars().any(char::is_control));
    if let Body::Intention(intention) = &record.body
        && intention.state == RuleState::NotUnderstood
    {
        assert!(matches!(&again.body, Body::Intention(again) if again.state == RuleState::NotUnderstood));
    }
}

/// A record in its envelope; the one form in which it may travel is the one that is written.
pub fn envelope(data: &[u8]) {
    let Ok(envelope) = decode_envelope(data) else { return };
    assert!(data.len() <= RECORD_BYTES_MAX);
    let written = encode_envelope(&envelope.record_bytes, &envelope.signature);
    let Envelope { record_bytes, signature, record } = decode_envelope(&written).expect("its own bytes");
    assert_eq!(record_bytes, envelope.record_bytes);
    assert_eq!(signature, envelope.signature);
    assert_eq!(record, envelope.record);
    assert_eq!(decode_record(&record_bytes), Ok(record.clone()));
    same_again(&record);
}

/// What a joiner says of itself.
pub fn candidate(data: &[u8]) {
    let Ok(candidate) = decode_candidate(data) else { return };
    let bytes = encode_candidate(&candidate);
    assert!(bytes.len() <= CANDIDATE_BYTES_MAX);
    assert_eq!(decode_candidate(&bytes), Ok(candidate));
}

/// What a member says that it enforces.
pub fn receipt(data: &[u8]) {
    let Ok(receipt) = decode_receipt(data) else { return };
    let bytes = encode_receipt(&receipt);
    assert!(bytes.len() <= RECEIPT_BYTES_MAX, "a receipt that was read cannot be passed on");
    assert_eq!(decode_receipt(&bytes), Ok(receipt));
}

/// How far a peer says that it is.
pub fn vector(data: &[u8]) {
    let Ok(message) = crate::federation::Vector::decode(data) else { return };
    let Ok(vector) = Vector::try_from(&message) else { return };
    assert!(vector.0.len() <= LOGS_MAX);
    assert!(vector.0.values().all(|epochs| !epochs.is_empty() && epochs.len() <= EPOCHS_MAX));
    assert_eq!(vector.0.values().map(|epochs| epochs.len()).sum::<usize>(), message.logs.len());
    assert_eq!(Vector::try_from(&crate::federation::Vector::from(&vector)), Ok(vector));
}
