//! References as people write them, good and bad.

use super::*;
use crate::testing::{cluster, domain, members, service, workload};

fn own() -> ClusterName {
    "east".parse().expect("name")
}

fn destination(text: &str) -> Result<String, ReferenceError> {
    DestinationPattern::parse(text, &members()).map(|pattern| pattern.shown(&members()))
}

fn source(text: &str, action: Action) -> Result<String, ReferenceError> {
    SourcePattern::parse(text, action, cluster(0), &members()).map(|pattern| pattern.shown(&members()))
}

#[test]
fn a_service_reference_fills_in_namespace_and_cluster() {
    for (text, full) in [
        ("web", "web.default.east"),
        ("web.shop", "web.shop.east"),
        ("web.shop.west", "web.shop.west"),
        ("a.b.no-member-need-exist", "a.b.no-member-need-exist"),
    ] {
        assert_eq!(ServiceRef::parse(text, &own()).expect(text).to_string(), full);
    }
    assert_eq!("web.shop.west".parse::<ServiceRef>().expect("full").dns(), "web.shop.west.mesh.internal");
}

#[test]
fn what_is_no_service_reference_is_refused() {
    for bad in [
        "",
        ".",
        "web.",
        ".shop",
        "web..west",
        "web.shop.west.x",
        "*",
        "*.shop",
        "web.*",
        "Web",
        "web.shop.default",
        "w b",
    ] {
        assert!(ServiceRef::parse(bad, &own()).is_err(), "{bad:?}");
    }
    for short in ["web", "web.shop"] {
        assert!(matches!(short.parse::<ServiceRef>(), Err(ReferenceError::NoCluster(_))), "{short:?}");
    }
    let long = "a".repeat(64);
    assert!(matches!(
        ServiceRef::parse(&long, &own()),
        Err(ReferenceError::Name { source: NameError::TooLong { .. }, .. })
    ));
    assert_eq!(ServiceRef::parse(&"a.".repeat(1_500), &own()), Err(ReferenceError::TooLong(3_000)));
}

#[test]
fn a_mesh_name_is_read_in_any_case_with_or_without_the_final_dot() {
    for good in ["web.shop.west.mesh.internal", "web.shop.west.mesh.internal.", "WEB.Shop.west.MESH.internal"] {
        assert_eq!(ServiceRef::from_dns(good).expect(good).to_string(), "web.shop.west");
    }
}

