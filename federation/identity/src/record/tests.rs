//! Records that are signed, forged, repacked, or about somebody who is not who they say.

use federation_model::{Admission, MemberTerms, RecordId, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::{
    testing::{Cluster, SAN, Spec, san, uri},
    testing_vectors,
};

fn signed(signer: &dyn Signer, record: &[u8]) -> [u8; SIGNATURE_BYTES] {
    sign(signer, record).expect("a signer in this process signs")
}

fn envelope(record: &[u8], signature: &[u8]) -> Arc<[u8]> {
    let mut bytes = vec![0x0a];
    let mut length = record.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(record);
    bytes.extend([0x12, signature.len() as u8]);
    bytes.extend_from_slice(signature);
    bytes.into()
}

fn record_of(cluster: &Cluster, body: Body) -> Record {
    Record {
        federation: FederationId::from_digest(Digest([1; 32])),
        writer: cluster.signer.candidate().id,
        audience: Audience::Law,
        epoch: 1,
        seq: 2,
        previous: Digest([2; 32]),
        replaces: Vec::new(),
        author: "ada".into(),
        written_at: Timestamp::from_secs(1),
        body,
    }
}

fn terms(cluster: &Cluster) -> Record {
    record_of(cluster, Body::Terms(MemberTerms::default()))
}

fn founding(cluster: &Cluster) -> Record {
    Record {
        federation: FederationId::from_digest(Digest::ZERO),
        seq: 1,
        previous: Digest::ZERO,
        ..record_of(cluster, Body::Founding(cluster.signer.candidate()))
    }
}

/// Stands for a serialized record: this room does not read them.
const BYTES: &[u8] = b"the record as its writer serialized it";

fn reason<T>(outcome: Result<T, RecordError>) -> Result<(), &'static str> {
    outcome.map(drop).map_err(|error| error.reason())
}

#[test]
fn a_signed_record_becomes_authentic() {
    let west = Cluster::new("west");
    let signature = signed(&west.signer, BYTES);
    let raw = envelope(BYTES, &signature);
    let key = west.signer.candidate().replication_key;
    let authentic = verify(terms(&west), raw.clone(), BYTES, &signature, &key).expect("authentic");
    assert_eq!((authentic.value(), authentic.digest()), (&terms(&west), sha256(BYTES)));
    assert_eq!(authentic.raw(), &raw);
    let RecordId { writer, seq, .. } = authentic.id();
    assert_eq!((writer, seq), (west.signer.candidate().id, 2));
}

#[test]
fn a_forged_record_is_refused() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let key = west.signer.candidate().replication_key;
    let good = signed(&west.signer, BYTES);
    let judge = |signature: &[u8], record: &[u8], key: &ReplicationKey| {
        reason(verify(terms(&west), envelope(record, signature), record, signature, key))
    };
    assert_eq!(judge(&good, BYTES, &key), Ok(()));
    assert_eq!(judge(&signed(&east.signer, BYTES), BYTES, &key), Err("signature"), "another writer's");
    assert_eq!(judge(&good, BYTES, &east.signer.candidate().replication_key), Err("signature"), "another key");
    assert_eq!(judge(&good, b"another record", &key), Err("signature"));
    assert_eq!(judge(&[0; 64], BYTES, &key), Err("signature"));
    assert_eq!(judge(&good, BYTES, &ReplicationKey([0; 32])), Err("signature"), "no key");
    assert_eq!(judge(&good[..63], BYTES, &key), Err("signature_length"));
    assert_eq!(judge(&[], BYTES, &key), Err("signature_length"));
    let mut flipped = good;
    flipped[40] ^= 0x10;
    assert_eq!(judge(&flipped, BYTES, &key), Err("signature"));
}

