//! Addresses that stay, collide and run out.

use std::collections::HashSet;

use super::*;
use crate::testing::{catalog, cluster, service};

fn name(text: &str) -> ServiceRef {
    text.parse().expect("a reference")
}

#[test]
fn every_service_gets_its_own_usable_address() {
    let addresses = Addresses::new();
    let changes = addresses.update(&catalog((0..20_000).map(|n| service(2, &format!("s{n}.load.west")))));
    assert_eq!((changes.added.len(), changes.unassigned), (20_000, 0));
    let distinct: HashSet<_> = changes.added.iter().map(|(_, address)| *address).collect();
    assert_eq!(distinct.len(), 20_000);
    assert!(distinct.iter().all(|address| usable(*address) && address.is_loopback()));
}

#[test]
fn an_address_survives_export_and_import_and_beats_the_hash() {
    let kept = vec![(name("web.shop.east"), Ipv4Addr::new(127, 70, 1, 2))];
    let addresses = Addresses::new();
    assert_eq!(addresses.import(kept.clone()), 0);
    let changes = addresses.update(&catalog([service(1, "web.shop.east")]));
    assert_eq!(changes.added, kept);
    assert_eq!(addresses.export(), kept);
}

#[test]
fn a_service_that_leaves_and_returns_has_the_same_address() {
    let addresses = Addresses::new();
    let both = catalog([service(1, "web.shop.east"), service(2, "api.shop.west")]);
    addresses.update(&both);
    let before = addresses.address(&name("api.shop.west")).expect("assigned");
    let changes = addresses.update(&catalog([service(1, "web.shop.east")]));
    assert_eq!(changes, Changes { removed: vec![(name("api.shop.west"), before)], ..Changes::default() });
    assert_eq!(addresses.address(&name("api.shop.west")), None);
    assert_eq!(addresses.service(before), Some(name("api.shop.west")));
    assert_eq!(addresses.update(&both).added, vec![(name("api.shop.west"), before)]);
}

#[test]
fn two_processes_that_never_met_agree() {
    let [first, second] = [Addresses::new(), Addresses::new()];
    let services: Vec<_> = (0..100).map(|n| service(2, &format!("s{n}.load.west"))).collect();
    first.update(&catalog(services.clone()));
    second.update(&catalog(services));
    assert_eq!(first.export(), second.export());
}

#[test]
fn the_same_names_in_two_clusters_and_swapped_names_hash_apart() {
    let ids = [
        service(1, "a.b.east").id,
        service(2, "a.b.west").id,
        service(1, "b.a.east").id,
        service(1, "ab.c.east").id,
        service(1, "a.bc.east").id,
    ];
    let hashes: HashSet<u64> = ids.iter().map(hash).collect();
    assert_eq!(hashes.len(), ids.len());
}

#[test]
fn the_hash_never_changes() {
    // Addresses that people wrote down depend on it. Computed apart from this code.
    let first = candidates(&service(2, "payments.billing.west").id).next();
    assert_eq!(first, Some(Ipv4Addr::new(127, 72, 110, 231)));
}

#[test]
fn refuses_kept_addresses_that_are_not_ours_to_give() {
    let addresses = Addresses::new();
    let bad = ["127.0.0.1", "127.63.255.255", "127.128.0.0", "127.64.0.0", "127.127.255.255", "10.0.0.1", "0.0.0.0"];
    let entries =
        bad.iter().enumerate().map(|(n, ip)| (name(&format!("s{n}.a.east")), ip.parse().expect("an address")));
    assert_eq!(addresses.import(entries), bad.len());
    assert!(addresses.export().is_empty());
}

#[test]
fn refuses_a_name_or_an_address_twice() {
    let addresses = Addresses::new();
    let [one, two] = [Ipv4Addr::new(127, 64, 0, 1), Ipv4Addr::new(127, 64, 0, 2)];
    let entries = [(name("a.x.east"), one), (name("a.x.east"), two), (name("b.x.east"), one)];
    assert_eq!(addresses.import(entries), 2);
    assert_eq!(addresses.export(), vec![(name("a.x.east"), one)]);
}

#[test]
fn steps_aside_when_the_first_choice_is_taken() {
    let wanted = service(2, "payments.billing.west");
    let choices: Vec<_> = candidates(&wanted.id).take(3).collect();
    let addresses = Addresses::new();
    let taken = [(name("a.x.east"), choices[0]), (name("b.x.east"), choices[1])];
    assert_eq!(addresses.import(taken), 0);
    addresses.update(&catalog([wanted]));
    assert_eq!(addresses.address(&name("payments.billing.west")), Some(choices[2]));
}

#[test]
fn a_full_table_forgets_the_invisible_first_and_then_refuses() {
    let addresses = Addresses::new();
    let kept = (1..=ADDRESSES_MAX).map(|n| (name(&format!("s{n}.old.west")), Ipv4Addr::from(BLOCK | n as u32)));
    assert_eq!(addresses.import(kept), 0);
    assert_eq!(addresses.import([(name("one.too.many"), Ipv4Addr::new(127, 127, 0, 1))]), 1);
    assert_eq!(addresses.update(&catalog([service(1, "web.shop.east")])).unassigned, 0);
    assert_eq!(addresses.export().len(), 1);
}

#[test]
fn a_hundred_thousand_services_are_quick() {
    let addresses = Addresses::new();
    let catalog = catalog((0..100_000).map(|n| service(2, &format!("s{n}.load.west"))));
    let begun = tokio::time::Instant::now();
    assert_eq!(addresses.update(&catalog).unassigned, 0);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn namespaces_exist_while_something_in_them_is_visible() {
    let addresses = Addresses::new();
    let exists = |cluster: &str, namespace: &str| {
        addresses.has_namespace(&cluster.parse().expect("a name"), &namespace.parse().expect("a name"))
    };
    addresses.update(&catalog([service(1, "web.shop.east")]));
    assert!(exists("east", "shop") && !exists("west", "shop") && !exists("east", "web"));
    addresses.update(&catalog([]));
    assert!(!exists("east", "shop"));
}

#[test]
fn probing_ends() {
    assert_eq!(candidates(&service(1, "a.b.east").id).count(), PROBES_MAX as usize);
    let distinct: HashSet<_> = candidates(&service(1, "a.b.east").id).collect();
    assert_eq!((distinct.len(), cluster(1)), (PROBES_MAX as usize, service(1, "a.b.east").id.cluster));
}
