//! A small federation for this room's tests: east (own) and west, with a few services.

use std::time::Duration;

use federation_model::{
    Accept, Ages, Approval, Authorizer, Bundles, ClusterId, Digest, FederationId, Member, MemberState, Members, Relay,
    ReplicationKey, SealingKey, Service, ServiceCatalog, ServiceId, ServiceRef, Snapshot, Timestamp,
};

use crate::Addresses;

pub(crate) fn cluster(number: u8) -> ClusterId {
    ClusterId::from_digest(Digest([number; 32]))
}

fn member(number: u8, name: &str) -> Member {
    Member {
        id: cluster(number),
        name: name.parse().expect("a name"),
        trust_domain: format!("{name}.mesh.internal").parse().expect("a trust domain"),
        root: vec![number; 32].into(),
        replication_key: ReplicationKey([number; 32]),
        sealing_key: SealingKey([number; 32]),
        sponsor: cluster(1),
        admitted_at: Timestamp::ZERO,
        lawmaker: number == 1,
        state: MemberState::Active,
        evicted_by: Vec::new(),
        accept: Accept::Federation,
        approval: Approval::Auto,
        relay: Relay::Nobody,
        endpoints: Vec::new(),
    }
}

pub(crate) fn service(number: u8, name: &str) -> Service {
    let name: ServiceRef = name.parse().expect("a reference");
    Service {
        id: ServiceId { service: name.service.clone(), namespace: name.namespace.clone(), cluster: cluster(number) },
        trust_domain: format!("{}.mesh.internal", name.cluster).parse().expect("a trust domain"),
        port: 8080,
        accounts: Vec::new(),
        exported: true,
        staleness: Default::default(),
        name,
    }
}

pub(crate) fn catalog(services: impl IntoIterator<Item = Service>) -> ServiceCatalog {
    let mut catalog = ServiceCatalog::default();
    services.into_iter().for_each(|service| catalog.insert(service));
    catalog
}

/// `web.shop.east` and `payments.billing.west`.
pub(crate) fn snapshot() -> Snapshot {
    let mut members = Members::default();
    assert!(members.insert(member(1, "east")) && members.insert(member(2, "west")));
    Snapshot {
        revision: 7,
        own: cluster(1),
        own_name: "east".parse().expect("a name"),
        own_trust_domain: "east.mesh.internal".parse().expect("a trust domain"),
        own_state: MemberState::Active,
        federation: FederationId::from_digest(Digest([9; 32])),
        members: members.into(),
        bundles: Bundles::default().into(),
        catalog: catalog([service(1, "web.shop.east"), service(2, "payments.billing.west")]),
        authorizer: Authorizer::default(),
        held: Vec::new(),
    }
}

/// The snapshot, and addresses for all of its services.
pub(crate) fn world() -> (Snapshot, Addresses) {
    let snapshot = snapshot();
    let addresses = Addresses::new();
    assert_eq!(addresses.update(&snapshot.catalog).unassigned, 0);
    (snapshot, addresses)
}

/// Everybody was heard this long ago; `None`: never.
pub(crate) fn heard(ago: Option<Duration>) -> Ages {
    Ages::new(move |_| ago)
}

/// Everybody was heard just now.
pub(crate) fn fresh() -> Ages {
    heard(Some(Duration::ZERO))
}
