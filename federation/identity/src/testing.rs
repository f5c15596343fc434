//! Crafting certificates byte by byte, so that each of them can be wrong in exactly one way.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    },
};
use federation_model::{Bundles, ClusterName, Timestamp, TrustBundle, TrustDomain};

use crate::{Issued, LiveSvid, LocalSigner, SVID_TTL_DEFAULT, Signer, Svid, SvidKey, Verifier, now};

/// The time at which crafted certificates are judged, unless a case says otherwise: 2026-06-01T00:00:00Z.
pub(crate) const NOON: u64 = 1_780_272_000;
pub(crate) const DAY: u64 = 24 * 3600;

// === DER ===

pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match length {
        0..=0x7f => bytes.push(length as u8),
        0x80..=0xff => bytes.extend([0x81, length as u8]),
        _ => bytes.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    bytes.extend_from_slice(content);
    bytes
}

pub(crate) fn seq(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

pub(crate) fn oid(arcs: &[u64]) -> Vec<u8> {
    let mut content = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            groups.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        content.extend(groups.iter().rev());
    }
    der(0x06, &content)
}

pub(crate) fn bits(content: &[u8]) -> Vec<u8> {
    der(0x03, &[&[0], content].concat())
}

/// A name of one common name; the empty name for an empty text.
pub(crate) fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return seq(&[]);
    }
    let attribute = seq(&[&oid(&[2, 5, 4, 3]), &der(0x0c, common.as_bytes())]);
    seq(&[&der(0x31, &attribute)])
}

fn time(seconds: u64) -> Vec<u8> {
    // Days to a civil date, by eras of 400 years.
    let (days, clock) = (seconds / DAY + 719_468, seconds % DAY);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let rest = format!("{month:02}{day:02}{:02}{:02}{:02}Z", clock / 3600, clock / 60 % 60, clock % 60);
    if year < 2050 {
        der(0x17, format!("{:02}{rest}", year % 100).as_bytes())
    } else {
        der(0x18, format!("{year:04}{rest}").as_bytes())
    }
}

pub(crate) fn ecdsa_with(hash: u64) -> Vec<u8> {
    seq(&[&oid(&[1, 2, 840, 10045, 4, 3, hash])])
}

// === keys ===

pub(crate) enum Key {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    pub(crate) fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key"))
    }

    pub(crate) fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).expect("key"))
    }

    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().expect("key"))
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        let ec = oid(&[1, 2, 840, 10045, 2, 1]);
        match self {
            Self::P256(pair) => {
                let algorithm = seq(&[&ec, &oid(&[1, 2, 840, 10045, 3, 1, 7])]);
                seq(&[&algorithm, &bits(pair.public_key().as_ref())])
            }
            Self::P384(pair) => seq(&[&seq(&[&ec, &oid(&[1, 3, 132, 0, 34])]), &bits(pair.public_key().as_ref())]),
            Self::Ed25519(pair) => seq(&[&self.algorithm(), &bits(pair.public_key().as_ref())]),
        }
    }

    fn algorithm(&self) -> Vec<u8> {
        match self {
            Self::P256(_) => ecdsa_with(2),
            Self::P384(_) => ecdsa_with(3),
            Self::Ed25519(_) => seq(&[&oid(&[1, 3, 101, 112])]),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(pair) | Self::P384(pair) => {
                pair.sign(&SystemRandom::new(), message).expect("sign").as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

// === certificates ===

pub(crate) const SAN: u64 = 17;
pub(crate) const BASIC: u64 = 19;
pub(crate) const USAGE: u64 = 15;
pub(crate) const PURPOSE: u64 = 37;
pub(crate) const CONSTRAINTS: u64 = 30;

#[derive(Clone)]
pub(crate) struct Extension {
    pub(crate) oid: Vec<u8>,
    pub(crate) critical: bool,
    pub(crate) value: Vec<u8>,
}

/// Of the arc 2.5.29.
pub(crate) fn extension(arc: u64, critical: bool, value: Vec<u8>) -> Extension {
    Extension { oid: oid(&[2, 5, 29, arc]), critical, value }
}

pub(crate) fn uri(text: &str) -> Vec<u8> {
    der(0x86, text.as_bytes())
}

pub(crate) fn dns(text: &str) -> Vec<u8> {
    der(0x82, text.as_bytes())
}

pub(crate) fn san(names: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &names.concat())
}

/// Key usage of the named bits: digitalSignature is 0, keyCertSign 5, cRLSign 6.
pub(crate) fn usage(set: &[u8]) -> Vec<u8> {
    let byte = set.iter().fold(0u8, |byte, bit| byte | 0x80 >> bit);
    der(0x03, &[byte.trailing_zeros().min(7) as u8, byte])
}

/// Extended key usage of the named arcs of id-kp: serverAuth is 1, clientAuth 2.
pub(crate) fn purposes(arcs: &[u64]) -> Vec<u8> {
    der(0x30, &arcs.iter().flat_map(|arc| oid(&[1, 3, 6, 1, 5, 5, 7, 3, *arc])).collect::<Vec<u8>>())
}

pub(crate) const TRUE: [u8; 3] = [0x01, 0x01, 0xff];

/// A certificate before it is signed; every part of it may be wrong.
#[derive(Clone)]
pub(crate) struct Spec {
    /// `[0]` version as DER; empty for version 1.
    pub(crate) version: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) spki: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
    /// Algorithm inside and outside, where they are not the signer's.
    pub(crate) inner: Option<Vec<u8>>,
    pub(crate) outer: Option<Vec<u8>>,
}

impl Spec {
    pub(crate) fn leaf(id: &str, issuer: &str, key: &Key) -> Self {
        Self {
            version: der(0xa0, &der(0x02, &[2])),
            serial: vec![0x41, 2, 3, 4],
            issuer: name(issuer),
            subject: name(""),
            not_before: NOON - 300,
            not_after: NOON + 3600,
            spki: key.spki(),
            extensions: vec![
                extension(SAN, true, san(&[uri(id)])),
                extension(USAGE, true, usage(&[0])),
                extension(PURPOSE, false, purposes(&[1, 2])),
                extension(BASIC, true, seq(&[])),
            ],
            inner: None,
            outer: None,
        }
    }

    pub(crate) fn ca(domain: &str, subject: &str, issuer: &str, key: &Key) -> Self {
        Self {
            serial: vec![0x42, 7],
            subject: name(subject),
            not_before: NOON - 10 * DAY,
            not_after: NOON + 10 * DAY,
            extensions: vec![
                extension(SAN, false, san(&[uri(&format!("spiffe://{domain}"))])),
                extension(USAGE, true, usage(&[5])),
                extension(BASIC, true, seq(&[&TRUE])),
            ],
            ..Self::leaf("", issuer, key)
        }
    }

    /// Replaces an extension of the arc 2.5.29, or adds it.
    pub(crate) fn put(&mut self, arc: u64, critical: bool, value: Vec<u8>) {
        self.remove(arc);
        self.extensions.push(extension(arc, critical, value));
    }

    pub(crate) fn remove(&mut self, arc: u64) {
        self.extensions.retain(|one| one.oid != oid(&[2, 5, 29, arc]));
    }

    /// The leaf's SAN, critical, of one URI.
    pub(crate) fn id(&mut self, text: &str) {
        self.put(SAN, true, san(&[uri(text)]));
    }

    pub(crate) fn sign(&self, signer: &Key) -> Vec<u8> {
        let algorithm = signer.algorithm();
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|one| {
                let critical: &[u8] = if one.critical { &TRUE } else { &[] };
                seq(&[&one.oid, critical, &der(0x04, &one.value)])
            })
            .collect();
        let extensions = if extensions.is_empty() { Vec::new() } else { der(0xa3, &der(0x30, &extensions)) };
        let tbs = seq(&[
            &self.version,
            &der(0x02, &self.serial),
            self.inner.as_ref().unwrap_or(&algorithm),
            &self.issuer,
            &seq(&[&time(self.not_before), &time(self.not_after)]),
            &self.subject,
            &self.spki,
            &extensions,
        ]);
        seq(&[&tbs, self.outer.as_ref().unwrap_or(&algorithm), &bits(&signer.sign(&tbs))])
    }
}

