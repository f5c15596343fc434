//! Stage 4: leave for a proved peer, by the snapshot in force; and the same question again for what is live.
//!
//! In: a [`VerifiedPeer`] and a service by name. Out: a permit, a passage, or a refusal that names its reason. Never:
//! decides by anything but the snapshot, or lets pass when there is none.

use std::sync::Arc;

use federation_model::{
    Denial, DenialReason, Passage, Permit, RecordId, Relay, Service, ServiceId, ServiceRef, Snapshot, SpiffeId,
    Timestamp, VerifiedPeer,
};
use tokio::sync::watch;

use crate::{
    connections::{Connection, Direction},
    frame::{DETAIL_BYTES_MAX, clean},
};

/// A refusal with the words for the log: the denial says what the peer may know, the detail what exactly happened.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) denial: Denial,
    /// A sentence for a person.
    pub(crate) detail: String,
    /// Fixed word of the check that failed; the denial's own unless a finer one is known.
    pub(crate) word: &'static str,
}

impl Refusal {
    pub(crate) fn new(reason: DenialReason, source: Option<&SpiffeId>, destination: impl ToString) -> Self {
        Self::from(Denial {
            reason,
            source: source.cloned(),
            destination: destination.to_string(),
            rule: None,
            rule_text: None,
        })
    }

    /// The same with what exactly happened.
    pub(crate) fn because(mut self, word: &'static str, detail: impl ToString) -> Self {
        self.word = word;
        self.detail = clean(&detail.to_string(), DETAIL_BYTES_MAX);
        self
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        let detail = clean(&denial.to_string(), DETAIL_BYTES_MAX);
        Self { word: denial.reason.as_str(), detail, denial }
    }
}

/// The snapshot in force.
#[derive(Clone)]
pub(crate) struct Law(pub(crate) Arc<Snapshot>);

impl Law {
    /// # Errors
    /// No snapshot yet: denied.
    pub(crate) fn in_force(
        snapshot: &watch::Receiver<Option<Arc<Snapshot>>>,
        source: Option<&SpiffeId>,
        destination: &ServiceRef,
    ) -> Result<Self, Refusal> {
        let held = snapshot.borrow().clone();
        held.map(Self).ok_or_else(|| Refusal::new(DenialReason::NoSnapshot, source, destination))
    }

    pub(crate) fn revision(&self) -> u64 {
        self.0.revision
    }

    /// The service of this name, if this cluster may see it.
    pub(crate) fn service(&self, name: &ServiceRef, source: Option<&SpiffeId>) -> Result<Service, Refusal> {
        let unknown = || Refusal::new(DenialReason::UnknownService, source, name);
        let held = self.0.catalog.by_name(name).cloned();
        held.or_else(|| self.relayed(name, source?)).ok_or_else(unknown)
    }

    /// What this cluster only carries from one member to another it need not know: the law speaks of the name.
    fn relayed(&self, name: &ServiceRef, source: &SpiffeId) -> Option<Service> {
        let Snapshot { own, own_trust_domain, members, .. } = &*self.0;
        let owner = members.by_name(&name.cluster).filter(|owner| owner.state.is_active() && owner.id != *own)?;
        let carries = members.get(own)?.relay == Relay::Members && source.trust_domain() != own_trust_domain;
        carries.then(|| Service {
            id: ServiceId { service: name.service.clone(), namespace: name.namespace.clone(), cluster: owner.id },
            name: name.clone(),
            trust_domain: owner.trust_domain.clone(),
            port: 0,
            accounts: Vec::new(),
            exported: true,
        })
    }

    /// Leave to reach `service`, for a peer proved by `Tls` or `Own`.
    pub(crate) fn permit(&self, peer: &VerifiedPeer, service: &Service, now: Timestamp) -> Result<Permit, Denial> {
        self.known(peer, service)?;
        self.0.authorizer.authorize(peer, service, now)
    }

    /// Leave for sealed bytes to pass on, for a peer proved by `Signed`.
    pub(crate) fn passage(
        &self,
        signed: &VerifiedPeer,
        session: Option<&VerifiedPeer>,
        service: &Service,
        now: Timestamp,
    ) -> Result<Passage, Denial> {
        self.known(signed, service)?;
        self.0.authorizer.authorize_passage(signed, session, &self.0.members, service, now)
    }

    /// Asks again for a live connection, by the newest proof that it has.
    pub(crate) fn again(&self, connection: &Connection, now: Timestamp) -> Result<RecordId, Denial> {
        let (peer, server) = {
            let state = connection.state();
            (state.peer.clone(), state.server.clone())
        };
        if server.is_some_and(|server| self.revoked(&server)) {
            return Err(Denial::without_rule(DenialReason::Revoked, Some(peer.id()), &connection.service.name));
        }
        self.stands(connection, &peer, now)
    }

    /// Asks for a live connection by a new proof of its source.
    pub(crate) fn stands(
        &self,
        connection: &Connection,
        peer: &VerifiedPeer,
        now: Timestamp,
    ) -> Result<RecordId, Denial> {
        let held = self.0.catalog.get(&connection.service.id).cloned();
        let held = held.or_else(|| self.relayed(&connection.service.name, peer.id()));
        let unknown = || Denial {
            reason: DenialReason::UnknownService,
            source: Some(peer.id().clone()),
            destination: connection.service.name.to_string(),
            rule: None,
            rule_text: None,
        };
        let service = &held.ok_or_else(unknown)?;
        match connection.direction {
            Direction::Outbound | Direction::Inbound => Ok(*self.permit(peer, service, now)?.rule()),
            Direction::Passage => {
                // The session that brought it may have been renewed since; its end is link's, which closes the tunnel
                // with it. So its old proof is asked about as of its own time; the source's leaf as of now.
                let session = connection.session.as_ref();
                let then = session.map_or(now, |session| now.min(last_instant(session)));
                if now >= peer.not_after() {
                    return Err(Denial { reason: DenialReason::Expired, ..unknown() });
                }
                Ok(*self.passage(peer, session, service, then)?.rule())
            }
        }
    }

    /// Whether the key of this identity, or of its issuer, is believed no more.
    fn revoked(&self, peer: &VerifiedPeer) -> bool {
        [peer.key(), peer.issuer()].iter().any(|key| self.0.bundles.is_revoked(peer.trust_domain(), key))
    }

    /// What must hold before the law is asked at all.
    fn known(&self, peer: &VerifiedPeer, service: &Service) -> Result<(), Denial> {
        let refuse = |reason| {
            let (source, destination) = (Some(peer.id().clone()), service.name.to_string());
            Err(Denial { reason, source, destination, rule: None, rule_text: None })
        };
        // A domain without a bundle, or with an empty one, has every SVID revoked (SPIFFE bundle, 4.1.4): the verifier
        // refuses it at the door, this refuses it for what is live.
        if self.0.bundles.get(peer.trust_domain()).is_none_or(|bundle| bundle.roots.is_empty()) {
            return refuse(DenialReason::UnknownSource);
        }
        if self.revoked(peer) {
            return refuse(DenialReason::Revoked);
        }
        // Another member's workload is told nothing of what was not exported, not even that a rule denies it.
        let ours = service.id.cluster == self.0.own;
        if ours && !service.exported && *peer.trust_domain() != self.0.own_trust_domain {
            return refuse(DenialReason::UnknownService);
        }
        Ok(())
    }
}

fn last_instant(peer: &VerifiedPeer) -> Timestamp {
    Timestamp::from_millis(peer.not_after().as_millis().saturating_sub(1))
}
