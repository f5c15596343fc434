//! Compiles intentions into an [`Authorizer`].
//!
//! In: every live intention, local and replicated. Out: one immutable table, ordered by precedence.
//! Never: looks at sockets, certificates or time. Empty input denies everything.

use crate::{Action, Denial, DenialReason, Passage, Permit, RecordId, Service, SpiffeId, Timestamp, VerifiedPeer};

/// What the law says of a pair, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// `None` when allowed.
    pub reason: Option<DenialReason>,
    /// The rule that decided; `None` for the default.
    pub rule: Option<RecordId>,
    /// The rule in words.
    pub rule_text: Option<String>,
}

/// The compiled law. The default denies everything.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {}

impl Authorizer {
    /// What the law says of `source` calling `service`, without any proof: for `check` and lists, never for a stream.
    pub fn decide(&self, source: &SpiffeId, service: &Service) -> Decision {
        let _ = (source, service);
        Decision { action: Action::Deny, reason: Some(DenialReason::DefaultDeny), rule: None, rule_text: None }
    }

    /// Leave for `peer` to reach `service`, where its mTLS ends. Needs a peer proved by `Tls` or `Own`.
    pub fn authorize(&self, peer: &VerifiedPeer, service: &Service, now: Timestamp) -> Result<Permit, Denial> {
        let _ = (peer, service, now);
        Err(Denial {
            reason: DenialReason::DefaultDeny,
            source: Some(peer.id().clone()),
            destination: service.name.to_string(),
            rule: None,
            rule_text: None,
        })
    }

    /// Leave for sealed bytes of `signed` to pass on toward `service`. Needs `Signed`; and if the identity is another
    /// member's, the `Session` over which it came, of that same member.
    pub fn authorize_passage(
        &self,
        signed: &VerifiedPeer,
        session: Option<&VerifiedPeer>,
        service: &Service,
        now: Timestamp,
    ) -> Result<Passage, Denial> {
        let _ = (signed, session, service, now);
        Err(Denial {
            reason: DenialReason::DefaultDeny,
            source: Some(signed.id().clone()),
            destination: service.name.to_string(),
            rule: None,
            rule_text: None,
        })
    }
}