// === whole clusters, made by the code under test ===

/// A cluster with its authority, as other rooms make it.
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) domain: TrustDomain,
    pub(crate) signer: LocalSigner,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(name, &format!("{name}.mesh.internal"))
    }

    /// A cluster that gives itself this trust domain, whoever else may have it.
    pub(crate) fn of(name: &str, domain: &str) -> Self {
        let (name, domain) = (name.parse().expect("name"), domain.parse().expect("domain"));
        let (signer, _) = LocalSigner::generate(&domain, &name, now()).expect("signer");
        Self { name, domain, signer }
    }

    pub(crate) fn issue(&self, path: &str, key: &SvidKey) -> Issued {
        let id = format!("spiffe://{}{path}", self.domain).parse().expect("id");
        self.signer.sign_svid(&id, &key.csr(), SVID_TTL_DEFAULT, now()).expect("issued")
    }

    /// A workload's SVID: leaf and intermediate.
    pub(crate) fn workload(&self, account: &str) -> Svid {
        let key = SvidKey::generate();
        let issued = self.issue(&format!("/ns/default/sa/{account}"), &key);
        Svid::assemble(key, issued.chain).expect("svid")
    }

    /// The edge's SVID: leaf, intermediate and root.
    pub(crate) fn edge(&self) -> Svid {
        let key = SvidKey::generate();
        let issued = self.issue(&format!("/hanse/edge/{}", self.name), &key);
        Svid::assemble(key, issued.full_chain()).expect("svid")
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        self.signer.bundle(1)
    }
}

pub(crate) fn live(svid: Svid) -> LiveSvid {
    let live = LiveSvid::new();
    live.set(svid);
    live
}

pub(crate) fn bundles(all: impl IntoIterator<Item = TrustBundle>) -> Bundles {
    let mut bundles = Bundles::default();
    all.into_iter().for_each(|bundle| bundles.update(bundle).expect("bundle"));
    bundles
}

/// A verifier that holds the bundles of these clusters.
pub(crate) fn verifier(clusters: &[&Cluster]) -> Verifier {
    let verifier = Verifier::new();
    let ignored = verifier.publish(&bundles(clusters.iter().map(|cluster| cluster.bundle())));
    assert!(ignored.is_empty(), "{ignored:?}");
    verifier
}

pub(crate) fn noon() -> Timestamp {
    Timestamp::from_secs(NOON)
}
