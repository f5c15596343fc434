//! The verifier against crafted chains, and against the clusters that other rooms make.

mod cases;
mod table;

use std::collections::BTreeSet;

use federation_model::Revocation;
use proptest::prelude::*;

use super::*;
use crate::{
    LocalSigner, Signer, SvidKey, now,
    testing::{Cluster, bundles, verifier},
};

#[test]
fn only_the_diagonal_of_six_domains_and_six_authorities_verifies() {
    let names = ["ada", "bea", "cid", "dot", "eve", "fay"];
    let honest: Vec<Cluster> = names.iter().map(|name| Cluster::new(name)).collect();
    let verifier = verifier(&honest.iter().collect::<Vec<_>>());
    let mut passed = 0;
    for claimed in &honest {
        for (number, _) in honest.iter().enumerate() {
            // The authority of `number`, if it is honest about its domain; else one that claims another's.
            let own = honest[number].domain == claimed.domain;
            let rogue;
            let authority = if own {
                &honest[number]
            } else {
                rogue = Cluster::of(names[number], claimed.domain.as_str());
                &rogue
            };
            let outcome = verifier.tls_peer(authority.workload("web").chain(), now());
            assert_eq!(outcome.is_ok(), own, "{} by {}", claimed.domain, names[number]);
            let edge = verifier.session_peer(authority.edge().chain(), now());
            assert_eq!(edge.is_ok(), own, "edge of {} by {}", claimed.domain, names[number]);
            passed += usize::from(outcome.is_ok());
        }
    }
    assert_eq!(passed, 6);
}

#[test]
fn the_roots_of_one_domain_never_verify_a_name_of_another() {
    // The strongest form of the matrix: a root that is trusted for its own domain, under which every name says ours.
    assert_eq!(table::Draft::of_two_domains().outcome(), Err("unknown_issuer"));
}

#[test]
fn a_fresh_verifier_refuses_everything() {
    let west = Cluster::new("west");
    let refused = Verifier::new().tls_peer(west.workload("web").chain(), now()).expect_err("no bundle");
    assert_eq!(refused.reason(), "unknown_trust_domain");
}

#[test]
fn the_proof_says_how_it_was_given_and_when_it_ends() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let (web, edge) = (west.workload("web"), west.edge());
    let tls = verifier.tls_peer(web.chain(), now()).expect("tls");
    assert_eq!((tls.proof(), tls.id(), tls.not_after()), (Proof::Tls, web.id(), web.not_after()));
    assert_eq!(tls.leaf(), crate::sha256(&web.chain()[0]));
    let intermediate = &west.signer.authority().certificates()[1];
    assert_eq!(tls.issuer(), intermediate.key_sha256);
    assert_eq!(verifier.session_peer(edge.chain(), now()).expect("session").proof(), Proof::Session);
    assert_eq!(verifier.own_peer(&web, now()).expect("own").proof(), Proof::Own);
    assert_eq!(verifier.own_peer(&edge, now()).expect("own").proof(), Proof::Own);
}

#[test]
fn each_door_accepts_its_roles_alone() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let (web, edge) = (west.workload("web"), west.edge());
    assert_eq!(verifier.tls_peer(edge.chain(), now()).expect_err("edge").reason(), "wrong_role");
    assert_eq!(verifier.session_peer(web.chain(), now()).expect_err("workload").reason(), "wrong_role");
}

#[test]
fn what_was_remembered_is_refused_once_its_key_is_revoked() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let (web, api, edge) = (west.workload("web"), west.workload("api"), west.edge());
    let peer = verifier.tls_peer(web.chain(), now()).expect("before");
    assert_eq!(peer.key(), web.key_digest());
    assert!(verifier.session_peer(edge.chain(), now()).is_ok() && verifier.own_peer(&web, now()).is_ok());
    let mut revoking = bundles([west.bundle()]);
    for svid in [&web, &edge] {
        let revocation =
            Revocation { key: svid.key_digest(), serial: svid.serial().to_vec(), not_after: svid.not_after() };
        revoking.revoke(&west.domain, revocation);
    }
    verifier.publish(&revoking);
    for refused in [
        verifier.tls_peer(web.chain(), now()),
        verifier.own_peer(&web, now()),
        verifier.session_peer(edge.chain(), now()),
    ] {
        assert_eq!(refused.expect_err("revoked").reason(), "revoked");
    }
    assert!(verifier.tls_peer(api.chain(), now()).is_ok(), "another key of the same domain");
}

