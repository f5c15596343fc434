//! How a crafted chain is put together and judged, and what is shown of the whole table.

use std::collections::BTreeSet;

use federation_model::{Bundles, Digest, Revocation, Role, SpiffeId, Timestamp, TrustBundle};
use rustls_pki_types::CertificateDer;

use super::cases;
use crate::{
    SvidError, Verifier, stranger,
    testing::{Key, NOON, Spec, noon},
    verifier::{Expected, RoleIs, checks::tests_only, verify_pinned},
};

pub(super) const DOMAIN: &str = "west.mesh.internal";
pub(super) const OTHER: &str = "east.mesh.internal";
pub(super) const WEB: &str = "spiffe://west.mesh.internal/ns/shop/sa/web";
pub(super) const EDGE: &str = "spiffe://west.mesh.internal/hanse/edge/west";

/// What is asked about a chain.
pub(super) enum Ask {
    Tls,
    Session,
    /// Whoever it is: to see a check alone.
    Anybody,
    Ids(Vec<&'static str>),
    Domain(&'static str),
    Stranger,
    /// With the right pin, or with another.
    Pinned(bool),
}

/// A chain in the making: everything right until a case changes it.
pub(super) struct Draft {
    pub(super) root_key: Key,
    pub(super) intermediate_key: Key,
    pub(super) leaf_key: Key,
    pub(super) root: Spec,
    pub(super) intermediate: Spec,
    pub(super) leaf: Spec,
    /// Who really signs, where it is not the one above.
    pub(super) leaf_signer: Option<Key>,
    pub(super) intermediate_signer: Option<Key>,
    pub(super) root_signs_leaf: bool,
    /// CAs between root and intermediate, the highest first.
    pub(super) between: Vec<(Spec, Key)>,
    pub(super) show_intermediate: bool,
    pub(super) show_root: bool,
    /// Roots in force for our own domain; `None` for no bundle at all. By default our root.
    pub(super) bundle: Option<Vec<Vec<u8>>>,
    /// Whether our root stands in the bundle of the other domain instead.
    pub(super) root_is_foreign: bool,
    pub(super) own_root_in_force: bool,
    /// Keys (SPKI) that a domain revoked.
    pub(super) revoked: Vec<(&'static str, Vec<u8>)>,
    /// Last changes to the chain as bytes.
    pub(super) after: fn(&mut Vec<Vec<u8>>),
    pub(super) now: Timestamp,
    pub(super) ask: Ask,
}

impl Draft {
    pub(super) fn new() -> Self {
        let (root_key, intermediate_key, leaf_key) = (Key::p256(), Key::p256(), Key::p256());
        Self {
            root: Spec::ca(DOMAIN, "root", "root", &root_key),
            intermediate: Spec::ca(DOMAIN, "intermediate", "root", &intermediate_key),
            leaf: Spec::leaf(WEB, "intermediate", &leaf_key),
            root_key,
            intermediate_key,
            leaf_key,
            leaf_signer: None,
            intermediate_signer: None,
            root_signs_leaf: false,
            between: Vec::new(),
            show_intermediate: true,
            show_root: false,
            bundle: Some(Vec::new()),
            root_is_foreign: false,
            own_root_in_force: true,
            revoked: Vec::new(),
            after: |_| {},
            now: noon(),
            ask: Ask::Tls,
        }
    }

    /// A leaf of our domain, made by the trusted root of another: every name in the chain says ours.
    pub(super) fn of_two_domains() -> Self {
        let mut draft = Self::new();
        draft.root.remove(crate::testing::SAN);
        draft.root_is_foreign = true;
        draft
    }

    /// Puts a CA between root and intermediate.
    pub(super) fn between(&mut self, subject: &str) {
        let key = Key::p256();
        let above = self.intermediate.issuer.clone();
        let mut spec = Spec::ca(DOMAIN, subject, "", &key);
        spec.issuer = above;
        self.intermediate.issuer = spec.subject.clone();
        self.between.push((spec, key));
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        let above = self.between.last().map_or(&self.root_key, |(_, key)| key);
        let below = if self.root_signs_leaf { &self.root_key } else { &self.intermediate_key };
        let mut chain = vec![self.leaf.sign(self.leaf_signer.as_ref().unwrap_or(below))];
        if self.show_intermediate {
            chain.push(self.intermediate.sign(self.intermediate_signer.as_ref().unwrap_or(above)));
        }
        for (number, (spec, _)) in self.between.iter().enumerate().rev() {
            let signer = number.checked_sub(1).map_or(&self.root_key, |above| &self.between[above].1);
            chain.push(spec.sign(signer));
        }
        if self.show_root {
            chain.push(self.root.sign(&self.root_key));
        }
        (self.after)(&mut chain);
        chain
    }

    fn bundles(&self) -> Bundles {
        let root = self.root.sign(&self.root_key);
        let other_key = Key::p256();
        let other_root = Spec::ca(OTHER, "other root", "other root", &other_key).sign(&other_key);
        let mut foreign = vec![other_root];
        let mut bundles = Bundles::default();
        if self.root_is_foreign {
            foreign.push(root.clone());
        }
        let mut put = |domain: &str, roots: Vec<Vec<u8>>| {
            let bundle = TrustBundle { trust_domain: domain.parse().expect("domain"), sequence: 1, roots };
            bundles.update(bundle).expect("bundle");
        };
        put(OTHER, foreign);
        if let Some(more) = &self.bundle {
            let mut roots = more.clone();
            if self.own_root_in_force && !self.root_is_foreign {
                roots.push(root);
            } else if self.root_is_foreign {
                let key = Key::p256();
                roots.push(Spec::ca(DOMAIN, "our root", "our root", &key).sign(&key));
            }
            put(DOMAIN, roots);
        }
        for (domain, spki) in &self.revoked {
            let (key, not_after) = (crate::sha256(spki), Timestamp::from_secs(NOON + 3600));
            let domain = domain.parse().expect("domain");
            bundles.revoke(&domain, Revocation { key, serial: vec![1], not_after });
        }
        bundles
    }

    pub(super) fn judge(&self) -> Result<(), SvidError> {
        let chain: Vec<CertificateDer<'_>> = self.chain().into_iter().map(CertificateDer::from).collect();
        let verifier = Verifier::new();
        verifier.publish(&self.bundles());
        let anybody: [fn(&Role) -> bool; 1] = [|_| true];
        match &self.ask {
            Ask::Tls => verifier.tls_peer(&chain, self.now).map(drop),
            Ask::Session => verifier.session_peer(&chain, self.now).map(drop),
            Ask::Anybody => verifier.verify(&chain, self.now, &Expected::role(&anybody)).map(drop),
            Ask::Ids(ids) => {
                let ids: Vec<SpiffeId> = ids.iter().map(|id| id.parse().expect("id")).collect();
                let expected = Expected { ids: Some(&ids), ..Expected::role(&[Role::is_workload]) };
                verifier.verify(&chain, self.now, &expected).map(drop)
            }
            Ask::Domain(domain) => {
                let domain = domain.parse().expect("domain");
                let expected = Expected { domain: Some(&domain), ..Expected::role(&anybody) };
                verifier.verify(&chain, self.now, &expected).map(drop)
            }
            Ask::Stranger => stranger(&chain, self.now).map(drop),
            Ask::Pinned(right) => {
                let pin = if *right { crate::sha256(&self.root.spki) } else { Digest([7; 32]) };
                verify_pinned(&chain, &pin, &DOMAIN.parse().expect("domain"), self.now)
            }
        }
    }

    pub(super) fn outcome(&self) -> Result<(), &'static str> {
        self.judge().map_err(|error| error.reason())
    }
}

#[test]
fn every_good_chain_is_accepted() {
    for (name, change) in cases::GOOD {
        let mut draft = Draft::new();
        change(&mut draft);
        assert_eq!(draft.outcome(), Ok(()), "{name}");
    }
}

#[test]
fn every_bad_chain_is_refused_for_its_own_reason() {
    let mut wrong = Vec::new();
    for (name, reason, change) in cases::BAD {
        let mut draft = Draft::new();
        change(&mut draft);
        let outcome = draft.outcome();
        if outcome != Err(reason) {
            wrong.push(format!("{name}: expected {reason}, got {outcome:?} ({:?})", draft.judge()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reasons: BTreeSet<_> = cases::BAD.iter().map(|(_, reason, _)| reason).collect();
    let names: BTreeSet<_> = cases::BAD.iter().map(|(name, ..)| name).collect();
    assert_eq!(names.len(), cases::BAD.len(), "a name is used twice");
    assert!(cases::BAD.len() >= 100, "{} cases", cases::BAD.len());
    assert!(reasons.len() >= 60, "{} reasons", reasons.len());
}

#[test]
fn every_message_names_no_more_than_it_should() {
    for (name, _, change) in cases::BAD {
        let mut draft = Draft::new();
        change(&mut draft);
        let message = draft.judge().expect_err(name).to_string();
        assert!(message.len() < 3000 && !message.contains('\n'), "{name}: {message:?}");
        assert!(!message.contains('\0'), "{name}: {message:?}");
    }
}

/// Without any one check, some chain that must be refused would be accepted: no check is idle, none hides another.
#[test]
fn no_check_can_be_left_out() {
    let drafts: Vec<_> = cases::BAD
        .iter()
        .map(|(name, _, change)| {
            let mut draft = Draft::new();
            change(&mut draft);
            (name, draft)
        })
        .collect();
    for check in tests_only::names() {
        let let_in: Vec<_> = drafts
            .iter()
            .filter(|(_, draft)| tests_only::without(check, || draft.outcome()) == Ok(()))
            .map(|(name, _)| **name)
            .collect();
        assert!(!let_in.is_empty(), "nothing is let in without the check {check:?}: is it needed?");
    }
    assert!(tests_only::names().len() >= 30);
    assert_eq!(tests_only::names().iter().collect::<BTreeSet<_>>().len(), tests_only::names().len());
}

#[test]
fn good_chains_stay_good_whichever_check_is_left_out() {
    for check in tests_only::names() {
        for (name, change) in cases::GOOD {
            let mut draft = Draft::new();
            change(&mut draft);
            assert_eq!(tests_only::without(check, || draft.outcome()), Ok(()), "{name} without {check}");
        }
    }
}

#[test]
fn crafted_time_is_what_was_meant() {
    // The calendar in the test's own DER writer, against known days.
    let draft = Draft::new();
    let der = draft.leaf.sign(&draft.intermediate_key);
    let read = crate::certificate::Certificate::parse(&der, 0).expect("leaf");
    assert_eq!(read.not_before, Timestamp::from_secs(NOON - 300));
    assert_eq!(read.not_after, Timestamp::from_secs(NOON + 3600));
}
