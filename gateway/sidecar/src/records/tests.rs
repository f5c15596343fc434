//! An edge can withhold law, not write it: what a sidecar takes and what it refuses.

use federation_identity::{LocalSigner, Signer, federation_id, now, sha256};
use federation_model::{Admission, Audience, Candidate, Eviction, MemberState, MemberTerms, Stance, Timestamp};
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
        self.write_to(Audience::Law, federation, seq, body)
    }

    fn write_to(&self, audience: Audience, federation: FederationId, seq: u64, body: Body) -> Vec<u8> {
        let record = Record {
            federation,
            writer: self.candidate.id,
            audience,
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

/// Whether the sidecar of west believes east's identities still, once it has one more record.
fn believes(decision: impl FnOnce(&Cluster, &Cluster, FederationId) -> Vec<u8>) -> (bool, MemberState) {
    let (east, west, federation, envelopes, mut records) = world();
    assert_eq!(records.add(envelopes), 0);
    assert_eq!(records.add(vec![east.write(federation, 3, Body::Bundle(east.signer.bundle(1)))]), 0);
    let domain = &east.candidate.trust_domain;
    assert!(records.snapshot().expect("a snapshot").bundles.get(domain).is_some());
    assert_eq!(records.add(vec![decision(&east, &west, federation)]), 0);
    let snapshot = records.snapshot().expect("a snapshot");
    let state = snapshot.members.get(&east.candidate.id).expect("east").state;
    (snapshot.bundles.get(domain).is_some(), state)
}

#[test]
fn a_member_that_its_own_cluster_blocked_is_believed_no_more() {
    let blocked = |east: &Cluster| Body::Stance { cluster: east.candidate.id, stance: Stance::Blocked };
    let (held, state) = believes(|east, west, federation| {
        west.write_to(Audience::Member(west.candidate.id), federation, 1, blocked(east))
    });
    assert_eq!((held, state), (false, MemberState::Blocked));
    // Another's decision is nothing to this sidecar.
    let (held, _) = believes(|east, _, federation| {
        east.write_to(Audience::Member(east.candidate.id), federation, 1, blocked(east))
    });
    assert!(held);
}

#[test]
fn a_member_that_lawmakers_put_out_or_that_left_is_believed_no_more() {
    let leaves = |east: &Cluster| Body::Eviction(Eviction { cluster: east.candidate.id, heads: BTreeMap::new() });
    let (held, state) = believes(|east, _, federation| east.write(federation, 4, leaves(east)));
    assert_eq!((held, state), (false, MemberState::Left));
    // West makes no law: its word on east counts for nothing.
    let (held, state) = believes(|east, west, federation| west.write(federation, 2, leaves(east)));
    assert_eq!((held, state), (true, MemberState::Active));
}