#[test]
fn what_was_remembered_is_refused_once_its_bundle_goes() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let verifier = verifier(&[&west, &east]);
    let (web, shop) = (west.workload("web"), east.workload("shop"));
    for svid in [&web, &shop] {
        assert!(verifier.tls_peer(svid.chain(), now()).is_ok());
        assert!(verifier.tls_peer(svid.chain(), now()).is_ok(), "from memory");
    }
    verifier.publish(&bundles([east.bundle()]));
    assert_eq!(verifier.tls_peer(web.chain(), now()).expect_err("gone").reason(), "unknown_trust_domain");
    assert!(verifier.tls_peer(shop.chain(), now()).is_ok());

    let mut empty = east.bundle();
    (empty.sequence, empty.roots) = (2, Vec::new());
    verifier.publish(&bundles([empty]));
    assert_eq!(verifier.tls_peer(shop.chain(), now()).expect_err("revoked").reason(), "no_roots");
}

#[test]
fn what_was_remembered_under_an_old_root_is_refused_under_a_new_one() {
    let (west, again) = (Cluster::new("west"), Cluster::new("west"));
    let verifier = verifier(&[&west]);
    let web = west.workload("web");
    assert!(verifier.tls_peer(web.chain(), now()).is_ok());
    let mut rotated = again.bundle();
    rotated.sequence = 2;
    verifier.publish(&bundles([rotated]));
    assert_eq!(verifier.tls_peer(web.chain(), now()).expect_err("old root").reason(), "unknown_issuer");
    assert!(verifier.tls_peer(again.workload("web").chain(), now()).is_ok());
    // And what comes back is verified anew.
    verifier.publish(&bundles([west.bundle()]));
    assert!(verifier.tls_peer(web.chain(), now()).is_ok());
}

#[test]
fn what_was_remembered_ends_with_its_certificates() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let web = west.workload("web");
    assert!(verifier.tls_peer(web.chain(), web.not_after()).is_ok());
    let late = web.not_after().after(Duration::from_millis(1));
    assert_eq!(verifier.tls_peer(web.chain(), late).expect_err("ended").reason(), "expired");
    assert!(verifier.tls_peer(web.chain(), now()).is_ok());
    let early = web.not_before().before(Duration::from_secs(2));
    assert_eq!(verifier.tls_peer(web.chain(), early).expect_err("not begun").reason(), "not_yet_valid");
    assert!(verifier.tls_peer(web.chain(), now()).is_ok());
}

#[test]
fn no_two_chains_are_remembered_as_one() {
    let digest = |chain: &[&[u8]]| {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        chain_digest(&chain)
    };
    let alike = [digest(&[b"ab"]), digest(&[b"a", b"b"]), digest(&[b"b", b"a"]), digest(&[b"ab", b""]), digest(&[])];
    assert_eq!(alike.iter().collect::<BTreeSet<_>>().len(), alike.len());
}

#[test]
fn roles_are_asked_of_what_was_remembered_too() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let web = west.workload("web");
    assert!(verifier.tls_peer(web.chain(), now()).is_ok());
    assert_eq!(verifier.session_peer(web.chain(), now()).expect_err("workload").reason(), "wrong_role");
}

#[test]
fn publishing_the_same_bundles_keeps_what_is_remembered() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let verifier = verifier(&[&west]);
    let before = verifier.inner.in_force.load().anchors.get(&west.domain).expect("west").generation();
    verifier.publish(&bundles([west.bundle(), east.bundle()]));
    let after = verifier.inner.in_force.load().anchors.get(&west.domain).expect("west").generation();
    assert_eq!(before, after);
    assert_eq!(verifier.trust_domains(), 2);
    assert!(verifier.knows(&east.domain));
}

#[test]
fn memory_is_bounded_and_keeps_what_is_in_use() {
    let west = Cluster::new("west");
    let verifier = verifier(&[&west]);
    let web = west.workload("web");
    let kept = verifier.verify(web.chain(), now(), &Expected::role(&[Role::is_workload])).expect("web");
    for number in 0..3 * CACHE_CHAINS_MAX as u64 {
        let digest = crate::sha256(&number.to_be_bytes());
        verifier.cache().insert(digest, kept.clone(), 0);
        if number % 1000 == 0 {
            let again = verifier.verify(web.chain(), now(), &Expected::role(&[Role::is_workload])).expect("web");
            assert!(Arc::ptr_eq(&kept, &again), "still remembered after {number}");
        }
    }
    assert!(verifier.cache().len() <= CACHE_CHAINS_MAX);
}

