//! What must hold of every text that is given to this room's parsers; `fuzz/` looks for one of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use std::{fmt::Display, net::Ipv6Addr, str::FromStr};

use crate::{
    Accept, AccountName, Action, Approval, ClusterId, ClusterName, DestinationPattern, Digest, Endpoint, Label, Member,
    MemberState, Members, NamespaceName, Relay, ReplicationKey, Role, SealingKey, ServiceName, ServiceRef,
    SourcePattern, SourceRef, SpiffeId, Timestamp, TrustDomain,
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("spiffe_id", spiffe_id), ("reference", reference), ("endpoint", endpoint)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts: &[&str] = match target {
        "spiffe_id" => &[
            "spiffe://east.mesh.internal/ns/shop/sa/web",
            "spiffe://east.mesh.internal/hanse/edge/east",
            "spiffe://td/user/ada",
            "spiffe://td",
            "spiffe://td/a/../b",
        ],
        "reference" => {
            &["web.shop.east", "web", "*", "*.shop", "*.*.west", "web.shop.east.mesh.internal.", "spiffe://td/a"]
        }
        "endpoint" => &["east.example:7443", "10.0.0.1:1", "[::1]:65535", "[2001:db8::7]:80"],
        _ => &[],
    };
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What was read is written as it was read: two texts are never one value, and no value has a second text.
fn one_text<T: FromStr + Display + PartialEq>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string(), text, "written otherwise than read");
    Some(value)
}

/// SPIFFE IDs, trust domains and the roles that follow from them.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Some(domain) = one_text::<TrustDomain>(text) {
        assert!(domain.id().path().is_empty() && domain.id().trust_domain() == &domain);
    }
    let Some(id) = one_text::<SpiffeId>(text) else { return };
    assert!(text.len() <= crate::SPIFFE_ID_BYTES_MAX && text.is_ascii());
    // Read a second time, with nothing but splitting at slashes.
    let mut pieces = text.split('/');
    assert_eq!((pieces.next(), pieces.next()), (Some("spiffe:"), Some("")));
    assert_eq!(pieces.next(), Some(id.trust_domain().as_str()));
    let segments: Vec<_> = pieces.collect();
    assert!(segments.iter().all(|segment| !matches!(*segment, "" | "." | "..")), "{segments:?}");
    match id.role() {
        Role::Workload(account) => {
            assert_eq!(segments, ["ns", account.namespace.as_str(), "sa", account.account.as_str()]);
            assert_eq!(id.workload(), Some((account.namespace.as_str(), account.account.as_str())));
        }
        Role::Edge => assert!(segments.starts_with(&["hanse", "edge"]) && segments.len() == 3),
        Role::User => assert!(segments.starts_with(&["user"]) && segments.len() == 2),
        Role::Other => assert_eq!(id.workload(), None),
    }
}

fn cluster(number: u8) -> ClusterId {
    ClusterId::from_digest(Digest([number; 32]))
}

/// East and west.
fn members() -> Members {
    let mut members = Members::default();
    for (number, name) in [(1, "east"), (2, "west")] {
        members.insert(Member {
            id: cluster(number),
            name: name.parse().expect("a name"),
            trust_domain: format!("{name}.mesh.internal").parse().expect("a trust domain"),
            root: vec![number].into(),
            replication_key: ReplicationKey([number; 32]),
            sealing_key: SealingKey([number; 32]),
            sponsor: cluster(1),
            admitted_at: Timestamp::ZERO,
            lawmaker: false,
            state: MemberState::Active,
            evicted_by: Vec::new(),
            accept: Accept::Federation,
            approval: Approval::Auto,
            relay: Relay::Nobody,
            endpoints: Vec::new(),
        });
    }
    members
}

/// Names, services, accounts and the two sides of an intention.
pub fn reference(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let label = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-');
    assert_eq!(one_text::<ServiceName>(text).is_some(), label);
    assert_eq!(one_text::<NamespaceName>(text).is_some(), label);
    assert_eq!(one_text::<AccountName>(text).is_some(), label);
    assert_eq!(one_text::<ClusterName>(text).is_some(), label && text != "default");

    let east: ClusterName = "east".parse().expect("a name");
    if let Some(service) = one_text::<ServiceRef>(text) {
        assert_eq!(ServiceRef::from_dns(&service.dns()).as_ref(), Ok(&service));
        assert_eq!(ServiceRef::parse(text, &east), Ok(service));
    }
    if let Ok(service) = ServiceRef::from_dns(text) {
        assert_eq!(text.trim_end_matches('.').to_ascii_lowercase(), service.dns());
    }
    if let Ok(source) = SourceRef::parse(text, &east) {
        assert_eq!(SourceRef::parse(&source.to_string(), &east), Ok(source));
    }
    pattern(text);
}

/// A pattern is shown so that it reads as the same pattern, and never means more than it says.
fn pattern(text: &str) {
    let members = members();
    if let Ok(destination) = DestinationPattern::parse(text, &members) {
        assert_eq!(DestinationPattern::parse(&destination.shown(&members), &members).as_ref(), Ok(&destination));
        assert!(text.contains('*') || destination.count() == 2, "{text:?} matches more than one service");
    }
    for action in [Action::Allow, Action::Deny] {
        let Ok(source) = SourcePattern::parse(text, action, cluster(1), &members) else { continue };
        assert_eq!(
            SourcePattern::parse(&source.shown(&members), action, cluster(1), &members).as_ref(),
            Ok(&source),
            "{text:?}"
        );
        if let (SourcePattern::Account { cluster, .. }, Action::Allow) = (&source, action) {
            assert!(text.contains('*') || *cluster != Label::Any, "{text:?} lets in every cluster");
        }
    }
}

/// Where an edge may be dialled.
pub fn endpoint(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Some(_) = one_text::<Endpoint>(text) else { return };
    assert!(text.len() <= crate::ENDPOINT_BYTES_MAX && text.is_ascii());
    let (host, port) = text.rsplit_once(':').expect("a port");
    assert!(port.bytes().all(|byte| byte.is_ascii_digit()), "{port:?} is no port");
    match host.strip_prefix('[') {
        Some(inner) => {
            assert!(inner.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok()), "{host:?}");
        }
        None => assert!(host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-')),
    }
}
