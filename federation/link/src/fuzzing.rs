//! What must hold of all bytes that a peer may send on a stream, and of all rows that this room reads; `fuzz/` looks for
//! some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
};

use federation_identity::{LocalSigner, Signer, now};
use federation_model::{
    Action, Audience, Body, ClusterId, ConnectionId, DestinationPattern, Digest, FederationId, Intention, IntentionKey,
    Label, Layer, Record, RuleState, SourcePattern, Timestamp, TokenId, Vector,
};
use federation_store::Revision;
use prost::Message as _;
use proto::{
    convert::{RECEIPT_BYTES_MAX, decode_candidate, decode_receipt, encode_candidate, encode_envelope, encode_record},
    federation as wire_messages, store as rows,
};

use crate::{
    records::{Unchecked, check_in_order},
    state::State,
    tokens,
    wire::{
        self, CONTROL_BYTES_MAX, FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, JOIN_BYTES_MAX, OPEN_BYTES_MAX, WireError,
    },
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("session_frame", session_frame), ("records", records), ("state_row", state_row)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "session_frame" => frames().into_iter().map(|frame| wire::encode(frame).expect("it fits")).collect(),
        "records" => {
            let known = &*KNOWN;
            let framed = |envelopes: &[&Vec<u8>]| {
                let envelopes = envelopes.iter().map(|envelope| envelope.to_vec()).collect();
                wire_messages::Records { envelopes }.encode_to_vec()
            };
            vec![framed(&[&known.founding, &known.rule]), framed(&[&known.rule]), framed(&[])]
        }
        "state_row" => vec![
            State { own: id(1), federation: federation(), blocked: [id(3)].into() }.encode(),
            rows::IssuedToken {
                id: vec![7; 16],
                joiner: "west".into(),
                expires_at_ms: 9,
                proof_key: vec![1; 100],
                used_by: vec![2; 32],
                ..Default::default()
            }
            .encode_to_vec(),
        ],
        _ => Vec::new(),
    }
}

fn id(byte: u8) -> ClusterId {
    ClusterId::from_digest(Digest([byte; 32]))
}

fn federation() -> FederationId {
    FederationId::from_digest(Digest([9; 32]))
}

/// One of each kind.
fn frames() -> Vec<Frame> {
    let known = &*KNOWN;
    let bytes = |length| vec![7; length];
    let mut vector = Vector::default();
    vector.set(id(1), Audience::Law, 1, federation_model::Head { seq: 4, digest: Digest([3; 32]) });
    vec![
        Frame::Hello(wire_messages::Hello { version_min: 1, version_max: 1, ..Default::default() }),
        Frame::HelloAck(wire_messages::HelloAck { version: 1, ..Default::default() }),
        wire::refusal("busy", "come again"),
        Frame::Heartbeat(wire_messages::Heartbeat { number: 7, now_ms: 1 }),
        Frame::HeartbeatAck(wire_messages::HeartbeatAck { number: 7, now_ms: 1 }),
        Frame::Denied(wire_messages::Denied { connection: bytes(16), reason: "rule".into(), detail: "a rule".into() }),
        Frame::Extend(wire_messages::Extend { connection: bytes(16), header: bytes(300) }),
        Frame::OpenReplication(wire_messages::OpenReplication {}),
        Frame::OpenTunnel(wire_messages::OpenTunnel {}),
        Frame::Vector((&vector).into()),
        Frame::Records(wire_messages::Records { envelopes: vec![known.founding.clone(), known.rule.clone()] }),
        Frame::JoinRequest(wire_messages::JoinRequest {
            version_min: 1,
            version_max: 1,
            token_id: bytes(16),
            candidate: encode_candidate(&known.signer.candidate()),
            proof: bytes(32),
            now_ms: 5,
        }),
        Frame::JoinAnswer(wire_messages::JoinAnswer {
            version: 1,
            proof: bytes(32),
            federation: bytes(32),
            issuer: bytes(32),
            now_ms: 5,
            envelopes: 2,
        }),
        Frame::Receipt(wire_messages::Receipt { enforced: bytes(80), signature: bytes(64) }),
    ]
}

/// What a peer may send at each place of a stream: one frame after another, each judged as its reader does.
pub fn session_frame(data: &[u8]) {
    for max in [FRAME_BYTES_MAX, HELLO_BYTES_MAX, OPEN_BYTES_MAX, CONTROL_BYTES_MAX, JOIN_BYTES_MAX] {
        let mut stream = data;
        loop {
            let before = stream.len();
            match at_once(wire::read(&mut stream, max)) {
                Ok(frame) => {
                    assert!(before - stream.len() <= max + 4, "a frame past its bound");
                    meaning(&frame);
                    // The same frame, written: read as the same, and taking no byte of what comes next.
                    let bytes = wire::encode(frame.clone()).expect("a frame that was read can be written");
                    let longer = [&bytes[..], b"next"].concat();
                    let mut again = longer.as_slice();
                    assert_eq!(at_once(wire::read(&mut again, FRAME_BYTES_MAX)).expect("its own bytes"), frame);
                    assert_eq!(again, b"next");
                }
                Err(error) => {
                    assert!(matches!(error, WireError::Closed) == (before == 0), "{error}");
                    assert!(error.to_string().len() < 1024 && !error.to_string().chars().any(char::is_control));
                    break;
                }
            }
        }
    }
}

