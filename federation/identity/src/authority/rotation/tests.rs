//! A rotation from beside: which steps follow which, and who accepts what the authority issues at each of them.

use federation_model::SpiffeId;

use super::*;
use crate::{LocalSigner, Signer, Svid, SvidKey, Verifier, now, stranger, testing::bundles};

struct Rotating {
    keys: AuthorityKeys,
    domain: TrustDomain,
    name: ClusterName,
}

impl Rotating {
    fn new() -> Self {
        let (domain, name) = ("west.mesh.internal".parse().expect("domain"), "west".parse().expect("name"));
        let (_, keys) = LocalSigner::generate(&domain, &name, now()).expect("keys");
        Self { keys, domain, name }
    }

    fn step(&mut self, step: RotationStep) -> Result<(), RotationError> {
        self.keys = self.keys.clone().step(step, &self.domain, &self.name, now())?;
        Ok(())
    }

    fn signer(&self) -> LocalSigner {
        LocalSigner::from_keys(&self.domain, &self.name, self.keys.clone()).expect("usable")
    }

    fn svid(&self, path: &str) -> Svid {
        let key = SvidKey::generate();
        let id: SpiffeId = format!("spiffe://west.mesh.internal{path}").parse().expect("id");
        let issued = self.signer().sign_svid(&id, &key.csr(), crate::SVID_TTL_DEFAULT, now()).expect("issued");
        let is_edge = path.starts_with("/hanse");
        Svid::assemble(key, if is_edge { issued.full_chain() } else { issued.chain }).expect("svid")
    }

    /// A verifier that knows these of the domain's roots.
    fn knowing(&self, roots: &[&Vec<u8>]) -> Verifier {
        let roots = roots.iter().map(|root| (*root).clone()).collect();
        let bundle = federation_model::TrustBundle { trust_domain: self.domain.clone(), sequence: 1, roots };
        let verifier = Verifier::new();
        assert!(verifier.publish(&bundles([bundle])).is_empty());
        verifier
    }
}

const WEB: &str = "/ns/shop/sa/web";
const EDGE: &str = "/hanse/edge/west";

#[test]
fn chains_pass_under_the_old_bundle_both_and_the_new_one_as_long_as_each_is_in_force() {
    let mut west = Rotating::new();
    let old = west.keys.root_certificate.clone();
    let id = west.signer().candidate().id;
    let before = west.svid(WEB);
    west.step(RotationStep::Prepare).expect("prepared");
    let new = west.keys.next.as_ref().expect("next").root_certificate.clone();
    assert_eq!(west.signer().bundle(2).roots, [old.clone(), new.clone()]);
    let prepared = west.svid(WEB);
    west.step(RotationStep::TurnOver).expect("turned");
    assert_eq!(west.signer().bundle(2).roots, [old.clone(), new.clone()], "turning over publishes nothing");
    let (turned, edge) = (west.svid(WEB), west.svid(EDGE));
    west.step(RotationStep::Retire).expect("retired");
    assert_eq!(west.signer().bundle(3).roots, std::slice::from_ref(&new));
    let retired = west.svid(WEB);

    let (with_old, with_both) = (west.knowing(&[&old]), west.knowing(&[&old, &new]));
    let (with_both_turned, with_new) = (west.knowing(&[&new, &old]), west.knowing(&[&new]));
    let table = [
        ("before", &before, [true, true, true, false]),
        ("prepared", &prepared, [true, true, true, false]),
        ("turned", &turned, [true, true, true, true]),
        ("retired", &retired, [false, true, true, true]),
    ];
    for (what, svid, wanted) in table {
        let passes = [&with_old, &with_both, &with_both_turned, &with_new]
            .map(|verifier| verifier.tls_peer(svid.chain(), now()).is_ok());
        assert_eq!(passes, wanted, "{what}");
    }
    for verifier in [&with_old, &with_both, &with_new] {
        verifier.session_peer(edge.chain(), now()).expect("the edge's chain");
    }
    assert_eq!(edge.chain().len(), 4);
    assert_eq!(stranger(edge.chain(), now()).expect("a chain with its root").root_der, old, "pins made before hold");
    assert_eq!(west.signer().candidate().id, id, "the cluster is the same");
    assert_eq!(west.signer().candidate().root, old, "its id is made of the first root");
}

#[test]
fn a_header_carries_the_chain_of_an_authority_that_was_turned() {
    let mut west = Rotating::new();
    let old = west.keys.root_certificate.clone();
    west.step(RotationStep::Prepare).expect("prepared");
    west.step(RotationStep::TurnOver).expect("turned");
    let svid = west.svid(WEB);
    let connection = federation_model::ConnectionId([7; 16]);
    let bytes = crate::passthrough::sign(&svid, "api.shop.east.mesh.internal", connection, None, b"hello", now())
        .expect("signed");
    let (header, _) = crate::passthrough::parse(&bytes).expect("a header").expect("whole");
    crate::passthrough::verify(&header, b"hello", &west.knowing(&[&old]), now())
        .expect("by one who knows the old root");
}

