//! The table: chains that are right but for one thing, and the reason for which each is refused.

use super::table::{Ask, DOMAIN, Draft, EDGE, OTHER, WEB};
use crate::testing::{
    BASIC, CONSTRAINTS, DAY, Extension, Key, NOON, PURPOSE, SAN, Spec, TRUE, USAGE, bits, der, dns, ecdsa_with,
    extension, name, noon, oid, purposes, san, seq, uri, usage,
};

type Good = (&'static str, fn(&mut Draft));
type Bad = (&'static str, &'static str, fn(&mut Draft));

fn unknown(critical: bool, bytes: usize) -> Extension {
    Extension { oid: oid(&[1, 3, 6, 1, 4, 1, 99999, 1]), critical, value: der(0x04, &vec![0; bytes]) }
}

/// An edge's chain, with its root.
fn edge(draft: &mut Draft) {
    draft.leaf.id(EDGE);
    draft.show_root = true;
}

/// While a rotation is turned: the new root's key, certified by the root before for one intermediate and no more.
fn certified(draft: &mut Draft) {
    draft.between("new root");
    draft.between[0].0.put(BASIC, true, seq(&[&TRUE, &[0x02, 0x01, 0x01]]));
}

fn long_id(bytes: usize) -> String {
    let head = format!("spiffe://{DOMAIN}/ns/a/sa/");
    let fill = "a".repeat(bytes - head.len());
    head + &fill
}

pub(super) const GOOD: &[Good] = &[
    ("as it is issued", |_| {}),
    ("with its root", |d| d.show_root = true),
    ("with DNS names and an address beside the URI", |d| {
        let names = [dns("web.shop.svc"), uri(WEB), dns("web"), der(0x87, &[127, 0, 0, 1])];
        d.leaf.put(SAN, true, san(&names));
    }),
    ("with a subject and a SAN that is not critical", |d| {
        d.leaf.subject = name("web");
        d.leaf.put(SAN, false, san(&[uri(WEB)]));
    }),
    ("without extended key usage", |d| d.leaf.remove(PURPOSE)),
    ("with a further purpose", |d| d.leaf.put(PURPOSE, false, purposes(&[1, 2, 4]))),
    ("with a further key usage", |d| d.leaf.put(USAGE, true, usage(&[0, 4]))),
    ("with basic constraints that are not critical", |d| d.leaf.put(BASIC, false, seq(&[]))),
    ("with an unknown extension that is not critical", |d| d.leaf.extensions.push(unknown(false, 8))),
    ("under two intermediates", |d| d.between("middle")),
    ("under two intermediates and with its root", |d| {
        d.between("middle");
        d.show_root = true;
    }),
    ("under a new root that the one before certified", certified),
    ("under a new root that the one before certified, with the one before", |d| {
        certified(d);
        d.show_root = true;
    }),
    ("under a new root that is in force itself, whoever else certified it", |d| {
        certified(d);
        d.show_root = true;
        d.own_root_in_force = false;
        let (cross, key) = &d.between[0];
        let new = Spec { issuer: cross.subject.clone(), ..cross.clone() };
        d.bundle = Some(vec![new.sign(key)]);
    }),
    ("issued by the root itself", |d| {
        d.leaf.issuer = name("root");
        d.show_intermediate = false;
        d.root_signs_leaf = true;
    }),
    ("under a P-384 root", |d| {
        d.root_key = Key::p384();
        d.root.spki = d.root_key.spki();
    }),
    ("at the very end of its term", |d| {
        d.now = noon().after(std::time::Duration::from_secs(3600));
    }),
    ("under a root without a SPIFFE ID", |d| d.root.remove(SAN)),
    ("under an authority that ends after 2049", |d| {
        d.root.not_after = 4_000_000_000;
        d.intermediate.not_after = 4_000_000_000;
    }),
    ("beside a root that has ended", |d| {
        let mut old = Spec::ca(DOMAIN, "root", "root", &d.root_key);
        old.not_after = NOON - 1;
        d.bundle = Some(vec![old.sign(&d.root_key)]);
    }),
    ("with a name of 2048 bytes", |d| {
        d.leaf.id(&long_id(2048));
        d.ask = Ask::Anybody;
    }),
    ("an edge at a session", |d| {
        edge(d);
        d.ask = Ask::Session;
    }),
    ("one of the identities that were named", |d| {
        d.ask = Ask::Ids(vec!["spiffe://west.mesh.internal/ns/shop/sa/api", WEB]);
    }),
    ("of the domain that was named", |d| d.ask = Ask::Domain(DOMAIN)),
    ("with a key that another domain revoked", |d| d.revoked = vec![(OTHER, d.leaf.spki.clone())]),
    ("with another key of the domain revoked", |d| d.revoked = vec![(DOMAIN, Key::p256().spki())]),
    ("an edge under its own root", |d| {
        edge(d);
        d.ask = Ask::Stranger;
    }),
    ("an edge under the pinned root", |d| {
        edge(d);
        d.ask = Ask::Pinned(true);
    }),
];

pub(super) const BAD: &[Bad] = &[
    // The chain as bytes.
    ("no certificate", "chain_empty", |d| d.after = |chain| chain.clear()),
    ("five certificates", "chain_too_long", |d| {
        d.between("upper");
        d.between("middle");
        d.show_root = true;
    }),
    ("a leaf of 17,000 bytes", "certificate_too_long", |d| d.leaf.extensions.push(unknown(false, 17_000))),
    ("an intermediate of 17,000 bytes", "certificate_too_long", |d| {
        d.intermediate.extensions.push(unknown(false, 17_000));
    }),
    ("a leaf of no bytes", "malformed", |d| d.after = |chain| chain[0].clear()),
    ("a leaf of noise", "malformed", |d| d.after = |chain| chain[0] = vec![0x5a; 400]),
    ("a leaf cut short", "malformed", |d| {
        d.after = |chain| {
            chain[0].pop();
        }
    }),
    ("a leaf with an indefinite length", "malformed", |d| {
        d.after = |chain| {
            let inner = chain[0][4..].to_vec();
            chain[0] = [&[0x30, 0x80][..], &inner, &[0, 0]].concat();
        }
    }),
    ("a root whose length takes more bytes than it needs", "malformed", |d| {
        d.show_root = true;
        d.after = |chain| chain[2].splice(1..2, [0x83, 0x00]).for_each(drop);
    }),
    ("a leaf with a byte behind it", "trailing_bytes", |d| d.after = |chain| chain[0].push(0)),
    ("an intermediate with a byte behind it", "trailing_bytes", |d| d.after = |chain| chain[1].push(0)),
    ("a root with a byte behind it", "trailing_bytes", |d| {
        d.show_root = true;
        d.after = |chain| chain[2].push(0);
    }),
    ("a stray certificate behind the chain", "chain_order", |d| {
        d.after = |chain| {
            let key = Key::p256();
            chain.push(Spec::ca(OTHER, "stray", "stray", &key).sign(&key));
        }
    }),
    ("root before intermediate", "chain_order", |d| {
        d.show_root = true;
        d.after = |chain| chain.swap(1, 2);
    }),
    ("the leaf twice", "chain_order", |d| d.after = |chain| chain.insert(0, chain[0].clone())),
    // Extensions.
    ("two subject alternative names", "duplicate_extension", |d| {
        d.leaf.extensions.push(extension(SAN, true, san(&[uri("spiffe://west.mesh.internal/ns/shop/sa/admin")])));
    }),
    ("basic constraints twice, once as a CA", "duplicate_extension", |d| {
        d.leaf.extensions.push(extension(BASIC, true, seq(&[&TRUE])));
    }),
    ("an unknown extension twice", "duplicate_extension", |d| {
        d.leaf.extensions.extend([unknown(false, 1), unknown(false, 2)]);
    }),
    ("two key usages in the intermediate", "duplicate_extension", |d| {
        d.intermediate.extensions.push(extension(USAGE, true, usage(&[5, 6])));
    }),
    ("key usage that is no bit string", "malformed_extension", |d| d.leaf.put(USAGE, true, vec![0x02, 0x01, 0x01])),
    ("basic constraints that are no sequence", "malformed_extension", |d| d.leaf.put(BASIC, true, TRUE.to_vec())),
    ("a second list of names behind the first", "malformed_extension", |d| {
        let names = [san(&[uri(WEB)]), san(&[uri("spiffe://west.mesh.internal/ns/shop/sa/admin")])].concat();
        d.leaf.put(SAN, true, names);
    }),
    ("a name of an unknown kind", "malformed_extension", |d| {
        d.leaf.put(SAN, true, san(&[uri(WEB), der(0x89, b"what")]));
    }),
    ("bytes behind the key usage", "malformed_extension", |d| {
        d.leaf.put(USAGE, true, [usage(&[0]), vec![0]].concat());
    }),
    // Names.
    ("no subject alternative name", "no_uri_san", |d| {
        d.leaf.remove(SAN);
        d.leaf.subject = name(WEB);
    }),
    ("a DNS name that looks like a SPIFFE ID", "no_uri_san", |d| d.leaf.put(SAN, true, san(&[dns(WEB)]))),
    ("a mail address that looks like a SPIFFE ID", "no_uri_san", |d| {
        d.leaf.put(SAN, true, san(&[der(0x81, WEB.as_bytes())]));
    }),
    ("two SPIFFE IDs", "many_uri_sans", |d| {
        d.leaf.put(SAN, true, san(&[uri(WEB), uri("spiffe://west.mesh.internal/ns/shop/sa/admin")]));
    }),
    ("the same SPIFFE ID twice", "many_uri_sans", |d| d.leaf.put(SAN, true, san(&[uri(WEB), uri(WEB)]))),
    ("a SPIFFE ID and a web address", "many_uri_sans", |d| {
        d.leaf.put(SAN, true, san(&[uri(WEB), uri("https://example.org/")]));
    }),
    ("a SPIFFE ID and a URI that is not text", "many_uri_sans", |d| {
        d.leaf.put(SAN, true, san(&[uri(WEB), der(0x86, &[0xff, 0xfe])]));
    }),
    ("a URI that is not text", "uri_san_not_text", |d| d.leaf.put(SAN, true, san(&[der(0x86, b"spiffe://\xff/a")]))),
    ("a web address", "id_scheme", |d| d.leaf.id("https://west.mesh.internal/ns/shop/sa/web")),
    ("an upper-case scheme", "id_scheme", |d| d.leaf.id("SPIFFE://west.mesh.internal/ns/shop/sa/web")),
    ("one slash after the scheme", "id_scheme", |d| d.leaf.id("spiffe:/west.mesh.internal/ns/shop/sa/web")),
    ("a space before the scheme", "id_scheme", |d| d.leaf.id(" spiffe://west.mesh.internal/ns/shop/sa/web")),
    ("an empty URI", "id_scheme", |d| d.leaf.id("")),
    ("no trust domain", "id_empty_trust_domain", |d| d.leaf.id("spiffe:///ns/shop/sa/web")),
    ("an upper-case trust domain", "id_trust_domain_character", |d| {
        d.leaf.id("spiffe://West.mesh.internal/ns/shop/sa/web");
    }),
    ("a port", "id_trust_domain_character", |d| d.leaf.id("spiffe://west.mesh.internal:443/ns/shop/sa/web")),
    ("a user", "id_trust_domain_character", |d| d.leaf.id("spiffe://east@west.mesh.internal/ns/shop/sa/web")),
    ("an escape in the trust domain", "id_trust_domain_character", |d| {
        d.leaf.id("spiffe://west%2emesh.internal/ns/shop/sa/web");
    }),
    ("a NUL in the trust domain", "id_trust_domain_character", |d| {
        d.leaf.id("spiffe://west.mesh.internal\0.east/ns/shop/sa/web");
    }),
    ("a Cyrillic letter in the trust domain", "id_trust_domain_character", |d| {
        d.leaf.id("spiffe://w\u{435}st.mesh.internal/ns/shop/sa/web");
    }),
    ("a trust domain of 256 bytes", "id_trust_domain_too_long", |d| {
        d.leaf.id(&format!("spiffe://{}/ns/shop/sa/web", "a".repeat(256)));
    }),
    ("a slash at the end", "id_trailing_slash", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/web/")),
    ("the root path", "id_trailing_slash", |d| d.leaf.id("spiffe://west.mesh.internal/")),
    ("an empty segment", "id_empty_segment", |d| d.leaf.id("spiffe://west.mesh.internal/ns//sa/web")),
    ("a dot for a segment", "id_relative_segment", |d| d.leaf.id("spiffe://west.mesh.internal/ns/./sa/web")),
    ("two dots for a segment", "id_relative_segment", |d| {
        d.leaf.id("spiffe://west.mesh.internal/ns/shop/../admin/sa/web");
    }),
    ("an escape in the path", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/%77eb")),
    ("a NUL in the path", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/web\0x")),
    ("a query", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/web?a=b")),
    ("a fragment", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/web#a")),
    ("a backslash in the path", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa\\web")),
    ("an accent in the path", "id_path_character", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/w\u{e9}b")),
    ("2049 bytes", "id_too_long", |d| d.leaf.id(&long_id(2049))),
    ("no path", "id_without_path", |d| {
        d.leaf.id("spiffe://west.mesh.internal");
        d.ask = Ask::Anybody;
    }),
    ("neither subject nor a critical SAN", "san_not_critical", |d| d.leaf.put(SAN, false, san(&[uri(WEB)]))),
    // What a leaf may be used for.
    ("no basic constraints", "basic_constraints_missing", |d| d.leaf.remove(BASIC)),
    ("a CA for a leaf", "leaf_is_ca", |d| d.leaf.put(BASIC, true, seq(&[&TRUE]))),
    ("the intermediate for a leaf", "id_without_path", |d| {
        d.after = |chain| {
            chain.remove(0);
        }
    }),
    ("a path length on a leaf", "leaf_path_length", |d| d.leaf.put(BASIC, true, seq(&[&[0x02, 0x01, 0x00]]))),
    ("no key usage", "key_usage_missing", |d| d.leaf.remove(USAGE)),
    ("key usage that is not critical", "key_usage_not_critical", |d| d.leaf.put(USAGE, false, usage(&[0]))),
    ("no digitalSignature", "no_digital_signature", |d| d.leaf.put(USAGE, true, usage(&[4]))),
    ("keyCertSign on a leaf", "leaf_signs_certificates", |d| d.leaf.put(USAGE, true, usage(&[0, 5]))),
    ("cRLSign on a leaf", "leaf_signs_crls", |d| d.leaf.put(USAGE, true, usage(&[0, 6]))),
    ("serverAuth alone", "extended_key_usage", |d| d.leaf.put(PURPOSE, false, purposes(&[1]))),
    ("clientAuth alone", "extended_key_usage", |d| d.leaf.put(PURPOSE, false, purposes(&[2]))),
    ("codeSigning alone", "extended_key_usage", |d| d.leaf.put(PURPOSE, false, purposes(&[3]))),
    ("anyExtendedKeyUsage alone", "extended_key_usage", |d| {
        d.leaf.put(PURPOSE, false, seq(&[&oid(&[2, 5, 29, 37, 0])]));
    }),
    // Key, number, life.
    ("a P-384 key", "leaf_key_algorithm", |d| d.leaf.spki = Key::p384().spki()),
    ("an Ed25519 key", "leaf_key_algorithm", |d| d.leaf.spki = Key::ed25519().spki()),
    ("an RSA key", "leaf_key_algorithm", |d| {
        let rsa = seq(&[&oid(&[1, 2, 840, 113549, 1, 1, 1]), &[0x05, 0x00]]);
        let key = seq(&[&der(0x02, &[&[0x00][..], &[0xc1; 256]].concat()), &[0x02, 0x03, 0x01, 0x00, 0x01]]);
        d.leaf.spki = seq(&[&rsa, &bits(&key)]);
    }),
    ("a compressed point", "leaf_key_algorithm", |d| {
        let mut spki = Key::p256().spki();
        let point = spki.split_off(26);
        let algorithm = spki[2..23].to_vec();
        d.leaf.spki = seq(&[&algorithm, &bits(&[&[0x02][..], &point[1..33]].concat())]);
    }),
    ("a hybrid point", "leaf_key_algorithm", |d| d.leaf.spki[26] = 0x06),
    ("serial number nought", "serial_number", |d| d.leaf.serial = vec![0]),
    ("a negative serial number", "serial_number", |d| d.leaf.serial = vec![0x80, 1]),
    ("a serial number of 21 bytes", "serial_number", |d| d.leaf.serial = vec![0x41; 21]),
    ("a life of 25 hours", "lifetime_too_long", |d| d.leaf.not_after = d.leaf.not_before + 25 * 3600),
    ("a life of ten years", "lifetime_too_long", |d| d.leaf.not_after = NOON + 3650 * DAY),
    // Whose roots count.
    ("a trust domain that nobody has", "unknown_trust_domain", |d| d.leaf.id("spiffe://north.mesh.internal/ns/a/sa/b")),
    ("a trust domain under ours", "unknown_trust_domain", |d| d.leaf.id("spiffe://a.west.mesh.internal/ns/a/sa/b")),
    ("a trust domain above ours", "unknown_trust_domain", |d| d.leaf.id("spiffe://mesh.internal/ns/a/sa/b")),
    ("a trust domain that starts like ours", "unknown_trust_domain", |d| {
        d.leaf.id("spiffe://west.mesh.internal.example.org/ns/a/sa/b");
    }),
    ("a dot behind the trust domain", "unknown_trust_domain", |d| d.leaf.id("spiffe://west.mesh.internal./ns/a/sa/b")),
    ("no bundle of our domain", "unknown_trust_domain", |d| d.bundle = None),
    ("an empty bundle", "no_roots", |d| d.own_root_in_force = false),
    ("a bundle of which no root is a CA", "no_roots", |d| {
        d.own_root_in_force = false;
        d.bundle = Some(vec![Spec::leaf(WEB, "root", &d.leaf_key).sign(&d.root_key)]);
    }),
    ("a bundle whose root may not sign", "no_roots", |d| d.root.put(USAGE, true, usage(&[0]))),
    ("another domain's root, all names ours", "unknown_issuer", |d| *d = Draft::of_two_domains()),
    ("another domain's name under our root", "unknown_issuer", |d| {
        d.leaf.id("spiffe://east.mesh.internal/ns/shop/sa/web");
    }),
    ("a root of their own making", "unknown_issuer", |d| {
        let key = Key::p256();
        d.own_root_in_force = false;
        d.bundle = Some(vec![Spec::ca(DOMAIN, "true root", "true root", &key).sign(&key)]);
        d.show_root = true;
    }),
    ("a root of their own making under our root's name", "bad_signature", |d| {
        let key = Key::p256();
        d.own_root_in_force = false;
        d.bundle = Some(vec![Spec::ca(DOMAIN, "root", "root", &key).sign(&key)]);
        d.show_root = true;
    }),
    ("no intermediate", "unknown_issuer", |d| d.show_intermediate = false),
    ("a leaf that signed itself", "bad_signature", |d| d.leaf_signer = Some(Key::p256())),
    ("a self-signed leaf alone", "unknown_issuer", |d| {
        d.leaf.issuer = name("web");
        d.leaf.subject = name("web");
        d.show_intermediate = false;
    }),
    ("an intermediate that another key signed", "bad_signature", |d| d.intermediate_signer = Some(Key::p256())),
    ("a flipped bit in the signature", "bad_signature", |d| {
        d.after = |chain| {
            let last = chain[0].len() - 1;
            chain[0][last] ^= 1;
        }
    }),
    ("a changed name under an old signature", "bad_signature", |d| {
        d.after = |chain| {
            let at = chain[0].windows(3).position(|three| three == b"web").expect("web");
            chain[0][at..at + 3].copy_from_slice(b"adm");
        }
    }),
    ("ECDSA with SHA-1", "signature_algorithm", |d| {
        let sha1 = seq(&[&oid(&[1, 2, 840, 10045, 4, 1])]);
        (d.leaf.inner, d.leaf.outer) = (Some(sha1.clone()), Some(sha1));
    }),
    ("ECDSA with SHA-512", "signature_algorithm", |d| {
        (d.leaf.inner, d.leaf.outer) = (Some(ecdsa_with(4)), Some(ecdsa_with(4)));
    }),
    ("an Ed25519 root", "signature_algorithm", |d| {
        d.root_key = Key::ed25519();
        d.root.spki = d.root_key.spki();
    }),
    ("one algorithm inside, another outside", "signature_algorithm_mismatch", |d| {
        d.leaf.inner = Some(ecdsa_with(3));
    }),
    ("version 1 with extensions", "version", |d| d.leaf.version = Vec::new()),
    ("version 2", "version", |d| d.leaf.version = der(0xa0, &der(0x02, &[1]))),
    ("an unknown critical extension", "critical_extension", |d| d.leaf.extensions.push(unknown(true, 8))),
    ("an unknown critical extension above", "critical_extension", |d| {
        d.intermediate.extensions.push(unknown(true, 8));
    }),
    // Time.
    ("an end before the beginning", "validity_order", |d| d.leaf.not_before = d.leaf.not_after + 1),
    ("ended an hour ago", "expired", |d| d.now = noon().after(std::time::Duration::from_secs(7200))),
    ("ended a millisecond ago", "expired", |d| {
        d.now = noon().after(std::time::Duration::from_millis(3_600_001));
    }),
    ("not begun", "not_yet_valid", |d| d.leaf.not_before = NOON + 60),
    ("an intermediate that has ended", "issuer_expired", |d| d.intermediate.not_after = NOON - 1),
    ("an intermediate that has not begun", "issuer_not_yet_valid", |d| d.intermediate.not_before = NOON + 60),
    ("a root that has ended", "root_expired", |d| d.root.not_after = NOON - 1),
    ("a root that has not begun", "root_not_yet_valid", |d| d.root.not_before = NOON + 60),
    // Issuers.
    ("an intermediate that is no CA", "issuer_not_ca", |d| d.intermediate.put(BASIC, true, seq(&[]))),
    ("an intermediate without basic constraints", "issuer_not_ca", |d| d.intermediate.remove(BASIC)),
    ("a workload for an issuer", "issuer_not_ca", |d| {
        let issuer = d.intermediate.issuer.clone();
        d.intermediate = Spec::leaf("spiffe://west.mesh.internal/ns/shop/sa/mallory", "", &d.intermediate_key);
        d.intermediate.subject = name("intermediate");
        d.intermediate.issuer = issuer;
    }),
    ("more intermediates than a path length allows", "path_length", |d| {
        d.between("middle");
        d.between[0].0.put(BASIC, true, seq(&[&TRUE, &[0x02, 0x01, 0x00]]));
    }),
    ("a new root certified by one that is out of force", "unknown_issuer", |d| {
        certified(d);
        d.show_root = true;
        d.own_root_in_force = false;
        let key = Key::p256();
        d.bundle = Some(vec![Spec::ca(DOMAIN, "retired", "retired", &key).sign(&key)]);
    }),
    ("a new root certified for another domain", "issuer_foreign_domain", |d| {
        certified(d);
        d.between[0].0.put(SAN, false, san(&[uri("spiffe://east.mesh.internal")]));
    }),
    ("a new root certified with two intermediates below it", "path_length", |d| {
        certified(d);
        d.between("lower");
    }),
    ("a new root certified by a key that only bears the old root's name", "bad_signature", |d| {
        certified(d);
        d.own_root_in_force = false;
        let key = Key::p256();
        d.bundle = Some(vec![Spec::ca(DOMAIN, "root", "root", &key).sign(&key)]);
    }),
    ("a new root certified after which a third one is shown", "chain_order", |d| {
        certified(d);
        d.after = |chain| {
            let key = Key::p256();
            chain.push(Spec::ca(DOMAIN, "third", "third", &key).sign(&key));
        };
    }),
    ("name constraints on URIs", "name_constraints", |d| {
        let permitted = der(0xa0, &seq(&[&der(0x86, b"west.mesh.internal")]));
        d.intermediate.put(CONSTRAINTS, true, seq(&[&permitted]));
    }),
    ("an issuer without key usage", "issuer_key_usage_missing", |d| d.intermediate.remove(USAGE)),
    ("an issuer whose key usage is not critical", "issuer_key_usage_not_critical", |d| {
        d.intermediate.put(USAGE, false, usage(&[5]));
    }),
    ("an issuer without keyCertSign", "issuer_no_key_cert_sign", |d| d.intermediate.put(USAGE, true, usage(&[0, 6]))),
    ("an upper issuer without keyCertSign", "issuer_no_key_cert_sign", |d| {
        d.between("middle");
        d.between[0].0.put(USAGE, true, usage(&[6]));
    }),
    ("an issuer for servers alone", "issuer_extended_key_usage", |d| {
        d.intermediate.put(PURPOSE, false, purposes(&[1]))
    }),
    ("an issuer without a SPIFFE ID", "issuer_without_id", |d| d.intermediate.remove(SAN)),
    ("an issuer with two SPIFFE IDs", "issuer_many_ids", |d| {
        let id = format!("spiffe://{DOMAIN}");
        d.intermediate.put(SAN, false, san(&[uri(&id), uri(&id)]));
    }),
    ("an issuer with a web address", "issuer_id_malformed", |d| {
        d.intermediate.put(SAN, false, san(&[uri("https://west.mesh.internal")]));
    }),
    ("an issuer whose SPIFFE ID has a path", "issuer_id_with_path", |d| {
        d.intermediate.put(SAN, false, san(&[uri("spiffe://west.mesh.internal/ca")]));
    }),
    ("an issuer of another domain", "issuer_foreign_domain", |d| {
        d.intermediate.put(SAN, false, san(&[uri(&format!("spiffe://{OTHER}"))]));
    }),
    ("an upper issuer of another domain", "issuer_foreign_domain", |d| {
        d.between("middle");
        d.between[0].0.put(SAN, false, san(&[uri(&format!("spiffe://{OTHER}"))]));
    }),
    ("a leaf whose key was revoked", "revoked", |d| d.revoked = vec![(DOMAIN, d.leaf.spki.clone())]),
    ("a leaf whose issuer's key was revoked", "revoked", |d| d.revoked = vec![(DOMAIN, d.intermediate.spki.clone())]),
    // What is expected.
    ("an edge where workloads are accepted", "wrong_role", |d| d.leaf.id(EDGE)),
    ("a person where workloads are accepted", "wrong_role", |d| d.leaf.id("spiffe://west.mesh.internal/user/ada")),
    ("a path of no role", "wrong_role", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/web/extra")),
    ("an account whose name is no label", "wrong_role", |d| d.leaf.id("spiffe://west.mesh.internal/ns/shop/sa/We_b")),
    ("a workload where edges are accepted", "wrong_role", |d| d.ask = Ask::Session),
    ("a workload under a root of its own", "wrong_role", |d| {
        d.show_root = true;
        d.ask = Ask::Stranger;
    }),
    ("another domain than the one dialled", "wrong_trust_domain", |d| d.ask = Ask::Domain(OTHER)),
    ("another identity than those named", "unexpected_id", |d| {
        d.ask = Ask::Ids(vec!["spiffe://west.mesh.internal/ns/shop/sa/api"]);
    }),
    ("the same account in another domain", "unexpected_id", |d| {
        d.ask = Ask::Ids(vec!["spiffe://east.mesh.internal/ns/shop/sa/web"]);
    }),
    ("nobody named", "unexpected_id", |d| d.ask = Ask::Ids(Vec::new())),
    ("a stranger without its root", "root_missing", |d| {
        d.leaf.id(EDGE);
        d.ask = Ask::Stranger;
    }),
    ("a stranger whose root is no CA", "root_unusable", |d| {
        edge(d);
        d.root.remove(BASIC);
        d.ask = Ask::Stranger;
    }),
    ("a stranger whose root names another domain", "root_unusable", |d| {
        edge(d);
        d.root.put(SAN, false, san(&[uri(&format!("spiffe://{OTHER}"))]));
        d.ask = Ask::Stranger;
    }),
    ("an edge under another root than the pinned", "pin_mismatch", |d| {
        edge(d);
        d.ask = Ask::Pinned(false);
    }),
];