#[test]
fn what_is_no_mesh_name_is_refused() {
    let long = format!("{}.mesh.internal", "a.".repeat(130));
    for bad in [
        "",
        ".",
        "mesh.internal",
        ".mesh.internal",
        "west.mesh.internal",
        "shop.west.mesh.internal",
        "x.web.shop.west.mesh.internal",
        "web.shop.west.mesh.internal..",
        "web.shop.westmesh.internal",
        "web.shop.west.example.com",
        "web.shop.default.mesh.internal",
        "*.shop.west.mesh.internal",
        "web..west.mesh.internal",
        "wéb.shop.west.mesh.internal",
        &long,
    ] {
        assert!(ServiceRef::from_dns(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_destination_without_a_cluster_is_in_any() {
    for (text, shown) in [
        ("web", "web.default.*"),
        ("web.shop", "web.shop.*"),
        ("web.shop.west", "web.shop.west"),
        ("*", "*.*.*"),
        ("*.shop", "*.shop.*"),
        ("*.*", "*.*.*"),
        ("*.*.west", "*.*.west"),
        ("web.shop.*", "web.shop.*"),
    ] {
        assert_eq!(destination(text).as_deref(), Ok(shown), "{text}");
    }
}

#[test]
fn a_source_without_a_cluster_is_any_for_a_deny_and_ones_own_for_an_allow() {
    for (text, allow, deny) in [
        ("web", "web.default.east", "web.default.*"),
        ("web.shop", "web.shop.east", "web.shop.*"),
        ("*.shop", "*.shop.east", "*.shop.*"),
        ("*.*", "*.*.east", "*.*.*"),
        ("web.shop.*", "web.shop.*", "web.shop.*"),
        ("web.shop.west", "web.shop.west", "web.shop.west"),
        ("*", "*.*.*", "*.*.*"),
        ("*.*.*", "*.*.*", "*.*.*"),
    ] {
        assert_eq!(source(text, Action::Allow).as_deref(), Ok(allow), "{text}");
        assert_eq!(source(text, Action::Deny).as_deref(), Ok(deny), "{text}");
    }
}

#[test]
fn a_whole_spiffe_id_is_a_source_and_no_destination() {
    let id = "spiffe://west.mesh.internal/ns/shop/sa/web";
    assert_eq!(source(id, Action::Allow).as_deref(), Ok(id));
    assert!(matches!(destination(id), Err(ReferenceError::SpiffeDestination(_))));
    for bad in ["spiffe://", "spiffe://west/*", "spiffe://West/a", "spiffe:x"] {
        assert!(matches!(source(bad, Action::Deny), Err(ReferenceError::Spiffe { .. })), "{bad:?}");
    }
}

#[test]
fn wildcards_stand_for_whole_labels_in_the_right_places() {
    for bad in ["w*", "*b.shop", "web.s*", "**", "web.shop.w*"] {
        assert!(matches!(destination(bad), Err(ReferenceError::PartialWildcard(_))), "{bad:?}");
        assert!(matches!(source(bad, Action::Deny), Err(ReferenceError::PartialWildcard(_))), "{bad:?}");
    }
    for bad in ["web.*", "web.*.west", "web.*.*"] {
        assert!(matches!(destination(bad), Err(ReferenceError::NameUnderAnyNamespace(_))), "{bad:?}");
        assert!(matches!(source(bad, Action::Allow), Err(ReferenceError::NameUnderAnyNamespace(_))), "{bad:?}");
    }
}

#[test]
fn other_bad_patterns_are_refused_with_the_value_and_the_fix() {
    assert!(matches!(destination("web.shop.mars"), Err(ReferenceError::UnknownCluster(_))));
    assert!(matches!(destination("a.b.c.d"), Err(ReferenceError::Labels(_))));
    for bad in ["", ".", "-web", "web.-shop", "web.shop.", "WEB", "web shop", "*.shop.default"] {
        assert!(matches!(destination(bad), Err(ReferenceError::Name { .. })), "{bad:?}");
        assert!(matches!(source(bad, Action::Deny), Err(ReferenceError::Name { .. })), "{bad:?}");
    }
    let message = destination("web.shop.mars").expect_err("unknown").to_string();
    assert!(message.contains("mars") && message.contains("hanse cluster list"), "{message}");
    assert!(destination(&"é".repeat(1_000)).expect_err("bad").to_string().len() < 600);
}

#[test]
fn patterns_match_by_the_clusters_id() {
    let pattern = DestinationPattern::parse("*.billing.west", &members()).expect("pattern");
    assert!(pattern.matches(&service("payments.billing", 1)));
    assert!(!pattern.matches(&service("payments.billing", 0)));
    assert!(!pattern.matches(&service("payments.shop", 1)));
    let source = SourcePattern::parse("*.shop.west", Action::Deny, cluster(0), &members()).expect("pattern");
    assert!(source.matches(&workload("web.shop", 1), Some(&cluster(1))));
    assert!(!source.matches(&workload("web.shop", 1), Some(&cluster(0))), "the cluster is the caller's word");
    assert!(!source.matches(&workload("web.shop", 1), None), "a trust domain of no member's matches no account");
    assert!(!source.matches(&domain(1).id(), Some(&cluster(1))));
    assert_eq!(source.cluster(&members()), Some(cluster(1)));
}

#[test]
fn a_cluster_that_is_gone_is_shown_by_its_id() {
    let pattern = DestinationPattern::parse("web.shop.west", &members()).expect("pattern");
    assert_eq!(pattern.shown(&Members::default()), "web.shop.@020202020202");
}

#[test]
fn an_account_reference_is_what_check_asks_about() {
    assert_eq!(SourceRef::parse("web", &own()).expect("good").to_string(), "web.default.east");
    assert_eq!(SourceRef::parse("web.shop.west", &own()).expect("good").to_string(), "web.shop.west");
    for bad in ["", "*", "*.shop", "web.shop.west.x", "web.shop.default"] {
        assert!(SourceRef::parse(bad, &own()).is_err(), "{bad:?}");
    }
}
