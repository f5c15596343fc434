//! Random ids and secrets, all from the operating system.

use aws_lc_rs::{
    constant_time,
    rand::{SecureRandom, SystemRandom},
};
use federation_model::{ConnectionId, Digest, InstanceId, TokenId, TokenSecret};

use crate::sha256_of;

/// `N` random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A new id for a join or workload token.
pub fn token_id() -> TokenId {
    TokenId(random())
}

/// A new secret for a join or workload token.
pub fn token_secret() -> TokenSecret {
    TokenSecret(random())
}

/// A new connection's id.
pub fn connection_id() -> ConnectionId {
    ConnectionId(random())
}

/// This process's id as one that serves; made once, at its start.
pub fn instance_id() -> InstanceId {
    InstanceId(random())
}

/// What is kept of a workload token's secret: SHA-256("hanse-token-v1" ‖ 0x00 ‖ secret). A secret of 256 random bits
/// needs no salt and no slow hash.
pub fn secret_digest(secret: &TokenSecret) -> Digest {
    sha256_of(&[b"hanse-token-v1\0", &secret.0])
}

/// Whether `secret` is the one of which `digest` was kept. Takes the same time for every wrong one.
pub fn secret_matches(secret: &TokenSecret, digest: &Digest) -> bool {
    constant_time::verify_slices_are_equal(&secret_digest(secret).0, &digest.0).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_ids_are_alike() {
        let ids: BTreeSet<_> = (0..1000).map(|_| token_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert_ne!(token_secret().0, token_secret().0);
        assert_ne!(connection_id().0, instance_id().0);
    }

    #[test]
    fn a_secret_matches_its_own_digest_alone() {
        let secret = token_secret();
        let digest = secret_digest(&secret);
        assert!(secret_matches(&secret, &digest));
        assert!(!secret_matches(&token_secret(), &digest));
        assert!(!secret_matches(&secret, &Digest::ZERO));
        assert_ne!(digest.0, secret.0);
    }
}
