//! What must hold of all bytes that are given to this room's readers and verifiers; `fuzz/` looks for some of which it
//! does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.
//!
//! The keys are those of the published test vectors: a fuzzer that got past a signature would have forged one.

mod crafted;

use std::{sync::LazyLock, time::Duration};

use federation_model::{Bundles, Digest, Role, Timestamp, TrustBundle, TrustDomain};
use rustls_pki_types::CertificateDer;

pub use self::crafted::svid_crafted;
pub use crate::signer::fuzzing::signer;
use crate::{
    SvidKey, Verifier,
    certificate::Certificate,
    csr_key_digest,
    passthrough::{self, Extended, HEADER_BYTES_MAX},
    seal::{self, Kek},
    sha256, stranger,
    testing::noon,
    testing_vectors::{Vector, read},
    verifier::check_root,
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[
    ("svid", svid),
    ("svid_crafted", svid_crafted),
    ("bundle", bundle),
    ("csr", csr),
    ("passthrough", passthrough),
    ("sealed", sealed),
    ("signer", signer),
];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let vector = read("passthrough.txt");
    let [leaf, intermediate, root] = ["leaf", "intermediate", "root"].map(|name| vector.bytes(name));
    match target {
        "svid" => vec![
            chain_bytes(&[&leaf, &intermediate]),
            chain_bytes(&[&leaf, &intermediate, &root]),
            chain_bytes(&[&leaf]),
            chain_bytes(&[&intermediate, &root]),
        ],
        "svid_crafted" => crafted::seeds(),
        "bundle" => vec![chain_bytes(&[&root]), chain_bytes(&[&root, &intermediate]), Vec::new()],
        "csr" => vec![SvidKey::generate().csr()],
        "passthrough" => ["open", "renew", "extend"]
            .map(|name| {
                let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/passthrough-");
                std::fs::read(format!("{path}{name}.bin")).expect("a vector")
            })
            .into(),
        "sealed" => ["sealed", "sealed_to"].map(|name| read("sealed.txt").bytes(name)).into(),
        "signer" => crate::signer::fuzzing::seeds(),
        _ => Vec::new(),
    }
}

/// Certificates one after another, each behind its length.
fn chain_bytes(chain: &[&[u8]]) -> Vec<u8> {
    let length = |der: &[u8]| u16::try_from(der.len()).expect("a certificate of a vector is short").to_be_bytes();
    chain.iter().flat_map(|der| [&length(der)[..], der].concat()).collect()
}