#[test]
fn a_signature_over_something_else_is_no_signature_over_a_record() {
    let west = Cluster::new("west");
    let candidate = west.signer.candidate();
    // The bare bytes, without what stands before every record.
    let bare = {
        let (signer, keys) = crate::LocalSigner::generate(&west.domain, &west.name, crate::now()).expect("signer");
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(&keys.replication_key).expect("key");
        (signer.candidate().replication_key, pair.sign(BYTES).as_ref().to_vec())
    };
    let outcome = verify(terms(&west), envelope(BYTES, &bare.1), BYTES, &bare.1, &bare.0);
    assert_eq!(reason(outcome), Err("signature"));
    assert_eq!(candidate.id, cluster_id(&candidate.root, &candidate.replication_key));
}

#[test]
fn a_record_travels_in_one_form() {
    let west = Cluster::new("west");
    let key = west.signer.candidate().replication_key;
    let signature = signed(&west.signer, BYTES);
    let good = envelope(BYTES, &signature).to_vec();
    let head = 2;
    let length = BYTES.len() as u8;
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("an unknown field behind", [&good[..], &[0x1a, 0x01, 0x00]].concat()),
        ("an unknown field before", [&[0x18, 0x01], &good[..]].concat()),
        ("the signature first", [&good[head + BYTES.len()..], &good[..head + BYTES.len()]].concat()),
        ("a longer length", [&[0x0a, length | 0x80, 0x00], &good[head..]].concat()),
        ("the record twice", [&good[..head + BYTES.len()], &good[..]].concat()),
        ("the signature twice", [&good[..], &good[head + BYTES.len()..]].concat()),
        ("another wire type", [&[0x08], &good[1..]].concat()),
        ("a byte less", good[..good.len() - 1].to_vec()),
        ("a byte more", [&good[..], &[0]].concat()),
        ("nothing", Vec::new()),
    ];
    for (what, raw) in forms {
        let outcome = verify(terms(&west), raw.into(), BYTES, &signature, &key);
        assert_eq!(reason(outcome), Err("envelope"), "{what}");
    }
    let empty = signed(&west.signer, b"");
    assert_eq!(reason(verify(terms(&west), envelope(b"", &empty), b"", &empty, &key)), Err("envelope"));
    let long = vec![7; RECORD_BYTES_MAX];
    let signature = signed(&west.signer, &long);
    let outcome = verify(terms(&west), envelope(&long, &signature), &long, &signature, &key);
    assert_eq!(reason(outcome), Err("too_long"));
}

#[test]
fn lengths_of_every_size_are_read() {
    let west = Cluster::new("west");
    let key = west.signer.candidate().replication_key;
    for length in [1, 127, 128, 300, 16_383, 16_384, 60_000] {
        let record = vec![5; length];
        let signature = signed(&west.signer, &record);
        let outcome = verify(terms(&west), envelope(&record, &signature), &record, &signature, &key);
        assert_eq!(reason(outcome), Ok(()), "{length}");
    }
}

#[test]
fn a_founding_record_is_the_first_word_of_its_founder() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let judge = |record: Record, by: &Cluster| {
        let signature = signed(&by.signer, BYTES);
        verify_founding(record, envelope(BYTES, &signature), BYTES, &signature)
    };
    let (authentic, federation) = judge(founding(&west), &west).expect("founded");
    assert_eq!(federation, federation_id(authentic.digest()));
    assert_eq!(reason(judge(founding(&west), &east)), Err("signature"));

    let change = |edit: fn(&mut Record)| {
        let mut record = founding(&west);
        edit(&mut record);
        reason(judge(record, &west))
    };
    assert_eq!(change(|record| record.body = Body::Terms(MemberTerms::default())), Err("not_founding"));
    assert_eq!(
        change(|record| record.writer = federation_model::ClusterId::from_digest(Digest([9; 32]))),
        Err("not_founding")
    );
    assert_eq!(change(|record| record.audience = Audience::All), Err("not_founding"));
    assert_eq!(change(|record| record.seq = 2), Err("not_founding"));
    assert_eq!(change(|record| record.epoch = 2), Err("not_founding"));
    assert_eq!(change(|record| record.previous = Digest([1; 32])), Err("not_founding"));
    assert_eq!(change(|record| record.federation = FederationId::from_digest(Digest([1; 32]))), Err("not_founding"));
    assert_eq!(
        change(|record| {
            let (writer, audience) = (record.writer, Audience::Law);
            record.replaces = vec![RecordId { writer, audience, epoch: 1, seq: 1, digest: Digest::ZERO }];
        }),
        Err("not_founding")
    );
}

