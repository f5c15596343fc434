//! What every kind of question is answered.

use super::*;
use crate::testing::{catalog, fresh, heard, service, snapshot, world};

/// Response code, answer section, and number of records in the authority section.
fn check(name: &str, kind: &str, expected: (Rcode, &[&str], usize)) -> Why {
    let (snapshot, addresses) = world();
    let answer = answer(&snapshot, &addresses, &fresh(), name, kind.parse().expect("a type"));
    let records: Vec<String> = answer.records.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(
        (answer.rcode, records.len(), answer.authority.len()),
        (expected.0, expected.1.len(), expected.2),
        "{name}"
    );
    for (got, wanted) in records.iter().zip(expected.1) {
        assert!(got.starts_with(wanted), "{name}: {got} is not {wanted}");
    }
    answer.why
}

const NOTHING: &[&str] = &[];

#[test]
fn a_service_has_the_address_that_was_given_to_it() {
    let (snapshot, addresses) = world();
    let name: ServiceRef = "payments.billing.west".parse().expect("a reference");
    let got = answer(&snapshot, &addresses, &fresh(), "payments.billing.west.mesh.internal", QueryType::A);
    let data = Data::A(addresses.address(&name).expect("assigned"));
    assert_eq!(got.records, [Record { name: name.dns(), ttl: TTL, data }]);
    assert_eq!((got.rcode, got.authority.len(), got.why), (Rcode::NoError, 0, Why::Service(name)));
}

#[test]
fn case_and_a_final_dot_make_no_difference() {
    for name in ["web.shop.east.mesh.internal", "WEB.Shop.EAST.Mesh.Internal", "web.shop.east.mesh.internal."] {
        check(name, "a", (Rcode::NoError, &["A 127."], 0));
    }
}

#[test]
fn a_service_has_nothing_but_an_ipv4_address() {
    for kind in ["AAAA", "TXT", "SRV", "NS", "SOA", "TYPE65"] {
        let why = check("web.shop.east.mesh.internal", kind, (Rcode::NoError, NOTHING, 1));
        assert!(matches!(why, Why::NoSuchType(_)), "{kind}: {why}");
    }
    check("web.shop.east.mesh.internal", "ANY", (Rcode::NoError, &["A 127."], 0));
}

#[test]
fn names_above_services_exist_and_are_empty() {
    for name in ["east.mesh.internal", "west.mesh.internal", "shop.east.mesh.internal", "billing.west.mesh.internal"] {
        for kind in ["A", "NS", "AAAA"] {
            assert_eq!(check(name, kind, (Rcode::NoError, NOTHING, 1)), Why::Parent, "{name}");
        }
    }
}

#[test]
fn the_apex_has_soa_and_ns() {
    check("mesh.internal", "SOA", (Rcode::NoError, &["SOA mesh.internal. . 7 3600 1200 604800 2"], 0));
    check("mesh.internal.", "NS", (Rcode::NoError, &["NS mesh.internal."], 0));
    check("Mesh.Internal", "ANY", (Rcode::NoError, &["SOA", "NS"], 0));
    check("mesh.internal", "A", (Rcode::NoError, NOTHING, 1));
}

#[test]
fn says_which_part_of_a_name_is_unknown() {
    let unknown = |name: &str| check(name, "A", (Rcode::NxDomain, NOTHING, 1)).to_string();
    assert!(unknown("web.shop.north.mesh.internal").contains("no member is called north"));
    assert!(unknown("north.mesh.internal").contains("no member is called north"));
    assert!(unknown("api.shop.east.mesh.internal").contains("no service api.shop.east is visible"));
    assert!(unknown("web.shop.west.mesh.internal").contains("no service web.shop.west"));
    assert!(unknown("bank.east.mesh.internal").contains("namespace bank of east"));
}

#[test]
fn refuses_the_form_of_what_is_no_service() {
    let long = format!("{}.shop.east.mesh.internal", "a".repeat(64));
    for name in [
        "a.web.shop.east.mesh.internal",
        "*.shop.east.mesh.internal",
        "_http._tcp.web.shop.east.mesh.internal",
        "we_b.shop.east.mesh.internal",
        "-web.shop.east.mesh.internal",
        "..east.mesh.internal",
        ".mesh.internal",
        "web\\046shop.east.mesh.internal",
        "web.shop.default.mesh.internal",
        &long,
    ] {
        assert_eq!(check(name, "A", (Rcode::NxDomain, NOTHING, 1)), Why::Form, "{name}");
    }
}

#[test]
fn refuses_every_other_zone() {
    for name in [
        "example.com",
        "internal",
        "",
        ".",
        "xmesh.internal",
        "web.shop.east.mesh.internal.example.com",
        "mesh\\046internal",
        "web.shop.east.mesh.internal..",
        "1.0.0.127.in-addr.arpa",
    ] {
        assert_eq!(check(name, "A", (Rcode::Refused, NOTHING, 0)), Why::OutsideZone, "{name}");
    }
}

#[test]
fn refuses_transfers() {
    for kind in ["AXFR", "ixfr"] {
        assert_eq!(check("mesh.internal", kind, (Rcode::Refused, NOTHING, 0)), Why::Transfer);
    }
}