/// At most six, so that too many can be tried.
fn chain_of(mut data: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while let (Some((length, rest)), true) = (data.split_first_chunk::<2>(), chain.len() < 6) {
        let (der, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        chain.push(CertificateDer::from(der));
        data = rest;
    }
    chain
}

/// The authority of the test vectors, and what it made.
struct West {
    vector: Vector,
    domain: TrustDomain,
    verifier: Verifier,
    /// When all of it is valid.
    now: Timestamp,
}

static WEST: LazyLock<West> = LazyLock::new(|| {
    let vector = read("passthrough.txt");
    let domain: TrustDomain = vector.text("trust_domain").parse().expect("a domain");
    let verifier = Verifier::new();
    let mut bundles = Bundles::default();
    let bundle = TrustBundle { trust_domain: domain.clone(), sequence: 1, roots: vec![vector.bytes("root")] };
    bundles.update(bundle).expect("a bundle");
    assert!(verifier.publish(&bundles).is_empty());
    West { vector, domain, verifier, now: noon().after(Duration::from_secs(1)) }
});

/// Chains before the verifier: whoever passes is the one that the authority made, whatever was added to its chain.
pub fn svid(data: &[u8]) {
    let West { vector, verifier, now, .. } = &*WEST;
    let chain = chain_of(data);
    if let Ok(peer) = verifier.tls_peer(&chain, *now) {
        assert_eq!(peer.id().to_string(), vector.text("source"), "a name that was never issued");
        let leaf = Certificate::parse(&chain[0], 0).expect("it was verified");
        let made = vector.bytes("leaf");
        let made = Certificate::parse(&made, 0).expect("of the vector");
        assert_eq!((leaf.spki, leaf.serial, leaf.not_after), (made.spki, made.serial, made.not_after));
        assert!(peer.not_after() <= made.not_after);
    }
    // The authority made no edge.
    assert!(verifier.session_peer(&chain, *now).is_err(), "an edge that was never issued");
    // A stranger vouches for itself, and for nothing else.
    if let Ok(stranger) = stranger(&chain, *now) {
        assert_eq!(chain.last().map(|root| root.as_ref()), Some(stranger.root_der.as_slice()));
        assert_eq!(stranger.id.role(), Role::Edge);
        assert_eq!(stranger.id.trust_domain(), &stranger.trust_domain);
        assert!(stranger.not_after >= *now);
    }
}

/// Bundles: what cannot be a root of the domain is left out, and what remains still lets in nobody but its own.
pub fn bundle(data: &[u8]) {
    let West { vector, domain, now, .. } = &*WEST;
    let roots: Vec<Vec<u8>> = chain_of(data).iter().map(|der| der.to_vec()).collect();
    let holds_root = roots.contains(&vector.bytes("root"));
    let usable = roots.iter().filter(|root| check_root(domain, root).is_ok()).count();
    let mut bundles = Bundles::default();
    let offered = roots.len();
    if bundles.update(TrustBundle { trust_domain: domain.clone(), sequence: 1, roots }).is_err() {
        return;
    }
    let verifier = Verifier::new();
    let ignored = verifier.publish(&bundles);
    assert!(offered - ignored.len() <= usable, "a root that is none was taken");
    let chain = ["leaf", "intermediate"].map(|name| CertificateDer::from(vector.bytes(name)));
    // A bundle that calls the intermediate a root too shortens its own paths: they end there, in force or not.
    let intermediate = Certificate::parse(&chain[1], 0).expect("of the vector");
    let twin =
        |der: &CertificateDer<'_>| Certificate::parse(der, 0).is_ok_and(|one| one.subject == intermediate.subject);
    if holds_root {
        let shortened = chain_of(data).iter().any(twin);
        assert!(verifier.tls_peer(&chain, *now).is_ok() || shortened, "a root was lost beside others");
    } else if verifier.tls_peer(&chain, *now).is_ok() {
        // Of a root name and key count; the intermediate is one too where a bundle says so.
        let known = ["root", "intermediate"].map(|name| vector.bytes(name));
        let same = chain_of(data).iter().any(|der| {
            let read = |der| Certificate::parse(der, 0).ok();
            let mut known = known.iter().filter_map(|known| read(known));
            read(der).is_some_and(|one| known.any(|known| one.spki == known.spki && one.subject == known.subject))
        });
        assert!(same, "verified under a root that the bundle does not have");
    }
}

/// Signing requests: only the key counts, and it must have signed.
pub fn csr(data: &[u8]) {
    let Ok(digest) = csr_key_digest(data) else { return };
    assert!(data.len() <= crate::CSR_BYTES_MAX);
    let spki = crate::csr::requested_key(data).expect("as before");
    assert_eq!(digest, sha256(&spki));
    assert!(crate::certificate::p256_point(&spki).is_some());
}

/// Passthrough headers: one form each, and no header passes that was not signed.
pub fn passthrough(data: &[u8]) {
    let West { vector, verifier, now, .. } = &*WEST;
    let (header, length) = match passthrough::parse(data) {
        Ok(Some(found)) => found,
        Ok(None) => {
            assert!(data.len() < HEADER_BYTES_MAX, "more bytes than a header can have are asked for");
            return;
        }
        Err(_) => {
            // What is refused is not saved by what comes behind it.
            assert!(passthrough::parse(&[data, &[0; 64]].concat()).is_err());
            return;
        }
    };
    let taken = data.get(..length).expect("it was there");
    assert_eq!(header.to_bytes(), taken, "a header has a second form");
    for cut in [1, length / 2, length - 1] {
        assert_eq!(passthrough::parse(&taken[..cut]).map(|found| found.is_some()), Ok(false), "cut at {cut}");
    }
    let hello = vector.bytes("hello");
    let source = vector.text("source").parse().expect("an id");
    let destination = vector.text("destination");
    let live = Extended {
        source: &source,
        destination: &destination,
        connection: federation_model::ConnectionId(vector.array("connection")),
        hello_digest: Digest(vector.array("hello_digest")),
        at: Timestamp::from_millis(vector.number("open_at")),
    };
    let opens = passthrough::verify(&header, &hello, verifier, *now).is_ok();
    let extends = passthrough::verify_extension(&header, &live, verifier, *now).is_ok();
    if opens || extends {
        assert!(opens != extends, "one header serves two purposes");
        assert_eq!(header.destination, destination);
        assert_eq!(header.connection, live.connection);
        let times = ["open_at", "renew_at", "extend_at"].map(|name| vector.number(name));
        assert!(times.contains(&header.at.as_millis()), "a header that was never signed passes");
    }
}

/// Sealed values: only what was sealed opens.
pub fn sealed(data: &[u8]) {
    static VECTOR: LazyLock<Vector> = LazyLock::new(|| read("sealed.txt"));
    let vector = &*VECTOR;
    let aad = vector.bytes("aad");
    if let Ok(value) = Kek::from_bytes(vector.array("kek")).open(&aad, data) {
        assert_eq!(data, vector.bytes("sealed"), "opened what was never sealed");
        assert_eq!(*value, vector.bytes("value"));
    }
    if let Ok(value) = seal::unseal(&vector.bytes("recipient_private"), &aad, data) {
        // Sealing needs the public key alone, but a fuzzer does not do it by chance.
        assert_eq!(data, vector.bytes("sealed_to"), "opened what was never sealed");
        assert_eq!(*value, vector.bytes("value"));
    }
}