/// What the session makes of a frame's fields.
fn meaning(frame: &Frame) {
    match frame {
        Frame::Vector(message) => {
            if let Ok(vector) = Vector::try_from(message) {
                assert_eq!(Vector::try_from(&wire_messages::Vector::from(&vector)), Ok(vector));
            }
        }
        Frame::Denied(wire_messages::Denied { connection, .. })
        | Frame::Extend(wire_messages::Extend { connection, .. }) => {
            assert_eq!(ConnectionId::try_from(connection.as_slice()).is_ok(), connection.len() == 16);
        }
        Frame::JoinRequest(request) => {
            if let Ok(candidate) = decode_candidate(&request.candidate) {
                let _ = federation_identity::record::check_candidate(&candidate);
            }
        }
        Frame::Receipt(receipt) if receipt.enforced.len() <= RECEIPT_BYTES_MAX => {
            let _ = decode_receipt(&receipt.enforced);
        }
        Frame::Refusal(refusal) => {
            let shown = wire::printable(&refusal.detail);
            assert!(shown.chars().count() <= 200 && !shown.chars().any(char::is_control));
        }
        _ => {}
    }
}

/// A cluster whose records the fuzzer starts from; its key is new in each process.
struct Known {
    signer: LocalSigner,
    federation: FederationId,
    founding: Vec<u8>,
    rule: Vec<u8>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let domain = "west.mesh.internal".parse().expect("a domain");
    let (signer, _) = LocalSigner::generate(&domain, &"west".parse().expect("a name"), now()).expect("keys");
    let candidate = signer.candidate();
    let record = |federation, seq, previous, body| Record {
        federation,
        writer: candidate.id,
        audience: Audience::Law,
        epoch: 1,
        seq,
        previous,
        replaces: Vec::new().into_iter().collect(),
        author: "ada".into(),
        written_at: Timestamp::from_millis(7),
        body,
    };
    let seal = |record: &Record| {
        let bytes = encode_record(record);
        let signature = signer.sign_record(&bytes).expect("signed");
        (federation_identity::sha256(&bytes), encode_envelope(&bytes, &signature))
    };
    let none = FederationId::from_digest(Digest::ZERO);
    let (digest, founding) = seal(&record(none, 1, Digest::ZERO, Body::Founding(candidate.clone())));
    let federation = federation_identity::federation_id(digest);
    let key = IntentionKey {
        source: SourcePattern::Account { account: Label::Any, namespace: Label::Any, cluster: Label::Any },
        destination: DestinationPattern {
            service: Label::Any,
            namespace: Label::Any,
            cluster: Label::Is(candidate.id),
        },
        layer: Layer::Rule,
    };
    let intention = Intention { key, state: RuleState::Is(Action::Deny) };
    let (_, rule) = seal(&record(federation, 2, digest, Body::Intention(intention)));
    Known { signer, federation, founding, rule }
});

/// Envelopes as they come from a member: whatever is taken was signed, byte for byte.
///
/// The bytes are a `Records` frame's; and again as changes of a genuine record: two bytes say where, one with what.
pub fn records(data: &[u8]) {
    let known = &*KNOWN;
    let mut changed = known.rule.clone();
    for change in data.as_chunks::<3>().0 {
        let [high, low, with] = *change;
        let place = usize::from(u16::from_be_bytes([high, low])) % changed.len();
        changed[place] ^= with;
    }
    judge(wire_messages::Records { envelopes: vec![changed] });
    if let Ok(message) = wire_messages::Records::decode(data) {
        judge(message);
    }
}

fn judge(message: wire_messages::Records) {
    let known = &*KNOWN;
    if message.envelopes.len() > 16 {
        return;
    }
    // The founding record first, so that there is a key to be deceived about.
    let mut envelopes: Vec<Arc<[u8]>> = vec![known.founding.as_slice().into()];
    envelopes.extend(message.envelopes.into_iter().map(Arc::from));
    for raw in &envelopes {
        let Ok(unchecked) = Unchecked::read(raw.clone()) else { continue };
        let (founds, writer) = (unchecked.founds(), unchecked.writer());
        let key = known.signer.candidate().replication_key;
        if let Ok(record) = unchecked.check(Some(&known.federation), |_| Some(key)) {
            assert!(**raw == *known.founding || **raw == *known.rule, "a record that nobody signed");
            assert_eq!((record.value().writer, founds), (writer, **raw == *known.founding));
            assert_eq!(**record.raw(), **raw);
        }
    }
    let count = envelopes.len();
    let (good, unfit) = check_in_order(&known.federation, envelopes);
    assert_eq!(good.len() + unfit.len(), count, "an envelope was lost");
    assert!(!good.is_empty(), "what was good before is refused beside others");
    assert!(good.iter().all(|record| **record.raw() == *known.founding || **record.raw() == *known.rule));
}

/// Rows of the store, which its MAC guards: an older version may have written them, so they are read with care.
pub fn state_row(data: &[u8]) {
    if let Some(state) = State::decode(data) {
        assert_eq!(State::decode(&state.encode()), Some(state));
    }
    if let Some(held) = tokens::read(&[7; 16], data, Revision(3)) {
        assert_eq!(held.id, TokenId([7; 16]));
        let summary = held.summary(Timestamp::from_millis(8));
        assert!(summary.state.as_str().len() < 16);
        // A token that names its user is never open again.
        assert!(held.used_by().is_none() || summary.state.as_str() == "used");
    }
    assert!(tokens::read(b"short", data, Revision(3)).is_none());
}

/// What a future gives that never waits: all its bytes are there.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("bytes in memory were waited for"),
    }
}