#[test]
fn a_step_may_come_again_and_none_is_left_out() {
    use RotationStep::{Abandon, Prepare, Retire, TurnOver};
    let mut west = Rotating::new();
    assert!(matches!(west.step(TurnOver), Err(RotationError::NotPrepared)));
    west.step(Retire).expect("nothing to do");
    west.step(Abandon).expect("nothing to do");
    west.step(Prepare).expect("prepared");
    let next = west.keys.next.as_ref().expect("next").root_certificate.clone();
    west.step(Prepare).expect("again");
    assert_eq!(west.keys.next.as_ref().expect("next").root_certificate, next, "it makes no other");
    assert!(matches!(west.step(Retire), Err(RotationError::NotTurned)));
    let mut other = Rotating { keys: west.keys.clone(), domain: west.domain.clone(), name: west.name.clone() };
    other.step(Abandon).expect("abandoned");
    assert_eq!(other.keys.stage(), RotationStage::Settled);
    assert_ne!(other.keys.root_certificate, next);

    west.step(TurnOver).expect("turned");
    west.step(TurnOver).expect("again");
    assert_eq!(west.keys.root_certificate, next);
    assert!(matches!(west.step(Abandon), Err(RotationError::Turned)));
    assert!(matches!(west.step(Prepare), Err(RotationError::Turned)), "one at a time");
    west.step(Retire).expect("retired");
    assert_eq!(west.keys.stage(), RotationStage::Settled);
}

#[test]
fn a_cluster_stays_the_same_over_many_rotations() {
    let mut west = Rotating::new();
    let (id, first) = (west.signer().candidate().id, west.keys.root_certificate.clone());
    let mut roots = std::collections::BTreeSet::from([first.clone()]);
    for _ in 0..5 {
        for step in [RotationStep::Prepare, RotationStep::TurnOver, RotationStep::Retire] {
            west.step(step).expect("a step");
            assert_eq!(west.signer().candidate().id, id);
        }
        assert!(roots.insert(west.keys.root_certificate.clone()), "a root came back");
        let svid = west.svid(WEB);
        assert!(west.knowing(&[&west.keys.root_certificate]).tls_peer(svid.chain(), now()).is_ok());
        assert!(west.knowing(&[&first]).tls_peer(svid.chain(), now()).is_err());
    }
}

#[test]
fn the_old_private_keys_are_gone_once_the_new_root_signs() {
    let mut west = Rotating::new();
    let (root, intermediate) = (west.keys.root_key.clone(), west.keys.intermediate_key.clone());
    west.step(RotationStep::Prepare).expect("prepared");
    west.step(RotationStep::TurnOver).expect("turned");
    for old in [root, intermediate] {
        assert!(old != west.keys.root_key && old != west.keys.intermediate_key);
    }
    assert!(west.keys.next.is_none());
}

#[test]
fn another_intermediate_signs_at_any_point_of_a_rotation_and_what_the_one_before_signed_stays_good() {
    let mut west = Rotating::new();
    let (bundle, candidate) = (west.signer().bundle(1), west.signer().candidate());
    for step in [None, Some(RotationStep::Prepare), Some(RotationStep::TurnOver)] {
        if let Some(step) = step {
            west.step(step).expect("a step");
        }
        let (stage, next) = (west.keys.stage(), west.keys.next.as_ref().map(|next| next.cross.clone()));
        let root = west.keys.root_certificate.clone();
        let (old, before) = (west.keys.intermediate_certificate.clone(), west.svid(WEB));
        west.step(RotationStep::Intermediate).expect("another intermediate");
        let (after, edge) = (west.svid(WEB), west.svid(EDGE));
        assert_ne!(west.keys.intermediate_certificate, old);
        assert_eq!((west.keys.stage(), &west.keys.root_certificate), (stage, &root));
        assert_eq!(west.keys.next.as_ref().map(|next| next.cross.clone()), next, "the next root is untouched");
        // Whoever knows the root that signs, or only the one that was first, takes all of them.
        for roots in [vec![&root], vec![&bundle.roots[0]]] {
            let verifier = west.knowing(&roots);
            let issuer = |svid: &Svid| verifier.tls_peer(svid.chain(), now()).expect("believed").issuer();
            assert_ne!(issuer(&before), issuer(&after), "another key signed");
            assert!(verifier.session_peer(edge.chain(), now()).is_ok());
        }
    }
    assert_eq!(west.signer().candidate(), candidate, "it stays the same cluster");
}
