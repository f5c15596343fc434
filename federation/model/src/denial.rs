//! Why a call was refused, in words for the one who made it.

use std::fmt;

use crate::{RecordId, SpiffeId, Stale};

/// The kinds of refusal. `as_str` is what metrics, frames and audit carry; the set only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenialReason {
    /// No intention matches, and the default denies.
    DefaultDeny,
    /// A rule says deny.
    Rule,
    /// A guardrail says deny.
    Guardrail,
    /// The service is not in the catalog: unknown, or not exported to this cluster.
    UnknownService,
    /// The source's trust domain is no member's.
    UnknownSource,
    /// The identity was not proved in the way that this step needs.
    WrongProof,
    /// The identity in TLS is not the one that signed the header.
    IdentityMismatch,
    /// The credential has ended.
    Expired,
    /// The key of the credential was revoked.
    Revoked,
    /// No snapshot yet, or an unreadable one.
    NoSnapshot,
    /// Nothing serves the service right now.
    NoInstance,
    /// The member that owns the service cannot be reached.
    Unreachable,
    /// What is known of the owner is older than the service's lease, and its policy denies then.
    Stale,
    /// A frame or header could not be read.
    Malformed,
    /// A bound was reached.
    Overloaded,
}

impl DenialReason {
    /// Short fixed word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DefaultDeny => "default_deny",
            Self::Rule => "rule",
            Self::Guardrail => "guardrail",
            Self::UnknownService => "unknown_service",
            Self::UnknownSource => "unknown_source",
            Self::WrongProof => "wrong_proof",
            Self::IdentityMismatch => "identity_mismatch",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::NoSnapshot => "no_snapshot",
            Self::NoInstance => "no_instance",
            Self::Unreachable => "unreachable",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
            Self::Overloaded => "overloaded",
        }
    }

    /// The reason of a word, for frames from a peer; an unknown word is `None`.
    pub fn from_word(word: &str) -> Option<Self> {
        const ALL: [DenialReason; 15] = [
            DenialReason::DefaultDeny,
            DenialReason::Rule,
            DenialReason::Guardrail,
            DenialReason::UnknownService,
            DenialReason::UnknownSource,
            DenialReason::WrongProof,
            DenialReason::IdentityMismatch,
            DenialReason::Expired,
            DenialReason::Revoked,
            DenialReason::NoSnapshot,
            DenialReason::NoInstance,
            DenialReason::Unreachable,
            DenialReason::Stale,
            DenialReason::Malformed,
            DenialReason::Overloaded,
        ];
        ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// A refusal. `Display` is one sentence that names the parties, the reason and the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: DenialReason,
    /// Who asked; `None` when nobody was proved.
    pub source: Option<SpiffeId>,
    /// The destination as asked for: a service reference or an SNI, at most 254 bytes.
    pub destination: String,
    /// The rule that decided, if one did.
    pub rule: Option<RecordId>,
    /// The rule in words (`deny web.shop.* -> payments.billing.west`), if one decided.
    pub rule_text: Option<String>,
    /// How old the data was, if that decided.
    pub stale: Option<Box<Stale>>,
}

impl Denial {
    /// A refusal that no rule decided: something is missing, unreachable or wrong.
    pub fn without_rule(reason: DenialReason, source: Option<&SpiffeId>, destination: &impl fmt::Display) -> Self {
        let (source, destination) = (source.cloned(), destination.to_string());
        Self { reason, source, destination, rule: None, rule_text: None, stale: None }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source} may not reach {}: ", self.destination)?,
            None => write!(f, "an unproved peer may not reach {}: ", self.destination)?,
        }
        match self.reason {
            DenialReason::DefaultDeny => f.write_str("no intention allows it (default deny)"),
            DenialReason::Rule | DenialReason::Guardrail => {
                let kind = if self.reason == DenialReason::Rule { "rule" } else { "guardrail" };
                match &self.rule_text {
                    Some(text) => write!(f, "{kind} \"{text}\""),
                    None => write!(f, "a {kind} forbids it"),
                }
            }
            DenialReason::UnknownService => f.write_str("no such service is visible here (is it exported?)"),
            DenialReason::UnknownSource => f.write_str("its trust domain belongs to no member"),
            DenialReason::WrongProof => f.write_str("its identity was not proved in the way this step needs"),
            DenialReason::IdentityMismatch => f.write_str("the identity in TLS is not the one in the header"),
            DenialReason::Expired => f.write_str("its credential has ended"),
            DenialReason::Revoked => f.write_str("the key of its credential was revoked"),
            DenialReason::NoSnapshot => f.write_str("no readable snapshot of the law is here yet"),
            DenialReason::NoInstance => f.write_str("nothing serves it right now"),
            DenialReason::Unreachable => f.write_str("the member that owns it cannot be reached"),
            DenialReason::Stale => {
                f.write_str("its owner was not heard for longer than the service's lease, and its policy is to deny")?;
                match &self.stale {
                    Some(stale) => write!(f, " ({stale}): `hanse link status` says what is wrong with the link"),
                    None => Ok(()),
                }
            }
            DenialReason::Malformed => f.write_str("the request could not be read"),
            DenialReason::Overloaded => f.write_str("a bound was reached; try again later"),
        }
    }
}

impl std::error::Error for Denial {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_word_is_read_back_and_others_are_none() {
        for word in ["default_deny", "rule", "guardrail", "no_snapshot", "overloaded", "expired", "malformed", "stale"]
        {
            assert_eq!(DenialReason::from_word(word).map(DenialReason::as_str), Some(word));
        }
        for word in ["", "Rule", "rule ", "allowed"] {
            assert_eq!(DenialReason::from_word(word), None, "{word:?}");
        }
    }

    #[test]
    fn a_denial_is_one_sentence_that_names_both_parties_and_the_rule() {
        let mut denial = Denial {
            reason: DenialReason::Rule,
            source: "spiffe://west.mesh.internal/ns/shop/sa/web".parse().ok(),
            destination: "payments.billing.east".to_owned(),
            rule: None,
            rule_text: Some("deny web.shop.west -> payments.billing.east".to_owned()),
            stale: None,
        };
        assert_eq!(
            denial.to_string(),
            "spiffe://west.mesh.internal/ns/shop/sa/web may not reach payments.billing.east: rule \"deny web.shop.west -> \
             payments.billing.east\""
        );
        denial.rule_text = None;
        assert!(denial.to_string().ends_with("a rule forbids it"));
        denial.source = None;
        denial.reason = DenialReason::DefaultDeny;
        assert!(denial.to_string().starts_with("an unproved peer may not reach"));
        denial.reason = DenialReason::Stale;
        let (age, lease) = (Duration::from_secs(912), Duration::from_secs(900));
        denial.stale = Some(Box::new(Stale { age: Some(age), lease }));
        let words = denial.to_string();
        assert!(words.contains("(data 912 s old, lease 900 s): `hanse link status` says"), "{words}");
        denial.stale = Some(Box::new(Stale { age: None, lease }));
        assert!(denial.to_string().contains("no data since this process started"));
    }
}
