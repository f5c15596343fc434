//! Proofs against every change of what they cover, and against the published vector.

use super::*;
use crate::testing_vectors;

const EXPORTER: [u8; 32] = [3; 32];
const PIN: Digest = Digest([4; 32]);
const ADMISSION: Digest = Digest([5; 32]);

fn key() -> ProofKey {
    ProofKey::derive(&TokenSecret([9; 32]))
}

#[test]
fn a_proof_holds_for_exactly_what_it_covers() {
    let proof = joiner_proof(&key(), &EXPORTER, b"candidate", &PIN);
    assert!(verify_joiner(&key(), &EXPORTER, b"candidate", &PIN, &proof));
    let other = ProofKey::derive(&TokenSecret([8; 32]));
    assert!(!verify_joiner(&other, &EXPORTER, b"candidate", &PIN, &proof), "secret");
    assert!(!verify_joiner(&key(), &[0; 32], b"candidate", &PIN, &proof), "connection");
    assert!(!verify_joiner(&key(), &EXPORTER, b"candidates", &PIN, &proof), "candidate");
    assert!(!verify_joiner(&key(), &EXPORTER, b"", &PIN, &proof), "no candidate");
    assert!(!verify_joiner(&key(), &EXPORTER, b"candidate", &ADMISSION, &proof), "pin");
    for bad in [&[][..], &proof[..31], &[0; 32], &[&proof[..], &[0]].concat()] {
        assert!(!verify_joiner(&key(), &EXPORTER, b"candidate", &PIN, bad), "{bad:?}");
    }
    for bit in 0..256 {
        let mut flipped = proof;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify_joiner(&key(), &EXPORTER, b"candidate", &PIN, &flipped));
    }
}

#[test]
fn the_answer_holds_for_exactly_what_it_covers() {
    let proof = issuer_proof(&key(), &EXPORTER, b"candidate", &PIN, &ADMISSION);
    let holds = |key: &ProofKey, exporter, candidate: &[u8], pin, admission, proof: &[u8]| {
        verify_issuer(key, exporter, candidate, pin, admission, proof)
    };
    assert!(holds(&key(), &EXPORTER, b"candidate", &PIN, &ADMISSION, &proof));
    assert!(!holds(&ProofKey::from_bytes([1; 32]), &EXPORTER, b"candidate", &PIN, &ADMISSION, &proof));
    assert!(!holds(&key(), &[0; 32], b"candidate", &PIN, &ADMISSION, &proof));
    assert!(!holds(&key(), &EXPORTER, b"other", &PIN, &ADMISSION, &proof));
    assert!(!holds(&key(), &EXPORTER, b"candidate", &ADMISSION, &ADMISSION, &proof));
    assert!(!holds(&key(), &EXPORTER, b"candidate", &PIN, &PIN, &proof));
    assert!(!holds(&key(), &EXPORTER, b"candidate", &PIN, &ADMISSION, &proof[..31]));
}

#[test]
fn neither_side_can_answer_with_the_others_proof() {
    let joiner = joiner_proof(&key(), &EXPORTER, b"candidate", &PIN);
    assert!(!verify_issuer(&key(), &EXPORTER, b"candidate", &PIN, &ADMISSION, &joiner));
    let issuer = issuer_proof(&key(), &EXPORTER, b"candidate", &PIN, &ADMISSION);
    assert!(!verify_joiner(&key(), &EXPORTER, b"candidate", &PIN, &issuer));
}

#[test]
fn the_key_keeps_the_secret_to_itself() {
    let secret = TokenSecret([9; 32]);
    assert_ne!(ProofKey::derive(&secret).as_bytes(), &secret.0);
    assert_eq!(ProofKey::from_bytes(*key().as_bytes()).as_bytes(), key().as_bytes());
    assert_eq!(format!("{:?}", key()), "ProofKey(hidden)");
}

#[test]
fn proofs_are_those_of_the_published_vector() {
    let vector = testing_vectors::read("join-proof.txt");
    let secret = TokenSecret(vector.array("secret"));
    let key = ProofKey::derive(&secret);
    assert_eq!(key.as_bytes()[..], vector.bytes("proof_key"));
    let (exporter, candidate) = (vector.array("exporter"), vector.bytes("candidate"));
    let (pin, admission) = (Digest(vector.array("issuer_pin")), Digest(vector.array("admission")));
    assert_eq!(joiner_proof(&key, &exporter, &candidate, &pin)[..], vector.bytes("joiner_proof"));
    assert_eq!(issuer_proof(&key, &exporter, &candidate, &pin, &admission)[..], vector.bytes("issuer_proof"));
}