#[test]
fn a_candidate_is_who_its_root_and_key_make_it() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let judge = |candidate: Candidate| {
        let signature = signed(&west.signer, BYTES);
        let record = record_of(&west, Body::Admission(Admission { candidate, lawmaker: false }));
        let key = west.signer.candidate().replication_key;
        reason(verify(record, envelope(BYTES, &signature), BYTES, &signature, &key))
    };
    let good = east.signer.candidate();
    assert_eq!(judge(good.clone()), Ok(()));
    let other = west.signer.candidate();
    assert_eq!(judge(Candidate { id: other.id, ..good.clone() }), Err("candidate_id"));
    assert_eq!(judge(Candidate { root: other.root.clone(), ..good.clone() }), Err("candidate_id"));
    assert_eq!(judge(Candidate { replication_key: other.replication_key, ..good.clone() }), Err("candidate_id"));

    // An id that follows, from a root that is none.
    let with_root = |root: Vec<u8>| {
        let id = cluster_id(&root, &good.replication_key);
        judge(Candidate { id, root, ..good.clone() })
    };
    assert_eq!(with_root(good.root.clone()), Ok(()));
    assert_eq!(with_root(other.root), Err("candidate_root"), "of another domain");
    assert_eq!(with_root(east.workload("web").chain()[0].to_vec()), Err("candidate_root"), "a leaf");
    assert_eq!(with_root(Vec::new()), Err("candidate_root"));
    assert_eq!(with_root(vec![0x30; 20_000]), Err("candidate_root"));
    let key = crate::testing::Key::p256();
    let mut spec = Spec::ca("east.mesh.internal", "root", "root", &key);
    assert_eq!(with_root(spec.sign(&key)), Ok(()));
    let mut huge = spec.clone();
    huge.put(14, false, crate::testing::der(0x04, &[0; 17_000]));
    assert_eq!(with_root(huge.sign(&key)), Err("candidate_root"), "of 17,000 bytes");
    spec.put(SAN, false, san(&[uri("spiffe://east.mesh.internal/ca")]));
    assert_eq!(with_root(spec.sign(&key)), Err("candidate_root"), "with a path");
}

#[test]
fn records_are_those_of_the_published_vector() {
    let vector = testing_vectors::read("record.txt");
    let (record, signature) = (vector.bytes("record"), vector.bytes("signature"));
    let key = ReplicationKey(vector.array("replication_public"));
    assert_eq!(cluster_id(&vector.bytes("root"), &key).as_bytes(), &vector.array("cluster_id"));
    let west = Cluster::new("west");
    let raw: Arc<[u8]> = vector.bytes("envelope").into();
    assert_eq!(raw, envelope(&record, &signature));
    let authentic = verify(terms(&west), raw, &record, &signature, &key).expect("authentic");
    assert_eq!(authentic.digest(), Digest(vector.array("digest")));
}

proptest! {
    #[test]
    fn arbitrary_envelopes_never_panic_nor_pass(
        raw in prop::collection::vec(any::<u8>(), 0..300), record in prop::collection::vec(any::<u8>(), 0..300),
        signature in prop::collection::vec(any::<u8>(), 0..80), key: [u8; 32],
    ) {
        thread_local!(static WEST: Cluster = Cluster::new("west"));
        WEST.with(|west| -> Result<(), TestCaseError> {
            let key = ReplicationKey(key);
            prop_assert!(verify(terms(west), raw.into(), &record, &signature, &key).is_err());
            prop_assert!(verify(terms(west), envelope(&record, &signature), &record, &signature, &key).is_err());
            Ok(())
        })?;
    }
}
