//! Certificates that a real authority signed, whatever stands in them: the signatures hold, so every other check is met.

use std::{collections::BTreeSet, sync::LazyLock};

use federation_model::{Bundles, TrustBundle};
use rustls_pki_types::CertificateDer;

use crate::{
    LEAF_LIFETIME_MAX, Verifier,
    testing::{
        BASIC, CONSTRAINTS, DAY, Extension, Key, NOON, PURPOSE, SAN, Spec, TRUE, extension, noon, oid, purposes, san,
        seq, uri, usage,
    },
};

const DOMAIN: &str = "west.mesh.internal";

struct Authority {
    leaf: Key,
    intermediate: Key,
    root: Key,
    verifier: Verifier,
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let [leaf, intermediate, root] = [Key::p256(), Key::p256(), Key::p256()];
    let der = Spec::ca(DOMAIN, "root", "root", &root).sign(&root);
    let mut bundles = Bundles::default();
    let trust_domain = DOMAIN.parse().expect("a domain");
    bundles.update(TrustBundle { trust_domain, sequence: 1, roots: vec![der] }).expect("a bundle");
    let verifier = Verifier::new();
    assert!(verifier.publish(&bundles).is_empty());
    Authority { leaf, intermediate, root, verifier }
});

/// The instructions: each byte says what is done to leaf or issuer, the ones behind it with what.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for certificate in 0..2_u8 {
        for what in 0..WHATS {
            all.push([&[certificate << 7 | what, 20][..], b"spiffe://west.mesh.internal/ns/a/sa/b"].concat());
        }
    }
    all
}

/// How many kinds of change there are.
const WHATS: u8 = 12;

/// A chain that differs from a good one by what `data` says; whoever passes has all that X509-SVID asks of it.
pub fn svid_crafted(data: &[u8]) {
    let authority = &*AUTHORITY;
    let mut leaf = Spec::leaf(&format!("spiffe://{DOMAIN}/ns/shop/sa/web"), "intermediate", &authority.leaf);
    let mut issuer = Spec::ca(DOMAIN, "intermediate", "root", &authority.intermediate);
    let mut rest = data;
    for _ in 0..8 {
        let Some((&[what, length], after)) = rest.split_first_chunk::<2>() else { break };
        let (with, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        change(if what & 0x80 == 0 { &mut leaf } else { &mut issuer }, what & 0x7f, with);
    }
    let ders = [leaf.sign(&authority.intermediate), issuer.sign(&authority.root)];
    let chain = ders.each_ref().map(|der| CertificateDer::from(der.as_slice()));
    let outcome = authority.verifier.tls_peer(&chain, noon());
    if data.is_empty() {
        outcome.as_ref().expect("the chain without a change is good");
    }
    let Ok(peer) = outcome else { return };

    // What the certificates say is known from how they were made, not from how they were read.
    let only = |spec: &Spec, arc: u64| -> Vec<Extension> {
        spec.extensions.iter().filter(|one| one.oid == oid(&[2, 5, 29, arc])).cloned().collect()
    };
    for spec in [&leaf, &issuer] {
        let oids: BTreeSet<_> = spec.extensions.iter().map(|one| &one.oid).collect();
        assert_eq!(oids.len(), spec.extensions.len(), "an extension stands twice");
        assert!(spec.not_before <= NOON && NOON <= spec.not_after, "not valid now");
        assert!(only(spec, CONSTRAINTS).is_empty(), "name constraints that nobody enforces");
    }
    assert!(leaf.not_after - leaf.not_before <= LEAF_LIFETIME_MAX.as_secs());
    let names = only(&leaf, SAN).remove(0).value;
    let id = peer.id().to_string();
    assert_eq!(peer.id().trust_domain().as_str(), DOMAIN, "a name of another domain");
    assert!(names.windows(id.len()).any(|window| window == id.as_bytes()), "a name that stands nowhere");
    let uris = names.windows(10).filter(|window| window[0] == 0x86 && window[2..].starts_with(b"spiffe:/")).count();
    assert!(uris <= 1, "more than one name: {}", names.escape_ascii());
    assert!(!only(&leaf, BASIC).iter().any(|one| one.value == seq(&[&TRUE])), "a leaf that is an authority");
    assert!(
        only(&issuer, BASIC).iter().any(|one| one.value.windows(3).any(|part| part == TRUE)),
        "an issuer that is none"
    );
    assert!(peer.not_after().as_millis() <= leaf.not_after * 1000);
}

fn change(spec: &mut Spec, what: u8, with: &[u8]) {
    let first = with.first().copied().unwrap_or_default();
    match what % WHATS {
        // Whole extensions, of any content.
        0 => spec.put(SAN, first & 1 == 0, with.get(1..).unwrap_or_default().to_vec()),
        1 => spec.put(
            [SAN, BASIC, 15, PURPOSE, CONSTRAINTS, 32, 36, 54][usize::from(first) % 8],
            first & 8 != 0,
            with.get(1..).unwrap_or_default().to_vec(),
        ),
        2 => spec.remove([SAN, BASIC, 15, PURPOSE][usize::from(first) % 4]),
        // Names.
        3 => spec.id(&String::from_utf8_lossy(with.get(..120).unwrap_or(with))),
        4 => {
            let text = String::from_utf8_lossy(with.get(..100).unwrap_or(with)).into_owned();
            spec.put(SAN, true, san(&[uri(&text), uri(&format!("spiffe://{DOMAIN}/ns/shop/sa/web"))]));
        }
        5 => spec.put(15, first & 1 == 0, usage(&[first >> 1 & 7, first >> 4 & 7])),
        6 => spec.put(PURPOSE, first & 1 == 0, purposes(&[u64::from(first >> 1 & 3), u64::from(first >> 3 & 3)])),
        7 => spec.put(BASIC, true, if first & 1 == 0 { seq(&[&TRUE]) } else { seq(&[]) }),
        8 => spec.serial = with.get(..30).unwrap_or(with).to_vec(),
        9 => {
            spec.not_before = NOON - u64::from(first) * DAY / 16;
            spec.not_after = NOON + with.get(1).map_or(0, |byte| u64::from(*byte) * DAY / 16);
        }
        10 => spec.extensions.push(extension(SAN, true, san(&[uri(&format!("spiffe://{DOMAIN}/ns/a/sa/b"))]))),
        _ => match first % 3 {
            0 => spec.version = with.get(..8).unwrap_or(with).to_vec(),
            1 => spec.spki = with.to_vec(),
            _ => spec.subject = with.to_vec(),
        },
    }
}
