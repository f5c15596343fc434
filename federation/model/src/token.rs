//! Join tokens: one use, one named joiner, a short life.

use std::{fmt, time::Duration};

use crate::{ClusterName, Digest, Endpoint, Timestamp, TrustDomain};

/// Life of a token unless said otherwise.
pub const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Longest life that can be asked for.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Most tokens that may be open at once.
pub const TOKENS_OPEN_MAX: usize = 100;
/// Bad proofs after which a token is void.
pub const BAD_PROOFS_MAX: u32 = 5;

/// Names a token in lists and logs; no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The secret of a token: 256 bits. No text form, no comparison; identity makes MACs with it.
#[derive(Clone)]
pub struct TokenSecret(pub [u8; 32]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(hidden)")
    }
}

/// What the issuer hands to the joiner, out of band.
#[derive(Clone, Debug)]
pub struct JoinToken {
    pub id: TokenId,
    pub secret: TokenSecret,
    /// Cluster that issued it, by name: for messages; the pin is what counts.
    pub issuer: ClusterName,
    pub issuer_trust_domain: TrustDomain,
    /// SHA-256 of the issuer's root certificate's public key (SPKI DER).
    pub issuer_pin: Digest,
    /// Where the issuer's edge accepts, 1 to [`crate::cluster::ENDPOINTS_MAX`].
    pub endpoints: Vec<Endpoint>,
    /// The only cluster that may redeem it.
    pub joiner: ClusterName,
    pub expires_at: Timestamp,
}

/// Why a token cannot be used. The issuer tells a guesser nothing; these words are for its own log and for the joiner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("join token expired {ago:?} ago: ask for a new one with `hanse link token {joiner}`")]
    Expired { ago: Duration, joiner: ClusterName },
    #[error("join token is for cluster {wanted}, this one is {own}: ask for `hanse link token {own}`")]
    OtherJoiner { wanted: ClusterName, own: ClusterName },
    #[error("join token was issued by this very cluster ({own}): run `hanse link join` on the other one")]
    OwnCluster { own: ClusterName },
    #[error("join token was used already: each works once, ask for a new one")]
    Used,
    #[error("join token is void after {BAD_PROOFS_MAX} bad proofs: ask for a new one")]
    Burned,
    #[error("join token is unknown to the issuer")]
    Unknown,
}

impl JoinToken {
    /// Whether `own` may redeem this token at `now`, as far as the token itself tells.
    ///
    /// # Errors
    /// Expired, made for another cluster, or made by this one.
    pub fn check(&self, own: &ClusterName, now: Timestamp) -> Result<(), TokenError> {
        if self.issuer == *own {
            return Err(TokenError::OwnCluster { own: own.clone() });
        }
        if self.joiner != *own {
            return Err(TokenError::OtherJoiner { wanted: self.joiner.clone(), own: own.clone() });
        }
        if now >= self.expires_at {
            return Err(TokenError::Expired { ago: now.since(self.expires_at), joiner: own.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: TokenId([7; 16]),
            secret: TokenSecret([42; 32]),
            issuer: "east".parse().expect("name"),
            issuer_trust_domain: "east.mesh.internal".parse().expect("trust domain"),
            issuer_pin: Digest::ZERO,
            endpoints: vec!["east.example:7000".parse().expect("endpoint")],
            joiner: "west".parse().expect("name"),
            expires_at: Timestamp::from_secs(100),
        }
    }

    fn check(own: &str, now: Timestamp) -> Result<(), TokenError> {
        token().check(&own.parse().expect("name"), now)
    }

    #[test]
    fn the_named_joiner_may_redeem_it_until_it_ends() {
        assert_eq!(check("west", Timestamp::ZERO), Ok(()));
        assert_eq!(check("west", Timestamp::from_millis(99_999)), Ok(()));
    }

    #[test]
    fn it_is_refused_from_the_instant_at_which_it_ends() {
        for (now, ago) in [(100, 0), (160, 60)] {
            let expected = TokenError::Expired { ago: Duration::from_secs(ago), joiner: "west".parse().expect("name") };
            assert_eq!(check("west", Timestamp::from_secs(now)), Err(expected));
        }
        let message = check("west", Timestamp::MAX).expect_err("ended").to_string();
        assert!(message.contains("hanse link token west"), "{message}");
    }

    #[test]
    fn another_cluster_is_refused() {
        assert!(matches!(check("onprem", Timestamp::ZERO), Err(TokenError::OtherJoiner { .. })));
    }

    #[test]
    fn its_own_issuer_is_refused_first() {
        assert!(matches!(check("east", Timestamp::MAX), Err(TokenError::OwnCluster { .. })));
    }

    #[test]
    fn the_secret_is_not_shown() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("hidden") && !shown.contains("42, 42"), "{shown}");
    }
}