#[test]
fn fails_instead_of_denying_a_name_while_there_is_no_snapshot() {
    let got = answer_from(None, &Addresses::new(), &fresh(), "web.shop.east.mesh.internal", QueryType::A);
    assert_eq!((got.rcode, got.why), (Rcode::ServFail, Why::NoSnapshot));
    assert_eq!(answer_from(None, &Addresses::new(), &fresh(), "example.com", QueryType::A).rcode, Rcode::Refused);
}

#[test]
fn fails_for_a_service_that_has_no_address_yet() {
    let (mut snapshot, addresses) = world();
    snapshot.catalog.insert(service(1, "late.shop.east"));
    let got = answer(&snapshot, &addresses, &fresh(), "late.shop.east.mesh.internal", QueryType::A);
    assert_eq!((got.rcode, got.records.len()), (Rcode::ServFail, 0));
    // That it exists is known all the same.
    assert_eq!(
        answer(&snapshot, &addresses, &fresh(), "late.shop.east.mesh.internal", QueryType::AAAA).rcode,
        Rcode::NoError
    );
}

#[test]
fn a_withdrawn_service_is_gone_although_its_address_is_kept() {
    let (mut snapshot, addresses) = world();
    snapshot.catalog = catalog([service(1, "web.shop.east")]);
    addresses.update(&snapshot.catalog);
    let got = answer(&snapshot, &addresses, &fresh(), "payments.billing.west.mesh.internal", QueryType::A);
    assert_eq!(got.rcode, Rcode::NxDomain);
    assert_eq!(
        answer(&snapshot, &addresses, &fresh(), "billing.west.mesh.internal", QueryType::A).rcode,
        Rcode::NxDomain
    );
}

#[test]
fn the_serial_follows_the_revision_around_the_circle() {
    let snapshot = Snapshot { revision: (1 << 32) + 5, ..snapshot() };
    let got = answer(&snapshot, &Addresses::new(), &fresh(), "mesh.internal", QueryType::SOA);
    assert_eq!(got.records.first().map(|record| record.data.clone()), Some(Data::Soa { serial: 5 }));
}

#[test]
fn types_are_read_and_written() {
    for (text, number, shown) in [("a", 1, "A"), ("Aaaa", 28, "AAAA"), ("TYPE65", 65, "TYPE65"), ("type28", 28, "AAAA")]
    {
        let kind: QueryType = text.parse().expect(text);
        assert_eq!((kind, kind.to_string()), (QueryType(number), shown.to_owned()));
    }
    for bad in ["", "B", "TYPE", "TYPE65536", "TYPE-1", "TYPE+1", "A ", "ＡＡＡＡ", "typ\u{e9}1"] {
        assert!(bad.parse::<QueryType>().is_err(), "{bad}");
    }
    let long = "x".repeat(10_000).parse::<QueryType>().expect_err("no type").to_string();
    assert!(long.len() < 200);
}

/// The answer for west's payments, which chose this, `millis` after west was last heard.
fn aged(when: WhenStale, lease: u64, millis: Option<u64>) -> Answer {
    let (mut snapshot, addresses) = world();
    let staleness = Staleness { when, lease: Duration::from_secs(lease) };
    snapshot.catalog.insert(Service { staleness, ..service(2, "payments.billing.west") });
    let ages = heard(millis.map(Duration::from_millis));
    answer(&snapshot, &addresses, &ages, "payments.billing.west.mesh.internal", QueryType::A)
}

#[test]
fn an_address_of_another_cluster_is_kept_no_longer_than_its_lease() {
    for when in [WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny] {
        for (lease, age, ttl) in [(900, 0, 5_000), (10, 5_000, 5_000), (10, 7_500, 2_500), (10, 9_999, 1)] {
            let got = aged(when, lease, Some(age));
            assert_eq!(got.records[0].ttl, Duration::from_millis(ttl), "{when} {lease} {age}");
        }
    }
}

#[test]
fn past_the_lease_it_fails_under_deny_and_is_answered_for_the_moment_otherwise() {
    for age in [Some(10_000), Some(86_400_000), None] {
        for when in [WhenStale::Keep, WhenStale::PreferLocal] {
            let got = aged(when, 10, age);
            assert_eq!((got.rcode, got.records[0].ttl), (Rcode::NoError, Duration::ZERO), "{when} {age:?}");
            let words = got.data.expect("foreign").to_string();
            assert!(words.contains("past the lease of 10 s") && words.contains(when.as_str()), "{words}");
        }
        let got = aged(WhenStale::Deny, 10, age);
        assert_eq!((got.rcode, got.records.len(), got.authority.len()), (Rcode::ServFail, 0, 0), "{age:?}");
        assert!(got.why.to_string().contains("`hanse link status west`"), "{}", got.why);
    }
}

#[test]
fn the_own_clusters_services_have_no_lease() {
    let (mut snapshot, addresses) = world();
    let staleness = Staleness { when: WhenStale::Deny, lease: Duration::from_secs(10) };
    snapshot.catalog.insert(Service { staleness, ..service(1, "web.shop.east") });
    let got = answer(&snapshot, &addresses, &heard(None), "web.shop.east.mesh.internal", QueryType::A);
    assert_eq!((got.rcode, got.records[0].ttl, got.data), (Rcode::NoError, TTL, None));
}
