//! Stage 4: leave for a proved peer, by the snapshot in force; and the same question again for what is live.
//!
//! In: a [`VerifiedPeer`] and a service by name. Out: a permit, a passage, or a refusal that names its reason. Never:
//! decides by anything but the snapshot and its age, or lets pass when there is none.

use std::sync::Arc;

use federation_model::{
    Ages, Denial, DenialReason, Passage, Permit, RecordId, Relay, Service, ServiceId, ServiceRef, Snapshot, SpiffeId,
    Staleness, Timestamp, VerifiedPeer, WhenStale,
};

use crate::{
    Inputs,
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
        Self::from(Denial::without_rule(reason, source, &destination.to_string()))
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

/// The snapshot in force, and how old it is.
#[derive(Clone)]
pub(crate) struct Law {
    pub(crate) snapshot: Arc<Snapshot>,
    ages: Ages,
}

/// How a live connection stands.
pub(crate) struct Standing {
    /// The allow that decided.
    pub(crate) rule: RecordId,
    /// The lease with whose end it is cut, if its service has such a one.
    pub(crate) lease: Option<Staleness>,
}

impl Law {
    /// # Errors
    /// No snapshot yet: denied.
    pub(crate) fn in_force(
        inputs: &Inputs,
        source: Option<&SpiffeId>,
        destination: &ServiceRef,
    ) -> Result<Self, Refusal> {
        Self::of(inputs).ok_or_else(|| Refusal::new(DenialReason::NoSnapshot, source, destination))
    }

    pub(crate) fn of(inputs: &Inputs) -> Option<Self> {
        let snapshot = inputs.snapshot.borrow().clone()?;
        Some(Self { snapshot, ages: inputs.ages.clone() })
    }

    pub(crate) fn revision(&self) -> u64 {
        self.snapshot.revision
    }

    /// The service of this name, if this cluster may see it.
    pub(crate) fn service(&self, name: &ServiceRef, source: Option<&SpiffeId>) -> Result<Service, Refusal> {
        let unknown = || Refusal::new(DenialReason::UnknownService, source, name);
        let held = self.snapshot.catalog.by_name(name).cloned();
        held.or_else(|| self.relayed(name, source?)).ok_or_else(unknown)
    }

    /// What this cluster only carries from one member to another it need not know: the law speaks of the name.
    fn relayed(&self, name: &ServiceRef, source: &SpiffeId) -> Option<Service> {
        let Snapshot { own, own_trust_domain, members, .. } = &*self.snapshot;
        let owner = members.by_name(&name.cluster).filter(|owner| owner.state.is_active() && owner.id != *own)?;
        let carries = members.get(own)?.relay == Relay::Members && source.trust_domain() != own_trust_domain;
        carries.then(|| Service {
            id: ServiceId { service: name.service.clone(), namespace: name.namespace.clone(), cluster: owner.id },
            name: name.clone(),
            trust_domain: owner.trust_domain.clone(),
            port: 0,
            accounts: Vec::new(),
            exported: true,
            // Its owner's wish is known to both ends, not here.
            staleness: Staleness::default(),
        })
    }

    /// Leave to reach `service`, for a peer proved by `Tls` or `Own`.
    pub(crate) fn permit(&self, peer: &VerifiedPeer, service: &Service, now: Timestamp) -> Result<Permit, Denial> {
        self.known(peer, service)?;
        self.snapshot.authorizer.authorize(peer, service, now, self.ages.of(&service.id.cluster))
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
        let Snapshot { authorizer, members, .. } = &*self.snapshot;
        authorizer.authorize_passage(signed, session, members, service, now, self.ages.of(&service.id.cluster))
    }

    /// The lease with whose end connections to a service are cut.
    pub(crate) fn lease(&self, service: &Service) -> Option<Staleness> {
        let denies = service.staleness.when == WhenStale::Deny && service.id.cluster != self.snapshot.own;
        denies.then_some(service.staleness)
    }

    /// The own cluster's service that stands in for one whose owner was not heard for its lease, if it says so.
    ///
    /// Never a third member's: it could name a service like another's, and allow itself to be called.
    pub(crate) fn stand_in(&self, service: &Service) -> Option<ServiceRef> {
        let Snapshot { own, catalog, .. } = &*self.snapshot;
        let prefers = service.staleness.when == WhenStale::PreferLocal && service.id.cluster != *own;
        if !prefers || !service.staleness.is_over(self.ages.of(&service.id.cluster)) {
            return None;
        }
        let local = catalog.get(&ServiceId { cluster: *own, ..service.id.clone() })?;
        (local.port == service.port).then(|| local.name.clone())
    }

    /// Asks again for a live connection, by the newest proof that it has.
    pub(crate) fn again(&self, connection: &Connection, now: Timestamp) -> Result<Standing, Denial> {
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
    ) -> Result<Standing, Denial> {
        let held = self.snapshot.catalog.get(&connection.service.id).cloned();
        let held = held.or_else(|| self.relayed(&connection.service.name, peer.id()));
        let refused = |reason| Denial::without_rule(reason, Some(peer.id()), &connection.service.name);
        let service = &held.ok_or_else(|| refused(DenialReason::UnknownService))?;
        let rule = match connection.direction {
            Direction::Outbound | Direction::Inbound => *self.permit(peer, service, now)?.rule(),
            Direction::Passage => {
                // The session that brought it may have been renewed since; its end is link's, which closes the tunnel
                // with it. So its old proof is asked about as of its own time; the source's leaf as of now.
                let session = connection.session.as_ref();
                let then = session.map_or(now, |session| now.min(last_instant(session)));
                if now >= peer.not_after() {
                    return Err(refused(DenialReason::Expired));
                }
                *self.passage(peer, session, service, then)?.rule()
            }
        };
        Ok(Standing { rule, lease: self.lease(service) })
    }

    /// Whether the key of this identity, or of its issuer, is believed no more.
    fn revoked(&self, peer: &VerifiedPeer) -> bool {
        [peer.key(), peer.issuer()].iter().any(|key| self.snapshot.bundles.is_revoked(peer.trust_domain(), key))
    }

    /// What must hold before the law is asked at all.
    fn known(&self, peer: &VerifiedPeer, service: &Service) -> Result<(), Denial> {
        let refuse = |reason| Err(Denial::without_rule(reason, Some(peer.id()), &service.name));
        // A domain without a bundle, or with an empty one, has every SVID revoked (SPIFFE bundle, 4.1.4): the verifier
        // refuses it at the door, this refuses it for what is live.
        if self.snapshot.bundles.get(peer.trust_domain()).is_none_or(|bundle| bundle.roots.is_empty()) {
            return refuse(DenialReason::UnknownSource);
        }
        if self.revoked(peer) {
            return refuse(DenialReason::Revoked);
        }
        // Another member's workload is told nothing of what was not exported, not even that a rule denies it.
        let ours = service.id.cluster == self.snapshot.own;
        if ours && !service.exported && *peer.trust_domain() != self.snapshot.own_trust_domain {
            return refuse(DenialReason::UnknownService);
        }
        Ok(())
    }
}

fn last_instant(peer: &VerifiedPeer) -> Timestamp {
    Timestamp::from_millis(peer.not_after().as_millis().saturating_sub(1))
}
