//! The checks, each by its name. A test shows for every name that some chain would pass without it.

use federation_model::{Role, SpiffeId, Timestamp, TrustDomain};
use rustls_pki_types::CertificateDer;

use super::{CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX, LEAF_LIFETIME_MAX, Verified, path::Path};
use crate::{
    SvidError,
    certificate::{Certificate, ExtendedKeyUsage},
};

/// Longest serial number in bytes (RFC 5280, 4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;

type Outcome = Result<(), SvidError>;
type BoundsCheck = fn(&[CertificateDer<'_>]) -> Outcome;
type ChainCheck = fn(&[Certificate<'_>]) -> Outcome;
type LeafCheck = fn(&Certificate<'_>, &SpiffeId) -> Outcome;
type PathCheck = fn(&Path<'_>, &SpiffeId, Timestamp) -> Outcome;
type ExpectedCheck = fn(&Verified, &Expected<'_>) -> Outcome;

/// Before anything is parsed.
const BOUNDS: &[(&str, BoundsCheck)] = &[
    ("chain-length", |chain| {
        let count = chain.len();
        refuse_if(count > CHAIN_LENGTH_MAX, || SvidError::ChainTooLong { count })
    }),
    ("certificate-length", |chain| match chain.iter().enumerate().find(|(_, der)| der.len() > CERTIFICATE_BYTES_MAX) {
        Some((index, der)) => Err(SvidError::CertificateTooLong { index, bytes: der.len() }),
        None => Ok(()),
    }),
];

/// On the chain as a whole.
const CHAIN: &[(&str, ChainCheck)] = &[
    ("one-uri-san", |chain| match chain.first().map_or(0, |leaf| leaf.uris.len()) {
        0 | 1 => Ok(()),
        count => Err(SvidError::ManyUriSans { count }),
    }),
    // RFC 8446, 4.4.2: each certificate certifies the one before it. A stray one is refused: what is it there for?
    ("chain-order", |chain| {
        match chain.windows(2).position(|pair| matches!(pair, [one, next] if one.issuer != next.subject)) {
            Some(index) => Err(SvidError::ChainOrder { index }),
            None => Ok(()),
        }
    }),
];

/// On the leaf as an X509-SVID, apart from what the path tells (cA is webpki's).
const LEAF: &[(&str, LeafCheck)] = &[
    ("leaf-path", |_, id| refuse_if(id.path().is_empty(), || SvidError::IdWithoutPath(id.clone()))),
    ("san-critical", |leaf, _| refuse_if(leaf.subject_empty && !leaf.san_critical, || SvidError::SanNotCritical)),
    ("basic-constraints", |leaf, _| refuse_if(leaf.basic_constraints.is_none(), || SvidError::BasicConstraintsMissing)),
    ("leaf-path-length", |leaf, _| {
        let length = leaf.basic_constraints.is_some_and(|basic| !basic.ca && basic.path_length.is_some());
        refuse_if(length, || SvidError::LeafPathLength)
    }),
    ("key-usage", |leaf, _| refuse_if(leaf.key_usage.is_none(), || SvidError::KeyUsageMissing)),
    ("key-usage-critical", |leaf, _| {
        refuse_if(leaf.key_usage.is_some_and(|usage| !usage.critical), || SvidError::KeyUsageNotCritical)
    }),
    ("digital-signature", |leaf, _| {
        refuse_if(leaf.key_usage.is_some_and(|usage| !usage.digital_signature), || SvidError::NoDigitalSignature)
    }),
    ("leaf-no-key-cert-sign", |leaf, _| {
        refuse_if(leaf.key_usage.is_some_and(|usage| usage.key_cert_sign), || SvidError::LeafSignsCertificates)
    }),
    ("leaf-no-crl-sign", |leaf, _| {
        refuse_if(leaf.key_usage.is_some_and(|usage| usage.crl_sign), || SvidError::LeafSignsCrls)
    }),
    ("extended-key-usage", |leaf, _| {
        refuse_if(lacks_a_purpose(leaf.extended_key_usage), || SvidError::ExtendedKeyUsage)
    }),
    ("serial-number", |leaf, _| {
        // Two's complement: a set top bit is a minus sign, and zero bytes alone are nought.
        let positive = leaf.serial.first().is_some_and(|first| *first < 0x80) && leaf.serial.iter().any(|b| *b != 0);
        refuse_if(!positive || leaf.serial.len() > SERIAL_BYTES_MAX, || SvidError::SerialNumber)
    }),
    ("lifetime", |leaf, _| {
        let lifetime = leaf.not_after.since(leaf.not_before);
        refuse_if(lifetime > LEAF_LIFETIME_MAX, || SvidError::LifetimeTooLong { hours: lifetime.as_secs() / 3600 })
    }),
];

/// On the issuers along the path that was found, and on its root.
const PATH: &[(&str, PathCheck)] = &[
    ("issuer-key-usage", |path, _, _| {
        refuse_if(path.issuers.iter().any(|issuer| issuer.key_usage.is_none()), || SvidError::IssuerKeyUsageMissing)
    }),
    ("issuer-key-usage-critical", |path, _, _| {
        let slack = path.issuers.iter().any(|issuer| issuer.key_usage.is_some_and(|usage| !usage.critical));
        refuse_if(slack, || SvidError::IssuerKeyUsageNotCritical)
    }),
    ("issuer-key-cert-sign", |path, _, _| {
        let unfit = path.issuers.iter().any(|issuer| issuer.key_usage.is_some_and(|usage| !usage.key_cert_sign));
        refuse_if(unfit, || SvidError::IssuerNoKeyCertSign)
    }),
    ("issuer-extended-key-usage", |path, _, _| {
        let unfit = path.issuers.iter().any(|issuer| lacks_a_purpose(issuer.extended_key_usage));
        refuse_if(unfit, || SvidError::IssuerExtendedKeyUsage)
    }),
    ("issuer-id", |path, _, _| {
        refuse_if(path.issuers.iter().any(|issuer| issuer.uris.is_empty()), || SvidError::IssuerWithoutId)
    }),
    ("issuer-one-id", |path, _, _| {
        let count = path.issuers.iter().map(|issuer| issuer.uris.len()).max().unwrap_or(0);
        refuse_if(count > 1, || SvidError::IssuerManyIds { count })
    }),
    ("issuer-id-form", |path, _, _| {
        refuse_if(issuer_ids(path).any(|id| id.is_none()), || SvidError::IssuerIdMalformed)
    }),
    ("issuer-id-path", |path, _, _| match issuer_ids(path).flatten().find(|id| !id.path().is_empty()) {
        Some(id) => Err(SvidError::IssuerIdWithPath(id)),
        None => Ok(()),
    }),
    ("issuer-domain", |path, id, _| {
        let leaf = id.trust_domain();
        match issuer_ids(path).flatten().find(|issuer| issuer.trust_domain() != leaf) {
            Some(id) => Err(SvidError::IssuerForeignDomain { issuer: id.trust_domain().clone(), leaf: leaf.clone() }),
            None => Ok(()),
        }
    }),
    ("root-ended", |path, _, now| refuse_if(now > path.root_not_after, || SvidError::RootExpired)),
    ("root-begun", |path, _, now| refuse_if(now < path.root_not_before, || SvidError::RootNotYetValid)),
];

/// On the identity, against what is expected of it.
const EXPECTED: &[(&str, ExpectedCheck)] = &[
    ("role", |verified, expected| {
        let role = verified.id.role();
        let accepted = expected.roles.iter().any(|is| is(&role));
        refuse_if(!accepted, || SvidError::WrongRole(verified.id.clone()))
    }),
    ("expected-domain", |verified, expected| match expected.domain {
        Some(want) if want != verified.id.trust_domain() => {
            Err(SvidError::WrongTrustDomain { got: verified.id.trust_domain().clone(), want: want.clone() })
        }
        _ => Ok(()),
    }),
    ("expected-id", |verified, expected| {
        let other = expected.ids.is_some_and(|ids| !ids.contains(&verified.id));
        refuse_if(other, || SvidError::UnexpectedId(verified.id.clone()))
    }),
];

/// What the one who asks expects of the peer.
pub(crate) struct Expected<'a> {
    /// At least one must hold.
    pub(crate) roles: &'a [fn(&Role) -> bool],
    /// The only trust domain, if there is but one.
    pub(crate) domain: Option<&'a TrustDomain>,
    /// The only identities, if they are known beforehand. Empty accepts nobody.
    pub(crate) ids: Option<&'a [SpiffeId]>,
}

impl<'a> Expected<'a> {
    pub(crate) fn role(roles: &'a [fn(&Role) -> bool]) -> Self {
        Self { roles, domain: None, ids: None }
    }

    pub(crate) fn check(&self, verified: &Verified) -> Outcome {
        in_force(EXPECTED).try_for_each(|check| check(verified, self))
    }
}

pub(super) fn run_bounds(chain: &[CertificateDer<'_>]) -> Outcome {
    in_force(BOUNDS).try_for_each(|check| check(chain))
}

pub(super) fn run_chain(chain: &[Certificate<'_>]) -> Outcome {
    in_force(CHAIN).try_for_each(|check| check(chain))
}

pub(super) fn run_leaf(leaf: &Certificate<'_>, id: &SpiffeId) -> Outcome {
    in_force(LEAF).try_for_each(|check| check(leaf, id))
}

pub(super) fn run_path(path: &Path<'_>, id: &SpiffeId, now: Timestamp) -> Outcome {
    in_force(PATH).try_for_each(|check| check(path, id, now))
}

fn in_force<F>(checks: &'static [(&'static str, F)]) -> impl Iterator<Item = &'static F> {
    checks.iter().filter(|(name, _)| enabled(name)).map(|(_, check)| check)
}

fn refuse_if(bad: bool, error: impl FnOnce() -> SvidError) -> Outcome {
    if bad { Err(error()) } else { Ok(()) }
}

/// "If included, id-kp-serverAuth and id-kp-clientAuth MUST be set" (X509-SVID, 4.4).
fn lacks_a_purpose(usage: Option<ExtendedKeyUsage>) -> bool {
    usage.is_some_and(|usage| !(usage.server_auth && usage.client_auth))
}

/// The SPIFFE IDs of the issuers; `None` for a URI that is none.
fn issuer_ids(path: &Path<'_>) -> impl Iterator<Item = Option<SpiffeId>> {
    path.issuers.iter().flat_map(|issuer| issuer.uris.iter()).map(|uri| uri.and_then(|uri| uri.parse().ok()))
}

#[cfg(not(test))]
pub(super) const fn enabled(_name: &str) -> bool {
    true
}

#[cfg(test)]
pub(super) use tests_only::enabled;

/// Leaving one check out, to show that it is needed. Not compiled into anything that runs.
#[cfg(test)]
pub(super) mod tests_only {
    use std::cell::Cell;

    use super::{BOUNDS, CHAIN, EXPECTED, LEAF, PATH};

    thread_local!(static LEFT_OUT: Cell<Option<&'static str>> = const { Cell::new(None) });

    pub(in crate::verifier) fn enabled(name: &str) -> bool {
        LEFT_OUT.get() != Some(name)
    }

    pub(in crate::verifier) fn without<T>(name: &'static str, run: impl FnOnce() -> T) -> T {
        LEFT_OUT.set(Some(name));
        let outcome = run();
        LEFT_OUT.set(None);
        outcome
    }

    /// Every check that can be left out: the lists above, and the four that are not in a list.
    pub(in crate::verifier) fn names() -> Vec<&'static str> {
        fn of<F>(checks: &'static [(&'static str, F)]) -> impl Iterator<Item = &'static str> {
            checks.iter().map(|(name, _)| *name)
        }
        let lists = of(BOUNDS).chain(of(CHAIN)).chain(of(LEAF)).chain(of(PATH)).chain(of(EXPECTED));
        lists.chain(["own-roots-only", "path", "pin", "revoked"]).collect()
    }
}