#[test]
fn unusable_roots_in_a_bundle_are_left_out_and_told() {
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    let mut bundle = west.bundle();
    bundle.roots.push(west.workload("web").chain()[0].to_vec());
    bundle.roots.push(vec![0x30, 0x00]);
    bundle.roots.extend(east.bundle().roots);
    let verifier = Verifier::new();
    let ignored = verifier.publish(&bundles([bundle]));
    let reasons: Vec<_> = ignored.iter().map(|root| root.reason).collect();
    assert_eq!(reasons, ["not_ca", "malformed", "foreign_domain"]);
    assert!(verifier.tls_peer(west.workload("web").chain(), now()).is_ok());
}

#[test]
fn a_stranger_is_read_with_every_check_but_the_roots_own_word() {
    let west = Cluster::new("west");
    let edge = west.edge();
    let seen = stranger(edge.chain(), now()).expect("stranger");
    assert_eq!(seen.root_der, west.signer.candidate().root);
    assert_eq!(seen.root_pin, west.signer.root_pin());
    assert_eq!((&seen.id, &seen.trust_domain), (edge.id(), &west.domain));
    assert_eq!(stranger(&edge.chain()[..2], now()).expect_err("no root").reason(), "root_missing");
    assert_eq!(stranger(&[], now()).expect_err("nothing").reason(), "chain_empty");

    // A workload brings no root of its own; with one it is still no edge.
    let key = SvidKey::generate();
    let chain: Vec<_> =
        west.issue("/ns/default/sa/web", &key).full_chain().into_iter().map(CertificateDer::from).collect();
    assert_eq!(stranger(&chain, now()).expect_err("workload").reason(), "wrong_role");

    // Another's root under our own chain.
    let mut mixed = edge.chain()[..2].to_vec();
    mixed.push(CertificateDer::from(Cluster::new("west").signer.candidate().root));
    assert_eq!(stranger(&mixed, now()).expect_err("other root").reason(), "chain_order");
}

#[test]
fn an_authority_signs_for_its_own_workloads_and_its_own_edge_alone() {
    let west = Cluster::new("west");
    let csr = SvidKey::generate().csr();
    let reason = |id: &str, ttl: u64| {
        let outcome = west.signer.sign_svid(&id.parse().expect("id"), &csr, Duration::from_secs(ttl), now());
        outcome.map(|_| ()).map_err(|error| error.reason())
    };
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", 3600), Ok(()));
    assert_eq!(reason("spiffe://west.mesh.internal/hanse/edge/west", 3600), Ok(()));
    assert_eq!(reason("spiffe://west.mesh.internal/hanse/edge/east", 3600), Err("foreign_edge"));
    assert_eq!(reason("spiffe://east.mesh.internal/ns/a/sa/b", 3600), Err("foreign_domain"));
    assert_eq!(reason("spiffe://west.mesh.internal", 3600), Err("role"));
    assert_eq!(reason("spiffe://west.mesh.internal/user/ada", 3600), Err("role"));
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b/c", 3600), Err("role"));
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", 0), Err("ttl"));
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", 24 * 3600 + 1), Err("ttl"));
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", 24 * 3600), Ok(()));
    assert_eq!(reason("spiffe://west.mesh.internal/ns/a/sa/b", 1), Ok(()));
    let late = now().after(crate::ROOT_LIFETIME);
    let id = "spiffe://west.mesh.internal/ns/a/sa/b".parse().expect("id");
    let outcome = west.signer.sign_svid(&id, &csr, Duration::from_secs(60), late);
    assert_eq!(outcome.expect_err("ended").reason(), "authority_ended");
}

