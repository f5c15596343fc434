//! An edge can withhold law, not write it: what a sidecar takes and what it refuses.

use federation_identity::{LocalSigner, Signer, federation_id, now, sha256};
use federation_model::{Admission, Audience, Candidate, MemberTerms, Timestamp};
use proto::convert::{encode_envelope, encode_record};

use super::*;

struct Cluster {
    signer: LocalSigner,
    candidate: Candidate,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let domain = format!("{name}.mesh.internal").parse().expect("a trust domain");
        let (signer, _) = LocalSigner::generate(&domain, &name.parse().expect("a name"), now()).expect("keys");
        let candidate = signer.candidate();
        Self { signer, candidate }
    }

    fn write(&self, federation: FederationId, seq: u64, body: Body) -> Vec<u8> {
        let record = Record {
            federation,
            writer: self.candidate.id,
            audience: Audience::Law,
            epoch: 1,
            seq,
            previous: if seq == 1 { Digest::ZERO } else { Digest([1; 32]) },
            replaces: Vec::new(),
            author: "test".into(),
            written_at: Timestamp::ZERO,
            body,
        };
        let bytes = encode_record(&record);
        encode_envelope(&bytes, &self.signer.sign_record(&bytes).expect("signed"))
    }

    fn founding(&self) -> (Vec<u8>, FederationId) {
        let raw = self.write(FederationId::from_digest(Digest::ZERO), 1, Body::Founding(self.candidate.clone()));
        let digest = sha256(&decode_envelope(&raw).expect("an envelope").record_bytes);
        (raw, federation_id(digest))
    }
}

/// East founds, admits west; the sidecar is west's.
fn world() -> (Cluster, Cluster, FederationId, Vec<Vec<u8>>, Records) {
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    let (founding, federation) = east.founding();
    let admission = Body::Admission(Admission { candidate: west.candidate.clone(), lawmaker: false });
    let terms = west.write(federation, 1, Body::Terms(MemberTerms::default()));
    let envelopes = vec![founding, east.write(federation, 2, admission), terms];
    let records = Records::new(west.candidate.id, west.candidate.replication_key, federation);
    (east, west, federation, envelopes, records)
}

#[test]
fn takes_signed_originals_in_any_order() {
    let (_, _, _, mut envelopes, mut records) = world();
    envelopes.reverse();
    assert_eq!(records.add(envelopes.clone()), 0);
    assert_eq!(records.raw().len(), 3);
    let snapshot = records.snapshot().expect("a snapshot");
    assert_eq!(snapshot.members.len(), 2);
    // The same again changes nothing.
    assert_eq!(records.add(envelopes), 0);
    assert_eq!(records.raw().len(), 3);
}

#[test]
fn refuses_what_its_writer_did_not_sign() {
    let (_, west, federation, mut envelopes, mut records) = world();
    let thief = Cluster::new("thief");
    // Signed by a key that no admission names.
    envelopes.push(thief.write(federation, 1, Body::Terms(MemberTerms::default())));
    // West's words under the thief's signature.
    let stolen = decode_envelope(&west.write(federation, 2, Body::Terms(MemberTerms::default()))).expect("an envelope");
    envelopes
        .push(encode_envelope(&stolen.record_bytes, &thief.signer.sign_record(&stolen.record_bytes).expect("signed")));
    // A bit flipped in the signed part.
    let mut flipped = envelopes.last().expect("one").clone();
    if let Some(byte) = flipped.get_mut(40) {
        *byte ^= 1;
    }
    envelopes.push(flipped);
    envelopes.push(b"no envelope".to_vec());
    assert_eq!(records.add(envelopes), 4);
    assert_eq!(records.raw().len(), 3);
}

#[test]
fn refuses_another_federation() {
    let (_, west, _, envelopes, mut records) = world();
    let (foreign_founding, foreign) = Cluster::new("other").founding();
    let foreign_terms = west.write(foreign, 1, Body::Terms(MemberTerms::default()));
    assert_eq!(records.add(vec![foreign_founding, foreign_terms]), 2);
    assert!(records.snapshot().is_none(), "no admission of the own cluster: no snapshot");
    assert_eq!(records.add(envelopes), 0);
    assert!(records.snapshot().is_some());
}

#[test]
fn forgets_what_no_longer_concerns_it() {
    let (_, _, _, envelopes, mut records) = world();
    records.add(envelopes);
    let last: Vec<Digest> = records.digests().collect::<Vec<_>>().split_off(2);
    records.remove(&last);
    assert_eq!(records.raw().len(), 2);
}