#[test]
fn an_authority_comes_back_from_its_keys_and_from_no_others() {
    let (name, domain): (federation_model::ClusterName, TrustDomain) =
        ("west".parse().expect("name"), "west.mesh.internal".parse().expect("domain"));
    let (signer, keys) = LocalSigner::generate(&domain, &name, now()).expect("generate");
    let (_, others) = LocalSigner::generate(&domain, &name, now()).expect("generate");
    let again = LocalSigner::from_keys(&domain, &name, keys.clone()).expect("again");
    assert_eq!(again.candidate(), signer.candidate());
    assert_eq!(again.bundle(3), signer.bundle(3));
    assert_eq!(again.sign_record(b"record"), signer.sign_record(b"record"));
    assert_eq!(again.authority().certificates(), signer.authority().certificates());

    let mut bad = [keys.clone(), keys.clone(), keys.clone(), keys.clone(), keys.clone(), keys.clone()];
    bad[0].root_key = others.root_key.clone();
    bad[1].root_certificate = others.root_certificate.clone();
    bad[2].intermediate_key = others.intermediate_key.clone();
    bad[3].intermediate_certificate = Vec::new();
    bad[4].replication_key.truncate(10);
    bad[5].sealing_key.truncate(31);
    for (number, keys) in bad.into_iter().enumerate() {
        assert!(LocalSigner::from_keys(&domain, &name, keys).is_err(), "case {number}");
    }
    let east: TrustDomain = "east.mesh.internal".parse().expect("domain");
    assert!(LocalSigner::from_keys(&east, &name, keys.clone()).is_err(), "another trust domain");
    assert_eq!(format!("{keys:?}"), "AuthorityKeys(hidden)");
}

#[test]
fn an_authority_whose_chain_does_not_hold_together_signs_nothing() {
    let (name, domain) = ("west".parse().expect("name"), "west.mesh.internal".parse().expect("domain"));
    let (_, mut keys) = LocalSigner::generate(&domain, &name, now()).expect("generate");
    let (_, others) = LocalSigner::generate(&domain, &name, now()).expect("generate");
    keys.root_key = others.root_key.clone();
    keys.root_certificate = others.root_certificate.clone();
    let mixed = LocalSigner::from_keys(&domain, &name, keys).expect("each key fits its certificate");
    let id = "spiffe://west.mesh.internal/ns/a/sa/b".parse().expect("id");
    let outcome = mixed.sign_svid(&id, &SvidKey::generate().csr(), Duration::from_secs(60), now());
    assert_eq!(outcome.expect_err("unfit").reason(), "unfit");
}

#[test]
fn short_lived_svids_have_half_their_life_ahead_when_made() {
    let west = Cluster::new("west");
    let id = "spiffe://west.mesh.internal/ns/a/sa/b".parse().expect("id");
    for ttl in [10, 30, 900, 3600, 24 * 3600] {
        let at = now();
        let ttl = Duration::from_secs(ttl);
        let issued = west.signer.sign_svid(&id, &SvidKey::generate().csr(), ttl, at).expect("issued");
        let due = crate::renewal_due(issued.not_before, issued.not_after, 1.0);
        assert!(due > at, "{ttl:?}: due {due}, made {at}");
        assert!(due < at.after(ttl / 2));
    }
}

#[test]
fn serial_numbers_and_keys_are_never_used_twice() {
    let west = Cluster::new("west");
    let serials: BTreeSet<_> = (0..50).map(|_| west.workload("web").serial().to_vec()).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 16));
}

proptest! {
    #[test]
    fn arbitrary_chains_never_panic(chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6)) {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        prop_assert!(Verifier::new().tls_peer(&chain, now()).is_err());
        prop_assert!(stranger(&chain, now()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn no_changed_byte_of_a_chain_is_believed(at in any::<prop::sample::Index>(), with in 1u8.., cut in any::<bool>()) {
        thread_local!(static WORLD: (Verifier, Vec<CertificateDer<'static>>) = {
            let west = Cluster::new("west");
            (verifier(&[&west]), west.edge().chain().to_vec())
        });
        WORLD.with(|(verifier, chain)| -> Result<(), TestCaseError> {
            let mut changed = chain.clone();
            let place = at.index(chain.iter().map(|der| der.len()).sum());
            let (mut number, mut offset) = (0, place);
            while offset >= changed[number].len() {
                offset -= changed[number].len();
                number += 1;
            }
            let mut der = changed[number].to_vec();
            if cut { der.truncate(offset) } else { der[offset] ^= with }
            changed[number] = CertificateDer::from(der);
            let outcome = verifier.session_peer(&changed, now());
            // The presented root is no link of the path; whatever it looks like, the chain below it is what counts.
            if number < 2 || cut {
                prop_assert!(outcome.is_err(), "certificate {number} byte {offset}");
            }
            // Under its own root, nothing changed passes at all.
            if let Ok(seen) = stranger(&changed, now()) {
                prop_assert_ne!(seen.root_der, chain[2].to_vec());
            }
            Ok(())
        })?;
    }
}
